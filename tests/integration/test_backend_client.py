from __future__ import annotations

import contextlib
import itertools
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from service.clients.backends import CallerTooSlow, HttpBackend
from service.clients.connections import Waits
from service.errors import BackendFailed, BackendSaturated, BackendTimedOut, CircuitIsOpen
from service.services.ports import BackendResponse
from tests.support.scripted_server import Conversation, ScriptedServer

Make = Callable[..., HttpBackend]

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PATIENT = Waits(pool=5, connect=1, read=2, stream=10)
SHORT = Waits(pool=0.05, connect=0.5, read=0.2, stream=0.5)


@pytest.fixture
def make() -> Iterator[Make]:
    """Backends that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def backend(url: str, *, connections: int = 4, waits: Waits = PATIENT, fail_max: int = 3) -> HttpBackend:
            made = HttpBackend("demo", url, connections=connections, waits=waits, fail_max=fail_max, reset_timeout=60)
            stack.callback(made.close)
            return made

        yield backend


def get(backend: HttpBackend, target: str = "/", headers: tuple[tuple[str, str], ...] = ()) -> BackendResponse:
    return backend.forward("GET", target, headers, b"")


def read(backend: HttpBackend, target: str = "/") -> tuple[int, bytes]:
    response = get(backend, target)
    return response.status, b"".join(response.body)


def close(response: BackendResponse) -> None:
    response.body.close()  # type: ignore[attr-defined]  # the port promises an iterator that can be closed


def answer_all(conversation: Conversation) -> None:
    while conversation.read_request():
        conversation.answer()


def counts(backend: HttpBackend) -> tuple[int, int, int]:
    snapshot = backend.circuit.snapshot()
    return snapshot.succeeded, snapshot.failed, snapshot.ignored


def assert_nothing_is_lent(backend: HttpBackend, connections: int) -> None:
    """All connections can be had at once, so none is lost."""
    pool = backend._connections
    lent = [pool.lend(0.01) for _ in range(connections)]
    for connection in lent:
        pool.take_back(connection)


class TestRequests:
    def test_puts_the_base_path_and_the_backends_host_before_what_the_caller_sent(self, make: Make) -> None:
        with ScriptedServer(answer_all) as server:
            backend = make(server.url + "/base/")

            get(backend, "/x%2fy?q=%e9", (("Accept", "text/plain"),))

            (request,) = server.requests
            assert ("GET", "/base/x%2fy?q=%e9") == (request.method, request.target)
            assert (("Host", f"127.0.0.1:{server.port}"), ("Accept", "text/plain")) == request.headers

    def test_sends_a_body_with_its_length(self, make: Make) -> None:
        body = bytes(range(256)) * 2_000
        with ScriptedServer(answer_all) as server:
            response = make(server.url).forward("POST", "/", (("Content-Type", "x/y"),), body)

            assert 200 == response.status
            (request,) = server.requests
            assert body == request.body
            assert "512000" == request.header("Content-Length")

    def test_sends_no_body_with_a_post_that_has_none(self, make: Make) -> None:
        with ScriptedServer(answer_all) as server:
            make(server.url).forward("POST", "/", (), b"")

            assert "0" == server.requests[0].header("Content-Length")


class TestResponses:
    def test_passes_on_status_headers_and_body_undecoded(self, make: Make) -> None:
        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.answer(
                b"not really gzip",
                status="418 Teapot",
                headers=b"Set-Cookie: a=1\r\nContent-Encoding: gzip\r\nSet-Cookie: b=2\r\n",
            )

        with ScriptedServer(script) as server:
            response = get(make(server.url))

            assert 418 == response.status
            assert ["a=1", "b=2"] == [value for name, value in response.headers if name == "Set-Cookie"]
            assert b"not really gzip" == b"".join(response.body)

    @pytest.mark.parametrize("status", ["301 Moved", "404 Not Found", "503 Unavailable"])
    def test_follows_no_redirect_and_repeats_nothing(self, make: Make, status: str) -> None:
        def script(conversation: Conversation) -> None:
            while conversation.read_request():
                conversation.answer(status=status, headers=b"Location: /elsewhere\r\nRetry-After: 1\r\n")

        with ScriptedServer(script) as server:
            assert (int(status[:3]), b"ok") == read(make(server.url))
            assert 1 == len(server.requests)

    def test_hands_on_each_piece_when_it_arrives(self, make: Make) -> None:
        first, second = threading.Event(), threading.Event()

        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.send(CHUNKED + b"6\r\ndata: \r\n")
            assert first.wait(5)
            conversation.send(b"20\r\nhalf of a chunk,")
            assert second.wait(5)
            conversation.send(b" and its rest...\r\n0\r\n\r\n")

        with ScriptedServer(script) as server:
            body = get(make(server.url)).body

            assert b"data: " == next(body)
            first.set()
            assert b"half of a chunk," == next(body)
            second.set()
            assert b" and its rest..." == b"".join(body)

    @pytest.mark.parametrize(
        ("method", "head"),
        [
            ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
            ("HEAD", CHUNKED),
            ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
            ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"),
            ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ],
    )
    def test_waits_for_no_body_where_there_is_none(self, make: Make, method: str, head: bytes) -> None:
        def script(conversation: Conversation) -> None:
            while conversation.read_request():
                conversation.send(head)

        with ScriptedServer(script) as server:
            backend = make(server.url)
            for _ in range(3):
                assert b"" == b"".join(backend.forward(method, "/", (), b"").body)

            assert 1 == len(server.conversations)
            assert (3, 0, 0) == counts(backend)

    def test_reads_to_the_end_of_the_connection_when_no_length_is_given(self, make: Make) -> None:
        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.send(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")

        with ScriptedServer(script) as server:
            backend = make(server.url)

            assert (200, b"until the end") == read(backend)
            assert (200, b"until the end") == read(backend)
            assert_nothing_is_lent(backend, 4)

    def test_skips_interim_answers(self, make: Make) -> None:
        def script(conversation: Conversation) -> None:
            while conversation.read_request():
                conversation.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
                conversation.answer(b"final")

        with ScriptedServer(script) as server:
            backend = make(server.url)

            assert [(200, b"final")] * 2 == [read(backend), read(backend)]

    def test_takes_an_answer_that_comes_before_the_body_was_read(self, make: Make) -> None:
        def script(conversation: Conversation) -> None:
            conversation.socket.recv(10)
            conversation.answer(b"too large", status="413 Too Large")
            conversation.socket.close()

        with ScriptedServer(script) as server:
            backend = make(server.url)

            response = backend.forward("POST", "/", (), b"x" * 10_000_000)

            assert (413, b"too large") == (response.status, b"".join(response.body))
            assert (413, b"too large") == read(backend)
            assert_nothing_is_lent(backend, 4)

    def test_holds_no_more_of_a_huge_body_than_a_piece(self, make: Make) -> None:
        piece = b"x" * 1_000_000

        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.send(b"HTTP/1.1 200 OK\r\nContent-Length: 300000000\r\n\r\n")
            for _ in range(300):
                conversation.send(piece)

        with ScriptedServer(script) as server:
            body = get(make(server.url, waits=Waits(pool=1, connect=1, read=5, stream=60))).body
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert 300_000_000 == sum(map(len, body))
            assert 8_000 > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB


class TestConnections:
    def test_uses_one_connection_for_calls_after_each_other(self, make: Make) -> None:
        with ScriptedServer(answer_all) as server:
            backend = make(server.url)

            for _ in range(10):
                assert (200, b"ok") == read(backend)

            assert 1 == len(server.conversations)

    def test_uses_a_chunked_connection_again(self, make: Make) -> None:
        def script(conversation: Conversation) -> None:
            while conversation.read_request():
                conversation.send(CHUNKED + b"2\r\nok\r\n0\r\nTrailer: x\r\n\r\n")

        with ScriptedServer(script) as server:
            backend = make(server.url)

            assert [(200, b"ok")] * 3 == [read(backend) for _ in range(3)]
            assert 1 == len(server.conversations)

    def test_a_connection_closed_while_idle_costs_the_caller_nothing(self, make: Make) -> None:
        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.answer()

        with ScriptedServer(script) as server:
            backend = make(server.url)

            assert [(200, b"ok")] * 5 == [read(backend) for _ in range(5)]
            assert (5, 0, 0) == counts(backend)

    @pytest.mark.parametrize("farewell", [Conversation.reset, lambda conversation: None], ids=["reset", "end"])
    def test_asks_once_more_when_the_connection_is_closed_as_the_request_arrives(
        self, make: Make, farewell: Callable[[Conversation], None]
    ) -> None:
        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.answer()
            if conversation.number == 1:
                conversation.read_request()
                farewell(conversation)
            else:
                answer_all(conversation)

        with ScriptedServer(script) as server:
            backend = make(server.url)

            assert [(200, b"ok")] * 2 == [read(backend), read(backend)]
            assert [2, 1] == [len(conversation.received) for conversation in server.conversations]
            assert (2, 0, 0) == counts(backend)

    def test_never_sends_a_post_twice(self, make: Make) -> None:
        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.answer()
            conversation.read_request()

        with ScriptedServer(script) as server:
            backend = make(server.url)
            read(backend)

            with pytest.raises(BackendFailed):
                backend.forward("POST", "/", (), b"order")

            assert 1 == len(server.conversations)
            assert (1, 1, 0) == counts(backend)

    def test_does_not_ask_a_fresh_connection_again(self, make: Make) -> None:
        with ScriptedServer(Conversation.read_request) as server:
            with pytest.raises(BackendFailed):
                get(make(server.url))

            assert 1 == len(server.requests)

    def test_refuses_after_the_wait_for_a_connection_and_the_circuit_learns_nothing(self, make: Make) -> None:
        with ScriptedServer(
            lambda conversation: (conversation.read_request(), conversation.closed_by_peer())
        ) as server:
            backend = make(server.url, connections=1, waits=SHORT)
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(get, backend)
                while not server.requests:
                    time.sleep(0.005)

                with pytest.raises(BackendSaturated) as caught:
                    get(backend)

                assert 1.0 == caught.value.retry_after
                assert (0, 0, 1) == counts(backend)
                with pytest.raises(BackendTimedOut):
                    waiting.result()

    def test_a_waiting_call_gets_the_connection_that_becomes_free(self, make: Make) -> None:
        with ScriptedServer(answer_all) as server:
            backend = make(server.url, connections=2)
            with ThreadPoolExecutor(16) as pool:
                results = list(pool.map(lambda _: read(backend), range(64)))

            assert [(200, b"ok")] * 64 == results
            assert 2 >= len(server.conversations)

    def test_a_caller_that_goes_away_closes_the_connection_and_the_circuit_learns_nothing(self, make: Make) -> None:
        closed = threading.Event()

        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.send(CHUNKED + b"1\r\nx\r\n")
            if conversation.closed_by_peer():
                closed.set()

        with ScriptedServer(script) as server:
            backend = make(server.url, connections=1)
            response = get(backend)
            assert b"x" == next(response.body)

            close(response)
            close(response)

            assert closed.wait(5)
            assert (0, 0, 1) == counts(backend)
            assert_nothing_is_lent(backend, 1)

    @pytest.mark.parametrize("status", ["200 OK", "500 Broken"])
    def test_an_answer_that_is_dropped_unread_gives_its_connection_back(self, make: Make, status: str) -> None:
        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.send(b"HTTP/1.1 %s\r\nContent-Length: 10\r\n\r\n" % status.encode())
            conversation.closed_by_peer()

        with ScriptedServer(script) as server:
            backend = make(server.url, connections=1)

            get(backend)

            assert_nothing_is_lent(backend, 1)

    @pytest.mark.parametrize(("status", "counted"), [("200 OK", (0, 0, 1)), ("500 Broken", (0, 1, 0))])
    def test_an_interruption_of_any_kind_gives_the_connection_back(
        self, make: Make, status: str, counted: tuple[int, int, int]
    ) -> None:
        class Interruption(BaseException):
            pass

        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.answer(b"unread", status=status)

        with ScriptedServer(script) as server:
            backend = make(server.url, connections=1)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("urllib3.HTTPResponse.read1", lambda *_: (_ for _ in ()).throw(Interruption))
                response = get(backend)
                with pytest.raises(Interruption):
                    next(response.body)

            assert counted == counts(backend)
            assert_nothing_is_lent(backend, 1)


class TestFailures:
    def test_a_refused_connection_is_a_failure(self, make: Make) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        backend = make(f"http://127.0.0.1:{port}")

        with pytest.raises(BackendFailed, match="'demo' could not be reached") as caught:
            get(backend)

        assert str(port) not in caught.value.detail
        assert (0, 1, 0) == counts(backend)
        assert_nothing_is_lent(backend, 4)

    def test_a_host_that_does_not_exist_is_a_failure(self, make: Make) -> None:
        with pytest.raises(BackendFailed):
            get(make("http://nowhere.invalid"))

    def test_a_backend_that_does_not_accept_in_time_is_a_failure(self, make: Make) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
            for _ in range(2):  # fill the queue, so that the next one waits
                stack.enter_context(contextlib.closing(filler := socket.socket()))
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            backend = make(f"http://127.0.0.1:{listener.getsockname()[1]}", waits=replace(PATIENT, connect=0.1))
            started = time.monotonic()

            with pytest.raises(BackendTimedOut):
                get(backend)

            assert 0.5 > time.monotonic() - started
            assert (0, 1, 0) == counts(backend)

    @pytest.mark.parametrize(
        "dribble",
        [
            pytest.param([b""], id="silent before the head"),
            pytest.param(itertools.repeat(b"HTTP/1.1 200 OK\r\n"[:1]), id="head byte by byte"),
            pytest.param(
                itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"X: y\r\n")), id="head without end"
            ),
        ],
    )
    def test_a_slow_head_is_given_up_in_time(self, make: Make, dribble: Iterator[bytes]) -> None:
        def script(conversation: Conversation) -> None:
            conversation.read_request()
            for piece in dribble:
                conversation.send(piece)
                time.sleep(0.03)
            conversation.closed_by_peer()

        with ScriptedServer(script) as server:
            backend = make(server.url, connections=1, waits=SHORT)
            started = time.monotonic()

            with pytest.raises((BackendTimedOut, BackendFailed)):
                get(backend)

            assert 0.6 > time.monotonic() - started
            assert (0, 1, 0) == counts(backend)
            assert_nothing_is_lent(backend, 1)

    @pytest.mark.parametrize(
        ("head", "piece", "pause"),
        [
            pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"", 0.1, id="silent"),
            pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"x", 0.03, id="byte by byte"),
            pytest.param(CHUNKED, b"1\r\nx\r\n", 0.03, id="chunk by chunk"),
            pytest.param(CHUNKED + b"1;", b"x", 0.03, id="chunk head without end"),
            pytest.param(CHUNKED + b"0\r\n", b"T: x\r\n", 0.03, id="trailer without end"),
        ],
    )
    def test_a_slow_body_is_given_up_in_time(self, make: Make, head: bytes, piece: bytes, pause: float) -> None:
        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.send(head)
            while True:
                conversation.send(piece)
                time.sleep(pause)

        with ScriptedServer(script) as server:
            backend = make(server.url, connections=1, waits=SHORT)
            started = time.monotonic()

            with pytest.raises(BackendTimedOut):
                read(backend)

            assert 1.0 > time.monotonic() - started
            assert (0, 1, 0) == counts(backend)
            assert_nothing_is_lent(backend, 1)

    @pytest.mark.parametrize("taken", [0, 65_536], ids=["not at all", "too slowly"])
    def test_a_backend_that_takes_no_body_is_given_up_in_time(self, make: Make, taken: int) -> None:
        def script(conversation: Conversation) -> None:
            started = time.monotonic()
            while time.monotonic() < started + 1:
                if taken:
                    conversation.socket.recv(taken)
                time.sleep(0.02)

        with ScriptedServer(script) as server:
            backend = make(server.url, connections=1, waits=SHORT)
            started = time.monotonic()

            with pytest.raises(BackendTimedOut):
                backend.forward("POST", "/", (), b"x" * 20_000_000)

            assert 0.8 > time.monotonic() - started
            assert_nothing_is_lent(backend, 1)

    def test_a_caller_that_is_too_slow_is_not_the_backends_failure(self, make: Make) -> None:
        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.send(CHUNKED + b"1\r\nx\r\n" * 3)
            conversation.closed_by_peer()

        with ScriptedServer(script) as server:
            backend = make(server.url, connections=1, waits=replace(PATIENT, stream=0.1))
            body = get(backend).body
            next(body)
            time.sleep(0.15)

            with pytest.raises(CallerTooSlow):
                next(body)

            assert (0, 0, 1) == counts(backend)
            assert_nothing_is_lent(backend, 1)

    @pytest.mark.parametrize(
        "broken",
        [
            pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", id="shorter than its length"),
            pytest.param(CHUNKED + b"5\r\nabc", id="chunk breaks off"),
            pytest.param(CHUNKED + b"5\r\nabcde\r\n", id="no last chunk"),
            pytest.param(CHUNKED + b"zz\r\nabcde\r\n", id="chunk length that is none"),
        ],
    )
    def test_a_body_that_breaks_off_is_a_failure_and_never_looks_complete(self, make: Make, broken: bytes) -> None:
        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.send(broken)

        with ScriptedServer(script) as server:
            backend = make(server.url)
            response = get(backend)

            with pytest.raises(BackendFailed):
                b"".join(response.body)

            assert (0, 1, 0) == counts(backend)
            assert_nothing_is_lent(backend, 4)

    @pytest.mark.parametrize(
        "nonsense",
        [
            b"SSH-2.0-OpenSSH\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            b"HTTP/1.1 200 OK",
            b"HTTP/1.1 200 OK\r\nX: ",
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        ],
        ids=itertools.count(),
    )
    def test_an_answer_that_is_not_http_is_a_failure(self, make: Make, nonsense: bytes) -> None:
        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.send(nonsense)

        with ScriptedServer(script) as server:
            backend = make(server.url)

            with pytest.raises(BackendFailed):
                read(backend)

            assert (0, 1, 0) == counts(backend)
            assert_nothing_is_lent(backend, 4)

    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    def test_answers_that_say_the_backend_is_unwell_are_passed_on_until_the_circuit_opens(
        self, make: Make, status: int
    ) -> None:
        def script(conversation: Conversation) -> None:
            while conversation.read_request():
                conversation.answer(b"sorry", status=f"{status} Sorry", headers=b"Retry-After: 7\r\n")

        with ScriptedServer(script) as server:
            backend = make(server.url, fail_max=3)
            for _ in range(3):
                response = get(backend)
                assert ("Retry-After", "7") in response.headers
                assert (status, b"sorry") == (response.status, b"".join(response.body))

            started = time.perf_counter()
            with pytest.raises(CircuitIsOpen, match="left alone for a while") as caught:
                get(backend)

            assert 0.01 > time.perf_counter() - started
            assert 59 < (caught.value.retry_after or 0) <= 66  # a tenth by chance
            assert 3 == len(server.requests)
            assert 1 == len(server.conversations)

    @pytest.mark.parametrize(("asked", "least", "most"), [(b"90", 89, 90), (b"7200", 599, 600)])
    def test_a_backend_is_left_alone_for_as_long_as_it_asks_but_not_for_ever(
        self, make: Make, asked: bytes, least: float, most: float
    ) -> None:
        def script(conversation: Conversation) -> None:
            while conversation.read_request():
                conversation.answer(status="503 Sorry", headers=b"Retry-After: " + asked + b"\r\n")

        with ScriptedServer(script) as server:
            backend = make(server.url, fail_max=1)
            read(backend)

            with pytest.raises(CircuitIsOpen) as caught:
                get(backend)

            assert least < (caught.value.retry_after or 0) <= most

    @pytest.mark.parametrize("status", [200, 301, 400, 404, 429, 501, 505])
    def test_every_other_answer_is_a_success(self, make: Make, status: int) -> None:
        def script(conversation: Conversation) -> None:
            while conversation.read_request():
                conversation.answer(status=f"{status} Whatever")

        with ScriptedServer(script) as server:
            backend = make(server.url)

            for _ in range(5):
                read(backend)

            assert (5, 0, 0) == counts(backend)

    def test_the_circuit_learns_of_a_success_before_a_slow_caller_takes_the_last_byte(self, make: Make) -> None:
        with ScriptedServer(answer_all) as server:
            backend = make(server.url, connections=1)
            response = get(backend)

            assert b"ok" == next(response.body)

            assert (1, 0, 0) == counts(backend)
            assert_nothing_is_lent(backend, 1)


class TestSecureConnections:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> Path:
        file = tmp_path / "certificate.pem"
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
        subprocess.run(
            [
                *command.split(),
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-keyout",
                file,
                "-out",
                file.with_suffix(".crt"),
            ],
            check=True,
            capture_output=True,
        )
        file.write_bytes(file.read_bytes() + file.with_suffix(".crt").read_bytes())
        return file

    @pytest.fixture
    def secure_server(self, certificate: Path) -> Iterator[ScriptedServer]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        with ScriptedServer(answer_all, tls=context) as server:
            yield server

    def test_speaks_to_a_backend_whose_certificate_holds(
        self, make: Make, secure_server: ScriptedServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        backend = make(secure_server.url)

        assert [(200, b"ok")] * 3 == [read(backend) for _ in range(3)]
        assert 1 == len(secure_server.conversations)

    def test_refuses_a_certificate_that_nobody_known_has_signed(
        self, make: Make, secure_server: ScriptedServer
    ) -> None:
        backend = make(secure_server.url)

        with pytest.raises(BackendFailed):
            get(backend)

        assert [] == secure_server.requests
        assert_nothing_is_lent(backend, 4)

    def test_refuses_a_certificate_of_another_host(
        self, make: Make, secure_server: ScriptedServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

        with pytest.raises(BackendFailed):
            get(make(secure_server.url.replace("127.0.0.1", "localhost")))

        assert [] == secure_server.requests


def run_in_greenlets(program: str) -> str:
    """Run `program` in a process of its own, patched as a worker is."""
    result = subprocess.run(
        [sys.executable, "-c", "from gevent import monkey; monkey.patch_all()\n" + program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert 0 == result.returncode, result.stderr
    return result.stdout


GREENLETS = """
import socket, sys, time, gevent
from service.clients.backends import HttpBackend
from service.clients.connections import Waits
from tests.support.scripted_server import ScriptedServer

