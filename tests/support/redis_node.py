"""One private Redis-compatible process of a group: of a Sentinel set-up, or of a Cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = ["RedisNode", "free_port", "start_together", "wait_until"]

_NO_DELAYS = (
    # With the default of 5 s a replica starts to copy that much later, and a primary killed before it loses everything.
    ("--repl-diskless-sync-delay", "0"),
    ("--repl-ping-replica-period", "1"),
    ("--repl-timeout", "5"),
    ("--save", ""),
    ("--appendonly", "no"),
    ("--bind", "127.0.0.1"),
    # A replica that was asked for by one of many test processes must not be thrown out by a slow machine.
    ("--client-output-buffer-limit", "replica 0 0 0"),
)


class RedisNode:
    """A server on a loopback port of its own. Killed, it can be started again on the same port, empty."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program = program
        self._folder = folder
        self.port = free_port()
        self._command: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None

    def __repr__(self) -> str:
        return f"<RedisNode {self.port}: {'running' if self.running else 'ended'}>"

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id, for signals."""
        assert self._process is not None
        return self._process.pid

    @property
    def client(self) -> redis.Redis:
        """A client of this node alone, for the test's own questions."""
        if self._client is None:
            # No retries, and patience for a machine that stands still.
            self._client = redis.Redis(
                host="127.0.0.1", port=self.port, socket_timeout=5, decode_responses=True, retry=Retry(NoBackoff(), 0)
            )
        return self._client

    def command(self, *words: str | int) -> Any:
        """The answer to a command."""
        client: Any = self.client
        return client.execute_command(*words)

    def start_server(self, options: Sequence[tuple[str, str]] = ()) -> None:
        """Start as a server with these options. `start_together` waits until it answers."""
        folder = self._folder / str(self.port)
        folder.mkdir(exist_ok=True)
        settings = [("--port", str(self.port)), ("--dir", str(folder)), *_NO_DELAYS, *options]
        self._start([self.program, *(word for setting in settings for word in setting)])

    def start_sentinel(self, settings: str) -> None:
        """Start as a sentinel. It rewrites its configuration, so the file is its own."""
        configuration = self._folder / f"{self.port}.conf"
        configuration.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {self._folder}\n{settings}")
        self._start([self.program, str(configuration), "--sentinel"])

    def start_again(self) -> None:
        """Start as it was started last."""
        self._start(self._command)

    def _start(self, command: list[str]) -> None:
        self._command = command
        with (self._folder / f"{self.port}.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def answers(self) -> bool:
        """Whether it takes commands. Raises `RuntimeError` with the log's end when it has ended instead."""
        if not self.running:
            log = (self._folder / f"{self.port}.log").read_text(errors="replace")
            raise RuntimeError(f"{self.program} on port {self.port} ended: {log[-2000:]}")
        with contextlib.suppress(redis.RedisError, OSError):
            return bool(self.client.ping())
        return False

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._client is not None:
            self._client.close()
        if self._process is not None:
            if self._process.poll() is None:
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=10)

    def replication(self) -> dict[str, Any]:
        """INFO replication; empty while it does not answer."""
        with contextlib.suppress(redis.RedisError, OSError):
            return dict(self.client.info("replication"))
        return {}

    def follows(self, primary: RedisNode) -> bool:
        """Whether it is a replica of `primary` that has copied everything."""
        state = self.replication()
        return (
            state.get("role") == "slave"
            and state.get("master_port") == primary.port
            and state.get("master_link_status") == "up"
        )

    def wait_until_copied(self, replicas: Sequence[RedisNode]) -> None:
        """Return when one of `replicas` has everything that was written here until now."""
        written = self.replication()["master_repl_offset"]
        wait_until(
            lambda: any(node.follows(self) and node.replication()["slave_repl_offset"] >= written for node in replicas),
            f"a replica has what {self} has",
        )


def start_together(nodes: Sequence[RedisNode]) -> None:
    """Return when all of them answer."""
    for node in nodes:
        wait_until(node.answers, f"{node} answers")


def wait_until(condition: Callable[[], bool], what: str, *, within: float = 20.0) -> None:
    """Return when `condition` holds. Raises `TimeoutError` saying `what` did not come about."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise TimeoutError(f"not within {within:g} s: {what}")


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to outgoing connections."""
    for _ in range(200):
        port = 10_000 + int.from_bytes(os.urandom(2), "big") % 20_000
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port between 10000 and 30000")
