"""Circuits, rate limiters and their storage in Prometheus' text format."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from flask import Flask
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from resilience import (
    CircuitBreaker,
    CircuitOpen,
    Decision,
    Limit,
    MemoryStorage,
    RateLimiter,
    Resilience,
    StorageUnavailable,
)
from resilience.adapters.answering import answer
from resilience.adapters.metrics import ResilienceCollector, families, render_metrics
from resilience.core.limiter import Charge
from resilience.registry import PROCESS_REGISTRY
from resilience.storage.standin import StandInStorage
from resilience.testing import FakeClock


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    PROCESS_REGISTRY.clear()
    yield
    PROCESS_REGISTRY.clear()


class Gone(MemoryStorage):
    def take(self, charges: Sequence[Charge]) -> Decision:
        raise StorageUnavailable("gone")


def seen(app: Flask) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and the values of its labels."""
    text = render_metrics(app.extensions["resilience"]).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_limiter_shows_what_it_decided_in_each_worker() -> None:
    storage, worker = MemoryStorage(clock=FakeClock()), str(os.getpid())
    strict = RateLimiter("2/minute", name="strict", key="k", storage=storage)
    lenient = RateLimiter("1/minute", name="lenient", key="k", storage=storage, shadow=True)
    app = Flask("demo")
    Resilience(app, storage=storage, limiters=[strict, lenient])
    for _ in range(3):
        strict.try_acquire()
        lenient.try_acquire()
    samples = seen(app)

    def counted(limiter: str, outcome: str) -> float:
        return samples["resilience_limit_decisions_total", limiter, outcome, worker]

    assert (2, 1) == (counted("strict", "allowed"), counted("strict", "denied"))
    assert (0, 2) == (counted("lenient", "denied"), counted("lenient", "shadow_denied"))
    assert 1 == samples["resilience_limit_store_up", "memory://", worker]


def test_a_store_that_is_away_is_seen() -> None:
    storage, worker = StandInStorage(Gone(), clock=FakeClock(), probing=False), str(os.getpid())
    app = Flask("demo")
    Resilience(app, storage=storage)
    for _ in range(3):
        storage.take([Charge("scope", "subject", Limit(1, 60), 1)])
    samples = seen(app)
    names = ("store_up", "store_failures_total", "store_changes_total", "decisions_without_store_total")
    assert [0, 1, 1, 3] == [samples[f"resilience_limit_{name}", "memory://", worker] for name in names]


def test_any_name_makes_a_valid_line() -> None:
    app = Flask("demo")
    Resilience(app, storage=MemoryStorage(), limiters=[RateLimiter("1/minute", name='a "b"\\c\nd')])
    assert ("resilience_limit_decisions_total", 'a "b"\\c\nd', "allowed", str(os.getpid())) in seen(app)
    assert re.search(
        r"^# TYPE resilience_limit_store_up gauge$", render_metrics(app.extensions["resilience"]).decode(), re.MULTILINE
    )


# -- circuits, in the words of resilience4j ----------------------------------------------------------------------------

STATE, CALLS = "resilience4j_circuitbreaker_state", "resilience4j_circuitbreaker_calls_seconds"
WORKER = str(os.getpid())


def circuit(clock: FakeClock, name: str = "payments", **options: Any) -> CircuitBreaker:
    return CircuitBreaker(**{"name": name, "failure_rate": 0.5, "minimum_calls": 4, "clock": clock, **options})


def called(breaker: CircuitBreaker, clock: FakeClock, seconds: float = 0.0, error: Exception | None = None) -> None:
    def work() -> None:
        clock.advance(seconds)
        if error is not None:
            raise error

    with contextlib.suppress(ValueError, KeyError, CircuitOpen):
        breaker.call(work)


def application_with(*circuits: CircuitBreaker) -> Flask:
    app = Flask("demo")
    Resilience(app, storage=MemoryStorage(), circuits=circuits)
    return app


def test_a_circuit_is_in_one_state() -> None:
    breaker = circuit(FakeClock())
    app = application_with(breaker)
    states = ("closed", "open", "half_open", "forced_open", "forced_closed", "disabled", "metrics_only")
    moves: tuple[Callable[[], object], ...] = (
        breaker.close, breaker.open, breaker.half_open, breaker.force_open, breaker.force_closed, breaker.disable,
        breaker.metrics_only,
    )  # fmt: skip
    for state, move in zip(states, moves, strict=True):
        move()
        samples = seen(app)
        assert {state} == {each for each in states if samples[STATE, "payments", each]}
        assert 1 == samples["resilience_circuit_workers", "payments", state]


def test_calls_are_counted_by_what_they_came_to_and_how_long_they_took() -> None:
    clock = FakeClock()
    breaker = circuit(clock, failure_rate=0.9, ignore=[KeyError], slow_call_rate=1.0, slow_call_duration=1.0)
    for seconds, error in ((0.5, None), (1.5, None), (2.0, ValueError()), (0.25, ValueError()), (3.0, KeyError())):
        called(breaker, clock, seconds, error)
    samples = seen(application_with(breaker))
    assert {"successful": (2, 2.0, 1.5), "failed": (2, 2.25, 2.0), "ignored": (1, 3.0, 3.0)} == {
        kind: (
            samples[f"{CALLS}_count", "payments", kind, WORKER],
            samples[f"{CALLS}_sum", "payments", kind, WORKER],
            samples[f"{CALLS}_max", "payments", kind],
        )
        for kind in ("successful", "failed", "ignored")
    }
    prefix = "resilience4j_circuitbreaker_"
    assert (50.0, 50.0) == (
        samples[f"{prefix}failure_rate", "payments"],
        samples[f"{prefix}slow_call_rate", "payments"],
    )
    assert (2, 2) == tuple(samples[f"{prefix}buffered_calls", "payments", kind] for kind in ("failed", "successful"))
    assert (1, 1) == tuple(samples[f"{prefix}slow_calls", "payments", kind] for kind in ("failed", "successful"))


