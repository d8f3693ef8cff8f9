"""From an address to a storage."""

from __future__ import annotations

import pytest

from resilience.core.limiter import Charge, Limit
from resilience.ports import LimitStorage
from resilience.storage.address import open_storage
from resilience.storage.cluster import RedisClusterStorage
from resilience.storage.denials import RememberedDenials
from resilience.storage.forms import FORMS, parse_servers
from resilience.storage.leases import LeasingStorage
from resilience.storage.memory import MemoryStorage
from resilience.storage.redis import RedisStorage
from resilience.storage.sentinel import RedisSentinelStorage
from resilience.storage.shm import SharedMemoryStorage
from resilience.storage.standin import StandInStorage


def behind(storage: LimitStorage) -> LimitStorage:
    """What decides while all is well, without the layers in front of it."""
    while isinstance(storage, StandInStorage | LeasingStorage | RememberedDenials):
        storage = storage.primary
    return storage


def test_memory_is_this_process() -> None:
    assert isinstance(open_storage("memory://"), MemoryStorage)


def test_memory_is_bounded_by_its_address() -> None:
    storage = open_storage("memory://?buckets=2")
    for subject in "abc":
        storage.take([Charge("scope", subject, Limit(10, 60), 1)])
    assert isinstance(storage, MemoryStorage)
    assert 2 == len(storage)


@pytest.mark.parametrize("uri", ["memory://host", "memory://?buckets=0", "memory://?buckets=x", "memory://?bucket=2"])
def test_another_memory_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"memory:// address: write memory://\[\?buckets=N\] with N"):
        open_storage(uri)


@pytest.mark.parametrize("uri", ["shm://name-of-mine", "shm:///dev/shm/seawall-test-address"])
def test_shared_memory_gets_a_stand_in_and_is_not_opened_yet(uri: str) -> None:
    storage = open_storage(uri)
    assert isinstance(storage, StandInStorage)
    assert isinstance(behind(storage), SharedMemoryStorage)
    assert uri == storage.uri


