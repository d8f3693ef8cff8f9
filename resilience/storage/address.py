"""From an address to a storage: the table of addresses, and how those that name several servers are read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NamedTuple, get_args
from urllib.parse import parse_qsl, urlencode

from resilience.ports import LimitStorage
from resilience.storage.denials import RememberedDenials
from resilience.storage.leases import LeasingStorage
from resilience.storage.memory import MemoryStorage
from resilience.storage.standin import OnStoreFailure, StandInStorage

__all__ = ["FORMS", "Servers", "open_storage", "parse_servers", "wrong_address"]

FORMS = (
    "memory://[?buckets=N]",
    "shm://[name]",
    "shm:///absolute/path",
    "redis://[user:password@]host[:port][/db]",
    "redis+unix://[user:password@]/path/of/socket[?db=N]",
    "redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/db]",
    "redis+cluster://[user:password@]host[:port][,host[:port]...]",
)
"""The addresses of storages. `valkey` may stand for `redis`; `rediss` and `valkeys` are the same under TLS."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_HOST = re.compile(
    r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?)\]|(?P<plain>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?"
)
_SERVER_FORMS = dict(zip(("", "+unix", "+sentinel", "+cluster"), FORMS[3:], strict=True))
_SERVER_KINDS = {
    scheme + suffix: suffix
    for suffix in _SERVER_FORMS
    for scheme in ("redis", "rediss", "valkey", "valkeys")
    if (scheme, suffix) not in (("rediss", "+unix"), ("valkeys", "+unix"))
} | {"unix": "+unix"}


class Servers(NamedTuple):
    """An address that names several servers, in parts."""

    uri: str
    """The address without credentials and options."""
    secure: bool
    """Whether TLS is spoken."""
    credentials: str
    """`user:password` as written, percent-encoded; empty without."""
    nodes: tuple[tuple[str, int], ...]
    """Host and port of each."""
    path: tuple[str, ...]
    """What stands between slashes behind the servers."""
    options: tuple[tuple[str, str], ...]
    """What stands behind the question mark, decoded."""

    def client_uri(self, database: int = 0) -> str:
        """An address in the notation of redis-py with the same credentials and options, for any one of the servers."""
        scheme = "rediss" if self.secure else "redis"
        credentials = f"{self.credentials}@" if self.credentials else ""
        query = f"?{urlencode(self.options)}" if self.options else ""
        return f"{scheme}://{credentials}localhost/{database}{query}"


def parse_servers(uri: str, *, default_port: int) -> Servers:
    """Take `scheme://[user:password@]host[:port][,host[:port]...][/path][?options]` apart.

    Raises `ValueError` that says what is wrong and quotes nothing that could be part of a password.
    """
    scheme, _, rest = uri.partition("://")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    if "@" in path or "@" in query or "#" in uri:
        raise wrong_address(scheme, "/, ?, # and @ in a password or a name are written %2F, %3F, %23 and %40")
    nodes = tuple(
        _host_and_port(scheme, position, host, default_port) for position, host in enumerate(hosts.split(","), start=1)
    )
    return Servers(
        uri=f"{scheme}://{hosts}" + (f"/{path}" if path else ""),
        secure=scheme.startswith(("rediss", "valkeys")),
        credentials=credentials,
        nodes=nodes,
        path=tuple(part for part in path.split("/") if part),
        options=tuple(parse_qsl(query, keep_blank_values=True)),
    )


