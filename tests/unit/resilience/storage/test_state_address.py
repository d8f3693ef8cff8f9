"""From an address to a storage of state."""

from __future__ import annotations

import re
import sys

import pytest

from resilience import open_state_storage
from resilience.storage.forms import SERVER_KINDS
from resilience.storage.state_address import STATE_FORMS
from resilience.storage.state_memory import MemoryStateStorage
from resilience.storage.state_redis import RedisStateStorage
from resilience.storage.state_shm import SharedMemoryStateStorage


def test_memory_is_this_process() -> None:
    storage = open_state_storage("memory://")
    assert isinstance(storage, MemoryStateStorage)
    assert ("memory://", False) == (storage.uri, storage.spans_hosts)


@pytest.mark.parametrize("uri", ["memory://host", "memory://?records=2"])
def test_another_memory_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="memory:// address: nothing stands behind it"):
        open_state_storage(uri)


@pytest.mark.parametrize("uri", ["shm://name-of-mine", "shm:///dev/shm/seawall-test-state?records=20"])
def test_shared_memory_is_a_host_and_is_not_opened_yet(uri: str) -> None:
    storage = open_state_storage(uri)
    assert isinstance(storage, SharedMemoryStateStorage)
    assert (uri, False, False) == (storage.uri, storage.spans_hosts, storage.path.exists())


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("redis://u:secret@h:1/0", "redis://h:1/0"),
        ("valkeys://:secret@h:1/0", "valkeys://h:1/0"),
        ("redis+unix://u:secret@/run/redis.sock?db=2", "redis+unix:///run/redis.sock"),
        ("redis+sentinel://u:secret@h:1,i:2/s/3", "redis+sentinel://h:1,i:2/s/3"),
        ("rediss+cluster://u:secret@h", "rediss+cluster://h"),
    ],
)
def test_a_server_is_all_hosts_and_gets_no_connection_yet(uri: str, shown: str) -> None:
    storage = open_state_storage(uri, namespace="mine", timeout=0.2)
    assert isinstance(storage, RedisStateStorage)
    assert (shown, True) == (storage.uri, storage.spans_hosts)
    assert "secret" not in repr(storage)
    storage.close()


@pytest.mark.parametrize("form", STATE_FORMS)
def test_every_form_that_errors_name_is_understood(form: str) -> None:
    example = form.replace("[", "").replace("]", "").replace("...", "").replace("=N", "=1")
    open_state_storage(example.replace("port", "1").replace("/db", "/0").replace("user:password@/", "/")).close()


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("memcached://user:secret@127.0.0.1", "'memcached' is no storage of state"),
        ("user:secret@host", "an address without a scheme is no storage of state"),
        ("", "an address without a scheme is no storage of state"),
    ],
)
def test_another_scheme_is_refused_with_those_that_are_not(uri: str, named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        open_state_storage(uri)
    assert all(form in str(caught.value) for form in STATE_FORMS)
    assert all(re.search(rf"\b{scheme.partition('+')[0]}\b", str(caught.value)) for scheme in SERVER_KINDS)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("redis://h:1,h:2", "it names more than one server"),
        ("redis://h:1/zero", "behind the server stands the number of a database, if anything"),
        ("redis+sentinel://h:1", "behind the sentinels stand the service"),
        ("shm://?buckets=3", "there is no option 'buckets', only records"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(uri: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_state_storage(uri)


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("uri", ["memory://", "shm://", "redis://h"])
def test_a_timeout_is_above_zero(uri: str, timeout: float) -> None:
    with pytest.raises(ValueError, match=f"timeout={timeout}: a storage takes seconds above 0"):
        open_state_storage(uri, timeout=timeout)


def test_without_the_redis_client_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resilience.storage.state_redis", None)
    with pytest.raises(ImportError, match=r"valkey:// needs the redis client: install seawall\[redis\]"):
        open_state_storage("valkey://h")
