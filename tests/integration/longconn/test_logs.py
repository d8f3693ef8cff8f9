"""Nobody reads the log: of a real loop in a process of its own, and of a real gunicorn."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGUSR1

import pytest

from tests.support.longconn_server import gunicorn_server

ROOT = Path(__file__).parents[3]

FIFO = """
import fcntl, os
import longconn.logs

longconn.logs.LINES_WAITING = 200

def post_fork(server, worker):
    # Both ends, so that it is there before anybody reads and when nobody does any more.
    fifo = os.open({path!r}, os.O_RDWR)
    fcntl.fcntl(fifo, fcntl.F_SETPIPE_SZ, 4096)
    os.dup2(fifo, 1)
    os.dup2(fifo, 2)
"""

APPLICATION = """
import logging, sys, time, traceback
import gevent
from flask import Flask

app = Flask(__name__)
app.logger.setLevel(logging.INFO)

@app.get("/")
def speak():
    app.logger.info("from Flask")
    print("from print")
    gevent.spawn(lambda: 1 / 0)
    return "pong"

@app.get("/blocked")
def busy_view():
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    return "done"
"""


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A named pipe, and a descriptor to read it by."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield str(path), reading
    os.close(reading)


def read_all(reading: int, seconds: float = 0.5) -> str:
    """What is in a pipe, until it ends or nothing has come for so long."""
    parts = []
    while select.select([reading], [], [], seconds)[0] and (part := os.read(reading, 65536)):
        parts.append(part)
    return b"".join(parts).decode()


def test_a_loop_goes_on_turning_while_nobody_reads_its_log() -> None:
    program = """
    from gevent import monkey; monkey.patch_all()
    import logging, os, sys, time
    import gevent
    from longconn import logs
    from longconn.scoreboard import WIDTH
    from longconn.watch import LoopWatch

    answers = os.fdopen(os.dup(1), "w")
    reading, writing = os.pipe()
    os.dup2(writing, 1), os.dup2(writing, 2)
    logging.basicConfig(level=logging.INFO)
    dropped, turns, reports = [], [], []
    logs.detach([""], dropped.append)
    logs.detach_standard_streams()
    watch = LoopWatch(gevent.get_hub().loop, values=[0] * WIDTH, threshold=0.5, on_turn=turns.append,
                      report=logging.getLogger().warning)
    watch.start()
    for round in range(40):
        for number in range(200):
            logging.info("line %d of round %d, made longer by nothing in particular", number, round)
            print("printed", number)
        gevent.spawn(lambda: 1 / 0)
        gevent.sleep(0)
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        pass
    gevent.sleep(0.01)
    watch.stop()
    answers.write(f"{sum(dropped) > 0} {watch.blocked}")
    answers.flush()
    """
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (0, "True 1") == (done.returncode, done.stdout)
    assert time.monotonic() - began < 30


def test_a_report_from_beside_the_loop_arrives_while_the_loop_stands_still() -> None:
    program = """
    from gevent import monkey; monkey.patch_all()
    import logging, os, select, sys, time
    import gevent
    from longconn import logs
    from longconn.scoreboard import WIDTH
    from longconn.watch import LoopWatch

    reading, writing = os.pipe()
    logger = logging.getLogger("beside")
    logger.addHandler(logging.StreamHandler(os.fdopen(writing, "w")))
    logs.detach(["beside"], int)
    watch = LoopWatch(gevent.get_hub().loop, values=[0] * WIDTH, threshold=0.1, on_turn=lambda seconds: None,
                      report=logger.warning)
    watch.start()
    gevent.sleep(0.01)

    def wait_without_the_loop():
        # A real `select`, which no watcher of the loop's helps along.
        from gevent.monkey import get_original
        ready = get_original("select", "select")([reading], [], [], 5.0)[0]
        print(bool(ready), os.read(reading, 65536).decode().splitlines()[0])

    gevent.spawn(wait_without_the_loop).join()
    watch.stop()
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith("True The event loop has stood still for 0.1")
    assert "in wait_without_the_loop" in done.stdout


