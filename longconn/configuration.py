"""What a `gunicorn.conf.py` tells the worker beyond settings: `longconn.configure(...)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Hooks", "configure", "hooks"]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What is called in the worker at turning points. All run in a greenlet of their own time, and may block."""

    on_drain: Callable[[Any], object] | None = None
    """`on_drain(worker)`: the worker has been told to leave, and still serves: deregister it from wherever it is known.
    `worker.replaced` says whether another takes its place."""
    on_listening_closed: Callable[[Any], object] | None = None
    """`on_listening_closed(worker)`: nobody can connect any more; requests in flight go on."""
    on_drained: Callable[[Any, float], object] | None = None
    """`on_drained(worker, seconds)`: no connection is left: give back what the process holds, within `seconds`."""
    render_refusal: Callable[[Exception, Any, Any], bytes | None] | None = None
    """`render_refusal(error, request, address)`: the answer, head and all, to what is refused without the application:
    `error` is a `longconn.errors.Refusal` or one of gunicorn's; `request` may be None. None: the worker's own page."""
    defaults: dict[str, object] = field(default_factory=dict)
    """Defaults for `longconn.Settings`; the environment overrules them."""


_hooks = Hooks()


def configure(**changes: Any) -> None:
    """Set hooks (fields of `Hooks`) from `gunicorn.conf.py`, which gunicorn reads before it forks.

    Raises `TypeError` for a name that is no hook.
    """
    global _hooks
    unknown = changes.keys() - Hooks.__dataclass_fields__.keys()
    if unknown:
        known = ", ".join(sorted(Hooks.__dataclass_fields__))
        raise TypeError(f"longconn.configure() knows {known}, not {', '.join(sorted(unknown))}")
    _hooks = replace(_hooks, **changes)


def hooks() -> Hooks:
    """The hooks in force."""
    return _hooks
