"""Channels of a real service of two workers: who is let in, what reaches whom, what is logged, and who is sent away."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.support.gunicorn import ADMIN_TOKEN, RunningService, administrator, eventually, running_service

ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
REQUEST_TIMEOUT = 0.5


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    variables = {
        "web_concurrency": 2,
        "request_timeout": REQUEST_TIMEOUT,
        "message_rate": "20/second",
        "graceful_timeout": 4,
    }
    with running_service(tmp_path_factory.mktemp("channels"), **variables) as running:
        yield running


@pytest.fixture(scope="module")
def root(service: RunningService) -> Mapping[str, str]:
    return administrator(service)


def ticket(service: RunningService, headers: Mapping[str, str] = MappingProxyType({})) -> str:
    answer = service.request("POST", "/api/v1/tickets", headers=headers)
    assert 201 == answer.status
    return str(answer.json["ticket"])


def opened(service: RunningService, query: str = "", **options: Any) -> ClientConnection:
    client: ClientConnection = connect(f"ws://127.0.0.1:{service.port}/ws{query}", open_timeout=10, **options)
    return client


def heard(client: ClientConnection) -> Any:
    return json.loads(client.recv(timeout=10))


def said(client: ClientConnection, **command: Any) -> Any:
    client.send(json.dumps(command))
    return heard(client)


def on_each_worker(service: RunningService, stack: contextlib.ExitStack) -> list[ClientConnection]:
    """A guest's WebSocket on each worker."""
    found: dict[int, ClientConnection] = {}
    for _ in range(40):
        client = stack.enter_context(opened(service, f"?ticket={ticket(service)}"))
        found.setdefault(heard(client)["worker"], client)
        if len(found) == 2:
            return list(found.values())
    raise AssertionError(f"all on one worker: {found}")


def ending_of(client: ClientConnection) -> tuple[int, str]:
    with contextlib.suppress(ConnectionClosed):
        for _ in range(1_000):
            client.recv(timeout=10)
    assert client.close_code is not None, "it did not end"
    return client.close_code, client.close_reason or ""


def test_credentials_are_taken_from_wherever_a_client_can_put_them(
    service: RunningService, root: Mapping[str, str]
) -> None:
    token = root["Authorization"].removeprefix("Bearer ")
    ways: list[tuple[str, dict[str, Any]]] = [
        ("", {"additional_headers": root}),
        ("", {"additional_headers": {"Cookie": f"seawall_token={token}"}}),
        ("", {"subprotocols": [Subprotocol("seawall"), Subprotocol(f"bearer.{token}")]}),
        (f"?ticket={ticket(service, root)}", {}),
    ]
    for query, options in ways:
        with opened(service, query, **options) as client:
            welcome = heard(client)
            assert ("welcome", "user-1") == (welcome["type"], welcome["user"])
            assert client.subprotocol == ("seawall" if "subprotocols" in options else None)


def test_without_credentials_there_is_no_websocket_and_a_problem_says_why(service: RunningService) -> None:
    with pytest.raises(InvalidStatus) as caught:
        opened(service)
    problem = json.loads(caught.value.response.body or b"")
    assert (401, 10003) == (caught.value.response.status_code, problem["code"])


def test_a_ticket_holds_once_whichever_worker_is_asked(service: RunningService) -> None:
    text, statuses = ticket(service), []
    for _ in range(8):
        try:
            with opened(service, f"?ticket={text}"):
                statuses.append(101)
        except InvalidStatus as refusal:
            statuses.append(refusal.response.status_code)
    assert [101] + [401] * 7 == statuses


def test_the_admin_listener_has_none_of_it(service: RunningService) -> None:
    for path in ("/", "/ws", "/events/live", "/api/v1/channels/x/history"):
        assert 404 == service.get(path, ADMIN, admin=True).status
    assert 404 == service.get("/admin/connections", ADMIN).status


def test_what_is_published_on_one_worker_is_heard_on_both_in_order(service: RunningService) -> None:
    with contextlib.ExitStack() as stack:
        clients = on_each_worker(service, stack)
        for client in clients:
            assert "subscribed" == said(client, type="subscribe", channel="demo:pier")["type"]
        for number in range(15):
            clients[number % 2].send(json.dumps({"type": "publish", "channel": "demo:pier", "data": number}))
        for client in clients:
            messages = [heard(client) for _ in range(15 + (8 if client is clients[0] else 7))]
            numbers = [each for each in messages if each["type"] == "message"]
            assert sorted(range(15)) == sorted(each["data"] for each in numbers)
            positions = [int(each["position"].partition("-")[2]) for each in numbers]
            assert list(range(1, 16)) == positions


