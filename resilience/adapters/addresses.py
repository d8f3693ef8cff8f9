"""Which client a request comes from, when proxies stand in between."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

__all__ = ["IPV6_PREFIX", "client_key", "network_key"]

IPV6_PREFIX = 64
"""Bits of an IPv6 address that tell subscribers apart: whoever has one address usually has all that share these."""

_LONGEST_ADDRESS = 64
"""No address with a zone and a port has more characters. What is longer is nobody's, and is not remembered either."""


def client_key(
    peer: str | None, forwarded_for: str | None, trusted_proxies: int, ipv6_prefix: int = IPV6_PREFIX
) -> str:
    """The bucket key of the client: its address, or for IPv6 its network of `ipv6_prefix` bits.

    `peer` is the address of the socket, `forwarded_for` the X-Forwarded-For field (several of them joined by commas, as
    WSGI does), `trusted_proxies` how many proxies of ours add to that field before a request arrives.

    Each trusted proxy accounts for one hop from the right, an empty one included, so that nothing which a client writes
    into the field itself is believed. Where the field has fewer hops, all of them are ours. A hop that is no address
    ("unknown", an obfuscated name) leaves the address of the socket: one bucket for all such clients, and no way to get
    another. Without trusted proxies the field is not read.
    """
    if trusted_proxies and forwarded_for:
        hops = forwarded_for.split(",")
        claimed = (hops[-trusted_proxies] if trusted_proxies <= len(hops) else hops[0]).strip()
        key = network_key(claimed, ipv6_prefix) if len(claimed) <= _LONGEST_ADDRESS else None
        if key is not None:
            return key
    if not peer:
        return "unix"  # a Unix socket has no address
    return network_key(peer, ipv6_prefix) or peer


@lru_cache(maxsize=8_192)
def network_key(text: str, ipv6_prefix: int) -> str | None:
    """The key of an address, with or without a port or a zone; None for what is no address. Not for texts of any length:
    they are remembered."""
    try:
        address = ipaddress.ip_address(_without_port(text))
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    host_bits = 128 - ipv6_prefix
    return str(ipaddress.ip_network((int(address) >> host_bits << host_bits, ipv6_prefix)))


def _without_port(text: str) -> str:
    """Some proxies write 192.0.2.1:4711 or [2001:db8::1]:4711."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    if text.count(":") == 1:
        return text.partition(":")[0]
    return text.partition("%")[0]
