"""Several limiters as one: one decision, all or nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from resilience import CombinedLimiter, Decision, MemoryStorage, RateLimited, RateLimiter, all_of, rate_limit
from resilience.core.limiter import Charge
from resilience.registry import PROCESS_REGISTRY
from resilience.testing import FakeClock
from tests.support.surroundings import Surroundings, surrounded_by


class CountingStorage(MemoryStorage):
    """Counts the questions that it is asked."""

    def __init__(self) -> None:
        super().__init__(clock=FakeClock())
        self.questions = 0

    def take(self, charges: Sequence[Charge]) -> Decision:
        self.questions += 1
        return super().take(charges)


@pytest.fixture
def storage() -> CountingStorage:
    return CountingStorage()


def per_user(storage: MemoryStorage, limits: Any = "3/minute", **options: Any) -> RateLimiter:
    return RateLimiter(limits, **{"name": "user", "storage": storage, **options})


def everybody(storage: MemoryStorage, limits: Any = "4/minute", **options: Any) -> RateLimiter:
    return RateLimiter(limits, **{"name": "everybody", "key": "all", "storage": storage, **options})


def test_limits_of_different_keys_are_taken_together_or_not_at_all(storage: CountingStorage) -> None:
    both = all_of(per_user(storage), everybody(storage))
    assert [True, True, True, False] == [both.try_acquire("alice").allowed for _ in range(4)]
    assert (1, 0) == (both.limiters[1].peek().remaining, both.limiters[0].peek("alice").remaining)
    assert [True, False] == [both.try_acquire("bob").allowed for _ in range(2)]
    assert 2 == both.limiters[0].peek("bob").remaining, "nothing is taken from bob for what everybody is refused"


def test_all_are_decided_in_one_question(storage: CountingStorage) -> None:
    both = all_of(per_user(storage, "3/minute; 9/hour"), everybody(storage))
    assert 3 == len(both.acquire("alice").quotas)
    assert 1 == storage.questions


def test_the_one_with_the_longest_wait_refuses(storage: CountingStorage) -> None:
    both = all_of(per_user(storage, "1/minute", title="you"), everybody(storage, "1/hour", title="all of us"))
    both.acquire("alice")
    with pytest.raises(RateLimited) as caught:
        both.acquire("alice")
    rejection = caught.value
    assert ("everybody", "all of us", 3_600.0) == (rejection.policy, rejection.title, rejection.retry_after)
    assert (("you", "all of us"), 2) == (rejection.titles, len(rejection.decision.quotas))


def test_each_counts_for_itself_and_only_who_refuses_has_denied(storage: CountingStorage) -> None:
    both = all_of(per_user(storage, "1/minute"), everybody(storage))
    for _ in range(3):
        both.try_acquire("alice")
    assert [("user", 1, 2), ("everybody", 1, 0)] == [(one.name, one.allowed, one.denied) for one in both.snapshot()]


def test_each_is_observed_under_its_own_name(storage: CountingStorage) -> None:
    both = all_of(per_user(storage, "3/minute; 9/hour"), everybody(storage))
    with surrounded_by(Surroundings(storage)) as request:
        both.acquire("alice")
    assert [("user", ("user-60s", "user-3600s"), 2), ("everybody", ("everybody",), 1)] == [
        (name, titles, len(decision.quotas)) for name, titles, decision in request.observed
    ]


def test_a_cost_is_for_all_and_their_own_costs_hold_without(storage: CountingStorage) -> None:
    both = all_of(per_user(storage, cost=2), everybody(storage))
    assert [1, 3] == [quota.remaining for quota in both.acquire("alice").quotas]
    assert [0, 2] == [quota.remaining for quota in both.acquire("alice", cost=1).quotas]


def test_each_answers_its_own_refusal(storage: CountingStorage) -> None:
    both = all_of(per_user(storage, "1/minute", on_breach=lambda _: "not so fast"), everybody(storage))
    greet = both(lambda: "hello")
    assert ["hello", "not so fast"] == [greet(), greet()]
    assert both is greet.limiter  # type: ignore[attr-defined]


def test_each_waits_as_long_as_it_may(storage: CountingStorage) -> None:
    clock = FakeClock()
    storage._clock = clock
    both = all_of(
        per_user(storage, "1/second", wait=1.0, clock=clock),
        everybody(storage, "10/second", wait=5.0, clock=clock),
    )
    began = clock.seconds()
    for _ in range(2):
        both.acquire("alice")
    assert 1.0 == clock.seconds() - began
    assert [1, 0] == [one.waited for one in both.snapshot()]


def test_who_is_exempt_from_one_is_held_to_the_other(storage: CountingStorage) -> None:
    both = all_of(per_user(storage, "1/hour", exempt_when=lambda: True), everybody(storage, "2/minute"))
    assert [True, True, False] == [both.try_acquire().allowed for _ in range(3)]
    assert [3, 0] == [one.exempted for one in both.snapshot()]


def test_a_limit_in_shadow_mode_refuses_nobody_among_others_that_do(storage: CountingStorage) -> None:
    both = all_of(per_user(storage, "1/minute", shadow=True), everybody(storage, "3/minute"))
    assert [True, True, True, False] == [both.try_acquire("alice").allowed for _ in range(4)]
    user, all_of_us = both.snapshot()
    assert ((1, 0, 2), (3, 1, 0)) == (
        (user.allowed, user.denied, user.shadow_denied), (all_of_us.allowed, all_of_us.denied, all_of_us.shadow_denied)
    )  # fmt: skip


def test_what_is_charged_after_the_call_can_refuse_before_it_and_nothing_is_lost(storage: CountingStorage) -> None:
    failures = per_user(storage, "1/minute", deduct_when=lambda result: result == "failed")
    calls = everybody(storage, "5/minute")
    guarded = all_of(failures, calls)(lambda result: result)
    assert ["fine", "failed"] == [guarded("fine"), guarded("failed")]
    with pytest.raises(RateLimited) as caught:
        guarded("fine")
    assert ("user", 3, 3) == (caught.value.policy, calls.peek().remaining, caught.value.decision.quotas[1].remaining)
    assert (2, 0) == (calls.snapshot().allowed, calls.snapshot().denied)


def test_a_peek_a_refund_and_a_reset_concern_all(storage: CountingStorage) -> None:
    both = all_of(per_user(storage), everybody(storage))
    both.acquire("alice", cost=3)
    assert (False, True) == (both.peek("alice").allowed, both.peek("bob").allowed)
    both.refund("alice", cost=1)
    assert [1, 2] == [quota.remaining for quota in both.peek("alice").quotas]
    both.reset("alice")
    assert [3, 4] == [quota.remaining for quota in both.peek("alice").quotas]


def test_what_an_attempt_took_from_all_is_given_back_to_all(storage: CountingStorage) -> None:
    both = all_of(per_user(storage), everybody(storage))
    both.attempt("alice").give_back()
    assert [3, 4] == [quota.remaining for quota in both.peek("alice").quotas]


def test_combinations_combine(storage: CountingStorage) -> None:
    three = all_of(all_of(per_user(storage), everybody(storage)), RateLimiter("9/day", name="day", storage=storage))
    assert ("user + everybody + day", "<CombinedLimiter user + everybody + day>") == (three.name, repr(three))
    assert ("user + everybody + day", 3, storage) == (three.title, len(three.limits), three.storage)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({}, "two of the limiters are named 'user' and share buckets"),
        ({"name": "b", "storage": None}, "'user' and 'b' are kept in different storages"),
        ({"name": "b", "on_store_failure": "deny"}, "'user' and 'b' differ in on_store_failure or clock"),
        ({"name": "b", "clock": FakeClock()}, "'user' and 'b' differ in on_store_failure or clock"),
    ],
)
def test_what_cannot_be_decided_at_once_is_refused(storage: CountingStorage, other: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        all_of(per_user(storage), RateLimiter("3/minute", **{"name": "user", "storage": storage, **other}))


# -- decorators on top of each other ---------------------------------------------------------------------------------


@pytest.fixture
def _empty_registry() -> Iterator[None]:
    yield
    PROCESS_REGISTRY.clear()


def counts(function: Any) -> list[tuple[str, int, int]]:
    """Name, allowed and denied of everything that limits a function, from the outside in."""
    return [(one.name, one.allowed, one.denied) for one in function.limiter.snapshot()]


@pytest.mark.usefixtures("_empty_registry")
def test_decorators_on_top_of_each_other_are_one_decision_all_or_nothing(storage: CountingStorage) -> None:
    @rate_limit("9/hour", name="day", title="a day", storage=storage)
    @rate_limit("5/hour", name="hour", key="all", storage=storage)
    @rate_limit("1/minute", name="minute", storage=storage)
    def greet(name: str) -> str:
        return f"hello {name}"

    assert ("hello you", "greet", "day + hour + minute") == (greet("you"), greet.__name__, greet.limiter.name)  # type: ignore[attr-defined]
    for _ in range(3):
        with pytest.raises(RateLimited) as caught:
            greet("you")
    assert ("minute", ("a day", "hour", "minute")) == (caught.value.policy, caught.value.titles)
    assert [("day", 1, 0), ("hour", 1, 0), ("minute", 1, 3)] == counts(greet)
    assert 4 == storage.questions
    assert {"day", "hour", "minute"} == set(PROCESS_REGISTRY.limiters)


def test_what_is_decorated_again_elsewhere_keeps_its_own_limit(storage: CountingStorage) -> None:
    inner = per_user(storage)(lambda: "hello")
    outer = everybody(storage)(inner)
    assert ["hello"] * 2 == [inner(), outer()]
    assert ([("everybody", 1, 0), ("user", 2, 0)], "RateLimiter") == (counts(outer), type(inner.limiter).__name__)  # type: ignore[attr-defined]


def test_a_limit_below_another_decorator_is_decided_after_the_one_above_it(storage: CountingStorage) -> None:
    def shout(function: Callable[[], str]) -> Callable[[], str]:
        @functools.wraps(function)
        def shouted() -> str:
            return function().upper()

        return shouted

    outer = everybody(storage)
    greet = outer(shout(per_user(storage, "1/minute")(lambda: "hello")))
    assert ("HELLO", outer) == (greet(), greet.limiter)  # type: ignore[attr-defined]
    with pytest.raises(RateLimited):
        greet()
    assert 2 == outer.snapshot().allowed


@pytest.mark.parametrize(
    "options",
    [
        {"wait": 1.0},
        {"shape": True},
        {"deduct_when": bool},
        {"clock": FakeClock()},
        {"storage": MemoryStorage(clock=FakeClock())},
        {"name": "everybody"},
    ],
)
def test_decorators_that_cannot_be_one_are_decided_one_by_one(storage: CountingStorage, options: Any) -> None:
    outer = everybody(storage)
    inner = per_user(**{"storage": storage, **options})
    greet = outer(inner(lambda: "hello"))
    assert ("hello", outer) == (greet(), greet.limiter)  # type: ignore[attr-defined]
    assert [1, 1] == [limiter.snapshot().allowed for limiter in (outer, inner)]


def test_whatever_can_be_called_can_be_limited(storage: CountingStorage) -> None:
    class Unhashable:
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

        def __call__(self) -> str:
            return "hello"

    assert "hello" == per_user(storage)(Unhashable())()


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="names no limiter"):
        CombinedLimiter()
