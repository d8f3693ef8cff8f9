"""Many clients of the real worker: while workers are killed, replaced and stopped, and as many as one machine holds."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longconn import Settings
from longconn.channels.hub import Channels
from longconn.load import Load, Plan, Tally
from longconn.load.display import summary
from tests.support.crowd_app import channels
from tests.support.gunicorn import eventually
from tests.support.longconn_server import GunicornServer, gunicorn_server

CHANNEL = "news"
RATE = 20_000
"""Messages a second that all clients together get, at most: so the processors have room for what is tested."""

RETURN = 1.0
"""Seconds within which a client whose worker was killed comes back, if nothing holds it up."""


class Publisher:
    """Publishes a message every so often, from this process, until it is stopped; how many have been is `count`."""

    def __init__(self, channels: Channels, every: float) -> None:
        self.count = 0
        self._channels = channels
        self._every = every
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._every):
            self._channels.publish(CHANNEL, f"message {self.count}")
            self.count += 1

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


@contextlib.contextmanager
def crowd_server(workers: int, *arguments: str, **environment: str) -> Iterator[tuple[GunicornServer, Channels]]:
    """The application, and its channels as this process uses them."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="crowd-", dir=shared))
    place = str(folder / "channels")
    mine = channels(Settings.from_environment({"LONGCONN_CHANNELS": place}))
    try:
        with gunicorn_server(
            *arguments,
            app="tests.support.crowd_app:app",
            workers=workers,
            environment={"LONGCONN_CHANNELS": place, **environment},
        ) as server:
            yield server, mine
    finally:
        mine.close()
        shutil.rmtree(folder, ignore_errors=True)


def plan(server: GunicornServer, kind: str, connections: int, seconds: float = 60.0) -> Plan:
    """Clients that check what comes and go on where they were, and stay for so long and a while more."""
    url = (
        f"ws://127.0.0.1:{server.port}/ws/{CHANNEL}"
        if kind == "ws"
        else f"http://127.0.0.1:{server.port}/events/{CHANNEL}"
    )
    return Plan(
        kind=kind,
        url=url,
        connections=connections,
        seconds=seconds + 60.0,
        check=True,
        resume="since",
        reconnect=RETURN,
    )


def sockets_of(pid: int) -> int:
    """How many sockets a process has."""
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(descriptor.readlink()).startswith("socket:")
    return found


def wrong(tally: Tally) -> tuple[int, int, int, int]:
    """Messages that were lost, doubled or out of order, and channels that began anew."""
    return tally.lost, tally.doubled, tally.disordered, tally.restarted


def all_delivered(load: Load, channels: Channels) -> Callable[[Tally], bool]:
    """Publishes one last message; whether all that are open have heard it is known by how many messages have come in."""
    before = load.listen(1.0).messages
    channels.publish(CHANNEL, "the last one")
    return lambda tally: tally.messages >= before + tally.wanted


FEW = 300
MANY = 10_000
LONG = [pytest.mark.prove, pytest.mark.timeout(300)]
CROWDS = [
    pytest.param("ws", FEW, id="ws-few"),
    pytest.param("sse", FEW, id="sse-few", marks=LONG),
    pytest.param("ws", MANY, id="ws-many", marks=LONG),
    pytest.param("sse", MANY, id="sse-many", marks=LONG),
]


@pytest.mark.parametrize(("kind", "connections"), CROWDS)
def test_clients_of_a_killed_worker_come_back_and_miss_nothing(kind: str, connections: int) -> None:
    with crowd_server(3) as (server, channels), Load(plan(server, kind, connections)) as load:
        assert load.until(lambda tally: tally.open == connections, within=60), load.tally
        publisher = Publisher(channels, max(0.1, connections / RATE))
        try:
            assert load.until(lambda tally: tally.messages >= 3 * connections, within=30), load.tally
            victim = server.worker_pids()[0]
            held = sockets_of(victim)
            os.kill(victim, signal.SIGKILL)
            assert load.until(lambda tally: bool(tally.ended), within=10)
            assert load.until(lambda tally: tally.open == connections, within=60), load.tally
            load.listen(1.0)
        finally:
            publisher.stop()
        assert load.until(all_delivered(load, channels), within=20), load.tally
        tally = load.finish().tally
    ended = sum(tally.ended.values())
    assert (0, 0, 0, 0) == wrong(tally)
    assert connections // 6 <= ended <= held  # those of this worker and no others
    assert ended == tally.reopened
    assert {"1006"} == set(tally.ended) if kind == "ws" else set(tally.ended) <= {"ended", "reset"}
    assert connections * (publisher.count + 1) == tally.messages


