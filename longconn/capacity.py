"""How many connections a process can hold: each is an open file."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

__all__ = ["UNLIMITED_FILES", "Capacity", "capacity_within", "open_files", "raise_file_limit"]

UNLIMITED_FILES = 1_048_576
MOST_KEPT_BACK = 512
SHARE_KEPT_BACK = 8


@dataclass(frozen=True, slots=True)
class Capacity:
    """`connections` is what a process takes on when it may open `files` files, has `in_use` open already, and keeps
    `kept_back` for what its application opens."""

    files: int
    in_use: int
    kept_back: int
    connections: int


def raise_file_limit() -> int:
    """Raise this process's limit of open files to what it may have, and return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = UNLIMITED_FILES if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return UNLIMITED_FILES if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # some systems say "unlimited" and do not mean it
        return soft
    return wanted


def open_files() -> int:
    """How many files this process has open; 64 where that cannot be seen."""
    try:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return 64


def capacity_within(files: int, in_use: int, *, wanted: int = 0) -> Capacity:
    """The capacity of a process that may open `files` files and has `in_use` open. `wanted`: no more than that, 0 for all.

    An eighth of the files, at most 512, is kept back for the application: its calls to others, its database, its files.
    """
    kept_back = min(MOST_KEPT_BACK, files // SHARE_KEPT_BACK)
    possible = max(1, files - in_use - kept_back)
    return Capacity(files, in_use, kept_back, min(wanted, possible) if wanted else possible)
