"""What one worker tells of its policies, and does to them, when a sibling asks or an operator has asked this one.

A message names what it wants to know in `tell` (see `PARTS`; circuits, limiters and the storage where it says nothing) and
what is to be done in `do`. Whoever names a `circuit` or a `limiter` is told of that alone. An order is carried out by every
worker where each keeps the policy for itself, and by the one that was asked (`executor`) where they share it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from resilience.adapters.peers import Message
from resilience.clock import epoch_seconds
from resilience.core.events import LimitReset
from resilience.errors import StorageUnavailable
from resilience.events import PROCESS_EVENTS
from resilience.registry import Circuit

if TYPE_CHECKING:
    from resilience.adapters.flask import Application

__all__ = ["CIRCUIT_ORDERS", "PARTS", "USUAL_PARTS", "VERSION", "Reach", "answer", "circuit_report", "reach_of"]

Reach = Literal["process", "host", "hosts"]
"""How far something is shared: not at all, by the processes of a machine, or by machines."""

T = TypeVar("T")

USUAL_PARTS: Final = ("circuits", "limiters", "storage")
"""What a message asks for that names nothing."""
VERSION: Final = 1
"""Of what workers tell each other: another one when something in it is told in another way. See `shapes.py`."""
MOST_EVENTS: Final = 200
"""Events in one answer."""

_ALL: Final = 10**9
_OF_METRICS: Final[Mapping[str, str]] = {"successful": "succeeded"}
"""What a kind of call is called here that has another name in the metrics."""
_SCALARS: Final = frozenset((str, int, float, bool))
_ASKED_FOR: Final = "reachable"
"""A record that nobody keeps, to see whether there is an answer."""

_LOG = logging.getLogger(__name__)


def _open(circuit: Circuit, ttl: float | None, said: Mapping[str, str]) -> None:
    circuit.force_open(expires_in=ttl, **said)


def _close(circuit: Circuit, ttl: float | None, said: Mapping[str, str]) -> None:
    if ttl is None:
        circuit.close(**said)
    else:
        circuit.force_closed(expires_in=ttl, **said)


CIRCUIT_ORDERS: Final[Mapping[str, Callable[[Circuit, float | None, Mapping[str, str]], None]]] = {
    "open": _open,
    "close": _close,
    "half-open": lambda circuit, _, said: circuit.half_open(**said),
    "disable": lambda circuit, ttl, said: circuit.disable(expires_in=ttl, **said),
    "metrics-only": lambda circuit, ttl, said: circuit.metrics_only(expires_in=ttl, **said),
    "reset": lambda circuit, _, said: circuit.reset(**said),
}
"""What can be done to a circuit by hand."""


def answer(application: Application, message: Message) -> dict[str, Any]:
    """Do what `message` says and tell what it asks for. Never raises an `Exception` for what went wrong with an order: the
    answer's `executed` says whether this worker carried it out, `trouble` what went wrong, `refusal` what is wrong with the
    order."""
    result: dict[str, Any] = {"version": VERSION}
    if "do" in message:
        try:
            result["executed"] = _execute(application, message)
        except ValueError as error:
            result.update(executed=False, refusal=str(error))
        except Exception as error:  # noqa: BLE001  # a storage's, a listener's, a function's of the application
            _LOG.exception("an order was not carried out: %s", message.get("do"))
            result.update(executed=False, trouble=f"{type(error).__name__}: {error}")
    for part in message.get("tell", USUAL_PARTS):
        tell = PARTS.get(part)
        if tell is not None:  # a sibling of another version may know more
            result[part] = tell(application, message)
    return result


def circuit_report(circuit: Circuit) -> dict[str, Any]:
    """A circuit's snapshot as JSON takes it, in the words of the admin endpoint.

    `since` becomes how many seconds ago that was, for clocks of machines differ; `window` is what this process has seen alone,
    so that windows can be added up; `reach` says how far the circuit is shared.
    """
    told = _plain(circuit.snapshot())
    policy = told.pop("policy", {})
    seconds, longest = told.pop("seconds", {}), told.pop("longest", {})
    window = told.pop("own_window", told.get("window", {}))
    since, uri = told.get("since"), told.pop("shared", None)
    return {
        **{name: value for name, value in told.items() if name not in policy},
        "since": None if since is None else max(0.0, epoch_seconds() - since),
        "window": window,
        "durations": {
            _OF_METRICS.get(kind, kind): {"sum": total, "max": longest.get(kind, 0.0)}
            for kind, total in seconds.items()
        },
        "uri": uri,
        "reach": reach_of(uri),
        "settings": {name: setting["value"] for name, setting in policy.items()},
        "origins": {name: setting["origin"] for name, setting in policy.items()},
    }


def reach_of(uri: str | None, *, spans_hosts: bool = True) -> Reach:
    """How far what is kept at `uri` is shared; None is this process."""
    if uri is None or uri.startswith("memory:"):
        return "process"
    return "host" if uri.startswith("shm:") or not spans_hosts else "hosts"


def _plain(value: Any) -> Any:
    if value is None or type(value) in _SCALARS:
        return value  # nearly everything is
    if hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return value


# -- orders ------------------------------------------------------------------------------------------------------------


def _execute(application: Application, message: Message) -> bool:
    action = str(message["do"])
    if "circuit" in message:
        return _move_circuit(application, str(message["circuit"]), action, message)
    if "limiter" in message:
        return _change_limiter(application, str(message["limiter"]), action, message)
    if action == "end session" and application.sessions is not None:
        application.sessions.end(str(message.get("session")), epoch_seconds())
        return True
    return False


def _move_circuit(application: Application, name: str, action: str, message: Message) -> bool:
    circuit = application.circuits().get(name)
    order = CIRCUIT_ORDERS.get(action)
    if circuit is None or order is None:
        return False
    shared = circuit_report(circuit)
    reach = "process" if shared.get("alone") else shared.get("reach", "process")
    if not _concerns(application, reach, message):
        if action == "reset":
            circuit.forget()  # another worker moves it for all; what each has counted is its own
        return False
    ttl = message.get("ttl")
    said = {"reason": str(message.get("reason", "")), "author": str(message.get("author", ""))}
    before = shared.get("generation")
    try:
        order(circuit, None if ttl is None else float(ttl), said)
    except StorageUnavailable:
        raise
    except Exception:
        if circuit_report(circuit).get("generation") == before:
            raise
        _LOG.exception("a listener of circuit %r raised", name)  # it has moved nevertheless
    return True


def _change_limiter(application: Application, name: str, action: str, message: Message) -> bool:
    if name not in application.limiters():
        return False
    author = str(message.get("author", ""))
    if action == "reset":
        key = str(message.get("key"))
        application.reset_limiter(name, key)
        if message.get("executor") == application.worker.describe():
            PROCESS_EVENTS.emit(LimitReset(policy=name, at=epoch_seconds(), key=key, author=author))
        return True
    if not _concerns(application, application.reach, message):
        return False
    reason = str(message.get("reason", ""))
    if action == "override":
        application.overrides.override(
            name,
            str(message["limits"]),
            burst=message.get("burst"),
            expires_in=float(message["ttl"]),
            reason=reason,
            author=author,
        )
        return True
    if action == "restore":
        application.overrides.restore(name, reason=reason, author=author)
        return True
    return False


def _concerns(application: Application, reach: str, message: Message) -> bool:
    """Whether an order about something that is kept within `reach` is this worker's to carry out."""
    executor, own = message.get("executor"), application.worker.describe()
    if reach == "process" or executor is None or executor == own:
        return True
    # What is kept per host is carried out on every host. Done twice there, it is the same.
    return reach == "host" and isinstance(executor, Mapping) and executor.get("host") != own["host"]


