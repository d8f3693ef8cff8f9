"""A WebSocket over a real lot and a pair of sockets: what the application hears, and what the client sees."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from longconn import scoreboard
from longconn.channels.errors import PositionError
from longconn.core.deflate import negotiate
from longconn.core.frames import Opcode, encode_close, encode_frame
from longconn.core.messages import MessageLimits, Reading, read
from longconn.errors import ConnectionClosed
from longconn.identity import Identity
from longconn.upgraded import upgraded_connections
from longconn.websocket import endpoint as endpoints
from longconn.websocket.connection import WebSocketConnection
from longconn.websocket.endpoint import ChannelsMissing, WebSocketEndpoint
from longconn.websocket.options import WebSocketOptions
from tests.support.upgraded_scene import UpgradedScene, upgraded_scene

MASK = b"\x01\x02\x03\x04"


class Recorder:
    """Notes what it is called for, and does with each message what the test says."""

    def __init__(self, act: Callable[[WebSocketConnection, Any], object] | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.act = act

    def open(self, conn: WebSocketConnection) -> None:
        self.calls.append(("open",))

    def message(self, conn: WebSocketConnection, data: str | bytes) -> None:
        self.calls.append(("message", data))
        if self.act is not None:
            self.act(conn, data)

    def close(self, conn: WebSocketConnection, code: int, reason: str) -> None:
        self.calls.append(("close", code, reason))

    def drained(self, conn: WebSocketConnection) -> None:
        self.calls.append(("drained",))

    @property
    def ends(self) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == "close"]


class Side:
    """A WebSocket and its client."""

    def __init__(
        self, scene: UpgradedScene, handlers: Any, *, buffer: int = 0, around: Any = None, **options: Any
    ) -> None:
        self.scene = scene
        self.handlers = handlers
        known = {
            name: options.pop(name)
            for name in ("identity", "user", "arguments", "path", "address", "deflation")
            if name in options
        }
        self.endpoint = WebSocketEndpoint(handlers, WebSocketOptions(**options), around=around)
        self.conn, self.socket = scene.upgraded(
            self.endpoint, begin=lambda conn: self.endpoint.begin(conn, **known), buffer=buffer
        )
        self._inflates = known.get("deflation") is not None
        self._reading: Reading | None = None
        self._events: list[Any] = []

    def send(self, opcode: int, payload: bytes = b"") -> None:
        """Send a frame."""
        self.socket.send(encode_frame(opcode, payload, mask=MASK))

    def say(self, *texts: str) -> None:
        """Send messages, all at once."""
        self.socket.sendall(b"".join(encode_frame(1, text.encode(), mask=MASK) for text in texts))

    def say_goodbye(self, code: int = 1000, reason: str = "") -> None:
        """Send a close."""
        self.socket.send(encode_close(code, reason, mask=MASK))

    def hear(self) -> Any:
        """The next event from the server, an opcode and what it carries; None at the end."""
        limits = MessageLimits(1 << 30, 1)
        while not self._events:
            self.socket.setblocking(False)
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                gevent.sleep(0.001)
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._events, self._reading = read(data, self._reading, limits, masked=False, inflate=self._inflates)
        return self._events.pop(0)

    def heard(self) -> list[Any]:
        """All that comes until the end."""
        events = []
        while (event := self.hear()) is not None:
            events.append(event)
        return events

    def ended(self, *end: Any) -> None:
        """The application has been told so, once."""
        self.scene.until(lambda: self.handlers.ends)
        self.scene.turn()
        assert [("close", *end)] == self.handlers.ends
        assert not self.conn.alive


@pytest.fixture
def scene() -> Iterator[UpgradedScene]:
    with upgraded_scene() as made:
        yield made


def assert_counted(side: Side, reason: str) -> None:
    """Its connection is counted as closed for this reason, when the client has closed its side."""
    side.socket.close()
    side.scene.until(lambda: side.scene.tally[scoreboard.closed_field(reason)])


def echo(conn: WebSocketConnection, data: Any) -> None:
    """Send it back."""
    conn.send(data)


# What it is.


def test_it_says_who_it_is(scene: UpgradedScene) -> None:
    identity = Identity("ada", token="t1")
    before = time.time()
    side = Side(scene, Recorder(), identity=identity, arguments={"room": "a"}, path="/ws/a")
    conn = side.conn
    assert ("ada", identity, {"room": "a"}, "/ws/a", "127.0.0.1", "", ()) == (
        conn.user,
        conn.identity,
        dict(conn.arguments),
        conn.path,
        conn.address,
        conn.subprotocol,
        conn.channels,
    )
    assert before - 0.001 <= conn.since <= time.time()
    assert conn.alive
    assert conn.state is None
    conn.state = {"anything": 1}
    assert {"anything": 1} == conn.state
    assert [("open",)] == side.handlers.calls


def test_no_two_have_the_same_id(scene: UpgradedScene) -> None:
    sides = [Side(scene, Recorder()) for _ in range(20)]
    assert 20 == len({side.conn.id for side in sides})


def test_the_address_behind_a_proxy_is_what_the_application_says(scene: UpgradedScene) -> None:
    assert "192.0.2.7" == Side(scene, Recorder(), address="192.0.2.7").conn.address


def test_connections_of_which_the_same_is_known_share_it(scene: UpgradedScene) -> None:
    endpoint = WebSocketEndpoint(Recorder())
    made = [
        scene.upgraded(endpoint, begin=lambda conn: endpoint.begin(conn, arguments={"room": "a"}))[0] for _ in range(2)
    ]
    assert made[0].about is made[1].about


def test_a_user_that_is_no_text_is_this_connections_alone(scene: UpgradedScene) -> None:
    endpoint = WebSocketEndpoint(Recorder())
    made = []
    for user in (1, True, [1]):
        begin = functools.partial(endpoint.begin, user=user)
        made.append(scene.upgraded(endpoint, begin=begin)[0])
    assert [int, bool, list] == [type(conn.user) for conn in made]


def test_all_that_live_are_listed(scene: UpgradedScene) -> None:
    sides = [Side(scene, Recorder()) for _ in range(3)]
    ours = {side.conn for side in sides}
    assert ours == ours & set(upgraded_connections())
    sides[0].socket.close()
    sides[0].ended(1006, "")
    assert ours - {sides[0].conn} == ours & set(upgraded_connections())


# Messages.


def test_messages_are_handed_over_in_order_and_answered(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(echo))
    side.say("one", "two")
    side.send(Opcode.BINARY, b"\x00three")
    assert [(1, "one"), (1, "two"), (2, b"\x00three")] == [side.hear() for _ in range(3)]
    assert [("open",), ("message", "one"), ("message", "two"), ("message", b"\x00three")] == side.handlers.calls
    assert [3, 3] == [scene.tally[scoreboard.messages_field(f"websocket {way}")] for way in ("in", "out")]


def test_nothing_is_kept_between_messages(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(echo))
    frame = encode_frame(1, b"in pieces", mask=MASK)
    side.socket.send(frame[:5])
    scene.until(lambda: side.conn.underway)
    side.socket.send(frame[5:])
    assert (1, "in pieces") == side.hear()
    assert side.conn.underway is None
    assert side.conn.flags < 256


def test_messages_of_one_come_one_at_a_time_while_others_go_on(scene: UpgradedScene) -> None:
    gate = gevent.event.Event()
    slow = Side(scene, Recorder(lambda conn, data: gate.wait(5)))
    quick = Side(scene, Recorder(echo))
    slow.say("one", "two")
    scene.until(lambda: ("message", "one") in slow.handlers.calls)
    quick.say("meanwhile")
    assert (1, "meanwhile") == quick.hear()
    assert ("message", "two") not in slow.handlers.calls
    gate.set()
    scene.until(lambda: ("message", "two") in slow.handlers.calls)


@pytest.mark.parametrize(
    ("data", "event"),
    [
        ("text ü", (1, "text ü")),
        (b"bytes", (2, b"bytes")),
        (bytearray(b"bytes"), (2, b"bytes")),
        (memoryview(b"bytes"), (2, b"bytes")),
        ({"a": [1, "ü"]}, (1, '{"a":[1,"ü"]}')),
        ([1, 2], (1, "[1,2]")),
    ],
)
def test_what_is_sent_is_text_bytes_or_json(scene: UpgradedScene, data: Any, event: tuple[int, Any]) -> None:
    side = Side(scene, Recorder())
    side.conn.send(data)
    assert event == side.hear()


def test_anything_else_is_not_sent(scene: UpgradedScene) -> None:
    with pytest.raises(TypeError, match="a message is text, bytes, a dict or a list, and this is of type int"):
        Side(scene, Recorder()).conn.send(7)


def test_a_message_from_a_thread_arrives(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder())
    gevent.get_hub().threadpool.apply(side.conn.send, ("from a thread",))
    assert (1, "from a thread") == side.hear()


def test_the_application_is_called_within_its_surroundings(scene: UpgradedScene) -> None:
    entered: list[str] = []

    @contextmanager
    def around() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    side = Side(scene, Recorder(), around=around)
    side.say("one")
    scene.until(lambda: 4 == len(entered))
    side.socket.close()
    side.ended(1006, "")
    assert ["in", "out"] * 3 == entered


def test_an_error_of_the_application_closes_with_1011(scene: UpgradedScene, caplog: pytest.LogCaptureFixture) -> None:
    def fail(conn: WebSocketConnection, data: Any) -> None:
        raise RuntimeError(data)

    side = Side(scene, Recorder(fail), path="/ws/a")
    side.say("secret", "not looked at any more")
    assert (8, (1011, "")) == side.hear()
    side.say_goodbye(1011)
    assert side.hear() is None
    side.ended(1011, "")
    assert [("open",), ("message", "secret"), ("close", 1011, "")] == side.handlers.calls
    assert ["A handler of the WebSocket /ws/a failed"] == [record.getMessage() for record in caplog.records]


def test_handlers_need_have_no_function_at_all(scene: UpgradedScene) -> None:
    side = Side(scene, object())
    side.say("nobody listens")
    side.say_goodbye()
    assert [(8, (1000, ""))] == side.heard()


def test_compression_is_used_where_it_was_agreed_on(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(echo), deflation=negotiate("permessage-deflate"), compression=True)
    side.say("short", "long " * 1000)
    assert [(1, "short"), (1, "long " * 1000)] == [side.hear() for _ in range(2)]
    assert scene.lot.bytes_out < 200


# Limits.


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (encode_frame(1, b"x" * 101, mask=MASK), 1009),
        (encode_frame(1, b"\xff", mask=MASK), 1007),
        (encode_frame(1, b"not masked"), 1002),
        (encode_frame(3, b"", mask=MASK), 1002),
    ],
)
def test_what_breaks_the_rules_is_closed_with_its_code(scene: UpgradedScene, data: bytes, code: int) -> None:
    side = Side(scene, Recorder(echo), message_bytes=100)
    side.say("before")
    side.socket.send(data + encode_frame(1, b"after", mask=MASK))
    assert [1, 8] == [event[0] for event in side.heard()]
    scene.until(lambda: side.handlers.ends)
    assert code == side.handlers.ends[0][1]
    assert ("message", "after") not in side.handlers.calls
    assert 1 == scene.tally[scoreboard.close_code_field(code)]


def test_all_incomplete_messages_together_are_bounded_and_the_largest_goes(
    scene: UpgradedScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "MOST_HELD", 50_000)
    before = endpoints._incomplete.held
    sides = [Side(scene, Recorder()) for _ in range(4)]
    for side, size in zip(sides, (10_000, 16_000, 12_000, 15_000), strict=True):
        side.socket.send(encode_frame(2, b"x" * 100_000, mask=MASK)[:size])
        scene.turn()
    assert (8, (1013, "too much is incomplete")) == sides[1].hear()
    sides[1].ended(1013, "too much is incomplete")
    assert [True, False, True, True] == [side.conn.alive for side in sides]
    for side in sides:
        side.socket.close()
    scene.until(lambda: not any(side.conn.alive for side in sides))
    assert before == endpoints._incomplete.held


def test_more_messages_than_allowed_are_refused(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(echo), messages_per_second="3/minute")
    side.say(*"abcde")
    assert [(1, "a"), (1, "b"), (1, "c"), (8, (1008, "too many messages"))] == [side.hear() for _ in range(4)]
    side.say_goodbye(1008)
    side.ended(1008, "too many messages")


def test_what_a_client_does_not_take_waits_and_arrives_whole(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(), buffer=5000)
    messages = [bytes([number]) * 40_000 for number in range(20)]
    for message in messages:
        side.conn.send(message)
    assert side.conn.queued > 700_000
    assert side.conn.queued == scene.tally[scoreboard.QUEUED_BYTES]
    assert [(2, message) for message in messages] == [side.hear() for _ in messages]
    scene.until(lambda: ("drained",) in side.handlers.calls)
    assert [0, 0] == [side.conn.queued, scene.tally[scoreboard.QUEUED_BYTES]]
    assert side.conn.underway is None


def test_who_does_not_read_is_sent_away_and_what_was_begun_arrives_whole(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(), buffer=5000, queue_bytes=50_000)
    for _ in range(4):
        if side.conn.goodbye is None:
            side.conn.send(b"x" * 40_000)
    assert (1013, "too slow") == side.conn.goodbye
    assert 1 == scene.tally[scoreboard.slow_field("disconnected")]
    with pytest.raises(ConnectionClosed) as raised:
        side.conn.send("more")
    assert (1013, "too slow") == (raised.value.reason, raised.value.message)
    assert [(2, b"x" * 40_000), (2, b"x" * 40_000), (8, (1013, "too slow"))] == [side.hear() for _ in range(3)]
    side.say_goodbye(1013)
    side.ended(1013, "too slow")


def test_the_oldest_are_dropped_where_that_was_chosen(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(), buffer=5000, queue_bytes=100, overflow="drop-oldest")
    side.conn.send(b"x" * 40_000)
    for number in range(50):
        side.conn.send(f"message {number:02}")
    side.conn.close()
    events = [side.hear() for _ in range(10)]
    assert [f"message {number:02}" for number in range(42, 50)] == [event[1] for event in events[1:-1]]
    assert 42 == scene.tally[scoreboard.slow_field("dropped")]


def test_a_value_takes_the_place_of_an_older_one_of_its_key(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(), buffer=5000, queue_bytes=100, overflow="conflate")
    side.conn.send(b"x" * 40_000)
    for number in range(50):
        side.conn.send(f"price {number}", key="price")
        side.conn.send(f"volume {number}", key="volume")
    assert [(1, "price 49"), (1, "volume 49")] == [side.hear() for _ in range(3)][1:]
    assert 98 == scene.tally[scoreboard.slow_field("conflated")]


# Pings.


def test_a_ping_is_answered_with_what_it_carries(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(echo))
    side.socket.send(b"".join(encode_frame(9, b"%d" % number, mask=MASK) for number in range(3)))
    side.say("and then")
    assert [(10, b"0"), (10, b"1"), (10, b"2"), (1, "and then")] == [side.hear() for _ in range(4)]


def test_pongs_that_are_not_taken_do_not_pile_up(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(), buffer=5000)
    side.conn.send(b"x" * 400_000)
    before = side.conn.queued
    for _ in range(50):
        side.socket.send(encode_frame(9, b"y" * 100, mask=MASK) * 100)
        scene.turn()
    assert side.conn.queued < before + 70_000


def test_a_client_is_pinged_and_lives_when_it_answers(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder())
    for _ in range(3):
        scene.pass_time(25.2)
        assert (9, b"") == side.hear()
        side.send(Opcode.PONG)
        scene.until(lambda: not side.conn.flags & 8)
        scene.pass_time(12.0)
    assert side.conn.alive


def test_any_message_is_as_good_as_a_pong(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(echo))
    scene.pass_time(25.2)
    assert (9, b"") == side.hear()
    side.say("here")
    assert (1, "here") == side.hear()
    scene.pass_time(11.0)
    assert side.conn.alive


def test_a_client_that_does_not_answer_is_given_up(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder())
    scene.pass_time(25.2)
    assert (9, b"") == side.hear()
    scene.pass_time(9.0)
    assert side.conn.alive
    scene.pass_time(1.5)
    assert [(8, (1011, "no answer to a ping"))] == side.heard()
    side.ended(1011, "no answer to a ping")
    assert_counted(side, "idle")


def test_a_client_that_takes_nothing_any_more_is_given_up(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder())
    scene.pass_time(25.2)
    scene.pass_time(10.5)
    side.ended(1006, "no answer to a ping")
    assert_counted(side, "idle")


def test_an_answer_that_has_arrived_and_not_been_read_counts(scene: UpgradedScene) -> None:
    gate = gevent.event.Event()
    side = Side(scene, Recorder(lambda conn, data: gate.wait(5)))
    side.say("takes long")
    scene.until(lambda: ("message", "takes long") in side.handlers.calls)
    side.conn.ping()
    side.send(Opcode.PONG)
    scene.pass_time(11.0)
    gate.set()
    scene.turn()
    scene.pass_time(1.0)
    scene.turn()
    assert side.conn.alive


def test_a_client_that_takes_what_waits_is_alive(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(), buffer=5000)
    side.conn.send(b"x" * 4_000_000)
    scene.pass_time(25.2)
    for _ in range(5):
        before = side.conn.queued
        side.socket.recv(200_000)
        scene.until(lambda before=before: side.conn.queued < before)  # type: ignore[misc]
        scene.pass_time(10.5)
    assert side.conn.alive
    scene.pass_time(10.5)
    assert not side.conn.alive


def test_no_pings_are_sent_where_none_are_wanted(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(), ping_interval=0)
    scene.pass_time(80_000)
    scene.turn()
    assert side.conn.alive
    side.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        side.socket.recv(1)


# Time.


def test_a_client_that_says_nothing_is_closed_where_that_was_chosen(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(echo), idle_timeout=60, ping_interval=0)
    scene.pass_time(50)
    side.say("here")
    assert (1, "here") == side.hear()
    scene.pass_time(50)
    assert side.conn.alive
    side.send(Opcode.PONG)
    scene.turn()
    scene.pass_time(11)
    assert (8, (1000, "idle")) == side.hear()
    side.say_goodbye()
    side.ended(1000, "idle")


def test_an_authorization_that_has_expired_closes_with_1008(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(), identity=Identity("ada", expires_at=time.time() + 0.05))
    scene.until(lambda: side.conn.goodbye)
    assert (8, (1008, "the authorization has expired")) == side.hear()
    side.say_goodbye(1008)
    side.ended(1008, "the authorization has expired")


def test_an_answer_to_a_ping_after_the_authorization_has_expired_does_not_prolong_it(
    scene: UpgradedScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    side = Side(scene, Recorder(), identity=Identity("ada", expires_at=now + 30))
    scene.pass_time(25.2)
    assert (9, b"") == side.hear()
    monkeypatch.setattr(time, "time", lambda: now + 31)
    side.send(Opcode.PONG)
    scene.until(lambda: side.conn.goodbye)
    assert (1008, "the authorization has expired") == side.conn.goodbye


def test_an_authorization_that_has_expired_before_it_begins_closes_at_once(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(), identity=Identity("ada", expires_at=time.time() - 5))
    scene.until(lambda: side.conn.goodbye)
    assert (1008, "the authorization has expired") == side.conn.goodbye


# Handlers that go wrong.


@pytest.mark.parametrize("name", ["open", "message", "close", "encode"])
def test_a_handler_that_nobody_would_await_is_refused(name: str) -> None:
    async def handler(*arguments: Any) -> None:
        pass

    with pytest.raises(TypeError, match=f"{name} is declared with `async def`"):
        WebSocketEndpoint(SimpleNamespace(**{name: handler}))


def test_a_timeout_that_leaves_a_handler_is_logged_and_closes_with_1011(
    scene: UpgradedScene, caplog: pytest.LogCaptureFixture
) -> None:
    def act(conn: WebSocketConnection, data: Any) -> None:
        with gevent.Timeout(0.001):
            gevent.sleep(5)

    side = Side(scene, Recorder(act))
    side.say("go")
    assert (8, (1011, "")) == side.hear()
    side.say_goodbye(1011)
    side.ended(1011, "")
    assert ["A handler of the WebSocket  failed"] == caplog.messages


def test_a_client_hears_of_the_end_whatever_ends_its_handler(scene: UpgradedScene) -> None:
    def act(conn: WebSocketConnection, data: Any) -> None:
        raise gevent.GreenletExit

    side = Side(scene, Recorder(act))
    with contextlib.suppress(gevent.GreenletExit):
        side.endpoint.message(side.conn, (side.handlers.message, "go"))
    assert (8, (1011, "")) == side.hear()
    side.socket.close()
    side.ended(1011, "")


def test_what_a_client_asks_wrongly_of_a_channel_is_told_to_it_and_is_no_fault(
    scene: UpgradedScene, caplog: pytest.LogCaptureFixture
) -> None:
    def act(conn: WebSocketConnection, data: Any) -> None:
        raise PositionError("not a position: " + "x" * 200)

    side = Side(scene, Recorder(act))
    side.say("go")
    assert (8, (1008, "not a position: " + "x" * 107)) == side.hear()
    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]


# The end.


def test_a_goodbye_of_the_client_is_answered_with_its_code(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder())
    side.say_goodbye(4321, "for a reason")
    assert [(8, (4321, ""))] == side.heard()
    side.ended(4321, "for a reason")
    assert_counted(side, "client")


def test_a_goodbye_without_a_code_is_answered_without_one(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder())
    side.send(Opcode.CLOSE)
    assert [(8, (1005, ""))] == side.heard()
    side.ended(1005, "")


def test_a_client_that_just_leaves_has_left_with_1006(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder())
    side.socket.close()
    side.ended(1006, "")


def test_a_close_comes_after_all_that_was_sent(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(), buffer=5000)
    side.conn.send(b"x" * 40_000)
    side.conn.send("last words")
    side.conn.close(4000, "done")
    assert side.conn.alive
    assert [2, 1, 8] == [side.hear()[0] for _ in range(3)]
    side.say_goodbye(4000)
    assert side.hear() is None
    side.ended(4000, "done")


def test_nothing_is_sent_after_a_close(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder())
    side.conn.close()
    for call in (lambda: side.conn.send("more"), side.conn.ping, lambda: side.conn.join("a")):
        with pytest.raises(ConnectionClosed):
            call()
    side.conn.close(4000)
    assert (1000, "") == side.conn.goodbye


def test_a_close_is_not_waited_for_for_ever(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder())
    side.conn.close(4000)
    scene.pass_time(4.0)
    assert side.conn.alive
    scene.pass_time(1.5)
    side.ended(4000, "")


def test_a_client_that_takes_its_time_gets_all_before_the_close(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(), buffer=5000)
    side.conn.send(b"x" * 2_000_000)
    side.conn.close(4000)
    for _ in range(3):
        before = side.conn.queued
        side.socket.recv(100_000)
        scene.until(lambda before=before: side.conn.queued < before)  # type: ignore[misc]
        scene.pass_time(5.5)
    assert side.conn.alive
    scene.pass_time(5.5)
    side.ended(4000, "")


@pytest.mark.parametrize(
    ("code", "reason"), [(1005, ""), (1006, ""), (999, ""), (5000, ""), (1010, ""), (1000, "x" * 124)]
)
def test_a_close_that_cannot_be_sent_is_refused(scene: UpgradedScene, code: int, reason: str) -> None:
    conn = Side(scene, Recorder()).conn
    with pytest.raises(ValueError, match=r"close code|reason"):
        conn.close(code, reason)
    assert conn.goodbye is None


def test_the_application_hears_of_the_end_after_what_it_is_doing(scene: UpgradedScene) -> None:
    gate = gevent.event.Event()
    handlers = Recorder()

    def wait(conn: WebSocketConnection, data: Any) -> None:
        gate.wait(5)
        handlers.calls.append(("done",))

    handlers.act = wait
    side = Side(scene, handlers)
    side.say("takes long")
    scene.until(lambda: ("message", "takes long") in handlers.calls)
    side.conn.end("killed")
    scene.turn()
    assert [] == handlers.ends
    gate.set()
    side.ended(1006, "")
    assert ("done",) == handlers.calls[-2]


def test_who_looks_after_the_service_may_send_a_client_away(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder())
    gevent.get_hub().threadpool.apply(side.conn.kick, (1008, "spam"))
    assert (8, (1008, "spam")) == side.hear()
    side.say_goodbye(1008)
    side.ended(1008, "spam")
    assert_counted(side, "killed")


@pytest.mark.parametrize(("replaced", "code"), [(True, 1012), (False, 1001)])
def test_when_the_worker_leaves_the_code_says_whether_another_takes_its_place(
    scene: UpgradedScene, replaced: bool, code: int
) -> None:
    side = Side(scene, Recorder())
    scene.lot.replaced = replaced
    scene.lot.leaving_window = 2.0
    side.conn.drain(20.0)
    scene.pass_time(2.2)
    assert (8, (code, "")) == side.hear()
    side.say_goodbye(code)
    side.ended(code, "")
    assert_counted(side, "drain")


def test_goodbyes_of_many_are_spread(scene: UpgradedScene) -> None:
    conn = Side(scene, Recorder()).conn
    scene.lot.leaving_window = 10.0
    moments = [conn.moment_to_leave(20.0) for _ in range(200)]
    assert min(moments) < 2.0 < 8.0 < max(moments) <= 10.0
    assert max(conn.moment_to_leave(3.0) for _ in range(50)) <= 3.0


def test_an_endpoint_without_channels_says_so(scene: UpgradedScene) -> None:
    with pytest.raises(ChannelsMissing, match="this endpoint has no channels"):
        Side(scene, Recorder()).conn.join("a")


def test_a_handler_that_blocks_keeps_its_client_from_nothing_that_is_due(scene: UpgradedScene) -> None:
    gate = gevent.event.Event()
    side = Side(scene, Recorder(lambda conn, data: gate.wait(5)), idle_timeout=30)
    side.say("takes long")
    scene.until(lambda: ("message", "takes long") in side.handlers.calls)
    scene.pass_time(25.2)
    assert (9, b"") == side.hear()
    side.send(Opcode.PONG)
    scene.pass_time(10.5)
    assert side.conn.goodbye is None
    side.conn.drain(10.0)
    scene.pass_time(10.2)
    assert (8, (1001, "")) == side.hear()
    gate.set()
    side.say_goodbye(1001)
    side.ended(1001, "")


def test_when_the_time_of_the_worker_is_over_that_is_said(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(), buffer=5000)
    side.conn.send(b"x" * 20_000)
    side.conn.send("this waits")
    side.conn.abandon()
    assert [2, 8] == [event[0] for event in side.heard()]
    side.ended(1001, "")


def test_an_application_that_speaks_to_a_client_that_has_left_is_not_at_fault(
    scene: UpgradedScene, caplog: pytest.LogCaptureFixture
) -> None:
    def speak(conn: WebSocketConnection, data: Any) -> None:
        conn.end("killed")
        conn.send("too late")

    side = Side(scene, Recorder(speak))
    side.say("hello")
    side.ended(1006, "")
    assert [] == caplog.records


def test_to_speak_to_another_client_that_has_left_is_a_fault(
    scene: UpgradedScene, caplog: pytest.LogCaptureFixture
) -> None:
    other = Side(scene, Recorder()).conn
    other.end("killed")
    side = Side(scene, Recorder(lambda conn, data: other.send(data)))
    side.say("hello")
    assert (8, (1011, "")) == side.hear()
    assert 1 == len(caplog.records)


def test_a_client_that_talks_and_takes_nothing_is_not_waited_for(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder(), buffer=5000)
    side.conn.send(b"x" * 1_000_000)
    side.conn.close(4000)
    side.send(Opcode.PONG)
    scene.turn()
    scene.pass_time(5.5)
    side.ended(4000, "")


def test_a_ping_does_not_put_the_goodbye_off(scene: UpgradedScene) -> None:
    side = Side(scene, Recorder())
    side.conn.drain(5.0)
    side.conn.ping()
    scene.pass_time(5.5)
    assert (1001, "") == side.conn.goodbye
