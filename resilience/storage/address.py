"""From an address to a storage."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import get_args
from urllib.parse import parse_qsl

from resilience.ports import LimitStorage
from resilience.storage.denials import RememberedDenials
from resilience.storage.forms import FORMS, SERVER_KINDS, require_one_server
from resilience.storage.leases import LeasingStorage
from resilience.storage.memory import MemoryStorage
from resilience.storage.standin import OnStoreFailure, StandInStorage

__all__ = ["open_storage"]

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


def open_storage(
    uri: str,
    *,
    on_store_failure: OnStoreFailure = "local",
    timeout: float = 0.05,
    namespace: str = "seawall",
    workers: int | None = None,
) -> LimitStorage:
    """The storage at `uri`, one of `FORMS`. A shared one comes with a stand-in that decides while it is down.

    `on_store_failure` says how the stand-in decides: "local" enforces the same limits in this process, divided by
    `workers` (how many processes share the traffic; None takes the environment's WEB_CONCURRENCY, or 1), "allow" lets
    everything pass, "deny" nothing. `timeout` bounds every decision of a server, in seconds. `namespace` starts every key:
    services that share a server and must not share buckets need one each.

    Opens no connection yet. Raises `ValueError` naming the accepted forms, never a password, and `ImportError` naming the
    extra to install when the redis client is missing.
    """
    if on_store_failure not in get_args(OnStoreFailure):
        raise ValueError(f"on_store_failure={on_store_failure!r}: choose one of {', '.join(get_args(OnStoreFailure))}")
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme == "memory":
        return _memory(uri)
    if scheme == "shm":
        primary = _shared_memory(uri)
    elif scheme in SERVER_KINDS:
        primary = _server(uri, scheme, timeout=timeout, namespace=namespace)
    else:
        # Not the whole address: it may hold a password.
        shown = repr(scheme) if _SCHEME.fullmatch(scheme) else "an address without a scheme"
        raise ValueError(f"{shown} is no storage: use one of {', '.join(FORMS)}")
    return StandInStorage(primary, on_store_failure=on_store_failure, workers=_workers(workers))


def _workers(workers: int | None) -> int:
    if workers is None:
        stated = os.environ.get("WEB_CONCURRENCY", "")
        return int(stated) if re.fullmatch(r"[1-9][0-9]{0,4}", stated) else 1
    if workers < 1:
        raise ValueError(f"workers={workers!r}: at least one process shares the traffic")
    return workers


def _memory(uri: str) -> MemoryStorage:
    place, _, query = uri.removeprefix("memory://").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    buckets = options.pop("buckets", None)
    if place or options or not re.fullmatch(r"[1-9][0-9]{0,9}", buckets or "1"):
        raise ValueError(f"memory:// address: write {FORMS[0]} with N, the most buckets kept, from 1")
    return MemoryStorage() if buckets is None else MemoryStorage(size=int(buckets))


def _shared_memory(uri: str) -> LimitStorage:
    from resilience.storage.shm import SharedMemoryStorage

    return SharedMemoryStorage(uri)


def _server(uri: str, scheme: str, *, timeout: float, namespace: str) -> LimitStorage:
    if not SERVER_KINDS[scheme]:
        require_one_server(uri, scheme)
    try:
        opened = _opener(scheme)(uri, timeout=timeout, namespace=namespace)
    except ModuleNotFoundError as error:
        raise ImportError(f"{scheme}:// needs the redis client: install seawall[redis]") from error
    return LeasingStorage(RememberedDenials(opened))


def _opener(scheme: str) -> Callable[..., LimitStorage]:
    kind = SERVER_KINDS[scheme]
    if kind == "+sentinel":
        from resilience.storage.sentinel import RedisSentinelStorage

        return RedisSentinelStorage
    if kind == "+cluster":
        from resilience.storage.cluster import RedisClusterStorage

        return RedisClusterStorage
    from resilience.storage.redis import RedisStorage

    return RedisStorage
