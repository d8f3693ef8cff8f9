"""The gunicorn worker: `gunicorn -k longconn.worker.ParkingWorker application`.

gunicorn imports this module in its master, before it forks and before gevent patches anything: what all workers share is
made here.
"""

from __future__ import annotations

import contextvars
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

import gevent
import gevent.event
from gunicorn.workers.base import Worker
from gunicorn.workers.ggevent import GeventWorker

from longconn import collection, logs, reasons, scoreboard
from longconn.accepting import Acceptor
from longconn.by_gunicorn import ByGunicorn
from longconn.capacity import capacity_within, open_files, raise_file_limit
from longconn.configuration import hooks
from longconn.core.admission import victims
from longconn.core.histogram import Histogram
from longconn.core.states import State
from longconn.draining import Drain
from longconn.errors import ConnectionRefused
from longconn.http.farewell import refusal_page
from longconn.http.serving import Serving
from longconn.listening import make_listeners
from longconn.parking.connection import HELD, Connection
from longconn.parking.lot import Lot
from longconn.settings import Settings, SettingsError
from longconn.sharing import Bells, Sharing
from longconn.watch import LoopWatch

__all__ = ["BOARD", "ParkingWorker"]

BOARD = scoreboard.Scoreboard()
"""What every worker of this master is doing."""
BELLS = Bells()
"""By which they call each other."""

LOGGERS = ("gunicorn.error", "gunicorn.access")

BEAT = 1.0
"""How often the master hears of a worker, in seconds."""
LONGEST_WAIT_FOR_OTHERS = 30.0
POLL = 0.02
"""How often a drain looks at what is left."""
PUBLISHED_EVERY = 2
"""Ticks of the lot between two publications of the counters."""
_FOR_EVER = 86_400.0
STOCK_KEEPALIVE = 2
STOCK_CONNECTIONS = 1000


