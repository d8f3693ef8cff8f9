"""A worker of a small application, in a process of its own, on whatever host it is told to be.

As a module: `HostWorker` is one. As a program: the arguments are the address of the state, the address of the buckets, and the
peer directory ("" for none); it answers each line, a request as JSON, by one line: status and body.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and "patched" in sys.argv[4:]:
    from gevent import monkey

    monkey.patch_all()

# In a process that is patched everything below is imported patched.
import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.untraced import without_coverage

__all__ = ["TOKEN", "HostWorker", "Said", "host_worker"]

TOKEN = "testing-only-token-of-the-administrator"


class Said(NamedTuple):
    """A response."""

    status: int
    body: Any


class HostWorker:
    """One process, ready to be asked."""

    def __init__(
        self, host: str, state: str, *, buckets: str = "memory://", directory: Path | None = None, patched: bool = False
    ) -> None:
        self.host = host
        folder = "" if directory is None else str(directory)
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-m",
                "tests.support.host_worker",
                state,
                buckets,
                folder,
                *["patched"] * patched,
            ],
            cwd=Path(__file__).parents[2],
            env=without_coverage() | {"RESILIENCE_HOST": host},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert "ready\n" == self._read()

    @property
    def worker(self) -> dict[str, Any]:
        """As JSON names it."""
        return {"host": self.host, "pid": self.process.pid}

    def get(self, path: str) -> Said:
        """GET with the administrator's token."""
        return self._ask("GET", path, None)

    def post(self, path: str, **body: Any) -> Said:
        """POST with the administrator's token and a body of JSON."""
        return self._ask("POST", path, body)

    def limits(self) -> list[str]:
        """What the limiter `demo` is held to in this process."""
        return list(self.get("/limits").body)

    def passing(self, most: int = 20) -> int:
        """Calls that pass until one is refused."""
        for number in range(most):
            if self.get("/limited").status == 429:
                return number
        return most

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    def close(self) -> None:
        """End the process in order, and wait until it has ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Said:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, path, body]) + "\n")
        self.process.stdin.flush()
        return Said(*json.loads(self._read()))

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@contextlib.contextmanager
def host_worker(host: str, state: str, **options: Any) -> Iterator[HostWorker]:
    """A `HostWorker`, ended on exit."""
    worker = HostWorker(host, state, **options)
    try:
        yield worker
    finally:
        worker.close()


def _serve(state: str, buckets: str, directory: str) -> None:
    from flask import Flask, jsonify

    from resilience import CircuitBreaker, RateLimiter, Resilience, create_admin_blueprint
    from resilience.adapters.flask import Application

    app = Flask("demo")
    demo = RateLimiter("5/hour", name="demo", key="all")
    circuit = CircuitBreaker(name="demo")
    Resilience(
        app,
        state_uri=state,
        state_timeout=1.0,  # a busy machine
        storage_uri=buckets,
        admin_token=TOKEN,
        peer_directory=directory or None,
        limiters=[demo],
        circuits=[circuit],
    )
    app.register_blueprint(create_admin_blueprint())
    app.add_url_rule("/limits", "limits", lambda: jsonify(demo.snapshot().limits))
    app.add_url_rule("/limited", "limited", demo(lambda: "made"))
    app.add_url_rule("/guarded", "guarded", circuit(lambda: "made"))
    client = app.test_client()
    print("ready", flush=True)
    for line in iter(_reader(), ""):
        method, path, body = json.loads(line)
        answer = client.open(path, method=method, json=body, headers={"Authorization": f"Bearer {TOKEN}"})
        print(json.dumps([answer.status_code, answer.get_json(silent=True)]), flush=True)
    application: Application = app.extensions["resilience"]
    application.close()
    sys.stdout.flush()
    os._exit(0)  # what waits for a server must not keep it


def _reader() -> Callable[[], str]:
    """What reads a line while others run: a pipe is read by a native thread where there are greenlets."""
    if "patched" not in sys.argv[4:]:
        return sys.stdin.readline
    import gevent

    return lambda: gevent.get_hub().threadpool.apply(sys.stdin.readline)


if __name__ == "__main__":
    _serve(*sys.argv[1:4])
