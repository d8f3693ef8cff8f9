"""Who is compared: how each server is started for the same Flask application, and Gin for what Go does."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass

from bench.worker.equipment import Equipment

__all__ = ["GIN", "OURS", "STOCK", "Contender", "contenders", "gunicorn"]

OURS = "ParkingWorker"
STOCK = "gunicorn gevent"
GIN = "Gin"
APPLICATION = "bench.worker.application:application"

WORKER_CONNECTIONS = 19_000
"""What a process with 20,000 descriptors can hold with some left for itself."""

BJOERN = "import sys, bjoern; from bench.worker.application import application as app; "
BJOERN += "bjoern.run(app, '127.0.0.1', int(sys.argv[1]))"
UWSGI = ("--master", "--need-app", "--die-on-term", "--disable-logging", "--listen", "1024", "--module", APPLICATION)


@dataclass(frozen=True, slots=True)
class Contender:
    """A server. `command(port, workers)` is how it is started; `missing` says why it cannot be."""

    name: str
    command: Callable[[int, int], list[str]]
    missing: str = ""
    workers_fork: bool = False
    """Workers are children of the process that is started."""


def gunicorn(
    worker: str, *more: str, python: str = sys.executable, application: str = APPLICATION
) -> Callable[[int, int], list[str]]:
    """gunicorn with a worker class; the same arguments for all of them, keep-alive long enough for any measurement."""

    def command(port: int, workers: int) -> list[str]:
        return [
            *(python, "-m", "gunicorn", "--no-control-socket", "--log-level", "warning"),
            *("--worker-class", worker, "--workers", str(workers), "--bind", f"127.0.0.1:{port}"),
            *("--keep-alive", "3600", "--worker-connections", str(WORKER_CONNECTIONS), "--backlog", "4096"),
            *("--timeout", "120", "--graceful-timeout", "2", *more, application),
        ]

    return command


def contenders(equipment: Equipment) -> dict[str, Contender]:
    """All of them by name, ours first."""
    peers_python = equipment.program("python")

    def uwsgi(*more: str) -> Callable[[int, int], list[str]]:
        return lambda port, workers: [
            *(equipment.program("uwsgi"), *UWSGI, "--processes", str(workers)),
            *(part.replace("{address}", f"127.0.0.1:{port}") for part in more),
        ]

    def granian(threads: int) -> Callable[[int, int], list[str]]:
        return lambda port, workers: [
            *(equipment.program("granian"), "--interface", "wsgi", "--http", "1", "--workers", str(workers)),
            *("--blocking-threads", str(threads), "--backlog", "4096", "--log-level", "warning"),
            *("--host", "127.0.0.1", "--port", str(port), APPLICATION),
        ]

    def waitress(threads: int) -> Callable[[int, int], list[str]]:
        return lambda port, _workers: [
            *(equipment.program("waitress-serve"), f"--listen=127.0.0.1:{port}", f"--threads={threads}"),
            APPLICATION,
        ]

    uwsgi_lacks, granian_lacks, waitress_lacks = (equipment.lacks(name) for name in ("uwsgi", "granian", "waitress"))
    found = [
        Contender(OURS, gunicorn("longconn.worker.ParkingWorker"), _lacks_worker(), workers_fork=True),
        Contender(STOCK, gunicorn("gevent"), workers_fork=True),
        Contender("gunicorn gevent_pywsgi", gunicorn("gevent_pywsgi"), workers_fork=True),
        Contender("gunicorn gthread, 16 threads", gunicorn("gthread", "--threads", "16"), workers_fork=True),
        Contender("gunicorn gthread, 64 threads", gunicorn("gthread", "--threads", "64"), workers_fork=True),
        Contender("gunicorn sync (closes every connection)", gunicorn("sync"), workers_fork=True),
        Contender(
            "gunicorn tornado",
            gunicorn("tornado", python=peers_python),
            equipment.lacks("tornado", "gunicorn"),
            workers_fork=True,
        ),
        Contender("granian, 1 thread", granian(1), granian_lacks),
        Contender("granian, 16 threads", granian(16), granian_lacks),
        Contender("uWSGI, 8 threads", uwsgi("--http11-socket", "{address}", "--threads", "8"), uwsgi_lacks),
        Contender("uWSGI, 64 threads", uwsgi("--http11-socket", "{address}", "--threads", "64"), uwsgi_lacks),
        Contender(
            "uWSGI behind its router, 8 threads",
            uwsgi("--http", "{address}", "--http-keepalive", "--http-auto-chunked", "--threads", "8"),
            uwsgi_lacks,
        ),
        Contender(
            # With `--http11-socket` its gevent loop answers nobody.
            "uWSGI gevent (closes every connection)",
            uwsgi("--http-socket", "{address}", "--gevent", "256", "--gevent-monkey-patch"),
            uwsgi_lacks,
        ),
        Contender(
            "uWSGI gevent behind its router",
            uwsgi(
                "--http",
                "{address}",
                "--http-keepalive",
                "--http-auto-chunked",
                "--gevent",
                "256",
                "--gevent-monkey-patch",
            ),
            uwsgi_lacks,
        ),
        Contender("waitress, 4 threads", waitress(4), waitress_lacks),
        Contender("waitress, 8 threads", waitress(8), waitress_lacks),
        Contender(
            "bjoern (C, one request at a time)",
            lambda port, _workers: [peers_python, "-c", BJOERN, str(port)],
            equipment.lacks("bjoern"),
        ),
        Contender(GIN, lambda port, _workers: [equipment.built("gin"), str(port)], equipment.lacks("gin")),
    ]
    return {contender.name: contender for contender in found}


def _lacks_worker() -> str:
    try:
        found = importlib.util.find_spec("longconn.worker")
    except ModuleNotFoundError:
        found = None
    return "" if found else "this checkout has no longconn.worker"
