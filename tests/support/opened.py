"""What a test has opened, closed when it is over. Each thread has its own."""

from __future__ import annotations

import threading
from typing import Protocol, TypeVar

__all__ = ["close_opened", "opened"]


class Closable(Protocol):
    """What can be closed more than once."""

    def close(self) -> object: ...


T = TypeVar("T", bound=Closable)
_of_thread = threading.local()


def opened(what: T) -> T:
    """Have it closed when the test is over."""
    if not hasattr(_of_thread, "all"):
        _of_thread.all = []
    _of_thread.all.append(what)
    return what


def close_opened() -> None:
    """Close all that this thread has opened."""
    while getattr(_of_thread, "all", None):
        _of_thread.all.pop().close()
