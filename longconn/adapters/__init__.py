"""Flask on both sides: WebSockets, event streams and commands of an application."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from longconn.channels.hub import Channels

__all__ = ["channels_of"]

EXTENSION = "longconn.channels"


def channels_of(app: Flask) -> Channels:
    """The channels of `app`; made, with the place that belongs to it, when it has none yet. Nothing is opened by that."""
    channels: Channels | None = app.extensions.get(EXTENSION)
    if channels is None:
        from longconn.channels.hub import default_channels

        channels = app.extensions.setdefault(EXTENSION, default_channels(app.import_name, app.root_path))
    return channels
