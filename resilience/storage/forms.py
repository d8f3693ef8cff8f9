"""The addresses of storages: how they are written, and how those that name servers are read."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

__all__ = ["FORMS", "SERVER_KINDS", "Servers", "parse_servers", "require_one_server", "wrong_address"]

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

_HOST = re.compile(
    r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?)\]|(?P<plain>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?"
)
_SERVER_FORMS = dict(zip(("", "+unix", "+sentinel", "+cluster"), FORMS[3:], strict=True))
SERVER_KINDS = {
    scheme + suffix: suffix
    for suffix in _SERVER_FORMS
    for scheme in ("redis", "rediss", "valkey", "valkeys")
    if (scheme, suffix) not in (("rediss", "+unix"), ("valkeys", "+unix"))
} | {"unix": "+unix"}
"""What each scheme of a server is one of: a server, a socket, Sentinel's or a Cluster's."""


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


def require_one_server(uri: str, scheme: str) -> None:
    """Refuse what redis-py takes for granted: it would go to another host, or the first database, without a word."""
    servers = parse_servers(uri, default_port=6_379)
    if len(servers.nodes) > 1:
        raise wrong_address(scheme, "it names more than one server")
    if len(servers.path) > 1 or not all(part.isascii() and part.isdecimal() for part in servers.path):
        raise wrong_address(scheme, "behind the server stands the number of a database, if anything")


def wrong_address(scheme: str, reason: str) -> ValueError:
    """The error that says what is wrong with the address of a server, and how to write it."""
    form = _SERVER_FORMS[SERVER_KINDS[scheme]]
    return ValueError(f"{scheme}:// address: {reason}; write {scheme}{form[form.index('://') :]}")
