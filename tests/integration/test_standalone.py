"""The README's application, with nothing installed but the library: what a stranger's first five minutes look like."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel of this checkout and what it depends on."""
    folder = tmp_path_factory.mktemp("standalone")
    uv = Path(sys.executable).with_name("uv")
    for command in (
        [uv, "build", "--quiet", "--wheel", "--out-dir", folder / "wheel", ROOT],
        [uv, "venv", "--quiet", "--python", sys.executable, folder / "venv"],
        [uv, "pip", "install", "--quiet", "--python", folder / "venv", "--find-links", folder / "wheel", "seawall"],
    ):
        subprocess.run([str(part) for part in command], check=True, timeout=110)
    return folder / "venv"


class Weather(http.server.BaseHTTPRequestHandler):
    """A backend that knows of one city. The path that it is asked for comes back."""

    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200 if self.path.startswith("/New") else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def backend() -> Iterator[int]:
    """The port of a backend that is well."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Weather) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def served(environment: Path, folder: Path, backend: int) -> Iterator[str]:
    """Where the README's application listens, under Flask's own server."""
    (code,) = re.findall(r"<!-- app -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    port = free_port()
    (folder / "app.py").write_text(code.replace("8002", str(backend)))
    command = [str(environment / "bin" / "flask"), "run", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_the_library_brings_neither_a_server_nor_a_database(environment: Path) -> None:
    for absent in ("gunicorn", "gevent", "sqlalchemy", "redis", "service", "longconn.worker"):
        command = [str(environment / "bin" / "python"), "-c", f"import {absent}"]
        assert 1 == subprocess.run(command, check=False, stderr=subprocess.DEVNULL, cwd="/").returncode, absent


def test_the_readme_s_application_is_protected(environment: Path, tmp_path: Path) -> None:
    """Nothing listens where it fetches the weather: three failures, then an open circuit, then a full bucket's end."""
    with served(environment, tmp_path, free_port()) as address:
        answers = [get(f"{address}/weather/rome") for _ in range(14)]
    assert [500, 500, 500, 503] == [status for status, _, _ in answers[:4]]
    _, fields, body = answers[3]
    # Five seconds, and up to a tenth more by chance.
    assert (True, "application/problem+json") == (1 <= int(fields["Retry-After"]) <= 6, fields["Content-Type"])
    assert "Circuit open" == json.loads(body)["title"]
    assert '"weather";q=10;w=2' == fields["RateLimit-Policy"]
    limited = next(answer for answer in answers if answer[0] == 429)
    assert ["weather"] == json.loads(limited[2])["violated-policies"]


def test_no_client_opens_the_readme_s_circuit(environment: Path, tmp_path: Path, backend: int) -> None:
    """Neither by asking for what there is not, nor by a name that makes no address."""
    with served(environment, tmp_path, backend) as address:
        assert [404] * 4 == [get(f"{address}/weather/nowhere")[0] for _ in range(4)]
        answers = [get(f"{address}/weather/New%20York%0A")[::2] for _ in range(4)]
    assert [(200, b"/New%20York%0A")] * 4 == answers
