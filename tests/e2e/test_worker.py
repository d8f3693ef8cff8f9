"""The worker under the real gunicorn: how it starts, keeps requests apart, and stops."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import http.client
import json
import os
import resource
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

from tests.support.gunicorn import (
    PROBE,
    Answer,
    RunningService,
    StartFailed,
    ask,
    eventually,
    running_service,
)

T = TypeVar("T")

QUEUED = 250
"""More than a worker accepts in one turn of its loop."""


class InBackground(Generic[T]):
    """Something that is under way. `result` waits for it."""

    def __init__(self, action: Callable[[], T]) -> None:
        self._action = action
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def result(self) -> T:
        self._thread.join(30)
        if self._error is not None:
            raise self._error
        (result,) = self._results
        return result

    def _run(self) -> None:
        try:
            self._results.append(self._action())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            self._error = error


def slow_request(service: RunningService, seconds: float) -> InBackground[Answer]:
    """A request that takes this long and has reached its view."""
    request = InBackground(lambda: service.get(f"/probe/slow?seconds={seconds}"))
    eventually(lambda: service.get("/probe/in_flight").json["in_flight"] >= 1)
    return request


def wait_for_workers(service: RunningService, count: int) -> None:
    """Return when that many workers answer."""
    answering: set[int] = set()

    def all_answer() -> bool:
        answering.add(service.get("/probe/in_flight").json["pid"])
        return count == len(service.workers) and set(service.workers) <= answering

    eventually(all_answer)


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def seconds_of(action: Callable[[], Any]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(tmp_path_factory.mktemp("probed"), app=PROBE) as service:
        yield service


def test_a_request_sees_nothing_of_the_one_before_it_on_its_connection(probed: RunningService) -> None:
    connection = probed.connect()
    answers = [ask(connection, "GET", "/probe/context").json for _ in range(3)]
    assert ["nothing"] * 3 == [answer["left"] for answer in answers]
    assert [["request_id", "trace_id"]] * 3 == [answer["bound"] for answer in answers]


def test_a_crash_of_a_greenlet_is_one_line_of_the_log(probed: RunningService) -> None:
    probed.get("/probe/crash")
    eventually(lambda: probed.events("greenlet crashed"))
    assert "ZeroDivisionError" in probed.events("greenlet crashed")[0]["exception"]


def test_everything_that_is_written_is_a_line_of_json(probed: RunningService) -> None:
    probed.get("/livez")
    lines = probed.log.read_text().splitlines()
    assert len(lines) == len(probed.events())
    assert any(event["event"].startswith("Listening at") for event in probed.events())


def test_idle_connections_do_not_hold_up_a_stop(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        idle = service.connect()
        assert 200 == ask(idle, "GET", "/livez").status
        assert seconds_of(service.stop) < 2
        assert 0 == service.process.returncode


def test_connections_that_never_sent_anything_do_not_hold_up_a_stop(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        silent = socket.create_connection(("127.0.0.1", service.port))
        service.get("/livez")  # accepted later, so the silent one has been accepted too
        assert seconds_of(service.stop) < 2
        silent.close()


def test_a_request_in_flight_is_answered_during_a_stop(tmp_path: Path) -> None:
    with running_service(tmp_path, app=PROBE) as service:
        request = slow_request(service, 1.5)
        service.process.terminate()
        answer = request.result()
        assert (200, "close") == (answer.status, answer.headers["Connection"])
        assert 0 == service.stop()


def test_a_stream_in_flight_is_sent_to_its_end_during_a_stop(tmp_path: Path) -> None:
    with running_service(tmp_path, app=PROBE) as service:
        connection = service.connect()
        connection.request("GET", "/probe/stream?pause=0.1&count=10")
        response = connection.getresponse()
        assert b"x" == response.read(1)
        service.process.terminate()
        assert b"x" * 9 == response.read()
        assert 0 == service.stop()


def test_a_request_whose_head_is_arriving_during_a_stop_is_answered(tmp_path: Path) -> None:
    with running_service(tmp_path, app=PROBE) as service:
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
            request = slow_request(service, 2.0)  # by now the first half has been read
            service.process.terminate()
            eventually(lambda: refuses_connections(service.port))
            time.sleep(1.0)
            client.sendall(b"\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
        assert 200 == request.result().status
        assert 0 == service.stop()


def test_requests_that_were_queued_when_the_listener_closed_are_answered(tmp_path: Path) -> None:
    with running_service(tmp_path) as service, contextlib.ExitStack() as stack:
        (worker,) = service.workers
        os.kill(worker, signal.SIGSTOP)
        clients = []
        for _ in range(QUEUED):  # the kernel completes the connections, the worker does not run
            client = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10))
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            clients.append(client)
        service.process.terminate()
        eventually(lambda: service.events("Handling signal: term"))
        time.sleep(0.2)  # now the worker has been told, and the master has closed its listeners
        os.kill(worker, signal.SIGCONT)
        assert [b"HTTP/1.1 200"] * QUEUED == [client.recv(12, socket.MSG_WAITALL) for client in clients]
        assert 0 == service.stop()


def test_readiness_turns_at_once_while_the_listener_goes_on_for_the_delay(tmp_path: Path) -> None:
    with running_service(tmp_path, app=PROBE, drain_delay=1.0) as service:
        request = slow_request(service, 2.5)
        connection = service.connect()
        assert 200 == ask(connection, "GET", "/readyz").status
        started = time.monotonic()
        service.process.terminate()
        eventually(lambda: service.get("/readyz").status == 503, within=0.5)
        assert {"status": "draining"} == service.get("/readyz").json
        assert 200 == service.get("/livez").status
        assert 200 == service.post_json("/probe/echo", {"still": "served"}).status
        eventually(lambda: refuses_connections(service.port))
        assert 0.9 < time.monotonic() - started < 2.0
        assert 200 == service.get("/livez", admin=True).status
        assert 503 == service.get("/readyz", admin=True).status
        assert 200 == request.result().status
        assert 0 == service.stop()


def test_of_several_workers_every_one_goes_on_for_the_delay(tmp_path: Path) -> None:
    with running_service(tmp_path, app=PROBE, web_concurrency=3, drain_delay=1.5) as service:
        wait_for_workers(service, 3)
        workers = service.workers
        service.process.terminate()
        eventually(lambda: service.get("/readyz").status == 503, within=1.0)
        time.sleep(0.7)
        assert {503} == {service.get("/readyz").status for _ in range(30)}
        assert workers == service.workers
        assert 0 == service.stop()


def test_what_does_not_finish_in_time_is_cut_and_told_if_it_can_be(tmp_path: Path) -> None:
    with running_service(tmp_path, app=PROBE, graceful_timeout=2) as service:
        stream = InBackground(lambda: service.get("/probe/stream?pause=0.5&count=40"))
        request = slow_request(service, 20)
        assert seconds_of(service.stop) < 4
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            stream.result()
        answer = request.result()
        assert (503, 20009, "1") == (answer.status, answer.json["code"], answer.headers["Retry-After"])
        assert any("cuts 2 connections" in event["event"] for event in service.events())


def test_a_quick_stop_does_not_wait(tmp_path: Path) -> None:
    with running_service(tmp_path, app=PROBE) as service:
        slow_request(service, 5)
        service.signal(signal.SIGINT)
        assert seconds_of(lambda: service.process.wait(10)) < 3


def test_a_worker_that_is_told_to_stop_is_replaced_and_no_request_is_lost(tmp_path: Path) -> None:
    with running_service(tmp_path, app=PROBE, web_concurrency=2) as service:
        wait_for_workers(service, 2)
        before = service.workers
        done = threading.Event()

        def statuses() -> set[int]:
            found = set()
            while not done.is_set():
                found.add(service.get("/livez").status)
            return found

        clients = [InBackground(statuses) for _ in range(4)]
        os.kill(before[0], signal.SIGTERM)
        eventually(lambda: before[0] not in service.workers and len(service.workers) == 2)
        wait_for_workers(service, 2)
        done.set()
        assert [{200}] * 4 == [client.result() for client in clients]
        assert before[1] in service.workers


def test_a_reload_replaces_the_workers_without_turning_readiness(tmp_path: Path) -> None:
    with running_service(tmp_path, app=PROBE, drain_delay=2.0) as service:
        before = service.workers
        request = slow_request(service, 2.0)
        service.signal(signal.SIGHUP)
        eventually(lambda: set(service.workers) - set(before))
        seen = {service.get("/readyz", admin=admin).status for _ in range(100) for admin in (False, True)}
        assert {200} == seen
        assert before[0] == request.result().json["pid"]
        eventually(lambda: before[0] not in service.workers)
        assert 0 == service.stop()


def test_a_worker_that_has_served_its_number_is_replaced_at_once_without_losing_a_request(tmp_path: Path) -> None:
    options = {"max_requests": 20, "max_requests_jitter": 0, "drain_delay": 15, "graceful_timeout": 20}
    with running_service(tmp_path, app=PROBE, **options) as service:
        before = service.workers
        statuses = {service.get("/readyz").status for _ in range(60)}
        assert {200} == statuses
        eventually(lambda: not set(before) & set(service.workers))


def test_workers_that_have_lost_their_master_finish_and_end(tmp_path: Path) -> None:
    with running_service(tmp_path, app=PROBE) as service:
        (worker,) = service.workers
        request = slow_request(service, 2.0)
        os.kill(service.pid, signal.SIGKILL)
        assert 200 == request.result().status
        eventually(lambda: not Path(f"/proc/{worker}").exists())


def test_workers_that_lose_their_master_during_a_long_delay_do_not_wait_for_its_end(tmp_path: Path) -> None:
    with running_service(tmp_path, app=PROBE, drain_delay=3600) as service:
        (worker,) = service.workers
        service.process.terminate()
        eventually(lambda: service.get("/readyz").status == 503)
        os.kill(service.pid, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{worker}").exists(), within=5)


def test_a_log_that_nobody_reads_holds_up_neither_requests_nor_the_stop(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with running_service(tmp_path, app=PROBE, stdout=writing, log_level="debug") as service:
        os.close(writing)
        connection = service.connect(timeout=3)
        assert [404] * 300 == [ask(connection, "GET", "/nothing").status for _ in range(300)]
        assert seconds_of(service.stop) < 6
        assert 0 == service.process.returncode
    os.close(reading)


def test_lines_that_found_no_reader_are_counted_once_there_is_one(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with running_service(tmp_path, stdout=writing, rate_limit_burst=10_000) as service:
        os.close(writing)
        connection = service.connect(timeout=3)
        for _ in range(5000):
            ask(connection, "GET", "/nothing")
        written = InBackground(lambda: b"".join(iter(functools.partial(os.read, reading, 65536), b"")))
        eventually(lambda: service.get("/livez").status == 200)
        assert 0 == service.stop()
        events = [json.loads(line) for line in written.result().splitlines()]
        dropped = sum(event["dropped"] for event in events if event["event"].startswith("log lines dropped"))
        requests = sum(event["event"] == "request" for event in events)
        assert dropped > 0
        assert 5000 == requests + dropped
    os.close(reading)


def test_folders_of_masters_that_were_killed_are_removed_at_the_next_start(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="run-") as runtime:
        with running_service(tmp_path, xdg_runtime_dir=runtime) as killed:
            pass
        assert [f"seawall-{os.geteuid()}-{killed.pid}"] == [folder.name for folder in Path(runtime).iterdir()]
        with running_service(tmp_path, xdg_runtime_dir=runtime) as service:
            assert [f"seawall-{os.geteuid()}-{service.pid}"] == [folder.name for folder in Path(runtime).iterdir()]


@pytest.mark.alone  # its folder has the longest name that still fits
def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with running_service(tmp_path, xdg_runtime_dir=tmp_path) as service:
        (folder,) = tmp_path.glob(f"seawall-*-{service.pid}")
        assert 0o700 == folder.stat().st_mode & 0o777
        assert {str(pid) for pid in service.workers} == {file.name.partition(".")[0] for file in folder.iterdir()}
        service.stop()
        assert not folder.exists()


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("port", "http", "port (environment variable PORT)"),
        ("rate_limit", "often", "rate_limit (environment variable RATE_LIMIT)"),
        ("middleware_off", "rate_limit,nonsense", "middleware_off: no middleware is named nonsense"),
        ("token_secret", "too-short-to-sign", "token_secret (environment variable TOKEN_SECRET)"),
        ("keepalive", "soon", "environment variable KEEPALIVE must be a whole number"),
        ("longconn_write_timeout", "soon", "LONGCONN_WRITE_TIMEOUT='soon': takes seconds from"),
        ("longconn_wriet_timeout", "3", "LONGCONN_WRIET_TIMEOUT: there is no such setting"),
        ("longconn_reserved_listeners", "127.0.0.1:1", "LONGCONN_RESERVED_LISTENERS must not be set"),
        ("peer_directory", "/proc/1", "/proc/1 must be a folder of this user's"),
        (
            "resilience_storage_uri",
            "ftp://too-short-to-sign",
            "resilience_storage_uri (environment variable RESILIENCE_STORAGE_URI): must be",
        ),
        (  # which only the application finds out, in the worker
            "resilience_storage_uri",
            "redis://user:too-short-to-sign@host/0?socket_timeout=long",
            "seawall does not start: resilience_storage_uri: must be",
        ),
    ],
)
def test_a_bad_setting_stops_the_start_with_its_name_and_without_a_stack(
    tmp_path: Path, variable: str, value: str, named: str
) -> None:
    with pytest.raises(StartFailed) as failure, running_service(tmp_path, **{variable: value}):
        pass
    assert named in str(failure.value)
    assert "Traceback" not in str(failure.value)
    assert "too-short-to-sign" not in str(failure.value)


@pytest.mark.parametrize(
    ("setting", "good", "bad"),
    [
        ("token_secret", "testing-only-secret-of-more-than-32-bytes", "short"),
        ("rate_limit", "100/second", "1/second;2/second"),
        ("rate_limit", "100/second", "99999999999999999999/second"),
        ("rate_limit_burst", "400", "99999999999999999999"),
        ("login_rate_limit", "10/minute", "1/minute;2/minute"),
        ("resilience_storage_uri", "memory://", "ftp://127.0.0.1"),
        ("resilience_storage_uri", "memory://", "redis://127.0.0.1:notaport/0"),
        ("database_url", "", "postgresql://user@host:notaport/name"),
        ("backends", '{"demo": "http://127.0.0.1:9"}', '{"demo": "http://127.0.0.1:notaport"}'),
    ],
)
def test_a_reload_with_a_bad_configuration_keeps_the_service_as_it_is(
    tmp_path: Path, setting: str, good: str, bad: str
) -> None:
    file = tmp_path / "setting"
    file.write_text(good or f"sqlite:///{tmp_path / 'service.db'}")
    with running_service(tmp_path, **{f"{setting}_file": file}) as service:
        before = service.workers
        file.write_text(bad)
        service.signal(signal.SIGHUP)
        eventually(lambda: service.events("configuration not reloaded, the previous one stays"))
        eventually(lambda: service.workers and not set(before) & set(service.workers))
        eventually(lambda: service.get("/readyz").status == 200)
        assert service.process.poll() is None


def test_the_limit_of_open_files_is_raised(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        with running_service(tmp_path) as service:
            assert (hard, hard) == resource.prlimit(service.workers[0], resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
