"""From an address to a storage."""

from __future__ import annotations

import pytest

from resilience.storage.address import open_storage
from resilience.storage.memory import MemoryStorage
from resilience.storage.standin import StandInStorage


def test_memory_is_this_process() -> None:
    assert isinstance(open_storage("memory://"), MemoryStorage)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys"])
def test_a_server_gets_a_stand_in_and_no_connection_yet(scheme: str) -> None:
    storage = open_storage(f"{scheme}://:secret@127.0.0.1:1/0")
    assert isinstance(storage, StandInStorage)
    assert f"{scheme}://127.0.0.1:1/0" == storage.uri
    storage.close()


def test_a_socket_path_is_an_address_too() -> None:
    assert "redis+unix:///run/redis.sock" == open_storage("redis+unix:///run/redis.sock").uri


def test_another_scheme_is_refused_with_those_that_are_not() -> None:
    with pytest.raises(ValueError, match="'memcached' is no storage: use memory:// or one of") as caught:
        open_storage("memcached://user:secret@127.0.0.1")
    assert "secret" not in str(caught.value)
