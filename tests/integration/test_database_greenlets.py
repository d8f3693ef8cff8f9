"""Databases in processes that are really monkey-patched, with hundreds of greenlets at once."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.data.migrate import migrate

LONGEST_HOLD = 0.1


class WritingProcess:
    """`tests.support.writing_process`, started and ready."""

    def __init__(self, url: str, prefix: str, *, writers: int, timeout: float) -> None:
        arguments = [sys.executable, "-W", "error", "-m", "tests.support.writing_process"]
        self._process = subprocess.Popen(
            [*arguments, url, prefix, str(writers), str(timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready\n"

    def start_writing(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("write\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self._line())
        return result

    def close(self) -> int:
        """End it the friendly way; returns its exit status."""
        try:
            self._process.communicate(timeout=20)
        finally:
            self._process.kill()
        return self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextlib.contextmanager
def writing(url: str, prefix: str, *, writers: int, timeout: float = 5.0) -> Iterator[WritingProcess]:
    process = WritingProcess(url, prefix, writers=writers, timeout=timeout)
    try:
        yield process
    finally:
        status = process.close()
    assert status == 0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    migrate(f"sqlite:///{tmp_path / 'test.db'}")
    return tmp_path / "test.db"


def write_together(*processes: WritingProcess) -> list[dict[str, Any]]:
    for process in processes:
        process.start_writing()
    return [process.result() for process in processes]


def count_users(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        count: int = connection.execute("SELECT count(*) FROM users").fetchone()[0]
        return count


def test_a_hundred_greenlets_in_each_of_two_processes_all_write_and_hold_no_loop(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{file}"
    with writing(url, "a", writers=100) as one, writing(url, "b", writers=100) as other:
        rounds = [write_together(one, other) for _ in range(3)]
    held = [max(result["held"] for result in results) for results in rounds]
    with capsys.disabled():
        print(f"\n  3 x 2 x 100 writes: event loops held at most {', '.join(f'{longest:.4f}' for longest in held)} s")
    assert [[100, 100]] * 3 == [[result["written"] for result in results] for results in rounds]
    assert count_users(file) == 600
    # The calmest counts: other programs may take the processor away, but a loop that waits for a lock always does.
    assert min(held) < LONGEST_HOLD


def test_a_lock_held_by_another_process_refuses_writes_in_time_and_holds_no_loop(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        writing(f"sqlite:///{file}", "a", writers=20, timeout=0.3) as process,
        contextlib.closing(sqlite3.connect(file, isolation_level=None)) as outsider,
    ):
        outsider.execute("BEGIN IMMEDIATE")
        process.start_writing()
        locked = process.result()
        outsider.execute("COMMIT")
        process.start_writing()
        free = process.result()
    with capsys.disabled():
        print(f"\n  locked out: refused after {locked['slowest']:.3f} s, event loop held {locked['held']:.4f} s")
    assert (locked["written"], locked["busy"]) == (0, 20)
    assert 0.25 < locked["slowest"] < 0.6
    assert locked["held"] < LONGEST_HOLD
    assert (free["written"], free["busy"]) == (20, 0)
    assert count_users(file) == 20
