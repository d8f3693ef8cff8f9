"""Answers and news over one connection: the test is the server, at the other end of a socket pair."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hiredis
import pytest
import redis

from resilience.errors import StorageUnavailable
from resilience.storage.wire import Inquiry, Wire, command

PATIENCE = 10.0
"""For what always comes, however busy the machine."""
SHORT = 0.05

OK = b"+OK\r\n"


class Server:
    """What the test says and hears, on the connection that came last; also where the wire looks for its server."""

    def __init__(self) -> None:
        self.connections = 0
        self.refuses: Exception | None = None
        self.mistakes: list[str] = []
        self._arrived: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._ends: list[socket.socket] = []
        self._reader = hiredis.Reader()

    def connect(self) -> redis.connection.AbstractConnection:
        """What a wire is given to connect by."""
        self.connections += 1
        if self.refuses is not None:
            raise self.refuses
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE)
        self._ends.append(ours)
        self._arrived.put(ours)
        return Connected(theirs)

    def mistaken(self, message: str) -> str:
        """What the wire says when an error means another server."""
        self.mistakes.append(message)
        return message

    def accept(self) -> None:
        """Wait for a connection, and be polite."""
        self.end = self._arrived.get(timeout=PATIENCE)
        self._reader = hiredis.Reader()
        assert [b"HELLO", b"3"] == self.hear()
        assert [b"GREETING"] == self.hear()
        self.say(b"%1\r\n+proto\r\n:3\r\n" + OK)

    def hear(self) -> list[bytes]:
        """The next command."""
        while (heard := self._reader.gets()) is False:
            self._reader.feed(self.end.recv(65_536) or pytest.fail("the wire has hung up"))
        return list(heard)

    def say(self, answer: bytes) -> None:
        """Put bytes on the wire."""
        self.end.sendall(answer)

    def is_left(self) -> bool:
        """Whether the wire has closed the connection."""
        try:
            return not self.end.recv(1)
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Close what there is."""
        for end in self._ends:
            end.close()


class Connected(redis.connection.Connection):
    """A connection of redis-py that is one already."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sock = connected  # type: ignore[assignment]


class Ears:
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.news: list[list[bytes]] = []
        self.changes: list[bool] = []
        self.has_ended = threading.Event()

    def greeting(self, timeout: float) -> Inquiry:
        return Inquiry(command(b"GREETING"), 1, timeout=timeout)

    def keeping_alive(self, timeout: float) -> Inquiry:
        return Inquiry(command(b"ALIVE"), 1, timeout=timeout)

    def heard(self, news: Sequence[Any]) -> None:
        self.news.append(list(news))

    def changed(self, *, hears: bool) -> None:
        self.changes.append(hears)

    def ended(self) -> None:
        self.has_ended.set()


@pytest.fixture
def server() -> Iterator[Server]:
    """The other end."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def ears() -> Ears:
    """Whoever is told."""
    return Ears()


@pytest.fixture
def wire(server: Server, ears: Ears) -> Iterator[Wire]:
    """A wire whose callers are in no hurry, and whose server has answered."""
    wire = Wire(server, ears, uri="redis://test", timeout=PATIENCE)
    wire.start()
    server.accept()
    yield wire
    wire.stop()
    assert ears.has_ended.wait(PATIENCE)


def inquiry(*words: bytes, count: int = 1, timeout: float = PATIENCE, **more: Any) -> Inquiry:
    return Inquiry(command(*words) if words else b"", count, timeout=timeout, **more)


