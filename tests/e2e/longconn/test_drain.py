"""How a worker leaves: what becomes of each kind of connection, in which order, and how long it takes."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import pytest

from tests.support.gunicorn import eventually
from tests.support.longconn_server import Client, Ended, GunicornServer, Reply, gunicorn_server
from tests.support.opened import opened

ENDLESS = "tests.support.longconn_endless:application"
PATIENT = ("--graceful-timeout", "30", "--keep-alive", "75")
"""Nothing but the drain itself may end a connection or the worker while a test looks."""

LINGER = 0.5
"""Seconds, less than the default so that there is less to wait for."""

SOON = LINGER + 6.0
"""Seconds in which a drain without requests in flight has ended, on a machine with other things to do."""

QUEUED = 250
"""More than a worker accepts in one turn of its loop."""

HOOKS = """
import os, time

def note(what):
    with open({file!r}, "a") as file:
        file.write(f"{{what}} {{os.getpid()}} {{time.monotonic()}}\\n")
"""
"""For a configuration file: `note` writes a line to `file`."""


def connected(server: GunicornServer) -> Client:
    """A connection that is closed when the test is over. Every wait on it ends after 20 s."""
    return opened(server.client(20.0))


def parked(server: GunicornServer, count: int) -> list[Client]:
    """Connections that have had an answer and wait for their next request."""
    clients = [connected(server) for _ in range(count)]
    assert [200] * count == [client.ask().status for client in clients]
    return clients


def last_bytes(client: Client) -> bytes:
    """What comes until the server has closed the connection in order. Raises when it is reset."""
    data = client.buffer
    while piece := client.socket.recv(1 << 16):
        data += piece
    return data


def refuses(server: GunicornServer) -> bool:
    """Whether nobody listens any more."""
    try:
        server.connect(1.0).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # queued, and then reset when the listener closed
        return False
    return False


def drain(server: GunicornServer) -> None:
    """Tell the server to stop, and return when its worker has closed its listener."""
    server.signal(signal.SIGTERM)
    eventually(lambda: refuses(server))


def seconds_of(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def is_gone(pid: int) -> bool:
    """Whether the process has ended, be it that nobody has asked for its status yet."""
    try:
        return ") Z" in Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return True


def stopped(pid: int) -> None:
    """Stop a process's execution, and return when it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: ") T" in Path(f"/proc/{pid}/stat").read_text(encoding="ascii"))


def complaints(server: GunicornServer) -> list[str]:
    """Lines of the log that no drain should leave."""
    return [
        line
        for line in server.log().splitlines()
        if re.search(r"Traceback|Error|Exception|SIGKILL|GreenletExit|TIMEOUT", line)
    ]


@contextlib.contextmanager
def serving(*arguments: str, environment: Mapping[str, str] | None = None, **options: Any) -> Iterator[GunicornServer]:
    """A server that lingers for `LINGER` seconds if its environment does not say otherwise."""
    variables = {"LONGCONN_LINGER": str(LINGER), **(environment or {})}
    with gunicorn_server(*arguments, environment=variables, **options) as server:
        yield server


@contextlib.contextmanager
def in_background(action: Callable[[], object]) -> Iterator[None]:
    """Repeat the action in a thread of its own while the block runs. Raises what it raised."""
    done = threading.Event()

    def repeat() -> None:
        while not done.is_set():
            action()

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(repeat)
        try:
            yield
        finally:
            done.set()
        result.result(30)


def kept(reply: Reply) -> tuple[int, str]:
    return reply.status, (reply.headers["Connection"] or "").lower()


# TERM: connections without a request


@pytest.mark.together
def test_idle_connections_see_a_clean_end_and_no_byte_long_before_the_graceful_timeout() -> None:
    with serving(*PATIENT) as server:
        silent = [connected(server) for _ in range(20)]
        clients = silent + parked(server, 50)
        assert seconds_of(lambda: server.stop(within=20)) < SOON
        assert 0 == server.process.returncode
        assert [b""] * 70 == [last_bytes(client) for client in clients]
        assert [] == complaints(server)


