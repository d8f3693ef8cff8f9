"""Who is let in: the share of this worker, its limits, and what a client hears that finds no room."""

from __future__ import annotations

import _socket
import errno
import logging
import os
import socket as sockets
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent.monkey

from longconn import reasons, scoreboard
from longconn.core.admission import AcceptRate
from longconn.errors import ClientConnectionsExceeded, ConnectionRefused
from longconn.parking.addresses import host
from longconn.parking.connection import Connection
from longconn.parking.lot import Listener, Lot
from longconn.room import Room
from longconn.sharing import Sharing

__all__ = ["Acceptor"]

ACCEPTED_AT_ONCE = 64
LOOK_AGAIN = 0.002
"""How soon, in seconds, a worker that left a newcomer to an emptier one looks whether it was taken."""
STORM = 16
"""So many more connections within a tick are a storm."""
MOST_LEAVING = 64
LEAVING_FOR = 0.5
PAUSE_WITHOUT_DESCRIPTORS = 0.1
LOOK_AGAIN_WHEN_FULL = 0.01
QUIET = 5.0

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = logging.getLogger("gunicorn.error")


class Acceptor:
    """Accepts the connections of one worker.

    `capacity` is how many it may hold, without those of reserved listeners, which have `settings.reserved_connections`
    places of their own. `render(refusal, address)` makes the answer to who is not let in. `sharing` is None when the worker
    has its listeners for itself.
    """

    def __init__(
        self,
        lot: Lot,
        board: scoreboard.Scoreboard,
        settings: Any,
        *,
        capacity: int,
        render: Callable[[Any, Any], bytes],
        first_ticks: Callable[[Listener], int],
        sharing: Sharing | None,
    ) -> None:
        self._lot = lot
        self._board = board
        self._settings = settings
        self.capacity = capacity
        self._render = render
        self._first_ticks = first_ticks
        self._sharing = sharing
        self._stands_by = True
        self._stormy = STORM
        """With so many connections at the next tick, or before, this is a storm."""
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._rate = (
            AcceptRate(settings.accept_rate, settings.accept_burst or settings.accept_rate)
            if settings.accept_rate
            else None
        )
        self._leaving: deque[tuple[float, Any]] = deque()
        self.listeners: list[Listener] = []
        self._rooms: dict[Listener, Room] = {}
        self._public_room = self._make_room(
            capacity, lambda one: not one.listener.reserved, lambda: lot.live - self._reserved_in_use()
        )
        self._later: dict[Listener, Any] = {}
        self._quiet_until = 0.0
        self._soon = lot.loop.timer(0)
        self._bell: Any = None
        if sharing is not None:
            sharing.stand_by()
            self._bell = lot.loop.io(sharing.bell, 1)
            self._bell.start(self._on_bell)
        lot.on_tick.append(self._on_tick)
        lot.on_fork.append(self._forsake)

    # Listening.

    def open(self, listener: Listener) -> None:
        """Accept what comes in on `listener`."""
        self.listeners.append(listener)
        listener.timer = self._lot.loop.timer(LOOK_AGAIN, LOOK_AGAIN)
        listener.queue = _queue_of(listener.socket)
        listener.ready = lambda: self.accept(listener)
        self._lot.listen(listener)
        listener.ready()  # what has been waiting since before has no edge of its own any more

    def close(self, listener: Listener, *, empty: bool) -> None:
        """Accept nothing more on `listener`; `empty`: but take in what the kernel has completed already, which closing
        would reset when nobody else listens."""
        if listener not in self.listeners:
            return
        self.listeners.remove(listener)
        self._lot.ignore(listener)
        listener.ready = _nothing
        listener.timer.stop()
        listener.timer.close()
        if self._sharing is not None and self._stands_by and not listener.reserved:
            self._sharing.stand_back(leaving=True)
            self._stands_by = False
        if empty:
            while self._take_one(listener):
                pass
        # Nothing between the last accept and this: who connects in between is reset.
        self._lot.stop_listening(listener)

    def accept(self, listener: Listener) -> None:
        """Take this worker's share of who waits. In the hub."""
        if listener not in self.listeners:
            return
        if self._sharing is not None:
            self._sharing.came()
        left = ACCEPTED_AT_ONCE
        waiting = listener.queue()
        while waiting and left > 0:
            quota = self._quota(listener, waiting, left)
            if quota == 0:
                # Looks again itself instead of being told of everybody who comes for the others.
                listener.timer.again(listener.ready)
                self._lot.ignore(listener)
                return
            taken = min(quota, waiting)
            for _ in range(taken):
                if not self._take_one(listener):
                    left = -1
                    break
            left -= taken
            waiting = listener.queue()
        accepted = left < ACCEPTED_AT_ONCE
        if waiting and listener not in self._later:
            # Not a callback: those that come while callbacks run are run with them, before anything else.
            self._soon.start(self._look)
        elif waiting:
            listener.timer.stop()
            self._lot.ignore(listener)  # there is no room now, but it will be looked for
        elif accepted and self._sharing is not None and self._lot.live >= self._stormy:
            # In a storm many are waited for and taken together: it saves the wakes.
            listener.timer.again(listener.ready)
            self._lot.ignore(listener)
        else:
            listener.timer.stop()
            self._settle(accepted=accepted)

    def _quota(self, listener: Listener, waiting: int, most: int) -> int:
        if self._sharing is None or listener.reserved:
            return most
        quota = self._sharing.quota(waiting, most)
        if waiting > quota:
            self._sharing.call(waiting, beyond=quota)
        return quota

    def _settle(self, *, accepted: bool) -> None:
        """Nobody waits: see that the right workers are told of who comes next."""
        sharing = self._sharing
        if sharing is not None and (accepted or not self._stands_by):
            if not self._stands_by:
                self._stands_by = sharing.should_stand_by()
                if self._stands_by:
                    sharing.stand_by()
            elif not sharing.quota(1, 1) and not sharing.should_stand_by():
                self._stand_back(sharing)
        self._watch()

    def _stand_back(self, sharing: Sharing) -> None:
        if sharing.stand_back():
            self._stands_by = False
            for listener in self.listeners:
                if not listener.reserved:
                    self._lot.ignore(listener)

    def _watch(self) -> None:
        for listener in self.listeners:
            if (self._stands_by or listener.reserved) and not listener.timer.active:
                self._lot.listen(listener)

    def _on_bell(self) -> None:
        assert self._sharing is not None
        self._sharing.hush()
        self._look()

    def _look(self) -> None:
        for listener in list(self.listeners):
            self.accept(listener)

    def _on_tick(self) -> None:
        self._see_off()
        self._look()
        self._stormy = self._lot.live + STORM
        sharing = self._sharing
        if sharing is not None and self.listeners and self._stands_by and not sharing.should_stand_by():
            self._stand_back(sharing)

    def _take_one(self, listener: Listener) -> bool:
        """Accept one. False when nobody waits, or nobody can be let in for now."""
        tally = self._lot.tally
        room = self._room_of(listener)
        if room.is_full() and room.may_be_found():
            self._again_later(listener, LOOK_AGAIN_WHEN_FULL)
            return False
        try:
            descriptor, address = listener.socket._accept()  # noqa: SLF001 - without a gevent socket around it
        except BlockingIOError:
            tally[scoreboard.ACCEPT_MISSES] += 1
            return False
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                return self._without_descriptor(listener)
            return error.errno in (errno.ECONNABORTED, errno.EINTR, errno.EPROTO)
        tally[scoreboard.ACCEPTED] += 1
        plain = _socket.socket(listener.socket.family, listener.socket.type, listener.socket.proto, descriptor)
        plain.setblocking(False)
        refusal, reason = self._objection(listener, address)
        if refusal is not None:
            tally[scoreboard.refused_field(reason)] += 1
            self._turn_away(listener, plain, address, refusal)
            return True
        lot = self._lot
        connection = Connection(plain, address, listener, lot.wheel.now_tick)
        lot.wheel.schedule(connection, lot.wheel.now_tick + self._first_ticks(listener))
        try:
            lot.admit(connection)
        except OSError as error:  # the kernel has no room for another descriptor to watch
            _log.warning("a connection could not be watched: %s", error)
            lot.close(connection, reasons.ERROR)
            return True
        if self._settings.max_connections_per_client:
            client = host(address)
            listener.uses[client] = listener.uses.get(client, 0) + 1
        return True

    # Limits.

    def _room_of(self, listener: Listener) -> Room:
        if not listener.reserved:
            return self._public_room
        if listener not in self._rooms:
            self._rooms[listener] = self._make_room(
                self._settings.reserved_connections,
                lambda one: one.listener is listener,
                lambda: listener.connections,
            )
        return self._rooms[listener]

    def _make_room(self, places: int, belongs: Callable[[Connection], bool], taken: Callable[[], int]) -> Room:
        return Room(
            self._lot,
            places,
            belongs=belongs,
            taken=taken,
            render=self._render,
            retry_after=self._settings.retry_after,
        )

    def _reserved_in_use(self) -> int:
        return sum(listener.connections for listener in self.listeners if listener.reserved)

    def _objection(self, listener: Listener, address: Any) -> tuple[ConnectionRefused | None, str]:
        settings = self._settings
        retry = settings.retry_after
        full = self._room_of(listener).is_full()
        if full:
            return ConnectionRefused("all connections are in use: try again", retry_after=retry), "connections"
        if listener.reserved:
            return None, ""
        if self._rate is not None:
            wait = self._rate.take(time.monotonic())
            if wait > 0:
                return ConnectionRefused(
                    "too many new connections: try again", retry_after=max(retry, int(wait + 1))
                ), "rate"
        most = settings.max_connections_per_client
        if most and listener.uses.get(host(address), 0) >= most:
            return (
                ClientConnectionsExceeded(f"a client may have {most} connections: use those", retry_after=retry),
                "per client",
            )
        total = settings.max_connections_total
        if total and self._board.total(scoreboard.CONNECTIONS) >= total:
            return ConnectionRefused("all connections are in use: try again", retry_after=retry), "total"
        return None, ""

    # Turning away.

    def _turn_away(self, listener: Listener, plain: Any, address: Any, refusal: ConnectionRefused) -> None:
        if listener.secure:
            plain.close()  # an answer would need a handshake first
            return
        try:
            plain.send(self._render(refusal, address))
            plain.shutdown(sockets.SHUT_WR)
            plain.recv(65_536)
        except BlockingIOError:
            if len(self._leaving) < MOST_LEAVING:
                # Its request is on the way. Closing before it arrives would reset the connection, and with it the answer.
                self._leaving.append((self._lot.now() + LEAVING_FOR, plain))
                return
        except OSError:
            _log.debug("a client left before it could be told that there is no room")
        plain.close()

    def _see_off(self) -> None:
        now = self._lot.now()
        while self._leaving and self._leaving[0][0] <= now:
            _, plain = self._leaving.popleft()
            plain.close()

    def _without_descriptor(self, listener: Listener) -> bool:
        """Every descriptor is in use: tell who waits, by means of the one that is kept for this."""
        while self._leaving:
            self._leaving.popleft()[1].close()
        if self._room_of(listener).make():
            return True
        if self._lot.now() >= self._quiet_until:
            self._quiet_until = self._lot.now() + QUIET
            _log.warning(
                "No file descriptor is left: new clients are answered 503. Raise the limit of open files, or lower "
                "LONGCONN_MAX_CONNECTIONS to leave the application some."
            )
        told = 0
        while self._reserve is not None and told < ACCEPTED_AT_ONCE:
            _close(self._reserve)
            self._reserve = None
            try:
                descriptor, address = listener.socket._accept()  # noqa: SLF001
            except OSError:
                break
            plain = _socket.socket(listener.socket.family, listener.socket.type, listener.socket.proto, descriptor)
            self._lot.tally[scoreboard.refused_field("descriptors")] += 1
            told += 1
            self._tell(listener, plain, address)
            self._reserve = _reserve()
        if self._reserve is None:
            self._reserve = _reserve()
        self._again_later(listener)
        return False

    def _again_later(self, listener: Listener, seconds: float = PAUSE_WITHOUT_DESCRIPTORS) -> None:
        if listener in self._later:
            return
        later = self._later[listener] = self._lot.loop.timer(seconds)

        def again() -> None:
            later.close()
            del self._later[listener]
            listener.ready()

        later.start(again)

    def _tell(self, listener: Listener, plain: Any, address: Any) -> None:
        plain.setblocking(False)
        refusal = ConnectionRefused("all descriptors are in use: try again", retry_after=self._settings.retry_after)
        try:
            if not listener.secure:
                plain.send(self._render(refusal, address))
                plain.shutdown(sockets.SHUT_WR)
                plain.recv(65_536)
        except OSError:
            _log.debug("a client left before it could be told that there is no descriptor")
        finally:
            plain.close()

    def _forsake(self) -> None:
        """In a child: those who come are the parent's, and so is the bell that tells of them."""
        for listener in self.listeners:
            listener.timer.stop()
        self.listeners.clear()
        for later in (self._soon, *self._later.values()):
            later.stop()
        if self._bell is not None:
            self._bell.stop()

    def end(self) -> None:
        """Give back what is kept."""
        self._soon.stop()
        self._soon.close()
        if self._bell is not None:
            self._bell.stop()
            self._bell.close()
            self._bell = None
        while self._leaving:
            self._leaving.popleft()[1].close()
        if self._reserve is not None:
            _close(self._reserve)
            self._reserve = None


def _close(descriptor: int) -> None:
    # gevent's os.close waits for the next turn of the loop; here the descriptor is needed at once.
    gevent.monkey.get_original("os", "close")(descriptor)


def _reserve() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _queue_of(listening: Any) -> Callable[[], int]:
    """A function that tells how many wait on a listening socket, or 1 for some where the kernel gives no number."""
    poll = gevent.monkey.get_original("select", "poll")()
    poll.register(listening.fileno(), 1)
    if sys.platform != "linux" or listening.family not in (_socket.AF_INET, _socket.AF_INET6):
        return lambda: len(poll.poll(0))
    ask = listening.getsockopt

    def count() -> int:
        # The field `tcpi_unacked`, which for a listening socket is the length of its queue.
        information: bytes = ask(_socket.IPPROTO_TCP, _socket.TCP_INFO, 28)
        return int.from_bytes(information[24:], sys.byteorder) or len(poll.poll(0))

    return count


def _nothing() -> None:
    return
