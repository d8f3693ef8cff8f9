"""Circuits, rate limiters and their storage in Prometheus' text format, of all workers of this host, whichever is asked.

Names and labels of circuits are those of resilience4j, so that dashboards made for it fit. What they call a gauge (the state,
a rate, what a window holds) is one number for all workers. What counts up carries the worker that counted besides: a counter
goes on as long as its process does, and sums of rates stay right when a worker is replaced.

Other hosts are not asked, as Prometheus asks each of them itself. Needs no client library of Prometheus; where an application
has one with a registry, `registry.register(ResilienceCollector(app.extensions["resilience"]))` adds all this to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from resilience.adapters.flask import Application
from resilience.core.breaker import CLOSED, DISABLED, FORCED_CLOSED, FORCED_OPEN, HALF_OPEN, METRICS_ONLY, OPEN

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["CONTENT_TYPE", "ResilienceCollector", "render_metrics"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `render_metrics` returns."""

_OUTCOMES: Final = ("allowed", "denied", "shadow_denied", "waited", "exempted")
_MOST_RESTRICTIVE_FIRST: Final = (FORCED_OPEN, OPEN, HALF_OPEN, CLOSED, FORCED_CLOSED, METRICS_ONLY, DISABLED)
_KINDS: Final = (("successful", "succeeded"), ("failed", "failed"), ("ignored", "ignored"))
"""What resilience4j calls the results of calls, and what we do."""
_QUESTION: Final = {"tell": ("circuits", "limiters", "storage", "permissions")}

Snapshots = Sequence[tuple[str, Mapping[str, Any]]]
"""What each worker says of one policy."""


class Sample(NamedTuple):
    """One line: `suffix` is what follows the family's name."""

    suffix: str
    labels: dict[str, str]
    value: float


class Family(NamedTuple):
    """What Prometheus knows as one metric: its `kind` is "gauge", "counter" or "summary"."""

    name: str
    kind: str
    meaning: str
    samples: list[Sample]


def render_metrics(application: Application) -> bytes:
    """The metrics of every worker of this host that answers, for an answer of `CONTENT_TYPE`."""
    return "".join(line + "\n" for family in _asked(application) for line in _lines(family)).encode()


