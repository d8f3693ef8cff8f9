from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.support.launched import Launched, launched, prepare_folder
from tests.support.scripted_server import Conversation, ScriptedServer

ROOT = "/api/v1/backends/shop"
VARIABLES = {
    "WEB_CONCURRENCY": "1",
    "BACKEND_CONNECTIONS": "2",
    "BACKEND_POOL_TIMEOUT": "0.5",
    "BACKEND_READ_TIMEOUT": "2",
    "BACKEND_STREAM_TIMEOUT": "4",
    "BACKEND_BODY_LIMIT": "100000",
    "BACKEND_FAIL_MAX": "1000",
}

CLOSE = True
Script = Callable[[Conversation], bool | None]
"""Answers one request; says `CLOSE` when the connection is to be closed then."""


class Shop:
    """A backend whose script each test writes."""

    def __init__(self) -> None:
        self.script: Script = answer()

    def __call__(self, conversation: Conversation) -> None:
        while conversation.read_request():
            if self.script(conversation):
                return


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop()


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[ScriptedServer]:
    with ScriptedServer(shop) as server:
        yield server


@pytest.fixture(scope="module")
def run(server: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    folder = prepare_folder(tmp_path_factory.mktemp("forwarding"))
    with launched(folder, {**VARIABLES, "BACKENDS__shop": f"{server.url}/base"}) as run:
        yield run


@pytest.fixture(scope="module")
def credentials(run: Launched) -> Mapping[str, str]:
    return run.sign_in()


@pytest.fixture
def raw(run: Launched, credentials: Mapping[str, str]) -> Iterator[Callable[..., socket.socket]]:
    """Sends a request and gives the connection to read from."""
    with contextlib.ExitStack() as stack:

        def send(method: str, path: str, *fields: str, body: bytes = b"") -> socket.socket:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", run.port), timeout=10))
            lines = [f"{method} {ROOT}{path} HTTP/1.1", "Host: api.example", *fields]
            lines += [f"{name}: {value}" for name, value in credentials.items()]
            connection.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
            return connection

        yield send


def answer(body: bytes = b"ok", *, status: str = "200 OK", headers: bytes = b"") -> Script:
    def script(conversation: Conversation) -> None:
        conversation.answer(body, status=status, headers=headers)

    return script


def read_until(connection: socket.socket, expected: bytes) -> bytes:
    data = b""
    while expected not in data:
        piece = connection.recv(65_536)
        if not piece:
            break
        data += piece
    return data


def test_path_query_and_fields_arrive_as_they_were_sent(
    run: Launched, shop: Shop, server: ScriptedServer, raw: Callable[..., socket.socket]
) -> None:
    shop.script = answer(headers=b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n")

    response = read_until(
        raw(
            "GET", "/a%2fb//c;d?q=%e9|x", "X-Custom: y", "Connection: X-Hop", "X-Hop: gone", "X-Forwarded-For: invented"
        ),
        b"ok",
    )

    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert 2 == response.count(b"Set-Cookie:")
    assert 1 == response.count(b"Date:") == response.count(b"Server:")
    request = server.requests[-1]
    assert "/base/a%2fb//c;d?q=%e9|x" == request.target
    assert (f"127.0.0.1:{server.port}", "y") == (request.header("Host"), request.header("X-Custom"))
    assert ("127.0.0.1", "api.example") == (request.header("X-Forwarded-For"), request.header("X-Forwarded-Host"))
    assert None is request.header("Authorization") is request.header("X-Hop") is request.header("Connection")
    assert request.header("X-Request-ID")
    assert f"X-Trace-Id: {(request.header('traceparent') or '')[3:35]}".encode() in response


def test_an_escape_from_the_base_path_is_refused(
    run: Launched, credentials: Mapping[str, str], server: ScriptedServer
) -> None:
    before = len(server.requests)

    for path in ("/../admin", "/%2e%2e/admin", "/..%2fadmin", "/%252e%252e/admin", "/..;/admin"):
        refused = run.ask("GET", ROOT + path, headers=credentials)
        assert (400, 10001) == (refused.status, refused.document["code"])
    assert 404 == run.ask("GET", f"{ROOT}/x%0d%0aSet-Cookie:%20y", headers=credentials).status

    assert before == len(server.requests)


def test_nobody_without_a_token_reaches_a_backend_or_learns_its_name(run: Launched) -> None:
    assert [401] * 4 == [
        run.ask("GET", f"/api/v1/backends/{name}").status for name in ("shop/x", "shop/", "shop", "other/x")
    ]


def test_an_unknown_backend_is_not_found(run: Launched, credentials: Mapping[str, str]) -> None:
    answer = run.ask("GET", "/api/v1/backends/other/x", headers=credentials)

    assert (404, 10002) == (answer.status, answer.document["code"])
    assert "configured: shop" in answer.document["detail"]


@pytest.mark.parametrize("chunked", [True, False])
def test_bodies_pass_up_to_the_limit_and_not_beyond(
    chunked: bool, run: Launched, shop: Shop, server: ScriptedServer, credentials: Mapping[str, str]
) -> None:
    shop.script = answer()
    for size, expected in ((100_000, 200), (100_001, 413), (3_000_000, 413)):
        body = b"x" * size
        coded = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
        headers = {**credentials, **({"Transfer-Encoding": "chunked"} if chunked else {})}
        with contextlib.suppress(ConnectionError):  # refused before all of it was sent
            assert expected == run.ask("POST", f"{ROOT}/x", body=coded if chunked else body, headers=headers).status
        assert size == 3_000_000 or expected == 413 or body == server.requests[-1].body


def test_a_head_request_gets_the_head_alone(run: Launched, shop: Shop, credentials: Mapping[str, str]) -> None:
    def script(conversation: Conversation) -> None:
        conversation.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nX-Kind: head\r\n\r\n")

    shop.script = script
    response = run.ask("HEAD", f"{ROOT}/x", headers=credentials)

    assert (200, b"", "1000", "head") == (
        response.status,
        response.body,
        response.header("Content-Length"),
        response.header("X-Kind"),
    )


def test_events_are_handed_on_as_they_happen(shop: Shop, raw: Callable[..., socket.socket]) -> None:
    gate = threading.Event()

    def script(conversation: Conversation) -> None:
        conversation.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        conversation.send(b"9\r\ndata: 1\n\n\r\n")
        assert gate.wait(5)
        conversation.send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    shop.script = script
    connection = raw("GET", "/events")

    assert read_until(connection, b"data: 1").endswith(b"data: 1\n\n\r\n")
    gate.set()
    assert read_until(connection, b"\r\n0\r\n\r\n").endswith(b"data: 2\n\n\r\n0\r\n\r\n")


def test_a_body_that_breaks_off_never_looks_complete(
    run: Launched, shop: Shop, raw: Callable[..., socket.socket]
) -> None:
    def script(conversation: Conversation) -> bool:
        conversation.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        return CLOSE

    shop.script = script
    response = read_until(raw("GET", "/x"), b"\r\n0\r\n\r\n")

    assert b"hello" in response
    assert not response.endswith(b"0\r\n\r\n")
    assert "Traceback" not in run.text


@pytest.mark.parametrize("patient", [False, True])
def test_callers_that_leave_or_stop_reading_give_their_connections_back(
    patient: bool, run: Launched, shop: Shop, credentials: Mapping[str, str], raw: Callable[..., socket.socket]
) -> None:
    def endless(conversation: Conversation) -> None:
        conversation.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            conversation.send(b"10000\r\n" + b"x" * 65_536 + b"\r\n")

    shop.script = endless
    callers = [raw("GET", "/endless") for _ in range(2)]
    for caller in callers:
        read_until(caller, b"x")
    assert (503, 20008) == (
        (saturated := run.ask("GET", f"{ROOT}/x", headers=credentials)).status,
        saturated.document["code"],
    )

    shop.script = answer()
    if not patient:
        for caller in callers:
            caller.close()
    deadline = time.monotonic() + 12
    while run.ask("GET", f"{ROOT}/x", headers=credentials).status != 200:
        assert time.monotonic() < deadline, "the connections are still held"
        time.sleep(0.1)

    assert 0 == run.circuit("shop")["failures"]
    assert "Traceback" not in run.text
