"""Locks between processes: the death of a holder opens them, and nobody waits for one longer than a bounded time.

A robust mutex of the C library in shared memory (`RobustMutexes`) costs a third of a microsecond to take and leave, and
the kernel itself marks it when its holder dies. Where there is none, record locks of the file do (`RecordLocks`); the
kernel drops those as well.

Rules of this file: only tries are made, never a call that blocks, and between tries `sleep` lets other greenlets run.
Nothing sleeps or logs while it holds a lock, also not for another one. A signal handler may raise after any call, also
after the one that took a lock and before its answer is known: whoever asks for a lock abandons it on every exception,
which is harmless for one that is not held, since locks know their holder. They know it by its number, which a thread of
another container may share: so what is known to be somebody else's is not abandoned.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from resilience.clock import SYSTEM_CLOCK
from resilience.errors import StorageBusy, StorageUnavailable

__all__ = [
    "LOCK_SIZE",
    "NOT_TAKEN",
    "Handle",
    "Locks",
    "RecordLocks",
    "RobustMutexes",
    "Stripes",
    "Words",
    "best_locks",
]

_LOG = logging.getLogger(__name__)

LOCK_SIZE: Final = 64
"""Bytes kept for a lock: a cache line, so that neighbours do not slow each other down."""

Handle = Any
"""What names a lock to its own kind: a reference for C, or a number."""

NOT_TAKEN: Final = (errno.EBUSY, errno.EDEADLK)
"""The answers of a try after which the lock is certainly not this call's. Which one it is tells little: threads of two
containers that share the memory may have the same number, and then each takes the other's lock for its own."""

PATIENCE: Final = 0.004
"""Seconds to wait for a lock whose holder stands still; with the last pause it comes to less than 5 ms."""

LONGEST: Final = 1.0
"""Seconds to wait for a lock whose holder runs, waits for a processor (a machine with more to do than it can) or cannot be
seen (of another container)."""

_TRIES: Final = 40  # in a row, some ten microseconds: a holder that runs needs one or two
_TRIES_AFTER_PAUSE: Final = 10
_FIRST_PAUSE: Final = 0.000_05
_LONGEST_PAUSE: Final = 0.000_5
_MEMORY: Final = 0.25  # seconds for which a holder that stood still is not waited for again
_SILENCE: Final = 10.0  # seconds between two warnings


class Locks(Protocol):
    """One kind of locks between processes. All answers are error numbers, 0 for yes."""

    code: int
    """Tells the kinds apart in a file."""
    keeps_files: bool
    """Whether a file that has such locks must stay open until the process ends."""
    handles: Sequence[Handle]

    def __init__(self, memory: mmap.mmap, descriptor: int, offset: int, count: int) -> None: ...

    def prepare(self) -> None:
        """Make the locks, once for a file. Raises `OSError` where that cannot be."""

    @property
    def try_lock(self) -> Callable[[Handle], int]:
        """Takes the lock if it is free. EBUSY, EDEADLK: it is not (EDEADLK: one with this thread's number has it).
        EOWNERDEAD: taken from a dead one."""

    @property
    def unlock(self) -> Callable[[Handle], int]:
        """Leaves the lock; does nothing where this thread does not hold it."""

    @property
    def mend(self) -> Callable[[Handle], int]:
        """Says that all is well after EOWNERDEAD."""

    def abandon(self, handle: Handle) -> None:
        """Leave the lock if this thread holds it, whatever its state."""

    def holder(self, handle: Handle) -> int:
        """The thread that holds the lock, by the kernel's number; 0 for nobody, or where it cannot be told."""

    def stands_still(self, handle: Handle) -> bool | None:
        """Whether the holder is stopped; one that runs or waits for a processor is not. None: it cannot be told."""


class _Mutex(ctypes.Structure):
    _fields_ = (("word", ctypes.c_uint32), ("rest", ctypes.c_char * (LOCK_SIZE - 4)))


