"""PostgreSQL through psycopg 3, which waits on sockets and so lets other greenlets run.

Import this module after monkey-patching: psycopg chooses how it waits when it is first imported. A request that is
interrupted in the middle of a statement leaves a connection that is not fit for use; SQLAlchemy closes it, and the
server rolls back. The server's own timeouts are set well below that, so that it happens seldom.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import gevent
import gevent.monkey
import psycopg
import psycopg.waiting
from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.exc import DisconnectionError

from service.data.tables import REVISION, schema_revision
from service.data.transactions import StatementTimes, observe_statements, transact
from service.data.translation import MIGRATE, busy, translated
from service.errors import DatabaseFailed

__all__ = ["PostgresDatabase", "postgres_engine"]

T = TypeVar("T")

# Looks without waiting; the patched one would let other greenlets run.
_poll = gevent.monkey.get_original("select", "poll")

RECYCLE = 1800
"""Seconds after which a connection is replaced, so that servers behind a balancer are used evenly again."""
WHOLE = 3
"""The whole of one transaction may take this many times the statement timeout: waiting for a connection, connecting
and the statement each have one. Only a network that swallows packets reaches it."""


def postgres_engine(url: URL, *, timeout: float, pool_size: int) -> Engine:
    """An engine whose connections wait at most `timeout` seconds: for the pool, for the server, for locks, statements."""
    milliseconds = max(1, round(timeout * 1000))
    limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    given = url.query.get("options", "")
    options = " ".join([str(given), *(f"-c {name}={milliseconds}" for name in limits)]).strip()
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout,
        pool_recycle=RECYCLE,
        hide_parameters=True,
        use_native_hstore=False,  # would ask the server about a type that is not used, on every connect
        connect_args={
            "options": options,
            "connect_timeout": max(2, math.ceil(timeout)),
            "application_name": "seawall",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": WHOLE * milliseconds,
        },
    )
    event.listen(engine, "checkout", _refuse_closed)
    observe_statements(engine)
    return engine


def _refuse_closed(connection: psycopg.Connection[Any], *_: object) -> None:
    """Have the pool replace a connection that the server has closed while nobody used it.

    Such a socket has something to read. Asking the server instead would cost every transaction a round trip, and
    SQLAlchemy's way of asking turns an interruption at that moment into an error of another kind.
    """
    poller = _poll()
    poller.register(connection.fileno(), select.POLLIN)
    if poller.poll(0):
        raise DisconnectionError


class PostgresDatabase:
    """`Database` on a server. `timeout`, `slow_statement` in seconds; `pool_size` connections per process."""

    def __init__(self, url: URL, *, timeout: float, pool_size: int, slow_statement: float) -> None:
        if gevent.monkey.is_module_patched("socket") and psycopg.waiting.wait is getattr(
            psycopg.waiting, "wait_c", None
        ):
            raise RuntimeError(
                "psycopg was imported before gevent patched this process, so every statement would hold the event loop; "
                "import it after gevent.monkey.patch_all()"
            )
        self._timeout = timeout
        self._slow_statement = slow_statement
        self._engine = postgres_engine(url, timeout=timeout, pool_size=pool_size)

    @property
    def lent(self) -> int:
        """How many connections are in use now."""
        pool = self._engine.pool
        return pool.checkedout() if isinstance(pool, QueuePool) else 0

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a read-only transaction; see `Database.read`."""
        return self._run(work, postgresql_readonly=True)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction; see `Database.write`."""
        return self._run(work)

    def ping(self, timeout: float) -> None:
        """See `Database.ping`."""
        with _at_most(timeout):
            revision = self.read(lambda connection: connection.scalar(schema_revision))
        if revision != REVISION:
            raise DatabaseFailed(MIGRATE)

    def close(self) -> None:
        """See `Database.close`."""
        self._engine.dispose()

    def _run(self, work: Callable[[Connection], T], **options: object) -> T:
        times = StatementTimes(self._slow_statement)
        try:
            with translated(), _at_most(WHOLE * self._timeout):
                return transact(self._engine, work, times, **options)
        finally:
            times.report()


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    # Raised as gevent.Timeout, a BaseException, because that is what makes SQLAlchemy throw the connection away.
    limit = gevent.Timeout.start_new(seconds)
    try:
        yield
    except gevent.Timeout as expired:
        if expired is not limit:
            raise
        raise busy() from expired
    finally:
        limit.close()
