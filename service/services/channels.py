"""The rules about channels: who may hear and say what, and what a message looks like.

| channel | who hears it | who speaks in it |
|---|---|---|
| `live` | everybody who is let in | the service alone: its counters, every second |
| `demo:lobby`, `demo:pier`, `demo:beach` | everybody, guests of the demo too | the same |
| `user:7`, `user:7:...` | the user 7, and admins | the same |
| any other | whoever is signed in | the same |

Guests say little at a time, and not often: what they say must push nothing out that others keep.

What the service publishes is one JSON document, `{"from": ..., "data": ...}`: the sender is the service's word and not the
publisher's. What comes from elsewhere (`flask channels publish`) may be any text, and has no sender.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from longconn.channels.errors import (
    ChannelForbidden,
    ChannelNameError,
    ChannelsUnavailable,
    MessageRefused,
    PositionError,
)
from longconn.channels.ports import History, Message, Position
from service.errors import ChannelsUnavailable as Unavailable
from service.errors import Forbidden, PayloadTooLarge, TooManyRequests, ValidationFailed
from service.model import Participant
from service.services.members import Fault, check_members
from service.services.ports import Channels, Limiter

__all__ = [
    "LIVE",
    "MOST_MESSAGES",
    "Action",
    "ChannelService",
    "Command",
    "Ping",
    "Publication",
    "Publish",
    "Subscribe",
    "Unsubscribe",
    "describe",
    "envelope",
    "parse_command",
    "parse_position",
    "parse_publication",
]

LIVE: Final = "live"
"""The channel of the service's own counters."""

DEMO: Final = ("demo:lobby", "demo:pier", "demo:beach")
"""The channels of guests. They are a few, so that what they keep is little beside what others keep."""

GUEST_MESSAGE_LIMIT: Final = 4_096
"""Bytes of a guest's message."""

OWN: Final = "user:"
MOST_MESSAGES: Final = 1_000
"""Of a channel's history, in one answer."""

LONGEST_LABEL: Final = 64
SHOWN_WITHIN: Final = 50
"""Levels that a message must bear around it: it is shown within others, and what nests 255 deep cannot be written."""

OF_THE_STREAM: Final = frozenset({"error", "message", "missed", "open"})
"""Events that a browser's `EventSource`, or the stream itself, has already. Another's would be taken for these."""

Action = Literal["subscribe", "publish", "history"]


@dataclass(frozen=True, slots=True)
class Publication:
    """What is to be published: `data` is any JSON value; `event` names its kind, `key` what it replaces in a queue that
    conflates."""

    data: Any
    event: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Hear a channel: from now on, from after a position, or beginning with the newest messages."""

    channel: str
    since: Position | None = None
    recent: int = 0


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Hear it no longer."""

    channel: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Say something in a channel."""

    channel: str
    publication: Publication


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer, to show that the way is open."""


Command = Subscribe | Unsubscribe | Publish | Ping


def _channel_fault(value: str) -> str | None:
    return None if value else "must be the name of a channel"


def _since_fault(value: str) -> str | None:
    try:
        Position.parse(value)
    except ValueError:
        return "must be the position of a message as you got it, such as 18f2a3b4c5-17"
    return None


def _label_fault(value: str) -> str | None:
    fits = len(value) <= LONGEST_LABEL and (not value or value.isprintable())
    return None if fits else f"must be at most {LONGEST_LABEL} printable characters"


def _event_fault(value: str) -> str | None:
    if value in OF_THE_STREAM:
        return f"must be none of {', '.join(sorted(OF_THE_STREAM))}: event streams have these themselves"
    return _label_fault(value)


def _anything(_: str) -> None:
    """It has been looked at before."""


PUBLICATION: Final[Mapping[str, Fault]] = {"data": _anything, "event": _event_fault, "key": _label_fault}
HEADING: Final[Mapping[str, Fault]] = {"type": _anything, "id": _anything}
RULES: Final[Mapping[str, tuple[Mapping[str, Fault], tuple[str, ...]]]] = {
    "subscribe": (
        {**HEADING, "channel": _channel_fault, "since": _since_fault, "recent": _anything},
        ("channel",),
    ),
    "unsubscribe": ({**HEADING, "channel": _channel_fault}, ("channel",)),
    "publish": ({**HEADING, "channel": _channel_fault, **PUBLICATION}, ("channel", "data")),
    "ping": (HEADING, ()),
}
"""What each type of command takes, and what it needs."""


def parse_publication(members: Mapping[str, object]) -> Publication:
    """What the members of an input say. Raises `ValidationFailed` with everything that is wrong."""
    return Publication(**check_members(members, PUBLICATION, required=("data",), free=("data",)))


def parse_command(members: Mapping[str, object]) -> Command:
    """The command that the members of a message over a WebSocket describe. Raises `ValidationFailed` with everything that is
    wrong."""
    kind = members.get("type")
    if not isinstance(kind, str) or kind not in RULES:
        reason = f"must be one of: {', '.join(RULES)}"
        raise ValidationFailed(f"/type {reason}.", fields=[("/type", reason)])
    rules, required = RULES[kind]
    checked = check_members(members, rules, required=required, free=("data", "id", "recent"))
    channel = checked.get("channel", "")
    match kind:
        case "subscribe":
            return _subscribe(channel, checked)
        case "unsubscribe":
            return Unsubscribe(channel)
        case "publish":
            return Publish(channel, Publication(**{name: checked[name] for name in PUBLICATION if name in checked}))
        case _:
            return Ping()


