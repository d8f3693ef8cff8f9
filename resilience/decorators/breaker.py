"""The circuit breaker as a `pybreaker.CircuitBreaker` that never holds a lock during the call.

A lock guards arithmetic on the circuit. It is never held during the protected call, a listener, or a storage's I/O.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import threading
import types
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import pybreaker

from resilience.clock import SYSTEM_CLOCK
from resilience.core.breaker import (
    CLOSED,
    HALF_OPEN,
    OPEN,
    BreakerPolicy,
    Circuit,
    Outcome,
    Permit,
    Refusal,
    Transition,
    admit,
    force,
    retry_after,
    settle,
)
from resilience.decorators.window import FORCING, CircuitWindow
from resilience.errors import Rejected
from resilience.greenlets import INTERRUPTIONS
from resilience.ports import Clock
from resilience.registry import PROCESS_REGISTRY

__all__ = ["CircuitBreaker", "CircuitOpen", "CircuitSnapshot", "circuit_breaker"]

P = ParamSpec("P")
T = TypeVar("T")

Excluded = type[BaseException] | Callable[[Any], bool]

STILL_OPEN = "Timeout not elapsed yet, circuit breaker still open"  # in pybreaker's words, which callers may match

_WITHIN_A_PROBE = Permit(-1, 0, 0.0)
"""For a call under a circuit inside of one of its probes: the probe's own result decides."""

_STATE_CLASSES: dict[str, Any] = {
    CLOSED: pybreaker.CircuitClosedState,
    OPEN: pybreaker.CircuitOpenState,
    HALF_OPEN: pybreaker.CircuitHalfOpenState,
}


class CircuitOpen(pybreaker.CircuitBreakerError, Rejected):
    """The circuit is open, or half-open with all its probes under way: the call was not made.

    Also raised, for the call that trips the circuit, by a breaker with `throw_new_error_on_trip`.
    """

    def __str__(self) -> str:
        # Put together when somebody reads it: most rejections are never printed.
        return f"{self.args[0]} (circuit {self.policy!r}, retry in {self.retry_after:.3f} s)"


_probes_under_way: ContextVar[tuple[tuple[object, Permit], ...]] = ContextVar("probes_under_way", default=())
"""The half-open circuits inside of which the current call runs, with its permits: what it calls under the same circuit
belongs to the same probe."""


@contextlib.contextmanager
def _within(breaker: object, permit: Permit) -> Iterator[None]:
    if not permit.number:  # no probe
        yield
        return
    token = _probes_under_way.set((*_probes_under_way.get(), (breaker, permit)))
    try:
        yield
    finally:
        # A block inside of a generator may end in another context than it began in, which has nothing to put back.
        with contextlib.suppress(ValueError):
            _probes_under_way.reset(token)


class CircuitSnapshot(NamedTuple):
    """A circuit as this process sees it. Counts of calls are since the process started; times are in seconds."""

    name: str
    state: str
    failures: int
    successes: int
    fail_max: int
    reset_timeout: float
    success_threshold: int
    half_open_max_calls: int
    retry_after: float
    succeeded: int
    failed: int
    ignored: int
    not_permitted: int


