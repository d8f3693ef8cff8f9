"""One conformance suite for every storage of buckets, with the pure core as the oracle; and faults of other libraries."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import pytest
import redis

from resilience.clock import SYSTEM_CLOCK, SystemClock
from resilience.core.limiter import Charge, Decision, Limit, Refund
from resilience.errors import StorageUnavailable
from resilience.ports import Clock, LimitStorage, QuickStorage
from resilience.storage.denials import RememberedDenials
from resilience.storage.leases import LeasingStorage
from resilience.storage.memory import MemoryStorage
from resilience.storage.standin import StandInStorage
from resilience.testing import LimitStorageConformance
from tests.support.limit_storages import SERVERS, address_of, open_bare

_fresh = itertools.count()


class Unavailable:
    """A server that never answers."""

    uri = "nowhere://"

    def take(self, charges: Sequence[Charge]) -> Decision:
        raise StorageUnavailable("nowhere:// did not decide")

    def give_back(self, refunds: Sequence[Refund]) -> None:
        raise StorageUnavailable("nowhere:// did not decide")

    def close(self) -> None:
        pass


class TestMemory(LimitStorageConformance):
    """One process."""

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        return open_bare("memory", clock)


class TestSharedMemory(LimitStorageConformance):
    """All processes of a machine."""

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        return open_bare("shm", clock)


@pytest.mark.redis
class TestValkey(LimitStorageConformance):
    """The wheel's server."""

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        return open_bare("valkey", clock)


@pytest.mark.redis
class TestRedis(LimitStorageConformance):
    """Debian's server."""

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        return open_bare("redis", clock)


@pytest.mark.redis
class TestSentinel(LimitStorageConformance):
    """Whichever server the sentinels name."""

    walks = 15

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        return open_bare("sentinel", clock)


@pytest.mark.redis
class TestCluster(LimitStorageConformance):
    """Six nodes."""

    walks = 15
    one_transaction = False

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        return open_bare("cluster", clock)


# What stands in front of a storage changes no decision.


class TestStandIn(LimitStorageConformance):
    """While the primary answers."""

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        return StandInStorage(open_bare("memory", clock), clock=clock or SYSTEM_CLOCK)


class TestStandInInMemory(LimitStorageConformance):
    """While the primary does not answer, and this process is the only one: the same limits, exactly."""

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        return StandInStorage(Unavailable(), clock=clock or SYSTEM_CLOCK)

    def test_a_closed_storage_may_be_used_again(self) -> None:
        """Not tested here: closing may forget what only the stand-in knows."""


class TestLeases(LimitStorageConformance):
    """Where no charge allows one."""

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        return LeasingStorage(open_bare("memory", clock), clock=clock or SYSTEM_CLOCK)


class TestDenials(LimitStorageConformance):
    """What is remembered of a denial is the most that its buckets hold, which decides like the truth."""

    exact_denials = False

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        return RememberedDenials(open_bare("memory", clock), clock=clock or SYSTEM_CLOCK)


@pytest.mark.redis
class TestAllInFrontOfValkey(LimitStorageConformance):
    """As `open_storage` puts them together."""

    exact_denials = False

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        own = clock or SYSTEM_CLOCK
        remembering = RememberedDenials(open_bare("valkey", clock), clock=own)
        return StandInStorage(LeasingStorage(remembering, clock=own), clock=own)


class TestAllInFrontOfSharedMemory(LimitStorageConformance):
    """As `open_storage` puts them together."""

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        return StandInStorage(open_bare("shm", clock), clock=clock or SYSTEM_CLOCK)


# Faults of other libraries that only show on a server. Others are in test_redis_storage.py, and those that any storage could
# repeat in the conformance suite: early expiry, fractions lost, whole seconds, denials that take.


@pytest.fixture(params=["valkey", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def storage(kind: str) -> Iterator[LimitStorage]:
    storage = open_bare(kind)
    yield storage
    storage.close()


@pytest.fixture
def client(kind: str) -> Iterator[redis.Redis]:
    client: redis.Redis = redis.Redis.from_url(address_of(kind))
    client.flushall()
    yield client
    client.close()


LIMIT = Limit(10, 60)


def scope() -> str:
    return f"fault{next(_fresh)}"


def test_the_first_write_of_a_bucket_has_a_time_to_live_and_so_has_every_other(
    storage: LimitStorage, client: redis.Redis
) -> None:
    """throttled-py expires before it writes, and `limits` once after: both leave keys that never go away."""
    name = scope()
    for step in range(4):
        if step < 2:
            storage.take([Charge(name, "subject", LIMIT, 4)])
        elif step == 2:
            storage.take([Charge(name, "subject", LIMIT, 9, -LIMIT.debt(60))])
        else:
            storage.give_back([Refund(name, "subject", LIMIT, 3)])
        (key,) = client.keys()
        assert 0 < client.pttl(key) <= 61_000 * 2, step


def test_the_clock_of_a_caller_decides_nothing(
    storage: LimitStorage, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`limits` and pyrate-limiter send the caller's time: one whose clock is ahead refills everybody's buckets."""
    name = scope()
    assert storage.take([Charge(name, "subject", LIMIT, 10)]).allowed
    hour = 3_600
    real, real_ns, real_clock = time.time, time.time_ns, SystemClock.microseconds
    monkeypatch.setattr(time, "time", lambda: real() + hour)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + hour * 1_000_000_000)
    monkeypatch.setattr(SystemClock, "microseconds", lambda self: real_clock(self) + hour * 1_000_000)
    assert not storage.take([Charge(name, "subject", LIMIT, 1)]).allowed


@pytest.mark.parametrize("kind", ["memory", "shm", *SERVERS])
def test_every_storage_offers_the_fast_path(kind: str) -> None:
    storage = open_bare(kind)
    assert isinstance(storage, QuickStorage)
    storage.close()


def test_the_memory_storage_that_is_tested_is_the_one_that_is_used() -> None:
    assert isinstance(open_bare("memory"), MemoryStorage)


def test_the_suite_needs_no_test_framework() -> None:
    program = "import sys, resilience.testing; print(*{'pytest', 'hypothesis', 'gevent'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "\n" == done.stdout
