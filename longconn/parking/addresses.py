"""Addresses of clients, with what a proxy said about them."""

from __future__ import annotations

from typing import Any

__all__ = ["ProxiedAddress", "host", "plain_address"]


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
    """The address as `accept` gave it."""
    return address.plain if type(address) is ProxiedAddress else address
