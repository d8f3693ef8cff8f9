"""What `/ws` says and does, without a socket."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from structlog.testing import capture_logs

from longconn.channels.errors import ChannelsUnavailable
from longconn.channels.ports import History, Message, Position
from longconn.core.frames import CloseCode
from longconn.errors import ConnectionClosed
from longconn.identity import Identity
from service import logs
from service.model import Caller, Participant
from service.routes.channels import identity_of
from service.routes.credentials import Credentials
from service.routes.sockets import ChannelSocket
from service.services.channels import ChannelService
from tests.support.channels import HeldChannels

ANN = Participant("user-7", Caller(user_id=7, role="member"), token="t", expires_at=99.0)
GUEST = Participant("guest-x")


class Connection:
    """A connection that keeps what is sent."""

    id = "w1-5"
    user = "user-7"
    host = "192.0.2.1"
    path = "/ws"
    since = 100.0

    def __init__(self, who: Participant, channels: HeldChannels) -> None:
        self.identity: Identity | None = identity_of(who)
        self.channels: tuple[str, ...] = ()
        self.sent: list[Any] = []
        self._channels = channels

    def send(self, data: str | bytes | dict[str, Any]) -> None:
        assert isinstance(data, str)
        self.sent.append(json.loads(data))

    def join(self, channel: str, *, since: Position | str | None = None) -> History:
        assert not isinstance(since, str)
        if since is None:
            history = History((), complete=True, position=self._channels.position)
        else:
            history = self._channels.history(channel, since)
        self.channels += (channel,)
        return history

    def leave(self, channel: str) -> None:
        self.channels = tuple(each for each in self.channels if each != channel)


@pytest.fixture
def channels() -> HeldChannels:
    return HeldChannels()


@pytest.fixture
def socket(channels: HeldChannels) -> ChannelSocket:
    nobody: Any = None
    return ChannelSocket(ChannelService(channels, message_limit=1000), Credentials(nobody, nobody, nobody))


@pytest.fixture
def conn(channels: HeldChannels) -> Connection:
    return Connection(ANN, channels)


def answer(socket: ChannelSocket, conn: Connection, command: Any) -> Any:
    socket.message(conn, command if isinstance(command, str | bytes) else json.dumps(command))
    return conn.sent[-1]


@pytest.mark.parametrize(("names_worker", "more"), [(False, {}), (True, {"worker": os.getpid()})])
def test_a_newcomer_is_told_who_it_is_taken_for(conn: Connection, names_worker: bool, more: dict[str, int]) -> None:
    nobody: Any = None
    ChannelSocket(nobody, nobody, names_worker=names_worker).open(conn)
    assert [{"type": "welcome", "connection": "w1-5", "user": "user-7", **more}] == conn.sent


def test_a_connection_that_ended_meanwhile_is_no_fault(
    socket: ChannelSocket, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def over(*_: Any, **__: Any) -> None:
        raise ConnectionClosed(1001, "gone")

    monkeypatch.setattr(conn, "send", over)
    monkeypatch.setattr(conn, "join", over)
    with capture_logs() as logged:
        socket.message(conn, '{"type": "ping"}')
        socket.message(conn, '{"type": "subscribe", "channel": "orders"}')
    assert [] == logged


def test_a_subscription_begins_now(socket: ChannelSocket, conn: Connection, channels: HeldChannels) -> None:
    channels.publish("orders", "before")
    said = answer(socket, conn, {"type": "subscribe", "channel": "orders", "id": "a"})
    expected = {
        "type": "subscribed",
        "id": "a",
        "channel": "orders",
        "position": "5-1",
        "complete": True,
        "messages": 0,
    }
    assert (expected, ("orders",)) == (said, conn.channels)


def test_a_subscription_goes_on_where_it_was(socket: ChannelSocket, conn: Connection, channels: HeldChannels) -> None:
    for number in range(5):
        channels.publish("orders", str(number))
    said = answer(socket, conn, {"type": "subscribe", "channel": "orders", "since": "5-2"})
    assert (3, True) == (said["messages"], said["complete"])


def test_a_subscription_that_lost_something_says_so(
    socket: ChannelSocket, conn: Connection, channels: HeldChannels
) -> None:
    channels.complete = False
    said = answer(socket, conn, {"type": "subscribe", "channel": "orders", "since": "4-2"})
    assert said["complete"] is False


def test_a_subscription_may_begin_with_the_newest_messages(
    socket: ChannelSocket, conn: Connection, channels: HeldChannels
) -> None:
    for number in range(5):
        channels.publish("orders", str(number))
    assert 2 == answer(socket, conn, {"type": "subscribe", "channel": "orders", "recent": 2})["messages"]


def test_what_is_published_is_acknowledged_with_its_position(
    socket: ChannelSocket, conn: Connection, channels: HeldChannels
) -> None:
    said = answer(socket, conn, {"type": "publish", "channel": "orders", "data": {"n": 1}, "id": 17})
    assert {"type": "published", "id": 17, "channel": "orders", "position": "5-1"} == said
    assert '{"from":"user-7","data":{"n":1}}' == channels.messages[0].data


def test_a_ping_is_answered(socket: ChannelSocket, conn: Connection) -> None:
    assert {"type": "pong"} == answer(socket, conn, {"type": "ping"})
    assert {"type": "pong", "id": 0} == answer(socket, conn, {"type": "ping", "id": 0})


def test_who_leaves_a_channel_is_told(socket: ChannelSocket, conn: Connection) -> None:
    answer(socket, conn, {"type": "subscribe", "channel": "orders"})
    assert {"type": "unsubscribed", "channel": "orders"} == answer(
        socket, conn, {"type": "unsubscribe", "channel": "orders"}
    )
    assert () == conn.channels
    assert 10006 == answer(socket, conn, {"type": "unsubscribe", "channel": "orders"})["code"]


@pytest.mark.parametrize(
    ("command", "code", "status", "detail"),
    [
        (b"{}", 10008, 415, "texts"),
        ("{", 10001, 400, "The message is not JSON"),
        ("[]", 10001, 400, "The message must be a JSON object"),
        ('{"type": "ping", "type": "ping"}', 10001, 400, "The message gives a name twice"),
        ("[" * 100_000, 10001, 400, "nests too deeply"),
        ({"type": "dance"}, 10001, 400, "/type must be one of"),
        ({"type": "ping", "id": {}}, 10001, 400, "/id must be"),
        ({"type": "ping", "id": "x" * 65}, 10001, 400, "/id must be"),
        ({"type": "ping", "id": 2**53}, 10001, 400, "/id must be"),
        ({"type": "ping", "id": -(10**23)}, 10001, 400, "/id must be"),
        ('{"type": "publish", "channel": "orders", "data": 1e999}', 10001, 400, "a number beyond"),
        ({"type": "publish", "channel": "orders", "data": 1, "event": "missed"}, 10001, 400, "/event must be none of"),
        ({"type": "subscribe", "channel": "user:8"}, 10004, 403, "another user's"),
        ({"type": "publish", "channel": "live", "data": 1}, 10004, 403, "Only the service"),
        ({"type": "publish", "channel": "orders", "data": "x" * 1000}, 10007, 413, "at most 1000 bytes"),
    ],
)
def test_what_cannot_be_done_is_an_error_with_a_code_of_the_registry(
    socket: ChannelSocket, conn: Connection, command: Any, code: int, status: int, detail: str
) -> None:
    said = answer(socket, conn, command)
    assert ("error", code, status) == (said["type"], said["code"], said["status"])
    assert detail in said["detail"]
    assert 1 == len(conn.sent)


def test_an_error_carries_the_id_of_its_command(socket: ChannelSocket, conn: Connection) -> None:
    said = answer(socket, conn, {"type": "publish", "channel": "orders", "id": "m1"})
    assert ("m1", [{"pointer": "/data", "detail": "is required"}]) == (said["id"], said["errors"])


def test_a_second_subscription_to_the_same_channel_is_refused(socket: ChannelSocket, conn: Connection) -> None:
    answer(socket, conn, {"type": "subscribe", "channel": "orders"})
    assert 10006 == answer(socket, conn, {"type": "subscribe", "channel": "orders"})["code"]


def test_one_connection_hears_so_many_channels_and_no_more(socket: ChannelSocket, conn: Connection) -> None:
    said = [answer(socket, conn, {"type": "subscribe", "channel": f"c{number}"}) for number in range(101)]
    assert ["subscribed"] * 100 + ["error"] == [each["type"] for each in said]


def test_while_channels_are_out_of_order_commands_fail_and_the_connection_goes_on(
    socket: ChannelSocket, conn: Connection, channels: HeldChannels
) -> None:
    channels.failure = ChannelsUnavailable("the storage is full")
    said = answer(socket, conn, {"type": "publish", "channel": "orders", "data": 1})
    assert (20010, 503, 1.0) == (said["code"], said["status"], said["retry_after"])
    assert "pong" == answer(socket, conn, {"type": "ping"})["type"]


def test_a_fault_of_ours_is_logged_and_not_told(
    socket: ChannelSocket, conn: Connection, channels: HeldChannels
) -> None:
    channels.failure = ZeroDivisionError("secret")
    with capture_logs() as logged:
        said = answer(socket, conn, {"type": "publish", "channel": "orders", "data": 1})
    assert 20000 == said["code"]
    assert "secret" not in json.dumps(said)
    assert ["unexpected error"] == [line["event"] for line in logged]


def test_a_message_of_a_channel_says_where_it_stands_and_who_said_it(socket: ChannelSocket) -> None:
    text = socket.encode(Message("orders", Position(5, 1), '{"from":"user-7","data":"é"}', "placed", "", 1.5))
    assert {
        "type": "message",
        "channel": "orders",
        "position": "5-1",
        "at": 1.5,
        "from": "user-7",
        "data": "é",
        "event": "placed",
    } == json.loads(text)


def test_who_missed_something_for_good_is_told(socket: ChannelSocket, conn: Connection) -> None:
    socket.missed(conn, "orders", Position(5, 9))
    assert [{"type": "missed", "channel": "orders", "position": "5-9"}] == conn.sent


def test_the_end_of_a_connection_is_a_line_in_the_log(socket: ChannelSocket, conn: Connection) -> None:
    logs.configure(level="info")
    with capture_logs() as logged:
        socket.close(conn, CloseCode.GOING_AWAY, "")
    (line,) = logged
    assert ("connection ended", "websocket", "w1-5", "user-7", "/ws", "192.0.2.1", 1001, None) == tuple(
        line[name] for name in ("event", "kind", "connection", "user", "path", "client", "code", "reason")
    )
    assert line["seconds"] > 0
    assert "1001" == repr(line["code"])  # a person reads the console
