"""Limits as people write them: the notation of the `limits` package, with fractions and a burst."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

from limits import RateLimitItem, parse

from resilience.core.limiter import Limit

__all__ = ["LimitsLike", "parse_limits"]

LimitsLike = str | Limit | RateLimitItem | Iterable["Limit | RateLimitItem"]
"""What a limit may be written as: "10/second", "0.5/second", "10 per 5 minutes; 1000/hour", a `Limit`, an item of the
`limits` package, or several of the last two."""

_SEPARATOR = re.compile(r"[,;|]")
_AMOUNT = re.compile(r"\s*(?P<amount>[+-]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+))(?P<per>\s*(?:/|per).*)", re.IGNORECASE)
_NO_PERIOD = re.compile(r"\s*(?:/|per)\s*0+(?![0-9])", re.IGNORECASE)

_NOT_A_LIMIT = (
    "{!r} is not a rate limit: write '<amount>/<second|minute|hour|day>' or '<amount> per <n> <unit>', "
    "several separated by ';'"
)


def parse_limits(limits: LimitsLike, *, burst: int | None = None) -> tuple[Limit, ...]:
    """Every limit that `limits` names, in order, all with the bucket size `burst` if one is given.

    Raises `ValueError` naming the text and the notation when it cannot be read, when it is empty, or when two limits have
    the same period (the looser one would never bind).
    """
    parsed = tuple(_with_burst(item, burst) for item in _items(limits))
    if not parsed:
        raise ValueError(f"{limits!r} names no limit: write one such as '10/second' or '10/second; 1000/hour'")
    periods = [limit.period_microseconds for limit in parsed]
    if len(set(periods)) != len(periods):
        raise ValueError(f"{limits!r} names two limits of the same period: keep the tighter one")
    return parsed


def _items(limits: LimitsLike) -> Iterable[Limit | RateLimitItem]:
    if isinstance(limits, Limit | RateLimitItem):
        return (limits,)
    if isinstance(limits, str):
        return [_read(limits, part) for part in _SEPARATOR.split(limits)]
    if not isinstance(limits, Iterable):
        raise ValueError(  # noqa: TRY004  # whatever is no limit is a ValueError
            f"{limits!r} is not a rate limit: write one such as '10/second'"
        )
    return tuple(limits)


def _read(limits: str, part: str) -> Limit:
    """One limit of the text `limits`. The package's own parser reads what stands behind the amount."""
    written = _AMOUNT.fullmatch(part)
    if written is None or _NO_PERIOD.match(written["per"]):  # that parser takes "per 0 minutes" for one minute
        raise ValueError(_NOT_A_LIMIT.format(limits))
    try:
        period = parse(f"1{written['per']}").get_expiry()
    except ValueError as error:
        raise ValueError(_NOT_A_LIMIT.format(limits)) from error
    amount = Fraction(written["amount"])
    whole = amount.numerator if amount.denominator == 1 else float(amount)
    # A float means what it prints as, so nothing is lost; text of more digits than a float prints stays a fraction.
    return Limit(whole if Fraction(repr(whole)) == amount else amount, period)


def _with_burst(item: Limit | RateLimitItem, burst: int | None) -> Limit:
    if isinstance(item, Limit):
        return item if burst is None else Limit(item.amount, item.period, burst)
    if isinstance(item, RateLimitItem):
        return Limit(item.amount, item.get_expiry(), item.amount if burst is None else burst)
    raise ValueError(f"{item!r} is not a limit: give a string, a resilience.Limit or an item of the limits package")
