"""The sizes of a run follow its options and what the machine allows."""

from __future__ import annotations

import pytest

from bench.worker import command
from bench.worker.plan import FULL, QUICK


def plan(*arguments: str, limit: int = 1_000_000) -> object:
    return command.plan_of(command._parser().parse_args(arguments), limit)


def test_without_options_everything_is_full_size() -> None:
    assert plan() == FULL


def test_quick_is_small() -> None:
    assert plan("--quick") == QUICK


def test_options_override_the_sizes() -> None:
    seen = command.plan_of(command._parser().parse_args(["--rounds", "3", "--hold", "7", "--workers", "8"]), 20_000)
    assert (3, 7.0, 8, 100_000) == (seen.rounds, seen.crowd_seconds, seen.crowd_workers, seen.crowd_connections)


def test_nothing_is_larger_than_the_descriptors_allow() -> None:
    seen = command.plan_of(command._parser().parse_args([]), 6_000)
    assert (5_000, 5_000, 5_000, (1_000, 5_000, 5_000), 30_000) == (
        seen.idle_connections,
        seen.slow_clients,
        seen.storm_connections,
        seen.waiting_connections,
        seen.crowd_connections,
    )


def test_an_unknown_part_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["pongg"])
    assert "no such part: pongg" in capsys.readouterr().err
