"""Many writers at once on SQLite, over several workers: all land, none waits for the others' sake."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.gunicorn import PROBE, Answer, RunningService, administrator, eventually, running_service

pytestmark = pytest.mark.alone

WRITERS = 200
WORKERS = 2
LONGEST_GAP = 0.1
ATTEMPTS = 3
"""A gap is measured by the clock on the wall, so whatever else the machine does at that moment counts too."""
PASSWORD = "correct horse battery"


def create_user(service: RunningService, number: int, headers: dict[str, str]) -> Answer:
    user = {"name": f"user-{number}", "email": f"user-{number}@example.org", "role": "member", "password": PASSWORD}
    return service.post_json("/api/v1/users", user, headers, timeout=30)


def write_together(service: RunningService, headers: dict[str, str], first: int) -> tuple[list[int], float]:
    """The statuses of `WRITERS` requests that begin at once, and the seconds until the last is answered."""
    together = threading.Barrier(WRITERS)

    def write(number: int) -> int:
        together.wait()
        return create_user(service, number, headers).status

    with ThreadPoolExecutor(WRITERS) as writers:
        started = time.monotonic()
        statuses = list(writers.map(write, range(first, first + WRITERS)))
        return statuses, time.monotonic() - started


def test_two_hundred_writers_all_land_within_ten_seconds_and_no_loop_stands_still(tmp_path: Path) -> None:
    with running_service(tmp_path, app=PROBE, web_concurrency=WORKERS) as service:
        headers = administrator(service)
        eventually(lambda: len(service.workers) == WORKERS)
        gaps: dict[int, float] = {}
        for attempt in range(ATTEMPTS):
            service.watch_loops()
            statuses, seconds = write_together(service, headers, first=attempt * WRITERS)
            gaps = service.largest_gaps()
            print(f"{WRITERS} writers: {seconds:.2f} s; largest gaps of the loops: {gaps}")
            assert [201] * WRITERS == statuses
            assert seconds < 10
            if max(gaps.values()) < LONGEST_GAP:
                break
        assert WORKERS == len(gaps)
        assert max(gaps.values()) < LONGEST_GAP
        with contextlib.closing(sqlite3.connect(service.database)) as database:
            assert ((attempt + 1) * WRITERS + 1,) == database.execute("SELECT count(*) FROM users").fetchone()


def test_while_another_process_holds_the_database_writers_are_told_so_in_time_and_readers_served(
    tmp_path: Path,
) -> None:
    with running_service(tmp_path, app=PROBE, database_timeout=1.0) as service:
        headers = administrator(service)
        service.watch_loops()
        with contextlib.closing(sqlite3.connect(service.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with ThreadPoolExecutor(10) as writers:
                started = time.monotonic()
                waiting = [writers.submit(create_user, service, number, headers) for number in range(10)]
                assert 200 == service.get("/api/v1/users", headers).status
                assert 200 == service.get("/readyz").status
                answers = [each.result() for each in waiting]
                seconds = time.monotonic() - started
            other.execute("ROLLBACK")
        assert [(503, 20005)] * 10 == [(answer.status, answer.json["code"]) for answer in answers]
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
        assert 0.9 < seconds < 3.0
        assert max(service.largest_gaps().values()) < LONGEST_GAP
        assert 201 == create_user(service, 99, headers).status
