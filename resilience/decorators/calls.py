"""What a circuit breaker does before and after a call that is more than a success on a closed circuit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import GeneratorType
from typing import Any, NoReturn, TypeVar, cast

from resilience.core.breaker import DISABLED, HALF_OPEN, OPEN, PASSING, Circuit, Outcome, Refusal, retry_after
from resilience.core.events import CallFailed, CallIgnored, CallSlow, CallSucceeded
from resilience.decorators.compatibility import ORDERS, WORDS, CallersStorage
from resilience.decorators.guarded import GuardedGenerator, Within, is_within
from resilience.decorators.kept import ByHand, Keeper, View
from resilience.decorators.refusal import STILL_OPEN, refusal
from resilience.decorators.rules import FailedResult, Rules
from resilience.decorators.snapshot import Counts
from resilience.decorators.standing import REFUSING, Present, Probe, Standing, settle_each
from resilience.decorators.telling import Telling, in_a_line
from resilience.errors import StorageBusy
from resilience.events import PROCESS_EVENTS

__all__ = ["Calls", "Leave"]

T = TypeVar("T")

Leave = Present | Probe
"""Leave to make a call: the circuit that let it pass, or a probe of one that is half-open."""

_WITHIN_A_PROBE = Present(View(Circuit(), ("probe", 0, 0)))
"""For a call under a circuit inside of one of its probes: the probe's own result decides."""

_TRIPPED = "Failures threshold reached, circuit breaker opened"
_PROBE_FAILED = "Trial call failed, circuit breaker opened"


