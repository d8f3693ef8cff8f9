"""TLS and HTTP/2, with the means of gunicorn and clients that are not ours."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gunicorn import eventually
from tests.support.longconn_app import pattern
from tests.support.longconn_server import Client, GunicornServer, certificate, gunicorn_server
from tests.support.longconn_sides import PARKING, WORKERS, Sides, both_workers, comparable, exchange, outline

KEEP = ("--keep-alive", "5", "--graceful-timeout", "5")
STRICT = ("--http-parser", "python")
HTTP_2 = ("--http-protocols", "h2,h1")


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


pytestmark = needs("openssl")


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    with both_workers(*KEEP, tls=True) as both:
        yield both


def request(target: str = "/", *fields: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: a", *fields, "", ""]).encode()


def test_requests_follow_each_other_on_one_tls_connection(sides: Sides) -> None:
    def ask(server: GunicornServer) -> list[Any]:
        with server.client() as client:
            return [outline(client.ask(target)) for target in ("/", "/missing", "/stream?chunks=3", "/close", "/")]

    assert [200, 404, 200, 200, 200] == [status for _, status, *_ in sides.same(ask)]


def test_the_environ_of_a_tls_request_is_the_same(sides: Sides) -> None:
    def ask(server: GunicornServer) -> Any:
        with server.client() as client:
            return comparable(json.loads(client.ask("/environ").body))

    assert "https" == sides.same(ask)["wsgi.url_scheme"]


def test_pipelined_requests_of_one_record_are_all_answered(sides: Sides) -> None:
    # All of them are decrypted at once: nothing arrives any more that would wake anybody.
    def ask(server: GunicornServer) -> list[bytes]:
        with server.client() as client:
            client.send(request("/context") * 3 + request("/stream") * 3 + request("/") * 200)
            return [client.response().body for _ in range(206)][3:]

    assert [pattern(30)] * 3 + [b"pong"] * 200 == sides.same(ask)


def test_more_than_a_record_waits_decrypted_and_is_not_forgotten(sides: Sides) -> None:
    body = pattern(100_000)

    def ask(server: GunicornServer) -> list[Any]:
        with server.client() as client:
            for size in (16_384, 16_385, 50_000, 100_000):
                reply = client.ask("/body?how=sized", method="POST", body=body[:size])
                assert size == json.loads(reply.body)["length"]
            client.send(b"POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(10):
                client.send(b"%x\r\n%s\r\n" % (len(body), body))
            client.send(b"0\r\n\r\n" + request())
            return [json.loads(client.response().body)["length"], client.response().body]

    assert [1_000_000, b"pong"] == sides.same(ask)


def test_a_request_may_come_byte_by_byte_in_records_of_their_own(sides: Sides) -> None:
    def ask(server: GunicornServer) -> bytes:
        with server.client() as client:
            for byte in request("/echo?a"):
                client.send(bytes([byte]))
            return client.response().body

    sides.same(ask)


def test_requests_in_records_of_their_own_that_arrive_together_are_all_answered(sides: Sides) -> None:
    # Each of them is read on its own, while the rest waits where no poller sees it.
    def ask(server: GunicornServer) -> list[bytes]:
        with server.client() as client:
            client.send(request("/slow?seconds=0.2"))  # meanwhile the others arrive
            for _ in range(100):
                client.send(request())
            client.send(b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
            for byte in (b"a", b"b", b"c", b"d"):
                client.send(byte)
            client.send(request("/missing"))
            replies = [client.response() for _ in range(103)]
            return [reply.body for reply in replies[:101]] + [b"%d" % reply.status for reply in replies[101:]]

    assert [b"slow", *[b"pong"] * 100, b"200", b"404"] == sides.same(ask)


def test_a_large_answer_reaches_a_slow_reader_whole(sides: Sides) -> None:
    def ask(server: GunicornServer) -> bool:
        with server.client(20.0) as client:
            client.send(request("/large?bytes=8000000"))
            assert b"pong" == server.get("/")[2]
            return client.response().body == pattern(8_000_000)

    assert sides.same(ask)


def test_what_is_not_tls_is_refused_and_harms_nobody(sides: Sides) -> None:
    for server in (sides.stock, sides.parking):
        for data in (request(), b"\x00" * 100, b"\x16\x03\x01\x00\x05hello"):
            with Client(server.connect(raw=True)) as client:
                client.send(data)
                client.finish()
                assert b"200 OK" not in client.rest()
        assert b"pong" == server.get("/")[2]


def test_a_client_may_leave_in_the_middle_of_its_handshake(sides: Sides) -> None:
    hello = client_hello()
    for server in (sides.stock, sides.parking):
        for length in range(0, len(hello) + 1, 50):
            with Client(server.connect(raw=True)) as client:
                client.send(hello[:length])
                client.close(reset=length % 100 == 0)
        assert b"pong" == server.get("/")[2]
    assert "Traceback" not in sides.parking.log()


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def test_a_handshake_that_is_slow_holds_up_nobody(sides: Sides) -> None:
    hello = client_hello()
    for server in (sides.stock, sides.parking):
        with Client(server.connect(raw=True)) as client:
            client.send(hello[:20])
            assert b"pong" == server.get("/")[2]
            client.send(hello[20:])
            assert b"\x16\x03" == client.exactly(2)


def test_the_connection_ends_with_a_goodbye_or_at_least_an_end(sides: Sides) -> None:
    def ask(server: GunicornServer) -> bytes:
        with server.client() as client:
            client.send(request("/", "Connection: close"))
            return client.rest()[-4:]

    assert b"pong" == sides.same(ask)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_current_versions_are_spoken(sides: Sides, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version

    def ask(server: GunicornServer) -> tuple[str | None, bytes]:
        with context.wrap_socket(server.connect(raw=True)) as sock:
            return sock.version(), Client(sock).ask("/").body

    assert (version.name.replace("_", "."), b"pong") == sides.same(ask)


def test_a_certificate_can_be_asked_of_the_client() -> None:
    authority, key = certificate()
    with both_workers(*KEEP, "--cert-reqs", "2", "--ca-certs", authority, tls=True) as both:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(authority, key)
        for server in (both.stock, both.parking):
            with context.wrap_socket(server.connect(raw=True)) as sock:
                assert b"pong" == Client(sock).ask("/").body
            with contextlib.suppress(OSError), server.client() as client:  # it has none
                client.send(request())
                assert b"" == client.rest()


def test_the_hook_that_makes_the_context_is_called(tmp_path: Path) -> None:
    config = (
        "def ssl_context(config, default):\n"
        "    import ssl\n"
        "    context = default()\n"
        "    context.maximum_version = ssl.TLSVersion.TLSv1_2\n"
        "    return context\n"
    )
    with both_workers(*KEEP, "--do-handshake-on-connect", tls=True, config=config) as both:

        def ask(server: GunicornServer) -> Any:
            sock = server.connect()
            with Client(sock) as client:
                assert isinstance(sock, ssl.SSLSocket)
                return sock.version(), client.ask("/").body

        assert ("TLSv1.2", b"pong") == both.same(ask)


@pytest.mark.parametrize("worker", WORKERS)
def test_a_request_in_flight_over_tls_is_answered_during_a_stop(worker: str) -> None:
    with gunicorn_server(*KEEP, worker=worker, tls=True) as server, server.client(10.0) as client:
        assert b"pong" == client.ask("/").body
        client.send(request("/slow?seconds=1"))
        eventually(lambda: b"pong" == server.get("/")[2])
        server.process.terminate()
        assert b"slow" == client.response().body
        assert 0 == server.stop()


# HTTP/2.


@pytest.fixture(scope="module")
def http_2() -> Iterator[Sides]:
    with both_workers(*KEEP, *HTTP_2, tls=True) as both:
        yield both


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


def h2load(server: GunicornServer, target: str, *options: str, scheme: str = "https") -> dict[str, int]:
    """What h2load counts, after it has asked for `target` as `options` say."""
    output = run("h2load", *options, f"{scheme}://127.0.0.1:{server.port}{target}")
    counted = re.search(
        r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", output
    )
    assert counted is not None, output
    protocol = re.search(r"Application protocol: (\S+)", output)
    assert protocol is not None, output
    assert protocol[1] in ("h2", "h2c")
    return dict(zip(("total", "done", "succeeded", "failed", "errored"), map(int, counted.groups()), strict=True))


@needs("h2load")
@pytest.mark.parametrize("target", ["/", "/large?bytes=100000", "/stream?chunks=5&size=1000", "/file"])
def test_h2load_over_tls_gets_every_answer(http_2: Sides, target: str) -> None:
    def ask(server: GunicornServer) -> dict[str, int]:
        return h2load(server, target, "-n", "100", "-c", "4", "-m", "10")

    assert {"total": 100, "done": 100, "succeeded": 100, "failed": 0, "errored": 0} == http_2.same(ask)


@needs("h2load")
@pytest.mark.prove
def test_h2load_over_tls_gets_every_answer_of_many(http_2: Sides) -> None:
    counted = h2load(http_2.parking, "/", "-n", "5000", "-c", "50", "-m", "20")
    assert (5000, 0, 0) == (counted["succeeded"], counted["failed"], counted["errored"])


@needs("h2load")
def test_h2load_may_send_bodies(http_2: Sides, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(pattern(50_000))

    def ask(server: GunicornServer) -> dict[str, int]:
        return h2load(server, "/body", "-n", "20", "-c", "2", "-m", "5", "-d", str(body))

    assert 20 == http_2.same(ask)["succeeded"]


@needs("nghttp")
def test_an_answer_over_http_2_is_the_same(http_2: Sides) -> None:
    def ask(server: GunicornServer) -> Any:
        environ = json.loads(run("nghttp", "--no-verify-peer", f"https://127.0.0.1:{server.port}/environ"))
        comparable_ = comparable(environ)
        return {key: value for key, value in comparable_.items() if key != "HTTP_HOST"}

    environ = http_2.same(ask)
    assert ("HTTP/2.0", "2", "https") == (
        environ["SERVER_PROTOCOL"],
        environ["HTTP_VERSION"],
        environ["wsgi.url_scheme"],
    )


@needs("nghttp")
def test_hints_and_statuses_over_http_2_are_the_same(http_2: Sides) -> None:
    def ask(server: GunicornServer) -> list[str]:
        output = run("nghttp", "-vn", "--no-verify-peer", f"https://127.0.0.1:{server.port}/hints?count=2")
        return re.findall(r":status: (\d+)", output)

    assert ["103", "103", "200"] == http_2.same(ask)


@needs("nghttp")
def test_contextvars_of_one_stream_are_not_in_the_next(http_2: Sides) -> None:
    url = f"https://127.0.0.1:{http_2.parking.port}/context"
    output = run("nghttp", "--no-verify-peer", *[f"{url}?{number}" for number in range(4)])
    assert ["nothing"] * 4 == re.findall(r'"left": "(\w+)"', output)


def test_http_1_goes_on_beside_http_2(http_2: Sides) -> None:
    def ask(server: GunicornServer) -> Any:
        found = []
        for protocols in (["http/1.1"], []):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            if protocols:
                context.set_alpn_protocols(protocols)
            with context.wrap_socket(server.connect(raw=True)) as sock:
                client = Client(sock)
                found.append((sock.selected_alpn_protocol(), client.ask("/").body, client.ask("/missing").status))
        return found

    assert [("http/1.1", b"pong", 404), (None, b"pong", 404)] == http_2.same(ask)


@needs("h2load")
@pytest.mark.parametrize("worker", WORKERS)
def test_an_http_2_connection_is_let_finish_during_a_stop(worker: str) -> None:
    with gunicorn_server(*KEEP, *HTTP_2, worker=worker, tls=True) as server:
        url = f"https://127.0.0.1:{server.port}/slow?seconds=1"
        client = subprocess.Popen(
            ["nghttp", "--no-verify-peer", url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            eventually(lambda: established(server.port) >= 1)
            eventually(lambda: b"pong" == server.get("/")[2])
            server.process.terminate()
            assert "slow" == client.communicate(timeout=15)[0]
        finally:
            client.kill()
            client.wait()
        assert 0 == server.stop()


def established(port: int) -> int:
    """How many connections there are whose one end is at this port of this machine."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return sum(1 for line in lines if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01")