def make(server, connections):
    waits = Waits(pool=1, connect=1, read=5, stream=5)
    return HttpBackend("demo", server.url, connections=connections, waits=waits, fail_max=9, reset_timeout=60)

def call(backend):
    return b"".join(backend.forward("GET", "/", (), b"").body)
"""


class TestUnderGreenlets:
    def test_calls_wait_side_by_side(self) -> None:
        printed = run_in_greenlets(
            GREENLETS
            + """
def script(conversation):
    while conversation.read_request():
        time.sleep(0.2)
        conversation.answer()

with ScriptedServer(script) as server:
    backend = make(server, 50)
    started = time.monotonic()
    calls = [gevent.spawn(call, backend) for _ in range(50)]
    gevent.joinall(calls, raise_error=True)
    print(time.monotonic() - started)
    backend.close()
"""
        )

        assert 1.0 > float(printed)

    @pytest.mark.parametrize("interruption", ["gevent.Timeout", "gevent.GreenletExit"])
    @pytest.mark.parametrize("stage", ["head", "body", "pool"])
    def test_an_interrupted_call_loses_no_connection(self, interruption: str, stage: str) -> None:
        printed = run_in_greenlets(
            GREENLETS
            + f"""
def script(conversation):
    conversation.read_request()
    if {stage!r} == "body":
        conversation.send(b"HTTP/1.1 200 OK\\r\\nContent-Length: 10\\r\\n\\r\\nx")
    conversation.closed_by_peer()

