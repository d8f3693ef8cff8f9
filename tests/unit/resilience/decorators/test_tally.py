"""What rate limits tell of: refusals, at most once a second for each key, and who is refused the most."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resilience import MemoryStorage, RateLimited, RateLimiter, all_of
from resilience.clock import epoch_seconds
from resilience.core.events import LimitExceeded, LimitReset, PolicyEvent
from resilience.events import PROCESS_EVENTS
from resilience.testing import FakeClock


@pytest.fixture(autouse=True)
def _no_events() -> Iterator[None]:
    PROCESS_EVENTS.clear()
    yield
    PROCESS_EVENTS.clear()


CLOCK = FakeClock()


def limiter(limits: str = "1/minute", **options: Any) -> RateLimiter:
    return RateLimiter(limits, **{"name": "demo", "storage": MemoryStorage(clock=CLOCK), "clock": CLOCK, **options})


def refusals(policy: str = "demo") -> list[tuple[str, int, float | None]]:
    found = [entry.event for entry in PROCESS_EVENTS.of("limiter", policy)]
    return [(each.key, each.count, each.retry_after) for each in found if isinstance(each, LimitExceeded)]


def times(most: int, function: Callable[[], object]) -> None:
    for _ in range(most):
        function()


def test_an_allowed_call_tells_nothing() -> None:
    limiter("5/minute").try_acquire("anna")
    assert [] == PROCESS_EVENTS.since(0)


def test_a_refusal_is_told_at_once_and_the_next_ones_after_a_second() -> None:
    demo = limiter()
    times(4, lambda: demo.try_acquire("anna"))
    assert [("anna", 1, 60.0)] == refusals()
    CLOCK.advance(1.0)
    demo.try_acquire("anna")
    assert [("anna", 1, 60.0), ("anna", 3, 59.0)] == refusals()


def test_what_is_left_to_be_told_is_told_to_who_looks() -> None:
    demo = limiter()
    times(4, lambda: demo.try_acquire("anna"))
    CLOCK.advance(1.0)
    demo.snapshot()
    assert [("anna", 1, 60.0), ("anna", 2, None)] == refusals()


def test_an_event_says_when_it_was() -> None:
    before = epoch_seconds()
    demo = limiter()
    times(2, demo.try_acquire)
    (entry,) = PROCESS_EVENTS.of("limiter", "demo")
    assert before <= entry.event.at <= epoch_seconds()
    assert {"kind": "limiter", "type": "REFUSED", "policy": "demo", "key": "process", "count": 1, "retry_after": 60.0,
            "shadow": False, "at": entry.event.at} == entry.event.describe()  # fmt: skip


def test_every_way_to_be_refused_is_told() -> None:
    ways: dict[str, Callable[[RateLimiter], object]] = {
        "try": lambda demo: demo.try_acquire(),
        "acquire": lambda demo: demo.acquire(),
        "with": lambda demo: demo.__enter__(),
        "decorated": lambda demo: demo(lambda: None)(),
        "attempt": lambda demo: demo.attempt(),
        "wait": lambda demo: demo.acquire(wait=1.0),
        "together": lambda demo: all_of(demo, limiter("9/minute", name="other", storage=demo.storage)).try_acquire(),
    }
    for name, way in ways.items():
        demo = limiter(name=name, key="k")
        demo.acquire()
        with contextlib.suppress(RateLimited):
            way(demo)
        assert [("k", 1)] == [(key, count) for key, count, _ in refusals(name)], name
        assert 1 == demo.snapshot().denied, name
    assert [] == refusals("other")


def test_a_limit_in_shadow_mode_tells_what_it_would_have_refused() -> None:
    demo = limiter(shadow=True)
    times(3, lambda: demo.try_acquire("anna"))
    CLOCK.advance(1.0)
    demo.snapshot()
    events = [entry.event for entry in PROCESS_EVENTS.of("limiter", "demo")]
    assert [(1, True), (1, True)] == [(each.count, each.shadow) for each in events if isinstance(each, LimitExceeded)]
    assert [("anna", 2, 0)] == [tuple(top) for top in demo.snapshot().top]


def test_who_is_refused_the_most_comes_first() -> None:
    demo = limiter()
    for name, calls in (("anna", 3), ("ben", 5), ("carl", 1)):
        times(calls, lambda name=name: demo.try_acquire(name))  # type: ignore[misc]  # bound at once
    assert [("ben", 4, 0), ("anna", 2, 0)] == [tuple(top) for top in demo.snapshot().top]


def test_a_snapshot_names_twenty_keys_at_most() -> None:
    demo = limiter()
    for number in range(50):
        times(2, lambda number=number: demo.try_acquire(str(number)))  # type: ignore[misc]
    assert 20 == len(demo.snapshot().top)
    assert 20 == len(refusals())  # and a second tells of as many, one by one
    CLOCK.advance(1.0)
    demo.snapshot()
    assert 50 == sum(count for _, count, _ in refusals())


def test_two_limiters_of_one_name_tell_together() -> None:
    first, second = limiter(), limiter()
    second.count_with(first)
    for each in (first, second):
        times(2, lambda each=each: each.try_acquire("anna"))  # type: ignore[misc]
    assert 1 == len(refusals())
    assert first.snapshot().top == second.snapshot().top == [("anna", 2, 0)]


def test_whoever_wants_to_hear_of_every_refusal_does() -> None:
    heard: list[PolicyEvent] = []
    end = PROCESS_EVENTS.listen(heard.append, LimitExceeded, every_refusal=True)
    demo = limiter()
    times(4, lambda: demo.try_acquire("anna"))
    end()
    demo.try_acquire("anna")
    assert [1, 1, 1] == [each.count for each in heard if isinstance(each, LimitExceeded)]
    assert 1 == len(refusals())


def test_a_listener_may_ask_the_limiter() -> None:
    seen: list[int] = []
    demo = limiter()
    end = PROCESS_EVENTS.listen(lambda _: seen.append(demo.snapshot().denied), LimitExceeded)
    times(2, demo.try_acquire)
    end()
    assert [1] == seen


def test_a_listener_that_raises_is_no_trouble_of_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: PolicyEvent) -> None:
        raise RuntimeError("no")

    end = PROCESS_EVENTS.listen(fail, LimitExceeded)
    demo = limiter()
    demo.acquire()
    with pytest.raises(RateLimited):
        demo.acquire()
    end()
    assert ["a listener raised at REFUSED of limiter 'demo'"] == caplog.messages


def test_a_bucket_that_is_filled_by_hand_is_told_of() -> None:
    demo = limiter()
    demo.reset("anna", author="ben")
    demo.reset(("a", "b"))
    events = [entry.event for entry in PROCESS_EVENTS.of("limiter", "demo")]
    assert [("anna", "ben"), ("a|b", "")] == [
        (each.key, each.author) for each in events if isinstance(each, LimitReset)
    ]


def test_who_waits_is_counted_while_he_waits() -> None:
    seen: list[int] = []

    class Watching(FakeClock):
        def sleep(self, seconds: float) -> None:
            seen.append(demo.snapshot().waiting)
            super().sleep(seconds)

    clock = Watching()
    demo = limiter("1/second", wait=5.0, storage=MemoryStorage(clock=clock), clock=clock)
    times(3, demo.acquire)
    assert ([1, 1], 0, 2) == (seen, demo.snapshot().waiting, demo.snapshot().waited)


def test_who_is_interrupted_waits_no_longer() -> None:
    class Interrupting(FakeClock):
        def sleep(self, seconds: float) -> None:
            raise SystemExit

    clock = Interrupting()
    demo = limiter("1/second", wait=5.0, storage=MemoryStorage(clock=clock), clock=clock)
    demo.acquire()
    with pytest.raises(SystemExit):
        demo.acquire()
    assert 0 == demo.snapshot().waiting


def test_one_bucket_for_all_says_what_is_left() -> None:
    demo = limiter("5/minute; 9/hour", key="k")
    times(2, demo.try_acquire)
    assert 3 == demo.available()
    assert 2 == demo.snapshot().allowed  # nothing was counted nor taken
    assert 3 == demo.available()
    assert 4 == limiter("4/minute", key="k", storage=None).available(default_storage=MemoryStorage(clock=CLOCK))


@pytest.mark.parametrize(
    "options", [{}, {"key": lambda: "k"}, {"key": "k", "per_method": True}, {"key": "k", "limits": lambda: "1/minute"}]
)
def test_where_each_caller_has_a_bucket_there_is_no_such_number(options: dict[str, Any]) -> None:
    assert limiter(**options).available() is None


def test_a_limiter_that_is_listed_for_those_of_routes_has_no_such_number() -> None:
    listed = limiter(key="k")
    limiter(key="k", name="demo:route").count_with(listed)
    assert listed.available() is None


def test_threads_lose_no_refusal_of_their_own_keys() -> None:
    demo = limiter()
    times(2, lambda: demo.try_acquire("first"))  # the second has begun

    def work(name: str) -> None:
        times(201, lambda: demo.try_acquire(name))

    threads = [threading.Thread(target=work, args=(f"thread {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [200] * 8 + [1] == [top.times for top in demo.snapshot().top]
