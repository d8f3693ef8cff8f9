"""Views that read and write one WebSocket and block, as with flask-sock."""

from __future__ import annotations

import logging
import queue
import select
import threading
import time
from typing import Any

import pytest
from flask import Blueprint, Flask, abort, g, request, url_for
from flask.signals import got_request_exception

from longconn.adapters import sock as adapter
from longconn.adapters.sock import NO_LIMIT, BlockingWebSocket, ConnectionClosed, Sock, read_options
from longconn.errors import LongConnError
from longconn.websocket.options import WebSocketOptions
from tests.support.dialled import dialled

Told = queue.Queue[Any]


@pytest.fixture
def app() -> Flask:
    return Flask("sock")


@pytest.fixture
def sock(app: Flask) -> Sock:
    return Sock(app)


@pytest.fixture
def told() -> Told:
    return queue.Queue()


def test_a_view_receives_and_sends(app: Flask, sock: Sock) -> None:
    @sock.route("/echo")
    def echo(ws: BlockingWebSocket) -> None:
        while True:
            ws.send(ws.receive())

    with dialled(app, "/echo") as client:
        client.say("hello", b"bytes", "x" * 100_000)
        assert ["hello", b"bytes", "x" * 100_000] == [client.hear() for _ in range(3)]
        client.ping(b"there?")
        assert ("pong", b"there?") == client.hear()


def test_what_is_sent_is_text_unless_it_is_bytes(app: Flask, sock: Sock) -> None:
    @sock.route("/kinds")
    def kinds(ws: BlockingWebSocket) -> None:
        for data in ("text", b"bytes", bytearray(b"array"), 7, {"a": 1}):
            ws.send(data)

    with dialled(app, "/kinds") as client:
        assert ["text", b"bytes", b"array", "7", "{'a': 1}", ("close", 1000, "")] == [client.hear() for _ in range(6)]


def test_a_view_runs_in_its_request(app: Flask, sock: Sock, told: Told) -> None:
    @app.before_request
    def before() -> None:
        g.found = "before"

    @app.teardown_request
    def teardown(error: BaseException | None) -> None:
        told.put(("teardown", g.found))

    @sock.route("/rooms/<room>", defaults={"page": 2})
    def view(ws: BlockingWebSocket, room: str, page: int) -> None:
        ws.receive()
        ws.send(f"{request.path} {room} {page} {g.found} {request.args['a']} {ws.environ['PATH_INFO']}")
        g.found = "in the view"

    with dialled(app, "/rooms/x?a=1") as client:
        assert told.empty()
        client.say("go on")
        assert "/rooms/x x 2 before 1 /rooms/x" == client.hear()
    assert ("teardown", "in the view") == told.get(timeout=5)


def test_receive_waits_as_long_as_it_is_told(app: Flask, sock: Sock) -> None:
    @sock.route("/waits")
    def waits(ws: BlockingWebSocket) -> None:
        started = time.monotonic()
        ws.send([ws.receive(timeout=0), ws.receive(timeout=-1), ws.receive(timeout=0.05)])
        ws.send(time.monotonic() - started)
        ws.send(ws.receive(timeout=30))

    with dialled(app, "/waits") as client:
        assert "[None, None, None]" == client.hear()
        assert float(client.hear()) >= 0.05
        client.say("in time")
        assert "in time" == client.hear()


def test_what_came_before_the_end_is_received(app: Flask, sock: Sock, told: Told) -> None:
    held = threading.Event()

    @sock.route("/late")
    def late(ws: BlockingWebSocket) -> None:
        held.wait(5)
        told.put([ws.receive(), ws.receive()])
        try:
            ws.receive()
        except ConnectionClosed as error:
            told.put((error.reason, error.message, ws.connected))
            raise

    with dialled(app, "/late") as client:
        client.say("a", "b")
        client.say_goodbye(4001, "enough")
        assert ("close", 4001, "") == client.hear()
        held.set()
        assert [["a", "b"], (4001, "enough", False)] == [told.get(timeout=5) for _ in range(2)]


@pytest.mark.parametrize(
    ("arguments", "expected"), [((), (1000, "")), ((4000, "bye"), (4000, "bye")), ((None, "bye"), (1000, "bye"))]
)
def test_close_ends_it_at_once(
    app: Flask, sock: Sock, told: Told, arguments: tuple[Any, ...], expected: tuple[int, str]
) -> None:
    @sock.route("/close")
    def close(ws: BlockingWebSocket) -> None:
        ws.close(*arguments)
        for call in (ws.receive, ws.close, lambda: ws.send("more")):
            with pytest.raises(ConnectionClosed):
                call()
        told.put((ws.connected, ws.close_reason, ws.close_message))

    with dialled(app, "/close") as client:
        assert ("close", *expected) == client.hear()
        assert (False, expected[0], expected[1] or None) == told.get(timeout=5)


