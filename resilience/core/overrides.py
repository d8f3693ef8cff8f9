"""Limits that hold in place of others for a time, and how they are written down for other processes.

There is one record for each limiter that is overridden, and one that lists them (`listed`, `with_listed`, `without_listed`):
whoever watches that one hears of all. Times are seconds of the storage's clock. What is written is JSON with a version, so
that a process of another version refuses what it cannot read instead of guessing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeGuard

from resilience.core.limiter import LARGEST

__all__ = [
    "LONGEST_OVERRIDE",
    "LONGEST_REASON",
    "Override",
    "checked_override",
    "decode",
    "encode",
    "listed",
    "with_listed",
    "without_listed",
]

LONGEST_OVERRIDE: Final = 30 * 86_400
"""Seconds that an override may hold: what is to hold for longer belongs into the configuration."""

LONGEST_REASON: Final = 500
"""Characters of a reason."""

_LONGEST_LIMITS: Final = 500
_LONGEST_AUTHOR: Final = 200
_LONGEST_LIST: Final = 4_000
_VERSION: Final = 1


class Override(NamedTuple):
    """Limits that hold in place of a limiter's own until `until`, in seconds of the clock of whoever keeps it: `limits` as
    they were written, `burst` for all of them where one was given, `reason` and `author` as they were said."""

    limits: str
    burst: int | None
    until: float
    reason: str = ""
    author: str = ""


def checked_override(
    limits: object, *, burst: object = None, expires_in: object, now: float, reason: object = "", author: object = ""
) -> Override:
    """An override that begins at `now` and holds for `expires_in` seconds. Raises `ValueError` that says what to write; whether
    a limiter can charge `limits` is for it to say."""
    if not isinstance(limits, str) or not 0 < len(limits) <= _LONGEST_LIMITS:
        raise ValueError(f"limits={_shown(limits)}: write limits such as '5/second; 100/hour'")
    if burst is not None and (type(burst) is not int or burst < 1):
        raise ValueError(f"burst={_shown(burst)}: a burst is a whole number from 1")
    number = isinstance(expires_in, int | float) and not isinstance(expires_in, bool)
    if not number or not 0 < expires_in <= LONGEST_OVERRIDE:  # type: ignore[operator]
        raise ValueError(
            f"expires_in={_shown(expires_in)}: an override holds for seconds above 0, up to {LONGEST_OVERRIDE:,} (30 days)"
        )
    for name, said, longest in (("reason", reason, LONGEST_REASON), ("author", author, _LONGEST_AUTHOR)):
        if not isinstance(said, str) or len(said) > longest:
            raise ValueError(f"{name}={_shown(said)}: write a text of at most {longest} characters")
    return Override(limits, burst, now + expires_in, str(reason), str(author))  # type: ignore[operator]


def encode(override: Override) -> bytes:
    """The record of one override."""
    return _written({"version": _VERSION, **override._asdict()})


def decode(text: bytes) -> Override:
    """The override in a record. Raises `ValueError` for anything that `encode` of this version has not written."""
    read = _read(text)
    limits, burst, until = read.get("limits"), read.get("burst"), read.get("until")
    reason, author = read.get("reason"), read.get("author")
    if (
        isinstance(limits, str)
        and (burst is None or (type(burst) is int and burst >= 1))
        and _is_time(until)
        and isinstance(reason, str)
        and isinstance(author, str)
    ):
        return Override(limits, burst, float(until), reason, author)
    raise ValueError(f"{text[:80]!r} is no override: another version, or another program, has written it")


def listed(text: bytes | None, now: float) -> dict[str, float]:
    """The limiters that are overridden at `now`, and until when. Raises `ValueError` as `decode` does."""
    if text is None:
        return {}
    names = _read(text).get("until")
    if not isinstance(names, Mapping) or not all(_is_time(until) for until in names.values()):
        raise ValueError(f"{text[:80]!r} is no list of overrides: another version, or another program, has written it")
    return {str(name): float(until) for name, until in names.items() if until > now}


def with_listed(text: bytes | None, name: str, until: float, now: float) -> bytes:
    """The list with `name` until `until`. It is another text each time, so that whoever watches it hears of it. Raises
    `ValueError` when there is no more room, and as `decode` does."""
    names = {**listed(text, now), name: until}
    written = _written({"version": _VERSION, "number": _number(text) + 1, "until": names})
    if len(written) > _LONGEST_LIST:
        raise ValueError(f"{len(names) - 1} limiters are overridden, and no more can be: restore one first")
    return written


def without_listed(text: bytes | None, name: str, now: float) -> bytes | None:
    """The list without `name`: the same one where it was not listed. Raises `ValueError` as `decode` does."""
    names = listed(text, now)
    if name not in names:
        return text
    del names[name]
    return _written({"version": _VERSION, "number": _number(text) + 1, "until": names})


def _number(text: bytes | None) -> int:
    number = 0 if text is None else _read(text).get("number")
    return number if isinstance(number, int) else 0


def _written(values: Mapping[str, Any]) -> bytes:
    # Not escaped: a reason of 500 characters has to find room in a record. Half of a pair is no character.
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _read(text: bytes) -> Mapping[str, Any]:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict) or read.get("version") != _VERSION:
        raise ValueError(f"{text[:80]!r} cannot be read: another version, or another program, has written it")
    return read


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."  # it came from outside