class Calls:
    """The calls of one breaker. `is_failure` tells of an exception whether it is excluded; `throws` whether the call that
    opens the circuit raises a `CircuitOpen` in place of its own exception."""

    __slots__ = (
        "_abandoned", "_callers", "_counts", "_is_failure", "_standing", "_telling", "hears_failures", "rules",
        "throws",
    )  # fmt: skip

    def __init__(
        self,
        standing: Standing,
        telling: Telling,
        counts: Counts,
        rules: Rules,
        *,
        callers: CallersStorage | None,
        is_failure: Callable[[Any], bool],
        throws: bool,
    ) -> None:
        self._standing = standing
        self._telling = telling
        self._counts = counts
        self._callers = callers
        self._is_failure = is_failure
        self.rules = rules
        self.throws = throws
        self.hears_failures = False
        """Whether there is a listener of pybreaker's."""
        # Permits of generators that nobody finished, until the next call gives them back: the garbage collector may find
        # such a generator while this thread holds a lock.
        self._abandoned: deque[Probe] = deque()
        standing.give_back = self.give_back_abandoned

    # -- the call ------------------------------------------------------------------------------------------------------

    def call(self, func: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        """Call `func` if the circuit admits it. Raises `CircuitOpen` if not."""
        standing = self._standing
        leave: Leave = standing.present
        if standing.passes and not standing.has_news():
            if self._telling.hears_calls:
                self._announce(leave, func, args, kwargs)
        else:
            leave = self.admit(func, *args, **kwargs)
        seconds = standing.seconds
        started = seconds()
        try:
            if isinstance(leave, Present):
                result = func(*args, **kwargs)
            else:
                with Within(leave):
                    result = func(*args, **kwargs)
        except BaseException as error:
            self.failed(leave, error, seconds() - started)
            raise
        if type(result) is GeneratorType or type(result) is GuardedGenerator:
            return cast("T", self.guard(leave, result, started))
        self.returned(leave, result, seconds() - started)
        return result

    def guard(self, leave: Leave, generator: Any, started: float) -> GuardedGenerator:
        """The generator, whose end settles the call."""
        return GuardedGenerator(_Guard(self, leave, started, self._standing.seconds), generator)

    # -- before --------------------------------------------------------------------------------------------------------

    def admit(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Leave:
        """Leave for a call of `func`, of which listeners are told. Raises `CircuitOpen`."""
        leave = self._admit()
        if self._telling.hears_calls:
            self._announce(leave, func, args, kwargs)
        return leave

    def _announce(self, leave: Leave, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self._telling.tell_of_call(func, args, kwargs)
        except BaseException:
            # The call is not made: it says nothing about what it would have called.
            self._settle(leave, Outcome.IGNORED, 0.0)
            raise

    def _admit(self) -> Leave:
        standing = self._standing
        standing.begin()
        present = standing.present
        if self._callers is None and not standing.has_news() and self._stays(present):
            return present
        if is_within(present):
            return _WITHIN_A_PROBE
        self.give_back_abandoned()
        refused_for = standing.refused_for()
        if refused_for:
            self._refuse(refused_for, standing.seconds())
        self.look()
        present = standing.present
        if present.circuit.state in PASSING:
            return present
        return self._ask()

    def _stays(self, present: Present) -> bool:
        """Whether nothing has to be asked to let a call pass at `present`, where nobody has moved the circuit. Raises
        `CircuitOpen` where nothing has to be asked to refuse it."""
        state, until = present.circuit.state, present.until
        now = self._standing.seconds()
        lasts = until is None or until > now
        if lasts and state in REFUSING:
            self._refuse(self._standing.policy.reset_timeout if until is None else until - now, now)
        return lasts and state in PASSING

    def _ask(self) -> Leave:
        """Ask for a probe."""
        standing = self._standing
        try:
            answer = standing.act(self._ask_of, undo=self._undo)
        except StorageBusy:  # by this very thread, which cannot wait for itself
            self._refuse(min(1.0, standing.policy.reset_timeout), standing.seconds())
        try:
            self._telling.publish()
        except BaseException:
            self._undo(answer)  # interrupted, or a listener raised: the call will not be made
            raise
        if isinstance(answer, Refusal):
            self._refuse(answer.retry_after, standing.seconds())
        if answer is None:
            return standing.present
        answer.present = standing.present
        return answer

    def _ask_of(self, keeper: Keeper) -> Probe | Refusal | None:
        """None where no probe is needed."""
        standing = self._standing
        answer = keeper.admit(standing.policy)
        if isinstance(answer, Refusal):
            return answer
        return Probe(keeper, answer, standing.present, self._abandoned) if answer.permit.number else None

    def _undo(self, answer: Probe | Refusal | None) -> None:
        if isinstance(answer, Probe):
            self._settle(answer, Outcome.IGNORED, 0.0)

    def _refuse(self, retry_after: float, now: float) -> NoReturn:
        self._counts.not_permitted += 1
        self._telling.count_refusal(retry_after, now)
        raise refusal(STILL_OPEN, self._telling.label, retry_after)

    # -- after ---------------------------------------------------------------------------------------------------------

    def returned(self, leave: Leave, result: object, took: float) -> None:
        """Settle a call that returned `result` after so many seconds."""
        rules = self.rules
        if not rules.judge_results:
            self.succeeded(leave, took)
            return
        try:
            outcome = rules.outcome_of_result(result)
            pause = rules.pause(result) if outcome is Outcome.FAILURE else 0.0
        except BaseException as error:
            self.ignored(leave, took, in_a_line(error))  # it is the rule that is broken
            raise
        if outcome is Outcome.SUCCESS:
            self.succeeded(leave, took)
        elif outcome is Outcome.IGNORED:
            self.ignored(leave, took, "an ignored result")
        else:
            self._failed(leave, FailedResult(result), took, pause)

    def succeeded(self, leave: Leave, took: float) -> None:
        """Settle a call that succeeded."""
        standing = self._standing
        health = standing.health
        if (
            standing.passes
            and leave is standing.present
            and health.calm
            and took < standing.slow_from
            and standing.seconds() < health.turn
        ):
            # As in `CircuitBreaker.call`: all is well, as when the call began.
            health.passed += 1
            counts = self._counts
            counts.succeeded_seconds += took
            if took > counts.succeeded_longest:
                counts.succeeded_longest = took
        else:
            self._settle(leave, Outcome.SUCCESS, took)
            self._telling.publish()
        if PROCESS_EVENTS.wants_successes and self._is_counted(leave):
            self._telling.emit(CallSucceeded, duration=took)
        if self._telling.hears_successes:
            self._telling.tell_of_success()

    def ignored(self, leave: Leave, took: float, why: str) -> None:
        """Settle a call that says nothing."""
        self._settle(leave, Outcome.IGNORED, took)
        self._telling.publish()
        if self._is_counted(leave):
            self._telling.emit(CallIgnored, error=why, duration=took)

    def failed(self, leave: Leave, error: BaseException, took: float) -> None:
        """Settle a call that raised. Raises `CircuitOpen` when it opened the circuit and the breaker says so."""
        rules = self.rules
        try:
            outcome = rules.outcome_of_error(error, self._is_failure)
            pause = rules.pause(error) if outcome is Outcome.FAILURE else 0.0
        except BaseException:
            self._settle(leave, Outcome.FAILURE, took)  # what a broken rule would have said of it nobody knows
            self._telling.publish()
            raise
        if outcome is Outcome.SUCCESS:
            self.succeeded(leave, took)
        elif outcome is Outcome.IGNORED:
            self.ignored(leave, took, in_a_line(error))
        else:
            opened = self._failed(leave, error, took, pause)
            if opened and self.throws:
                message = _PROBE_FAILED if isinstance(leave, Probe) else _TRIPPED
                raise refusal(message, self._telling.label, self.retry_after()).with_traceback(
                    error.__traceback__
                ) from error

    def _failed(self, leave: Leave, error: BaseException, took: float, pause: float) -> bool:
        """Whether this opened the circuit."""
        opened = self._settle(leave, Outcome.FAILURE, took, pause)
        if self._is_counted(leave):
            self._telling.emit(CallFailed, error=in_a_line(error), duration=took)
        if self.hears_failures:
            self._telling.tell_listeners("failure", error)
        self._telling.publish()
        return opened

    def give_back_abandoned(self) -> None:
        """Settle the calls of generators that nobody has finished, and those that could not be settled when they ended."""
        if self._abandoned or self._standing.is_owing:
            self._standing.settle_postponed()
            settle_each(self._abandoned, lambda leave: self._settle(leave, Outcome.IGNORED, 0.0))

    def broken_off(self, leave: Leave, took: float) -> None:
        """Settle a call that whoever asked for it has left."""
        self._settle(leave, Outcome.IGNORED, took)
        self._telling.publish()

    def abandon(self, leave: Leave) -> None:
        """Remember that a call will not end. Takes no lock."""
        if isinstance(leave, Probe):
            leave.abandon()

    def leave_block(self, leave: Leave) -> None:
        """The generator of which a block is a part has been closed, maybe by the garbage collector. Takes no lock."""
        self.abandon(leave)
        if isinstance(leave, Present) and self._is_counted(leave):
            self._counts.add(Outcome.IGNORED, 0.0)

    def _settle(self, leave: Leave, outcome: Outcome, took: float, pause: float = 0.0) -> bool:
        """Count a call, and tell the circuit. Whether this opened it. Tells nobody else of that."""
        if not self._is_counted(leave):
            return False
        try:
            self._tell_callers_storage(leave, outcome)
        except BaseException:
            outcome = Outcome.IGNORED  # interrupted on the way to the storage: the permit goes back all the same
            raise
        finally:
            self._counts.add(outcome, took)
            opened = self._settle_counted(leave, outcome, took, pause)
        return opened

    def _settle_counted(self, leave: Leave, outcome: Outcome, took: float, pause: float) -> bool:
        standing = self._standing
        slow = took >= standing.slow_from and outcome is not Outcome.IGNORED
        rule = None
        if isinstance(leave, Present) and outcome is not Outcome.IGNORED:
            rule = standing.record(leave, outcome is Outcome.FAILURE, slow)
        if slow:
            self._counts.slow += 1
            self._telling.emit(CallSlow, duration=took)
        if isinstance(leave, Probe):
            return standing.settle(leave, outcome, pause)
        return rule is not None and standing.open_by(rule, leave, pause)

    def _is_counted(self, leave: Leave) -> bool:
        return isinstance(leave, Probe) or leave.circuit.state != DISABLED

    # -- the circuit ---------------------------------------------------------------------------------------------------

    def retry_after(self) -> float:
        """Seconds until a call may be given leave."""
        standing = self._standing
        present = standing.present
        return retry_after(present.circuit, standing.policy, standing.seconds() + present.ahead)

    def look(self) -> None:
        """Take notice of what others have made of the circuit, and tell of it."""
        if self._callers is not None:
            self._follow(self._callers)
        self._standing.look()
        self._telling.publish()

    def follow_quietly(self) -> None:
        """As `look`, when the breaker begins: nobody is told."""
        if self._callers is not None:
            self._follow(self._callers)
        self._telling.forget()

    def _follow(self, callers: CallersStorage) -> None:
        """Move to the state that the caller's storage tells, if another process moved it.

        Only a change of what is stored counts, and not while the storage has yet to be told of a move made here, or if a
        move was made here while it was asked.
        """
        standing, telling = self._standing, self._telling
        present = standing.present
        if telling.is_behind() or standing.is_inside:
            return
        seen = callers.look()
        if seen is None:
            return
        with standing.lock:
            if telling.is_behind() or present is not standing.present:
                return
            callers.believe(seen)
            if seen.state == WORDS[present.circuit.state]:
                return
            standing.own.force(standing.policy, ByHand(ORDERS[seen.state]))
            if seen.state == OPEN:
                # Of one that does not know since when, pybreaker asks for a probe at once.
                ago = standing.policy.reset_timeout if seen.opened_ago is None else seen.opened_ago
                standing.own.backdate(standing.policy, standing.seconds() - ago)
            standing.adopt(standing.own.view())

    def _tell_callers_storage(self, leave: Leave, outcome: Outcome) -> None:
        standing, callers = self._standing, self._callers
        present = leave.present if isinstance(leave, Probe) else leave
        if callers is None or present is not standing.present:
            return
        failures = callers.count(outcome, half_open=present.circuit.state == HALF_OPEN)
        if failures is not None:
            with standing.lock:
                standing.health.failures = failures - (outcome is Outcome.FAILURE)


class _Guard:
    """Settles the call of a generator."""

    __slots__ = ("_calls", "_leave", "_seconds", "_started")

    def __init__(self, calls: Calls, leave: Leave, started: float, seconds: Callable[[], float]) -> None:
        self._calls = calls
        self._leave = leave
        self._started = started
        self._seconds = seconds

    def succeed(self) -> None:
        self._calls.succeeded(self._leave, self._seconds() - self._started)

    def fail(self, error: BaseException) -> None:
        self._calls.failed(self._leave, error, self._seconds() - self._started)

    def leave(self) -> None:
        self._calls.broken_off(self._leave, self._seconds() - self._started)

    def abandon(self) -> None:
        self._calls.abandon(self._leave)
