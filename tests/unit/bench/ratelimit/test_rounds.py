"""Contenders take turns, and a target is met or it is not."""

from __future__ import annotations

import math
from collections.abc import Callable

from bench.ratelimit.plan import Plan
from bench.ratelimit.rounds import at_least, at_most, in_patched_process, measure, microseconds, table
from bench.worker.figures import Numbers
from bench.worker.report import Section


def contender(name: str, turns: list[str], figures: list[float]) -> Callable[[], Numbers]:
    def once() -> Numbers:
        turns.append(name)
        return {"us": figures.pop(0)}

    return once


def section(ours: list[float], theirs: list[float]) -> Section:
    plan = Plan(rounds=len(ours), seconds=0.0, greenlets=1)
    return table("A table", measure(plan, {"ours": contender("o", [], ours), "theirs": contender("t", [], theirs)}))


def test_contenders_take_turns() -> None:
    turns: list[str] = []
    plan = Plan(rounds=2, seconds=0.0, greenlets=1)
    measure(plan, {"a": contender("a", turns, [1, 2]), "b": contender("b", turns, [3, 4])})
    assert ["a", "b", "a", "b"] == turns


def test_who_is_not_asked_for_is_not_measured() -> None:
    turns: list[str] = []
    plan = Plan(rounds=1, seconds=0.0, greenlets=1, only="^b")
    rows = measure(plan, {"a": contender("a", turns, [1]), "b": contender("b", turns, [2])})
    assert (["b"], ["b"]) == (turns, [row.contender for row in rows])


def test_the_table_compares_medians_with_the_first_row() -> None:
    lines = section([1.0, 9.0, 2.0], [4.0, 4.0, 4.0]).markdown().splitlines()
    assert ["| ours | 2.00 | 1.00 |", "| theirs | 4.00 | 2.00 |"] == lines[-2:]


def test_a_target_is_met_or_missed() -> None:
    seen = section([2.0], [10.0])
    at_most(seen, "fast", 2, "ours")
    at_most(seen, "faster", 1.9, "ours")
    at_least(seen, "ahead", 5, "ours", "theirs")
    at_least(seen, "far ahead", 6, "ours", "theirs")
    assert [True, False, True, False] == [target.met for target in seen.targets]


def test_a_target_whose_contender_was_left_out_is_neither() -> None:
    seen = section([2.0], [10.0])
    at_most(seen, "fast", 2, "nobody")
    at_least(seen, "ahead", 5, "ours", "nobody")
    assert [None, None] == [target.met for target in seen.targets]


def test_a_call_takes_some_time() -> None:
    assert 0.0 < microseconds(lambda: None, 0.001) < math.inf


def test_what_a_patched_process_returns_arrives() -> None:
    assert [3, 4] == in_patched_process("tests.unit.bench.ratelimit.test_rounds:two_more_under_gevent", [1, 2])


def two_more_under_gevent(numbers: list[int]) -> list[int]:
    import socket

    assert socket.socket.__module__.startswith("gevent")
    return [number + 2 for number in numbers]
