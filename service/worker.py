"""The gunicorn worker: gevent's, with a context for each request and a shutdown that loses nothing.

Told to stop, it drains in this order, all within gunicorn's `graceful_timeout`:

1. readiness is 503 at once; both listeners go on for `drain_delay`, so that balancers can notice;
2. the public listener closes, after taking in what was already queued on it; connections that wait for a next request
   are closed; requests in flight finish;
3. the admin listener closes the same way, so that the drain can be watched to its end;
4. what the process holds is given back (`Lifecycle.shut_down`).

A worker that is being replaced (a reload, `max_requests`) or has lost its master skips the delay and the order:
others answer in its place, and its own readiness would only mislead.

No client holds anything for longer than it is worth: a request's head has `FIRST_HEAD` or `ADMIN_HEAD` seconds to arrive,
a client that has stopped reading is cut after SEND_TIMEOUT, and a body that nobody has read is not read for its own sake.
"""

from __future__ import annotations

import array
import contextlib
import contextvars
import errno
import fcntl
import functools
import os
import resource
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import gevent
import gevent.event
import gevent.socket
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.errors import AppImportError
from gunicorn.http.body import LengthReader
from gunicorn.sock import ssl_context
from gunicorn.workers.base import Worker
from gunicorn.workers.ggevent import GeventWorker

from service import lifecycle, logs, master
from service.middleware.chain import ON_ADMIN_LISTENER
from service.settings import SettingsError

__all__ = ["DrainingWorker", "connections_within", "raise_file_limit"]

TICK = 1.0
"""How often the master hears of this worker, in seconds."""

POLL = 0.02
"""How often a drain looks at what is left."""

FIRST_REQUEST_GRACE = 0.5
"""How long a connection that has not sent anything yet is waited for. Its request may be on the way."""

RESERVE = 1.0
"""Kept of the graceful timeout for giving back, before the master kills."""

FIRST_HEAD = 10
"""How long the head of a connection's first request may take, in seconds. Later ones have `keepalive`."""

ADMIN_HEAD = 5
"""How long any request's head may take on the admin listener, whose few places are everybody's without a token."""

LINGER = 1.0
"""How long what a client still sends is thrown away before its connection is closed, in seconds."""

LINGER_BYTES = 1_048_576
SMALL_BODY = 65_536

NO_LINGER = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing throws away what is still to be sent

ADMIN_CONNECTIONS = 64
ACCEPTED_AT_ONCE = 64
MOST_CONNECTIONS = 16_384
UNLIMITED_FILES = 1_048_576


@dataclass(slots=True, eq=False)
class _Connection:
    """A client's connection and what it is doing."""

    socket: Any
    listener: _Listener
    accepted: float
    waiting: bool = True
    """For a request, none of which has arrived."""
    requests: int = 0
    request: Any = None
    """gunicorn's, while it is being answered."""
    left_unread: bool = False
    """Whether the request was answered before its body was read, and the rest is not waited for."""

    def is_idle(self, now: float) -> bool:
        """Whether nobody loses anything when it closes."""
        settled = self.requests > 0 or now - self.accepted >= FIRST_REQUEST_GRACE
        return self.waiting and settled and not _unread_bytes(self.socket.fileno())

    def hang_up(self) -> None:
        """Let no further request begin. One that is in the socket's buffer can still be read; the next read ends."""
        # Through a second descriptor, since the first may be wrapped in TLS, which has no half-closed state.
        try:
            with socket.socket(fileno=os.dup(self.socket.fileno())) as twin:
                twin.shutdown(socket.SHUT_RD)
        except OSError:  # the client has gone by itself
            return


