"""A monkey-patched process whose greenlets all write at once while a ticker watches how long the event loop is held.

Started as a program by the integration tests. Arguments: the database's address, a prefix for names, how many
greenlets write, and database_timeout. For every line on standard input it lets them write once and prints a JSON
object: how many `written`, how many `busy`, how long the slowest took (`slowest`), and the longest time that the
ticker did not get to run (`held`), in seconds.
"""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - everything below is imported patched
import json
import sys
import time

import gevent

from service.data.database import open_database
from service.data.users import SqlUserRepository
from service.errors import DatabaseBusy
from tests.support.database import settings_for

TICK = 0.002


class Ticker:
    """Notes the longest time between two turns of a greenlet that wants one every two milliseconds."""

    def __init__(self) -> None:
        self._longest = 0.0
        self._since = time.perf_counter()
        self._greenlet = gevent.spawn(self._tick)

    def stop(self) -> float:
        """The longest time, in seconds, the one that lasts until now included."""
        self._note()
        self._greenlet.kill()
        return self._longest

    def _tick(self) -> None:
        while True:
            time.sleep(TICK)
            self._note()

    def _note(self) -> None:
        now = time.perf_counter()
        self._longest = max(self._longest, now - self._since - TICK)
        self._since = now


def main(url: str, prefix: str, writers: int, timeout: float) -> None:
    """Write once for every line read."""
    database = open_database(settings_for(url, database_timeout=timeout, slow_statement=60.0))
    users = SqlUserRepository(database)
    database.ping(1.0)
    print("ready", flush=True)
    for turn, _ in enumerate(sys.stdin):
        ticker = Ticker()
        jobs = [gevent.spawn(_write, users, f"{prefix}{turn}.{number}") for number in range(writers)]
        results = [job.get() for job in jobs]
        written = sum(result[0] for result in results)
        slowest = max(result[1] for result in results)
        held = ticker.stop()
        print(json.dumps({"written": written, "busy": writers - written, "slowest": slowest, "held": held}), flush=True)
    database.close()


def _write(users: SqlUserRepository, name: str) -> tuple[bool, float]:
    started = time.perf_counter()
    try:
        users.add(name=name, email=f"{name}@example.com", role="member", password_hash="-")
    except DatabaseBusy:
        return False, time.perf_counter() - started
    return True, time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
