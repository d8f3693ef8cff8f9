"""A worker is seen through: what blocks its loop, what all workers count, and logs that nobody reads."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import time
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.gunicorn import eventually
from tests.support.longconn_server import GunicornServer, gunicorn_server
from tests.support.opened import opened

APP = "tests.support.longconn_endpoints:application"
QUICK = {"LONGCONN_BLOCKED_THRESHOLD": "0.1"}
SOON = 0.3
"""Seconds after which a loop that stands still is in the log."""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def two_workers() -> Iterator[GunicornServer]:
    """Two workers that balance their connections."""
    with gunicorn_server("--graceful-timeout", "5", app=APP, workers=2) as server:
        eventually(lambda: all(f"Worker {pid} parks" in server.log() for pid in server.worker_pids()))
        time.sleep(0.3)  # the line is written just before a worker accepts
        yield server


def samples(body: bytes) -> Samples:
    """Every sample by its name and its labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def metrics_of(server: GunicornServer, pid: int) -> Samples:
    """What this worker says of all of them."""
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        with server.client() as client:
            if int(client.ask("/pid").body) == pid:
                return samples(client.ask("/metrics").body)
    raise AssertionError(f"worker {pid} takes no connection")


def count(found: Samples, name: str, **labels: str) -> float:
    """The sum of the samples of this name with these labels, whatever other labels they have."""
    wanted = set(labels.items())
    return sum(value for (each, its), value in found.items() if each == name and wanted <= set(its))


# The loop.


def test_a_loop_that_stands_still_is_in_the_log_while_it_does() -> None:
    with gunicorn_server(app=APP, environment=QUICK) as server, server.client() as client:
        client.ask("/")
        time.sleep(0.3)
        client.send(b"GET /block?seconds=1.5 HTTP/1.1\r\nHost: a\r\n\r\n")
        started = time.monotonic()
        eventually(lambda: "has stood still" in server.log())
        assert time.monotonic() - started < 1.5  # it still does
        told = re.search(r"has stood still for ([\d.]+) s, in (\S+)", server.log())
        assert told is not None
        assert 0.1 <= float(told[1]) < SOON
        assert "hold_the_loop_up" in told[2]
        assert b"pong" == client.response().body
        eventually(lambda: re.search(r"runs again, after 1\.[5-9]\d+ s", server.log()))
        eventually(lambda: 1.0 == count(samples(client.ask("/metrics").body), "longconn_loop_blocked_total"))
        found = samples(client.ask("/metrics").body)
        long_turns = (
            found["longconn_loop_lag_seconds_count", ()] - found["longconn_loop_lag_seconds_bucket", (("le", "1.0"),)]
        )
        assert 1.0 == long_turns


def test_a_loop_that_does_not_stand_still_is_not_in_the_log() -> None:
    with gunicorn_server(app=APP, environment={"LONGCONN_BLOCKED_THRESHOLD": "1.0"}) as server:
        for _ in range(20):
            server.get("/block?seconds=0.02")
        time.sleep(0.2)
        assert "stood still" not in server.log()


# What is counted.


def test_either_worker_tells_of_both(two_workers: GunicornServer) -> None:
    server = two_workers
    pids = server.worker_pids()
    held = [opened(server.client()) for _ in range(40)]
    assert {str(pid).encode() for pid in pids} == {client.ask("/pid").body for client in held}
    time.sleep(0.5)
    for pid in pids:
        found = metrics_of(server, pid)
        for each in pids:
            assert 15 <= count(found, "longconn_open_connections", worker=str(each)) <= 25
            assert 15 <= count(found, "longconn_connections", worker=str(each), state="parked") <= 25
        assert 2 == count(found, "longconn_workers", state="serving")
        assert 40 <= count(found, "longconn_requests_total") <= 40 + 200
        assert 40 <= count(found, "longconn_accepts_total")
        assert 0 < count(found, "longconn_bytes_total", direction="out")


def test_counters_outlive_a_worker_that_is_killed(two_workers: GunicornServer) -> None:
    server = two_workers
    first, second = server.worker_pids()
    held = [opened(server.client()) for _ in range(40)]
    for client in held:
        client.ask("/")
    time.sleep(0.5)
    before = metrics_of(server, second)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: first not in server.worker_pids() and 3 == len(server.loaded()))
    (third,) = set(server.worker_pids()) - {second}
    for pid in (second, third):
        after = metrics_of(server, pid)
        grown = ("longconn_requests_total", "longconn_accepts_total", "longconn_loop_lag_seconds_count")
        assert [name for name in grown if after[name, ()] < before[name, ()]] == []
        assert 0 == count(after, "longconn_open_connections", worker=str(first))
    eventually(lambda: 2 == count(metrics_of(server, third), "longconn_workers", state="serving"))


def test_the_master_does_not_load_the_metrics_library() -> None:
    config = """
def _note(server_or_worker, where):
    import sys
    loaded = [name for name in ("prometheus_client", "gevent.monkey") if name in sys.modules]
    patched = "gevent.monkey" in sys.modules and sys.modules["gevent.monkey"].is_module_patched("socket")
    server_or_worker.log.info("%s has loaded %s, patched: %s", where, loaded, patched)

def when_ready(server): _note(server, "the master")
def pre_fork(server, worker): _note(server, "the fork")
def on_exit(server): _note(server, "the end")
"""
    with gunicorn_server("--graceful-timeout", "5", app=APP, config=config) as server:
        assert 200 == server.get("/metrics")[0]
        assert 0 == server.stop()
        told = re.findall(r"(the \w+) has loaded (\[.*?\]), patched: (\w+)", server.log())
        assert ["the master", "the fork", "the end"] == [where for where, _, _ in told]
        assert all("prometheus_client" not in loaded and "False" == patched for _, loaded, patched in told)


# Logs.


def test_a_log_that_nobody_reads_holds_up_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    fifo = tmp_path_factory.mktemp("watched") / "log"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    try:
        with gunicorn_server(
            "--graceful-timeout", "3", "--access-logfile", str(fifo), "--error-logfile", str(fifo), app=APP
        ) as server:
            assert b"pong" == server.get("/log?lines=400&size=1000")[2]
            with server.client() as client:
                slowest = 0.0
                for _ in range(300):
                    started = time.monotonic()
                    assert b"pong" == client.ask("/").body
                    slowest = max(slowest, time.monotonic() - started)
            assert slowest < 1.0
            found = json.loads(server.get("/figures")[2])
            assert 0 == found["loop blocked"]
            server.get("/log?lines=60000&size=10")
            eventually(lambda: 0 < json.loads(server.get("/figures")[2])["log dropped"])
            assert b"pong" == server.get("/")[2]
            while select.select([reader], [], [], 0.3)[0]:
                os.read(reader, 1 << 16)  # the master, which is gunicorn's own, does wait for its log
            assert 0 == server.stop(within=15.0)
    finally:
        os.close(reader)
