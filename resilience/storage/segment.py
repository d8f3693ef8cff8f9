"""The file behind `shm://`: made whole or not at all, reserved in full, and opened only when it is what it should be.

    0       the header: what this is, its measures, a secret for the keys, and the boot since which its times count
    4096    the locks, 64 bytes each
    then    rows of one size: what they hold is a matter of the file's form

The file is made without a name and linked to its name when it is ready, so nobody ever sees half of one, and a kill on
the way leaves nothing behind. All its bytes are reserved, so that a full file system is told of at once, and not by a
signal in the middle of a decision.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from resilience.clock import SYSTEM_CLOCK
from resilience.errors import StorageUnavailable
from resilience.storage.mutex import LOCK_SIZE, Locks
from resilience.storage.table import KEY_SIZE, PLACES, ROW_SIZE

__all__ = ["BUCKETS", "LAYOUT", "Form", "Segment", "attach"]

LAYOUT: Final = 1
"""Of a file of buckets. It changes with every change of the header, the locks or the table."""

_HEADER: Final = struct.Struct("=8sIIIIQ16s36s")
_HEADER_SIZE: Final = 4096
_MOST_STRIPES: Final = 64
_TRIES: Final = 50
_PAUSE: Final = 0.001  # seconds between tries, of which the second rarely comes
_NAMELESS_FILES: bool = hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir()


class Form(NamedTuple):
    """What a file holds, told from other files by `magic` (8 bytes) and `layout`: rows of `row_size` bytes, each for `places`
    of what is kept. `option` is how an address says how many those are."""

    magic: bytes
    layout: int
    places: int
    row_size: int
    option: str

    def rows(self, places: int) -> int:
        """How many rows hold so many."""
        return -(-places // self.places)

    def size(self, rows: int) -> int:
        """Bytes of a file of so many rows."""
        return _HEADER_SIZE + _stripes(rows) * LOCK_SIZE + rows * self.row_size


BUCKETS: Final = Form(b"seawall\n", LAYOUT, PLACES, ROW_SIZE, "buckets")
"""The file of the rate limiter."""


class Segment(NamedTuple):
    """An open file: `memory` shared with everybody who opened it, `rows` rows from `start` on."""

    memory: mmap.mmap
    locks: Locks
    start: int
    rows: int
    secret: bytes
    identity: tuple[int, int]


class _Header(NamedTuple):
    magic: bytes
    layout: int
    locks: int
    places: int
    stripes: int
    rows: int
    secret: bytes
    boot: bytes


class _ChangedMeanwhileError(Exception):
    """Another process made, or removed, the file: look again."""


def attach(path: Path, *, places: int, kind: type[Locks], form: Form = BUCKETS) -> Segment:
    """Open the file of that `form` at `path`, or make it, for `places` places (an existing one keeps its size) and locks of
    `kind`.

    Raises `StorageUnavailable`, saying what to do, when it cannot be made, is not ours, or is something else.
    """
    rows = form.rows(places)
    for _ in range(_TRIES):
        try:
            return _kept(path) or _open(path, kind, form)
        except FileNotFoundError:
            pass
        except _ChangedMeanwhileError:
            SYSTEM_CLOCK.sleep(_PAUSE)
            continue
        except OSError as error:
            raise StorageUnavailable(f"{path}: {_advice(error, path, form, rows)}") from error
        try:
            return _make(path, rows, kind, form)
        except FileExistsError:
            continue
        except OSError as error:
            raise StorageUnavailable(f"{path}: {_advice(error, path, form, rows)}") from error
    raise StorageUnavailable(
        f"{path}: it is of an earlier boot, and another process that replaces it does not go on: end it"
    )


def _advice(error: OSError, path: Path, form: Form, rows: int) -> str:
    if error.errno == errno.ELOOP:
        return "it is a symbolic link: remove it, or name the file that it points to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no room for {form.size(rows):,} bytes on its file system: enlarge that (docker run --shm-size), "
            f"remove what is not needed, or ask for less with ?{form.option}="
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return "this process may not open it: choose another name, or run all workers as the file's owner"
    if error.errno == errno.ENOENT:
        return f"there is no folder {path.parent}: make it, or name another"
    return f"it cannot be opened ({error.strerror})"


def _stripes(rows: int) -> int:
    return min(_MOST_STRIPES, rows)


def _boot() -> bytes:
    """What tells one run of the machine from the next: its monotonic clock starts again with each."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:36].ljust(36, b"\0")
    except OSError:
        return bytes(36)


_KEPT: dict[tuple[int, int], list[Segment]] = {}
"""The files that stay open until the process ends, by their identity: see `Locks.keeps_files`."""


