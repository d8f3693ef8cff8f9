"""Hooks, logs, signals and reloads: gunicorn runs the parking worker as it runs the stock gevent worker."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gunicorn import eventually
from tests.support.longconn_server import GunicornServer, gunicorn_server
from tests.support.longconn_sides import PARKING, STOCK, WORKERS, Sides, both_workers, exchange

KEEP = ("--keep-alive", "5", "--graceful-timeout", "5")

ROOT = Path(__file__).parents[3]

HOOKS = """
import os


def _note(*words):
    with open(os.environ["EVENTS"], "a") as file:
        file.write(" ".join(str(word) for word in words) + "\\n")


def on_starting(server): _note("on_starting", server.pid == os.getpid())
def on_reload(server): _note("on_reload")
def when_ready(server): _note("when_ready", len(server.LISTENERS))
def pre_fork(server, worker): _note("pre_fork", worker.pid, worker.age)
def post_fork(server, worker): _note("post_fork", worker.pid == os.getpid(), worker.age)
def post_worker_init(worker): _note("post_worker_init", worker.nr, callable(worker.wsgi), worker.alive)
def worker_int(worker): _note("worker_int", worker.age)
def worker_abort(worker): _note("worker_abort", worker.age)
def pre_exec(server): _note("pre_exec")
def pre_request(worker, req): _note("pre_request", worker.nr, req.method, req.path, req.uri, len(req.headers))
def post_request(worker, req, environ, resp): _note("post_request", worker.nr, req.path, environ["PATH_INFO"], resp.status)
def child_exit(server, worker): _note("child_exit", worker.age)
def worker_exit(server, worker): _note("worker_exit", worker.age)
def nworkers_changed(server, new, old): _note("nworkers_changed", new, old)
def on_exit(server): _note("on_exit")
"""


@pytest.fixture
def events(tmp_path: Path) -> Callable[[], list[str]]:
    """The hooks that have run, with their arguments, in order. The environment of a server names the file."""
    file = tmp_path / "events"
    file.touch()
    return lambda: file.read_text().splitlines()


def hooked(
    tmp_path: Path, worker: str, *arguments: str, workers: int = 1
) -> contextlib.AbstractContextManager[GunicornServer]:
    environment = {"EVENTS": str(tmp_path / "events")}
    return gunicorn_server(*KEEP, *arguments, worker=worker, workers=workers, config=HOOKS, environment=environment)


BOOTED = [
    *("nworkers_changed 1 None", "on_starting True", "when_ready 1", "pre_fork [booting] 1", "post_fork True 1"),
    "post_worker_init 0 True True",
]


@pytest.mark.parametrize("worker", WORKERS)
def test_every_hook_runs_when_and_with_what_gunicorn_says(
    worker: str, tmp_path: Path, events: Callable[[], list[str]]
) -> None:
    with hooked(tmp_path, worker) as server:
        assert BOOTED == events()
        with server.client() as client:
            client.ask("/echo?a=b", "X-One: 1", method="POST", body=b"abc")
            client.ask("/missing")
            client.send(b"GET /raise HTTP/1.1\r\nHost: a\r\n\r\n")
            client.rest()
        eventually(lambda: 6 == len(events()) - len(BOOTED))
        assert [
            "pre_request 0 POST /echo /echo?a=b 3",
            "post_request 1 /echo /echo 200 OK",
            "pre_request 1 GET /missing /missing 1",
            "post_request 2 /missing /missing 404 Not Found",
            "pre_request 2 GET /raise /raise 1",
            "post_request 3 /raise /raise None",
        ] == events()[len(BOOTED) :]
        before = len(events())
        server.signal(signal.SIGTTIN)
        eventually(lambda: "post_worker_init 0 True True" in events()[before:])
        assert ["nworkers_changed 2 1", "pre_fork [booting] 2", "post_fork True 2", BOOTED[-1]] == events()[before:]
        before = len(events())
        server.signal(signal.SIGTTOU)
        eventually(lambda: "child_exit 1" in events())
        assert ["nworkers_changed 1 2", "worker_exit 1", "child_exit 1"] == events()[before:]
        before = len(events())
        assert 0 == server.stop()
        assert ["worker_exit 2", "child_exit 2", "on_exit"] == events()[before:]


@pytest.mark.parametrize("worker", WORKERS)
def test_a_reload_runs_its_hooks_and_replaces_the_workers(
    worker: str, tmp_path: Path, events: Callable[[], list[str]]
) -> None:
    with hooked(tmp_path, worker) as server:
        (first,) = server.worker_pids()
        before = len(events())
        server.signal(signal.SIGHUP)
        eventually(lambda: "child_exit 1" in events())
        (second,) = server.worker_pids()
        assert first != second
        assert b"pong" == server.get("/")[2]
        ran = events()[before : before + 5]
        assert ["nworkers_changed 1 1", "on_reload", "pre_fork [booting] 2", "post_fork True 2"] == [
            event for event in ran if "worker" not in event or "nworkers" in event
        ]
        assert ["worker_exit 1", "child_exit 1"] == [event for event in events()[before:] if "exit" in event]


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGINT])
def test_a_quick_stop_interrupts_the_workers(
    worker: str, number: int, tmp_path: Path, events: Callable[[], list[str]]
) -> None:
    with hooked(tmp_path, worker) as server, server.client() as client:
        client.send(b"GET /slow?seconds=30 HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(lambda: any(event.startswith("pre_request") for event in events()))
        before = len(events())
        started = time.monotonic()
        assert 0 == server.stop(signal=number)
        assert time.monotonic() - started < 4.5  # of the 5 that a graceful one may take
        ended = [event for event in events()[before:] if "request" not in event]
        assert ["worker_int 1", "worker_exit 1", "child_exit 1", "on_exit"] == ended


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_that_hangs_is_aborted_and_replaced(
    worker: str, tmp_path: Path, events: Callable[[], list[str]]
) -> None:
    with hooked(tmp_path, worker, "--timeout", "2") as server:
        (first,) = server.worker_pids()
        with server.client() as client:
            client.send(b"GET /block?seconds=20 HTTP/1.1\r\nHost: a\r\n\r\n")
            eventually(lambda: "child_exit 1" in events())
        assert "worker_abort 1" in events()
        assert b"pong" == server.get("/")[2]
        assert [first] != server.worker_pids()


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.together
def test_an_idle_worker_is_not_taken_for_one_that_hangs(worker: str) -> None:
    with gunicorn_server("--timeout", "2", worker=worker) as server:
        before = server.worker_pids()
        time.sleep(3.5)
        assert b"pong" == server.get("/")[2]
        assert before == server.worker_pids()


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.together
def test_a_worker_that_is_killed_is_replaced(worker: str) -> None:
    with gunicorn_server(*KEEP, worker=worker, workers=2) as server:
        first, second = server.worker_pids()
        os.kill(first, signal.SIGKILL)
        eventually(lambda: 2 == len(server.worker_pids()) and first not in server.worker_pids())
        assert second in server.worker_pids()
        assert b"pong" == server.get("/")[2]
        assert 0 == server.stop()


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.together
def test_a_request_in_flight_is_answered_before_the_worker_ends(worker: str) -> None:
    with gunicorn_server(*KEEP, worker=worker) as server, server.client(10.0) as client, server.client() as idle:
        assert b"pong" == idle.ask("/").body
        client.send(b"GET /slow?seconds=1.5 HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.5)
        server.signal(signal.SIGTERM)
        assert b"slow" == client.response().body
        assert b"" == idle.rest()
        assert 0 == server.stop()


@pytest.mark.parametrize("worker", WORKERS)
def test_an_application_that_cannot_be_loaded_ends_the_server(worker: str, tmp_path: Path) -> None:
    (tmp_path / "broken_application.py").write_text("raise RuntimeError('cannot be loaded')\n")
    with (
        pytest.raises(AssertionError, match="cannot be loaded"),
        gunicorn_server("--pythonpath", str(tmp_path), app="broken_application", worker=worker),
    ):
        pass


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.together
def test_an_application_may_be_loaded_before_the_fork(worker: str) -> None:
    with gunicorn_server("--preload", worker=worker, workers=2) as server:
        assert b"pong" == server.get("/flask/")[2]
        assert 0 == server.stop()


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.together
def test_workers_may_belong_to_another_user(worker: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may change the user")
    with gunicorn_server("--preload", "--user", "65534", "--group", "65534", worker=worker) as server:
        (pid,) = server.worker_pids()
        assert 65534 == Path(f"/proc/{pid}").stat().st_uid
        assert b"pong" == server.get("/")[2]
        assert 0 == server.stop()


# Logs.

ATOMS = (
    *("h", "l", "u", "t", "r", "s", "m", "U", "q", "H", "b", "B", "f", "a", "T", "D", "M", "L", "p"),
    *("{x-one}i", "{host}i", "{missing}i", "{content-type}o", "{content-length}o", "{missing}o"),
    *("{remote_addr}e", "{wsgi.url_scheme}e", "{path_info}e", "{http_x_one}e", "{missing}e"),
)
FORMAT = "|".join(f"%({atom})s" for atom in ATOMS)
VARIABLE = ("t", "T", "D", "M", "L", "p", "{host}i")

Entries = list[dict[str, str]]


def entries(file: Path) -> Entries:
    return [dict(zip(ATOMS, line.split("|"), strict=True)) for line in file.read_text("latin-1").splitlines()]


LOGGED = [
    b"GET /echo?a=b&c HTTP/1.1\r\nHost: h\r\nX-One: 1\r\nReferer: http://from\r\nUser-Agent: test (1)\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Basic " + base64.b64encode(b"name:word") + b"\r\n\r\n",
    b"POST /body HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /stream?chunks=5&size=20 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /stream?chunks=5&size=20&length=1 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"HEAD /large?bytes=5000 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /large?bytes=5000 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /file HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /file?wrapped=buffer&length=100 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /status?code=204+No+Content HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /status?code=418+A+pot HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /respond?Content-Type=a%7Cb&Content-Length=3 HTTP/1.1\r\nHost: h\r\n\r\n".replace(b"%7C", b"+"),
    b"GET /%C3%A4?%22 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /hints HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /write HTTP/1.0\r\n\r\n",
    b"GET /raise HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /raise?after=1 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /wrong?what=list+of+text HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /wrong?what=name+space HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET / HTTP/3.1\r\nHost: h\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    b"POST /body HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sides, dict[GunicornServerId, Path]]]:
    folder = tmp_path_factory.mktemp("logs")
    files = {worker: folder / worker.replace(".", "-") for worker in (STOCK, PARKING)}
    arguments = (*KEEP, "--access-logformat", FORMAT, "--http-parser", "python")
    with (
        gunicorn_server(*arguments, "--access-logfile", str(files[STOCK]), worker=STOCK) as stock,
        gunicorn_server(*arguments, "--access-logfile", str(files[PARKING]), worker=PARKING) as parking,
    ):
        yield Sides(stock, parking), {stock.pid: files[STOCK], parking.pid: files[PARKING]}


GunicornServerId = int


@pytest.mark.parametrize("request_", LOGGED)
def test_the_access_log_has_the_same_line(logged: tuple[Sides, dict[GunicornServerId, Path]], request_: bytes) -> None:
    sides, files = logged

    def ask(server: GunicornServer) -> Entries:
        file = files[server.pid]
        before = len(entries(file))
        exchange(server, request_)
        exchange(server, b"GET /last HTTP/1.1\r\nHost: h\r\n\r\n")
        eventually(lambda: "/last" in [entry["U"] for entry in entries(file)[before:]])
        return [{key: value for key, value in entry.items() if key not in hidden} for entry in entries(file)[before:]]

    # The stock worker logs no size when the kernel copies a file.
    hidden = (*VARIABLE, "b", "B") if request_.startswith(b"GET /file HTTP") else VARIABLE
    assert "404" == sides.same(ask)[-1]["s"]


def test_the_access_log_has_the_size_of_a_file(logged: tuple[Sides, dict[GunicornServerId, Path]]) -> None:
    sides, files = logged
    size = len(sides.parking.get("/file?marked")[2])
    file = files[sides.parking.pid]
    eventually(lambda: [str(size)] == [entry["b"] for entry in entries(file) if "marked" == entry["q"]])


def test_the_access_log_says_when_by_whom_and_how_long(
    logged: tuple[Sides, dict[GunicornServerId, Path]],
) -> None:
    sides, files = logged
    for server in (sides.stock, sides.parking):
        file = files[server.pid]
        with server.client() as client:
            client.ask("/")
            client.ask("/slow?seconds=1.2")
            client.ask("/")
        eventually(lambda file=file: "/slow" == entries(file)[-2]["U"])  # type: ignore[misc]
        fast, slow = entries(file)[-1], entries(file)[-2]
        assert re.fullmatch(r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]", slow["t"])
        assert f"<{server.worker_pids()[0]}>" == slow["p"]
        assert "localhost" == slow["{host}i"]
        assert "1" <= slow["T"] <= "5"
        assert 1_200_000 <= int(slow["D"]) < 6_000_000
        assert int(slow["D"]) // 1000 == int(slow["M"])
        assert int(slow["D"]) == round(float(slow["L"]) * 1_000_000)
        assert 0 <= int(fast["D"]) < 1_000_000


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.together
def test_the_access_log_may_go_to_the_standard_output(worker: str) -> None:
    with gunicorn_server(*KEEP, "--access-logfile", "-", worker=worker) as server:
        server.get("/echo?marked", [("User-Agent", "me")])
        eventually(lambda: '"GET /echo?marked HTTP/1.1" 200' in server.log())
        line = next(line for line in server.log().splitlines() if "marked" in line)
        assert re.fullmatch(r'127\.0\.0\.1 - - \[.+\] "GET /echo\?marked HTTP/1\.1" 200 \d+ "-" "me"', line)
        assert 0 == server.stop()


@pytest.mark.parametrize("worker", WORKERS)
def test_usr1_reopens_the_logs(worker: str, tmp_path: Path) -> None:
    access, error = tmp_path / "access", tmp_path / "error"
    files = ("--access-logfile", str(access), "--error-logfile", str(error))
    with gunicorn_server(*KEEP, *files, "--capture-output", worker=worker) as server:
        server.get("/first")
        eventually(lambda: "/first" in access.read_text())
        access.rename(tmp_path / "access.old")
        error.rename(tmp_path / "error.old")
        server.signal(signal.SIGUSR1)
        eventually(lambda: access.exists() and error.exists())

        def line_arrives() -> bool:
            server.get("/second")  # the worker reopens its files after the master has
            return "/second" in access.read_text()

        eventually(line_arrives)
        server.get("/raise")
        eventually(lambda: "RuntimeError: raised before the first byte" in error.read_text())
        assert 0 == server.stop()


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.together
def test_statsd_hears_of_every_request(worker: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(5)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        arguments = ("--statsd-host", address, "--statsd-prefix", "seawall", "--dogstatsd-tags", "a:b")
        with gunicorn_server(*KEEP, *arguments, worker=worker) as server:
            server.get("/")
            server.get("/missing")
            heard: list[str] = []
            while sum("gunicorn.request.status" in each for each in heard) < 2:
                heard.append(listener.recv(4096).decode())
            assert "seawall.gunicorn.workers:1|g|#a:b" in heard
            assert 2 == heard.count("seawall.gunicorn.requests:1|c|@1.0|#a:b")
            assert "seawall.gunicorn.request.status.200:1|c|@1.0|#a:b" in heard
            assert "seawall.gunicorn.request.status.404:1|c|@1.0|#a:b" in heard
            durations = [
                re.fullmatch(r"seawall\.gunicorn\.request\.duration:([\d.]+)\|ms\|#a:b", each) for each in heard
            ]
            assert 2 == sum(1 for each in durations if each is not None and 0 <= float(each[1]) < 5000)
            server.get("/raise")
            while "seawall.gunicorn.log.exception:1|c|@1.0|#a:b" not in heard:
                heard.append(listener.recv(4096).decode())


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.together
def test_syslog_gets_both_logs(worker: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(5)
        arguments = ("--log-syslog", "--log-syslog-to", f"udp://127.0.0.1:{listener.getsockname()[1]}")
        with gunicorn_server(*KEEP, *arguments, "--log-syslog-prefix", "seawall", worker=worker) as server:
            server.get("/echo?marked")
            server.get("/raise")
            heard = ""
            while not ('"GET /echo?marked HTTP/1.1" 200' in heard and "RuntimeError: raised before" in heard):
                heard += listener.recv(65536).decode()
            assert "gunicorn.seawall.access" in heard
            assert "gunicorn.seawall.error" in heard


LOGGER = """
from gunicorn.glogging import Logger


