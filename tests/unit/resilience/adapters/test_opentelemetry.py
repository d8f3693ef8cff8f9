"""Events on the spans of OpenTelemetry, as its own SDK records them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

from resilience import CircuitBreaker, CircuitOpen, MemoryStorage, RateLimiter
from resilience.adapters.opentelemetry import trace_events
from resilience.core.events import CallSucceeded, StateChanged
from resilience.events import PROCESS_EVENTS
from resilience.testing import FakeClock

SPANS = InMemorySpanExporter()


@pytest.fixture(scope="module")
def tracer() -> Iterator[Tracer]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(SPANS))
    yield provider.get_tracer("test")
    provider.shutdown()


@pytest.fixture(autouse=True)
def _tracing() -> Iterator[None]:
    SPANS.clear()
    end = trace_events()
    yield
    end()
    PROCESS_EVENTS.clear()


def events_of(name: str) -> list[Event]:
    found: list[ReadableSpan] = [span for span in SPANS.get_finished_spans() if span.name == name]
    return [event for span in found for event in span.events]


def successes_are_wanted() -> bool:
    return PROCESS_EVENTS.wants_successes


def moved() -> StateChanged:
    return StateChanged(policy="payments", at=1.0, old="closed", new="open", cause="test")


def test_an_event_is_on_the_span_in_which_it_happened(tracer: Tracer) -> None:
    with tracer.start_as_current_span("outer"):
        with tracer.start_as_current_span("inner"):
            PROCESS_EVENTS.emit(moved())
        PROCESS_EVENTS.emit(StateChanged(policy="mail", at=2.0, old="open", new="closed", cause="test", expires_in=3.0))
    (inner,), (outer,) = events_of("inner"), events_of("outer")
    assert "resilience.circuit.state_transition" == inner.name == outer.name
    assert inner.attributes is not None
    assert {
        "resilience.policy": "payments",
        "resilience.old": "closed",
        "resilience.new": "open",
        "resilience.cause": "test",
    } == dict(inner.attributes)
    assert outer.attributes is not None
    assert 3.0 == outer.attributes["resilience.expires_in"]


def test_each_refused_call_has_it_on_its_span(tracer: Tracer) -> None:
    limiter = RateLimiter("1/minute", name="demo", key="anna", storage=MemoryStorage(clock=FakeClock()))
    for _ in range(4):
        with tracer.start_as_current_span("call"):
            limiter.try_acquire()
    events = events_of("call")
    assert ["resilience.limiter.refused"] * 3 == [event.name for event in events]
    assert [
        {"resilience.policy": "demo", "resilience.count": 1, "resilience.retry_after": 60.0, "resilience.shadow": False}
    ] * 3 == [dict(event.attributes or {}) for event in events]
    assert 1 == len(PROCESS_EVENTS.of("limiter", "demo"))  # where all are kept they are told once a second


def test_a_circuit_tells_each_span_what_it_did_to_its_call(tracer: Tracer) -> None:
    breaker = CircuitBreaker(name="payments", fail_max=1, clock=FakeClock())
    for name, error in (("tripping", ZeroDivisionError), ("refused", CircuitOpen), ("refused", CircuitOpen)):
        with tracer.start_as_current_span(name), contextlib.suppress(error, CircuitOpen):
            breaker.call(lambda: 1 / 0)
    prefix = "resilience.circuit"
    assert [f"{prefix}.error", f"{prefix}.state_transition"] == [event.name for event in events_of("tripping")]
    assert [f"{prefix}.not_permitted"] * 2 == [event.name for event in events_of("refused")]


def test_keys_are_told_where_that_is_asked_for(tracer: Tracer) -> None:
    limiter = RateLimiter("1/minute", name="demo", key="anna", storage=MemoryStorage(clock=FakeClock()))
    limiter.try_acquire()
    end = trace_events(keys=True)
    with tracer.start_as_current_span("call"):
        limiter.try_acquire()
    end()
    assert [None, "anna"] == [(event.attributes or {}).get("resilience.key") for event in events_of("call")]


def test_successes_are_told_only_where_they_are_asked_for(tracer: Tracer) -> None:
    assert not successes_are_wanted()
    end = trace_events(CallSucceeded)
    assert successes_are_wanted()
    with tracer.start_as_current_span("call"):
        PROCESS_EVENTS.emit(CallSucceeded(policy="payments", at=1.0, duration=0.5))
    end()
    assert ["resilience.circuit.success"] == [event.name for event in events_of("call")]
    assert not successes_are_wanted()


def test_it_ends(tracer: Tracer) -> None:
    trace_events()()
    assert PROCESS_EVENTS.wants_refusals  # the other one goes on
    with tracer.start_as_current_span("call"):
        PROCESS_EVENTS.emit(moved())
    assert 1 == len(events_of("call"))


def test_without_a_span_nothing_is_told() -> None:
    PROCESS_EVENTS.emit(moved())
    assert () == SPANS.get_finished_spans()


def test_without_opentelemetry_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with pytest.raises(ImportError, match=r"install seawall\[tracing\]"):
        trace_events()