def test_a_rate_of_too_few_calls_is_minus_one() -> None:
    clock = FakeClock()
    few, unruled = circuit(clock), CircuitBreaker(name="mail", fail_max=9, clock=clock)
    for breaker in (few, unruled):
        for _ in range(3):
            called(breaker, clock, error=ValueError())
    samples = seen(application_with(few, unruled))
    assert (-1.0, -1.0) == tuple(
        samples["resilience4j_circuitbreaker_failure_rate", name] for name in ("payments", "mail")
    )


def test_refused_calls_are_counted() -> None:
    clock = FakeClock()
    breaker = circuit(clock)
    breaker.open()
    for _ in range(3):
        called(breaker, clock, error=ValueError())
    name = "resilience4j_circuitbreaker_not_permitted_calls_total"
    assert 3 == seen(application_with(breaker))[name, "payments", "not_permitted", WORKER]


def test_workers_are_one_circuit_whose_state_is_the_most_restrictive() -> None:
    clock = FakeClock()
    breaker = circuit(clock)
    app = application_with(breaker)
    with app.app_context():
        one = answer(app.extensions["resilience"], {"tell": ["circuits", "limiters", "storage"]})
    two = {**one, "circuits": [{
        **one["circuits"][0], "state": "open", "alone": True, "not_permitted": 7,
        "window": {"calls": 8, "failed": 6, "slow": 0, "slow_failed": 0},
    }]}  # fmt: skip
    samples = {
        (family.name + sample.suffix, *sample.labels.values()): sample.value
        for family in families({"1": one, "2": two})
        for sample in family.samples
    }
    assert (0, 1) == (samples[STATE, "payments", "closed"], samples[STATE, "payments", "open"])
    assert (1, 1) == tuple(samples["resilience_circuit_workers", "payments", state] for state in ("closed", "open"))
    assert (0, 1) == tuple(samples["resilience_circuit_alone", "payments", worker] for worker in "12")
    assert 75.0 == samples["resilience4j_circuitbreaker_failure_rate", "payments"]
    name = "resilience4j_circuitbreaker_not_permitted_calls_total"
    assert (0, 7) == tuple(samples[name, "payments", "not_permitted", worker] for worker in "12")


# -- limiters, in the words of resilience4j ----------------------------------------------------------------------------


def test_what_is_left_is_shown_where_all_callers_share_a_bucket() -> None:
    storage = MemoryStorage(clock=FakeClock())
    shared = RateLimiter("5/minute", name="shared", key="k", storage=storage)
    app = Flask("demo")
    Resilience(app, storage=storage, limiters=[shared, RateLimiter("5/minute", name="each", storage=storage)])
    shared.try_acquire(cost=2)
    samples = seen(app)
    assert 3 == samples["resilience4j_ratelimiter_available_permissions", "shared"]
    assert ("resilience4j_ratelimiter_available_permissions", "each") not in samples
    assert (0, 0) == tuple(samples["resilience4j_ratelimiter_waiting_threads", name] for name in ("shared", "each"))


def test_a_limiter_whose_storage_is_away_is_shown_without_what_is_left() -> None:
    app = Flask("demo")
    Resilience(app, storage=MemoryStorage(), limiters=[RateLimiter("5/minute", name="gone", key="k", storage=Gone())])
    samples = seen(app)
    assert ("resilience4j_ratelimiter_available_permissions", "gone") not in samples
    assert 0 == samples["resilience4j_ratelimiter_waiting_threads", "gone"]


@pytest.mark.parametrize(
    ("storages", "left"),
    [
        (("memory://", "memory://"), 7),
        (("redis://host", "redis://host"), 3),
        (("redis://host", "redis://host (down: local)"), 7),
        (("shm://name", "shm://name"), 3),
    ],
)
def test_what_is_left_in_one_shared_bucket_is_counted_once(storages: tuple[str, str], left: int) -> None:
    app = Flask("demo")
    Resilience(app, storage=MemoryStorage(), limiters=[RateLimiter("5/minute", name="shared", key="k")])
    with app.app_context():
        said = answer(app.extensions["resilience"], {"tell": ["circuits", "limiters", "storage"]})
    workers = {
        str(number): {**said, "limiters": [{**said["limiters"][0], "storage": uri}], "permissions": {"shared": number}}
        for number, uri in zip((3, 4), storages, strict=True)
    }
    found = [family for family in families(workers) if family.name.endswith("available_permissions")]
    assert [left] == [sample.value for family in found for sample in family.samples]


# -- the client library of Prometheus ----------------------------------------------------------------------------------


def test_a_registry_shows_the_same() -> None:
    clock = FakeClock()
    breaker = circuit(clock)
    called(breaker, clock, 0.5)
    app = application_with(breaker)
    registry = CollectorRegistry()
    registry.register(ResilienceCollector(app.extensions["resilience"]))
    by_library = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }
    ours = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(render_metrics(app.extensions["resilience"]).decode())
        for sample in family.samples
    }
    assert ours == by_library
    assert 20 < len(ours)


def test_every_family_is_named_and_explained_once() -> None:
    text = render_metrics(application_with(circuit(FakeClock())).extensions["resilience"]).decode()
    named = re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)
    assert sorted(set(named)) == sorted(named) == sorted(re.findall(r"^# HELP (\S+) ", text, re.MULTILINE))
