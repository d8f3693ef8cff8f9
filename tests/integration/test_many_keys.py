"""However many callers there are, and whoever makes them up: what is kept of them levels off."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.limit_flood import Reading, Task, flooded
from tests.support.redis_server import RedisServer, running_redis, server_programs

SHORT, LONG = 50_000, 1_000_000
MEGABYTE = 1_000_000
# A bucket takes this much at least in a dictionary, and at most on a server.
_A_BUCKET = 200

sizes = pytest.mark.parametrize(
    "keys",
    [
        pytest.param(SHORT, id="short"),
        pytest.param(LONG, id="million", marks=[pytest.mark.prove, pytest.mark.timeout(300)]),
    ],
)


@pytest.fixture(params=["valkey", pytest.param("redis", marks=pytest.mark.prove)])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server of the test's own: its memory is read."""
    program = server_programs().get(request.param)
    if program is None:
        pytest.skip(f"no {request.param} server here")
    with running_redis(program) as running:
        yield running


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in shared memory, where there is one."""
    with tempfile.TemporaryDirectory(prefix="seawall-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:  # noqa: PTH112
        yield Path(path)


def check_process_levels_off(readings: list[Reading]) -> None:
    """What grows by less than a trace for every caller since a third of them were there has stopped growing."""
    early, late = readings[2], readings[-1]
    grown = max(reading.process for reading in readings[3:]) - early.process
    assert grown < max(4 * MEGABYTE, (late.asked - early.asked) * _A_BUCKET // 10)


@sizes
def test_memory_keeps_no_more_than_it_was_told_to(keys: int) -> None:
    readings = flooded(Task(uri=f"memory://?buckets={keys // 10}", keys=keys, period=3_600))
    check_process_levels_off(readings)
    assert keys == readings[-1].allowed


@sizes
def test_shared_memory_takes_the_room_it_has_reserved_and_no_more(keys: int, folder: Path) -> None:
    path = folder / "limits"
    uri = f"shm://{path}?buckets={keys // 10}"
    before = flooded(Task(uri=uri, keys=10, period=3_600))
    size = path.stat().st_size
    readings = flooded(Task(uri=uri, keys=keys, period=3_600))
    assert size == path.stat().st_size
    assert [path] == list(folder.iterdir())
    assert size < keys // 10 * 100 + MEGABYTE
    # The process has the whole file mapped.
    assert readings[-1].process < before[-1].process + size + 12 * MEGABYTE
    check_process_levels_off(readings)
    assert (keys, 0) == (readings[-1].allowed, readings[-1].failures)


@pytest.mark.redis
@sizes
def test_a_server_forgets_them_as_their_buckets_fill(keys: int, server: RedisServer) -> None:
    """Every key has a time to live, so what is stored is what was asked for in that time."""
    # A server looks for what has expired ten times a second. Few callers are there before it has looked once.
    pause = 0.35 if keys == SHORT else 0.0
    task = Task(uri=server.uri, keys=keys, period=0.1, greenlets=100, pause=pause, server=server.uri)
    client = redis.Redis.from_url(server.uri, decode_responses=True)
    empty = client.info("memory")["used_memory"]
    readings = flooded(task, timeout=250)
    assert all(reading.stored == reading.expiring for reading in readings)
    assert (keys, 0) == (readings[-1].allowed, readings[-1].failures)
    check_process_levels_off(readings)
    # Those that are over go away at the server's leisure: in the end all, and meanwhile most of them.
    assert max(reading.stored for reading in readings) < keys / 2
    assert max(reading.server - reading.stored * _A_BUCKET for reading in readings) < empty + MEGABYTE
    deadline = time.monotonic() + 30
    while client.dbsize() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert 0 == client.dbsize()
    client.close()


@pytest.mark.redis
@sizes
@pytest.mark.parametrize(("mode", "answer"), [("local", True), ("allow", True), ("deny", False)])
def test_a_server_that_is_full_is_one_that_has_failed(mode: str, answer: bool, keys: int, server: RedisServer) -> None:
    """With `noeviction` it refuses to write. Nobody is told of it, and the server stays within what it was given."""
    client = redis.Redis.from_url(server.uri, decode_responses=True)
    most = client.info("memory")["used_memory"] + keys * 40
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", most)
    task = Task(uri=server.uri, keys=keys, period=86_400, greenlets=100, on_store_failure=mode, server=server.uri)
    readings = flooded(task, timeout=250)
    client.close()
    assert readings[-1].failures >= 1
    # What a client asks and is answered has to be held as well.
    assert max(reading.server for reading in readings) < most + 4 * MEGABYTE
    last = readings[-1].allowed - readings[-2].allowed
    assert (keys // 10 if answer else 0) == last
    if mode != "local":
        check_process_levels_off(readings)
    # The stand-in keeps 65,536 buckets itself.
    assert readings[-1].process < readings[0].process + 65_536 * 600 + 4 * MEGABYTE


@pytest.mark.redis
def test_a_caller_who_was_refused_is_refused_by_a_server_that_is_full(server: RedisServer) -> None:
    """A denial writes nothing, so it needs no room."""
    from resilience.core.limiter import Charge, Limit
    from resilience.errors import StorageUnavailable
    from resilience.storage.redis import RedisStorage

    storage = RedisStorage(server.uri, timeout=10.0)
    charge = Charge("scope", "subject", Limit(1, 3_600), 1)
    assert storage.take([charge]).allowed
    client = redis.Redis.from_url(server.uri)
    client.config_set("maxmemory", 1)
    assert not storage.take([charge]).allowed
    assert 0 == storage.take([charge._replace(cost=0)]).remaining
    with pytest.raises(StorageUnavailable):
        storage.take([charge._replace(subject="another")])
    client.config_set("maxmemory", 0)
    assert storage.take([charge._replace(subject="another")]).allowed
    client.close()
    storage.close()
