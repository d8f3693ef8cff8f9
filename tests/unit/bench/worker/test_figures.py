"""Medians, ratios, and what wrk printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.worker.figures import medians, percentile, ratio, wrk_numbers

WRK = """Running 2s test @ http://127.0.0.1:1/
  1 threads and 64 connections
{"requests": 300, "seconds": 1.5, "connect": 1, "read": 2, "write": 3, "timeout": 4, "status": 5, "p50": 1, "p99": 2, "max": 3}
"""


def test_the_median_is_taken_of_each_figure() -> None:
    assert {"a": 2.0, "b": 5.0} == medians([{"a": 1.0, "b": 5.0}, {"a": 9.0}, {"a": 2.0}])


def test_no_round_has_no_medians() -> None:
    assert {} == medians([])


@pytest.mark.parametrize(
    ("figure", "base", "expected"), [(6.0, 3.0, 2.0), (None, 3.0, None), (6.0, None, None), (6.0, 0.0, None)]
)
def test_a_ratio_needs_both_figures(figure: float | None, base: float | None, expected: float | None) -> None:
    assert expected == ratio(figure, base)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.0), (0.51, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_a_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert expected == percentile([4.0, 2.0, 1.0, 3.0], share)


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.floats(0, 1))
def test_a_percentile_is_not_exceeded_by_its_share(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6


def test_the_line_of_wrk_becomes_figures() -> None:
    expected = {
        "requests_per_second": 200.0,
        "requests": 300.0,
        "p50_ms": 1,
        "p99_ms": 2,
        "max_ms": 3,
        "errors": 15.0,
    }
    assert expected == wrk_numbers(WRK)


def test_a_wrk_that_printed_no_result_is_told() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        wrk_numbers("unable to connect to 127.0.0.1:1 Connection refused\n")
