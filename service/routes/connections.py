"""`/admin/connections`: the connections that stay (WebSockets, event streams) of all workers, for operators.

    GET  /admin/connections          a list: ?id=, ?user=, ?address=, ?channel=, ?kind=, ?path=, ?worker=, ?limit=
    GET  /admin/connections/counts   how many there are, by kind, worker, user, address and channel
    POST /admin/connections/kick     close those that fit all that is given: the same, and `token`; with `code` and `reason`

Who may ask is the same as for the rest of the admin endpoint. What is kicked stands in the audit log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from flask import Blueprint, Response, jsonify, request

from longconn.core.frames import may_be_sent
from longconn.roster import Roster
from service.errors import ValidationFailed
from service.routes.bodies import json_object
from service.services.channels import translated
from service.services.members import Fault, check_members

__all__ = ["create_connections_blueprint"]

LISTED: Final = 100
MOST_LISTED: Final = 10_000
POLICY: Final = 1008
"""The close code that says: you may not (RFC 6455, 7.4.1)."""

LONGEST_REASON: Final = 123
"""Bytes that a close frame has for it."""

LARGEST_PID: Final = 1 << 22

FILTERS: Final = ("id", "user", "address", "channel", "kind", "path")


def _text_fault(value: str) -> str | None:
    return None if 0 < len(value) <= 200 else "must be a text of 1 to 200 characters"


def _reason_fault(value: str) -> str | None:
    fits = len(value.encode(errors="replace")) <= LONGEST_REASON
    return None if fits else f"must be at most {LONGEST_REASON} bytes, which is what a close frame holds"


KICK: Final[Mapping[str, Fault]] = {
    **dict.fromkeys((*FILTERS, "token", "worker", "code"), _text_fault),
    "reason": _reason_fault,
}


def create_connections_blueprint(
    roster: Roster, *, authorize: Callable[[], None], record: Callable[..., None]
) -> Blueprint:
    """The routes of the connections. `authorize()` lets the current request pass or raises; `record(action, target, detail=)`
    enters what was done into the audit log."""
    blueprint = Blueprint("connections", __name__, url_prefix="/admin/connections")
    blueprint.before_request(authorize)

    @blueprint.get("")
    def list_connections() -> Response:
        filters: dict[str, Any] = {name: value for name in FILTERS if (value := request.args.get(name))}
        if "worker" in request.args:
            filters["worker"] = _number_asked_for("worker", "", most=LARGEST_PID)
        most = _number_asked_for("limit", str(LISTED), most=MOST_LISTED)
        with translated():
            found = roster.connections(**filters, most=most)
        return _fresh(jsonify(connections=list(found), total=found.total, unreached=list(found.silent)))

    @blueprint.get("/counts")
    def count_connections() -> Response:
        with translated():
            counts = roster.counts()
        by_worker = {str(pid): number for pid, number in counts["workers"].items()}
        return _fresh(jsonify({**counts, "workers": by_worker, "unreached": list(counts.silent)}))

    @blueprint.post("/kick")
    def kick() -> Response:
        choice, code, reason = _order()
        with translated():
            kicked = roster.kick(**choice, code=code, reason=reason)
        target = ", ".join(f"{name} {value}" for name, value in choice.items())
        said = f"{code} {reason}".rstrip()
        unreached = f"; no answer from {', '.join(map(str, kicked.silent))}" if kicked.silent else ""
        record("kick", f"connections {target}", detail=f"{int(kicked)} closed with {said}{unreached}")
        return jsonify(kicked=int(kicked), code=code, reason=reason, unreached=list(kicked.silent))

    return blueprint


def _order() -> tuple[dict[str, Any], int, str]:
    members = check_members(json_object(request), KICK, required=(), free=("code", "worker"))
    code, reason, worker = members.pop("code", POLICY), members.pop("reason", ""), members.get("worker")
    if not members:
        raise ValidationFailed(f"Say which connections, by one or more of {', '.join(FILTERS)}, token and worker.")
    if type(code) is not int or not may_be_sent(code):
        raise _wrong("/code", "must be a close code that may be sent: 1000, 1001, 1003, 1007 to 1014, or 3000 to 4999")
    if worker is not None and type(worker) is not int:
        raise _wrong("/worker", "must be a process id")
    return members, code, reason


def _wrong(pointer: str, reason: str) -> ValidationFailed:
    return ValidationFailed(f"{pointer} {reason}.", fields=[(pointer, reason)])


def _number_asked_for(name: str, usual: str, *, most: int) -> int:
    text = request.args.get(name, usual)
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
        raise ValidationFailed(f"{name} must be a whole number from 1 to {most}.")
    return int(text)


def _fresh(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response