def _host_and_port(scheme: str, position: int, text: str, default_port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None:
        raise wrong_address(scheme, f"server {position} is not host or host:port")
    port = default_port if match["port"] is None else int(match["port"])
    if not 0 < port < 65_536:
        raise wrong_address(scheme, f"the port of server {position} is not between 1 and 65535")
    return match["bracketed"] or match["plain"], port


def wrong_address(scheme: str, reason: str) -> ValueError:
    """The error that says what is wrong with the address of a server, and how to write it."""
    form = _SERVER_FORMS[_SERVER_KINDS[scheme]]
    return ValueError(f"{scheme}:// address: {reason}; write {scheme}{form[form.index('://') :]}")


def open_storage(
    uri: str,
    *,
    on_store_failure: OnStoreFailure = "local",
    timeout: float = 0.05,
    namespace: str = "seawall",
    workers: int | None = None,
) -> LimitStorage:
    """The storage at `uri`, one of `FORMS`. A shared one comes with a stand-in that decides while it is down.

    `on_store_failure` says how the stand-in decides: "local" enforces the same limits in this process, divided by
    `workers` (how many processes share the traffic; None takes the environment's WEB_CONCURRENCY, or 1), "allow" lets
    everything pass, "deny" nothing. `timeout` bounds every decision of a server, in seconds. `namespace` starts every key:
    services that share a server and must not share buckets need one each.

    Opens no connection yet. Raises `ValueError` naming the accepted forms, never a password, and `ImportError` naming the
    extra to install when the redis client is missing.
    """
    if on_store_failure not in get_args(OnStoreFailure):
        raise ValueError(f"on_store_failure={on_store_failure!r}: choose one of {', '.join(get_args(OnStoreFailure))}")
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme == "memory":
        return _memory(uri)
    if scheme == "shm":
        primary = _shared_memory(uri)
    elif scheme in _SERVER_KINDS:
        primary = _server(uri, scheme, timeout=timeout, namespace=namespace)
    else:
        # Not the whole address: it may hold a password.
        shown = repr(scheme) if _SCHEME.fullmatch(scheme) else "an address without a scheme"
        raise ValueError(f"{shown} is no storage: use one of {', '.join(FORMS)}")
    return StandInStorage(primary, on_store_failure=on_store_failure, workers=_workers(workers))


def _workers(workers: int | None) -> int:
    if workers is None:
        stated = os.environ.get("WEB_CONCURRENCY", "")
        return int(stated) if re.fullmatch(r"[1-9][0-9]{0,4}", stated) else 1
    if workers < 1:
        raise ValueError(f"workers={workers!r}: at least one process shares the traffic")
    return workers


def _memory(uri: str) -> MemoryStorage:
    place, _, query = uri.removeprefix("memory://").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    buckets = options.pop("buckets", None)
    if place or options or not re.fullmatch(r"[1-9][0-9]{0,9}", buckets or "1"):
        raise ValueError(f"memory:// address: write {FORMS[0]} with N, the most buckets kept, from 1")
    return MemoryStorage() if buckets is None else MemoryStorage(size=int(buckets))


def _shared_memory(uri: str) -> LimitStorage:
    from resilience.storage.shm import SharedMemoryStorage

    return SharedMemoryStorage(uri)


def _server(uri: str, scheme: str, *, timeout: float, namespace: str) -> LimitStorage:
    if not _SERVER_KINDS[scheme]:
        _require_one_server(uri, scheme)
    try:
        opened = _opener(scheme)(uri, timeout=timeout, namespace=namespace)
    except ModuleNotFoundError as error:
        raise ImportError(f"{scheme}:// needs the redis client: install seawall[redis]") from error
    return LeasingStorage(RememberedDenials(opened))


def _opener(scheme: str) -> Callable[..., LimitStorage]:
    kind = _SERVER_KINDS[scheme]
    if kind == "+sentinel":
        from resilience.storage.sentinel import RedisSentinelStorage

        return RedisSentinelStorage
    if kind == "+cluster":
        from resilience.storage.cluster import RedisClusterStorage

        return RedisClusterStorage
    from resilience.storage.redis import RedisStorage

    return RedisStorage


def _require_one_server(uri: str, scheme: str) -> None:
    """What redis-py takes for granted: it would go to another host, or the first database, without a word."""
    servers = parse_servers(uri, default_port=6_379)
    if len(servers.nodes) > 1:
        raise wrong_address(scheme, "it names more than one server")
    if len(servers.path) > 1 or not all(part.isascii() and part.isdecimal() for part in servers.path):
        raise wrong_address(scheme, "behind the server stands the number of a database, if anything")