@pytest.mark.prove
@pytest.mark.together
def test_idle_connections_over_tls_see_a_clean_end_and_no_byte() -> None:
    with serving(*PATIENT, tls=True) as server:
        clients = parked(server, 10)
        assert seconds_of(lambda: server.stop(within=20)) < SOON
        assert 0 == server.process.returncode
        assert [b""] * 10 == [last_bytes(client) for client in clients]
        assert [] == complaints(server)


@pytest.mark.together
def test_a_head_that_is_not_completed_holds_up_a_stop_for_no_longer_than_its_own_deadline() -> None:
    with serving(*PATIENT, environment={"LONGCONN_HEAD_TIMEOUT": "1"}) as server:
        client = connected(server)
        client.send(b"GET / HTTP/1.1\r\nHost: ")
        parked(server, 1)[0].close()  # accepted later, so the first half has been accepted too
        assert seconds_of(lambda: server.stop(within=20)) < SOON
        assert 0 == server.process.returncode
        rest = last_bytes(client)
        assert rest == b"" or rest.startswith(b"HTTP/1.1 408 ")
        assert [] == complaints(server)


def test_a_drain_with_nothing_to_wait_for_ends_at_once() -> None:
    with serving(*PATIENT, environment={"LONGCONN_LINGER": "4"}) as server:
        server.get()
        assert seconds_of(lambda: server.stop(within=20)) < 3.0
        assert 0 == server.process.returncode


@pytest.mark.together
def test_a_request_that_arrives_on_a_parked_connection_is_answered_with_close() -> None:
    with serving(*PATIENT, environment={"LONGCONN_LINGER": "5"}) as server:
        clients = parked(server, 20)
        drain(server)
        time.sleep(0.5)
        assert [(200, "close")] * 20 == [kept(client.ask()) for client in clients]
        assert [b""] * 20 == [last_bytes(client) for client in clients]
        assert 0 == server.stop()
        assert [] == complaints(server)


@pytest.mark.together
def test_pipelined_requests_on_a_parked_connection_are_answered_up_to_the_one_that_says_close() -> None:
    with serving(*PATIENT, environment={"LONGCONN_LINGER": "5"}) as server:
        (client,) = parked(server, 1)
        drain(server)
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        replies = [client.response()]
        while replies[-1].keeps:
            replies.append(client.response())
        assert (200, "close") == kept(replies[-1])
        assert b"" == last_bytes(client)
        assert 0 == server.stop()


@pytest.mark.together
def test_a_head_that_is_arriving_is_waited_for_and_answered_with_close() -> None:
    with serving(*PATIENT, environment={"LONGCONN_LINGER": "5"}) as server:
        fresh, (used,) = connected(server), parked(server, 1)
        for client in (fresh, used):
            client.send(b"GET / HTTP/1.1\r\nHost: ")
        time.sleep(0.3)
        drain(server)
        time.sleep(0.5)
        for client in (fresh, used):
            client.send(b"a\r\n\r\n")
        assert [(200, "close")] * 2 == [kept(client.response()) for client in (fresh, used)]
        assert 0 == server.stop()


@pytest.mark.together
def test_requests_that_arrived_while_the_worker_did_not_run_are_answered_though_the_linger_is_over() -> None:
    with serving(*PATIENT) as server:
        (worker,) = server.worker_pids()
        clients = parked(server, 50)
        drain(server)
        stopped(worker)
        try:
            time.sleep(LINGER + 0.5)
            for client in clients:
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        finally:
            os.kill(worker, signal.SIGCONT)
        assert [(200, "close")] * 50 == [kept(client.response()) for client in clients]
        assert 0 == server.stop()
        assert [] == complaints(server)


# TERM: requests and connections that are waiting