# From the C library's <pthread.h> on Linux.
_SHARED: Final = 1
_ROBUST: Final = 1
_ERROR_CHECKING: Final = 2  # tells a thread that takes twice from one that must wait
_HOLDER_MASK: Final = 0x3FFF_FFFF  # of the first word, which is a robust futex: see futex(2) and robust_list


class RobustMutexes:
    """Robust, shared, error-checking mutexes of glibc in `memory`, from `offset` on."""

    keeps_files = False
    code: int = ctypes.sizeof(ctypes.c_void_p)  # what a mutex looks like differs between 32 and 64 bits

    def __init__(self, memory: mmap.mmap, descriptor: int, offset: int, count: int) -> None:  # noqa: ARG002
        # PyDLL: a try is shorter than giving up the interpreter and taking it again.
        library = ctypes.PyDLL(None)
        self._library = library
        self._memory = memory  # must not go before the handles, which are mere addresses in it
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory, offset))
        mutexes = [_Mutex.from_address(start + index * LOCK_SIZE) for index in range(count)]
        self.handles: Sequence[Handle] = [ctypes.byref(mutex) for mutex in mutexes]
        self._mutexes = dict(zip(self.handles, mutexes, strict=True))
        self.try_lock: Callable[[Handle], int] = library.pthread_mutex_trylock
        self.unlock: Callable[[Handle], int] = library.pthread_mutex_unlock
        self.mend: Callable[[Handle], int] = library.pthread_mutex_consistent

    def prepare(self) -> None:
        """Make the mutexes, once for a file."""
        library, attributes = self._library, ctypes.create_string_buffer(LOCK_SIZE)
        _check(library.pthread_mutexattr_init(attributes))
        _check(library.pthread_mutexattr_setpshared(attributes, _SHARED))
        _check(library.pthread_mutexattr_setrobust(attributes, _ROBUST))
        _check(library.pthread_mutexattr_settype(attributes, _ERROR_CHECKING))
        for handle in self.handles:
            _check(library.pthread_mutex_init(handle, attributes))

    def abandon(self, handle: Handle) -> None:
        """Leave the lock if this thread holds it, also when it was taken from one that died."""
        if self.holder(handle) == threading.get_native_id():
            self.mend(handle)
            self.unlock(handle)

    def holder(self, handle: Handle) -> int:
        """The thread that holds the lock."""
        word: int = self._mutexes[handle].word
        return word & _HOLDER_MASK

    def stands_still(self, handle: Handle) -> bool | None:
        """Whether the holder is stopped. None where it is not seen from here, or has this thread's own number."""
        holder = self.holder(handle)
        if holder == threading.get_native_id():
            return None  # a signal handler in the middle of a decision, or another container's thread of that number
        return holder != 0 and _is_stopped(holder)


def _is_stopped(thread: int) -> bool | None:
    try:
        status = Path(f"/proc/{thread}/stat").read_bytes()
    except OSError:
        return None  # of another container, it may be, or gone by now
    return status[status.rindex(b")") + 2 :][:1] in (b"T", b"t")


def _check(status: int) -> None:
    if status:
        raise OSError(status, os.strerror(status))


