"""The terminal's tables, and what it says when it cannot ask. What it asks over HTTP is tested with a real server."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from flask import Flask
from flask.cli import ScriptInfo

from resilience import Resilience
from resilience.adapters.terminal import (
    AdminClient,
    _alike,
    _missing,
    _time,
    resilience,
    table_of_circuits,
    table_of_limiters,
)

TOKEN = "a-token-that-nobody-guesses"


def circuit(**members: Any) -> dict[str, Any]:
    return {
        "name": "payments",
        "state": "closed",
        "states": {"closed": 2},
        "retry_after": 0.0,
        "expires_in": None,
        "cause": "",
        "reason": "",
        "author": "",
        "failures": 0,
        "failure_rate": -1.0,
        "slow_call_rate": -1.0,
        "calls": {"succeeded": 10, "failed": 2, "ignored": 0, "not_permitted": 0, "slow": 0},
        **members,
    }


def limiter(**members: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("allowed", "denied", "shadow_denied", "waited"), 0)
    return {"name": "api", "limits": ["100 per 1 s"], **counts, "override": None, "top": [], **members}


def lines(*circuits: dict[str, Any]) -> list[list[str]]:
    return [click.unstyle(line).split() for line in table_of_circuits({"circuits": circuits})]


def run(*words: str, **environment: str) -> tuple[int, str]:
    result = CliRunner(env=environment).invoke(resilience, words)
    return result.exit_code, result.output


def nobody_s_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_circuit_is_a_line_with_its_state_and_its_counts() -> None:
    titles, line = lines(circuit())
    assert ["payments", "closed", "0", "10", "2", "0"] == line
    assert "circuit" == titles[0]


def test_an_open_circuit_says_when_it_is_probed_and_why_it_opened() -> None:
    opened = circuit(
        state="open", states={"open": 2}, retry_after=7.4, failure_rate=62.5, cause="too many failed calls"
    )
    _, line = lines(opened)
    assert "open probe in 7 s 0 62.5 % 10 2 0 too many failed calls" == " ".join(line[1:])


def test_a_forced_circuit_says_who_why_and_for_how_long() -> None:
    forced = circuit(
        state="forced-open",
        states={"forced-open": 2},
        expires_in=59.6,
        cause="forced open",
        author="anna",
        reason="fire",
    )
    _, line = lines(forced)
    assert "for 60 s more" in " ".join(line)
    assert " ".join(line).endswith("forced open by anna: fire")


def test_a_circuit_on_which_workers_differ_says_how_many_are_in_its_state() -> None:
    _, line = lines(circuit(state="half-open", states={"half-open": 1, "closed": 2}))
    assert "half-open in 1 of 3" in " ".join(line)


def test_columns_stand_below_each_other_whatever_the_colours() -> None:
    rows = table_of_circuits({"circuits": [circuit(), circuit(name="a", state="forced-open", states={})]})
    places = {
        click.unstyle(row).index(state) for row, state in zip(rows, ("state", "closed", "forced-open"), strict=True)
    }
    assert 1 == len(places)


def test_a_state_has_its_colour() -> None:
    _, line = table_of_circuits({"circuits": [circuit(state="open")]})
    assert click.style("open  ", fg="red", bold=True) not in line  # as wide as its column: "state"
    assert click.style("open ", fg="red", bold=True) in line


def test_a_limiter_is_a_line_with_its_override_and_who_is_refused_most() -> None:
    overridden = limiter(
        denied=12,
        override={"limits": "5/second", "expires_in": 12.0},
        top=[{"key": "192.0.2.7", "refused": 9}, {"key": "192.0.2.8", "refused": 3}],
    )
    _, line = table_of_limiters({"limiters": [overridden]})
    assert line.endswith("5/second for 12 s more  192.0.2.7 (9), 192.0.2.8 (3)")


def test_a_key_that_speaks_to_the_terminal_is_muted() -> None:
    _, line = table_of_limiters({"limiters": [limiter(top=[{"key": "\x1b[2Jevil\n", "refused": 1}])]})
    assert line.endswith("?[2Jevil? (1)")


def test_what_is_long_is_shortened_to_a_line_of_the_terminal_and_nowhere_else() -> None:
    listed = {"limiters": [limiter(top=[{"key": "x" * 500, "refused": 1}])]}
    assert "x" * 500 in table_of_limiters(listed)[1]
    for width in (200, 100):
        _, line = table_of_limiters(listed, width=width)
        assert (width, True) == (len(line), line.endswith("xxx..."))
    _, narrow = table_of_circuits({"circuits": [circuit(name="a-long-name", author="anna")]}, width=10)
    assert click.unstyle(narrow).startswith("a-long-name  closed")


def test_hosts_that_have_voted_are_named_before_they_are_enough() -> None:
    voted = circuit(
        state="open",
        states={"open": 1, "closed": 1},
        retry_after=3,
        cause="ill",
        sharing={"votes": ["web-1"], "quorum": 2},
    )
    _, line = lines(voted)
    assert "in 1 of 2, probe in 3 s" in " ".join(line)
    assert " ".join(line).endswith("ill; 1 of 2 votes: web-1")


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("10 per 3600 s", "10 per hour"),
        ("1 per 60 s burst 5", "1 per minute burst 5"),
        ("9 per 86400 s", "9 per day"),
        ("5 per 1 s", "5 per second"),
        ("5 per 7200 s", "5 per 7200 s"),
    ],
)
def test_a_limit_is_shown_as_people_say_it(told: str, shown: str) -> None:
    _, line = table_of_limiters({"limiters": [limiter(limits=[told])]})
    assert f"api      {shown}  " in line


@pytest.mark.parametrize("text", [b"{}", b"[]", b"<html>", b'{"status": "ok", "workers": 3}'])
def test_a_server_that_is_no_admin_endpoint_is_told_apart(text: bytes) -> None:
    with pytest.raises(click.ClickException, match=r"http://host answers, but not as an admin endpoint does: .*--url"):
        AdminClient("http://host", TOKEN)._document(200, text)


@pytest.mark.parametrize(
    ("said", "seconds"), [("10m", 600), ("1h", 3600), ("1.5 min", 90), ("30d", 2_592_000), ("7", 7)]
)
def test_a_time_may_have_a_unit(said: str, seconds: float) -> None:
    assert seconds == _time(said)


@pytest.mark.parametrize("said", ["0", "-1", "31d", "soon", "1w", "nan", "", "١m"])
def test_a_time_that_cannot_be_ordered_is_refused_in_the_words_of_the_option(said: str) -> None:
    status, text = run("open", "payments", "--for", said)
    assert (2, True, False) == (status, "10m, 1h or 2d" in " ".join(text.split()), "ttl" in text)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("paymnts", ["payments"]),
        ("pay", ["shop.pay", "payments"]),
        ("PAYMENTS", ["payments"]),
        ("pya", ["shop.pay"]),
        ("zzz", []),
        ("", []),
    ],
)
def test_names_that_are_like_it_are_found(said: str, meant: list[str]) -> None:
    assert meant == _alike(said, ["payments", "shop.pay", "stock"])


def test_where_there_is_nothing_that_is_said() -> None:
    assert ["no circuits"] == table_of_circuits({"circuits": []})
    assert ["no rate limiters"] == table_of_limiters({"limiters": []})


def test_what_goes_wrong_is_said_to_its_end() -> None:
    advice = "it took too long to answer: it may be too busy, or stopped; look at its log, and ask again in a while"
    refusal = {"detail": f"no worker could do it:\x1b[2J {advice}"}
    with pytest.raises(click.ClickException, match=f"no worker could do it:\\?\\[2J {advice}$"):
        AdminClient("http://host", TOKEN)._document(503, json.dumps(refusal).encode())
    assert [advice] == _missing({"workers": {"unreached": [], "problem": advice}})


def test_without_an_address_it_says_how_to_give_one() -> None:
    status, text = run("circuits")
    assert (2, True) == (
        status,
        "--url http://127.0.0.1:8001 or RESILIENCE_ADMIN_URL" in text and "`flask run`" in text,
    )


def test_without_a_token_it_says_how_to_give_one() -> None:
    status, text = run("--url", "127.0.0.1:1", "circuits")
    assert (2, True) == (status, "set RESILIENCE_ADMIN_TOKEN, or use --token-file" in text)


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:0", "http://host:x", "http://[", ""])
def test_an_address_that_is_none_is_refused_with_one_that_is(url: str) -> None:
    with pytest.raises(click.UsageError, match="http\\(s\\)://<host>:<port> of the admin listener"):
        AdminClient(url, TOKEN)


@pytest.mark.parametrize("token", ["a-token-✓", "a-token\nof two lines"])
def test_a_token_that_no_field_can_carry_is_refused_without_showing_it(token: str) -> None:
    status, text = run("--url", "127.0.0.1:1", "--token", token, "circuits")
    assert (2, True, False) == (status, "this is no admin token" in text, "a-token" in text)


def test_where_nobody_listens_it_says_so_and_never_the_token() -> None:
    url = f"http://user:secret@127.0.0.1:{nobody_s_port()}"
    status, text = run("circuits", RESILIENCE_ADMIN_URL=url, RESILIENCE_ADMIN_TOKEN=TOKEN)
    assert (1, True) == (status, "does not answer: " in text)
    assert not [secret for secret in (TOKEN, "secret") if secret in text]


def test_the_token_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    status, text = run("--url", f"127.0.0.1:{nobody_s_port()}", "--token-file", str(tmp_path / "token"), "circuits")
    assert (1, True) == (status, "does not answer: " in text)


def test_what_is_not_said_is_asked_of_the_application() -> None:
    port = nobody_s_port()

    def create_app() -> Flask:
        app = Flask("asked")
        Resilience(app, admin_token=TOKEN, admin_port=port)
        return app

    result = CliRunner().invoke(resilience, ["circuits"], obj=ScriptInfo(create_app=create_app))
    assert f"http://127.0.0.1:{port} does not answer" in result.output


def test_an_application_without_the_library_is_no_help() -> None:
    result = CliRunner().invoke(resilience, ["circuits"], obj=ScriptInfo(create_app=lambda: Flask("plain")))
    assert "say where the admin endpoint is" in result.output


def test_orders_need_a_time_above_zero() -> None:
    status, text = run("open", "payments", "--for", "0")
    assert (2, True) == (status, "'--for'" in text)


def test_the_help_names_every_command() -> None:
    _, text = run("--help")
    commands = (
        "circuits",
        "limiters",
        "events",
        "open",
        "close",
        "half-open",
        "disable",
        "metrics-only",
        "reset",
        "watch",
    )
    assert [] == [
        command for command in (*commands, "override", "restore", "fill", "audit") if f"\n  {command} " not in text
    ]
    assert json.dumps(TOKEN) not in text
