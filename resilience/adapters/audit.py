"""Who changed what by hand: the last entries of this process, and for each a line in the log, which is what stays."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, NamedTuple

__all__ = ["AuditEntry", "AuditLog", "NumberedEntry", "Outcome"]

KEPT: Final = 200
"""Entries that a process remembers."""

Outcome = Literal["done", "failed", "refused"]
"""What became of it: it was done, it could not be done, or whoever asked may not do it."""

_LOG = logging.getLogger("resilience.audit")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Something that somebody did by hand, at `at` (seconds since 1970).

    `author` is who, with the address that the request came from; `target` what it was done to ("circuit payments"); `ttl`
    for how many seconds it holds; `unreached` are the workers, "host/pid", that could not be told.
    """

    at: float
    author: str
    action: str
    target: str
    outcome: Outcome = "done"
    reason: str = ""
    ttl: float | None = None
    detail: str = ""
    unreached: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """The entry as JSON takes it."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


class NumberedEntry(NamedTuple):
    """An entry with its number in this process, from 1."""

    number: int
    entry: AuditEntry


class AuditLog:
    """The last entries of this process. Safe to share between threads and greenlets."""

    def __init__(self, *, kept: int = KEPT) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._entries: deque[NumberedEntry] = deque(maxlen=kept)

    def record(self, entry: AuditEntry) -> None:
        """Remember the entry, and log it under `resilience.audit`."""
        with self._lock:
            self._entries.append(NumberedEntry(next(self._numbers), entry))
        # Whatever somebody wrote is quoted: a line of the log stays one line.
        _LOG.warning(
            "%s: %s by %s: %s%s%s%s%s",
            _quoted(entry.target),
            entry.action,
            entry.author,
            entry.outcome,
            f", {entry.detail}" if entry.detail else "",
            "" if entry.ttl is None else f", for {entry.ttl:g} s",
            f", reason {entry.reason!r}" if entry.reason else "",
            f", unreached {', '.join(entry.unreached)}" if entry.unreached else "",
        )

    def entries(self) -> Sequence[NumberedEntry]:
        """What is remembered, the oldest first."""
        with self._lock:
            return tuple(self._entries)


def _quoted(target: str) -> str:
    kind, space, name = target.partition(" ")
    return f"{kind} {name!r}" if space else kind