# HTTP/2 without TLS.


@pytest.fixture(scope="module")
def cleartext() -> Iterator[Sides]:
    with both_workers(
        *KEEP, *HTTP_2, "--http2-cleartext", "both", "--forwarded-allow-ips", "127.0.0.1", stock=STRICT
    ) as both:
        yield both


@needs("h2load")
def test_h2load_knows_beforehand_that_the_server_speaks_http_2(cleartext: Sides) -> None:
    def ask(server: GunicornServer) -> dict[str, int]:
        return h2load(server, "/", "-n", "100", "-c", "4", "-m", "10", "-p", "h2c", scheme="http")

    assert (100, 100) == (cleartext.same(ask)["succeeded"], cleartext.same(ask)["done"])


@needs("nghttp")
@pytest.mark.parametrize("options", [["-u"], []])
def test_a_connection_is_upgraded_to_http_2(cleartext: Sides, options: list[str]) -> None:
    def ask(server: GunicornServer) -> str:
        return run("nghttp", *options, f"http://127.0.0.1:{server.port}/stream?chunks=3&size=1").partition("[")[0]

    assert pattern(3).decode() == cleartext.same(ask)


def test_http_1_goes_on_beside_http_2_without_tls(cleartext: Sides) -> None:
    def ask(server: GunicornServer) -> Any:
        with server.client() as client:
            return [
                client.ask("/").body,
                client.ask("/echo", method="POST", body=b"abc").status,
                client.ask("/context").status,
            ]

    assert [b"pong", 200, 200] == cleartext.same(ask)
    assert b"pong" in cleartext.same(lambda server: exchange(server, request()))


