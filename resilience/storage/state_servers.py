"""Which server keeps the state: the one of the address, Sentinel's primary, or the node of a Cluster that serves the slot."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol

from redis.connection import AbstractConnection

from resilience.storage.forms import SERVER_KINDS, parse_servers, require_one_server, wrong_address
from resilience.storage.redis import connection_options, without_credentials
from resilience.storage.sentinel import SENTINEL_PORT, Primary
from resilience.storage.slots import slot_of
from resilience.storage.topology import Topology

__all__ = ["StateServer", "connector_to"]

_PORT: Final = 6_379
_PATIENCE: Final = 0.25
"""Seconds for connecting, unless callers wait longer: none waits for this."""
_MOVED: Final = re.compile(r"MOVED \d+ (?P<host>\S*):(?P<port>\d{1,5})$")


class StateServer(Protocol):
    """Knows the server that keeps the state. See `resilience.storage.wire.Connector` for the first two."""

    uri: str
    """The address without credentials."""
    database: int
    """The number of the database that the keys lie in."""

    def connect(self) -> AbstractConnection:
        """A new connection to it."""

    def mistaken(self, message: str) -> str:
        """The server connected to last has answered with this error."""

    def when_replaced(self, leave: Callable[[], None]) -> None:
        """`leave`, a method that is not kept alive, is called when another server has taken its place."""

    def close(self) -> None:
        """End what looks after it, until there is a connection again."""


def connector_to(uri: str, *, tag: str, timeout: float) -> StateServer:
    """What connects to the server at `uri` that keeps the keys of this hash tag. Opens nothing. Raises `ValueError` for an
    address that is none."""
    scheme = uri.partition("://")[0]
    if scheme not in SERVER_KINDS:
        raise ValueError(f"{scheme!r} is no scheme of a Redis server: use one of {', '.join(sorted(SERVER_KINDS))}")
    kind = SERVER_KINDS[scheme]
    if kind == "+sentinel":
        return _Sentinels(uri, timeout)
    if kind == "+cluster":
        return _Cluster(uri, tag, timeout)
    if not kind:
        require_one_server(uri, scheme)
    return _OneServer(uri, timeout)


def _database(options: Mapping[str, Any]) -> int:
    return int(options.get("db") or 0)


class _OneServer:
    def __init__(self, uri: str, timeout: float) -> None:
        self.uri = without_credentials(uri)
        kind, options = connection_options(uri, timeout=max(timeout, _PATIENCE))
        self.database = _database(options)
        self.connect: Callable[[], AbstractConnection] = partial(kind, **options)

    def mistaken(self, message: str) -> str:
        is_one_of_many = message.startswith(("MOVED", "ASK"))
        return f"{message} (this is a node of a cluster: name it as redis+cluster://)" if is_one_of_many else message

    def when_replaced(self, leave: Callable[[], None]) -> None:
        """There is no other."""

    def close(self) -> None:
        """Nothing looks after it."""


class _Sentinels:
    def __init__(self, uri: str, timeout: float) -> None:
        servers = parse_servers(uri, default_port=SENTINEL_PORT)
        self.uri = servers.uri
        self._primary = Primary(servers, timeout=timeout)
        self.database = _database(connection_options(self._primary.client_uri, timeout=timeout)[1])
        self.connect = self._primary.connect
        self.when_replaced = self._primary.when_replaced
        self.close = self._primary.stop_watching

    def mistaken(self, message: str) -> str:
        """Every connection begins with a question to the sentinels."""
        return message


class _Cluster:
    database = 0

    def __init__(self, uri: str, tag: str, timeout: float) -> None:
        servers = parse_servers(uri, default_port=_PORT)
        if servers.path:
            raise wrong_address(uri.partition("://")[0], "a cluster has no path, and one database only")
        self.uri = servers.uri.rstrip("/")
        self._topology = Topology(servers, timeout=max(timeout, _PATIENCE))
        self._slot = slot_of(tag.encode())
        self._asked = ("", 0)
        self._is_known = False

    def connect(self) -> AbstractConnection:
        if not self._is_known:
            self._topology.search()
        self._is_known = False
        self._asked = host, port = self._topology.owner(self._slot)
        return self._topology.connect(host=host, port=port)

    def mistaken(self, message: str) -> str:
        moved = _MOVED.match(message)
        if moved is not None:
            self._topology.learn(self._slot, (moved["host"] or self._asked[0], int(moved["port"])))
            self._is_known = True
        return message

    def when_replaced(self, leave: Callable[[], None]) -> None:
        """The node says so itself."""

    def close(self) -> None:
        """Nothing looks after it."""
