"""Every deadline and every limit of the worker, seen from a client: each ends in an answer or a close, never in silence."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.longconn_client import Broken, Conversation, request
from tests.support.longconn_server import GunicornServer, gunicorn_server
from tests.support.opened import close_opened, opened

MIRROR = "tests.support.longconn_mirror:application"
SOON = 8.0
"""Seconds within which a deadline of about one second is kept, on a machine with other things to do."""

MAX_BODY = 1000
MAX_REQUESTS = 5
DESCRIPTORS = 100
CLIENTS = 150
"""More than those descriptors allow."""


@pytest.fixture(scope="module")
def strict() -> Iterator[GunicornServer]:
    """A server with short deadlines and small limits that do not get into each other's way."""
    environment = {
        "LONGCONN_HEAD_TIMEOUT": "1",
        "LONGCONN_BODY_TIMEOUT": "1",
        "LONGCONN_WRITE_TIMEOUT": "1",
        "LONGCONN_IDLE_TIMEOUT": "2",
        "LONGCONN_MAX_BODY": str(MAX_BODY),
        "LONGCONN_MAX_REQUESTS_PER_CONNECTION": str(MAX_REQUESTS),
        "LONGCONN_BODY_RATE": "50",
        "LONGCONN_TCP_KEEPALIVE": "47",
        "LONGCONN_TCP_USER_TIMEOUT": "23",
    }
    with gunicorn_server(app=MIRROR, environment=environment) as server:
        yield server


@contextlib.contextmanager
def limited(
    *arguments: str, workers: int = 1, config: str = "", tls: bool = False, **limits: object
) -> Iterator[GunicornServer]:
    """A server with these settings, named without their prefix."""
    environment = {f"LONGCONN_{name.upper()}": str(value) for name, value in limits.items()}
    with gunicorn_server(
        *arguments, app=MIRROR, environment=environment, workers=workers, config=config, tls=tls
    ) as server:
        yield server


def talk(server: GunicornServer, source: str = "127.0.0.1") -> Conversation:
    conversation = Conversation(server.connect(timeout=10.0, source=source))
    opened(conversation.socket)
    return conversation


def eventually(condition: Callable[[], object], *, within: float = SOON) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.02)


def refusals(client: Conversation, *, within: float = SOON) -> list[int]:
    """The statuses that come until the connection ends. The last answer says that it is the last."""
    replies = client.until_closed(within=within)
    assert replies == [] or replies[-1].closes
    return [reply.status for reply in replies]


def working(server: GunicornServer, count: int, seconds: float) -> list[Conversation]:
    """Connections whose requests are under way for so long."""
    clients = []
    for _ in range(count):
        clients.append(talk(server))
        clients[-1].send(request("GET", f"/whole?pause={seconds}"))
        time.sleep(0.02)
    time.sleep(0.3)
    return clients


def leave_descriptors(pid: int, count: int) -> None:
    """Allow the process `count` more open files than it has."""
    in_use = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use + count, hard))


def close_all(clients: list[Conversation]) -> None:
    for client in clients:
        client.socket.close()


# Deadlines.


@pytest.mark.together
def test_a_head_that_does_not_come_to_its_end_is_answered_408(strict: GunicornServer) -> None:
    with talk(strict) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        assert [408] == refusals(client)


def test_a_head_that_trickles_gains_no_time(strict: GunicornServer) -> None:
    with talk(strict) as client:
        started = time.monotonic()
        while time.monotonic() - started < SOON and not client.is_closed():
            client.send(b"X-A: b\r\n" if time.monotonic() - started > 0.2 else b"GET / HTTP/1.1\r\n")
            time.sleep(0.15)
        assert client.is_closed()
        assert time.monotonic() - started > 0.9


@pytest.mark.together
def test_the_head_of_a_second_request_has_a_deadline_of_its_own(strict: GunicornServer) -> None:
    with talk(strict) as client:
        assert 200 == client.get().status
        time.sleep(1.2)  # idle for longer than a head may take
        client.send(b"GET / HTTP/1.1\r\n")
        time.sleep(0.3)
        client.send(b"Host: a\r\n\r\n")
        assert 200 == client.reply().status
        client.send(b"GET / HT")
        assert [408] == refusals(client)


@pytest.mark.together
def test_who_says_nothing_at_all_is_closed(strict: GunicornServer) -> None:
    with talk(strict) as client:
        assert refusals(client) in ([], [408])


