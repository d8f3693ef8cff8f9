"""`/ws`: channels over a WebSocket, as JSON texts in both directions.

What a client sends has a `type`, and an `id` if the answer is to carry one (a text or a whole number):

    {"type": "subscribe", "channel": "demo:lobby"}             from now on
    {"type": "subscribe", ..., "since": "18f2a3b4c5-17"}       and first what came after that message
    {"type": "subscribe", ..., "recent": 20}                   and first the newest 20 messages
    {"type": "unsubscribe", "channel": "demo:lobby"}
    {"type": "publish", "channel": ..., "data": any JSON, "event": "", "key": ""}
    {"type": "ping"}

What it gets:

    {"type": "welcome", "connection": ..., "user": ..., "worker": ...}      first of all; `worker` where there is the demo
    {"type": "subscribed", "id": ..., "channel": ..., "position": ..., "complete": ..., "messages": ...}
    {"type": "unsubscribed", "id": ..., "channel": ...}
    {"type": "published", "id": ..., "channel": ..., "position": ...}
    {"type": "pong", "id": ...}
    {"type": "message", "channel": ..., "position": ..., "at": ..., "from": ..., "data": ..., "event": ...}
    {"type": "missed", "channel": ..., "position": ...}        some before that position are lost
    {"type": "error", "id": ..., "code": ..., "status": ..., "title": ..., "detail": ..., "errors": [...]}

What was missed comes before `subscribed`, in order. `complete` is false when not all of it is kept any longer. An error closes
nothing; its code is one of the error registry.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, Final, Protocol

import orjson
import structlog
from flask import Request

from longconn.channels.ports import History, Message, Position
from longconn.errors import ConnectionClosed
from longconn.identity import Identity
from service.errors import (
    Conflict,
    Internal,
    ServiceError,
    UnsupportedMediaType,
    ValidationFailed,
)
from service.model import Participant
from service.routes.bodies import json_members
from service.routes.channels import identity_of, write_end
from service.routes.credentials import Credentials
from service.services.channels import (
    ChannelService,
    Command,
    Ping,
    Publish,
    Subscribe,
    Unsubscribe,
    describe,
    parse_command,
    translated,
)

__all__ = ["ChannelSocket", "Connection"]

MOST_CHANNELS: Final = 100
LONGEST_ID: Final = 64
LARGEST_ID: Final = 2**53 - 1
"""All programs read whole numbers up to it alike (RFC 8259, section 6)."""

_log = structlog.get_logger("service.sockets")


class Connection(Protocol):
    """What of `longconn`'s WebSocket is used here."""

    @property
    def id(self) -> str: ...
    @property
    def identity(self) -> Identity | None: ...
    @property
    def channels(self) -> tuple[str, ...]: ...
    @property
    def path(self) -> str: ...
    def send(self, data: str | bytes | dict[str, Any]) -> None: ...
    def join(self, channel: str, *, since: Position | str | None = None) -> History: ...
    def leave(self, channel: str) -> None: ...


class ChannelSocket:
    """What attends to the WebSockets of `/ws`. `names_worker` says whether newcomers are told which process serves them."""

    def __init__(self, channels: ChannelService, credentials: Credentials, *, names_worker: bool = False) -> None:
        self._channels = channels
        self._credentials = credentials
        self._names_worker = names_worker

    def authorize(self, request: Request) -> Identity:
        """Who opens it. Raises `Unauthenticated`, and then there is no WebSocket."""
        return identity_of(self._credentials.participant(request))

    def open(self, conn: Connection) -> None:
        """Say who it is taken for."""
        welcome: dict[str, Any] = {"type": "welcome", "connection": conn.id, "user": _participant(conn).name}
        if self._names_worker:
            welcome["worker"] = os.getpid()
        _send(conn, welcome)

    def message(self, conn: Connection, data: str | bytes) -> None:
        """Do what is asked and say what became of it."""
        said: Any = None
        try:
            members = _members(data)
            said = _checked_id(members.get("id"))
            answer = self._answer(conn, parse_command(members))
        except ServiceError as error:
            answer = _document(error)
        except ConnectionClosed:
            return
        except Exception as error:  # noqa: BLE001 - the connection goes on
            _log.error("unexpected error", path=conn.path, connection=conn.id, exc_info=error)
            answer = _document(Internal("Something went wrong on our side. The connection's id finds it in the logs."))
        if said is not None:
            answer["id"] = said
        with contextlib.suppress(ConnectionClosed):  # it has ended meanwhile
            _send(conn, answer)

    def missed(self, conn: Connection, channel: str, position: Position) -> None:
        """Say that some messages cannot be had any more."""
        _send(conn, {"type": "missed", "channel": channel, "position": str(position)})

    def encode(self, message: Message) -> str:
        """A channel's message as clients get it: once for all of them."""
        return orjson.dumps({"type": "message", **describe(message)}).decode()

    def close(self, conn: Connection, code: int, reason: str) -> None:
        """Write the line that says how it ended. The access log has its beginning, under the same id."""
        write_end("websocket", conn, code=code, reason=reason)

    def _answer(self, conn: Connection, command: Command) -> dict[str, Any]:
        match command:
            case Subscribe():
                return self._subscribe(conn, command)
            case Unsubscribe(channel):
                if channel not in conn.channels:
                    raise Conflict("There is no subscription to this channel.")
                conn.leave(channel)
                return {"type": "unsubscribed", "channel": channel}
            case Publish(channel, publication):
                position = self._channels.publish(_participant(conn), channel, publication)
                return {"type": "published", "channel": channel, "position": str(position)}
            case Ping():
                return {"type": "pong"}

    def _subscribe(self, conn: Connection, command: Subscribe) -> dict[str, Any]:
        who, channel, since = _participant(conn), command.channel, command.since
        self._channels.check(who, channel, "subscribe")
        if channel in conn.channels:
            raise Conflict("There is a subscription to this channel already.")
        if len(conn.channels) >= MOST_CHANNELS:
            raise Conflict(f"A connection subscribes to at most {MOST_CHANNELS} channels. Open another one.")
        if command.recent:
            since = self._channels.start_of_recent(who, channel, command.recent)
        with translated():
            history = conn.join(channel, since=since)
        return {
            "type": "subscribed",
            "channel": channel,
            "position": str(history.position),
            "complete": history.complete,
            "messages": len(history.messages),
        }


def _participant(conn: Connection) -> Participant:
    assert conn.identity is not None  # authorize gave one
    participant: Participant = conn.identity.claims
    return participant


def _members(data: str | bytes) -> dict[str, object]:
    if isinstance(data, bytes):
        raise UnsupportedMediaType("Send texts that hold JSON, and nothing binary.")
    return json_members(data, "message")


def _checked_id(value: object) -> object:
    if value is None or (isinstance(value, str) and len(value) <= LONGEST_ID):
        return value
    if type(value) is int and -LARGEST_ID <= value <= LARGEST_ID:
        return value
    reason = f"must be a whole number of at most 53 bits, or a text of at most {LONGEST_ID} characters"
    raise ValidationFailed(f"/id {reason}.", fields=[("/id", reason)])


def _document(error: ServiceError) -> dict[str, Any]:
    document: dict[str, Any] = {
        "type": "error",
        "code": error.code,
        "status": error.status,
        "title": error.title,
        "detail": error.detail,
    }
    if error.fields:
        document["errors"] = [{"pointer": pointer, "detail": detail} for pointer, detail in error.fields]
    if error.retry_after is not None:
        document["retry_after"] = error.retry_after
    return document


def _send(conn: Connection, document: dict[str, Any]) -> None:
    conn.send(orjson.dumps(document).decode())
