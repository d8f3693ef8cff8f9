"""A gunicorn of any worker class on a port of its own, and a client that sees every byte.

with gunicorn_server("--workers", "2", environment={"LONGCONN_HEAD_TIMEOUT": "1"}) as server:
    status, headers, body = server.get("/pid")
    with server.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        first, second = client.response(), client.response()
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import http.client
import io
import json
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.parser import BytesParser
from pathlib import Path
from signal import SIGKILL, SIGTERM
from types import TracebackType
from typing import Any

__all__ = ["PARKING", "Client", "Ended", "GunicornServer", "Reply", "StartFailed", "certificate", "gunicorn_server"]

ROOT = Path(__file__).resolve().parents[2]
PARKING = "longconn.worker.ParkingWorker"
START = 30.0
"""Seconds that a start may take, on a machine with other things to do."""

INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
INHERITED_PREFIXES = ("PYTHON", "COVERAGE", "LC_", "LD_")
"""What of this process's environment a server sees. Anything else might configure it."""

READY = '''

_theirs = globals().get("post_worker_init")


def post_worker_init(worker):
    """Do what the test's own hook does, then tell the test that this worker has its application, and where it listens."""
    if _theirs is not None:
        _theirs(worker)
    import json, os, pathlib

    names = [getattr(each, "sock", each).getsockname() for each in worker.sockets]
    partial = pathlib.Path({folder!r}) / f".{{os.getpid()}}"
    partial.write_text(json.dumps([name if isinstance(name, str) else name[:2] for name in names]))
    partial.rename(partial.with_name(str(os.getpid())))
'''


class StartFailed(AssertionError):
    """The server ended, or did not take connections in time. The message is what it wrote."""


