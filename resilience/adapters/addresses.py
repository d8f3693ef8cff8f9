"""Which client a request comes from, when proxies stand in between."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

__all__ = ["client_key"]


def client_key(peer: str | None, forwarded_for: str | None, trusted_proxies: int) -> str:
    """The bucket key of the client: its address, or its /64 for IPv6, of which one subscriber has many.

    `peer` is the address of the socket, `forwarded_for` the X-Forwarded-For field, `trusted_proxies` how many proxies of
    ours add to that field before a request arrives. Each trusted proxy accounts for one hop from the right, so that
    nothing which a client writes into the field itself is believed. Without trusted proxies the field is not read.
    """
    if trusted_proxies and forwarded_for:
        hops = [hop.strip() for hop in forwarded_for.split(",")]
        claimed = hops[-trusted_proxies] if trusted_proxies <= len(hops) else hops[0]
        key = _normalised(claimed)
        if key is not None:
            return key
    if not peer:
        return "unix"  # a Unix socket has no address
    return _normalised(peer) or peer


@lru_cache(maxsize=8_192)
def _normalised(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(_without_port(text))
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


def _without_port(text: str) -> str:
    """Some proxies write 192.0.2.1:4711 or [2001:db8::1]:4711."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    if text.count(":") == 1:
        return text.partition(":")[0]
    return text.partition("%")[0]