class RecordLocks:
    """POSIX record locks on single bytes of the file, and a note of which thread has each: they know no threads.

    A process that closes any descriptor of a file loses all its record locks on it. Whoever makes one of these keeps it,
    the descriptor and the mapping until the process ends.
    """

    code: int = 1
    keeps_files = True

    def __init__(self, memory: mmap.mmap, descriptor: int, offset: int, count: int) -> None:  # noqa: ARG002
        self._descriptor = descriptor
        self._holders: dict[int, tuple[int]] = {}
        self.handles: Sequence[Handle] = range(offset, offset + count)
        _RECORD_LOCKS.add(self)

    def forget(self) -> None:
        """What the threads of this process have: in a child, neither they nor their locks exist."""
        self._holders.clear()

    def prepare(self) -> None:
        """Nothing to make."""

    def try_lock(self, handle: int) -> int:
        """Take the lock if it is free."""
        me = (threading.get_ident(),)
        holder = self._holders.setdefault(handle, me)  # one step, so that of two threads one has it
        if holder is not me:
            return errno.EDEADLK if holder == me else errno.EBUSY
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, handle)
        except OSError as error:
            del self._holders[handle]
            return errno.EBUSY if error.errno in (errno.EAGAIN, errno.EACCES) else error.errno or errno.EIO
        return 0

    def unlock(self, handle: int) -> int:
        """Leave the lock; does nothing where this thread does not hold it."""
        if self._holders.get(handle) != (threading.get_ident(),):
            return errno.EPERM
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, handle)
        del self._holders[handle]
        return 0

    def mend(self, handle: int) -> int:  # noqa: ARG002
        """Nothing to say: the kernel drops the locks of the dead without telling."""
        return 0

    def abandon(self, handle: int) -> None:
        """Leave the lock if this thread holds it."""
        self.unlock(handle)

    def holder(self, handle: int) -> int:
        """The process that holds the lock; 0 for this one, and where the answer of the system has another shape."""
        if sys.platform != "linux":
            return 0
        question = _RECORD_LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, handle, 1, 0)
        kind, _, _, _, process = _RECORD_LOCK.unpack(fcntl.fcntl(self._descriptor, fcntl.F_GETLK, question))
        return 0 if kind == fcntl.F_UNLCK else int(process)

    def stands_still(self, handle: int) -> bool | None:
        """Whether the holder is stopped. None where it cannot be told."""
        holder = self.holder(handle)
        if holder:
            return _is_stopped(holder)
        return False if sys.platform == "linux" else None


_RECORD_LOCK: Final = struct.Struct("hhqqi4x")  # struct flock of Linux

_RECORD_LOCKS: weakref.WeakSet[RecordLocks] = weakref.WeakSet()


def _forget_in_child() -> None:
    for locks in _RECORD_LOCKS:
        locks.forget()


os.register_at_fork(after_in_child=_forget_in_child)


def best_locks() -> type[Locks]:
    """The best kind that this system has. All processes of a machine answer alike."""
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        library = ""
    return RobustMutexes if sys.platform == "linux" and library.startswith("glibc") else RecordLocks


class _Stall(NamedTuple):
    holder: int
    until: float  # the second of the system's clock up to which it is taken for granted


class Words(NamedTuple):
    """How messages speak of what the locks of a file are for."""

    thing: str = "bucket"
    work: str = "decision"
    stall: str = "decisions over one bucket in {} are left to on_store_failure"


