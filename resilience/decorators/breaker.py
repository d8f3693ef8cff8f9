"""The circuit breaker as a `pybreaker.CircuitBreaker` that never holds a lock during the call.

A lock guards arithmetic on the circuit. It is never held during the protected call, a listener, or a storage's I/O.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from types import GeneratorType
from typing import Any, Final, ParamSpec, TypeVar, cast, overload

import pybreaker

from resilience.clock import SYSTEM_CLOCK
from resilience.core.breaker import OPEN, BreakerPolicy, Event
from resilience.core.events import CircuitReset
from resilience.decorators.calls import Calls
from resilience.decorators.compatibility import (
    ORDERS,
    STATE_CLASSES,
    WORDS,
    CallersStorage,
    CircuitWindow,
    refuse_unknown,
)
from resilience.decorators.guarded import GuardedGenerator, Within
from resilience.decorators.kept import ByHand
from resilience.decorators.options import Setting, check_number, given, policy_of, settings_of
from resilience.decorators.refusal import STILL_OPEN, CircuitOpen, refusal
from resilience.decorators.rules import Pause, ResultRule, Rule, Rules, check_rule, matches, pause_of, rules_of
from resilience.decorators.shared import SharedCircuit
from resilience.decorators.snapshot import CircuitSnapshot, Counts, snapshot_of
from resilience.decorators.standing import Present, Standing
from resilience.decorators.telling import QUIET, Telling
from resilience.events import PROCESS_EVENTS
from resilience.host import host_name
from resilience.ports import Clock, StateStorage

__all__ = ["CircuitBreaker", "CircuitOpen", "CircuitSnapshot", "refuse_coroutine"]

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_REASON: Final = 500
LONGEST_AUTHOR: Final = 100
"""Characters of what is said about an order: what is longer is cut off."""
MOST_SHARED: Final = {"half_open_max_calls": 50, "quorum": 25}
"""Probes at once, and votes, of a circuit that is shared: all of them are in its record."""

_FOR_A_TIME: Final = frozenset((Event.OPEN, Event.FORCE_OPEN, Event.FORCE_CLOSED, Event.DISABLE, Event.MEASURE))


class CircuitBreaker(pybreaker.CircuitBreaker):
    """A `pybreaker.CircuitBreaker` under which calls run side by side.

    It takes pybreaker's arguments, in their order and with its defaults, and keeps its states, listeners, exclusions, storages
    and exceptions. All times are in seconds, all rates are shares above 0, to 1. Beyond pybreaker:

    - When it opens: `fail_max` failures in a row (5, unless a rate is given), a `failure_rate`, a `slow_call_rate` of calls
      that take `slow_call_duration` (60) or longer; over the last `window_calls` (100) or the last `window_seconds`, and not
      below `minimum_calls` (20, or the window).
    - What counts: `ignore` are exception types or predicates whose calls count as neither success nor failure (`exclude`
      keeps pybreaker's meaning: they count as success). With `record` only what it matches is a failure. `record_result` and
      `ignore_result` are predicates of what a call returned; one that raises does so in the place of the result, and the call
      counts as neither. `GreenletExit`, `GeneratorExit`, `SystemExit` and
      `KeyboardInterrupt` always count as neither; `gevent.Timeout` is a failure.
    - For how long: `reset_timeout` (60), times `open_time_growth` (1) for every opening without a recovery in between, to
      `open_time_cap` (ten times `reset_timeout`), and by chance up to the share `open_time_jitter` (0) more. Where the backend
      says when to come back, it is no less than that, to the cap: `retry_after` takes the exception or result, and returns
      seconds or None; by default it is read from its attribute `retry_after`.
    - When it closes: `success_threshold` (1) probes succeeded; `half_open_max_calls` (1) may be under way at once; one that has
      not reported after `probe_lease` (the larger of 60 and `reset_timeout`) frees its place.
    - `state_storage` may be a `StateStorage`: every process that uses the same one under the same name shares the circuit. It
      opens for all of several hosts when `quorum` (2) of them find the backend ill; below that each opens for itself. When the
      storage is out of reach, the process goes on alone. See `share`.
    - a rejection is a `CircuitOpen`, which is a `pybreaker.CircuitBreakerError` and carries `retry_after`.
    - listeners run outside of every lock that a call needs, one at a time, state changes in the order in which they were made;
      one that raises is the caller's error, as in pybreaker, and never counts against what is called. A state change may be
      told by another caller that is at it.
    - a call under a half-open circuit inside of one of its probes belongs to that probe.

    A function that returns a generator is guarded until the generator is exhausted (success), raises (by the exception) or
    is closed early (neither). Raises `ValueError` for values out of range and for those that have no effect (a window
    without a rate), and `TypeError` for what is no number, function or list of rules.
    """

    def __init__(
        self,
        fail_max: int | None = None,
        reset_timeout: float | None = None,
        success_threshold: int | None = None,
        exclude: Iterable[Rule] | None = None,
        listeners: Sequence[pybreaker.CircuitBreakerListener] | None = None,
        state_storage: pybreaker.CircuitBreakerStorage | StateStorage | None = None,
        name: str | None = None,
        throw_new_error_on_trip: bool = True,
        *,
        ignore: Iterable[Rule] = (),
        record: Iterable[Rule] | None = None,
        record_result: ResultRule | None = None,
        ignore_result: ResultRule | None = None,
        failure_rate: float | None = None,
        slow_call_rate: float | None = None,
        slow_call_duration: float | None = None,
        window_calls: int | None = None,
        window_seconds: float | None = None,
        minimum_calls: int | None = None,
        half_open_max_calls: int | None = None,
        probe_lease: float | None = None,
        open_time_growth: float | None = None,
        open_time_cap: float | None = None,
        open_time_jitter: float | None = None,
        quorum: int | None = None,
        retry_after: Pause = pause_of,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._given = given(
            fail_max=fail_max,
            reset_timeout=reset_timeout,
            success_threshold=success_threshold,
            failure_rate=failure_rate,
            slow_call_rate=slow_call_rate,
            slow_call_duration=slow_call_duration,
            window_calls=window_calls,
            window_seconds=window_seconds,
            minimum_calls=minimum_calls,
            half_open_max_calls=half_open_max_calls,
            probe_lease=probe_lease,
            open_time_growth=open_time_growth,
            open_time_cap=open_time_cap,
            open_time_jitter=open_time_jitter,
            quorum=quorum,
        )
        self._unsaid: frozenset[str] = frozenset()
        self._seconds = clock.seconds
        self._counts = Counts()
        self._telling = Telling(self, self._turn)
        self._standing = Standing(policy_of(self._given), clock.seconds, self._telling)
        brought = state_storage if isinstance(state_storage, pybreaker.CircuitBreakerStorage) else None
        self._callers = None if brought is None else CallersStorage(brought)
        self._calls = Calls(
            self._standing, self._telling, self._counts,
            Rules(ignore, record, record_result, ignore_result, retry_after),
            callers=self._callers, is_failure=self.is_system_error, throws=throw_new_error_on_trip,
        )  # fmt: skip
        self._has_own_storage = state_storage is not None
        super().__init__(
            exclude=None if exclude is None else rules_of("exclude", exclude),
            listeners=listeners,
            state_storage=brought or CircuitWindow(self._standing, self._move),
            name=name,
            throw_new_error_on_trip=throw_new_error_on_trip,
        )
        if isinstance(state_storage, StateStorage):
            self._share(state_storage)
        elif state_storage is not None and brought is None:
            raise TypeError(
                f"state_storage={state_storage!r} is neither a storage of pybreaker's nor a StateStorage:"
                " make one with open_state_storage('redis://...')"
            )
        self._set_pace()
        if brought is not None:
            self._calls.follow_quietly()  # where it begins is no news
            self._state = self._create_new_state(WORDS[self._standing.present.circuit.state])

    def __repr__(self) -> str:
        snapshot = self.snapshot()
        waiting = f", {snapshot.retry_after:.1f} s left" if snapshot.state == OPEN else ""
        return f"<CircuitBreaker {self.name}: {snapshot.state}{waiting}>"

    # -- calls ---------------------------------------------------------------------------------------------------------

    def call(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `func` if the circuit admits it, and let the circuit learn from the result. Raises `CircuitOpen` if not."""
        # Every call comes through here, so the two common ways are written out: a success on a closed circuit, a refusal by
        # an open one. Neither takes a lock nor calls anything but the clock. `Calls` does the same, and everything else.
        standing = self._standing
        present = standing.present  # read before all else: should a thread move it in between, this one is of the past
        if standing.is_followed and (
            standing.cells[standing.place] != standing.heard
            or standing.host_cells[standing.host_place] != standing.host_heard
        ):
            return self._calls.call(func, args, kwargs)
        if not standing.quick:
            until, telling = present.until, self._telling
            if standing.refuses and not PROCESS_EVENTS.wants_refusals:
                now = self._seconds()
                retry_after = standing.policy.reset_timeout if until is None else until - now
                if retry_after > 0 and now < telling.refusals_told_at + QUIET:
                    self._counts.not_permitted += 1
                    telling.refused += 1
                    # Not kept in a name of this frame: the two would hold each other, and wait for the garbage collector.
                    raise refusal(STILL_OPEN, self._name or "circuit", retry_after)
            return self._calls.call(func, args, kwargs)
        seconds = self._seconds
        started = seconds()
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            self._calls.failed(present, error, seconds() - started)
            raise
        kind = type(result)
        if kind is GeneratorType or kind is GuardedGenerator:
            return cast("T", self._calls.guard(present, result, started))
        ended, health = seconds(), standing.health
        took = ended - started
        if (
            health.calm
            and ended < health.turn
            and took < standing.slow_from
            and present is standing.present
            and not PROCESS_EVENTS.wants_successes
        ):
            # All is well, as when the call began: the circuit is as it should be.
            health.passed += 1
            counts = self._counts
            counts.succeeded_seconds += took
            if took > counts.succeeded_longest:
                counts.succeeded_longest = took
            return result
        self._calls.succeeded(present, took)
        return result

    @overload  # type: ignore[override]  # pybreaker's takes anything
    def __call__(self, function: Callable[P, T], /) -> Callable[P, T]: ...

    @overload
    def __call__(self, **options: bool) -> Callable[[Callable[P, T]], Callable[P, T]]: ...

    def __call__(self, *functions: Callable[..., Any], **options: bool) -> Callable[..., Any]:
        """Guard a function: `@breaker` or `@breaker()`. Raises `TypeError` for a coroutine function."""
        decorate = super().__call__(**options)

        def decorate_plain(function: Callable[..., Any]) -> Callable[..., Any]:
            refuse_coroutine(function)
            decorated: Callable[..., Any] = decorate(function)
            return decorated

        return decorate_plain(*functions) if functions else decorate_plain

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """A context manager: the block inside `with breaker.calling():` is the call.

        What the block calls under the same circuit belongs to it, as with `call`. Inside of a generator that is so while the
        generator runs: whoever asks it for its next value has no part in its probe.
        """
        calls, seconds = self._calls, self._seconds
        leave = calls.admit(self.calling)
        started = seconds()
        try:
            if isinstance(leave, Present):
                yield
            else:
                with Within(leave, block=True):
                    yield
        except GeneratorExit:
            calls.leave_block(leave)  # the garbage collector may be at it
            raise
        except BaseException as error:
            calls.failed(leave, error, seconds() - started)
            raise
        calls.succeeded(leave, seconds() - started)

    def call_async(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a Tornado coroutine `func` as `call` does. Needs Tornado."""

        def wrapped() -> Generator[Any, Any, Any]:
            calls, seconds = self._calls, self._seconds
            leave = calls.admit(func, *args, **kwargs)
            started = seconds()
            try:
                result = yield func(*args, **kwargs)
            except BaseException as error:
                calls.failed(leave, error, seconds() - started)
                raise
            calls.returned(leave, result, seconds() - started)
            return result

        tornado = vars(pybreaker).get("gen")
        if tornado is None:
            raise ImportError("call_async needs Tornado: install it, or use call")
        return tornado.coroutine(wrapped)()

    def is_system_error(self, exception: BaseException) -> bool:
        """Whether `exception` says that what was called is unhealthy: true unless it is excluded."""
        return not matches(exception, self._excluded_exceptions)

    def add_excluded_exception(self, exception: Rule) -> None:
        """Count calls that raise it as successes from now on. Raises `TypeError` for what is neither a type nor a predicate."""
        check_rule("exclude", exception)
        super().add_excluded_exception(cast("type[BaseException]", exception))  # pybreaker takes predicates too

    # -- by hand -------------------------------------------------------------------------------------------------------

    def open(self, *, reason: str = "", author: str = "", expires_in: float | None = None) -> bool:
        """Reject calls from now on, for `expires_in` seconds (`reset_timeout`); then probes decide.

        Returns `throw_new_error_on_trip`, as pybreaker does. This and every other order by hand keeps what is said about it:
        the `reason` (500 characters at most) and the `author`. Raises `ValueError` for a time below 0.
        """
        self._order(Event.OPEN, reason, author, expires_in)
        return self._throw_new_error_on_trip

    def half_open(self, *, reason: str = "", author: str = "", expires_in: None = None) -> None:
        """Let probes pass: they decide whether the circuit closes."""
        self._order(Event.HALF_OPEN, reason, author, expires_in)

    def close(self, *, reason: str = "", author: str = "", expires_in: None = None) -> None:
        """Let calls pass."""
        self._order(Event.CLOSE, reason, author, expires_in)

    def force_open(self, *, reason: str = "", author: str = "", expires_in: float | None = None) -> None:
        """Reject every call for `expires_in` seconds, after which probes decide; without it, until somebody moves it."""
        self._order(Event.FORCE_OPEN, reason, author, expires_in)

    def force_closed(self, *, reason: str = "", author: str = "", expires_in: float | None = None) -> None:
        """Let every call pass, however many fail, for `expires_in` seconds; without it, until somebody moves it."""
        self._order(Event.FORCE_CLOSED, reason, author, expires_in)

    def disable(self, *, reason: str = "", author: str = "", expires_in: float | None = None) -> None:
        """Let every call pass and count none, for `expires_in` seconds; without it, until somebody moves it."""
        self._order(Event.DISABLE, reason, author, expires_in)

    def metrics_only(self, *, reason: str = "", author: str = "", expires_in: float | None = None) -> None:
        """Let every call pass, and tell by `RateExceeded` when the circuit would have opened, for `expires_in` seconds;
        without it, until somebody moves it."""
        self._order(Event.MEASURE, reason, author, expires_in)

    def reset(self, *, reason: str = "", author: str = "", expires_in: None = None) -> None:
        """Close the circuit and forget every count, also those that this process has of calls."""
        self._order(Event.CLOSE, reason, author, expires_in)
        self.forget()
        self._telling.emit(CircuitReset, reason=_said(reason, LONGEST_REASON), author=_said(author, LONGEST_AUTHOR))

    def forget(self) -> None:
        """Forget every count that this process has of calls, and leave the circuit where it is."""
        standing = self._standing
        standing.refuse_within()
        with standing.lock:
            standing.health.clear()
            self._counts.clear(standing.health.passed)

    def _order(self, event: Event, reason: str, author: str, expires_in: float | None) -> None:
        if expires_in is not None and event not in _FOR_A_TIME:
            raise ValueError(f"expires_in={expires_in!r}: force the circuit, and it stays so for that time")
        if expires_in is not None:
            check_number("expires_in", expires_in)
        if expires_in is not None and not 0 <= expires_in < inf:
            raise ValueError(f"expires_in={expires_in!r}: give seconds from 0, or None")
        order = ByHand(event, _said(reason, LONGEST_REASON), _said(author, LONGEST_AUTHOR), expires_in)
        self._standing.order(order)
        self._telling.publish()

    def _move(self, state: str) -> None:
        refuse_unknown(state)
        self._order(ORDERS[state], "", "", None)

    # -- sharing -------------------------------------------------------------------------------------------------------

    def share(self, state_storage: StateStorage) -> None:
        """Keep the circuit in `state_storage` from now on, together with every process that does so under the same name.

        If it is open here, it opens there as well; else it becomes what it is there. Nothing is asked before the circuit is. A
        breaker that was made with a storage keeps that. Raises `ValueError` for a circuit without a name, with more than 50
        probes at once, or with a quorum of more than 25 hosts.
        """
        if not self._has_own_storage:
            self._share(state_storage)

    def _share(self, storage: StateStorage) -> None:
        name, standing, policy = self._name, self._standing, self._standing.policy
        if not name:
            raise ValueError("a circuit is shared under its name: give the circuit breaker one")
        for option, most in MOST_SHARED.items():
            if getattr(policy, option) > most:
                raise ValueError(f"{option}={getattr(policy, option)}: a circuit that is shared takes {most} at most")
        if standing.shared is None or standing.shared.storage is not storage:
            standing.share(SharedCircuit(storage, name, host_name(), policy, self._seconds))

    # -- listeners -----------------------------------------------------------------------------------------------------

    def add_listener(self, listener: pybreaker.CircuitBreakerListener) -> None:
        """Tell `listener` of every call and move from now on."""
        super().add_listener(listener)
        self._set_pace()

    def remove_listener(self, listener: pybreaker.CircuitBreakerListener) -> None:
        """Tell it no longer. Raises `ValueError` if it was not told."""
        super().remove_listener(listener)
        self._set_pace()

    def _set_pace(self) -> None:
        calls, standing, telling, listeners = self._calls, self._standing, self._telling, self.listeners
        calls.hears_failures = bool(listeners)
        telling.listen_anew()
        with standing.lock:
            standing.asks_others = self._callers is not None
            standing.judges_successes = bool(
                calls.rules.judge_results or telling.hears_calls or telling.hears_successes
            )
            standing.set_pace()

    # -- state ---------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> Any:
        """pybreaker's state object, in its words: a forced circuit is "open" or "closed". Assign a state's name to move to
        it."""
        self._standing.begin()
        self._calls.look()
        state, word = self._state, WORDS[self._standing.present.circuit.state]
        # It may have moved, and nobody has told of it yet.
        return state if state.name == word else self._create_new_state(word)

    @state.setter
    def state(self, state: str) -> None:
        self._move(state)

    @property
    def current_state(self) -> str:
        """The state in pybreaker's words: "closed", "open" or "half-open". A snapshot tells which states are forced."""
        if self._callers is None:
            self._standing.begin()
            self._calls.look()
        return self._state_storage.state

    def snapshot(self) -> CircuitSnapshot:
        """The circuit as this process sees it now, without asking a shared storage."""
        standing, calls, telling = self._standing, self._calls, self._telling
        standing.begin()
        calls.give_back_abandoned()
        standing.look()
        telling.tell_leftovers(calls.retry_after(), self._seconds())
        telling.publish()
        return snapshot_of(telling.label, standing, self._counts, self.settings)

    def _turn(self, new_state: str) -> tuple[Any, Any]:
        """Tell the caller's storage of a move, and give pybreaker's objects for the states before and after."""
        if self._callers is not None:
            self._callers.tell(new_state)
        before, self._state = self._state, self._create_new_state(WORDS[new_state])
        return before, self._state

    def _create_new_state(self, new_state: str, prev_state: Any = None, notify: bool = False) -> Any:  # noqa: ARG002  # pybreaker's signature
        """A state object of pybreaker's. Never announces: that is done when locks have been left."""
        refuse_unknown(new_state)
        return STATE_CLASSES[new_state](self, prev_state=prev_state, notify=False)

    # -- policy --------------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> BreakerPolicy:
        """When the circuit opens, for how long, and when it closes."""
        return self._standing.policy

    @property
    def settings(self) -> Mapping[str, Setting]:
        """Every value of the policy, and where it came from."""
        chosen = {option: value for option, value in self._given.items() if option not in self._unsaid}
        return settings_of(self._standing.policy, chosen)

    def call_default(self, options: Collection[str]) -> None:
        """Say that these came from who made the breaker for somebody else, and that nobody chose them."""
        self._unsaid = frozenset(options)

    @property
    def ignored_exceptions(self) -> tuple[Rule, ...]:
        """Exception types and predicates whose calls count as neither success nor failure."""
        return self._calls.rules.ignore

    def is_made_as(self, other: CircuitBreaker) -> bool:
        """Whether `other` was made with the same options."""
        return not self.differences(other)

    def differences(self, other: CircuitBreaker) -> list[str]:
        """In which options `other` was made otherwise, with the values of both where these are numbers."""
        ours, theirs = self.settings, other.settings
        numbers = [
            f"{option}={ours[option].value!r} and {theirs[option].value!r}"
            for option in ours
            if ours[option].value != theirs[option].value
        ]
        others = other._made_of()
        return numbers + [option for option, made_of in self._made_of().items() if made_of != others[option]]

    def _made_of(self) -> dict[str, object]:
        calls = self._calls
        return {
            "exclude": _identities(self.excluded_exceptions),
            **{option: _identities(part) for option, part in calls.rules.parts.items()},
            "listeners": _identities(self.listeners),
            "throw_new_error_on_trip": calls.throws,
        }

    # pybreaker keeps these three apart and lets them be assigned; here they are one frozen policy.

    @property
    def fail_max(self) -> Any:
        """Consecutive failures that open the circuit; None where only rates do."""
        return self._standing.policy.fail_max

    @fail_max.setter
    def fail_max(self, number: int) -> None:
        self._change("fail_max", number)

    @property
    def reset_timeout(self) -> float:
        """Seconds that an opened circuit stays open. Assigned while it is open in this process, it counts from the opening."""
        return self._standing.policy.reset_timeout

    @reset_timeout.setter
    def reset_timeout(self, timeout: float) -> None:
        before = self._standing.policy.reset_timeout
        self._change("reset_timeout", timeout)
        circuit = self._standing.own.circuit
        if circuit.state == OPEN and circuit.until is not None:
            until = max(circuit.since, circuit.until + timeout - before)
            self._standing.amend(lambda circuit: replace(circuit, until=until))

    @property
    def success_threshold(self) -> int:
        """Probes that must succeed to close the circuit."""
        return self._standing.policy.success_threshold

    @success_threshold.setter
    def success_threshold(self, threshold: int) -> None:
        self._change("success_threshold", threshold)

    def _change(self, option: str, value: Any) -> None:
        given = {**self._given, option: value}
        self._standing.change(policy_of(given))
        self._given = given


def _said(words: str, most: int) -> str:
    """What somebody said, in a line that can be shown and kept anywhere."""
    return "".join(each if each.isprintable() else " " for each in words.strip())[:most]


def refuse_coroutine(function: Callable[..., Any]) -> None:
    """Raises `TypeError` for a coroutine function."""
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__qualname__} is a coroutine function: a circuit breaker guards plain functions")


def _identities(rules: object) -> object:
    """What makes two sets of rules and listeners the same: an application factory that runs again makes its lambdas anew."""
    if isinstance(rules, tuple):
        return tuple(_identities(rule) for rule in rules)
    return getattr(rules, "__code__", rules)
