"""Clients that only mean to occupy: with more of them than there are places, everybody else is served all the time."""

from __future__ import annotations

import contextlib
import csv
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.longconn_client import Conversation, request
from tests.support.longconn_server import GunicornServer, gunicorn_server

pytestmark = pytest.mark.alone

MIRROR = "tests.support.longconn_mirror:application"
PLACES = 64
ATTACKERS = 80
SECONDS = 1.5
"""How long an attack lasts: the table is full within the first tenths of it."""

LONG = ("slow body", "slow read", "a body nobody reads")
"""Weapons much like others, left to the long proofs."""

OVER = select.POLLRDHUP | select.POLLHUP | select.POLLERR
SLOWHTTPTEST = shutil.which("slowhttptest")


@dataclass(frozen=True, slots=True)
class Weapon:
    """What each attacking connection does: send `first`, then `drip` twice a second, and read `sip` bytes each time."""

    first: bytes = b""
    drip: bytes = b""
    sip: int = 0


WEAPONS = {
    "slow headers": Weapon(b"GET / HTTP/1.1\r\nHost: a\r\n", drip=b"X-A: b\r\n"),
    "slow body": Weapon(request("POST", "/whole", ["Content-Length: 100000"]), drip=b"a"),
    "slow chunked body": Weapon(request("POST", "/whole", ["Transfer-Encoding: chunked"]), drip=b"1\r\na\r\n"),
    "a body nobody reads": Weapon(request("POST", "/ignore", ["Content-Length: 100000"]), drip=b"a"),
    "slow read": Weapon(request("GET", "/whole?pad=1000000"), sip=10),
    "slow read of a stream": Weapon(request("GET", "/stream?pad=1000000"), sip=10),
    "no read at all": Weapon(request("GET", "/whole?pad=1000000")),
    "many requests, no read": Weapon(request("GET", "/whole?pad=20000") * 50),
    "silence": Weapon(),
    "keep-alive": Weapon(request("GET", "/"), sip=10_000),
}


class Attack:
    """Holds `count` connections for as long as the block lasts: one that is closed is opened again."""

    def __init__(self, connect: Callable[[], socket.socket], weapon: Weapon, count: int) -> None:
        self.opened = 0
        self._connect = connect
        self._weapon = weapon
        self._count = count
        self._connections: list[socket.socket] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Attack:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)
        for connection in self._connections:
            connection.close()

    def _run(self) -> None:
        while not self._over.is_set():
            self._connections = [connection for connection in self._connections if not self._lost(connection)]
            while len(self._connections) < self._count:
                with contextlib.suppress(OSError):
                    self._connections.append(self._open())
                if self.opened > self._count:
                    break  # comes back one at a time, so that an attack remains a matter of patience
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.send(self._weapon.drip)
                    if self._weapon.sip:
                        connection.recv(self._weapon.sip)
            self._over.wait(0.5 if self.opened < self._count else 0.1)

    def _open(self) -> socket.socket:
        connection = self._connect()
        self.opened += 1
        connection.settimeout(0)
        with contextlib.suppress(OSError):
            connection.send(self._weapon.first)
        return connection

    @staticmethod
    def _lost(connection: socket.socket) -> bool:
        poller = select.poll()
        poller.register(connection, OVER)
        if not poller.poll(0):
            return False
        connection.close()
        return True


