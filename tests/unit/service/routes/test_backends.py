from __future__ import annotations

import errno
import io
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask, g
from flask.testing import FlaskClient

from service.errors import BackendFailed, NotFound, PayloadTooLarge, ValidationFailed
from service.routes.backends import create_backends_blueprint
from service.services.backends import Backends
from service.services.ports import BackendResponse

ROOT = "/api/v1/backends/demo"


class Body:
    """Chunks that know whether somebody closed them."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = iter(chunks)
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        self.closed = True


class RecordingBackend:
    """Answers the same every time and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, str], bytes]] = []
        self.body: Any = Body(b"some ", b"thing")
        self.status = 200
        self.headers: tuple[tuple[str, str], ...] = (("Content-Type", "text/plain"),)

    def forward(self, method: str, target: str, headers: tuple[tuple[str, str], ...], body: bytes) -> BackendResponse:
        self.calls.append((method, target, dict(headers), body))
        return BackendResponse(self.status, self.headers, self.body)


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


@pytest.fixture
def app(backend: RecordingBackend) -> Flask:
    app = Flask(__name__)
    app.testing = True
    backends = Backends({"demo": backend})
    app.register_blueprint(create_backends_blueprint(backends, body_limit=10, stream_timeout=7, trusted_proxies=1))
    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_passes_on_method_target_headers_and_body(method: str, client: FlaskClient, backend: RecordingBackend) -> None:
    client.open(f"{ROOT}/a%2fb?q=%20", method=method, data=b"0123456789", headers={"X-Custom": "y"})

    ((called_method, target, headers, body),) = backend.calls
    assert (method, "/a%2fb?q=%20", b"0123456789") == (called_method, target, body)
    assert "y" == headers["X-Custom"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "/"),
        ("?x", "/?x"),
        ("/", "/"),
        ("/?x", "/?x"),
        ("/a//b/", "/a//b/"),
        ("/caf%C3%A9", "/caf%C3%A9"),
    ],
)
def test_redirects_nobody_to_a_host_that_the_caller_named(
    path: str, expected: str, client: FlaskClient, backend: RecordingBackend
) -> None:
    response = client.get(ROOT + path, headers={"Host": "evil.example"})

    assert [expected] == [target for _, target, _, _ in backend.calls]
    assert (200, None) == (response.status_code, response.headers.get("Location"))


@pytest.mark.parametrize(("name", "value"), [("HTTP_", "x"), ("HTTP_X Y", "x"), ("HTTP_X", "a\r\nHost: evil")])
def test_refuses_a_malformed_field_before_the_backend_is_asked(
    name: str, value: str, client: FlaskClient, backend: RecordingBackend
) -> None:
    with pytest.raises(ValidationFailed, match="header field"):
        client.get(f"{ROOT}/x", environ_overrides={name: value})

    assert [] == backend.calls


def test_does_not_guess_what_two_slashes_after_the_name_mean(client: FlaskClient, backend: RecordingBackend) -> None:
    assert 404 == client.get(f"{ROOT}//x").status_code
    assert [] == backend.calls


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_takes_no_other_method(method: str, client: FlaskClient) -> None:
    assert 405 == client.open(f"{ROOT}/x", method=method).status_code


def test_encodes_the_path_again_where_the_server_does_not_tell_it(
    client: FlaskClient, backend: RecordingBackend
) -> None:
    client.get(f"{ROOT}/caf%C3%A9 %25?q=%20", environ_overrides={"RAW_URI": None})

    assert "/caf%C3%A9%20%25?q=%20" == backend.calls[0][1]


def test_finds_its_path_below_a_mount_point(app: Flask, backend: RecordingBackend) -> None:
    mounted = {"SCRIPT_NAME": "/mounted/here", "RAW_URI": f"/mounted/%68ere{ROOT}/x"}
    app.test_client().get(f"{ROOT}/x", environ_overrides=mounted)

    assert "/x" == backend.calls[0][1]


def test_tells_how_the_request_arrived(client: FlaskClient, backend: RecordingBackend) -> None:
    client.get(
        f"{ROOT}/x",
        base_url="https://api.example",
        headers={"X-Forwarded-For": "invented, 203.0.113.9", "Authorization": "Bearer secret"},
    )

    headers = backend.calls[0][2]
    assert "203.0.113.9, 127.0.0.1" == headers["X-Forwarded-For"]
    assert ("https", "api.example") == (headers["X-Forwarded-Proto"], headers["X-Forwarded-Host"])
    assert not {"Authorization", "X-Request-ID", "traceparent", "Host"} & headers.keys()


