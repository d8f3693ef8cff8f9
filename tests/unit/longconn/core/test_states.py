"""The state machine of a connection, against a list of all that is legal, written out once more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from longconn.core.states import NEXT, Event, IllegalTransition, State, advance, table

LEGAL = """
    ACCEPTED      HANDSHAKE     HANDSHAKING
    ACCEPTED      BYTES         READING_HEAD
    ACCEPTED      DRAIN         DRAINING
    ACCEPTED      CLOSE         CLOSED
    HANDSHAKING   HANDSHAKEN    READING_HEAD
    HANDSHAKING   UPGRADE       UPGRADED
    HANDSHAKING   DRAIN         DRAINING
    HANDSHAKING   CLOSE         CLOSED
    READING_HEAD  BYTES         READING_HEAD
    READING_HEAD  HEAD          RESPONDING
    READING_HEAD  BODY_FOLLOWS  READING_BODY
    READING_HEAD  UPGRADE       UPGRADED
    READING_HEAD  DRAIN         DRAINING
    READING_HEAD  CLOSE         CLOSED
    READING_BODY  RESPOND       RESPONDING
    READING_BODY  UPGRADE       UPGRADED
    READING_BODY  DRAIN         DRAINING
    READING_BODY  CLOSE         CLOSED
    RESPONDING    RESPOND       RESPONDING
    RESPONDING    ANSWERED      PARKED
    RESPONDING    NEXT          READING_HEAD
    RESPONDING    UPGRADE       UPGRADED
    RESPONDING    DRAIN         DRAINING
    RESPONDING    CLOSE         CLOSED
    PARKED        BYTES         READING_HEAD
    PARKED        DRAIN         DRAINING
    PARKED        CLOSE         CLOSED
    UPGRADED      DRAIN         DRAINING
    UPGRADED      CLOSE         CLOSED
    DRAINING      BYTES         READING_HEAD
    DRAINING      DRAIN         DRAINING
    DRAINING      CLOSE         CLOSED
    CLOSED        CLOSE         CLOSED
"""
TRANSITIONS = {
    (State[state], Event[event]): State[following]
    for state, event, following in (line.split() for line in LEGAL.strip().splitlines())
}
PAIRS = [(state, event) for state in State for event in Event]


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda member: member.name)
def test_every_event_leads_where_the_list_says_or_nowhere(state: State, event: Event) -> None:
    expected = TRANSITIONS.get((state, event))
    if expected is None:
        assert NEXT[state][event] == -1
        with pytest.raises(IllegalTransition, match=rf"^{event.name} cannot happen in {state.name}$") as raised:
            advance(state, event)
        assert (state, event) == (raised.value.state, raised.value.event)
    else:
        assert expected == advance(state, event) == NEXT[state][event]


def test_the_states_and_events_number_the_table_without_a_gap() -> None:
    assert list(range(9)) == [int(state) for state in State]
    assert list(range(11)) == [int(event) for event in Event]
    assert len(State) == len(NEXT)
    assert {len(Event)} == {len(row) for row in NEXT}


def test_the_table_holds_plain_ints() -> None:
    assert {int} == {type(following) for row in NEXT for following in row}
    assert int is type(advance(State.ACCEPTED, Event.BYTES))


@pytest.mark.parametrize(
    ("state", "event", "message"),
    [
        (-1, int(Event.CLOSE), "CLOSE cannot happen in state -1"),
        (9, int(Event.CLOSE), "CLOSE cannot happen in state 9"),
        (int(State.PARKED), -1, "event -1 cannot happen in PARKED"),
        (int(State.PARKED), 11, "event 11 cannot happen in PARKED"),
    ],
)
def test_a_number_that_is_no_state_or_no_event_is_illegal(state: int, event: int, message: str) -> None:
    with pytest.raises(IllegalTransition) as raised:
        advance(state, event)
    assert message == str(raised.value)


def test_every_state_is_reached_from_accepted() -> None:
    reached = {int(State.ACCEPTED)}
    fresh = set(reached)
    while fresh:
        fresh = {following for state in fresh for following in NEXT[state] if following >= 0} - reached
        reached |= fresh
    assert set(State) == reached


def test_the_printed_table_is_the_table() -> None:
    header, *rows = (line.split() for line in table().splitlines())
    assert [event.name for event in Event] == header
    printed = {
        (State[state], Event[event]): State[cell]
        for state, *cells in rows
        for event, cell in zip(header, cells, strict=True)
        if cell != "-"
    }
    assert TRANSITIONS == printed
    assert [state.name for state in State] == [row[0] for row in rows]


@given(some.lists(some.sampled_from(Event), max_size=40))
def test_whatever_happens_a_closed_connection_stays_closed(events: list[Event]) -> None:
    state = int(State.ACCEPTED)
    closed = False
    for event in events:
        if NEXT[state][event] >= 0:
            state = advance(state, event)
        closed = closed or event is Event.CLOSE
        assert closed == (state == State.CLOSED)


@given(some.lists(some.sampled_from(sorted(set(Event) - {Event.DRAIN})), max_size=40))
def test_an_upgraded_connection_never_speaks_http_again(events: list[Event]) -> None:
    state = int(State.UPGRADED)
    for event in events:
        if NEXT[state][event] >= 0:
            state = advance(state, event)
        assert state in {State.UPGRADED, State.CLOSED}


@given(some.sampled_from([state for state in State if state is not State.CLOSED]))
def test_every_open_connection_can_be_drained_and_closed(state: State) -> None:
    assert State.DRAINING == advance(state, Event.DRAIN)
    assert State.CLOSED == advance(state, Event.CLOSE)
