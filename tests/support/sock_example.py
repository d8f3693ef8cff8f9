"""An application as one writes it for flask-sock: everything that its documentation and examples use. Tests run it with the one
import below, and with flask-sock's in its place.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from flask import Blueprint, Flask, request

from longconn import ConnectionClosed, Sock

app = Flask(__name__)
app.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 25, "subprotocols": ["chat"]}
sock = Sock(app)
later = Sock()
blueprint = Blueprint("words", __name__)

listeners: dict[str, Any] = {}
ends: list[Any] = []


@app.route("/")
def index() -> str:
    """A page beside the sockets."""
    return "hello"


@app.route("/ends")
def list_ends() -> str:
    """How the connections of /until-the-end have ended."""
    return json.dumps(ends)


@sock.route("/echo")
def echo(ws: Any) -> None:
    """Says what it hears, until it hears "close"."""
    while True:
        data = ws.receive()
        if data == "close":
            break
        ws.send(data)


@sock.route("/clock/<name>")
def clock(ws: Any, name: str) -> None:
    """Hears the time from a thread, and logs what it says itself."""
    listeners[name] = ws
    while True:
        data = ws.receive()
        if data == "close":
            break
        ws.send(json.dumps({"type": "log", "text": data}))


def tell_time() -> None:
    """Tell everybody what time it is."""
    while True:
        time.sleep(0.05)
        for name, ws in list(listeners.items()):
            try:
                ws.send(json.dumps({"type": "clock"}))
            except Exception:  # noqa: BLE001 - whatever it is, this one is gone
                del listeners[name]


@sock.route("/reverse", bp=blueprint)
def reverse(ws: Any) -> None:
    """Says it backwards."""
    while True:
        text = ws.receive()
        ws.send(text[::-1])


@later.route("/who")
def who(ws: Any) -> None:
    """Says what the request said."""
    ws.send(f"{request.args.get('name')} {request.path} {ws.subprotocol} {ws.connected}")


@sock.route("/patience")
def patience(ws: Any) -> None:
    """Waits for a while, then says goodbye."""
    ws.send(repr(ws.receive(timeout=0.1)))
    ws.send(repr(ws.receive(timeout=0)))
    ws.close(4000, "no patience")


@sock.route("/until-the-end")
def until_the_end(ws: Any) -> None:
    """Wants to know how it ends."""
    try:
        while True:
            ws.receive()
    except ConnectionClosed as error:
        ends.append([int(error.reason), error.message or "", ws.connected])
        raise


@sock.route("/busy")
def busy(ws: Any) -> None:
    """Does something else for a while."""
    ws.receive()
    time.sleep(0.5)
    ws.send("done")


app.register_blueprint(blueprint, url_prefix="/words")
later.init_app(app)
threading.Thread(target=tell_time, daemon=True).start()
