"""What a limit adds to a request of Flask's: one decorated route with header fields, in memory and on Redis."""

from __future__ import annotations

import gc
import io
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import flask
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from bench.ratelimit.plan import Plan
from bench.ratelimit.rounds import at_least, at_most, in_patched_process, servers_of
from bench.worker.report import Column, Row, Section
from resilience import MemoryStorage, Resilience, rate_limit

__all__ = ["run", "run_redis"]

GENEROUS = "100000000/minute"  # nothing is denied: every decision does its whole work
PLAIN = "no limit"
OURS = "seawall: decorated route, header fields"
OURS_DEFAULT = "seawall: default limit, header fields"
OURS_BOTH = "seawall: application-wide and default limit, header fields"
THEIRS = "Flask-Limiter: decorated route, header fields"
THEIRS_DEFAULT = "Flask-Limiter: default limit, header fields"
THEIRS_BOTH = "Flask-Limiter: application-wide and default limit, header fields"
ADDED = Column("added", "us added to a request", 1)
WHOLE = Column("whole", "us a request", 1)
_BATCH = 256

Ask = Callable[[], object]


def run(plan: Plan) -> list[Section]:
    """The tables: one process in memory, and 200 greenlets on Redis."""
    applications = {
        PLAIN: plain(),
        OURS: ours(),
        OURS_DEFAULT: ours_undecorated(default_limits=GENEROUS),
        OURS_BOTH: ours_undecorated(default_limits=GENEROUS, application_limits=GENEROUS),
        THEIRS: theirs("memory://"),
        THEIRS_DEFAULT: theirs_undecorated(default_limits=[GENEROUS]),
        THEIRS_BOTH: theirs_undecorated(default_limits=[GENEROUS], application_limits=[GENEROUS]),
    }
    section = _section("A request of Flask's, limits in memory", _added(plan, applications))
    at_most(section, "in memory: added to a request of Flask's", 10, OURS, name="added")
    at_least(section, "in memory: beside Flask-Limiter", 9.6, OURS, THEIRS, name="added")
    return [section, *_on_redis(plan)]


def plain() -> flask.Flask:
    """The application without a limit."""
    app = flask.Flask("plain")
    app.get("/")(_view())
    return app


def ours(**options: Any) -> flask.Flask:
    """One route under one limit of this library's."""
    app = flask.Flask("ours")
    Resilience(app, **(options or {"storage": MemoryStorage()}))
    app.get("/")(rate_limit(GENEROUS, name="bench")(_view()))
    return app


def ours_undecorated(**limits: Any) -> flask.Flask:
    """A route without a limit of its own, under limits of the application's."""
    app = flask.Flask("ours")
    Resilience(app, storage=MemoryStorage(), **limits)
    app.get("/")(_view())
    return app


def theirs_undecorated(**limits: Any) -> flask.Flask:
    """The same under limits of Flask-Limiter's."""
    app = flask.Flask("theirs")
    Limiter(get_remote_address, app=app, headers_enabled=True, storage_uri="memory://", **limits)
    app.get("/")(_view())
    return app


def theirs(uri: str) -> flask.Flask:
    """One route under one limit of Flask-Limiter's."""
    app = flask.Flask("theirs")
    # Their default pool holds 100 connections and raises when all are in use: with 200 greenlets half the calls would fail.
    options: Any = {"max_connections": 400} if uri.startswith("redis") else {}
    limiter = Limiter(get_remote_address, app=app, headers_enabled=True, storage_uri=uri, storage_options=options)
    logging.getLogger("flask-limiter").setLevel(logging.CRITICAL)
    app.get("/")(limiter.limit(GENEROUS)(_view()))
    return app


def requester(app: flask.Flask) -> Ask:
    """Asks `app` for its one page, by WSGI: nothing of a server's and nothing of a test client's is measured."""
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "HTTP_HOST": "localhost",
        "HTTP_USER_AGENT": "bench",
        "HTTP_ACCEPT": "*/*",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    serve = app.wsgi_app

    def ask() -> None:
        for _ in serve(dict(environ), _start):
            pass

    return ask