def test_a_post_reaches_websockets_and_streams_and_stays_in_the_history(
    service: RunningService, root: Mapping[str, str]
) -> None:
    with opened(service, additional_headers=root) as client, contextlib.closing(service.connect()) as connection:
        heard(client)
        said(client, type="subscribe", channel="orders")
        connection.request("GET", "/events/orders", headers=dict(root))
        stream = connection.getresponse()
        assert (200, "no") == (stream.status, stream.headers["X-Accel-Buffering"])
        eventually(lambda: 2 == service.get("/admin/connections?channel=orders", ADMIN, admin=True).json["total"])
        answer = service.post_json("/api/v1/channels/orders/messages", {"data": {"n": 1}, "event": "placed"}, root)
        position = answer.json["position"]
        message = heard(client)
        assert (201, position, {"n": 1}, "user-1", "placed") == (
            answer.status,
            *(message[name] for name in ("position", "data", "from", "event")),
        )
        event = dict(_event(stream))
        assert ("placed", position) == (event["event"], event["id"])
        assert {"from": "user-1", "data": {"n": 1}} == json.loads(event["data"])
    history = service.get("/api/v1/channels/orders/history", root).json
    assert ([{"n": 1}], position, True) == (
        [each["data"] for each in history["messages"]],
        history["position"],
        history["complete"],
    )


def _event(stream: http.client.HTTPResponse) -> Iterator[tuple[str, str]]:
    """The lines of the first event that has data."""
    lines: list[tuple[str, str]] = []
    while True:
        line = stream.readline().decode().rstrip("\n")
        if line:
            name, _, value = line.partition(": ")
            lines.append((name, value))
        elif any(name == "data" for name, _ in lines):
            yield from lines
            return
        else:
            lines = []


def test_a_long_poll_is_answered_by_the_next_message(service: RunningService, root: Mapping[str, str]) -> None:
    first = service.post_json("/api/v1/channels/polled/messages", {"data": 1}, root).json["position"]
    with contextlib.closing(service.connect()) as connection:
        connection.request("GET", f"/api/v1/channels/polled/messages?since={first}&wait=10", headers=dict(root))
        time.sleep(REQUEST_TIMEOUT + 0.2)  # longer than a request may take
        second = service.post_json("/api/v1/channels/polled/messages", {"data": 2}, root).json["position"]
        answer = json.loads(connection.getresponse().read())
    assert [("polled", "user-1", 2)] == [
        tuple(each[name] for name in ("channel", "from", "data")) for each in answer["messages"]
    ]
    assert ([second], second, True) == (
        [each["position"] for each in answer["messages"]],
        answer["position"],
        answer["complete"],
    )


def test_neither_a_websocket_nor_a_stream_is_struck_by_the_request_timeout(
    service: RunningService, root: Mapping[str, str]
) -> None:
    with opened(service, additional_headers=root) as client, contextlib.closing(service.connect()) as connection:
        connection.request("GET", "/events/live", headers=dict(root))
        stream = connection.getresponse()
        heard(client)
        time.sleep(REQUEST_TIMEOUT + 0.3)
        assert {"type": "pong", "id": 1} == said(client, type="ping", id=1)
        counters = [json.loads(dict(_event(stream))["data"])["data"] for _ in range(2)]
    assert [2, 2] == [len(each["workers"]) for each in counters]


def test_who_sends_too_much_is_sent_away(service: RunningService) -> None:
    # Without a limit, since this client reads nothing while its queue is full, not even the end.
    with opened(service, f"?ticket={ticket(service)}", max_queue=None) as client:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(100):
                client.send('{"type": "ping"}')
        assert 1008 == ending_of(client)[0]


def test_a_message_that_is_too_large_is_refused_and_one_beyond_every_limit_ends_the_connection(
    service: RunningService,
) -> None:
    with opened(service, f"?ticket={ticket(service)}") as client:
        heard(client)
        assert 10007 == said(client, type="publish", channel="demo:lobby", data="x" * 65_530)["code"]
        client.send(json.dumps({"type": "publish", "channel": "demo:lobby", "data": "x" * 80_000}))
        assert 1009 == ending_of(client)[0]


def test_an_operator_sends_away_whom_they_choose_on_every_worker(service: RunningService) -> None:
    with contextlib.ExitStack() as stack:
        clients = on_each_worker(service, stack)
        for client in clients:
            said(client, type="subscribe", channel="demo:beach")
        listed = service.get("/admin/connections?channel=demo:beach", ADMIN, admin=True).json
        assert (2, sorted(service.workers), []) == (
            listed["total"],
            sorted(each["worker"] for each in listed["connections"]),
            listed["unreached"],
        )
        counts = service.get("/admin/connections/counts", ADMIN, admin=True).json
        assert 2 == counts["channels"]["demo:beach"]
        body = {"channel": "demo:beach", "code": 4001, "reason": "enough"}
        assert 2 == service.post_json("/admin/connections/kick", body, ADMIN, admin=True).json["kicked"]
        assert [(4001, "enough")] * 2 == [ending_of(client) for client in clients]
    (entry, *_) = service.get("/admin/audit", ADMIN, admin=True).json["entries"]
    if entry["action"] == "kick":  # each worker remembers what it was asked itself
        assert "connections channel demo:beach" == entry["target"]


