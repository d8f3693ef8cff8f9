"""Addresses and words of state on Redis. What the storage does is in tests/integration/test_state_redis.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from resilience.ports import Following, Messenger, StateStorage
from resilience.storage.slots import slot_of
from resilience.storage.state_redis import RedisStateStorage, _milliseconds, _news_of, _record_in, open_redis_state


def test_it_is_a_storage_of_state_that_spans_hosts_and_carries_messages() -> None:
    storage = open_redis_state("redis://localhost", namespace="mine", timeout=0.1)
    assert isinstance(storage, StateStorage)
    assert isinstance(storage, Messenger)
    assert storage.spans_hosts
    following: Following = storage.follow("circuit")
    assert 0 == following.cell[following.place]
    following.close()
    storage.close()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("redis://user:secret@h:1/2", "redis://h:1/2"),
        ("valkey://:secret@h", "valkey://h"),
        ("rediss://h?password=secret", "rediss://h"),
        ("redis+unix://:secret@/run/redis.sock?db=1", "redis+unix:///run/redis.sock"),
        ("redis+sentinel://user:secret@h:1,i/s/2?sentinel_password=secret", "redis+sentinel://h:1,i/s/2"),
        ("valkey+cluster://user:secret@h:1,i/", "valkey+cluster://h:1,i"),
    ],
)
def test_an_address_is_shown_without_its_passwords(uri: str, shown: str) -> None:
    storage = RedisStateStorage(uri)
    assert shown == storage.uri
    assert "secret" not in repr(storage)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("redis://a,b", "more than one server"),
        ("redis://h/name", "the number of a database"),
        ("redis://h?colour=blue", "does not take"),
        ("redis+sentinel://h", "behind the sentinels stand the service"),
        ("redis+sentinel://h/s?colour=blue", "does not take"),
        ("redis+cluster://h/1", "a cluster has no path"),
        ("memcached://h", "no scheme of a Redis server"),
        ("secret", "no scheme of a Redis server"),
    ],
)
def test_an_address_that_is_none_is_refused_with_what_is_wrong(uri: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RedisStateStorage(uri)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_is_seconds_above_0(timeout: float) -> None:
    with pytest.raises(ValueError, match=r"timeout=.*: a storage takes seconds above 0"):
        RedisStateStorage("redis://h", timeout=timeout)


@given(some.text(), some.text())
def test_all_keys_and_channels_of_all_namespaces_lie_in_one_slot(namespace: str, name: str) -> None:
    storage = RedisStateStorage("redis://h", namespace=namespace.replace("{", "").replace("}", ""))
    keys = [storage._key(kind, name) for kind in ("record", "members", "probe")]
    keys += [storage._channel(kind, name) for kind in ("news", "topic")]
    assert {slot_of(b"{state}")} == {slot_of(key) for key in keys}
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("uri", "database"),
    [
        ("redis://h", 0),
        ("valkey://h/2", 2),
        ("redis://h?db=3", 3),
        ("redis+unix:///run/redis.sock?db=1", 1),
        ("redis+sentinel://h:1,i/s/4", 4),
        ("redis+sentinel://h:1,i/s", 0),
        ("redis+cluster://h", 0),
    ],
)
def test_channels_are_those_of_the_database(uri: str, database: int) -> None:
    storage = RedisStateStorage(uri)
    assert f"seawall:{{state}}:topic:{database}:name".encode() == storage._channel("topic", "name")
    assert f"seawall:{{state}}:news:{database}:".encode() == storage._ears.channel


@given(some.binary(), some.none() | some.binary())
def test_news_are_read_as_they_were_written(key: bytes, text: bytes | None) -> None:
    assert (key, text) == _record_in(_news_of(key, text))


@pytest.mark.parametrize(
    ("keep", "milliseconds"), [(60, b"60000"), (0.000_1, b"1"), (1.000_1, b"1001"), (1e300, b"1000000000000")]
)
def test_a_record_is_never_kept_for_less_than_was_asked(keep: float, milliseconds: bytes) -> None:
    assert milliseconds == _milliseconds(keep)


def test_what_is_too_long_is_refused_before_anybody_is_asked() -> None:
    storage = RedisStateStorage("redis://localhost:1")
    with pytest.raises(ValueError, match="keep=0"):
        storage.update("name", lambda text, _now: (text, None), keep=0)
    with pytest.raises(ValueError, match="501 bytes"):
        storage.exchange("name", "member", bytes(501), keep=1)
    with pytest.raises(ValueError, match="a name has from 1"):
        storage.exchange("name", "", b"", keep=1)
    with pytest.raises(ValueError, match="1,048,577 bytes"):
        storage.publish("topic", bytes(1_048_577))
