"""What the service tells the worker that hosts it (`longconn.worker.ParkingWorker`).

gunicorn.conf.py calls `configure` in the master, before it forks. The rest runs in the workers: told to stop, a worker
turns its readiness at once, goes on for `drain_delay`, closes the public listener, then the admin listener, and in the end
gives back what the process holds. A worker that is being replaced skips the delay and stays ready: others answer in its
place, and its own readiness would only mislead.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from typing import Any

import gevent

import longconn
from longconn.capacity import UNLIMITED_FILES, capacity_within
from service import lifecycle, logs, master
from service.settings import Settings

__all__ = ["configure", "connections_beside", "on_worker_booted"]

ADMIN_CONNECTIONS = 64
"""Places that the admin listener keeps for itself, however full the public one is."""

OPEN_ANYWAY = 64
"""Files that a worker has open before anybody connects."""

LINGER = 0.5
"""How long a leaving worker waits for a request on a connection that has none, in seconds. One may be on its way."""

OURS = "LONGCONN_RESERVED_LISTENERS"


def configure(
    settings: Settings,
    *,
    idle_timeout: int,
    max_connections: int,
    environ: Mapping[str, str] = os.environ,
) -> longconn.Settings:
    """Set the worker's hooks and defaults, and return the settings it will run with. `environ` overrules the defaults.

    `idle_timeout` is in seconds, `max_connections` per worker. Ends the start with a message when `environ` holds a
    LONGCONN_ variable that cannot be used. A reload meets the same environment, so it does not end over one.
    """
    if environ.get(OURS):
        # Whoever comes in on a reserved listener is shown the admin surface.
        master.refuse_to_start(f"{OURS} must not be set: the admin listener is the one that is reserved")
    defaults: dict[str, object] = {
        "idle_timeout": float(idle_timeout),
        "max_connections": max_connections,
        "drain_delay": settings.drain_delay,
        "linger": LINGER,
        # By port alone: the host may be a name, which the socket does not know.
        "reserved_listeners": (f":{settings.admin_port}",),
        "reserved_connections": max(1, min(ADMIN_CONNECTIONS, max_connections - 1)),
        "channels": settings.channel_place,
    }
    try:
        in_force = longconn.Settings.from_environment(environ, defaults=defaults)
    except longconn.SettingsError as error:
        master.refuse_to_start("\n  ".join(error.problems))
    longconn.configure(on_drain=_on_drain, on_drained=_on_drained, render_refusal=_render_refusal, defaults=defaults)
    return in_force


def connections_beside(settings: Settings) -> int:
    """How many connections a worker can hold beside the files that the service itself may open in it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = UNLIMITED_FILES if hard == resource.RLIM_INFINITY else hard
    own = settings.database_pool_size + settings.backend_connections * len(settings.backends)
    return max(2, capacity_within(files, OPEN_ANYWAY + ADMIN_CONNECTIONS + own).connections)


def on_worker_booted(worker: Any) -> None:
    """For gunicorn's `post_worker_init`: the application is there, nobody is served yet."""
    logs.log_greenlet_crashes(gevent.get_hub())
    start = getattr(worker.wsgi, "on_worker_booted", None)  # other applications have none
    if start is not None:
        start()


def _on_drain(worker: Any) -> None:
    if not worker.replaced:
        lifecycle.process.start_draining()


def _on_drained(_worker: Any, seconds: float) -> None:
    lifecycle.process.shut_down(budget=seconds)


def _render_refusal(error: BaseException, request: Any, address: Any) -> bytes:
    from service.problems import refusal  # not sooner: the master imports this module and must not import Flask

    return refusal(error, request, address)
