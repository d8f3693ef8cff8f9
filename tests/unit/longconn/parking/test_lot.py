"""The lot: real sockets in a real loop of gevent's, and time that passes when a test says so."""

from __future__ import annotations

import _socket
import contextlib
import contextvars
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event as Signal

from longconn import reasons, scoreboard
from longconn.core.states import Event, IllegalTransition, State
from longconn.errors import ConnectionBusy, ConnectionOver
from longconn.parking import lot as lots
from longconn.parking.connection import HALF_CLOSED, NEVER, SHORT_OF_ROOM, Connection
from longconn.parking.lot import Expired, Listener, Lot
from longconn.parking.poller import READABLE, WRITABLE, EpollPoller, WatcherPoller
from longconn.scoreboard import Scoreboard

PATIENCE = 5.0
_left: contextvars.ContextVar[str] = contextvars.ContextVar("left")
TICK = lots.TICK


def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it has not come to pass"
        gevent.sleep(0)


def turns(count: int = 5) -> None:
    """Let the loop turn."""
    for _ in range(count):
        gevent.sleep(0)


class Scene:
    """A lot with what it calls. `attending` and `expiring` are what tests have done then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: Any, *, kept: int = 256) -> None:
        monkeypatch.setattr(lots, "make_poller", kind)
        self.row = Scoreboard(rows=1).claim(1)
        self.tally = self.row.tally()
        self.attended: list[Connection] = []
        self.ended: list[tuple[Connection, int]] = []
        self.attending: Callable[[Connection], object] = self.read_and_park
        self.expiring: Callable[[Connection], object] = lambda connection: self.lot.close(connection, reasons.IDLE)
        self.lot = Lot(
            attend=self._attend,
            expire=self._expire,
            closed=lambda connection, reason: self.ended.append((connection, reason)),
            tally=self.tally,
            row=self.row,
            greenlets_kept=kept,
        )
        self.lot._timer.stop()  # time passes by `later` only
        self._ahead = 0.0
        self._began = time.monotonic()
        self.lot.now = lambda: self._began + self._ahead
        self.lot.wheel.advance(self._began)
        self._listening = socket.socket()
        self.listener = Listener(self._listening, self.lot, secure=False, reserved=False)
        self._clients: list[socket.socket] = []

    def _attend(self, connection: Connection) -> None:
        self.attended.append(connection)
        self.attending(connection)

    def _expire(self, connection: Connection) -> None:
        self.expiring(connection)

    def read_and_park(self, connection: Connection) -> None:
        """What attending is when a test does not say otherwise."""
        connection.receive()
        self.lot.park(connection, 600)

    def later(self, seconds: float) -> None:
        """Let time pass, tick by tick."""
        for _ in range(round(seconds / TICK)):
            self._ahead += TICK
            ticked: list[int] = []
            self.lot.loop.run_callback(self.lot._on_tick)  # in the hub, as the timer does
            self.lot.loop.run_callback(ticked.append, 1)
            until(lambda: ticked)  # noqa: B023

    def connection(self) -> tuple[Connection, socket.socket]:
        """A connection that waits for its first byte, and its client."""
        ours, client = socket.socketpair()
        plain = _socket.socket(ours.family, ours.type, ours.proto, ours.detach())
        plain.setblocking(False)
        client.settimeout(PATIENCE)
        self._clients.append(client)
        made = Connection(plain, ("127.0.0.1", 1), self.listener, self.lot.wheel.now_tick)
        self.lot.admit(made)
        turns(3)
        return made, client

    def counted(self, state: State) -> int:
        """How many connections are in this state."""
        return self.tally[scoreboard.STATES + state]

    def end(self) -> None:
        """Leave nothing."""
        self.lot.end()
        for client in self._clients:
            client.close()
        self._listening.close()
        turns()


@pytest.fixture(params=[EpollPoller, WatcherPoller])
def scene(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene(monkeypatch, request.param)
    yield made
    made.end()


class Held:
    """Attending that does not return before it is let go; what it raises is kept."""

    def __init__(self, what: Callable[[Connection], object]) -> None:
        self.what = what
        self.let_go = Signal()
        self.raised: list[BaseException] = []
        self.results: list[object] = []
        self.inside = 0

    def __call__(self, connection: Connection) -> None:
        self.inside += 1
        try:
            self.results.append(self.what(connection))
        except BaseException as error:  # noqa: BLE001
            self.raised.append(error)
        self.let_go.wait(PATIENCE)


# Waiting without a greenlet.


def test_what_arrives_is_attended_to_in_a_greenlet(scene: Scene) -> None:
    connection, client = scene.connection()
    seen: list[tuple[bytes | None, bool]] = []

    def attending(one: Connection) -> None:
        seen.append((one.receive(), gevent.getcurrent() in scene.lot.greenlets))
        scene.lot.park(one, 600)

    scene.attending = attending
    for number in range(3):
        client.send(b"%d" % number)
        until(lambda: number + 1 == len(seen))  # noqa: B023
    assert [(b"0", True), (b"1", True), (b"2", True)] == seen
    assert [connection] * 3 == scene.attended
    assert 1 == len(scene.lot.greenlets) == scene.lot.idle_greenlets


def test_many_connections_share_one_greenlet(scene: Scene) -> None:
    clients = [scene.connection()[1] for _ in range(50)]
    for client in clients:
        client.send(b"a")
    until(lambda: 50 == len(scene.attended))
    assert 1 == len(scene.lot.greenlets)
    assert [] == scene.lot.busy_greenlets


def test_who_blocks_leaves_the_others_to_another_greenlet(scene: Scene) -> None:
    held = Held(lambda one: one.receive())
    scene.attending = held
    for _ in range(3):
        scene.connection()[1].send(b"a")
    until(lambda: 3 == len(held.results))
    assert 3 == len(scene.lot.busy_greenlets)
    held.let_go.set()
    until(lambda: 3 == scene.lot.idle_greenlets)


def test_no_more_idle_greenlets_are_kept_than_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, EpollPoller, kept=2)
    held = Held(lambda one: one.receive())
    scene.attending = held
    for _ in range(5):
        scene.connection()[1].send(b"a")
    until(lambda: 5 == len(held.results))
    held.let_go.set()
    until(lambda: [] == scene.lot.busy_greenlets)
    turns()
    assert (2, 2) == (len(scene.lot.greenlets), scene.lot.idle_greenlets)
    scene.end()


def test_what_arrives_meanwhile_is_attended_to_afterwards_and_not_at_once(scene: Scene) -> None:
    connection, client = scene.connection()
    go_on = Signal()

    def attending(one: Connection) -> None:
        one.receive(1)
        go_on.wait(PATIENCE)
        scene.lot.park(one, 600)

    scene.attending = attending
    client.send(b"a")
    until(lambda: scene.attended)
    client.send(b"b")
    turns()
    assert [connection] == scene.attended
    go_on.set()
    until(lambda: 2 <= len(scene.attended))


def test_a_connection_that_is_called_is_attended_to_once(scene: Scene) -> None:
    connection, _ = scene.connection()
    for _ in range(3):
        scene.lot.call(connection)
    until(lambda: scene.attended)
    turns()
    assert [connection] == scene.attended
    scene.lot.call(connection)
    until(lambda: 2 == len(scene.attended))


def test_who_is_called_again_comes_after_the_others(scene: Scene) -> None:
    first, second = scene.connection()[0], scene.connection()[0]
    again = [first]

    def attending(one: Connection) -> None:
        if again and one is again[0]:
            scene.lot.call_again(again.pop())
        else:
            scene.lot.park(one, 600)

    scene.attending = attending
    scene.lot.call(first)
    scene.lot.call(second)
    until(lambda: 3 == len(scene.attended))
    assert [first, second, first] == scene.attended


def test_a_call_from_another_thread_arrives_in_the_hub(scene: Scene) -> None:
    connection, _ = scene.connection()
    gevent.get_hub().threadpool.apply(scene.lot.call_from_thread, (scene.lot.call, connection))
    until(lambda: [connection] == scene.attended)


def test_after_a_slice_of_time_others_have_their_turn(scene: Scene) -> None:
    """The clock of this lot moves as connections are attended to: each takes a fifth of a slice."""
    order: list[str] = []

    def attending(one: Connection) -> None:
        order.append("connection")
        scene._ahead += lots.SLICE / 5
        if len(order) == 1:
            gevent.get_hub().loop.run_callback(order.append, "another")
        scene.lot.park(one, 600)

    scene.attending = attending
    for connection in [scene.connection()[0] for _ in range(20)]:
        scene.lot.call(connection)
    until(lambda: 21 == len(order))
    assert 5 == order.index("another")


def test_a_greenlet_that_dies_takes_nobody_with_it(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = scene.connection()[0], scene.connection()[0]

    def attending(one: Connection) -> None:
        if one is first:
            raise RuntimeError("not caught by who attends")
        scene.lot.park(one, 600)

    scene.attending = attending
    scene.lot.call(first)
    scene.lot.call(second)
    until(lambda: second in scene.attended)
    assert 1 == len(scene.lot.greenlets)
    assert "not caught by who attends" in capsys.readouterr().err


# Deadlines.


def test_a_connection_whose_time_is_over_expires(scene: Scene) -> None:
    connection, _ = scene.connection()
    scene.lot.park(connection, 10)
    scene.later(0.9)
    assert State.ACCEPTED == connection.state
    scene.later(0.2)
    assert State.CLOSED == connection.state
    assert 1 == scene.tally[scoreboard.CLOSED + reasons.IDLE]


def test_parking_again_moves_the_deadline_either_way(scene: Scene) -> None:
    later, sooner = scene.connection()[0], scene.connection()[0]
    for connection in (later, sooner):
        scene.lot.park(connection, 20)
    scene.later(0.5)
    scene.lot.park(later, 30)
    scene.lot.park(sooner, 5)
    scene.later(0.6)
    assert [State.ACCEPTED, State.CLOSED] == [later.state, sooner.state]
    scene.later(2.3)
    assert State.ACCEPTED == later.state
    scene.later(0.2)
    assert State.CLOSED == later.state


def test_who_is_attended_to_does_not_expire(scene: Scene) -> None:
    connection, _ = scene.connection()
    held = Held(lambda one: None)
    scene.attending = held
    scene.lot.park(connection, 5)
    scene.lot.call(connection)
    until(lambda: held.inside)
    scene.later(2.0)
    assert State.ACCEPTED == connection.state
    held.let_go.set()


def test_an_error_while_it_expires_ends_it_and_time_goes_on(scene: Scene) -> None:
    def expiring(one: Connection) -> None:
        raise RuntimeError("cannot be ended well")

    scene.expiring = expiring
    ticks: list[int] = []
    scene.lot.on_tick.append(lambda: ticks.append(1))
    connections = [scene.connection()[0] for _ in range(2)]
    for connection in connections:
        scene.lot.park(connection, 3)
    scene.later(0.5)
    assert [State.CLOSED] * 2 == [connection.state for connection in connections]
    assert (5, 2) == (len(ticks), scene.tally[scoreboard.CLOSED + reasons.ERROR])


# Waiting in the middle of a transfer.


def waiting(scene: Scene, edge: int, seconds: float = 60.0) -> Callable[[Connection], object]:
    def attending(one: Connection) -> object:
        while True:
            data = one.receive() if edge == READABLE else one.socket.send(b"x")
            if data is not None:
                return data
            scene.lot.wait(one, edge, scene.lot.now() + seconds)

    return attending


def test_who_waits_for_bytes_goes_on_when_they_come(scene: Scene) -> None:
    connection, client = scene.connection()
    held = Held(waiting(scene, READABLE))
    scene.attending = held
    scene.lot.call(connection)
    until(lambda: connection.waiter is not None)
    client.send(b"at last")
    until(lambda: held.results)
    assert ([b"at last"], [connection], None) == (held.results, scene.attended, connection.waiter)
    held.let_go.set()


def test_who_waits_for_room_goes_on_when_there_is_some(scene: Scene) -> None:
    connection, client = scene.connection()

    def attending(one: Connection) -> object:
        with contextlib.suppress(BlockingIOError):
            while True:
                one.socket.send(bytes(65_536))
        one.edges &= ~WRITABLE
        scene.lot.wait(one, WRITABLE, scene.lot.now() + 60)
        return one.socket.send(b"x")

    held = Held(attending)
    scene.attending = held
    scene.lot.call(connection)
    until(lambda: connection.waiter is not None)
    client.setblocking(False)
    client.send(b"not what it waits for")
    turns()
    assert [] == held.results
    with contextlib.suppress(BlockingIOError):
        while client.recv(1 << 20):
            pass
    until(lambda: held.results)
    assert [1] == held.results
    held.let_go.set()


def test_who_waits_too_long_is_told(scene: Scene) -> None:
    connection, client = scene.connection()
    held = Held(waiting(scene, READABLE, 1.0))
    scene.attending = held
    scene.lot.call(connection)
    until(lambda: connection.waiter is not None)
    scene.later(0.9)
    assert [] == held.raised
    scene.later(0.3)
    until(lambda: held.raised)
    assert Expired is type(held.raised[0])
    assert (None, NEVER) == (connection.waiter, connection.deadline)
    client.send(b"late")
    turns()
    assert [connection] == scene.attended
    held.let_go.set()


def test_closing_it_wakes_who_waits(scene: Scene) -> None:
    connection, client = scene.connection()
    held = Held(waiting(scene, READABLE))
    scene.attending = held
    scene.lot.call(connection)
    until(lambda: connection.waiter is not None)
    scene.lot.close(connection, reasons.KILLED)
    until(lambda: held.raised)
    assert ConnectionOver is type(held.raised[0])
    assert b"" == client.recv(1)
    with pytest.raises(ConnectionOver):
        scene.lot.wait(connection, READABLE, scene.lot.now() + 1)
    held.let_go.set()


def test_a_second_one_that_waits_is_refused(scene: Scene) -> None:
    connection, client = scene.connection()
    held = Held(waiting(scene, READABLE))
    scene.attending = held
    scene.lot.call(connection)
    until(lambda: connection.waiter is not None)
    with pytest.raises(ConnectionBusy, match="two greenlets wait for one connection"):
        scene.lot.wait(connection, READABLE, scene.lot.now() + 1)
    client.send(b"for the first one")
    until(lambda: held.results)
    assert [b"for the first one"] == held.results
    held.let_go.set()


def test_what_has_been_told_already_is_not_waited_for(scene: Scene) -> None:
    connection, _ = scene.connection()
    connection.edges |= READABLE | WRITABLE
    scene.lot.wait(connection, READABLE, scene.lot.now())
    scene.lot.wait(connection, WRITABLE, scene.lot.now())
    assert 0 == connection.edges & WRITABLE


# The end.


def test_an_end_is_counted_told_and_final(scene: Scene) -> None:
    connection, client = scene.connection()
    scene.lot.keep(connection, b"GET / HT")
    scene.lot.park(connection, 10)
    assert (1, 1, 8) == (scene.lot.live, scene.row.values[scoreboard.CONNECTIONS], scene.lot.head_bytes)
    for reason in (reasons.EVICTED, reasons.CLIENT):
        scene.lot.close(connection, reason)
    assert b"" == client.recv(1)
    assert (0, 0, 0) == (scene.lot.live, scene.row.values[scoreboard.CONNECTIONS], scene.lot.head_bytes)
    assert (1, 0) == tuple(scene.tally[scoreboard.CLOSED + reason] for reason in (reasons.EVICTED, reasons.CLIENT))
    assert ([], 0, -1) == (scene.lot.connections(), scene.listener.connections, connection.fileno())
    assert 0 == len(scene.lot.wheel)
    scene.lot.call(connection)
    turns()
    assert [] == scene.attended


def test_who_was_upgraded_is_told_of_the_end(scene: Scene) -> None:
    plain, upgraded = scene.connection()[0], scene.connection()[0]
    for event in (Event.BYTES, Event.HEAD, Event.UPGRADE):
        scene.lot.move(upgraded, event)
    scene.lot.close(plain, reasons.CLIENT)
    scene.lot.close(upgraded, reasons.DRAIN)
    assert [(upgraded, reasons.DRAIN)] == scene.ended


def test_who_stands_in_the_queue_and_is_closed_is_not_attended_to(scene: Scene) -> None:
    first, second = scene.connection()[0], scene.connection()[0]

    def attending(one: Connection) -> None:
        scene.lot.close(second, reasons.EVICTED)
        scene.lot.park(one, 600)

    scene.attending = attending
    scene.lot.call(first)
    scene.lot.call(second)
    turns()
    assert [first] == scene.attended


def test_the_next_connection_of_a_descriptor_is_another(scene: Scene) -> None:
    first, _ = scene.connection()
    descriptor = first.fileno()
    scene.lot.close(first, reasons.CLIENT)
    second, client = scene.connection()
    assert {descriptor, second.fileno()} & {descriptor}
    client.send(b"a")
    until(lambda: scene.attended)
    assert second is scene.attended[0]


def test_places_of_a_client_are_given_back(scene: Scene) -> None:
    first, second = scene.connection()[0], scene.connection()[0]
    scene.listener.uses["127.0.0.1"] = 2
    scene.lot.close(first, reasons.CLIENT)
    assert {"127.0.0.1": 1} == scene.listener.uses
    scene.lot.close(second, reasons.CLIENT)
    assert {} == scene.listener.uses


def test_states_are_counted_as_they_change(scene: Scene) -> None:
    connection, _ = scene.connection()
    assert 1 == scene.counted(State.ACCEPTED)
    for event in (Event.BYTES, Event.BYTES, Event.HEAD):
        scene.lot.move(connection, event)
    assert (0, 0, 1) == tuple(scene.counted(state) for state in (State.ACCEPTED, State.READING_HEAD, State.RESPONDING))
    with pytest.raises(IllegalTransition):
        scene.lot.move(connection, Event.HANDSHAKE)
    assert State.RESPONDING == connection.state


def test_what_waits_with_connections_is_counted(scene: Scene) -> None:
    first, second = scene.connection()[0], scene.connection()[0]
    scene.lot.keep(first, b"12345")
    scene.lot.keep(second, b"123")
    assert 8 == scene.lot.head_bytes
    scene.lot.drop(first)
    scene.lot.drop(first)
    assert (3, None) == (scene.lot.head_bytes, first.pending)


def test_descriptors_beyond_the_table_make_it_grow(scene: Scene) -> None:
    connection, client = scene.connection()
    high = socket.socket(fileno=_socket.dup(connection.fileno()))
    descriptor = 3000
    os.dup2(high.fileno(), descriptor)
    high.close()
    far = Connection(_socket.socket(fileno=descriptor), "", scene.listener, 0)
    scene.lot.admit(far)
    scene.lot.close(connection, reasons.CLIENT)
    client.send(b"a")
    until(lambda: far in scene.attended)
    scene.lot.close(far, reasons.CLIENT)


def test_the_end_of_the_lot_ends_everybody_in_it(scene: Scene) -> None:
    connections = [scene.connection() for _ in range(3)]
    scene.lot.end()
    assert [b""] * 3 == [client.recv(1) for _, client in connections]
    assert 3 == scene.tally[scoreboard.CLOSED + reasons.KILLED]


# Reading and writing.


def test_a_read_that_fills_its_size_means_that_there_may_be_more(scene: Scene) -> None:
    connection, client = scene.connection()
    client.send(b"abcdef")
    assert (b"abc", READABLE) == (connection.receive(3), connection.edges & READABLE)
    assert (b"def", 0) == (connection.receive(100), connection.edges & READABLE)
    assert connection.receive(100) is None
    client.close()
    assert b"" == connection.receive(100)
    assert 6 == scene.lot.bytes_in


def test_bytes_that_nobody_has_read_are_counted(scene: Scene) -> None:
    connection, client = scene.connection()
    assert 0 == connection.unread()
    client.send(b"abc")
    assert 3 == connection.unread()
    scene.lot.close(connection, reasons.CLIENT)
    assert 0 == connection.unread()


def test_what_a_client_does_not_take_is_not_counted_as_sent(scene: Scene) -> None:
    connection, client = scene.connection()
    data = bytes(4_000_000)
    sent = connection.transmit(data)
    assert 0 < sent < len(data)
    assert sent == scene.lot.bytes_out
    assert 0 == connection.transmit(b"more")
    client.close()
    with pytest.raises(OSError, match="Broken pipe"):
        connection.transmit(b"more")


# Errands.


def test_what_is_left_for_later_begins_in_order_in_a_context_of_its_own(scene: Scene) -> None:
    done: list[Any] = []
    _left.set("by the test")

    def errand(number: int) -> None:
        done.append((number, _left.get("nothing")))
        _left.set("by another")
        gevent.sleep(0)
        if number == 1:
            raise RuntimeError("asked for")

    for number in range(3):
        scene.lot.later(errand, number)
    until(lambda: 3 == len(done))
    assert [(number, "nothing") for number in range(3)] == done
    scene.lot.later(done.append, "later still")
    until(lambda: "later still" in done)


def test_so_many_errands_at_most_are_run_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lots, "MOST_ERRANDS", 2)
    let_go = Signal()
    begun: list[int] = []

    def errand(number: int) -> None:
        begun.append(number)
        let_go.wait(PATIENCE)

    for number in range(4):
        scene.lot.later(errand, number)
    turns()
    assert [0, 1] == begun
    let_go.set()
    until(lambda: [0, 1, 2, 3] == begun)


def test_who_does_much_lets_others_have_their_turn(scene: Scene) -> None:
    others: list[int] = []
    gevent.spawn(others.append, 1)
    moment = scene.lot.breathe(0.0)
    assert moment == scene.lot.breathe(moment)
    assert [] == others
    scene._ahead += 1.0
    assert scene.lot.breathe(moment) > moment
    assert [1] == others


def test_the_loops_thread_is_known(scene: Scene) -> None:
    assert scene.lot.is_here()
    assert not gevent.get_hub().threadpool.apply(scene.lot.is_here)


def test_a_lot_is_known_until_it_ends(scene: Scene) -> None:
    assert scene.lot in lots.lots()
    scene.lot.end()
    assert scene.lot not in lots.lots()


def test_of_a_client_that_has_said_its_last_word_only_room_is_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    connection, _ = scene.connection()
    monkeypatch.setattr(scene.lot, "_rearm", lambda descriptor, events: asked.append(events))
    for flags in (0, SHORT_OF_ROOM, HALF_CLOSED, HALF_CLOSED | SHORT_OF_ROOM):
        connection.edges = flags
        scene.lot.rest(connection)
    assert [1, 3, 2] == asked
