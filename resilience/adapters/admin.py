"""The admin endpoint as a blueprint: circuits and limiters of all workers, whichever worker is asked.

    GET  /admin/circuits                     every circuit
    GET  /admin/circuits/<name>              one, with what each worker says
    POST /admin/circuits/<name>/open         reject calls for the circuit's open time, in every worker
    POST /admin/circuits/<name>/close        let calls pass
    POST /admin/circuits/<name>/reset        close and forget every count
    GET  /admin/limiters                     every rate limiter, and the storage they count in
    POST /admin/limiters/<name>/reset?key=   fill the bucket of one caller, in every worker

GET changes nothing. Every request needs `Authorization: Bearer <admin token>`. Without a token configured, and on any
listener but the admin port, the routes do not exist.
"""

from __future__ import annotations

import hmac
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flask import Blueprint, Response, abort, jsonify, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from resilience.adapters.flask import current_application
from resilience.adapters.peers import Answers

__all__ = ["create_admin_blueprint"]

_AUDIT = logging.getLogger("resilience.audit")
_MOST_RESTRICTIVE_FIRST = ("open", "half-open", "closed")
_CALLS = ("succeeded", "failed", "ignored", "not_permitted")
_SETTINGS = ("fail_max", "reset_timeout", "success_threshold", "half_open_max_calls")
_DECISIONS = ("allowed", "denied", "shadow_denied", "waited", "exempted")
_STORAGE_COUNTS = ("failures", "changes", "decided_locally")
_LONGEST_KEY = 1_024


def create_admin_blueprint(*, name: str = "resilience_admin", url_prefix: str = "/admin") -> Blueprint:
    """The admin endpoint, to be registered on an application that has `Resilience`.

    `name` is the blueprint's name, `url_prefix` where it is mounted ("/admin"). Without an admin token, and on listeners
    other than the admin port, its routes answer 404.
    """
    blueprint = Blueprint(name, __name__, url_prefix=url_prefix)
    blueprint.before_request(_authorize)

    def authorize_wrong_methods() -> None:
        # These match no view of the blueprint's, and would tell that there is something.
        if request.routing_exception is not None and request.path.startswith(f"{url_prefix}/"):
            _authorize()

    blueprint.before_app_request(authorize_wrong_methods)
    blueprint.after_request(_forbid_storing)
    blueprint.get("/circuits")(list_circuits)
    blueprint.get("/circuits/<path:circuit>")(show_circuit)
    blueprint.post("/circuits/<path:circuit>/<any(open,close,reset):action>")(change_circuit)
    blueprint.get("/limiters")(list_limiters)
    blueprint.post("/limiters/<path:limiter>/reset")(reset_limiter)
    return blueprint


def list_circuits() -> Response:
    """Every circuit, merged over all workers."""
    answers = current_application().peers.ask({})
    circuits = [
        _without_workers(_merge_circuit(name, snapshots))
        for name, snapshots in sorted(_by_name(answers, "circuits").items())
    ]
    return jsonify(circuits=circuits, workers=_workers(answers))


def show_circuit(circuit: str) -> Response:
    """One circuit, merged and worker by worker."""
    return _circuit_response(circuit, current_application().peers.ask({}))


def change_circuit(circuit: str, action: str) -> Response:
    """Open, close or reset one circuit in every worker."""
    answers = current_application().peers.ask({"do": action, "circuit": circuit})
    _AUDIT.warning(
        "circuit %r: %s by %s; workers %s, unreached %s",
        circuit, action, request.remote_addr, sorted(answers.by_worker), list(answers.unreached),
    )  # fmt: skip
    return _circuit_response(circuit, answers)


def list_limiters() -> Response:
    """Every rate limiter, its counts added up over all workers, and the storage of the application."""
    answers = current_application().peers.ask({})
    limiters = [_merge_limiter(name, snapshots) for name, snapshots in sorted(_by_name(answers, "limiters").items())]
    return jsonify(limiters=limiters, storage=_merge_storage(answers), workers=_workers(answers))


