"""Records in shared memory: what every storage of state promises, and what only this one does."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resilience.clock import SYSTEM_CLOCK
from resilience.core.limiter import Charge, Limit
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.ports import Clock, Following, StateStorage
from resilience.storage import shared_file
from resilience.storage.mutex import Locks, RecordLocks, RobustMutexes
from resilience.storage.shm import SharedMemoryStorage
from resilience.storage.state_shm import SharedMemoryStateStorage
from resilience.storage.state_table import StateTable
from resilience.storage.wrapping import Attendant
from resilience.testing import FakeClock, StateStorageConformance


class TestSharedMemory(StateStorageConformance):
    """All processes of a machine."""

    kind: type[Locks] = RobustMutexes

    @pytest.fixture(autouse=True)
    def _in_a_folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "state"

    def open_state_storage(self, clock: Clock | None) -> StateStorage:
        self.clock = clock or SYSTEM_CLOCK
        return self._opened_again()

    def open_another(self, storage: StateStorage) -> StateStorage:
        return self._opened_again()

    def _opened_again(self) -> StateStorage:
        return SharedMemoryStateStorage(f"shm://{self.path}?records=64", clock=self.clock, _kind=self.kind)


class TestSharedMemoryWithRecordLocks(TestSharedMemory):
    """As on systems whose C library has no robust mutexes."""

    kind = RecordLocks


RECORDS = 16
"""The fewest: one row."""


class Folder:
    """A file of its own for a test, and who has it open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = FakeClock()

    def open(self, records: int = RECORDS, **options: Any) -> SharedMemoryStateStorage:
        uri = f"shm://{self.path}?records={records}"
        return SharedMemoryStateStorage(uri, clock=self.clock, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "state")


