"""The environment of a request equals gunicorn's, key by key."""

from __future__ import annotations

from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import message, wsgi
from gunicorn.http.errors import ConfigurationProblem, ParseException
from gunicorn.http.unreader import IterUnreader
from hypothesis import example, given
from hypothesis import strategies as some

from longconn.http import environ as environs

CLIENT = ("127.0.0.1", 50_000)
CLIENTS: tuple[Any, ...] = (CLIENT, ("::1", 50_000, 0, 0), ("203.0.113.9", 1), "", b"", "a name")
SERVERS: tuple[Any, ...] = (("127.0.0.1", 8000), ("::", 80, 0, 0), "/run/socket", "@abstract", "/run/so:cket")
OURS = {"wsgi.input", "wsgi.errors", "gunicorn.socket", "wsgi.early_hints"}
"""Made elsewhere, or objects of our own."""


def configuration(**changes: object) -> Config:
    cfg = Config()
    for name, value in {"header_map": "dangerous", "forwarder_headers": "SCRIPT_NAME,PATH_INFO", **changes}.items():
        cfg.set(name, value)
    return cfg


CFG = configuration()


def request(head: bytes, client: Any = CLIENT, cfg: Config = CFG) -> Any:
    """As gunicorn's own parser understands it."""
    return message.Request(cfg, IterUnreader(iter([head])), client, 1)


def gunicorns(made: Any, client: Any, server: Any, cfg: Config = CFG) -> dict[str, Any]:
    """What gunicorn's gevent worker gives an application."""
    _, environ = wsgi.create(made, None, client, server, cfg)
    environ["wsgi.multithread"] = True
    return {key: value for key, value in environ.items() if key not in OURS}


def ours(made: Any, client: Any, server: Any, cfg: Config = CFG) -> dict[str, Any]:
    """What the parking worker gives it."""
    environ = environs.build(environs.template(cfg, server), made, client, server)
    return {key: value for key, value in environ.items() if key not in OURS}


def outcome(make: Any, *arguments: Any) -> object:
    """The environment, or the error."""
    try:
        return make(*arguments)
    except ConfigurationProblem as problem:
        return type(problem), str(problem)


def assert_same(head: bytes, client: Any = CLIENT, server: Any = SERVERS[0], cfg: Config = CFG) -> None:
    made = request(head, client, cfg)
    made._expected_100_continue = False  # gunicorn would answer it here
    assert outcome(gunicorns, made, client, server, cfg) == outcome(ours, made, client, server, cfg)


values = some.text("ab,;=/ \t\xe9:é"[:9], max_size=6).map(lambda text: text.strip())
names = some.sampled_from([
    "Host", "HOST", "Accept", "X-Forwarded-For", "Content-Type", "Cookie", "X-A", "x_a", "X-a", "Script_Name",
    "Script-Name", "Path_Info", "Connection", "Remote-Addr", "Upgrade", "Expect", "X-Forwarded-Proto", "Transfer_Encoding",
])  # fmt: skip
paths = some.sampled_from(["/", "/a/b", "/a%20b", "/%e9%C3%A9", "//a//b", "/a;b?c=d&e", "/?", "/a%", "*", "/b/c?d#e"])


@given(
    method=some.sampled_from(["GET", "POST", "OPTIONS", "HEAD"]),
    path=paths,
    version=some.sampled_from(["1.0", "1.1"]),
    headers=some.lists(some.tuples(names, values), max_size=8),
    length=some.sampled_from(["", "Content-Length: 0\r\n", "Content-Length: 12\r\n"]),
    client=some.sampled_from(CLIENTS),
    server=some.sampled_from(SERVERS),
)
@example("GET", "/", "1.1", [("Host", "a"), ("Host", "b")], "", CLIENT, SERVERS[0])
def test_it_equals_gunicorns_whatever_is_asked(
    method: str, path: str, version: str, headers: list[tuple[str, str]], length: str, client: Any, server: Any
) -> None:
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"{method} {path} HTTP/{version}\r\n{length}{fields}\r\n".encode("latin-1")
    try:
        request(head, client)
    except ParseException:
        return
    assert_same(head, client, server)


