"""Limits as people write them: the notation of the `limits` package, with a burst."""

from __future__ import annotations

from collections.abc import Iterable

from limits import RateLimitItem, parse_many

from resilience.core.limiter import Limit

__all__ = ["LimitsLike", "parse_limits"]

LimitsLike = str | Limit | RateLimitItem | Iterable["Limit | RateLimitItem"]
"""What a limit may be written as: "10/second", "10 per 5 minutes; 1000/hour", a `Limit`, an item of the `limits` package,
or several of the last two."""


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
    if not isinstance(limits, str):
        if not isinstance(limits, Iterable):
            raise ValueError(  # noqa: TRY004  # whatever is no limit is a ValueError
                f"{limits!r} is not a rate limit: write one such as '10/second'"
            )
        return tuple(limits)
    try:
        return parse_many(limits)
    except ValueError as error:
        raise ValueError(
            f"{limits!r} is not a rate limit: write '<amount>/<second|minute|hour|day>' or "
            "'<amount> per <n> <unit>', several separated by ';'"
        ) from error


def _with_burst(item: Limit | RateLimitItem, burst: int | None) -> Limit:
    if isinstance(item, Limit):
        return item if burst is None else Limit(item.amount, item.period, burst)
    if isinstance(item, RateLimitItem):
        return Limit(item.amount, item.get_expiry(), item.amount if burst is None else burst)
    raise ValueError(f"{item!r} is not a limit: give a string, a resilience.Limit or an item of the limits package")