@pytest.fixture(autouse=True)
def _no_attendants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests say when a second has passed."""
    monkeypatch.setattr(Attendant, "start", lambda self: True)


def a_second_passes(storage: SharedMemoryStateStorage) -> float | None:
    storage._have_an_attendant()
    assert storage._attendant is not None
    return storage.attend(storage._attendant)


def write(storage: StateStorage, name: str, text: bytes | None, keep: float = 10.0) -> None:
    storage.update(name, lambda _text, _now: (text, None), keep=keep)


def unavailable(ask: Callable[[], object]) -> str:
    with pytest.raises(StorageUnavailable) as caught:
        ask()
    return str(caught.value)


def number(following: Following) -> int:
    return following.cell[following.place]


def test_who_follows_watches_the_memory_itself(folder: Folder) -> None:
    following = folder.open().follow("a")
    assert isinstance(following.cell, memoryview)
    before = number(following)
    write(folder.open(), "a", b"1")
    assert (before + 1, b"1") == (number(following), following.read().text)


def test_services_of_two_namespaces_do_not_meet(folder: Folder) -> None:
    one, other = folder.open(namespace="one"), folder.open(namespace="other")
    write(one, "a", b"1")
    one.exchange("a", "member", b"1", keep=10)
    assert None is other.read("a").text
    assert {"member": b"2"} == other.exchange("a", "member", b"2", keep=10)


def test_a_larger_file_is_asked_for_when_all_is_to_be_kept(folder: Folder) -> None:
    storage = folder.open()
    for place in range(RECORDS):
        write(storage, f"{place}", b"open", keep=10 + place)
    following = storage.follow("another")
    expected = (
        f"{storage.uri}: all 16 places are taken by what is to be kept: stop its users, remove {folder.path} and ask for more "
        "with ?records="
    )
    assert expected == unavailable(lambda: write(storage, "another", b"1"))
    assert "has no place yet" in unavailable(following.read)
    assert [b"open"] * RECORDS == [storage.read(f"{place}").text for place in range(RECORDS)]
    assert None is storage.read("another").text


def test_the_record_whose_time_was_over_first_makes_room(folder: Folder) -> None:
    storage = folder.open()
    for place in range(RECORDS):
        write(storage, f"{place}", b"open", keep=10 + place)
    folder.clock.advance(11.5)
    write(storage, "another", b"1")
    assert [-1, 1] == [storage.current().records.find(storage.current().key("seawall", name)) for name in "01"]
    folder.clock.advance(0.5)
    assert ([None, None, None, b"open"], b"1") == (
        [storage.read(name).text for name in "0123"],
        storage.read("another").text,
    )


def test_what_was_written_and_is_over_since_a_change_began_makes_room_for_it(folder: Folder) -> None:
    """A process that was stopped in the middle reads the clock again before it says that all is taken."""
    storage, other = folder.open(), folder.open()

    def change(_text: bytes | None, _now: float) -> tuple[bytes, None]:
        folder.clock.advance(1)
        for place in range(RECORDS):
            write(other, f"{place}", b"short", keep=0.1)
        folder.clock.advance(0.1)
        return b"1", None

    storage.update("a", change, keep=10)
    assert b"1" == storage.read("a").text


def test_who_followed_a_record_that_made_room_is_told_and_gets_a_place_when_there_is_one(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    storage = folder.open()
    followings = [storage.follow(f"{place}") for place in range(RECORDS)]
    first = followings[0]
    heard = number(first)
    for place in range(1, RECORDS):
        write(storage, f"{place}", b"open", keep=10)
    write(storage, "another", b"1", keep=5)
    assert heard != number(first)
    for _ in range(2):
        assert "the record '0' " in unavailable(first.read)
    assert [f"{storage.uri}: there are more records than places, so that '0' lost its own"] == [
        line.partition(" for a second")[0] for line in caplog.messages
    ]
    heard = number(first)
    a_second_passes(storage)
    assert heard == number(first)
    folder.clock.advance(5)
    a_second_passes(storage)
    assert heard != number(first)
    assert None is first.read().text
    heard = number(first)
    write(folder.open(), "0", b"news")
    assert (True, b"news") == (heard != number(first), first.read().text)


def test_members_whose_time_is_over_make_room_and_no_others(folder: Folder) -> None:
    storage = folder.open()
    for member in range(2 * RECORDS):
        storage.exchange("a", f"{member}", b"", keep=10 + member)
    assert "all 32 places are taken" in unavailable(lambda: storage.exchange("b", "x", b"", keep=1))
    folder.clock.advance(10)
    assert {"x": b"1"} == storage.exchange("b", "x", b"1", keep=10)
    assert 2 * RECORDS - 1 == len(storage.exchange("a", "1", b"", keep=10))


@pytest.mark.parametrize("kind", [RobustMutexes, RecordLocks])
def test_when_the_file_is_removed_all_meet_again_in_a_new_one(folder: Folder, kind: type[Locks]) -> None:
    storage, other = folder.open(_kind=kind), folder.open(_kind=kind)
    write(storage, "a", b"before")
    following, unread = storage.follow("a"), other.follow("a")
    heard = number(following), number(unread)
    folder.path.unlink()
    write(folder.open(_kind=kind), "a", b"after")  # of a worker that was started since
    assert (heard, b"before") == ((number(following), number(unread)), following.read().text)
    a_second_passes(storage)
    assert heard[0] != number(following), "whoever follows in the old file comes and looks"
    assert b"after" == following.read().text
    assert b"before" == unread.read().text, "its own process has not looked yet"
    for _ in range(2):
        a_second_passes(other)
    assert b"after" == unread.read().text
    heard = number(following), number(unread)
    write(other, "a", b"news")
    assert (heard[0] + 1, heard[1] + 1) == (number(following), number(unread))
    assert [b"news"] * 2 == [each.read().text for each in (following, unread)]


def test_what_cannot_be_opened_is_followed_as_soon_as_it_can_be(folder: Folder) -> None:
    folder.path.write_text("something of somebody else's, and quite long" * 10)
    folder.path.chmod(0o600)
    storage = folder.open()
    following = storage.follow("a")
    heard = number(following)
    assert heard == following.cell[17], "a thread may know the place already, and not yet the cell"
    expected = f"{folder.path}: it holds something else: remove it, or choose another name"
    assert expected == unavailable(lambda: storage.read("a"))
    assert expected == unavailable(lambda: write(storage, "a", b"1"))
    assert expected == unavailable(lambda: storage.exchange("a", "member", b"1", keep=1))
    assert "the record 'a' has no place yet" in unavailable(following.read)
    assert 1.0 == a_second_passes(storage)
    assert heard == number(following)
    folder.path.unlink()
    write(folder.open(), "a", b"1")
    a_second_passes(storage)
    assert heard != number(following)
    assert b"1" == following.read().text


def test_a_file_of_buckets_is_not_taken_for_one_of_records(folder: Folder) -> None:
    SharedMemoryStorage(f"shm://{folder.path}").take([Charge("scope", "subject", Limit(1, 1), 1)])
    assert "it holds something else" in unavailable(lambda: folder.open().read("a"))


def test_the_file_of_another_user_is_refused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.open().read("a")
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    assert f"it belongs to user {os.getuid()}, and this process runs as user 12345" in unavailable(
        lambda: folder.open().read("a")
    )


def test_a_file_that_cannot_be_seen_any_more_is_said_to_be_so(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = folder.open()
    storage.read("a")

    def refuse(path: str) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "lstat", refuse)
    assert f"{storage.uri}: {folder.path} cannot be seen (Permission denied)" == unavailable(lambda: storage.read("a"))


def test_an_existing_file_keeps_its_size_and_says_so(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    folder.open(records=20).read("a")
    assert 32 == folder.open(records=32).current().records.count
    assert [] == caplog.messages
    assert 32 == folder.open(records=64).current().records.count
    assert caplog.messages[0].endswith(
        f"the file holds 32 records already, not 64: to change that, stop its users and remove {folder.path}"
    )


def test_the_default_is_a_tenth_of_what_a_container_has(tmp_path: Path) -> None:
    storage = SharedMemoryStateStorage(f"shm://{tmp_path}/state")
    assert (512, 5_629_952) == (storage.current().records.count, storage.path.stat().st_size)


def test_files_are_named_after_the_user_what_they_hold_and_their_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_file, "_FOLDER", tmp_path)
    user = os.geteuid()
    for uri, name in (("shm://", "state"), ("shm://api", "api")):
        storage = SharedMemoryStateStorage(uri)
        assert (f"seawall-{user}-{name}.state-1", 0) == (storage.path.name, len(storage))
        assert f"<SharedMemoryStateStorage: {tmp_path}/seawall-{user}-{name}.state-1>" == repr(storage)


def test_a_damaged_record_is_not_read_as_another_one(folder: Folder) -> None:
    storage = folder.open()
    write(storage, "a", b"a text of ours")
    following = storage.follow("a")
    memory = storage.current()._memory
    memory[memory.find(b"a text of ours")] ^= 1
    expected = f"{storage.uri}: {folder.path} is damaged: stop its users and remove it"
    for ask in (following.read, lambda: storage.read("a"), lambda: write(storage, "a", b"1")):
        assert expected == unavailable(ask)
    with pytest.raises(StorageUnavailable, match="is damaged"):
        storage.current().touch(following.place, storage.current().key("seawall", "a"))
    write(storage, "b", b"1")  # the lock was left


def test_a_change_that_always_comes_too_late_is_given_up(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(SYSTEM_CLOCK, "sleep", slept.append)
    storage, faster = folder.open(), folder.open()
    turns: list[None] = []

    def change(_text: bytes | None, _now: float) -> tuple[bytes, None]:
        turns.append(None)
        write(faster, "a", b"%d" % len(turns))
        return b"late", None

    with pytest.raises(StorageBusy, match="others changed the record 'a' 200 times meanwhile: try again"):
        storage.update("a", change, keep=10)
    assert (200, True) == (len(turns), sum(slept) < 0.05)


def test_a_closed_following_reads_nothing(folder: Folder) -> None:
    following = folder.open().follow("a")
    following.close()
    assert (0, 1, 0) == (following.place, len(following.cell), number(following))
    with pytest.raises(ValueError, match="the record 'a' is followed no longer"):
        following.read()


def attendant_of(storage: SharedMemoryStateStorage) -> Attendant | None:
    return storage._attendant


def test_the_attendant_is_there_while_something_is_followed_and_read(folder: Folder) -> None:
    storage = folder.open()
    following = storage.follow("a")
    storage.follow("b")
    storage.read("a")
    assert None is attendant_of(storage), "a server that forks its workers has no thread"
    following.read()
    first = attendant_of(storage)
    assert first is not None
    assert 1.0 == storage.attend(first)
    storage.after_fork()
    storage.read("a")
    second = attendant_of(storage)
    assert second is not None
    assert second is not first, "a forked child has one of its own as soon as it asks for something"
    assert None is storage.attend(first)
    del following
    gc.collect()
    assert None is storage.attend(second)
    storage.left(second)
    assert None is attendant_of(storage)
    storage.follow("b")
    assert attendant_of(storage) is not None
    storage.close()
    assert None is attendant_of(storage)


@pytest.mark.parametrize("interrupts", ["write", "give"])
def test_who_is_interrupted_in_the_middle_of_a_change_leaves_the_lock(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, interrupts: str
) -> None:
    storage = folder.open()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StateTable, interrupts, interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(storage, "a", b"1")
    write(folder.open(), "a", b"2")
    assert b"2" == storage.read("a").text


def test_a_member_whose_place_is_given_away_meanwhile_gets_another(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, flood = folder.open(), folder.open()
    storage.exchange("a", "member", b"1", keep=0.1)
    folder.clock.advance(1)
    find, found = StateTable.find, []

    def find_and_wait(table: StateTable, key: bytes) -> int:
        found.append(find(table, key))
        if len(found) == 1:
            for member in range(2 * RECORDS):
                flood.exchange("b", f"{member}", b"", keep=0.1)
            folder.clock.advance(1)
        return found[-1]

    monkeypatch.setattr(StateTable, "find", find_and_wait)
    assert {"member": b"2"} == storage.exchange("a", "member", b"2", keep=10)
    assert -1 != found[0]


def test_without_a_thread_to_be_had_the_next_who_asks_tries_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = folder.open()
    monkeypatch.setattr(Attendant, "start", lambda self: False)
    following = storage.follow("a")
    following.read()
    assert None is attendant_of(storage)
    monkeypatch.setattr(Attendant, "start", lambda self: True)
    storage.read("a")
    assert attendant_of(storage) is not None
    following.close()


def test_a_file_that_cannot_be_made_is_warned_of_once_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "missing" / "state"
    storage = SharedMemoryStateStorage(f"shm://{path}")
    following = storage.follow("a")
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            storage.read("a")
    (warned,) = caplog.records
    assert ("resilience.storage.state_shm", "WARNING") == (warned.name, warned.levelname)
    assert f"{path}: there is no folder {path.parent}: make it, or name another" in warned.getMessage()
    path.parent.mkdir()
    assert None is storage.read("a").text
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(StorageUnavailable):
        storage.read("a")
    assert 2 == len(caplog.records)
    following.close()
    storage.close()
