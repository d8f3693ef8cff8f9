"""The rate limiters and their storage in Prometheus' text format, of all workers, whichever worker is asked.

Every series carries the worker that counted: a counter goes on as long as its process does, and sums of rates stay right
when a worker is replaced. Needs no client library of Prometheus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from resilience.adapters.flask import Application

__all__ = ["CONTENT_TYPE", "render_metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `render_metrics` returns."""

_OUTCOMES = ("allowed", "denied", "shadow_denied", "waited", "exempted")


def render_metrics(application: Application) -> bytes:
    """The metrics of every worker of `application` that answers, for an answer of `CONTENT_TYPE`."""
    by_worker = sorted(application.peers.ask({}).by_worker.items())
    return "".join(line + "\n" for line in _lines(by_worker)).encode()


def _lines(by_worker: list[tuple[int, dict[str, Any]]]) -> Iterator[str]:
    yield from _heading("decisions_total", "counter", "Decisions of rate limits. What has waited is allowed too.")
    for pid, answer in by_worker:
        for limiter in answer["limiters"]:
            for outcome in _OUTCOMES:
                labels = {"limiter": limiter["name"], "outcome": outcome, "worker": str(pid)}
                yield _sample("decisions_total", labels, limiter[outcome])
    yield from _heading("store_up", "gauge", "1 while the storage of the limits decides, 0 while its stand-in does.")
    for pid, answer in by_worker:
        yield _sample("store_up", _of_store(pid, answer), int(answer["storage"]["mode"] == "primary"))
    yield from _heading("store_failures_total", "counter", "Questions that the storage left unanswered.")
    for pid, answer in by_worker:
        yield _sample("store_failures_total", _of_store(pid, answer), answer["storage"]["failures"])
    yield from _heading("store_changes_total", "counter", "Changes from the storage to its stand-in and back.")
    for pid, answer in by_worker:
        yield _sample("store_changes_total", _of_store(pid, answer), answer["storage"]["changes"])
    yield from _heading("decisions_without_store_total", "counter", "Decisions that the stand-in made.")
    for pid, answer in by_worker:
        yield _sample("decisions_without_store_total", _of_store(pid, answer), answer["storage"]["decided_locally"])


def _of_store(pid: int, answer: Mapping[str, Any]) -> dict[str, str]:
    return {"store": answer["storage"]["uri"], "worker": str(pid)}


def _heading(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP resilience_limit_{name} {meaning}"
    yield f"# TYPE resilience_limit_{name} {kind}"


def _sample(name: str, labels: Mapping[str, str], value: int) -> str:
    written = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"resilience_limit_{name}{{{written}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
