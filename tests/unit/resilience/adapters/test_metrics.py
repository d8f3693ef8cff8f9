"""The rate limiters in Prometheus' text format."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import pytest
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from resilience import Decision, Limit, MemoryStorage, RateLimiter, Resilience, StorageUnavailable
from resilience.adapters.metrics import render_metrics
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
