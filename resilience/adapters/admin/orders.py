"""What every view of the admin endpoint needs: what an operator has ordered, and what the workers have answered."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from flask import abort, g, request
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType

from resilience.adapters.admin.access import Visitor
from resilience.adapters.audit import AuditEntry, Outcome
from resilience.adapters.flask import current_application
from resilience.adapters.peers import Answers, Worker
from resilience.clock import epoch_seconds

__all__ = ["Order", "by_name", "describe_workers", "read_json", "read_order", "record", "visitor"]

LONGEST_REASON: Final = 500
LONGEST_TTL: Final = 2_592_000
"""Seconds for which something may hold that was ordered for a time: 30 days."""

_NO_JSON: Final = "Failed to decode JSON object: "


@dataclass(frozen=True, slots=True)
class Order:
    """What the body of a request says: why, for how many seconds, and the fields of this order alone."""

    reason: str
    ttl: float | None
    fields: Mapping[str, Any]


def read_order(*, takes_ttl: bool = False, needs_ttl: bool = False, others: Collection[str] = ()) -> Order:
    """The order in the body of the current request, which is a JSON object or nothing. Answers 400 with what to do about it
    where it is not one, or says what this order does not take."""
    body: Any = {}
    if request.content_length or request.headers.get("Transfer-Encoding"):
        body = read_json()
    if not isinstance(body, dict):
        abort(400, description='the body is a JSON object such as {"reason": "backend is being replaced"}')
    taken = ["reason", *(["ttl"] if takes_ttl else []), *others]
    unknown = sorted(body.keys() - set(taken))
    if unknown:
        abort(400, description=f"{', '.join(unknown)}: not taken here, only {', '.join(taken)}")
    ttl = body.get("ttl")
    if ttl is None and needs_ttl:
        abort(400, description="ttl is missing: say for how many seconds it is to hold")
    if ttl is not None and not _is_ttl(ttl):
        abort(400, description=f"ttl: a number of seconds above 0, at most {LONGEST_TTL:,} (30 days)")
    return Order(_reason(body.get("reason", "")), ttl, body)


def read_json() -> Any:
    """What the body of the current request says. Answers 400 where it is no JSON, or JSON that nobody means."""
    try:
        return request.get_json()
    except RecursionError:
        abort(400, description="the body is JSON within JSON, too deep to be read")
    except (UnsupportedMediaType, RequestEntityTooLarge):
        raise  # nothing of it was read
    except BadRequest as error:
        # Flask keeps what is wrong with it for those who debug.
        cause = error.__cause__ if isinstance(error.__cause__, BadRequest) else error
        abort(400, description=f"the body is no JSON: {(cause.description or '').removeprefix(_NO_JSON)}")


def visitor() -> Visitor:
    """Whoever asks, who was let in."""
    known: Visitor = g.resilience_visitor
    return known


def record(
    action: str,
    target: str,
    *,
    outcome: Outcome = "done",
    order: Order | None = None,
    detail: str = "",
    author: str | None = None,
    unreached: Collection[Worker] = (),
) -> None:
    """Enter what was done into the audit log of this worker."""
    current_application().audit.record(
        AuditEntry(
            at=epoch_seconds(),
            author=visitor().author if author is None else author,
            action=action,
            target=target,
            outcome=outcome,
            reason="" if order is None else order.reason,
            ttl=None if order is None else order.ttl,
            detail=detail,
            unreached=tuple(map(str, unreached)),
        )
    )


def describe_workers(answers: Answers) -> dict[str, Any]:
    """Who has answered and who has not, as JSON takes it."""
    return {
        "answered": [worker.describe() for worker in sorted(answers.by_worker)],
        "unreached": [worker.describe() for worker in answers.unreached],
        "problem": answers.problem,
    }


def by_name(answers: Answers, part: str) -> dict[str, list[tuple[Worker, Mapping[str, Any]]]]:
    """What the workers said of each policy, by its name; `part` is "circuits" or "limiters"."""
    found: dict[str, list[tuple[Worker, Mapping[str, Any]]]] = {}
    for worker, answer in sorted(answers.by_worker.items()):
        for snapshot in answer.get(part, ()):
            found.setdefault(snapshot["name"], []).append((worker, snapshot))
    return dict(sorted(found.items()))


def _is_ttl(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value <= LONGEST_TTL  # which is not true of "nan"


def _reason(value: Any) -> str:
    if (
        not isinstance(value, str)
        or len(value) > LONGEST_REASON
        or any(not (c.isprintable() or c == "\n") for c in value)
    ):
        abort(
            400, description=f"reason: a text of at most {LONGEST_REASON} characters, none of them a control character"
        )
    return value.strip()