@pytest.mark.parametrize(("kind", "connections"), CROWDS)
def test_clients_of_replaced_workers_are_told_spread_out_and_miss_nothing(kind: str, connections: int) -> None:
    with (
        crowd_server(2, "--graceful-timeout", "20") as (server, channels),
        Load(plan(server, kind, connections)) as load,
    ):
        assert load.until(lambda tally: tally.open == connections, within=60), load.tally
        old = server.worker_pids()
        publisher = Publisher(channels, max(0.1, connections / RATE))
        try:
            assert load.until(lambda tally: tally.messages >= 3 * connections, within=30), load.tally
            server.signal(signal.SIGHUP)
            ends = endings(load, until=connections, within=40.0)
            assert load.until(lambda tally: tally.reopened >= connections and tally.open == connections, within=60), (
                load.tally
            )
        finally:
            publisher.stop()
        eventually(lambda: not set(old) & set(server.worker_pids()), within=30)
        assert load.until(all_delivered(load, channels), within=20), load.tally
        tally = load.finish().tally
    assert {"1012" if kind == "ws" else "ended": connections} == tally.ended
    assert (0, 0, 0, 0) == wrong(tally)
    assert connections * (publisher.count + 1) == tally.messages
    if connections >= MANY:
        assert most_in_a_second(ends) <= connections / 4


@pytest.mark.prove
@pytest.mark.timeout(300)
def test_all_clients_of_a_server_that_stops_hear_why() -> None:
    with crowd_server(2, "--graceful-timeout", "20") as (server, _), Load(plan(server, "ws", MANY)) as load:
        assert load.until(lambda tally: tally.open == MANY, within=60), load.tally
        server.signal(signal.SIGTERM)
        assert load.until(lambda tally: sum(tally.ended.values()) >= MANY, within=40), load.tally
        tally = load.finish().tally
    assert {"1001": MANY} == tally.ended


def endings(load: Load, *, until: int, within: float) -> list[tuple[float, int]]:
    """How many had been ended by the server at each moment, until so many were."""
    seen: list[tuple[float, int]] = []
    deadline = time.monotonic() + within
    while (not seen or seen[-1][1] < until) and time.monotonic() < deadline:
        ended = sum(load.listen(0.1).ended.values())
        seen.append((time.monotonic(), ended))
    return seen


def most_in_a_second(seen: list[tuple[float, int]]) -> int:
    """The most that were ended within a second."""
    return max(
        ended - next(before for at, before in reversed([(seen[0][0] - 2.0, 0), *seen[: index + 1]]) if at <= now - 1.0)
        for index, (now, ended) in enumerate(seen)
    )


WORKERS = 6
CROWD = 100_000


@pytest.mark.prove
@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(60, id="a-minute", marks=pytest.mark.timeout(600)),
        pytest.param(600, id="ten-minutes", marks=pytest.mark.timeout(1_200)),
    ],
)
def test_a_hundred_thousand_websockets_hear_a_message_every_ten_seconds(
    seconds: float,
) -> None:
    free = available()
    with crowd_server(WORKERS) as (server, channels), Load(plan(server, "ws", CROWD, seconds)) as load:
        assert load.until(lambda tally: tally.open == CROWD, within=180), load.tally
        before = {pid: processor(pid) for pid in server.worker_pids()}
        publisher = Publisher(channels, 10.0)
        try:
            load.listen(seconds)
        finally:
            publisher.stop()
        assert load.until(all_delivered(load, channels), within=60), load.tally
        used = {pid: processor(pid) - before[pid] for pid in server.worker_pids()}
        left = available()
        memory = {pid: resident(pid) for pid in server.worker_pids()}
        report = load.finish()
    print(summary(report))
    print(
        f"  workers   {sum(used.values()) / seconds:.3f} of a processor, {sum(memory.values()) / 1_048_576:,.0f} MiB together"
    )
    print(f"  machine   {(free - left) / 1_048_576:,.0f} MiB for both ends, the kernel's part among it")
    tally = report.tally
    assert [] == report.faults
    assert (CROWD, CROWD, 0) == (tally.open, tally.opened, tally.unnumbered)
    assert CROWD * (publisher.count + 1) == tally.messages
    assert tally.pings >= CROWD * (seconds // 40)


def processor(pid: int) -> float:
    """Seconds of a processor that a process has used."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def available() -> int:
    """Bytes of memory that this machine could still give out."""
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
    return int(line.split()[1]) * 1_024


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