@pytest.mark.parametrize(
    ("uri", "kind", "shown"),
    [
        ("redis://h", RedisStorage, "redis://h"),
        ("redis://u:secret@h:1/0", RedisStorage, "redis://h:1/0"),
        ("rediss://:secret@h:1/0", RedisStorage, "rediss://h:1/0"),
        ("valkey://:secret@h:1/0", RedisStorage, "valkey://h:1/0"),
        ("valkeys://:secret@h:1/0", RedisStorage, "valkeys://h:1/0"),
        ("redis+unix://u:secret@/run/redis.sock?db=2", RedisStorage, "redis+unix:///run/redis.sock"),
        ("valkey+unix:///run/redis.sock", RedisStorage, "valkey+unix:///run/redis.sock"),
        ("unix:///run/redis.sock", RedisStorage, "unix:///run/redis.sock"),
        ("redis+sentinel://h:1/mymaster", RedisSentinelStorage, "redis+sentinel://h:1/mymaster"),
        ("redis+sentinel://u:secret@h:1,i:2/s/3", RedisSentinelStorage, "redis+sentinel://h:1,i:2/s/3"),
        ("rediss+sentinel://:secret@h/s", RedisSentinelStorage, "rediss+sentinel://h/s"),
        ("valkey+sentinel://h/s?sentinel_password=secret", RedisSentinelStorage, "valkey+sentinel://h/s"),
        ("valkeys+sentinel://h/s", RedisSentinelStorage, "valkeys+sentinel://h/s"),
        ("redis+cluster://h:1,h:2", RedisClusterStorage, "redis+cluster://h:1,h:2"),
        ("redis+cluster://h:1/", RedisClusterStorage, "redis+cluster://h:1"),
        ("rediss+cluster://u:secret@h", RedisClusterStorage, "rediss+cluster://h"),
        ("valkey+cluster://h", RedisClusterStorage, "valkey+cluster://h"),
        ("valkeys+cluster://h", RedisClusterStorage, "valkeys+cluster://h"),
    ],
)
def test_a_server_gets_all_that_stands_in_front_of_it_and_no_connection_yet(
    uri: str, kind: type[LimitStorage], shown: str
) -> None:
    storage = open_storage(uri)
    assert isinstance(storage, StandInStorage)
    assert isinstance(storage.primary, LeasingStorage)
    assert isinstance(storage.primary.primary, RememberedDenials)
    assert kind is type(behind(storage))
    assert shown == storage.uri
    assert "secret" not in repr(storage) + repr(behind(storage))
    storage.close()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_errors_name_is_understood(form: str) -> None:
    example = form.replace("[", "").replace("]", "").replace("...", "").replace("=N", "=1")
    open_storage(example.replace("port", "1").replace("/db", "/0").replace("user:password@/", "/")).close()


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("memcached://user:secret@127.0.0.1", "'memcached' is no storage"),
        ("user:secret@host", "an address without a scheme is no storage"),
        ("Secret Word://host", "an address without a scheme is no storage"),
        ("", "an address without a scheme is no storage"),
    ],
)
def test_another_scheme_is_refused_with_those_that_are_not(uri: str, named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        open_storage(uri)
    assert all(form in str(caught.value) for form in FORMS)
    assert "secret" not in str(caught.value).lower()


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("redis+sentinel://h:1", "behind the sentinels stand the service"),
        ("redis+sentinel://h:1/", "behind the sentinels stand the service"),
        ("redis+sentinel://h:1/s/x", "behind the sentinels stand the service"),
        ("redis+sentinel://h:1/s/1/2", "behind the sentinels stand the service"),
        ("redis+sentinel:///s", "server 1 is not host or host:port"),
        ("redis+sentinel://h:1,/s", "server 2 is not host or host:port"),
        ("redis+sentinel://h:77a/s", "server 1 is not host or host:port"),
        ("redis+sentinel://u:77/88@h:1/s", "in a password or a name are written %2F, %3F, %23 and %40"),
        ("redis+sentinel://u:77#88@h:1/s", "in a password or a name are written"),
        ("rediss+sentinel://u:77?88@h:1/s", "in a password or a name are written"),
        ("redis+cluster://h:1,h:0", "the port of server 2 is not between 1 and 65535"),
        ("valkey+cluster://h:77777", "the port of server 1 is not between 1 and 65535"),
        ("redis+cluster://h:1/0", "a cluster has no path, and one database only"),
        ("redis+cluster://", "server 1 is not host or host:port"),
        ("redis://u:77/88@h:1", "in a password or a name are written"),
        ("rediss://:77#88@h:1", "in a password or a name are written"),
        ("valkey://h:1,h:2", "it names more than one server"),
        ("redis://h:1/zero", "behind the server stands the number of a database, if anything"),
        ("redis://h:77x", "server 1 is not host or host:port"),
    ],
)
def test_what_is_wrong_with_an_address_is_said_without_showing_it(uri: str, reason: str) -> None:
    scheme = uri.partition(":")[0]
    with pytest.raises(ValueError, match=reason) as caught:
        open_storage(uri)
    message = str(caught.value)
    assert message.startswith(f"{scheme}:// address: ")
    assert f"write {scheme}://[user:password@]host" in message
    assert not {"77", "88"} & {message[place : place + 2] for place in range(len(message))}


def test_servers_are_read_with_everything_that_belongs_to_them() -> None:
    servers = parse_servers(
        "rediss+cluster://u%40:p%2F@a.example,10.0.0.1:7,[::1]:8/x//y?ssl_ca_certs=%2Fca", default_port=5
    )
    assert "rediss+cluster://a.example,10.0.0.1:7,[::1]:8/x//y" == servers.uri
    assert (("a.example", 5), ("10.0.0.1", 7), ("::1", 8)) == servers.nodes
    assert ("x", "y") == servers.path
    assert servers.secure
    assert "rediss://u%40:p%2F@localhost/3?ssl_ca_certs=%2Fca" == servers.client_uri(3)


def test_the_way_to_decide_without_a_storage_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="on_store_failure='open': choose one of local, allow, deny"):
        open_storage("redis://127.0.0.1:1", on_store_failure="open")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stated", "workers", "expected"), [("4", None, 2), ("", None, 8), ("auto", None, 8), ("4", 2, 4)]
)
def test_without_the_storage_a_limit_is_divided_by_the_workers(
    monkeypatch: pytest.MonkeyPatch, stated: str, workers: int | None, expected: int
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", stated)
    storage = open_storage("redis://127.0.0.1:1", workers=workers)
    decision = storage.take([Charge("scope", "subject", Limit(8, 3_600), 0)])
    assert expected == decision.quotas[0].limit.size
    storage.close()


def test_there_is_at_least_one_worker() -> None:
    with pytest.raises(ValueError, match="workers=0"):
        open_storage("redis://127.0.0.1:1", workers=0)


@pytest.mark.parametrize("uri", ["redis://h", "redis+sentinel://h/s", "redis+cluster://h"])
def test_a_timeout_is_above_zero(uri: str) -> None:
    with pytest.raises(ValueError, match=r"timeout=0: a storage takes seconds above 0"):
        open_storage(uri, timeout=0)
