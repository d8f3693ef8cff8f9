"""One decision in memory that processes share: one busy process and two, on one key and on many.

Beside `shm://`: itself with record locks of the file in place of mutexes, as where the C library has no robust ones, and
LMDB with a write transaction for each decision. All decide with the same arithmetic and answer with the same values.
"""

from __future__ import annotations

import itertools
import multiprocessing
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bench.ratelimit.plan import Plan
from bench.ratelimit.rounds import at_most, measure
from bench.worker.figures import Numbers, percentile
from bench.worker.report import Column, Row, Section
from resilience.clock import SYSTEM_CLOCK
from resilience.core.limiter import Bucket, Decision, Limit, Quota, advance
from resilience.ports import Taker
from resilience.storage.mutex import Locks, RecordLocks
from resilience.storage.shm import SharedMemoryStorage

__all__ = ["run"]

OURS = "shm://"
LIMIT = Limit(100_000_000, 60)  # nothing is denied: every decision does its whole work
MANY = 5_000
COLUMNS = [Column("p50_us", "p50 us", 2), Column("mean_us", "mean us", 2), Column("p99_us", "p99 us", 2)]
_BATCH = 256
_bucket = struct.Struct("=qqq")
_new = tuple.__new__  # as the storages do


def run(plan: Plan) -> list[Section]:
    """A table for each number of processes and of keys."""
    return [_table(plan, processes, keys) for processes in (1, 2) for keys in (1, MANY)]


def _table(plan: Plan, processes: int, keys: int) -> Section:
    busy = "one busy process" if processes == 1 else f"{processes} busy processes"
    where = "one key" if keys == 1 else f"{keys:,} keys in turn"
    with _folder() as folder:
        openers = _openers(folder)
        rows = measure(plan, {name: _contender(plan, openers[name], processes, keys) for name in openers})
    section = Section(
        f"One decision in shared memory: {busy}, {where}",
        COLUMNS,
        [*rows, *_left_out(openers)],
        compared="p50_us",
        against=OURS,
        notes=["Each call is timed by itself, which adds a tenth of a microsecond to all."],
    )
    at_most(section, f"shm://, {busy}, {where}: p50", 5, OURS, name="p50_us")
    return section


@contextmanager
def _folder() -> Iterator[Path]:
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


def _openers(folder: Path) -> dict[str, Callable[[], Taker]]:
    openers: dict[str, Callable[[], Taker]] = {
        OURS: lambda: _shared(folder / "mutexes", None),
        "shm://, record locks of the file": lambda: _shared(folder / "records", RecordLocks),
    }
    try:
        import lmdb  # noqa: F401
    except ImportError:
        return openers
    openers["LMDB, a transaction each"] = lambda: _lmdb(folder / "lmdb")
    return openers


def _left_out(openers: dict[str, Callable[[], Taker]]) -> list[Row]:
    return [] if len(openers) == 3 else [Row("LMDB, a transaction each", failure="lmdb is not installed")]


def _shared(path: Path, kind: type[Locks] | None) -> Taker:
    return SharedMemoryStorage(f"shm://{path}", _kind=kind).taker("bench", LIMIT)


def _lmdb(folder: Path) -> Taker:
    """A bucket is a value, nothing is synchronised to a disk, and nothing expires."""
    import lmdb

    folder.mkdir(exist_ok=True)
    environment = lmdb.open(
        str(folder), map_size=2**24, sync=False, metasync=False, writemap=True, map_async=True, max_readers=8
    )
    begin, microseconds = environment.begin, SYSTEM_CLOCK.microseconds

    def take(subject: str, cost: int) -> Decision:
        key, spent = subject.encode(), cost * LIMIT.unit
        with begin(write=True, buffers=True) as transaction:
            found = transaction.get(key)
            bucket = None if found is None else _new(Bucket, _bucket.unpack(found))
            level, stamp = advance(LIMIT, bucket, microseconds())
            allowed = level >= spent
            if allowed:
                level -= spent
                transaction.put(key, _bucket.pack(level, stamp, LIMIT.unit))
        return _new(Decision, (allowed, (_new(Quota, (LIMIT, level, cost, 0)),)))

    return take


def _contender(plan: Plan, opener: Callable[[], Taker], processes: int, keys: int) -> Callable[[], Numbers]:
    names = [f"10.0.{number >> 8}.{number & 255}" for number in range(keys)]

    def once() -> Numbers:
        # Forked from a process without threads. Nothing is open yet: LMDB must not be taken across a fork.
        context = multiprocessing.get_context("fork")
        together = context.Barrier(processes)
        pipes = [context.Pipe(duplex=False) for _ in range(processes)]
        workers = [
            context.Process(target=_hammer, args=(opener, names, plan.seconds, together, say)) for _, say in pipes
        ]
        for worker in workers:
            worker.start()
        seen: list[dict[str, float]] = [hear.recv() for hear, _ in pipes]
        for worker in workers:
            worker.join()
        return {name: sum(figures[name] for figures in seen) / processes for name in seen[0]}

    return once


def _hammer(opener: Callable[[], Taker], names: list[str], seconds: float, together: Barrier, say: Connection) -> None:
    take, now, subjects = opener(), time.perf_counter_ns, itertools.cycle(names)
    for _ in range(2 * len(names)):
        take(next(subjects), 1)
    spent: list[int] = []
    together.wait()
    deadline = now() + int(seconds * 1e9)
    while now() < deadline:
        for _ in range(_BATCH):
            subject = next(subjects)
            before = now()
            take(subject, 1)
            spent.append(now() - before)
    say.send(
        {
            "p50_us": percentile(spent, 0.5) / 1e3,
            "mean_us": sum(spent) / len(spent) / 1e3,
            "p99_us": percentile(spent, 0.99) / 1e3,
        }
    )
