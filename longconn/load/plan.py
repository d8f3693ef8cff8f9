"""What a load is to be: how many connections of which kind, from where, how fast, how long."""

from __future__ import annotations

import ipaddress
import math
import resource
import socket
from dataclasses import asdict, dataclass
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

from longconn.capacity import UNLIMITED_FILES, capacity_within
from longconn.errors import LongConnError

__all__ = ["KINDS", "Plan", "PlanError", "Share", "Target", "addresses_in"]

KINDS = ("ws", "sse", "http")
SCHEMES = {"ws": ("ws", "http"), "sse": ("http",), "http": ("http",)}
PER_ADDRESS = 20_000
"""Connections from one address to one server: well below the ports that Linux gives out (28,232)."""

OWN_FILES = 64
MOST_ADDRESSES = 4_096
MOST_PROCESSES = 256


class PlanError(LongConnError, ValueError):
    """A load cannot be as it is asked for. The message says what to change."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect, and what to say there. `host` is an address, `name` what the Host field says."""

    host: str
    port: int
    name: str
    path: str

    @property
    def loopback(self) -> bool:
        """Whether it is this machine."""
        return ipaddress.ip_address(self.host).is_loopback


@dataclass(frozen=True, slots=True)
class Plan:
    """A load. What is checked here: that the numbers make sense, and that this machine can hold so many connections.

    Raises `PlanError`.
    """

    kind: str
    """"ws", "sse" or "http"."""

    url: str
    """ws:// or http://; `{number}` in its path is the number of the connection, from 0."""

    connections: int = 100
    processes: int = 0
    """Client processes; 0: as few as can hold them."""

    addresses: tuple[str, ...] = ()
    """Source addresses, used in turn. Without any the system chooses; for a server on this machine, as many of 127.0.0.1 and
    on as are needed."""

    rate: float = 2_000.0
    """Connections opened a second, by all processes together."""

    seconds: float = 10.0
    """How long they are held when all are open."""

    send_every: float | None = None
    """Seconds between two messages (ws) or requests (http) of one connection; 0: the next as soon as the answer is there; None:
    nothing is sent."""

    size: int = 64
    """Bytes of a message that is sent."""

    check: bool = False
    """Whether the numbers of messages are checked (see `longconn.load.marks`)."""

    hello: str = ""
    """The first message of each connection (ws). `{number}` in it is the connection's number."""

    hello_again: str = ""
    """The first message of one that comes back, `{since}` in it being the position of the last message that it saw. Empty: as
    `hello`."""

    resume: str = ""
    """The query parameter in which one that comes back says the position of the last message that it saw. Event streams say it
    in `Last-Event-ID` too."""

    reconnect: float = 1.0
    """One that is closed comes back after up to so many seconds, doubled with each failure, up to 30. 0: it does not."""

    patience: float = 30.0
    """Seconds that one opening may take, and that all may take longer than `rate` says."""

    fields: tuple[str, ...] = ()
    """More lines for the head of the request, such as "Authorization: Bearer 1"."""

    subprotocols: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PlanError(f"kind={self.kind!r}: choose one of {', '.join(KINDS)}")
        _whole("connections", self.connections, 1, 10_000_000)
        _whole("processes", self.processes, 0, MOST_PROCESSES)
        _whole("size", self.size, 1, 16_777_216)
        _number("rate", self.rate, 0.01)
        _number("seconds", self.seconds, 0)
        _number("patience", self.patience, 0.1)
        _number("reconnect", self.reconnect, 0)
        if self.send_every is not None:
            _number("send_every", self.send_every, 0)
            if self.kind == "sse":
                raise PlanError("send_every: the clients of event streams send nothing; use ws or http")
        for field in self.fields:
            name, colon, _ = field.partition(":")
            if not (name and colon) or "\r" in field or "\n" in field or not field.isascii():
                raise PlanError(f"field {field!r}: write it as Name: value")
        _url(self.kind, self.url)
        for address in self.addresses:
            _address(address)
        most = per_process()
        if self.processes * most < self.connections and self.processes:
            raise PlanError(
                f"{self.connections} connections are too many for {self.processes} processes, which may hold {most} each"
                f" (ulimit -Hn); use {math.ceil(self.connections / most)}"
            )
        if self.addresses and len(set(self.addresses)) * PER_ADDRESS < self.connections:
            raise PlanError(
                f"{self.connections} connections are too many for {len(set(self.addresses))} addresses, which have ports for"
                f" {PER_ADDRESS} each; give {math.ceil(self.connections / PER_ADDRESS)}, such as 127.0.0.1-127.0.0.8"
            )

    @property
    def opening_seconds(self) -> float:
        """How long all may take to open."""
        return self.connections / self.rate + self.patience

    def target(self) -> Target:
        """Where to connect. Raises `PlanError` when the name means nothing, or when more addresses are needed to come from."""
        parts = _url(self.kind, self.url)
        port = parts.port or 80
        try:
            found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise PlanError(f"{parts.hostname}: {error.strerror or error}") from None
        versions = {_address(address).version for address in self.addresses}
        usable = [each for each in found if not versions or versions == {6 if each[0] == socket.AF_INET6 else 4}]
        if not usable:
            raise PlanError(
                f"addresses: {parts.hostname} cannot be reached from all of them; give those of one IP version"
            )
        host = min(usable, key=lambda each: each[0] != socket.AF_INET)[4][0]
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        target = Target(str(host), port, parts.netloc.rpartition("@")[2], path)
        if self.connections > PER_ADDRESS and not self.addresses and not (target.loopback and "." in target.host):
            raise PlanError(
                f"{self.connections} connections are too many for one address, which has ports for {PER_ADDRESS}; give"
                f" {math.ceil(self.connections / PER_ADDRESS)} with addresses"
            )
        return target

    def shares(self) -> list[Share]:
        """What each process is to do. Raises `PlanError`."""
        target = self.target()
        addresses = self.addresses
        needed = math.ceil(self.connections / PER_ADDRESS)
        if not addresses and needed > 1:
            first = ipaddress.IPv4Address("127.0.0.1")
            addresses = tuple(str(first + number) for number in range(needed))
        count = min(self.processes or math.ceil(self.connections / per_process()), self.connections)
        if count > MOST_PROCESSES:
            raise PlanError(f"{self.connections} connections take {count} processes; raise the limit of open files")
        base, more = divmod(self.connections, count)
        shares, first_number = [], 0
        for each in range(count):
            connections = base + (each < more)
            shares.append(Share(self, target, addresses, first_number, connections, self.rate / count))
            first_number += connections
        return shares


