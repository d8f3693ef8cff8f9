"""Channels over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import flask
import pytest
from flask.testing import FlaskClient
from werkzeug.exceptions import BadRequest, Forbidden, ServiceUnavailable

from longconn.channels.errors import ChannelNameError, ChannelsUnavailable
from longconn.channels.ports import Position
from service.middleware.authentication import Authentication
from service.middleware.recovery import Recovery
from service.model import Participant, Role, User
from service.routes.channels import create_channels_blueprint
from service.routes.credentials import Credentials
from service.security.tickets import SpentInMemory, TicketSigner
from service.security.tokens import TokenSigner
from service.services.channels import ChannelService, describe
from tests.support.channels import HeldChannels
from tests.support.edge import serve
from tests.support.users import Everybody

SECRET = "a-secret-of-at-least-thirty-two-bytes"
NOW = datetime.now(UTC)
TOKENS = TokenSigner(SECRET, lifetime=600)
TICKETS = TicketSigner(SECRET, lifetime=30, spent=SpentInMemory())


def signed_in(number: int = 7, role: Role = "member") -> dict[str, str]:
    user = User(number, "Ann", "ann@example.com", role, version=1, created_at=NOW, updated_at=NOW)
    return {"Authorization": f"Bearer {TOKENS.issue(user)[0]}"}


@pytest.fixture
def channels() -> HeldChannels:
    return HeldChannels()


@pytest.fixture
def calls() -> list[Any]:
    return []


@pytest.fixture
def failures() -> list[Exception]:
    """What a stream or a poll ends with before it begins."""
    return []


@pytest.fixture
def client(channels: HeldChannels, calls: list[Any], failures: list[Exception]) -> FlaskClient:
    def called(*names: str, **options: Any) -> flask.Response:
        if failures:
            raise failures[0]
        calls.append((names, options))
        return flask.Response("stream")

    app = serve([Recovery(), Authentication(TOKENS)])
    service, credentials = ChannelService(channels, message_limit=1000), Credentials(TOKENS, TICKETS, Everybody())
    app.register_blueprint(create_channels_blueprint(service, credentials, event_stream=called, long_poll=called))
    return app.test_client()


def test_a_message_is_published_and_its_position_told(client: FlaskClient, channels: HeldChannels) -> None:
    body = {"data": {"n": 1}, "event": "placed", "key": "k"}
    response = client.post("/api/v1/channels/orders/messages", json=body, headers=signed_in())
    assert (201, {"channel": "orders", "position": "5-1"}) == (response.status_code, response.get_json())
    (message,) = channels.messages
    assert ("orders", '{"from":"user-7","data":{"n":1}}', "placed", "k") == (
        message.channel,
        message.data,
        message.event,
        message.key,
    )


def test_the_history_holds_what_was_published(client: FlaskClient, channels: HeldChannels) -> None:
    for number in range(3):
        client.post("/api/v1/channels/orders/messages", json={"data": number}, headers=signed_in())
    answer = client.get("/api/v1/channels/orders/history?since=5-1", headers=signed_in()).get_json()
    assert ([1, 2], "5-3", True) == (
        [each["data"] for each in answer["messages"]],
        answer["position"],
        answer["complete"],
    )
    last = client.get("/api/v1/channels/orders/history?limit=1", headers=signed_in()).get_json()["messages"]
    assert ["5-3"] == [each["position"] for each in last]


def test_a_history_that_lost_something_says_so(client: FlaskClient, channels: HeldChannels) -> None:
    channels.complete = False
    answer = client.get("/api/v1/channels/orders/history?since=4-9", headers=signed_in()).get_json()
    assert answer["complete"] is False


@pytest.mark.parametrize("name", ["demo:lobby", "a/b", "a/messages", "caf\xe9"])
def test_names_are_what_stands_in_the_path(client: FlaskClient, channels: HeldChannels, name: str) -> None:
    client.post(f"/api/v1/channels/{name}/messages", json={"data": 1}, headers=signed_in())
    assert [name] == [message.channel for message in channels.messages]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/channels/user:8/messages"),
        ("GET", "/api/v1/channels/user:8/messages"),
        ("GET", "/api/v1/channels/user:8/history"),
        ("GET", "/events/user:8"),
    ],
)
def test_anothers_channel_is_closed(client: FlaskClient, calls: list[Any], method: str, path: str) -> None:
    body = {"data": 1} if method == "POST" else None
    statuses = [
        client.open(path, method=method, headers=headers, json=body).status_code
        for headers in ({}, signed_in(), signed_in(8), signed_in(1, "admin"))
    ]
    assert [401, 403, 201 if method == "POST" else 200, 201 if method == "POST" else 200] == statuses


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("history?limit=0", "limit"),
        ("history?limit=1001", "limit"),
        ("history?limit=+5", "limit"),
        ("history?since=x", "since"),
        ("messages?since=x", "since"),
        ("messages?wait=61", "wait"),
        ("messages?wait=-1", "wait"),
        ("messages?wait=nan", "wait"),
        ("messages?wait=", "wait"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused_with_what_to_say(client: FlaskClient, path: str, word: str) -> None:
    response = client.get(f"/api/v1/channels/orders/{path}", headers=signed_in())
    assert 400 == response.status_code
    assert word in response.get_json()["detail"]


def test_while_channels_are_out_of_order_the_answer_says_when_to_try_again(
    client: FlaskClient, channels: HeldChannels
) -> None:
    channels.failure = ChannelsUnavailable("full")
    response = client.post("/api/v1/channels/orders/messages", json={"data": 1}, headers=signed_in())
    assert (503, 20010, "1") == (
        response.status_code,
        response.get_json()["code"],
        response.headers["Retry-After"],
    )


def test_a_stream_hears_the_channel_for_whoever_asked(client: FlaskClient, calls: list[Any]) -> None:
    ticket, _ = TICKETS.issue(Participant("guest-x"))
    assert 200 == client.get(f"/events/demo:lobby?ticket={ticket}").status_code
    ((names, options),) = calls
    assert (("demo:lobby",), "guest-x") == (names, options["identity"].user)
    assert 401 == client.get(f"/events/demo:lobby?ticket={ticket}").status_code


@pytest.mark.parametrize("path", ["/events/orders", "/api/v1/channels/orders/messages"])
def test_what_keeps_a_stream_from_beginning_has_a_code_of_the_registry(
    client: FlaskClient, failures: list[Exception], path: str
) -> None:
    codes = []
    for wrapped, cause in (
        (ServiceUnavailable(), ChannelsUnavailable("full")),
        (BadRequest(), ChannelNameError("no name")),
        (Forbidden("not you"), None),
    ):
        wrapped.__cause__ = cause
        failures[:] = [wrapped]
        codes.append(client.get(path, headers=signed_in()).get_json()["code"])
    assert [20010, 10001, 10004] == codes


def test_a_long_poll_waits_as_long_as_asked(client: FlaskClient, calls: list[Any]) -> None:
    client.get("/api/v1/channels/orders/messages?since=5-1&wait=2.5", headers=signed_in())
    client.get("/api/v1/channels/orders/messages", headers=signed_in())
    assert [(Position(5, 1), 2.5), (None, 25.0)] == [(options["since"], options["wait"]) for _, options in calls]


def test_a_long_poll_shows_messages_as_everything_else_does(client: FlaskClient, calls: list[Any]) -> None:
    client.get("/api/v1/channels/orders/messages", headers=signed_in())
    ((_, options),) = calls
    assert describe is options["describe"]
