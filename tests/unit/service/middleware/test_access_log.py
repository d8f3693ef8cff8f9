from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import flask
import gevent
import pytest
from structlog.testing import capture_logs
from werkzeug.test import EnvironBuilder

from longconn import HANDLED
from service import logs
from service.app import Service
from service.lifecycle import Checks, Lifecycle
from service.middleware.access_log import AccessLog
from service.middleware.recovery import Recovery
from service.middleware.request_id import RequestId
from service.middleware.trace import Tracing
from service.routes.health import create_blueprint
from tests.support.edge import serve


@pytest.fixture(autouse=True)
def _log_everything() -> None:
    logs.configure(level="debug")


def application(**views: Callable[[], Any]) -> Service:
    return serve([RequestId(), Tracing(), AccessLog(), Recovery()], **views)


def call(app: Service, path: str, *, chunks: int | None = None, **options: Any) -> list[bytes]:
    """Call the application as a server does: take `chunks` chunks (None: all), then close."""
    taken: list[bytes] = []
    body = app(EnvironBuilder(path, **options).get_environ(), lambda *_: lambda _: None)
    for chunk in body:
        if chunks is not None and len(taken) >= chunks:
            break
        taken.append(chunk)
    body.close()  # type: ignore[attr-defined]  # the application's bodies all have it
    return taken


def line_of(app: Service, path: str, **options: Any) -> dict[str, Any]:
    with capture_logs() as logged:
        call(app, path, **options)
    (line,) = [entry for entry in logged if entry["event"] == "request"]
    return dict(line)


def stream() -> flask.Response:
    def body() -> Iterator[bytes]:
        yield b"12345"
        yield b"678"

    return flask.Response(body())


def test_a_request_is_one_line_with_all_that_identifies_it() -> None:
    line = line_of(application(thing=lambda: "hello"), "/thing?secret=1", headers={"X-Request-ID": "abc"})
    assert ("GET", "/thing", "/thing", 200, 5, "abc", "info") == tuple(
        line[name] for name in ("method", "route", "path", "status", "bytes", "request_id", "log_level")
    )
    assert 32 == len(line["trace_id"])
    assert 0 <= line["latency_ms"] < 1000
    assert "aborted" not in line
    assert "secret" not in str(line)


def test_an_unknown_path_has_no_route() -> None:
    line = line_of(application(), "/other")
    assert (None, "/other", 404) == (line["route"], line["path"], line["status"])


def test_an_error_has_its_status() -> None:
    def broken() -> str:
        raise ValueError

    assert 500 == line_of(application(broken=broken), "/broken")["status"]


def test_the_line_is_not_written_before_the_last_byte_has_left() -> None:
    app = application(stream=stream)
    with capture_logs() as logged:
        body = app(EnvironBuilder("/stream").get_environ(), lambda *_: lambda _: None)
        chunks = [len(chunk) for chunk in body]
        assert [] == logged
        body.close()  # type: ignore[attr-defined]  # see above
    assert ([5, 3], 8) == (chunks, logged[0]["bytes"])


def test_a_stream_that_the_client_leaves_is_logged_with_what_it_took() -> None:
    line = line_of(application(stream=stream), "/stream", chunks=1)
    assert (5, True) == (line["bytes"], line["aborted"])


def test_a_chunk_that_could_not_be_sent_does_not_count() -> None:
    app = application(thing=lambda: "hello")
    with capture_logs() as logged:
        body = app(EnvironBuilder("/thing").get_environ(), lambda *_: lambda _: None)
        next(iter(body))
        body.close()  # type: ignore[attr-defined]  # the server gave up before it asked for more
    assert (0, True) == (logged[0]["bytes"], logged[0]["aborted"])


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_response_without_a_body_has_its_line_too(method: str) -> None:
    status = 200 if method == "HEAD" else 204
    line = line_of(application(thing=lambda: flask.Response("", status)), "/thing", method=method)
    assert (status, 0) == (line["status"], line["bytes"])
    assert "aborted" not in line