@pytest.mark.parametrize(
    ("name", "framing", "begin"),
    [("length", "Content-Length: 500", b"begun"), ("chunked", "Transfer-Encoding: chunked", b"1F\r\nbegun")],
)
def test_a_body_that_stops_is_answered_408(strict: GunicornServer, name: str, framing: str, begin: bytes) -> None:
    with talk(strict) as client:
        client.send(request("POST", "/whole", [framing], begin))
        assert [408] == refusals(client)


@pytest.mark.together
def test_a_body_that_nobody_reads_must_come_too(strict: GunicornServer) -> None:
    """The answer needs no body, but the connection does not wait for ever for its rest."""
    with talk(strict) as client:
        client.send(request("POST", "/ignore", ["Content-Length: 500"], b"begun"))
        assert 200 == client.reply().status
        assert refusals(client) in ([], [408])


@pytest.mark.together
def test_a_body_that_comes_within_the_gap_is_read(strict: GunicornServer) -> None:
    with talk(strict) as client:
        client.send(request("POST", "/whole", ["Content-Length: 100"]))
        for _ in range(5):
            time.sleep(0.4)
            client.send(b"a" * 20)
        reply = client.reply()
        assert 200 == reply.status
        assert 100 == json.loads(reply.body)["length"]


@pytest.mark.together
def test_a_body_below_the_minimum_rate_is_answered_408(strict: GunicornServer) -> None:
    """5 bytes/s where 50 are due: the gap never lasts, the rate is asked for after five seconds."""
    with talk(strict) as client:
        client.send(request("POST", "/whole", ["Content-Length: 900"]))
        started = time.monotonic()
        while time.monotonic() - started < 5 + SOON and not client.is_closed():
            client.send(b"a")
            time.sleep(0.2)
        assert [408] == refusals(client)


@pytest.mark.together
def test_who_does_not_read_an_answer_is_cut(strict: GunicornServer) -> None:
    with contextlib.closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((strict.host, strict.port))
        client.sendall(request("GET", f"/whole?pad={40_000_000}"))
        time.sleep(3)
        client.settimeout(SOON)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(1 << 20):
                received += len(data)
        assert 0 < received < 40_000_000


@pytest.mark.together
def test_a_slow_reader_that_keeps_reading_gets_everything(strict: GunicornServer) -> None:
    with talk(strict) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.send(request("GET", f"/whole?pad={5_000_000}", ["X-Marker: slow"]))
        received = bytearray()
        with contextlib.suppress(TimeoutError):
            while len(received) < 5_000_000:
                received += client.socket.recv(250_000)
                time.sleep(0.05)
        assert len(received) >= 5_000_000


@pytest.mark.together
def test_a_parked_connection_is_closed_when_it_was_idle_too_long(strict: GunicornServer) -> None:
    with talk(strict) as client:
        for _ in range(3):  # each request begins the time anew
            assert 200 == client.get().status
            time.sleep(1.2)
        assert [] == client.until_closed(within=SOON)  # and nobody is told anything: there is no request to answer


@pytest.mark.together
def test_an_application_that_takes_too_long_is_answered_504() -> None:
    with limited(request_timeout=1) as server:
        with talk(server) as client:
            client.send(request("GET", "/whole?pause=10"))
            assert [504] == refusals(client)
        with talk(server) as client:
            assert 200 == client.get("/whole?pause=0.2").status


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], ids=["nothing", "a part"])
@pytest.mark.together
def test_a_tls_client_that_never_finishes_its_handshake_is_closed(hello: bytes) -> None:
    with limited(tls=True, handshake_timeout=1) as server:
        with contextlib.closing(server.connect(raw=True)) as client:
            client.sendall(hello)
            client.settimeout(SOON)
            with contextlib.suppress(ConnectionResetError):
                assert b"" == client.recv(100)
        with talk(server) as other:
            assert isinstance(other.socket, ssl.SSLSocket)
            assert 200 == other.get().status


@pytest.mark.together
def test_gunicorns_own_settings_are_the_defaults() -> None:
    with limited("--keep-alive", "1", "--worker-connections", "3") as server:
        with talk(server) as client:
            assert 200 == client.get().status
            assert [] == client.until_closed(within=SOON)
        clients = working(server, 3, 2)
        with talk(server) as client:
            assert 503 == client.get().status
        assert [200] * 3 == [client.reply().status for client in clients]


# Sizes.


@pytest.mark.parametrize("path", ["/whole", "/stream", "/file", "/ignore"])
@pytest.mark.together
def test_a_body_that_announces_too_much_is_answered_413(strict: GunicornServer, path: str) -> None:
    with talk(strict) as client:
        client.send(request("POST", path, [f"Content-Length: {MAX_BODY + 1}"]))
        assert [413] == refusals(client)


