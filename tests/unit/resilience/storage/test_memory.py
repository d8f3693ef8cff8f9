"""What only the storage in this process promises: it is bounded, and it forgets the silent first."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.core.limiter import Bucket, Charge, Decision, Limit, Refund, decide, give_back
from resilience.errors import StorageBusy
from resilience.storage.memory import MemoryStorage
from resilience.testing import FakeClock
from tests.support.examples import many

LIMIT = Limit(1, 60, 2)


def charge(subject: str) -> Charge:
    return Charge("scope", subject, LIMIT, 1)


def test_a_flood_of_keys_is_bounded_and_forgets_who_was_silent_longest() -> None:
    storage = MemoryStorage(size=3, clock=FakeClock())
    for subject in ("a", "b", "c", "a", "d"):
        storage.take([charge(subject)])
    assert 3 == len(storage)
    assert 0 == storage.take([charge("a")]).remaining, "used again, so kept"
    assert 1 == storage.take([charge("b")]).remaining, "silent longest, so forgotten"


def test_a_flood_of_several_keys_at_once_is_bounded() -> None:
    storage = MemoryStorage(size=3, clock=FakeClock())
    for index in range(10):
        storage.take([charge(f"{index}a"), charge(f"{index}b")])
    assert 3 == len(storage)
    assert "<MemoryStorage: 3 of at most 3 buckets>" == repr(storage)


class YieldingClock(FakeClock):
    """Lets every other thread run at the moment between reading a bucket and writing it."""

    def microseconds(self) -> int:
        time.sleep(0.0002)
        return super().microseconds()


@pytest.mark.parametrize("charges", [["one"], ["one", "two"]])
def test_threads_are_never_given_more_than_the_burst(charges: list[str]) -> None:
    storage = MemoryStorage(clock=YieldingClock())
    allowed: list[bool] = []

    def hammer() -> None:
        for _ in range(10):
            allowed.append(storage.take([charge(subject) for subject in charges]).allowed)  # noqa: PERF401

    threads = [threading.Thread(target=hammer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (80, 2) == (len(allowed), sum(allowed))


def test_a_denial_takes_no_room() -> None:
    storage = MemoryStorage(clock=FakeClock())
    storage.take([Charge("scope", "s", LIMIT, 3)])
    assert 0 == len(storage)


def test_naming_one_bucket_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="same bucket"):
        MemoryStorage().take([charge("a"), charge("a")])


def test_a_storage_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="size=0"):
        MemoryStorage(size=0)


def test_a_flood_of_random_keys_levels_off() -> None:
    storage = MemoryStorage(size=2_000, clock=FakeClock())
    take = storage.taker("flood", LIMIT)
    for number in range(2_000):
        take(f"{number:032x}", 1)
    tracemalloc.start()
    for number in range(2_000, 30_000):
        take(f"{number:032x}", 1)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (2_000, True) == (len(storage), grown < 2_000 * 600), grown


@pytest.mark.prove
def test_a_million_random_keys_level_off() -> None:
    storage = MemoryStorage()
    take = storage.taker("flood", LIMIT)
    for number in range(1_000_000):
        take(f"{number:032x}", 1)
    assert 65_536 == len(storage)


def test_all_limits_share_the_bound() -> None:
    storage = MemoryStorage(size=3, clock=FakeClock())
    one, other = storage.taker("one", LIMIT), storage.taker("other", LIMIT)
    one("a", 1)
    for subject in "xyz":
        other(subject, 1)
    assert (3, 2) == (len(storage), one("a", 0).remaining)


def test_a_caller_who_is_refused_is_not_forgotten_for_that() -> None:
    storage = MemoryStorage(size=2, clock=FakeClock())
    take = storage.taker("scope", LIMIT)
    take("attacker", 2)
    for number in range(9):
        take(f"passer-by {number}", 1)
        assert not take("attacker", 1).allowed


class TakenByThread(MemoryStorage):
    """Its turn is a thread's, which gives it back in time."""

    def held_for(self, seconds: float) -> threading.Thread:
        del self._turn[0]
        thread = threading.Timer(seconds, self._turn.append, [None])
        thread.start()
        return thread