def test_a_client_that_drops_out_ends_the_view(app: Flask, sock: Sock, told: Told) -> None:
    @sock.route("/echo")
    def echo(ws: BlockingWebSocket) -> None:
        try:
            ws.receive()
        except ConnectionClosed as error:
            told.put(error.reason)
            raise

    with dialled(app, "/echo"):
        pass
    assert 1006 == told.get(timeout=5)


def test_a_view_that_talks_while_its_client_leaves_comes_to_its_end(app: Flask, sock: Sock, told: Told) -> None:
    @sock.route("/talks")
    def talks(ws: BlockingWebSocket) -> None:
        try:
            while True:
                ws.send("more")
        except ConnectionClosed as error:
            told.put(error.reason)
            with pytest.raises(ConnectionClosed):
                ws.send("and more")

    for _ in range(20):
        with dialled(app, "/talks") as client:
            assert "more" == client.hear()
        assert 1006 == told.get(timeout=5)


@pytest.mark.parametrize(
    ("error", "code", "is_told"), [(LookupError("nothing there"), 1011, True), (401, 1008, False), (418, 1011, False)]
)
def test_errors_of_a_view_have_their_codes(
    app: Flask, sock: Sock, caplog: pytest.LogCaptureFixture, error: Any, code: int, is_told: bool
) -> None:
    signalled: list[Any] = []

    def signal(sender: Any, exception: Exception, **rest: Any) -> None:
        signalled.append(exception)

    @sock.route("/fails")
    def fails(ws: BlockingWebSocket) -> None:
        if isinstance(error, int):
            abort(error)
        raise error

    with got_request_exception.connected_to(signal, app), caplog.at_level(logging.ERROR), dialled(app, "/fails") as one:
        assert ("close", code, "") == one.hear()
    assert ([error] if is_told else []) == signalled
    assert is_told == ("nothing there" in caplog.text)


