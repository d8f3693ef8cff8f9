"""Nobody notices a reload or a rolling restart: `wrk` through reloads in a row, and through nginx with two instances."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gunicorn import eventually
from tests.support.longconn_server import GunicornServer, gunicorn_server

PATIENT = ("--graceful-timeout", "30", "--keep-alive", "75")
GET = ""
POST = """
wrk.method = "POST"
wrk.body = string.rep("x", 100)
"""
PAUSES = """
function delay() return math.random(0, 60) end
"""
"""For wrk: milliseconds before each request, so that connections are parked now and then when the worker leaves."""

NGINX = """
daemon off;
user root; # where it matters: the one who runs this test
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000;
    upstream service {{
        server {first} max_fails=0;
        server {second} max_fails=0;
        keepalive 32;
    }}
    server {{
        listen {listen};
        location / {{
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""
"""`proxy_next_upstream` stays what it is without being named: another instance is tried when one refuses or breaks the
connection, unless that could repeat a POST. `max_fails=0`, since with two instances there is no third to turn to while
nginx holds a refusal against one of them."""


@dataclass(frozen=True, slots=True)
class Report:
    """What wrk said at its end."""

    requests: int
    failed: int
    socket_errors: str


def needs(*tools: str) -> None:
    """Skip the test where one of these programs is missing."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")


@contextlib.contextmanager
def wrk(port: int, tmp_path: Path, *, script: str, path: str = "/", connections: int = 32) -> Iterator[list[Report]]:
    """Load for as long as the block runs. Afterwards the list that it gets holds the report."""
    file = tmp_path / "wrk.lua"
    file.write_text(script)
    reports: list[Report] = []
    process = subprocess.Popen(
        [
            *("wrk", "--threads", "1", "--connections", str(connections), "--duration", "300", "--timeout", "20"),
            *("--script", str(file), f"http://127.0.0.1:{port}{path}"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        time.sleep(0.5)
        yield reports
        time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGINT)  # on which it reports
        output, _ = process.communicate(timeout=30)
    print(output)
    requests = re.search(r"(\d+) requests in", output)
    assert requests is not None
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    errors = re.search(r"Socket errors: (.*)", output)
    reports.append(Report(int(requests[1]), int(failed[1]) if failed else 0, errors[1] if errors else "none"))


def assert_nobody_noticed(report: Report) -> None:
    assert (0, "none") == (report.failed, report.socket_errors)
    assert report.requests > 100


def reload(server: GunicornServer) -> None:
    """Have all workers replaced, and return when the old ones have left and the new ones have their application."""
    before = set(server.worker_pids())

    def replaced() -> bool:
        pids = set(server.worker_pids())
        return len(pids) == len(before) and not pids & before and pids <= set(server.loaded())

    server.signal(signal.SIGHUP)
    eventually(replaced, within=40)


ROUNDS = [
    pytest.param(3, id="3"),
    pytest.param(20, id="20", marks=[pytest.mark.prove, pytest.mark.timeout(400)]),
]


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize(
    ("script", "path"),
    [
        pytest.param(GET, "/", id="get", marks=pytest.mark.prove),
        pytest.param(POST + PAUSES, "/expect", id="post-with-pauses"),
    ],
)
def test_reloads_in_a_row_cost_no_request(tmp_path: Path, script: str, path: str, rounds: int) -> None:
    needs("wrk")
    with gunicorn_server(*PATIENT, workers=2) as server:
        with wrk(server.port, tmp_path, script=script, path=path) as reports:
            for _ in range(rounds):
                started = time.monotonic()
                reload(server)
                print(f"reload took {time.monotonic() - started:.1f} s")
        assert_nobody_noticed(reports[0])
        assert "Traceback" not in server.log()


def test_reloads_that_are_asked_for_while_one_is_under_way_cost_no_request(tmp_path: Path) -> None:
    needs("wrk")
    with gunicorn_server(*PATIENT, workers=2) as server:
        first = set(server.worker_pids())
        with wrk(server.port, tmp_path, script=GET) as reports:
            for _ in range(4):
                server.signal(signal.SIGHUP)
                time.sleep(0.3)
            eventually(lambda: not first & set(server.worker_pids()), within=30)
            reload(server)
        assert_nobody_noticed(reports[0])
        assert "Traceback" not in server.log()


def test_workers_that_leave_after_their_number_of_requests_cost_no_request(tmp_path: Path) -> None:
    needs("wrk")
    options = ("--max-requests", "2000", "--max-requests-jitter", "500")
    with gunicorn_server(*PATIENT, *options, workers=2) as server:
        with wrk(server.port, tmp_path, script=PAUSES) as reports:
            time.sleep(4)
        assert_nobody_noticed(reports[0])
        assert len(server.loaded()) > 2  # some have left
        assert "Traceback" not in server.log()


@contextlib.contextmanager
def nginx(folder: Path, first: str, second: str) -> Iterator[int]:
    """An nginx in front of two instances, at the port that it gets."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        listener.setblocking(False)
        host, port = listener.getsockname()
        configuration = folder / "nginx.conf"
        configuration.write_text(NGINX.format(folder=folder, first=first, second=second, listen=f"{host}:{port}"))
        process = subprocess.Popen(
            [
                shutil.which("nginx") or "nginx",
                "-p",
                str(folder),
                "-c",
                str(configuration),
                "-e",
                str(folder / "error.log"),
            ],
            env={"NGINX": f"{listener.fileno()};"},  # take this listener, so that nobody else can have taken the port
            pass_fds=[listener.fileno()],
        )
        try:
            eventually((folder / "pid").exists)
            yield port
        finally:
            process.terminate()
            process.wait(10)


class Instance:
    """A gunicorn that can be started again at its address."""

    def __init__(self, host: str) -> None:
        self._stack = contextlib.ExitStack()
        with socket.socket() as chosen:
            # An address that connections come from by no means: nothing else takes the port while the instance is down.
            chosen.bind((host, 0))
            self.address = f"{host}:{chosen.getsockname()[1]}"

    def __enter__(self) -> Instance:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(self) -> None:
        self.server = self._stack.enter_context(gunicorn_server("--bind", self.address, *PATIENT, workers=2))

    def restart(self) -> None:
        assert 0 == self.server.stop(within=35)
        assert "Traceback" not in self.server.log()
        self._stack.close()
        self.start()


@pytest.mark.parametrize(
    "rounds",
    [pytest.param(1, id="1"), pytest.param(5, id="5", marks=[pytest.mark.prove, pytest.mark.timeout(300)])],
)
@pytest.mark.parametrize(
    ("script", "path"),
    [
        pytest.param(GET, "/", id="get"),
        pytest.param(POST + PAUSES, "/expect", id="post-with-pauses", marks=pytest.mark.prove),
    ],
)
def test_rolling_restarts_behind_nginx_cost_no_request(tmp_path: Path, script: str, path: str, rounds: int) -> None:
    needs("wrk", "nginx")
    with (
        Instance("127.0.0.71") as first,
        Instance("127.0.0.72") as second,
        nginx(tmp_path, first.address, second.address) as port,
    ):
        with wrk(port, tmp_path, script=script, path=path) as reports:
            for _ in range(rounds):
                for instance in (first, second):
                    _timed("restart", instance.restart)
                    time.sleep(0.5)
        assert [] == broken_connections(tmp_path / "error.log")
        assert_nobody_noticed(reports[0])


def broken_connections(log: Path) -> list[str]:
    """What nginx says of connections to an instance that ended under a request. Refused ones say that it is down.

    nginx repeats such a GET elsewhere, where its client does not see it.
    """
    return [
        line for line in log.read_text().splitlines() if "upstream" in line and "(111: Connection refused)" not in line
    ]


def _timed(what: str, action: Callable[[], object]) -> None:
    started = time.monotonic()
    action()
    print(f"{what} took {time.monotonic() - started:.1f} s")
