"""How many tokens are taken ahead, and until when. Times are in microseconds, a limit of 1,000 a second holds 1,000."""

from __future__ import annotations

import pytest

from resilience.core.lease import HOT, LONGEST, WINDOW, Lease, lifetime
from resilience.core.limiter import Limit

LIMIT = Limit(1_000, 1)
FULL = LIMIT.capacity
MOST = 100


def hot(*, level: int = FULL, now: int = 0) -> Lease:
    """A lease whose bucket has been asked as often as makes it hot but for one charge."""
    lease = Lease(LIMIT)
    for _ in range(HOT - 1):
        assert 0 == lease.wanted(1, MOST, now)
        lease.answered(level, now)
    return lease


def held(tokens: int, *, now: int = 0) -> Lease:
    lease = Lease(LIMIT)
    lease.took(tokens, FULL - tokens * LIMIT.unit, now)
    return lease


@pytest.mark.parametrize(
    ("limit", "microseconds"),
    [(Limit(1_000, 1), LONGEST), (Limit(1_000, 1, 100), 100_000), (Limit(10, 60), LONGEST), (Limit(3, 0.000_1), 100)],
)
def test_a_lease_lasts_as_long_as_the_bucket_takes_to_fill_but_a_second_at_most(
    limit: Limit, microseconds: int
) -> None:
    assert microseconds == lifetime(limit)


def test_the_eighth_charge_within_the_window_takes_as_many_ahead() -> None:
    assert HOT == hot().wanted(1, MOST, WINDOW)


def test_charges_that_come_slowly_take_nothing_ahead() -> None:
    lease = Lease(LIMIT)
    lease.answered(FULL, 0)
    assert {0} == {lease.wanted(1, MOST, moment * WINDOW // (HOT - 2)) for moment in range(100)}


def test_charges_whose_answers_are_under_way_take_nothing_ahead() -> None:
    lease = Lease(LIMIT)
    assert {0} == {lease.wanted(1, MOST, 0) for _ in range(100)}, "nobody knows yet what is there"


def test_one_at_a_time_takes_ahead() -> None:
    lease = hot()
    lease.asking = True
    assert 0 == lease.wanted(1, MOST, 0)


@pytest.mark.parametrize(
    ("most", "there", "cost", "count"),
    [
        (100, 1_000, 1, 8),
        (100, 1_000, 5, 40),
        (100, 1_000, 50, 100),
        (100, 1_000, 101, 0),
        (5, 1_000, 1, 5),
        (100, 10, 1, 5),
        (100, 5, 1, 2),
        (100, 3, 1, 0),
        (100, 12, 7, 0),
        (100, -5, 1, 0),
    ],
)
def test_never_more_than_is_allowed_nor_than_leaves_as_much_for_others(
    most: int, there: int, cost: int, count: int
) -> None:
    assert count == hot(level=there * LIMIT.unit).wanted(cost, most, 0)


def test_what_the_bucket_gained_since_it_was_asked_counts() -> None:
    lease = hot(level=0)
    assert 5 == lease.wanted(1, MOST, 10_000), "ten tokens in ten milliseconds, half of them for others"


def test_spending_counts_down_and_the_level_with_it() -> None:
    lease = held(10)
    assert (FULL - 1 * LIMIT.unit, 9) == (lease.spend(1, 0), lease.tokens)
    assert (FULL - 10 * LIMIT.unit, 0) == (lease.spend(9, 0), lease.tokens)
    assert lease.spend(1, 0) is None
    assert lease.spend(0, 0) is None, "an empty lease knows nothing worth telling"


def test_a_charge_that_the_lease_does_not_cover_leaves_it_alone() -> None:
    lease = held(10)
    assert (None, 10) == (lease.spend(11, 0), lease.tokens)


def test_nothing_is_spent_when_the_time_is_over() -> None:
    lease = held(10)
    assert lease.spend(1, LONGEST - 1) is not None
    assert lease.spend(1, LONGEST) is None


def test_a_lease_that_is_spent_fast_is_followed_by_twice_as_much() -> None:
    lease = held(8)
    lease.spend(8, 0)
    assert 16 == lease.wanted(1, MOST, LONGEST // 4)


def test_a_lease_that_is_spent_in_its_time_is_followed_by_as_much() -> None:
    lease = held(8)
    lease.spend(8, 0)
    assert 8 == lease.wanted(1, MOST, LONGEST // 4 + 1)
    assert 8 == lease.wanted(1, MOST, LONGEST + WINDOW)


def test_a_lease_that_nobody_has_asked_for_any_longer_is_not_followed() -> None:
    lease = held(8)
    lease.spend(8, 0)
    assert 0 == lease.wanted(1, MOST, LONGEST + WINDOW + 1)


def test_a_lease_that_runs_low_is_filled_up_to_the_most_before_it_is_empty() -> None:
    lease = held(80)
    assert lease.tokens > lease.low
    lease.spend(60, 0)
    assert lease.tokens <= lease.low
    assert 80 == lease.wanted(0, MOST, 1)
    lease.took(80, FULL - 160 * LIMIT.unit, 1)
    assert (100, FULL - 60 * LIMIT.unit) == (lease.tokens, lease.level)


def test_every_token_ends_with_the_oldest() -> None:
    lease = held(8)
    lease.spend(7, 0)
    lease.took(8, FULL, 600_000)
    assert LONGEST == lease.ends


def test_a_lease_that_cannot_be_filled_asks_again_at_half_of_what_is_left() -> None:
    lease = held(80)
    lease.answered(0, 0)
    lease.spend(60, 0)
    assert (0, 10) == (lease.wanted(0, MOST, 0), lease.low)


def test_the_end_comes_once_and_gives_back_what_is_unspent() -> None:
    lease = held(10)
    lease.spend(4, 0)
    assert [0, 6, 0] == [lease.end(LONGEST - 1), lease.end(LONGEST), lease.end(LONGEST)]
    assert FULL - 10 * LIMIT.unit == lease.level, "what it gives back is not in the bucket yet"


def test_who_spends_less_than_half_is_not_hot_any_longer() -> None:
    for spent, follows in ((4, 0), (5, 10)):
        lease = held(10)
        lease.spend(spent, 0)
        lease.end(LONGEST)
        assert follows == lease.wanted(1, MOST, LONGEST), f"{spent} of 10 spent"


def test_a_refused_lease_makes_the_bucket_be_asked_for_single_charges() -> None:
    lease = hot()
    assert HOT == lease.wanted(1, MOST, 0)
    lease.refused(FULL, 0)
    assert [0] * (HOT - 1) + [HOT] == [lease.wanted(1, MOST, 0) for _ in range(HOT)]


def test_an_older_answer_does_not_replace_a_newer_one() -> None:
    lease = Lease(LIMIT)
    lease.answered(500, 10)
    lease.answered(900, 9)
    assert 500 == lease.level


def test_a_clock_that_jumps_back_starts_the_window_anew() -> None:
    lease = hot(now=WINDOW * 10)
    assert 0 == lease.wanted(1, MOST, 0)
