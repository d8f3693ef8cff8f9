"""What one worker tells and does when it is asked: orders about what is shared are carried out once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resilience import CircuitBreaker, RateLimiter, StorageUnavailable
from resilience.adapters.answering import PARTS, USUAL_PARTS, VERSION, answer, reach_of
from resilience.adapters.flask import Application
from resilience.adapters.peers import Worker
from resilience.events import PROCESS_EVENTS
from resilience.registry import PROCESS_REGISTRY
from resilience.storage.state_memory import MemoryStateStorage
from tests.support.operating import Operated


@pytest.fixture
def call() -> Iterator[Operated]:
    PROCESS_REGISTRY.clear()
    PROCESS_EVENTS.clear()
    yield Operated()
    PROCESS_REGISTRY.clear()
    PROCESS_EVENTS.clear()


def order(application: Application, executor: Worker | None, **more: Any) -> Any:
    who = {} if executor is None else {"executor": executor.describe()}
    return answer(application, {"do": "open", "circuit": "pay/ments", "tell": [], **who, **more})


def sibling(application: Application) -> Worker:
    return application.worker._replace(pid=application.worker.pid + 1)


def test_whoever_asks_for_nothing_in_particular_is_told_the_usual(call: Operated) -> None:
    assert {"version", *USUAL_PARTS} == answer(call.application, {}).keys()
    assert {"version", *PARTS} == answer(call.application, {"tell": list(PARTS)}).keys()
    assert {"version": VERSION} == answer(call.application, {"tell": ["what a later version knows"]})


def test_what_each_worker_has_for_itself_is_moved_in_every_one(call: Operated) -> None:
    assert {"version": VERSION, "executed": True} == order(call.application, sibling(call.application))
    assert "forced-open" == call.circuit.snapshot().state


def test_what_workers_share_is_moved_by_the_one_that_was_asked(tmp_path: Path) -> None:
    call = Operated(state_uri=f"shm://{tmp_path}/state")
    application = call.application
    try:
        assert "host" == application.reach
        assert {"version": VERSION, "executed": False} == order(application, sibling(application))
        assert "closed" == call.circuit.snapshot().state
        assert {"version": VERSION, "executed": True} == order(application, application.worker)
        assert "forced-open" == call.circuit.snapshot().state
        # A host keeps its own: what was ordered elsewhere holds here too.
        assert {"version": VERSION, "executed": True} == order(application, Worker("elsewhere", 1))
    finally:
        application.close()
        PROCESS_REGISTRY.clear()


def test_whoever_names_a_policy_is_told_of_that_alone(call: Operated) -> None:
    call.application.registry.add_circuit(CircuitBreaker(name="other"))
    call.application.registry.add_limiter(RateLimiter("1/second", name="other"))
    for part, asked, named in (("circuits", "circuit", "pay/ments"), ("limiters", "limiter", "api")):
        for name, found in ((named, [named]), ("other", ["other"]), ("nonsense", []), ([], [])):
            told = answer(call.application, {"tell": [part], asked: name})
            assert found == [each["name"] for each in told[part]]
        assert 2 == len(answer(call.application, {"tell": [part]})[part])


def test_whoever_does_not_reset_a_shared_circuit_itself_forgets_its_counts(tmp_path: Path) -> None:
    call = Operated(state_uri=f"shm://{tmp_path}/state")
    application = call.application
    try:
        call.circuit.call(lambda: None)
        generation = call.circuit.snapshot().generation
        assert {"version": VERSION, "executed": False} == order(application, sibling(application), do="reset")
        assert (0, generation) == (call.circuit.snapshot().succeeded, call.circuit.snapshot().generation)
    finally:
        application.close()
        PROCESS_REGISTRY.clear()


def test_a_circuit_or_an_order_that_is_not_known_here_is_left_to_others(call: Operated) -> None:
    for more in ({"circuit": "nonsense"}, {"do": "nonsense"}):
        assert {"version": VERSION, "executed": False} == order(call.application, None, **more)
    for message in (
        {"do": "reset", "limiter": "nonsense", "key": "k"},
        {"do": "nonsense", "limiter": "api"},
        {"do": "x"},
    ):
        assert {"version": VERSION, "executed": False} == answer(call.application, {**message, "tell": []})


def test_what_goes_wrong_is_told_and_raises_nothing(call: Operated) -> None:
    def unavailable(**_: Any) -> None:
        raise StorageUnavailable("gone")

    call.circuit.force_open = unavailable  # type: ignore[method-assign]
    assert {"version": VERSION, "executed": False, "trouble": "StorageUnavailable: gone"} == order(
        call.application, None
    )


def test_an_order_that_is_wrong_in_itself_is_told_apart(call: Operated) -> None:
    said = {"do": "override", "limiter": "api", "limits": "many", "ttl": 60, "tell": []}
    told = answer(call.application, said)
    assert (False, "'many' is not a rate limit") == (told["executed"], told["refusal"][:26])


def test_since_when_is_told_as_a_duration(call: Operated) -> None:
    assert answer(call.application, {})["circuits"][0]["since"] is None, "it has never moved"
    call.circuit.open()
    call.clock.advance(3)
    (circuit,) = answer(call.application, {})["circuits"]
    assert 3.0 == pytest.approx(circuit["since"], abs=0.5)


def test_times_of_calls_are_told_in_the_words_of_the_counts(call: Operated) -> None:
    assert {"succeeded", "failed", "ignored"} == answer(call.application, {})["circuits"][0]["durations"].keys()


@pytest.mark.parametrize(
    ("uri", "reach"),
    [
        (None, "process"),
        ("memory://", "process"),
        ("shm://x", "host"),
        ("redis://h", "hosts"),
        ("valkeys://h", "hosts"),
    ],
)
def test_an_address_says_how_far_something_is_shared(uri: str | None, reach: str) -> None:
    assert reach == reach_of(uri)


def test_a_circuit_that_was_given_a_storage_keeps_it(tmp_path: Path) -> None:
    own = CircuitBreaker(name="own", state_storage=MemoryStateStorage())
    call = Operated(state_uri=f"shm://{tmp_path}/state")
    try:
        call.application.registry.add_circuit(own)
        told = {circuit["name"]: circuit["uri"] for circuit in answer(call.application, {})["circuits"]}
        assert {"pay/ments": call.application.state.uri, "own": "memory://"} == told
    finally:
        call.application.close()
        PROCESS_REGISTRY.clear()
