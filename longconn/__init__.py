"""Long connections for Flask under gunicorn and gevent: a worker that parks what waits, at almost no cost.

    gunicorn -k longconn.worker.ParkingWorker application:app

Settings come from `LONGCONN_*` variables (`Settings`); a `gunicorn.conf.py` may add hooks with `configure`. What took over
a connection from HTTP is an `Endpoint` (see `longconn.upgraded`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longconn.configuration import Hooks, configure
from longconn.errors import LongConnError, Refusal
from longconn.settings import Settings, SettingsError

if TYPE_CHECKING:
    from longconn.upgraded import HANDLED, Endpoint, UpgradedConnection, UpgradeError

__all__ = [
    "HANDLED",
    "Endpoint",
    "Hooks",
    "LongConnError",
    "Refusal",
    "Settings",
    "SettingsError",
    "UpgradeError",
    "UpgradedConnection",
    "configure",
]

_LATER = frozenset({"HANDLED", "Endpoint", "UpgradeError", "UpgradedConnection"})


def __getattr__(name: str) -> Any:
    # These need gevent, which a gunicorn.conf.py must not import before the worker has patched the process.
    if name in _LATER:
        from longconn import upgraded

        return getattr(upgraded, name)
    raise AttributeError(f"module 'longconn' has no attribute {name!r}")
