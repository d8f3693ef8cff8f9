"""Locks between processes, here between threads: taken once, left by their holder, waited for a bounded time."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from resilience.errors import StorageBusy, StorageUnavailable
from resilience.storage import mutex
from resilience.storage.mutex import LOCK_SIZE, Locks, RecordLocks, RobustMutexes, Stripes, best_locks
from resilience.testing import FakeClock

COUNT = 4
OFFSET = 128


@pytest.fixture(params=[RobustMutexes, RecordLocks])
def locks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Locks]:
    kind: type[Locks] = request.param
    path = tmp_path / "locks"
    path.write_bytes(bytes(OFFSET + COUNT * LOCK_SIZE))
    descriptor = os.open(path, os.O_RDWR)
    made = kind(mmap.mmap(descriptor, 0), descriptor, OFFSET, COUNT)
    made.prepare()
    yield made
    os.close(descriptor)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The system's clock, on which to sleep takes no time."""
    clock = FakeClock()
    monkeypatch.setattr(mutex, "SYSTEM_CLOCK", clock)
    return clock


@pytest.fixture
def stripes(locks: Locks, clock: FakeClock) -> Stripes:
    return Stripes(locks, "shm://test")


@contextmanager
def held_by_another_thread(locks: Locks, handle: object) -> Iterator[None]:
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        assert 0 == locks.try_lock(handle)
        taken.set()
        done.wait()
        locks.unlock(handle)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def seconds_of(clock: FakeClock, call: Callable[[], object]) -> float:
    started = clock.seconds()
    with pytest.raises(StorageBusy, match="shm://test: another process holds the bucket's lock and does not go on"):
        call()
    return round(clock.seconds() - started, 6)


def test_a_free_lock_is_taken_and_left(locks: Locks) -> None:
    for handle in locks.handles:
        assert (0, 0) == (locks.try_lock(handle), locks.unlock(handle))
    assert COUNT == len(locks.handles)


def test_a_thread_that_takes_a_lock_twice_is_told_so(locks: Locks) -> None:
    handle = locks.handles[0]
    assert (0, errno.EDEADLK) == (locks.try_lock(handle), locks.try_lock(handle))
    assert 0 == locks.unlock(handle)


def test_a_lock_that_another_thread_holds_is_neither_taken_nor_left(locks: Locks) -> None:
    handle = locks.handles[0]
    with held_by_another_thread(locks, handle):
        assert (errno.EBUSY, errno.EPERM) == (locks.try_lock(handle), locks.unlock(handle))
        locks.abandon(handle)
        assert errno.EBUSY == locks.try_lock(handle)
        assert 0 == locks.try_lock(locks.handles[1]), "the others are free"
        locks.abandon(locks.handles[1])
    assert 0 == locks.try_lock(handle)
    locks.unlock(handle)


def test_the_holder_runs_and_so_does_not_stand_still(locks: Locks) -> None:
    handle = locks.handles[0]
    assert (0, False) == (locks.holder(handle), locks.stands_still(handle))
    with held_by_another_thread(locks, handle):
        assert not locks.stands_still(handle)


def test_of_a_holder_that_cannot_be_seen_it_is_not_known_whether_it_stands_still() -> None:
    assert [None, False] == [mutex._is_stopped(thread) for thread in (2**30, os.getpid())]


@pytest.mark.parametrize("locks", [RobustMutexes], indirect=True)
def test_a_holder_with_this_threads_own_number_may_be_of_another_container(locks: Locks) -> None:
    handle = locks.handles[0]
    locks.try_lock(handle)
    assert None is locks.stands_still(handle)
    locks.unlock(handle)


