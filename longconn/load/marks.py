"""What a message says of itself: which one it is of how many, and when it was sent. And what is wrong with the next one.

A message tells its number in one of three ways, looked for in this order:

- the id of a server-sent event, where it is a channel's position (`18f2a3b4c5-17`) or a number;
- JSON: an object whose "id" is a position or a number, or whose "n" is a number; "channel" says of which stream it is one;
- text that begins with the number and the time: `17 1700000000.123456 whatever follows`.

The time, in seconds since the epoch, is "at" in JSON (in the object or in the object that is its "data"), or the second word
of such a text. It is compared with this machine's clock, so only what was sent on this machine is timed well.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

__all__ = ["Fault", "Mark", "judge", "numbered", "read_mark"]

_POSITION = re.compile(r"(?:([0-9a-f]{1,16})-)?([0-9]{1,18})", re.ASCII)
_TEXT = re.compile(r"([0-9]{1,18}) ([0-9]{1,12}(?:\.[0-9]{1,9})?)(?: |$)", re.ASCII)


class Mark(NamedTuple):
    """`number` counts the messages of `stream` without gaps within `epoch` (hexadecimal, "" where there is none). `at` is when
    it was sent, 0.0 where that is not said. `position` is what a client that comes back says it has seen."""

    stream: str
    epoch: str
    number: int
    at: float
    position: str


class Fault(NamedTuple):
    """What one message shows to be wrong. One that comes late counts as lost when the next has come, then as disordered."""

    lost: int = 0
    """Messages that were left out before this one."""
    doubled: int = 0
    """It is the one that came last, again."""
    disordered: int = 0
    """It is older than the one that came last: late, or again."""
    restarted: int = 0
    """It belongs to a later life of the storage."""


NONE = Fault()
DOUBLED = Fault(doubled=1)
DISORDERED = Fault(disordered=1)
RESTARTED = Fault(restarted=1)


def judge(last: Mark | None, mark: Mark) -> Fault:
    """What is wrong with `mark` after `last`, both of one stream. Nothing is with the first."""
    if last is None:
        return NONE
    if mark.epoch != last.epoch:
        later = (len(mark.epoch), mark.epoch) > (len(last.epoch), last.epoch)  # hexadecimal without leading zeros
        return RESTARTED if later else DISORDERED
    ahead = mark.number - last.number
    if ahead == 1:
        return NONE
    if ahead == 0:
        return DOUBLED
    return Fault(lost=ahead - 1) if ahead > 0 else DISORDERED


def numbered(number: int, at: float, size: int) -> str:
    """A text that says its number and time, `size` bytes long where that is enough."""
    return f"{number} {at:.6f} ".ljust(size, "x")


def read_mark(message: str, identifier: str = "") -> Mark | None:
    """What `message` says of itself; `identifier` is a server-sent event's id. None when it has no number."""
    whole = _object(message)
    at = _time(message, whole)
    stream = str(whole.get("channel", ""))
    for position in (identifier, whole.get("id"), whole.get("n")):
        found = _POSITION.fullmatch(str(position)) if isinstance(position, str | int) else None
        if found is not None:
            return Mark(stream, found[1] or "", int(found[2]), at, str(position))
    text = _TEXT.match(message)
    return None if text is None else Mark(stream, "", int(text[1]), at, text[1])


def _object(message: str) -> dict[str, Any]:
    if not message.startswith("{"):
        return {}
    try:
        value = json.loads(message)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _time(message: str, whole: dict[str, Any]) -> float:
    inner = whole.get("data")
    if isinstance(inner, str):
        message, inner = inner, _object(inner)
    for value in (inner.get("at") if isinstance(inner, dict) else None, whole.get("at")):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    text = _TEXT.match(message)
    return float(text[2]) if text is not None else 0.0