@dataclass(frozen=True, slots=True)
class Share:
    """What one process is to do: hold `connections`, numbered from `first`, opened `rate` a second."""

    plan: Plan
    target: Target
    addresses: tuple[str, ...]
    first: int
    connections: int
    rate: float

    def as_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """What `as_json` said."""
        plan = dict(value["plan"])
        for name in ("addresses", "fields", "subprotocols"):
            plan[name] = tuple(plan[name])
        return cls(
            Plan(**plan),
            Target(**value["target"]),
            tuple(value["addresses"]),
            value["first"],
            value["connections"],
            value["rate"],
        )


def per_process() -> int:
    """How many connections one process may hold, by the limit of open files that it may give itself."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = UNLIMITED_FILES if hard == resource.RLIM_INFINITY else hard
    return capacity_within(files, OWN_FILES).connections


def addresses_in(text: str) -> tuple[str, ...]:
    """The addresses in a text such as "127.0.0.1-127.0.0.8,10.0.0.5". Raises `PlanError`."""
    found: list[str] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low = _address(first)
        high = _address(last) if dash else low
        count = int(high) - int(low) + 1
        if low.version != high.version or not 1 <= count <= MOST_ADDRESSES:
            raise PlanError(
                f"addresses {part.strip()!r}: a range has from 1 to {MOST_ADDRESSES} addresses, the lowest first"
            )
        found += [str(low + step) for step in range(count)]
    return tuple(found)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text.strip())
    except ValueError:
        raise PlanError(f"{text.strip()!r} is not an address; write 127.0.0.1 or 127.0.0.1-127.0.0.8") from None


def _url(kind: str, url: str) -> SplitResult:
    schemes = SCHEMES[kind]
    example = f"{schemes[0]}://127.0.0.1:8000/path"
    if not url.isascii() or any(character.isspace() or not character.isprintable() for character in url):
        raise PlanError(f"{url!r}: a URL is ASCII without spaces, such as {example}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise PlanError(f"{url!r}: {error}") from None
    if parts.scheme in ("wss", "https"):
        raise PlanError(f"{url!r}: TLS is not spoken here; give the address behind what ends TLS, such as {example}")
    if parts.scheme not in schemes or not parts.hostname or port == 0:
        raise PlanError(f"{url!r}: write it as {example}")
    return parts


def _whole(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise PlanError(f"{name}={value!r}: a whole number from {least} to {most}")


def _number(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise PlanError(f"{name}={value!r}: a number from {least:g}")
