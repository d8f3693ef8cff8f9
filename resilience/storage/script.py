"""Questions about buckets as one call of a script, and back: bytes in, bytes out, no I/O.

The script is `lua/token_bucket.lua`; its header says what it takes and returns. Keys and terms are kept as they travel (bulk
strings of the Redis protocol), because both are used again and again: a call is then put together without any encoding.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Sequence
from struct import pack

from resilience.core.limiter import LARGEST, Limit

__all__ = ["MOST_STEPS", "bulk", "charge_terms", "encode", "parts_of", "refund_terms", "returned_terms"]

MOST_STEPS = 65_536
"""Steps in one call: the script is told of a key in two bytes."""

_TEXT = importlib.resources.files("resilience.storage").joinpath("lua/token_bucket.lua").read_bytes()
_BEYOND = 2 * LARGEST  # more than any bucket holds: what is larger says no more, and not in fewer digits


def bulk(value: bytes) -> bytes:
    """`value` as it travels."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


_EVAL = bulk(b"EVAL") + bulk(_TEXT)
_EVALSHA = bulk(b"EVALSHA") + bulk(hashlib.sha1(_TEXT, usedforsecurity=False).hexdigest().encode())
_EMPTY = bulk(b"")


def charge_terms(limit: Limit, cost: int, floor: int = 0, *, more: bool = False) -> bytes:
    """The terms of a charge of `cost` tokens; `more` when the next step belongs to the same question.

    The floor is never below the deepest debt that is exact, which is the deepest that `Limit.debt` gives.
    """
    floor = min(max(floor, limit.capacity - LARGEST), _BEYOND)
    return _terms(b"m" if more else b"c", limit, b"%d %d" % (min(cost * limit.unit, _BEYOND), floor))


def refund_terms(limit: Limit, parts: int | None, expected: int | None = None) -> bytes:
    """The terms of a refund of so many parts (None fills the bucket) to a bucket that holds `expected` parts or more."""
    amount = b"-" if parts is None else b"%d" % min(parts, _BEYOND)
    bound = b"-" if expected is None else b"%d" % min(max(expected, -_BEYOND), _BEYOND)
    return _terms(b"r", limit, b"%b %b" % (amount, bound))


def returned_terms(terms: bytes, level: int, seconds: float) -> bytes | None:
    """The terms of the refund that takes a charge back, None for what takes nothing, and where nothing may come back.

    The charge left `level` parts, at most so many `seconds` before the refund. Without it a bucket that was nearly full would
    be full by then, and have gained nothing from then on: so much it did gain because of the charge, whoever came next may
    have taken it, and the refund is that much smaller. A charge that was made in advance (a reservation) is taken back only
    if nobody came after it and counts on its going first.
    """
    kind, *numbers, floor = terms.split(b"\r\n")[1].split(b" ")
    capacity, refill, unit, tick, taken = map(int, numbers) if kind != b"r" else (0, 0, 0, 1, 0)
    gained = (int(seconds * 1_000_000) // tick + 1) * refill
    back = taken - max(0, level + taken + gained - capacity)
    if back <= 0:
        return None
    bound = b"%d" % level if floor.startswith(b"-") else b"-"
    return bulk(b"r %d %d %d %d %d %b" % (capacity, refill, unit, tick, back, bound))


def _terms(kind: bytes, limit: Limit, rest: bytes) -> bytes:
    return bulk(b"%b %d %d %d %d %b" % (kind, limit.capacity, limit.refill, limit.unit, limit.tick, rest))


def parts_of(terms: bytes) -> int:
    """The parts that a charge takes."""
    return int(terms.split(b" ")[5])


def encode(keys: Sequence[bytes], terms: Sequence[bytes], now: bytes, *, whole: bool = False) -> bytes:
    """One call that takes these steps in order: EVALSHA, or EVAL with the `whole` script for a server that lacks it.

    `keys` and `terms` have an entry for every step, `now` is the time in microseconds or empty for the server's own.
    """
    buckets = dict.fromkeys(keys)
    kinds = dict.fromkeys(terms)
    arguments = (
        b"$%d\r\n%d\r\n" % (len(str(len(buckets))), len(buckets)),
        *buckets,
        bulk(now),
        _EMPTY if len(buckets) == len(keys) else _places(keys, buckets),
        _EMPTY if len(kinds) == 1 else _places(terms, kinds),
        *kinds,
    )
    return b"*%d\r\n%b%b" % (len(arguments) + 2, _EVAL if whole else _EVALSHA, b"".join(arguments))


def _places(steps: Sequence[bytes], distinct: dict[bytes, None]) -> bytes:
    """For each step which of the distinct ones it has, two bytes each."""
    place = dict(zip(distinct, range(len(distinct)), strict=True)).__getitem__
    return bulk(pack(f"<{len(steps)}H", *map(place, steps)))
