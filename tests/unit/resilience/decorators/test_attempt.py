"""A call before its limits: waiting for its turn, giving it back, being charged afterwards, being watched only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from greenlet import greenlet

from resilience import Decision, Limit, MemoryStorage, RateLimited, RateLimiter, StorageUnavailable, rate_limit
from resilience.core.limiter import LARGEST
from resilience.registry import PROCESS_REGISTRY
from resilience.scope import PROCESS, RESOLVERS
from resilience.testing import FakeClock
from tests.support.simulated import Interruption, Simulation
from tests.support.surroundings import Surroundings, surrounded_by


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    PROCESS.forget()
    yield
    PROCESS_REGISTRY.clear()
    PROCESS.forget()


@pytest.fixture
def clock() -> Simulation:
    return Simulation()


@pytest.fixture
def storage(clock: Simulation) -> MemoryStorage:
    return MemoryStorage(clock=clock)


@pytest.fixture
def make(clock: Simulation, storage: MemoryStorage) -> Callable[..., RateLimiter]:
    def limiter(limits: Any = "1/second", **options: Any) -> RateLimiter:
        return RateLimiter(limits, **{"name": "demo", "key": "all", "storage": storage, "clock": clock, **options})

    return limiter


Make = Callable[..., RateLimiter]


class Crowd:
    """Callers of one limiter, who say when they began (in seconds after the start) or were refused."""

    def __init__(self, clock: Simulation, limiter: RateLimiter) -> None:
        self.clock = clock
        self.limiter = limiter
        self.began: dict[str, float] = {}
        self.refused: dict[str, float | None] = {}
        self.gave_up: list[str] = []
        self._start = clock.microseconds()
        self._callers: dict[str, greenlet] = {}

    def comes(self, name: str, at: float = 0.0, **arguments: Any) -> None:
        def call() -> None:
            try:
                self.limiter.acquire(**arguments)
            except RateLimited as rejection:
                self.refused[name] = rejection.retry_after
            except Interruption:
                self.gave_up.append(name)
            else:
                self.began[name] = self.now

        def begin() -> None:
            self._callers[name] = greenlet(call)
            self._callers[name].switch()

        self.clock.at(round(at * 1_000_000), begin)

    def leaves(self, name: str, at: float) -> None:
        self.clock.at(round(at * 1_000_000), lambda: self.clock.interrupt(self._callers[name]))

    @property
    def now(self) -> float:
        return (self.clock.microseconds() - self._start) / 1_000_000


def test_callers_wait_for_their_turn_in_the_order_of_asking(clock: Simulation, make: Make) -> None:
    crowd = Crowd(clock, make(wait=2.0))
    for name in "abcd":
        crowd.comes(name)
    clock.run()
    assert {"a": 0.0, "b": 1.0, "c": 2.0} == crowd.began
    assert {"d": 1.0} == crowd.refused, "who would wait longer than 2 s is refused at once, and can try in 1 s"
    assert (3, 1, 2) == (
        crowd.limiter.snapshot().allowed, crowd.limiter.snapshot().denied, crowd.limiter.snapshot().waited
    )  # fmt: skip


def test_each_call_may_say_how_long_it_waits(clock: Simulation, make: Make) -> None:
    crowd = Crowd(clock, make(wait=5.0))
    crowd.comes("a")
    crowd.comes("impatient", wait=0.5)
    crowd.comes("patient")
    clock.run()
    assert ({"a": 0.0, "patient": 1.0}, {"impatient": 0.5}) == (crowd.began, crowd.refused)


def test_trying_never_waits_nor_passes_those_who_do(clock: Simulation, make: Make) -> None:
    crowd = Crowd(clock, make(wait=5.0))
    crowd.comes("a")
    crowd.comes("b")
    tried: list[Decision] = []
    clock.at(500_000, lambda: tried.append(crowd.limiter.try_acquire()))
    clock.run()
    assert [(False, 1.5)] == [(decision.allowed, decision.retry_after) for decision in tried]


@pytest.mark.parametrize("wait", [-1, float("nan"), "1"])
def test_a_wait_that_is_none_is_refused(make: Make, wait: Any) -> None:
    with pytest.raises(ValueError, match="a caller waits for a number of seconds from 0"):
        make().acquire(wait=wait)


def test_a_look_waits_for_nobody(clock: Simulation, make: Make) -> None:
    demo = make(wait=5.0)
    crowd = Crowd(clock, demo)
    crowd.comes("a", cost=1)
    crowd.comes("b")
    crowd.comes("looks", cost=0)
    clock.run()
    assert 0.0 == crowd.began["looks"]


def test_a_caller_who_gives_up_gives_its_turn_to_the_next(clock: Simulation, make: Make) -> None:
    crowd = Crowd(clock, make(wait=5.0))
    crowd.comes("a")
    crowd.comes("b")
    crowd.leaves("b", at=0.4)
    crowd.comes("c", at=0.5)
    clock.run()
    assert ({"a": 0.0, "c": 1.0}, ["b"]) == (crowd.began, crowd.gave_up)
    assert 2 == crowd.limiter.snapshot().allowed


def test_a_turn_that_others_count_on_is_not_given_to_a_newcomer(clock: Simulation, make: Make) -> None:
    crowd = Crowd(clock, make(wait=5.0))
    for name in "abc":
        crowd.comes(name)
    crowd.leaves("b", at=0.4)
    crowd.comes("d", at=0.5)
    clock.run()
    assert {"a": 0.0, "c": 2.0, "d": 3.0} == crowd.began, "d at 2.0 would make two at that moment"


class BrokenStorage(MemoryStorage):
    """Takes, and does not give back."""

    def give_back(self, refunds: Any) -> None:
        raise StorageUnavailable("no answer in 0.05 s")


def test_what_interrupts_a_waiter_is_what_it_sees_also_when_giving_back_fails(
    clock: Simulation, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    crowd = Crowd(clock, make(wait=5.0, storage=BrokenStorage(clock=clock)))
    crowd.comes("a")
    crowd.comes("b")
    crowd.leaves("b", at=0.4)
    clock.run()
    assert ["b"] == crowd.gave_up
    assert ["tokens that were not used are lost: no answer in 0.05 s"] == caplog.messages


class StoppedClock(FakeClock):
    """Stands still whoever sleeps, as under a test that has frozen time."""

    naps = 0

    def sleep(self, seconds: float) -> None:
        self.naps += 1


def test_a_clock_that_stands_still_is_not_waited_for_for_ever(make: Make) -> None:
    clock = StoppedClock()
    demo = make(wait=5.0, clock=clock)
    demo.acquire()
    demo.acquire()
    assert 2 == clock.naps


def test_all_limits_of_a_limiter_are_waited_for(clock: Simulation, make: Make) -> None:
    crowd = Crowd(clock, make("2/second; 2 per 10 seconds", wait=10.0))
    for name in "abcd":
        crowd.comes(name)
    clock.run()
    assert {"a": 0.0, "b": 0.0, "c": 5.0, "d": 10.0} == crowd.began


def test_smoothed_callers_leave_one_after_the_other_and_the_burst_is_the_queue(clock: Simulation, make: Make) -> None:
    crowd = Crowd(clock, make("2/second", burst=3, shape=True))
    for name in "abcd":
        crowd.comes(name)
    clock.run()
    assert ({"a": 0.0, "b": 0.5, "c": 1.0}, {"d": 0.5}) == (crowd.began, crowd.refused)


def test_a_smoothed_caller_waits_no_longer_than_it_may(clock: Simulation, make: Make) -> None:
    crowd = Crowd(clock, make("2/second", burst=30, shape=True, wait=0.5))
    for name in "abc":
        crowd.comes(name)
    clock.run()
    assert ({"a": 0.0, "b": 0.5}, {"c": 0.5}) == (crowd.began, crowd.refused)


def test_trying_passes_a_smoothed_limit_only_when_nobody_is_before(clock: Simulation, make: Make) -> None:
    demo = make("2/second", burst=30, shape=True)
    assert [True, False] == [demo.try_acquire().allowed for _ in range(2)]
    assert (False, 0.5) == (demo.peek().allowed, demo.peek().retry_after)
    clock.advance(0.5)
    assert demo.peek().allowed


def test_a_smoothed_caller_who_gives_up_leaves_the_queue(clock: Simulation, make: Make) -> None:
    crowd = Crowd(clock, make("1/second", burst=9, shape=True))
    crowd.comes("a")
    crowd.comes("b")
    crowd.leaves("b", at=0.5)
    crowd.comes("c", at=0.6)
    clock.run()
    assert {"a": 0.0, "c": 1.0} == crowd.began


def test_a_cost_above_the_burst_is_not_waited_for(make: Make) -> None:
    with pytest.raises(RateLimited, match="no wait helps"):
        make(wait=60.0).acquire(cost=2)


def test_a_peek_says_what_trying_would_and_takes_nothing(make: Make) -> None:
    demo = make("3/minute")
    assert [(True, 3)] * 2 == [(demo.peek().allowed, demo.peek(cost=3).remaining) for _ in range(2)]
    assert (False, None) == (demo.peek(cost=4).allowed, demo.peek(cost=4).retry_after)
    demo.acquire(cost=2)
    assert (False, 20.0) == (demo.peek(cost=2).allowed, demo.peek(cost=2).retry_after)
    assert (1, 0) == (demo.snapshot().allowed, demo.snapshot().denied)


def test_a_refund_puts_back_and_never_makes_more_than_full(make: Make) -> None:
    demo = make("3/minute", cost=2)
    demo.acquire()
    demo.refund(cost=1)
    assert 2 == demo.peek().remaining
    demo.refund()
    demo.refund("all")
    assert 3 == demo.peek().remaining


def test_a_reset_fills_the_bucket_of_one_caller(make: Make) -> None:
    demo = make("3/minute; 100/hour", key=None)
    for key in ("alice", "bob"):
        demo.acquire(key, cost=3)
    demo.reset("alice")
    assert (3, 0) == (demo.peek("alice").remaining, demo.peek("bob").remaining)


def test_a_refund_or_reset_of_a_call_that_is_exempt_does_nothing(make: Make) -> None:
    demo = make("3/minute", exempt_when=lambda: True)
    demo.refund()
    assert Decision(True, ()) == demo.peek()
    make(lambda: None).reset()


def test_an_unlimited_call_has_no_end_of_tokens(make: Make) -> None:
    decision = make(exempt_when=lambda: True).acquire()
    assert (LARGEST, 0.0) == (decision.remaining, decision.retry_after)


def test_what_an_attempt_took_can_be_given_back_once(make: Make) -> None:
    demo = make("5/minute")
    attempt = demo.attempt(cost=3)
    assert (True, 2, None) == (attempt.decision.allowed, demo.peek().remaining, attempt.rejection)
    attempt.give_back()
    attempt.give_back()
    assert (5, 0) == (demo.peek().remaining, demo.snapshot().allowed)


def test_an_attempt_that_was_refused_gives_nothing_back(make: Make) -> None:
    demo = make("5/minute")
    demo.acquire(cost=4)
    attempt = demo.attempt(cost=2)
    attempt.give_back()
    assert (False, 1, 12.0) == (attempt.decision.allowed, demo.peek().remaining, attempt.refuse().retry_after)


def test_a_limiter_is_a_context_manager(make: Make) -> None:
    demo = make("5/minute")
    with demo as decision:
        assert 4 == decision.remaining
    with demo.held("other", cost=2) as decision:
        assert 3 == decision.remaining
    with pytest.raises(RateLimited), demo.held(cost=5):
        pytest.fail("entered without a token")
    assert 4 == demo.peek().remaining, "leaving gives nothing back"


# Charged after the call.


def test_tokens_are_taken_after_the_call_if_its_result_says_so(make: Make) -> None:
    demo = make("2/minute", deduct_when=lambda accepted: not accepted)

    @demo
    def log_in(password: str) -> bool:
        return password == "right"

    assert [True, False, True, False] == [log_in(word) for word in ("right", "wrong", "right", "guess")]
    with pytest.raises(RateLimited, match=r"retry in 30\.000 s"):
        log_in("right")
    assert (4, 1) == (demo.snapshot().allowed, demo.snapshot().denied)


def test_a_call_that_raises_has_no_result_to_be_charged_for(make: Make) -> None:
    demo = make("1/minute", deduct_when=lambda _: True)

    @demo
    def fail() -> None:
        raise OSError

    for _ in range(2):
        with pytest.raises(OSError):
            fail()


def test_calls_at_the_same_time_are_all_charged_by_a_debt_of_one_burst_at_most(make: Make) -> None:
    demo = make("2/minute", deduct_when=lambda _: True)
    attempts = []
    for _ in range(9):
        with surrounded_by(Surroundings(MemoryStorage())) as request:
            attempts.append((request, demo.attempt()))
    for request, attempt in attempts:
        assert attempt.decision.allowed, "when it was looked at, nothing had been taken"
        request.respond("failed")
    assert -2 * Limit(2, 60).unit == demo.peek().quotas[0].level


def test_in_a_request_it_is_the_response_that_decides(make: Make) -> None:
    demo = make("1/minute", deduct_when=lambda response: response == 404)
    with surrounded_by(Surroundings(MemoryStorage())) as request:
        demo(lambda: "result")()
        assert 1 == demo.peek().remaining
        request.respond(200)
        demo.acquire()
        request.respond(404)
        with pytest.raises(RateLimited):
            demo.acquire()
        request.respond(404)
    assert 0 == demo.peek().quotas[0].level


def test_where_nobody_says_the_result_the_tokens_are_taken_at_once(make: Make) -> None:
    demo = make("2/minute", deduct_when=lambda _: False)
    demo.acquire()
    demo.try_acquire()
    assert 0 == demo.peek().remaining


class DownAfterwards(MemoryStorage):
    """Answers once."""

    answered = False

    def take(self, charges: Any) -> Decision:
        if self.answered:
            raise StorageUnavailable("no answer in 0.05 s")
        self.answered = True
        return super().take(charges)


def test_a_storage_that_is_down_after_the_call_does_not_lose_its_result(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    demo = make(storage=DownAfterwards(), deduct_when=lambda _: True)
    assert "result" == demo(lambda: "result")()
    assert ["rate limit 'demo': a call was made and not counted: no answer in 0.05 s"] == caplog.messages


# Refusals.


def test_what_on_breach_returns_takes_the_place_of_the_result(make: Make) -> None:
    demo = make("1/minute", on_breach=lambda rejection: f"come back in {rejection.retry_after:g} s")
    greet = demo(lambda: "hello")
    assert ["hello", "come back in 60 s"] == [greet(), greet()]
    with pytest.raises(RateLimited) as caught:
        demo.acquire()
    assert "come back in 60 s" == caught.value.response


def test_on_breach_may_leave_it_at_the_refusal(make: Make) -> None:
    told: list[RateLimited] = []
    greet = make("1/minute", on_breach=told.append, response="slow down")(lambda: "hello")
    greet()
    with pytest.raises(RateLimited) as caught:
        greet()
    assert ([caught.value], "slow down") == (told, caught.value.response)


@pytest.mark.parametrize("response", ["wait 60 s", lambda rejection: f"wait {rejection.retry_after:g} s"])
@pytest.mark.parametrize("options", [{}, {"wait": 0.0}])
def test_a_refusal_carries_the_response_that_the_limit_wants(make: Make, response: Any, options: Any) -> None:
    demo = make("1/minute", response=response, **options)
    with surrounded_by(Surroundings(MemoryStorage())) as request:
        demo.acquire()
        with pytest.raises(RateLimited) as caught:
            demo.acquire()
        assert ("wait 60 s", [caught.value]) == (caught.value.response, request.refused)
        request.response = "the application's own"
        with pytest.raises(RateLimited) as caught:
            demo.acquire()
        assert "the application's own" == caught.value.response
        assert not demo.try_acquire().allowed
        assert 2 == len(request.refused), "trying refuses nobody"


# What surrounds a call.


@pytest.mark.parametrize("options", [{}, {"wait": 1.0}])
def test_every_decision_is_observed_under_one_title_for_each_limit(make: Make, options: Any) -> None:
    demo = make("5/minute; 100/hour", title="api", **options)
    with surrounded_by(Surroundings(MemoryStorage())) as request:
        first, second = demo.acquire(), demo.acquire()
        demo.peek()
    names, titles, decisions = zip(*request.observed, strict=True)
    assert (("demo", "demo"), ("api-60s", "api-3600s"), (first, second)) == (names, titles[0], decisions)
    assert titles[0] is titles[1]


def test_an_application_may_have_every_limit_skipped(make: Make) -> None:
    demo = make("1/minute")
    with surrounded_by(Surroundings(MemoryStorage())) as request:
        request.wanted = "skip"
        assert [Decision(True, ())] * 3 == [demo.acquire() for _ in range(3)]
    assert ([], 3, 1) == (request.observed, demo.snapshot().exempted, demo.peek().remaining)


def test_a_decorated_function_is_decided_by_what_surrounds_it(make: Make) -> None:
    demo = make("2/minute", key=None, storage=None)
    greet = demo(lambda: "hello")
    with surrounded_by(Surroundings(MemoryStorage())) as request:
        assert ["hello", "hello"] == [greet(), greet()]
        with pytest.raises(RateLimited):
            greet()
        assert [True, True, False] == [decision.allowed for _, _, decision in request.observed]
        request.wanted = "shadow"
        assert "hello" == greet()
        request.wanted = "skip"
        assert "hello" == greet()
    snapshot = demo.snapshot()
    assert (2, 1, 1, 1) == (snapshot.allowed, snapshot.denied, snapshot.shadow_denied, snapshot.exempted)


def test_a_decorated_function_outside_of_any_application_belongs_to_the_process(make: Make) -> None:
    greet = make("1/minute", key=None, cost=lambda: 1)(lambda: "hello")
    RESOLVERS.insert(0, lambda: None)
    try:
        greet()
        with pytest.raises(RateLimited):
            greet()
    finally:
        del RESOLVERS[0]


@pytest.mark.parametrize("by", ["the limit", "the application"])
def test_in_shadow_mode_nothing_is_refused_and_all_is_counted(
    make: Make, clock: Simulation, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    demo = make("2/minute", shadow=by == "the limit")
    with surrounded_by(Surroundings(MemoryStorage())) as request:
        request.wanted = "shadow" if by == "the application" else "enforce"
        assert [True] * 5 == [demo.acquire().allowed for _ in range(5)]
    snapshot = demo.snapshot()
    assert ((2, 0, 3), []) == ((snapshot.allowed, snapshot.denied, snapshot.shadow_denied), request.observed)
    assert ["rate limit 'demo' is in shadow mode and would have refused 1 call"] == caplog.messages
    clock.advance(1.0)
    with surrounded_by(request):
        demo.acquire()
    assert "rate limit 'demo' is in shadow mode and would have refused 3 calls" == caplog.messages[-1]


def test_a_shadow_never_waits(make: Make, clock: Simulation) -> None:
    demo = make("1/second", wait=5.0, shadow=True)
    before = clock.microseconds()
    for _ in range(9):
        demo.acquire()
    assert before == clock.microseconds()


def test_a_shadow_is_no_reason_for_an_error(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    demo = make(storage=DownAfterwards(), shadow=True)
    assert [True, True] == [demo.acquire().allowed for _ in range(2)]
    assert [] == caplog.messages


def test_a_decorated_function_may_wait(clock: Simulation) -> None:
    storage = MemoryStorage(clock=clock)

    @rate_limit("1/second", key="all", storage=storage, wait=5.0, clock=FakeClock())
    def greet() -> str:
        return "hello"

    assert ["hello"] * 3 == [greet() for _ in range(3)]
    assert 2 == greet.limiter.snapshot().waited  # type: ignore[attr-defined]
