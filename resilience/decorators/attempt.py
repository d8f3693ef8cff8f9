"""One call before its limits: decided together, waited for, given back, or charged when its result is known."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from resilience.core.limiter import Charge, Decision, Quota, Refund
from resilience.decorators.claims import (
    UNLIMITED,
    Part,
    as_asked,
    as_undone,
    claims_of,
    count,
    find_storage,
    parts_of,
    refusing,
)
from resilience.decorators.policy import Claim, KeyLike, Policy, Terms, checked_cost
from resilience.errors import RateLimited, StorageUnavailable
from resilience.ports import Clock
from resilience.scope import PROCESS, RESOLVERS, current_scope

__all__ = ["Attempt"]

_LOG = logging.getLogger(__name__)

_new = tuple.__new__


class Attempt:
    """A call that has been decided: `decision` says how, over the limits that can refuse it.

    An exempt call has no quotas. When all limits are in shadow mode the decision is theirs, and allows. `delay` is how many
    seconds it is until the call's turn. `is_replaced` says whether a refusal's response takes the place of the call's result.
    """

    __slots__ = (
        "_claims",
        "_rejection",
        "_scope",
        "_shadows",
        "_started",
        "_storage",
        "decision",
        "delay",
        "is_replaced",
    )

    def __init__(self, policies: Sequence[Policy], key: KeyLike | None, cost: int | None, wait: float | None) -> None:
        self._scope = current_scope() if RESOLVERS else PROCESS
        self.decision = UNLIMITED
        self.delay = 0.0
        self.is_replaced = False
        self._rejection: RateLimited | None = None
        self._shadows: list[Claim] = []
        stance = "enforce" if self._scope is PROCESS else self._scope.stance()
        if stance == "enforce" and not wait and _all_plain(policies, wait):
            self._decide_plainly(policies, key, cost)
            return
        self._claims, self._shadows = claims_of(policies, self._scope, stance, key, cost, wait, counted=True)
        if self._claims:
            self._decide(self._claims)
        if self._shadows and self.decision.allowed:
            self._pretend(self._shadows)

    def _decide(self, claims: Sequence[Claim]) -> None:
        storage = self._storage = find_storage(claims[0].policy, self._scope)
        charges: list[Charge] = []
        later = waiting = False
        for claim in claims:
            charges += claim.charges()
            later = later or claim.later
            waiting = waiting or claim.wait > 0.0
        decision = storage.take(charges)
        if later:
            decision = self._looked_at(claims, decision)
        if waiting and decision.allowed:
            self.delay = max(map(_delay, parts_of(claims, decision)))
            if self.delay:
                self._started = claims[0].policy.clock.seconds()
        self.decision = decision
        self._tell(claims, decision)

    def _decide_plainly(self, policies: Sequence[Policy], key: KeyLike | None, cost: int | None) -> None:
        """As `_decide`, with less ado, for policies without anything special to say: most calls are of this kind."""
        scope = self._scope
        claims: list[Claim] = []
        charges: list[Charge] = []
        for policy in policies:
            given = key if len(policies) == 1 or policy.key is None else None  # as `keyed` says
            subject = policy.own_subject if given is None else policy.named(given)
            if subject is None:
                subject = policy.subject(None, scope)
            tokens = policy.own_cost if cost is None else checked_cost(cost)
            if tokens is None:
                tokens = policy.tokens()
            terms = policy.plain or cast("Terms", policy.terms())  # none: others hold since a moment ago
            claims.append(_new(Claim, (policy, terms, subject, tokens, 0.0, False)))
            for name, limit, lease in terms.parts:
                charges.append(_new(Charge, (name, subject, limit, tokens, 0, lease)))
        self._claims = claims
        self._storage = find_storage(claims[0].policy, scope)
        self.decision = self._storage.take(charges)
        self._tell(claims, self.decision)

    def _tell(self, claims: Sequence[Claim], decision: Decision) -> None:
        count(claims, decision)
        scope = self._scope
        if scope is PROCESS:
            return
        if len(claims) == 1:
            scope.observe(claims[0].policy.name, claims[0].terms.titles, decision)
            return
        for claim, quotas in parts_of(claims, decision):
            scope.observe(claim.policy.name, claim.terms.titles, _new(Decision, (decision.allowed, quotas)))

    def _looked_at(self, claims: Sequence[Claim], answer: Decision) -> Decision:
        """The decision, now that what is taken after the call has been looked at and can refuse it too."""
        parts = [as_asked(part) for part in parts_of(claims, answer)]
        allowed = answer.allowed and not refusing(parts, allowed=True)
        if answer.allowed and not allowed:
            self._undo(parts)
            parts = [as_undone(part) for part in parts]
        return Decision(allowed, tuple(quota for _, quotas in parts for quota in quotas))

    def _pretend(self, claims: Sequence[Claim]) -> None:
        try:
            decision = find_storage(claims[0].policy, self._scope).take(
                [charge for claim in claims for charge in claim.charges()]
            )
        except StorageUnavailable:
            _LOG.debug("limits in shadow mode were not decided", exc_info=True)
            return
        parts = [as_asked(part) for part in parts_of(claims, decision)]
        refused = refusing(parts, allowed=decision.allowed)
        if decision.allowed and not refused:
            count(claims, decision)
        for claim, quotas in refused:
            claim.policy.tally.would_have_refused(claim.subject, Decision(False, quotas))
            claim.policy.shadow_log.refused()
        if not self._claims:
            self.decision = Decision(True, tuple(quota for _, quotas in parts for quota in quotas))

    def wait(self) -> None:
        """Return when it is the call's turn. If anything interrupts that, what was reserved is given back first."""
        if not self.delay:
            return
        tallies = [part[0].policy.tally for part in parts_of(self._claims, self.decision) if _delay(part)]
        for tally in tallies:
            tally.waited += 1
            tally.waiting += 1
        clock = self._claims[0].policy.clock
        try:
            _sleep_until(clock, self._started + self.delay)
        except BaseException:
            # Rounded down to what the bucket has certainly gained: with more, it would look as if someone had come since.
            elapsed = max(0, int((clock.seconds() - self._started) * 1_000_000))
            self._return(lambda quota: _level_if_nobody_came(quota, elapsed))
            raise
        finally:
            for tally in tallies:
                tally.waiting -= 1

    def give_back(self) -> None:
        """Give back what this call took, as if it had not been made. Nothing, if it was refused or exempt.

        Never raises `StorageUnavailable`: buckets fill by themselves.
        """
        # Out of debt nobody counts on an order, so whatever others have taken meanwhile is no matter.
        self._return(lambda quota: quota.level if quota.level < 0 else None)

    def _return(self, expected: Callable[[Quota], int | None]) -> None:
        if not self._claims or not self.decision.allowed:
            return
        parts = list(parts_of(self._claims, self.decision))
        self._claims, self.decision = [], UNLIMITED  # what was given back is not given back again
        for claim, _ in parts:
            if claim.tokens:
                claim.policy.tally.allowed -= 1
        self._undo(parts, expected)

    def _undo(self, parts: Iterable[Part], expected: Callable[[Quota], int | None] = lambda _: None) -> None:
        refunds = [
            # The quota's own limit: a stand-in may have decided with another one than was asked for.
            Refund(scope, claim.subject, quota.limit, quota.cost, expected(quota))
            for claim, quotas in parts
            if claim.tokens and not claim.later
            for (scope, _, _), quota in zip(claim.terms.parts, quotas, strict=True)
        ]
        if not refunds:
            return
        try:
            self._storage.give_back(refunds)
        except StorageUnavailable as error:
            _LOG.warning("tokens that were not used are lost: %s", error)

    @property
    def rejection(self) -> RateLimited | None:
        """Why the call is refused; None when it is not. Nobody has been told of it: `refuse` does that."""
        if self._rejection is None and not self.decision.allowed:
            self._rejection = _rejection(list(parts_of(self._claims, self.decision)), self.decision)
        return self._rejection

    def refuse(self) -> RateLimited:
        """The rejection, ready to be raised: the refusing policy and the surroundings have had their say."""
        rejection = self.rejection
        assert rejection is not None, "only a refused call is refused"
        policy = next(claim.policy for claim in self._claims if claim.policy.name == rejection.policy)
        self.is_replaced = policy.answer(rejection)
        self._scope.refuse(rejection)
        return rejection

    def replacement(self) -> Any:
        """What takes the place of the result, once it has been refused."""
        assert self._rejection is not None, "only a refused call is replaced"
        return self._scope.replacement(self._rejection)

    def settle_later(self) -> bool:
        """Whether whoever makes the call need not `settle` it.

        Nothing may be left to be taken; and in a request the end of the request does it, with the response.
        """
        if not self.decision.allowed or not any(claim.later for claim in (*self._claims, *self._shadows)):
            return True
        return self._scope.settle(self.settle)

    def settle(self, result: object) -> None:
        """Take what the call with this `result` is to be charged. A storage that is down does not undo the call."""
        self._settle(lambda deduct_when: deduct_when(result))

    def settle_unseen(self) -> None:
        """Take what is to be taken after the call when nobody will say what its result is."""
        self._settle(lambda _: True)

    def _settle(self, applies: Callable[[Callable[[object], bool]], bool]) -> None:
        for claim in (*self._claims, *self._shadows):
            deduct_when = claim.policy.deduct_when
            if deduct_when is None or not claim.tokens or not applies(deduct_when):
                continue
            try:
                find_storage(claim.policy, self._scope).take(claim.late_charges())
            except StorageUnavailable as error:
                _LOG.warning("rate limit %r: a call was made and not counted: %s", claim.policy.name, error)


