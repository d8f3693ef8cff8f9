"""The circuit breaker as callers meet it, and as they know it from pybreaker."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import pickle
import threading
from abc import ABCMeta
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import gevent
import greenlet
import pybreaker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from resilience import CircuitBreaker, CircuitOpen, Rejected, circuit_breaker
from resilience.registry import PROCESS_REGISTRY
from resilience.testing import FakeClock, RecordingListener
from tests.support.breakers import Boom, Fine, boom, breaker, fail, fine
from tests.support.examples import many


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    yield
    PROCESS_REGISTRY.clear()


def test_it_is_a_pybreaker_circuit_breaker() -> None:
    assert isinstance(breaker(), pybreaker.CircuitBreaker)
    assert issubclass(CircuitOpen, pybreaker.CircuitBreakerError)
    assert issubclass(CircuitOpen, Rejected)


def test_it_opens_rejects_probes_and_heals() -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    assert "fine" == circuit.call(fine)
    fail(circuit, 2)
    assert ("open", "<CircuitBreaker demo: open, 10.0 s left>") == (circuit.current_state, repr(circuit))
    clock.advance(4)
    with pytest.raises(CircuitOpen) as caught:
        circuit.call(fine)
    assert ("demo", 6.0, 503) == (caught.value.policy, caught.value.retry_after, caught.value.status)
    assert "Timeout not elapsed yet, circuit breaker still open (circuit 'demo', retry in 6.000 s)" == str(caught.value)
    clock.advance(6)
    assert "fine" == circuit.call(fine)
    assert ("closed", 0) == (circuit.current_state, circuit.fail_counter)
    snapshot = circuit.snapshot()
    assert (2, 2, 0, 1) == (snapshot.succeeded, snapshot.failed, snapshot.ignored, snapshot.not_permitted)


def test_no_lock_is_held_during_the_call() -> None:
    circuit = breaker()

    def nested() -> str:
        assert not circuit._standing.lock._is_owned()
        results: list[str] = []
        thread = threading.Thread(target=lambda: results.append(circuit.call(fine)))
        thread.start()
        thread.join(5)
        return results[0]

    assert "fine" == circuit.call(nested)


def test_half_open_lets_only_the_permitted_probes_pass() -> None:
    clock = FakeClock()
    circuit = breaker(clock, half_open_max_calls=2, success_threshold=2)
    fail(circuit, 2)
    clock.advance(10)
    under_way = [circuit.call(generator), circuit.call(generator)]
    with pytest.raises(CircuitOpen):
        circuit.call(fine)
    assert [[1, 2], [1, 2]] == [list(probe) for probe in under_way]
    assert "closed" == circuit.current_state


@pytest.mark.parametrize("inner", [lambda circuit: circuit.call(fine), lambda circuit: within_a_block(circuit)])
def test_a_call_inside_a_probe_of_the_same_circuit_belongs_to_it(inner: Callable[[CircuitBreaker], str]) -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    circuit.open()
    clock.advance(10)
    assert "fine" == circuit.call(inner, circuit)
    assert "closed" == circuit.current_state
    circuit.open()
    clock.advance(10)
    with circuit.calling():
        assert "fine" == inner(circuit)
    assert "closed" == circuit.current_state


def test_a_block_in_a_generator_may_end_in_another_context() -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    circuit.open()
    clock.advance(10)

    def body() -> Iterator[str]:
        with circuit.calling():
            yield "chunk"

    chunks = body()
    assert "chunk" == contextvars.Context().run(next, chunks)
    assert [] == contextvars.Context().run(list, chunks)
    assert "closed" == circuit.current_state


def within_a_block(circuit: CircuitBreaker) -> str:
    with circuit.calling():
        return fine()


def test_breakers_around_breakers_both_see_how_a_generator_ends() -> None:
    outer, inner = breaker(), breaker()
    with pytest.raises(Boom):
        list(outer.call(inner.call, generator, error=Boom))
    assert (1, 1) == (outer.fail_counter, inner.fail_counter)


def test_a_rule_that_raises_does_not_keep_a_probe() -> None:
    clock = FakeClock()
    circuit = breaker(clock, exclude=[lambda error: error.response.status < 500])
    circuit.open()
    clock.advance(10)
    with pytest.raises(AttributeError):
        circuit.call(boom)
    clock.advance(10)
    assert "fine" == circuit.call(fine)


def test_a_rejection_can_be_sent_to_another_process() -> None:
    circuit = breaker()
    circuit.open()
    with pytest.raises(CircuitOpen) as caught:
        circuit.call(fine)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (CircuitOpen, "demo", 10.0) == (type(copy), copy.policy, copy.retry_after)


@pytest.mark.parametrize("reset_timeout", [float("inf"), float("nan"), -1])
def test_a_time_that_is_none_is_refused(reset_timeout: float) -> None:
    with pytest.raises(ValueError, match="reset_timeout="):
        breaker(reset_timeout=reset_timeout)


@pytest.mark.parametrize("error", [greenlet.GreenletExit, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interruption_says_nothing_and_gives_the_probe_back(error: type[BaseException]) -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    fail(circuit, 2)
    clock.advance(10)
    fail(circuit, 3, error)
    assert ("half-open", 3) == (circuit.current_state, circuit.snapshot().ignored)
    assert "fine" == circuit.call(fine)


def test_a_gevent_timeout_is_a_failure() -> None:
    circuit = breaker(fail_max=1)
    fail(circuit, 1, gevent.Timeout)
    assert "open" == circuit.current_state


class Meta(ABCMeta):
    """A metaclass, as abstract exception families have."""


class Abstract(Exception, metaclass=Meta):
    """An exception class whose type is not `type`."""


@pytest.mark.parametrize("rule", [Fine, lambda error: isinstance(error, Fine)])
def test_excluded_counts_as_success_and_ignored_as_neither(rule: Any) -> None:
    excluding, ignoring = breaker(exclude=[rule]), breaker(ignore=[rule])
    for circuit in (excluding, ignoring):
        fail(circuit)
        fail(circuit, error=Fine)
    assert (0, 1) == (excluding.fail_counter, ignoring.fail_counter)
    assert (1, 1) == (excluding.snapshot().succeeded, ignoring.snapshot().ignored)


def test_an_exception_class_with_a_metaclass_excludes_only_itself() -> None:
    circuit = breaker(exclude=[Abstract])
    fail(circuit, 2)
    assert "open" == circuit.current_state


def test_tripping_raises_a_new_error_only_when_asked_to() -> None:
    with pytest.raises(Boom):
        breaker(fail_max=1).call(boom)
    with pytest.raises(CircuitOpen, match="Failures threshold reached") as caught:
        breaker(fail_max=1, throw_new_error_on_trip=True).call(boom)
    assert isinstance(caught.value.__cause__, Boom)


def generator(*, error: type[BaseException] | None = None) -> Iterator[int]:
    yield 1
    yield 2
    if error is not None:
        raise error


def test_a_generator_is_guarded_until_it_is_exhausted() -> None:
    circuit = breaker()
    numbers = circuit.call(generator)
    assert 1 == next(numbers)
    assert 0 == circuit.snapshot().succeeded
    assert [2] == list(numbers)
    assert 1 == circuit.snapshot().succeeded


def test_a_generator_that_raises_is_one_failure() -> None:
    circuit = breaker()
    with pytest.raises(Boom):
        list(circuit.call(generator, error=Boom))
    assert 1 == circuit.fail_counter


@pytest.mark.parametrize(
    "leave", [lambda numbers: numbers.close(), lambda numbers: next(numbers), lambda numbers: None]
)
def test_a_generator_left_early_or_never_started_gives_its_probe_back(leave: Callable[[Any], object]) -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    fail(circuit, 2)
    clock.advance(10)
    numbers = circuit.call(generator)
    leave(numbers)
    del numbers
    gc.collect()
    assert 1 == circuit.snapshot().ignored
    assert "fine" == circuit.call(fine)


def test_the_garbage_collector_may_find_a_generator_while_the_lock_is_held() -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    circuit.open()
    clock.advance(10)
    numbers = circuit.call(generator)
    next(numbers)
    with circuit._standing.lock:
        del numbers
        gc.collect()
    assert 1 == circuit.snapshot().ignored
    assert "fine" == circuit.call(fine)


def test_forgotten_generators_of_a_closed_circuit_leave_nothing_behind() -> None:
    circuit = breaker()
    for _ in range(10):
        circuit.call(generator)
    assert 0 == len(circuit._calls._abandoned)


def test_a_generator_takes_what_is_sent_and_thrown_into_it() -> None:
    def echo() -> Iterator[Any]:
        try:
            received = yield "ready"
            yield received
        except Boom:
            yield "caught"

    circuit = breaker()
    conversation: Any = circuit.call(echo)
    assert "ready" == next(conversation)
    assert 5 == conversation.send(5)
    assert "caught" == conversation.throw(Boom())
    with pytest.raises(StopIteration):
        next(conversation)
    assert 1 == circuit.snapshot().succeeded


def test_a_block_is_a_call() -> None:
    circuit = breaker()
    with circuit.calling():
        pass
    with contextlib.suppress(Boom), circuit.calling():
        raise Boom
    assert (1, 1) == (circuit.snapshot().succeeded, circuit.fail_counter)
    fail(circuit, 1)
    with pytest.raises(CircuitOpen), circuit.calling():
        pytest.fail("not reached")


@pytest.mark.parametrize("decorate", [lambda circuit: circuit, lambda circuit: circuit()])
def test_it_decorates(decorate: Callable[[CircuitBreaker], Callable[..., Any]]) -> None:
    circuit = breaker()
    decorated = decorate(circuit)(fine)
    assert ("fine", "fine") == (decorated(), decorated.__name__)
    assert 1 == circuit.snapshot().succeeded


def test_listeners_hear_all_in_order_and_may_ask_for_the_state() -> None:
    clock = FakeClock()
    seen: list[str] = []

    class Asking(RecordingListener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            super().state_change(cb, old_state, new_state)
            assert not cb._standing.lock._is_owned()
            seen.append(cb.current_state)

    listener = Asking()
    circuit = breaker(clock, listeners=[listener])
    fail(circuit, 2)
    clock.advance(10)
    circuit.call(fine)
    assert [
        ("before_call",), ("failure", "Boom"),
        ("before_call",), ("failure", "Boom"), ("state_change", "closed", "open"),
        ("state_change", "open", "half-open"), ("before_call",), ("state_change", "half-open", "closed"), ("success",),
    ] == listener.heard  # fmt: skip
    assert ["open", "half-open", "closed"] == seen


def test_a_listener_may_move_the_circuit_and_all_hear_the_moves_in_order() -> None:
    class Closing(pybreaker.CircuitBreakerListener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            if new_state.name == "open":
                cb.close()

    recording = RecordingListener()
    circuit = breaker(listeners=[recording, Closing()])
    circuit.open()
    assert "closed" == circuit.current_state
    assert [("state_change", "closed", "open"), ("state_change", "open", "closed")] == recording.heard


class Raising(RecordingListener):
    """Raises wherever it is told to."""

    def __init__(self, *, before_call: bool = False, state_change: bool = False) -> None:
        super().__init__()
        self.before, self.change = before_call, state_change

    def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        if self.before:
            raise Fine

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        super().state_change(cb, old_state, new_state)
        if self.change:
            raise Fine


def test_a_listener_that_raises_says_nothing_about_what_is_called() -> None:
    circuit = breaker(listeners=[Raising(before_call=True)])
    for _ in range(5):
        with pytest.raises(Fine):
            circuit.call(fine)
        with pytest.raises(Fine), circuit.calling():
            pytest.fail("not reached")
    assert ("closed", 0, 10) == (circuit.current_state, circuit.fail_counter, circuit.snapshot().ignored)


@pytest.mark.parametrize("where", ["before_call", "state_change"])
def test_a_listener_that_raises_does_not_keep_a_probe(where: str) -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    circuit.open()
    clock.advance(10)
    listener = Raising(**{where: True})
    circuit.add_listener(listener)
    with pytest.raises(Fine):
        circuit.call(fine)
    circuit.remove_listener(listener)
    assert ("fine", "closed") == (circuit.call(fine), circuit.current_state)


def test_nobody_waits_for_a_listener_and_no_move_is_lost() -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(RecordingListener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            entered.set()
            assert leave.wait(5)
            super().state_change(cb, old_state, new_state)

    listener = Slow()
    circuit = breaker(listeners=[listener])
    telling = threading.Thread(target=circuit.open)
    telling.start()
    assert entered.wait(5)
    circuit.close()
    assert "closed" == circuit.current_state == circuit.state.name
    leave.set()
    telling.join(5)
    assert [("state_change", "closed", "open"), ("state_change", "open", "closed")] == listener.heard


@pytest.mark.parametrize("state", ["open", "half-open", "closed"])
def test_it_can_be_forced_by_name_as_in_pybreaker(state: str) -> None:
    circuit = breaker()
    circuit.state = state
    seen: Any = circuit.state
    assert (state, state) == (circuit.current_state, seen.name)


def test_an_unknown_state_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Unknown state 'ajar', valid states: open, closed, half-open"):
        breaker().state = "ajar"


def test_reset_forgets_every_count() -> None:
    circuit = breaker()
    fail(circuit, 2)
    circuit.reset()
    snapshot = circuit.snapshot()
    assert ("closed", 0, 0, 0) == (snapshot.state, snapshot.failures, snapshot.succeeded, snapshot.failed)


def test_the_policy_can_be_changed_and_bad_values_are_refused() -> None:
    circuit = breaker()
    circuit.fail_max, circuit.reset_timeout, circuit.success_threshold = 1, 5, 3
    assert (1, 5, 3) == (circuit.fail_max, circuit.reset_timeout, circuit.success_threshold)
    with pytest.raises(ValueError, match="fail_max=0"):
        circuit.fail_max = 0
    fail(circuit)
    assert 5.0 == circuit.snapshot().retry_after


def test_what_pybreaker_calls_the_storage_shows_the_circuit_and_moves_it() -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    storage: Any = circuit._state_storage
    assert (None, "memory") == (storage.opened_at, storage.name)
    storage.increment_counter()
    assert 1 == circuit.fail_counter
    storage.reset_counter()
    storage.state = "half-open"
    storage.increment_success_counter()
    assert ("half-open", 0, 1) == (circuit.current_state, circuit.fail_counter, circuit.success_counter)
    storage.reset_success_counter()
    storage.state = "open"
    storage.opened_at = datetime.now(UTC) - timedelta(seconds=4)
    assert circuit.snapshot().retry_after == pytest.approx(6, abs=0.5)
    assert (datetime.now(UTC) - storage.opened_at).total_seconds() == pytest.approx(4, abs=0.5)
    assert 0 == circuit.success_counter


class TestStorageOfTheCallers:
    """Breakers that share a pybreaker storage follow each other."""

    def pair(self, **options: Any) -> tuple[FakeClock, CircuitBreaker, CircuitBreaker]:
        clock = FakeClock()
        storage = pybreaker.CircuitMemoryStorage(pybreaker.STATE_CLOSED)
        return clock, breaker(clock, state_storage=storage, **options), breaker(clock, state_storage=storage, **options)

    def test_failures_add_up_and_all_open(self) -> None:
        _, one, other = self.pair()
        heard = RecordingListener()
        other.add_listener(heard)
        fail(one)
        assert 1 == other.fail_counter
        fail(other)
        assert ("open", "open") == (one.state.name, other.state.name)
        with pytest.raises(CircuitOpen):
            one.call(fine)
        assert ("state_change", "closed", "open") in heard.heard

    def test_it_starts_in_the_storage_s_state(self) -> None:
        storage = pybreaker.CircuitMemoryStorage(pybreaker.STATE_OPEN)
        storage.opened_at = datetime.now(UTC) - timedelta(seconds=4)
        circuit = breaker(state_storage=storage)
        with pytest.raises(CircuitOpen) as caught:
            circuit.call(fine)
        assert caught.value.retry_after == pytest.approx(6, abs=0.5)

    def test_one_heals_for_all(self) -> None:
        clock, one, other = self.pair(success_threshold=2)
        fail(one, 2)
        clock.advance(10.5)
        storage: Any = one._state_storage
        storage.opened_at = datetime.now(UTC) - timedelta(seconds=10.5)
        one.call(fine)
        assert ("half-open", 1) == (one.current_state, one.success_counter)
        one.call(fine)
        assert "fine" == other.call(fine)
        assert ("closed", 0) == (other.state.name, other.fail_counter)


class SlowStorage(pybreaker.CircuitMemoryStorage):
    """Lets others run whenever it is asked or told, as one behind a network does."""

    @property
    def state(self) -> str:
        before = self._state
        gevent.sleep(0.001)
        return before

    @state.setter
    def state(self, state: str) -> None:
        gevent.sleep(0.001)
        self._state = state


def test_with_a_slow_storage_half_open_still_lets_only_the_permitted_probes_pass() -> None:
    clock = FakeClock()
    heard = RecordingListener()
    circuit = breaker(clock, state_storage=SlowStorage(pybreaker.STATE_CLOSED), fail_max=1, listeners=[heard])
    fail(circuit)
    clock.advance(10.5)
    inside, most = 0, 0

    def probe() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        gevent.sleep(0.02)
        inside -= 1

    def caller() -> None:
        with contextlib.suppress(CircuitOpen):
            circuit.call(probe)

    gevent.joinall([gevent.spawn(caller) for _ in range(100)], raise_error=True)
    assert 1 == most
    changes = [event[1:] for event in heard.heard if event[0] == "state_change"]
    assert [("closed", "open"), ("open", "half-open"), ("half-open", "closed")] == changes


def test_an_interruption_on_the_way_to_the_storage_gives_the_probe_back() -> None:
    class Interrupted(pybreaker.CircuitMemoryStorage):
        raising = False

        def reset_counter(self) -> None:
            if self.raising:
                raise gevent.Timeout
            super().reset_counter()

    clock = FakeClock()
    storage = Interrupted(pybreaker.STATE_CLOSED)
    circuit = breaker(clock, state_storage=storage, fail_max=1)
    fail(circuit)
    clock.advance(10.5)
    storage.raising = True
    with pytest.raises(gevent.Timeout):
        circuit.call(fine)
    storage.raising = False
    assert "fine" == circuit.call(fine)


def test_a_decorated_name_is_one_circuit_for_the_process() -> None:
    first = circuit_breaker("payments", fail_max=1)(boom)
    second = circuit_breaker("payments", fail_max=1)(fine)
    with pytest.raises(Boom):
        first()
    with pytest.raises(CircuitOpen, match="still open"):
        second()
    assert ["payments"] == list(PROCESS_REGISTRY.circuits)


def test_one_name_with_other_options_is_refused() -> None:
    circuit_breaker("payments", fail_max=1)
    wanted = r"'payments' exists with other options \(fail_max=2 and 1, exclude\): .*PROCESS_REGISTRY.clear\(\)"
    with pytest.raises(ValueError, match=wanted):
        circuit_breaker("payments", fail_max=2, exclude=[KeyError])


def test_a_storage_that_begins_open_and_does_not_know_since_when_is_probed_at_once_as_in_pybreaker() -> None:
    circuit = breaker(state_storage=pybreaker.CircuitMemoryStorage(pybreaker.STATE_OPEN))
    assert ("fine", "closed") == (circuit.call(fine), circuit.current_state)


def test_of_listeners_those_hear_of_calls_that_want_to() -> None:
    class OfSuccesses(pybreaker.CircuitBreakerListener):
        def success(self, cb: Any) -> None:
            told.append(("success", cb.name))

    class OfCalls(pybreaker.CircuitBreakerListener):
        def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
            told.append(("before", func, args, kwargs))

    told: list[object] = []
    successes, calls = OfSuccesses(), OfCalls()
    circuit = breaker(listeners=[successes])
    circuit.call(fine)
    circuit.add_listener(calls)
    circuit.call(dict, [], one=1)
    circuit.remove_listener(successes)
    circuit.call(fine)
    assert [
        ("success", "demo"), ("before", dict, ([],), {"one": 1}), ("success", "demo"), ("before", fine, (), {}),
    ] == told  # fmt: skip
    assert 3 == circuit.snapshot().succeeded


def test_a_coroutine_function_is_refused_when_it_is_decorated() -> None:
    async def later() -> None: ...

    for decorate in (circuit_breaker("payments"), breaker(), breaker()()):
        with pytest.raises(TypeError, match="coroutine function"):
            decorate(later)


def test_a_decorator_without_its_name_is_refused_when_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"write @circuit_breaker\('payments'\)"):
        circuit_breaker(fine)  # type: ignore[arg-type]  # the mistake


def test_an_application_factory_may_run_again() -> None:
    for _ in range(2):
        circuit_breaker("payments", exclude=[lambda error: isinstance(error, Fine)])(fine)()
    with pytest.raises(ValueError, match="other options"):
        circuit_breaker("payments", listeners=[RecordingListener()])


def test_calling_a_tornado_coroutine_without_tornado_says_what_to_install() -> None:
    with pytest.raises(ImportError, match="needs Tornado"):
        breaker().call_async(fine)


class Both:
    """One program, run with pybreaker and with ours: whatever a caller can see must be the same."""

    def __init__(self, kind: Callable[..., Any], shift: Callable[[float], None], **options: Any) -> None:
        self.listener = RecordingListener()
        self.shift = shift
        self.circuit = kind(listeners=[self.listener], exclude=[Fine], **options)

    def run(self, step: str) -> tuple[object, ...]:  # noqa: C901  # a table of steps
        outcome: object = None
        try:
            match step:
                case "ok":
                    outcome = self.circuit.call(fine)
                case "fail":
                    self.circuit.call(boom)
                case "excluded":
                    self.circuit.call(self.excluded)
                case "generator":
                    outcome = list(self.circuit.call(generator))
                case "block":
                    with self.circuit.calling():
                        outcome = "in block"
                case "open":
                    self.circuit.open()
                case "close":
                    self.circuit.close()
                case "half-open":
                    self.circuit.half_open()
                case "wait":
                    self.shift(61)
        except pybreaker.CircuitBreakerError as error:
            outcome = f"rejected: {error.args[0]}"
        except (Boom, Fine) as error:
            outcome = type(error).__name__
        circuit = self.circuit
        return outcome, circuit.current_state, circuit.fail_counter, circuit.success_counter, list(self.listener.heard)

    @staticmethod
    def excluded() -> None:
        raise Fine


@settings(max_examples=many(150), deadline=None)
@given(
    some.lists(
        some.sampled_from(["ok", "fail", "excluded", "generator", "block", "open", "close", "half-open", "wait"]),
        max_size=25,
    ),
    some.integers(1, 3),
    some.integers(1, 3),
    some.booleans(),
)
def test_every_sequential_program_sees_what_pybreaker_shows(
    steps: list[str], fail_max: int, threshold: int, throw: bool
) -> None:
    options = {
        "fail_max": fail_max, "reset_timeout": 60, "success_threshold": threshold, "throw_new_error_on_trip": throw
    }  # fmt: skip
    clock = FakeClock()

    def shift_pybreaker(seconds: float) -> None:
        storage: Any = theirs.circuit._state_storage
        if storage.opened_at is not None:
            storage.opened_at -= timedelta(seconds=seconds)

    theirs = Both(pybreaker.CircuitBreaker, shift_pybreaker, **options)
    ours = Both(CircuitBreaker, clock.advance, clock=clock, **options)
    for step in steps:
        assert theirs.run(step) == ours.run(step), step
