"""gunicorn's side of the service. Every name here that gunicorn knows is one of its settings.

What the service knows comes from its own settings; what only gunicorn knows comes from the environment variables
KEEPALIVE, SEND_TIMEOUT, WORKER_TIMEOUT, WORKER_CONNECTIONS, MAX_REQUESTS, MAX_REQUESTS_JITTER and BACKLOG.
GUNICORN_CMD_ARGS and the command line overrule this file.
"""

from __future__ import annotations

import logging
import math
import os
import resource
from typing import Any

from service import logs, master
from service.processors import available_processors
from service.worker import UNLIMITED_FILES, connections_within

settings = master.load_settings()
logs.configure(level=settings.log_level, style=settings.log_format)
logging.captureWarnings(capture=True)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _file_limit() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED_FILES if hard == resource.RLIM_INFINITY else hard


wsgi_app = "service.wsgi:app"
proc_name = "seawall"
bind = [_address(settings.host, settings.port), _address(settings.host, settings.admin_port)]
backlog = master.whole_number("BACKLOG", 4096, least=1)

workers = settings.web_concurrency or available_processors()
worker_class = "service.worker.DrainingWorker"
# A connection's file, the files of its share of calls to backends, and what a worker has open anyway.
worker_connections = master.whole_number(
    "WORKER_CONNECTIONS",
    connections_within(
        _file_limit(),
        reserve=256 + settings.database_pool_size + settings.backend_connections * len(settings.backends),
    ),
    least=1,
)

# Longer than the idle time of balancers (60 s is usual), so that it is they who close: a request that meets a close
# is lost. Also bounds how long a request's head may take, so it cannot be 0.
keepalive = master.whole_number("KEEPALIVE", 65, least=1)
master.send_timeout()  # read by the workers; a bad one must end the start here
# A worker whose loop stands still for this long is killed. Requests have a timeout of their own.
timeout = master.whole_number("WORKER_TIMEOUT", 30, least=2)
graceful_timeout = math.ceil(settings.drain_delay + settings.graceful_timeout)
max_requests = master.whole_number("MAX_REQUESTS", 0)
max_requests_jitter = master.whole_number("MAX_REQUESTS_JITTER", max_requests // 10)

# gunicorn_h1c takes lines that end with a bare LF, lines that go on in the next one, and fields without a name. What two
# servers read differently lets one request hide in another.
http_parser = "python"
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


def on_starting(_server: Any) -> None:
    """Make the folder in which workers meet."""
    master.open_peer_directory()


def on_reload(_server: Any) -> None:
    """Tell the workers there are that they are about to be replaced."""
    master.announce_reload()


def on_exit(_server: Any) -> None:
    """Leave nothing behind."""
    master.remove_peer_directory()
