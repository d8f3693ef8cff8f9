"""How a worker leaves: nothing that has been begun is lost, and nobody is left to find out by himself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent

from longconn import reasons, scoreboard
from longconn.by_gunicorn import GUNICORNS, stop_reading
from longconn.configuration import hooks
from longconn.core.states import Event, State
from longconn.http.farewell import Discarding
from longconn.parking.connection import Connection
from longconn.parking.lot import Listener
from longconn.ports import Host
from longconn.upgraded import upgraded_of

__all__ = ["Drain"]

POLL = 0.02
"""How often a drain looks at what is left."""
SHORTEST_HOOK = 0.5
GOODBYES_PER_SECOND = 500
"""How many connections under another protocol are sent away in a second: their clients come back to another worker, each with a
handshake of its own."""
GOODBYES_UNTIL = 0.6
"""The part of the time for leaving within which all goodbyes have been said."""


class Drain:
    """The leave of `worker`, within gunicorn's `graceful_timeout` and before its SIGKILL."""

    def __init__(self, worker: Host) -> None:
        self._worker = worker
        self._lot = worker.lot
        self._settings = worker.longconn_settings
        self._log: Any = worker.log
        patience: float = worker.cfg.graceful_timeout
        self._began = time.monotonic()
        self.deadline = self._began + patience - min(self._settings.drain_margin, patience / 4)
        """When the last connection is cut, in seconds of the monotonic clock."""

    def run(self) -> None:
        """Leave, step by step. Returns when no connection is left."""
        worker, deadline, began = self._worker, self.deadline, self._began
        worker.alive = False
        worker.replaced = self._lot.replaced = worker.is_replaced()
        worker.row.values[scoreboard.SLOT_STATE] = scoreboard.DRAINING
        worker.serving.closing = True
        self._call_hook("on_drain", worker)
        if self._settings.drain_delay and not worker.replaced:
            self._wait(worker.is_replaced, until=min(deadline, began + self._settings.drain_delay))
            worker.replaced = self._lot.replaced = worker.is_replaced()
        if worker.replaced:
            # Until the next generation serves, nobody else would take who comes in.
            self._wait(worker.successors_serve, until=began + (deadline - began) / 2)
        # Who comes later is told at once; who came before is told with all others.
        worker.serving.upgrading.leaves_at = deadline
        public = [listener for listener in worker.acceptor.listeners if not listener.reserved]
        reserved = [listener for listener in worker.acceptor.listeners if listener.reserved]
        if worker.replaced:
            self._finish([*public, *reserved])
            self._call_hook("on_listening_closed", worker)
        else:
            self._finish(public)
            self._call_hook("on_listening_closed", worker)
            self._finish(reserved)
        self._finish_handlers()
        # What applications are told of connections that have ended.
        self._wait(lambda: not self._lot.errands, until=max(deadline, time.monotonic() + SHORTEST_HOOK))
        self._log.info("Worker %s has drained", worker.pid)

    def release(self) -> None:
        """Let the application give back what the process holds. Called when all connections are closed."""
        drained = hooks().on_drained
        if drained is None:
            return
        seconds = max(SHORTEST_HOOK, self.deadline - time.monotonic() + self._settings.drain_margin / 2)
        self._call_bounded("on_drained", drained, seconds, self._worker, seconds)

    def _finish(self, listeners: list[Listener]) -> None:
        """Close `listeners` and let their connections come to their end."""
        if not listeners:
            return
        lot = self._lot
        deadline = self.deadline
        for listener in listeners:
            self._worker.acceptor.close(listener, empty=not self._worker.replaced)
        ours = set(listeners)
        left = max(0.0, deadline - time.monotonic())
        linger = min(self._settings.linger, left / 2)
        connections = [connection for connection in lot.connections() if connection.listener in ours]
        staying = sum(connection.state == State.UPGRADED for connection in connections)
        lot.leaving_window = min(GOODBYES_UNTIL * left, staying / GOODBYES_PER_SECOND)
        for connection in connections:
            self._tell(connection, linger)

        def finished() -> bool:
            return not any(listener.connections for listener in ours)

        if self._wait(finished, until=deadline):
            return
        left = [connection for connection in lot.connections() if connection.listener in ours]
        self._log.warning("Graceful timeout: worker %s cuts %s connections", self._worker.pid, len(left))
        self._cut(left)

    def _finish_handlers(self) -> None:
        """Let what applications do for connections that have ended come to its end, too."""
        lot = self._lot
        if self._wait(lambda: not lot.busy_greenlets, until=self.deadline):
            return
        left = lot.busy_greenlets
        self._log.warning("Graceful timeout: worker %s ends %s handlers", self._worker.pid, len(left))
        gevent.killall(left, block=False)
        gevent.sleep(POLL)

    def _tell(self, connection: Connection, linger: float) -> None:
        """Tell a connection that the worker leaves."""
        state = connection.state
        wheel = self._lot.wheel
        if state == State.UPGRADED:
            upgraded = upgraded_of(connection)
            if upgraded is not None:
                upgraded.drain(max(0.0, self.deadline - time.monotonic()))
            elif connection.attached is GUNICORNS:
                stop_reading(connection)
        elif state == State.RESPONDING and getattr(connection.attached, "answered", False):
            self._lot.interrupt(connection)  # it ends as an answer does that was the last one
        elif state in (State.PARKED, State.ACCEPTED):
            # A request may be on its way. Whoever sends one within the linger gets its answer, and hears of the close.
            if state == State.PARKED:
                self._lot.move(connection, Event.DRAIN)
            wheel.schedule(connection, wheel.now_tick + wheel.ticks(linger))

    def _cut(self, connections: list[Connection]) -> None:
        lot = self._lot
        for connection in connections:
            upgraded = upgraded_of(connection)
            if upgraded is not None:
                upgraded.abandon()
        gevent.killall(lot.busy_greenlets, block=False)
        gevent.sleep(POLL)
        for connection in connections:
            if connection.state == State.UPGRADED and upgraded_of(connection) is not None:
                lot.close(connection, reasons.DRAIN)
            elif connection.state != State.CLOSED:
                if connection.state in (State.READING_BODY, State.RESPONDING):
                    connection.cut()
                attached = connection.attached
                lot.close(connection, attached.reason if isinstance(attached, Discarding) else reasons.KILLED)

    def _call_hook(self, name: str, *arguments: Any) -> None:
        function = getattr(hooks(), name)
        if function is not None:
            # Requests in flight come after it, and need their time too.
            seconds = max(SHORTEST_HOOK, (self.deadline - time.monotonic()) / 2)
            self._call_bounded(name, function, seconds, *arguments)

    def _call_bounded(self, name: str, function: Callable[..., object], seconds: float, *arguments: Any) -> None:
        timeout = gevent.Timeout.start_new(seconds)
        try:
            function(*arguments)
        except BaseException as error:  # a hook must not end the drain, whatever it raises
            if isinstance(error, gevent.GreenletExit) or self._worker.aborting:
                raise
            self._log.exception("Exception in %s hook", name)
        finally:
            timeout.close()

    def _wait(self, done: Callable[[], bool], *, until: float) -> bool:
        """Wait for `done`, at most until the time `until`, and tell the master all the while."""
        while not done():
            if time.monotonic() >= until:
                return False
            self._worker.notify()
            gevent.sleep(POLL)
        return True
