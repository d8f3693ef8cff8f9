"""A denial is remembered until it could change: who was refused costs the primary nothing, and is never refused too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from resilience.core.limiter import Charge, Decision, Limit, Refund
from resilience.errors import StorageUnavailable
from resilience.ports import Taker
from resilience.storage.denials import RememberedDenials
from resilience.storage.memory import MemoryStorage
from resilience.testing import FakeClock
from tests.support.examples import many

LIMIT = Limit(10, 1, 5)
"""A token comes every tenth of a second."""
HOURLY = Limit(3, 3600)


class Asked(MemoryStorage):
    """Counts how often it was asked, and may do something before it answers."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.asked = 0
        self.before: Callable[[], object] | None = None
        self.after: Callable[[], object] | None = None

    taker = None  # type: ignore[assignment]  # everything goes through `take`

    def take(self, charges: Sequence[Charge]) -> Decision:
        self.asked += 1
        before, self.before = self.before, None
        after, self.after = self.after, None
        if before is not None:
            before()
        decision = super().take(charges)
        if after is not None:
            after()
        return decision


def made(size: int = 100) -> tuple[FakeClock, Asked, RememberedDenials]:
    clock = FakeClock()
    asked = Asked(clock)
    return clock, asked, RememberedDenials(asked, clock=clock, size=size)


Way = Callable[[RememberedDenials, Limit], Taker]


@pytest.fixture(params=["take", "taker"])
def way(request: pytest.FixtureRequest) -> Way:
    """Both ways to decide one charge."""
    if request.param == "taker":
        return lambda storage, limit: storage.taker("scope", limit)
    return lambda storage, limit: lambda subject, cost: storage.take([Charge("scope", subject, limit, cost)])


def test_who_was_refused_is_not_asked_about_again(way: Way) -> None:
    _, asked, storage = made()
    take = way(storage, HOURLY)
    decisions = [take("s", 1) for _ in range(1_000)]
    assert (3, 4) == (sum(decision.allowed for decision in decisions), asked.asked)
    assert decisions[3] == decisions[4] == decisions[999]
    assert (1, 996) == storage.snapshot()


def test_a_denial_is_forgotten_at_the_moment_in_which_it_could_change(way: Way) -> None:
    clock, asked, storage = made()
    take = way(storage, LIMIT)
    assert [True] * 5 + [False] == [take("s", 1).allowed for _ in range(6)]
    clock.advance(0.099_998)
    decision = take("s", 1)
    assert (False, 0.000_002, 6) == (decision.allowed, decision.retry_after, asked.asked)
    clock.advance(0.000_002)
    assert (True, 7) == (take("s", 1).allowed, asked.asked)


def test_a_dearer_charge_is_refused_for_longer_and_a_cheaper_one_is_asked_about(way: Way) -> None:
    clock, asked, storage = made()
    take = way(storage, LIMIT)
    take("s", 3)
    assert (False, 2) == (take("s", 3).allowed, asked.asked)
    assert (False, 2) == (take("s", 5).allowed, asked.asked)
    assert (True, 3) == (take("s", 2).allowed, asked.asked)
    assert (False, 3) == (take("s", 1).allowed, asked.asked), "what the cheaper one took is known"
    clock.advance(0.1)
    assert (False, 3) == (take("s", 2).allowed, asked.asked)
    assert (True, 4) == (take("s", 1).allowed, asked.asked)


def test_a_cost_above_the_burst_is_refused_whatever_time_brings(way: Way) -> None:
    clock, asked, storage = made()
    take = way(storage, LIMIT)
    take("s", 6)
    clock.advance(0.9)
    assert (None, 1) == (take("s", 6).retry_after, asked.asked)


def test_a_second_is_the_longest_that_a_denial_is_remembered(way: Way) -> None:
    clock, asked, storage = made()
    take = way(storage, HOURLY)
    take("s", 3)
    take("s", 1)
    clock.advance(0.999_999)
    assert (False, 2) == (take("s", 1).allowed, asked.asked)
    clock.advance(0.000_001)
    assert (False, 3) == (take("s", 1).allowed, asked.asked)


def test_a_look_at_an_empty_bucket_is_answered_and_not_refused(way: Way) -> None:
    _, asked, storage = made()
    take = way(storage, HOURLY)
    take("s", 3)
    take("s", 1)
    assert (True, 0, 2) == (*_shown(take("s", 0)), asked.asked)
    take("t", 2)
    take("t", 2)
    assert (True, 1, 5) == (*_shown(take("t", 0)), asked.asked), "one token is left, so the truth is worth a question"


def _shown(decision: Decision) -> tuple[bool, int]:
    return decision.allowed, decision.remaining


def test_what_is_to_be_left_or_may_be_owed_counts() -> None:
    _, asked, storage = made()
    storage.take([Charge("scope", "s", LIMIT, 5)])
    assert not storage.take([Charge("scope", "s", LIMIT, 1)]).allowed
    assert storage.take([Charge("scope", "s", LIMIT, 1, floor=-LIMIT.unit)]).allowed
    assert 3 == asked.asked
    assert not storage.take([Charge("scope", "s", LIMIT, 1, floor=-LIMIT.unit)]).allowed
    assert not storage.take([Charge("scope", "s", LIMIT, 0, floor=-LIMIT.unit)]).quotas[0].remaining
    assert 3 == asked.asked


def test_another_limit_of_the_same_bucket_is_asked_about() -> None:
    _, asked, storage = made()
    storage.take([Charge("scope", "s", LIMIT, 6)])
    storage.take([Charge("scope", "s", Limit(10, 1, 6), 6)])
    assert 2 == asked.asked
    storage.take([Charge("scope", "s", Limit(10, 1, 6), 6)])
    assert 2 == asked.asked, "an equal one is the same"


