"""Who serves which slot of a Redis Cluster, found out beside the callers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import redis

from resilience.errors import StorageUnavailable
from resilience.storage.forms import Servers
from resilience.storage.nodes import TROUBLE, Address, asked, connector, stay_in_copy
from resilience.storage.slots import SLOTS, Owners, addresses, owners, primaries
from resilience.storage.wrapping import forget_after_fork

__all__ = ["Topology"]

_SEARCH = 1.0
"""Seconds in which the nodes say who serves what, or not."""


class Topology:
    """The slot map of a cluster. It is asked for when it is needed first, and again when it turns out to be wrong.

    Nodes are asked one after the other, by one thread at a time that no caller waits for longer than `timeout`: those of the
    last map and those of the address. The map of one that says the cluster is well is preferred; a node that is cut off
    from the others has an old one, and knows that it is cut off.
    """

    def __init__(self, servers: Servers, *, timeout: float) -> None:
        self._uri = servers.uri
        self._seeds: Sequence[Address] = servers.nodes
        self._timeout = timeout
        self.connect = connector(servers.client_uri(), timeout=timeout)
        self._owners: Owners = [None] * SLOTS
        self._nodes: Sequence[Address] = ()  # those of the last map
        self._known = False
        self._trouble = f"{self._uri}: no node said who serves what within {timeout:g} s"
        self._reset()
        forget_after_fork(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._search: _Search | None = None  # guarded by _lock
        self._rest_until = 0.0  # guarded by _lock

    def after_fork(self) -> None:
        """The thread that searched is the parent's."""
        self._reset()

    def owner(self, slot: int) -> Address:
        """Who serves the slot. Raises `StorageUnavailable` when nobody does, or nobody could say so in time."""
        address = self._owners[slot]
        if address is None:
            search = self.search_soon(at_most_every=0.1)
            if search is not None and not self._known:
                search.done.wait(self._timeout)
            address = self._owners[slot]
        if address is None:
            raise StorageUnavailable(f"{self._uri}: nobody serves slot {slot}" if self._known else self._trouble)
        return address

    def primaries(self) -> dict[Address, int]:
        """Everyone who serves a slot, each with one of its slots."""
        return primaries(self._owners)

    @property
    def unserved(self) -> int:
        """How many slots nobody serves."""
        return self._owners.count(None)

    def learn(self, slot: int, address: Address) -> None:
        """The slot has moved there."""
        self._owners[slot] = address

    def search_soon(self, *, at_most_every: float) -> _Search | None:
        """Let the map be asked for. Returns the search under way; None when one has ended so few seconds ago."""
        with self._lock:
            if self._search is not None:
                return self._search
            if time.monotonic() < self._rest_until:
                return None
            self._search = search = _Search()
            self._rest_until = time.monotonic() + at_most_every
        try:
            threading.Thread(target=self._run, args=(search,), name="seawall-topology", daemon=True).start()
        except RuntimeError:  # the interpreter ends
            self._end(search)
        return search

    def _run(self, search: _Search) -> None:
        try:
            self.search()
        except StorageUnavailable as error:
            self._trouble = str(error)  # told to callers until there is a map
        finally:
            stay_in_copy(search.process)
            self._end(search)

    def _end(self, search: _Search) -> None:
        with self._lock:
            if self._search is search:
                self._search = None
        search.done.set()

    def search(self) -> None:
        """Ask for the map now, for a second at most. Raises `StorageUnavailable` when nobody had a usable one."""
        deadline = time.monotonic() + _SEARCH
        failed: dict[Address, str] = {}
        second_best: tuple[Sequence[Any], Address] | None = None
        for address in dict.fromkeys([*self._nodes, *self._seeds]):
            if time.monotonic() >= deadline:
                break
            try:
                well, answer = self._ask(address)
            except TROUBLE as error:
                failed[address] = str(error)
                continue
            if well:
                self._adopt(answer, address, failed)
                return
            second_best = second_best or (answer, address)
        if second_best is None:
            reasons = "; ".join(f"{host}:{port}: {reason}" for (host, port), reason in failed.items())
            raise StorageUnavailable(f"{self._uri}: no node said who serves what: {reasons}")
        self._adopt(*second_best, failed)

    def _ask(self, address: Address) -> tuple[bool, Sequence[Any]]:
        """Whether the node says that the cluster is well, and its map."""
        state, answer = asked(self.connect, address, ("CLUSTER", "INFO"), ("CLUSTER", "SLOTS"))
        if not isinstance(answer, list) or not answer:
            raise redis.ResponseError("it knows of no slots")
        return b"cluster_state:ok" in state, answer

    def _adopt(self, answer: Sequence[Any], source: Address, failed: Iterable[Address]) -> None:
        table = owners(answer, source[0])
        # Should the map be wrong, another one is asked next; those that did not answer come last.
        later = [source, *failed]
        nodes = addresses(answer, source[0])
        self._nodes = [node for node in nodes if node not in later] + [node for node in later if node in nodes]
        self._owners = table
        self._known = True


class _Search:
    """A search for the map, by a thread of its own."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.process = os.getpid()