def person(service: RunningService, root: Mapping[str, str], name: str, role: str) -> tuple[int, dict[str, str]]:
    """A new user, and the fields that sign them in."""
    members = {"name": name, "email": f"{name}@example.org", "role": role, "password": "correct horse battery"}
    number = service.post_json("/api/v1/users", members, root).json["id"]
    credentials = {"username": name, "password": "correct horse battery"}
    token = service.post_json("/api/v1/auth/token", credentials).json["access_token"]
    return number, {"Authorization": f"Bearer {token}"}


def test_a_user_who_is_removed_loses_their_connections_and_opens_no_more(
    service: RunningService, root: Mapping[str, str]
) -> None:
    user, fields = person(service, root, "eve", "member")
    before = ticket(service, fields)
    with opened(service, additional_headers=fields) as client:
        assert f"user-{user}" == heard(client)["user"]
        assert 204 == service.request("DELETE", f"/api/v1/users/{user}", headers={**root, "If-Match": "*"}).status
        assert (1008, "the user is gone") == ending_of(client)
    for query, options in (("", {"additional_headers": fields}), (f"?ticket={before}", {})):
        with pytest.raises(InvalidStatus) as caught:
            opened(service, query, **options)
        assert 401 == caught.value.response.status_code
    assert 401 == service.request("POST", "/api/v1/tickets", headers=fields).status
    assert 401 == service.get("/events/live", fields).status


def test_an_admin_who_is_one_no_longer_hears_what_is_others_no_longer(
    service: RunningService, root: Mapping[str, str]
) -> None:
    user, fields = person(service, root, "max", "admin")
    with opened(service, additional_headers=fields) as client:
        heard(client)
        assert "subscribed" == said(client, type="subscribe", channel="user:1")["type"]
        patch = {**root, "If-Match": "*", "Content-Type": "application/json"}
        answer = service.request("PATCH", f"/api/v1/users/{user}", b'{"role": "member"}', headers=patch)
        assert 200 == answer.status
        assert (1008, "the role of the user has changed") == ending_of(client)
    with opened(service, additional_headers=fields) as client:
        heard(client)
        assert 10004 == said(client, type="subscribe", channel="user:1")["code"]


def test_the_log_tells_of_a_connection_when_it_begins_and_when_it_ends(service: RunningService) -> None:
    with opened(service, f"?ticket={ticket(service)}") as client:
        name = heard(client)["connection"]

        def lines(event: str) -> list[dict[str, Any]]:
            return [each for each in service.events(event) if each.get("connection") == name]

        eventually(lambda: lines("request"))
        (begun,) = lines("request")
        assert (101, "/ws", "127.0.0.1") == (begun["status"], begun["route"], begun["client"])
        assert "ticket" not in json.dumps(begun)
        assert [] == lines("connection ended")
    eventually(lambda: lines("connection ended"))
    (ended,) = lines("connection ended")
    assert ("websocket", 1000, "/ws", "127.0.0.1", True) == (
        *(ended[field] for field in ("kind", "code", "path", "client")),
        ended["user"].startswith("guest-"),
    )


def test_a_stream_that_its_client_leaves_is_logged_too(service: RunningService, root: Mapping[str, str]) -> None:
    connection = service.connect()
    connection.request("GET", "/events/left", headers=dict(root))
    response = connection.getresponse()
    eventually(lambda: 1 == service.get("/admin/connections?channel=left", ADMIN, admin=True).json["total"])
    response.close()
    connection.close()
    ended = [("sse", "/events/left", "user-1")]
    eventually(
        lambda: (
            ended
            == [
                (each["kind"], each["path"], each["user"])
                for each in service.events("connection ended")
                if each["path"] == "/events/left"
            ]
        )
    )


def test_whoever_comes_back_after_a_reload_gets_what_they_missed(
    service: RunningService, root: Mapping[str, str]
) -> None:
    # Last: it replaces the workers.
    before = service.workers
    with opened(service, additional_headers=root) as client:
        heard(client)
        said(client, type="subscribe", channel="reloaded")
        client.send(json.dumps({"type": "publish", "channel": "reloaded", "data": 1}))
        assert {"published", "message"} == {heard(client)["type"], heard(client)["type"]}
        service.signal(signal.SIGHUP)
        assert 1012 == ending_of(client)[0]
    since = service.get("/api/v1/channels/reloaded/history", root).json["position"]
    service.post_json("/api/v1/channels/reloaded/messages", {"data": 2}, root)
    eventually(lambda: not set(before) & set(service.workers) and len(service.workers) == 2, within=20)
    with opened(service, additional_headers=root) as client:
        heard(client)
        client.send(json.dumps({"type": "subscribe", "channel": "reloaded", "since": since}))
        missed, answer = heard(client), heard(client)
    assert (2, 1, True) == (missed["data"], answer["messages"], answer["complete"])
