"""From an address to a storage."""

from __future__ import annotations

from typing import get_args
from urllib.parse import urlsplit

from resilience.ports import LimitStorage
from resilience.storage.memory import MemoryStorage
from resilience.storage.standin import OnFailure, StandInStorage

__all__ = ["open_storage"]

_REDIS_SCHEMES = frozenset({"redis", "rediss", "redis+unix", "unix", "valkey", "valkeys", "valkey+unix"})


def open_storage(
    uri: str,
    *,
    on_failure: OnFailure = "local",
    timeout: float = 0.1,
    connections: int = 32,
    namespace: str = "seawall",
) -> LimitStorage:
    """The storage at `uri`: `memory://`, or a Redis-compatible server behind a stand-in that decides while it is down.

    `timeout` (seconds), `connections` and `namespace` are those of `RedisStorage`: services that share a server and must
    not share buckets need a namespace each. Opens no connection yet. Raises `ValueError` naming the accepted schemes, and
    `ImportError` naming the extra to install when the redis client is missing.
    """
    if on_failure not in get_args(OnFailure):
        raise ValueError(f"on_failure={on_failure!r}: choose one of {', '.join(get_args(OnFailure))}")
    scheme = urlsplit(uri).scheme
    if scheme == "memory":
        return MemoryStorage()
    if scheme not in _REDIS_SCHEMES:
        # Not the whole address: it may hold a password.
        raise ValueError(f"{scheme!r} is no storage: use memory:// or one of {', '.join(sorted(_REDIS_SCHEMES))}")
    try:
        from resilience.storage.redis import RedisStorage
    except ImportError as error:
        raise ImportError(f"{scheme}:// needs the redis client: install seawall[redis]") from error
    return StandInStorage(
        RedisStorage(uri, timeout=timeout, connections=connections, namespace=namespace), on_failure=on_failure
    )
