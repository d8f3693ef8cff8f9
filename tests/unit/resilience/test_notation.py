"""Limits as people write them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import limits as limits_package
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience import Limit
from resilience.notation import parse_limits
from tests.support.examples import many


@pytest.mark.parametrize(
    ("notation", "expected"),
    [
        ("10/second", (Limit(10, 1),)),
        ("10 per 5 minutes", (Limit(10, 300),)),
        ("10/second; 1000/hour", (Limit(10, 1), Limit(1_000, 3_600))),
        ("10/second, 1000/hour | 5/day", (Limit(10, 1), Limit(1_000, 3_600), Limit(5, 86_400))),
        ("0.5/second", (Limit(0.5, 1, 1),)),
        ("1.5 per minute", (Limit(1.5, 60, 2),)),
        (".25 / 2 hours", (Limit(0.25, 7_200, 1),)),
        (Limit(3, 0.5, 9), (Limit(3, 0.5, 9),)),
        (limits_package.parse("7/day"), (Limit(7, 86_400),)),
        ([Limit(1, 1), limits_package.parse("7/day")], (Limit(1, 1), Limit(7, 86_400))),
        (Limit(Fraction(1, 3), 1), (Limit(Fraction(1, 3), 1, 1),)),
    ],
)
def test_limits_are_written_as_people_write_them(notation: Any, expected: tuple[Limit, ...]) -> None:
    assert expected == parse_limits(notation)


def test_a_burst_replaces_every_bucket_size() -> None:
    assert (Limit(10, 1, 50), Limit(100, 60, 50)) == parse_limits("10/second; 100/minute", burst=50)
    assert (Limit(0.5, 1, 3),) == parse_limits("0.5/second", burst=3)
    assert (Limit(7, 86_400, 3),) == parse_limits(limits_package.parse("7/day"), burst=3)


@pytest.mark.parametrize(
    ("notation", "reason"),
    [
        ("lots", "'lots' is not a rate limit: write"),
        ("", "'' is not a rate limit: write"),
        ("10/second;", "is not a rate limit: write"),
        ("1e3/second", "is not a rate limit: write"),
        ("10/fortnight", "is not a rate limit: write"),
        ("5 per 0 minutes", "is not a rate limit: write"),
        ("10/second; 20/second", "two limits of the same period"),
        ([], "names no limit"),
        ([5], "5 is not a limit"),
        (5, "5 is not a rate limit"),
        ("0/second", "amount=0: a limit takes a number above 0"),
        ("0.0/second", "amount=0: a limit takes a number above 0"),
        ("-5/second", "amount=-5: a limit takes a number above 0"),
        ("-0.5/second", r"amount=-0\.5: a limit takes a number above 0"),
    ],
)
def test_what_is_no_limit_is_refused_with_the_reason(notation: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_limits(notation)


@settings(max_examples=many(100))
@given(amount=st.integers(1, 10_000), multiple=st.integers(1, 99), unit=st.sampled_from(["second", "minute", "hours"]))
def test_whole_amounts_mean_what_they_mean_to_the_limits_package(amount: int, multiple: int, unit: str) -> None:
    text = f"{amount} per {multiple} {unit}"
    assert parse_limits(limits_package.parse(text)) == parse_limits(text)


@settings(max_examples=many(100))
@given(whole=st.integers(0, 99), fraction=st.integers(1, 999))
def test_a_written_fraction_is_kept_exactly(whole: int, fraction: int) -> None:
    text = f"{whole}.{fraction:03}"
    (limit,) = parse_limits(f"{text} per minute")
    assert Fraction(limit.refill, limit.unit * limit.tick) == Fraction(text) / 60_000_000
