"""Callers of shared circuits, in processes of their own that do what the test tells them.

As a module: `Crew` are such processes, and `Caller` is one of them at one circuit, on whatever host it is told to be. As a
program (one of these processes): the argument is "threads" or "greenlets"; it prints a line when it is ready, and then answers
each line that it is given, the name of a method of `_Callers` with its arguments, by one line of JSON. Moments are those of the
machine's monotonic clock, in seconds, so that they compare across processes.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1] == "greenlets":
    from gevent import monkey

    monkey.patch_all()

# In a process that is patched everything below is imported patched.
import contextlib
import itertools
import json
import os
import queue
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.untraced import without_coverage

__all__ = ["Caller", "Crew", "most_at_once"]

_PATIENT = 5.0
"""Seconds that a storage may take where a test is not about that: on a busy machine a process would go on alone."""

_fresh = itertools.count()


class Caller:
    """A process at one circuit."""

    def __init__(self, kind: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.support.circuit_callers", kind],
            cwd=Path(__file__).parents[2],
            env=without_coverage(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def begin(self, what: str, **arguments: Any) -> None:
        """Tell it to do something, and do not wait for the answer: `answer` does."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What it answers to the first thing that was begun and not answered yet."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"process {self.pid} ended before it answered"
        return json.loads(line)

    def do(self, what: str, **arguments: Any) -> Any:
        """Tell it to do something, and wait for the answer."""
        self.begin(what, **arguments)
        return self.answer()

    def calls(self, *, fail: bool = False, times: int = 1, seconds: float = 0.0) -> dict[str, int]:
        """How many of so many calls, one after the other, came to "ok", "failed" or "refused"."""
        counts: dict[str, int] = self.do("calls", fail=fail, times=times, seconds=seconds)["counts"]
        return counts

    @property
    def state(self) -> str:
        """The state of the circuit, as it is for this process."""
        return str(self.do("snapshot")["state"])

    @property
    def retry_after(self) -> float:
        """Seconds until calls may pass, as this process sees it."""
        return float(self.do("waits"))

    def kill(self) -> None:
        """End it at once: kill -9."""
        self._process.kill()
        self._process.communicate()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """While it lasts, the process stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


class Crew:
    """Processes that are started when they are needed and used for one circuit after the other."""

    def __init__(self) -> None:
        self._callers: dict[str, list[Caller]] = {"threads": [], "greenlets": []}

    def at(
        self,
        uri: str,
        *hosts: str,
        kind: str = "threads",
        timeout: float = _PATIENT,
        options: Mapping[str, Any],
    ) -> list[Caller]:
        """A process for every host that is named, all of them at a circuit that nobody has used before; and the storage
        answers them. They are of that `kind`, or of their own ("web-1 greenlets")."""
        name = f"backend {next(_fresh)}"
        chosen: list[Caller] = []
        for host in hosts:
            its_kind = host.partition(" ")[2] or kind
            chosen.append(
                next((each for each in self._callers[its_kind] if each not in chosen), None) or Caller(its_kind)
            )
            if chosen[-1] not in self._callers[its_kind]:
                self._callers[its_kind].append(chosen[-1])
        for host, caller in zip(hosts, chosen, strict=True):
            caller.begin(
                "meet", uri=uri, host=host.partition(" ")[0], timeout=timeout, name=name, options=dict(options)
            )
        for caller in chosen:
            assert caller.answer() == name
        return chosen

    @contextlib.contextmanager
    def newcomer(self, kind: str, **meeting: Any) -> Iterator[Caller]:
        """One more process, which has not asked the storage yet and ends with the block."""
        caller = Caller(kind)
        try:
            caller.do("meet", **{"timeout": _PATIENT, "options": {}, "connects": False} | meeting)
            yield caller
        finally:
            caller.kill()

    def dismiss(self, caller: Caller) -> None:
        """End this one."""
        caller.kill()
        for callers in self._callers.values():
            if caller in callers:
                callers.remove(caller)

    def close(self) -> None:
        """End all of them."""
        for caller in itertools.chain(*self._callers.values()):
            caller.kill()


def most_at_once(stays: Iterable[Sequence[float]]) -> int:
    """How many of these stays, each from a moment to another, overlapped at most."""
    steps = sorted(step for begin, end in stays for step in ((begin, 1), (end, -1)))
    inside = most = 0
    for _, step in steps:
        inside += step
        most = max(most, inside)
    return most


class _Callers:
    """The process's circuit, and who calls under it."""

    def __init__(self) -> None:
        self._storages: dict[tuple[str, float], Any] = {}
        self._stays: list[tuple[float, float]] = []
        self._held: queue.Queue[str] = queue.Queue()
        self._release = threading.Event()
        self.breaker: Any = None

    def meet(
        self, uri: str, host: str, timeout: float, name: str, options: dict[str, Any], connects: bool = True
    ) -> str:
        """From now on this is about the circuit of that name."""
        from resilience import CircuitBreaker
        from resilience.errors import StorageUnavailable
        from resilience.storage.state_address import open_state_storage

        storage = self._storages.get((uri, timeout))
        if storage is None:
            storage = self._storages[uri, timeout] = open_state_storage(uri, timeout=timeout)
        while connects:  # it may have been out of reach until now
            with contextlib.suppress(StorageUnavailable):
                storage.read(name)
                break
            time.sleep(0.05)
        os.environ["RESILIENCE_HOST"] = host
        given: dict[str, Any] = {"fail_max": 3, "throw_new_error_on_trip": False, "quorum": 1} | options
        self.breaker = CircuitBreaker(**given, name=name, state_storage=storage)
        return name

    def calls(self, fail: bool, times: int, seconds: float) -> dict[str, Any]:
        """So many calls, one after the other."""
        counts: dict[str, int] = {}
        longest = 0.0
        for _ in range(times):
            began = time.monotonic()
            came_to = self._call(fail, seconds)
            longest = max(longest, time.monotonic() - began - seconds * (came_to != "refused"))
            counts[came_to] = counts.get(came_to, 0) + 1
        return {"counts": counts, "longest": longest, "ended": time.monotonic()}

    def crowd(self, callers: int, seconds: float, fail: bool = False) -> dict[str, Any]:
        """So many callers at once, one call each. With the stays of those that came through."""
        self._stays.clear()
        counts: dict[str, int] = {}
        lock = threading.Lock()

        def once() -> None:
            came_to = self._call(fail, seconds)
            with lock:
                counts[came_to] = counts.get(came_to, 0) + 1

        threads = [threading.Thread(target=once) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"counts": counts, "stays": self._stays}

    def hammer(self, callers: int, seconds: float, lasting: float) -> dict[str, Any]:
        """So many callers that call again and again, for so long. With the stays of those that came through."""
        self._stays.clear()
        counts: dict[str, int] = {}
        lock = threading.Lock()
        end = time.monotonic() + lasting

        def again() -> None:
            while time.monotonic() < end:
                came_to = self._call(False, seconds)
                with lock:
                    counts[came_to] = counts.get(came_to, 0) + 1
                time.sleep(0.002)

        threads = [threading.Thread(target=again) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"counts": counts, "stays": self._stays}

    def until(self, refused: bool, patience: float) -> dict[str, Any]:
        """Call without a break until a call is refused, or until one is not. The moment, or None if it never came."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            came_to = self._call(False, 0.0)
            if (came_to == "refused") == refused:
                return {"at": time.monotonic()}
            time.sleep(0.001)
        return {"at": None}

    def hold(self, fail: bool) -> str:
        """Begin a call that goes on until it is let go. "inside", or "refused"."""
        self._release.clear()

        def stay() -> None:
            with contextlib.suppress(OSError):
                try:
                    self.breaker.call(self._inside, fail)
                except _refusals():
                    self._held.put("refused")
                    return
            self._held.put("ended")

        threading.Thread(target=stay, daemon=True).start()
        return self._held.get()

    def let_go(self) -> str:
        """End the call that is held."""
        self._release.set()
        return self._held.get()

    def ways_out(self) -> dict[str, tuple[str, int]]:
        """What a half-open circuit is, and how many probes are under way there, after one has ended in each of many ways."""
        seen = {}
        for way in _WAYS_OUT:
            self.breaker.half_open()
            with contextlib.suppress(OSError):
                way(self.breaker)
            snapshot = self.breaker.snapshot()
            seen[way.__name__.strip("_")] = (snapshot.state, snapshot.probes)
        return seen

    def tumult(self, seed: int, lasting: float) -> int:
        """Make calls that come to anything, and orders of all kinds, for so long. How many."""
        chance = random.Random(seed)
        orders = ("open", "close", "half_open", "force_open", "force_closed", "disable", "metrics_only", "reset")
        end = time.monotonic() + lasting
        done = 0
        while time.monotonic() < end:
            done += 1
            if chance.random() < 0.02:
                self.order(chance.choice(orders))
            else:
                self._call(chance.random() < 0.5, chance.choice([0.0, 0.0, 0.002]))
        return done

    def forked(self, children: int) -> list[str]:
        """What each of so many forked children says of a call, the first one that is made in this family of processes, and of
        another one after this process has moved the circuit."""
        if threading.active_count() > 1:
            return ["there were threads before the fork"]
        pipes = [os.pipe() for _ in range(children)]
        moved = [os.pipe() for _ in range(children)]
        for (_, answer), (go, _) in zip(pipes, moved, strict=True):
            if os.fork() == 0:
                first = self._call(False, 0.0)
                os.write(answer, first.encode() + b" ")
                os.read(go, 1)
                os.write(answer, b"refused" if self.until(True, 10.0)["at"] else b"not refused")
                os._exit(0)
            os.close(answer)
        said = [os.read(answers, 100).decode() for answers, _ in pipes]
        self.breaker.force_open()
        for _, go in moved:
            os.write(go, b"!")
        said = [first + os.read(answers, 100).decode() for first, (answers, _) in zip(said, pipes, strict=True)]
        for _ in range(children):
            os.wait()
        return said

    def order(self, name: str, **said: Any) -> None:
        """Move the circuit by hand."""
        getattr(self.breaker, name)(**said)

    def snapshot(self) -> dict[str, Any]:
        """The circuit, as it is for this process."""
        snapshot = self.breaker.snapshot()._asdict()
        return {name: snapshot[name] for name in ("name", "state", "generation", "reason", "author", "alone")}

    def waits(self) -> float:
        """Seconds until calls may pass."""
        return float(self.breaker.snapshot().retry_after)

    def told(self) -> list[dict[str, Any]]:
        """What the circuit has told of, besides calls."""
        from resilience.events import PROCESS_EVENTS

        events = [entry.event.describe() for entry in PROCESS_EVENTS.of("circuit", self.breaker.name)]
        return [event for event in events if event["type"] in ("STATE_TRANSITION", "SHARING", "RESET")]

    def _inside(self, fail: bool) -> None:
        self._held.put("inside")
        self._release.wait()
        if fail:
            raise OSError("the backend is ill")

    def _call(self, fail: bool, seconds: float) -> str:
        try:
            self.breaker.call(self._work, fail, seconds)
        except _refusals():
            return "refused"
        except OSError:
            return "failed"
        return "ok"

    def _work(self, fail: bool, seconds: float) -> None:
        began = time.monotonic()
        if seconds:
            time.sleep(seconds)
        self._stays.append((began, time.monotonic()))
        if len(self._stays) > 100_000:
            self._stays.clear()
        if fail:
            raise OSError("the backend is ill")


def _refusals() -> type[BaseException]:
    from resilience import CircuitOpen

    return CircuitOpen


def _stream() -> Iterator[int]:
    yield from range(3)


def _success(breaker: Any) -> None:
    breaker.call(lambda: None)


def _error(breaker: Any) -> None:
    breaker.call(os.stat, "/nowhere")


def _timeout(breaker: Any) -> None:
    import gevent

    with gevent.Timeout(0.02, False):  # type: ignore[arg-type]  # False is documented
        breaker.call(time.sleep, 60)


def _kill(breaker: Any) -> None:
    import gevent

    probe = gevent.spawn(breaker.call, time.sleep, 60)
    time.sleep(0.02)
    probe.kill()


def _block_that_fails(breaker: Any) -> None:
    with breaker.calling():
        raise OSError


def _generator_at_its_end(breaker: Any) -> None:
    list(breaker.call(_stream))


def _generator_that_is_closed(breaker: Any) -> None:
    streaming = breaker.call(_stream)
    next(streaming)
    streaming.close()


def _generator_that_is_dropped(breaker: Any) -> None:
    next(breaker.call(_stream))


_WAYS_OUT = (
    _success, _error, _timeout, _kill, _block_that_fails, _generator_at_its_end, _generator_that_is_closed,
    _generator_that_is_dropped,
)  # fmt: skip


def _lines() -> Iterator[str]:
    if sys.argv[1] == "threads":
        yield from sys.stdin
        return
    import gevent

    # A greenlet that reads must not hold up the others.
    while line := gevent.get_hub().threadpool.apply(sys.stdin.readline):
        yield line


def _main() -> None:
    callers = _Callers()
    for line in _lines():
        what, arguments = json.loads(line)
        print(json.dumps(getattr(callers, what)(**arguments)), flush=True)


if __name__ == "__main__":
    _main()
