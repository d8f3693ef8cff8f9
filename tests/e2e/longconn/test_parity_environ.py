"""The environ of a request and the listeners it comes through are those of the stock gevent worker."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gunicorn import eventually
from tests.support.longconn_server import Client, GunicornServer, gunicorn_server
from tests.support.longconn_sides import PARKING, STOCK, Sides, both_workers, comparable, exchange

KEEP = ("--keep-alive", "5")


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    with both_workers(*KEEP) as both:
        yield both


def environ_of(client: Client, target: str = "/environ", *fields: str, method: str = "GET", body: bytes = b"") -> Any:
    return json.loads(client.ask(target, *fields, method=method, body=body).body)


REQUESTS: list[tuple[str, tuple[str, ...], str, bytes]] = [
    ("/environ", (), "GET", b""),
    ("/environ?a=b&c=%20#fragment", ("Accept: a", "Accept: b", "X-Empty:"), "GET", b""),
    ("/%65nviron", ("Content-Type: text/plain; charset=utf-8",), "POST", b"Seawall"),
    ("/environ", ("Cookie: a=b", "Cookie: c=d", "Authorization: Basic YTpi", "Proxy: http://evil"), "GET", b""),
    ("http://other.example/environ", ("X-Latin: \xe4\xf6", "Te: trailers", "Connection: keep-alive, te"), "GET", b""),
    ("/environ", ("X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: https", "X-Request-Id: 5"), "GET", b""),
]


@pytest.mark.parametrize(("target", "fields", "method", "body"), REQUESTS)
def test_the_environ_is_equal_key_by_key(
    sides: Sides, target: str, fields: tuple[str, ...], method: str, body: bytes
) -> None:
    def ask(server: GunicornServer) -> list[Any]:
        with server.client() as client:
            found = [environ_of(client, target, *fields, method=method, body=body) for _ in range(2)]
        return [comparable(each) for each in found]

    first, second = sides.same(ask)
    assert first == second


def test_the_environ_names_both_ends(sides: Sides) -> None:
    for server in (sides.stock, sides.parking):
        with server.client(source="127.0.0.7") as client:
            environ = environ_of(client)
            _, port = client.socket.getsockname()
        ends = [environ[key] for key in ("REMOTE_ADDR", "REMOTE_PORT", "SERVER_NAME", "SERVER_PORT")]
        assert ["127.0.0.7", str(port), "127.0.0.1", str(server.port)] == ends


def test_nothing_of_one_request_is_in_the_next_ones_environ(sides: Sides) -> None:
    def ask(server: GunicornServer) -> Any:
        with server.client() as client:
            environ_of(client, "/environ", "X-Secret: a", "Content-Type: a", method="POST", body=b"body")
            return comparable(environ_of(client))

    assert not {"HTTP_X_SECRET", "CONTENT_TYPE", "CONTENT_LENGTH"} & sides.same(ask).keys()


def test_script_name_of_the_process_is_taken_off_the_path() -> None:
    with both_workers(*KEEP, environment={"SCRIPT_NAME": "/under"}) as both:

        def ask(server: GunicornServer) -> Any:
            with server.client() as client:
                found = environ_of(client, "/under/environ")
                return found["SCRIPT_NAME"], found["PATH_INFO"], client.ask("/environ").status

        assert ("/under", "/environ", 500) == both.same(ask)


def test_several_processes_are_said_to_be_several() -> None:
    with both_workers(*KEEP, workers=2) as both:
        assert both.same(lambda server: json.loads(server.get("/environ")[2])["wsgi.multiprocess"]) is True


@pytest.mark.parametrize("host", ["Host: name.example:8080", "Host: name.example", "Host:"])
def test_behind_a_unix_socket_the_environ_is_the_same(host: str) -> None:
    with both_workers(*KEEP, unix=True) as both:

        def ask(server: GunicornServer) -> Any:
            with server.client() as client:
                client.send(f"GET /environ HTTP/1.1\r\n{host}\r\n\r\n".encode())
                first = client.response()
                second = client.ask("/environ")
            found = [json.loads(each.body.replace(server.path.encode(), b"PATH")) for each in (first, second)]
            return [(comparable(each), each["SERVER_PORT"]) for each in found]

        assert ["", ""] == [environ["REMOTE_ADDR"] for environ, _ in both.same(ask)]


def test_contextvars_of_one_request_are_not_in_the_next(sides: Sides) -> None:
    found = {}
    for name, server in ((STOCK, sides.stock), (PARKING, sides.parking)):
        with server.client() as client:
            found[name] = [
                json.loads(client.ask(target).body)["left"] for target in ("/context", "/context", "/flask/context")
            ]
            found[name].append(json.loads(client.ask("/flask/context").body)["held"])
    # The stock worker serves a connection in one greenlet, whose context stays.
    assert ["nothing", "something", "something", "nothing"] == found[STOCK]
    assert ["nothing", "nothing", "nothing", "nothing"] == found[PARKING]


def test_contextvars_of_pipelined_requests_and_of_other_connections_are_apart_too(sides: Sides) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(sides.parking.client()) for _ in range(5)]
        for client in clients:
            client.send(b"GET /context HTTP/1.1\r\nHost: a\r\n\r\n" * 4)
        left = [json.loads(client.response().body)["left"] for client in clients for _ in range(4)]
    assert ["nothing"] * 20 == left


# The PROXY protocol.

V2 = b"\r\n\r\n\0\r\nQUIT\n"


def version_2(command: int, family: int, addresses: bytes) -> bytes:
    return V2 + bytes([0x20 | command, family]) + struct.pack(">H", len(addresses)) + addresses


IPV4 = socket.inet_aton("10.1.2.3") + socket.inet_aton("10.4.5.6") + struct.pack(">HH", 1111, 2222)
IPV6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") * 2 + struct.pack(">HH", 3333, 4444)

PREFIXES = {
    "v1 tcp4": (b"PROXY TCP4 10.1.2.3 10.4.5.6 1111 2222\r\n", ["TCP4", "10.1.2.3", "1111", "10.4.5.6", "2222"]),
    "v1 tcp6": (b"PROXY TCP6 2001:db8::1 ::1 33 44\r\n", ["TCP6", "2001:db8::1", "33", "::1", "44"]),
    "v2 tcp4": (version_2(1, 0x11, IPV4), ["TCP4", "10.1.2.3", "1111", "10.4.5.6", "2222"]),
    "v2 tcp6": (version_2(1, 0x21, IPV6), ["TCP6", "2001:db8::1", "3333", "2001:db8::1", "4444"]),
    "v2 with extras": (version_2(1, 0x11, IPV4 + b"\x04\0\x01a"), ["TCP4", "10.1.2.3", "1111", "10.4.5.6", "2222"]),
}
PROXY_KEYS = ("PROXY_PROTOCOL", "REMOTE_ADDR", "REMOTE_PORT", "PROXY_ADDR", "PROXY_PORT")


@pytest.fixture(scope="module")
def proxied() -> Iterator[Sides]:
    arguments = ("--proxy-protocol", "auto", "--proxy-allow-from", "127.0.0.1", "--http-parser", "python")
    with both_workers(*KEEP, *arguments) as both:
        yield both


@pytest.mark.parametrize(("prefix", "expected"), PREFIXES.values(), ids=PREFIXES.keys())
@pytest.mark.parametrize("piece", [1000, 1])
def test_the_proxy_protocol_names_the_client_for_every_request_of_its_connection(
    proxied: Sides, prefix: bytes, expected: list[str], piece: int
) -> None:
    data = prefix + b"GET /environ HTTP/1.1\r\nHost: a\r\n\r\n"

    def ask(server: GunicornServer) -> Any:
        with server.client() as client:
            for start in range(0, len(data), piece):
                client.send(data[start : start + piece])
            first, second = json.loads(client.response().body), environ_of(client)
        return [[each[key] for key in PROXY_KEYS] for each in (first, second)]

    assert [expected, expected] == proxied.same(ask)


@pytest.mark.parametrize(
    ("prefix", "status"),
    [
        (version_2(0, 0x00, b""), b"200"),
        (version_2(1, 0x01, b""), b"200"),
        (b"PROXY TCP4 10.1.2.3 10.4.5.6 1111\r\n", b"400"),
        (b"PROXY TCP4 300.1.2.3 10.4.5.6 1111 2222\r\n", b"400"),
        (b"PROXY TCP4 10.1.2.3 10.4.5.6 1111 99999\r\n", b"400"),
        (b"PROXY UDP4 10.1.2.3 10.4.5.6 1111 2222\r\n", b"400"),
        (b"", b"200"),
    ],
)
def test_what_is_wrong_with_the_proxy_protocol_is_refused_alike(proxied: Sides, prefix: bytes, status: bytes) -> None:
    answer = proxied.same(lambda server: exchange(server, prefix + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
    assert status == answer[9:12]


@pytest.mark.parametrize(
    "prefix",
    [
        version_2(1, 0x12, IPV4),
        version_2(1, 0x11, IPV4[:5]),
        V2 + b"\x31\x11\x00\x00",
        b"PROXY TCP4 10.1.2.3\x00 10.4.5.6 1111 2222\r\n",
    ],
)
def test_what_gunicorn_takes_for_a_fault_of_its_own_is_the_clients(proxied: Sides, prefix: bytes) -> None:
    request = prefix + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert b"500" == exchange(proxied.stock, request)[9:12]
    assert b"400" == exchange(proxied.parking, request)[9:12]


@pytest.mark.parametrize("prefix", [PREFIXES["v1 tcp4"][0], PREFIXES["v2 tcp4"][0]])
def test_the_proxy_protocol_of_a_stranger_is_refused(proxied: Sides, prefix: bytes) -> None:
    data = prefix + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = proxied.same(lambda server: exchange(server, data, source="127.0.0.9"))
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")


def test_the_proxy_protocol_is_for_the_first_request_only(proxied: Sides) -> None:
    prefix = PREFIXES["v1 tcp4"][0]
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = proxied.same(lambda server: exchange(server, prefix + request + prefix + request))
    assert [b"200", b"400"] == [answer[9:12], answer.rpartition(b"HTTP/1.1 ")[2][:3]]


def test_the_proxy_protocol_behind_a_unix_socket_names_the_client_for_every_request() -> None:
    with both_workers(*KEEP, "--proxy-protocol", "auto", unix=True) as both:

        def ask(server: GunicornServer) -> Any:
            with server.client() as client:
                client.send(PREFIXES["v1 tcp4"][0])
                found = [environ_of(client) for _ in range(2)]
            return [[each[key] for key in PROXY_KEYS] for each in found]

        assert [PREFIXES["v1 tcp4"][1]] * 2 == both.same(ask)


@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_one_version_of_the_proxy_protocol_can_be_asked_for(mode: str) -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with both_workers(*KEEP, "--proxy-protocol", mode, "--http-parser", "python") as both:
        for name, (prefix, _) in PREFIXES.items():
            answer = both.same(lambda server, prefix=prefix: exchange(server, prefix + request))  # type: ignore[misc]
            assert (b"200" if name.startswith(mode) else b"400") == answer[9:12]


# Listeners.


@pytest.mark.parametrize("worker", [STOCK, PARKING])
def test_every_address_is_listened_at(worker: str, tmp_path: Path) -> None:
    path = f"{tmp_path}/socket"
    binds = ("--bind", "127.0.0.1:0", "--bind", "127.0.0.3:0", "--bind", f"unix:{path}")
    with gunicorn_server(*KEEP, *binds, worker=worker) as server:
        first, second, third = server.addresses
        assert ["127.0.0.1", "127.0.0.3", path] == [first[0], second[0], third]
        for address in server.addresses:
            with contextlib.closing(connect(address)) as sock:
                client = Client(sock)
                assert b"pong" == client.ask("/").body
                environ = environ_of(client)
            if address is not third:
                assert address == [environ["SERVER_NAME"], int(environ["SERVER_PORT"])]
        assert 0 == server.stop()
        assert not Path(path).exists()


def connect(address: str | list[Any]) -> socket.socket:
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(address)
        return sock
    return socket.create_connection((address[0], address[1]), 5)


def test_ipv6_is_listened_at() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with both_workers(*KEEP, "--bind", "[::1]:0") as both:

        def ask(server: GunicornServer) -> Any:
            with contextlib.closing(socket.create_connection(("::1", server.port), 5)) as sock:
                return comparable(environ_of(Client(sock)))

        assert "::1" == both.same(ask)["REMOTE_ADDR"]


def test_each_worker_may_have_a_socket_of_its_own() -> None:
    for worker in (STOCK, PARKING):
        with socket.socket() as holder:  # keeps the port, and takes no connection because it does not listen
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{holder.getsockname()[1]}"
            with gunicorn_server("--reuse-port", "--bind", address, worker=worker, workers=2) as server:
                seen: set[int] = set()

                def both_seen(server: GunicornServer = server, seen: set[int] = seen) -> bool:
                    seen.add(json.loads(server.get("/pid")[2])["pid"])
                    return set(server.worker_pids()) == seen

                eventually(both_seen)
                assert 0 == server.stop()


# The uwsgi protocol.


def packet(variables: dict[str, str], body: bytes = b"", modifier: int = 0) -> bytes:
    block = b"".join(
        struct.pack("<H", len(part)) + part
        for key, value in variables.items()
        for part in (key.encode("latin-1"), value.encode("latin-1"))
    )
    return struct.pack("<BHB", modifier, len(block), 0) + block + body


UWSGI = {"REQUEST_METHOD": "GET", "PATH_INFO": "/echo", "QUERY_STRING": "a=b", "HTTP_HOST": "a", "HTTP_X_ONE": "1"}


@pytest.fixture(scope="module")
def uwsgi() -> Iterator[Sides]:
    with both_workers(*KEEP, "--protocol", "uwsgi", "--uwsgi-allow-from", "127.0.0.1") as both:
        yield both


@pytest.mark.parametrize(
    "data",
    [
        packet(UWSGI),
        packet({**UWSGI, "REQUEST_METHOD": "POST", "CONTENT_LENGTH": "7", "CONTENT_TYPE": "a"}, b"Seawall"),
        packet({**UWSGI, "PATH_INFO": "/stream"}),
        packet({**UWSGI, "PATH_INFO": "/raise"}),
        packet({**UWSGI, "HTTPS": "on", "PATH_INFO": "/large", "QUERY_STRING": "bytes=100"}),
        packet({**UWSGI, "HTTP_CONNECTION": "close"}),
        packet(UWSGI) * 2,
        packet(UWSGI, modifier=5),
        packet(UWSGI)[:20],
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_the_uwsgi_protocol_is_spoken_alike(uwsgi: Sides, data: bytes) -> None:
    uwsgi.same(lambda server: exchange(server, data))


def test_the_uwsgi_protocol_is_answered(uwsgi: Sides) -> None:
    variables = {**UWSGI, "REQUEST_METHOD": "POST", "CONTENT_LENGTH": "7"}

    def ask(server: GunicornServer) -> Any:
        with server.client() as client:
            for byte in packet(variables, b"Seawall"):
                client.send(bytes([byte]))
            first = json.loads(client.response().body)
            client.send(packet({**UWSGI, "PATH_INFO": "/"}))
            return first["length"], first["headers"], client.response().body

    assert (7, {"Host": "a", "X-One": "1"}, b"pong") == uwsgi.same(ask)


def test_the_uwsgi_protocol_is_not_for_strangers(uwsgi: Sides) -> None:
    answer = uwsgi.same(lambda server: exchange(server, packet(UWSGI), source="127.0.0.9"))
    assert b"200 OK" not in answer
