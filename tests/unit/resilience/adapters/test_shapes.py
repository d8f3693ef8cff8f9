"""What comes from another worker is looked at before it is put together with one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from resilience.adapters.admin.audit import merged_audit
from resilience.adapters.admin.circuits import merge_circuits
from resilience.adapters.admin.events import merged_events
from resilience.adapters.admin.limiters import describe_limiters
from resilience.adapters.answering import PARTS, answer
from resilience.adapters.metrics import families
from resilience.adapters.peers import Answers, Worker
from resilience.adapters.shapes import misfit
from resilience.events import PROCESS_EVENTS
from resilience.registry import PROCESS_REGISTRY
from tests.support.operating import Operated

EVERYTHING = {"tell": list(PARTS), "do": "nothing"}
ONE, TWO = Worker("web-1", 1), Worker("web-2", 2)
OTHERS: tuple[Any, ...] = (None, True, -1, 10**400, float("nan"), "text", [], [None], {}, {"name": "x"})
"""What may stand where something else is expected."""


@pytest.fixture
def told() -> Iterator[dict[str, Any]]:
    """All that a worker can tell, as it arrives elsewhere."""
    PROCESS_REGISTRY.clear()
    PROCESS_EVENTS.clear()
    call = Operated()
    for _ in range(3):
        call.limiter.try_acquire()
    call("POST", "/admin/circuits/pay/ments/open", {"ttl": 60})
    yield json.loads(json.dumps(answer(call.application, EVERYTHING)))
    PROCESS_REGISTRY.clear()
    PROCESS_EVENTS.clear()


def put_together(by_worker: dict[Worker, Any]) -> None:
    answers = Answers(by_worker, ())
    merge_circuits(answers, detailed=True)
    describe_limiters(answers, detailed=True)
    merged_events(answers)
    merged_audit(answers)
    families({str(worker.pid): told for worker, told in by_worker.items()})


def changed(value: Any) -> Iterator[tuple[str, Any]]:
    """Everything that differs from `value` in one place, and where."""
    for other in OTHERS:
        yield "", other
    places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for place, held in places:
        copy = value.copy()
        for where, other in changed(held):
            copy[place] = other
            yield f".{place}{where}", copy
        if isinstance(value, dict):
            yield f".{place}", {name: each for name, each in value.items() if name != place}


def test_what_a_worker_tells_fits(told: dict[str, Any]) -> None:
    assert "" == misfit(EVERYTHING, told)
    for part in PARTS:
        assert "" == misfit({"tell": [part, "what a later version knows"]}, told)
    assert all(told[part] for part in PARTS), "or else nothing is shown"


def test_whatever_fits_can_be_put_together(told: dict[str, Any]) -> None:
    fitting = 0
    for where, other in changed(told):
        if misfit(EVERYTHING, other) == "":
            fitting += 1
            try:
                put_together({ONE: told, TWO: other})
                put_together({ONE: other, TWO: told})
            except Exception as error:
                raise AssertionError(f"{where} may be something else") from error
    assert fitting > 100


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ([], "it is no JSON object"),
        ({}, "it is of version None, this worker's of version 1"),
        ({"version": 2}, "it is of version 2, this worker's of version 1"),
        ({"version": 1}, "circuits is missing, or is something else"),
        ({"version": 1, "circuits": [{"name": "x"}]}, "circuits[0].cause is missing, or is something else"),
        ({"version": 1, "circuits": "junk"}, "circuits is missing, or is something else"),
    ],
)
def test_what_does_not_fit_is_named(shape: Any, said: str) -> None:
    assert said == misfit({"tell": ["circuits"]}, shape)
