"""How decisions are written into an HTTP answer. The one place that knows the fields' syntax.

Sources: draft-ietf-httpapi-ratelimit-headers-10 (RateLimit, RateLimit-Policy), RFC 9651 (structured fields), RFC 9110
section 10.2.3 (Retry-After), RFC 9457 (problem details). The three X-RateLimit fields have no document; they are written as
Flask-Limiter writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from resilience.core.limiter import Decision, Limit, Quota, seconds_rounded_up
from resilience.errors import RateLimited, Rejected

__all__ = [
    "FIELDS",
    "STYLES",
    "Observed",
    "Style",
    "problem_details",
    "rate_limit_fields",
    "retry_after_field",
    "write_fields",
]

Style = Literal["draft", "legacy", "both", "off"]
"""Which fields tell callers about limits: RateLimit and RateLimit-Policy, the older X-RateLimit ones, both, or none."""

STYLES: tuple[str, ...] = get_args(Style)

Observed = tuple[Sequence[str], Decision]
"""A decision with the title of each of its quotas."""

FIELDS = frozenset({"ratelimit", "ratelimit-policy", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"})
"""The names of all fields that `rate_limit_fields` may write, in lower case."""

_LENGTHS = frozenset(map(len, FIELDS))

QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
REDUCED_CAPACITY = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"

_LARGEST = (
    999_999_999_999_999  # an integer of RFC 9651 has at most 15 digits: a longer one would make the field invalid
)
_MOST_REMEMBERED = 4_096
_POLICY = "RateLimit-Policy"


def write_fields(
    headers: list[tuple[str, str]], observed: Sequence[Observed], style: Style = "draft", *, unix_time: float = 0.0
) -> None:
    """Put the fields about all decisions of one request into `headers`, in place of what anybody else wrote there, such as
    a backend whose answer is passed on. See `rate_limit_fields` for the rest."""
    for name, _ in headers:
        if len(name) in _LENGTHS and name.lower() in FIELDS:
            headers[:] = [field for field in headers if field[0].lower() not in FIELDS]
            break
    titles, decision = observed[0]
    if len(observed) != 1 or len(titles) != 1 or style != "draft":
        headers += rate_limit_fields(observed, style, unix_time=unix_time)
        return
    # Most requests meet one limit. In few steps: code that runs once a request finds no cache warm.
    policy, state = _draft_item(titles[0], decision[1][0], decision)
    headers.append(policy)
    headers.append(("RateLimit", state))


def rate_limit_fields(
    observed: Iterable[Observed], style: Style = "draft", *, unix_time: float = 0.0
) -> list[tuple[str, str]]:
    """The fields about all decisions of one request, as names and values.

    RateLimit-Policy says of each quota the burst `q` and the seconds `w` that refill it, RateLimit what remains (`r`) and
    the seconds `t` until the quota is whole again or, after a denial, until a try can succeed: never later than Retry-After.

    The older fields tell of the tightest quota alone: X-RateLimit-Limit its burst, X-RateLimit-Remaining what is left,
    X-RateLimit-Reset the Unix time of the same moment as `t`, for which `unix_time` is the current one.
    """
    decisions = list(observed)
    fields = _draft_fields(decisions) if style in ("draft", "both") else []
    if style in ("legacy", "both"):
        fields += _legacy_fields(decisions, unix_time)
    return fields


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
                title
                for title, quota in zip(rejection.titles, rejection.decision.quotas, strict=True)
                if quota.wait != 0.0
            ],
        }
    return {
        "type": REDUCED_CAPACITY,
        "title": "Circuit open",
        "status": rejection.status,
        "detail": f"the circuit {rejection.policy!r} is open: what it protects has been failing and is left alone",
    }


def _draft_fields(observed: Iterable[Observed]) -> list[tuple[str, str]]:
    items = [
        _draft_item(title, quota, decision)
        for titles, decision in observed
        for title, quota in zip(titles, decision[1], strict=True)
    ]
    policies, states = ", ".join([policy for (_, policy), _ in items]), ", ".join([state for _, state in items])
    return [(_POLICY, policies), ("RateLimit", states)] if items else []


def _draft_item(title: str, quota: tuple[Limit, int, int, int], decision: Decision) -> tuple[tuple[str, str], str]:
    """The field about a policy alone, and what RateLimit says of its state."""
    limit, level, _, _ = quota  # a storage may leave a plain tuple here
    _, policy, name, unit, capacity, refill, tick = _remembered.get((title, id(limit))) or _remember(title, limit)
    remaining = level // unit if level > 0 else 0
    # As `_reset` says it, in whole microseconds.
    reset = -((level - capacity) // refill * tick // 1_000_000) if decision[0] else _reset(decision, Quota(*quota))
    if remaining > _LARGEST or reset > _LARGEST:
        remaining, reset = min(remaining, _LARGEST), min(reset, _LARGEST)
    return policy, f"{name}{remaining};t={reset}"


_remembered: dict[tuple[str, int], tuple[Limit, tuple[str, str], str, int, int, int, int]] = {}
"""What never changes about a limit under a title, by the limit's identity: hashing the limit itself would take longer than
writing the text. The limit is held with it, so that its identity stays its own."""


def _remember(title: str, limit: Limit) -> tuple[Limit, tuple[str, str], str, int, int, int, int]:
    if len(_remembered) >= _MOST_REMEMBERED:
        _remembered.clear()  # limits that are made anew for each request
    name = _quoted(title)
    window = max(1, min(seconds_rounded_up(limit.seconds_to_fill), _LARGEST))
    policy = (_POLICY, f"{name};q={min(limit.size, _LARGEST)};w={window}")
    known = (limit, policy, f"{name};r=", limit.unit, limit.capacity, limit.refill, limit.tick)
    return _remembered.setdefault((title, id(limit)), known)


def _legacy_fields(observed: Iterable[Observed], unix_time: float) -> list[tuple[str, str]]:
    several = [(decision, quota) for _, decision in observed for quota in decision.quotas]
    if not several:
        return []
    decision, quota = min(several, key=_tightest_first)
    reset = min(seconds_rounded_up(unix_time) + _reset(decision, quota), _LARGEST)
    return [
        ("X-RateLimit-Limit", str(min(quota.limit.size, _LARGEST))),
        ("X-RateLimit-Remaining", str(min(quota.remaining, _LARGEST))),
        ("X-RateLimit-Reset", str(reset)),
    ]


def _tightest_first(decided: tuple[Decision, Quota]) -> tuple[bool, int, float]:
    """What refused comes first, then what has the least left, then what takes longest to be whole again."""
    decision, quota = decided
    refused = not decision.allowed and quota.wait != 0.0
    return not refused, quota.remaining, -quota.reset_after


def _reset(decision: Decision, quota: Quota) -> int:
    whole = seconds_rounded_up(quota.reset_after)
    wait = decision.retry_after
    return whole if decision.allowed or wait is None else min(whole, max(1, seconds_rounded_up(wait)))


def _quoted(text: str) -> str:
    """A string of RFC 9651: printable ASCII between quotes."""
    printable = "".join(character if " " <= character <= "~" else "?" for character in text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
