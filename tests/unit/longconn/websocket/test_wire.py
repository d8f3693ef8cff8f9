"""How messages of channels reach WebSockets: once encoded, to each in order, history before what is new."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from longconn import scoreboard
from longconn.channels.errors import ChannelForbidden, ChannelNameError
from longconn.channels.hub import Channels
from longconn.channels.lmdb_broker import LmdbBroker
from longconn.channels.ports import Message, Position
from longconn.core.deflate import negotiate
from longconn.core.messages import MessageLimits, read
from longconn.errors import ConnectionClosed
from longconn.upgraded import HANDLING
from longconn.websocket.connection import WebSocketConnection
from longconn.websocket.endpoint import WebSocketEndpoint
from longconn.websocket.options import WebSocketOptions
from tests.support.upgraded_scene import UpgradedScene, upgraded_scene

FOREVER = float("inf")


class Silent:
    """Handlers that note nothing but what they missed."""

    def __init__(self) -> None:
        self.lost: list[tuple[str, Position]] = []

    def missed(self, conn: WebSocketConnection, channel: str, position: Position) -> None:
        self.lost.append((channel, position))


@pytest.fixture
def scene() -> Iterator[UpgradedScene]:
    with upgraded_scene() as made:
        yield made


@pytest.fixture
def channels(tmp_path: Path) -> Iterator[Channels]:
    made = Channels(LmdbBroker(tmp_path / "channels"))
    yield made
    made.close()


def message(data: str | bytes, number: int = 1, key: str = "") -> Message:
    """One of a channel."""
    return Message("a", Position(1, number), data, key=key)


def connections(
    scene: UpgradedScene, endpoint: WebSocketEndpoint, count: int, **known: Any
) -> tuple[list[Any], list[Any]]:
    """Connections of an endpoint, and their clients."""
    made = [scene.upgraded(endpoint, begin=lambda conn: endpoint.begin(conn, **known)) for _ in range(count)]
    return [conn for conn, _ in made], [client for _, client in made]


def heard(client: Any, count: int, *, inflate: bool = False) -> list[Any]:
    """So many events."""
    events: list[Any] = []
    reading = None
    client.setblocking(False)
    deadline = time.monotonic() + 5.0
    while len(events) < count:
        assert time.monotonic() < deadline
        try:
            data = client.recv(65_536)
        except BlockingIOError:
            gevent.sleep(0.001)
            continue
        some, reading = read(data, reading, MessageLimits(1 << 30, 1), masked=False, inflate=inflate)
        events += some
    return events


# The wire.


@pytest.mark.parametrize(("data", "event"), [("text", (1, "text")), (b"bytes", (2, b"bytes"))])
def test_a_message_is_written_to_all_and_counted(scene: UpgradedScene, data: Any, event: Any) -> None:
    endpoint = WebSocketEndpoint(object())
    conns, clients = connections(scene, endpoint, 5)
    wire = endpoint.wire
    assert 5 == wire.write(conns, 2, wire.encode(message(data)), message(data), FOREVER)
    assert [event] * 3 == [heard(client, 1)[0] for client in clients[2:]]
    assert 3 == scene.tally[scoreboard.messages_field("websocket out")]


def test_writing_stops_when_its_time_is_over_and_makes_progress(scene: UpgradedScene) -> None:
    endpoint = WebSocketEndpoint(object())
    conns, _ = connections(scene, endpoint, 50)
    wire = endpoint.wire
    assert 32 == wire.write(conns, 0, wire.encode(message("x")), message("x"), 0.0)
    assert 50 == wire.write(conns, 32, wire.encode(message("x")), message("x"), 0.0)


def test_those_that_have_ended_or_are_being_closed_are_passed_over(scene: UpgradedScene) -> None:
    endpoint = WebSocketEndpoint(object())
    conns, clients = connections(scene, endpoint, 4)
    conns[0].end("killed")
    conns[1].close(4000)
    clients[2].close()
    wire = endpoint.wire
    assert 4 == wire.write(conns, 0, wire.encode(message("x")), message("x"), FOREVER)
    assert [(1, "x")] == heard(clients[3], 1)
    assert [(8, (4000, ""))] == heard(clients[1], 1)
    assert not conns[2].alive


def test_what_is_not_taken_waits_for_each_by_itself(scene: UpgradedScene) -> None:
    endpoint = WebSocketEndpoint(object(), WebSocketOptions(overflow="conflate", queue_bytes=100))
    slow, slow_client = scene.upgraded(endpoint, begin=endpoint.begin, buffer=5000)
    (quick,), (quick_client,) = connections(scene, endpoint, 1)
    slow.send(b"x" * 20_000)
    for number in range(10):
        one = message(f"price {number}", key="price")
        endpoint.wire.write([slow, quick], 0, endpoint.wire.encode(one), one, FOREVER)
    assert 10 == len(heard(quick_client, 10))
    assert [(1, "price 9")] == heard(slow_client, 2)[1:]
    assert 0 == quick.queued


def test_the_application_says_how_a_message_looks(scene: UpgradedScene) -> None:
    class Shown:
        def encode(self, message: Message) -> Any:
            return {"data": message.data, "id": str(message.position)}

    endpoint = WebSocketEndpoint(Shown())
    conns, clients = connections(scene, endpoint, 1)
    endpoint.wire.write(conns, 0, endpoint.wire.encode(message("x")), message("x"), FOREVER)
    assert [(1, '{"data":"x","id":"1-1"}')] == heard(clients[0], 1)


def test_a_message_that_cannot_be_encoded_is_logged_and_nobody_hears_it(
    scene: UpgradedScene, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        def encode(self, message: Message) -> Any:
            raise RuntimeError("asked for")

    endpoint = WebSocketEndpoint(Failing())
    conns, _ = connections(scene, endpoint, 1)
    assert 1 == endpoint.wire.write(conns, 0, endpoint.wire.encode(message("x")), message("x"), FOREVER)
    assert ["A message of channel 'a' could not be encoded: nobody hears it"] == [
        record.getMessage() for record in caplog.records
    ]


def test_it_is_compressed_once_for_all_that_agreed_on_it(scene: UpgradedScene) -> None:
    endpoint = WebSocketEndpoint(object(), WebSocketOptions(compression=True))
    text = "long " * 1000
    deflation = negotiate("permessage-deflate")
    plain, plain_clients = connections(scene, endpoint, 1)
    conns, clients = connections(scene, endpoint, 2, deflation=deflation)
    encoded = endpoint.wire.encode(message(text))
    endpoint.wire.write([*plain, *conns], 0, encoded, message(text), FOREVER)
    assert encoded.frame(deflation) is encoded.frame(deflation)
    assert [(1, text)] == heard(plain_clients[0], 1)
    assert [(1, text)] * 2 == [heard(client, 1, inflate=True)[0] for client in clients]
    assert scene.lot.bytes_out < len(text) + 300


def test_what_was_missed_is_told_to_the_application(scene: UpgradedScene) -> None:
    handlers = Silent()
    endpoint = WebSocketEndpoint(handlers)
    (conn,), _ = connections(scene, endpoint, 1)
    endpoint.wire.missed(conn, "a", Position(1, 7))
    scene.until(lambda: handlers.lost)
    assert [("a", Position(1, 7))] == handlers.lost


# Channels.


def test_one_that_has_joined_hears_what_is_published(scene: UpgradedScene, channels: Channels) -> None:
    endpoint = WebSocketEndpoint(object(), None, channels)
    (conn, other), (client, _) = connections(scene, endpoint, 2)
    conn.join("news")
    assert (("news",), ()) == (conn.channels, other.channels)
    channels.publish("news", "first")
    channels.publish("news", {"n": 2})
    assert [(1, "first"), (1, '{"n":2}')] == heard(client, 2)
    assert 1 == channels.subscribers("news")


def test_what_came_before_is_sent_before_what_is_new(scene: UpgradedScene, channels: Channels) -> None:
    endpoint = WebSocketEndpoint(object(), None, channels)
    positions = [channels.publish("news", f"{number}") for number in range(5)]
    (conn,), (client,) = connections(scene, endpoint, 1)
    history = conn.join("news", since=positions[1])
    assert (True, positions[4]) == (history.complete, history.position)
    channels.publish("news", "5")
    assert [(1, f"{number}") for number in (2, 3, 4, 5)] == heard(client, 4)


def test_one_that_has_left_hears_nothing_more(scene: UpgradedScene, channels: Channels) -> None:
    endpoint = WebSocketEndpoint(object(), None, channels)
    (conn,), (client,) = connections(scene, endpoint, 1)
    for name in ("a", "b", "c"):
        conn.join(name)
    conn.leave("b")
    conn.leave("never joined")
    assert ("a", "c") == conn.channels
    channels.publish("b", "lost")
    channels.publish("c", "heard")
    assert [(1, "heard")] == heard(client, 1)


def test_one_that_has_ended_is_in_no_channel(scene: UpgradedScene, channels: Channels) -> None:
    endpoint = WebSocketEndpoint(object(), None, channels)
    (conn, other), (client, _) = connections(scene, endpoint, 2)
    for each in (conn, other):
        each.join("a")
        each.join("b")
    client.close()
    scene.until(lambda: not conn.alive)
    assert {"a": 1, "b": 1} == channels.counts()
    with pytest.raises(ConnectionClosed):
        conn.join("c")
    assert {"a": 1, "b": 1} == channels.counts()


def test_who_may_not_does_not_join(scene: UpgradedScene, channels: Channels) -> None:
    @channels.authorizes("private.*")
    def may(user: Any, channel: str, action: str) -> bool:
        return (user, action) == ("ada", "subscribe")

    endpoint = WebSocketEndpoint(object(), None, channels)
    (ada,), _ = connections(scene, endpoint, 1, user="ada")
    (eve,), _ = connections(scene, endpoint, 1, user="eve")
    ada.join("private.a")
    with pytest.raises(ChannelForbidden):
        eve.join("private.a")
    with pytest.raises(ChannelNameError):
        eve.join("")
    assert ((), 1) == (eve.channels, channels.subscribers("private.a"))


def test_connections_of_the_same_channels_share_their_names(scene: UpgradedScene, channels: Channels) -> None:
    endpoint = WebSocketEndpoint(object(), None, channels)
    (one, other), _ = connections(scene, endpoint, 2)
    for each in (one, other):
        each.join("a")
        each.join("a")
    assert one.channels is other.channels
    assert ("a",) == one.channels


def test_what_was_missed_is_told_after_what_the_application_is_doing(scene: UpgradedScene) -> None:
    gate = gevent.event.Event()

    class Busy(Silent):
        def message(self, conn: WebSocketConnection, data: Any) -> None:
            gate.wait(5)

    handlers = Busy()
    endpoint = WebSocketEndpoint(handlers)
    (conn,), (client,) = connections(scene, endpoint, 1)
    client.send(b"\x81\x80abcd")
    scene.until(lambda: conn.flags & HANDLING)
    endpoint.wire.missed(conn, "a", Position(1, 7))
    scene.turn()
    assert [] == handlers.lost
    gate.set()
    scene.until(lambda: handlers.lost)


@pytest.mark.parametrize("shown", [None, 7, {"n": object()}, gevent.Timeout()])
def test_one_that_joins_and_leaves_is_in_no_channel_whatever_became_of_its_history(
    scene: UpgradedScene, channels: Channels, shown: Any
) -> None:
    class Odd:
        def encode(self, message: Message) -> Any:
            if isinstance(shown, BaseException):
                raise shown
            return shown

    endpoint = WebSocketEndpoint(Odd(), None, channels)
    channels.publish("news", "old")
    (conn,), (client,) = connections(scene, endpoint, 1)
    assert 1 == len(conn.join("news", since="earliest").messages)
    client.close()
    scene.until(lambda: not conn.alive)
    assert {} == channels.counts()


def test_a_message_that_is_not_for_them_is_not_sent_and_not_logged(
    scene: UpgradedScene, channels: Channels, caplog: pytest.LogCaptureFixture
) -> None:
    class Choosy:
        def encode(self, message: Message) -> Any:
            return None if message.data == "secret" else message.data

    (conn,), (client,) = connections(scene, WebSocketEndpoint(Choosy(), None, channels), 1)
    conn.join("news")
    channels.publish("news", "secret")
    channels.publish("news", "open")
    assert [(1, "open")] == heard(client, 1)
    assert [] == caplog.messages


def test_what_is_published_while_the_history_is_encoded_comes_after_it(
    scene: UpgradedScene, channels: Channels
) -> None:
    class Slow:
        def encode(self, message: Message) -> Any:
            gevent.sleep(0.002)
            return message.data

    endpoint = WebSocketEndpoint(Slow(), None, channels)
    for number in range(3):
        channels.publish("news", f"{number}")
    (conn,), (client,) = connections(scene, endpoint, 1)
    publishing = gevent.spawn_later(0.001, channels.publish, "news", "new")
    history = conn.join("news", since="earliest")
    publishing.join()
    assert [(1, "0"), (1, "1"), (1, "2"), (1, "new")] == heard(client, 4)
    assert history.complete


def test_one_that_comes_back_to_a_lost_position_is_told_what_it_missed(
    scene: UpgradedScene, channels: Channels
) -> None:
    handlers = Silent()
    endpoint = WebSocketEndpoint(handlers, None, channels)
    position = channels.publish("news", "0")
    (conn,), (client,) = connections(scene, endpoint, 1)
    assert not conn.join("news", since=Position(position.epoch - 1, 5)).complete
    assert [(1, "0")] == heard(client, 1)
    scene.until(lambda: handlers.lost)
    assert [("news", Position(position.epoch, 0))] == [tuple(each[-2:]) for each in handlers.lost]