@pytest.mark.parametrize(
    "route", ["/slow?seconds=1.5", pytest.param("/flask/slow?seconds=1.5", marks=pytest.mark.prove)]
)
@pytest.mark.together
def test_a_request_in_flight_is_answered_with_close(route: str) -> None:
    with serving(*PATIENT) as server, ThreadPoolExecutor(20) as pool:
        clients = parked(server, 20)
        replies = [pool.submit(client.ask, route) for client in clients]
        time.sleep(0.5)
        server.signal(signal.SIGTERM)
        assert [(200, "close")] * 20 == [kept(reply.result()) for reply in replies]
        assert [b""] * 20 == [last_bytes(client) for client in clients]
        assert 0 == server.stop()
        assert [] == complaints(server)


@pytest.mark.together
def test_a_stream_in_flight_is_sent_to_its_end() -> None:
    with serving(*PATIENT) as server:
        client = connected(server)
        client.send(b"GET /stream?chunks=15&size=2000&gap=0.1 HTTP/1.1\r\nHost: a\r\n\r\n")
        head = client.until(b"\r\n\r\n")
        drain(server)
        client.buffer = head + client.buffer
        assert 30_000 == len(client.response().body)
        assert b"" == last_bytes(client)
        assert 0 == server.stop()


@pytest.mark.together
def test_a_body_that_is_arriving_is_read_to_its_end() -> None:
    with serving(*PATIENT) as server:
        client = connected(server)
        client.send(b"POST /expect HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
        time.sleep(0.3)
        drain(server)
        time.sleep(LINGER + 0.5)
        client.send(b"world")
        reply = client.response()
        assert (200, "close") == kept(reply)
        assert b"expected 10" == reply.body
        assert 0 == server.stop()


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.prove), 3])
def test_connections_in_the_listen_queue_are_answered(workers: int) -> None:
    with serving(*PATIENT, workers=workers) as server:
        for worker in server.worker_pids():
            stopped(worker)
        clients = []
        for number in range(QUEUED):  # the kernel completes the connections, nobody accepts them
            client = connected(server)
            if number % 2:
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            clients.append(client)
        server.signal(signal.SIGTERM)
        eventually(lambda: "Handling signal: term" in server.log())
        time.sleep(0.3)  # now the workers have been told, and the master has closed its listeners
        for worker in server.worker_pids():
            os.kill(worker, signal.SIGCONT)
        for client in clients[::2]:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        replies = [client.response() for client in clients]
        assert {200: QUEUED} == Counter(reply.status for reply in replies)
        assert [b""] * QUEUED == [last_bytes(client) for client in clients]
        assert 0 == server.stop()
        assert [] == complaints(server)


# TERM: what does not end


@pytest.mark.together
def test_requests_that_never_end_are_cut_before_the_master_kills_the_worker() -> None:
    kinds = ["body", "stream", "view", "write"]
    with serving("--graceful-timeout", "4", "--access-logfile", "-", app=ENDLESS) as server:
        clients = {kind: connected(server) for kind in kinds}
        for kind, client in clients.items():
            length = "Content-Length: 10\r\n" if kind == "body" else ""
            client.send(f"GET /endless?where={kind} HTTP/1.1\r\nHost: a\r\n{length}\r\n".encode())
        for kind in ("stream", "write"):
            clients[kind].until(b"\r\n\r\n")
        time.sleep(0.5)
        took = seconds_of(lambda: server.stop(within=20))
        assert 0 == server.process.returncode
        assert 2.0 < took < 4.0  # the margin is a second
        log = server.log()
        assert kinds == sorted(re.findall(r"^finally (\w+)", log, re.MULTILINE))
        assert kinds == sorted(re.findall(r'"GET /endless\?where=(\w+) HTTP/1.1"', log))
        assert "SIGKILL" not in log
        assert "Traceback" not in log


