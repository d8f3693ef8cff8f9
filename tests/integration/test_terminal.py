"""`flask resilience` against a real admin endpoint over HTTP."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from flask import Flask, Response
from werkzeug.serving import BaseWSGIServer, make_server

from resilience import CircuitBreaker, RateLimiter, Resilience, create_admin_blueprint
from resilience.adapters.terminal import resilience
from resilience.registry import PROCESS_REGISTRY

TOKEN = "a-token-that-nobody-guesses"


class Served:
    """An application with one circuit and one limiter, at a real port."""

    def __init__(self) -> None:
        self.circuit = CircuitBreaker(name="payments", fail_max=2, reset_timeout=30, throw_new_error_on_trip=False)
        self.limiter = RateLimiter("10/minute", name="api", key="everybody")
        self.app = Flask("served")
        Resilience(self.app, circuits=[self.circuit], limiters=[self.limiter], admin_token=TOKEN)
        self.app.register_blueprint(create_admin_blueprint())
        self.server: BaseWSGIServer = make_server("127.0.0.1", 0, self.app, threaded=True)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def environment(self) -> Mapping[str, str]:
        return {"RESILIENCE_ADMIN_URL": f"http://127.0.0.1:{self.server.port}", "RESILIENCE_ADMIN_TOKEN": TOKEN}

    def run(self, *words: str) -> tuple[int, str]:
        result = CliRunner(env=self.environment).invoke(resilience, words)
        # The server runs in this process, so what it logs may be on the same standard error: of interest with an error only.
        return result.exit_code, click.unstyle(result.stdout if result.exit_code == 0 else result.output)

    def stop(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()
        self.app.extensions["resilience"].close()


@pytest.fixture
def served() -> Iterator[Served]:
    PROCESS_REGISTRY.clear()  # what decorators of other tests have entered would be listed, too
    served = Served()
    yield served
    served.stop()


def test_circuits_and_limiters_are_listed(served: Served) -> None:
    served.circuit.call(lambda: None)
    served.limiter.try_acquire()

    status, text = served.run("circuits")
    assert (0, ["payments", "closed", "0", "1", "0", "0"]) == (status, text.splitlines()[1].split())
    status, text = served.run("limiters")
    assert (0, True) == (status, text.splitlines()[1].startswith("api"))


def test_one_circuit_is_shown_worker_by_worker(served: Served) -> None:
    status, text = served.run("circuits", "payments")
    assert (0, True) == (status, str(os.getpid()) in text.splitlines()[-1])


def test_json_is_what_the_endpoint_answered(served: Served) -> None:
    _, text = served.run("circuits", "--json")
    assert ["payments"] == [circuit["name"] for circuit in json.loads(text)["circuits"]]


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (("open", "payments"), "forced-open"),
        (("open", "payments", "--for", "60"), "forced-open"),
        (("close", "payments", "--for", "60"), "forced-closed"),
        (("half-open", "payments"), "half-open"),
        (("disable", "payments"), "disabled"),
        (("metrics-only", "payments"), "metrics-only"),
        (("reset", "payments"), "closed"),
    ],
)
def test_an_order_moves_the_circuit_and_shows_it(served: Served, words: tuple[str, ...], state: str) -> None:
    status, text = served.run("--author", "anna", *words, "--reason", "trying")
    assert (0, state) == (status, text.splitlines()[1].split()[1])
    assert state == served.circuit.snapshot().state


def test_what_was_ordered_is_in_the_audit_log_with_its_author(served: Served) -> None:
    served.run("--author", "anna", "open", "payments", "--reason", "paying twice", "--for", "60")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    (entry,) = served.app.test_client().get("/admin/audit", headers=headers).get_json()["entries"]
    assert ("anna (127.0.0.1)", "open", "circuit payments", "paying twice", 60) == tuple(
        entry[name] for name in ("author", "action", "target", "reason", "ttl")
    )


@pytest.mark.parametrize("name", ["Jürgen ✓", "UTF-8''anna", "50%25"])
def test_an_author_is_named_as_written_whatever_the_letters(served: Served, name: str) -> None:
    status, _ = served.run("--author", name, "open", "payments")
    assert (0, f"{name} (127.0.0.1)") == (status, served.circuit.snapshot().author)


def test_an_author_that_cannot_be_named_is_an_error_that_says_so(served: Served) -> None:
    status, text = served.run("--author", "a\nb", "circuits")
    assert (1, True) == (status, "name: a text of at most 64 printable characters" in text)


def test_a_limit_is_overridden_and_restored(served: Served) -> None:
    status, text = served.run("override", "api", "99/second", "--for", "60")
    assert (0, True) == (status, "99" in text)
    assert "99 per 1 s" in str(served.limiter.snapshot().limits)
    status, text = served.run("restore", "api")
    assert (0, True, False) == (status, "10 per minute" in text, "nothing to restore" in text)
    _, text = served.run("events", "--policy", "api")
    assert "its own limits again" in text.splitlines()[-1]
    told = CliRunner(env=served.environment).invoke(resilience, ["restore", "api"]).stderr
    assert "api: nothing to restore, its own limits held already" in told


def test_an_override_may_have_a_burst(served: Served) -> None:
    status, text = served.run("override", "api", "5/second", "--burst", "7", "--for", "1m")
    assert (0, True) == (status, "5 per second burst 7" in text)


def test_the_bucket_of_a_caller_is_filled(served: Served) -> None:
    with served.app.app_context():
        assert [True] * 10 + [False] == [served.limiter.try_acquire().allowed for _ in range(11)]
        status, text = served.run("fill", "api", "everybody")
        assert (0, True) == (status, "api" in text)
        assert served.limiter.try_acquire().allowed


def test_who_did_what_is_listed_the_latest_last(served: Served) -> None:
    served.run("--author", "anna", "open", "payments", "--reason", "paying twice", "--for", "1m")
    served.run("--author", "bert", "close", "payments")
    status, text = served.run("audit", "--most", "2")
    opened, closed = text.splitlines()[1:]
    assert (0, True) == (status, "anna (127.0.0.1)  open   circuit payments  done     for 60 s  paying twice" in opened)
    assert "bert (127.0.0.1)  close" in closed


def test_a_name_that_there_is_not_is_an_error_that_says_so(served: Served) -> None:
    status, text = served.run("circuits", "nothing")
    assert (1, True) == (status, "Error: no circuit is named 'nothing': `resilience circuits` lists the names" in text)


def test_a_name_that_is_nearly_one_is_answered_with_it(served: Served) -> None:
    for command in ("circuits", "open"):
        status, text = served.run(command, "paymnts")
        assert (1, True) == (status, "no circuit is named 'paymnts': did you mean 'payments'?" in text)
    for command, *more in (("fill", "x"), ("override", "1/s", "--for", "1h"), ("restore",)):
        status, text = served.run(command, "apis", *more)
        assert (1, True) == (status, "no limiter is named 'apis': did you mean 'api'?" in text)


def test_a_wrong_token_is_an_error_that_says_what_to_do(served: Served) -> None:
    status, text = served.run("--token", "wrong", "circuits")
    assert (1, True) == (status, "set RESILIENCE_ADMIN_TOKEN to the one that the service has" in text)


def test_watching_shows_one_look_below_the_other_where_there_is_no_screen(served: Served) -> None:
    served.circuit.open()
    status, text = served.run("watch", "--times", "2", "--every", "0.2")
    assert (0, 2, 2) == (status, text.count("payments  open"), text.count("closed to open"))


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_watching_goes_on_after_an_answer_that_may_be_the_last_of_its_kind(served: Served, status: int) -> None:
    answers = iter([Response(json.dumps({"detail": "the database is away"}), status)])
    served.app.before_request(lambda: next(answers, None))
    ended, text = served.run("watch", "--times", "2", "--every", "0.2")
    assert (0, 1, 1) == (ended, text.count("the database is away"), text.count("payments  closed"))


def test_watching_ends_where_nothing_will_change(served: Served) -> None:
    status, text = served.run("--token", "wrong", "watch", "--every", "0.2")
    assert (1, 1) == (status, text.count("set RESILIENCE_ADMIN_TOKEN"))


def test_events_are_listed(served: Served) -> None:
    served.circuit.open()
    status, text = served.run("events", "--policy", "payments")
    assert (0, True) == (status, "closed to open: opened by hand" in text.splitlines()[-1])


def test_watching_on_a_screen_redraws_it_until_ctrl_c_and_gives_it_back(served: Served, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "resilience.adapters.terminal", "watch", "--every", "0.2"]
    environment = {**os.environ, **served.environment, "TERM": "xterm"}
    with subprocess.Popen(
        command,
        env=environment,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # the tests may have been started with it ignored
    ) as process:
        os.close(follower)
        shown = read_until(leader, b"payments", times=2)
        process.send_signal(signal.SIGINT)
        shown += read_until(leader, b"\x1b[?1049l", times=1)
        assert 0 == process.wait(10)
    os.close(leader)
    assert shown.startswith(b"\x1b[?1049h")


def read_until(descriptor: int, wanted: bytes, *, times: int) -> bytes:
    read, deadline = b"", time.monotonic() + 20
    while read.count(wanted) < times:
        assert select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0], read
        read += os.read(descriptor, 65_536)
    return read
