"""Long connections for Flask under gunicorn and gevent: a worker that parks what waits, at almost no cost.

    gunicorn -k longconn.worker.ParkingWorker application:app

Settings come from `LONGCONN_*` variables (`Settings`); a `gunicorn.conf.py` may add hooks with `configure`. `WebSockets` parks
its connections between messages, `Sock` blocks and has flask-sock's names; `event_stream` and `long_poll` answer with what is
published on a channel (`Channels`). Any other protocol takes a connection over from HTTP by an `Endpoint` (see
`longconn.upgraded`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from longconn.configuration import Hooks, configure
from longconn.errors import LongConnError, Refusal
from longconn.settings import Settings, SettingsError

if TYPE_CHECKING:
    from longconn.adapters.event_streams import event_stream, long_poll
    from longconn.adapters.sock import ConnectionClosed, ConnectionError, Sock  # noqa: A004 - flask-sock's name
    from longconn.adapters.websockets import WebSockets
    from longconn.channels.errors import ChannelError, ChannelForbidden, ChannelNameError
    from longconn.channels.hub import Channels
    from longconn.channels.ports import History, HistoryLimits, Message, Position
    from longconn.identity import Identity
    from longconn.upgraded import HANDLED, Endpoint, UpgradedConnection, UpgradeError

__all__ = [
    "HANDLED",
    "ChannelError",
    "ChannelForbidden",
    "ChannelNameError",
    "Channels",
    "ConnectionClosed",
    "ConnectionError",
    "Endpoint",
    "History",
    "HistoryLimits",
    "Hooks",
    "Identity",
    "LongConnError",
    "Message",
    "Position",
    "Refusal",
    "Settings",
    "SettingsError",
    "Sock",
    "UpgradeError",
    "UpgradedConnection",
    "WebSockets",
    "configure",
    "event_stream",
    "long_poll",
]

_LATER = {
    # These need gevent, which a gunicorn.conf.py must not import before the worker has patched the process,
    "HANDLED": "upgraded",
    "Endpoint": "upgraded",
    "UpgradeError": "upgraded",
    "UpgradedConnection": "upgraded",
    # and these Flask, which an application of another framework need not have.
    "ChannelError": "channels.errors",
    "ChannelForbidden": "channels.errors",
    "ChannelNameError": "channels.errors",
    "Channels": "channels.hub",
    "ConnectionClosed": "adapters.sock",
    "ConnectionError": "adapters.sock",
    "History": "channels.ports",
    "HistoryLimits": "channels.ports",
    "Identity": "identity",
    "Message": "channels.ports",
    "Position": "channels.ports",
    "Sock": "adapters.sock",
    "WebSockets": "adapters.websockets",
    "event_stream": "adapters.event_streams",
    "long_poll": "adapters.event_streams",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"longconn.{_LATER[name]}"), name)
    raise AttributeError(f"module 'longconn' has no attribute {name!r}")