class ParkingWorker(GeventWorker):  # type: ignore[misc]  # gunicorn publishes no types
    """gunicorn's gevent worker whose idle connections cost nothing. See docs/parking-worker.md."""

    _settings_in_force: Settings | None = None
    _cfg_of_generation: Any = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:  # noqa: ARG003 - gunicorn calls it so
        """Called by the master at its start: bad settings end it with a message that names them."""
        try:
            ParkingWorker._settings_in_force = read_settings(cfg)
        except SettingsError as error:
            sys.exit(f"longconn: {error}")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # In the master, so that a worker that is replaced at night does not end it over an environment that was changed.
        try:
            ParkingWorker._settings_in_force = read_settings(self.cfg)
        except SettingsError as error:
            if self._settings_in_force is None:
                sys.exit(f"longconn: {error}")
            self.log.error("longconn: the settings of before stay in force: %s", error)  # noqa: TRY400 - no stack is needed
        assert self._settings_in_force is not None
        self.longconn_settings: Settings = self._settings_in_force
        if self.cfg is not ParkingWorker._cfg_of_generation:
            # A reload makes a new configuration, and nothing else does.
            ParkingWorker._cfg_of_generation = self.cfg
            BOARD.generation += 1
        self._generation = BOARD.generation
        self.row = BOARD.claim(self.age)
        self.replaced = False
        """Whether another worker takes this one's place (a reload, `max_requests`): nothing is ending."""
        self._told_to_stop = False
        self._orphaned = False
        self.restart_wanted = False
        """Whether `max_requests` has been reached: this worker leaves when it is its turn."""
        self._restart_since = 0.0
        self.aborting = False
        """Whether the master has told this worker to die."""
        self._stopping: Any = None
        self._drain: Drain | None = None

    # The life of the process.

    def init_process(self) -> None:
        """Set up the process, then run. Called by gunicorn in the worker."""
        # Between the fork and gunicorn's own handlers a TERM would go to the master's handler, which queues it for nobody.
        signal.signal(signal.SIGTERM, self.handle_exit)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.row.begin(os.getpid())
        self._tally = self.row.tally()
        raise_file_limit()
        super().init_process()

    def patch(self) -> None:
        """Let gevent replace what blocks; then nothing that is logged or printed may block either."""
        super().patch()
        logs.detach(LOGGERS, self._count_dropped)
        logs.detach_standard_streams()

    def run(self) -> None:
        """Serve until told to stop, then drain."""
        settings = self.longconn_settings
        if settings.collector == "tuned":
            collection.tune()
        logs.detach(LOGGERS, self._count_dropped)  # the application may have added handlers
        self._stopping = gevent.event.Event()
        self.lot = lot = Lot(
            attend=self._attend,
            expire=self._expire,
            closed=lambda connection, reason: self.serving.upgrading.closed(connection, reason),
            tally=self._tally,
            row=self.row,
            greenlets_kept=settings.greenlets_kept,
            part=lambda connection, reason: self.serving.upgrading.part(connection, reason),
        )
        self.serving = Serving(self, lot, settings, render_refusal=hooks().render_refusal)
        self.by_gunicorn = ByGunicorn(self)
        self._descriptors = open_files()
        self._ticks = 0
        lot.on_tick.append(self._tick)
        wakeup = self._watch_signals(lot.hub)
        self._watch = self._watch_loop()
        pauses = self._measure_pauses()
        self.acceptor = self._open_listeners()
        self.row.values[scoreboard.SLOT_STATE] = scoreboard.SERVING
        self._tick()
        try:
            while self.alive:
                self.notify()
                if self.restart_wanted and self._may_restart():
                    break
                self._stopping.wait(BEAT)
            drain = self._drain = Drain(self)
            drain.run()
        finally:
            self._watch.stop()
            pauses.stop()
            wakeup.close()
            self.acceptor.end()
            lot.end()
            if self._drain is not None:
                self._drain.release()
            self._publish()
            self.row.release()

    def _open_listeners(self) -> Acceptor:
        settings = self.longconn_settings
        listeners = make_listeners(self.sockets, self.lot, self.cfg, settings)
        self.sockets: list[Any] = []
        ticks = self.lot.wheel.ticks
        handshake = ticks(settings.handshake_timeout)
        first = ticks(settings.idle_timeout or settings.head_timeout)
        acceptor = Acceptor(
            self.lot,
            BOARD,
            settings,
            capacity=self._room(settings.reserved_connections * sum(listener.reserved for listener in listeners)),
            render=self._render,
            first_ticks=lambda listener: handshake if listener.secure else first,
            # With --reuse-port each has listeners of its own, and the kernel decides.
            sharing=None if self.cfg.reuse_port else Sharing(BOARD, self.row, BELLS),
        )
        for listener in listeners:
            acceptor.open(listener)
        return acceptor

    def _room(self, reserved: int) -> int:
        """How many connections this worker holds, without `reserved` ones."""
        wanted = self.longconn_settings.max_connections
        room = capacity_within(raise_file_limit(), self._descriptors + reserved, wanted=wanted)
        if wanted > room.connections:
            self.log.warning(
                "LONGCONN_MAX_CONNECTIONS=%s, but %s files allow %s: that is the limit",
                wanted,
                room.files,
                room.connections,
            )
        self.row.values[scoreboard.MAXIMUM] = room.connections
        self.log.info(
            "Worker %s parks up to %s connections (%s open files allowed, %s in use, %s kept back; %s)",
            self.pid,
            room.connections,
            room.files,
            room.in_use,
            room.kept_back,
            self.lot.poller,
        )
        return room.connections

    def _render(self, refusal: ConnectionRefused, address: Any) -> bytes:
        render = hooks().render_refusal
        if render is None:
            return refusal_page(refusal)
        try:
            return render(refusal, None, address) or refusal_page(refusal)
        except Exception:
            self.log.exception("Exception in render_refusal hook")
            return refusal_page(refusal)

    def _watch_signals(self, hub: Any) -> Any:
        # Python runs signal handlers between two of its own instructions, and an idle loop runs none. The interpreter
        # writes to this pipe at once; reading it here is what lets the handlers run now and not at the next beat.
        def on_wakeup() -> None:
            _empty(self.PIPE[0])
            if not self.alive:
                self._stopping.set()

        watcher = hub.loop.io(self.PIPE[0], 1)
        watcher.start(on_wakeup)
        return watcher

    # What is counted.

    def _watch_loop(self) -> LoopWatch:
        turns = Histogram(scoreboard.DURATION_BOUNDS, self._tally, scoreboard.TURNS)
        watch = LoopWatch(
            self.lot.loop,
            values=self.row.values,
            threshold=self.longconn_settings.blocked_threshold,
            on_turn=lambda seconds: turns.observe(int(seconds * 1e9)),
            report=self.log.warning,
        )
        watch.start()
        return watch

    def _measure_pauses(self) -> collection.PauseMeter:
        pauses = Histogram(scoreboard.DURATION_BOUNDS, self._tally, scoreboard.GC_PAUSES)
        tally = self._tally

        def on_pause(seconds: float, generation: int) -> None:
            pauses.observe(int(seconds * 1e9))
            tally[scoreboard.COLLECTIONS + generation] += 1

        meter = collection.PauseMeter(on_pause)
        meter.start()
        return meter

    def _count_dropped(self, lines: int) -> None:
        self._tally[scoreboard.LOG_DROPPED] += lines

    def _tick(self) -> None:
        self.row.values[scoreboard.HEARD_NS] = time.monotonic_ns()
        self._ticks += 1
        if self._ticks % PUBLISHED_EVERY == 0:
            self._publish()

    def _publish(self) -> None:
        tally, lot = self._tally, self.lot
        tally[scoreboard.BYTES_IN] = lot.bytes_in
        tally[scoreboard.BYTES_OUT] = lot.bytes_out
        tally[scoreboard.GREENLETS] = len(lot.greenlets)
        tally[scoreboard.GREENLETS_IDLE] = lot.idle_greenlets
        tally[scoreboard.DESCRIPTORS] = self._descriptors + lot.live
        tally[scoreboard.QUEUE] = len(lot.ready)
        tally[scoreboard.HEAD_BYTES] = lot.head_bytes
        tally[scoreboard.LOOP_BLOCKED] = self._watch.blocked
        kinds = scoreboard.KINDS
        secure = sum(listener.connections for listener in self.acceptor.listeners if listener.secure)
        others = sum(tally[kinds + 2 : kinds + len(scoreboard.KIND_NAMES)])
        tally[kinds + 1] = max(0, secure - others) if secure else 0
        tally[kinds] = max(0, lot.live - others - tally[kinds + 1])
        self.row.publish(tally)

    # Connections.

    def _attend(self, connection: Connection) -> None:
        if connection.requests == 0 and self.by_gunicorn.takes(connection):
            self.by_gunicorn.serve(connection)
        else:
            self.serving.attend(connection)

    def handle_request(self, listener_name: Any, request: Any, sock: Any, address: Any) -> None:
        """Serve a request that gunicorn's own code has read, in a context of its own."""
        contextvars.Context().run(super().handle_request, listener_name, request, sock, address)

    def handle_http2_request(self, *arguments: Any) -> None:
        """Serve a stream, in a context of its own."""
        contextvars.Context().run(super().handle_http2_request, *arguments)

    def _expire(self, connection: Connection) -> None:
        if connection.state == State.HANDSHAKING or (connection.state == State.ACCEPTED and connection.listener.secure):
            self.lot.close(connection, reasons.HANDSHAKE_TIMEOUT)
        else:
            self.serving.expire(connection)

    def relieve_heads(self, connection: Connection) -> bool:
        """Incomplete heads take too much memory: close the oldest ones. Whether `connection` should go as well."""
        lot = self.lot
        limit = self.longconn_settings.head_memory
        holding = [
            one
            for one in lot.connections()
            if one.state == State.READING_HEAD and one.pending and (one is connection or not one.edges & HELD)
        ]
        for one in victims(holding, max(1, len(holding) // 10), lot.wheel.now_tick):
            if one is not connection:
                self._tally[scoreboard.EVICTED] += 1
                lot.close(one, reasons.EVICTED)
        return lot.head_bytes > limit

    def count_request(self) -> None:
        """A request begins: after `max_requests` of them the worker asks to be replaced."""
        self.nr += 1
        if self.nr >= self.max_requests and not self.restart_wanted:
            self.restart_wanted = True
            self.log.info("Autorestarting worker after current request.")
            self._stopping.set()

    # Leaving.

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On TERM: the rest follows in `run`."""
        self._told_to_stop = True
        super().handle_exit(sig, frame)

    def handle_abort(self, sig: int, frame: FrameType | None) -> None:
        """On ABRT, which the master sends to a worker whose loop stands still: end at once."""
        self.aborting = True
        super().handle_abort(sig, frame)

    def notify(self) -> None:
        """Tell the master that this worker lives. Without a master, finish what is in flight and end."""
        while self.pid != os.getpid():
            # A child that the application has forked runs the worker's greenlets as well. This one has nothing to say there.
            gevent.sleep(_FOR_EVER)
        Worker.notify(self)
        if not self._orphaned and self.ppid != os.getppid():
            self.log.warning("The master is gone: worker %s finishes its requests and ends", self.pid)
            self._orphaned = True
            self.alive = False

    def _may_restart(self) -> bool:
        """Whether this worker may leave for `max_requests` now: one at a time, while all others serve."""
        self._stopping.clear()
        now = time.monotonic()
        self._restart_since = self._restart_since or now
        values = self.row.values
        values[scoreboard.SLOT_STATE] = scoreboard.DRAINING
        others = [
            row.values[scoreboard.SLOT_STATE] for row in BOARD.rows() if row.values[scoreboard.PID] != os.getpid()
        ]
        serving = others.count(scoreboard.SERVING)
        # The one before may be gone already and its successor not be there yet. There may also be fewer workers than were
        # configured (TTOU), for which nobody should wait for ever.
        patient = now - self._restart_since < LONGEST_WAIT_FOR_OTHERS
        if scoreboard.DRAINING in others or (serving < self.cfg.workers - 1 and patient):
            values[scoreboard.SLOT_STATE] = scoreboard.SERVING
            return False
        return True

    def is_replaced(self) -> bool:
        """Whether another worker takes this one's place, as far as this worker can tell."""
        if self._orphaned:
            return True
        return not self._told_to_stop or self._generation < BOARD.generation

    def successors_serve(self) -> bool:
        """Whether none of those that come after this worker is still booting."""
        younger = [row.values[scoreboard.SLOT_STATE] for row in BOARD.rows() if row.values[scoreboard.AGE] > self.age]
        return scoreboard.BOOTING not in younger or self._orphaned


def read_settings(cfg: Any) -> Settings:
    """The settings in force under gunicorn's configuration `cfg`: those of the environment, then gunicorn's `keepalive` and
    `worker_connections` when they are not its own defaults, then those of `longconn.configure(defaults=...)`.

    Raises `SettingsError`.
    """
    defaults = dict(hooks().defaults)
    if cfg.keepalive != STOCK_KEEPALIVE:
        defaults["idle_timeout"] = float(cfg.keepalive)
    if cfg.worker_connections != STOCK_CONNECTIONS:
        defaults["max_connections"] = cfg.worker_connections
    return Settings.from_environment({**os.environ, **cfg.env}, defaults=defaults)


def _empty(pipe: int) -> None:
    try:
        while os.read(pipe, 4096):
            pass
    except BlockingIOError:
        return
