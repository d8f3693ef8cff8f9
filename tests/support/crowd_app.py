"""An application whose clients are many: all that connect hear a channel, over WebSockets or event streams, and can come back
to where they were. What is published says when, so that `longconn.load` can time it."""

from __future__ import annotations

import json
import os
from typing import Any

from flask import Flask, Response, request

from longconn import HistoryLimits, Message, Settings, WebSockets, event_stream
from longconn.channels.hub import Channels, default_channels

__all__ = ["app", "channels"]

HISTORY = HistoryLimits(count=20_000, size=8 << 20, age=3_600.0)


def channels(settings: Settings | None = None) -> Channels:
    """The channels of this application. Other processes have them too, with the `settings` of its LONGCONN_CHANNELS."""
    return default_channels("crowd", settings=settings, history=HISTORY)


def show(message: Message) -> str:
    """A message, as its listeners get it."""
    return json.dumps({"id": str(message.position), "at": message.at, "data": message.data})


app = Flask(__name__)
sockets = WebSockets(app, channels=channels(), ping_interval=float(os.environ.get("PING_INTERVAL", "25")))


@sockets.endpoint("/ws/<channel>")
class Listeners:
    """They join the channel, from what they have seen on where they say so; what one sends, it gets back."""

    def open(self, conn: Any) -> None:
        conn.join(conn.arguments["channel"], since=request.args.get("since") or None)

    def message(self, conn: Any, data: str | bytes) -> None:
        conn.send(data)

    def encode(self, message: Message) -> str:
        return show(message)


@app.get("/events/<channel>")
def events(channel: str) -> Response:
    """The same channel as an event stream."""
    return event_stream(channel, encode=show)


@app.get("/pid")
def pid() -> str:
    """Which worker answers."""
    return str(os.getpid())
