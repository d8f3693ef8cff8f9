"""`flask channels` reaches the channels of the application that it loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskCliRunner

from longconn.adapters import channels_of
from longconn.adapters.commands import channels
from longconn.channels.hub import Channels


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flask:
    monkeypatch.setenv("LONGCONN_CHANNELS", str(tmp_path / "channels"))
    made = Flask("shop")
    made.cli.add_command(channels)
    return made


@pytest.fixture
def hub(app: Flask) -> Iterator[Channels]:
    made = channels_of(app)
    yield made
    made.close()


@pytest.fixture
def terminal(app: Flask, hub: Channels) -> FlaskCliRunner:
    return app.test_cli_runner()


def test_what_is_published_from_a_terminal_is_on_the_channel(terminal: FlaskCliRunner, hub: Channels) -> None:
    result = terminal.invoke(args=["channels", "publish", "news", "Doors open", "--event", "door", "--key", "7"])
    (message,) = hub.history("news").messages
    assert ("Doors open", "door", "7") == (message.data, message.event, message.key)
    assert (0, f"{message.position}\n") == (result.exit_code, result.output)


@pytest.mark.parametrize(("given", "sent"), [('{"a": 1}', '{"a":1}'), ('"text"', '"text"'), ("[1, 2]", "[1,2]")])
def test_json_is_checked_and_sent_in_its_compact_form(
    terminal: FlaskCliRunner, hub: Channels, given: str, sent: str
) -> None:
    assert 0 == terminal.invoke(args=["channels", "publish", "news", given, "--json"]).exit_code
    assert sent == hub.history("news").messages[0].data


def test_data_can_come_from_standard_input(terminal: FlaskCliRunner, hub: Channels) -> None:
    terminal.invoke(args=["channels", "publish", "news", "-"], input="line one\nline two\n")
    assert "line one\nline two\n" == hub.history("news").messages[0].data


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["publish", "a b", "x"], "is no name of a channel"),
        (["publish", "news", "{", "--json"], "DATA is no JSON"),
        (["publish", "news", "[" * 100_000, "--json"], "DATA is no JSON"),
        (["publish", "news", "x", "--event", "a\nb"], "is no event of a message"),
        (["history", "news", "--since", "yesterday"], "not a position in a channel"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(terminal: FlaskCliRunner, arguments: list[str], said: str) -> None:
    result = terminal.invoke(args=["channels", *arguments])
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_setting_without_sense_is_told_in_a_sentence(
    terminal: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGCONN_CHANNELS_SIZE", "much")
    result = terminal.invoke(args=["channels", "list"])
    assert (1, True) == (result.exit_code, "LONGCONN_CHANNELS_SIZE" in result.output)
    assert "Traceback" not in result.output


def test_the_history_is_shown_a_line_a_message(terminal: FlaskCliRunner, hub: Channels) -> None:
    first = hub.publish("news", "one\x1b[2J", event="said")
    hub.publish("news", b"\x00" * 1_500)
    hub.publish("news", "x" * 101)
    lines = terminal.invoke(args=["channels", "history", "news"]).output.splitlines()
    assert [str(first)] == lines[0].split()[:1]
    assert ["[said]  one [2J", "<1,500 bytes>", "x" * 100 + "..."] == [line.split("  ", 2)[2] for line in lines]
    since = terminal.invoke(args=["channels", "history", "news", "--since", str(first), "--most", "1"])
    assert "x" * 100 in since.stdout
    assert f"Messages after {first} are missing" in since.output


def test_the_history_as_json_has_all_there_is(terminal: FlaskCliRunner, hub: Channels) -> None:
    position = hub.publish("news", b"\xff", event="e", key="k")
    document = json.loads(terminal.invoke(args=["channels", "history", "news", "--json"]).output)
    (message,) = document["messages"]
    assert (str(position), True) == (document["position"], document["complete"])
    del message["at"]
    assert {"position": str(position), "event": "e", "key": "k", "data": "\ufffd", "binary": True} == message


def test_channels_are_listed_with_what_they_hold(terminal: FlaskCliRunner, hub: Channels) -> None:
    assert "No message was published" in terminal.invoke(args=["channels", "list"]).output
    hub.publish("news", "four")
    position = hub.publish("news", "four")
    heading, row = terminal.invoke(args=["channels", "list"]).output.splitlines()
    assert ["CHANNEL", "HELD", "BYTES", "POSITION", "NEWEST"] == heading.split()
    assert ["news", "2", "8", str(position)] == row.split()[:4]
    (held,) = json.loads(terminal.invoke(args=["channels", "list", "--json"]).output)
    assert ("news", 2, 8) == (held["channel"], held["messages"], held["bytes"])
    assert "There may be more than 1" in terminal.invoke(args=["channels", "list", "--most", "1"]).output
