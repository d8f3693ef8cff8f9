"""The real service under the real gunicorn, on free ports with a database of its own.

with running_service(tmp_path, web_concurrency=2) as service:
    answer = service.get("/livez")
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longconn.channels import places
from service.data.database import open_database
from service.data.migrate import migrate
from service.data.users import SqlUserRepository
from service.security.tokens import TokenSigner
from tests.support.database import settings_for

__all__ = [
    "ADMIN_TOKEN",
    "PROBE",
    "Answer",
    "RunningService",
    "StartFailed",
    "administrator",
    "ask",
    "eventually",
    "running_service",
    "start_service",
    "wait_until_ready",
]

ROOT = Path(__file__).resolve().parents[2]
PROBE = "tests.support.probe:app"
ADMIN_TOKEN = "testing-only-token-of-the-administrator"
TOKEN_SECRET = "testing-only-secret-of-the-running-service"
START = 20.0
"""Seconds that a start may take, on a machine with other things to do."""

INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
INHERITED_PREFIXES = ("PYTHON", "COVERAGE", "LC_", "LD_")
"""What of this process's environment a service sees. Anything else might configure it."""


class StartFailed(AssertionError):
    """The service ended before it was ready. The message is what it wrote."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(slots=True)
class RunningService:
    """A service that is up. `log` is everything it writes."""

    process: subprocess.Popen[bytes]
    port: int
    admin_port: int
    log: Path
    database: Path
    probe: Path
    runtime: Path
    _reserved: list[socket.socket] = field(default_factory=list)
    _connections: list[http.client.HTTPConnection] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        """Where the admin surface is."""
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def pid(self) -> int:
        """The master's process id."""
        return self.process.pid

    @property
    def workers(self) -> list[int]:
        """The workers' process ids."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii")
        return sorted(int(pid) for pid in children.split())

    def connect(self, *, admin: bool = False, timeout: float = 10.0) -> http.client.HTTPConnection:
        """A keep-alive connection. It is closed when the service is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port if admin else self.port, timeout=timeout)
        self._connections.append(connection)
        return connection

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        admin: bool = False,
        timeout: float = 10.0,
    ) -> Answer:
        """One request on a connection of its own."""
        with contextlib.closing(self.connect(admin=admin, timeout=timeout)) as connection:
            return ask(connection, method, path, body, headers)

    def get(self, path: str, headers: Mapping[str, str] | None = None, *, admin: bool = False) -> Answer:
        """GET on a connection of its own."""
        return self.request("GET", path, headers=headers, admin=admin)

    def post_json(self, path: str, value: object, headers: Mapping[str, str] | None = None, **options: Any) -> Answer:
        """POST a value as JSON on a connection of its own."""
        fields = {"Content-Type": "application/json", **(headers or {})}
        return self.request("POST", path, json.dumps(value), fields, **options)

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """The log lines that are JSON, all of them or those of one event."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [each for each in found if isinstance(each, dict) and event in (None, each.get("event"))]

    def largest_gaps(self) -> dict[int, float]:
        """Seconds that each worker's event loop stood still at most, since `watch_loops`."""
        epoch = (self.probe / "epoch").read_text()
        reports = {int(file.stem): json.loads(file.read_text()) for file in self.probe.glob("*.json")}
        return {pid: report["largest_gap"] for pid, report in reports.items() if report["epoch"] == epoch}

    def watch_loops(self) -> None:
        """Begin to record gaps, in every worker."""
        (self.probe / "epoch").write_text(str(time.monotonic()))
        eventually(lambda: set(self.workers) <= self.largest_gaps().keys())

    def signal(self, number: int) -> None:
        """Send a signal to the master."""
        self.process.send_signal(number)

    def stop(self, timeout: float = 30.0) -> int:
        """Ask the service to end, wait until it has, and return its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout)

    def close(self) -> None:
        """Leave nothing running."""
        for connection in self._connections:
            connection.close()
        for reserved in self._reserved:
            reserved.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)
        shutil.rmtree(self.runtime, ignore_errors=True)
        shutil.rmtree(
            places.folder(f"seawall-{self.port}"), ignore_errors=True
        )  # what channels keep outlives the service


@contextlib.contextmanager
def running_service(
    tmp_path: Path, *, app: Any = "service.wsgi:app", stdout: Any = None, **environment: Any
) -> Iterator[RunningService]:
    """A service that is ready, with `environment` (names in any case) on top of what tests need.

    It writes to the descriptor `stdout` if there is one, and to its log otherwise. GUNICORN_CMD_ARGS may
    name {port} and {admin_port}.

    It ends when the block does, with whatever it has started. Raises `StartFailed` when it does not become ready.
    """
    service = start_service(tmp_path, app=app, stdout=stdout, **environment)
    try:
        wait_until_ready(service)
        yield service
    finally:
        service.close()


def start_service(
    tmp_path: Path, *, app: Any = "service.wsgi:app", stdout: Any = None, **environment: Any
) -> RunningService:
    """A service that has just been started. The caller closes it."""
    reserved = _reserve_ports(2)
    port, admin_port = (each.getsockname()[1] for each in reserved)
    database, log, probe = tmp_path / "service.db", tmp_path / "service.log", tmp_path / "probe"
    probe.mkdir(exist_ok=True)
    migrate(f"sqlite:///{database}")
    inherited = {
        name: value for name, value in os.environ.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }
    # Not below tmp_path, which may be too long for the address of a socket.
    runtime = tempfile.mkdtemp(prefix="run-")
    variables = {
        "SEAWALL_ENVIRONMENT": "testing",
        "DATABASE_URL": f"sqlite:///{database}",
        "PORT": port,
        "ADMIN_PORT": admin_port,
        "WEB_CONCURRENCY": 1,
        "RESILIENCE_ADMIN_TOKEN": ADMIN_TOKEN,
        "TOKEN_SECRET": TOKEN_SECRET,
        "PROBE_DIRECTORY": probe,
        "XDG_RUNTIME_DIR": runtime,
        **{name.upper(): value for name, value in environment.items()},
    }
    arguments = str(variables.get("GUNICORN_CMD_ARGS", ""))
    variables["GUNICORN_CMD_ARGS"] = arguments.format(port=port, admin_port=admin_port)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", app],
            cwd=ROOT,
            env={**inherited, **{name: str(value) for name, value in variables.items()}},
            stdout=output if stdout is None else stdout,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return RunningService(process, port, admin_port, log, database, probe, Path(runtime), reserved)


def wait_until_ready(service: RunningService) -> None:
    """Return when the service takes requests. Raises `StartFailed`."""
    deadline = time.monotonic() + START
    while not _is_ready(service):
        if service.process.poll() is not None or time.monotonic() >= deadline:
            raise StartFailed(service.log.read_text(errors="replace"))
        time.sleep(0.02)


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on a connection that stays open."""
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())


def eventually(condition: Callable[[], object], *, within: float = 10.0) -> None:
    """Return when `condition` holds. Fails when that takes longer than `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.01)


def administrator(service: RunningService) -> dict[str, str]:
    """Add an administrator to the service's database and return the field that makes a request theirs."""
    with contextlib.closing(open_database(settings_for(f"sqlite:///{service.database}"))) as database:
        user = SqlUserRepository(database).add(
            name="root", email="root@example.org", role="admin", password_hash="not one that any password has"
        )
    token, _ = TokenSigner(TOKEN_SECRET, lifetime=3600).issue(user)
    return {"Authorization": f"Bearer {token}"}


def _is_ready(service: RunningService) -> bool:
    try:
        return service.request("GET", "/readyz", timeout=1.0).status == 200
    except OSError:
        return False


def _reserve_ports(count: int) -> list[socket.socket]:
    """Sockets that hold a port each for the service: nobody else gets it, also not for a connection of their own."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gunicorn's, which lets both bind
        each.bind(("127.0.0.1", 0))
    return sockets
