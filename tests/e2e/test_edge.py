"""What the outside of the service shows to whoever calls it, under the real gunicorn."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import errors
from service.data.migrate import migrate
from tests.support.gunicorn import (
    ADMIN_TOKEN,
    PROBE,
    Answer,
    RunningService,
    administrator,
    ask,
    eventually,
    running_service,
    start_service,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("edge")
    with running_service(folder, app=PROBE, request_timeout=0.5, body_limit=1000, log_level="debug") as running:
        yield running


def raw(service: RunningService, request: bytes) -> bytes:
    """What a connection answers to these bytes, until it closes or falls silent."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=2) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True


def check_problem(answer: Answer, status: int, code: int) -> None:
    document = answer.json
    assert (status, status, code) == (answer.status, document["status"], document["code"])
    assert "application/problem+json" == answer.headers["Content-Type"]
    assert {"type", "title", "status", "detail", "instance", "code", "trace_id", "request_id"} <= document.keys()
    assert answer.headers["X-Trace-Id"] == document["trace_id"]
    assert answer.headers["X-Request-ID"] == document["request_id"]


def test_an_unknown_path_is_a_problem_document(service: RunningService) -> None:
    check_problem(service.get("/nothing/here"), 404, 10002)


def test_a_wrong_method_is_a_problem_document_with_the_right_ones(service: RunningService) -> None:
    answer = service.request("DELETE", "/probe/slow")
    check_problem(answer, 405, 10005)
    assert "GET" in answer.headers["Allow"]


def test_a_body_that_is_too_large_is_a_problem_document(service: RunningService) -> None:
    check_problem(service.post_json("/probe/echo", "x" * 1000), 413, 10007)


def test_a_chunked_body_that_grows_too_large_is_a_problem_document(service: RunningService) -> None:
    chunk = b"64\r\n" + b"x" * 100 + b"\r\n"
    received = raw(
        service,
        b"POST /probe/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 20 + b"0\r\n\r\n",
    )
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b'"code":10007' in received


@pytest.mark.parametrize("body", ["", "{", '{"a": NaN}', "[" * 900, '"\\ud800"'])
def test_a_body_that_is_not_json_is_a_problem_document(service: RunningService, body: str) -> None:
    check_problem(service.request("POST", "/probe/echo", body, {"Content-Type": "application/json"}), 400, 10001)


def test_a_body_of_another_type_is_a_problem_document(service: RunningService) -> None:
    check_problem(service.request("POST", "/probe/echo", "a=b", {"Content-Type": "text/plain"}), 415, 10008)


def test_a_malformed_chunked_body_is_a_problem_document(service: RunningService) -> None:
    received = raw(
        service,
        b"POST /probe/echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nnot a size\r\n",
    )
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in received