def until(condition: Callable[[], bool]) -> None:
    """Return when it holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.001)


class Asking(threading.Thread):
    """A caller who waits; `outcome` is what it was answered, or what it was refused with."""

    def __init__(self, wire: Wire, asked: Inquiry) -> None:
        super().__init__(daemon=True)
        self._wire, self._asked = wire, asked
        self._outcome: list[Any] = []
        self.start()

    def run(self) -> None:
        try:
            self._outcome.append(self._wire.ask(self._asked))
        except StorageUnavailable as error:
            self._outcome.append(str(error))

    @property
    def outcome(self) -> Any:
        self.join(PATIENCE)
        return self._outcome[0]


def test_a_command_travels_as_an_array_of_words() -> None:
    assert b"*2\r\n$3\r\nGET\r\n$4\r\n\0\r\n\xff\r\n" == command(b"GET", b"\0\r\n\xff")


def test_every_answer_finds_its_caller(server: Server, wire: Wire) -> None:
    callers = []
    for word in (b"one", b"two", b"three"):
        callers.append(Asking(wire, inquiry(word)))
        assert [word] == server.hear()
    server.say(b"+first\r\n+sec")
    server.say(b"ond\r\n+third\r\n")
    assert [[b"first"], [b"second"], [b"third"]] == [caller.outcome for caller in callers]


def test_commands_of_one_inquiry_are_answered_together(server: Server, wire: Wire) -> None:
    caller = Asking(wire, Inquiry(command(b"GET", b"key") + command(b"TIME"), 2, timeout=PATIENCE))
    assert ([b"GET", b"key"], [b"TIME"]) == (server.hear(), server.hear())
    server.say(b"_\r\n*2\r\n$1\r\n1\r\n$1\r\n2\r\n")
    assert [None, [b"1", b"2"]] == caller.outcome


def test_news_are_heard_in_the_order_of_answers(server: Server, wire: Wire, ears: Ears) -> None:
    seen: list[int] = []
    caller = Asking(wire, inquiry(b"one", heed=lambda _asked: seen.append(len(ears.news))))
    assert [b"one"] == server.hear()
    message = b">3\r\n+message\r\n+channel\r\n+%d\r\n"
    server.say(message % 1 + message % 2 + OK + message % 3)
    assert [b"OK"] == caller.outcome
    assert [2] == seen
    until(lambda: 3 == len(ears.news))
    assert [b"message", b"channel", b"3"] == ears.news[-1]


def test_an_error_that_concerns_one_caller_is_its_answer(server: Server, wire: Wire) -> None:
    asked = inquiry(b"one")
    caller = Asking(wire, asked)
    server.hear()
    server.say(b"-WRONGTYPE of value\r\n")
    assert 1 == len(caller.outcome)
    assert "WRONGTYPE of value" == asked.refusal
    assert 1 == server.connections


@pytest.mark.parametrize("error", ["READONLY no writes", "LOADING", "ERR script: OOM command not allowed", "NOAUTH"])
def test_a_server_that_is_in_no_state_to_help_is_left(server: Server, wire: Wire, ears: Ears, error: str) -> None:
    caller = Asking(wire, inquiry(b"one"))
    server.hear()
    server.refuses = ConnectionRefusedError("nobody there")
    server.say(b"-%b\r\n" % error.encode())
    assert error in caller.outcome
    assert server.is_left()
    until(lambda: [True, False] == ears.changes[:2])
    assert [error] == server.mistakes


def test_what_another_server_serves_is_asked_there(server: Server, wire: Wire) -> None:
    caller = Asking(wire, inquiry(b"one"))
    server.hear()
    server.say(b"-MOVED 7 host:1\r\n")
    server.accept()
    assert [b"one"] == server.hear()
    server.say(OK)
    assert [b"OK"] == caller.outcome
    assert ["MOVED 7 host:1"] == server.mistakes


def test_a_server_that_is_silent_is_waited_for_once(server: Server, ears: Ears) -> None:
    wire = Wire(server, ears, uri="redis://test", timeout=SHORT)
    wire.start()
    server.accept()
    wire.ask(inquiry(count=0))
    server.refuses = ConnectionRefusedError("nobody there")
    with pytest.raises(StorageUnavailable, match=r"redis://test did not answer"):
        wire.ask(inquiry(b"one", timeout=SHORT))
    until(lambda: wire.is_down)
    started = time.monotonic()
    for _ in range(100):
        with pytest.raises(StorageUnavailable, match=r"did not answer: (no answer within|nobody there)"):
            wire.ask(inquiry(b"one", timeout=PATIENCE))
    assert time.monotonic() - started < PATIENCE / 2
    assert [True, False] == ears.changes
    server.refuses = None
    server.accept()
    until(lambda: [True, False, True] == ears.changes)
    assert not wire.is_down
    wire.stop()


def test_who_asks_while_the_first_connection_is_made_waits_for_it(server: Server, ears: Ears) -> None:
    wire = Wire(server, ears, uri="redis://test", timeout=PATIENCE)
    wire.start()
    caller = Asking(wire, inquiry(b"one"))
    server.accept()
    assert [b"one"] == server.hear()
    server.say(OK)
    assert [b"OK"] == caller.outcome
    wire.stop()


def test_a_server_that_cannot_greet_keeps_nobody_waiting(server: Server, ears: Ears) -> None:
    wire = Wire(server, ears, uri="redis://test", timeout=PATIENCE)
    wire.start()
    caller = Asking(wire, inquiry(b"one"))
    server.end = server._arrived.get(timeout=PATIENCE)
    server.say(b"-ERR unknown command 'HELLO'\r\n")
    assert "redis://test did not answer: ERR unknown command 'HELLO'" == caller.outcome
    wire.stop()


def test_what_nobody_has_asked_for_is_no_answer(server: Server, wire: Wire, ears: Ears) -> None:
    wire.ask(inquiry(count=0))
    server.refuses = ConnectionRefusedError("nobody there")
    server.say(OK)
    assert server.is_left()
    until(lambda: False in ears.changes)


def test_one_who_gave_up_is_not_asked_about_any_more(server: Server, wire: Wire, ears: Ears) -> None:
    """But whoever follows something looks as soon as there is an answer: one has been told that there is none."""
    wire.ask(inquiry(count=0))
    asked = inquiry(b"one", timeout=SHORT)
    with pytest.raises(StorageUnavailable, match="did not answer within"):
        wire.ask(asked)
    assert asked.withdrawn
    assert [b"one"] == server.hear()
    server.say(OK)
    until(lambda: [True, True] == ears.changes)
    assert 1 == server.connections


def test_a_silent_server_is_asked_whether_it_is_there(
    server: Server, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resilience.storage.wire._ALIVE_EVERY", SHORT)
    wire = Wire(server, ears, uri="redis://test", timeout=PATIENCE)
    wire.start()
    server.accept()
    for _ in range(3):
        assert [b"ALIVE"] == server.hear()
        server.say(OK)
    assert [True] == ears.changes
    wire.stop()


def test_a_wire_that_has_ended_refuses_at_once(server: Server, wire: Wire, ears: Ears) -> None:
    waiting = Asking(wire, inquiry(b"one"))
    server.hear()
    wire.stop()
    assert "redis://test did not answer: the connection was closed" == waiting.outcome
    assert ears.has_ended.wait(PATIENCE)
    with pytest.raises(StorageUnavailable, match="was closed"):
        wire.ask(inquiry(b"two"))
    assert server.is_left()


def test_without_threads_there_is_no_wire(server: Server, ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    wire = Wire(server, ears, uri="redis://test", timeout=PATIENCE)
    with pytest.raises(RuntimeError, match="new thread"):
        wire.start()
    assert (True, True) == (wire.ended, ears.has_ended.is_set())
