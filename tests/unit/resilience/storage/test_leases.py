"""Tokens taken ahead for hot keys: far fewer questions, the same rate, and everything comes back."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from resilience.core.lease import HOT
from resilience.core.limiter import Charge, Decision, Limit, Refund
from resilience.errors import StorageUnavailable
from resilience.ports import Taker
from resilience.storage.leases import LeasingStorage, _give_back_at_exit
from resilience.storage.memory import MemoryStorage
from resilience.testing import FakeClock
from resilience.testing.windows import smallest_burst
from tests.support.examples import many

LIMIT = Limit(1_000, 1)
LEASE = 100


class Shared(MemoryStorage):
    """What the processes share: counts its questions, may be down, and may let others run before or after it decides."""

    taker = None  # type: ignore[assignment]  # everything goes through `take`

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.charged: list[Charge] = []
        self.refunded: list[Refund] = []
        self.down = False
        self.closed = 0
        self.before: Callable[[], object] | None = None

    def take(self, charges: Sequence[Charge]) -> Decision:
        self.charged += charges
        before, self.before = self.before, None
        if before is not None:
            before()
        self._fail_if_down()
        return super().take(charges)

    def give_back(self, refunds: Sequence[Refund]) -> None:
        self._fail_if_down()
        self.refunded += refunds
        super().give_back(refunds)

    def _fail_if_down(self) -> None:
        if self.down:
            raise StorageUnavailable("shared:// did not decide: down")

    def close(self) -> None:
        self.closed += 1

    def level(self, scope: str = "scope", limit: Limit = LIMIT) -> int:
        """Tokens in the bucket of "s"."""
        return super().take([Charge(scope, "s", limit, 0)]).quotas[0].level // limit.unit


def made(size: int = 100) -> tuple[FakeClock, Shared, LeasingStorage]:
    clock = FakeClock()
    shared = Shared(clock)
    return clock, shared, LeasingStorage(shared, clock=clock, size=size, sweeping=False)


Way = Callable[[LeasingStorage], Taker]


@pytest.fixture(params=["take", "taker"])
def way(request: pytest.FixtureRequest) -> Way:
    """Both ways to decide one charge."""
    if request.param == "taker":
        return lambda storage: storage.taker("scope", LIMIT, 0, LEASE)
    return lambda storage: lambda subject, cost: storage.take([Charge("scope", subject, LIMIT, cost, 0, LEASE)])


def heat(take: Taker) -> None:
    """Charge as often as makes the key hot but for one charge."""
    for _ in range(HOT - 1):
        assert take("s", 1).allowed


def test_a_hot_key_asks_a_few_times_for_hundreds_of_charges(way: Way) -> None:
    _, shared, storage = made()
    take = way(storage)
    assert all(take("s", 1).allowed for _ in range(500))
    assert len(shared.charged) < 20
    assert 500 == 1_000 - shared.level() - storage.snapshot().tokens, "every token was taken from the bucket first"
    sizes = [charge.cost for charge in shared.charged]
    assert [1] * (HOT - 1) + [8, 16, 32, 64] == sizes[: HOT + 3]
    assert max(sizes) <= LEASE
    assert all(charge.floor == charge.cost * LIMIT.unit for charge in shared.charged if charge.cost > 1)


def test_a_cold_key_asks_for_every_charge(way: Way) -> None:
    clock, shared, storage = made()
    take = way(storage)
    for _ in range(50):
        take("s", 1)
        clock.advance(0.02)
    assert (50, 0) == (len(shared.charged), storage.snapshot().taken)


def test_charges_without_a_lease_and_several_at_once_are_passed_on() -> None:
    _, shared, storage = made()
    take = storage.taker("scope", LIMIT, -3, 1)
    for _ in range(20):
        take("s", 1)
        storage.take([Charge("a", "s", LIMIT, 1, 0, LEASE), Charge("b", "s", LIMIT, 1, 0, LEASE)])
    assert (60, 0) == (len(shared.charged), storage.snapshot().taken)
    assert -3 == shared.charged[0].floor


def test_the_level_on_a_lease_is_what_the_bucket_said_and_what_is_unspent(way: Way) -> None:
    _, _, storage = made()
    take = way(storage)
    assert list(range(999, 899, -1)) == [take("s", 1).remaining for _ in range(100)]
    assert 900 == take("s", 0).remaining, "a look tells the same"


def test_a_look_at_a_key_without_a_lease_is_passed_on(way: Way) -> None:
    _, _, storage = made()
    assert 1_000 == way(storage)("s", 0).remaining
    assert 0 == len(storage._leases)


def test_what_is_not_spent_in_time_is_given_back(way: Way) -> None:
    clock, shared, storage = made()
    take = way(storage)
    heat(take)
    take("s", 1)
    assert storage.sweep() == pytest.approx(0.1), "it looks again soon"
    clock.advance(0.999_999)
    assert storage.sweep() == pytest.approx(0.005)
    assert (1, 7, 8, 0, 0) == storage.snapshot()
    clock.advance(0.000_001)
    assert storage.sweep() is None
    assert (0, 0, 8, 7, 0) == storage.snapshot()
    assert [Refund("scope", "s", LIMIT, 7)] == shared.refunded


def test_a_lease_that_is_over_is_not_spent_even_if_nobody_has_swept(way: Way) -> None:
    clock, shared, storage = made()
    take = way(storage)
    heat(take)
    take("s", 1)
    clock.advance(1)
    asked = len(shared.charged)
    take("s", 1)
    assert (1, 0) == (len(shared.charged) - asked, storage.snapshot().tokens)
    storage.sweep()
    assert [7] == [refund.cost for refund in shared.refunded]


def test_closing_gives_everything_back(way: Way) -> None:
    _, shared, storage = made()
    take = way(storage)
    heat(take)
    take("s", 1)
    storage.close()
    assert (1_000 - HOT, 1) == (shared.level(), shared.closed)
    assert (0, 0, 8, 7, 0) == storage.snapshot()
    take("s", 1)
    assert 1_000 - HOT - 1 == shared.level(), "and it may be used again"


def test_an_ending_process_gives_everything_back() -> None:
    _, shared, storage = made()
    take = storage.taker("scope", LIMIT, 0, LEASE)
    heat(take)
    take("s", 1)
    _give_back_at_exit()
    assert (1_000 - HOT, 0) == (shared.level(), shared.closed)


def test_a_child_does_not_own_what_its_parent_holds(way: Way) -> None:
    _, shared, storage = made()
    take = way(storage)
    heat(take)
    take("s", 1)
    child = os.fork()
    if child == 0:
        take("s", 1)
        os._exit(len(shared.charged) * 10 + storage.snapshot().tokens)
    assert (HOT + 1) * 10 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 7 == storage.snapshot().tokens


def test_a_bucket_that_runs_dry_is_asked_for_every_charge_and_given_to_the_last_token(way: Way) -> None:
    _, shared, storage = made()
    take = way(storage)
    assert 1_000 == sum(take("s", 1).allowed for _ in range(1_100))
    assert 0 == shared.level()
    dry = [charge.cost for charge in shared.charged[-100:]]
    assert {1} == set(dry)


def test_a_refused_lease_leaves_the_charge_to_be_decided_alone(way: Way) -> None:
    _, shared, storage = made()
    take = way(storage)
    heat(take)
    shared.before = lambda: MemoryStorage.take(shared, [Charge("scope", "s", LIMIT, 985)])
    assert 7 == take("s", 1).remaining, "others were faster: 8 were left, which is less than 8 and as many for others"
    assert [8, 1] == [charge.cost for charge in shared.charged[-2:]]


def test_while_one_takes_ahead_the_others_ask_for_themselves(way: Way) -> None:
    _, shared, storage = made()
    take = way(storage)
    heat(take)
    meanwhile: list[Decision] = []
    shared.before = lambda: meanwhile.extend(take("s", 1) for _ in range(3))
    assert take("s", 1).allowed
    assert ([True] * 3, [8, 1, 1, 1]) == ([one.allowed for one in meanwhile], [one.cost for one in shared.charged[-4:]])
    assert 7 == storage.snapshot().tokens


def test_a_lease_that_was_long_under_way_is_over_when_it_comes(way: Way) -> None:
    clock, shared, storage = made()
    take = way(storage)
    heat(take)
    shared.before = lambda: clock.advance(1)
    assert take("s", 1).allowed
    storage.sweep()
    assert [7] == [refund.cost for refund in shared.refunded]


def test_a_lease_that_comes_when_all_was_given_back_is_given_back_too(way: Way) -> None:
    _, shared, storage = made()
    take = way(storage)
    heat(take)
    shared.before = storage.give_all_back
    assert take("s", 1).allowed
    storage.sweep()
    assert (1_000 - HOT, 0) == (shared.level(), storage.snapshot().tokens)


def test_a_bucket_that_is_filled_holds_what_was_leased_from_it(way: Way) -> None:
    _, shared, storage = made()
    take = way(storage)
    heat(take)
    take("s", 1)
    storage.give_back([Refund("scope", "s", LIMIT, 1), Refund("scope", "t", LIMIT, None)])
    assert 7 == storage.snapshot().tokens
    storage.give_back([Refund("scope", "s", LIMIT, None)])
    assert (0, 1_000) == (storage.snapshot().tokens, shared.level())


def test_another_limit_ends_the_lease_and_an_equal_one_does_not(way: Way) -> None:
    _, shared, storage = made()
    take = way(storage)
    heat(take)
    take("s", 1)
    asked = len(shared.charged)
    storage.take([Charge("scope", "s", Limit(1_000, 1), 1, 0, LEASE)])
    assert (asked, 6) == (len(shared.charged), storage.snapshot().tokens)
    storage.take([Charge("scope", "s", Limit(900, 1), 1, 0, LEASE)])
    storage.sweep()
    assert [6] == [refund.cost for refund in shared.refunded]


def test_a_lease_of_a_limit_that_changed_while_it_was_taken_is_given_back(way: Way) -> None:
    _, shared, storage = made()
    take, other = way(storage), storage.taker("scope", Limit(2_000, 1), 0, LEASE)
    heat(take)

    def change() -> None:
        for _ in range(HOT):
            other("s", 1)

    shared.before = change
    take("s", 1)
    assert 7 == storage.snapshot().tokens, "those of the new limit alone"
    storage.close()
    assert [7, 7] == [refund.cost for refund in shared.refunded]


def test_tokens_taken_ahead_are_paid_for_whatever_others_owe() -> None:
    _, shared, storage = made()
    take = storage.taker("scope", LIMIT, -LIMIT.debt(5), LEASE)
    heat(take)
    take("s", 1)
    owed = [Charge("scope", "s", LIMIT, cost, -LIMIT.debt(5)) for cost in (1_000, 1_000)]
    assert all(MemoryStorage.take(shared, [charge]).allowed for charge in owed)
    assert take("s", 8).quotas[0].debt_delay > 1, "more than the lease holds, so it is asked for, and waits"
    decision = take("s", 1)
    assert (True, 0.0, 0) == (decision.allowed, decision.quotas[0].debt_delay, decision.remaining)


def test_a_flood_of_keys_is_bounded_and_the_forgotten_give_back(way: Way) -> None:
    _, shared, storage = made(size=3)
    take = way(storage)
    heat(take)
    take("s", 1)
    for subject in "abc":
        take(subject, 1)
    assert 3 == len(storage._leases)
    storage.sweep()
    assert [7] == [refund.cost for refund in shared.refunded]
    assert "<LeasingStorage: 3 keys of " in repr(storage)


def test_while_the_primary_is_down_the_lease_is_spent_to_its_end(way: Way) -> None:
    _, shared, storage = made()
    take = way(storage)
    heat(take)
    take("s", 1)
    shared.down = True
    asked = len(shared.charged)
    assert all(take("s", 1).allowed for _ in range(7))
    assert 1 == len(shared.charged) - asked, "one of them has tried to take more"
    for questions in (1, 2):
        with pytest.raises(StorageUnavailable, match="down"):
            take("s", 1)
        assert questions == len(shared.charged) - asked, "the first is told at once what that one found out"


def test_what_was_found_out_long_ago_is_not_told(way: Way) -> None:
    clock, shared, storage = made()
    take = way(storage)
    heat(take)
    take("s", 1)
    shared.down = True
    for _ in range(7):
        take("s", 1)
    shared.down = False
    clock.advance(1.1)
    assert take("s", 1).allowed


def test_a_primary_that_is_back_is_asked_again(way: Way) -> None:
    _, shared, storage = made()
    take = way(storage)
    heat(take)
    take("s", 1)
    shared.down = True
    for _ in range(7):
        take("s", 1)
    with pytest.raises(StorageUnavailable):
        storage.probe()
    shared.down = False
    storage.probe()
    assert take("s", 1).allowed


def test_what_cannot_be_given_back_is_lost_and_not_tried_again(way: Way) -> None:
    clock, shared, storage = made()
    take = way(storage)
    heat(take)
    take("s", 1)
    shared.down = True
    clock.advance(1)
    storage.sweep()
    shared.down = False
    storage.sweep()
    assert (0, 0, 8, 0, 7) == storage.snapshot()
    assert [] == shared.refunded


def test_a_caller_interrupted_while_taking_ahead_lets_others_take(way: Way) -> None:
    _, shared, storage = made()
    take = way(storage)
    heat(take)

    def interrupt() -> None:
        raise KeyboardInterrupt

    shared.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        take("s", 1)
    take("s", 1)
    assert 7 == storage.snapshot().tokens


def test_a_thread_sweeps_while_something_is_out_and_only_then() -> None:
    clock = FakeClock()
    shared = Shared(clock)
    storage = LeasingStorage(shared, clock=clock)
    take = storage.taker("scope", LIMIT, 0, LEASE)
    heat(take)
    assert [] == sweepers()
    take("s", 1)
    (sweeper,) = sweepers()
    clock.advance(1)
    sweeper.join(5)
    assert ([], [7]) == (sweepers(), [refund.cost for refund in shared.refunded])


def test_a_closed_or_forgotten_storage_has_no_thread() -> None:
    for end in (LeasingStorage.close, lambda _: None):
        storage = LeasingStorage(Shared(FakeClock()), clock=FakeClock())
        take = storage.taker("scope", LIMIT, 0, LEASE)
        heat(take)
        take("s", 1)
        (sweeper,) = sweepers()
        end(storage)
        reference = weakref.ref(storage)
        del storage, take
        gc.collect()
        sweeper.join(5)
        assert [] == sweepers()
        assert reference() is None


def test_without_a_thread_to_be_had_charges_are_decided_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    storage = LeasingStorage(Shared(FakeClock()), clock=FakeClock())
    take = storage.taker("scope", LIMIT, 0, LEASE)
    assert all(take("s", 1).allowed for _ in range(100))
    assert storage._sweeper is None


def sweepers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rate-limit-leases"]


def test_threads_never_spend_a_token_twice() -> None:
    shared = Shared(FakeClock())
    storage = LeasingStorage(shared, clock=FakeClock(), sweeping=False)
    take = storage.taker("scope", LIMIT, 0, LEASE)
    allowed: list[bool] = []

    def hammer() -> None:
        allowed.extend(take("s", 1).allowed for _ in range(300))

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    storage.close()
    assert (1_200, 1_000, 0) == (len(allowed), sum(allowed), shared.level())


def test_it_is_what_it_stands_before_and_refuses_to_hold_nothing() -> None:
    _, shared, storage = made()
    assert ("memory://", shared) == (storage.uri, storage.primary)
    with pytest.raises(ValueError, match="size=0"):
        made(size=0)


limits = some.builds(
    Limit,
    amount=some.sampled_from([1, 7, 100, 5_000]),
    period=some.sampled_from([0.1, 1, 60]),
    burst=some.sampled_from([20, 100, 3_000]),
)
steps = some.tuples(
    some.sampled_from([0, 0, 0, 3, 7_000, 20_000, 100_000, 333_333, 1_000_000, 5_000_000]),  # microseconds before it
    some.integers(0, 2),  # which process
    some.sampled_from([1, 1, 2, 5]),  # cost
    some.sampled_from([1, 10, 200]),  # times
    some.sampled_from(["take", "take", "take", "take", "sweep", "close", "down", "fork"]),
)


@settings(max_examples=many(200))
@given(limits, some.sampled_from([2, 9, 30, 500]), some.lists(steps, max_size=40))
def test_no_window_admits_more_than_burst_and_rate_and_what_the_processes_may_hold(
    limit: Limit, lease: int, walk: list[tuple[int, int, int, int, str]]
) -> None:
    clock = FakeClock()
    shared = Shared(clock)
    processes = [LeasingStorage(shared, clock=clock, sweeping=False) for _ in range(3)]
    admitted: list[tuple[int, int]] = []
    for elapsed, number, cost, times, what in walk:
        clock.advance(elapsed / 1_000_000)
        process = processes[number]
        shared.down = what == "down"
        if what == "sweep":
            process.sweep()
        elif what == "close":
            process.close()
        elif what == "fork":
            process.after_fork()  # what it held is nobody's any longer
        for _ in range(times):
            try:
                allowed = process.take([Charge("scope", "s", limit, cost, 0, lease)]).allowed
            except StorageUnavailable:
                break
            if allowed:
                admitted.append((clock.microseconds(), cost))
        assert process.snapshot().tokens <= lease
    assert smallest_burst(admitted, limit) <= limit.size + 3 * lease


@settings(max_examples=many(100))
@given(some.lists(some.tuples(some.integers(0, 2), some.sampled_from([1, 1, 3]), some.integers(1, 300)), max_size=30))
def test_every_token_is_spent_once_or_comes_back(walk: list[tuple[int, int, int]]) -> None:
    clock = FakeClock()
    shared = Shared(clock)
    limit = Limit(5_000, 3600)
    processes = [LeasingStorage(shared, clock=clock, sweeping=False) for _ in range(3)]
    spent = 0
    for number, cost, times in walk:
        for _ in range(times):
            spent += cost * processes[number].take([Charge("scope", "s", limit, cost, 0, 500)]).allowed
    for process in processes:
        process.close()
    assert 5_000 - spent == shared.level(limit=limit)
