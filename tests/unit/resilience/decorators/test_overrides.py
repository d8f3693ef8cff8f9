"""Limits that hold in place of a limiter's own for a time: in one process, and in all that share a storage."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resilience import MemoryStorage, RateLimited, RateLimiter, StorageUnavailable, all_of
from resilience.core.events import LimitOverridden, PolicyEvent
from resilience.core.limiter import Decision
from resilience.decorators.overrides import Overrides
from resilience.events import PROCESS_EVENTS
from resilience.ports import Stored
from resilience.scope import PROCESS
from resilience.storage.state_memory import MemoryStateStorage
from resilience.testing import FakeClock
from tests.support.surroundings import Surroundings, surrounded_by


@pytest.fixture(autouse=True)
def _own_process() -> Iterator[None]:
    PROCESS.forget()
    yield
    PROCESS.forget()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def told() -> Iterator[list[PolicyEvent]]:
    events: list[PolicyEvent] = []
    end = PROCESS_EVENTS.listen(events.append, LimitOverridden)
    yield events
    end()


def limiter(clock: FakeClock, limits: Any = "2/minute", **options: Any) -> RateLimiter:
    return RateLimiter(limits, **{"name": "demo", "storage": MemoryStorage(clock=clock), "clock": clock, **options})


def passing(asks: Callable[[], Decision], most: int = 50) -> int:
    return next(number for number in range(most) if not asks().allowed)


# -- one limiter -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {}, {"exempt_when": lambda: False}, {"methods": ["GET"]}, {"per_method": True}, {"wait": 0.0}, {"cost": lambda: 1},
        {"key": "constant"}, {"limits": lambda: "2/minute"}, {"deduct_when": lambda _: True}, {"lease": None},
    ],
)  # fmt: skip
def test_other_limits_hold_for_every_kind_of_limiter_until_their_time_is_over(
    clock: FakeClock, options: dict[str, Any]
) -> None:
    demo = limiter(clock, **options)
    assert demo.try_acquire().allowed
    demo.override("5/hour", expires_in=60)
    assert 5 == passing(demo.try_acquire)
    clock.advance(59.9)
    assert not demo.try_acquire().allowed
    clock.advance(0.1)
    assert demo.overridden is None
    assert 2 == passing(demo.try_acquire)


def test_a_decorated_function_is_held_to_them_and_the_refusal_names_each(clock: FakeClock) -> None:
    demo = limiter(clock, "100/minute")
    function = demo(lambda: "made")
    assert "made" == function()
    demo.override("1/second; 5/hour", expires_in=60)
    assert "made" == function()
    with pytest.raises(RateLimited) as caught:
        function()
    assert ("demo-1s", "demo-3600s") == caught.value.titles
    assert 2 == len(caught.value.decision.quotas)
    demo.restore()
    assert "made" == function()


def test_a_refusal_of_acquire_names_each_too(clock: FakeClock) -> None:
    demo = limiter(clock, "100/minute; 1000/hour")
    demo.override("1/second", expires_in=60)
    demo.acquire()
    with pytest.raises(RateLimited) as caught:
        demo.acquire()
    assert ("demo",) == caught.value.titles
    demo.override("1/second; 5/day", expires_in=60)
    clock.advance(1)
    demo.acquire()
    with pytest.raises(RateLimited) as caught:
        demo.acquire()
    assert ("demo-1s", "demo-86400s") == caught.value.titles


def test_the_surroundings_are_told_the_titles_of_what_holds(clock: FakeClock) -> None:
    storage = MemoryStorage(clock=clock)
    demo = limiter(clock, "100/minute", storage=storage)
    demo.override("10/second; 500/hour", expires_in=60)
    with surrounded_by(Surroundings(storage=storage)) as surroundings:
        demo.try_acquire()
        demo(lambda: None)()
        all_of(demo, limiter(clock, "7/minute", name="other", storage=storage)).try_acquire()
    heard = [(titles, len(decision.quotas)) for _, titles, decision in surroundings.observed]
    assert [(("demo-1s", "demo-3600s"), 2)] * 3 + [(("other",), 1)] == heard


def test_limits_that_are_decided_together_are_overridden_one_by_one(clock: FakeClock) -> None:
    storage = MemoryStorage(clock=clock)
    mine, all_ = (limiter(clock, "9/minute", name=name, storage=storage) for name in ("mine", "all"))
    both = all_of(mine, all_)
    assert both.try_acquire().allowed
    mine.override("3/hour", expires_in=60)
    assert 3 == passing(both.try_acquire)
    mine.restore()
    assert 5 == passing(both.try_acquire)


def test_a_call_that_waits_for_its_turn_is_given_back_under_the_limits_it_came_under(clock: FakeClock) -> None:
    demo = limiter(clock, "2/minute; 9/hour", wait=60)
    attempt = demo.attempt()
    demo.override("1/second", expires_in=60)
    attempt.give_back()
    demo.restore()
    assert 2 == passing(demo.try_acquire)


def test_what_callers_have_left_they_keep_where_the_period_stays(clock: FakeClock) -> None:
    demo = limiter(clock, "10/minute")
    assert [9, 8] == [demo.acquire().remaining for _ in range(2)]
    demo.override("4/minute", expires_in=10)
    assert 3 == demo.acquire().remaining
    demo.restore()
    assert 2 == demo.acquire().remaining


def test_a_later_override_takes_the_place_of_an_earlier_one(clock: FakeClock) -> None:
    demo = limiter(clock)
    demo.override("5/hour", expires_in=10)
    demo.override("7/day", expires_in=20)
    clock.advance(15)
    assert 7 == passing(demo.try_acquire)


def test_a_burst_is_its_own_and_not_the_limiter_s(clock: FakeClock) -> None:
    demo = limiter(clock, "10/hour", burst=30)
    demo.override("5/day", expires_in=60)
    assert 5 == passing(demo.try_acquire)
    demo.override("5/day", expires_in=60, burst=8)
    demo.reset()
    assert 8 == passing(demo.try_acquire)


@pytest.mark.parametrize("limits", ["nonsense", "5/second; 7/second", ""])
def test_what_is_no_limit_changes_nothing(clock: FakeClock, limits: str) -> None:
    demo = limiter(clock)
    with pytest.raises(ValueError, match="limit"):
        demo.override(limits, expires_in=60)
    assert demo.overridden is None
    assert 2 == passing(demo.try_acquire)


def test_limits_that_no_call_could_pass_are_refused(clock: FakeClock) -> None:
    demo = limiter(clock, "10/minute", cost=4)
    with pytest.raises(ValueError, match="a call of 'demo' costs 4, more than a burst of 3 holds"):
        demo.override("3/minute", expires_in=60)


def test_the_snapshot_shows_the_limits_that_hold(clock: FakeClock) -> None:
    demo = limiter(clock)
    assert ("2 per 60 s",) == demo.snapshot().limits
    demo.override("5/hour", expires_in=60)
    assert ("5 per 3600 s",) == demo.snapshot().limits
    clock.advance(60)
    assert ("2 per 60 s",) == demo.snapshot().limits


def test_it_is_told_when_other_limits_hold_and_when_no_more(clock: FakeClock, told: list[LimitOverridden]) -> None:
    demo = limiter(clock)
    demo.override("5/hour", expires_in=60, reason="load", author="anna")
    assert demo.restore(reason="calm", author="ben")
    assert not demo.restore()
    assert [("5/hour", "load", "anna", 60.0), (None, "calm", "ben", None)] == [
        (event.limits, event.reason, event.author, event.expires_in) for event in told
    ]


def test_an_order_that_comes_while_another_one_runs_out_is_not_lost(clock: FakeClock) -> None:
    demo = limiter(clock)
    policy = demo.policies[0]
    demo.override("5/hour", expires_in=10)
    clock.advance(10)
    expired = policy._place.standing
    demo.override("7/day", expires_in=10)
    policy._place.standing, newer = expired, policy._place.standing
    seen = threading.Thread(target=policy.standing_terms)  # has seen the old one, and comes late
    with policy._place.lock:
        seen.start()
        policy._place.standing = newer
    seen.join()
    assert 7 == passing(demo.try_acquire)


def test_limits_that_are_bound_while_others_come_do_not_stay_bound(clock: FakeClock) -> None:
    class Slow(MemoryStorage):
        def taker(self, *args: Any) -> Any:
            if not demo.overridden:
                demo.override("5/hour", expires_in=60)
            return super().taker(*args)

    demo = limiter(clock, storage=Slow(clock=clock))
    demo.try_acquire()
    assert 5 == passing(demo.try_acquire)


def test_a_policy_has_no_more_attributes_than_are_read_quickly(clock: FakeClock) -> None:
    assert len(vars(limiter(clock).policies[0])) <= 30


# -- all that share a storage ------------------------------------------------------------------------------------------


class Process:
    """A process as far as overrides are concerned: limiters of its own, one storage with the others."""

    def __init__(self, clock: FakeClock, storage: Any, *names: str, **options: Any) -> None:
        self.limiters = [limiter(clock, name=name, **options) for name in names or ("demo",)]
        self.overrides = Overrides(storage, self.find, clock=clock)
        self.overrides.close()  # no thread: the test looks

    def find(self, name: str) -> list[RateLimiter]:
        return [each for each in self.limiters if each.name == name]

    def held(self) -> list[str | None]:
        return [None if each.overridden is None else each.overridden.limits for each in self.limiters]


@pytest.fixture
def storage(clock: FakeClock) -> MemoryStateStorage:
    return MemoryStateStorage(clock=clock)


def test_an_override_holds_in_every_process_and_in_those_that_come_later(
    clock: FakeClock, storage: MemoryStateStorage
) -> None:
    first, second = Process(clock, storage), Process(clock, storage)
    first.overrides.override("demo", "5/hour", expires_in=60)
    second.overrides.look()
    clock.advance(30)
    late = Process(clock, storage)
    late.overrides.look()
    assert [["5/hour"]] * 3 == [first.held(), second.held(), late.held()]
    clock.advance(30)
    assert [[None]] * 3 == [first.held(), second.held(), late.held()]


def test_it_is_ended_in_every_process(clock: FakeClock, storage: MemoryStateStorage) -> None:
    first, second = Process(clock, storage), Process(clock, storage)
    first.overrides.override("demo", "5/hour", expires_in=60)
    second.overrides.look()
    assert second.overrides.restore("demo")
    assert not second.overrides.restore("demo")
    first.overrides.look()
    assert [[None], [None]] == [first.held(), second.held()]


def test_each_name_stands_for_itself(clock: FakeClock, storage: MemoryStateStorage) -> None:
    here = Process(clock, storage, "a", "b", "b")
    here.overrides.override("a", "5/hour", expires_in=60)
    here.overrides.override("b", "6/hour", expires_in=30)
    assert ["5/hour", "6/hour", "6/hour"] == here.held()
    clock.advance(31)
    here.overrides.look()
    assert ["5/hour", None, None] == here.held()
    here.overrides.restore("a")
    assert [None, None, None] == here.held()


def test_a_limiter_that_is_made_later_gets_what_stands(clock: FakeClock, storage: MemoryStateStorage) -> None:
    here = Process(clock, storage)
    here.overrides.override("demo", "5/hour", expires_in=60)
    here.limiters.append(limiter(clock))
    here.overrides.look()
    assert ["5/hour", "5/hour"] == here.held()


def test_what_stands_for_all_goes_before_what_one_process_ordered_for_itself(
    clock: FakeClock, storage: MemoryStateStorage
) -> None:
    here = Process(clock, storage)
    here.overrides.override("demo", "5/hour", expires_in=60)
    here.limiters[0].override("9/hour", expires_in=60)
    here.overrides.look()
    assert ["5/hour"] == here.held()
    here.overrides.restore("demo")
    here.limiters[0].override("9/hour", expires_in=60)
    here.overrides.look()
    assert ["9/hour"] == here.held()
    assert here.overrides.restore("demo")
    assert [None] == here.held()


def test_what_a_limiter_cannot_charge_is_refused_before_anybody_hears_of_it(
    clock: FakeClock, storage: MemoryStateStorage
) -> None:
    here, other = Process(clock, storage, cost=2), Process(clock, storage, cost=2)
    with pytest.raises(ValueError, match="none would ever pass"):
        here.overrides.override("demo", "1/hour", expires_in=60)
    with pytest.raises(ValueError, match="no rate limiter is named 'none'"):
        here.overrides.override("none", "5/hour", expires_in=60)
    other.overrides.look()
    assert [None] == other.held()


def test_a_process_that_cannot_charge_what_another_ordered_says_so_once_and_keeps_its_own(
    clock: FakeClock, storage: MemoryStateStorage, caplog: pytest.LogCaptureFixture
) -> None:
    here, other = Process(clock, storage), Process(clock, storage, "demo", limits="20/minute", cost=7)
    here.overrides.override("demo", "5/hour", expires_in=60)
    other.overrides.look()
    other.overrides.look()
    assert [None] == other.held()
    assert 1 == caplog.text.count(
        "the override of rate limit 'demo' is not applied: 5 per 3600 s: a call of 'demo' costs 7"
    )


@pytest.mark.parametrize("record", ["limits", "limit:demo"])
def test_what_cannot_be_read_is_said_and_not_applied(
    clock: FakeClock, storage: MemoryStateStorage, record: str, caplog: pytest.LogCaptureFixture
) -> None:
    here, other = Process(clock, storage), Process(clock, storage)
    here.overrides.override("demo", "5/hour", expires_in=60)
    storage.update(record, lambda *_: (b'{"version":9}', None), keep=60)
    other.overrides.look()
    assert [None] == other.held()
    assert "another version, or another program, has written it" in caplog.text


def test_without_the_storage_what_stands_goes_on_until_its_time_is_over(
    clock: FakeClock, storage: MemoryStateStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Process(clock, storage)
    here.overrides.override("demo", "5/hour", expires_in=60)

    def unavailable(name: str) -> Stored:
        raise StorageUnavailable(f"{name} is out of reach")

    monkeypatch.setattr(storage, "read", unavailable)
    with pytest.raises(StorageUnavailable):
        here.overrides.look()
    assert ["5/hour"] == here.held()
    clock.advance(60)
    assert [None] == here.held()


def test_it_is_described_with_what_it_replaces(clock: FakeClock, storage: MemoryStateStorage) -> None:
    here = Process(clock, storage)
    assert here.overrides.overridden("demo") is None
    assert here.overrides.overridden("none") is None
    here.overrides.override("demo", "5/hour", expires_in=60, burst=9, reason="load", author="anna")
    clock.advance(0.5)
    assert {
        "limits": "5/hour", "burst": 9, "expires_in": 59.5, "reason": "load", "author": "anna", "replaces": ["2 per 60 s"]
    } == here.overrides.overridden("demo")  # fmt: skip


def test_every_process_tells_what_begins_and_ends_there(
    clock: FakeClock, storage: MemoryStateStorage, told: list[LimitOverridden]
) -> None:
    here, other = Process(clock, storage, "demo", "demo"), Process(clock, storage)
    here.overrides.override("demo", "5/hour", expires_in=60, reason="load", author="anna")
    other.overrides.look()
    other.overrides.look()
    here.overrides.restore("demo", reason="calm", author="ben")
    other.overrides.look()
    assert [
        ("5/hour", "load", "anna", 60.0),
        ("5/hour", "load", "anna", 60.0),
        (None, "calm", "ben", None),
        (None, "", "", None),
    ] == [(event.limits, event.reason, event.author, event.expires_in) for event in told]


def test_a_look_that_was_overtaken_changes_nothing(
    clock: FakeClock, storage: MemoryStateStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, other = Process(clock, storage), Process(clock, storage)
    other.overrides.override("demo", "5/hour", expires_in=60)
    read = storage.read

    def overtaken(name: str) -> Stored:
        found = read(name)
        if name == "limit:demo":
            monkeypatch.setattr(storage, "read", read)
            other.overrides.restore("demo")
            here.overrides.look()
        return found

    monkeypatch.setattr(storage, "read", overtaken)
    here.overrides.look()
    assert [None] == here.held()


def test_the_thread_of_a_process_of_its_own_ends_with_the_last_override(
    told: list[LimitOverridden],
) -> None:
    ended = threading.Event()

    def hear(event: PolicyEvent) -> None:
        if isinstance(event, LimitOverridden) and event.limits is None:
            ended.set()

    end = PROCESS_EVENTS.listen(hear, LimitOverridden)
    demo = RateLimiter("2/minute", name="demo")
    overrides = Overrides(MemoryStateStorage(), lambda _: [demo])
    assert overrides.is_awake
    overrides.override("demo", "5/hour", expires_in=0.05)
    assert ended.wait(10)
    end()
    assert overrides.is_awake
    overrides.override("demo", "5/hour", expires_in=60)
    overrides.close()
    assert ["5/hour", None, "5/hour"] == [event.limits for event in told]


def test_an_override_that_is_ordered_while_another_is_taken_away_is_not_lost(clock: FakeClock) -> None:
    class Interrupted(MemoryStateStorage):
        """Somebody else gives an order between the steps of the next one."""

        between: Callable[[], object] | None = None

        def update(self, name: str, change: Any, *, keep: float) -> Any:
            answer = super().update(name, change, keep=keep)
            between, self.between = self.between, None
            if between is not None:
                between()
            return answer

    storage, demo = Interrupted(clock=clock), limiter(clock)
    overrides = Overrides(storage, lambda _: [demo], clock=clock)
    overrides.override("demo", "5/hour", expires_in=60, author="ann")
    storage.between = lambda: overrides.override("demo", "1/hour", expires_in=60, author="bo")
    assert overrides.restore("demo", author="ann")
    overrides.look()
    assert ("bo", "1/hour") == operator.itemgetter("author", "limits")(overrides.overridden("demo") or {})
    overrides.close()
