from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.launched import Launched, is_alive, launched, prepare_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

QUICKLY = 5.0
"""Seconds in which a second start is ready."""
AT_ONCE = 8.0
"""Seconds in which everything ends when nothing is under way."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepare_folder(tmp_path)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    with launched(prepare_folder(tmp_path_factory.mktemp("launched"))) as run:
        yield run


def in_bash(*commands: str) -> str:
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (0, "") == (result.returncode, result.stderr)
    return result.stdout


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + AT_ONCE
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.02)


def test_every_command_that_it_prints_works_as_it_is(running: Launched) -> None:
    sign_in, users, circuit, circuits = running.commands

    assert "eyJ" in in_bash(sign_in, "echo $TOKEN")
    assert '"name": "demo"' in in_bash(sign_in, users)
    codes = in_bash(sign_in, circuit).splitlines()[1:]
    assert {"500", "503"} == set(codes)
    assert ["503"] == codes[-1:]
    assert '"state": "open"' in in_bash(circuits)


def test_reads_well_on_80_columns(running: Launched) -> None:
    said = running.text[running.text.index("Seawall is running.") :].partition("Ctrl-C stops everything.")[0]

    assert 80 >= max(map(len, said.splitlines()))


def test_listens_where_it_says(running: Launched) -> None:
    assert f"http://127.0.0.1:{running.port}" == running.value("service")
    assert f"http://127.0.0.1:{running.admin_port}/admin/" == running.value("admin")
    assert f"http://127.0.0.1:{running.demo_port}" == running.value("demo backend")
    for port in (running.port, running.admin_port, running.demo_port):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(number: signal.Signals, folder: Path) -> None:
    with launched(folder) as run:
        pids = run.descendants()
        assert len(pids) >= 4  # two masters, and a worker each

        started = time.monotonic()
        assert 0 == run.stop(number)

        assert AT_ONCE > time.monotonic() - started
        wait_until_gone(pids)
        assert run.text.endswith("Seawall has stopped.\n")
        assert "Traceback" not in run.text


@pytest.mark.alone
def test_the_next_start_is_quick_and_knows_its_user(
    folder: Path, record_property: Callable[[str, object], None]
) -> None:
    with launched(folder) as first:
        password = first.value("password")

    started = time.monotonic()
    with launched(folder) as second:
        seconds = time.monotonic() - started
        record_property("seconds until ready", round(seconds, 2))

        assert QUICKLY > seconds
        assert password == second.value("password")
        assert "eyJ" in in_bash(second.commands[0], "echo $TOKEN")


def test_what_a_test_starts_never_sees_the_database_of_whoever_runs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:////nowhere/of-somebody.db")
    monkeypatch.setenv("LOGIN_RATE_LIMIT", "nonsense")
    with launched(folder) as run:
        assert (folder / "var" / "seawall.db").exists()
        assert 200 == run.ask("GET", "/readyz").status


def test_takes_what_is_configured(folder: Path) -> None:
    token = "an-admin-token-of-this-test-0123456789"
    with launched(folder, {"RESILIENCE_ADMIN_TOKEN": token, "WEB_CONCURRENCY": "1", "LOG_FORMAT": "json"}) as run:
        assert token == run.value("admin token")
        assert 1 == run.text.count('"event":"Booting worker')


def test_listens_on_the_loopback_of_ipv6(folder: Path) -> None:
    with launched(folder, {"HOST": "::1"}) as run:
        assert f"http://[::1]:{run.port}" == run.value("service")
        assert "eyJ" in in_bash(run.commands[0], "echo $TOKEN")


def test_starts_no_demo_backend_beside_configured_ones(folder: Path, running: Launched) -> None:
    with launched(folder, {"BACKENDS__other": f"http://127.0.0.1:{running.demo_port}"}) as run:
        assert "demo backend" not in run.text
        assert "/api/v1/backends/other/hello" in run.commands[2]


def test_a_taken_port_ends_the_start_with_what_to_do(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with launched(folder, {"PORT": str(port)}, ready=False) as run:
            assert 1 == run.wait()

    assert re.fullmatch(
        rf"seawall does not run: port {port} is in use: set PORT=..., e.g. PORT=\d+ make run\n", run.text
    )


def test_leaves_no_orphans_when_it_is_killed(folder: Path) -> None:
    with launched(folder) as run:
        pids = run.descendants()

        run.stop(signal.SIGKILL)

        wait_until_gone(pids)


@pytest.mark.parametrize(
    ("command", "name"), [("service.demo_backend:app", "the demo backend"), ("service.wsgi:app", "the service")]
)
def test_says_which_child_ended_and_stops_the_rest(command: str, name: str, folder: Path) -> None:
    with launched(folder) as run:
        pids = run.descendants()
        master = min(pid for pid in pids if command in Path(f"/proc/{pid}/cmdline").read_text())

        os.kill(master, signal.SIGKILL)

        assert 1 == run.wait()
        assert f"seawall does not run: {name} was ended by SIGKILL" in run.text
        wait_until_gone(pids)