class CircuitBreaker(pybreaker.CircuitBreaker):
    """A `pybreaker.CircuitBreaker` under which calls run side by side.

    It takes pybreaker's arguments and keeps its states, listeners, exclusions, storages and exceptions. Beyond them:

    - `ignore`: exception types or predicates whose calls count as neither success nor failure (`exclude` keeps
      pybreaker's meaning: they count as success). `GreenletExit`, `GeneratorExit`, `SystemExit` and `KeyboardInterrupt`
      always count as neither; `gevent.Timeout` is a failure.
    - `half_open_max_calls`: how many probes a half-open circuit lets pass at once (1). `probe_lease`: seconds after which
      a probe that never reported frees its place (the larger of 60 and `reset_timeout`).
    - a rejection is a `CircuitOpen`, which is a `pybreaker.CircuitBreakerError` and carries `retry_after`.
    - listeners run outside of every lock, in the order of the transitions; one that raises is the caller's error, as in
      pybreaker, and never counts against what is called. A transition may be told by another caller that is at it.
    - a call under a half-open circuit inside of one of its probes belongs to that probe.

    A function that returns a generator is guarded until the generator is exhausted (success), raises (by the exception) or
    is closed early (neither). Raises `ValueError` for values out of range.
    """

    def __init__(
        self,
        fail_max: int = 5,
        reset_timeout: float = 60,
        success_threshold: int = 1,
        exclude: Iterable[Excluded] | None = None,
        listeners: Sequence[pybreaker.CircuitBreakerListener] | None = None,
        state_storage: pybreaker.CircuitBreakerStorage | None = None,
        name: str | None = None,
        throw_new_error_on_trip: bool = True,
        *,
        ignore: Iterable[Excluded] = (),
        half_open_max_calls: int = 1,
        probe_lease: float | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        lease = max(60.0, reset_timeout) if probe_lease is None else probe_lease
        self._policy = BreakerPolicy(fail_max, reset_timeout, success_threshold, half_open_max_calls, lease)
        self._seconds = clock.seconds
        self._circuit = Circuit()  # guarded by _state_lock
        self._state_lock = threading.Lock()
        self._transitions: deque[Transition] = deque()  # made under _state_lock, not yet told to storage and listeners
        self._ignored_exceptions = tuple(ignore)
        self._succeeded = self._failed = self._ignored = self._not_permitted = 0
        # Permits of generators that nobody finished, until the next call gives them back: the garbage collector may find
        # such a generator while this thread holds the lock.
        self._abandoned: deque[Permit] = deque()
        # A storage of the caller's is the truth; the circuit here follows it.
        self._shared = state_storage is not None
        self._stored = CLOSED  # the state that the storage was last seen or told to be in
        self._publishing = False  # guarded by _state_lock: somebody is telling of transitions
        super().__init__(
            exclude=exclude,
            listeners=listeners,
            state_storage=state_storage or CircuitWindow(self._circuit, clock),
            name=name,
            throw_new_error_on_trip=throw_new_error_on_trip,
        )
        if self._shared:
            self._follow_storage()
            self._transitions.clear()  # where it begins is no news
            self._state = self._create_new_state(self._circuit.state)

    def __repr__(self) -> str:
        snapshot = self.snapshot()
        waiting = f", {snapshot.retry_after:.1f} s left" if snapshot.state == OPEN else ""
        return f"<CircuitBreaker {self.name}: {snapshot.state}{waiting}>"

    # -- calls ---------------------------------------------------------------------------------------------------------

    def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `func` if the circuit admits it, and let the circuit learn from the result. Raises `CircuitOpen` if not."""
        circuit = self._circuit
        permit = circuit.permit  # read before the state: should a thread move it in between, this one is of the past
        if circuit.state is not CLOSED or self._shared:
            permit = self._admit()
        if self._listeners:
            self._tell_before_call(permit, func, *args, **kwargs)
        try:
            result = self._run_probe(permit, func, args, kwargs) if permit.number else func(*args, **kwargs)
        except BaseException as error:
            self._settle_error(permit, error)
            raise
        if type(result) is types.GeneratorType or type(result) is _GuardedGenerator:
            guarded: Any = _GuardedGenerator(self, permit, cast("Generator[Any, Any, Any]", result))
            return cast("T", guarded)
        if circuit.permit is permit and not circuit.failures and not self._listeners and not self._shared:
            # Closed, as when the call began, and nothing to forget: the state is as it should be. The count is exact under
            # greenlets; under threads two that coincide may count once.
            self._succeeded += 1
            return result
        self._settle_success(permit)
        return result

    def __call__(self, *call_args: Any, **call_kwargs: bool) -> Any:
        """Guard a function: `@breaker` or `@breaker()`. Raises `TypeError` for a coroutine function."""
        decorate = super().__call__(**call_kwargs)

        def decorate_plain(function: Callable[..., Any]) -> Any:
            _refuse_coroutine(function)
            return decorate(function)

        return decorate_plain(*call_args) if call_args else decorate_plain

    def calling(self) -> Any:
        """A context manager: the block inside `with breaker.calling():` is the call."""
        return self._calling()

    @contextlib.contextmanager
    def _calling(self) -> Iterator[None]:
        permit = self._admit()
        self._tell_before_call(permit, self._calling)
        try:
            with _within(self, permit):
                yield
        except BaseException as error:
            self._settle_error(permit, error)
            raise
        self._settle_success(permit)

    def call_async(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a Tornado coroutine `func` as `call` does. Needs Tornado."""

        def wrapped() -> Generator[Any, Any, Any]:
            permit = self._admit()
            self._tell_before_call(permit, func, *args, **kwargs)
            try:
                result = yield func(*args, **kwargs)
            except BaseException as error:
                self._settle_error(permit, error)
                raise
            self._settle_success(permit)
            return result

        tornado = vars(pybreaker).get("gen")
        if tornado is None:
            raise ImportError("call_async needs Tornado: install it, or use call")
        return tornado.coroutine(wrapped)()

    # -- before and after a call ---------------------------------------------------------------------------------------

    def _admit(self) -> Permit:
        if self._is_within_a_probe():
            return _WITHIN_A_PROBE
        circuit = self._circuit
        if circuit.state is OPEN and not self._shared:
            # Nothing changes in a circuit that stays open, so that nothing need be locked to refuse.
            remaining = circuit.opened_at + self._policy.reset_timeout - self._seconds()
            if remaining > 0:
                self._not_permitted += 1
                raise CircuitOpen(STILL_OPEN, policy=self._label, retry_after=remaining)
        self._give_back_abandoned()
        if self._shared:
            self._follow_storage()
        with self._state_lock:
            answer, transition = admit(self._circuit, self._policy, self._seconds())
            if transition is not None:
                self._transitions.append(transition)
            if isinstance(answer, Refusal):
                self._not_permitted += 1
        try:
            self._publish()
        except BaseException:
            if isinstance(answer, Permit):  # a listener raised: the call will not be made
                self._settle(answer, Outcome.IGNORED)
            raise
        if isinstance(answer, Refusal):
            raise self._rejection(STILL_OPEN, answer.retry_after)
        return answer

    def _is_within_a_probe(self) -> bool:
        generation = self._circuit.generation
        return any(breaker is self and probe.generation == generation for breaker, probe in _probes_under_way.get())

    def _run_probe(self, permit: Permit, func: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        with _within(self, permit):
            return func(*args, **kwargs)

    def _tell_before_call(self, permit: Permit, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            for listener in self.listeners:
                listener.before_call(self, func, *args, **kwargs)
        except BaseException:
            self._settle(
                permit, Outcome.IGNORED
            )  # the call is not made: it says nothing about what it would have called
            raise

    def _settle_success(self, permit: Permit) -> None:
        self._settle(permit, Outcome.SUCCESS)
        self._publish()
        for listener in self.listeners:
            listener.success(self)

    def _settle_error(self, permit: Permit, error: BaseException) -> None:
        """Settle a call that raised. Raises `CircuitOpen` when it tripped the circuit and the breaker says so."""
        try:
            outcome = self._classify(error)
        except BaseException:
            self._settle(permit, Outcome.FAILURE)  # what a broken rule would have said of it nobody knows
            self._publish()
            raise
        if outcome is Outcome.SUCCESS:
            self._settle_success(permit)
            return
        transition = self._settle(permit, outcome)
        if outcome is Outcome.IGNORED:
            return
        for listener in self.listeners:
            listener.failure(self, error)
        self._publish()
        if transition is not None and self._throw_new_error_on_trip:
            message = (
                "Failures threshold reached, circuit breaker opened"
                if transition.old == CLOSED
                else "Trial call failed, circuit breaker opened"
            )
            raise self._rejection(message, self._policy.reset_timeout).with_traceback(error.__traceback__) from error

    def _settle(self, permit: Permit, outcome: Outcome) -> Transition | None:
        stored_failures = None
        try:
            if self._shared:
                stored_failures = self._count_in_storage(permit, outcome)
        except BaseException:
            outcome = Outcome.IGNORED  # interrupted on the way to the storage: the permit goes back all the same
            raise
        finally:
            with self._state_lock:
                transition = self._settle_locked(permit, outcome, stored_failures)
        return transition

    def _settle_locked(self, permit: Permit, outcome: Outcome, stored_failures: int | None) -> Transition | None:
        if outcome is Outcome.SUCCESS:
            self._succeeded += 1
        elif outcome is Outcome.FAILURE:
            self._failed += 1
        else:
            self._ignored += 1
        if stored_failures is not None:
            self._circuit.failures = stored_failures - (outcome is Outcome.FAILURE)
        transition = settle(self._circuit, self._policy, permit, outcome, self._seconds())
        if transition is not None:
            self._transitions.append(transition)
        return transition

    def _rejection(self, message: str, retry_after: float) -> CircuitOpen:
        return CircuitOpen(message, policy=self._label, retry_after=retry_after)

    def _give_back_abandoned(self) -> None:
        while self._abandoned:
            self._settle(self._abandoned.popleft(), Outcome.IGNORED)

    def _classify(self, error: BaseException) -> Outcome:
        if isinstance(error, INTERRUPTIONS) or _matches(error, self._ignored_exceptions):
            return Outcome.IGNORED
        return Outcome.FAILURE if self.is_system_error(error) else Outcome.SUCCESS

    def is_system_error(self, exception: BaseException) -> bool:
        """Whether `exception` says that what was called is unhealthy: true unless it is excluded."""
        return not _matches(exception, self._excluded_exceptions)

    # -- state ---------------------------------------------------------------------------------------------------------

    @property
    def _label(self) -> str:
        return self._name or "circuit"

    @property
    def state(self) -> Any:
        """pybreaker's state object. Assign a state's name to force it."""
        if self._shared:
            self._follow_storage()
        state = self._state
        if state.name != self._circuit.state:  # moved, and nobody has told of it yet
            state = self._create_new_state(self._circuit.state)
        return state

    @state.setter
    def state(self, state: str) -> None:
        self._force(state)

    def open(self) -> bool:
        """Reject calls from now on, for `reset_timeout` seconds. Returns `throw_new_error_on_trip`, as pybreaker does."""
        self._force(OPEN)
        return self._throw_new_error_on_trip

    def half_open(self) -> None:
        """Let probes pass: they decide whether the circuit closes."""
        self._force(HALF_OPEN)

    def close(self) -> None:
        """Let calls pass."""
        self._force(CLOSED)

    def reset(self) -> None:
        """Close the circuit and forget every count, also those of calls."""
        self._force(CLOSED)
        with self._state_lock:
            self._succeeded = self._failed = self._ignored = self._not_permitted = 0

    def snapshot(self) -> CircuitSnapshot:
        """The circuit as this process sees it now, without asking a shared storage."""
        self._give_back_abandoned()
        with self._state_lock:
            circuit, policy = self._circuit, self._policy
            return CircuitSnapshot(
                name=self._label,
                state=circuit.state,
                failures=circuit.failures,
                successes=circuit.successes,
                fail_max=policy.fail_max,
                reset_timeout=policy.reset_timeout,
                success_threshold=policy.success_threshold,
                half_open_max_calls=policy.half_open_max_calls,
                retry_after=retry_after(circuit, policy, self._seconds()),
                succeeded=self._succeeded,
                failed=self._failed,
                ignored=self._ignored,
                not_permitted=self._not_permitted,
            )

    def is_made_of(
        self, policy: BreakerPolicy, rules: tuple[tuple[object, ...], ...], throw_new_error_on_trip: bool
    ) -> bool:
        """Whether it was made with these options; `rules` are what is excluded, what is ignored, and the listeners."""
        own = (self.excluded_exceptions, self._ignored_exceptions, self.listeners)
        same_rules = [list(map(_identity, each)) for each in own] == [list(map(_identity, each)) for each in rules]
        return (policy, throw_new_error_on_trip) == (self._policy, self._throw_new_error_on_trip) and same_rules

    @property
    def ignored_exceptions(self) -> tuple[Excluded, ...]:
        """Exception types and predicates whose calls count as neither success nor failure."""
        return self._ignored_exceptions

    # pybreaker keeps these three apart and lets them be assigned; here they are one frozen policy.

    @property
    def fail_max(self) -> int:
        """Consecutive failures that open the circuit."""
        return self._policy.fail_max

    @fail_max.setter
    def fail_max(self, number: int) -> None:
        self._change_policy(fail_max=number)

    @property
    def reset_timeout(self) -> float:
        """Seconds that an opened circuit stays open."""
        return self._policy.reset_timeout

    @reset_timeout.setter
    def reset_timeout(self, timeout: float) -> None:
        self._change_policy(reset_timeout=timeout)

    @property
    def success_threshold(self) -> int:
        """Probes that must succeed to close the circuit."""
        return self._policy.success_threshold

    @success_threshold.setter
    def success_threshold(self, threshold: int) -> None:
        self._change_policy(success_threshold=threshold)

    def _change_policy(self, **changes: Any) -> None:
        self._policy = dataclasses.replace(self._policy, **changes)

    def _force(self, state: str) -> None:
        if state not in FORCING:
            raise ValueError(f"Unknown state {state!r}, valid states: {', '.join(FORCING)}")
        with self._state_lock:
            self._transitions.append(force(self._circuit, FORCING[state], self._seconds()))
        self._publish()

    def _publish(self) -> None:
        """Tell the storage and the listeners of every transition, in order, each once.

        One caller at a time does so, for all. Nobody waits for it: who finds somebody at it goes on, and a listener that
        moves the circuit is told of that move after the present one.
        """
        while self._transitions:
            with self._state_lock:
                if self._publishing:
                    return
                self._publishing = True
            try:
                while self._transitions:
                    self._tell(self._transitions[0])
            finally:
                self._publishing = False

    def _tell(self, transition: Transition) -> None:
        try:
            if self._shared:
                self._tell_storage(transition.new)
            old, self._state = self._state, self._create_new_state(transition.new)
        finally:
            self._transitions.popleft()
        for listener in self.listeners:
            listener.state_change(self, old, self._state)

    def _create_new_state(self, new_state: str, prev_state: Any = None, notify: bool = False) -> Any:  # noqa: ARG002  # pybreaker's signature
        """A state object of pybreaker's. Never announces: that is `_announce`'s work."""
        if new_state not in _STATE_CLASSES:
            raise ValueError(f"Unknown state {new_state!r}, valid states: {', '.join(_STATE_CLASSES)}")
        return _STATE_CLASSES[new_state](self, prev_state=prev_state, notify=False)

    # -- a storage of the caller's -------------------------------------------------------------------------------------

    def _follow_storage(self) -> None:
        """Move to the state that the storage tells, if another process moved it.

        Only a change of what is stored counts, and not while the storage has yet to be told of a move made here, or if a
        move was made here while it was asked.
        """
        if self._transitions:
            return
        generation = self._circuit.generation
        storage = self._state_storage
        seen = storage.state
        if seen == self._stored:
            return  # as last seen or told: nobody else has moved it
        opened_at = storage.opened_at if seen == OPEN else None
        with self._state_lock:
            if self._transitions or generation != self._circuit.generation:
                return
            self._stored = seen
            if seen == self._circuit.state:
                return
            now = self._seconds()
            self._transitions.append(force(self._circuit, FORCING[seen], now))
            if opened_at is not None:
                self._circuit.opened_at = now - max(0.0, (datetime.now(UTC) - opened_at).total_seconds())
        self._publish()

    def _count_in_storage(self, permit: Permit, outcome: Outcome) -> int | None:
        storage = self._state_storage
        if permit.generation != self._circuit.generation:
            return None
        if outcome is Outcome.SUCCESS:
            storage.reset_counter()
            if self._circuit.state == HALF_OPEN:
                storage.increment_success_counter()
            return 0
        if outcome is Outcome.FAILURE:
            storage.increment_counter()
            return storage.counter
        return None

    def _tell_storage(self, state: str) -> None:
        if self._stored == state:
            return  # it is the storage that told of this
        storage = self._state_storage
        storage.reset_success_counter()
        if state == OPEN:
            storage.opened_at = datetime.now(UTC)
        elif state == CLOSED:
            storage.reset_counter()
        storage.state = state
        self._stored = state


def _matches(error: BaseException, rules: Iterable[Excluded]) -> bool:
    for rule in rules:
        # isinstance, not `type(rule) is type`: an exception class with a metaclass is a class too.
        if isinstance(rule, type):
            if isinstance(error, rule):
                return True
        elif rule(error):
            return True
    return False


class _GuardedGenerator(Generator[Any, Any, Any]):
    """A generator whose call is settled when it ends, however it ends."""

    def __init__(self, breaker: CircuitBreaker, permit: Permit, generator: Generator[Any, Any, Any]) -> None:
        self._breaker = breaker
        self._permit: Permit | None = permit
        self._generator = generator

    def send(self, value: Any) -> Any:
        try:
            return self._generator.send(value)
        except StopIteration:
            self._succeed()
            raise
        except BaseException as error:
            self._fail(error)
            raise

    def throw(self, *error: Any) -> Any:
        try:
            return self._generator.throw(*error)
        except StopIteration:
            self._succeed()
            raise
        except BaseException as raised:
            self._fail(raised)
            raise

    def close(self) -> None:
        try:
            self._generator.close()
        finally:
            permit, self._permit = self._permit, None
            if permit is not None:
                self._breaker._settle(permit, Outcome.IGNORED)  # noqa: SLF001

    def __del__(self) -> None:
        # Never started, or dropped half-way: a permit that is not given back would be a probe lost.
        permit, self._permit = self._permit, None
        if permit is not None and permit.number:
            self._breaker._abandoned.append(permit)  # noqa: SLF001

    def _succeed(self) -> None:
        permit, self._permit = self._permit, None
        if permit is not None:
            self._breaker._settle_success(permit)  # noqa: SLF001  # the two classes are one unit

    def _fail(self, error: BaseException) -> None:
        permit, self._permit = self._permit, None
        if permit is not None:
            self._breaker._settle_error(permit, error)  # noqa: SLF001


_creating = threading.Lock()


def circuit_breaker(
    name: str,
    *,
    fail_max: int = 5,
    reset_timeout: float = 60.0,
    success_threshold: int = 1,
    half_open_max_calls: int = 1,
    exclude: Iterable[Excluded] = (),
    ignore: Iterable[Excluded] = (),
    listeners: Sequence[pybreaker.CircuitBreakerListener] = (),
    throw_new_error_on_trip: bool = False,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Guard functions with the circuit `name`; see `CircuitBreaker` for the options.

    All functions of one name in a process share one circuit: it stands for what they call. The call that trips the
    circuit raises its own exception. The breaker itself is the attribute `circuit` of the decorated function. Raises
    `ValueError` when the name is in use with other options.
    """
    if not isinstance(name, str):
        raise TypeError("circuit_breaker needs a name: write @circuit_breaker('payments')")
    exclude, ignore, listeners = tuple(exclude), tuple(ignore), tuple(listeners)
    wanted = BreakerPolicy(fail_max, reset_timeout, success_threshold, half_open_max_calls, max(60.0, reset_timeout))
    with _creating:
        breaker = PROCESS_REGISTRY.circuits.get(name)
        if breaker is None:
            breaker = CircuitBreaker(
                fail_max=fail_max,
                reset_timeout=reset_timeout,
                success_threshold=success_threshold,
                half_open_max_calls=half_open_max_calls,
                exclude=exclude,
                ignore=ignore,
                listeners=listeners,
                name=name,
                throw_new_error_on_trip=throw_new_error_on_trip,
            )
            PROCESS_REGISTRY.add_circuit(breaker)
        elif not isinstance(breaker, CircuitBreaker) or not breaker.is_made_of(
            wanted, (exclude, ignore, listeners), throw_new_error_on_trip
        ):
            raise ValueError(f"the circuit {name!r} exists with other options: use the same ones, or another name")
    shared = breaker

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        _refuse_coroutine(function)

        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            return shared.call(function, *args, **kwargs)

        guarded.circuit = shared  # type: ignore[attr-defined]  # lets callers reach the circuit of a function
        return guarded

    return decorate


def _identity(rule: object) -> object:
    """What makes two rules or listeners the same: an application factory that runs again makes its lambdas anew."""
    return getattr(rule, "__code__", rule)


def _refuse_coroutine(function: Callable[..., Any]) -> None:
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__qualname__} is a coroutine function: a circuit breaker guards plain functions")
