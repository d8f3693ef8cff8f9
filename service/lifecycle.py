"""The life of this process: whether it is about to stop, what it must give back then, and whether it is well.

Each worker has one `Lifecycle`, `process`. The worker says when draining starts and runs the shutdown; whoever opens
something registers how to close it; the health routes read the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import gevent
import gevent.lock
import structlog

__all__ = ["Check", "CheckResult", "Checks", "Lifecycle", "process"]

CALLBACK_TIMEOUT = 2.0
SHORTEST_TIMEOUT = 0.05
RESULT_LIFETIME = 1.0

_log = structlog.get_logger("service.lifecycle")


@dataclass(frozen=True, slots=True)
class _Callback:
    name: str
    function: Callable[[], object]
    timeout: float


class Lifecycle:
    """Whether the process drains, and what to give back at its end."""

    def __init__(self) -> None:
        self._draining = False
        self._callbacks: list[_Callback] = []

    @property
    def draining(self) -> bool:
        """True from the moment that the process was told to stop."""
        return self._draining

    def start_draining(self) -> None:
        """Say that the process will stop. Sets a flag and nothing else, so that a signal handler may call it."""
        self._draining = True

    def on_shutdown(self, name: str, function: Callable[[], object], *, timeout: float = CALLBACK_TIMEOUT) -> None:
        """Call `function` when the process ends, the latest registered first, for at most `timeout` seconds."""
        self._callbacks.append(_Callback(name, function, timeout))

    def shut_down(self, *, budget: float = 5.0) -> None:
        """Run every callback once, within `budget` seconds in all. One that fails or hangs does not keep the next
        from running; it is logged. Calling again does nothing."""
        deadline = time.monotonic() + budget
        while self._callbacks:
            callback = self._callbacks.pop()
            remaining = max(SHORTEST_TIMEOUT, deadline - time.monotonic())
            _run_bounded(callback, min(callback.timeout, remaining))


def _run_bounded(callback: _Callback, seconds: float) -> None:
    timeout = gevent.Timeout.start_new(seconds)
    try:
        callback.function()
    except gevent.Timeout as raised:
        _log.error("shutdown step took too long", step=callback.name, seconds=seconds, own=raised is timeout)
    except Exception:  # noqa: BLE001 - whatever it is, the next step must run
        _log.exception("shutdown step failed", step=callback.name)
    finally:
        timeout.close()


process = Lifecycle()
"""The life of this process. A fork gets a copy of its own."""


State = Literal["ok", "failed", "timed out"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must work. `function` raises when it does not, and has `timeout` seconds to say so.

    Without its `critical` checks the process cannot serve; the others are reported only.
    """

    name: str
    critical: bool
    timeout: float
    function: Callable[[], object]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check said, and how long it took to say it."""

    name: str
    critical: bool
    state: State
    milliseconds: float


class Checks:
    """Runs checks side by side and remembers each result for a second, so that many probes cost as much as one."""

    def __init__(
        self, checks: Sequence[Check], *, lifetime: float = RESULT_LIFETIME, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._checked = [_Checked(check, lifetime=lifetime, clock=clock) for check in checks]

    def run(self, *, critical_only: bool = False) -> list[CheckResult]:
        """The results, in the order of declaration. Takes as long as the slowest check, which is bounded."""
        chosen = [checked for checked in self._checked if checked.check.critical or not critical_only]
        greenlets = [gevent.spawn(checked.result) for checked in chosen]
        return [greenlet.get() for greenlet in greenlets]


class _Checked:
    """A check with its latest result. Those who ask while it runs wait for that run."""

    def __init__(self, check: Check, *, lifetime: float, clock: Callable[[], float]) -> None:
        self.check = check
        self._lifetime = lifetime
        self._clock = clock
        self._running = gevent.lock.Semaphore(1)
        self._latest: CheckResult | None = None
        self._fresh_until = 0.0

    def result(self) -> CheckResult:
        with self._running:
            if self._latest is None or self._clock() >= self._fresh_until:
                self._latest = self._run()
                self._fresh_until = self._clock() + self._lifetime
            return self._latest

    def _run(self) -> CheckResult:
        started = self._clock()
        state: State = "ok"
        reason = ""
        timeout = gevent.Timeout.start_new(self.check.timeout)
        try:
            self.check.function()
        except gevent.Timeout:
            state, reason = "timed out", f"no answer within {self.check.timeout:g} s"
        except Exception as error:  # noqa: BLE001 - any failure of a check is its result
            state, reason = "failed", f"{type(error).__name__}: {error}"
        finally:
            timeout.close()
        self._log_change(state, reason)
        milliseconds = round((self._clock() - started) * 1000, 3)
        return CheckResult(self.check.name, self.check.critical, state, milliseconds)

    def _log_change(self, state: State, reason: str) -> None:
        before = "ok" if self._latest is None else self._latest.state
        if state != before:
            say = _log.info if state == "ok" else _log.error if self.check.critical else _log.warning
            say("check changed", check=self.check.name, before=before, state=state, reason=reason or None)
