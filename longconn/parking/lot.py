"""Where connections wait, and who attends to those that need not wait any longer.

A connection that waits is an entry of a table, of one epoll set and of one timing wheel: no greenlet, no buffer, no
context. When something arrives it joins a queue. Greenlets of a pool take connections from the queue one after the other
for as long as they are quick with each; one that is held up by its application leaves the queue to the next greenlet.
Everything here runs on the loop's thread but `call_from_thread`.
"""

from __future__ import annotations

import contextvars
import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
import gevent.hub
import gevent.monkey
from greenlet import getcurrent

from longconn import reasons, scoreboard
from longconn.core.states import NEXT, Event, IllegalTransition, State
from longconn.core.wheel import TimingWheel
from longconn.errors import ConnectionBusy
from longconn.parking.addresses import host
from longconn.parking.connection import AWAITS_ROOM, HALF_CLOSED, HELD, NEVER, SHORT_OF_ROOM, Connection
from longconn.parking.poller import BROKEN, GONE, READABLE, WRITABLE, make_poller

__all__ = ["Expired", "Listener", "Lot", "lots"]

TICK = 0.1
SLICE = 0.004
"""For how long, in seconds, connections are attended to before timers and other sockets have their turn."""

MOST_ERRANDS = 1024
"""So many greenlets at most do what `later` was asked for."""

_log = logging.getLogger("gunicorn.error")
_thread_number = gevent.monkey.get_original("_thread", "get_ident")
_lots: weakref.WeakSet[Lot] = weakref.WeakSet()


def lots() -> list[Lot]:
    """Those of this process."""
    return list(_lots)


class Expired(BaseException):
    """The deadline of whoever waits has passed. Thrown into the greenlet that waits, and turned into an error there."""


class Listener:
    """A listening socket, and what all its connections share."""

    __slots__ = (
        "connections",
        "environ",
        "lot",
        "name",
        "queue",
        "reader",
        "ready",
        "reserved",
        "secure",
        "socket",
        "timer",
        "uses",
    )

    def __init__(self, socket: Any, lot: Lot, *, secure: bool, reserved: bool) -> None:
        self.socket = socket
        self.lot = lot
        self.secure = secure
        self.reserved = reserved
        self.name: Any = socket.getsockname()
        self.connections = 0
        self.uses: dict[str, Any] = {}
        self.environ: dict[str, Any] = {}
        self.reader: Any = None
        self.ready: Callable[[], None] = _nothing
        self.timer: Any = None
        self.queue: Callable[[], int] = _nobody
        """Tells how many wait to be accepted."""

    def getsockname(self) -> Any:
        """The address it listens on, also after it has closed."""
        return self.name


