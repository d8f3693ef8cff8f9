"""What the answer of a worker looks like, so that it can be put together with those of others.

A worker of another release may answer, or another program that meets in the same place under the application's name. What
comes from elsewhere is looked at once, where it arrives: whoever puts answers together relies on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any, Final

from resilience.adapters.answering import USUAL_PARTS, VERSION
from resilience.adapters.peers import Message
from resilience.core.breaker import CLOSED, DISABLED, FORCED_CLOSED, FORCED_OPEN, HALF_OPEN, METRICS_ONLY, OPEN

__all__ = ["misfit"]

_LARGEST: Final = 1e300
_MOST: Final = 10**18
"""Above every number that a process counts to."""
_STATES: Final = frozenset((CLOSED, OPEN, HALF_OPEN, FORCED_OPEN, FORCED_CLOSED, DISABLED, METRICS_ONLY))
_KINDS: Final = ("succeeded", "failed", "ignored")

Look = Callable[[Any], str | None]
"""Tells where in a value something is not as it should be: a path such as ".name", "" for the value itself. None: nowhere."""


def misfit(message: Message, answer: Any) -> str:
    """What keeps `answer`, which somebody gave to `message`, from being put together with others; "" if nothing does."""
    if not isinstance(answer, Mapping):
        return "it is no JSON object"
    version = answer.get("version")
    if version != VERSION:
        return f"it is of version {str(version)[:20]}, this worker's of version {VERSION}"
    looks = {part: _PARTS[part] for part in message.get("tell", USUAL_PARTS) if part in _PARTS}
    if "do" in message:
        looks |= _ORDER
    where = _fields(looks)(answer)
    return "" if where is None else f"{where[1:61]} is missing, or is something else"


def _look_for(fits: Callable[[Any], bool]) -> Look:
    return lambda value: None if fits(value) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and (-_LARGEST <= value <= _LARGEST or value == inf)


_text = _look_for(lambda value: isinstance(value, str))
_flag = _look_for(lambda value: isinstance(value, bool))
_number = _look_for(_is_number)
_count = _look_for(lambda value: type(value) is int and 0 <= value < _MOST)
_object = _look_for(lambda value: isinstance(value, dict))


def _absent_or(look: Look) -> Look:
    return lambda value: None if value is None else look(value)


def _fields(looks: Mapping[str, Look], *, alone: bool = False) -> Look:
    """An object with these fields, `alone` or with others besides. One that may be None may be left out."""

    def look(value: Any) -> str | None:
        if not isinstance(value, Mapping) or (alone and value.keys() != looks.keys()):
            return ""
        for name, look_at in looks.items():
            where = look_at(value.get(name))
            if where is not None:
                return f".{name}{where}"
        return None

    return look


def _list_of(look_at: Look) -> Look:
    def look(value: Any) -> str | None:
        if not isinstance(value, list):
            return ""
        for place, each in enumerate(value):
            where = look_at(each)
            if where is not None:
                return f"[{place}]{where}"
        return None

    return look


def _is_refused_key(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and all(map(_is_number, value[1:]))


_CIRCUIT: Final = _fields(
    {
        **dict.fromkeys(("name", "cause", "reason", "author", "reach"), _text),
        "state": _look_for(lambda value: isinstance(value, str) and value in _STATES),
        **dict.fromkeys(("since", "expires_in"), _absent_or(_number)),
        **dict.fromkeys(
            ("retry_after", "generation", "failures", "successes", "not_permitted", "slow", *_KINDS), _number
        ),
        "window": _fields(dict.fromkeys(("calls", "failed", "slow", "slow_failed"), _number)),
        "durations": _fields(dict.fromkeys(_KINDS, _fields({"sum": _number, "max": _number})), alone=True),
        "settings": _fields(
            {
                "minimum_calls": _number,
                "quorum": _number,
                "failure_rate": _absent_or(_number),
                "slow_call_rate": _absent_or(_number),
            }
        ),
        "votes": _list_of(_text),
        "alone": _flag,
        "uri": _absent_or(_text),
    }
)
_LIMITER: Final = _fields(
    {
        **dict.fromkeys(("name", "storage"), _text),
        "limits": _list_of(_text),
        **dict.fromkeys(("allowed", "denied", "shadow_denied", "waited", "exempted", "waiting"), _number),
        "override": _absent_or(_object),
        "top": _absent_or(_list_of(_look_for(_is_refused_key))),
    }
)
_ENTRY: Final = _fields(
    {
        "number": _count,
        "at": _number,
        **dict.fromkeys(("author", "action", "target", "outcome"), _text),
        "unreached": _list_of(_text),
    }
)
_PARTS: Final[Mapping[str, Look]] = {
    "circuits": _list_of(_CIRCUIT),
    "limiters": _list_of(_LIMITER),
    "permissions": _look_for(lambda value: isinstance(value, dict) and all(map(_is_number, value.values()))),
    "storage": _fields(
        {"uri": _text, "mode": _text, **dict.fromkeys(("since", "failures", "changes", "decided_locally"), _number)}
    ),
    "state": _fields({"uri": _text, "spans_hosts": _flag, "reachable": _flag}),
    "events": _fields({"last": _count, "entries": _list_of(_fields({"number": _count, "at": _number}))}),
    "audit": _list_of(_ENTRY),
}
"""What is told, as in `answering.PARTS`."""
_ORDER: Final[Mapping[str, Look]] = {"executed": _flag, "trouble": _absent_or(_text), "refusal": _absent_or(_text)}
