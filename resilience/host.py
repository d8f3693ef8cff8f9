"""The name of this host among those that share a storage."""

from __future__ import annotations

import os
import re
import socket

__all__ = ["host_name"]

_VARIABLE = "RESILIENCE_HOST"
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


def host_name() -> str:
    """What the environment's RESILIENCE_HOST says, or else the operating system.

    Two hosts of one name count as one: they have one vote in a circuit, and answer for each other. Give containers that come
    and go under new names a name that says where they run. Raises `ValueError` when RESILIENCE_HOST is not 1 to 100 letters,
    digits, `_`, `.`, `:` or `-`.
    """
    name = os.environ.get(_VARIABLE, "").strip()
    if not name:
        return socket.gethostname()
    if not _NAME.fullmatch(name):
        raise ValueError(f"{_VARIABLE}={name!r}: write 1 to 100 letters, digits, '_', '.', ':' or '-'")
    return name
