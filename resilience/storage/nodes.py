"""Connections to one of several servers, and single questions to them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import redis
from redis.connection import AbstractConnection

from resilience.storage.redis import connection_options

__all__ = ["TROUBLE", "Address", "Connect", "asked", "connector", "exchange", "stay_in_copy"]

Address = tuple[str, int]
"""Host and port of a server."""

Connect = Callable[..., AbstractConnection]
"""Makes a connection to a server, given its `host` and `port`. It connects when it is used first."""

_SHORTEST, _LONGEST = 0.25, 0.5
"""Seconds for one answer of one server where no caller waits for it: the storage's timeout if it lies in between."""

TROUBLE = (OSError, redis.RedisError)
"""What a server that does not answer, or answers with an error, raises."""


def connector(client_uri: str, *, timeout: float, **credentials: str | None) -> Connect:
    """What makes connections with the credentials and options of an address in the notation of redis-py."""
    kind, options = connection_options(client_uri, timeout=min(max(timeout, _SHORTEST), _LONGEST))
    del options["host"]
    return partial(kind, **(options | credentials))


def exchange(connection: Any, *command: str) -> Any:
    """The answer to a command. Raises what is in `TROUBLE`."""
    connection.connect()  # if it is not connected yet
    connection.send_command(*command)
    return connection.read_response()


def asked(connect: Connect, address: Address, *commands: tuple[str, ...]) -> list[Any]:
    """The answers of a server to these commands, over a connection that is closed then. Raises what is in `TROUBLE`."""
    connection: Any = connect(host=address[0], port=address[1])
    try:
        return [exchange(connection, *command) for command in commands]
    finally:
        connection.disconnect()


def stay_in_copy(process: int) -> None:
    """The end of a thread of that process: not to be reached by a copy of it.

    Under greenlets a forked child has copies of its parent's. As a thread such a one is not known there, and would be
    complained about if it ended.
    """
    if os.getpid() != process:
        threading.Event().wait()