@pytest.mark.together
def test_a_client_that_asks_first_is_not_told_to_continue_with_too_much(strict: GunicornServer) -> None:
    with talk(strict) as client:
        client.send(request("POST", "/whole", ["Expect: 100-continue", f"Content-Length: {MAX_BODY + 1}"]))
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while data := client.socket.recv(4096):
                received += data
        assert received.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("path", ["/whole", "/stream", "/file"])
@pytest.mark.parametrize("sent", [MAX_BODY + 1, 200_000])
@pytest.mark.together
def test_a_chunked_body_that_grows_too_large_is_answered_413(strict: GunicornServer, path: str, sent: int) -> None:
    """Also when the client goes on sending: its answer must not be lost in a reset."""
    chunk = b"%x\r\n%s\r\n" % (100, b"a" * 100)
    body = chunk * (sent // 100) + b"1\r\na\r\n" + b"0\r\n\r\n"
    with talk(strict) as client:
        client.send(request("POST", path, ["Transfer-Encoding: chunked"], body))
        assert [413] == refusals(client)


@pytest.mark.parametrize("sent", [MAX_BODY + 1, 200_000])
@pytest.mark.together
def test_an_announced_body_that_is_sent_all_the_same_does_not_cost_the_answer(
    strict: GunicornServer, sent: int
) -> None:
    with talk(strict) as client:
        client.send(request("POST", "/whole", body=b"a" * sent))
        assert [413] == refusals(client)


@pytest.mark.together
def test_what_frames_or_follows_a_body_is_no_part_of_it(strict: GunicornServer) -> None:
    """Chunks of one byte take six, and the next requests are here already: neither is the body's size."""
    chunked = b"1\r\na\r\n" * MAX_BODY + b"0\r\n\r\n"
    following = request("GET", "/", ["X-Long: " + "a" * 6000])
    for body, field in ((chunked, "Transfer-Encoding: chunked"), (b"a" * MAX_BODY, f"Content-Length: {MAX_BODY}")):
        with talk(strict) as client:
            client.send(request("POST", "/whole", [field]))
            time.sleep(0.2)
            client.send(body + following * 3)
            assert [200] * 4 == [client.reply().status for _ in range(4)]


@pytest.mark.together
def test_a_body_of_just_the_limit_is_read(strict: GunicornServer) -> None:
    body = b"a" * MAX_BODY
    with talk(strict) as client:
        client.send(request("POST", "/whole", body=body))
        assert MAX_BODY == json.loads(client.reply().body)["length"]
        client.send(request("POST", "/whole", ["Transfer-Encoding: chunked"], b"3e8\r\n" + body + b"\r\n0\r\n\r\n"))
        assert MAX_BODY == json.loads(client.reply().body)["length"]


@pytest.mark.parametrize(
    ("status", "head"),
    [
        (414, b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 9000 + b"\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-Many: a\r\n" * 101 + b"\r\n"),
    ],
    ids=["line", "field", "fields"],
)
@pytest.mark.together
def test_a_head_beyond_gunicorns_limits_is_refused(strict: GunicornServer, status: int, head: bytes) -> None:
    with talk(strict) as client:
        client.send(head)
        assert [status] == refusals(client)


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nX-Endless: "], ids=["line", "field"])
@pytest.mark.together
def test_a_head_without_end_is_refused_before_its_deadline(begin: bytes) -> None:
    with limited(head_timeout=60) as server, talk(server) as client:
        client.send(begin)
        client.send(b"a" * 2_000_000)
        statuses = refusals(client)
        assert statuses in ([414], [431])


@pytest.mark.together
def test_all_incomplete_heads_together_have_a_limit() -> None:
    """The oldest are closed for the newest, whoever completes a head is served, and memory stays bounded."""
    part = b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 6000
    with limited(head_timeout=60, head_memory="64K") as server:
        clients = []
        for _ in range(40):
            clients.append(talk(server))
            clients[-1].send(part)
            time.sleep(0.02)
        eventually(lambda: sum(client.is_closed() for client in clients) >= 40 - 65_536 // 6000 - 1)
        states = [client.is_closed() for client in clients]
        assert 0 < states.index(False)
        assert not states[-1]
        with talk(server) as other:
            assert 200 == other.get().status
        clients[-1].send(b"\r\n\r\n")
        assert 200 == clients[-1].reply().status


@pytest.mark.together
def test_the_last_request_that_a_connection_may_make_says_so(strict: GunicornServer) -> None:
    with talk(strict) as client:
        replies = [client.get() for _ in range(MAX_REQUESTS)]
        assert [False] * (MAX_REQUESTS - 1) + [True] == [reply.closes for reply in replies]
        assert [] == client.until_closed(within=SOON)


@pytest.mark.together
def test_pipelined_requests_count_one_by_one(strict: GunicornServer) -> None:
    with talk(strict) as client:
        client.send(request("GET", "/") * (MAX_REQUESTS + 3))
        replies = client.until_closed(within=SOON)
        assert [False] * (MAX_REQUESTS - 1) + [True] == [reply.closes for reply in replies]


@pytest.mark.parametrize(("version", "field"), [("1.1", "Connection: close"), ("1.0", "X-Old: yes")])
@pytest.mark.together
def test_an_answer_is_not_lost_when_its_client_goes_on_sending(
    strict: GunicornServer, version: str, field: str
) -> None:
    """What arrives after a close makes the kernel reset the connection, and throw away what was not yet sent."""
    size = 300_000
    with contextlib.closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((strict.host, strict.port))
        client.sendall(request("GET", f"/whole?pad={size}", [field]).replace(b"HTTP/1.1", b"HTTP/" + version.encode()))
        for _ in range(6):
            time.sleep(0.05)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(request("GET", "/"))
        received = b""
        client.settimeout(SOON)
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(1 << 16):
                received += data
    assert 1 == received.count(b" 200 OK\r\n")
    assert len(received) > size


# Numbers of connections.


@pytest.mark.together
def test_a_full_worker_answers_503_when_every_connection_works() -> None:
    with limited(max_connections=4, retry_after=7) as server:
        clients = working(server, 4, 2.5)
        for _ in range(20):
            with talk(server) as refused:
                reply = refused.get()
                assert (503, "7", True) == (reply.status, reply.headers.get("retry-after"), reply.closes)
                assert [] == refused.until_closed(within=SOON)
        assert [200] * 4 == [client.reply().status for client in clients]
        with talk(server) as client:
            assert 200 == client.get().status


@pytest.mark.together
def test_a_full_worker_closes_incomplete_heads_before_parked_connections_and_the_oldest_first() -> None:
    """Newcomers are served meanwhile, and whoever works goes on working."""
    with limited("--keep-alive", "600", max_connections=12, head_timeout=60) as server:
        parked = []
        for _ in range(4):
            parked.append(talk(server))
            assert 200 == parked[-1].get().status
            time.sleep(0.15)
        heads = []
        for _ in range(4):
            heads.append(talk(server))
            heads[-1].send(b"GET / HTTP/1.1\r\n")
            time.sleep(0.15)
        workers = working(server, 4, 2.5)
        order = heads + parked
        newcomers = []
        for _ in range(8):
            newcomers.append(talk(server))
            assert 200 == newcomers[-1].get().status
            time.sleep(0.1)
            closed = [client.is_closed() for client in order]
            assert closed[0]
            assert sorted(closed, reverse=True) == closed, "a later one was closed before an earlier one"
        assert all(closed)
        assert [200] * 4 == [client.reply().status for client in workers]


@pytest.mark.together
def test_a_full_worker_closes_a_slow_transfer_before_parked_connections() -> None:
    with limited("--keep-alive", "600", max_connections=4, body_timeout=60, body_rate=1000) as server:
        parked = [talk(server) for _ in range(2)]
        assert [200, 200] == [client.get().status for client in parked]
        slow = [talk(server) for _ in range(2)]
        for client in slow:
            client.send(request("POST", "/whole", ["Content-Length: 5000"], b"a"))
        time.sleep(2.5)  # longer than any honest client may hesitate
        newcomers = []
        for _ in range(2):
            newcomers.append(talk(server))
            assert 200 == newcomers[-1].get().status
        assert all(client.is_closed() for client in slow)
        assert [200] * 4 == [client.get().status for client in (*parked, *newcomers)]


@pytest.mark.together
def test_one_client_may_have_only_so_many_connections() -> None:
    with limited(max_connections_per_client=3) as server:
        clients = [talk(server, "127.0.0.2") for _ in range(3)]
        assert [200] * 3 == [client.get().status for client in clients]
        with talk(server, "127.0.0.2") as refused:
            reply = refused.get()
            assert (429, True, True) == (reply.status, "retry-after" in reply.headers, reply.closes)
        with talk(server, "127.0.0.3") as other:
            assert 200 == other.get().status
        clients.pop().socket.close()
        eventually(lambda: _status(server, "127.0.0.2") == 200)


@pytest.mark.together
def test_all_workers_together_may_have_only_so_many_connections() -> None:
    with limited(workers=2, max_connections_total=6) as server:
        clients = working(server, 6, 2)
        statuses = [_status(server) for _ in range(5)]
        assert [503] * 5 == statuses
        assert [200] * 6 == [client.reply().status for client in clients]
        close_all(clients)
        eventually(lambda: _status(server) == 200)


def test_the_rate_of_accepting_has_a_limit() -> None:
    with limited(accept_rate=4, accept_burst=5) as server, ThreadPoolExecutor(30) as pool:
        time.sleep(1.5)  # what the start took is given back
        statuses = Counter(pool.map(lambda _: _status(server), range(30)))
        assert statuses.keys() <= {200, 429, 503}
        assert 4 <= statuses[200] <= 20  # a burst of 5, and a few seconds' worth where the machine is slow
        time.sleep(1.5)
        assert 200 == _status(server)


def test_a_reserved_listener_answers_when_the_others_are_full(tmp_path: Path) -> None:
    admin = f"unix:{tmp_path}/a"
    binds = ("--bind", "127.0.0.1:0", "--bind", admin)
    with limited(*binds, max_connections=6, reserved_connections=2, reserved_listeners=admin) as server:
        clients = working(server, 6, 2)
        assert 503 == _status(server)
        for _ in range(5):
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
                connection.connect(f"{tmp_path}/a")
                assert 200 == Conversation(connection).get().status
        assert 503 == _status(server)
        assert [200] * 6 == [client.reply().status for client in clients]


# Descriptors.


def test_more_clients_than_descriptors_are_all_attended_to() -> None:
    """The capacity is known at the start: idle connections make room, and nobody hangs."""
    config = f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))\n"
    with limited(config=config) as server:
        assert {"answered"} == _crowd(server)
        assert server.log().count("Traceback") == 0
        assert 200 == _status(server)