def test_requests_are_answered_while_nobody_reads_the_log_and_what_is_dropped_is_told(fifo: tuple[str, int]) -> None:
    (path, reading), total = fifo, 1_000
    config = FIFO.format(path=path)
    with gunicorn_server("--access-logfile", "-", "--access-logformat", "%(r)s", config=config) as server:
        with server.client(10.0) as client:
            for number in range(total):
                assert 200 == client.ask(f"/?n={number}").status
        written = read_all(reading)
        assert 200 == server.get("/?last")[0]
        written += read_all(reading)
        assert 0 == server.stop()
        written += read_all(reading)
    numbers = [int(number) for number in re.findall(r"^GET /\?n=(\d+) ", written, re.MULTILINE)]
    dropped = [int(count) for count in re.findall(r"\[WARNING\] (\d+) log lines dropped", written)]
    assert sorted(set(numbers)) == numbers
    assert list(range(200)) == numbers[:200]
    assert len(numbers) < total
    assert 1 <= len(dropped)
    assert total - len(numbers) <= sum(dropped) <= total - len(numbers) + 20  # of the error log's, a few
    assert "GET /?last " in written


def test_nothing_is_lost_at_a_normal_exit(tmp_path: Path) -> None:
    access = tmp_path / "access.log"
    with gunicorn_server("--access-logfile", str(access), "--access-logformat", "%(U)s %(q)s") as server:
        with server.client() as client:
            for number in range(500):
                client.ask(f"/?n={number}")
        assert 0 == server.stop()
        log = server.log()
    assert [f"/ n={number}" for number in range(500)] == access.read_text().splitlines()
    assert "Worker exiting" in log


def test_files_are_reopened_on_usr1_and_no_line_is_lost(tmp_path: Path) -> None:
    access, error = tmp_path / "access.log", tmp_path / "error.log"
    arguments = ("--access-logfile", str(access), "--access-logformat", "%(q)s", "--error-logfile", str(error))
    with gunicorn_server(*arguments) as server, server.client() as client:
        for number in range(200):
            client.ask(f"/?{number}")
        access.rename(tmp_path / "access.log.1")
        error.rename(tmp_path / "error.log.1")
        client.ask("/?200")
        server.signal(SIGUSR1)
        assert wait_for(lambda: access.exists() and error.exists())
        assert wait_for(lambda: client.ask("/?after").status == 200 and "after" in access.read_text())
        assert 0 == server.stop()
    lines = (tmp_path / "access.log.1").read_text().splitlines()
    assert [str(number) for number in range(201)] == lines[:201]
    assert {"after"} >= set(lines[201:])
    assert {"after"} == set(access.read_text().splitlines())
    assert "Worker exiting" in error.read_text()


def test_neither_flask_s_log_nor_prints_nor_crashes_make_the_loop_wait(tmp_path: Path, fifo: tuple[str, int]) -> None:
    path, reading = fifo
    (tmp_path / "speaking.py").write_text(APPLICATION)
    config = FIFO.format(path=path) + "    longconn.logs.detach_standard_streams()\n"
    with gunicorn_server(app="speaking:app", config=config, environment={"PYTHONPATH": str(tmp_path)}) as server:
        with server.client(10.0) as client:
            for _ in range(400):
                assert 200 == client.ask("/").status
        written = read_all(reading)
        assert 0 == server.stop()
    for expected in ("INFO in speaking: from Flask", "from print", "ZeroDivisionError"):
        assert 20 < written.count(expected) < 400, expected


def test_the_log_of_a_worker_names_the_view_that_blocked_its_loop(tmp_path: Path) -> None:
    (tmp_path / "speaking.py").write_text(APPLICATION)
    with gunicorn_server(app="speaking:app", environment={"PYTHONPATH": str(tmp_path)}) as server:
        for _ in range(3):
            server.get("/missing")
        time.sleep(0.3)
        before = server.log()
        assert 200 == server.get("/blocked")[0]
        assert wait_for(lambda: "runs again" in server.log())
        log = server.log()
    assert "stood still" not in before.split("Booting worker")[-1]
    assert re.search(rf"stood still for 0\.\d+ s, in busy_view \({tmp_path}/speaking\.py:\d+\)", log)
    assert 'speaking.py", line' in log