def test_a_body_that_breaks_off_has_its_line_and_is_closed() -> None:
    closed = []

    def broken() -> flask.Response:
        def body() -> Iterator[bytes]:
            try:
                yield b"123"
                raise ConnectionError
            finally:
                closed.append(True)

        return flask.Response(body())

    app = application(broken=broken)
    with capture_logs() as logged:
        body = app(EnvironBuilder("/broken").get_environ(), lambda *_: lambda _: None)
        with pytest.raises(ConnectionError):
            list(body)
        body.close()  # type: ignore[attr-defined]  # as every server does
    assert ([True], 3, True) == (closed, logged[0]["bytes"], logged[0]["aborted"])


def test_a_greenlet_that_is_killed_leaves_a_line_without_a_status() -> None:
    def killed() -> str:
        raise gevent.GreenletExit

    app = application(killed=killed)
    with capture_logs() as logged, pytest.raises(gevent.GreenletExit):
        call(app, "/killed")
    assert (None, True) == (logged[0]["status"], logged[0]["aborted"])


def test_closing_twice_writes_one_line() -> None:
    app = application(thing=lambda: "hello")
    with capture_logs() as logged:
        body: Any = app(EnvironBuilder("/thing").get_environ(), lambda *_: lambda _: None)
        list(body)
        body.close()
        body.close()
    assert 1 == len(logged)


def test_health_probes_are_logged_at_debug_only() -> None:
    app = application()
    app.register_blueprint(create_blueprint(Checks([]), Lifecycle()))
    assert "debug" == line_of(app, "/livez")["log_level"]


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        (0, "203.0.113.9", "127.0.0.1"),
        (1, "", "127.0.0.1"),
        (1, "203.0.113.9", "203.0.113.9"),
        (1, "198.51.100.7, 203.0.113.9", "203.0.113.9"),
        (2, "198.51.100.7, 203.0.113.9", "198.51.100.7"),
    ],
)
def test_the_client_is_whoever_stands_before_our_own_proxies(trusted: int, forwarded: str, client: str) -> None:
    app = serve([AccessLog(trusted_proxies=trusted)], thing=lambda: "")
    headers = {"X-Forwarded-For": forwarded}
    assert client == line_of(app, "/thing", headers=headers, environ_base={"REMOTE_ADDR": "127.0.0.1"})["client"]


def test_what_a_view_binds_to_the_context_is_not_in_the_next_requests_lines() -> None:
    import structlog

    def bind() -> str:
        structlog.contextvars.bind_contextvars(user="alice")
        return ""

    app = application(bind=bind, look=lambda: structlog.contextvars.get_contextvars())
    client = app.test_client()
    client.get("/bind")
    response = client.get("/look")
    assert response.json is not None
    assert {"request_id", "trace_id"} == response.json.keys()


def test_a_connection_that_is_handed_over_has_its_line_at_once_with_its_name() -> None:
    class Handing(flask.Response):
        def __call__(self, environ: Any, start_response: Any) -> Any:
            environ["longconn.upgrade"]("endpoint", b"head")
            return HANDLED

    app = application(socket=lambda: Handing(status=101))
    upgraded: list[Any] = []

    def upgrade(*arguments: Any) -> Any:
        upgraded.append(arguments)
        return SimpleNamespace(id="w1-5")

    with capture_logs() as logged:
        environ = EnvironBuilder("/socket", environ_overrides={"longconn.upgrade": upgrade}).get_environ()
        body = app(environ, lambda *_: lambda _: None)
    assert body is HANDLED  # by which the worker knows it
    (line,) = [entry for entry in logged if entry["event"] == "request"]
    assert (101, "w1-5", 0) == (line["status"], line["connection"], line["bytes"])
    assert "aborted" not in line
    assert [("endpoint", b"head")] == upgraded


def test_a_request_whose_connection_is_kept_names_none() -> None:
    app = application(thing=lambda: "hello")
    assert "connection" not in line_of(app, "/thing", environ_overrides={"longconn.upgrade": lambda *_: None})
