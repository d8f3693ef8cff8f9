"""What docs/parking-worker.md tells its reader to type works, and what it says of the settings is so."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from longconn.core.states import State, table
from longconn.metrics import collect
from longconn.scoreboard import Scoreboard
from longconn.settings import Settings
from tests.support.longconn_server import PARKING, gunicorn_server

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs/parking-worker.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SERVED = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "4")])
    return [b"pong"]
"""


def block(containing: str) -> str:
    """The one code block in Python that contains this."""
    (found,) = [text for text in PYTHON if containing in text]
    return found


def longconn(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m longconn` with these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "longconn", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def module(folder: Path, text: str) -> tuple[str, str, str]:
    """Arguments for gunicorn and the name of the application, for a module with this text."""
    (folder / "served_document.py").write_text(text, encoding="utf-8")
    return "--pythonpath", f"{ROOT},{folder}", "served_document:application"


def test_every_block_of_python_is_tried_here() -> None:
    assert 3 == len(PYTHON)
    assert 3 == len({block("worker_class"), block("on_drain=deregister"), block("class Echo")})


def test_the_worker_class_of_the_document_is_the_one_that_is_served(tmp_path: Path) -> None:
    *arguments, app = module(tmp_path, SERVED)
    chosen: dict[str, str] = {}
    exec(block("worker_class"), chosen)
    assert PARKING == chosen["worker_class"]
    assert f"gunicorn -k {PARKING} " in next(text for language, text in BLOCKS if language == "sh")
    with gunicorn_server(*arguments, app=app, config=block("worker_class"), worker=chosen["worker_class"]) as server:
        assert b"pong" == server.get("/")[2]


def test_the_hooks_of_the_document_are_called(tmp_path: Path) -> None:
    *arguments, app = module(tmp_path, SERVED)
    config = block("on_drain=deregister").replace(
        "def deregister(worker):\n", "def deregister(worker):\n    worker.log.info('deregistered')\n"
    )
    with gunicorn_server(*arguments, app=app, config=config) as server:
        assert b"pong" == server.get("/")[2]
        assert 0 == server.stop()
        assert 1 == server.log().count("deregistered")


def test_the_defaults_that_the_document_shows_are_taken(tmp_path: Path) -> None:
    (shown,) = re.findall(r"`(longconn\.configure\(defaults=.*?\))`", DOCUMENT)
    *arguments, app = module(tmp_path, SERVED)
    config = f"import longconn\n\n{shown.replace('5', '0.5')}\n"
    with gunicorn_server(*arguments, app=app, config=config) as server, server.client() as client:
        client.send(b"GET / HT")
        assert 408 == client.response().status


def test_the_echo_of_the_document_echoes(tmp_path: Path) -> None:
    *arguments, app = module(tmp_path, block("class Echo"))
    with gunicorn_server(*arguments, app=app) as server, server.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        for text in (b"one", b"and another", b"x" * 100_000):
            client.send(text)
            assert text == client.exactly(len(text))
        client.finish()
        assert client.ended()
        assert 0 == server.stop()
        assert "Traceback" not in server.log()


def test_the_module_of_upgrades_shows_what_works(tmp_path: Path) -> None:
    from longconn import upgraded

    assert upgraded.__doc__ is not None
    (shown,) = re.findall(r"(?:^ {4}.*\n)+", upgraded.__doc__, re.MULTILINE)
    text = textwrap.dedent(shown).replace("\\r\\n...\\r\\n", "\\r\\nConnection: upgrade\\r\\n")
    *arguments, app = module(tmp_path, "from longconn import *\n\nendpoint = Endpoint()\n\n" + text)
    with gunicorn_server(*arguments, app=app) as server, server.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")


def test_the_table_of_settings_is_that_of_the_code() -> None:
    between = DOCUMENT.split("<!-- python -m longconn settings -->\n")[1].split("<!-- end -->")[0]
    assert Settings.describe().strip() == between.strip()


def test_the_document_names_every_state() -> None:
    section = DOCUMENT.split("## How it works")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z_]+) \| .+ \|$", section, re.MULTILINE)
    assert [state.name for state in State] == rows


def test_the_document_names_no_metric_that_is_none() -> None:
    named = set(re.findall(r"`(longconn_\w+)", DOCUMENT))
    there = {sample for family in collect(Scoreboard(rows=1)) for sample in (family.name, f"{family.name}_total")}
    assert named
    assert set() == named - there


def test_the_files_that_the_document_names_are_there() -> None:
    named = set(re.findall(r"`((?:docs|tests)/[^`]+)`", DOCUMENT))
    assert set() == {name for name in named if not list(ROOT.glob(name))}


@pytest.mark.parametrize(("word", "text"), [("states", table()), ("settings", Settings.describe())])
def test_the_command_prints_what_it_is_asked_for(word: str, text: str) -> None:
    done = longconn(word)
    assert (0, text.rstrip() + "\n", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("arguments", [(), ("state",), ("states", "settings"), ("--help",)])
def test_the_command_refuses_what_it_does_not_know(arguments: tuple[str, ...]) -> None:
    done = longconn(*arguments)
    assert (2, "", "usage: python -m longconn states|settings\n") == (done.returncode, done.stdout, done.stderr)
