"""Views that answer with event streams and long polls, on a server that cannot park: Flask's own test client."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from werkzeug.local import LocalProxy
from werkzeug.test import EnvironBuilder, TestResponse

from longconn.adapters.event_streams import event_stream, long_poll
from longconn.channels.errors import ChannelsUnavailable
from longconn.channels.hub import Channels
from longconn.channels.ports import HistoryLimits, Position
from longconn.core.event_stream import EventReader
from longconn.identity import Identity
from longconn.upgraded import HANDLED, Endpoint, UpgradedConnection
from tests.support.memory_broker import MemoryBroker
from tests.support.upgraded_scene import UpgradedScene, upgraded_scene


class Site:
    """An application with one view."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.channels = Channels(self.broker, history=HistoryLimits(count=5))
        self.app = Flask(__name__)
        self.app.extensions["longconn.channels"] = self.channels
        self.names: tuple[str, ...] = ("news",)
        self.options: dict[str, Any] = {}
        self.app.add_url_rule("/events", "events", lambda: event_stream(*self.names, **self.options))
        self.app.add_url_rule("/poll", "poll", lambda: long_poll(*self.names, **self.options))
        self.client = self.app.test_client()

    def get(self, path: str, **fields: str) -> TestResponse:
        return self.client.get(path, headers={name.replace("_", "-"): value for name, value in fields.items()})

    def events(self, path: str = "/events", **fields: str) -> list[str]:
        """The data of the first piece of the body."""
        response = self.get(path, **fields)
        assert 200 == response.status_code, response.get_data(as_text=True)
        events = EventReader().feed(next(self._pieces(response)))
        response.close()
        return [event.data for event in events]

    def poll(self, path: str = "/poll", **fields: str) -> dict[str, Any]:
        response = self.get(path, **fields)
        assert (200, "application/json") == (response.status_code, response.mimetype)
        found: dict[str, Any] = json.loads(b"".join(self._pieces(response)))
        return found

    @staticmethod
    def _pieces(response: TestResponse) -> Iterator[bytes]:
        return (piece for piece in response.response if isinstance(piece, bytes))


@pytest.fixture
def scene() -> Iterator[UpgradedScene]:
    with upgraded_scene() as made:
        yield made


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.channels.close()


def test_the_answer_is_an_event_stream_that_nobody_may_buffer_or_keep(site: Site) -> None:
    response = site.get("/events")
    fields = ("text/event-stream; charset=utf-8", "no-store", "no")
    assert fields == tuple(response.headers[name] for name in ("Content-Type", "Cache-Control", "X-Accel-Buffering"))
    assert None is response.headers.get("Content-Length")
    response.close()


def test_nobody_waits_for_the_whole_of_it_by_mistake(site: Site) -> None:
    with site.app.test_request_context():
        response = event_stream("news")
        with pytest.raises(RuntimeError, match="required the iterable to be a sequence"):
            response.get_data()


def test_a_head_alone_has_no_body(site: Site) -> None:
    assert b"" == site.client.head("/events").data


def test_a_client_begins_now(site: Site) -> None:
    site.channels.publish("news", "old")
    assert [] == site.events()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/events", {"Last_Event_ID": "18f-1"}),
        ("/events?last_event_id=18f-1", {}),
        ("/events?since=18f-1", {}),
        ("/events?since=18f-0", {"Last_Event_ID": "18f-1"}),
    ],
)
def test_a_client_says_where_it_was(site: Site, path: str, fields: dict[str, str]) -> None:
    for number in range(3):
        site.channels.publish("news", f"{number}")
    assert ["1", "2"] == site.events(path, **fields)


@pytest.mark.parametrize("since", ["earliest", "18f-1", Position(0x18F, 1)])
def test_an_application_may_say_where_new_clients_begin(site: Site, since: Position | str) -> None:
    for number in range(2):
        site.channels.publish("news", f"{number}")
    site.options = {"since": since}
    assert (["0", "1"] if since == "earliest" else ["1"]) == site.events()
    assert [] == site.events(Last_Event_ID="18f-2")


def test_a_last_id_that_nobody_understands_is_one_that_was_lost(site: Site) -> None:
    site.channels.publish("news", "old")
    assert ['{"channel":"news","position":"18f-1"}'] == site.events(Last_Event_ID="of another service")


def test_a_position_in_the_address_that_is_none_is_refused(site: Site) -> None:
    response = site.get("/events?since=yesterday")
    assert 400 == response.status_code
    assert "it looks like 18f2a3b4c5-17" in response.get_data(as_text=True)


@pytest.mark.parametrize("path", ["/events", "/poll"])
@pytest.mark.parametrize("names", [("two words",), ("x" * 201,), ("",)])
def test_a_channel_that_is_none_is_refused(site: Site, path: str, names: tuple[str, ...]) -> None:
    site.names = names
    assert 400 == site.get(path).status_code


@pytest.mark.parametrize("path", ["/events", "/poll"])
def test_the_channels_rules_are_asked(site: Site, path: str) -> None:
    asked: list[tuple[Any, str, str]] = []

    @site.channels.authorizes("news")
    def _decide(user: Any, channel: str, action: str) -> bool:
        asked.append((user, channel, action))
        return False

    site.options = {"user": LocalProxy(lambda: "ann")}
    response = site.get(path)
    assert (403, [("ann", "news", "subscribe")]) == (response.status_code, asked)
    assert "not allowed to subscribe to channel" in response.get_data(as_text=True)


