"""werkzeug's development server, as `flask run` starts it, for tests of what runs on it as on gunicorn."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.longconn_server import GunicornServer, StartFailed

__all__ = ["development_server"]

ROOT = Path(__file__).resolve().parents[2]
START = 30.0


@contextlib.contextmanager
def development_server(
    app: str, *, path: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[GunicornServer]:
    """A server of `app`, "module:name", that takes connections. `path` is a folder in which modules are looked for, too."""
    folder = Path(tempfile.mkdtemp(prefix="lc-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flask", "--app", app, "run", "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), path]), **(environment or {})},
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    server = GunicornServer(process, folder, port=port)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(server: GunicornServer) -> None:
    deadline = time.monotonic() + START
    while True:
        try:
            server.connect(1.0).close()
        except OSError:
            if server.process.poll() is not None or time.monotonic() >= deadline:
                raise StartFailed(server.log()) from None
            time.sleep(0.02)
        else:
            return
