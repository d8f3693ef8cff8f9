"""Records of this process: what every storage of state promises, and what only this one does."""

from __future__ import annotations

import threading

import pytest

from resilience.clock import SYSTEM_CLOCK
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.ports import Clock, StateStorage
from resilience.storage.state_memory import MemoryStateStorage
from resilience.testing import FakeClock, StateStorageConformance


class TestMemory(StateStorageConformance):
    """One process."""

    def open_state_storage(self, clock: Clock | None) -> StateStorage:
        return MemoryStateStorage(clock=clock or SYSTEM_CLOCK)


def write(storage: StateStorage, name: str, text: bytes | None, keep: float = 10.0) -> None:
    storage.update(name, lambda _text, _now: (text, None), keep=keep)


def test_records_whose_time_is_over_make_room_and_no_others() -> None:
    clock = FakeClock()
    storage = MemoryStateStorage(size=2, clock=clock)
    write(storage, "a", b"1", keep=1)
    write(storage, "b", b"2", keep=9)
    with pytest.raises(
        StorageUnavailable, match="memory:// holds 2 records that may not be forgotten: give a larger size"
    ):
        write(storage, "c", b"3")
    clock.advance(1)
    write(storage, "c", b"3")
    assert [None, b"2", b"3"] == [storage.read(name).text for name in "abc"]
    assert "<MemoryStateStorage: 2 of at most 2 records>" == repr(storage)


def test_groups_whose_members_are_gone_make_room_and_no_others() -> None:
    clock = FakeClock()
    storage = MemoryStateStorage(size=2, clock=clock)
    storage.exchange("a", "member", b"", keep=1)
    storage.exchange("b", "member", b"", keep=9)
    with pytest.raises(StorageUnavailable, match="holds the members of 2 names"):
        storage.exchange("c", "member", b"", keep=9)
    clock.advance(1)
    storage.exchange("c", "member", b"", keep=9)
    assert {"member": b"", "other": b"1"} == storage.exchange("b", "other", b"1", keep=9)


def test_it_keeps_one_record_at_least() -> None:
    with pytest.raises(ValueError, match="size=0: a memory storage keeps at least one record"):
        MemoryStateStorage(size=0)


def test_a_record_whose_time_is_over_reads_as_none() -> None:
    clock = FakeClock()
    storage = MemoryStateStorage(clock=clock)
    write(storage, "a", b"1", keep=1)
    clock.advance(0.999)
    assert b"1" == storage.read("a").text
    clock.advance(0.001)
    assert (None, clock.seconds()) == storage.read("a")


def test_a_change_may_change_other_records_and_is_worked_out_again_when_it_changed_its_own() -> None:
    """No lock is held meanwhile, so that whatever a change calls may ask the storage."""
    storage = MemoryStateStorage(clock=FakeClock())
    seen: list[bytes | None] = []

    def change(text: bytes | None, _now: float) -> tuple[bytes, str]:
        seen.append(text)
        write(storage, "another", b"x")
        if len(seen) == 1:
            write(storage, "a", b"faster")
        return b"slower", "done"

    assert "done" == storage.update("a", change, keep=10)
    assert ([None, b"faster"], b"slower") == (seen, storage.read("a").text)


class InTheMiddle(dict[str, object]):
    """Records whose reader is interrupted by who asks for another change: a signal handler, say."""

    def __init__(self, storage: MemoryStateStorage) -> None:
        super().__init__()
        self._storage = storage

    def __setitem__(self, name: str, record: object) -> None:
        write(self._storage, "other", b"x")


def test_who_asks_in_the_middle_of_a_change_is_refused_and_does_not_wait_for_ever() -> None:
    storage = MemoryStateStorage(clock=FakeClock())
    storage._records = InTheMiddle(storage)  # type: ignore[assignment]
    with pytest.raises(StorageBusy, match="from within a change by the same thread"):
        write(storage, "a", b"1")
    storage._records = {}
    write(storage, "a", b"2")
    assert b"2" == storage.read("a").text


def test_a_forked_child_does_not_wait_for_threads_that_are_not_there() -> None:
    storage = MemoryStateStorage(clock=FakeClock())
    taken, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with storage._lock:
            taken.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(10)
    storage.after_fork()
    write(storage, "a", b"1")
    leave.set()
    thread.join()
    assert b"1" == storage.read("a").text


def test_a_number_is_kept_only_as_long_as_somebody_follows() -> None:
    storage = MemoryStateStorage(clock=FakeClock())
    following = storage.follow("a")
    assert 1 == len(storage._watched)
    following.close()
    assert 0 == len(storage._watched)