class Lot:
    """The connections of this worker.

    `attend(connection)` is called in a greenlet of the pool for each connection that has something to read (or was
    called for). In the hub, where nothing may block, `expire(connection)` is called for each whose deadline has passed
    while it waits, and `closed(connection, reason)` for each that has ended while it was upgraded.
    `part(connection, reason)` ends an upgraded one so that its last words arrive; without it, it is closed.
    `tally` counts, see `longconn.scoreboard`.
    """

    def __init__(
        self,
        *,
        attend: Callable[[Connection], None],
        expire: Callable[[Connection], None],
        closed: Callable[[Connection, int], None],
        tally: list[int],
        row: Any,
        greenlets_kept: int = 256,
        part: Callable[[Connection, int], None] | None = None,
    ) -> None:
        self.hub = gevent.get_hub()
        self.loop = self.hub.loop
        self.now = time.monotonic
        self.tally = tally
        self.values = row.values
        self.row = row
        self.table: list[Connection | None] = [None] * 1024
        self.live = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.head_bytes = 0
        self.wheel = TimingWheel(time.monotonic(), resolution=TICK)
        self.ready: deque[Connection] = deque()
        self.on_tick: list[Callable[[], None]] = []
        self.on_fork: list[Callable[[], None]] = []
        """Called in a child of this process, which is to touch nothing that it shares with its parent."""
        self._attend = attend
        self._expire = expire
        self._closed = closed
        self._listeners: dict[int, Listener] = {}
        self._idle: list[Any] = []
        self.greenlets: set[Any] = set()
        self._kept = greenlets_kept
        self._slice_end = 0.0
        self._run_again = False
        self._rest_later: Any = self.loop.timer(0)
        self._poller = make_poller(self.loop, self._on_events)
        self._rearm = None if self._poller.name == "epoll" else self._poller.rearm
        self._timer = self.loop.timer(TICK, TICK)
        self._timer.start(self._on_tick, update=True)
        self.part = self.close if part is None else part
        self.replaced = False
        """Whether, when the worker leaves, another one takes its place."""
        self.leaving_window = 0.0
        """For how many seconds the goodbyes of its connections are spread when the worker leaves."""
        self._thread = _thread_number()
        self._errands: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._runners = 0
        _lots.add(self)

    # What comes and goes.

    @property
    def poller(self) -> str:
        """The name of the poller in use."""
        return self._poller.name

    def listen(self, listener: Listener) -> None:
        """Call `listener.ready()` in the hub when somebody connects."""
        descriptor = listener.socket.fileno()
        if descriptor not in self._listeners:
            self._listeners[descriptor] = listener
            self._poller.add_listener(descriptor)

    def ignore(self, listener: Listener) -> None:
        """Do not call `listener.ready()` until `listen` again, which calls it for who has come meanwhile."""
        descriptor = listener.socket.fileno()
        if self._listeners.pop(descriptor, None) is not None:
            self._poller.discard(descriptor)

    def stop_listening(self, listener: Listener) -> None:
        """Close a listening socket."""
        self.ignore(listener)
        listener.socket.close()

    def admit(self, connection: Connection) -> None:
        """Let `connection` wait for its first byte."""
        descriptor = connection.socket.fileno()
        table = self.table
        if descriptor >= len(table):
            table.extend([None] * (descriptor + 1 - len(table) + 1024))
        table[descriptor] = connection
        self.live += 1
        self.values[scoreboard.CONNECTIONS] = self.live
        connection.listener.connections += 1
        self.tally[scoreboard.STATES + State.ACCEPTED] += 1
        self._poller.add(descriptor)

    def close(self, connection: Connection, reason: int) -> None:
        """End `connection`, whoever has it. `reason` is one of `scoreboard.CLOSED`'s. Does nothing when it has ended."""
        state = connection.state
        if state == State.CLOSED:
            return
        self.move(connection, Event.CLOSE)
        self.tally[scoreboard.STATES + State.CLOSED] = 0
        self.tally[scoreboard.CLOSED + reason] += 1
        self.wheel.cancel(connection)
        self.drop(connection)
        self.forget(connection, connection.socket.fileno())
        try:
            connection.socket.close()
        except OSError:
            _log.debug("closing a connection failed", exc_info=True)
        self.live -= 1
        self.values[scoreboard.CONNECTIONS] = self.live
        listener = connection.listener
        listener.connections -= 1
        if listener.uses:
            _leave(listener.uses, host(connection.address))
        waiter = connection.waiter
        if waiter is not None and waiter is not getcurrent():
            self.loop.run_callback(self._tell_of_end, connection, waiter)
        if state == State.UPGRADED:
            self._closed(connection, reason)

    def interrupt(self, connection: Connection) -> None:
        """Have whoever waits in the middle of a transfer hear that the connection is over, without closing it."""
        if connection.waiter is not None:
            self.loop.run_callback(self._tell_of_end, connection, connection.waiter)

    def _tell_of_end(self, connection: Connection, waiter: Any) -> None:
        if connection.waiter is waiter:  # it has not gone on for another reason meanwhile
            connection.waiter = None
            waiter.throw(connection.over())

    def forget(self, connection: Connection, descriptor: int) -> None:
        """Watch `descriptor` no more. For a connection whose socket has been closed past the lot: with the number it had."""
        if descriptor >= 0 and self.table[descriptor] is connection:
            self._poller.discard(descriptor)
            self.table[descriptor] = None

    def connections(self) -> list[Connection]:
        """All that live."""
        return [connection for connection in self.table if connection is not None]

    # How they change.

    def move(self, connection: Connection, event: int) -> None:
        """Let `event` happen to `connection`. Raises `IllegalTransition`."""
        state = connection.state
        following = NEXT[state][event]
        if following != state:
            if following < 0:
                raise IllegalTransition(state, event)
            tally = self.tally
            tally[scoreboard.STATES + state] -= 1
            tally[scoreboard.STATES + following] += 1
            connection.state = following

    def park(self, connection: Connection, ticks: int) -> None:
        """Let it wait for at most `ticks`; called by whoever attends to it, as the last thing. At once ready again when
        something has arrived meanwhile."""
        deadline = self.wheel.now_tick + ticks
        # Most of the time it stands in the wheel already, for an earlier moment, and will be moved on then.
        if 0 <= connection.slot <= deadline:
            connection.deadline = deadline
        else:
            self.wheel.schedule(connection, deadline)
        if connection.edges & (READABLE | GONE):
            self.ready.append(connection)
            self._soon()
        else:
            self.rest(connection)

    def rest(self, connection: Connection) -> None:
        """Let it wait; called by whoever attends to it, as the last thing."""
        edges = connection.edges = connection.edges & ~HELD
        if self._rearm is not None:
            # Of one whose client has said its last word there is always that to be told: it is not asked about any more.
            events = (0 if edges & HALF_CLOSED else 1) | (2 if edges & SHORT_OF_ROOM else 0)
            if events:
                self._rearm(connection.socket.fileno(), events)

    def keep(self, connection: Connection, data: bytes) -> None:
        """Let `data` wait with the connection: bytes that are not understood yet."""
        connection.pending = bytearray(data)
        self.head_bytes += len(data)

    def drop(self, connection: Connection) -> None:
        """Forget what waits with it."""
        if connection.pending is not None:
            self.head_bytes -= len(connection.pending)
            connection.pending = None

    def call(self, connection: Connection) -> None:
        """Have `connection` attended to, although nothing arrived on it."""
        if not connection.edges & HELD and connection.state != State.CLOSED:
            connection.edges |= HELD
            self.ready.append(connection)
            self._soon()

    def call_again(self, connection: Connection) -> None:
        """Have it attended to once more, after the others; for whoever attends to it now."""
        self.ready.append(connection)
        self._soon()

    def call_from_thread(self, function: Callable[..., object], *arguments: Any) -> None:
        """Run `function` in the hub; from any thread."""
        self.loop.run_callback_threadsafe(function, *arguments)

    def write_from_thread(self, upgraded: Any, size: int, function: Callable[..., object], *arguments: Any) -> None:
        """As `call_from_thread`, for a function that has `size` bytes wait for the client of `upgraded`."""
        del upgraded, size  # the loop does it at once, and then they count
        self.call_from_thread(function, *arguments)

    def is_here(self) -> bool:
        """Whether this is the loop's thread."""
        return bool(_thread_number() == self._thread)

    def later(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call `function` soon, in a greenlet and a context of its own: what must not block may leave it what may. What it
        raises is logged. Functions begin in the order in which they were asked for."""
        self._errands.append((function, arguments))
        if self._runners < MOST_ERRANDS:
            self._runners += 1
            gevent.spawn(self._run_errands)

    def _run_errands(self) -> None:
        try:
            while self._errands:
                function, arguments = self._errands.popleft()
                try:
                    contextvars.Context().run(function, *arguments)
                except (Exception, gevent.Timeout):  # noqa: BLE001 - the next one has nothing to do with it
                    _log.exception("What was left for later failed")
        finally:
            self._runners -= 1

    @property
    def errands(self) -> int:
        """How many functions that were left for later have not returned."""
        return len(self._errands) + self._runners

    def breathe(self, until: float) -> float:
        """Let others have their turn when the moment `until` has passed; whoever does much in one go asks now and then. Returns
        the moment to ask with next time."""
        if until and self.now() < until:
            return until
        if until:
            gevent.sleep(0)
        return self.now() + SLICE

    def wait(self, connection: Connection, edge: int, moment: float) -> None:
        """Wait, in the middle of a transfer, until something new can be read or written, at most until `moment`.

        Raises `Expired` then, `ConnectionOver` when it was closed meanwhile, `ConnectionBusy` when another waits.
        """
        if connection.state == State.CLOSED:
            raise connection.over()
        if connection.edges & (edge | GONE) and edge == READABLE:
            return
        if edge == WRITABLE and connection.edges & WRITABLE:
            connection.edges &= ~WRITABLE
            return
        if connection.waiter is not None:
            raise ConnectionBusy(
                "two greenlets wait for one connection: let one of them do all its reading and writing"
            )
        self.wheel.schedule(connection, self.wheel.tick(moment))
        connection.waiter = getcurrent()
        if edge == WRITABLE:
            connection.edges |= AWAITS_ROOM
        if self._rearm is not None:
            self._rearm(connection.socket.fileno(), 2 if edge == WRITABLE else 1)
        try:
            self.hub.switch()
            if connection.state == State.CLOSED:
                raise connection.over()
        finally:
            connection.waiter = None
            connection.edges &= ~AWAITS_ROOM
            connection.deadline = NEVER

    # The hub's side.

    def _on_events(self, events: list[tuple[int, int]]) -> None:  # noqa: C901 - a call per event would be the dearest part
        table = self.table
        ready = self.ready
        woken: list[Connection] | None = None
        came: list[Listener] | None = None
        for descriptor, mask in events:
            connection = table[descriptor] if descriptor < len(table) else None
            if connection is None:
                listener = self._listeners.get(descriptor)
                if listener is not None:
                    came = came or []
                    came.append(listener)
                continue
            edges = connection.edges
            connection.edges = edges | mask
            if connection.waiter is not None:
                if mask & (WRITABLE | BROKEN) or not edges & AWAITS_ROOM:
                    woken = woken or []
                    woken.append(connection)
            elif not edges & HELD and (mask & (READABLE | GONE) or (mask & WRITABLE and edges & SHORT_OF_ROOM)):
                connection.edges |= HELD
                ready.append(connection)
        for connection in woken or ():
            waiter, connection.waiter = connection.waiter, None
            if waiter is not None:
                waiter.switch()
        # Not before: who comes in may get the descriptor of one that has gone, of which there may be news in `events`.
        if came is not None:
            self._let_in(came)
        if ready and not self._rest_later.active:
            self._run()

    def _let_in(self, listeners: list[Listener]) -> None:
        for listener in listeners:
            try:
                listener.ready()
            except Exception:  # noqa: BLE001 - the next one must hear too: it is told only once
                _log.exception("accepting failed")

    def _soon(self) -> None:
        if not self._run_again and not self._rest_later.active:
            self._run_again = True
            self.loop.run_callback(self._run_soon)

    def _run_soon(self) -> None:
        self._run_again = False
        if not self._rest_later.active:
            self._run()

    def _run(self) -> None:
        ready = self.ready
        idle = self._idle
        now = self.now
        self._slice_end = now() + SLICE
        while ready:
            if now() >= self._slice_end:
                # Not a callback: those that come while callbacks run are run with them, before anything else.
                self._rest_later.start(self._run)
                return
            greenlet = idle.pop() if idle else self._another()
            greenlet.switch()

    def _another(self) -> Any:
        greenlet = gevent.Greenlet(self._work)
        self.greenlets.add(greenlet)
        return greenlet

    def _work(self) -> None:
        me = getcurrent()
        hub_switch = self.hub.switch
        ready = self.ready
        idle = self._idle
        now = self.now
        attend = self._attend
        try:
            while True:
                while ready and now() < self._slice_end:
                    connection = ready.popleft()
                    if connection.state != 8:  # State.CLOSED
                        attend(connection)
                if len(idle) >= self._kept:
                    return
                idle.append(me)
                hub_switch()
        finally:
            self.greenlets.discard(me)
            if me in idle:
                idle.remove(me)
            if ready:
                self._soon()

    @property
    def busy_greenlets(self) -> list[Any]:
        """Those in the middle of something."""
        idle = set(self._idle)
        return [greenlet for greenlet in self.greenlets if greenlet not in idle]

    @property
    def idle_greenlets(self) -> int:
        """How many wait for something to do."""
        return len(self._idle)

    def _on_tick(self) -> None:
        for connection in self.wheel.advance(self.now()):
            assert isinstance(connection, Connection)
            if connection.state == State.CLOSED or connection.deadline > self.wheel.now_tick:
                continue
            waiter, connection.waiter = connection.waiter, None
            if waiter is not None:
                waiter.throw(Expired())
            elif not connection.edges & HELD or getattr(connection.attached, "expires_in_use", False):
                try:
                    self._expire(connection)
                except Exception:  # noqa: BLE001 - the ticks of all others go on
                    _log.exception("a connection whose time is over could not be ended well")
                    self.close(connection, reasons.ERROR)
        for function in self.on_tick:
            function()

    def end(self) -> None:
        """Stop the timers and the poller, and cut what is still there."""
        for connection in self.connections():
            self.close(connection, reasons.KILLED)
        _lots.discard(self)
        for timer in (self._timer, self._rest_later):
            timer.stop()
            timer.close()
        self._poller.close()

    def forsake(self) -> None:
        """In the child of a fork: leave all connections to the parent. Their sockets are the parent's, too, so nothing is read,
        written or ended here, whatever greenlets the child lets run."""
        self.ready.clear()
        for timer in (self._timer, self._rest_later):
            timer.stop()
        self._poller.forsake()
        for function in self.on_fork:
            function()


def _after_fork() -> None:
    for lot in lots():
        lot.forsake()


os.register_at_fork(after_in_child=_after_fork)


def _nothing() -> None:
    return


def _nobody() -> int:
    return 0


def _leave(uses: dict[str, Any], client: str) -> None:
    left = uses.get(client, 0) - 1
    if left > 0:
        uses[client] = left
    else:
        uses.pop(client, None)
