"""What a connection is doing, and what may happen to it next: one table that can be printed.

The engine keeps the state as a plain int and looks the next one up in `NEXT`; `advance` does the same with an error that
names both sides. All that is legal stands in `_LEGAL`, one line per state.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = ["NEXT", "Event", "IllegalTransition", "State", "advance", "table"]


class State(IntEnum):
    """What a connection is doing. The numbers index `NEXT` and the rows of the scoreboard."""

    ACCEPTED = 0
    """No byte has come yet; waits without a greenlet."""
    HANDSHAKING = 1
    """TLS is being agreed on."""
    READING_HEAD = 2
    """A part of a request's head is there; waits for the rest without a greenlet."""
    READING_BODY = 3
    """The application runs and the body of its request is still coming."""
    RESPONDING = 4
    """The application runs, or its answer is being written."""
    PARKED = 5
    """Keep-alive: waits for a next request without a greenlet."""
    UPGRADED = 6
    """Belongs to another protocol: WebSocket, server-sent events, HTTP/2."""
    DRAINING = 7
    """Has been told that it closes; lingers a little for what still arrives."""
    CLOSED = 8
    """Over. Final."""


class Event(IntEnum):
    """What can happen to a connection. The numbers index the rows of `NEXT`."""

    HANDSHAKE = 0
    """The TLS handshake begins."""
    HANDSHAKEN = 1
    """The TLS handshake has ended well."""
    BYTES = 2
    """Bytes of a head arrived; a complete head is told by what follows."""
    HEAD = 3
    """The head is complete and no body is awaited."""
    BODY_FOLLOWS = 4
    """The head is complete and a body follows."""
    RESPOND = 5
    """The body is there in full, or (a part of) the answer is written."""
    ANSWERED = 6
    """The answer is written and the connection is kept."""
    NEXT = 7
    """The answer is written and bytes of the next (pipelined) request are here already."""
    UPGRADE = 8
    """Another protocol takes the connection over."""
    DRAIN = 9
    """The worker leaves: the connection is told, or lingers."""
    CLOSE = 10
    """Either side ends it."""


class IllegalTransition(RuntimeError):
    """`event` cannot happen in `state`: a fault in the engine, never the client's."""

    def __init__(self, state: int, event: int) -> None:
        super().__init__(f"{_name(Event, event)} cannot happen in {_name(State, state)}")
        self.state = state
        self.event = event


_LEGAL: Final[dict[State, dict[Event, State]]] = {
    State.ACCEPTED: {Event.HANDSHAKE: State.HANDSHAKING, Event.BYTES: State.READING_HEAD},
    # ALPN may choose HTTP/2, which takes the connection over as soon as the handshake is done.
    State.HANDSHAKING: {Event.HANDSHAKEN: State.READING_HEAD, Event.UPGRADE: State.UPGRADED},
    State.READING_HEAD: {
        Event.BYTES: State.READING_HEAD,
        Event.HEAD: State.RESPONDING,
        Event.BODY_FOLLOWS: State.READING_BODY,
        Event.UPGRADE: State.UPGRADED,  # HTTP/2 with prior knowledge: its preface stands where a head would
    },
    State.READING_BODY: {Event.RESPOND: State.RESPONDING, Event.UPGRADE: State.UPGRADED},
    State.RESPONDING: {
        Event.RESPOND: State.RESPONDING,
        Event.ANSWERED: State.PARKED,
        Event.NEXT: State.READING_HEAD,
        Event.UPGRADE: State.UPGRADED,
    },
    State.PARKED: {Event.BYTES: State.READING_HEAD},
    State.UPGRADED: {},  # never back to HTTP: what follows on the wire is not a request
    State.DRAINING: {Event.BYTES: State.READING_HEAD},  # a request that was on its way is still answered
    State.CLOSED: {},
}


def _next_state(state: State, event: Event) -> int:
    if event is Event.CLOSE:
        return int(State.CLOSED)  # from everywhere, also twice: whoever closes need not ask who was first
    if event is Event.DRAIN and state is not State.CLOSED:
        return int(State.DRAINING)
    return int(_LEGAL[state].get(event, -1))


NEXT: Final[tuple[tuple[int, ...], ...]] = tuple(tuple(_next_state(state, event) for event in Event) for state in State)
"""`NEXT[state][event]` is the next state, or -1 where the event is illegal. Plain ints, for speed."""

_STATES: Final = len(State)
_EVENTS: Final = len(Event)


def advance(state: int, event: int) -> int:
    """The state after `event`. Raises `IllegalTransition`, also for numbers that are no state or no event."""
    if 0 <= state < _STATES and 0 <= event < _EVENTS:
        following = NEXT[state][event]
        if following >= 0:
            return following
    raise IllegalTransition(state, event)


def table() -> str:
    """The whole machine as text: states down, events across, `-` where an event is illegal."""
    rows = [["", *(event.name for event in Event)]]
    rows.extend(
        [state.name, *(State(following).name if following >= 0 else "-" for following in NEXT[state])]
        for state in State
    )
    widths = [max(len(row[column]) for row in rows) for column in range(_EVENTS + 1)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _name(kind: type[IntEnum], number: int) -> str:
    try:
        return kind(number).name
    except ValueError:
        return f"{kind.__name__.lower()} {number!r}"
