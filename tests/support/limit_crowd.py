"""A crowd that asks one limit at once, from several processes of many greenlets each.

As a module: `Crowd` starts the processes, lets them go together when all are ready, and gathers what they were told. As a
program (one of these processes): arguments are a JSON object, the fields of `Task`; it prints `ready`, waits for a line,
and prints what it saw as JSON. All times are those of the machine's monotonic clock, in microseconds, so that they compare
across processes. Nothing here measures how fast an answer is; the storage is given all the time that it needs.
"""

from __future__ import annotations

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

# In a process of the crowd everything below is imported patched.
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

from resilience.core.limiter import Decision, Limit
from resilience.errors import StorageBusy
from resilience.ports import LimitStorage
from tests.support.untraced import without_coverage

__all__ = ["Admission", "Crowd", "Manner", "Seen", "Task", "certain_burst"]

Manner = Literal["once", "steady", "adversarial"]


class Admission(NamedTuple):
    """One that was admitted, at some moment between these two."""

    asked: int
    answered: int


@dataclass(frozen=True)
class Task:
    """What one process does: `greenlets` of them ask for tokens of one limit in some `manner`.

    once: each asks one time. steady: all together ask `rate` times a second, for `seconds`. adversarial: each, for
    `seconds`, at whatever moment may hurt most: at once, when the next token is due, a little before that, all together
    after a pause.
    """

    uri: str
    name: str
    amount: float
    period: float
    burst: int
    greenlets: int
    manner: Manner
    seconds: float = 0.0
    rate: float = 0.0
    seed: int = 0
    timeout: float = 20.0


class Seen(NamedTuple):
    """What all processes saw."""

    admitted: list[Admission]
    calls: int
    first_refused: int
    """When the first one that was refused had its answer: the bucket had been emptied before."""
    last_refused: int
    """When the last one that was refused asked: the bucket was empty at that moment or after it."""
    longest_unrefused: int
    """The longest time in which nobody asked who was refused: for no longer has the bucket had time to fill."""
    busy: int
    """How often a storage had no time to decide, and was asked again."""

    @property
    def first_asked(self) -> int:
        """When the first that was admitted asked."""
        return min(admission.asked for admission in self.admitted)

    @property
    def last_answered(self) -> int:
        """When the last that was admitted had its answer."""
        return max(admission.answered for admission in self.admitted)


class Crowd:
    """The processes of one crowd, each with a `Task` of its own."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._processes = [_started(task) for task in tasks]

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def go(self, timeout: float = 100.0) -> Seen:
        """Let all begin when all are ready, and return what they saw."""
        for process in self._processes:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline(), "a process of the crowd ended before it began"
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs: list[str] = [""] * len(self._processes)

        def gather(index: int) -> None:
            outputs[index] = self._processes[index].communicate(timeout=timeout)[0]

        readers = [threading.Thread(target=gather, args=(index,)) for index in range(len(outputs))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert [0] * len(outputs) == [process.returncode for process in self._processes]
        return _together([json.loads(output) for output in outputs])


def _started(task: Task) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.limit_crowd", json.dumps(asdict(task))],
        cwd=Path(__file__).parents[2],
        env=without_coverage(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _together(parts: Sequence[dict[str, Any]]) -> Seen:
    refused = sorted(moment for part in parts for moment in part["refused"])
    answered = [part["first_refused"] for part in parts if part["first_refused"] is not None]
    return Seen(
        admitted=sorted(Admission(*pair) for part in parts for pair in part["admitted"]),
        calls=sum(part["calls"] for part in parts),
        first_refused=min(answered, default=0),
        last_refused=max(refused, default=0),
        longest_unrefused=max((later - earlier for earlier, later in itertools.pairwise(refused)), default=0),
        busy=sum(part["busy"] for part in parts),
    )


def certain_burst(admitted: Iterable[Admission], limit: Limit) -> Fraction:
    """The most tokens that some window was certainly given beyond what its time gives.

    When exactly one was admitted only the storage knows. So of all windows that begin when one was asked for and end when
    one was answered, those count that lie in between whole: whatever they sum up to has happened in that window. Like
    `resilience.testing.smallest_burst`, for moments that are not known exactly.
    """
    admissions = sorted(admitted, reverse=True)
    if not admissions:
        return Fraction(0)
    ends = sorted({admission.answered for admission in admissions})
    index = {moment: position for position, moment in enumerate(ends)}
    # In whole numbers, of which `unit * tick` make a token: what is inside a window that ends there, less its time's. Ends
    # that lie before the beginning are kept out, by a number so low that none can make up for it.
    token = limit.unit * limit.tick
    nothing = token * len(admissions) + limit.refill * (ends[-1] - ends[0] + 1)
    tree = _Maximum([-limit.refill * (moment - ends[0]) - nothing for moment in ends])
    worst, possible = 0, len(ends)
    for asked, answered in admissions:
        while possible and ends[possible - 1] >= asked:
            possible -= 1
            tree.add_at(possible, nothing)
        tree.add_from(index[answered], token)
        worst = max(worst, tree.largest() + limit.refill * (asked - ends[0]))
    return Fraction(worst, token)


class _Maximum:
    """Numbers of which one, or all from some place on, can be raised, and the largest be told."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._size = 1 << max(0, (len(numbers) - 1).bit_length())
        lowest = min(numbers) - 1
        self._largest = [lowest] * self._size + list(numbers) + [lowest] * (self._size - len(numbers))
        self._raised = [0] * (2 * self._size)
        for node in range(self._size - 1, 0, -1):
            self._largest[node] = max(self._largest[2 * node], self._largest[2 * node + 1])

    def add_at(self, place: int, number: int) -> None:
        """Add `number` to the one at this place."""
        self._add(place, number, others=False)

    def add_from(self, place: int, number: int) -> None:
        """Add `number` to all from this place on."""
        self._add(place, number, others=True)

    def _add(self, place: int, number: int, *, others: bool) -> None:
        node = place + self._size
        self._raise(node, number)
        while node > 1:
            if others and node % 2 == 0:
                self._raise(node + 1, number)
            node //= 2
            self._largest[node] = max(self._largest[2 * node], self._largest[2 * node + 1]) + self._raised[node]

    def _raise(self, node: int, number: int) -> None:
        self._largest[node] += number
        self._raised[node] += number

    def largest(self) -> int:
        """The largest of all."""
        return self._largest[1]