def test_descriptors_that_run_out_are_no_storm_of_errors() -> None:
    """The limit is lowered behind the worker's back, so that accepting itself fails."""
    with limited() as server:
        (worker,) = server.worker_pids()
        leave_descriptors(worker, 60)
        assert _crowd(server) <= {"answered", "refused"}
        assert server.log().count("Traceback") == 0
        assert len(server.log().splitlines()) < 100
        leave_descriptors(worker, 600)
        eventually(lambda: _status(server) == 200)
        assert [worker] == server.worker_pids()


@pytest.mark.together
def test_descriptors_that_run_out_while_all_work_are_told_and_not_kept_waiting() -> None:
    with limited() as server:
        (worker,) = server.worker_pids()
        leave_descriptors(worker, 10)
        clients = working(server, 30, 2)
        with ThreadPoolExecutor(30) as pool:
            outcomes = list(pool.map(_outcome, clients))
        assert set(outcomes) <= {200, 503, "closed"}
        assert outcomes.count(200) >= 5
        assert server.log().count("Traceback") == 0
        eventually(lambda: _status(server) == 200)


@pytest.mark.together
def test_the_options_of_every_socket_are_set(strict: GunicornServer) -> None:
    with talk(strict) as client:
        options = json.loads(client.get("/socket").body)
    assert {"nodelay": 1, "keepalive": 1, "keepalive idle": 47, "user timeout": 23_000} == options


def _status(server: GunicornServer, source: str = "127.0.0.1") -> int:
    with talk(server, source) as client:
        return client.get().status


def _outcome(client: Conversation) -> int | str:
    try:
        return client.reply(within=15).status
    except Broken as error:
        return "closed" if "closed" in str(error) else str(error)


def _crowd(server: GunicornServer) -> set[str]:
    """What happens to many clients that all stay connected after their one request."""
    everyone_has_asked = threading.Barrier(CLIENTS, timeout=60)

    def visit(_: int) -> str:
        try:
            client = talk(server)
        except ConnectionError:
            outcome: int | str = "closed"
        else:
            client.send(request("GET", "/"))
            outcome = _outcome(client)
        everyone_has_asked.wait()
        close_opened()
        return {200: "answered", 503: "answered", "closed": "refused"}.get(outcome, str(outcome))

    with ThreadPoolExecutor(CLIENTS) as pool:
        return set(pool.map(visit, range(CLIENTS)))
