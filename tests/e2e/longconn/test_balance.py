"""Workers share the connections: after a storm, a death, a reload, and while one of them is busy."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.gunicorn import eventually
from tests.support.longconn_server import Client, GunicornServer, gunicorn_server

pytestmark = pytest.mark.alone

WORKERS = 4
CROWD = 2000
UNEVEN = 0.05
"""How far a worker may be from the mean, as a share of it."""

PATIENT = ("--keep-alive", "600", "--graceful-timeout", "30")
QUESTION = b"GET /pid HTTP/1.1\r\nHost: a\r\n\r\n"
_connected: list[Client] = []


@pytest.fixture(autouse=True)
def _close_connections() -> Iterator[None]:
    yield
    while _connected:
        _connected.pop().close()


@pytest.fixture(autouse=True, scope="module")
def _many_files() -> Iterator[None]:
    """Each end of a connection is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CROWD + 500:
        pytest.skip(f"{CROWD} connections need more open files than the {hard} of this machine")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connected(server: GunicornServer, count: int) -> list[Client]:
    """So many connections, as fast as they can be made. They are closed when the test is over."""

    # Without choosing a source, for which the kernel looks through all ports in use: that can take a millisecond each.
    def connect() -> Client:
        return (
            server.client(20.0) if server.path else Client(socket.create_connection((server.host, server.port), 20.0))
        )

    clients = [connect() for _ in range(count)]
    _connected.extend(clients)
    return clients


def asked(clients: Sequence[Client]) -> list[int]:
    """Which worker each connection belongs to, by their answers to requests that they make at the same time."""
    for client in clients:
        client.send(QUESTION)
    replies = [client.response() for client in clients]
    assert {200: len(clients)} == Counter(reply.status for reply in replies)
    assert all(reply.keeps for reply in replies)
    return [json.loads(reply.body)["pid"] for reply in replies]


def unevenness(owners: Iterable[int], workers: Iterable[int]) -> float:
    """How far the worker that is farthest from the mean is from it, as a share of it. 0 is even."""
    counts = Counter(owners)
    held = [counts[worker] for worker in workers]
    mean = sum(held) / len(held)
    print(f"connections per worker: {held}")
    assert sum(held) == counts.total()
    return max(abs(each - mean) for each in held) / mean


def is_quiet(client: Client) -> bool:
    """Whether nothing has come, not even the end."""
    poll = select.poll()  # not `select.select`, which knows no descriptors beyond 1023
    poll.register(client.socket, select.POLLIN)
    return not poll.poll(0)


@contextlib.contextmanager
def serving(workers: int = WORKERS, *arguments: str, unix: bool = False) -> Iterator[GunicornServer]:
    """A server all of whose workers accept."""
    with gunicorn_server(*PATIENT, *arguments, workers=workers, unix=unix) as server:
        wait_until_serving(server, workers)
        yield server


def wait_until_serving(server: GunicornServer, workers: int, without: Iterable[int] = ()) -> None:
    """Return when so many workers, none of them one of `without`, accept."""
    gone = set(without)

    def all_accept() -> bool:
        pids, log = server.worker_pids(), server.log()
        return len(pids) == workers and not gone & set(pids) and all(f"Worker {pid} parks" in log for pid in pids)

    eventually(all_accept, within=30)
    time.sleep(0.3)  # the line is written just before