def test_channels_that_are_out_of_order_are_the_services_fault(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ChannelsUnavailable("the folder is gone")

    monkeypatch.setattr(site.broker, "position", fail)
    assert 503 == site.get("/poll").status_code


def test_a_channel_that_is_named_twice_is_heard_once(site: Site) -> None:
    site.names = ("news", "news")
    site.channels.publish("news", "0")
    assert ["0"] == site.events("/events?since=earliest")


def test_a_stream_without_a_channel_is_a_mistake(site: Site) -> None:
    with site.app.test_request_context(), pytest.raises(TypeError, match="one channel at least"):
        event_stream()


def test_options_are_checked(site: Site) -> None:
    with site.app.test_request_context(), pytest.raises(ValueError, match="heartbeat=0"):
        event_stream("news", heartbeat=0)


# Long polls


def test_a_poll_gets_what_there_is(site: Site) -> None:
    for number in range(3):
        site.channels.publish("news", f"{number}")
    found = site.poll("/poll?since=18f-1")
    assert (["1", "2"], "18f-3", True) == (
        [message["data"] for message in found["messages"]],
        found["position"],
        found["complete"],
    )


def test_a_poll_that_does_not_want_to_wait_hears_where_the_channel_is(site: Site) -> None:
    site.channels.publish("news", "old")
    assert {"messages": [], "position": "18f-1", "complete": True} == site.poll("/poll?wait=0")


def test_a_poll_waits_for_as_long_as_it_is_told(site: Site) -> None:
    site.options = {"wait": 0.01}
    assert [] == site.poll()["messages"]


def test_polls_in_a_row_miss_nothing(site: Site) -> None:
    site.options = {"most": 2}
    for number in range(5):
        site.channels.publish("news", f"{number}")
    position, found = "earliest", []
    for _ in range(3):
        answer = site.poll(f"/poll?since={position}")
        position = answer["position"]
        found += [message["data"] for message in answer["messages"]]
    assert ["0", "1", "2", "3", "4"] == found


def test_a_poll_hears_when_messages_are_lost(site: Site) -> None:
    for number in range(9):
        site.channels.publish("news", f"{number}")
    assert not site.poll("/poll?since=18f-1")["complete"]


def test_a_poll_shows_a_message_as_the_application_describes_it(site: Site) -> None:
    site.options = {"describe": lambda message: {"said": message.data}}
    site.channels.publish("news", "a")
    assert [{"said": "a"}] == site.poll("/poll?since=earliest")["messages"]


def test_a_poll_waits_no_longer_than_its_credentials_are_good(site: Site) -> None:
    site.options = {"identity": Identity("ann", expires_at=time.time() + 0.01), "wait": 300.0}
    began = time.monotonic()
    assert [] == site.poll()["messages"]
    assert time.monotonic() - began < 100


@pytest.mark.parametrize("wait", ["soon", "-1", "nan", "inf"])
def test_a_wait_that_is_none_is_refused(site: Site, wait: str) -> None:
    assert 400 == site.get(f"/poll?wait={wait}").status_code


def test_an_answer_has_messages_within_reason(site: Site) -> None:
    with site.app.test_request_context(), pytest.raises(ValueError, match="from 1 to 1000"):
        long_poll("news", most=0)


# On the parking worker


def parked(site: Site, scene: UpgradedScene, path: str) -> tuple[Any, socket.socket]:
    """The connection of a request, handed over to its endpoint; and its client."""
    connection, client = scene.connection()
    made: list[Any] = []

    def upgrade(endpoint: Endpoint, head: bytes = b"") -> UpgradedConnection:
        connection.transmit(head)
        made.append(scene.upgrading.upgrade(connection, endpoint))
        return made[0]  # type: ignore[no-any-return]

    environ = {
        **EnvironBuilder(path, environ_base={"REMOTE_ADDR": "10.0.0.9"}).get_environ(),
        "longconn.upgrade": upgrade,
    }
    assert HANDLED is site.app(environ, None)  # type: ignore[arg-type]
    return made[0], client


def test_the_connection_of_a_stream_parks(site: Site, scene: UpgradedScene) -> None:
    site.channels.publish("news", "0")
    site.options = {"identity": Identity("ann", "t")}
    connection, client = parked(site, scene, "/events?since=earliest")
    head, _, body = client.recv(4096).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nDate: ")
    assert b"\r\nConnection: close\r\nCache-Control: no-store\r\n" in head
    assert b"retry: 3000\nid: 0-0\n\nid: 18f-1\ndata: 0\n\n" == body
    assert ("ann", "10.0.0.9", "/events", ("news",)) == (
        connection.user,
        connection.host,
        connection.path,
        connection.channels,
    )


def test_who_a_proxy_stands_for_outlives_the_request(site: Site, scene: UpgradedScene) -> None:
    site.options = {"user": LocalProxy(lambda: "ann")}
    assert str is type(parked(site, scene, "/events")[0].user)


def test_the_connection_of_a_poll_parks_until_there_is_an_answer(site: Site, scene: UpgradedScene) -> None:
    _, client = parked(site, scene, "/poll")
    site.channels.publish("news", "0")
    head, _, body = client.recv(4096).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nDate: ")
    assert f"Content-Length: {len(body)}".encode() in head
    assert "0" == json.loads(body)["messages"][0]["data"]


def test_a_stream_has_no_more_channels_than_its_client_can_come_back_to(site: Site) -> None:
    site.names = tuple(f"c{number}" for number in range(128))
    assert 200 == site.get("/events").status_code
    site.names = (*site.names, "one-more")
    response = site.get("/events")
    assert (400, True) == (response.status_code, "at most 128 channels" in response.get_data(as_text=True))
