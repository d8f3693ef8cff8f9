"""Buckets, sums and quantiles of whole numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longconn.core.histogram import Histogram, cells_of

BOUNDS = (10, 20, 50)

bounds = st.lists(st.integers(0, 10**12), min_size=1, max_size=20, unique=True).map(sorted)
values = st.lists(st.integers(0, 2 * 10**12), max_size=200)


def observed(*numbers: int) -> Histogram:
    histogram = Histogram(BOUNDS)
    for number in numbers:
        histogram.observe(number)
    return histogram


def test_a_value_counts_in_the_first_bucket_whose_bound_it_does_not_exceed() -> None:
    assert [2, 1, 1, 1] == observed(0, 10, 11, 50, 51).buckets


def test_the_cumulative_counts_are_what_each_bound_covers() -> None:
    assert [2, 3, 4, 5] == observed(0, 10, 11, 50, 51).cumulative()


def test_a_new_histogram_is_empty() -> None:
    histogram = Histogram(BOUNDS)

    assert ([0, 0, 0, 0], 0, 0) == (histogram.buckets, histogram.sum, histogram.count)


def test_it_counts_into_a_part_of_a_larger_list_and_touches_nothing_else() -> None:
    cells = [-1] * 3 + [0] * cells_of(BOUNDS) + [-1] * 2
    Histogram(BOUNDS, cells, first=3).observe(20)

    assert [-1, -1, -1, 0, 1, 0, 0, 20, -1, -1] == cells


@pytest.mark.parametrize("wrong", [(), (1, 1), (2, 1)])
def test_bounds_that_do_not_rise_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="bounds that rise"):
        Histogram(wrong)


@pytest.mark.parametrize(("cells", "first"), [(4, 0), (5, 1), (5, -1)])
def test_a_list_without_room_is_refused(cells: int, first: int) -> None:
    with pytest.raises(ValueError, match="no room"):
        Histogram(BOUNDS, [0] * cells, first)


@pytest.mark.parametrize(("share", "expected"), [(0, 10), (0.25, 10), (0.5, 20), (0.75, 50), (0.76, None), (1, None)])
def test_a_quantile_is_the_smallest_bound_that_covers_its_share(share: float, expected: int | None) -> None:
    assert expected == observed(5, 15, 45, 99).quantile(share)


def test_a_histogram_without_values_has_no_quantile() -> None:
    assert Histogram(BOUNDS).quantile(0.5) is None


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_beyond_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        observed(1).quantile(share)


@given(bounds, values)
def test_every_value_is_counted_once_and_summed_exactly(some_bounds: list[int], some_values: list[int]) -> None:
    histogram = Histogram(some_bounds)
    for value in some_values:
        histogram.observe(value)

    assert (len(some_values), sum(some_values)) == (histogram.count, histogram.sum)
    expected = [sum(value <= bound for value in some_values) for bound in some_bounds]
    assert [*expected, len(some_values)] == histogram.cumulative()


@given(bounds, values.filter(bool), st.floats(0, 1))
def test_a_quantile_covers_at_least_its_share(some_bounds: list[int], some_values: list[int], share: float) -> None:
    histogram = Histogram(some_bounds)
    for value in some_values:
        histogram.observe(value)

    covering = [
        bound
        for bound in some_bounds
        if any(value <= bound for value in some_values)
        and sum(value <= bound for value in some_values) >= share * len(some_values)
    ]
    assert min(covering, default=None) == histogram.quantile(share)