class _ConnectionSocket(gevent.socket.socket):
    """A client's socket that tells when the first bytes of a request arrive, and does not wait for ever to send."""

    connection: _Connection | None = None
    send_timeout: float | None = None

    def recv(self, *args: Any) -> bytes:
        data = super().recv(*args)
        if data and self.connection is not None:
            self.connection.waiting = False
        return data

    def send(self, data: Any, *args: Any, **kwargs: Any) -> int:
        """Send what the client takes. All other ways of sending come down to this one."""
        self.settimeout(self.send_timeout)
        try:
            return super().send(data, *args, **kwargs)
        except TimeoutError:
            # Closing would leave the kernel with what is queued, and the client's window may stay shut.
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            raise ConnectionResetError(errno.ECONNRESET, "the client does not read") from None
        finally:
            self.settimeout(None)


class _Server(StreamServer):
    """Accepts connections as `_ConnectionSocket`."""

    def do_read(self) -> Any:
        accepted: Any = super().do_read()  # None when nothing is queued, whatever its annotation says
        if accepted is None:
            return None
        plain, address = accepted
        return _ConnectionSocket(plain.family, plain.type, plain.proto, fileno=plain.detach()), address

    def take_queued(self) -> None:
        """Accept what the kernel has completed already. Closing would reset those connections."""
        while not self.full():
            accepted = self.do_read()
            if accepted is None:
                return
            self.do_handle(*accepted)


@dataclass(slots=True, eq=False)
class _Listener:
    """One listening socket and the connections that came in on it."""

    name: Any
    pool: Any
    is_admin: bool
    server: Any = None
    connections: set[_Connection] = field(default_factory=set)

    def getsockname(self) -> Any:
        """The address it listens on. gunicorn asks for each connection, which may be after the socket has closed."""
        return self.name

    def close(self) -> None:
        """Accept nothing more."""
        self.server.take_queued()
        self.server.close()

    def make_room(self) -> None:
        """When every place is taken, close the connection that has kept its own the longest without a request."""
        if self.pool.full():
            silent = [connection for connection in self.connections if connection.request is None]
            if silent:
                min(silent, key=lambda connection: connection.accepted).hang_up()

    def hang_up_idle(self) -> None:
        """Close the connections that wait for a request."""
        now = time.monotonic()
        for connection in list(self.connections):
            if connection.is_idle(now):
                connection.waiting = False
                connection.hang_up()