class ResilienceCollector:
    """`application` (`app.extensions["resilience"]`) for a registry of prometheus_client."""

    def __init__(self, application: Application) -> None:
        self._application = application

    def collect(self) -> Iterable[Metric]:
        """What every worker of this host says now."""
        from prometheus_client import Metric

        for family in _asked(self._application):
            metric = Metric(family.name.removesuffix("_total"), family.meaning, family.kind)
            for suffix, labels, value in family.samples:
                metric.add_sample(family.name + suffix, labels, value)
            yield metric

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that no worker is asked when this is registered."""
        return ()


def _asked(application: Application) -> list[Family]:
    answers = application.siblings.ask(_QUESTION).by_worker
    return families({str(worker.pid): answer for worker, answer in sorted(answers.items())})


def families(by_worker: Mapping[str, Mapping[str, Any]]) -> list[Family]:
    """What the answers of the workers come to."""
    return [
        *_of_circuits(_by_name(by_worker, "circuits")),
        *_of_limiters(_by_name(by_worker, "limiters"), by_worker),
        *_of_stores(by_worker),
    ]


def _by_name(by_worker: Mapping[str, Mapping[str, Any]], kind: str) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for worker, answer in by_worker.items():
        for snapshot in answer[kind]:
            found.setdefault(snapshot["name"], []).append((worker, snapshot))
    return dict(sorted(found.items()))


# -- circuits ----------------------------------------------------------------------------------------------------------


def _of_circuits(circuits: Mapping[str, Snapshots]) -> Iterator[Family]:
    yield _gauge("state", "The states of the circuit breaker", circuits, _states)
    yield _gauge("failure_rate", "The failure rate of the circuit breaker", circuits, _rate_of("failed"))
    yield _gauge("slow_call_rate", "The slow call of the circuit breaker", circuits, _rate_of("slow"))
    yield _gauge("buffered_calls", "The number of buffered calls stored in the ring buffer", circuits, _buffered)
    yield _gauge("slow_calls", "The number of calls which were slower than a certain threshold", circuits, _slow)
    yield _calls_seconds(circuits)
    yield _gauge("calls_seconds_max", "Total number of calls", circuits, _longest)
    yield Family(
        "resilience4j_circuitbreaker_not_permitted_calls_total",
        "counter",
        "Total number of not permitted calls",
        [
            Sample("", {"name": name, "kind": "not_permitted", "worker": worker}, snapshot["not_permitted"])
            for name, snapshots in circuits.items()
            for worker, snapshot in snapshots
        ],
    )
    yield Family(
        "resilience_circuit_workers",
        "gauge",
        "Workers in which the circuit is in this state.",
        [
            Sample("", {"name": name, "state": _label(state)}, _in_state(snapshots, state))
            for name, snapshots in circuits.items()
            for state in _MOST_RESTRICTIVE_FIRST
        ],
    )
    yield Family(
        "resilience_circuit_alone",
        "gauge",
        "1 while the worker has lost the storage that the circuit is shared through.",
        [
            Sample("", {"name": name, "worker": worker}, int(snapshot["alone"]))
            for name, snapshots in circuits.items()
            for worker, snapshot in snapshots
        ],
    )


def _gauge(name: str, meaning: str, circuits: Mapping[str, Snapshots], values: Any) -> Family:
    """`values` makes of the snapshots of a circuit its values, each with labels besides the name."""
    return Family(
        f"resilience4j_circuitbreaker_{name}",
        "gauge",
        meaning,
        [
            Sample("", {"name": circuit, **labels}, value)
            for circuit, snapshots in circuits.items()
            for labels, value in values(snapshots)
        ],
    )


def _states(snapshots: Snapshots) -> Iterator[tuple[dict[str, str], float]]:
    """The most restrictive state of any worker is the circuit's."""
    present = next(state for state in _MOST_RESTRICTIVE_FIRST if _in_state(snapshots, state))
    for state in _MOST_RESTRICTIVE_FIRST:
        yield {"state": _label(state)}, int(state == present)


def _in_state(snapshots: Snapshots, state: str) -> int:
    return sum(snapshot["state"] == state for _, snapshot in snapshots)


def _label(state: str) -> str:
    return state.replace("-", "_")


def _in_window(snapshots: Snapshots, what: str) -> int:
    return sum(snapshot["window"][what] for _, snapshot in snapshots)


def _rate_of(what: str) -> Any:
    def rate(snapshots: Snapshots) -> Iterator[tuple[dict[str, str], float]]:
        """In percent; -1 below the minimum of calls, or where no rule needs a window."""
        calls = _in_window(snapshots, "calls")
        enough = calls and calls >= snapshots[0][1]["settings"]["minimum_calls"]
        yield {}, 100 * _in_window(snapshots, what) / calls if enough else -1.0

    return rate


def _buffered(snapshots: Snapshots) -> Iterator[tuple[dict[str, str], float]]:
    failed = _in_window(snapshots, "failed")
    yield {"kind": "failed"}, failed
    yield {"kind": "successful"}, _in_window(snapshots, "calls") - failed


def _slow(snapshots: Snapshots) -> Iterator[tuple[dict[str, str], float]]:
    failed = _in_window(snapshots, "slow_failed")
    yield {"kind": "failed"}, failed
    yield {"kind": "successful"}, _in_window(snapshots, "slow") - failed


def _calls_seconds(circuits: Mapping[str, Snapshots]) -> Family:
    samples = []
    for name, snapshots in circuits.items():
        for worker, snapshot in snapshots:
            for kind, counted in _KINDS:
                labels = {"name": name, "kind": kind, "worker": worker}
                samples.append(Sample("_count", labels, snapshot[counted]))
                samples.append(Sample("_sum", labels, snapshot["durations"][counted]["sum"]))
    return Family("resilience4j_circuitbreaker_calls_seconds", "summary", "Total number of calls", samples)


