"""The client that holds many connections, against a real server; and what it takes for an answer."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.worker.crowd import split
from bench.worker.holder import Holder, Options, verdict

PONG = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 4\r\n\r\npong"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npong\r\n0\r\n\r\n"


class Pong(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"pong")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves in the middle of its head is what is tested here."""


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    with Server(("127.0.0.1", 0), Pong) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("answer", [PONG, CHUNKED])
def test_an_answer_counts_once_it_is_whole(answer: bytes) -> None:
    assert [None] * (len(answer) - 1) + [True] == [verdict(answer[: end + 1]) for end in range(len(answer))]


def test_another_status_is_no_answer() -> None:
    assert verdict(PONG.replace(b"200 OK", b"503 Busy")) is False


@given(st.integers(0, 100_000), st.integers(1, 20))
def test_a_crowd_is_split_evenly_and_wholly(count: int, parts: int) -> None:
    seen = split(count, parts)
    assert (count, parts) == (sum(seen), len(seen))
    assert max(seen) - min(seen) <= 1


def test_connections_are_held_and_answered_again(server: http.server.ThreadingHTTPServer) -> None:
    holder = Holder(Options(port=server.server_port, sources=("127.0.0.2", "127.0.0.3"), at_once=4))
    opened = holder.open(20)
    assert (20, 0) == (opened["held"], opened["failed"])
    assert 20 == holder.ask()["answered"]
    assert {"held": 20} == holder.count()
    assert {"held": 0} == holder.close()


def test_an_unfinished_head_is_held_without_an_answer(server: http.server.ThreadingHTTPServer) -> None:
    holder = Holder(Options(port=server.server_port, unfinished=True, drip=0.1))
    assert 3 == holder.open(3)["held"]
    holder._drip(0.2)  # two bytes each
    assert {"held": 3} == holder.count()
    holder.close()


def test_a_refused_connection_has_failed(server: http.server.ThreadingHTTPServer) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pong) as other:
        port = other.server_port
    opened = Holder(Options(port=port)).open(2)
    assert (0, 2) == (opened["held"], opened["failed"])
