"""The sizes of a run follow its options and what the machine allows; everybody has what the parts ask for."""

from __future__ import annotations

import pytest

from bench.websocket import command
from bench.websocket.contenders import PATHS, contenders
from bench.websocket.plan import FULL, QUICK, Plan
from bench.worker.equipment import Equipment


def plan(*arguments: str, limit: int = 1_000_000) -> Plan:
    return command.plan_of(command._parser().parse_args(arguments), limit)


def test_without_options_everything_is_full_size() -> None:
    assert FULL == plan()


def test_quick_is_small() -> None:
    assert QUICK == plan("--quick")


def test_options_override_the_sizes() -> None:
    seen = plan("--rounds", "3", "--hold", "7", "--connections", "99")
    assert (3, 7.0, 99) == (seen.rounds, seen.idle_seconds, seen.idle_connections)


def test_no_crowd_is_larger_than_the_descriptors_allow() -> None:
    seen = plan(limit=6_000)
    assert (5_000, (1_000, 5_000)) == (seen.idle_connections, seen.subscribers)


def test_an_unknown_part_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["ecko"])
    assert "no such part: ecko" in capsys.readouterr().err


def test_every_contender_says_where_it_has_what_it_takes_part_in() -> None:
    assert set(PATHS) == set(contenders(Equipment()))
    assert {"idle", "echo", "hub"} == {use for paths in PATHS.values() for use in paths}


def test_a_peer_that_could_not_be_built_is_left_out_with_the_reason() -> None:
    missing = contenders(Equipment(missing={"gorilla": "no go here"}))
    assert {"gorilla: no go here"} == {each.missing for name, each in missing.items() if name.startswith("Gin")}