@dataclass(slots=True)
class Visitors:
    """Honest clients, one after the other, each with a connection of its own. `failures` says what befell them."""

    server: GunicornServer
    served: int = 0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)

    def come(self, seconds: float) -> None:
        """Be served for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            started = time.monotonic()
            try:
                status = self._visit()
            except (AssertionError, OSError) as error:
                self.failures.append(f"{self._errand}: {error!r} after {time.monotonic() - started:.2f} s")
            else:
                if status == 200:
                    self.served += 1
                else:
                    self.failures.append(f"{self._errand}: {status}")
            self.slowest = max(self.slowest, time.monotonic() - started)
            time.sleep(0.02)

    @property
    def _errand(self) -> str:
        return "fetch" if self.served % 2 else "upload"

    def _visit(self) -> int:
        with Conversation(self.server.connect(timeout=5)) as client:
            if self._errand == "fetch":
                return client.get(within=5).status
            client.send(request("POST", "/whole", body=b"a" * 3000)[:-1500])
            time.sleep(0.02)  # an honest body may take a moment
            client.send(b"a" * 1500)
            return client.reply(within=5).status


@pytest.fixture(scope="module")
def server() -> Iterator[GunicornServer]:
    with besieged() as running:
        yield running


@contextlib.contextmanager
def besieged(*, places: int = PLACES, tls: bool = False) -> Iterator[GunicornServer]:
    """A server with so many places, the usual deadlines, and a keep-alive that helps the attackers."""
    arguments = ("--keep-alive", "600", "--worker-connections", str(places))
    with gunicorn_server(*arguments, app=MIRROR, tls=tls) as running:
        yield running


def greedy(server: GunicornServer) -> socket.socket:
    """A connection with little room for answers."""
    connection = socket.socket()
    connection.settimeout(5)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect((server.host, server.port))
    return connection


@pytest.mark.parametrize(
    "weapon",
    [
        pytest.param(weapon, id=name, marks=[pytest.mark.prove] if name in LONG else [])
        for name, weapon in WEAPONS.items()
    ],
)
def test_everybody_else_is_served_during_an_attack(server: GunicornServer, weapon: Weapon) -> None:
    visitors = Visitors(server)
    with Attack(lambda: greedy(server), weapon, ATTACKERS) as attack:
        visitors.come(SECONDS)
    print(f"{visitors.served} served, slowest {visitors.slowest:.2f} s, {attack.opened} attacking connections")
    assert attack.opened >= ATTACKERS
    assert [] == visitors.failures
    assert visitors.served >= 10
    assert 200 == server.get()[0]


@pytest.mark.parametrize(
    "hello",
    [
        pytest.param(b"", id="nothing", marks=pytest.mark.prove),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="a part"),
    ],
)
def test_everybody_else_is_served_while_handshakes_are_never_finished(hello: bytes) -> None:
    with besieged(tls=True) as server:
        visitors = Visitors(server)
        with Attack(lambda: server.connect(raw=True), Weapon(hello), ATTACKERS) as attack:
            visitors.come(SECONDS)
        assert attack.opened >= ATTACKERS
        assert [] == visitors.failures
        assert visitors.served >= 10


@pytest.mark.prove
@pytest.mark.timeout(240)
@pytest.mark.skipif(SLOWHTTPTEST is None, reason="slowhttptest is not installed")
@pytest.mark.parametrize("mode", ["-H", "-B", "-X"], ids=["slow headers", "slow body", "slow read"])
def test_slowhttptest_with_more_connections_than_there_are_places(tmp_path: Path, mode: str) -> None:
    places, seconds = 500, 30
    with besieged(places=places) as server:
        command = [
            *(str(SLOWHTTPTEST), mode, "-c", str(places * 12 // 10), "-r", "300", "-i", "3", "-l", str(seconds)),
            *("-p", "2", "-g", "-o", str(tmp_path / "report"), "-s", "8192"),
            *("-w", "10", "-y", "20", "-n", "3", "-z", "10", "-k", "3"),
            *("-u", f"http://127.0.0.1:{server.port}/whole{'?pad=300000' if mode == '-X' else ''}"),
        ]
        visitors = Visitors(server)
        attack = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while attack.poll() is None:
                visitors.come(1)
        finally:
            attack.kill()
            attack.wait(10)
        with (tmp_path / "report.csv").open(newline="") as report:
            rows = [{name.strip(): value for name, value in row.items()} for row in csv.DictReader(report)]
        print(f"{visitors.served} served, slowest {visitors.slowest:.2f} s; last row {rows[-1]}")
        assert max(int(row["Connected"]) for row in rows) > 0
        assert [] == [row["Seconds"] for row in rows if int(row["Service Available"]) == 0]
        assert [] == visitors.failures
        assert visitors.served >= 100