def test_tells_request_id_and_trace_where_they_are_known(app: Flask, backend: RecordingBackend) -> None:
    @app.before_request
    def know() -> None:
        g.request_id = "id"
        g.trace = SimpleNamespace(traceparent="00-a-b-01", tracestate="v=1")

    app.test_client().get(f"{ROOT}/x", headers={"X-Request-ID": "theirs", "traceparent": "theirs"})

    headers = backend.calls[0][2]
    assert ("id", "00-a-b-01", "v=1") == (headers["X-Request-ID"], headers["traceparent"], headers["tracestate"])


def test_names_the_backends_that_there_are(client: FlaskClient) -> None:
    with pytest.raises(NotFound, match="no backend is named 'other'; configured: demo"):
        client.get("/api/v1/backends/other/x")


def test_refuses_a_path_that_leaves_the_backend(client: FlaskClient, backend: RecordingBackend) -> None:
    with pytest.raises(ValidationFailed):
        client.get(f"{ROOT}/%2e%2e/admin")
    assert [] == backend.calls


CHUNKED = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}


def test_takes_a_body_of_unknown_length_up_to_the_limit(client: FlaskClient, backend: RecordingBackend) -> None:
    client.post(f"{ROOT}/x", input_stream=io.BytesIO(b"0123456789"), environ_overrides=CHUNKED)

    assert b"0123456789" == backend.calls[0][3]


@pytest.mark.parametrize("size", [11, 12, 1000])
@pytest.mark.parametrize("declared", [True, False])
def test_refuses_a_body_that_is_too_large(
    size: int, declared: bool, client: FlaskClient, backend: RecordingBackend
) -> None:
    variables = {"CONTENT_LENGTH": str(size)} if declared else CHUNKED

    with pytest.raises(PayloadTooLarge, match="bodies of up to 10 bytes"):
        client.post(f"{ROOT}/x", input_stream=io.BytesIO(b"x" * size), environ_overrides=variables)
    assert [] == backend.calls


def test_never_passes_on_a_body_that_broke_off(client: FlaskClient, backend: RecordingBackend) -> None:
    variables = {"wsgi.input_terminated": True, "CONTENT_LENGTH": "9"}

    with pytest.raises(ValidationFailed, match="shorter than its Content-Length"):
        client.post(f"{ROOT}/x", input_stream=io.BytesIO(b"01234"), environ_overrides=variables)
    assert [] == backend.calls


def test_answers_what_the_backend_answered(client: FlaskClient, backend: RecordingBackend) -> None:
    backend.status = 418
    backend.headers = (("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Content-Length", "10"), ("Connection", "close"))

    response = client.get(f"{ROOT}/x")

    assert (418, b"some thing") == (response.status_code, response.data)
    assert [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Content-Length", "10")] == list(response.headers)


def test_hands_on_each_chunk_and_then_closes(client: FlaskClient, backend: RecordingBackend) -> None:
    response = client.get(f"{ROOT}/x")

    assert [b"some ", b"thing"] == list(response.iter_encoded())
    response.close()
    assert backend.body.closed


def test_closes_a_body_that_nobody_wants(client: FlaskClient, backend: RecordingBackend) -> None:
    client.head(f"{ROOT}/x").close()

    assert backend.body.closed


def test_breaks_the_connection_when_the_body_breaks_off(client: FlaskClient, backend: RecordingBackend) -> None:
    def broken() -> Iterator[bytes]:
        yield b"some "
        raise BackendFailed("no more")

    backend.body = broken()
    chunks = client.get(f"{ROOT}/x").iter_encoded()

    assert b"some " == next(chunks)
    with pytest.raises(ConnectionResetError) as caught:
        next(chunks)
    assert errno.ECONNRESET == caught.value.errno


class TestSending:
    def test_is_cut_off_in_the_end(self, client: FlaskClient) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            client.get(f"{ROOT}/x", environ_overrides={"gunicorn.socket": ours})
            assert 8 == self.seconds

            self.cut()

            assert b"" == theirs.recv(1)

    def test_is_not_cut_off_after_the_response_is_closed(self, client: FlaskClient) -> None:
        with socket.socket() as connection:
            response = client.get(f"{ROOT}/x", environ_overrides={"gunicorn.socket": connection})
            assert not self.killed

            response.close()

            assert self.killed

    @pytest.fixture(autouse=True)
    def _timer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.killed = False

        def spawn_later(seconds: float, function: Callable[[], None]) -> object:
            self.seconds, self.cut = seconds, function
            return SimpleNamespace(kill=kill)

        def kill(*, block: bool) -> None:
            self.killed = True

        monkeypatch.setattr("gevent.spawn_later", spawn_later)
