"""The options of a rate limiter: what they mean, and what is refused when they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from resilience import Limit, MemoryStorage, RateLimiter
from resilience.core.limiter import Charge, Decision
from resilience.decorators.policy import KEPT_TERMS
from resilience.storage.standin import StandInStorage
from resilience.testing import FakeClock
from tests.support.surroundings import Surroundings, surrounded_by


def limiter(limits: Any = "2/minute", **options: Any) -> RateLimiter:
    return RateLimiter(limits, **{"name": "demo", "storage": MemoryStorage(clock=FakeClock()), **options})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": ""}, "name='': a rate limiter needs a name"),
        ({"cost": -1}, "cost=-1: a cost is a whole number from 0"),
        ({"cost": 3}, "cost=3 is above the burst of 2, so no call would ever pass: make it at most 2"),
        ({"limits": "9/second;5/minute", "cost": 6}, "cost=6 is above the burst of 5"),
        ({"limits": "9/second", "burst": 4, "cost": 5}, "cost=5 is above the burst of 4"),
        (
            {"limits": lambda plan: "1/second"},
            "says no limits: it is called without arguments for each call, and needs",
        ),
        ({"wait": -0.5}, r"wait=-0\.5: a caller waits for a number of seconds from 0"),
        ({"wait": math.inf}, "wait=inf"),
        ({"wait": math.nan}, "wait=nan"),
        ({"wait": True}, "wait=True"),
        ({"wait": "1"}, "wait='1'"),
        ({"methods": "POST"}, r"methods='POST': give several, such as \['POST', 'PUT'\]"),
        ({"methods": []}, r"methods=\[\]: give HTTP methods"),
        ({"methods": ["BREW"]}, r"methods=\['BREW'\]: give HTTP methods"),
        ({"on_store_failure": "open"}, "on_store_failure='open': choose one of local, allow, deny"),
        ({"limits": "100/second", "lease": 0}, "lease=0: a lease is a whole number of tokens from 1"),
        ({"limits": "100/second", "lease": 1.5}, r"lease=1\.5: a lease is a whole number"),
        (
            {"limits": "100/second", "lease": 11},
            "lease=11 is too much of a burst of 100.*take at most 10, a tenth of it",
        ),
        ({"limits": "100/second;5/minute", "lease": 1}, "lease=1 is too much of a burst of 5.*a limit this small"),
        ({"limits": "100/second", "lease": 5, "wait": 1}, "lease=5: callers who wait stand in one queue"),
        ({"limits": "100/second", "lease": 5, "shape": True}, "lease=5: callers who wait stand in one queue"),
        ({"deduct_when": bool, "wait": 1}, "deduct_when takes tokens after the call"),
        ({"deduct_when": bool, "shape": True}, "deduct_when takes tokens after the call"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_value(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        limiter(**options)


def test_a_cost_of_the_smallest_burst_passes() -> None:
    assert limiter("9/second;5/minute", cost=5).try_acquire().allowed


def test_a_cost_is_held_against_limits_that_are_said_for_each_call_when_they_are_said() -> None:
    demo = limiter(lambda: "2/minute", cost=3)
    assert (False, None) == (demo.try_acquire().allowed, demo.peek().retry_after)


class RememberingStorage(MemoryStorage):
    """Remembers the charges that it is asked for."""

    taker = None  # type: ignore[assignment]  # all go through take
    joint_taker = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(clock=FakeClock())
        self.asked: list[Charge] = []

    def take(self, charges: Sequence[Charge]) -> Decision:
        self.asked.extend(charges)
        return super().take(charges)


def test_a_lease_of_a_tenth_of_every_burst_is_passed_on() -> None:
    storage = RememberingStorage()
    limiter("100/second; 5000/hour", lease=10, storage=storage).acquire()
    assert [10, 10] == [charge.lease for charge in storage.asked]


def test_limits_that_are_said_for_each_call_are_leased_as_much_as_they_allow() -> None:
    storage, plan = RememberingStorage(), iter(["500/second", "50/second", "5/second"])
    demo = limiter(lambda: next(plan), lease=20, storage=storage)
    for _ in range(3):
        demo.acquire()
    assert [20, 5, 0] == [charge.lease for charge in storage.asked]


def test_who_waits_takes_nothing_ahead() -> None:
    storage = RememberingStorage()
    limiter("100/second", lease=10, storage=storage).acquire(wait=1.0)
    assert [(0, -Limit(100, 1).debt(1.0))] == [(charge.lease, charge.floor) for charge in storage.asked]


def test_limits_may_be_said_for_each_call() -> None:
    plan: list[Any] = ["1/minute"]
    demo = limiter(lambda: plan[0])
    assert ([True, False], ()) == ([demo.try_acquire("free").allowed for _ in range(2)], demo.limits)
    plan[0] = [Limit(2, 60), Limit(100, 3_600)]
    assert [True, True, False] == [demo.try_acquire("paying").allowed for _ in range(3)]
    assert ("said for each call",) == demo.snapshot().limits
    assert "<RateLimiter demo: limits said for each call>" == repr(demo)


def test_a_callable_that_names_no_limit_lets_the_call_pass() -> None:
    demo = limiter(lambda: None)
    assert (True, (), 1) == (*demo.try_acquire(), demo.snapshot().exempted)


def test_the_same_words_are_read_once_and_different_ones_are_forgotten_in_time() -> None:
    said = ["1/minute"]
    demo = limiter(lambda: said[0])
    policy = demo.policies[0]
    assert policy.terms() is policy.terms()
    for amount in range(1, KEPT_TERMS + 100):
        said[0] = f"{amount}/minute"
        policy.terms()
    assert KEPT_TERMS == policy._compiled.cache_info().currsize


def test_a_callable_that_says_nonsense_is_told_so() -> None:
    with pytest.raises(ValueError, match="'lots' is not a rate limit"):
        limiter(lambda: "lots").acquire()


def test_exempt_calls_pass_uncounted() -> None:
    trusted = [True]
    demo = limiter("1/minute", exempt_when=lambda: trusted[0])
    assert [(True, ())] * 3 == [demo.try_acquire() for _ in range(3)]
    trusted[0] = False
    assert [True, False] == [demo.try_acquire().allowed for _ in range(2)]
    assert (1, 1, 3) == (demo.snapshot().allowed, demo.snapshot().denied, demo.snapshot().exempted)


def test_only_the_named_methods_are_limited_and_head_is_get() -> None:
    demo = limiter("1/minute", methods=["get"])
    with surrounded_by(Surroundings(MemoryStorage())) as request:
        answers = {}
        for request.verb in ("POST", "GET", "HEAD", "BREW", None):
            answers[request.verb] = demo.try_acquire("alice").allowed
    assert (frozenset({"GET"}), False) == (demo.methods, demo.per_method)
    assert {"POST": True, "GET": True, "HEAD": False, "BREW": True, None: False} == answers


def test_each_method_may_have_a_bucket_of_its_own_but_not_each_word_that_a_client_invents() -> None:
    demo = limiter("1/minute", per_method=True)
    with surrounded_by(Surroundings(MemoryStorage())) as request:
        answers = []
        for request.verb in ("GET", "POST", "HEAD", "POST", "BREW", "STEEP", None, None):
            answers.append(demo.try_acquire("alice").allowed)  # the loop sets the verb
    assert [True, True, False, False, True, False, True, False] == answers


def test_all_buckets_of_a_caller_are_filled_whatever_the_method_of_whoever_fills_them() -> None:
    request = Surroundings(MemoryStorage())
    demo = limiter("1/minute", per_method=True, methods=["GET", "POST"], exempt_when=lambda: request.verb == "PUT")
    with surrounded_by(request):
        for request.verb in ("GET", "POST"):
            demo.acquire("alice")
        request.verb, request.wanted = "PUT", "skip"
        demo.reset("alice")
        request.wanted = "enforce"
        for request.verb in ("GET", "POST"):
            demo.acquire("alice")


class Modes(StandInStorage):
    """Counts how often another way to decide is asked for."""

    asked = 0

    def deciding(self, mode: Any) -> StandInStorage:
        self.asked += 1
        return super().deciding(mode)


def test_a_limiter_has_its_own_way_to_decide_while_the_storage_is_down() -> None:
    storage = Modes(MemoryStorage(), probing=False)
    strict, usual = limiter(storage=storage, on_store_failure="deny"), limiter(storage=storage)
    for _ in range(2):
        strict.acquire()
    with pytest.raises(Exception, match="exceeded"):
        usual.acquire()
    assert 1 == storage.asked


def test_without_a_stand_in_there_is_no_way_to_choose() -> None:
    assert limiter(on_store_failure="deny").try_acquire().allowed
