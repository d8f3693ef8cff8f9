from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pytest

from service.demo_backend import Behaviour, DemoBackend


def ask(
    app: DemoBackend, method: str, path: str, body: bytes = b"", **variables: str
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and the document of one answer."""
    answered: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> Any:
        answered.extend((int(status[:3]), dict(headers)))

    path, _, query = path.partition("?")
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "wsgi.input": io.BytesIO(body)}
    content = b"".join(app({**environ, **variables}, start_response))
    return answered[0], answered[1], json.loads(content) if content else None


def test_repeats_what_arrived() -> None:
    status, _, document = ask(
        DemoBackend(),
        "POST",
        "/any/path?q=1",
        b"x" * 100_000,
        HTTP_HOST="demo",
        HTTP_X_REQUEST_ID="abc",
        HTTP_COOKIE="secret",
        CONTENT_TYPE="text/plain",
    )

    assert 200 == status
    assert {
        "method": "POST",
        "path": "/any/path",
        "query": "q=1",
        "headers": {"Host": "demo", "X-Request-ID": "abc", "Content-Type": "text/plain"},
        "body_bytes": 100_000,
        "served": 1,
    } == document


def test_counts_every_answer_but_those_about_its_settings() -> None:
    app = DemoBackend()
    for path in ("/", "/settings", "/x"):
        ask(app, "GET", path)

    assert 3 == ask(app, "GET", "/")[2]["served"]


def test_answers_head_with_the_headers_alone() -> None:
    status, headers, document = ask(DemoBackend(), "HEAD", "/")

    assert (200, None) == (status, document)
    assert 0 < int(headers["Content-Length"])


@pytest.mark.parametrize(("rate", "expected"), [(0, {200}), (1, {500})])
def test_fails_never_at_rate_0_and_always_at_rate_1(rate: int, expected: set[int]) -> None:
    app = DemoBackend()
    assert (200, {"failure_rate": rate, "latency": 0.0}) == ask(app, "POST", f"/settings?failure_rate={rate}")[::2]

    assert expected == {ask(app, "GET", "/")[0] for _ in range(200)}


def test_fails_now_and_then_at_a_rate_between() -> None:
    app = DemoBackend()
    ask(app, "POST", "/settings?failure_rate=0.5")

    assert {200, 500} == {ask(app, "GET", "/")[0] for _ in range(200)}


def test_waits_as_long_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    app = DemoBackend()
    ask(app, "POST", "/settings?latency=0.25")

    ask(app, "GET", "/")

    assert [0.25] == waited


def test_keeps_what_is_not_set_anew() -> None:
    app = DemoBackend()
    ask(app, "POST", "/settings?failure_rate=0.5&latency=2")
    ask(app, "POST", "/settings?latency=0")

    assert Behaviour(failure_rate=0.5, latency=0) == app.behaviour
    assert {"failure_rate": 0.5, "latency": 0} == ask(app, "GET", "/settings")[2]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("failure_rate=2", "failure_rate must be a number from 0 to 1"),
        ("failure_rate=-0.1", "failure_rate must be a number from 0 to 1"),
        ("failure_rate=nan", "failure_rate must be a number from 0 to 1"),
        ("failure_rate=", "failure_rate must be a number from 0 to 1"),
        ("latency=61", "latency must be a number from 0 to 60"),
        ("latency=inf", "latency must be a number from 0 to 60"),
        ("latency=slow", "latency must be a number from 0 to 60"),
        ("", "give failure_rate=0..1 and latency=0..60 in the query: POST /settings?failure_rate=1"),
        ("latncy=1", "give failure_rate=0..1 and latency=0..60 in the query: POST /settings?failure_rate=1"),
    ],
)
def test_says_what_it_accepts_and_changes_nothing(query: str, message: str) -> None:
    app = DemoBackend()

    assert (400, {"error": message}) == ask(app, "POST", f"/settings?{query}")[::2]
    assert Behaviour() == app.behaviour


def test_refuses_other_methods_on_its_settings() -> None:
    assert 405 == ask(DemoBackend(), "DELETE", "/settings")[0]


def test_imports_nothing_but_the_standard_library() -> None:
    program = (
        "import sys; import service.demo_backend; "
        "print([name for name in sys.modules if name.partition('.')[0] not in sys.stdlib_module_names])"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '.'); {program}"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert ["__main__", "service", "service.demo_backend"] == eval(result.stdout)
