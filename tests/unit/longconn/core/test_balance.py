"""How many connections a worker takes: single decisions, and storms over simulated workers in any order of waking."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as some

from longconn.core.balance import HEARD_NS, accept_quota, fill_level, is_among_emptiest

FREE = (0, 1_000_000)
MILLISECOND = 1_000_000


def others(*counts: int) -> list[tuple[int, int, int]]:
    return [(count, *FREE) for count in counts]


counts = some.integers(0, 20_000)
randoms = some.integers(0, 2**32 - 1).map(Random)


# The level


@pytest.mark.parametrize(
    ("held", "newcomers", "expected"),
    [
        pytest.param((5,), 0, 5, id="nobody comes"),
        pytest.param((5,), 3, 8, id="all go to the only one"),
        pytest.param((5, 9), 0, 5, id="nobody comes to several"),
        pytest.param((5, 9), 3, 8, id="not enough to fill the emptiest up"),
        pytest.param((9, 5), 4, 9, id="just enough"),
        pytest.param((9, 5), 5, 9, id="one is left over"),
        pytest.param((0, 0, 0, 0), 4, 1, id="one each"),
        pytest.param((0, 0, 0, 0), 7, 1, id="not enough for two each"),
        pytest.param((500, 500, 0, 500), 500, 500, id="a successor"),
    ],
)
def test_newcomers_are_poured_over_the_emptiest(held: tuple[int, ...], newcomers: int, expected: int) -> None:
    assert expected == fill_level(held, newcomers)


@given(some.lists(some.integers(0, 300), min_size=1, max_size=8), some.integers(0, 500))
def test_the_level_is_that_of_newcomers_who_choose_one_after_the_other(held: list[int], newcomers: int) -> None:
    filled = list(held)
    for _ in range(newcomers):
        filled[filled.index(min(filled))] += 1
    assert min(filled) == fill_level(held, newcomers)


def test_nobody_cannot_be_filled() -> None:
    with pytest.raises(ValueError, match="no worker"):
        fill_level([], 1)


# One decision


@pytest.mark.parametrize(
    ("mine", "held", "waiting", "expected"),
    [
        pytest.param(0, (), 100, 64, id="who is alone takes all it may"),
        pytest.param(5, (5, 5), 1, 1, id="of equals the first one takes who comes alone"),
        pytest.param(7, (5, 5), 1, 1, id="with two more it still does"),
        pytest.param(8, (5, 5), 1, 0, id="with three more it does not"),
        pytest.param(5, (5, 5), 3, 1, id="of three equals take one each"),
        pytest.param(6, (5, 5), 2, 0, id="several who come together go strictly to the emptiest"),
        pytest.param(5, (7, 5), 6, 2, id="up to the common level"),
        pytest.param(5, (5, 5), 5, 1, id="which is rounded down"),
        pytest.param(2, (7, 9), 6, 5, id="a newcomer takes all until it is level"),
        pytest.param(0, (1000, 1000), 500, 64, id="and no more than most at once"),
    ],
)
def test_a_worker_takes_what_is_missing_to_the_common_level(
    mine: int, held: tuple[int, ...], waiting: int, expected: int
) -> None:
    assert expected == accept_quota(mine, others(*held), waiting=waiting)


@pytest.mark.parametrize(
    ("mine", "waiting", "reacted_ns", "expected"),
    [
        pytest.param(10, 1, 5 * MILLISECOND, 0, id="a short turn is waited for"),
        pytest.param(10, 1, 29 * MILLISECOND, 0, id="a longer one if it is six behind"),
        pytest.param(10, 1, 30 * MILLISECOND, 64, id="but no longer"),
        pytest.param(3, 1, 6 * MILLISECOND, 64, id="not at all if it is hardly behind"),
        pytest.param(10, 12, 37 * MILLISECOND, 1, id="longer if many wait"),
        pytest.param(10, 12, 38 * MILLISECOND, 64, id="but not for ever"),
        pytest.param(100, 1, 100 * MILLISECOND, 0, id="a tenth of a second at the most"),
        pytest.param(100, 2_000, 101 * MILLISECOND, 64, id="however far it is behind"),
    ],
)
def test_a_worker_that_does_not_react_is_waited_for_the_longer_the_more_it_would_be_behind(
    mine: int, waiting: int, reacted_ns: int, expected: int
) -> None:
    assert expected == accept_quota(mine, [(0, reacted_ns, 0)], waiting=waiting)


def test_a_worker_that_is_unheard_of_is_not_waited_for() -> None:
    assert 0 == accept_quota(10, [(0, 0, HEARD_NS)])
    assert 64 == accept_quota(10, [(0, 0, HEARD_NS + 1)])


def test_most_is_a_setting() -> None:
    assert 3 == accept_quota(0, [], most=3)
    assert 3 == accept_quota(0, others(100), waiting=10, most=3)


workers = some.lists(
    some.tuples(counts, some.sampled_from([0, 1, 200 * MILLISECOND]), some.sampled_from([0, HEARD_NS, HEARD_NS + 1])),
    max_size=7,
)


def is_there(worker: tuple[int, int, int]) -> bool:
    return worker[1] < 200 * MILLISECOND and worker[2] <= HEARD_NS


@given(counts, workers, some.integers(1, 3_000), some.integers(1, 500))
def test_the_quota_never_goes_beyond_the_common_level(
    mine: int, seen: list[tuple[int, int, int]], waiting: int, most: int
) -> None:
    quota = accept_quota(mine, seen, waiting=waiting, most=most)
    assert 0 <= quota <= most
    there = [worker[0] for worker in seen if is_there(worker)]
    if not there:
        assert most == quota
    elif quota:
        assert mine + quota <= max(fill_level([mine, *there], waiting), min(there) + (3 if waiting == 1 else 1))


@given(some.lists(counts, min_size=1, max_size=8), workers, some.integers(1, 3_000))
def test_of_those_that_are_there_the_emptiest_always_takes_one(
    free: list[int], seen: list[tuple[int, int, int]], waiting: int
) -> None:
    absent = [worker for worker in seen if not is_there(worker)]
    assert accept_quota(min(free), [*others(*free), *absent], waiting=waiting) >= 1


# Who stands by


@given(some.lists(some.integers(0, 5), min_size=1, max_size=8), some.integers(1, 3))
def test_all_workers_come_to_one_answer_about_who_is_among_the_emptiest(held: list[int], places: int) -> None:
    ranks = [(connections, number) for number, connections in enumerate(held)]
    chosen = [rank for rank in ranks if is_among_emptiest(rank, [other for other in ranks if other != rank], places)]
    assert sorted(ranks)[:places] == sorted(chosen)


# Storms


@dataclass(slots=True)
class Worker:
    connections: int
    reacted_ns: int = 0
    unheard_ns: int = 0


class Storm:
    """Workers before one queue of waiting connections, woken in an order that `random` decides.

    Each woken worker looks at the queue and at the counts of the others and takes its quota one by one; between its look
    and its last accept others may wake, look and take: what they saw of each other is old by then.
    """

    def __init__(self, workers: list[Worker], waiting: int, random: Random) -> None:
        self.workers = workers
        self.waiting = waiting
        self.random = random

    def quota(self, worker: Worker) -> int:
        seen = [
            (other.connections, other.reacted_ns, other.unheard_ns) for other in self.workers if other is not worker
        ]
        return accept_quota(worker.connections, seen, waiting=self.waiting)

    def round(self) -> None:
        """Every worker that can wake does so once; their accepts come in any mixture."""
        awake = [worker for worker in self.workers if not worker.unheard_ns and not worker.reacted_ns]
        self.random.shuffle(awake)
        together = self.random.randint(1, len(awake))
        for start in range(0, len(awake), together):
            if not self.waiting:
                return
            accepts = [worker for worker in awake[start : start + together] for _ in range(self.quota(worker))]
            self.random.shuffle(accepts)
            for worker in accepts[: self.waiting]:
                worker.connections += 1
            self.waiting -= min(self.waiting, len(accepts))

    def last(self) -> None:
        """Go on until nobody waits."""
        while self.waiting:
            waiting = self.waiting
            self.round()
            assert self.waiting < waiting, "nobody took one though some wait"


def unevenness(workers: list[Worker]) -> int:
    held = [worker.connections for worker in workers]
    return max(held) - min(held)


ALLOWED = 3
"""One that is left over, and the two more that may go to one worker when the last ones come alone."""


@given(randoms, some.integers(2, 8), some.integers(0, 4_000))
def test_a_mass_connect_spreads_evenly(random: Random, count: int, waiting: int) -> None:
    workers = [Worker(0) for _ in range(count)]
    Storm(workers, waiting, random).last()
    assert waiting == sum(worker.connections for worker in workers)
    assert unevenness(workers) <= ALLOWED


@given(randoms, some.integers(2, 8), some.lists(some.integers(1, 200), max_size=40))
def test_newcomers_who_come_in_groups_spread_evenly(random: Random, count: int, groups: list[int]) -> None:
    workers = [Worker(0) for _ in range(count)]
    for group in groups:
        Storm(workers, group, random).last()
    assert unevenness(workers) <= ALLOWED


@pytest.mark.parametrize("count", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("seed", range(5))
def test_after_a_storm_all_are_within_three_of_each_other(count: int, seed: int) -> None:
    workers = [Worker(0) for _ in range(count)]
    Storm(workers, 10_000, Random(seed)).last()
    assert unevenness(workers) <= ALLOWED


@given(randoms, some.lists(some.integers(0, 600), min_size=2, max_size=8), some.integers(0, 3_000))
def test_after_a_death_or_a_reload_newcomers_go_to_the_emptiest(random: Random, held: list[int], waiting: int) -> None:
    workers = [Worker(count) for count in held]
    Storm(workers, waiting, random).last()
    emptiest = min(worker.connections for worker in workers)
    for before, worker in zip(held, workers, strict=True):
        assert worker.connections == before or worker.connections <= emptiest + ALLOWED


@given(randoms, some.lists(some.integers(0, 600), min_size=2, max_size=8), some.integers(0, 2_000), some.data())
def test_busy_and_dead_workers_hold_nobody_up_and_the_free_share_evenly(
    random: Random, held: list[int], waiting: int, data: some.DataObject
) -> None:
    workers = [Worker(count) for count in held]
    absent = data.draw(some.sets(some.integers(1, len(held) - 1)))
    for place in absent:
        if data.draw(some.booleans()):
            workers[place].reacted_ns = 200 * MILLISECOND
        else:
            workers[place].unheard_ns = 10_000 * MILLISECOND
    Storm(workers, waiting, random).last()
    free = [worker for place, worker in enumerate(workers) if place not in absent]
    assert [held[place] for place in absent] == [workers[place].connections for place in absent]
    emptiest = min(worker.connections for worker in free)
    for before, worker in zip((held[place] for place in range(len(held)) if place not in absent), free, strict=True):
        assert worker.connections == before or worker.connections <= emptiest + ALLOWED


@given(randoms, some.integers(2, 8), some.integers(1, 2_000))
def test_a_worker_that_was_busy_catches_up(random: Random, count: int, waiting: int) -> None:
    workers = [Worker(0) for _ in range(count)]
    workers[0].reacted_ns = 200 * MILLISECOND
    Storm(workers, waiting, random).last()
    workers[0].reacted_ns = 0
    Storm(workers, waiting, random).last()
    assert unevenness(workers) <= ALLOWED or workers[0].connections == waiting
