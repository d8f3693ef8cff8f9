"""`redis://` and `valkey://`: buckets shared by every process that names the same server. One script call a decision.

Written for Redis 6.2 and later and Valkey. The server's clock decides, so that workers need not agree on the time.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from resilience.core.limiter import Charge, Decision, Quota
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.ports import Clock
from resilience.storage.places import Places

__all__ = ["RedisStorage"]

_PLAIN_SUBJECT = re.compile(r"[A-Za-z0-9_.:@/-]{1,96}")
_SCRIPT = importlib.resources.files("resilience.storage").joinpath("lua/token_bucket.lua").read_text(encoding="utf-8")


class RedisStorage:
    """Buckets on a Redis-compatible server.

    `uri` is a `redis://`, `rediss://`, `redis+unix://` (socket path and `?db=`) or `valkey://` address. `timeout` bounds
    connecting and every answer, in seconds. `connections` bounds how many connections the process opens; a caller that
    finds all in use waits up to `patience` seconds for one, as long as the server answers others, and raises
    `StorageBusy` then. `namespace` starts every key. A decision is never tried again after
    a timeout: the server may have taken the tokens already.

    Every key carries a time to live and is bounded in length: a caller's key of unusual characters or of more than 96
    bytes is stored as its BLAKE2b hash. `clock` replaces the server's clock, for tests.
    """

    def __init__(
        self,
        uri: str,
        *,
        timeout: float = 0.1,
        connections: int = 32,
        patience: float = 1.0,
        namespace: str = "seawall",
        clock: Clock | None = None,
    ) -> None:
        self.uri = _without_credentials(uri)
        self._namespace = namespace
        self._clock = clock
        self._patience = patience
        # Waiting for a place here and not in the pool: a crowd of callers is no sign that the server is in trouble.
        self._places = Places(connections)
        self._failures = 0
        self._pool = redis.ConnectionPool.from_url(
            _client_address(uri),
            max_connections=connections,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            # redis-py 8 tries a client made from a host name ten times, with growing waits: 3.5 s while nobody listens. One
            # made from an address it does not, for now.
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
        )
        self._client = redis.Redis(connection_pool=self._pool)
        # EVALSHA, and SCRIPT LOAD on NOSCRIPT: the script cache does not survive a restart or a failover.
        self._script = self._client.register_script(_SCRIPT)

    def __repr__(self) -> str:
        return f"<RedisStorage: {self.uri}>"

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Take every charge or none. Raises `StorageUnavailable` when the server did not decide in time."""
        keys = [self._key(charge.scope, charge.subject) for charge in charges]
        arguments: list[str | int] = ["" if self._clock is None else self._clock.microseconds()]
        for _, _, limit, cost in charges:
            arguments += (limit.capacity, limit.refill, limit.unit, limit.tick, cost * limit.unit)
        failures = self._failures
        if not self._places.acquire(timeout=self._patience):
            raise StorageBusy(f"{self.uri}: all connections of this process were in use for {self._patience:g} s")
        try:
            if failures != self._failures:  # those ahead in the line have just found out
                raise StorageUnavailable(f"{self.uri} did not decide")
            allowed, *levels = self._script(keys=keys, args=arguments)
        except (redis.RedisError, OSError) as error:
            self._failures += 1
            raise StorageUnavailable(f"{self.uri} did not decide: {error}") from error
        finally:
            self._places.release()
        quotas = tuple(
            Quota(charge.limit, int(level), charge.cost) for charge, level in zip(charges, levels, strict=True)
        )
        return Decision(allowed == 1, quotas)

    def _key(self, scope: str, subject: str) -> str:
        # The subject is the hash tag: all limits of one caller share a slot of a cluster.
        if not _PLAIN_SUBJECT.fullmatch(subject):
            subject = "#" + hashlib.blake2b(subject.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return f"{self._namespace}:limit:{{{subject}}}:{scope}"

    def close(self) -> None:
        """Close the pooled connections. The next decision opens new ones."""
        self._pool.disconnect()


def _client_address(uri: str) -> str:
    """The address in the notation of redis-py."""
    scheme, separator, rest = uri.partition("://")
    names = {"valkey": "redis", "valkeys": "rediss", "redis+unix": "unix", "valkey+unix": "unix"}
    return names.get(scheme, scheme) + separator + rest


def _without_credentials(uri: str) -> str:
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