class DrainingWorker(GeventWorker):  # type: ignore[misc]  # gunicorn publishes no types
    """The worker class of this service."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._generation = master.generation()
        self.wsgi: Any = None
        self._send_timeout = master.send_timeout()
        self._told_to_stop = False
        self._orphaned = False
        self._deadline = 0.0
        self._listeners: list[_Listener] = []
        self._by_greenlet: dict[Any, _Connection] = {}

    def init_process(self) -> None:
        """Set up the process, then run. Called by gunicorn in the worker."""
        raise_file_limit()
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the application. When the settings do not make one, that is said without a stack and ends the master."""
        try:
            super().load_wsgi()
        except SettingsError as error:
            raise AppImportError(f"seawall does not start: {error}") from error
        self.wsgi = functools.partial(self._call, self.wsgi)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On TERM: readiness turns at once, the rest follows in `run`."""
        self._told_to_stop = True
        if not self._is_replaced():
            lifecycle.process.start_draining()
        super().handle_exit(sig, frame)

    def notify(self) -> None:
        """Tell the master that this worker lives. Without a master, finish what is in flight and end."""
        Worker.notify(self)
        if not self._orphaned and self.ppid != os.getppid():
            self.log.warning("The master is gone: worker %s finishes its requests and ends", self.pid)
            self._orphaned = True
            self.alive = False

    def run(self) -> None:
        """Serve until told to stop, then drain."""
        hub = gevent.get_hub()
        logs.log_greenlet_crashes(hub)
        settings = master.settings()
        stopping = gevent.event.Event()
        wakeup = self._watch_signals(hub, stopping)
        try:
            for sock in self.sockets:
                self._listeners.append(self._listen(sock, admin_port=settings.admin_port))
            while self.alive:
                self.notify()
                stopping.wait(TICK)
            self._drain(settings.drain_delay)
        finally:
            wakeup.close()
            lifecycle.process.shut_down(budget=max(RESERVE, self._deadline - time.monotonic()))

    def handle(self, listener: _Listener, client: Any, address: Any) -> None:
        """Serve one connection."""
        connection = _Connection(client, listener, time.monotonic())
        if isinstance(client, _ConnectionSocket):
            client.connection, client.send_timeout = connection, self._send_timeout
        greenlet = gevent.getcurrent()
        self._by_greenlet[greenlet] = connection
        if listener.is_admin:
            listener.make_room()
        listener.connections.add(connection)
        try:
            super().handle(listener, client, address)
        finally:
            listener.connections.discard(connection)
            del self._by_greenlet[greenlet]

    @contextmanager
    def timeout_ctx(self) -> Iterator[None]:
        """Surrounds the wait for a request's head, which ends silently."""
        connection = self._by_greenlet[gevent.getcurrent()]
        connection.waiting = True
        timeout = gevent.Timeout.start_new(self._patience(connection))
        try:
            yield
        except gevent.Timeout as raised:
            if raised is not timeout:
                raise
        finally:
            timeout.close()
            connection.waiting = False

    def handle_request(self, listener_name: Any, request: Any, sock: Any, address: Any) -> None:
        """Serve one request, in a context of its own: a connection's greenlet serves many."""
        connection = self._by_greenlet[gevent.getcurrent()]
        connection.requests += 1
        connection.request = request
        try:
            # Reading does not yield when the bytes are there already. Yielding once for each request keeps a client that
            # is quicker than this process from holding up all others, also those that are not accepted yet; and requests
            # that arrive together are served in turns of a few milliseconds, between which timers and sockets are seen to.
            gevent.sleep(0)
            contextvars.Context().run(super().handle_request, listener_name, request, sock, address)
        finally:
            connection.request = None
            if connection.left_unread:
                _linger(sock)

    def handle_error(self, request: Any, client: Any, address: Any, error: BaseException) -> None:
        """Answer what gunicorn itself refuses, or what failed outside the application, as the application would."""
        if not isinstance(error, Exception) or isinstance(error, ssl.SSLError):
            self.log.debug("Connection given up: %r", error)  # it was cut, or there is nobody to understand an answer
            return
        from service.problems import refusal  # not sooner: the master imports this module and must not import Flask

        with contextlib.suppress(OSError):
            client.sendall(refusal(error, request, address))
            _linger(client)

    def _patience(self, connection: _Connection) -> float:
        longest: float = self.cfg.keepalive
        if connection.listener.is_admin:
            return min(ADMIN_HEAD, longest)
        return longest if connection.requests else min(FIRST_HEAD, longest)

    def _call(self, application: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        connection = self._by_greenlet[gevent.getcurrent()]
        environ[ON_ADMIN_LISTENER] = connection.listener.is_admin

        def start(*args: Any) -> Any:
            if not _ends_at_hand(connection.request, connection.socket):
                connection.left_unread = True
                connection.request.force_close()
            return start_response(*args)

        return application(environ, start)

    def _watch_signals(self, hub: Any, stopping: gevent.event.Event) -> Any:
        # Python runs signal handlers between two of its own instructions, and an idle loop runs none. The interpreter
        # writes to this pipe at once; reading it here is what lets the handlers run now and not at the next tick.
        def on_wakeup() -> None:
            _empty(self.PIPE[0])
            if not self.alive:
                stopping.set()

        watcher = hub.loop.io(self.PIPE[0], 1)
        watcher.start(on_wakeup)
        return watcher

    def _listen(self, sock: Any, *, admin_port: int) -> _Listener:
        sock.setblocking(1)
        name = sock.getsockname()
        is_admin = isinstance(name, tuple) and name[1] == admin_port
        pool = Pool(min(ADMIN_CONNECTIONS, self.worker_connections) if is_admin else self.worker_connections)
        options = {"ssl_context": ssl_context(self.cfg)} if self.cfg.is_ssl else {}
        listener = _Listener(name, pool, is_admin)
        listener.server = _Server(sock, handle=functools.partial(self.handle, listener), spawn=pool, **options)
        if self.cfg.workers > 1:
            # Leave the next ones to another worker. Accepting one at a time, as gunicorn does, would let a busy loop take
            # in a dozen connections a second while hundreds wait.
            listener.server.max_accept = ACCEPTED_AT_ONCE
        listener.server.start()
        return listener

    def _is_replaced(self) -> bool:
        return not self._told_to_stop or self._orphaned or self._generation < master.generation()

    def _drain(self, delay: float) -> None:
        patience: float = self.cfg.graceful_timeout
        self._deadline = deadline = time.monotonic() + patience - min(RESERVE, patience / 4)
        for connection in self._by_greenlet.values():
            if connection.request is not None:
                # What has not been answered yet will say that no further request is taken on this connection.
                connection.request.force_close()
        if not self._is_replaced():
            self._wait(self._is_replaced, until=min(deadline, time.monotonic() + delay))
        replaced = self._is_replaced()
        public = [listener for listener in self._listeners if not listener.is_admin]
        admin = [listener for listener in self._listeners if listener.is_admin]
        for group in [self._listeners] if replaced else [public, admin]:
            self._finish(group, deadline)
        self.log.info("Worker %s has drained", self.pid)

    def _finish(self, group: Sequence[_Listener], deadline: float) -> None:
        for listener in group:
            listener.close()

        def finished() -> bool:
            for listener in group:
                listener.hang_up_idle()
            return not any(listener.pool for listener in group)

        if self._wait(finished, until=deadline):
            return
        for listener in group:
            self.log.warning("Graceful timeout: worker %s cuts %s connections", self.pid, len(listener.pool))
            listener.pool.kill(block=False)
        gevent.sleep(POLL)

    def _wait(self, done: Callable[[], bool], *, until: float) -> bool:
        """Wait for `done`, at most until the time `until`, and tell the master all the while."""
        while not done():
            if time.monotonic() >= until:
                return False
            self.notify()
            gevent.sleep(POLL)
        return True


def raise_file_limit() -> int:
    """Raise this process's limit of open files to what it may have, and return the limit. Each connection is a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = UNLIMITED_FILES if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return UNLIMITED_FILES if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # some systems say "unlimited" and do not mean it
        return soft
    return wanted


def connections_within(files: int, *, reserve: int) -> int:
    """How many clients a worker takes on when it may open `files` files and needs `reserve` of them for itself.

    At least 16, at most 16384: beyond that a worker has other limits first.
    """
    return max(16, min(MOST_CONNECTIONS, files - reserve))


def _ends_at_hand(request: Any, client: Any) -> bool:
    """Whether the request's body has been read, or its little rest is there, so that the next request can follow."""
    reader = request.body.reader
    if not isinstance(reader, LengthReader):
        return reader.parser is None  # of a chunked body
    if reader.length == 0:
        return True
    here = reader.unreader.buf.getbuffer().nbytes + _unread_bytes(client.fileno())
    return bool(reader.length <= min(here, SMALL_BODY))


def _linger(client: Any) -> None:
    """Say that nothing more comes, then throw away a little of what the client sends.

    Closing at once would reset the connection, and the client might never see its answer.
    """
    taken = 0
    with contextlib.suppress(OSError), gevent.Timeout(LINGER, False):  # type: ignore[arg-type]  # False: silently
        client.shutdown(socket.SHUT_WR)
        while taken < LINGER_BYTES and (data := client.recv(SMALL_BODY)):
            taken += len(data)


def _unread_bytes(descriptor: int) -> int:
    count = array.array("i", [0])
    try:
        fcntl.ioctl(descriptor, termios.FIONREAD, count)
    except (OSError, ValueError):  # closed meanwhile
        return 0
    return count[0]


def _empty(pipe: int) -> None:
    try:
        while os.read(pipe, 4096):
            pass
    except BlockingIOError:
        return
