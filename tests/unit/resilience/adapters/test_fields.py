"""How decisions are written into an HTTP answer."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from resilience import CircuitOpen, Decision, Limit, Quota, RateLimited
from resilience.adapters import fields
from resilience.adapters.fields import FIELDS, STYLES, Style, problem_details, rate_limit_fields, retry_after_field
from tests.support.examples import many

MINUTE = Limit(60, 60, 120)
NAMES = [("api",), ("first", "second")]


def allowed(limit: Limit = MINUTE, tokens: int = 100) -> Decision:
    return Decision(True, (Quota(limit, tokens * limit.unit, 1),))


def denied(limit: Limit = MINUTE, cost: int = 1) -> Decision:
    return Decision(False, (Quota(limit, 0, cost),))


def draft(*observed: tuple[tuple[str, ...], Decision]) -> dict[str, str]:
    return dict(rate_limit_fields(observed))


def legacy(*observed: tuple[tuple[str, ...], Decision], unix_time: float = 1_000.5) -> list[str]:
    return [value for _, value in rate_limit_fields(observed, "legacy", unix_time=unix_time)]


def test_an_allowed_request_tells_the_policy_and_what_is_left() -> None:
    expected = {"RateLimit-Policy": '"api";q=120;w=120', "RateLimit": '"api";r=100;t=20'}
    assert expected == draft((("api",), allowed()))


def test_several_quotas_are_listed_by_their_titles_in_order() -> None:
    several = Decision(True, (Quota(Limit(10, 1), 9, 1), Quota(Limit(1_000, 3_600), 999, 1)))
    written = draft((("login",), allowed()), (("api-1s", "api-3600s"), several))
    expected = '"login";q=120;w=120, "api-1s";q=10;w=1, "api-3600s";q=1000;w=3600'
    assert expected == written["RateLimit-Policy"]


def test_a_policy_is_written_alike_the_second_time() -> None:
    assert draft((("again",), allowed())) == draft((("again",), allowed()))


def test_the_same_limit_under_another_title_and_another_limit_under_the_same_are_kept_apart() -> None:
    seen = [
        draft((title, allowed(limit)))["RateLimit-Policy"]
        for title in (("a",), ("b",))
        for limit in (MINUTE, Limit(9, 1))
    ]
    assert ['"a";q=120;w=120', '"a";q=9;w=1', '"b";q=120;w=120', '"b";q=9;w=1'] == seen


def test_what_is_remembered_of_limits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "_MOST_REMEMBERED", 8)
    for amount in range(1, 100):
        limit = Limit(amount, 60)
        assert f'"api";q={amount};w=60' == draft((("api",), allowed(limit, 1)))["RateLimit-Policy"]
        assert len(fields._remembered) <= 8


def test_after_a_denial_the_reset_is_never_later_than_retry_after() -> None:
    decision = denied()
    assert '"api";r=0;t=1' == draft((("api",), decision))["RateLimit"]
    assert "1" == retry_after_field(RateLimited("api", decision))


def test_no_retry_is_promised_when_no_wait_helps() -> None:
    assert retry_after_field(RateLimited("api", denied(cost=121))) is None


def test_a_window_is_at_least_a_second() -> None:
    assert '"api";q=10;w=1' == draft((("api",), allowed(Limit(1_000, 1, 10), 5)))["RateLimit-Policy"]


def test_a_number_never_has_more_digits_than_a_field_may_have() -> None:
    huge = Limit(2**52, 1)
    written = draft((("api",), Decision(True, (Quota(huge, huge.capacity, 0),))))
    assert ('"api";q=999999999999999;w=1', '"api";r=999999999999999;t=0') == (
        written["RateLimit-Policy"], written["RateLimit"]
    )  # fmt: skip


def test_a_debt_is_nothing_left_and_a_later_reset() -> None:
    owing = Decision(True, (Quota(MINUTE, -30 * MINUTE.unit, 1),))
    assert '"api";r=0;t=150' == draft((("api",), owing))["RateLimit"]
    assert ["120", "0", "1151"] == legacy((("api",), owing))


def test_the_older_fields_tell_of_the_tightest_quota_with_the_time_at_which_it_is_whole() -> None:
    assert ["120", "50", "1071"] == legacy((("loose",), allowed(tokens=100)), (("tight",), allowed(tokens=50)))


def test_the_older_fields_tell_of_what_refused_rather_than_of_what_has_less_left() -> None:
    empty, refusing = Limit(2, 60), Limit(60, 60, 120)
    both = Decision(False, (Quota(empty, 0, 0), Quota(refusing, 1 * refusing.unit, 3)))
    assert ["120", "1", "1003"] == legacy((("free of charge", "dear"), both))


def test_each_style_writes_its_fields_and_no_others() -> None:
    names = {style: [name for name, _ in rate_limit_fields([(("api",), allowed())], style)] for style in _styles()}
    new, old = ["RateLimit-Policy", "RateLimit"], ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"]
    assert {"draft": new, "legacy": old, "both": new + old, "off": []} == names
    assert {name.lower() for name in new + old} == FIELDS


@pytest.mark.parametrize("style", STYLES)
def test_nothing_is_written_where_nothing_was_decided(style: Style) -> None:
    assert [] == rate_limit_fields([], style)
    assert [] == rate_limit_fields([((), Decision(True, ()))], style)


def _styles() -> tuple[Style, ...]:
    return STYLES  # type: ignore[return-value]  # the values of that very literal


@settings(max_examples=many(200))
@given(
    amount=some.one_of(some.integers(1, 2**40), some.fractions(min_value=Fraction(1, 1_000), max_value=1_000)),
    period=some.sampled_from([0.001, 1, 60, 3_600, 366 * 86_400]),
    share=some.floats(-2, 1),
    cost=some.integers(0, 2**41),
    allow=some.booleans(),
)
def test_no_field_is_ever_negative_or_no_number(
    amount: int | Fraction, period: float, share: float, cost: int, allow: bool
) -> None:
    try:
        limit = Limit(amount, period)
    except ValueError:
        return  # not exact at this rate, and refused for it
    decision = Decision(allow, (Quota(limit, min(limit.capacity, int(share * limit.capacity)), cost),))
    written = rate_limit_fields([(("api",), decision)], "both", unix_time=1_000.5)
    number = r"\d{1,15}"
    shapes = [rf'"api";q={number};w=[1-9]\d{{0,14}}', rf'"api";r={number};t={number}', number, number, number]
    assert all(re.fullmatch(shape, value) for shape, (_, value) in zip(shapes, written, strict=True)), written
    assert "-" not in (retry_after_field(RateLimited("api", decision)) or "")


@given(some.text(max_size=30))
def test_every_name_makes_a_valid_field(name: str) -> None:
    field = draft(((name,), allowed()))["RateLimit"]
    assert field.isascii()
    assert field.isprintable()
    assert field.startswith('"')


def test_a_rate_limit_names_the_policies_that_were_violated() -> None:
    loose, tight = Limit(10, 1), Limit(2, 60)
    decision = Decision(False, (Quota(loose, 9 * loose.unit, 1), Quota(tight, 0, 1)))
    details = problem_details(RateLimited("api", decision, titles=("api-1s", "api-60s")))
    assert (429, ["api-60s"]) == (details["status"], details["violated-policies"])
    assert details["type"].endswith("#quota-exceeded")


def test_an_open_circuit_is_reduced_capacity() -> None:
    rejection = CircuitOpen("open", policy="payments", retry_after=7.2)
    details = problem_details(rejection)
    assert (503, "8") == (details["status"], retry_after_field(rejection))
    assert details["type"].endswith("#temporary-reduced-capacity")


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2")])
def test_retry_after_is_whole_seconds_from_one(seconds: float, expected: str) -> None:
    assert expected == retry_after_field(CircuitOpen("open", policy="p", retry_after=seconds))
