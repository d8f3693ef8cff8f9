"""In which folder the processes of one application meet that were told of none."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Final

from longconn.channels.errors import ChannelError

__all__ = ["folder", "name_of"]

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of the user's own in it, that nobody else can enter
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,47}")
_SHOWN: Final = 24
"""Characters of an application's name that stay recognisable: the path of a socket is to stay within 104 bytes."""


def folder(name: str) -> Path:
    """The folder of the channels called `name`: in shared memory where there is some, else in the temporary folder; a
    `name` with a slash is the path of the folder itself. Raises `ChannelError` for anything else."""
    if "/" in name:
        path = Path(name)
        if not path.is_absolute() or "\0" in name:
            raise ChannelError(f"{name!r} is no folder for channels: its path begins with a slash")
        return path
    if not _NAME.fullmatch(name):
        raise ChannelError(
            f"{name!r} is no name for channels: up to 48 letters, digits, dots, dashes and underscores, and no dot or dash "
            "in front; or the absolute path of a folder"
        )
    base = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    return base / f"longconn-{os.geteuid()}-{name}"


def name_of(import_name: str, root_path: str) -> str:
    """The name of an application's channels: its own, and which of several of that name is meant."""
    shown = re.sub(r"[^A-Za-z0-9_]+", "-", import_name).strip("-")[-_SHOWN:].strip("-") or "application"
    which = hashlib.blake2b(os.fsencode(root_path), digest_size=5).hexdigest()
    return f"{shown}-{which}"
