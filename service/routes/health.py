"""Health, for whoever starts and watches this process. Never authenticated, never rate-limited, never cached.

- ``/livez``: the process answers. Touches nothing, so that a slow database does not get a sound process restarted.
- ``/readyz``: send traffic here. 503 while draining and while a critical check fails; ``?verbose`` lists the checks.
- ``/healthz``: everything, for people. 503 when a critical check fails.
"""

from __future__ import annotations

from collections.abc import Sequence

import flask

from service.lifecycle import CheckResult, Checks, Lifecycle

__all__ = ["create_blueprint"]


def create_blueprint(checks: Checks, lifecycle: Lifecycle) -> flask.Blueprint:
    """The blueprint `health`."""
    blueprint = flask.Blueprint("health", __name__)

    @blueprint.get("/livez")
    def live() -> flask.Response:
        return _answer("live", well=True)

    @blueprint.get("/readyz")
    def ready() -> flask.Response:
        # Without asking anything first: a probe that waits for a slow check would learn of the draining too late.
        if lifecycle.draining:
            return _answer("draining", well=False)
        results = checks.run(critical_only=True)
        well = _is_well(results)
        return _answer("ready" if well else "failing", well=well, results=results if _wants_list() else None)

    @blueprint.get("/healthz")
    def health() -> flask.Response:
        results = checks.run()
        well = _is_well(results)
        status = "failing" if not well else "draining" if lifecycle.draining else "ok"
        return _answer(status, well=well, results=results)

    return blueprint


def _is_well(results: Sequence[CheckResult]) -> bool:
    return all(result.state == "ok" for result in results if result.critical)


def _wants_list() -> bool:
    return flask.request.args.get("verbose", "0") not in ("0", "false")


def _answer(status: str, *, well: bool, results: Sequence[CheckResult] | None = None) -> flask.Response:
    body: dict[str, object] = {"status": status}
    if results is not None:
        body["checks"] = {
            result.name: {"state": result.state, "critical": result.critical, "milliseconds": result.milliseconds}
            for result in results
        }
    response = flask.jsonify(body)
    response.status_code = 200 if well else 503
    response.headers["Cache-Control"] = "no-store"
    return response
