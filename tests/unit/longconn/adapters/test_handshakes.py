"""Who is let in to a WebSocket of a Flask application, and what the others hear."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, Response, abort, url_for
from werkzeug.exceptions import HTTPException

from longconn.adapters.handshakes import admit
from longconn.adapters.websockets import WebSockets
from longconn.channels.hub import Channels
from longconn.identity import Identity
from tests.support.dialled import ASKED, dialled
from tests.support.memory_broker import MemoryBroker

SERVER = {"werkzeug.socket": object()}
"""What makes the application believe that its server gives connections away."""


class Echo:
    def message(self, conn: Any, data: str | bytes) -> None:
        conn.send(data)


@pytest.fixture
def app() -> Flask:
    return Flask("handshakes")


@pytest.fixture
def ws(app: Flask) -> WebSockets:
    return WebSockets(app, channels=Channels(MemoryBroker()))


def asked(app: Flask, target: str = "/ws", *, without: str = "", method: str = "GET", **fields: str) -> Any:
    """The answer to a handshake that is refused."""
    headers = {name: value for name, value in ASKED.items() if name != without}
    headers |= {name.replace("_", "-"): value for name, value in fields.items()}
    return app.test_client().open(target, method=method, headers=headers, environ_overrides=SERVER)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, (None, None)),
        (True, (None, None)),
        ("ann", (None, "ann")),
        (Identity("ann", "t1"), (Identity("ann", "t1"), "ann")),
        ({"id": 7}, (None, {"id": 7})),
        (0, (None, 0)),
    ],
)
def test_what_authorize_says_is_who_it_is(answer: Any, expected: tuple[Any, Any]) -> None:
    assert expected == admit(answer)


def test_false_lets_nobody_in() -> None:
    with pytest.raises(HTTPException) as refused:
        admit(False)
    assert 403 == refused.value.code


@pytest.mark.parametrize(
    ("without", "fields", "status"),
    [
        ("Upgrade", {}, 426),
        ("Connection", {}, 400),
        ("Sec-WebSocket-Key", {}, 400),
        ("", {"Sec_WebSocket_Version": "8"}, 426),
        ("", {"Sec_WebSocket_Key": "short"}, 400),
    ],
)
def test_a_bad_handshake_hears_what_is_wrong(
    app: Flask, ws: WebSockets, without: str, fields: dict[str, str], status: int
) -> None:
    ws.endpoint("/ws")(Echo)
    answer = asked(app, without=without, **fields)
    assert status == answer.status_code
    assert len(answer.text) > 100


def test_a_plain_request_hears_that_it_must_upgrade(app: Flask, ws: WebSockets) -> None:
    ws.endpoint("/ws")(Echo)
    answer = app.test_client().get("/ws")
    assert (426, "websocket") == (answer.status_code, answer.headers["Upgrade"])
    wrong = asked(app, Sec_WebSocket_Version="12")
    assert (426, "13") == (wrong.status_code, wrong.headers["Sec-WebSocket-Version"])


def test_other_methods_are_not_allowed(app: Flask, ws: WebSockets) -> None:
    ws.endpoint("/ws")(Echo)
    assert 405 == asked(app, method="POST").status_code


def test_a_websocket_to_a_page_hears_that_there_is_none(app: Flask, ws: WebSockets) -> None:
    app.add_url_rule("/page", view_func=lambda: "a page")
    assert 400 == asked(app, "/page").status_code


def test_a_page_and_a_websocket_may_share_an_address(app: Flask, ws: WebSockets) -> None:
    ws.endpoint("/both")(Echo)
    app.add_url_rule("/both", "page", lambda: "a page")
    assert "a page" == app.test_client().get("/both").text
    with dialled(app, "/both") as client:
        client.say("hello")
        assert "hello" == client.hear()


def test_refusals_are_rendered_by_the_application(app: Flask, ws: WebSockets) -> None:
    @app.errorhandler(HTTPException)
    def render(error: HTTPException) -> tuple[dict[str, Any], int]:
        return {"code": error.code}, error.code or 500

    @ws.endpoint("/ws")
    class Private:
        def authorize(self, request: Any) -> bool:
            return False

    assert {"code": 403} == asked(app).json
    assert {"code": 426} == app.test_client().get("/ws").json


def test_an_error_of_authorize_is_answered_as_a_views(app: Flask, ws: WebSockets) -> None:
    @ws.endpoint("/ws")
    class Private:
        def authorize(self, request: Any) -> Any:
            if request.args.get("as") == "response":
                return Response("come later", 503)
            if request.args.get("as") == "key":
                raise KeyError("as")
            return abort(401)

    app.register_error_handler(KeyError, lambda error: ("no key", 418))
    assert 401 == asked(app).status_code
    assert 418 == asked(app, "/ws?as=key").status_code
    assert (503, "come later") == (asked(app, "/ws?as=response").status_code, asked(app, "/ws?as=response").text)


def test_the_extensions_authorize_is_for_those_that_have_none(app: Flask) -> None:
    ws = WebSockets(app, channels=Channels(MemoryBroker()), authorize=lambda request: False)
    ws.endpoint("/ws")(Echo)

    @ws.endpoint("/open")
    class Open(Echo):
        def authorize(self, request: Any) -> str:
            return "ann"

    assert 403 == asked(app).status_code
    with dialled(app, "/open") as client:
        client.say("hello")
        assert "hello" == client.hear()


@pytest.mark.parametrize(
    "origin", ["http://elsewhere.example", "null", "http://localhost:8080", "http://localhost@evil"]
)
def test_pages_of_other_origins_are_refused(app: Flask, ws: WebSockets, origin: str) -> None:
    ws.endpoint("/ws")(Echo)
    answer = asked(app, Origin=origin)
    assert 403 == answer.status_code
    assert "LONGCONN_ALLOWED_ORIGINS" in answer.text


@pytest.mark.parametrize("origin", ["http://localhost", "https://app.example"])
def test_pages_of_this_origin_and_of_those_that_are_allowed_are_let_in(app: Flask, ws: WebSockets, origin: str) -> None:
    ws.endpoint("/ws", allowed_origins=("https://app.example",))(Echo)
    with dialled(app, "/ws", Origin=origin) as client:
        client.say("hello")
        assert "hello" == client.hear()


def test_origins_that_cannot_be_are_refused_where_they_are_written(ws: WebSockets) -> None:
    with pytest.raises(ValueError, match=r"not an origin: 'app\.example'"):
        ws.endpoint("/ws", allowed_origins=["app.example"])


def test_without_a_server_that_gives_connections_away_it_says_so(app: Flask, ws: WebSockets) -> None:
    ws.endpoint("/ws")(Echo)
    answer = app.test_client().get("/ws", headers=ASKED)
    assert 501 == answer.status_code
    assert "gunicorn -k longconn.worker.ParkingWorker" in answer.text


def test_fields_of_hooks_go_into_the_head(app: Flask, ws: WebSockets) -> None:
    @app.after_request
    def add(response: Response) -> Response:
        response.headers["X-Request-Id"] = "r1"
        response.set_cookie("seen", "yes")
        return response

    ws.endpoint("/ws", subprotocols=("chat", "json"))(Echo)
    with dialled(app, "/ws", Sec_WebSocket_Protocol="xml, json, chat") as client:
        names = sorted(name.lower() for name in client.head.headers)
        assert [
            "connection",
            "sec-websocket-accept",
            "sec-websocket-protocol",
            "set-cookie",
            "upgrade",
            "x-request-id",
        ] == names
        assert ("r1", "json", "seen=yes; Path=/") == tuple(
            client.head.headers[name] for name in ("X-Request-Id", "Sec-WebSocket-Protocol", "Set-Cookie")
        )


def test_url_for_knows_its_endpoints(app: Flask, ws: WebSockets) -> None:
    ws.endpoint("/rooms/<room>")(Echo)
    ws.endpoint("/other", endpoint="other")(Echo())
    with app.test_request_context():
        assert "ws://localhost/rooms/a" == url_for("Echo", room="a")
        assert "ws://localhost/other" == url_for("other")


def test_an_answer_that_is_not_there_yet_lets_nobody_in() -> None:
    async def authorize() -> bool:
        return True

    with pytest.raises(TypeError, match="coroutine"):
        admit(authorize())
