from __future__ import annotations

import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.supervisor import ChildEnded, Interrupted, Program, Supervisor, interruptible

WAIT = "import time; time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    supervisor.stop()


def program(source: str, *, log: Path | None = None, patience: float = 5.0, name: str = "it") -> Program:
    command = [sys.executable, "-S", "-c", textwrap.dedent(source)]
    return Program(name=name, command=command, environment=os.environ, patience=patience, log=log)


def pids(supervisor: Supervisor) -> list[int]:
    return [process.pid for _, process in supervisor._running]


def wait_for_text(log: Path, text: str) -> None:
    deadline = time.monotonic() + 5
    while text not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline, f"{text!r} never came"
        time.sleep(0.005)


def assert_gone(pid: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while _is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.005)


def _is_alive(pid: int) -> bool:
    # An orphan goes to whoever collects orphans here, who may be slow to collect this one.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_ended(supervisor: Supervisor) -> str:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            supervisor.check()
        except ChildEnded as error:
            return str(error)
        time.sleep(0.005)
    raise AssertionError("it never ended")


def test_is_content_while_everything_runs(supervisor: Supervisor) -> None:
    supervisor.start(program(WAIT))

    supervisor.check()


def test_says_which_program_ended_and_what_it_said_last(supervisor: Supervisor, tmp_path: Path) -> None:
    chatter = "for n in range(30): print('line', n)\nraise SystemExit('no such luck')"
    supervisor.start(program(chatter, log=tmp_path / "log", name="the demo"))

    said = wait_until_ended(supervisor).splitlines()

    assert "the demo ended with exit status 1; it said last:" == said[0]
    assert {"  line 29", "  no such luck"} < set(said)
    assert 21 == len(said)


def test_points_up_when_the_output_was_not_kept(supervisor: Supervisor) -> None:
    supervisor.start(program("raise SystemExit(3)", name="the service"))

    assert "the service ended with exit status 3; what it said is above" == wait_until_ended(supervisor)


def test_names_the_signal_that_ended_a_program(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(program(WAIT, log=tmp_path / "log"))
    os.kill(pids(supervisor)[0], signal.SIGKILL)

    assert "it was ended by SIGKILL silently" == wait_until_ended(supervisor)


def test_tells_programs_to_end_the_last_started_first(supervisor: Supervisor, tmp_path: Path) -> None:
    order = tmp_path / "order"
    for name in ("first", "second"):
        source = f"""
            import pathlib, signal, sys, time
            def end(*_):
                with open({str(order)!r}, "a") as file:
                    print({name!r}, file=file)
                sys.exit()
            signal.signal(signal.SIGTERM, end)
            print("up", flush=True)
            time.sleep(60)
        """
        supervisor.start(program(source, log=tmp_path / name))
        wait_for_text(tmp_path / name, "up")

    supervisor.stop()

    assert ["second", "first"] == order.read_text().split()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kills_what_does_not_end_in_time_with_its_own_children(supervisor: Supervisor, tmp_path: Path) -> None:
    log = tmp_path / "log"
    source = f"""
        import subprocess, sys
        print(subprocess.Popen([sys.executable, "-S", "-c", {STUBBORN!r}]).pid, flush=True)
        {STUBBORN}
    """
    supervisor.start(program(source, log=log, patience=0.05))
    wait_for_text(log, "deaf\ndeaf")
    grandchild = int(log.read_text().split()[0])

    supervisor.stop()

    wait_until_gone(grandchild)


def test_kills_at_once_when_interrupted_while_waiting(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(program(STUBBORN, log=tmp_path / "log", patience=60))
    wait_for_text(tmp_path / "log", "deaf")
    (pid,) = pids(supervisor)

    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    with interruptible():
        timer.start()
        with pytest.raises(Interrupted):
            supervisor.stop()
    timer.join()

    assert_gone(pid)


def test_gives_each_program_a_session_of_its_own_so_that_ctrl_c_reaches_only_this_one(supervisor: Supervisor) -> None:
    supervisor.start(program(WAIT))
    (pid,) = pids(supervisor)

    assert pid == os.getsid(pid) == os.getpgid(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
def test_programs_end_when_their_parent_is_killed(tmp_path: Path, supervisor: Supervisor) -> None:
    parent = f"""
        import os, sys, time
        sys.path.insert(0, {str(Path.cwd())!r})
        from service.supervisor import Program, Supervisor
        supervisor = Supervisor()
        command = [sys.executable, "-S", "-c", {WAIT!r}]
        supervisor.start(Program(name="child", command=command, environment=os.environ, patience=1))
        print(supervisor._running[0][1].pid, flush=True)
        time.sleep(60)
    """
    log = tmp_path / "log"
    supervisor.start(program(parent, log=log))
    wait_for_text(log, "\n")
    child = int(log.read_text())
    assert os.getpgid(child) == child

    os.kill(pids(supervisor)[0], signal.SIGKILL)

    wait_until_gone(child)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_turns_signals_into_an_exception_and_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    with pytest.raises(Interrupted), interruptible():
        signal.raise_signal(number)

    assert before == signal.getsignal(number)
