"""From an address to a storage of state: where processes keep what all of them must know at once."""

from __future__ import annotations

import math
import re

from resilience.ports import StateStorage
from resilience.storage.forms import FORMS, SERVER_KINDS, require_one_server
from resilience.storage.state_memory import MemoryStateStorage

__all__ = ["STATE_FORMS", "open_state_storage"]

STATE_FORMS = ("memory://", "shm://[name][?records=N]", "shm:///absolute/path[?records=N]", *FORMS[3:])
"""The addresses of storages of state. `valkey` may stand for `redis`; `rediss` and `valkeys` are the same under TLS."""

_OTHER_NAMES = "valkey for redis and unix for redis+unix are understood, too; rediss and valkeys speak TLS"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


def open_state_storage(uri: str, *, namespace: str = "seawall", timeout: float = 0.05) -> StateStorage:
    """The storage of state at `uri`, one of `STATE_FORMS`.

    `memory://` is this process alone, `shm://` are all processes of a machine, a server is all machines. `namespace` starts
    every name: services that share a place and must not share circuits need one each. `timeout` bounds every wait for a
    server, in seconds above 0; memory is waited for no longer than milliseconds.

    Opens nothing yet. Raises `ValueError` naming the accepted forms, never a password, and `ImportError` naming the extra
    to install when the redis client is missing.
    """
    if not (math.isfinite(timeout) and timeout > 0):
        raise ValueError(f"timeout={timeout!r}: a storage takes seconds above 0")
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme == "memory":
        if uri != "memory://":
            raise ValueError("memory:// address: nothing stands behind it, for it is this process")
        return MemoryStateStorage()
    if scheme == "shm":
        from resilience.storage.state_shm import SharedMemoryStateStorage

        return SharedMemoryStateStorage(uri, namespace=namespace)
    if scheme in SERVER_KINDS:
        return _server(uri, scheme, namespace=namespace, timeout=timeout)
    # Not the whole address: it may hold a password.
    shown = repr(scheme) if _SCHEME.fullmatch(scheme) else "an address without a scheme"
    raise ValueError(f"{shown} is no storage of state: use one of {', '.join(STATE_FORMS)}; {_OTHER_NAMES}")


def _server(uri: str, scheme: str, *, namespace: str, timeout: float) -> StateStorage:
    if not SERVER_KINDS[scheme]:
        require_one_server(uri, scheme)
    try:
        from resilience.storage.state_redis import RedisStateStorage
    except ModuleNotFoundError as error:
        raise ImportError(f"{scheme}:// needs the redis client: install seawall[redis]") from error
    return RedisStateStorage(uri, namespace=namespace, timeout=timeout)
