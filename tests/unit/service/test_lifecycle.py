from __future__ import annotations

import gevent
import pytest
from structlog.testing import capture_logs

from service.lifecycle import Check, CheckResult, Checks, Lifecycle


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def fail() -> None:
    raise ValueError("no route to host")


def hang() -> None:
    gevent.sleep(60)


def test_a_process_drains_once_it_was_told_to() -> None:
    lifecycle = Lifecycle()
    assert not lifecycle.draining
    lifecycle.start_draining()
    assert lifecycle.draining


def test_what_was_opened_last_is_given_back_first_and_only_once() -> None:
    lifecycle, closed = Lifecycle(), []
    for name in ("database", "pool", "socket"):
        lifecycle.on_shutdown(name, lambda name=name: closed.append(name))  # type: ignore[misc]  # a default that binds
    lifecycle.shut_down()
    lifecycle.shut_down()
    assert ["socket", "pool", "database"] == closed


@pytest.mark.parametrize("broken", [fail, hang])
def test_a_step_that_fails_or_hangs_does_not_keep_the_next_from_running(broken: object) -> None:
    lifecycle, closed = Lifecycle(), []
    lifecycle.on_shutdown("database", lambda: closed.append("database"))
    lifecycle.on_shutdown("broken", broken, timeout=0.01)  # type: ignore[arg-type]  # one of the two above
    with capture_logs() as logged:
        lifecycle.shut_down()
    assert ["database"] == closed
    assert ["broken"] == [entry["step"] for entry in logged]


def test_a_timeout_that_a_step_lets_escape_does_not_keep_the_next_from_running() -> None:
    def leak() -> None:
        raise gevent.Timeout(1)

    lifecycle, closed = Lifecycle(), []
    lifecycle.on_shutdown("database", lambda: closed.append("database"))
    lifecycle.on_shutdown("leak", leak)
    lifecycle.shut_down()
    assert ["database"] == closed


def test_all_steps_together_keep_within_the_budget() -> None:
    lifecycle = Lifecycle()
    for _ in range(3):
        lifecycle.on_shutdown("slow", hang, timeout=30)
    with gevent.Timeout(2):
        lifecycle.shut_down(budget=0.05)


def test_a_step_may_register_another_while_running() -> None:
    lifecycle, closed = Lifecycle(), []
    lifecycle.on_shutdown("outer", lambda: lifecycle.on_shutdown("inner", lambda: closed.append("inner")))
    lifecycle.shut_down()
    assert ["inner"] == closed


@pytest.mark.parametrize(("function", "state"), [(lambda: None, "ok"), (fail, "failed"), (hang, "timed out")])
def test_a_check_is_well_unless_it_raises_or_takes_too_long(function: object, state: str) -> None:
    check = Check("database", critical=True, timeout=0.01, function=function)  # type: ignore[arg-type]  # see above
    (result,) = Checks([check]).run()
    assert ("database", True, state) == (result.name, result.critical, result.state)


def test_a_result_is_remembered_for_its_lifetime_and_no_longer() -> None:
    clock, runs = Clock(), []
    checks = Checks([Check("database", critical=True, timeout=1, function=lambda: runs.append(1))], clock=clock)
    checks.run()
    clock.now += 0.999
    checks.run()
    assert 1 == len(runs)
    clock.now += 0.001
    checks.run()
    assert 2 == len(runs)


def test_probes_that_arrive_while_a_check_runs_wait_for_that_run() -> None:
    runs: list[int] = []

    def slow() -> None:
        runs.append(1)
        gevent.sleep(0.01)

    checks = Checks([Check("database", critical=True, timeout=1, function=slow)])
    probes = [gevent.spawn(checks.run) for _ in range(5)]
    results = [probe.get() for probe in probes]
    assert 1 == len(runs)
    assert all(result[0].state == "ok" for result in results)


def test_checks_run_side_by_side() -> None:
    meeting = gevent.event.Event()
    meeting_too = gevent.event.Event()

    def first() -> None:
        meeting.set()
        assert meeting_too.wait(1)

    def second() -> None:
        meeting_too.set()
        assert meeting.wait(1)

    checks = Checks([Check("first", True, 1, first), Check("second", True, 1, second)])
    assert ["ok", "ok"] == [result.state for result in checks.run()]


def test_only_critical_checks_run_when_only_they_are_asked_for() -> None:
    checks = Checks([Check("database", True, 1, lambda: None), Check("cache", False, 1, fail)])
    assert ["database"] == [result.name for result in checks.run(critical_only=True)]
    assert ["database", "cache"] == [result.name for result in checks.run()]


def test_a_check_is_logged_when_its_state_changes_and_not_at_every_probe() -> None:
    clock, broken = Clock(), [True]
    checks = Checks([Check("database", True, 1, lambda: fail() if broken else None)], clock=clock)
    with capture_logs() as logged:
        for _ in range(3):
            checks.run()
            clock.now += 2
        broken.clear()
        checks.run()
    assert [("error", "failed"), ("info", "ok")] == [(entry["log_level"], entry["state"]) for entry in logged]


def test_a_result_says_how_long_the_check_took() -> None:
    clock = Clock()

    def slow() -> None:
        clock.now += 0.25

    assert [CheckResult("database", True, "ok", 250.0)] == Checks([Check("database", True, 1, slow)], clock=clock).run()
