"""Greenlets that ask a shared storage for decisions all the time, in a process of their own, and what they saw.

    python -m tests.support.limited_callers URI CALLERS SECONDS PAUSE LEASE

Writes a line when all are under way, and at the end what `Callers.result` reads.
"""

from __future__ import annotations

import array
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.untraced import without_coverage

__all__ = ["Call", "Callers", "Calls"]


class Call(NamedTuple):
    """One decision: when it began (seconds of the monotonic clock), how long it took, who called, and who decides after it."""

    began: float
    took: float
    caller: int
    by_primary: bool


class Calls(NamedTuple):
    """All decisions in the order of their end, what was raised, what was logged and when, and the storage's own counts."""

    calls: list[Call]
    errors: list[str]
    logged: list[tuple[float, str]]
    snapshot: dict[str, Any]

    def between(self, begin: float, end: float) -> list[Call]:
        """Those that began then."""
        return [call for call in self.calls if begin <= call.began < end]


class Callers:
    """A crowd that has been started; `result` waits for its end."""

    def __init__(self, uri: str, *, callers: int, seconds: float, pause: float = 0.01, lease: int = 0) -> None:
        arguments = [uri, str(callers), str(seconds), str(pause), str(lease)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.limited_callers", *arguments],
            cwd=Path(__file__).parents[2],
            env=without_coverage(),
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        assert b"under way\n" == self._output.readline()

    def result(self) -> Calls:
        """What they saw."""
        report = json.loads(self._output.readline())
        numbers = array.array("d")
        numbers.frombytes(self._output.read())
        assert 0 == self._process.wait(timeout=60)
        values = iter(numbers)
        calls = [
            Call(began, took, int(caller), bool(by_primary))
            for began, took, caller, by_primary in zip(values, values, values, values, strict=True)
        ]
        logged = [(moment, text) for moment, text in report["logged"]]
        return Calls(calls, report["errors"], logged, report["snapshot"])

    def end(self) -> None:
        """End the process, if it is still there."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(timeout=10)
        self._output.close()


def _main(uri: str, callers: int, seconds: float, pause: float, lease: int) -> None:
    import gevent

    from resilience import Limit, open_storage
    from resilience.storage.standin import StandInStorage

    logged: list[tuple[float, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append((time.monotonic(), record.getMessage()))  # type: ignore[method-assign]
    logging.getLogger("resilience").addHandler(handler)
    storage = open_storage(uri)
    assert isinstance(storage, StandInStorage)
    take = storage.taker("steady", Limit(1_000_000, 1), 0, lease)
    numbers = array.array("d")
    errors: list[str] = []
    take("first", 1)  # connects, and meets what is slow once
    while not storage.available:
        gevent.sleep(0.1)
    until = time.monotonic() + seconds

    def call(caller: int) -> None:
        subject = f"caller-{caller}" if not lease else "hot"
        gevent.sleep(pause * caller / callers)
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                assert take(subject, 1).allowed
            except BaseException as error:
                errors.append(repr(error))
                raise
            numbers.extend((began, time.monotonic() - began, caller, storage.available))
            gevent.sleep(pause)

    greenlets = [gevent.spawn(call, caller) for caller in range(callers)]
    gevent.sleep(pause)
    os.write(1, b"under way\n")
    gevent.joinall(greenlets)
    snapshot = storage.snapshot()._asdict()
    storage.close()
    report = json.dumps({"errors": errors, "logged": logged, "snapshot": snapshot})
    with os.fdopen(os.dup(1), "wb") as output:
        output.write(report.encode() + b"\n")
        output.write(numbers.tobytes())


if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()
    _main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
