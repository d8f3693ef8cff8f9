"""`redis+sentinel://`: one server at a time, the one that the sentinels name; another after a failover."""

from __future__ import annotations

import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote

import redis
from redis.connection import AbstractConnection
from redis.exceptions import NoPermissionError

from resilience.core.limiter import Charge, Limit
from resilience.errors import StorageUnavailable
from resilience.ports import Clock
from resilience.storage.carrier import Carrier
from resilience.storage.forms import Servers, parse_servers, wrong_address
from resilience.storage.nodes import TROUBLE, Address, asked, connector, exchange, stay_in_copy
from resilience.storage.redis import RedisStorage

__all__ = ["SENTINEL_PORT", "Primary", "RedisSentinelStorage"]

SENTINEL_PORT = 26_379
_SEARCH = 1.0
"""Seconds in which a primary is found, or not."""
_LOOK_EVERY = 1.0
_PROBE_LIMIT = Limit(10, 1)
_PROBE_SCOPE = f"probe:{secrets.token_hex(4)}"


class RedisSentinelStorage(RedisStorage):
    """Buckets on the server that the sentinels call the primary of a service.

    `uri` is `redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/db]`: the sentinels (port 26379 unless
    said otherwise), then the name of the service. `rediss+sentinel`, `valkey+sentinel` and `valkeys+sentinel` are known too.
    User and password are for the servers; sentinels that want some of their own find them behind a question mark, as
    `sentinel_username` and `sentinel_password`. The other arguments are those of `RedisStorage`.

    Each new connection asks the sentinels, one after the other, and makes sure that the server they name is a primary.
    Sentinels that are down, or that name a server that is none, are skipped; those that answered last are asked first. The
    search takes a second at most, beside the callers: none waits longer than `timeout`. While connected, a thread asks once
    a second whether it is still the same: a primary that was replaced while it lived would go on answering for some 10 s.

    What holds in a failover: Redis copies to replicas after it has answered. The new primary may not have seen the last
    writes, and counts what these took as not taken: at most the burst of each bucket, once per failover. In the time from
    the failure to the promotion `StandInStorage` decides, which allows every process its share of each limit besides: again
    a burst of each bucket, for all processes together if it knows how many there are. What a replaced primary decides until
    a process has noticed (a second) is not counted on the new one either; where sentinels cannot reach it and this process
    can, that lasts as long, unless the server is told to refuse then: `min-replicas-to-write 1`.
    """

    def __init__(
        self, uri: str, *, timeout: float = 0.05, namespace: str = "seawall", clock: Clock | None = None
    ) -> None:
        servers = parse_servers(uri, default_port=SENTINEL_PORT)
        self._primary = primary = Primary(servers, timeout=timeout)
        super().__init__(primary.client_uri, timeout=timeout, namespace=namespace, clock=clock)
        # Not by way of `connect`: what takes an address apart there may refuse several servers.
        self.uri = servers.uri
        self._carrier = Carrier(primary.connect, uri=self.uri, timeout=timeout, clock=clock)
        primary.when_replaced(self._carrier.close)

    def __repr__(self) -> str:
        return f"<RedisSentinelStorage: {self.uri}>"

    def probe(self) -> None:
        """Return if the primary takes charges. Raises `StorageUnavailable` otherwise, and asks the sentinels next time.

        A server that was isolated refuses writes and keeps its connections: another one may be the primary by now.
        """
        try:
            self.take((Charge(f"{_PROBE_SCOPE}:{os.getpid()}", "probe", _PROBE_LIMIT, 1),))
        except StorageUnavailable:
            self._carrier.close()
            raise

    def close(self) -> None:
        """Close the connection. The next decision opens a new one."""
        self._primary.stop_watching()
        super().close()