class Ended(AssertionError):
    """The server ended the connection where bytes were expected. `data` is what came before."""

    def __init__(self, data: bytes) -> None:
        super().__init__(f"the connection ended after {data!r}")
        self.data = data


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, read to its end. `raw` is its head as it came; `body` is without the framing of chunks."""

    protocol: str
    status: int
    reason: str
    headers: http.client.HTTPMessage
    body: bytes
    raw: bytes

    @property
    def keeps(self) -> bool:
        """Whether the server says that the connection stays open."""
        return (self.headers.get("Connection") or "").lower() == "keep-alive"


class Client:
    """One connection, from which responses are read one by one and nothing more is taken than belongs to them.

    Every wait ends after `timeout` seconds with `TimeoutError`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def ask(self, target: str = "/", *fields: str, method: str = "GET", body: bytes = b"") -> Reply:
        """One request of HTTP/1.1 and the response to it. `fields` are whole lines, such as "Accept: a"."""
        length = [f"Content-Length: {len(body)}"] if body else []
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *length, *fields]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return self.response(method)

    def response(self, method: str = "GET") -> Reply:
        """The next response, one with a status of 1xx too. Raises `Ended` when the connection ends before it does."""
        raw = self.until(b"\r\n\r\n")
        status_line, _, fields = raw.partition(b"\r\n")
        protocol, _, rest = status_line.decode("latin-1").partition(" ")
        status, _, reason = rest.partition(" ")
        headers = BytesParser(_class=http.client.HTTPMessage).parse(io.BytesIO(fields), headersonly=True)
        code = int(status)
        bodyless = method == "HEAD" or code < 200 or code in (204, 304)
        body = b"" if bodyless else self._body(headers)
        return Reply(protocol, code, reason, headers, body, raw)

    def until(self, end: bytes) -> bytes:
        """All bytes up to `end`, which is the last of them."""
        while end not in self.buffer:
            self._receive()
        before, found, self.buffer = self.buffer.partition(end)
        return before + found

    def exactly(self, count: int) -> bytes:
        """The next `count` bytes."""
        while len(self.buffer) < count:
            self._receive()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def rest(self) -> bytes:
        """Everything until the server closes the connection, orderly or not."""
        with contextlib.suppress(Ended, ConnectionError):
            while True:
                self._receive()
        taken, self.buffer = self.buffer, b""
        return taken

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes for so long, not even the end."""
        pending = isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()
        return not (self.buffer or pending or select.select([self.socket], [], [], seconds)[0])

    def ended(self, within: float = 5.0) -> bool:
        """Whether the server closes the connection, orderly or not, within so many seconds and sends nothing before."""
        self.socket.settimeout(within)
        try:
            self._receive()
        except (Ended, ConnectionError):
            return not self.buffer
        except TimeoutError:
            return False
        return False

    def finish(self) -> None:
        """Say that no more is sent, and go on to receive."""
        with contextlib.suppress(OSError):  # the server has closed the connection already
            self.socket.shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        """Close the connection; `reset` throws away what is under way, as a process that is killed would."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def _body(self, headers: http.client.HTTPMessage) -> bytes:
        if (headers.get("Transfer-Encoding") or "").lower() == "chunked":
            return b"".join(iter(self._chunk, b""))
        if "Content-Length" in headers:
            return self.exactly(int(headers["Content-Length"]))
        return self.rest()

    def _chunk(self) -> bytes:
        size = int(self.until(b"\r\n"), 16)
        data = self.exactly(size)
        assert b"\r\n" == self.exactly(2)
        return data

    def _receive(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise Ended(self.buffer)
        self.buffer += data


@dataclass(slots=True)
class GunicornServer:
    """A server that is up. It listens at `host` and `port`, or at `path` when that is not empty."""

    process: subprocess.Popen[bytes]
    folder: Path
    host: str = "127.0.0.1"
    port: int = 0
    path: str = ""
    tls: bool = False
    addresses: list[str | list[Any]] = field(default_factory=list)
    """Everything that a worker listens at: a path, or a host and a port."""

    @property
    def pid(self) -> int:
        """The process id of the master that was started."""
        return self.process.pid

    def log(self) -> str:
        """All that it has written so far, to both streams."""
        return (self.folder / "log").read_text(errors="replace")

    def loaded(self) -> list[int]:
        """The process ids of all workers that have ever loaded their application, those of other masters too."""
        return sorted(int(file.name) for file in (self.folder / "ready").glob("[0-9]*"))

    def worker_pids(self, master: int | None = None) -> list[int]:
        """The process ids of the master's children, oldest first as far as ids tell."""
        pid = master or self.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        except FileNotFoundError:
            return []
        return sorted(int(each) for each in children.split())

    def connect(self, timeout: float = 5.0, source: str = "127.0.0.1", *, raw: bool = False) -> socket.socket:
        """A new connection, over TLS if the server speaks that and `raw` does not say otherwise.

        `source` is the address it comes from, one of 127.0.0.0/8. The certificate is not checked.
        """
        if self.path:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout)
            sock.connect(self.path)
            return sock
        ipv6 = ":" in self.host
        sock = socket.create_connection((self.host, self.port), timeout, None if ipv6 else (source, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.tls or raw:
            return sock
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context.wrap_socket(sock)

    def client(self, timeout: float = 5.0, source: str = "127.0.0.1") -> Client:
        """A new connection from which responses can be read."""
        return Client(self.connect(timeout, source))

    def get(
        self, path: str = "/", headers: Iterable[tuple[str, str]] = ()
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """GET on a connection of its own, in up to 30 s: status, headers, body."""
        with self.client(30.0) as client:
            reply = client.ask(path, *(f"{name}: {value}" for name, value in headers))
        return reply.status, reply.headers, reply.body

    def signal(self, number: int) -> None:
        """Send a signal to the master."""
        self.process.send_signal(number)

    def stop(self, signal: int = SIGTERM, within: float = 15.0) -> int:
        """Ask the server to end, wait until it has, and return its exit status.

        Raises `subprocess.TimeoutExpired` when it takes longer than `within` seconds.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal)
        return self.process.wait(within)

    def close(self) -> None:
        """Leave nothing running, and nothing on disk."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, SIGKILL)
        self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def gunicorn_server(
    *arguments: str,
    app: str = "tests.support.longconn_app:application",
    worker: str = PARKING,
    workers: int = 1,
    environment: Mapping[str, str] | None = None,
    config: str = "",
    unix: bool = False,
    tls: bool = False,
) -> Iterator[GunicornServer]:
    """A gunicorn whose workers have all loaded their application and of which one has taken a connection.

    `arguments` are gunicorn's; "--bind" among them, a word of its own, replaces what this function chooses. `config`
    is the text of a configuration file. The server ends when the block does, with all it has started. That it is ready
    is seen by a connection which is closed without a byte, so no request has been counted or logged.

    Raises `StartFailed`.
    """
    folder = Path(tempfile.mkdtemp(prefix="lc-"))
    (folder / "ready").mkdir()
    folder.chmod(0o755)
    (folder / "ready").chmod(0o777)  # for workers of another user
    configuration = folder / "gunicorn.conf.py"
    configuration.write_text(config + READY.format(folder=str(folder / "ready")))
    bound = () if "--bind" in arguments else ("--bind", f"unix:{folder}/socket" if unix else "127.0.0.1:0")
    secured = (
        [f"--{name}={path}" for name, path in zip(("certfile", "keyfile"), certificate(), strict=True)] if tls else []
    )
    command = [
        # Not "-m gunicorn": the new master of a USR2 would be started by gunicorn/__main__.py and find gunicorn's own `http`.
        *(sys.executable, str(Path(sys.executable).with_name("gunicorn")), "--config", str(configuration)),
        *("--no-control-socket", "--pythonpath", str(ROOT)),
        *("--worker-class", worker, "--workers", str(workers)),
        *(*bound, *secured, *arguments, app),
    ]
    variables = {
        name: value for name, value in os.environ.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**variables, **(environment or {})},
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    server = GunicornServer(process, folder, tls=tls)
    try:
        _wait_until_ready(server, workers)
        yield server
    finally:
        server.close()


@functools.cache
def certificate() -> tuple[str, str]:
    """Paths of a self-signed certificate of localhost and of its key, made once for all tests of this process.

    Raises `FileNotFoundError` where there is no openssl.
    """
    folder = Path(tempfile.mkdtemp(prefix="lc-tls-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paths = str(folder / "certificate.pem"), str(folder / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", paths[0], "-keyout", paths[1]),
        ],
        check=True,
        capture_output=True,
    )
    return paths


def _wait_until_ready(server: GunicornServer, workers: int) -> None:
    deadline = time.monotonic() + START
    while not (len(server.loaded()) >= workers and _find_address(server) and _takes_connections(server)):
        if server.process.poll() is not None or time.monotonic() >= deadline:
            raise StartFailed(server.log())
        time.sleep(0.02)


def _find_address(server: GunicornServer) -> bool:
    server.addresses = json.loads((server.folder / "ready" / str(server.loaded()[0])).read_text())
    first = server.addresses[0]
    if isinstance(first, str):
        server.path = first
    else:
        server.host, server.port = first
    return True


def _takes_connections(server: GunicornServer) -> bool:
    try:
        with Client(server.connect(1.0, raw=True)) as client:
            client.finish()
            client.rest()
    except OSError:
        return False
    return True