def _subscribe(channel: str, members: Mapping[str, Any]) -> Subscribe:
    recent = members.get("recent", 0)
    if type(recent) is not int or not 0 <= recent <= MOST_MESSAGES:
        raise _wrong("/recent", f"must be a whole number from 0 to {MOST_MESSAGES}")
    if recent and "since" in members:
        raise _wrong("/recent", "does not go with since: say one of them")
    since = Position.parse(members["since"]) if "since" in members else None
    return Subscribe(channel, since, recent)


def parse_position(text: str, pointer: str = "/since") -> Position:
    """The position that `text` names. Raises `ValidationFailed`."""
    try:
        return Position.parse(text)
    except ValueError:
        raise _wrong(pointer, str(_since_fault(text))) from None


def _wrong(pointer: str, reason: str) -> ValidationFailed:
    return ValidationFailed(f"{pointer} {reason}.", fields=[(pointer, reason)])


def envelope(sender: str, data: Any) -> str:
    """`data` of `sender` as it is published. Raises `ValidationFailed` for what is no JSON, and for what nests too deeply to be
    shown."""
    document: Any = {"from": sender, "data": data}
    for _ in range(SHOWN_WITHIN):
        document = [document]
    try:
        return orjson.dumps(document)[SHOWN_WITHIN:-SHOWN_WITHIN].decode()
    except orjson.JSONEncodeError:
        raise _wrong(
            "/data", "must be JSON: whole characters, whole numbers of 64 bits, nested less than 200 deep"
        ) from None


def describe(message: Message) -> dict[str, Any]:
    """A message as readers get it. Where the service did not publish it, `from` is None and `data` the text, or its JSON."""
    sender, data = _opened(message.data)
    document: dict[str, Any] = {
        "channel": message.channel,
        "position": str(message.position),
        "at": round(message.at, 3),
        "from": sender,
        "data": data,
    }
    if message.event:
        document["event"] = message.event
    return document


def _opened(stored: str | bytes) -> tuple[str | None, Any]:
    text = stored if isinstance(stored, str) else stored.decode(errors="replace")
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None, text
    if isinstance(content, dict) and content.keys() == {"from", "data"} and isinstance(content["from"], str):
        return content["from"], content["data"]
    return None, content


class ChannelService:
    """Channels, as far as somebody may use them. `message_limit` is in bytes of a message as it is published; `guests` is how
    often each guest may publish."""

    def __init__(self, channels: Channels, *, message_limit: int, guests: Limiter | None = None) -> None:
        self._channels = channels
        self._message_limit = message_limit
        self._guests = guests

    def check(self, who: Participant, channel: str, action: Action) -> None:
        """Raise `Forbidden` where `who` may not do that with `channel`."""
        if channel == LIVE:
            if action == "publish":
                raise Forbidden(f"Only the service itself publishes in {LIVE}.")
        elif channel.startswith(OWN):
            owner = channel.removeprefix(OWN).partition(":")[0]
            if who.caller is None or not (who.is_admin or owner == str(who.caller.user_id)):
                raise Forbidden("This channel is another user's.")
        elif who.is_guest and channel not in DEMO:
            raise Forbidden(f"Guests use {', '.join(DEMO)}, and hear {LIVE}. Sign in for the others.")

    def publish(self, who: Participant, channel: str, publication: Publication) -> Position:
        """Have everybody hear it, and return where it stands. Raises `Forbidden`, `ValidationFailed`, `PayloadTooLarge`,
        `TooManyRequests` for a guest who says too much, and `ChannelsUnavailable` when it can be neither carried nor kept."""
        self.check(who, channel, "publish")
        text = envelope(who.name, publication.data)
        limit = min(self._message_limit, GUEST_MESSAGE_LIMIT) if who.is_guest else self._message_limit
        if len(text.encode()) > limit:
            whose = "A guest's message" if who.is_guest else "A message"
            raise PayloadTooLarge(f"{whose} may hold at most {limit} bytes.")
        if who.is_guest and self._guests is not None:
            decision = self._guests.try_acquire(who.name)
            if not decision.allowed:
                raise TooManyRequests(
                    "Guests may not say more at the moment. Wait a little.", retry_after=decision.retry_after
                )
        with translated():
            return self._channels.publish(channel, text, event=publication.event, key=publication.key)

    def history(self, who: Participant, channel: str, since: Position | None, *, most: int | None = None) -> History:
        """What the channel still holds after `since`, at most the newest `most`. Raises `Forbidden`, `ValidationFailed` and
        `ChannelsUnavailable`."""
        self.check(who, channel, "history")
        with translated():
            return self._channels.history(channel, since, most)

    def start_of_recent(self, who: Participant, channel: str, count: int) -> Position:
        """The position after which the newest `count` messages come, or as many as there are."""
        history = self.history(who, channel, None, most=count)
        if not history.messages:
            return history.position
        first = history.messages[0].position
        return Position(first.epoch, first.number - 1)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """What channels raise, in this service's words."""
    try:
        yield
    except ChannelNameError as error:
        raise _wrong("/channel", _advice(error)) from None
    except PositionError as error:
        raise _wrong("/since", _advice(error)) from None
    except MessageRefused as error:
        raise PayloadTooLarge(f"{_advice(error).capitalize()}.") from None
    except ChannelForbidden:
        raise Forbidden("The caller may not do this with this channel.") from None
    except ChannelsUnavailable as error:
        raise Unavailable("Messages cannot be carried at the moment. Try again.", retry_after=1.0) from error


def _advice(error: Exception) -> str:
    return str(error).rstrip(".")
