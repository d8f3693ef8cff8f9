"""Child processes that end when this process ends, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

__all__ = ["ChildEnded", "Interrupted", "Program", "Supervisor", "interruptible"]

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG: Final = 1
LAST_LINES: Final = 20
# Looked up here: between fork and exec a child should do as little as it can.
LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run: `command` with `environment`, its output in the file `log` (None: where this process's goes).

    `patience` is how many seconds it may take to end when told to.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    patience: float
    log: Path | None = None


class ChildEnded(Exception):
    """A program ended by itself. The message says which, how, and what it said last."""


class Interrupted(KeyboardInterrupt):
    """A signal told this process to stop."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in this block when SIGINT, SIGTERM or SIGHUP arrives. For the main thread."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Supervisor:
    """Starts programs, notices when one ends, and ends them, the last started first.

    Each gets a session of its own, so that a terminal's Ctrl-C reaches this process alone. On Linux the kernel sends
    them TERM should this process be killed; elsewhere that case is not covered. For the main thread.
    """

    def __init__(self) -> None:
        self._running: list[tuple[Program, subprocess.Popen[bytes]]] = []

    def start(self, program: Program) -> None:
        """Start `program`. Raises `OSError` when it cannot be started."""
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(program.log.open("wb")) if program.log else None
            process = subprocess.Popen(  # noqa: S603 - the command is the caller's, not a user's
                program.command,
                env=dict(program.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
                preexec_fn=_end_with(os.getpid()),  # safe: no other thread runs here
            )
        self._running.append((program, process))

    def check(self) -> None:
        """Raise `ChildEnded` if a program has ended."""
        for program, process in self._running:
            if process.poll() is not None:
                raise ChildEnded(_obituary(program, process.returncode))

    def stop(self) -> None:
        """Tell every program to end, wait for it, and kill what is left then, or at once when interrupted."""
        try:
            for program, process in reversed(self._running):
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(program.patience)
        finally:
            for _, process in self._running:
                _kill(process)
            self._running.clear()


def _end_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes its program."""

    def bind() -> None:
        if LIBC is not None:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    return bind


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own children too
        process.wait()


def _obituary(program: Program, status: int) -> str:
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    if program.log is None:
        return f"{program.name} {how}; what it said is above"
    said = program.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return "\n  ".join([f"{program.name} {how}; it said last:", *said]) if said else f"{program.name} {how} silently"
