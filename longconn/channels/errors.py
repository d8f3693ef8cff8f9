"""What can go wrong with channels.

LongConnError
└── ChannelError(status)
    ├── ChannelNameError          400  no name for a channel, nor for what goes with a message
    ├── PositionError             400  no position in a channel
    ├── MessageRefused            413  too large, or nothing that a message can carry
    ├── ChannelForbidden          403  this user may not do this with this channel
    └── ChannelsUnavailable       503  the storage of the channels does not answer, or has no room
"""

from __future__ import annotations

from longconn.errors import LongConnError

__all__ = [
    "ChannelError",
    "ChannelForbidden",
    "ChannelNameError",
    "ChannelsUnavailable",
    "MessageRefused",
    "PositionError",
]


class ChannelError(LongConnError):
    """The base of what goes wrong with channels. `status` is the status of an HTTP answer that tells of it."""

    status = 400


class ChannelNameError(ChannelError, ValueError):
    """This is no name for a channel (or for an event or a key of a message)."""


class PositionError(ChannelError, ValueError):
    """This is no position in a channel."""


class MessageRefused(ChannelError, ValueError):
    """A message is too large, or cannot be carried."""

    status = 413


class ChannelForbidden(ChannelError):
    """`user` may not do `action` ("subscribe", "publish" or "history") with `channel`."""

    status = 403

    def __init__(self, user: object, channel: str, action: str) -> None:
        super().__init__(f"not allowed to {_PHRASES.get(action, action)} channel {channel!r}")
        self.user = user
        self.channel = channel
        self.action = action


class ChannelsUnavailable(ChannelError):
    """The storage of the channels does not answer, or has no room."""

    status = 503


_PHRASES = {"subscribe": "subscribe to", "publish": "publish on", "history": "read the history of"}
