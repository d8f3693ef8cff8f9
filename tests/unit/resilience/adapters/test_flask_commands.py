"""Which of Flask's commands make a worker of the process: those that serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from flask import Flask
from flask.cli import FlaskGroup

from resilience import Resilience

SERVING = {"FLASK_RUN_FROM_CLI": "true", "WERKZEUG_RUN_MAIN": "", "FLASK_DEBUG": ""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "peers"


@pytest.fixture
def seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many workers there were when it was time to serve."""
    seen: list[int] = []
    monkeypatch.setattr("flask.cli.run_simple", lambda *_, **__: seen.append(workers(folder)))
    return seen


def workers(folder: Path) -> int:
    return len(list(folder.glob("*.sock")))


def flask(folder: Path, *words: str, **environment: str) -> Flask:
    """Run `flask` with an application that has siblings in `folder`."""
    made: list[Flask] = []

    def create_app() -> Flask:
        app = Flask("commanded")
        app.get("/")(lambda: "hello")
        Resilience(app, peer_directory=folder)
        app.cli.command("look")(lambda: click.echo(f"{workers(folder)} workers"))
        made.append(app)
        return app

    group: Any = FlaskGroup(create_app=create_app, load_dotenv=False)
    result = CliRunner(env={**SERVING, **environment}).invoke(group, words, catch_exceptions=False)
    assert 0 == result.exit_code, result.output
    assert "look" not in words or "0 workers\n" == result.output
    return made[0]


@pytest.mark.parametrize("words", [("routes",), ("look",), ("resilience", "--help")])
def test_a_command_that_does_not_serve_is_no_worker(folder: Path, words: tuple[str, ...]) -> None:
    app = flask(folder, *words)
    assert 0 == workers(folder)
    app.extensions["resilience"].close()


def test_whatever_serves_a_request_is_a_worker_from_then_on(folder: Path) -> None:
    app = flask(folder, "routes")
    app.test_client().get("/")
    assert 1 == workers(folder)
    app.extensions["resilience"].close()


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (("run",), {}, 1),
        (("run", "--reload"), {}, 0),
        (("run", "--reload"), {"WERKZEUG_RUN_MAIN": "true"}, 1),
        (("run", "--no-reload"), {"FLASK_DEBUG": "1"}, 1),
        (("run",), {"FLASK_DEBUG": "1"}, 0),
    ],
)
def test_the_development_server_is_one_worker_also_where_it_reloads(
    folder: Path, seen: list[int], words: tuple[str, ...], environment: dict[str, str], expected: int
) -> None:
    app = flask(folder, *words, **environment)
    assert [expected] == seen
    app.extensions["resilience"].close()


def test_a_server_of_another_command_line_is_a_worker_at_once(folder: Path) -> None:
    app = Flask("served")

    @click.command()
    def serve() -> None:
        Resilience(app, peer_directory=folder)

    assert 0 == CliRunner().invoke(serve, catch_exceptions=False).exit_code
    assert 1 == workers(folder)
    app.extensions["resilience"].close()
