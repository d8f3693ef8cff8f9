"""Load by wrk: as fast as the answers come, or at a pace."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bench.worker.figures import wrk_numbers

__all__ = ["Load", "load", "start_load"]

HERE = Path(__file__).resolve().parent
TIMEOUT = 10
"""Seconds after which wrk counts an answer as a timeout."""


class Load:
    """A wrk that runs."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self._process = process
        self._seconds = seconds

    def result(self) -> dict[str, float]:
        """Wait for its end: the figures of `wrk_numbers`. RuntimeError: it failed, did not end, or nobody answered."""
        try:
            output, complaints = self._process.communicate(timeout=self._seconds + 60)
        except subprocess.TimeoutExpired:
            self.stop()
            raise RuntimeError("wrk did not end") from None
        if self._process.returncode:
            raise RuntimeError(f"wrk failed: {(complaints or output).strip()[-300:]}")
        figures = wrk_numbers(output)
        if not figures["requests"]:
            raise RuntimeError("not one request was answered")
        return figures

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def start_load(url: str, *, connections: int, seconds: float, pace_ms: int = 0, headers: tuple[str, ...] = ()) -> Load:
    """Start wrk with one thread. With `pace_ms` each connection waits that long, more or less, between its requests."""
    script = HERE / ("paced.lua" if pace_ms else "report.lua")
    duration = max(1, round(seconds))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{duration}s", "--timeout", f"{TIMEOUT}s", "-s", str(script)]
    for header in headers:
        command += ["-H", header]
    process = subprocess.Popen(
        [*command, url],
        env={**os.environ, "PACE_MILLISECONDS": str(pace_ms)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Load(process, duration)


def load(
    url: str, *, connections: int, seconds: float, pace_ms: int = 0, headers: tuple[str, ...] = ()
) -> dict[str, float]:
    """The same from its start to its end."""
    running = start_load(url, connections=connections, seconds=seconds, pace_ms=pace_ms, headers=headers)
    try:
        return running.result()
    finally:
        running.stop()