@pytest.mark.parametrize("host", [b"", b"Host: a\r\n", b"Host: a:81\r\n", b"Host: [::1]:81\r\n", b"Host:\r\n"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_unix_socket_is_named_after_what_the_client_asked_for(host: bytes, scheme: str) -> None:
    made = request(b"GET / HTTP/1.1\r\n" + host + b"\r\n", "")
    made.scheme = scheme
    assert gunicorns(made, "", "/run/socket") == ours(made, "", "/run/socket")


def test_repeated_fields_are_joined_and_the_last_content_type_counts() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nContent-Type: a/b\r\nX-A: 2\r\nx_a: 3\r\n\r\n"
    found = ours(request(head), CLIENT, SERVERS[0])
    assert ("1,2,3", "a/b") == (found["HTTP_X_A"], found["CONTENT_TYPE"])
    assert_same(head)


def test_the_name_of_the_script_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_NAME", "/shop")
    assert_same(b"GET /shop/cart HTTP/1.1\r\nHost: a\r\n\r\n")
    assert_same(b"GET /shop HTTP/1.1\r\nHost: a\r\n\r\n")
    assert_same(b"GET /elsewhere HTTP/1.1\r\nHost: a\r\n\r\n")
    assert_same(b"GET /shop/cart HTTP/1.1\r\nHost: a\r\nScript_Name: /shop/cart\r\n\r\n")


def test_a_path_outside_of_the_script_is_a_problem_of_the_configuration() -> None:
    with pytest.raises(ConfigurationProblem, match="'/elsewhere' does not start with SCRIPT_NAME '/shop'"):
        ours(request(b"GET /elsewhere HTTP/1.1\r\nHost: a\r\nScript_Name: /shop\r\n\r\n"), CLIENT, SERVERS[0])


def test_what_a_proxy_said_about_its_client_is_believed() -> None:
    cfg = configuration(proxy_protocol=True)
    line = b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 443\r\n"
    found = ours(request(line + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", cfg=cfg), CLIENT, SERVERS[0], cfg)
    assert ("192.0.2.1", "1111", "TCP4") == tuple(
        found[key] for key in ("REMOTE_ADDR", "REMOTE_PORT", "PROXY_PROTOCOL")
    )
    assert_same(line + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", cfg=cfg)


def test_several_workers_are_several_processes() -> None:
    cfg = configuration(workers=2)
    assert_same(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", cfg=cfg)
    assert ours(request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), CLIENT, SERVERS[0], cfg)["wsgi.multiprocess"]


def test_one_environment_does_not_show_in_the_next() -> None:
    base = environs.template(CFG, SERVERS[0])
    before = dict(base)
    for number in range(3):
        made = request(b"GET /%d HTTP/1.1\r\nHost: a\r\nX-%d: b\r\n\r\n" % (number, number))
        environs.build(base, made, CLIENT, SERVERS[0])["added"] = True
    assert before == base


def test_names_of_fields_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environs, "_keys", {})
    for number in range(2000):
        head = b"GET / HTTP/1.1\r\nHost: a\r\nX-%d: b\r\n%s: c\r\n\r\n" % (number, b"X" * 64)
        assert "b" == ours(request(head), CLIENT, SERVERS[0])[f"HTTP_X_{number}"]
    assert environs._MOST_KEYS == len(environs._keys)
    assert not any(len(name) >= 64 for name in environs._keys)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []

    class Wrapper:
        def __init__(self, cfg: Any) -> None:
            assert CFG is cfg

        def write(self, text: str) -> None:
            lines.append(text)

    monkeypatch.setattr(wsgi, "WSGIErrorsWrapper", Wrapper)
    return lines


def test_errors_go_to_the_log_that_is_open_at_that_moment(written: list[str]) -> None:
    stream = environs.ErrorStream(CFG)
    stream.write("one\n")
    stream.writelines(["two\n", "three\n"])
    stream.flush()
    print("four", file=stream)
    assert "one\ntwo\nthree\nfour\n" == "".join(written)
