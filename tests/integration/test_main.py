from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from service.__main__ import main

CONFIG = Path(__file__).parents[2] / "config"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as after a fresh clone, in which the test runs."""
    shutil.copytree(CONFIG, tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOKEN_SECRET", raising=False)
    return tmp_path


def test_migrates_and_says_from_where_to_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["migrate"])
    assert "migrated from nothing to 0001\n" == capsys.readouterr().out

    assert 0 == main(["migrate"])
    assert "the database is at 0001 already\n" == capsys.readouterr().out


def test_adds_a_user_with_the_password_from_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["migrate"])
    monkeypatch.setattr("sys.stdin", io.StringIO("a long password\nignored"))

    assert 0 == main(["create-user", "ada", "ada@example.com", "--role", "admin"])
    assert capsys.readouterr().out.endswith("added ada (admin) as user 1\n")


def test_asks_for_the_password_twice_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["migrate"])
    answers = iter(["a long password", "a wrong password", "a long password", "a long password"])
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))

    assert 1 == main(["create-user", "ada", "ada@example.com"])
    assert "The two passwords differ.\n" == capsys.readouterr().err
    assert 0 == main(["create-user", "ada", "ada@example.com"])
    assert capsys.readouterr().out.endswith("added ada (member) as user 1\n")


def test_names_everything_that_is_wrong_with_a_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))

    assert 1 == main(["create-user", "ada", "nowhere"])

    assert [
        "email must be an e-mail address in ASCII of at most 254 characters",
        "password must be 12 to 256 characters long",
    ] == capsys.readouterr().err.splitlines()


def test_says_when_a_name_is_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    main(["migrate"])
    for status, name in enumerate(["ada", "Ada"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("a long password\n"))
        assert status == main(["create-user", name, f"{name}{status}@example.com"])

    assert "This name is taken. Choose another.\n" == capsys.readouterr().err


def test_says_how_to_set_up_a_database_that_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a long password\n"))

    assert 1 == main(["create-user", "ada", "ada@example.com"])
    assert "Run: python -m service migrate" in capsys.readouterr().err


def test_ends_with_the_message_alone_when_the_configuration_is_bad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "nonsense")

    assert 1 == main(["migrate"])

    said = capsys.readouterr().err
    assert "database_url (environment variable DATABASE_URL): must be sqlite:///" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("arguments", [[], ["fly"], ["create-user", "ada"], ["create-user", "a", "b", "--role", "god"]])
def test_does_not_understand_other_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert 2 == caught.value.code
    assert "usage: python -m service" in capsys.readouterr().err
