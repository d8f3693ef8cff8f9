"""How decisions are written into an HTTP answer. The one place that knows the fields' syntax.

Sources: draft-ietf-httpapi-ratelimit-headers-10 (RateLimit, RateLimit-Policy), RFC 9651 (structured fields), RFC 9110
section 10.2.3 (Retry-After), RFC 9457 (problem details).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from resilience.core.limiter import Decision, Quota, seconds_rounded_up
from resilience.errors import RateLimited, Rejected

__all__ = ["problem_details", "rate_limit_fields", "retry_after_field"]

QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
REDUCED_CAPACITY = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"


def rate_limit_fields(decisions: Iterable[tuple[str, Decision]]) -> dict[str, str]:
    """The fields RateLimit-Policy and RateLimit for all decisions of one request, each with its policy's title.

    A policy's quota `q` is the burst and its window `w` the seconds that refill it. `t` is when the quota is whole again
    or, after a denial, when a try can succeed: never later than Retry-After.
    """
    policies: list[str] = []
    states: list[str] = []
    for title_of_policy, decision in decisions:
        for quota in decision.quotas:
            title = _quoted(_title(title_of_policy, decision, quota))
            policies.append(f"{title};q={_whole(quota.limit.size)};w={max(1, _whole(quota.limit.seconds_to_fill))}")
            states.append(f"{title};r={_whole(quota.remaining)};t={_seconds_to_reset(decision, quota)}")
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)}


def retry_after_field(rejection: Rejected) -> str | None:
    """The value of Retry-After, in whole seconds from 1; None when no wait helps."""
    if rejection.retry_after is None:
        return None
    return str(max(1, seconds_rounded_up(rejection.retry_after)))


def problem_details(rejection: Rejected) -> dict[str, Any]:
    """The members of a problem document that describe `rejection`."""
    if isinstance(rejection, RateLimited):
        return {
            "type": QUOTA_EXCEEDED,
            "title": "Too many requests",
            "status": rejection.status,
            "detail": str(rejection),
            "violated-policies": [
                _title(rejection.title, rejection.decision, quota)
                for quota in rejection.decision.quotas
                if quota.wait != 0.0
            ],
        }
    return {
        "type": REDUCED_CAPACITY,
        "title": "Circuit open",
        "status": rejection.status,
        "detail": f"the circuit {rejection.policy!r} is open: what it protects has been failing and is left alone",
    }


def _title(title: str, decision: Decision, quota: Quota) -> str:
    """The policy's title, with the window where it has several limits."""
    return title if len(decision.quotas) == 1 else f"{title}-{quota.limit.period:g}s"


def _seconds_to_reset(decision: Decision, quota: Quota) -> int:
    whole = _whole(quota.reset_after)
    wait = decision.retry_after
    return whole if decision.allowed or wait is None else min(whole, max(1, seconds_rounded_up(wait)))


def _whole(number: float) -> int:
    """An integer of RFC 9651, which has at most 15 digits: a longer one would make the whole field invalid."""
    return min(seconds_rounded_up(number), 999_999_999_999_999)


def _quoted(text: str) -> str:
    """A string of RFC 9651: printable ASCII between quotes."""
    printable = "".join(character if " " <= character <= "~" else "?" for character in text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
