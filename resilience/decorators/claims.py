"""What policies ask for one call, and what is said to each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from resilience.core.limiter import Decision, Quota
from resilience.decorators.policy import Claim, KeyLike, Policy, view_of
from resilience.ports import LimitStorage, Scope, Stance

__all__ = [
    "UNLIMITED",
    "Part",
    "as_asked",
    "as_undone",
    "claims_of",
    "count",
    "find_storage",
    "keyed",
    "parts_of",
    "refusing",
]

UNLIMITED = Decision(True, ())
"""What is said of a call that no limit is concerned with."""

Part = tuple[Claim, tuple[Quota, ...]]
"""What one policy asked for, and what was said to it."""


def keyed(policies: Sequence[Policy], key: KeyLike | None) -> Iterable[tuple[Policy, KeyLike | None]]:
    """Each with the key that is given to it: one given to several is for those that name none of their own."""
    return [(policy, key if len(policies) == 1 or policy.key is None else None) for policy in policies]


def find_storage(policy: Policy, scope: Scope) -> LimitStorage:
    """Where the policy keeps its buckets, and with it all that are decided together with it: `all_of` sees to that."""
    storage = scope.storage if policy.storage is None else policy.storage
    return storage if policy.on_store_failure is None else view_of(storage, policy.on_store_failure)


def claims_of(
    policies: Sequence[Policy],
    scope: Scope,
    stance: Stance,
    key: KeyLike | None,
    cost: int | None,
    wait: float | None,
    *,
    counted: bool,
) -> tuple[list[Claim], list[Claim]]:
    """What the policies ask for: those that are enforced, and those in shadow mode."""
    enforced: list[Claim] = []
    shadowed: list[Claim] = []
    for policy in policies:
        given = key if len(policies) == 1 or policy.key is None else None  # as `keyed` says
        claim = None if stance == "skip" else policy.claim(scope, given, cost, wait)
        if claim is None:
            policy.tally.exempted += counted
        elif policy.shadow or stance == "shadow":
            shadowed.append(claim)
        else:
            enforced.append(claim)
    return enforced, shadowed


def parts_of(claims: Sequence[Claim], decision: Decision) -> Iterable[Part]:
    """What the decision says to each."""
    quotas = decision.quotas
    begin = 0
    for claim in claims:
        end = begin + len(claim.terms.parts)
        yield claim, quotas[begin:end]
        begin = end


def as_asked(part: Part) -> Part:
    """With the cost that is taken after the call, where the bucket was looked at."""
    claim, quotas = part
    if not claim.later:
        return part
    tokens = claim.tokens
    return claim, tuple(
        Quota(quota.limit, quota.level, tokens, claim.policy.floor(quota.limit, tokens, claim.wait)) for quota in quotas
    )


def as_undone(part: Part) -> Part:
    """As it is after what was taken has been given back."""
    claim, quotas = part
    if claim.later:
        return part
    return claim, tuple(quota._replace(level=quota.level + quota.cost * quota.limit.unit) for quota in quotas)


def count(claims: Sequence[Claim], decision: Decision) -> None:
    """Count the decision for every policy that it is of."""
    if decision.allowed:
        for claim in claims:
            if claim.tokens:
                claim.policy.tally.allowed += 1
        return
    parts = list(parts_of(claims, decision))
    # all, if a storage refused for a reason of its own
    for claim, quotas in refusing(parts, allowed=False) or parts:
        claim.policy.tally.refused(claim.subject, Decision(False, quotas))


def refusing(parts: Iterable[Part], *, allowed: bool) -> list[Part]:
    """Those whose own numbers refuse the call; of a decision that took tokens, those that were only looked at."""
    return [
        (claim, quotas)
        for claim, quotas in parts
        if claim.tokens and (claim.later or not allowed) and any(quota.wait != 0.0 for quota in quotas)
    ]