def test_other_threads_may_send(app: Flask, sock: Sock) -> None:
    def send_many(ws: BlockingWebSocket, name: str) -> None:
        for number in range(50):
            ws.send(f"{name}{number}")

    @sock.route("/many")
    def many(ws: BlockingWebSocket) -> None:
        threads = [threading.Thread(target=send_many, args=(ws, name)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with dialled(app, "/many") as client:
        heard = [client.hear() for _ in range(150)]
        for name in "abc":
            assert [f"{name}{n}" for n in range(50)] == [each for each in heard if each.startswith(name)]


def test_a_view_waits_for_a_client_that_takes_its_time(app: Flask, sock: Sock, told: Told) -> None:
    @sock.route("/large")
    def large(ws: BlockingWebSocket) -> None:
        for number in range(5):
            ws.send(b"%d" % number * 3_000_000)
            told.put((number, ws.connection.queued))

    with dialled(app, "/large") as client:
        for number in range(5):
            assert b"%d" % number * 3_000_000 == client.hear()
        assert [(number, 0) for number in range(5)] == [told.get(timeout=5) for _ in range(5)]


def test_what_a_view_does_not_receive_stays_with_its_client(app: Flask, sock: Sock, told: Told) -> None:
    app.config["SOCK_SERVER_OPTIONS"] = {"queue_bytes": 10_000}
    held = threading.Event()

    @sock.route("/slow")
    def slow(ws: BlockingWebSocket) -> None:
        held.wait(10)
        while (data := ws.receive(timeout=0.3)) is not None:
            told.put(len(data))
            ws.send("got it")

    with dialled(app, "/slow") as client:
        frame = client.frame(1, b"x" * 5_000)
        stream, sent = memoryview(frame * 1000), 0
        while select.select([], [client.socket], [], 0.2)[1]:
            sent += client.socket.send(stream[sent : sent + 1000])
        assert 2 * len(frame) < sent < len(stream) / 2
        held.set()
        client.socket.settimeout(5)
        client.send(bytes(stream[sent : -(-sent // len(frame)) * len(frame)]))
        count = -(-sent // len(frame))
        assert ["got it"] * count == [client.hear() for _ in range(count)]
    assert [5_000] * count == [told.get(timeout=5) for _ in range(count)]


def test_options_of_flask_sock_are_understood() -> None:
    theirs = {
        "subprotocols": "chat",
        "receive_bytes": 4096,
        "ping_interval": 5,
        "max_message_size": 1000,
        "thread_class": threading.Thread,
        "event_class": threading.Event,
        "selector_class": None,
    }
    assert WebSocketOptions(
        subprotocols=("chat",), ping_interval=5, ping_timeout=5.0, message_bytes=1000
    ) == read_options(theirs)
    assert WebSocketOptions() == read_options({})
    nothing = {"ping_interval": None, "max_message_size": None, "subprotocols": None}
    assert WebSocketOptions(ping_interval=0, message_bytes=NO_LIMIT) == read_options(nothing)
    assert WebSocketOptions(ping_interval=60, compression=True) == read_options(
        {"ping_interval": 60, "compression": True}
    )


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="message_bytes"):
        read_options({"max_size": 1})
    with pytest.raises(ValueError, match="not an origin"):
        read_options({"allowed_origins": ["app"]})


def test_a_view_sees_its_options(app: Flask, sock: Sock) -> None:
    app.config["SOCK_SERVER_OPTIONS"] = {
        "subprotocols": ["json", "chat"],
        "max_message_size": 10,
        "ping_interval": None,
    }

    @sock.route("/options")
    def options(ws: BlockingWebSocket) -> None:
        ws.send([ws.subprotocol, ws.subprotocols, ws.max_message_size, ws.ping_interval])
        ws.receive()

    with dialled(app, "/options", Sec_WebSocket_Protocol="xml, chat") as client:
        assert "['chat', ['json', 'chat'], 10, None]" == client.hear()
        client.say("x" * 11)
        assert ("close", 1009) == client.hear()[:2]
    app.config["SOCK_SERVER_OPTIONS"] = {"max_message_size": None}
    with dialled(app, "/options") as client:
        assert "[None, [], None, 25.0]" == client.hear()


def test_routes_may_come_before_the_application() -> None:
    sock = Sock()

    @sock.route("/ws")
    def ws(ws: BlockingWebSocket) -> None:
        ws.send("mine")

    assert (None, "__flask_sock") == (sock.app, sock.bp.name if sock.bp else "")
    app = Flask("later")
    sock.init_app(app)
    assert app is sock.app
    with app.test_request_context():
        assert "ws://localhost/ws" == url_for("__flask_sock.ws")
    with dialled(app, "/ws") as client:
        assert "mine" == client.hear()


def test_a_route_may_belong_to_a_blueprint() -> None:
    sock = Sock()
    blueprint = Blueprint("bp", __name__)

    @sock.route("/ws", bp=blueprint, endpoint="named")
    def ws(ws: BlockingWebSocket) -> None:
        ws.send("mine")

    assert (None, None) == (sock.app, sock.bp)
    app = Flask("blueprints")
    sock.init_app(app)
    app.register_blueprint(blueprint, url_prefix="/bp")
    with app.test_request_context():
        assert "ws://localhost/bp/ws" == url_for("bp.named")
    with dialled(app, "/bp/ws") as client:
        assert "mine" == client.hear()


def test_the_errors_have_flask_socks_names_and_attributes() -> None:
    closed = ConnectionClosed(4000, "bye")
    assert (4000, "bye", True, True) == (
        closed.reason,
        closed.message,
        isinstance(closed, RuntimeError),
        isinstance(closed, LongConnError),
    )
    refused = adapter.ConnectionError(403)
    assert (403, True) == (refused.status_code, isinstance(refused, RuntimeError))


def test_a_reason_that_is_too_long_is_shortened_as_flask_sock_does(app: Flask, sock: Sock) -> None:
    @sock.route("/long")
    def view(ws: BlockingWebSocket) -> None:
        ws.close(4000, "a" + "\u00e9" * 100)

    with dialled(app, "/long") as client:
        assert ("close", 4000, "a" + "\u00e9" * 61) == client.hear()


def test_a_code_that_cannot_be_sent_closes_with_1011(app: Flask, sock: Sock) -> None:
    @sock.route("/bad")
    def view(ws: BlockingWebSocket) -> None:
        ws.close(17)

    with dialled(app, "/bad") as client:
        assert ("close", 1011, "") == client.hear()


def test_a_view_that_is_a_coroutine_is_refused(sock: Sock) -> None:
    async def view(ws: BlockingWebSocket) -> None:
        pass

    with pytest.raises(TypeError, match="coroutine"):
        sock.route("/never")(view)
