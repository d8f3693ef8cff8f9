"""The program of a crowd of keep-alive clients; see `tests.support.crowd`.

    python -m tests.support.load_client PORT CONNECTIONS SECONDS PATH [NAME: VALUE ...]

Prints one line of JSON: answers by status, connections that broke, the slowest answer in seconds.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import collections  # noqa: E402 - patched first
import http.client  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402

PATIENCE = 20.0


def _client(port: int, until: float, path: str, headers: dict[str, str], seen: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    while time.monotonic() < until:
        started = time.monotonic()
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            seen["broken"][type(error).__name__] += 1
            connection.close()
            gevent.sleep(0.05)
            continue
        seen["statuses"][response.status] += 1
        seen["slowest"] = max(seen["slowest"], time.monotonic() - started)
        gevent.sleep(0)  # the others' turn, also when the next answer is there at once
    connection.close()


def main() -> None:
    """Run the crowd and print what it saw."""
    port, connections, seconds, path, *fields = sys.argv[1:]
    headers = dict(field.split(": ", 1) for field in fields)
    seen: dict[str, Any] = {"statuses": collections.Counter(), "broken": collections.Counter(), "slowest": 0.0}
    until = time.monotonic() + float(seconds)
    clients = [gevent.spawn(_client, int(port), until, path, headers, seen) for _ in range(int(connections))]
    gevent.joinall(clients, raise_error=True)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