with ScriptedServer(script) as server:
    backend = make(server, 2)
    calls = [gevent.spawn(call, backend) for _ in range(3 if {stage!r} == "pool" else 2)]
    gevent.sleep(0.2)
    for greenlet in reversed(calls):
        greenlet.kill({interruption}, block=True)
    lent = [backend._connections.lend(0.01) for _ in range(2)]
    print(len(lent), [connection.is_closed for connection in lent], backend.circuit.snapshot().state)
    backend.close()
"""
        )

        assert "2 [True, True] closed" == printed.strip()


class TestFieldsThatCannotBeSent:
    """A field that is refused while the head is being written must not leave its beginning for the next caller."""

    BAD = (("X-Before", "the first caller's"), ("", "nameless"))

    def test_a_refused_head_never_precedes_the_next_callers_request(self, make: Make) -> None:
        with ScriptedServer(answer_all) as server:
            backend = make(server.url, connections=1)
            assert (200, b"ok") == read(backend, "/warm")

            with pytest.raises(ValueError, match="Invalid header name"):
                get(backend, "/first", self.BAD)
            assert (200, b"ok") == read(backend, "/second")

            assert ["/warm", "/second"] == [request.target for request in server.requests]
            assert [("Host",)] * 2 == [tuple(name for name, _ in request.headers) for request in server.requests]
            assert_nothing_is_lent(backend, 1)

    def test_nor_when_it_is_refused_while_a_closed_connection_is_being_replaced(self, make: Make) -> None:
        def script(conversation: Conversation) -> None:
            conversation.read_request()
            conversation.answer()
            if conversation.number == 1:
                conversation.reset()

        with ScriptedServer(script) as server:
            backend = make(server.url, connections=1)
            assert (200, b"ok") == read(backend)
            with pytest.raises(ValueError, match="Invalid header name"):
                get(backend, "/first", self.BAD)

            assert (200, b"ok") == read(backend, "/second")
            assert "/second" == server.requests[-1].target
            assert_nothing_is_lent(backend, 1)

    def test_is_never_held_against_the_backend(self, make: Make) -> None:
        with ScriptedServer(answer_all) as server:
            backend = make(server.url, fail_max=2)

            for _ in range(5):
                with pytest.raises(ValueError, match="Invalid header name"):
                    get(backend, "/", self.BAD)

            assert "closed" == backend.circuit.current_state
            assert (0, 0, 5) == counts(backend)
            assert (200, b"ok") == read(backend)


def test_a_connection_that_failed_is_not_used_again(make: Make) -> None:
    def script(conversation: Conversation) -> None:
        conversation.read_request()
        if conversation.number > 1:
            conversation.answer()

    with ScriptedServer(script) as server:
        backend = make(server.url, connections=1)
        pool = backend._connections
        used = pool.lend(0)
        pool.take_back(used)

        with pytest.raises(BackendFailed):
            backend.forward("POST", "/", (), b"")

        after = pool.lend(0)
        pool.take_back(after)
        assert after is not used
