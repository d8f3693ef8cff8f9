"""Starts the client processes, adds up what they tell, and ends them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from longconn.load.plan import Plan
from longconn.load.tally import SECOND, Tally

__all__ = ["Load", "Report", "run"]

ROOT = Path(__file__).resolve().parents[2]
START_WITHIN = 30.0
"""Seconds that all processes may take to start."""

END_WITHIN = 20.0
"""Seconds that a process may take to end after it was told to."""

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True, slots=True)
class Report:
    """How a load went. `opening` is the seconds until all were open (or the time for that was over), `held` those after it."""

    plan: Plan
    tally: Tally
    opening: float
    held: float
    died: int = 0
    """Client processes that ended before they were told to."""

    @property
    def faults(self) -> list[str]:
        """What is not as it should be, in words. Nothing is: all connections were open to the end, and no message was wrong."""
        tally = self.tally
        found = []
        if self.died:
            found.append(f"{self.died} client processes died")
        if tally.open < self.plan.connections:
            found.append(f"{self.plan.connections - tally.open:,} connections were not open at the end")
        if tally.ended:
            found.append(f"{sum(tally.ended.values()):,} connections were ended by the server")
        counts = {"lost": tally.lost, "doubled": tally.doubled, "out of order": tally.disordered}
        found += [f"{count:,} messages {what}" for what, count in counts.items() if count]
        return found

    def as_json(self) -> dict[str, Any]:
        """The figures, as JSON takes them. Times are in milliseconds; each is at most a tenth too high."""
        tally = self.tally
        histograms = {"connecting": tally.connecting, "delivery": tally.delivery}
        return {
            "kind": self.plan.kind,
            "url": self.plan.url,
            "opening_seconds": round(self.opening, 3),
            "held_seconds": round(self.held, 3),
            **{name: value for name, value in tally.as_json().items() if name not in histograms},
            **{
                f"{name}_{quantile}_ms": milliseconds(counted.quantile(share))
                for name, counted in histograms.items()
                for quantile, share in QUANTILES.items()
            },
            "died": self.died,
            "faults": self.faults,
        }


def milliseconds(nanoseconds: int | None) -> float | None:
    """With three places after the point; None stays None."""
    return None if nanoseconds is None else round(nanoseconds * 1000 / SECOND, 3)


class _Client:
    """A client process, and what it told last."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.process = process
        self.output = process.stdout.fileno()
        self.buffer = b""
        self.tally = Tally()
        self.told = False
        self.done = False
        self.died = False

    def hear(self) -> None:
        """Take what it has written."""
        data = os.read(self.output, 1_048_576)
        if not data:
            self.died = not self.done
            self.done = True
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        if lines:
            told = json.loads(lines[-1])
            self.tally = Tally.from_json(told["tally"])
            self.done = self.done or told["last"]
            self.told = True

    def stop(self) -> None:
        """Tell it to end."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended
            self.process.stdin.close()


class Load:
    """A load that runs from entering this context to leaving it. Not for use by several threads.

    What the processes count is known when they have told it, ten times a second, and only while one of the methods here waits.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._clients: list[_Client] = []
        self._started = 0.0
        self._opened_after: float | None = None

    def __enter__(self) -> Load:
        """Start the processes. Raises `PlanError`."""
        self._started = time.monotonic()
        try:
            for share in self._plan.shares():
                process = subprocess.Popen(
                    [sys.executable, "-m", "longconn.load.process"],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C is for this process, which then ends them in order
                )
                self._clients.append(_Client(process))
                assert process.stdin is not None
                process.stdin.write(json.dumps(share.as_json()).encode() + b"\n")
                process.stdin.flush()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    @property
    def tally(self) -> Tally:
        """What all processes have told."""
        total = Tally()
        for client in self._clients:
            total.add(client.tally)
        total.wanted = self._plan.connections
        if self._opened_after is None and total.settled >= total.wanted:
            self._opened_after = time.monotonic() - self._started
        return total

    @property
    def died(self) -> int:
        """How many processes ended before they were told to."""
        return sum(client.died for client in self._clients)

    @property
    def living(self) -> int:
        """How many processes have not ended."""
        return sum(not client.done for client in self._clients)

    @property
    def ready(self) -> bool:
        """Whether all processes have begun."""
        return all(client.told or client.done for client in self._clients)

    def listen(self, seconds: float) -> Tally:
        """Take what the processes tell for so long, and return what all have told."""
        deadline = time.monotonic() + seconds
        self._hear(lambda: time.monotonic() >= deadline, deadline)
        return self.tally

    def until(self, condition: Callable[[Tally], bool], within: float) -> bool:
        """Wait until what all have told fulfils `condition`; whether it does, within so many seconds."""
        deadline = time.monotonic() + within
        self._hear(lambda: condition(self.tally), deadline)
        return condition(self.tally)

    def finish(self) -> Report:
        """Have all connections closed in order, and the processes ended; how it went."""
        stopped = time.monotonic()
        for client in self._clients:
            client.stop()
        self._hear(lambda: False, stopped + END_WITHIN)
        total = self.tally
        passed = stopped - self._started
        opening = min(passed, self._plan.opening_seconds if self._opened_after is None else self._opened_after)
        return Report(self._plan, total, opening, passed - opening, self.died)

    def _hear(self, enough: Callable[[], bool], deadline: float) -> None:
        while not enough():
            left = deadline - time.monotonic()
            talking = {client.output: client for client in self._clients if not client.done}
            if left <= 0 or not talking:
                return
            poll = select.poll()
            for output in talking:
                poll.register(output, select.POLLIN)
            for output, _ in poll.poll(left * 1000):
                talking[output].hear()

    def _kill(self) -> None:
        for client in self._clients:
            client.stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.process.wait(0.5 if client.done else 0.0)
            if client.process.poll() is None:
                client.process.kill()
                client.process.wait()
            assert client.process.stdout is not None
            client.process.stdout.close()
        self._clients.clear()


def run(plan: Plan, show: Callable[[Tally, float], None], *, every: float = 0.2) -> Report:
    """The whole of a plan: open, hold, end. `show` gets the tally and the seconds since the start, `every` so many seconds.

    Ctrl-C ends it early, and in order. Raises `PlanError`.
    """
    with Load(plan) as load:
        end = math.inf
        with contextlib.suppress(KeyboardInterrupt):
            load.until(lambda _: load.ready, START_WITHIN)
            started = now = time.monotonic()
            while now < end and load.living:
                tally = load.listen(min(every, end - now))
                now = time.monotonic()
                show(tally, now - started)
                if end == math.inf and (tally.settled >= tally.wanted or now - started >= plan.opening_seconds):
                    end = now + plan.seconds
        return load.finish()
