"""What a limit promises, held against what crowds of callers in several processes are really given.

Never more than the burst and the rate, in no window; never less than that either where callers ask for it. When exactly a
caller was admitted only the storage knows; every statement here is about what certainly happened (see `certain_burst`), so
a slow machine can make a test weaker, but not fail. The same in simulated time is part of the conformance suite.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as some

from resilience.core.limiter import Limit
from resilience.testing import smallest_burst
from tests.support.limit_crowd import Admission, Crowd, Manner, Seen, Task, certain_burst
from tests.support.limit_storages import KINDS, address_of

_fresh = itertools.count()


each_sort = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.prove] if kind in ("redis", "sentinel") else []) for kind in KINDS]
)
"""One storage of each sort; those that differ by their server only are left to the long proofs."""


def crowd(
    kind: str, limit: Limit, *, processes: int, greenlets: int, manner: Manner, seconds: float = 0.0, rate: float = 0.0
) -> Seen:
    """What `processes` times `greenlets` callers of one limit see, who all together ask `rate` times a second; in memory
    they are one process."""
    name = f"exact{next(_fresh)}"
    if kind == "memory":
        processes, greenlets = 1, processes * greenlets
    tasks = [
        Task(
            uri=address_of(kind),
            name=name,
            amount=float(limit.amount),
            period=limit.period,
            burst=limit.size,
            greenlets=greenlets,
            manner=manner,
            seconds=seconds,
            rate=rate / processes,
            seed=seed,
        )
        for seed in range(processes)
    ]
    with Crowd(tasks) as started:
        return started.go()


def tokens(limit: Limit, microseconds: int) -> Fraction:
    """What so much time gives."""
    return Fraction(max(0, microseconds) * limit.refill, limit.unit * limit.tick)


@each_sort
def test_two_thousand_callers_at_once_are_given_exactly_the_burst(kind: str) -> None:
    seen = crowd(kind, Limit(1, 86_400, 100), processes=4, greenlets=500, manner="once")
    assert (2_000, 100) == (seen.calls, len(seen.admitted))


def check_allowance(kind: str, seconds: float) -> None:
    """At five times the rate: as much as burst and time allow, not a token more, and not one less."""
    limit = Limit(300, 1, 600)
    rate = 5 * 300.0
    for _ in range(3):
        seen = crowd(kind, limit, processes=4, greenlets=20, manner="steady", seconds=seconds, rate=rate)
        admitted = len(seen.admitted)
        # Not one more: they were all admitted between the first question and the last answer.
        assert admitted <= limit.size + tokens(limit, seen.last_answered - seen.first_asked)
        # A bucket that is full for a while gains nothing. From the first refusal on it was so far from full that nobody
        # would have had to ask for two seconds, which a machine that is needed elsewhere can bring about.
        if seen.longest_unrefused < 1_900_000:
            break
    else:
        pytest.fail("three times the machine stood still for two seconds")
    # Not one less: the first who was refused found less than a token, so the burst was gone; the last one did, so all
    # that time had given meanwhile was gone, too. Of ten seconds' allowance that one token is 0.03 %.
    assert admitted > limit.size + tokens(limit, seen.last_refused - seen.first_refused) - 1
    assert seen.last_refused - seen.first_refused > seconds * 500_000, "there was hardly anything to refuse"


@pytest.mark.alone
@each_sort
def test_at_five_times_the_rate_as_much_is_admitted_as_burst_and_time_allow(kind: str) -> None:
    check_allowance(kind, 2.0)


@pytest.mark.prove
@pytest.mark.parametrize("kind", KINDS)
def test_at_five_times_the_rate_for_ten_seconds_as_much_is_admitted_as_burst_and_time_allow(kind: str) -> None:
    check_allowance(kind, 10.0)


def check_windows(kind: str, seconds: float) -> None:
    """Whatever the moments at which they ask, no window of any length is given more than the burst and its time."""
    limit = Limit(50, 1, 10)
    seen = crowd(kind, limit, processes=4, greenlets=8, manner="adversarial", seconds=seconds)
    burst = certain_burst(seen.admitted, limit)
    assert burst <= limit.size
    # They did try: more is certain than what a bucket of half the size would have given.
    assert burst > limit.size / 2
    assert seen.calls > 2 * len(seen.admitted)


@each_sort
def test_no_window_is_given_more_than_the_burst_and_its_time(kind: str) -> None:
    check_windows(kind, 3.0)


@pytest.mark.prove
@pytest.mark.parametrize("kind", KINDS)
def test_no_window_of_a_minute_is_given_more_than_the_burst_and_its_time(kind: str) -> None:
    check_windows(kind, 60.0)


@given(
    some.lists(
        some.tuples(some.integers(0, 1_000_000), some.integers(0, 100_000)).map(
            lambda pair: Admission(pair[0], pair[0] + pair[1])
        ),
        max_size=30,
    )
)
def test_what_is_certain_is_what_lies_in_a_window_whole(admitted: list[Admission]) -> None:
    limit = Limit(10, 1, 5)
    worst = Fraction(0)
    for begin, _ in admitted:
        for _, end in admitted:
            inside = sum(begin <= each.asked and each.answered <= end for each in admitted)
            worst = max(worst, inside - tokens(limit, end - begin)) if begin <= end else worst
    assert worst == certain_burst(admitted, limit)


@given(some.lists(some.integers(0, 1_000_000), max_size=30))
def test_where_moments_are_known_exactly_what_is_certain_is_all_there_is(moments: list[int]) -> None:
    limit = Limit(10, 1, 5)
    admitted = [Admission(moment, moment) for moment in moments]
    assert smallest_burst([(moment, 1) for moment in moments], limit) == certain_burst(admitted, limit)
