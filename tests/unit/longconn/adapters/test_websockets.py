"""Classes that attend to the WebSockets of a Flask application."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

import pytest
from flask import Blueprint, Flask, current_app, g, has_app_context, has_request_context, request, url_for
from flask.ctx import AppContext
from flask.globals import app_ctx
from flask.signals import appcontext_popped, got_request_exception

from longconn.adapters import channels_of
from longconn.adapters.websockets import WebSockets, application_context
from longconn.channels.hub import Channels
from longconn.channels.ports import Message
from longconn.identity import Identity
from tests.support.dialled import dialled
from tests.support.memory_broker import MemoryBroker


class Echo:
    def message(self, conn: Any, data: str | bytes) -> None:
        conn.send(data)


@pytest.fixture
def app() -> Flask:
    return Flask("websockets")


@pytest.fixture
def ws(app: Flask) -> WebSockets:
    return WebSockets(app, channels=Channels(MemoryBroker()))


def test_a_connection_knows_who_it_is(app: Flask, ws: WebSockets) -> None:
    @ws.endpoint("/rooms/<int:number>", subprotocols=["json"])
    class Room:
        def authorize(self, request: Any) -> Identity:
            return Identity(request.args["user"], token="t1", claims={"admin": True})

        def open(self, conn: Any) -> None:
            conn.state = [request.args["user"]]
            conn.send(
                {
                    "user": conn.user,
                    "token": conn.identity.token,
                    "arguments": dict(conn.arguments),
                    "path": conn.path,
                    "address": conn.address,
                    "subprotocol": conn.subprotocol,
                    "alive": conn.alive,
                }
            )

        def message(self, conn: Any, data: str) -> None:
            conn.state.append(data)
            conn.send(conn.state)

    with dialled(app, "/rooms/7?user=ann", Sec_WebSocket_Protocol="json") as client:
        expected = (
            '{"user":"ann","token":"t1","arguments":{"number":7},"path":"/rooms/7","address":"192.0.2.1",'
            '"subprotocol":"json","alive":true}'
        )
        assert expected == client.hear()
        client.say("a", "b")
        assert ['["ann","a"]', '["ann","a","b"]'] == [client.hear(), client.hear()]


def test_handlers_run_in_an_application_context_of_their_own(app: Flask, ws: WebSockets) -> None:
    @ws.endpoint("/ws")
    class Contexts:
        def message(self, conn: Any, data: str) -> None:
            seen = g.get("seen", "nothing")
            g.seen = data
            conn.send(f"{current_app.name} {seen} {has_request_context()}")

    with dialled(app, "/ws") as client:
        client.say("a", "b")
        assert ["websockets nothing False"] * 2 == [client.hear(), client.hear()]


def test_open_runs_in_its_request(app: Flask, ws: WebSockets) -> None:
    @app.before_request
    def before() -> None:
        g.found = "before"

    @ws.endpoint("/ws")
    class Contexts:
        def open(self, conn: Any) -> None:
            conn.send(f"{g.found} {request.path} {current_app.name}")

        def message(self, conn: Any, data: str) -> None:
            conn.send(f"{'found' in g} {has_request_context()}")

    with dialled(app, "/ws") as client:
        client.say("a")
        assert ["before /ws websockets", "False False"] == [client.hear(), client.hear()]


def test_close_is_told_once_with_the_clients_words(app: Flask, ws: WebSockets) -> None:
    told: queue.Queue[Any] = queue.Queue()

    @ws.endpoint("/ws")
    class Listening:
        def close(self, conn: Any, code: int, reason: str) -> None:
            told.put((conn.path, current_app.name, code, reason, conn.alive))

    with dialled(app, "/ws") as client:
        client.say_goodbye(4001, "enough")
        assert [("close", 4001, "")] == client.rest()
    assert ("/ws", "websockets", 4001, "enough", False) == told.get(timeout=5)
    with dialled(app, "/ws") as client:
        pass
    assert ("/ws", "websockets", 1006, "", False) == told.get(timeout=5)
    assert told.empty()


@pytest.mark.parametrize("method", ["open", "message"])
def test_an_error_is_logged_and_signalled_and_closes_with_1011(
    app: Flask, ws: WebSockets, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    signalled: list[Any] = []

    class Failing:
        pass

    def fail(self: Any, conn: Any, *data: Any) -> None:
        raise LookupError("nothing there")

    def signal(sender: Any, exception: Exception, **rest: Any) -> None:
        signalled.append((sender, str(exception)))

    setattr(Failing, method, fail)
    ws.endpoint("/ws")(Failing)
    with got_request_exception.connected_to(signal, app), caplog.at_level(logging.ERROR), dialled(app, "/ws") as client:
        client.say("hello")
        assert ("close", 1011, "") == client.hear()
        client.say_goodbye(1011)
        assert client.hear() is None
    assert [(app, "nothing there")] == signalled
    assert "nothing there" in caplog.text


def test_a_client_that_has_left_is_no_error_of_its_handler(
    app: Flask, ws: WebSockets, caplog: pytest.LogCaptureFixture
) -> None:
    signalled: list[Any] = []
    left = threading.Event()

    @ws.endpoint("/ws")
    class Late:
        def message(self, conn: Any, data: str) -> None:
            left.wait(5)
            while True:
                conn.send(data)

    def signal(sender: Any, **rest: Any) -> None:
        signalled.append(rest)

    with got_request_exception.connected_to(signal, app):
        with dialled(app, "/ws") as client:
            client.say("hello")
            client.socket.close()
            left.set()
        assert [] == signalled
    assert "failed" not in caplog.text


def test_messages_of_a_channel_reach_those_that_joined(app: Flask, ws: WebSockets) -> None:
    @ws.endpoint("/rooms/<room>")
    class Room:
        def open(self, conn: Any) -> None:
            conn.join(conn.arguments["room"], since="")
            conn.send("joined")

        def message(self, conn: Any, data: str) -> None:
            ws.channels.publish(conn.arguments["room"], data)

        def encode(self, message: Message) -> dict[str, Any]:
            return {"data": message.data, "number": message.position.number}

    with dialled(app, "/rooms/a") as ann, dialled(app, "/rooms/a") as bob, dialled(app, "/rooms/b") as eve:
        assert ["joined"] * 3 == [each.hear() for each in (ann, bob, eve)]
        ann.say("hello")
        assert ['{"data":"hello","number":1}'] * 2 == [ann.hear(), bob.hear()]
        with dialled(app, "/rooms/a") as late:
            assert ['{"data":"hello","number":1}', "joined"] == [late.hear(), late.hear()]
            ws.channels.publish("a", "from a view")
            assert ['{"data":"from a view","number":2}'] * 3 == [each.hear() for each in (ann, bob, late)]
        eve.say("here")
        assert '{"data":"here","number":1}' == eve.hear()
        ws.channels.close()


def test_what_is_connected_can_be_listed_and_sent_away(app: Flask, ws: WebSockets) -> None:
    @ws.endpoint("/ws")
    class Private(Echo):
        def authorize(self, request: Any) -> Any:
            return Identity(request.args["user"], token=f"of {request.args['user']}")

    with dialled(app, "/ws?user=ann") as ann, dialled(app, "/ws?user=bob") as bob:
        for client in (ann, bob):
            client.say("hello")
            assert "hello" == client.hear()
        assert ["/ws"] == [each["path"] for each in ws.connections(user="ann")]
        assert {"ann": 1, "bob": 1}.items() <= ws.counts()["users"].items()
        assert 1 == ws.kick(user="ann", code=4003, reason="go")
        assert ("close", 4003, "go") == ann.hear()
        assert 1 == ws.revoke("of bob")
        assert ("close", 1008) == bob.hear()[:2]
    ws.channels.close()


def test_a_blueprint_may_have_an_endpoint() -> None:
    ws = WebSockets(channels=Channels(MemoryBroker()))
    blueprint = Blueprint("chat", __name__, url_prefix="/chat")
    ws.endpoint("/ws", blueprint=blueprint)(Echo)
    ws.endpoint("/own", endpoint="own")(Echo())
    apps = [Flask("one"), Flask("two")]
    for app in apps:
        app.register_blueprint(blueprint)
        ws.init_app(app)
    ws.endpoint("/later", endpoint="later")(Echo())
    for app in apps:
        for target in ("/chat/ws", "/own", "/later"):
            with dialled(app, target) as client:
                client.say("hello")
                assert "hello" == client.hear()


def test_channels_are_the_applications(app: Flask) -> None:
    channels = Channels(MemoryBroker())
    ws = WebSockets(channels=channels)
    assert channels is ws.channels
    ws.init_app(app)
    assert channels is channels_of(app) is app.extensions["longconn.channels"]
    with pytest.raises(RuntimeError, match="other channels already"):
        WebSockets(app, channels=Channels(MemoryBroker()))
    assert channels is WebSockets(app).channels


def test_without_an_application_there_are_no_channels(app: Flask) -> None:
    ws = WebSockets()
    with pytest.raises(RuntimeError, match=r"call init_app\(app\)"):
        ws.channels.close()
    with app.app_context():
        assert channels_of(app) is ws.channels


def test_its_commands_are_the_applications(app: Flask, ws: WebSockets) -> None:
    assert "channels" in app.cli.commands


@pytest.mark.parametrize("options", [{"queue_byte": 1}, {"ping": 3}])
def test_an_option_that_does_not_exist_is_refused(app: Flask, ws: WebSockets, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="queue_bytes"):
        WebSockets(app, **options)
    with pytest.raises(TypeError, match="queue_bytes"):
        ws.endpoint("/ws", **options)


def test_something_without_handlers_is_refused(ws: WebSockets) -> None:
    with pytest.raises(TypeError, match="attends to nothing"):
        ws.endpoint("/ws")(type("Nothing", (), {}))


@pytest.mark.parametrize("told", [True, False])
def test_contexts_come_and_go_as_everywhere_for_those_who_want_to_know(app: Flask, told: bool) -> None:
    heard: list[Any] = []

    def hear(sender: Any, **rest: Any) -> None:
        heard.append(sender)

    if told:
        app.teardown_appcontext(lambda error: heard.append(repr(error)))
    around = application_context(app)
    with pytest.raises(KeyError), around():
        raise KeyError(current_app.name)
    assert (["KeyError('websockets')"] if told else []) == heard
    with appcontext_popped.connected_to(hear, app), around():
        assert "websockets" == current_app.name
    assert app is heard[-1]
    assert not has_app_context()


def test_each_context_has_a_g_of_its_own_and_can_make_addresses(app: Flask, ws: WebSockets) -> None:
    ws.endpoint("/rooms/<room>", endpoint="room")(Echo)
    app.config["SERVER_NAME"] = "seawall.example"
    around = application_context(app)
    seen = []
    for number in range(2):
        with around():
            seen.append((g.get("number"), url_for("room", room="tea", _scheme="wss")))
            g.number = number
            with app.app_context():
                assert "number" not in g
            assert number == g.number
            assert not hasattr(app_ctx, "nothing")
    assert [(None, "wss://seawall.example/rooms/tea")] * 2 == seen


def test_the_contexts_of_an_application_that_makes_its_own_are_those() -> None:
    class Own(Flask):
        def app_context(self) -> AppContext:
            context = super().app_context()
            context.g.made = "here"
            return context

    with application_context(Own("own"))():
        assert "here" == g.made


def test_an_authorize_that_nobody_would_await_lets_nobody_in(app: Flask, ws: WebSockets) -> None:
    async def authorize(request: Any) -> bool:
        return True

    with pytest.raises(TypeError, match="async def"):
        WebSockets(authorize=authorize)

    class Waits(Echo):
        pass

    Waits.authorize = staticmethod(authorize)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="authorize is declared with `async def`"):
        ws.endpoint("/waits")(Waits)


def test_two_rules_for_one_class_need_two_names(ws: WebSockets) -> None:
    ws.endpoint("/a")(Echo)
    with pytest.raises(TypeError, match="endpoint="):
        ws.endpoint("/b")(Echo)
    ws.endpoint("/b", endpoint="other")(Echo)
