"""The routes of the benchmark with flask-sock, as its documentation writes them, and events from a generator."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from typing import Any

import flask_sock  # type: ignore[import-untyped]
from flask import Flask, Response, jsonify, request

__all__ = ["application"]

HEARTBEAT = 15.0
"""Seconds between two comments of a stream of events."""

application = Flask(__name__)
sock = flask_sock.Sock(application)
subscribers: set[Any] = set()


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


@sock.route("/echo")  # type: ignore[untyped-decorator]
def echo(socket: Any) -> None:
    """Every message goes back."""
    while True:
        socket.send(socket.receive())


@sock.route("/hub")  # type: ignore[untyped-decorator]
def hub(socket: Any) -> None:
    """Every connection hears what is published."""
    subscribers.add(socket)
    try:
        while True:
            socket.receive()
    finally:
        subscribers.discard(socket)


@application.get("/events")
def events() -> Response:
    """A stream that says nothing but that it lives."""

    def beats() -> Iterator[str]:
        while True:
            yield ":\n\n"
            time.sleep(HEARTBEAT)

    return Response(beats(), mimetype="text/event-stream")


@application.post("/publish")
def publish() -> str:
    """Send the body to all, one after the other."""
    text = request.get_data(as_text=True)
    for socket in list(subscribers):
        socket.send(text)
    return ""
