"""Where the workers of one machine meet that were told of no folder: beside what they share, or under its name."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from resilience.ports import StateStorage

__all__ = ["folder_of", "is_private"]

_LONGEST: Final = 64
"""Bytes of the folder's path: with the name of a socket it is to stay within the 104 that every Unix takes."""
_SHOWN: Final = 24
"""Characters of the file's name that stay recognisable."""


def folder_of(state: StateStorage) -> Path | None:
    """The folder that every process of this user works out which shares `state` through a file of this machine; None where
    it is shared in another way, or not at all. It need not exist."""
    file = getattr(state, "path", None)
    if not state.uri.startswith("shm:") or not isinstance(file, Path):
        return None
    beside = file.with_name(f"{file.name}.peers")
    if is_private(file.parent) and len(os.fsencode(beside)) <= _LONGEST:
        return beside
    # A folder for everybody: the name says whose it is, and which of several files of one name is meant.
    user = f"seawall-{os.geteuid()}-"
    which = hashlib.blake2b(os.fsencode(file), digest_size=5).hexdigest()
    base = Path(tempfile.gettempdir())
    name = f"{user}{file.name.removeprefix(user)[:_SHOWN]}-{which}"
    return base / (name if len(os.fsencode(base / name)) <= _LONGEST else f"{user}{which}")


def is_private(folder: Path) -> bool:
    """Whether this is a folder of this user's that nobody else can enter."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
