"""What the parts of this package need of those that hold them, so that they need not know them."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Exchanges", "Host"]


class Exchanges(Protocol):
    """What reading a head and writing an answer need of whoever serves the requests."""

    worker: Any
    cfg: Any
    settings: Any
    lot: Any
    upgrading: Any
    closing: bool
    head_ticks: int

    def exchange(self, connection: Any, request: Any, unreader: Any, rest: bytes) -> None:
        """Have `request` answered."""
        ...

    def must_close(self, connection: Any) -> bool:
        """Whether the answer that is about to be written is the last one of its connection."""
        ...

    def lend(self, connection: Any) -> Any:
        """The connection as a cooperative socket."""
        ...


class Host(Protocol):
    """What leaving, and what gunicorn's own code, need of the worker."""

    cfg: Any
    log: Any
    pid: Any
    lot: Any
    row: Any
    serving: Any
    acceptor: Any
    alive: bool
    replaced: bool
    aborting: bool

    @property
    def longconn_settings(self) -> Any:
        """The settings in force."""
        ...

    def notify(self) -> None:
        """Tell the master that this worker lives."""
        ...

    def is_replaced(self) -> bool:
        """Whether another worker takes this one's place."""
        ...

    def successors_serve(self) -> bool:
        """Whether none of those that come after this worker is still booting."""
        ...

    def handle(self, listener: Any, client: Any, address: Any) -> None:
        """gunicorn's: serve a connection to its end."""
        ...

    def handle_http2(self, listener: Any, client: Any, address: Any) -> None:
        """gunicorn's: serve an HTTP/2 connection to its end."""
        ...
