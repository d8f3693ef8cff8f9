"""Who is compared: Seawall's styles, flask-sock on the servers it is used with, and gorilla/websocket for what Go does."""

from __future__ import annotations

from collections.abc import Mapping

from bench.worker.contenders import Contender, gunicorn
from bench.worker.equipment import Equipment

__all__ = [
    "BLOCKING",
    "BLOCKING_STOCK",
    "EVENTS",
    "GIN",
    "GIN_EVENTS",
    "OURS",
    "PATHS",
    "STOCK",
    "STOCK_EVENTS",
    "THREADS",
    "VARIABLES",
    "contenders",
]

OURS = "event style"
BLOCKING = "blocking style"
BLOCKING_STOCK = "blocking style, stock gunicorn gevent"
EVENTS = "event_stream"
STOCK = "flask-sock, stock gunicorn gevent"
THREADS = "flask-sock, gunicorn gthread, 100 threads"
STOCK_EVENTS = "a generator, stock gunicorn gevent"
GIN = "Gin and gorilla/websocket"
GIN_EVENTS = "Gin, a goroutine for each stream"

PARKING = "longconn.worker.ParkingWorker"
MINE = "bench.websocket.applications.ours:application"
THEIRS = "bench.websocket.applications.theirs:application"

PATHS: Mapping[str, Mapping[str, str]] = {
    OURS: {"idle": "/hub", "echo": "/echo", "hub": "/hub"},
    BLOCKING: {"idle": "/blocking", "echo": "/blocking"},
    BLOCKING_STOCK: {"echo": "/blocking"},
    EVENTS: {"idle": "/events"},
    STOCK: {"idle": "/hub", "echo": "/echo", "hub": "/hub"},
    THREADS: {"echo": "/echo"},
    STOCK_EVENTS: {"idle": "/events"},
    GIN: {"idle": "/hub", "echo": "/echo", "hub": "/hub"},
    GIN_EVENTS: {"idle": "/events"},
}
"""Where each has what a part asks for."""

VARIABLES = {"LONGCONN_CHANNELS": "seawall-bench", "LONGCONN_IDLE_TIMEOUT": "3600"}
"""What every server finds in its environment; only the parking worker looks."""


def contenders(equipment: Equipment) -> dict[str, Contender]:
    """All of them by name, ours first."""
    parked = gunicorn(PARKING, application=MINE)
    gevent = gunicorn("gevent", application=THEIRS)
    lacks_go = equipment.lacks("gorilla")
    found = [
        Contender(OURS, parked, workers_fork=True),
        Contender(BLOCKING, parked, workers_fork=True),
        Contender(BLOCKING_STOCK, gunicorn("gevent", application=MINE), workers_fork=True),
        Contender(EVENTS, parked, workers_fork=True),
        Contender(STOCK, gevent, workers_fork=True),
        Contender(THREADS, gunicorn("gthread", "--threads", "100", application=THEIRS), workers_fork=True),
        Contender(STOCK_EVENTS, gevent, workers_fork=True),
        Contender(GIN, lambda port, _workers: [equipment.built("gorilla"), str(port)], lacks_go),
        Contender(GIN_EVENTS, lambda port, _workers: [equipment.built("gorilla"), str(port)], lacks_go),
    ]
    return {contender.name: contender for contender in found}