def switches(pid: int) -> int:
    """How often the loop of this process has gone to sleep."""
    status = Path(f"/proc/{pid}/task/{pid}/status").read_text(encoding="ascii")
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def processor_seconds(pid: int) -> float:
    """Processor time that all threads of this process have used, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9


@pytest.mark.parametrize(
    ("count", "asks_at_once"),
    [
        pytest.param(10_000, True, marks=pytest.mark.prove, id="10000-asking"),
        pytest.param(10_000, False, marks=pytest.mark.prove, id="10000-silent"),
        pytest.param(CROWD, True, id="2000-asking"),
        pytest.param(CROWD, False, marks=pytest.mark.prove, id="2000-silent"),
        pytest.param(800, True, marks=pytest.mark.prove, id="800-asking"),
        pytest.param(800, False, id="800-silent"),
    ],
)
def test_a_storm_of_connections_spreads_evenly(count: int, asks_at_once: bool) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < count + 500:
        pytest.skip(f"{count} connections need more open files than this machine allows")
    with serving() as server:
        started = time.monotonic()
        clients = connected(server, count)
        print(f"{count} connects in {time.monotonic() - started:.3f} s")
        if not asks_at_once:
            time.sleep(1.0)
        owners = asked(clients)
        print(f"all answered after {time.monotonic() - started:.3f} s")
        assert unevenness(owners, server.worker_pids()) <= UNEVEN
        assert owners == asked(clients)


def test_connections_that_come_one_by_one_spread_evenly() -> None:
    with serving() as server:
        owners: list[int] = []
        for _ in range(400):
            owners.extend(asked(connected(server, 1)))
        assert unevenness(owners, server.worker_pids()) <= UNEVEN


def test_connections_of_a_unix_socket_spread_evenly() -> None:
    with serving(unix=True) as server:
        assert unevenness(asked(connected(server, 800)), server.worker_pids()) <= UNEVEN


def test_workers_with_listeners_of_their_own_leave_nobody_waiting() -> None:
    with contextlib.closing(socket.socket()) as keeper:  # of a port that all workers can bind
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        keeper.bind(("127.0.0.1", 0))
        with serving(WORKERS, "--reuse-port", "--bind", f"127.0.0.1:{keeper.getsockname()[1]}") as server:
            started = time.monotonic()
            owners = asked(connected(server, 400))
            assert time.monotonic() - started < 3
            assert set(server.worker_pids()) == set(owners)


def test_newcomers_go_to_the_emptiest() -> None:
    with serving() as server:
        emptied = server.worker_pids()[0]
        clients = connected(server, 800)
        owners = dict(zip(clients, asked(clients), strict=True))
        leaving = [client for client, owner in owners.items() if owner == emptied]
        for client in leaving:
            client.close()
            del owners[client]
        time.sleep(0.5)
        newcomers = connected(server, len(leaving))
        owners.update(zip(newcomers, asked(newcomers), strict=True))
        assert unevenness(owners.values(), server.worker_pids()) <= UNEVEN


def test_the_death_of_a_worker_costs_only_its_own_connections_and_they_come_back_evenly() -> None:
    with serving() as server:
        clients = connected(server, CROWD)
        owners = dict(zip(clients, asked(clients), strict=True))
        victim = server.worker_pids()[1]
        os.kill(victim, signal.SIGKILL)
        lost = [client for client, owner in owners.items() if owner == victim]
        assert all(client.ended() for client in lost)
        wait_until_serving(server, WORKERS, without=[victim])
        others = {client: owner for client, owner in owners.items() if owner != victim}
        assert all(is_quiet(client) for client in others)
        assert list(others.values()) == asked(list(others))
        back = asked(connected(server, len(lost)))
        assert unevenness([*others.values(), *back], server.worker_pids()) <= UNEVEN


def test_newcomers_are_served_at_once_though_most_workers_have_just_been_killed() -> None:
    with serving() as server:
        asked(connected(server, 100))
        *victims, survivor = server.worker_pids()
        os.kill(server.process.pid, signal.SIGSTOP)  # no successors yet
        try:
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            for _ in range(3):
                started = time.monotonic()
                assert {survivor} == set(asked(connected(server, 20)))
                print(f"20 connections: all answered in {time.monotonic() - started:.2f} s")
                assert time.monotonic() - started < 2
        finally:
            os.kill(server.process.pid, signal.SIGCONT)


def reconnecting(server: GunicornServer, clients: Sequence[Client], *, within: float) -> list[Client]:
    """Every connection once more, as soon as its predecessor has ended without a byte."""
    renewed: list[Client] = []
    deadline = time.monotonic() + within
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        while len(renewed) < len(clients) and time.monotonic() < deadline:
            for key, _ in selector.select(0.5):
                assert key.data.ended(0)
                selector.unregister(key.data.socket)
                key.data.close()
                renewed.extend(connected(server, 1))
    return renewed


@pytest.mark.prove
def test_a_reload_with_all_clients_coming_back_at_once_ends_evenly() -> None:
    with serving() as server:
        before = server.worker_pids()
        clients = connected(server, CROWD)
        asked(clients)
        server.signal(signal.SIGHUP)
        renewed = reconnecting(server, clients, within=25)
        assert CROWD == len(renewed)
        wait_until_serving(server, WORKERS, without=before)
        assert unevenness(asked(renewed), server.worker_pids()) <= UNEVEN


def test_a_connection_wakes_the_worker_that_takes_it_and_hardly_any_other() -> None:
    workers_together, count, pause = 8, 200, 0.004
    with serving(workers_together) as server:
        workers = server.worker_pids()

        def spent() -> tuple[int, float]:
            return sum(map(switches, workers)), sum(map(processor_seconds, workers))

        asked(connected(server, 40))  # everything has run once
        time.sleep(0.5)
        beginning = spent()
        started = time.monotonic()
        for _ in range(count):
            time.sleep(pause)
        idle = spent()
        elapsed = time.monotonic() - started
        clients = []
        for _ in range(count):
            clients.extend(connected(server, 1))
            time.sleep(pause)
        end = spent()
        quiet = (idle[0] - beginning[0]) / elapsed, (idle[1] - beginning[1]) / elapsed
        wakes = (end[0] - idle[0] - quiet[0] * elapsed) / count
        cost = (end[1] - idle[1] - quiet[1] * elapsed) / count
        print(
            f"idle: {quiet[0]:.1f} wakes/s and {1000 * quiet[1]:.1f} ms/s of processor, {workers_together} workers together"
        )
        print(f"one connection at a time: {wakes:.2f} wakes and {1e6 * cost:.0f} us of processor each, all workers")
        assert unevenness(asked(clients), workers) <= 0.15  # that no worker wakes is not what keeps the others asleep
        assert wakes < 4  # a thundering herd wakes all eight, and most of them a second time
        assert quiet[1] < 0.4


@pytest.mark.parametrize("evenly", [pytest.param(True, marks=pytest.mark.prove), False], ids=["even", "uneven"])
def test_idle_connections_keep_no_worker_awake(evenly: bool) -> None:
    with serving() as server:
        workers = server.worker_pids()
        clients = connected(server, CROWD)
        owners = asked(clients)
        if not evenly:
            for client, owner in zip(clients, owners, strict=True):
                if owner == workers[0]:
                    client.close()
            time.sleep(0.5)
            asked(connected(server, 5))  # the others have seen that somebody else should take these
        time.sleep(1.0)
        before = sum(map(switches, workers)), sum(map(processor_seconds, workers))
        time.sleep(2.0)
        woken = (sum(map(switches, workers)) - before[0]) / 2
        used = (sum(map(processor_seconds, workers)) - before[1]) / 2
        print(f"{woken:.1f} wakes/s and {1000 * used:.1f} ms/s of processor, {WORKERS} workers together")
        assert woken < 200
        assert used < 0.1


def test_a_worker_that_does_not_run_is_not_waited_for() -> None:
    with serving(2) as server:
        frozen, running = server.worker_pids()
        first = connected(server, 100)
        leaving = [client for client, owner in zip(first, asked(first), strict=True) if owner == frozen]
        for client in leaving:
            client.close()
        time.sleep(0.3)
        os.kill(frozen, signal.SIGSTOP)  # it is the emptier one now, and was asleep: it looks free
        try:
            started = time.monotonic()
            assert {running} == set(asked(connected(server, 50)))
            print(f"50 connections beside a frozen worker: all answered in {time.monotonic() - started:.2f} s")
            assert time.monotonic() - started < 6
            started = time.monotonic()
            assert {running} == set(asked(connected(server, 50)))
            assert time.monotonic() - started < 1
        finally:
            os.kill(frozen, signal.SIGCONT)


def test_a_worker_with_a_blocked_loop_is_not_waited_for() -> None:
    with serving(2) as server:
        (blocker,) = connected(server, 1)
        (blocked,) = asked([blocker])
        blocker.send(b"GET /block?seconds=2 HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.3)
        started = time.monotonic()
        owners = asked(connected(server, 50))
        took = time.monotonic() - started
        print(f"50 connections beside a blocked worker: all answered in {took:.2f} s")
        assert blocked not in owners
        assert took < 1.5
        assert 200 == blocker.response().status