@pytest.mark.parametrize("locks", [RecordLocks], indirect=True)
def test_where_the_system_does_not_name_the_holder_nothing_is_known_of_it(
    locks: Locks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert (0, None) == (locks.holder(locks.handles[0]), locks.stands_still(locks.handles[0]))


# Of record locks only a process can die, not a thread.
@pytest.mark.parametrize("locks", [RobustMutexes], indirect=True)
def test_a_lock_whose_holder_died_is_taken_and_mended(locks: Locks, stripes: Stripes) -> None:
    handle = locks.handles[0]
    for take in (lambda: stripes.insist(handle, locks.try_lock(handle)), lambda: stripes.take_all([handle])):
        take_and_die(locks, handle)
        take()
        assert (0, 0) == (locks.unlock(handle), locks.try_lock(handle))
        locks.unlock(handle)


@pytest.mark.parametrize("locks", [RobustMutexes], indirect=True)
def test_a_lock_that_was_taken_from_one_that_died_may_be_abandoned(locks: Locks) -> None:
    handle = locks.handles[0]
    take_and_die(locks, handle)
    assert errno.EOWNERDEAD == locks.try_lock(handle)
    locks.abandon(handle)
    assert 0 == locks.try_lock(handle)
    locks.unlock(handle)


def take_and_die(locks: Locks, handle: object) -> None:
    thread = threading.Thread(target=locks.try_lock, args=[handle])
    thread.start()
    thread.join()
    while Path(f"/proc/self/task/{thread.native_id}").exists():
        os.sched_yield()  # joined, but the kernel has not seen it go


def test_a_lock_that_is_left_while_one_waits_is_taken(locks: Locks, stripes: Stripes, clock: FakeClock) -> None:
    handle = locks.handles[0]
    with held_by_another_thread(locks, handle):
        paused = threading.Event()
        clock.sleep = lambda seconds: paused.set()  # type: ignore[method-assign]

        def take_and_leave() -> None:
            stripes.take_all([handle])
            stripes.leave_all([handle])

        waiting = threading.Thread(target=take_and_leave)
        waiting.start()
        assert paused.wait(5)
    waiting.join(5)
    assert not waiting.is_alive()
    assert 0 == locks.try_lock(handle)
    locks.unlock(handle)


def test_a_holder_that_stands_still_is_waited_for_less_than_five_milliseconds_and_then_not_at_all(
    locks: Locks, stripes: Stripes, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = locks.handles[0]
    monkeypatch.setattr(locks, "stands_still", lambda handle: True)
    monkeypatch.setattr(locks, "holder", lambda handle: 7)
    with held_by_another_thread(locks, handle):
        assert 0.004 <= seconds_of(clock, lambda: stripes.insist(handle, errno.EBUSY)) <= 0.005
        assert 0 == seconds_of(clock, lambda: stripes.take_all([handle]))
        clock.advance(0.3)
        assert 0 == seconds_of(clock, lambda: stripes.take_all([handle])), "one look tells that nothing has changed"
        monkeypatch.setattr(locks, "holder", lambda handle: 8)
        assert 0.004 <= seconds_of(clock, lambda: stripes.take_all([handle])) <= 0.005, "another holder, another wait"
    stripes.take_all([handle])
    assert {} == stripes._stalls
    stripes.leave_all([handle])


def test_a_holder_that_goes_on_is_waited_for_again(
    locks: Locks, stripes: Stripes, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = locks.handles[0]
    monkeypatch.setattr(locks, "holder", lambda handle: 7)
    monkeypatch.setattr(locks, "stands_still", lambda handle: True)
    with held_by_another_thread(locks, handle):
        seconds_of(clock, lambda: stripes.take_all([handle]))
        clock.advance(0.3)
        monkeypatch.setattr(locks, "stands_still", lambda handle: False)
        assert 1.0 <= seconds_of(clock, lambda: stripes.take_all([handle])) <= 1.001


def test_a_holder_that_only_waits_for_a_processor_is_waited_for_longer(
    locks: Locks, stripes: Stripes, clock: FakeClock
) -> None:
    handle = locks.handles[0]
    with held_by_another_thread(locks, handle):
        assert 1.0 <= seconds_of(clock, lambda: stripes.take_all([handle])) <= 1.001
        assert {} == stripes._stalls, "and is no stall: the next to ask waits as well"
        assert 1.0 <= seconds_of(clock, lambda: stripes.take_all([handle])) <= 1.001


@pytest.mark.parametrize("locks", [RobustMutexes], indirect=True)
def test_a_holder_that_cannot_be_seen_is_waited_for_as_long_and_then_not_at_all(
    locks: Locks, stripes: Stripes, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = locks.handles[0]
    monkeypatch.setattr(locks, "stands_still", lambda handle: None)
    with held_by_another_thread(locks, handle):
        assert 1.0 <= seconds_of(clock, lambda: stripes.insist(handle, errno.EBUSY)) <= 1.001
        assert 0 == seconds_of(clock, lambda: stripes.take_all([handle]))
        clock.advance(0.3)
        assert 0 == seconds_of(clock, lambda: stripes.take_all([handle])), "it has still not been seen to go on"
    assert 0 == stripes.insist(handle, errno.EBUSY)
    assert {} == stripes._stalls
    stripes.leave_all([handle])


def test_of_a_stall_that_has_ended_nobody_is_told_any_more(
    locks: Locks, stripes: Stripes, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = locks.handles[0]
    monkeypatch.setattr(locks, "holder", lambda handle: 7)
    monkeypatch.setattr(locks, "stands_still", lambda handle: True)
    with held_by_another_thread(locks, handle):
        seconds_of(clock, lambda: stripes.take_all([handle]))
        clock.advance(0.3)
        monkeypatch.setattr(locks, "stands_still", lambda handle: False)
        assert not stripes._is_known_to_stand_still(handle)
        assert not stripes._is_known_to_stand_still(handle), "neither to the first who asks nor to the next"


def test_a_lock_of_another_containers_thread_with_the_same_number_is_waited_for(
    locks: Locks, stripes: Stripes, clock: FakeClock
) -> None:
    """Such a lock seems to be this thread's own."""
    handle, real, slept = locks.handles[0], stripes.try_lock, 0

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += 1
        clock.advance(seconds)

    def try_lock(handle: object) -> int:
        return real(handle) if slept > 3 else errno.EDEADLK

    clock.sleep = sleep  # type: ignore[method-assign]
    stripes.try_lock = try_lock
    for take in (lambda: stripes.insist(handle, errno.EDEADLK), lambda: stripes.take_all([handle])):
        slept = 0
        take()
        assert 4 == slept
        assert errno.EDEADLK == locks.try_lock(handle), "it is really this thread's now"
        locks.unlock(handle)


def test_who_waits_for_one_lock_holds_no_other(locks: Locks, stripes: Stripes, clock: FakeClock) -> None:
    seen: list[int] = []

    def look(seconds: float) -> None:
        clock.advance(seconds)
        seen.extend(locks.try_lock(handle) for handle in locks.handles[:2])
        for handle in locks.handles[:2]:
            locks.unlock(handle)

    clock.sleep = look  # type: ignore[method-assign]
    with held_by_another_thread(locks, locks.handles[2]):
        seconds_of(clock, lambda: stripes.take_all(locks.handles))
        assert {0} == set(seen)
        assert (0, 0) == (locks.try_lock(locks.handles[0]), locks.try_lock(locks.handles[3])), "nothing was kept"
        stripes.leave_all([locks.handles[0], locks.handles[3]])
    stripes.take_all(locks.handles)
    stripes.leave_all(locks.handles)


def test_an_exception_from_outside_leaves_no_lock_behind(
    locks: Locks, stripes: Stripes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler may raise after any call: right after a lock was taken, or between two that are left."""

    class ByHandlerError(Exception):
        pass

    real = {name: getattr(stripes, name) for name in ("try_lock", "unlock")}

    def interrupted(name: str) -> Callable[[object], int]:
        def call(handle: object) -> int:
            real[name](handle)
            raise ByHandlerError

        return call

    stripes.try_lock = interrupted("try_lock")
    with pytest.raises(ByHandlerError):
        stripes.take_all(locks.handles)
    with pytest.raises(ByHandlerError):
        stripes.insist(locks.handles[0], errno.EBUSY)
    assert 0 == locks.try_lock(locks.handles[0])
    locks.unlock(locks.handles[0])
    stripes.try_lock = real["try_lock"]
    stripes.take_all(locks.handles)
    stripes.unlock = interrupted("unlock")
    with pytest.raises(ByHandlerError):
        stripes.leave_all(locks.handles)
    stripes.abandon(locks.handles)
    assert [0] * COUNT == [locks.try_lock(handle) for handle in locks.handles]
    for handle in locks.handles:
        locks.unlock(handle)


def test_a_stall_is_logged_once(
    locks: Locks,
    stripes: Stripes,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = locks.handles[0]
    monkeypatch.setattr(locks, "stands_still", lambda handle: True)
    with caplog.at_level(logging.WARNING), held_by_another_thread(locks, handle):
        for _ in range(5):
            seconds_of(clock, lambda: stripes.take_all([handle]))
            clock.advance(1)
    (line,) = caplog.messages
    assert line.startswith("shm://test: thread ")
    assert line.endswith(
        "holds a lock and does not go on; decisions over one bucket in 4 are left to on_store_failure "
        "until it continues or is killed"
    )


def test_a_lock_asked_for_by_its_holder_is_refused_in_the_end_and_stays_its(
    locks: Locks, stripes: Stripes, clock: FakeClock
) -> None:
    """Only a signal handler asks so. It cannot be told from a thread of another container."""
    handle = locks.handles[0]
    locks.try_lock(handle)
    for ask in (lambda: stripes.insist(handle, locks.try_lock(handle)), lambda: stripes.take_all([handle])):
        assert seconds_of(clock, ask) <= 1.001
    assert errno.EDEADLK == locks.try_lock(handle)
    locks.unlock(handle)


def test_a_broken_lock_says_what_to_do(locks: Locks, stripes: Stripes) -> None:
    with pytest.raises(StorageUnavailable, match=r"a lock is broken .*: stop its users and remove the file") as caught:
        stripes.insist(locks.handles[0], errno.ENOTRECOVERABLE)
    assert StorageUnavailable is type(caught.value)


def test_a_file_that_cannot_be_locked_is_no_reason_to_wait(tmp_path: Path) -> None:
    (tmp_path / "locks").touch()
    descriptor = os.open(tmp_path / "locks", os.O_RDONLY)
    locks = RecordLocks(mmap.mmap(-1, 1), descriptor, 0, 1)
    assert errno.EBADF == locks.try_lock(0)
    assert {} == locks._holders
    os.close(descriptor)


def test_where_the_c_library_has_no_robust_mutexes_the_file_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (RobustMutexes if "CS_GNU_LIBC_VERSION" in os.confstr_names else RecordLocks) is best_locks()

    def unknown(name: str) -> str:
        raise ValueError(name)

    monkeypatch.setattr(os, "confstr", unknown)
    assert RecordLocks is best_locks()


def test_mutexes_that_the_system_refuses_to_make_are_an_error() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        mutex._check(errno.EINVAL)
