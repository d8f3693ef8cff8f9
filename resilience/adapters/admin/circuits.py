"""Circuits of all workers as one, and what an operator may do to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from flask import Response, abort, jsonify, request
from werkzeug.exceptions import MethodNotAllowed, ServiceUnavailable

from resilience.adapters.admin.events import merged_events
from resilience.adapters.admin.orders import by_name, describe_workers, read_order, record, visitor
from resilience.adapters.answering import CIRCUIT_ORDERS
from resilience.adapters.flask import current_application
from resilience.adapters.peers import Answers, Worker
from resilience.clock import SYSTEM_CLOCK
from resilience.core.breaker import CLOSED, DISABLED, FORCED_CLOSED, FORCED_OPEN, HALF_OPEN, METRICS_ONLY, OPEN

__all__ = ["change_circuit", "list_circuits", "merge_circuit", "merge_circuits", "show_circuit", "show_events"]

Snapshots = Sequence[tuple[Worker, Mapping[str, Any]]]

_MOST_RESTRICTIVE_FIRST: Final = (FORCED_OPEN, OPEN, HALF_OPEN, CLOSED, METRICS_ONLY, FORCED_CLOSED, DISABLED)
_CALLS: Final = ("succeeded", "failed", "ignored", "not_permitted", "slow")
_WINDOW: Final = ("calls", "failed", "slow", "slow_failed")
_TIMED: Final = frozenset({"open", "close", "disable", "metrics-only"})
"""Orders that may hold for a time."""
_LOOKS: Final = 8
_PAUSE: Final = 0.05


def list_circuits() -> Response:
    """Every circuit, merged over all workers."""
    answers = current_application().peers.ask({"tell": ["circuits"]})
    return jsonify(
        circuits=merge_circuits(answers, detailed=request.args.get("detail") == "workers"),
        workers=describe_workers(answers),
    )


def show_circuit(circuit: str) -> Response:
    """One circuit, merged and worker by worker."""
    answers = current_application().peers.ask({"tell": ["circuits"], "circuit": circuit})
    return jsonify(circuit=merge_circuit(circuit, _known(circuit, answers)), workers=describe_workers(answers))


def show_events(circuit: str) -> Response:
    """What happened to one circuit lately, in all workers."""
    message = {"tell": ["circuits", "events"], "circuit": circuit, "of": {"kind": "circuit", "policy": circuit}}
    answers = current_application().peers.ask(message)
    if circuit not in by_name(answers, "circuits"):
        return show_circuit(f"{circuit}/events")  # a name may end so
    return jsonify(events=merged_events(answers).events, workers=describe_workers(answers))


def change_circuit(circuit: str, action: str) -> Response:
    """Do what an operator has ordered: in every worker where each has a circuit of its own, in one where they share it."""
    order = read_order(takes_ttl=action in _TIMED)
    application = current_application()
    found = _known(circuit, application.peers.ask({"tell": ["circuits"], "circuit": circuit}))
    having = [worker for worker, _ in found]
    # Whoever shares it needs to know it: circuits may be made as late as by the first call.
    executor = application.worker if application.worker in having else having[0]
    message = {
        "do": action,
        "circuit": circuit,
        "reason": order.reason,
        "author": visitor().author,
        "ttl": order.ttl,
        "executor": executor.describe(),
        "tell": ["circuits"],
    }
    answers = application.peers.ask(message)
    executed = [worker for worker, answer in sorted(answers.by_worker.items()) if answer.get("executed")]
    troubles = sorted({answer["trouble"] for answer in answers.by_worker.values() if answer.get("trouble")})
    record(
        action,
        f"circuit {circuit}",
        outcome="done" if executed else "failed",
        order=order,
        detail="; ".join(troubles),
        unreached=answers.unreached,
    )
    if not executed:
        raise ServiceUnavailable(f"no worker could do it: {'; '.join(troubles) or 'none has answered'}")
    answers = _settled(circuit, executor, answers)
    return jsonify(
        circuit=merge_circuit(circuit, _known(circuit, answers)),
        workers=describe_workers(answers),
        executed=[worker.describe() for worker in executed],
    )


def merge_circuits(answers: Answers, *, detailed: bool = False) -> list[dict[str, Any]]:
    """Every circuit over all workers, in the order of their names."""
    merged = (merge_circuit(name, snapshots) for name, snapshots in by_name(answers, "circuits").items())
    return [each if detailed else {key: value for key, value in each.items() if key != "by_worker"} for each in merged]


def merge_circuit(name: str, snapshots: Snapshots) -> dict[str, Any]:
    """One circuit over all workers. Its state is the most restrictive of any worker's, and what goes with a state (since when,
    why, until when) is what a worker in that state says; `states` tells how many are in which."""
    reports = [snapshot for _, snapshot in snapshots]
    states = Counter(report["state"] for report in reports)
    state = next((state for state in _MOST_RESTRICTIVE_FIRST if states[state]), reports[0]["state"])
    # Where workers are in one state each for itself, the one that has been there for the shortest has the latest news.
    concerned = min((each for each in reports if each["state"] == state), key=lambda each: each.get("since") or 0.0)
    settings = concerned.get("settings", {})
    window = {kind: sum(report.get("window", {}).get(kind, 0) for report in reports) for kind in _WINDOW}
    merged = {
        "name": name,
        "state": state,
        "states": dict(states),
        "since": _rounded(concerned.get("since")),
        "retry_after": _rounded(max(report["retry_after"] for report in reports if report["state"] == state)),
        "expires_in": _rounded(concerned.get("expires_in")),
        "generation": max(report.get("generation", 0) for report in reports),
        **{said: concerned.get(said, "") for said in ("cause", "reason", "author")},
        "failures": max(report["failures"] for report in reports),
        "successes": max(report.get("successes", 0) for report in reports),
        "window": window,
        "failure_rate": _rate(settings, "failure_rate", window, "failed"),
        "slow_call_rate": _rate(settings, "slow_call_rate", window, "slow"),
        "calls": {kind: sum(report.get(kind, 0) for report in reports) for kind in _CALLS},
        "settings": settings,
        "origins": concerned.get("origins", {}),
        "sharing": _merge_sharing(concerned, reports),
        "by_worker": [{"worker": worker.describe(), **_own(report)} for worker, report in snapshots],
    }
    if all("durations" in report for report in reports):
        merged["durations"] = _merge_durations([report["durations"] for report in reports])
    return merged


def _known(circuit: str, answers: Answers) -> Snapshots:
    found = by_name(answers, "circuits").get(circuit)
    if found is None:
        name, _, action = circuit.rpartition("/")
        if name and action in ACTIONS and request.method in ("GET", "HEAD"):
            raise MethodNotAllowed(
                ["POST"], f"no circuit is named {circuit!r}; what moves one is POST .../{name}/{action}"
            )
        abort(404, description=f"no circuit is named {circuit!r}: GET the list for the names")
    return found


def _settled(circuit: str, executor: Worker, answers: Answers) -> Answers:
    """The answers once the news of a shared circuit have reached everybody, or soon after at the latest: what the operator
    sees is then what holds."""
    for _ in range(_LOOKS):
        reports = dict(by_name(answers, "circuits").get(circuit, ()))
        moved = reports.get(executor, {})
        if moved.get("reach", "process") == "process" or all(
            (each.get("state"), each.get("generation")) == (moved.get("state"), moved.get("generation"))
            for each in reports.values()
            if not each.get("alone")
        ):
            break
        SYSTEM_CLOCK.sleep(_PAUSE)
        answers = current_application().peers.ask({"tell": ["circuits"], "circuit": circuit})
    return answers


def _rate(settings: Mapping[str, Any], rule: str, window: Mapping[str, int], kind: str) -> float:
    """In percent; -1.0 where nothing can be said, as resilience4j has it."""
    calls = window["calls"]
    if settings.get(rule) is None or not calls or calls < settings.get("minimum_calls", 0):
        return -1.0
    return round(100 * window[kind] / calls, 3)


def _merge_sharing(concerned: Mapping[str, Any], reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "uri": concerned.get("uri"),
        "reach": concerned.get("reach", "process"),
        "alone": sum(bool(report.get("alone")) for report in reports),
        "votes": sorted({vote for report in reports for vote in report.get("votes", ())}),
        "quorum": concerned.get("settings", {}).get("quorum", 1),
    }


def _merge_durations(durations: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        kind: {
            "sum": round(sum(each[kind]["sum"] for each in durations), 6),
            "max": round(max(each[kind]["max"] for each in durations), 6),
        }
        for kind in durations[0]
    }


def _own(report: Mapping[str, Any]) -> dict[str, Any]:
    left_out = {"name", "settings", "origins", "uri", "until"}
    return {
        key: _rounded(value) if key in ("since", "retry_after", "expires_in") else value
        for key, value in report.items()
        if key not in left_out
    }


def _rounded(seconds: Any) -> float | None:
    return None if seconds is None else round(cast("float", seconds), 3)


ACTIONS: Final = tuple(CIRCUIT_ORDERS)
"""What can be ordered, as it stands in the address."""
