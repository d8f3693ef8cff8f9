"""The file behind shared memory: made whole or not at all, private, reserved, and refused when it is something else."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resilience.errors import StorageUnavailable
from resilience.storage import segment
from resilience.storage.mutex import LOCK_SIZE, Locks, RecordLocks, RobustMutexes
from resilience.storage.segment import Segment, attach
from resilience.storage.table import PLACES, ROW_SIZE
from resilience.testing import FakeClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "limits"


@pytest.fixture(autouse=True)
def _kept_apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files with record locks stay open until the process ends; here, until the test ends."""
    kept: dict[tuple[int, int], list[Segment]] = {}
    monkeypatch.setattr(segment, "_KEPT", kept)
    yield
    for segments in kept.values():
        for one in segments:
            os.close(one.locks._descriptor)  # type: ignore[attr-defined]


def opened(path: Path, buckets: int = 64, kind: type[Locks] = RobustMutexes) -> Segment:
    return attach(path, places=buckets, kind=kind)


def refused(path: Path, buckets: int = 64) -> str:
    with pytest.raises(StorageUnavailable) as caught:
        opened(path, buckets)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.fixture(params=[True, False], ids=["nameless", "named"])
def nameless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system can make files without a name."""
    can: bool = request.param and segment._NAMELESS_FILES
    monkeypatch.setattr(segment, "_NAMELESS_FILES", can)
    return can


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_a_new_file_is_private_reserved_and_all_that_is_left(path: Path, nameless: bool, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = opened(path)
    finally:
        os.umask(before)
    status = path.stat()
    assert (0o600, os.geteuid(), 1) == (stat.S_IMODE(status.st_mode), status.st_uid, status.st_nlink)
    assert 4096 + 4 * LOCK_SIZE + 4 * ROW_SIZE == status.st_size == len(made.memory)
    assert status.st_blocks * 512 >= status.st_size
    assert [path] == list(path.parent.iterdir())


@pytest.mark.parametrize(
    ("buckets", "rows", "stripes"), [(1, 1, 1), (17, 2, 2), (1_024, 64, 64), (65_536, 4_096, 64)], ids=str
)
def test_buckets_are_rounded_up_to_rows(path: Path, buckets: int, rows: int, stripes: int) -> None:
    made = opened(path, buckets)
    assert (rows, stripes) == (made.rows, len(made.locks.handles))
    assert rows * PLACES >= buckets


def test_the_default_is_a_tenth_of_what_a_container_has() -> None:
    assert 5_513_216 == segment.BUCKETS.size(65_536 // PLACES)


def test_who_comes_second_opens_what_is_there(path: Path) -> None:
    first, second = opened(path, 64), opened(path, 1_000)
    assert (first.identity, first.rows, first.secret, first.start) == (
        second.identity,
        second.rows,
        second.secret,
        second.start,
    )
    first.memory[first.start] = 7
    assert 7 == second.memory[second.start]


def test_no_two_files_share_a_secret(tmp_path: Path) -> None:
    assert 2 == len({opened(tmp_path / name).secret for name in ("a", "b")})


def test_who_loses_the_race_to_make_the_file_opens_the_winners(
    path: Path, nameless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    winners: list[Segment] = []
    reserve = segment._reserve

    def reserve_after_another(descriptor: int, size: int) -> None:
        monkeypatch.setattr(segment, "_reserve", reserve)
        winners.append(opened(path))
        reserve(descriptor, size)

    monkeypatch.setattr(segment, "_reserve", reserve_after_another)
    assert opened(path).identity == winners[0].identity
    assert [path] == list(path.parent.iterdir())


def test_a_file_system_without_nameless_files_is_served_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(name: str, flags: int, *rest: int, **options: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(name, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refusing)
    opened(path)
    assert [path] == list(path.parent.iterdir())


def as_symbolic_link(path: Path) -> None:
    opened(path.with_name("real"))
    path.symlink_to("real")


def as_text(path: Path) -> None:
    path.write_text("something of somebody else's, and quite long" * 10)
    path.chmod(0o600)


def as_nothing(path: Path) -> None:
    path.touch(0o600)


def as_open_to_others(path: Path) -> None:
    opened(path)
    path.chmod(0o640)


def patched(offset: int, number: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        opened(path)
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(struct.pack("=I", number))

    return make


def as_cut_off(path: Path) -> None:
    opened(path)
    os.truncate(path, path.stat().st_size - 1)


REMOVE = "stop its users and remove it"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (as_symbolic_link, "it is a symbolic link: remove it, or name the file that it points to"),
        (Path.mkdir, "it cannot be opened (Is a directory)"),
        (os.mkfifo, "it is no regular file: remove it, or choose another name"),
        (as_text, "it holds something else: remove it, or choose another name"),
        (as_nothing, "it holds something else: remove it, or choose another name"),
        (as_open_to_others, "other users may open it: chmod 600, or remove it"),
        (as_cut_off, f"it is damaged: {REMOVE}"),
        (patched(20, 3), f"it is damaged: {REMOVE}"),
        (patched(24, 0), f"it is damaged: {REMOVE}"),
    ],
)
def test_what_is_not_ours_is_refused_and_left_alone(path: Path, make: Callable[[Path], None], message: str) -> None:
    make(path)
    before = path.lstat()
    assert message == refused(path)
    assert before.st_ino == path.lstat().st_ino


@pytest.mark.parametrize(("offset", "what"), [(8, "layout"), (12, "kind of locks"), (16, "places in a row")])
def test_another_version_is_refused(path: Path, offset: int, what: str) -> None:
    patched(offset, 77)(path)
    assert re.fullmatch(f"another version of this library, .* made it: choose another name, or {REMOVE}", refused(path))


def test_another_users_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(path)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert (
        f"it belongs to user {me}, and this process runs as user {me + 1}: "
        "choose another name, or run all workers as the same user"
    ) == refused(path)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (
            errno.ENOSPC,
            (
                "no room for 9,728 bytes on its file system: enlarge that (docker run --shm-size), remove what is not "
                "needed, or ask for less with ?buckets="
            ),
        ),
        (
            errno.EACCES,
            "this process may not open it: choose another name, or run all workers as the file's owner",
        ),
        (errno.EIO, "it cannot be opened (Input/output error)"),
    ],
)
def test_a_file_that_cannot_be_made_says_why_and_leaves_nothing(
    path: Path, nameless: bool, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def failing(descriptor: int, offset: int, size: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", failing)
    assert advice == refused(path)
    assert [] == list(path.parent.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, nameless: bool) -> None:
    assert f"there is no folder {tmp_path}/gone: make it, or name another" == refused(tmp_path / "gone" / "limits")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_stays_open_but_the_memory(path: Path) -> None:
    before = descriptors()
    kept = [opened(path), opened(path)]
    assert before + 2 == descriptors(), "each mapping has one"
    kept.clear()
    assert before == descriptors()
    path.chmod(0o644)
    refused(path)
    assert before == descriptors()


def test_with_record_locks_a_file_is_opened_once_and_stays_open(path: Path) -> None:
    """Whoever closes any descriptor of it would lose all the locks on it."""
    first = opened(path, kind=RecordLocks)
    before = descriptors()
    assert first.locks is opened(path, kind=RecordLocks).locks
    del first
    opened(path, kind=RecordLocks)
    assert before == descriptors()
    segment._KEPT[path.stat().st_dev, path.stat().st_ino][0].locks.try_lock(4096)


def test_with_record_locks_a_file_that_two_threads_open_at_once_is_theirs_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(path, kind=RecordLocks)
    before = descriptors()
    monkeypatch.setattr(segment, "_kept", lambda path: None)
    assert first.locks is opened(path, kind=RecordLocks).locks
    assert before + 2 == descriptors(), "the second stays open, unused"


def test_a_file_of_an_earlier_boot_is_replaced_by_an_empty_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "_boot", lambda: b"the boot before".ljust(36))
    before = opened(path)
    before.memory[before.start] = 1
    monkeypatch.undo()
    after = opened(path)
    assert before.identity != after.identity
    assert (1, 0) == (before.memory[before.start], after.memory[after.start])
    assert [path] == list(path.parent.iterdir())


def test_a_file_of_an_earlier_boot_that_another_process_is_replacing_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "_boot", lambda: b"the boot before".ljust(36))
    before = opened(path)
    monkeypatch.undo()
    real, after = segment._remove, []

    def remove_late(path: Path, descriptor: int) -> None:
        monkeypatch.setattr(segment, "_remove", real)
        after.append(opened(path).identity)  # the other process is quicker
        real(path, descriptor)

    monkeypatch.setattr(segment, "_remove", remove_late)
    assert [opened(path).identity] == after != [before.identity]


def test_a_file_that_another_process_never_gets_round_to_replace_is_given_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "_boot", lambda: b"the boot before".ljust(36))
    opened(path)
    monkeypatch.undo()
    clock = FakeClock()
    monkeypatch.setattr(segment, "SYSTEM_CLOCK", clock)
    with path.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        message = "it is of an earlier boot, and another process that replaces it does not go on: end it"
        assert message == refused(path)
    assert 1_000 < clock.seconds() <= 1_000.06, "what it waited"
    assert 4 == opened(path).rows


def test_what_another_process_holds_for_removal_is_left_to_it(path: Path) -> None:
    opened(path)
    holder, other = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    segment._remove(path, other)
    assert path.exists()
    os.close(holder)
    segment._remove(path, other)
    assert not path.exists()
    os.close(other)


def test_where_the_system_does_not_tell_its_boots_apart_all_are_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(self: Path) -> bytes:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_bytes", missing)
    assert opened(path).identity == opened(path).identity
