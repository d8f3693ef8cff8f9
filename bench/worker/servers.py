"""A contender that runs: started on a free port, asked until it answers, ended with all its workers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.worker.contenders import Contender
from bench.worker.equipment import ROOT
from bench.worker.processes import children, processor_time, resident, stop
from tests.support.launched import free_ports

__all__ = ["Server", "StartFailed", "serving"]

START = 30.0
"""Seconds that a start may take."""

TRIES = 3
PORT_TAKEN = re.compile(r"in use|can't connect to", re.IGNORECASE)
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR")


class StartFailed(RuntimeError):
    """A server did not answer. The message is the end of what it wrote."""


class Server:
    """A server that is up."""

    def __init__(self, contender: Contender, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.contender = contender
        self.process = process
        self.port = port
        self._log = log

    @property
    def url(self) -> str:
        """Where its pong is."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def workers(self) -> list[int]:
        """The processes that serve."""
        return children(self.process.pid) if self.contender.workers_fork else [self.process.pid]

    @property
    def processes(self) -> list[int]:
        """Everything of it that takes memory."""
        return sorted({self.process.pid, *children(self.process.pid), *self.workers})

    def get(self, path: str, *, timeout: float = 30.0) -> bytes:
        """The body of an answer of 200, on a connection of its own. Raises OSError or RuntimeError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{self.contender.name} answered {path} with {answer.status}: {body[:200]!r}")
            return body
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """An answer's JSON."""
        return json.loads(self.get(path, timeout=60.0))

    def resident_after_collection(self) -> int:
        """Bytes that its one worker has in use once its garbage is collected."""
        pid = int(self.get("/pid"))
        self.json("/collect")
        return resident(pid)

    def processor_time(self) -> float:
        """Seconds of processor time that it has taken so far."""
        return processor_time(self.processes)

    def complaints(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-2_000:]


@contextlib.contextmanager
def serving(contender: Contender, *, workers: int = 1, variables: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start a contender; it is ended with the block. Raises StartFailed."""
    if contender.missing:
        raise StartFailed(contender.missing)
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as folder, contextlib.ExitStack() as stack:
        server = _up(contender, Path(folder) / "log", workers, variables or {})
        stack.callback(stop, server.process)
        yield server


def _up(contender: Contender, log: Path, workers: int, variables: Mapping[str, str]) -> Server:
    """A server that answers: on another port when somebody was faster to take the first."""
    for left in reversed(range(TRIES)):
        server = _start(contender, log, workers, variables)
        try:
            _wait(server, workers)
        except StartFailed:
            stop(server.process)
            if not left or not PORT_TAKEN.search(server.complaints()):
                raise
        except BaseException:
            stop(server.process)
            raise
        else:
            return server
    raise AssertionError("unreachable: the last try returns or raises")


def _start(contender: Contender, log: Path, workers: int, variables: Mapping[str, str]) -> Server:
    port = free_ports(1)[0]
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    with log.open("wb") as output:
        process = subprocess.Popen(
            contender.command(port, workers),
            cwd=log.parent,  # not the checkout: gunicorn would read the service's gunicorn.conf.py
            env={**environment, "PYTHONPATH": str(ROOT), **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a group of its own, so that all of it can be ended
        )
    return Server(contender, process, port, log)


def _wait(server: Server, workers: int) -> None:
    deadline = time.monotonic() + START
    while True:
        with contextlib.suppress(OSError, RuntimeError, http.client.HTTPException):
            if server.get("/", timeout=2.0) == b"pong" and len(server.workers) >= min(workers, 1):
                break
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise StartFailed(f"it did not start: {_last_line(server.complaints())}")
        time.sleep(0.1)
    while server.contender.workers_fork and len(server.workers) < workers and time.monotonic() < deadline:
        time.sleep(0.1)
    if workers > 1:
        time.sleep(2.0)  # one has answered: the others are about to


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it wrote nothing"
