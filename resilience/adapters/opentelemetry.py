"""Events on the spans of OpenTelemetry: what a policy did to a call is seen in the call's trace.

    from resilience.adapters.opentelemetry import trace_events

    trace_events()  # once in a process, when it starts

Every event becomes an event of the span that is current where it happened, if that span is recorded: a circuit that opened on
the span of the call that tripped it, each refusal on the span of the refused call. What happens between calls, such as the
news that another host opened the circuit, has no span and is left out. Needs `opentelemetry-api` (seawall[tracing]).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Final

from resilience.core.events import EVENT_TYPES, CallSucceeded, PolicyEvent
from resilience.events import PROCESS_EVENTS

__all__ = ["trace_events"]

_PREFIX: Final = "resilience"
_TYPES: Final = tuple(each for each in EVENT_TYPES if each is not CallSucceeded)

Attributes = dict[str, str | int | float | bool]


def trace_events(*types: type[PolicyEvent], keys: bool = False) -> Callable[[], None]:
    """Add every event of these types to the current span from now on. Returns what ends that.

    Without types: all but `CallSucceeded`, which would cost every call under a circuit and tells nothing that the span does
    not. A span's event is named "resilience.<kind>.<type>", such as "resilience.circuit.state_transition"; its attributes are
    the event's fields, such as "resilience.policy" and "resilience.retry_after". `keys`: whether the keys of refused callers
    are among them (False: they may be addresses or names of people).

    Raises `ImportError` when opentelemetry-api is missing.
    """
    try:
        from opentelemetry.trace import get_current_span
    except ImportError as error:
        raise ImportError("events on spans need opentelemetry-api: install seawall[tracing]") from error

    def add(event: PolicyEvent) -> None:
        span = get_current_span()
        if span.is_recording():
            span.add_event(f"{_PREFIX}.{event.kind}.{event.type.lower()}", _attributes(event, keys=keys))

    return PROCESS_EVENTS.listen(add, *(types or _TYPES), every_refusal=True)


def _attributes(event: PolicyEvent, *, keys: bool) -> Attributes:
    """The fields of `event` that say something. A span's event has a time of its own."""
    values = {each.name: getattr(event, each.name) for each in fields(event)}
    return {
        f"{_PREFIX}.{name}": value
        for name, value in values.items()
        if value not in (None, "") and name != "at" and (keys or name != "key")
    }