def _start(status: str, headers: Any, *_: Any) -> Any:
    if status[0] != "2":
        raise AssertionError(f"{status}: a limit of the measurement was used up")


def _view() -> Callable[[], str]:
    def view() -> str:
        return "hello"

    return view


def _added(plan: Plan, applications: Mapping[str, flask.Flask]) -> list[Row]:
    """Batches of every application in turn, many times a round: a machine that is slower for a while is so for all."""
    requesters = {name: requester(app) for name, app in applications.items() if name == PLAIN or plan.takes(name)}
    rows = {name: Row(name) for name in requesters if name != PLAIN}
    for _ in range(plan.rounds):
        whole = _interleaved(requesters, plan.seconds * len(requesters))
        for name, row in rows.items():
            row.rounds.append({"whole": whole[name], "added": whole[name] - whole[PLAIN]})
    return list(rows.values())


def _interleaved(requesters: Mapping[str, Ask], seconds: float) -> dict[str, float]:
    """Microseconds of this process a request of each: the median of its batches. Nothing waits for anything here, and what
    neighbours on the machine take is not counted."""
    figures: dict[str, list[float]] = {name: [] for name in requesters}
    gc.collect()
    gc.disable()
    try:
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or not all(figures.values()):
            for name, ask in requesters.items():
                started = time.process_time()
                for _ in range(_BATCH):
                    ask()
                figures[name].append((time.process_time() - started) / _BATCH * 1e6)
            gc.collect()
    finally:
        gc.enable()
    return {name: statistics.median(batches) for name, batches in figures.items()}


def _section(title: str, rows: list[Row]) -> Section:
    against = rows[0].contender if rows else ""
    return Section(title, [ADDED, WHOLE], rows, compared="added", against=against)


def _on_redis(plan: Plan) -> list[Section]:
    from tests.support.redis_server import running_redis

    sections = []
    for name, program in servers_of(plan).items():
        with running_redis(program) as server:
            rows = [Row(contender) for contender in (OURS, THEIRS) if plan.takes(contender)]
            for _ in range(plan.rounds):
                figures = in_patched_process(
                    "bench.ratelimit.flask:run_redis",
                    server.uri,
                    plan.greenlets,
                    plan.seconds,
                    [row.contender for row in rows],
                )
                for row in rows:
                    row.rounds.append(figures[row.contender])
        section = _section(f"A request of Flask's, limits on {name}, {plan.greenlets} greenlets", rows)
        where = f"on {name}, {plan.greenlets} greenlets"
        at_most(section, f"{where}: added to a request of Flask's", 20, OURS, name="added")
        at_least(section, f"{where}: beside Flask-Limiter", 20.75, OURS, THEIRS, name="added")
        sections.append(section)
    return sections


def run_redis(uri: str, greenlets: int, seconds: float, contenders: list[str]) -> dict[str, dict[str, float]]:
    """Microseconds a request, all greenlets together, of each contender. Only in a process that gevent patched."""
    applications = {PLAIN: plain}
    if OURS in contenders:
        applications[OURS] = lambda: ours(storage_uri=uri, storage_timeout=2.0)
    if THEIRS in contenders:
        applications[THEIRS] = lambda: theirs(uri)
    requesters = {name: requester(make()) for name, make in applications.items()}
    figures: dict[str, list[float]] = {name: [] for name in requesters}
    for ask in requesters.values():
        _crowd(ask, greenlets, seconds / 10)
    for _ in range(5):
        for name, ask in requesters.items():
            figures[name].append(_crowd(ask, greenlets, seconds / 5))
    whole = {name: statistics.median(batches) for name, batches in figures.items()}
    return {name: {"whole": whole[name], "added": whole[name] - whole[PLAIN]} for name in requesters if name != PLAIN}


def _crowd(ask: Ask, greenlets: int, seconds: float) -> float:
    import gevent

    asked = [0]
    started = time.perf_counter()
    deadline = started + seconds

    def repeat() -> None:
        while time.perf_counter() < deadline:
            ask()
            asked[0] += 1

    gevent.joinall([gevent.spawn(repeat) for _ in range(greenlets)], raise_error=True)
    return (time.perf_counter() - started) / asked[0] * 1e6
