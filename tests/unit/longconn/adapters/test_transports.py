"""A connection that parks nowhere: one greenlet or thread attends to it, and its endpoint cannot tell the difference."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from longconn.adapters.transports import LoneWire, NoTransport, ask, bell_for, can_carry, carry, look_again
from longconn.channels.ports import Message, Position
from longconn.errors import ConnectionOver
from longconn.upgraded import Endpoint, UpgradedConnection, upgraded_connections

HEAD = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


class Recording(Endpoint):
    """Sends back what it receives, and notes what it is called for."""

    def __init__(self) -> None:
        self.notes: list[Any] = []
        self.reads = True
        self.ended = threading.Event()

    def readable(self, connection: UpgradedConnection) -> None:
        if not self.reads:
            self.notes.append("not read")
            return
        data = connection.receive()
        if data:
            connection.push(data)
        elif data == b"":
            connection.end("client")

    def deadline(self, connection: UpgradedConnection) -> None:
        self.notes.append("deadline")
        connection.push(b"deadline")

    def message(self, connection: UpgradedConnection, message: Any) -> None:
        connection.push(message)

    def drained(self, connection: UpgradedConnection) -> None:
        self.notes.append("drained")

    def closed(self, connection: UpgradedConnection, reason: str) -> None:
        self.notes.append(reason)
        self.ended.set()


class Carried:
    """A connection under way: `ours` is the client's end."""

    def __init__(self, endpoint: Endpoint, beside: Callable[[Carried], object] | None = None) -> None:
        self.endpoint = endpoint
        self.ours, self.theirs = socket.socketpair()
        self.ours.settimeout(10)
        self.upgraded: Any = None
        self.begun = threading.Event()
        self.answer: list[Any] = []
        self.thread = threading.Thread(target=self._carry, args=(beside,), daemon=True)

    def _carry(self, beside: Callable[[Carried], object] | None) -> None:
        environ = {"gunicorn.socket": self.theirs, "REMOTE_ADDR": "192.0.2.7", "REMOTE_PORT": "4711"}

        def began(upgraded: UpgradedConnection) -> None:
            self.upgraded = upgraded
            self.begun.set()

        with self.theirs, contextlib.suppress(SystemExit):
            self.answer += carry(
                environ,
                lambda status, fields: self.answer.append(status),
                self.endpoint,
                HEAD,
                began,
                None if beside is None else lambda: beside(self),
            )

    def exactly(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            received += self.ours.recv(count - len(received)) or pytest.fail(f"the end after {len(received)} bytes")
        return received


@contextlib.contextmanager
def carried(endpoint: Endpoint, beside: Callable[[Carried], object] | None = None) -> Iterator[Carried]:
    one = Carried(endpoint, beside)
    one.thread.start()
    try:
        assert HEAD == one.exactly(len(HEAD))
        assert one.begun.wait(10)
        yield one
    finally:
        one.ours.close()
        one.thread.join(10)
        assert not one.thread.is_alive()


def test_which_servers_give_connections_away() -> None:
    assert [True, True, True, False] == [
        can_carry(environ) for environ in ({"longconn.upgrade": 1}, {"gunicorn.socket": 1}, {"werkzeug.socket": 1}, {})
    ]
    with pytest.raises(NoTransport, match=r"gunicorn -k longconn\.worker\.ParkingWorker"):
        carry({}, lambda *_: None, Endpoint(), HEAD, lambda _: None)


def test_what_the_client_sends_reaches_the_endpoint() -> None:
    with carried(Recording()) as one:
        for data in (b"hello", b"x" * 300_000):
            one.ours.sendall(data)
            assert data == one.exactly(len(data))
        assert ("192.0.2.7", one.upgraded.host) == (one.upgraded.address[0], "192.0.2.7")
        assert one.upgraded in upgraded_connections()
    assert "client" == one.endpoint.notes[-1]  # type: ignore[attr-defined]
    assert ["101 Switching Protocols"] == one.answer
    assert one.upgraded not in upgraded_connections()
    assert not one.upgraded.alive


def test_deadlines_are_kept_and_can_be_moved() -> None:
    with carried(Recording()) as one:
        ask(one.upgraded, lambda: one.upgraded.wake_after(60))
        ask(one.upgraded, lambda: one.upgraded.wake_after(0.05))
        assert b"deadline" == one.exactly(8)


def test_other_threads_may_post_and_close() -> None:
    with carried(Recording()) as one:
        for number in range(100):
            one.upgraded.post_from_thread(b"%03d" % number)
        assert b"".join(b"%03d" % number for number in range(100)) == one.exactly(300)
        one.upgraded.kick()
        assert b"" == one.ours.recv(1)
    assert ["killed"] == one.endpoint.notes  # type: ignore[attr-defined]


def test_what_the_client_does_not_take_waits_and_arrives_whole() -> None:
    with carried(Recording()) as one:
        large = bytes(range(256)) * 20_000
        one.upgraded.post_from_thread(large)
        one.upgraded.post_from_thread(b"behind")
        assert large == one.exactly(len(large))
        assert b"behind" == one.exactly(6)
        ask(one.upgraded, lambda: None)
        assert ["drained"] == one.endpoint.notes  # type: ignore[attr-defined]


def test_an_endpoint_that_does_not_read_is_told_once_and_again_when_it_asks() -> None:
    endpoint = Recording()
    with carried(endpoint) as one:
        endpoint.reads = False
        one.ours.sendall(b"hello")
        while not endpoint.notes:
            ask(one.upgraded, lambda: None)
        for _ in range(50):
            ask(one.upgraded, lambda: None)
        assert ["not read"] == endpoint.notes
        endpoint.reads = True
        ask(one.upgraded, lambda: look_again(one.upgraded))
        assert b"hello" == one.exactly(5)


def test_an_endpoint_that_fails_ends_its_connection() -> None:
    class Failing(Recording):
        def message(self, connection: UpgradedConnection, message: Any) -> None:
            raise RuntimeError(message)

    with carried(Failing()) as one:
        one.upgraded.post_from_thread("broken")
        assert b"" == one.ours.recv(1)
    assert ["error"] == one.endpoint.notes  # type: ignore[attr-defined]


def test_a_server_that_ends_ends_its_connections() -> None:
    class Ending(Recording):
        def message(self, connection: UpgradedConnection, message: Any) -> None:
            raise SystemExit

    with carried(Ending()) as one:
        one.upgraded.post_from_thread("now")
        assert b"" == one.ours.recv(1)
    assert ["killed"] == one.endpoint.notes  # type: ignore[attr-defined]


def test_last_words_reach_a_client_that_still_sends() -> None:
    class Parting(Recording):
        def readable(self, connection: UpgradedConnection) -> None:
            connection.receive(1)
            connection.push(b"goodbye")
            connection.end()

    with carried(Parting()) as one:
        one.ours.sendall(b"x" * 100_000)
        assert b"goodbye" == one.exactly(7)
        assert b"" == one.ours.recv(1)


def test_beside_it_the_request_goes_on_and_both_come_to_their_end() -> None:
    answers = []

    def beside(one: Carried) -> None:
        bell = bell_for(one.upgraded)
        one.upgraded.here(bell.ring)
        bell.wait(10)
        bell_for(one.upgraded).wait(0.01)
        answers.append(ask(one.upgraded, lambda: threading.current_thread().name))
        with pytest.raises(ZeroDivisionError):
            ask(one.upgraded, lambda: 1 // 0)
        one.upgraded.post_from_thread(b"from beside")

    with carried(Recording(), beside) as one:
        assert b"from beside" == one.exactly(11)
        one.ours.sendall(b"hello")
        assert b"hello" == one.exactly(5)
    assert ["other connection"] == answers
    with pytest.raises(ConnectionOver):
        ask(one.upgraded, lambda: None)


def test_what_fails_beside_it_ends_it(recwarn: pytest.WarningsRecorder) -> None:
    endpoint = Recording()

    def beside(one: Carried) -> None:
        raise KeyError("beside")

    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(KeyError):
        carry(
            {"werkzeug.socket": theirs},
            lambda *_: None,
            endpoint,
            HEAD,
            lambda _: None,
            lambda: beside(None),  # type: ignore[arg-type]
        )
    assert ["killed"] == endpoint.notes


def test_a_client_that_is_gone_when_the_head_is_written_is_no_connection() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs, pytest.raises(OSError, match="Broken pipe"):
        carry({"werkzeug.socket": theirs}, lambda *_: None, Endpoint(), HEAD, lambda _: None)


class _Wire:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def encode(self, message: Message) -> Any:
        return f"<{message.data!r}>"

    def write(self, subscribers: Any, first: int, encoded: Any, message: Message, until: float) -> int:
        self.calls.append((subscribers, encoded, threading.current_thread().name))
        return len(subscribers)

    def missed(self, subscriber: Any, channel: str, position: Position) -> None:
        self.calls.append((subscriber, channel, position))


def test_messages_of_channels_are_written_where_their_connection_is_attended_to() -> None:
    wire = _Wire()
    lone = LoneWire(wire)
    message = Message("a", Position(1, 1), "text")
    with carried(Recording()) as one, carried(Recording()) as other:
        both = (one.upgraded, other.upgraded)
        assert 2 == lone.write(both, 1, lone.encode(message), message, 0.0)
        lone.missed(one.upgraded, "a", Position(1, 0))
        for each in both:
            ask(each, lambda: None)
        assert [((other.upgraded,), "<'text'>", other.thread.name), (one.upgraded, "a", Position(1, 0))] == sorted(
            wire.calls, key=lambda call: len(str(call[1]))
        )[::-1]


def test_a_greenlet_waits_without_a_lock() -> None:
    hub = gevent.get_hub()
    lot = SimpleNamespace(hub=hub, loop=hub.loop, is_here=lambda: True)
    parked: Any = SimpleNamespace(connection=SimpleNamespace(lot=lot))
    heard = []

    def wait(seconds: float | None) -> None:
        bell = bell_for(parked)
        bells.append(bell)
        bell.wait(seconds)
        heard.append(seconds)

    bells: list[Any] = []
    greenlets = [gevent.spawn(wait, seconds) for seconds in (None, 0.01, 5.0)]
    gevent.joinall(greenlets[1:2])
    assert [0.01] == heard
    for bell in bells * 2:  # nothing comes of it when nobody waits any more
        bell.ring()
    gevent.joinall(greenlets, timeout=5)
    assert [0.01, None, 5.0] == heard
    stopped = gevent.spawn(wait, None)
    gevent.idle()
    stopped.kill()
    bells[-1].ring()
    gevent.sleep(0.001)
    assert 3 == len(heard)


@pytest.mark.parametrize(("overflow", "written"), [("disconnect", 3), ("drop-oldest", 3)])
def test_what_others_write_counts_while_a_handler_is_at_work(overflow: str, written: int) -> None:
    endpoint = Recording()
    endpoint.queue_bytes, endpoint.overflow = 3_000, overflow
    came: list[int] = []
    with carried(endpoint) as one:
        lot = one.upgraded.connection.lot
        gate, busy = threading.Event(), threading.Event()
        lot.call_from_thread(busy.set)
        lot.call_from_thread(gate.wait, 5)
        assert busy.wait(5)
        for number in range(100):
            lot.write_from_thread(one.upgraded, 1_000, came.append, number)
        assert lot._unwritten <= 3_000  # all that is held
        gate.set()
        with contextlib.suppress(ConnectionOver):
            ask(one.upgraded, lambda: None)
    assert written == len(came)
    assert (list(range(3)) if overflow == "disconnect" else [97, 98, 99]) == came
    assert ("write timeout" in endpoint.notes) == (overflow == "disconnect")
