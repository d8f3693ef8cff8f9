"""Which descriptors have become ready.

Edge-triggered: a descriptor is told of once for each time something arrives on it or it can be written again, and is
registered once in its life. Whoever is told and does not use it up must remember it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any, Protocol

import gevent.monkey

__all__ = ["BROKEN", "GONE", "READABLE", "WRITABLE", "EpollPoller", "Poller", "WatcherPoller", "make_poller"]

READABLE = 0x001  # EPOLLIN
WRITABLE = 0x004  # EPOLLOUT
GONE = 0x2018  # EPOLLRDHUP, EPOLLHUP and EPOLLERR: the other side has said its last word, or the connection is broken
BROKEN = 0x018  # EPOLLHUP and EPOLLERR

EDGES_OF_A_CONNECTION = 0x80002005  # EPOLLET | EPOLLRDHUP | EPOLLOUT | EPOLLIN
EDGES_OF_A_LISTENER = 0x90000001  # EPOLLET | EPOLLEXCLUSIVE | EPOLLIN
MOST_EVENTS = 512


class Poller(Protocol):
    """What the lot needs of either kind."""

    name: str

    def add(self, descriptor: int) -> None:
        """Tell of `descriptor`, the one of a connection, from now on."""
        ...

    def add_listener(self, descriptor: int) -> None:
        """Tell of `descriptor`, the one of a listening socket that other processes share."""
        ...

    def discard(self, descriptor: int) -> None:
        """Say nothing more about it. Must be called before it closes."""
        ...

    def rearm(self, descriptor: int, events: int = 1) -> None:
        """Say that what was told of `descriptor` has been used up, and what is waited for: 1 to read, 2 to write, 3 both."""
        ...

    def forsake(self) -> None:
        """In the child of a fork: tell of nothing any more, without a trace in the parent."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class EpollPoller:
    """An epoll set of our own whose one descriptor the hub watches. A connection costs no memory here but the kernel's."""

    name = "epoll"

    def __init__(self, loop: Any, on_events: Callable[[list[tuple[int, int]]], None]) -> None:
        epoll = gevent.monkey.get_original("select", "epoll")  # patching takes it away
        self._epoll = epoll()
        self._poll = self._epoll.poll
        self._on_events = on_events
        self._watcher = loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self._ready)

    def _ready(self) -> None:
        self._on_events(self._poll(0, MOST_EVENTS))

    def add(self, descriptor: int) -> None:
        self._epoll.register(descriptor, EDGES_OF_A_CONNECTION)

    def add_listener(self, descriptor: int) -> None:
        self._epoll.register(descriptor, EDGES_OF_A_LISTENER)

    def discard(self, descriptor: int) -> None:
        # The kernel forgets a descriptor when its last copy closes. A copy may be in a child of the application's.
        try:
            self._epoll.unregister(descriptor)
        except (OSError, ValueError):
            return

    def rearm(self, descriptor: int, events: int = 1) -> None:
        del descriptor, events  # edges come by themselves

    def forsake(self) -> None:
        # The set is shared with the parent, whose edges must not be taken nor its entries removed: this is another one.
        fresh = gevent.monkey.get_original("select", "epoll")()
        os.dup2(fresh.fileno(), self._epoll.fileno(), inheritable=False)
        fresh.close()
        self._watcher.stop()

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        self._epoll.close()


class WatcherPoller:
    """The hub's own watchers, one a connection, where there is no epoll: the same edges at a higher price."""

    name = "watchers"

    def __init__(self, loop: Any, on_events: Callable[[list[tuple[int, int]]], None]) -> None:
        self._loop = loop
        self._on_events = on_events
        self._watchers: dict[int, Any] = {}
        self._listeners: set[int] = set()

    def add(self, descriptor: int) -> None:
        watcher = self._watchers[descriptor] = self._loop.io(descriptor, 1)
        watcher.start(self._told, descriptor)

    def add_listener(self, descriptor: int) -> None:
        self._listeners.add(descriptor)
        self.add(descriptor)

    def _told(self, descriptor: int) -> None:
        if descriptor not in self._listeners:
            # The hub tells of what is there for as long as it is there. Quiet until it has been used up.
            self._watchers[descriptor].stop()
        self._on_events([(descriptor, READABLE | WRITABLE)])

    def discard(self, descriptor: int) -> None:
        watcher = self._watchers.pop(descriptor, None)
        self._listeners.discard(descriptor)
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def rearm(self, descriptor: int, events: int = 1) -> None:
        watcher = self._watchers.get(descriptor)
        if watcher is None:
            return
        if watcher.active and watcher.events == events:
            return
        watcher.stop()
        watcher.events = events
        watcher.start(self._told, descriptor)

    def forsake(self) -> None:
        self.close()

    def close(self) -> None:
        for descriptor in list(self._watchers):
            self.discard(descriptor)


def make_poller(loop: Any, on_events: Callable[[list[tuple[int, int]]], None]) -> EpollPoller | WatcherPoller:
    """The best poller of this platform. `on_events` gets (descriptor, what it is ready for) pairs, in the hub."""
    if hasattr(select, "epoll") or "epoll" in getattr(gevent.monkey, "saved", {}).get("select", {}):
        return EpollPoller(loop, on_events)
    return WatcherPoller(loop, on_events)
