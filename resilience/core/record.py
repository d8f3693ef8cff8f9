"""A circuit as the text under which it is kept where several processes meet.

The text is JSON, so that a person can read it, and leaves out what is as in a circuit that nothing has happened to. It names
its version: software that does not know it says so instead of guessing.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any, Final, NamedTuple

from resilience.core.breaker import STATES, Circuit, Event, Permit, Vote

__all__ = ["LONGEST", "Record", "decode", "encode"]

VERSION: Final = 1
LONGEST: Final = 4_000
"""Bytes that a record may take."""

_NEW: Final = Circuit()
_PLAIN: Final = ("generation", "openings", "successes", "handed_out", "reason", "author")


class Record(NamedTuple):
    """A circuit and the generation of the common circuit under which it was made: a host's own circuit is void when the common
    one has moved since. The common one itself has `base` 0."""

    circuit: Circuit
    base: int = 0


def encode(record: Record) -> bytes:
    """The text of a record. What was said about a move is cut, with an ellipsis, where there would be no room for the rest.
    Raises `ValueError` when the rest alone is longer than a storage takes."""
    circuit = record.circuit
    fields: dict[str, Any] = {"version": VERSION, "state": circuit.state, "since": circuit.since}
    for name in _PLAIN:
        if getattr(circuit, name) != getattr(_NEW, name):
            fields[name] = getattr(circuit, name)
    if record.base:
        fields["base"] = record.base
    if circuit.until is not None:
        fields["until"] = circuit.until
    if circuit.event is not None:
        fields["event"] = circuit.event.name
    if circuit.probes:
        fields["probes"] = [(probe.number, probe.expires) for probe in circuit.probes]
    if circuit.votes:
        fields["votes"] = circuit.votes
    text = _cut(fields)
    if len(text) > LONGEST:
        raise ValueError(
            f"the record of a circuit takes {len(text):,} bytes, and {LONGEST:,} are the most: allow fewer probes at once"
            " (half_open_max_calls), or give a shorter reason"
        )
    return text


def decode(text: bytes | None) -> Record:
    """The record of that text; that of a new circuit where there is none. Raises `ValueError` for anything else."""
    if text is None:
        return Record(_NEW)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):  # also what is not UTF-8, and brackets in brackets without end
        raise _not_ours(text, "it is no JSON") from None
    if not isinstance(fields, dict) or fields.get("version") != VERSION:
        raise _not_ours(text, f"it is not of version {VERSION}")
    try:
        return _record(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise _not_ours(text, f"{type(error).__name__}: {error}") from error


def _cut(fields: dict[str, Any]) -> bytes:
    text = _text(fields)
    for name in ("reason", "author"):
        words = fields.get(name, "")
        while words and len(text) > LONGEST:
            words = words[: len(words) // 2]
            fields[name] = f"{words}…"
            text = _text(fields)
    return text


def _text(fields: dict[str, Any]) -> bytes:
    # Half a surrogate pair, as a name may hold it that came from a broken file name, is no text: it becomes a question mark.
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _record(fields: dict[str, Any]) -> Record:
    state = fields["state"]
    if state not in STATES:
        raise ValueError(f"no state is named {state!r}")
    generation = _whole(fields.get("generation", 0))
    event = fields.get("event")
    circuit = Circuit(
        state=state,
        generation=generation,
        since=_seconds(fields["since"]),
        until=None if fields.get("until") is None else _seconds(fields["until"]),
        openings=_whole(fields.get("openings", 0)),
        successes=_whole(fields.get("successes", 0)),
        handed_out=_whole(fields.get("handed_out", 0)),
        probes=tuple(Permit(generation, _whole(number), _seconds(end)) for number, end in fields.get("probes", ())),
        votes=tuple(Vote(_word(voter), _seconds(end)) for voter, end in fields.get("votes", ())),
        event=None if event is None else Event[event],
        reason=_word(fields.get("reason", "")),
        author=_word(fields.get("author", "")),
    )
    return Record(circuit, _whole(fields.get("base", 0)))


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no whole number from 0")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise ValueError(f"{value!r} are no seconds")
    return float(value)


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _not_ours(text: bytes, why: str) -> ValueError:
    return ValueError(f"not the record of a circuit, {why}: {text[:100]!r}")
