"""How decisions are written into an HTTP answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from resilience import CircuitOpen, Decision, Limit, Quota, RateLimited
from resilience.adapters.fields import problem_details, rate_limit_fields, retry_after_field

MINUTE = Limit(60, 60, 120)


def allowed(limit: Limit = MINUTE, tokens: int = 100) -> Decision:
    return Decision(True, (Quota(limit, tokens * limit.unit, 1),))


def denied(limit: Limit = MINUTE, cost: int = 1) -> Decision:
    return Decision(False, (Quota(limit, 0, cost),))


def test_an_allowed_request_tells_the_policy_and_what_is_left() -> None:
    assert {"RateLimit-Policy": '"api";q=120;w=120', "RateLimit": '"api";r=100;t=20'} == rate_limit_fields(
        [("api", allowed())]
    )


def test_several_policies_are_listed_by_name_and_window() -> None:
    several = Decision(True, (Quota(Limit(10, 1), 9, 1), Quota(Limit(1_000, 3_600), 999, 1)))
    fields = rate_limit_fields([("login", allowed()), ("api", several)])
    assert '"login";q=120;w=120, "api-1s";q=10;w=1, "api-3600s";q=1000;w=3600' == fields["RateLimit-Policy"]


def test_after_a_denial_the_reset_is_never_later_than_retry_after() -> None:
    decision = denied()
    fields = rate_limit_fields([("api", decision)])
    assert '"api";r=0;t=1' == fields["RateLimit"]
    assert "1" == retry_after_field(RateLimited("api", decision))


def test_no_retry_is_promised_when_no_wait_helps() -> None:
    assert retry_after_field(RateLimited("api", denied(cost=121))) is None


def test_a_window_is_at_least_a_second() -> None:
    assert '"api";q=10;w=1' == rate_limit_fields([("api", allowed(Limit(1_000, 1, 10), 5))])["RateLimit-Policy"]


def test_a_number_never_has_more_digits_than_a_field_may_have() -> None:
    huge = Limit(2**52, 1)
    decision = Decision(True, (Quota(huge, huge.capacity, 0),))
    assert '"api";q=999999999999999;w=1' == rate_limit_fields([("api", decision)])["RateLimit-Policy"]


@given(some.text(max_size=30))
def test_every_name_makes_a_valid_field(name: str) -> None:
    field = rate_limit_fields([(name, allowed())])["RateLimit"]
    assert field.isascii()
    assert field.isprintable()
    assert field.startswith('"')


def test_a_rate_limit_names_the_policies_that_were_violated() -> None:
    loose, tight = Limit(10, 1), Limit(2, 60)
    decision = Decision(False, (Quota(loose, 9 * loose.unit, 1), Quota(tight, 0, 1)))
    details = problem_details(RateLimited("api", decision))
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