def _longest(snapshots: Snapshots) -> Iterator[tuple[dict[str, str], float]]:
    for kind, counted in _KINDS:
        yield {"kind": kind}, max(snapshot["durations"][counted]["max"] for _, snapshot in snapshots)


# -- limiters and their storage ----------------------------------------------------------------------------------------


def _of_limiters(limiters: Mapping[str, Snapshots], by_worker: Mapping[str, Mapping[str, Any]]) -> Iterator[Family]:
    yield Family(
        "resilience_limit_decisions_total",
        "counter",
        "Decisions of rate limits. What has waited is allowed too.",
        [
            Sample("", {"limiter": limiter["name"], "outcome": outcome, "worker": worker}, limiter[outcome])
            for worker, answer in by_worker.items()
            for limiter in answer["limiters"]
            for outcome in _OUTCOMES
        ],
    )
    yield Family(
        "resilience4j_ratelimiter_available_permissions",
        "gauge",
        "The number of available permissions",
        [
            Sample("", {"name": name}, available)
            for name, snapshots in limiters.items()
            if (available := _available(name, snapshots, by_worker)) is not None
        ],
    )
    yield Family(
        "resilience4j_ratelimiter_waiting_threads",
        "gauge",
        "The number of waiting threads",
        [
            Sample("", {"name": name}, sum(snapshot["waiting"] for _, snapshot in snapshots))
            for name, snapshots in limiters.items()
        ],
    )


def _available(name: str, snapshots: Snapshots, by_worker: Mapping[str, Mapping[str, Any]]) -> int | None:
    """What is left in the one bucket of a limiter; None where each caller has one. Where the workers share the bucket they say
    the same, or nearly so; where each has its own, more may pass by as much."""
    found: list[tuple[int, str]] = [
        (available, str(snapshot["storage"]))
        for worker, snapshot in snapshots
        if (available := (by_worker[worker].get("permissions") or {}).get(name)) is not None
    ]
    if not found:
        return None
    own = [available for available, storage in found if storage.startswith("memory:") or "(down: " in storage]
    shared = [
        available for available, storage in found if not storage.startswith("memory:") and "(down: " not in storage
    ]
    return sum(own) + min(shared, default=0)


def _of_stores(by_worker: Mapping[str, Mapping[str, Any]]) -> Iterator[Family]:
    up = [
        Sample("", _of_store(worker, answer), int(answer["storage"]["mode"] == "primary"))
        for worker, answer in by_worker.items()
    ]
    yield Family(
        "resilience_limit_store_up",
        "gauge",
        "1 while the storage of the limits decides, 0 while its stand-in does.",
        up,
    )
    for name, counted, meaning in (
        ("store_failures_total", "failures", "Questions that the storage left unanswered."),
        ("store_changes_total", "changes", "Changes from the storage to its stand-in and back."),
        ("decisions_without_store_total", "decided_locally", "Decisions that the stand-in made."),
    ):
        samples = [
            Sample("", _of_store(worker, answer), answer["storage"][counted]) for worker, answer in by_worker.items()
        ]
        yield Family(f"resilience_limit_{name}", "counter", meaning, samples)


def _of_store(worker: str, answer: Mapping[str, Any]) -> dict[str, str]:
    return {"store": answer["storage"]["uri"], "worker": worker}


# -- the text ----------------------------------------------------------------------------------------------------------


def _lines(family: Family) -> Iterator[str]:
    if not family.samples:
        return
    yield f"# HELP {family.name} {family.meaning}"
    yield f"# TYPE {family.name} {family.kind}"
    for suffix, labels, value in family.samples:
        written = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"{family.name}{suffix}{{{written}}} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