def test_tokens_given_back_are_there_at_once(way: Way) -> None:
    _, asked, storage = made()
    take = way(storage, HOURLY)
    take("s", 3)
    take("s", 1)
    storage.give_back([Refund("scope", "s", HOURLY, 1)])
    assert [(True, 3), (False, 4)] == [(take("s", 1).allowed, asked.asked) for _ in range(2)]


def test_a_denial_from_before_a_refund_is_not_remembered_after_it(way: Way) -> None:
    _, asked, storage = made()
    take = way(storage, HOURLY)
    take("s", 3)
    asked.after = lambda: storage.give_back([Refund("scope", "s", HOURLY, 1)])
    assert not take("s", 1).allowed, "the answer left before the refund came"
    assert take("s", 1).allowed


def test_a_denial_that_was_long_under_way_is_not_remembered(way: Way) -> None:
    clock, asked, storage = made()
    take = way(storage, HOURLY)
    take("s", 3)
    asked.after = lambda: clock.advance(1)
    take("s", 1)
    take("s", 1)
    assert 3 == asked.asked


def test_a_clock_that_jumps_back_forgets(way: Way) -> None:
    clock, asked, storage = made()
    take = way(storage, HOURLY)
    take("s", 3)
    take("s", 1)
    clock.advance(-1)
    take("s", 1)
    assert 3 == asked.asked


def test_several_charges_are_refused_when_all_are_known_and_one_does_not_fit() -> None:
    _, asked, storage = made()
    both = [Charge("a", "s", LIMIT, 1), Charge("b", "s", HOURLY, 1)]
    decisions = [storage.take(both) for _ in range(5)]
    assert ([True] * 3 + [False] * 2, 4) == ([decision.allowed for decision in decisions], asked.asked)
    assert decisions[3] == decisions[4]
    assert [2, 0] == [quota.remaining for quota in decisions[4].quotas]
    assert storage.take([both[0]]).allowed, "what fits alone is asked about"
    storage.take([both[1], Charge("c", "s", LIMIT, 1)])
    assert 6 == asked.asked, "of the third nothing is known"
    storage.take([both[1], Charge("c", "s", LIMIT, 0)])
    assert 6 == asked.asked
    assert storage.take([Charge("a", "s", LIMIT, 0), Charge("b", "s", HOURLY, 0)]).allowed
    assert 6 == asked.asked


def test_a_flood_of_keys_is_bounded_and_what_is_over_is_forgotten() -> None:
    clock, asked, storage = made(size=3)
    for subject in "abcd":
        storage.take([Charge("scope", subject, LIMIT, 6)])
    assert 3 == storage.snapshot().remembered
    storage.take([Charge("scope", "a", LIMIT, 6)])
    assert 5 == asked.asked, "the first was forgotten"
    clock.advance(2)
    storage.take([Charge("scope", "e", LIMIT, 6)])
    assert "<RememberedDenials: 1 of at most 3 for <Asked" in repr(storage).replace("MemoryStorage", "Asked")


def test_the_primary_is_asked_whether_it_takes_and_closed() -> None:
    _, asked, storage = made()
    storage.probe()
    assert (1, "memory://", asked) == (asked.asked, storage.uri, storage.primary)
    storage.take([Charge("scope", "s", LIMIT, 6)])
    storage.close()
    assert 0 == storage.snapshot().remembered


def test_a_failure_is_passed_on_and_nothing_is_remembered(way: Way) -> None:
    _, asked, storage = made()

    def fail() -> None:
        raise StorageUnavailable("down")

    asked.before = fail
    with pytest.raises(StorageUnavailable):
        way(storage, LIMIT)("s", 1)
    assert (0, 0) == storage.snapshot()


def test_a_child_has_a_lock_of_its_own() -> None:
    _, _, storage = made()
    with storage._lock:
        storage.after_fork()
        storage.take([Charge("scope", "s", LIMIT, 6)])
    assert 1 == storage.snapshot().remembered


def test_no_room_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="size=0"):
        made(size=0)


limits = some.builds(
    Limit,
    amount=some.integers(1, 1_000),
    period=some.sampled_from([0.001, 0.3, 1, 60, 86_400]),
    burst=some.sampled_from([1, 2, 7, 50, 10**9]),
)


@settings(max_examples=many(200))
@given(
    limits,
    some.lists(
        some.tuples(
            some.sampled_from([0, 1, 999, 50_000, 1_100_000]),
            some.sampled_from(["take", "elsewhere", "give back"]),
            some.integers(0, 8),
            some.integers(-3, 3),
        ),
        max_size=60,
    ),
)
def test_whatever_happens_it_decides_as_the_primary_would(limit: Limit, walk: list[tuple[int, str, int, int]]) -> None:
    """Others take from the bucket, too: that only makes it emptier than remembered. Buckets count ticks of up to a second."""
    clock, asked, storage = made()
    twin = MemoryStorage(clock=clock)
    for elapsed, what, cost, floor in walk:
        clock.advance(elapsed / 1_000_000)
        charge = Charge("scope", "s", limit, cost, floor * limit.unit)
        if what == "take":
            assert twin.take([charge]).allowed == storage.take([charge]).allowed
        elif what == "elsewhere":
            assert twin.take([charge]).allowed == asked.take([charge]).allowed
        else:
            refund = Refund("scope", "s", limit, cost)
            twin.give_back([refund])
            storage.give_back([refund])