HOST = b"Host: x\r\n"
MALFORMED: dict[str, tuple[bytes, int]] = {
    "no request line": (b"nonsense\r\n\r\n", 400),
    "a version of its own": (b"GET / HTTP/9.9\r\n" + HOST + b"\r\n", 400),
    "a field without a name": (b"GET / HTTP/1.1\r\n" + HOST + b": <script>\r\n\r\n", 400),
    "a folded field": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\r\n <script>\r\n\r\n", 400),
    "a fold after the request line": (b"GET / HTTP/1.1\r\n X: <script>\r\n" + HOST + b"\r\n", 400),
    "lines that end with a bare line feed": (b"GET /livez HTTP/1.1\nHost: x\n\n", 400),
    "a field that ends with a bare line feed": (b"GET /livez HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "a length and chunks": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two hosts": (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "a long address": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "many fields": (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 200 + b"\r\n", 431),
    "an expectation of its own": (b"GET / HTTP/1.1\r\n" + HOST + b"Expect: <script>\r\n\r\n", 417),
    "a coding of its own": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: br, chunked\r\n\r\n", 501),
}


@pytest.mark.parametrize(("request_bytes", "status"), MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_refused_before_there_is_a_request_is_a_problem_document_too(
    service: RunningService, request_bytes: bytes, status: int
) -> None:
    head, _, body = raw(service, request_bytes).partition(b"\r\n\r\n")
    document = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nContent-Type: application/problem+json\r\n" in head
    assert b"\r\nConnection: close\r\n" in head
    assert status == document["status"]
    assert document["code"] in errors.REGISTRY
    assert {"type", "title", "detail", "trace_id", "request_id"} <= document.keys()
    assert b"script" not in body
    eventually(lambda: any(each["trace_id"] == document["trace_id"] for each in service.events("request")))
    (event,) = [each for each in service.events("request") if each["trace_id"] == document["trace_id"]]
    assert (status, None, "127.0.0.1") == (event["status"], event["route"], event["client"])


def test_a_caller_does_not_move_the_root_of_the_paths(service: RunningService) -> None:
    headers = {"SCRIPT_NAME": "/probe", "PATH_INFO": "/livez"}
    check_problem(service.get("/probe/livez", headers), 404, 10002)


def test_a_body_that_nobody_wanted_is_not_read(service: RunningService) -> None:
    head = b"POST /api/v1/users HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
        connection.sendall(head)
        sent, most = 0, 20_000_000
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while sent < most:
                sent += connection.send(b"x" * 65536)
        assert sent < most


def test_a_stalled_body_that_nobody_wanted_does_not_keep_its_connection(service: RunningService) -> None:
    head = b"POST /api/v1/users HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx"
    started = time.monotonic()
    received = raw(service, head)
    assert received.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" in received
    assert time.monotonic() - started < 2


def test_a_small_body_that_is_there_does_not_cost_the_connection(service: RunningService) -> None:
    request = b"POST /api/v1/users HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n" + b"x" * 900
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
        for _ in range(3):
            connection.sendall(request)  # in one piece, so that the body is there when the head is
            response = http.client.HTTPResponse(connection)
            response.begin()
            response.read()
            assert (401, "keep-alive") == (response.status, response.headers["Connection"])


def test_a_client_that_does_not_read_is_cut(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_service(tmp_path_factory.mktemp("deaf"), app=PROBE, longconn_write_timeout=1) as running:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.connect(("127.0.0.1", running.port))
            client.sendall(b"GET /probe/large HTTP/1.1\r\nHost: x\r\n\r\n")
            eventually(lambda: is_reset(client), within=15)
        stream = running.get("/probe/stream?pause=0.3&count=8")
        assert b"x" * 8 == stream.body


def is_reset(client: socket.socket) -> bool:
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (errno.ECONNRESET, errno.EPIPE)


def test_silent_connections_do_not_take_the_admin_listener_away(service: RunningService) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            address = ("127.0.0.1", service.admin_port)
            client = stack.enter_context(socket.create_connection(address, timeout=5))
            client.sendall(b"GET /livez HTTP/1.1\r\n")
        started = time.monotonic()
        assert [200] * 10 == [service.get("/livez", admin=True).status for _ in range(10)]
        assert time.monotonic() - started < 2


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    patience = {"longconn_head_timeout": 1, "longconn_body_timeout": 1, "keepalive": 2}
    folder = tmp_path_factory.mktemp("strict")
    with running_service(folder, app=PROBE, **patience, longconn_max_body=5000, body_limit=10_000) as running:
        yield running


def check_refusal(response: bytes, status: int, code: int) -> None:
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nContent-Type: application/problem+json\r\n" in head
    assert b"\r\nConnection: close\r\n" in head
    document = json.loads(body)
    assert (status, code) == (document["status"], document["code"])
    assert {"type", "title", "detail", "trace_id", "request_id"} <= document.keys()


def exchange(port: int, sent: bytes) -> tuple[bytes, float]:
    """What a connection answers to these bytes until it is closed, and after how many seconds that is."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=8) as client:
        client.sendall(sent)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    return received, time.monotonic() - started


@pytest.mark.parametrize("admin", [False, True])
def test_a_head_that_does_not_come_is_not_waited_for(strict: RunningService, admin: bool) -> None:
    response, seconds = exchange(strict.admin_port if admin else strict.port, b"GET /livez HTTP/1.1\r\n")
    check_refusal(response, 408, 10009)
    assert 0.9 < seconds < 4


def test_a_body_that_does_not_come_is_not_waited_for(strict: RunningService) -> None:
    fields = b"Host: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
    response, seconds = exchange(strict.port, b"POST /probe/echo HTTP/1.1\r\n" + fields + b"\r\n[")
    check_refusal(response, 408, 10009)
    assert 0.9 < seconds < 4


def test_the_rest_of_a_small_body_that_nobody_wanted_is_waited_for_no_longer(strict: RunningService) -> None:
    head = b"POST /api/v1/users HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx"
    received, seconds = exchange(strict.port, head)
    assert received.startswith(b"HTTP/1.1 401 ")
    assert 1 == received.count(b"HTTP/1.1 ")
    assert seconds < 4


def test_a_body_beyond_the_worker_s_own_limit_does_not_reach_the_application(strict: RunningService) -> None:
    fields = b"Host: x\r\nContent-Type: application/json\r\nContent-Length: 5001\r\n"
    response, _ = exchange(strict.port, b"POST /probe/echo HTTP/1.1\r\n" + fields + b"\r\n")
    check_refusal(response, 413, 10007)


def test_a_connection_without_a_request_is_closed_after_its_time(strict: RunningService) -> None:
    for sent in (b"", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"):
        _, seconds = exchange(strict.port, sent)
        assert 1.5 < seconds < 6


def test_who_finds_no_room_is_told_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("small")
    with running_service(folder, app=PROBE, worker_connections=4) as small, contextlib.ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", small.port), timeout=5))
            client.sendall(b"GET /probe/slow?seconds=20 HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: sample(small, "longconn_open_connections") == 5)  # and the one that asks
        response, _ = exchange(small.port, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        check_refusal(response, 503, 20009)
        assert b"\r\nRetry-After: 1\r\n" in response
        assert 200 == small.get("/livez", admin=True).status


def test_a_client_with_many_connections_is_told_to_use_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("each")
    with running_service(folder, longconn_max_connections_per_client=2) as each:
        kept = [each.connect() for _ in range(2)]
        eventually(lambda: [200, 200] == [ask(connection, "GET", "/livez").status for connection in kept])
        response, _ = exchange(each.port, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        check_refusal(response, 429, 10029)
        assert b"\r\nRetry-After: 1\r\n" in response
        assert 200 == each.get("/livez", admin=True).status


def metrics(service: RunningService) -> Answer:
    return service.get("/metrics", ADMIN, admin=True)


def sample(service: RunningService, name: str) -> float:
    """The sum of a metric over its labels."""
    families = text_string_to_metric_families(metrics(service).body.decode())
    return sum(each.value for family in families for each in family.samples if each.name == name)


def test_metrics_are_for_whoever_has_the_admin_token(service: RunningService) -> None:
    answer = metrics(service)
    assert (200, "text/plain; version=0.0.4; charset=utf-8") == (answer.status, answer.headers["Content-Type"])
    check_problem(service.get("/metrics", admin=True), 401, 10003)
    check_problem(service.get("/metrics", ADMIN), 404, 10002)


def test_metrics_count_what_is_served(service: RunningService) -> None:
    before = sample(service, "longconn_requests_total")
    for _ in range(20):
        service.get("/livez")
    eventually(lambda: sample(service, "longconn_requests_total") >= before + 20)


def test_the_admin_listener_is_known_by_its_port_whatever_the_host_is_called(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running_service(tmp_path_factory.mktemp("named"), host="localhost") as named:
        assert 200 == named.get("/admin/circuits", ADMIN, admin=True).status
        assert 404 == named.get("/admin/circuits", ADMIN).status


def test_on_a_unix_socket_the_host_field_does_not_choose_the_surface(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        options = f"--bind unix:{folder}/s --bind 127.0.0.1:{{port}} --bind 127.0.0.1:{{admin_port}}"
        with running_service(tmp_path_factory.mktemp("unix"), app=PROBE, gunicorn_cmd_args=options) as running:
            fields = f"Host: x:{running.admin_port}\r\nAuthorization: {ADMIN['Authorization']}\r\n"
            for path, status in (("/admin/circuits", 404), ("/probe/in_flight", 200)):
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(5)
                    client.connect(f"{folder}/s")
                    client.sendall(f"GET {path} HTTP/1.1\r\n{fields}\r\n".encode())
                    assert client.recv(100).startswith(b"HTTP/1.1 %d " % status)


def test_a_missing_token_is_a_problem_document_with_a_challenge(service: RunningService) -> None:
    answer = service.get("/api/v1/users")
    check_problem(answer, 401, 10003)
    assert 'Bearer realm="seawall"' == answer.headers["WWW-Authenticate"]


def test_a_token_that_does_not_hold_is_a_problem_document_that_says_so(service: RunningService) -> None:
    answer = service.get("/api/v1/users", {"Authorization": "Bearer e30.e30.e30"})
    check_problem(answer, 401, 10003)
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


def test_a_token_that_holds_opens_the_api(service: RunningService) -> None:
    assert 200 == service.get("/api/v1/users", administrator(service)).status


def test_a_fault_of_ours_says_nothing_of_itself_and_its_trace_finds_it_in_the_log(service: RunningService) -> None:
    answer = service.get("/probe/fault")
    check_problem(answer, 500, 20000)
    assert b"SELECT" not in answer.body

    def found() -> list[dict[str, Any]]:
        return [each for each in service.events("unexpected error") if each["trace_id"] == answer.json["trace_id"]]

    eventually(found)
    (event,) = found()
    assert "RuntimeError: SELECT password FROM users" in event["exception"]


def test_a_request_that_takes_too_long_is_given_up_and_its_greenlet_freed(service: RunningService) -> None:
    started = time.monotonic()
    answer = service.get("/probe/slow?seconds=20")
    check_problem(answer, 504, 20007)
    assert time.monotonic() - started < 2
    assert 0 == service.get("/probe/in_flight").json["in_flight"]


def test_a_connection_lives_on_after_every_kind_of_problem(service: RunningService) -> None:
    connection = service.connect()
    paths = ["/nothing", "/probe/fault", "/api/v1/users", "/probe/slow?seconds=20", "/probe/slow", "/livez"]
    assert [404, 500, 401, 504, 400, 200] == [ask(connection, "GET", path).status for path in paths]


@pytest.mark.parametrize(
    "path", ["/admin/circuits", "/admin/limiters", "/admin", "//admin/circuits", "/%61dmin/circuits"]
)
def test_the_admin_surface_does_not_exist_on_the_public_listener(service: RunningService, path: str) -> None:
    for host in ("127.0.0.1", f"127.0.0.1:{service.admin_port}"):
        assert 404 == service.get(path, {**ADMIN, "Host": host, "X-Forwarded-Port": str(service.admin_port)}).status


def test_the_admin_surface_needs_its_token(service: RunningService) -> None:
    refused = service.get("/admin/circuits", admin=True)
    check_problem(refused, 401, 10003)
    assert "admin" in refused.headers["WWW-Authenticate"]
    assert 200 == service.get("/admin/circuits", ADMIN, admin=True).status


def test_the_api_does_not_exist_on_the_admin_listener(service: RunningService) -> None:
    for path in ("/api/v1/users", "/probe/in_flight"):
        check_problem(service.get(path, {"Host": f"127.0.0.1:{service.port}"}, admin=True), 404, 10002)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/readyz?verbose"])
def test_health_is_on_both_listeners_for_everyone(service: RunningService, path: str) -> None:
    for admin in (False, True):
        answer = service.get(path, admin=admin)
        assert (200, "no-store") == (answer.status, answer.headers["Cache-Control"])
        assert "RateLimit" not in answer.headers


def test_a_request_id_and_a_trace_go_all_the_way_to_the_log(service: RunningService) -> None:
    headers = {"X-Request-ID": "order-42", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    answer = service.get("/probe/in_flight", headers)
    assert ("order-42", TRACE) == (answer.headers["X-Request-ID"], answer.headers["X-Trace-Id"])
    eventually(lambda: any(each["request_id"] == "order-42" for each in service.events("request")))
    (event,) = [each for each in service.events("request") if each["request_id"] == "order-42"]
    assert (TRACE, "GET", "/probe/in_flight", 200, "127.0.0.1") == tuple(
        event[name] for name in ("trace_id", "method", "route", "status", "client")
    )
    assert len(answer.body) == event["bytes"]


def test_a_client_that_leaves_a_stream_is_logged_as_such(service: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        head = b"GET /probe/stream?pause=0.02&count=100 HTTP/1.1\r\nHost: x\r\nX-Request-ID: leaver\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(1000)
    eventually(lambda: any(each["request_id"] == "leaver" for each in service.events("request")))
    (event,) = [each for each in service.events("request") if each["request_id"] == "leaver"]
    assert event["aborted"]
    assert 0 < event["bytes"] < 100


def test_nothing_that_a_caller_sends_breaks_a_line_of_the_log(service: RunningService) -> None:
    service.get("/%0d%0a%7b%22level%22:%22forged%22%7d%e2%80%a8%1b%5b2J")
    eventually(lambda: any("forged" in str(each.get("path")) for each in service.events("request")))
    assert len(service.log.read_bytes().decode().splitlines()) == len(service.events())


def test_answers_to_head_have_no_body_and_their_line_in_the_log(service: RunningService) -> None:
    headers = {"X-Request-ID": "head"}
    answer = service.request("HEAD", "/nothing", headers=headers)
    assert (404, b"") == (answer.status, answer.body)
    eventually(lambda: any(each["request_id"] == "head" for each in service.events("request")))


def test_requests_beyond_the_limit_are_refused_with_the_wait_and_probes_are_not(service: RunningService) -> None:
    with_limit = service.get("/probe/in_flight")
    assert re.fullmatch(r'"default";q=\d+;w=\d+', with_limit.headers["RateLimit-Policy"])
    assert re.fullmatch(r'"default";r=\d+;t=\d+', with_limit.headers["RateLimit"])


def test_a_caller_that_goes_beyond_its_limit_is_told_how_long_to_wait(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("limited")
    with running_service(folder, app=PROBE, rate_limit="3/minute", rate_limit_burst=3) as limited:
        connection = limited.connect()
        statuses = [ask(connection, "GET", "/probe/in_flight").status for _ in range(4)]
        assert [200, 200, 200, 429] == statuses
        answer = ask(connection, "GET", "/probe/in_flight")
        check_problem(answer, 429, 10029)
        assert ["default"] == answer.json["violated-policies"]
        assert 1 <= int(answer.headers["Retry-After"]) <= 20
        assert [200] * 20 == [ask(connection, "GET", "/readyz").status for _ in range(20)]


def test_a_service_without_its_tables_lives_but_is_not_ready_until_they_are_there(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("database")
    url = f"sqlite:///{folder / 'later.db'}"
    running = start_service(folder, database_url=url)
    try:
        eventually(lambda: is_listening(running.port))
        assert 200 == running.get("/livez").status
        assert 503 == running.get("/readyz").status
        assert "failed" == running.get("/healthz").json["checks"]["database"]["state"]
        migrate(url)
        eventually(lambda: running.get("/readyz").status == 200)
    finally:
        running.close()


def test_a_link_of_the_chain_can_be_switched_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("off")
    with running_service(folder, middleware_off="access_log,rate_limit,authentication") as running:
        answer = running.get("/nothing")
        assert "RateLimit" not in answer.headers
        assert [] == running.events("request")


def test_the_console_format_is_for_people(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("console")
    with running_service(folder, log_format="console") as running:
        running.get("/nothing%0aforged")
        eventually(lambda: "forged" in running.log.read_text())
        assert [] == running.events()
        assert not any(line.startswith("forged") for line in running.log.read_text().splitlines())