def _kept(path: Path) -> Segment | None:
    if not _KEPT:
        return None
    status = path.lstat()
    segments = _KEPT.get((status.st_dev, status.st_ino))
    return segments[0] if segments else None


def _open(path: Path, kind: type[Locks], form: Form) -> Segment:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with _closing(descriptor) as keep:
        header = _checked(path, descriptor, kind, form)
        if header.boot != _boot():
            _remove(path, descriptor)
            raise _ChangedMeanwhileError
        return keep(_mapped(descriptor, header.rows, header.secret, kind, form))


def _make(path: Path, rows: int, kind: type[Locks], form: Form) -> Segment:
    secret = secrets.token_bytes(KEY_SIZE)
    with _blank(path.parent) as (descriptor, name), _closing(descriptor) as keep:
        os.fchmod(descriptor, 0o600)
        _reserve(descriptor, form.size(rows))
        segment = _mapped(descriptor, rows, secret, kind, form)
        segment.locks.prepare()
        header = _Header(form.magic, form.layout, kind.code, form.places, _stripes(rows), rows, secret, _boot())
        _HEADER.pack_into(segment.memory, 0, *header)
        _link(name, path)
        return keep(segment)


@contextmanager
def _blank(folder: Path) -> Iterator[tuple[int, Path]]:
    """A new, empty file in `folder` that has no name there, or only for now; and under which name it can be linked."""
    if _NAMELESS_FILES:
        try:
            descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
        else:
            yield descriptor, Path(f"/proc/self/fd/{descriptor}")
            return
    name = folder / f".seawall-{secrets.token_hex(8)}"
    descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor, name
    finally:
        name.unlink()


def _reserve(descriptor: int, size: int) -> None:
    if sys.platform == "darwin":  # which has no posix_fallocate
        os.pwrite(descriptor, bytes(size), 0)
    else:
        os.posix_fallocate(descriptor, 0, size)


def _link(source: Path, path: Path) -> None:
    """Give the file a name that nothing has yet. Raises `FileExistsError` where something has."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Only when a folder is given does Python follow the link that an entry of /proc/self/fd is.
        os.link(source, path.name, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _mapped(descriptor: int, rows: int, secret: bytes, kind: type[Locks], form: Form) -> Segment:
    memory = mmap.mmap(descriptor, form.size(rows))
    status = os.fstat(descriptor)
    locks = kind(memory, descriptor, _HEADER_SIZE, _stripes(rows))
    start = _HEADER_SIZE + _stripes(rows) * LOCK_SIZE
    return Segment(memory, locks, start, rows, secret, (status.st_dev, status.st_ino))


@contextmanager
def _closing(descriptor: int) -> Iterator[Callable[[Segment], Segment]]:
    """Close the descriptor afterwards, unless the segment given to what this yields needs it open."""
    kept = False

    def keep(segment: Segment) -> Segment:
        nonlocal kept
        kept = segment.locks.keeps_files
        if not kept:
            return segment
        segments = _KEPT.setdefault(segment.identity, [])
        segments.append(segment)  # also a second one of two threads: it must not be closed either
        return segments[0]

    try:
        yield keep
    finally:
        if not kept:
            os.close(descriptor)


def _checked(path: Path, descriptor: int, kind: type[Locks], form: Form) -> _Header:
    """The file's header. Raises `StorageUnavailable` unless the file is ours, private and one that this code reads."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise StorageUnavailable(f"{path}: it is no regular file: remove it, or choose another name")
    if status.st_uid != os.geteuid():
        raise StorageUnavailable(
            f"{path}: it belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}: "
            "choose another name, or run all workers as the same user"
        )
    if status.st_mode & 0o077:
        raise StorageUnavailable(f"{path}: other users may open it: chmod 600, or remove it")
    data = os.pread(descriptor, _HEADER.size, 0)
    header = _Header(*_HEADER.unpack(data)) if len(data) == _HEADER.size else None
    if header is None or header.magic != form.magic:
        raise StorageUnavailable(f"{path}: it holds something else: remove it, or choose another name")
    if (header.layout, header.locks, header.places) != (form.layout, kind.code, form.places):
        raise StorageUnavailable(
            f"{path}: another version of this library, or a build for another system, made it: choose another name, or "
            "stop its users and remove it"
        )
    if header.rows < 1 or header.stripes != _stripes(header.rows) or status.st_size != form.size(header.rows):
        raise StorageUnavailable(f"{path}: it is damaged: stop its users and remove it")
    return header


def _remove(path: Path, descriptor: int) -> None:
    """Remove a file of an earlier boot, unless another process has just done so and made a new one of that name."""
    try:
        # Held until the descriptor is closed: two that looked at the same time must not both remove.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(path.lstat(), os.fstat(descriptor)):
            path.unlink()
    except (BlockingIOError, FileNotFoundError):
        pass
