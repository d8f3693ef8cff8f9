"""Addresses of clients, with what a proxy said about them."""

from __future__ import annotations

import socket
from typing import Any

__all__ = ["ProxiedAddress", "host", "packed", "plain_address"]

_IPV6 = 1 << 144
_PORT = 0xFFFF


class ProxiedAddress(tuple):  # type: ignore[type-arg]  # as `accept` gives it: of any shape
    """The address of a proxy's connection, with what the proxy said about its client in the PROXY protocol."""

    info: dict[str, Any]
    plain: Any
    """The address itself, which is no tuple on a unix socket."""


def host(address: Any) -> str:
    """Whom an address belongs to, for limits per client: its host, or what a unix socket gives."""
    plain = plain_address(address)
    return str(plain[0]) if isinstance(plain, tuple) else str(plain)


def plain_address(address: Any) -> Any:
    """The address as `accept` gave it, also of one that was packed."""
    if type(address) is int:
        return _unpacked(address)
    return address.plain if type(address) is ProxiedAddress else address


def packed(address: Any) -> Any:
    """The same address in a fifth of the memory, for a connection that stays: one number for IPv4 and IPv6, anything else as it
    is. `host` and `plain_address` understand it; what a proxy said is forgotten."""
    address = plain_address(address)
    if not isinstance(address, tuple):
        return address
    try:
        if len(address) == 2:
            return int.from_bytes(socket.inet_aton(address[0])) << 16 | address[1]
        if address[2:] == (0, 0):
            return _IPV6 | int.from_bytes(socket.inet_pton(socket.AF_INET6, address[0])) << 16 | address[1]
    except (OSError, TypeError, ValueError):
        pass
    return address


def _unpacked(number: int) -> tuple[Any, ...]:
    port = number & _PORT
    if number & _IPV6:
        return socket.inet_ntop(socket.AF_INET6, (number >> 16 & (1 << 128) - 1).to_bytes(16)), port, 0, 0
    return socket.inet_ntoa((number >> 16).to_bytes(4)), port
