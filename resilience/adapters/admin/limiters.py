"""Rate limits of all workers as one, and what an operator may do about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from flask import Response, abort, jsonify, request
from werkzeug.exceptions import BadRequest, ServiceUnavailable

from resilience.adapters.admin.orders import Order, by_name, describe_workers, read_order, record, visitor
from resilience.adapters.flask import current_application
from resilience.adapters.peers import Answers, Worker

__all__ = [
    "PARTS",
    "describe_limiters",
    "list_limiters",
    "merge_limiter",
    "merge_storage",
    "override_limiter",
    "reset_limiter",
    "restore_limiter",
]

PARTS: Final = ("limiters", "storage", "state")
"""What is asked of every worker for the list."""

_DECISIONS: Final = ("allowed", "denied", "shadow_denied", "waited", "exempted")
_STORAGE_COUNTS: Final = ("failures", "changes", "decided_locally")
_LONGEST_KEY: Final = 1_024
_MOST_TOP: Final = 10


def list_limiters() -> Response:
    """Every rate limiter, its counts added up over all workers, and the storages of the application."""
    answers = current_application().peers.ask({"tell": PARTS})
    return jsonify(
        **describe_limiters(answers, detailed=request.args.get("detail") == "workers"),
        workers=describe_workers(answers),
    )


def reset_limiter(limiter: str) -> Response:
    """Fill the bucket that a caller has under one limiter, wherever it is kept."""
    order = read_order(others=("key",))
    key = request.args.get("key", "") or order.fields.get("key", "")
    if not isinstance(key, str) or not 0 < len(key) <= _LONGEST_KEY:
        abort(400, description="say whose bucket: POST .../reset?key=192.0.2.1 (a tuple's parts are joined with |)")
    return _carried_out(limiter, "reset", order, shown={"key": key}, detail=f"key {key!r}", key=key)


def override_limiter(limiter: str) -> Response:
    """Let other limits hold for a time, in every worker."""
    order = read_order(needs_ttl=True, takes_ttl=True, others=("limits", "burst"))
    limits = order.fields.get("limits")
    if not isinstance(limits, str) or not limits.strip():
        abort(400, description='limits: a text such as "5/second; 100/hour"')
    return _carried_out(
        limiter, "override", order, detail=f"limits {limits!r}", limits=limits, burst=_burst(order.fields.get("burst"))
    )


def restore_limiter(limiter: str) -> Response:
    """Let the limiter's own limits hold again, in every worker."""
    return _carried_out(limiter, "restore", read_order())


def describe_limiters(answers: Answers, *, detailed: bool = False) -> dict[str, Any]:
    """Every limiter over all workers, in the order of their names, and where they and their state are kept."""
    merged = []
    for name, snapshots in by_name(answers, "limiters").items():
        each = merge_limiter(name, snapshots)
        if detailed:
            each["by_worker"] = [{"worker": worker.describe(), **_own(snapshot)} for worker, snapshot in snapshots]
        merged.append(each)
    return {
        "limiters": merged,
        "storage": merge_storage(answers),
        "state": merge_state(answers),
    }


def merge_limiter(name: str, snapshots: Sequence[tuple[Worker, Mapping[str, Any]]]) -> dict[str, Any]:
    """One limiter over all workers."""
    first = snapshots[0][1]
    # All of them learn of an override, one after the other: the first that knows speaks for it.
    overridden = next((snapshot for _, snapshot in snapshots if snapshot.get("override")), first)
    return {
        "name": name,
        "limits": overridden["limits"],
        "storage": first["storage"],
        **{kind: sum(snapshot[kind] for _, snapshot in snapshots) for kind in _DECISIONS},
        "override": overridden.get("override"),
        "top": _merge_top(snapshots),
    }


def merge_storage(answers: Answers) -> dict[str, Any]:
    """The storage over all workers. `mode` is "primary" where all of them use it, else how those decide that do not; `modes`
    says how many are in which, `since` how many seconds ago the last of them changed."""
    snapshots = [answer["storage"] for _, answer in sorted(answers.by_worker.items())]
    modes = Counter(snapshot["mode"] for snapshot in snapshots)
    return {
        "uri": snapshots[0]["uri"],
        "mode": next((mode for mode in modes if mode != "primary"), "primary"),
        "modes": dict(modes),
        "since": round(min(snapshot["since"] for snapshot in snapshots), 3),
        **{count: sum(snapshot[count] for snapshot in snapshots) for count in _STORAGE_COUNTS},
    }


def merge_state(answers: Answers) -> dict[str, Any]:
    """The storage of states over all workers: out of reach where one of them cannot reach it."""
    states = [answer["state"] for _, answer in sorted(answers.by_worker.items())]
    reachable = [state["reachable"] for state in states]
    return {**states[0], "reachable": False if False in reachable else reachable[0]}


def _carried_out(
    limiter: str, action: str, order: Order, *, detail: str = "", shown: Mapping[str, Any] | None = None, **fields: Any
) -> Response:
    answers = _ordered(limiter, action, order, **fields)
    executed = [worker for worker, answer in sorted(answers.by_worker.items()) if answer.get("executed")]
    troubles = sorted({answer["trouble"] for answer in answers.by_worker.values() if answer.get("trouble")})
    refusals = sorted({answer["refusal"] for answer in answers.by_worker.values() if answer.get("refusal")})
    done = bool(executed) and not refusals
    record(
        action,
        f"limiter {limiter}",
        outcome="done" if done else "refused" if refusals else "failed",
        order=order,
        detail="; ".join(part for part in (detail, *troubles, *refusals) if part),
        unreached=answers.unreached,
    )
    if refusals:
        raise BadRequest("; ".join(refusals))
    if not done:
        raise ServiceUnavailable(f"no worker could do it: {'; '.join(troubles) or 'none has answered'}")
    return jsonify(
        limiter=_shown(limiter, answers),
        workers=describe_workers(answers),
        executed=[worker.describe() for worker in executed],
        **(shown or {}),
    )


def _burst(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        abort(400, description="burst: a whole number from 1, or nothing for what the limits say")
    return value


def _ordered(limiter: str, action: str, order: Order, **fields: Any) -> Answers:
    application = current_application()
    executor = application.worker
    if limiter not in application.limiters():
        # Limiters may be made as late as by the first call: whoever is to do it needs to have it.
        having = by_name(application.peers.ask({"tell": ["limiters"]}), "limiters").get(limiter)
        if having is None:
            abort(404, description=f"no limiter is named {limiter!r}: GET the list for the names")
        executor = having[0][0]
    return application.peers.ask(
        {
            "do": action,
            "limiter": limiter,
            "reason": order.reason,
            "author": visitor().author,
            "ttl": order.ttl,
            "executor": executor.describe(),
            "tell": ["limiters"],
            **fields,
        }
    )


def _shown(limiter: str, answers: Answers) -> dict[str, Any]:
    return merge_limiter(limiter, by_name(answers, "limiters")[limiter])


def _merge_top(snapshots: Sequence[tuple[Worker, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    refused: Counter[str] = Counter()
    error: Counter[str] = Counter()
    for _, snapshot in snapshots:
        for key, count, off_by in snapshot.get("top") or ():
            refused[key] += count
            error[key] += off_by
    return [
        {"key": key, "refused": count, "error": error[key]} for key, count in refused.most_common(_MOST_TOP) if count
    ]


def _own(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in snapshot.items() if key not in ("name", "top")}
