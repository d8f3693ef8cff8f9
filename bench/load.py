"""The whole service under load: `wrk` against what `make run` starts, with every middleware on and logs as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.launched import free_ports, prepare_folder

__all__ = ["run"]

STATUSES = Path(__file__).with_name("statuses.lua")
GENEROUS = "100000000/second"  # the limiter decides every request and refuses none


class _Service:
    """A running `python -m service run`, its output in a file."""

    def __init__(self, folder: Path) -> None:
        self.port, self.admin_port, self.demo_port = free_ports(3)
        self.output = folder / "output"
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PORT": str(self.port),
            "ADMIN_PORT": str(self.admin_port),
            "DEMO_PORT": str(self.demo_port),
            "RATE_LIMIT": GENEROUS,
            "RATE_LIMIT_BURST": "none",
            "LOG_FORMAT": "json",
        }
        command = [sys.executable, "-m", "service", "run"]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        deadline = time.monotonic() + 30
        while "Ctrl-C stops" not in self.output.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service did not start:\n{self.output.read_text()}")
            time.sleep(0.1)

    def value(self, label: str) -> str:
        found = re.search(rf"^  {label}  +(\S.*)$", self.output.read_text(), re.MULTILINE)
        if found is None:
            raise RuntimeError(f"the launcher printed no {label!r}")
        return found[1]

    def token(self) -> str:
        body = json.dumps({"username": "demo", "password": self.value("password")}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/v1/auth/token", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return str(json.load(response)["access_token"])

    def set_demo(self, settings: str) -> None:
        address = f"http://127.0.0.1:{self.demo_port}/settings?{settings}"
        with urllib.request.urlopen(urllib.request.Request(address, method="POST"), timeout=10):
            pass

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@contextlib.contextmanager
def _running() -> Iterator[_Service]:
    with tempfile.TemporaryDirectory(prefix="seawall-load-") as folder:
        service = _Service(prepare_folder(Path(folder)))
        try:
            yield service
        finally:
            service.close()


def _wrk(service: _Service, path: str, token: str, *, connections: int, seconds: int) -> dict[str, Any]:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(STATUSES)]
    command += ["-H", f"Authorization: Bearer {token}", f"http://127.0.0.1:{service.port}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _print(title: str, result: dict[str, Any]) -> None:
    errors = sum(result[kind] for kind in ("connect", "read", "write", "timeout"))
    answered = ", ".join(f"{count:,} x {status}" for status, count in sorted(result["statuses"].items()))
    print(f"| {title} | {result['requests'] / result['seconds']:,.0f} | {answered} | {errors} ", end="")
    print(f"| {result['p50']:.0f} / {result['p90']:.0f} / {result['p99']:.0f} / {result['max']:.0f} |", flush=True)


def run(*, connections: int = 1_000, seconds: int = 30) -> None:
    """Print the table. Needs `wrk` on the PATH."""
    if shutil.which("wrk") is None:
        print("wrk is not on the PATH: install it (Debian: apt-get install wrk), then run this again", file=sys.stderr)
        raise SystemExit(2)
    print(f"\n### {connections:,} connections for {seconds} s, load and service on the same machine\n")
    print("| what | answers/s | answers | socket errors | ms p50 / p90 / p99 / max |\n|---|---|---|---|---|")
    with _running() as service:
        token = service.token()
        _wrk(service, "/api/v1/users/1", token, connections=50, seconds=2)  # warm
        users = _wrk(service, "/api/v1/users/1", token, connections=connections, seconds=seconds)
        _print("`GET /api/v1/users/1` through limiter, log and trace", users)
        healthy = _wrk(service, "/api/v1/backends/demo/x", token, connections=connections, seconds=seconds)
        _print("the demo backend, healthy", healthy)
        service.set_demo("failure_rate=1")
        failing = _wrk(service, "/api/v1/backends/demo/x", token, connections=connections, seconds=seconds)
        _print("the demo backend, failing: through its circuit breaker", failing)