def test_strangers_cannot_speak_http_2_without_tls(cleartext: Sides) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    answer = cleartext.same(lambda server: exchange(server, preface, source="127.0.0.9"))
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_what_follows_an_upgrade_is_http_2_or_nothing(cleartext: Sides) -> None:
    upgrade = request("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")

    def ask(server: GunicornServer) -> tuple[bytes, bool]:
        answer = exchange(server, upgrade + request("/status?body=smuggled"))
        return answer.partition(b"\r\n\r\n")[0], b"smuggled" in answer

    assert (b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c", False) == cleartext.same(ask)


def test_only_the_asked_for_way_to_http_2_is_open() -> None:
    arguments = (*KEEP, *HTTP_2, "--http2-cleartext", "prior-knowledge", "--forwarded-allow-ips", "127.0.0.1")
    with both_workers(*arguments) as both:
        answer = both.same(lambda server: exchange(server, request()))
        assert answer.startswith(b"HTTP/1.1 400 ")
        stranger = both.same(lambda server: exchange(server, request(), source="127.0.0.9"))
        assert stranger.endswith(b"pong")


def test_idle_tls_connections_are_answered_whenever_they_ask() -> None:
    with gunicorn_server("--keep-alive", "30", worker=PARKING, tls=True) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(50)]
        for _ in range(3):
            assert [b"pong"] * 50 == [client.ask("/").body for client in clients]
        server.process.terminate()
        assert [b""] * 50 == [client.rest() for client in clients]
        assert 0 == server.stop()
