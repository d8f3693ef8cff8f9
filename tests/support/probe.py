"""The service with views that show what its worker does, and a watch on its event loop.

A ticker in each worker records the largest gap between two of its ticks in the
file ``<PROBE_DIRECTORY>/<pid>.json``; writing a new word into ``<PROBE_DIRECTORY>/epoch`` starts the record anew.
"""

from __future__ import annotations

import contextvars
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import gevent
import structlog

from service.routes.access import public
from service.wsgi import app

__all__ = ["app"]

TICK = 0.01

_seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")
_in_flight = 0


def _watch(folder: Path) -> None:
    epoch, largest, last = "", 0.0, time.perf_counter()
    report = folder / f"{os.getpid()}.json"
    while True:
        now = time.perf_counter()
        gap, last = now - last - TICK, now
        current = _read(folder / "epoch")
        if current != epoch:
            epoch, gap, largest = current, 0.0, -1.0
        if gap > largest:
            largest = gap
            partial = report.with_suffix(".partial")
            partial.write_text(json.dumps({"epoch": epoch, "largest_gap": largest}))
            partial.rename(report)
            last = time.perf_counter()
        gevent.sleep(TICK)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


@app.get("/probe/slow")
@public
def slow() -> dict[str, Any]:
    """Wait for `seconds`."""
    global _in_flight
    _in_flight += 1
    try:
        gevent.sleep(float(flask.request.args["seconds"]))
    finally:
        _in_flight -= 1
    return {"pid": os.getpid()}


@app.get("/probe/large")
@public
def large() -> flask.Response:
    """More than the buffers between here and a client hold."""
    return flask.Response(bytes(64 * 1024 * 1024), mimetype="application/octet-stream")


@app.get("/probe/in_flight")
@public
def in_flight() -> dict[str, int]:
    """How many `slow` requests this worker has at the moment."""
    return {"in_flight": _in_flight, "pid": os.getpid()}


@app.get("/probe/context")
@public
def context() -> dict[str, Any]:
    """What an earlier request left in the context, and leave something."""
    left, bound = _seen.get(), structlog.contextvars.get_contextvars()
    _seen.set("something")
    structlog.contextvars.bind_contextvars(left_behind=True)
    return {"left": left, "bound": sorted(bound), "pid": os.getpid()}


@app.get("/probe/stream")
@public
def stream() -> flask.Response:
    """Send a byte every `pause` seconds, `count` times."""
    pause, count = float(flask.request.args["pause"]), int(flask.request.args["count"])

    def body() -> Iterator[bytes]:
        for _ in range(count):
            yield b"x"
            gevent.sleep(pause)

    return flask.Response(body())


@app.get("/probe/crash")
@public
def crash() -> str:
    """Lose a greenlet."""
    gevent.spawn(lambda: 1 / 0)
    gevent.sleep(0)
    return ""


@app.get("/probe/fault")
@public
def fault() -> str:
    """Fail unexpectedly."""
    raise RuntimeError("SELECT password FROM users")


@app.post("/probe/echo")
@public
def echo() -> Any:
    """The JSON that was sent."""
    return flask.jsonify(flask.request.get_json())


if "PROBE_DIRECTORY" in os.environ:
    gevent.spawn(_watch, Path(os.environ["PROBE_DIRECTORY"]))