@pytest.mark.together
def test_a_request_that_refuses_to_end_does_not_keep_the_worker() -> None:
    with serving("--graceful-timeout", "4", app=ENDLESS) as server:
        client = connected(server)
        client.send(b"GET /endless?where=stubborn HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.5)
        assert seconds_of(lambda: server.stop(within=20)) < 4.0
        assert 0 == server.process.returncode
        assert "SIGKILL" not in server.log()


@pytest.mark.together
def test_a_second_term_does_not_shorten_the_drain() -> None:
    with serving(*PATIENT) as server, ThreadPoolExecutor() as pool:
        client = connected(server)
        reply = pool.submit(client.ask, "/slow?seconds=1.5")
        time.sleep(0.3)
        for _ in range(3):
            server.signal(signal.SIGTERM)
            time.sleep(0.2)
        assert (200, "close") == kept(reply.result())
        assert 0 == server.stop()


@pytest.mark.parametrize("number", [signal.SIGQUIT, pytest.param(signal.SIGINT, marks=pytest.mark.prove)])
@pytest.mark.together
def test_a_quick_stop_does_not_wait_and_writes_nothing_on_idle_connections(number: signal.Signals) -> None:
    with serving(*PATIENT, app=ENDLESS) as server:
        clients = parked(server, 10)
        busy, upgraded = connected(server), connected(server)
        busy.send(b"GET /endless?where=view HTTP/1.1\r\nHost: a\r\n\r\n")
        upgraded.send(b"GET /raw HTTP/1.1\r\nHost: a\r\n\r\n")
        assert 101 == upgraded.response().status
        assert seconds_of(lambda: server.stop(number, within=20)) < 4.0
        assert [b""] * 10 == [client.rest() for client in clients]
        assert b"" == upgraded.rest()
        assert "SIGKILL" not in server.log()


@pytest.mark.together
def test_a_quick_stop_cuts_a_drain_short() -> None:
    with serving(*PATIENT, app=ENDLESS) as server:
        client = connected(server)
        client.send(b"GET /endless?where=view HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.3)
        drain(server)
        assert seconds_of(lambda: server.stop(signal.SIGQUIT, within=20)) < 4.0


# the delay and the hook


@pytest.mark.together
def test_the_worker_goes_on_accepting_for_the_delay() -> None:
    with serving(*PATIENT, environment={"LONGCONN_DRAIN_DELAY": "2"}) as server:
        (client,) = parked(server, 1)
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        time.sleep(0.8)
        assert 200 == server.get()[0]
        assert 200 == client.ask().status
        eventually(lambda: refuses(server))
        assert 1.8 < time.monotonic() - started < 2.0 + 4.0
        assert 0 == server.stop()
        assert [] == complaints(server)


@pytest.mark.together
def test_a_quick_stop_does_not_wait_for_the_delay() -> None:
    with serving(*PATIENT, environment={"LONGCONN_DRAIN_DELAY": "20"}) as server:
        parked(server, 1)
        server.signal(signal.SIGTERM)
        time.sleep(0.5)
        assert seconds_of(lambda: server.stop(signal.SIGQUIT, within=20)) < 4.0


def test_the_hook_runs_once_before_the_listener_closes_and_the_service_goes_on_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    config = HOOKS.format(file=str(file)) + (
        "import longconn\n"
        "def leave(worker):\n"
        "    note(f'leaving {worker.pid == os.getpid()}')\n"
        "    time.sleep(1.5)\n"
        "    note('left')\n"
        "longconn.configure(on_drain=leave)\n"
    )
    with serving(*PATIENT, config=config) as server:
        (worker,) = server.worker_pids()
        server.signal(signal.SIGTERM)
        eventually(lambda: file.exists() and "leaving" in file.read_text())
        assert 200 == server.get()[0]
        assert "left" not in file.read_text()
        eventually(lambda: refuses(server))
        assert "left" in file.read_text()
        assert 0 == server.stop()
        lines = [line.rsplit(maxsplit=1)[0] for line in file.read_text().splitlines()]
        assert [f"leaving True {worker}", f"left {worker}"] == lines
        assert [] == complaints(server)


@pytest.mark.parametrize("failure", [pytest.param("1 / 0", marks=pytest.mark.prove), "raise SystemExit(3)"])
@pytest.mark.together
def test_a_hook_that_fails_is_reported_and_stops_no_drain(failure: str) -> None:
    config = f"import longconn\ndef leave(worker):\n    {failure}\nlongconn.configure(on_drain=leave)\n"
    with serving(*PATIENT, config=config) as server, ThreadPoolExecutor() as pool:
        clients = parked(server, 5)
        reply = pool.submit(clients.pop().ask, "/slow?seconds=1")
        time.sleep(0.3)
        assert seconds_of(lambda: server.stop(within=20)) < SOON
        assert 0 == server.process.returncode
        assert (200, "close") == kept(reply.result())
        assert [b""] * 4 == [last_bytes(client) for client in clients]
        assert "Traceback" in server.log()


@pytest.mark.together
def test_a_hook_that_never_ends_does_not_keep_the_worker() -> None:
    config = (
        "import time, longconn\n"
        "def leave(worker):\n"
        "    time.sleep(3600)\n"
        "longconn.configure(on_drain=leave)\n"
    )  # fmt: skip
    with serving("--graceful-timeout", "4", config=config) as server:
        clients = parked(server, 3)
        assert seconds_of(lambda: server.stop(within=20)) < 4.0
        assert 0 == server.process.returncode
        assert [b""] * 3 == [last_bytes(client) for client in clients]


# HUP


def reload(server: GunicornServer, *, within: float = 20.0) -> None:
    """Have all workers replaced, and return when the old ones have left."""
    before = server.worker_pids()
    server.signal(signal.SIGHUP)
    eventually(
        lambda: len(server.worker_pids()) == len(before) and not set(before) & set(server.worker_pids()),
        within=within,
    )


@pytest.mark.together
def test_a_reload_has_new_workers_take_over_and_old_ones_leave_soon() -> None:
    with serving(*PATIENT, workers=2) as server, ThreadPoolExecutor() as pool:
        clients = parked(server, 40) + [connected(server) for _ in range(10)]
        busy = clients.pop(0)
        reply = pool.submit(busy.ask, "/slow?seconds=1")
        time.sleep(0.3)
        statuses: Counter[int] = Counter()
        latencies: list[float] = []
        with in_background(lambda: latencies.append(seconds_of(lambda: statuses.update([server.get()[0]])))):
            assert seconds_of(lambda: reload(server)) < SOON
        print(f"{len(latencies)} requests meanwhile, the longest took {max(latencies):.2f} s")
        assert [200] == list(statuses)
        assert (200, "close") == kept(reply.result())
        assert [b""] * 49 == [last_bytes(client) for client in clients]
        assert 200 == server.get()[0]
        assert [] == complaints(server)


@pytest.mark.together
def test_a_reload_answers_what_still_arrives_on_the_old_workers_connections() -> None:
    with serving(*PATIENT, environment={"LONGCONN_LINGER": "6"}) as server:
        before = server.worker_pids()
        clients = parked(server, 20)
        server.signal(signal.SIGHUP)
        eventually(lambda: "Booting worker" in server.log().rpartition("Handling signal: hup")[2])
        time.sleep(2.0)  # the old worker has been told by now
        assert before[0] in server.worker_pids()
        assert [(200, "close")] * 20 == [kept(client.ask()) for client in clients]
        eventually(lambda: before[0] not in server.worker_pids())
        assert [] == complaints(server)


@pytest.mark.together
def test_a_reload_writes_nothing_on_idle_and_upgraded_connections_even_when_it_has_to_cut_them() -> None:
    with serving("--graceful-timeout", "4", "--keep-alive", "75", app=ENDLESS) as server:
        (worker,) = server.worker_pids()
        idle = parked(server, 5) + [connected(server) for _ in range(5)]
        upgraded = [connected(server) for _ in range(5)]
        for number, client in enumerate(upgraded):
            client.send(
                f"GET /raw?{number} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n".encode()
            )
        assert [101] * 5 == [client.response().status for client in upgraded]
        server.signal(signal.SIGHUP)
        time.sleep(1.0)
        for client in upgraded:  # they are served while they may stay
            client.send(b"still there")
        assert [b"still there"] * 5 == [client.exactly(11) for client in upgraded]
        eventually(lambda: is_gone(worker), within=12)
        assert [b""] * 10 == [last_bytes(client) for client in idle]
        assert [b""] * 5 == [client.rest() for client in upgraded]
        log = server.log()
        assert [str(number) for number in range(5)] == sorted(re.findall(r"^finally raw (\d)", log, re.MULTILINE))
        assert [] == complaints(server)


@pytest.mark.together
def test_a_stop_right_after_a_reload_ends_soon() -> None:
    with serving(*PATIENT, workers=2) as server, ThreadPoolExecutor() as pool:
        clients = parked(server, 20)
        busy = clients.pop()
        reply = pool.submit(busy.ask, "/slow?seconds=1.5")
        time.sleep(0.3)
        server.signal(signal.SIGHUP)
        time.sleep(0.2)
        assert seconds_of(lambda: server.stop(within=25)) < SOON + LINGER + 2.0
        assert 0 == server.process.returncode
        assert (200, "close") == kept(reply.result())
        assert [b""] * 19 == [last_bytes(client) for client in clients]
        assert [] == complaints(server)


@pytest.mark.together
def test_a_worker_that_is_told_alone_is_replaced_and_no_request_is_lost() -> None:
    with serving(*PATIENT, workers=2) as server:
        first, second = server.worker_pids()
        eventually(lambda: all(f"Worker {pid} parks" in server.log() for pid in (first, second)))
        time.sleep(0.3)  # now both of them accept
        clients = parked(server, 20)
        statuses: Counter[int] = Counter()
        with in_background(lambda: statuses.update([server.get()[0]])):
            os.kill(first, signal.SIGTERM)
            eventually(lambda: is_gone(first) and len(server.worker_pids()) == 2, within=20)
        assert [200] == list(statuses)
        assert second in server.worker_pids()
        lost = [client for client in clients if not client.silent(0)]
        assert [b""] * len(lost) == [last_bytes(client) for client in lost]
        assert 0 < len(lost) < 20
        assert [] == complaints(server)


def replacement(server: GunicornServer, pid: int) -> int:
    """Wait until the only worker has been replaced and the new one is about to boot."""
    eventually(lambda: len(server.worker_pids()) == 1 and pid not in server.worker_pids(), within=5)
    (new,) = server.worker_pids()
    eventually(lambda: f"Booting worker with pid: {new}" in server.log())
    return new


@pytest.mark.parametrize(
    "delay", [0.02, pytest.param(0.1, marks=pytest.mark.prove), pytest.param(0.2, marks=pytest.mark.prove), 0.4]
)
@pytest.mark.together
def test_a_worker_that_is_told_to_leave_while_it_boots_leaves(delay: float) -> None:
    with serving(*PATIENT) as server:
        (worker,) = server.worker_pids()
        os.kill(worker, signal.SIGKILL)
        booting = replacement(server, worker)
        time.sleep(delay)
        os.kill(booting, signal.SIGTERM)
        replacement(server, booting)
        assert 200 == server.get()[0]


# max_requests


def request_until(server: GunicornServer, count: int, path: str) -> Counter[str]:
    """That many requests, each on the connection of the one before as long as the server keeps it."""
    outcomes: Counter[str] = Counter()
    client = connected(server)
    for _ in range(count):
        try:
            reply = client.ask(path)
        except (Ended, OSError) as error:
            outcomes[repr(error)] += 1
        else:
            outcomes[str(reply.status)] += 1
            if reply.keeps:
                continue
        client.close()
        client = connected(server)
    client.close()
    return outcomes


def spans(notes: Path) -> dict[int, dict[str, float]]:
    """When each worker did what, by its process id."""
    found: dict[int, dict[str, float]] = {}
    for line in notes.read_text().splitlines():
        what, pid, moment = line.split()
        found.setdefault(int(pid), {})[what] = float(moment)
    return found


@pytest.mark.prove
def test_workers_that_have_served_their_number_leave_one_at_a_time_and_nothing_is_refused(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    config = HOOKS.format(file=str(notes)) + (
        "import longconn\n"
        "longconn.configure(on_drain=lambda worker: note('leaving'))\n"
        "def post_worker_init(worker):\n"
        "    note('ready')\n"
        "def worker_exit(server, worker):\n"
        "    note('gone')\n"
    )
    options = ("--max-requests", "40", "--max-requests-jitter", "0")
    with (
        serving(*PATIENT, *options, workers=2, config=config, environment={"LONGCONN_LINGER": "0.5"}) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        results = [pool.submit(request_until, server, 100, "/slow?seconds=0.05") for _ in range(8)]
        outcomes = sum((result.result(90) for result in results), Counter[str]())
        assert {"200": 800} == outcomes
        eventually(lambda: all("gone" in span for span in spans(notes).values() if "leaving" in span))
        workers = spans(notes)
        leaving = sorted((span["leaving"], span["gone"]) for span in workers.values() if "leaving" in span)
        print(f"{len(leaving)} workers left")
        assert len(leaving) >= 3
        assert [] == [pair for pair in itertools.pairwise(leaving) if pair[1][0] < pair[0][1]]
        for moment, _ in leaving:  # another one serves meanwhile
            assert any(span["ready"] < moment < span.get("leaving", moment + 1) for span in workers.values())
        assert [] == complaints(server)


@pytest.mark.together
def test_a_single_worker_that_has_served_its_number_is_replaced_and_nothing_is_refused() -> None:
    with serving(*PATIENT, "--max-requests", "20") as server:
        before = server.worker_pids()
        idle = parked(server, 5)
        assert {"200": 60} == request_until(server, 60, "/")
        eventually(lambda: not set(before) & set(server.worker_pids()))
        assert [b""] * 5 == [last_bytes(client) for client in idle]
        assert [] == complaints(server)


# the master


@pytest.mark.together
def test_workers_that_have_lost_their_master_finish_and_leave() -> None:
    with serving(*PATIENT, workers=2) as server, ThreadPoolExecutor() as pool:
        workers = server.worker_pids()
        clients = parked(server, 10)
        busy = [clients.pop(), clients.pop()]
        replies = [pool.submit(client.ask, "/slow?seconds=2") for client in busy]
        time.sleep(0.3)
        server.process.kill()
        assert [200] * 2 == [reply.result().status for reply in replies]
        eventually(lambda: all(is_gone(worker) for worker in workers), within=SOON)
        assert [b""] * 8 == [last_bytes(client) for client in clients]
        assert [] == complaints(server)


@pytest.mark.together
def test_a_drain_goes_on_without_its_master() -> None:
    with serving(*PATIENT, environment={"LONGCONN_DRAIN_DELAY": "60"}) as server:
        (worker,) = server.worker_pids()
        clients = parked(server, 5)
        server.signal(signal.SIGTERM)
        eventually(lambda: "Handling signal: term" in server.log())
        server.process.kill()
        with contextlib.suppress(TimeoutExpired):
            server.process.wait(5)
        eventually(lambda: is_gone(worker), within=SOON)  # and nobody waits for the end of the delay
        assert [b""] * 5 == [last_bytes(client) for client in clients]


@pytest.mark.together
def test_a_drain_over_a_unix_socket_is_the_same() -> None:
    with serving(*PATIENT, unix=True) as server, ThreadPoolExecutor() as pool:
        clients = parked(server, 10)
        reply = pool.submit(clients.pop().ask, "/slow?seconds=1")
        time.sleep(0.3)
        assert seconds_of(lambda: server.stop(within=20)) < SOON
        assert (200, "close") == kept(reply.result())
        assert [b""] * 9 == [last_bytes(client) for client in clients]
        with pytest.raises((FileNotFoundError, ConnectionRefusedError)), socket.socket(socket.AF_UNIX) as late:
            late.connect(server.path)
