"""What an application's child does is nothing to the clients of its parent."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from tests.support.longconn_server import gunicorn_server


def test_a_child_of_a_view_takes_nothing_from_the_clients_of_its_parent(tmp_path: Path) -> None:
    environment = {"LONGCONN_CHANNELS": str(tmp_path / "channels")}
    with (
        gunicorn_server(app="tests.support.forking_app:application", environment=environment) as server,
        contextlib.ExitStack() as stack,
    ):
        streams = [stack.enter_context(server.client(10.0)) for _ in range(20)]
        for stream in streams:
            stream.send(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
            stream.until(b"retry:")
        for _ in range(3):
            with server.client() as client:
                assert 200 == client.ask("/fork", method="POST").status
        until = time.monotonic() + 3.5  # the children live for three seconds
        number = 0
        while time.monotonic() < until:
            number += 1
            with server.client() as client:
                assert 200 == client.ask("/publish", method="POST", body=f"message {number}.".encode()).status
            for stream in streams:
                stream.until(f"data: message {number}.\n".encode())
            time.sleep(0.02)
        assert "master is gone" not in server.log()
        assert number > 20