def reset_limiter(limiter: str) -> Response:
    """Fill the bucket that a caller has under one limiter, wherever it is kept."""
    key = request.args.get("key", "")
    if not 0 < len(key) <= _LONGEST_KEY:
        abort(400, description="say whose bucket: POST .../reset?key=192.0.2.1 (a tuple's parts are joined with |)")
    if limiter not in current_application().limiters():
        abort(404, description=f"no limiter is named {limiter!r}: GET the list for the names")
    answers = current_application().peers.ask({"do": "reset", "limiter": limiter, "key": key})
    _AUDIT.warning(
        "limiter %r: reset for %r by %s; workers %s, unreached %s",
        limiter, key, request.remote_addr, sorted(answers.by_worker), list(answers.unreached),
    )  # fmt: skip
    return jsonify(
        limiter=_merge_limiter(limiter, _by_name(answers, "limiters")[limiter]), key=key, workers=_workers(answers)
    )


def _authorize() -> None:
    options = current_application().options
    on_admin_port = options.admin_port is None or _listener_port(request.environ) == options.admin_port
    if not options.admin_token or not on_admin_port:
        abort(404)
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), options.admin_token.encode()):
        raise Unauthorized(
            "the admin endpoint needs 'Authorization: Bearer <admin token>'",
            www_authenticate=WWWAuthenticate("bearer", {"realm": "admin"}),
        )


def _listener_port(environ: Mapping[str, Any]) -> int | None:
    """The port that the connection came in on, None for a Unix socket. What a client or a proxy claims is not asked."""
    listening = environ.get("gunicorn.socket")
    if listening is not None:
        name = listening.getsockname()
        return int(name[1]) if isinstance(name, tuple) else None
    port = str(environ.get("werkzeug.proxy_fix.orig", environ).get("SERVER_PORT", ""))
    return int(port) if port.isdecimal() else None


def _forbid_storing(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


def _circuit_response(name: str, answers: Answers) -> Response:
    snapshots = _by_name(answers, "circuits").get(name)
    if snapshots is None:
        abort(404, description=f"no circuit is named {name!r}: GET the list for the names")
    return jsonify(circuit=_merge_circuit(name, snapshots), workers=_workers(answers))


def _by_name(answers: Answers, kind: str) -> dict[str, list[tuple[int, Mapping[str, Any]]]]:
    found: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for pid, answer in sorted(answers.by_worker.items()):
        for snapshot in answer[kind]:
            found.setdefault(snapshot["name"], []).append((pid, snapshot))
    return found


def _merge_circuit(name: str, snapshots: Iterable[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """One circuit over all workers. Its state is the most restrictive of any worker; `states` says how many are in which."""
    listed = list(snapshots)
    first = listed[0][1]
    states = Counter(snapshot["state"] for _, snapshot in listed)
    return {
        "name": name,
        "state": next(state for state in _MOST_RESTRICTIVE_FIRST if states[state]),
        "states": dict(states),
        "retry_after": round(max(snapshot["retry_after"] for _, snapshot in listed), 3),
        "failures": max(snapshot["failures"] for _, snapshot in listed),
        "calls": {kind: sum(snapshot[kind] for _, snapshot in listed) for kind in _CALLS},
        "settings": {setting: first[setting] for setting in _SETTINGS},
        "by_worker": [{"pid": pid, **_without_name(snapshot)} for pid, snapshot in listed],
    }


def _merge_limiter(name: str, snapshots: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    first = snapshots[0][1]
    return {
        "name": name,
        "limits": first["limits"],
        "storage": first["storage"],
        **{kind: sum(snapshot[kind] for _, snapshot in snapshots) for kind in _DECISIONS},
    }


def _merge_storage(answers: Answers) -> dict[str, Any]:
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


def _without_workers(circuit: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in circuit.items() if key != "by_worker"}


def _without_name(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in snapshot.items() if key != "name"}


def _workers(answers: Answers) -> dict[str, list[int]]:
    return {"answered": sorted(answers.by_worker), "unreached": list(answers.unreached)}
