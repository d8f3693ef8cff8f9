"""How often Flask alone can do it: no server, no socket. `python -m bench.worker.dispatch SECONDS` prints requests/s."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.worker.application import application, counted

__all__ = ["main"]

BATCH = 500
ENVIRON: dict[str, Any] = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
    "RAW_URI": "/",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "HTTP_HOST": "127.0.0.1",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.input": io.BytesIO(),
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": False,
    "wsgi.run_once": False,
}


def _start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
    return sys.stdout.buffer.write


def _dispatch() -> bytes:
    answer = application.wsgi_app(ENVIRON.copy(), _start_response)
    body = b"".join(answer)
    close = getattr(answer, "close", None)
    if close is not None:
        close()
    return body


def _allocations(requests: int) -> dict[str, float]:
    """Blocks and bytes that one dispatch allocates. The application counts when the environment asks it to."""
    before = counted()
    for _ in range(requests):
        _dispatch()
    after = counted()
    return {name: (after[name] - before[name]) / requests for name in before}


def main() -> None:
    """Warm up, then count for as many seconds as the first argument says, or what `--allocations N` requests allocate."""
    assert _dispatch() == b"pong"
    for _ in range(BATCH):
        _dispatch()
    if sys.argv[1] == "--allocations":
        print(json.dumps(_allocations(int(sys.argv[2]))))
        return
    seconds = float(sys.argv[1])
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(BATCH):
            _dispatch()
        count += BATCH
    print(count / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
