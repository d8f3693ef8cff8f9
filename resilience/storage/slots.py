"""The slots of a Redis Cluster, pure: which slot a key has, and what CLUSTER SLOTS answers.

A key lies in the slot that the CRC16 (XMODEM) of its hash tag gives, modulo 16384: chapter "Key distribution model" of the
Redis Cluster specification.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from resilience.storage.nodes import Address

__all__ = ["SLOTS", "Owners", "addresses", "owners", "primaries", "slot_of", "tag_within"]

SLOTS = REDIS_CLUSTER_HASH_SLOTS

Owners = list[Address | None]
"""For each slot who serves it; None for nobody."""


def slot_of(key: bytes) -> int:
    """The slot of a key. What stands before its first brace does not count."""
    slot: int = key_slot(key)
    return slot


def owners(answer: Sequence[Any], host: str) -> Owners:
    """Who serves which slot, from the answer to CLUSTER SLOTS that the node at `host` gave.

    A node that does not know its own name leaves it out: it is the one under which it was asked.
    """
    table: Owners = [None] * SLOTS
    for low, high, primary, *_ in answer:
        table[low : high + 1] = [_address(primary, host)] * (high + 1 - low)
    return table


def addresses(answer: Sequence[Any], host: str) -> list[Address]:
    """All nodes that the answer names, replicas too, each once."""
    return list(dict.fromkeys(_address(node, host) for _, _, *nodes in answer for node in nodes))


def _address(node: Sequence[Any], host: str) -> Address:
    name = node[0]
    if isinstance(name, bytes):
        name = name.decode()
    # A question mark: it has a name by configuration, and does not know it.
    return (host if name in (None, "", "?") else name), int(node[1])


def primaries(table: Owners) -> dict[Address, int]:
    """Everyone who serves a slot, each with the first of its slots."""
    first: dict[Address, int] = {}
    for slot, address in enumerate(table):
        if address is not None and address not in first:
            first[address] = slot
    return first


def tag_within(slot: int) -> str:
    """A hash tag whose keys lie in `slot`."""
    return next(tag for tag in _tags() if key_slot(tag.encode()) == slot)


def _tags() -> Iterator[str]:
    number = 0
    while True:
        yield str(number)
        number += 1
