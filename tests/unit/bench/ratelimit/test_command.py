"""What is asked for is what is run, and what was asked of it is answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.ratelimit import command
from bench.ratelimit.plan import FULL, QUICK, Plan
from bench.worker.report import Column, Row, Section, Target


def plan(*arguments: str) -> Plan:
    return command.plan_of(command._parser().parse_args(arguments))


def stand_in(part: str, met: bool) -> Section:
    row = Row("seawall", [{"us": 1.0}])
    return Section(f"Table of {part}", [Column("us", "us")], [row], targets=[Target(part, "<= 1 us", "1 us", met)])


def test_without_options_everything_is_full_size() -> None:
    assert FULL == plan()


def test_quick_is_small() -> None:
    assert QUICK == plan("--quick")


def test_options_override_the_sizes() -> None:
    asked = plan("--quick", "--rounds", "3", "--seconds", "0.1", "--greenlets", "50", "--only", "seawall")
    assert Plan(rounds=3, seconds=0.1, greenlets=50, every_server=False, only="seawall") == asked


def test_only_those_take_part_whose_names_match() -> None:
    assert [True, False] == [plan("--only", "^seawall").takes(name) for name in ("seawall, leases", "limits")]


def test_an_unknown_part_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["memmory"])
    assert "no such part: memmory; choose from memory, shm, redis, denials, flask" in capsys.readouterr().err


@pytest.mark.parametrize(("met", "options", "status"), [(True, [], 0), (False, [], 1), (False, ["--quick"], 0)])
def test_a_missed_target_is_the_exit_status_unless_nothing_was_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, met: bool, options: list[str], status: int
) -> None:
    monkeypatch.setattr(command, "run_part", lambda part, _: [stand_in(part, met)])
    assert status == command.main(["flask", *options, "--output", str(tmp_path / "seen.json")])


def test_the_parts_run_in_their_order_and_are_all_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run_part", lambda part, _: [stand_in(part, True)])
    path = tmp_path / "folder" / "seen.json"
    command.main(["flask", "memory", "--output", str(path)])
    document = json.loads(path.read_text())
    assert ["memory", "flask"] == [section["part"] for section in document["sections"]]
    printed = capsys.readouterr().out
    assert printed.index("### Table of memory") < printed.index("### Table of flask") < printed.index("### Targets")