def test_who_finds_the_turn_taken_waits_for_it() -> None:
    storage = TakenByThread(clock=FakeClock())
    take = storage.taker("scope", LIMIT)
    actions: list[Callable[[], object]] = [
        lambda: take("a", 1),
        lambda: storage.take([charge("b"), charge("c")]),
        lambda: storage.give_back([Refund("scope", "a", LIMIT, 1)]),
    ]
    for act in actions:
        thread = storage.held_for(0.01)
        act()
        thread.join()
    assert [2, 1, 1] == [take(subject, 0).remaining for subject in "abc"]


class AskedAgain(FakeClock):
    """Asks the storage from within its own turn, as a signal handler does, or a `__del__` that the collector runs."""

    question: Callable[[], object] | None = None

    def microseconds(self) -> int:
        question, self.question = self.question, None
        if question is not None:
            question()
        return super().microseconds()


def test_who_asks_from_within_a_decision_of_the_same_thread_is_told_so_instead_of_waiting_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resilience.storage.memory._PATIENCE", 3_600)
    clock = AskedAgain()
    storage = MemoryStorage(clock=clock)
    take = storage.taker("scope", LIMIT)
    actions: list[Callable[[], object]] = [
        lambda: take("a", 1),
        lambda: storage.take([charge("a"), charge("b")]),
        lambda: storage.give_back([Refund("scope", "a", LIMIT, 1)]),
    ]
    for act in actions:
        clock.question = act
        with pytest.raises(StorageBusy, match="Do not rate limit in signal handlers or in __del__"):
            act()
        assert 2 == take("a", 0).remaining, "nothing was taken, and the turn was given back"


def test_who_swallows_that_lets_the_decision_that_was_interrupted_go_on() -> None:
    clock = AskedAgain()
    take = MemoryStorage(clock=clock).taker("scope", LIMIT)

    def interrupt() -> None:
        with pytest.raises(StorageBusy):
            take("a", 1)

    clock.question = interrupt
    assert (True, 1) == (take("a", 1).allowed, take("a", 0).remaining)


def test_nobody_waits_for_ever_for_a_turn_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resilience.storage.memory._PATIENCE", 0.05)
    storage = MemoryStorage(clock=FakeClock())
    del storage._turn[0]
    with pytest.raises(StorageBusy):
        storage.take([charge("a")])


def test_a_child_that_is_forked_while_a_thread_has_the_turn_is_not_stuck() -> None:
    storage = MemoryStorage(clock=FakeClock())
    del storage._turn[0]
    storage.after_fork()
    assert storage.take([charge("a")]).allowed


class BrokenClock(FakeClock):
    """Is interrupted while it is read."""

    broken = False

    def microseconds(self) -> int:
        if self.broken:
            raise KeyboardInterrupt
        return super().microseconds()


def test_whatever_interrupts_a_decision_the_turn_is_given_back() -> None:
    clock = BrokenClock()
    storage = MemoryStorage(clock=clock)
    take = storage.taker("scope", LIMIT)
    actions: list[Callable[[], object]] = [
        lambda: take("a", 1),
        lambda: storage.take([charge("a"), charge("b")]),
        lambda: storage.give_back([Refund("scope", "a", LIMIT, 1)]),
    ]
    for act in actions:
        clock.broken = True
        with pytest.raises(KeyboardInterrupt):
            act()
        clock.broken = False
        assert 2 == take("a", 0).remaining


# The shortened arithmetic is the core's.

