"""What policies tell of, in all workers: as a list, or as a stream that goes on (server-sent events).

Each process numbers its events. A cursor says of every worker up to which number its events are known, so that whoever comes
back with one is told everything since, by whichever worker answers.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

from flask import Response, abort, jsonify, request
from werkzeug.exceptions import ServiceUnavailable

from resilience.adapters.admin.audit import merged_audit
from resilience.adapters.admin.orders import describe_workers, visitor
from resilience.adapters.answering import MOST_EVENTS
from resilience.adapters.flask import Application, current_application
from resilience.adapters.peers import Answers
from resilience.adapters.sessions import Session
from resilience.clock import SYSTEM_CLOCK, epoch_seconds
from resilience.ports import Clock

__all__ = ["Cursor", "MergedEvents", "Stream", "Streams", "merged_events", "read_cursor", "write_cursor"]

Cursor = Mapping[str, int]
"""The number of the last event that is known, by worker."""

FIRST: Final = 100
"""Events that a stream begins with."""
PAUSE: Final = 0.5
"""Seconds after which the workers are asked again."""
QUIET: Final = 2.0
"""Seconds without a word after which a stream says that it is still there. Whoever has left is noticed by that, and keeps a
place until then."""
LONGEST: Final = 900.0
"""Seconds after which a stream ends: whoever comes back is looked at again."""
MOST_STREAMS: Final = 16
"""Streams of one process at the same time."""
RETRY: Final = 2_000
"""Milliseconds after which a browser comes back."""

_LONGEST_CURSOR: Final = 16_384
_MEDIA_TYPE: Final = "text/event-stream"

_LOG = logging.getLogger(__name__)


class MergedEvents(NamedTuple):
    """Events of several workers, the oldest first, and the cursor behind them."""

    events: list[dict[str, Any]]
    cursor: dict[str, int]


def merged_events(answers: Answers, known: Cursor | None = None) -> MergedEvents:
    """What the workers told. A worker that is gone for good leaves the cursor, one that did not answer stays in it."""
    events = []
    cursor = {str(worker): known[str(worker)] for worker in answers.unreached if known and str(worker) in known}
    for worker, answer in answers.by_worker.items():
        told = answer.get("events") or {"last": 0, "entries": ()}
        cursor[str(worker)] = told["last"]
        for entry in told["entries"]:
            event = {key: value for key, value in entry.items() if key != "number"}
            events.append({"id": f"{worker}/{entry['number']}", "worker": worker.describe(), **event})
    # Of one worker in the order in which they happened, whatever its clock did meanwhile.
    return MergedEvents(sorted(events, key=lambda event: event["at"]), cursor)


def write_cursor(cursor: Cursor) -> str:
    """The cursor as a text for a header field or a query."""
    return ",".join(f"{quote(worker, safe=':')}={number}" for worker, number in sorted(cursor.items()))


def read_cursor(text: str) -> Cursor:
    """What `write_cursor` wrote. Raises `ValueError` for anything else."""
    if len(text) > _LONGEST_CURSOR:
        raise ValueError("this is no cursor: it is too long")
    found: dict[str, int] = {}
    for part in text.split(",") if text else ():
        worker, equals, number = part.rpartition("=")
        if not equals or not number.isdecimal() or len(number) > 18:
            raise ValueError(f"{part!r} is no part of a cursor: send the one of an earlier answer as it is, or none")
        found[unquote(worker)] = int(number)
    return found


class Streams:
    """The event streams of one blueprint in this process, and the list beside them.

    `ends` says whether the process is about to stop: then streams end too. `take_snapshot` turns answers into what a stream
    sends every so often, and `parts` is what has to be asked for it.
    """

    def __init__(
        self,
        *,
        ends: Callable[[], bool],
        take_snapshot: Callable[[Answers], dict[str, Any]],
        parts: tuple[str, ...],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._ends = ends
        self._take_snapshot = take_snapshot
        self._parts = parts
        self._clock = clock
        self._lock = threading.Lock()
        self._open = 0  # guarded by _lock

    def show(self) -> Response:
        """The events: a stream for whoever asks for one, else a list."""
        wanted = {name: request.args[name] for name in ("kind", "policy", "type") if name in request.args}
        accepts_a_stream = request.accept_mimetypes.best_match(["application/json", _MEDIA_TYPE]) == _MEDIA_TYPE
        if accepts_a_stream and "since" not in request.args:
            return self._stream(wanted)
        return _list(wanted)

    def _stream(self, wanted: Mapping[str, str]) -> Response:
        every = _snapshots()
        try:
            known: Cursor | None = read_cursor(request.headers.get("Last-Event-ID", "")) or None
        except ValueError:
            known = None  # of another server that was here before: it begins anew
        leave = self._enter()
        stream = Stream(
            current_application(),
            wanted=wanted,
            known=known,
            every=every,
            take_snapshot=self._take_snapshot,
            parts=self._parts,
            ends=self._ends,
            session=visitor().session,
            clock=self._clock,
        )
        # A proxy that collects the answer before it passes it on would keep every event back.
        response = Response(stream.lines(), mimetype=_MEDIA_TYPE, headers={"X-Accel-Buffering": "no"})
        # Not in the generator: one that was never begun is never ended either.
        response.call_on_close(leave)
        return response

    def _enter(self) -> Callable[[], None]:
        with self._lock:
            if self._open >= MOST_STREAMS:
                raise ServiceUnavailable(
                    f"this worker serves {MOST_STREAMS} streams already: ask for the list, or again later",
                    retry_after=5,
                )
            self._open += 1
        left = count()

        def leave() -> None:
            if next(left):
                return  # a response may be closed twice
            with self._lock:
                self._open -= 1

        return leave


@dataclass
class Stream:
    """One stream: events of `wanted` kinds after `known`, and a snapshot every so many seconds (None: none). It goes on no
    longer than the `session` that let its reader in (None: the token did)."""

    application: Application
    wanted: Mapping[str, str]
    known: Cursor | None
    every: float | None
    take_snapshot: Callable[[Answers], dict[str, Any]]
    parts: tuple[str, ...]
    ends: Callable[[], bool]
    session: Session | None
    clock: Clock
    _audited: list[Any] | None = field(default=None, init=False)

    def lines(self) -> Iterator[str]:
        """What is sent, until it ends by itself."""
        began = spoke = self.clock.seconds()
        shown_at: float | None = None
        yield f"retry: {RETRY}\n\n"
        while True:
            if not self._may_go_on():
                yield _written("end", {"reason": "the session is over"})
                return
            now = self.clock.seconds()
            shows = self.every is not None and (shown_at is None or now - shown_at >= self.every - PAUSE / 10)
            if shows:
                shown_at = now
            told = "".join(self._look(shows=shows))
            if told:
                spoke = now
                yield told
            elif now - spoke >= QUIET:
                spoke = now
                yield ": still here\n\n"
            reason = self._reason_to_end(now - began)
            if reason:
                yield _written("end", {"reason": reason})
                return
            self.clock.sleep(PAUSE)

    def _may_go_on(self) -> bool:
        sessions = self.application.sessions
        return self.session is None or (sessions is not None and sessions.holds(self.session, epoch_seconds()))

    def _reason_to_end(self, age: float) -> str:
        if self.ends() or self.application.is_closed:
            return "this worker stops"
        return f"{LONGEST:g} seconds are over" if age >= LONGEST else ""

    def _look(self, *, shows: bool) -> Iterator[str]:
        parts = ["events", *(("audit", *self.parts) if shows else ())]
        message = {"tell": parts, "after": self.known, "of": self.wanted, "most": MOST_EVENTS}
        answers = self.application.peers.ask(message)
        events, cursor = merged_events(answers, self.known)
        if self.known is None:
            events = events[-FIRST:]
        is_new = cursor != self.known
        self.known = cursor
        for event in events[:-1]:
            yield _written("policy", event)
        if events:
            # Behind the last one only: whoever is cut off before is told all of them again.
            yield _written("policy", events[-1], cursor=cursor)
        elif is_new:
            yield f"id: {write_cursor(cursor)}\n\n"
        if not shows:
            return
        yield _written("snapshot", {**self.take_snapshot(answers), "workers": describe_workers(answers)})
        audited = merged_audit(answers)
        if audited != self._audited:
            self._audited = audited
            yield _written("audit", {"entries": audited})


def _list(wanted: Mapping[str, str]) -> Response:
    since = request.args.get("since")
    known: Cursor | None = None
    if since is not None:
        try:
            known = read_cursor(since)
        except ValueError as error:
            abort(400, description=str(error))
    limit = _limit()
    answers = current_application().peers.ask({"tell": ["events"], "after": known, "of": wanted, "most": limit})
    events, cursor = merged_events(answers, known)
    if known is None:
        events = events[-limit:]
    return jsonify(events=events, cursor=write_cursor(cursor), workers=describe_workers(answers))


def _limit() -> int:
    said = request.args.get("limit", str(MOST_EVENTS))
    if not said.isdecimal() or len(said) > 9 or not 1 <= int(said) <= MOST_EVENTS:
        abort(400, description=f"limit={said[:20]}: a whole number from 1 to {MOST_EVENTS}")
    return int(said)


def _snapshots() -> float | None:
    said = request.args.get("snapshots")
    if said is None:
        return None
    try:
        every = float(said)
    except ValueError:
        every = 0.0
    if not PAUSE <= every <= 60:
        abort(400, description=f"snapshots={said}: seconds from {PAUSE:g} to 60")
    return every


def _written(event: str, data: Any, *, cursor: Cursor | None = None) -> str:
    head = "" if cursor is None else f"id: {write_cursor(cursor)}\n"
    # JSON has no line breaks of its own, so one line holds it.
    return f"{head}event: {event}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