class logger_class(Logger):
    def access(self, resp, req, environ, request_time):
        self.error_log.info("mine: %s %s %s %s %s", req.method, req.path, resp.status, resp.sent, environ["RAW_URI"])
"""


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.together
def test_a_logger_of_ones_own_hears_of_every_request(worker: str) -> None:
    with gunicorn_server(*KEEP, worker=worker, config=LOGGER) as server:
        server.get("/")
        exchange(server, b"GET /raise HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(lambda: "mine: GET / 200 OK 4 /\n" in server.log())
        eventually(lambda: "mine: GET /raise 500 Internal Server Error 0 /raise\n" in server.log())


@pytest.mark.parametrize("worker", WORKERS)
def test_a_log_configuration_of_ones_own_holds(worker: str, tmp_path: Path) -> None:
    file = tmp_path / "access.json"
    config = f"""
logconfig_dict = {{
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {{"plain": {{"format": "own %(message)s"}}}},
    "root": {{"level": "INFO", "handlers": ["file"]}},
    "handlers": {{"file": {{"class": "logging.FileHandler", "filename": {str(file)!r}, "formatter": "plain"}}}},
    "loggers": {{"gunicorn.access": {{"level": "INFO", "handlers": ["file"], "propagate": False}}}},
}}
"""
    with gunicorn_server(*KEEP, worker=worker, config=config) as server:
        server.get("/echo?marked")
        eventually(lambda: file.exists() and "own 127.0.0.1" in file.read_text() and "marked" in file.read_text())


# Requests per worker.


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.together
def test_a_worker_is_replaced_after_max_requests_and_no_request_fails(worker: str) -> None:
    with gunicorn_server(*KEEP, "--max-requests", "7", worker=worker) as server:
        seen: set[int] = set()

        def three_seen() -> bool:
            seen.add(json.loads(server.get("/pid")[2])["pid"])
            return len(seen) >= 3

        eventually(three_seen)
        assert "Autorestarting worker after current request." in server.log()
        assert 0 == server.stop()


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.together
def test_the_answer_to_the_last_request_of_a_worker_says_that_it_closes(worker: str) -> None:
    with gunicorn_server(*KEEP, "--max-requests", "3", worker=worker) as server, server.client() as client:
        assert ["keep-alive", "keep-alive", "close"] == [client.ask("/").headers["Connection"] for _ in range(3)]
        assert client.ended()
        assert b"pong" == server.get("/")[2]


# New code.


def application(version: str) -> str:
    return (
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        f"    return [b'version {version}']\n"
    )


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """The file of an application that says "version one", last changed some time ago."""
    file = tmp_path / "changing_application.py"
    file.write_text(application("one"))
    os.utime(file, (time.time() - 100, time.time() - 100))
    return file


def reloading(module: Path, worker: str, *arguments: str) -> contextlib.AbstractContextManager[GunicornServer]:
    reload = ("--reload", "--reload-engine", "poll", "--pythonpath", f"{ROOT},{module.parent}")
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    app = "changing_application:application"
    return gunicorn_server(*KEEP, *reload, *arguments, app=app, worker=worker, environment=environment)


@pytest.mark.parametrize("worker", WORKERS)
def test_changed_code_is_loaded(worker: str, module: Path) -> None:
    with reloading(module, worker) as server:
        assert b"version one" == server.get("/")[2]
        time.sleep(0.2)  # the engine has looked at its files once
        module.write_text(application("two"))
        eventually(lambda: answers(server, b"version two"))
        assert 0 == server.stop()


@pytest.mark.parametrize("worker", WORKERS)
def test_broken_code_says_so_until_it_is_mended(worker: str, module: Path) -> None:
    module.write_text("this is no Python")
    with reloading(module, worker) as server:
        eventually(lambda: answers(server, b"SyntaxError"))
        time.sleep(0.2)
        module.write_text(application("three"))
        eventually(lambda: answers(server, b"version three"))
        assert 0 == server.stop()


@pytest.mark.parametrize("worker", WORKERS)
def test_another_changed_file_reloads_too(worker: str, module: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra"
    extra.touch()
    with reloading(module, worker, "--reload-extra-file", str(extra)) as server, server.client() as idle:
        assert b"version one" == idle.ask("/").body
        before = server.worker_pids()
        time.sleep(0.2)
        extra.write_text("changed")
        eventually(lambda: server.worker_pids() not in (before, []) and answers(server, b"version one"))
        assert idle.ended()


def answers(server: GunicornServer, part: bytes) -> bool:
    try:
        return part in server.get("/")[2]
    except (OSError, AssertionError):  # between two workers
        return False


# A new master.


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


class Visitor:
    """Asks again and again, each time on a new connection, and keeps what failed."""

    def __init__(self, server: GunicornServer) -> None:
        self.answers: list[dict[str, Any]] = []
        self.failures: list[BaseException] = []
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Visitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def masters(self, last: int) -> set[int]:
        """The masters of the workers that gave the last answers."""
        return {answer["parent"] for answer in self.answers[-last:]}

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            try:
                self.answers.append(json.loads(self._server.get("/pid")[2]))
            except (OSError, AssertionError) as error:
                self.failures.append(error)


@pytest.mark.parametrize("worker", WORKERS)
def test_usr2_hands_over_to_a_new_master_without_a_failed_request(worker: str, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with gunicorn_server(*KEEP, "--pid", str(pid_file), worker=worker) as server, Visitor(server) as visitor:
        server.signal(signal.SIGUSR2)
        second_file = tmp_path / "pid.2"
        eventually(lambda: second_file.exists() and second_file.read_text().strip(), within=20)
        second = int(second_file.read_text())
        eventually(lambda: len(server.loaded()) == 2, within=20)
        eventually(lambda: visitor.masters(100) == {server.pid, second})
        server.signal(signal.SIGWINCH)  # without --daemon it means nothing
        assert 0 == server.stop(signal.SIGTERM)
        eventually(lambda: pid_file.exists() and int(pid_file.read_text()) == second)
        count = len(visitor.answers)
        eventually(lambda: len(visitor.answers) >= count + 50)
        assert {second} == visitor.masters(20)
        assert [] == visitor.failures
        visitor.__exit__()
        os.kill(second, signal.SIGTERM)
        eventually(lambda: not alive(second), within=20)


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.together
def test_usr2_can_be_taken_back(worker: str) -> None:
    with gunicorn_server(*KEEP, worker=worker) as server, Visitor(server) as visitor:
        server.signal(signal.SIGUSR2)
        eventually(lambda: len(server.loaded()) == 2, within=20)
        eventually(lambda: len(visitor.masters(1000)) == 2)
        (second,) = visitor.masters(1000) - {server.pid}
        os.kill(second, signal.SIGTERM)
        eventually(lambda: not alive(second), within=20)
        count = len(visitor.answers)
        eventually(lambda: len(visitor.answers) >= count + 50)
        assert [] == visitor.failures
        assert {server.pid} == visitor.masters(20)
        visitor.__exit__()
        assert 0 == server.stop()


@pytest.mark.parametrize("worker", WORKERS)
def test_winch_empties_an_old_daemon_and_quit_ends_it(worker: str, tmp_path: Path) -> None:
    log, pid_file, config = tmp_path / "log", tmp_path / "pid", tmp_path / "gunicorn.conf.py"
    config.touch()
    script = str(Path(sys.executable).with_name("gunicorn"))
    command = [
        *(
            sys.executable,
            script,
            "--daemon",
            "--pythonpath",
            str(ROOT),
            "--no-control-socket",
            "--worker-class",
            worker,
            *KEEP,
        ),
        *("--bind", "127.0.0.1:0", "--pid", str(pid_file), "--error-logfile", str(log), "--config", str(config)),
        "tests.support.longconn_app:application",
    ]
    started: list[int] = []
    try:
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=30)
        eventually(lambda: log.exists() and "Booting worker" in log.read_text() and pid_file.exists())
        first = int(pid_file.read_text())
        started.append(first)
        port = int(re.search(r"Listening at: http://127.0.0.1:(\d+)", log.read_text())[1])  # type: ignore[index]
        server = GunicornServer(process=None, folder=tmp_path, port=port)  # type: ignore[arg-type]
        assert first == json.loads(server.get("/pid")[2])["parent"]
        os.kill(first, signal.SIGUSR2)
        eventually(lambda: (tmp_path / "pid.2").exists(), within=20)
        second = int((tmp_path / "pid.2").read_text())
        started.append(second)
        eventually(lambda: server.worker_pids(second), within=20)
        with Visitor(server) as visitor:
            eventually(lambda: visitor.masters(100) == {first, second})
            os.kill(first, signal.SIGWINCH)
            eventually(lambda: server.worker_pids(first) in ([second], []))
            eventually(lambda: visitor.masters(50) == {second})
            os.kill(first, signal.SIGQUIT)
            eventually(lambda: not alive(first))
            eventually(lambda: pid_file.exists() and int(pid_file.read_text()) == second)
            assert [] == visitor.failures
    finally:
        named = [int(file.read_text()) for file in tmp_path.glob("pid*") if file.read_text().strip()]
        for pid in {*started, *named}:
            for each in [*GunicornServer(process=None, folder=tmp_path).worker_pids(pid), pid]:  # type: ignore[arg-type]
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)


def test_both_sides_say_the_same_about_themselves() -> None:
    with both_workers(*KEEP) as both:

        def ask(server: GunicornServer) -> str:
            return str(server.get("/")[1]["Server"])

        assert "gunicorn" == both.same(ask)
