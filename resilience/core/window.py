"""What a circuit remembers of its calls: the failures in a row, and a window over the last calls or the last seconds.

Both windows record a call in constant time and keep their sums, so that a rate is a division whenever it is asked for.
Source of the algorithms: the fixed-size and the sliding-time window of resilience4j, after Dekker and others' ring buffers.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from math import inf
from typing import Final, NamedTuple

from resilience.core.breaker import BreakerPolicy

__all__ = ["CallWindow", "Health", "Rule", "TimeWindow", "Totals", "broken_rule", "merged"]

SLICES: Final = 10
"""In so many steps the oldest calls leave a window of seconds."""

_MARKS: Final = (0, 4, 5, 6, 7)


class Totals(NamedTuple):
    """How many calls a window holds, how many of these failed, were slow, and were both."""

    calls: int = 0
    failed: int = 0
    slow: int = 0
    slow_failed: int = 0

    @property
    def failure_rate(self) -> float:
        """The share of calls that failed; 0.0 without calls."""
        return self.failed / self.calls if self.calls else 0.0

    @property
    def slow_call_rate(self) -> float:
        """The share of calls that were slow; 0.0 without calls."""
        return self.slow / self.calls if self.calls else 0.0


_NONE: Final = Totals()


def merged(totals: Iterable[Totals]) -> Totals:
    """The sum, as of the windows of several processes."""
    return Totals(*map(sum, zip(Totals(), *totals, strict=True)))


class Rule(Enum):
    """What opens a circuit."""

    CONSECUTIVE = "failures in a row"
    FAILURE_RATE = "failure rate"
    SLOW_CALL_RATE = "slow call rate"


def broken_rule(policy: BreakerPolicy, failures: int, totals: Totals) -> Rule | None:
    """The first rule of `policy` that so many `failures` in a row, or these `totals` of the window, break."""
    if policy.fail_max is not None and failures >= policy.fail_max:
        return Rule.CONSECUTIVE
    if totals.calls < policy.minimum_calls:
        return None
    if policy.failure_rate is not None and totals.failure_rate >= policy.failure_rate:
        return Rule.FAILURE_RATE
    if policy.slow_call_rate is not None and totals.slow_call_rate >= policy.slow_call_rate:
        return Rule.SLOW_CALL_RATE
    return None


class CallWindow:
    """The last `size` calls, from 1."""

    __slots__ = ("_marks", "_next", "_sums")

    def __init__(self, size: int) -> None:
        self._marks = bytearray(size)  # 4: there is a call, 1: it failed, 2: it was slow
        self._next = 0
        self._sums = [0] * 8  # how many calls have which mark

    def record(self, failed: bool, slow: bool, now: float) -> None:  # noqa: ARG002  # a window of seconds needs it
        """Remember a call."""
        marks, place, sums = self._marks, self._next, self._sums
        mark = 4 | failed | slow << 1
        sums[marks[place]] -= 1
        sums[mark] += 1
        marks[place] = mark
        place += 1
        self._next = 0 if place == len(marks) else place

    def record_successes(self, number: int) -> None:
        """Remember so many calls that neither failed nor were slow."""
        marks, sums = self._marks, self._sums
        size = len(marks)
        number = min(number, size)
        while number:
            place = self._next
            end = min(place + number, size)
            gone = marks[place:end]
            for mark in _MARKS:
                sums[mark] -= gone.count(mark)
            marks[place:end] = bytes((4,)) * len(gone)
            sums[4] += len(gone)
            number -= len(gone)
            self._next = 0 if end == size else end

    def turn(self) -> float:
        """Until when nothing but a call changes what it holds."""
        return inf

    def totals(self, now: float) -> Totals:  # noqa: ARG002  # as above
        """What the window holds."""
        _, _, _, _, plain, failed, slow, both = self._sums
        return Totals(plain + failed + slow + both, failed + both, slow + both, both)

    def clear(self) -> None:
        """Forget every call."""
        self.__init__(len(self._marks))  # type: ignore[misc]  # it is as new


class TimeWindow:
    """The calls of the last `seconds` (above 0), in ten slices: a call leaves between nine and ten tenths of it later."""

    __slots__ = ("_slice", "_slices", "_span", "_sums")

    def __init__(self, seconds: float) -> None:
        self._span = seconds / SLICES
        self._slices = [[0, 0, 0, 0] for _ in range(SLICES)]
        self._sums = [0, 0, 0, 0]
        self._slice = 0  # the number of the present one, since the clock began

    def record(self, failed: bool, slow: bool, now: float) -> None:
        """Remember a call that ended at `now`. A clock that goes backwards counts as standing still."""
        present = int(now / self._span)
        if present > self._slice:
            self._forget(present)
        for counts in (self._slices[self._slice % SLICES], self._sums):
            counts[0] += 1
            counts[1] += failed
            counts[2] += slow
            counts[3] += failed and slow

    def record_successes(self, number: int) -> None:
        """Remember so many calls that neither failed nor were slow, and ended before `turn`."""
        self._slices[self._slice % SLICES][0] += number
        self._sums[0] += number

    def turn(self) -> float:
        """Until when nothing but a call changes what it holds."""
        return (self._slice + 1) * self._span

    def totals(self, now: float) -> Totals:
        """What the window holds at `now`."""
        present = int(now / self._span)
        if present > self._slice:
            self._forget(present)
        return Totals(*self._sums)

    def clear(self) -> None:
        """Forget every call."""
        self._slices = [[0, 0, 0, 0] for _ in range(SLICES)]
        self._sums = [0, 0, 0, 0]

    def _forget(self, present: int) -> None:
        for number in range(max(self._slice + 1, present - SLICES + 1), present + 1):
            left = self._slices[number % SLICES]
            self._sums = [total - gone for total, gone in zip(self._sums, left, strict=True)]
            self._slices[number % SLICES] = [0, 0, 0, 0]
        self._slice = present


class Health:
    """What one process has seen of a backend since its circuit last moved. The caller holds whatever lock it needs.

    Nearly every call succeeds while all is well, and says nothing new. While `calm`, a call that succeeded, was not slow and
    ended before `turn` need not be recorded: adding 1 to `passed` says the same, takes no lock, and is taken into account
    before anything is looked at. Exact under greenlets; under threads two that coincide may count once.
    """

    __slots__ = ("_policy", "_taken", "_window", "calm", "failures", "others", "passed", "turn")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self.failures = 0
        """In a row."""
        self.others = _NONE
        """What the other processes' windows hold, as far as is known."""
        self._window = _window_of(policy)
        self.passed = 0
        """Calls that succeeded without being recorded, ever."""
        self._taken = 0  # of these have been taken into account
        self.calm = True
        """Whether a success can neither break a rule nor end a row of failures."""
        self.turn = inf if self._window is None else -inf
        """When to record a success all the same: then calls leave the window."""

    def record(self, failed: bool, slow: bool, now: float) -> Rule | None:
        """Take a call into account that ended at `now`, and tell which rule is broken now, if any."""
        self.failures = self.failures + 1 if failed else 0
        window = self._window
        if window is None:
            self.calm = not failed
            return broken_rule(self._policy, self.failures, Totals()) if failed else None
        self._take_passed()
        window.record(failed, slow, now)
        return self.broken_rule(now)

    def broken_rule(self, now: float) -> Rule | None:
        """Which rule is broken at `now`, with what other processes have seen."""
        totals = self.all_totals(now)
        rule = broken_rule(self._policy, self.failures, totals)
        window = self._window
        if window is not None:
            # A success makes a rate smaller, but it may be the last one that the rate needs to count.
            harmless = totals.calls >= self._policy.minimum_calls or not (totals.failed or totals.slow)
            self.calm = rule is None and not self.failures and harmless
            self.turn = window.turn()
        return rule

    def set_failures(self, number: int) -> None:
        """There are so many in a row."""
        self.failures = number
        self.calm = False

    def totals(self, now: float) -> Totals:
        """What this process's window holds at `now`; nothing where no rule needs one."""
        if self._window is None:
            return Totals()
        self._take_passed()
        return self._window.totals(now)

    def all_totals(self, now: float) -> Totals:
        """What this process's window and those of the others hold at `now`."""
        own = self.totals(now)
        return own if self.others is _NONE else merged((own, self.others))

    def change(self, policy: BreakerPolicy) -> None:
        """Go by another policy. The failures in a row stay, the window begins anew where it is another one."""
        old, self._policy = self._policy, policy
        self._take_passed()
        if _window_like(old) != _window_like(policy):
            self._window = _window_of(policy)
        self.calm = False

    def clear(self) -> None:
        """Begin anew: the circuit has moved."""
        self.failures = 0
        self.others = _NONE
        self._taken = self.passed
        self.calm, self.turn = True, inf
        if self._window is not None:
            self._window.clear()
            self.turn = -inf

    def _take_passed(self) -> None:
        passed, window = self.passed, self._window
        if passed != self._taken and window is not None:
            window.record_successes(passed - self._taken)
        self._taken = passed


def _window_of(policy: BreakerPolicy) -> CallWindow | TimeWindow | None:
    if not policy.has_rates:
        return None
    if policy.window_seconds is not None:
        return TimeWindow(policy.window_seconds)
    assert policy.window_calls is not None
    return CallWindow(policy.window_calls)


def _window_like(policy: BreakerPolicy) -> tuple[bool, int | None, float | None]:
    return policy.has_rates, policy.window_calls, policy.window_seconds
