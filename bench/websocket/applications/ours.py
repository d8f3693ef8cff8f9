"""The routes of the benchmark on Seawall: every style of a connection that stays."""

from __future__ import annotations

import gc
import os
import time
from typing import Any

from flask import Flask, Response, jsonify, request

from longconn import Sock, WebSockets, event_stream

__all__ = ["application"]

CHANNEL = "all"

application = Flask(__name__)
sockets = WebSockets(application)
blocking = Sock(application)


@application.get("/")
def pong() -> str:
    """Whether it is up."""
    return "pong"


@application.get("/pid")
def pid() -> str:
    """Who answers."""
    return str(os.getpid())


@application.get("/collect")
def collect() -> Response:
    """Collect garbage, and say how long that took (ms)."""
    started = time.perf_counter()
    gc.collect()
    return jsonify(milliseconds=(time.perf_counter() - started) * 1e3)


@sockets.endpoint("/echo")
class Echo:
    """Every message goes back."""

    def message(self, conn: Any, data: str | bytes) -> None:
        """Send it back."""
        conn.send(data)


@sockets.endpoint("/deflate", compression=True)
class Deflated(Echo):
    """The same for those who compress."""


@sockets.endpoint("/hub")
class Hub:
    """Every connection is in one channel."""

    def open(self, conn: Any) -> None:
        """Let it in."""
        conn.join(CHANNEL)


@sockets.endpoint("/greeted")
class Greeted:
    """As the hub; each client is told first which worker has it."""

    def open(self, conn: Any) -> None:
        """Greet it and let it in."""
        conn.send(f"pid {os.getpid()}")
        conn.join(CHANNEL)


@blocking.route("/blocking")
def echo(socket: Any) -> None:
    """Every message goes back, written as for flask-sock."""
    while True:
        socket.send(socket.receive())


@application.get("/events")
def events() -> Any:
    """The channel as server-sent events."""
    return event_stream(CHANNEL)


@application.post("/publish")
def publish() -> str:
    """Publish the body."""
    sockets.channels.publish(CHANNEL, request.get_data(as_text=True))
    return ""


@application.post("/paced")
def paced() -> str:
    """Publish `count` messages at `rate` a second, each with its number and the time (ns of the monotonic clock)."""
    count, rate = int(request.args["count"]), float(request.args["rate"])
    started = time.monotonic()
    for number in range(1, count + 1):
        sockets.channels.publish(CHANNEL, f"{number} {time.monotonic_ns()}")
        time.sleep(max(0.0, started + number / rate - time.monotonic()))
    return f"{count / (time.monotonic() - started):.1f}"