def _all_plain(policies: Sequence[Policy], wait: float | None) -> bool:
    """Whether all say the same of every call, and none lets it wait."""
    for policy in policies:  # noqa: SIM110  # `all` takes as long as the rest of a decision
        if policy.plain is None or (wait is None and policy.wait is not None):
            return False
    return True


def _rejection(parts: Sequence[Part], decision: Decision) -> RateLimited:
    """The refusal of the policy whose wait is the longest."""
    claim = max(parts, key=_seconds_to_wait)[0]
    titles = tuple(title for part in parts for title in part[0].terms.titles)
    return RateLimited(claim.policy.name, decision, title=claim.policy.title, titles=titles)


def _seconds_to_wait(part: Part) -> float:
    wait = Decision(False, part[1]).retry_after
    return math.inf if wait is None else wait


def _delay(part: Part) -> float:
    """Seconds until it is the call's turn, as far as one policy is concerned."""
    claim, quotas = part
    if not claim.tokens or not claim.wait:
        return 0.0
    if claim.policy.shape:
        return max(quota.queue_delay for quota in quotas)
    return max(quota.debt_delay for quota in quotas)


def _level_if_nobody_came(quota: Quota, elapsed: int) -> int:
    """The level, in parts, so many microseconds after the decision. Beyond a full bucket there is nothing to give back."""
    limit = quota.limit
    return min(limit.capacity, quota.level + elapsed // limit.tick * limit.refill)


def _sleep_until(clock: Clock, moment: float) -> None:
    """Sleep, and once more if a timer was early. No oftener: a clock that a test has stopped never gets there."""
    for _ in range(2):
        remaining = moment - clock.seconds()
        if remaining <= 0:
            return
        clock.sleep(remaining)
