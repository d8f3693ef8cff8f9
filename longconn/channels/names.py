"""How channels are called, and which of them a pattern means."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from longconn.channels.errors import ChannelNameError

__all__ = ["LONGEST", "checked_label", "checked_name", "matcher"]

LONGEST: Final = 200
"""Bytes of a name, in UTF-8."""

_PLAIN: Final = re.compile(r"[!-~]{1,200}").fullmatch
"""Nearly every name: it is decided at once."""


def checked_name(name: str) -> str:
    """`name`, which may be that of a channel: 1 to 200 bytes of UTF-8, all printable, no spaces. Raises
    `ChannelNameError`."""
    given: object = name  # whoever calls need not have had a type checker
    if not isinstance(given, str):
        raise ChannelNameError(f"the name of a channel is text, not {type(name).__name__}")
    if _PLAIN(name):
        return name
    if not name:
        raise ChannelNameError("the name of a channel is empty: 1 to 200 bytes are needed")
    if not name.isprintable() or any(character.isspace() for character in name):
        raise ChannelNameError(
            f"{_shown(name)} is no name of a channel: it is 1 to 200 bytes of printable characters without spaces"
        )
    if len(name.encode()) > LONGEST:
        raise ChannelNameError(
            f"{_shown(name)} is too long for the name of a channel: at most {LONGEST} bytes of UTF-8"
        )
    return name


def checked_label(text: str, what: str) -> str:
    """`text`, which may go with a message as its `what` ("event" or "key"): at most 200 bytes, and nothing that would end a
    line or break it. Raises `ChannelNameError`."""
    if not text:
        return ""
    if not isinstance(text, str):
        raise ChannelNameError(f"the {what} of a message is text, not {type(text).__name__}")
    if not text.isprintable():
        raise ChannelNameError(
            f"{_shown(text)} is no {what} of a message: it is made of printable characters and spaces"
        )
    if len(text.encode()) > LONGEST:
        raise ChannelNameError(
            f"{_shown(text)} is too long for the {what} of a message: at most {LONGEST} bytes of UTF-8"
        )
    return text


def matcher(pattern: str) -> Callable[[str], object]:
    """Says whether `pattern` means a name: `*` stands for any characters, or none, and every other character for itself.
    Raises `ChannelNameError` for a pattern that no name could fit."""
    given: object = pattern
    if not isinstance(given, str) or not pattern or not pattern.isprintable() or " " in pattern:
        raise ChannelNameError(f"{pattern!r} is no pattern for channels: write a name, with * where anything may stand")
    # Several stars in a row would say the same as one, only slower.
    parts = re.sub(r"\*+", "*", pattern).split("*")
    return re.compile(".*".join(re.escape(part) for part in parts), re.DOTALL).fullmatch


def _shown(text: str) -> str:
    return repr(text[:40]) + ("..." if len(text) > 40 else "")
