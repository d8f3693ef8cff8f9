"""Callers that ask a storage for tokens without pause while somebody breaks it, in a process of their own.

`python -m tests.support.hammering URI threads|greenlets FILE` prints one line when it has begun and one, of JSON, with what
the callers saw: half a second after the storage has been left and taken up again, once FILE says that it is broken.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[2] == "greenlets":
    from gevent import monkey

    monkey.patch_all()

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from resilience.core.limiter import Charge, Limit
from resilience.storage.address import open_storage
from resilience.storage.standin import StandInStorage
from tests.support.untraced import without_coverage

__all__ = ["BURST", "Hammering"]

BURST = 300
_LIMIT = Limit(1, 86_400, BURST)
_CALLERS = 8
_LONGEST = 30.0
_KEYS = 8  # of the bucket that is being used up when the storage breaks: over several nodes of a cluster


class Hammering:
    """The process, begun. `result` waits for its end."""

    def __init__(self, uri: str, callers: str, folder: Path) -> None:
        self._broken = folder / "broken"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.hammering", uri, callers, str(self._broken)],
            cwd=Path(__file__).parents[2],
            env=without_coverage(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert "begun\n" == self._process.stdout.readline()

    def storage_is_broken(self) -> None:
        """Tell it, as soon as it is so."""
        self._broken.touch()

    def result(self) -> dict[str, Any]:
        """`errors` of the callers, `admitted` per bucket, `back_at` (monotonic seconds) and what else they saw."""
        output, _ = self._process.communicate(timeout=_LONGEST + 20)
        assert 0 == self._process.returncode
        result: dict[str, Any] = json.loads(output)
        print(result)
        return result

    def close(self) -> None:
        """End it, should it still be there."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


class _Callers:
    """Callers that ask until they are stopped, and what they saw."""

    def __init__(self, storage: StandInStorage) -> None:
        self.errors: list[str] = []
        self.admitted: dict[str, int] = {}
        self.calls = 0
        self.slowest = 0.0
        self._storage = storage
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(_CALLERS)]

    def use_up(self) -> None:
        """Take what half of the buckets hold."""
        for key in range(_KEYS):
            for _ in range(BURST + 1):
                self._take("used up before", key)

    def start(self) -> None:
        """Let them begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let them end."""
        self._stop.set()
        for thread in self._threads:
            thread.join(5)

    def _ask(self, turn: int) -> None:
        while not self._stop.is_set():
            turn += 1
            self._take("used up before", turn % _KEYS)
            if not turn % 3:  # slowly, so that it is half used when the storage breaks
                self._take("in use", turn // 3 % _KEYS)
            time.sleep(0.002)

    def _take(self, scope: str, key: int) -> None:
        started = time.monotonic()
        try:
            charge = Charge(f"{scope} {os.getpid()}", str(key), _LIMIT, 1)
            allowed = self._storage.take([charge]).allowed
        except BaseException as error:
            self.errors.append(repr(error))
            raise
        with self._lock:
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.calls += 1
            name = f"{scope} {key}"
            self.admitted[name] = self.admitted.get(name, 0) + allowed


def _main(uri: str, broken: Path) -> None:
    # Longer than the default: a busy machine alone must not break anything before the test does.
    storage = open_storage(uri, on_store_failure="local", workers=1, timeout=0.25)
    assert isinstance(storage, StandInStorage)
    callers = _Callers(storage)
    callers.use_up()
    callers.start()
    print("begun", flush=True)
    end = time.monotonic() + _LONGEST
    while (storage.available or not broken.exists()) and time.monotonic() < end:
        time.sleep(0.005)
    while not storage.available and time.monotonic() < end:
        time.sleep(0.005)
    back_at = time.monotonic()
    time.sleep(0.5)
    callers.stop()
    result = {
        "errors": callers.errors,
        "admitted": callers.admitted,
        "calls": callers.calls,
        "slowest": callers.slowest,
        "back_at": back_at,
        "available": storage.available,
        "changes": storage.snapshot().changes,
    }
    storage.close()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[3]))