class Primary:
    """Finds the primary of a service, and notices when it is another one."""

    def __init__(self, servers: Servers, *, timeout: float) -> None:
        self._service, database = _path(servers)
        self._nodes = list(servers.nodes)  # the one that answered last comes first
        options = dict(servers.options)
        own = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
        servers = servers._replace(options=tuple(options.items()))
        self.client_uri = servers.client_uri(database)
        self._address: Address | None = None
        self._leave: Callable[[], Callable[[], None] | None] = _nobody
        self._watcher: threading.Thread | None = None
        self._stopped = threading.Event()
        self._server = connector(self.client_uri, timeout=timeout)
        self._sentinel = connector(servers._replace(credentials="").client_uri(), timeout=timeout, **own)

    def when_replaced(self, leave: Callable[[], None]) -> None:
        """`leave` (a method, which is not kept alive) is called when the server connected to is no longer the primary."""
        self._leave = weakref.WeakMethod(leave)

    def connect(self) -> AbstractConnection:
        """A connection to the primary. Raises `redis.ConnectionError` with what each sentinel led to."""
        connection = self._find()
        self._watch()
        return connection

    def _find(self) -> AbstractConnection:
        deadline = time.monotonic() + _SEARCH
        reasons: list[str] = []
        tried: set[Address] = set()
        for node in self._nodes:
            if time.monotonic() >= deadline:
                reasons.append(f"not within {_SEARCH:g} s")
                break
            try:
                address = self._named_by(node)
                if address in tried:
                    continue
                tried.add(address)
                return self._connected(address)
            except TROUBLE as error:
                reasons.append(f"sentinel {node[0]}:{node[1]}: {error}")
                self._ask_last(node)
        raise redis.ConnectionError(f"no primary of {self._service!r} found: {'; '.join(reasons)}")

    def _ask_last(self, node: Address) -> None:
        self._nodes = [other for other in self._nodes if other != node] + [node]

    def _named_by(self, sentinel: Address) -> Address:
        (answer,) = asked(self._sentinel, sentinel, ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service))
        if not answer:
            raise redis.ConnectionError(f"it knows no service {self._service!r}")
        host, port = answer
        return _text(host), int(port)

    def _connected(self, address: Address) -> AbstractConnection:
        connection: Any = self._server(host=address[0], port=address[1])
        try:
            _require_primary(connection, address)
        except BaseException:
            connection.disconnect()
            raise
        self._address = address
        return cast("AbstractConnection", connection)

    def _watch(self) -> None:
        # A thread does not survive a fork: the child's first connection starts its own.
        if self._watcher is None or not self._watcher.is_alive():
            self._stopped = stopped = threading.Event()
            arguments = (weakref.ref(self), stopped, os.getpid())
            self._watcher = threading.Thread(target=_keep_looking, args=arguments, name="seawall-sentinel", daemon=True)
            self._watcher.start()

    def stop_watching(self) -> None:
        """Until there is a connection again."""
        self._watcher = None
        self._stopped.set()

    def look(self) -> None:
        """Ask a sentinel whether the primary is the one connected to. Another one is asked next time if it does not say."""
        node = self._nodes[0]
        try:
            address = self._named_by(node)
        except TROUBLE:
            self._ask_last(node)
            return
        leave = self._leave()
        if address != self._address and leave is not None:
            leave()


def _nobody() -> None:
    """Whom to tell, before there is somebody."""


def _keep_looking(reference: weakref.ref[Primary], stopped: threading.Event, process: int) -> None:
    try:
        while not stopped.wait(_LOOK_EVERY) and os.getpid() == process:
            primary = reference()
            if primary is None:
                return
            primary.look()
            del primary
    finally:
        stay_in_copy(process)


def _path(servers: Servers) -> tuple[str, int]:
    """The service, and the number of the database."""
    service, *rest = servers.path or ("", "")
    if not service or len(rest) > 1 or not all(part.isascii() and part.isdecimal() for part in rest):
        raise wrong_address(
            servers.uri.partition("://")[0],
            "behind the sentinels stand the service and the number of a database, if any",
        )
    return unquote(service), int(rest[0]) if rest else 0


def _require_primary(connection: AbstractConnection, address: Address) -> None:
    try:
        role = _text(exchange(connection, "ROLE")[0])
    except NoPermissionError:
        return  # not for this user to know: a replica refuses the first write
    if role != "master":
        raise redis.ConnectionError(f"it names {address[0]}:{address[1]}, which is a {role}")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