def _microseconds() -> int:
    return time.monotonic_ns() // 1_000


class _Asker:
    """What the greenlets of one process share."""

    def __init__(self, task: Task) -> None:
        from resilience.decorators.limiter import RateLimiter
        from resilience.storage.address import open_storage

        self.task = task
        # Without its stand-in: this is about what the storage decides, and if it cannot the process fails.
        storage: Any = open_storage(task.uri, timeout=task.timeout)
        self.storage: LimitStorage = getattr(storage, "primary", storage)
        self.limit = Limit(task.amount, task.period, task.burst)
        self._limiter = RateLimiter(self.limit, name=task.name, key="everybody", storage=self.storage)
        self._other = RateLimiter(self.limit, name=f"{task.name}:before", key=str(os.getpid()), storage=self.storage)
        self.admitted: list[tuple[int, int]] = []
        self.refused: list[int] = []
        self.first_refused: int | None = None
        self.calls = 0
        self.busy = 0

    def prepare(self) -> None:
        """Connect, by a decision about another bucket."""
        self._decided(self._other)

    def ask(self) -> float:
        """Ask once. Returns the seconds after which it is worth asking again."""
        asked = _microseconds()
        decision = self._decided(self._limiter)
        answered = _microseconds()
        self.calls += 1
        if decision.allowed:
            self.admitted.append((asked, answered))
            return 0.0
        if self.first_refused is None:
            self.first_refused = answered
        if not self.refused or asked - self.refused[-1] >= 1_000:
            self.refused.append(asked)  # every millisecond will do
        return decision.retry_after or 0.0

    def _decided(self, limiter: Any) -> Decision:
        """Shared memory gives up when whoever has a lock is not let run. Then it has taken nothing."""
        while True:
            try:
                decision: Decision = limiter.try_acquire()
            except StorageBusy:
                self.busy += 1
                time.sleep(0.001)
            else:
                return decision

    def report(self) -> dict[str, Any]:
        """What was seen."""
        return {
            "admitted": self.admitted,
            "refused": self.refused,
            "first_refused": self.first_refused,
            "calls": self.calls,
            "busy": self.busy,
        }


def _main(task: Task) -> None:
    import random

    import gevent

    asker = _Asker(task)
    chance = random.Random(task.seed)
    asker.prepare()
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + task.seconds

    def steady(index: int) -> None:
        between = task.greenlets / task.rate
        next_at = time.monotonic() + between * index / task.greenlets
        while next_at < end:
            time.sleep(max(0.0, next_at - time.monotonic()))
            asker.ask()
            # Whoever is late does not catch up: that would be a burst nobody asked for.
            next_at = max(next_at + between, time.monotonic())

    def adversarial(_: int) -> None:
        fill = asker.limit.seconds_to_fill
        while time.monotonic() < end:
            wait = asker.ask()
            time.sleep(
                chance.choice([0.0, 0.0, wait, max(0.0, wait - 0.0005), wait * chance.random(), fill * chance.random()])
            )
            if chance.random() < 0.02:
                # All at one of three moments of every bucketful of time, so that they meet there.
                time.sleep(fill / 3 - time.monotonic() % (fill / 3))

    manner = {"once": lambda _: asker.ask(), "steady": steady, "adversarial": adversarial}[task.manner]
    gevent.joinall([gevent.spawn(manner, index) for index in range(task.greenlets)], raise_error=True)
    print(json.dumps(asker.report()), flush=True)
    asker.storage.close()


if __name__ == "__main__":
    _main(Task(**json.loads(sys.argv[1])))