AMOUNTS = [1, 7, 100, 1_000_000, 0.5, Fraction(1, 3), 10**9]
COARSE = Limit(7, 86_400, 150_000)  # counts in ticks of ten microseconds
limits = st.one_of(
    st.builds(Limit, st.sampled_from(AMOUNTS), st.sampled_from([0.001, 1, 60, 86_400]), st.integers(1, 50)),
    st.just(COARSE),
)
steps = st.lists(
    st.tuples(
        st.sampled_from(
            [0, 1, 999, 10_000, 1_000_000, -5_000_000, 3_600_000_000, 90_000_000_001]
        ),  # microseconds that pass
        st.sampled_from([0, 1, 1, 2, 7, 50, 60]),  # cost
        st.sampled_from(["none", "some", "debt", "deep"]),  # floor
        st.booleans(),  # the other limit, as after a change of the configuration
        st.sampled_from(["take", "take", "take", "back", "fill"]),
    ),
    max_size=40,
)


def floor_of(kind: str, limit: Limit) -> int:
    return {"none": 0, "some": limit.capacity // 3, "debt": -limit.debt(2.5), "deep": -limit.debt(86_400)}[kind]


def stored_in(storage: MemoryStorage) -> Bucket | None:
    """The only bucket."""
    return next((Bucket(*bucket) for bucket in storage._buckets.values()), None)


@settings(max_examples=many(300))
@given(one=limits, other=limits, steps=steps)
def test_every_way_to_decide_agrees_with_the_core(
    one: Limit, other: Limit, steps: list[tuple[int, int, str, bool, str]]
) -> None:
    clock = FakeClock(start=1_000_000)
    quick, slow = MemoryStorage(clock=clock), MemoryStorage(clock=clock)
    bucket: Bucket | None = None
    for passed, cost, floor_kind, changed, action in steps:
        clock.advance(passed / 1_000_000)
        limit = other if changed else one
        now = clock.microseconds()
        if action == "take":
            asked = Charge("scope", "subject", limit, cost, floor_of(floor_kind, limit))
            expected, stored = decide([asked], [bucket], now)
            answers = [quick.taker("scope", limit, asked.floor)("subject", cost), slow.take([asked])]
            assert [expected, expected] == answers
            assert [expected.quotas, expected.quotas] == [answer.quotas for answer in answers]
            bucket = bucket if stored is None else stored[0]
            assert [bucket, bucket] == [stored_in(storage) for storage in (quick, slow)]
        else:
            refund = Refund("scope", "subject", limit, cost if action == "back" else None)
            for storage in (quick, slow):
                storage.give_back([refund])
            bucket = give_back(refund, bucket, now)


@settings(max_examples=many(200))
@given(
    pair=st.tuples(limits, limits),
    moves=st.lists(st.tuples(st.integers(-2_000_000, 2_000_000), st.integers(0, 30)), max_size=30),
)
def test_several_limits_together_agree_with_the_core(pair: tuple[Limit, Limit], moves: list[tuple[int, int]]) -> None:
    clock = FakeClock()
    quick, slow = MemoryStorage(clock=clock), MemoryStorage(clock=clock)
    take = quick.joint_taker([("one", pair[0]), ("other", pair[1])])
    buckets: tuple[Bucket | None, ...] = (None, None)
    for passed, cost in moves:
        clock.advance(passed / 1_000_000)
        charges = [Charge(scope, "s", limit, cost) for scope, limit in zip(("one", "other"), pair, strict=True)]
        expected, stored = decide(charges, buckets, clock.microseconds())
        assert [expected, expected] == [take("s", cost), slow.take(charges)]
        buckets = buckets if stored is None else stored


def test_a_decision_reads_the_same_whoever_made_it() -> None:
    decision = MemoryStorage(clock=FakeClock()).taker("scope", LIMIT)("a", 1)
    (quota,) = decision.quotas
    assert (Decision(True, (quota,)), 1, 60.0) == (decision, quota.remaining, quota.reset_after)
    assert Decision(True, (quota,)).quotas[0] is quota
