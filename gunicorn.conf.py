"""gunicorn's side of the service. Every name here that gunicorn knows is one of its settings.

What the service knows comes from its own settings, what the worker knows from LONGCONN_ variables (`longconn.Settings`).
What only gunicorn knows comes from the environment variables KEEPALIVE, WORKER_TIMEOUT, WORKER_CONNECTIONS, MAX_REQUESTS,
MAX_REQUESTS_JITTER and BACKLOG. GUNICORN_CMD_ARGS and the command line overrule this file.
"""

from __future__ import annotations

import logging
import math
import os
from typing import Any

from service import hosting, logs, master
from service.processors import available_processors

settings = master.load_settings()
logs.configure(level=settings.log_level, style=settings.log_format)
logging.captureWarnings(capture=True)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


wsgi_app = "service.wsgi:app"
proc_name = "seawall"
bind = [_address(settings.host, settings.port), _address(settings.host, settings.admin_port)]
backlog = master.whole_number("BACKLOG", 4096, least=1)

workers = settings.web_concurrency or available_processors()
worker_class = "longconn.worker.ParkingWorker"
worker_connections = master.whole_number("WORKER_CONNECTIONS", hosting.connections_beside(settings), least=2)

# Longer than the idle time of balancers (60 s is usual), so that it is they who close: a request that meets a close
# is lost.
keepalive = master.whole_number("KEEPALIVE", 65, least=1)
parking = hosting.configure(settings, idle_timeout=keepalive, max_connections=worker_connections)
# A worker whose loop stands still for this long is killed. Requests have a timeout of their own.
timeout = master.whole_number("WORKER_TIMEOUT", 30, least=2)
graceful_timeout = math.ceil(parking.drain_delay + settings.graceful_timeout)
max_requests = master.whole_number("MAX_REQUESTS", 0)
max_requests_jitter = master.whole_number("MAX_REQUESTS_JITTER", max_requests // 10)

# A caller on this machine, or a proxy that passes everything on, must not move the root of the paths with SCRIPT_NAME.
forwarder_headers = ""

# No preload: the application is imported in each worker, after gevent has patched it.
preload_app = False
control_socket_disable = True
# A worker shows that it lives by touching a file, which must not wait for a disk.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - memory, not a temporary folder

accesslog = None  # the service writes its own
errorlog = "-"
loglevel = settings.log_level
logger_class = "service.logs.GunicornLogger"

post_worker_init = hosting.on_worker_booted


def on_starting(_server: Any) -> None:
    """Make the folder in which workers meet."""
    master.open_peer_directory()


def nworkers_changed(_server: Any, count: int, _before: int | None) -> None:
    """However it was: by the configuration, the command line, or a signal."""
    master.expect_workers(count)


def on_exit(_server: Any) -> None:
    """Leave nothing behind."""
    master.remove_peer_directory()
