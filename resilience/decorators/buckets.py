"""What is done to buckets from outside of a call: looked into, put back into, filled."""

from __future__ import annotations

from collections.abc import Sequence

from resilience.core.limiter import Decision, Refund
from resilience.decorators.claims import UNLIMITED, as_asked, claims_of, find_storage, keyed, parts_of, refusing
from resilience.decorators.policy import KeyLike, Policy
from resilience.ports import Scope
from resilience.scope import current_scope

__all__ = ["peek", "refund", "reset"]


def peek(policies: Sequence[Policy], key: KeyLike | None, cost: int | None) -> Decision:
    """What a call would be told now, without waiting. Takes nothing, counts nothing, tells nobody."""
    scope = current_scope()
    enforced, shadowed = claims_of(policies, scope, scope.stance(), key, cost, 0.0, counted=False)
    claims = [claim._replace(later=True) for claim in enforced or shadowed]
    if not claims:
        return UNLIMITED
    seen = find_storage(claims[0].policy, scope).take([charge for claim in claims for charge in claim.charges()])
    parts = [as_asked(part) for part in parts_of(claims, seen)]
    passes = not enforced or not refusing(parts, allowed=True)
    return Decision(passes, tuple(quota for _, quotas in parts for quota in quotas))


def refund(policies: Sequence[Policy], key: KeyLike | None, cost: int | None) -> None:
    """Give `cost` tokens back to the bucket of `key` under every policy. Without a key, of this call: if it is not exempt."""
    scope = current_scope()
    if key is None:
        enforced, shadowed = claims_of(policies, scope, scope.stance(), key, cost, 0.0, counted=False)
        claims = [*enforced, *shadowed]
    else:
        claims = [
            claim for policy, given in keyed(policies, key) if (claim := policy.claim_regardless(scope, given, cost))
        ]
    _give_back(
        scope,
        [
            (claim.policy, Refund(name, claim.subject, limit, claim.tokens))
            for claim in claims
            if claim.tokens
            for name, limit, _ in claim.terms.parts
        ],
    )


def reset(policies: Sequence[Policy], key: KeyLike | None) -> None:
    """Fill the bucket of `key` under every policy, or all of them, where each HTTP method has one. Tells nobody."""
    scope = current_scope()
    _give_back(
        scope,
        [
            (policy, Refund(name, subject, limit, None))
            for policy, given in keyed(policies, key)
            if (terms := policy.terms())
            for subject in policy.subjects(given, scope)
            for name, limit, _ in terms.parts
        ],
    )


def _give_back(scope: Scope, refunds: Sequence[tuple[Policy, Refund]]) -> None:
    if refunds:
        find_storage(refunds[0][0], scope).give_back([refund for _, refund in refunds])