# -- what can be asked for ---------------------------------------------------------------------------------------------


def _circuits(application: Application, message: Message) -> Any:
    return [circuit_report(circuit) for _, circuit in _asked_for(application.circuits(), message.get("circuit"))]


def _asked_for(policies: Mapping[str, T], name: object) -> Iterable[tuple[str, T]]:
    """The one of that name, or all where none is named."""
    return [each for each in policies.items() if name in (None, each[0])]


def _limiters(application: Application, message: Message) -> Any:
    if "do" in message:
        with suppress(StorageUnavailable):
            application.overrides.look()  # the answer is to show what was ordered
    # Asked by a sibling there is no application context, so what the current scope says would be another's.
    return [
        {
            **_plain(limiter.snapshot(default_storage=application.storage)),
            "override": application.overrides.overridden(name),
        }
        for name, limiter in _asked_for(application.limiters(), message.get("limiter"))
    ]


def _permissions(application: Application, message: Message) -> Any:  # noqa: ARG001  # one signature for all
    """Tokens that are left under each limit that has one bucket for all."""
    found = {}
    for name, limiter in application.limiters().items():
        with suppress(StorageUnavailable):
            found[name] = limiter.available(default_storage=application.storage)
    return {name: tokens for name, tokens in found.items() if tokens is not None}


def _storage(application: Application, message: Message) -> Any:  # noqa: ARG001
    return application.storage_snapshot()._asdict()


def _state(application: Application, message: Message) -> Any:  # noqa: ARG001
    state = application.state
    try:
        state.read(_ASKED_FOR)
    except StorageUnavailable:
        is_reachable = False
    else:
        is_reachable = True
    return {"uri": state.uri, "spans_hosts": state.spans_hosts, "reachable": is_reachable}


def _events(application: Application, message: Message) -> Any:
    """`after`: the number of the last event that is known, by worker; None for the latest ones. `of` narrows them."""
    after = message.get("after")
    most = min(int(message.get("most", MOST_EVENTS)), MOST_EVENTS)
    last = PROCESS_EVENTS.last  # read first: what comes meanwhile is for the next time
    known = 0 if after is None else int(after.get(str(application.worker), 0))
    # A number from the future is that of an earlier process with this id.
    entries = PROCESS_EVENTS.since(known if known <= last else 0, most=_ALL)
    entries = [entry for entry in entries if entry.number <= last]
    wanted = message.get("of") or {}
    chosen = [entry for entry in entries if all(getattr(entry.event, name) == wanted[name] for name in wanted)]
    if len(chosen) > most:
        chosen = chosen[-most:] if after is None else chosen[:most]
        last = chosen[-1].number
    return {"last": last, "entries": [{"number": each.number, **each.event.describe()} for each in chosen]}


def _audit(application: Application, message: Message) -> Any:  # noqa: ARG001
    if application.attempts is not None:
        application.attempts.tell()
    return [{"number": each.number, **each.entry.describe()} for each in application.audit.entries()]


PARTS: Final[Mapping[str, Callable[[Application, Message], Any]]] = {
    "circuits": _circuits,
    "limiters": _limiters,
    "permissions": _permissions,
    "storage": _storage,
    "state": _state,
    "events": _events,
    "audit": _audit,
}
"""What a worker can be asked for."""