class Stripes:
    """The locks of one file, and how they are waited for. `title` names the file in messages."""

    __slots__ = ("_locks", "_silent_until", "_stalls", "_title", "_words", "handles", "try_lock", "unlock")

    def __init__(self, locks: Locks, title: str, words: Words = Words()) -> None:  # noqa: B008  # it is frozen
        self._locks = locks
        self._title = title
        self._words = words
        self._stalls: dict[Handle, _Stall] = {}
        self._silent_until = 0.0
        self.handles = locks.handles
        self.try_lock = locks.try_lock
        self.unlock = locks.unlock

    def insist(self, handle: Handle, status: int) -> int:
        """Take the lock that `try_lock` did not simply give, but answered `status` for. Returns 0.

        Raises `StorageBusy` when it was not to be had in time, and `StorageUnavailable` when the lock is broken.
        """
        if status == errno.EBUSY:
            try:
                status = self._try(handle, _TRIES)
                if not status:
                    self._forget_stalls((handle,))
            except BaseException:
                # It was somebody else's, so if it is this thread's now, then by a try whose answer was not heard.
                self._locks.abandon(handle)
                raise
        if status in NOT_TAKEN:
            self.take_all((handle,))
            return 0
        if status == errno.EOWNERDEAD:
            return self._locks.mend(handle)
        if status:
            raise self._error(status)
        return 0

    def take_all(self, handles: Sequence[Handle]) -> None:
        """Take all of them, or none and raise as `insist` does. All callers name them in the same order, each once."""
        blocked = self._try_all(handles, _TRIES)
        if blocked is None:
            return
        if self._is_known_to_stand_still(blocked):
            raise self._busy()
        started, pause = SYSTEM_CLOCK.seconds(), _FIRST_PAUSE
        while True:
            SYSTEM_CLOCK.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            blocked = self._try_all(handles, _TRIES_AFTER_PAUSE)
            if blocked is None:
                return
            waited = SYSTEM_CLOCK.seconds() - started
            if waited >= PATIENCE:
                stands_still = self._locks.stands_still(blocked)
                if stands_still or (waited >= LONGEST and stands_still is None):
                    self._remember(blocked)
                if stands_still or waited >= LONGEST:
                    raise self._busy()

    def leave_all(self, handles: Sequence[Handle]) -> None:
        """Leave the locks that `take_all` took."""
        for handle in handles:
            self.unlock(handle)

    def abandon(self, handles: Sequence[Handle]) -> None:
        """Leave those of the locks that this thread holds: for one who cannot know how far things came."""
        for handle in handles:
            self._locks.abandon(handle)

    def _try_all(self, handles: Sequence[Handle], tries: int) -> Handle | None:
        """Take all without waiting, or none; None when all are taken, else the one that is not to be had."""
        taken: list[Handle] = []
        status = 0
        try:
            for handle in handles:
                taken.append(handle)
                status = self._try(handle, tries)
                if status:
                    taken.pop()
                    break
            else:
                self._forget_stalls(handles)
                return None
        except BaseException:
            self.abandon(taken)
            raise
        self.abandon(taken)
        if status != errno.EBUSY:
            raise self._error(status)
        return handle

    def _try(self, handle: Handle, tries: int) -> int:
        status = errno.EBUSY
        for _ in range(tries):
            status = self.try_lock(handle)
            if status == errno.EOWNERDEAD:
                return self._locks.mend(handle)
            if status not in NOT_TAKEN:
                break
        # A lock that seems to be this thread's own may be that of one with the same number in another container.
        return errno.EBUSY if status == errno.EDEADLK else status

    def _is_known_to_stand_still(self, handle: Handle) -> bool:
        stall = self._stalls.get(handle)
        if stall is None or stall.holder != self._locks.holder(handle):
            return False
        now = SYSTEM_CLOCK.seconds()
        if now < stall.until:
            return True
        # One caller looks again, the others rely meanwhile on what was seen.
        self._stalls[handle] = _Stall(stall.holder, now + _MEMORY)
        if stall.holder != 0 and self._locks.stands_still(handle) is not False:
            return True
        self._forget_stalls((handle,))
        return False

    def _forget_stalls(self, handles: Sequence[Handle]) -> None:
        if self._stalls:
            for handle in handles:
                self._stalls.pop(handle, None)

    def _remember(self, handle: Handle) -> None:
        holder, now = self._locks.holder(handle), SYSTEM_CLOCK.seconds()
        self._stalls[handle] = _Stall(holder, now + _MEMORY)
        if now < self._silent_until:
            return
        self._silent_until = now + _SILENCE
        _LOG.warning(
            "%s: thread %s holds a lock and does not go on; %s until it continues or is killed",
            self._title,
            holder or "unknown",
            self._words.stall.format(len(self.handles)),
        )

    def _busy(self) -> StorageBusy:
        return StorageBusy(
            f"{self._title}: another process holds the {self._words.thing}'s lock and does not go on, or a signal handler "
            f"asks in the middle of a {self._words.work}"
        )

    def _error(self, status: int) -> StorageUnavailable:
        return StorageUnavailable(
            f"{self._title}: a lock is broken ({os.strerror(status)}): stop its users and remove the file"
        )
