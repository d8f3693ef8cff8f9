"""Channels over HTTP: publishing, history, a stream of server-sent events, and a long poll for who has nothing else.

POST /api/v1/channels/<channel>/messages    publish: {"data": any JSON, "event": "", "key": ""}
GET  /api/v1/channels/<channel>/messages    wait for what comes after ?since=, for ?wait= seconds at most
GET  /api/v1/channels/<channel>/history     what is kept: ?since=, ?limit=
GET  /events/<channel>                      server-sent events; Last-Event-ID or ?since= resumes
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from longconn.channels.errors import ChannelError
from longconn.channels.ports import History
from longconn.identity import Identity
from service import logs
from service.errors import ValidationFailed
from service.model import Participant
from service.routes.access import public
from service.routes.bodies import json_object
from service.routes.credentials import Credentials
from service.services.channels import (
    LIVE,
    MOST_MESSAGES,
    ChannelService,
    describe,
    parse_position,
    parse_publication,
    translated,
)

__all__ = ["EventStream", "LongPoll", "create_channels_blueprint", "identity_of", "write_end"]

HISTORY = 100
LONGEST_WAIT = 60.0

EventStream = Callable[..., Response]
"""`longconn.event_stream`: a response whose connection hears a channel."""

LongPoll = Callable[..., Response]
"""`longconn.long_poll`: a response that waits for the next messages of a channel."""


def create_channels_blueprint(
    channels: ChannelService, credentials: Credentials, *, event_stream: EventStream, long_poll: LongPoll
) -> Blueprint:
    """The routes of the channels."""
    blueprint = Blueprint("channels", __name__)

    @blueprint.post("/api/v1/channels/<path:channel>/messages")
    def publish(channel: str) -> Response:
        who = credentials.participant(request)
        position = channels.publish(who, channel, parse_publication(json_object(request)))
        response = jsonify(channel=channel, position=str(position))
        response.status_code = 201
        return response

    @blueprint.get("/api/v1/channels/<path:channel>/messages")
    def wait_for_messages(channel: str) -> Response:
        who = credentials.participant(request)
        channels.check(who, channel, "history")
        since, wait = request.args.get("since"), _wait_asked_for()
        with translated(), _unwrapped():
            position = None if since is None else parse_position(since)
            return long_poll(channel, identity=identity_of(who), since=position, wait=wait, describe=describe)

    @blueprint.get("/api/v1/channels/<path:channel>/history")
    def show_history(channel: str) -> Response:
        since = request.args.get("since")
        limit = _limit_asked_for()
        history = channels.history(
            credentials.participant(request), channel, None if since is None else parse_position(since), most=limit
        )
        response = jsonify(channel=channel, **document_of(history))
        response.headers["Cache-Control"] = "no-store"
        return response

    @blueprint.get("/events/<path:channel>")
    @public  # a browser puts its credentials elsewhere
    def stream(channel: str) -> Response:
        who = credentials.participant(request)
        channels.check(who, channel, "subscribe")
        with translated(), _unwrapped():
            # Who comes for the counters wants to see them, and not to wait for the next.
            since = "earliest" if channel == LIVE else None
            return event_stream(channel, identity=identity_of(who), since=since, on_end=_stream_ended)

    return blueprint


def identity_of(who: Participant) -> Identity:
    """`who` as connections that stay know them."""
    return Identity(who.name, who.token, who.expires_at, who)


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """What channels raise, out of what the worker's own views make of it for Flask."""
    try:
        yield
    except HTTPException as error:
        if isinstance(error.__cause__, ChannelError):
            raise error.__cause__ from None
        raise


def write_end(kind: str, connection: Any, *, code: int | None = None, reason: str = "") -> None:
    """Log how a connection ended. The line of its request has the same id, in `connection`."""
    line = {
        "event": "connection ended",
        "kind": kind,
        "connection": connection.id,
        "user": connection.user,
        "path": connection.path,
        "client": connection.host,
        "code": None if code is None else int(code),
        "reason": reason or None,
        "seconds": round(time.time() - connection.since, 3),
    }
    logs.emit("info", line)


def _stream_ended(connection: Any, reason: str) -> None:
    write_end("sse", connection, reason=reason)


def document_of(history: History) -> dict[str, Any]:
    """A history as JSON."""
    return {
        "messages": [describe(message) for message in history.messages],
        "position": str(history.position),
        "complete": history.complete,
    }


def _limit_asked_for() -> int:
    text = request.args.get("limit", str(HISTORY))
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MOST_MESSAGES):
        raise ValidationFailed(f"limit must be a whole number from 1 to {MOST_MESSAGES}.")
    return int(text)


def _wait_asked_for() -> float:
    text = request.args.get("wait", "25")
    if not (text.isascii() and text.replace(".", "", 1).isdigit() and len(text) < 9 and float(text) <= LONGEST_WAIT):
        raise ValidationFailed(f"wait must be seconds, from 0 to {LONGEST_WAIT:g}.")
    return float(text)
