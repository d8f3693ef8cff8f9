"""The database of a folder: opened once in each process, made again when it was lost.

Rules of this file:
- LMDB refuses a database twice in one process, so what is open is kept here, by folder, for all brokers of the process. A
  child can neither use nor close what its parent has open: before a fork all is closed, and opened again when it is used.
- A lock here is the interpreter's own, also where gevent has patched the process, and whoever holds one does not switch
  greenlets. So only native threads ever wait for it, and it may be taken in the loop itself.
- Who opens holds the folder's lock, so nobody sees a database half made.
- The folder belongs to this user, and nobody else can enter it. Messages of strangers are not read.
"""

from __future__ import annotations

import _socket
import _thread
import contextlib
import fcntl
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from longconn.channels.errors import ChannelsUnavailable

__all__ = ["LAYOUT", "Database", "begin_anew", "check_folder", "locked", "opened", "pause", "release"]

LAYOUT: Final = 1
"""The number of how things are written down: part of every file's name, so that two releases do not read each other's."""

_MOST_READERS: Final = 4096
_PATIENCE: Final = 2.0
"""Seconds to wait for another process that is opening the same database."""
_PAUSE: Final = 0.002
_SEQUENCES: Final = 20
"""Bits of a place in the journal below the epoch: the first place of a life is after every place of those before."""
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

_LEAST: Final = 1 << 20

_log = logging.getLogger("longconn.channels")

_open: dict[Path, Database] = {}  # guarded by _opening
_opening = _thread.RLock()


class Database:
    """An open database: the environment, its tables, and the present life of the storage."""

    def __init__(self, folder: Path, environment: Any, life: Life) -> None:
        self.folder = folder
        self.environment = environment
        self.epoch = life.epoch
        self.size = life.size
        """The most that it takes, in bytes: the most that any process asked for, or less where there is less."""
        self.journal_bytes = life.journal_bytes
        """What the journal may take of it, likewise."""
        self.users = 0
        """How many brokers use it. Guarded by the lock of this module."""
        self.lock = _thread.RLock()
        """Held for as long as a transaction lasts, so that nobody closes it meanwhile."""
        self.closed = False
        """Whether it must be opened again. Guarded by `lock`."""
        self.journal = environment.open_db(b"journal")
        self.history = environment.open_db(b"history")
        self.channels = environment.open_db(b"channels")
        self.queue = environment.open_db(b"queue")
        self._file = _identity(_messages(folder))
        self._life = _version(_life_file(folder))

    @property
    def first_place(self) -> int:
        """The first place of the journal in this life."""
        return (self.epoch << _SEQUENCES) + 1

    def is_current(self) -> bool:
        """Whether its file is still the one in the folder."""
        return _identity(_messages(self.folder)) == self._file

    def keep_up(self) -> None:
        """Take as much room as another process has given it meanwhile."""
        seen = _version(_life_file(self.folder))
        life = _life(self.folder) if seen != self._life else None
        if life is None or life.epoch != self.epoch:
            return
        with self.lock:
            if not self.closed:
                self._life = seen
                self.journal_bytes = max(self.journal_bytes, life.journal_bytes)
                if life.size > self.size:
                    self.environment.set_mapsize(life.size)
                    self.size = life.size

    def close(self) -> None:
        """Close it, once nobody is in the middle of a transaction."""
        with self.lock:
            if not self.closed:
                self.closed = True
                self.environment.close()


def opened(folder: Path, size: int, journal_bytes: int) -> Database:
    """The database of `folder`, made if there is none, of at most `size` bytes of which the journal has `journal_bytes`; or of
    what it was given before, where that is more. Give it back with `release`.

    Raises `ChannelsUnavailable`.
    """
    with _opening:
        database = _open.get(folder)
        if database is not None and not database.is_current():
            del _open[folder]
            database.close()
            database = None
        if database is None:
            database = _open[folder] = _opened_anew(folder, size, journal_bytes)
        elif database.size < size or database.journal_bytes < journal_bytes:
            with locked(folder):
                _life_of(folder, size, journal_bytes)
            database.keep_up()
        database.users += 1
        return database


def begin_anew(database: Database) -> None:
    """Throw away all that is in the folder of `database`, for all processes: each opens it again, and sees another epoch."""
    with locked(database.folder):
        if database.is_current():
            _new_life(database.folder, database.epoch, database.size, database.journal_bytes)


def release(database: Database) -> None:
    """Give back what `opened` returned; the last one closes it."""
    with _opening:
        database.users -= 1
        if database.users <= 0:
            if _open.get(database.folder) is database:
                del _open[database.folder]
            database.close()


def check_folder(folder: Path) -> None:
    """Make `folder` if there is none. Raises `ChannelsUnavailable` unless it is this user's and nobody else can enter
    it."""
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
    except OSError as error:
        raise ChannelsUnavailable(f"there can be no channels in {folder}: {error.strerror or error}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise ChannelsUnavailable(f"there can be no channels in {folder}: it is not a folder")
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ChannelsUnavailable(
            f"there can be no channels in {folder}: it must belong to user {os.geteuid()} and let in nobody else (mode 0700). "
            "Remove it, or name another one with LONGCONN_CHANNELS"
        )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of `folder` among all processes. Raises `ChannelsUnavailable` when somebody else holds it for too
    long."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ChannelsUnavailable(f"there can be no channels in {folder}: {error.strerror or error}") from None
    try:
        # A process that was stopped while it held the lock must not stop this one, too.
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ChannelsUnavailable(f"another process holds {folder / 'lock'} and does not let go") from None
                pause()
        yield
    finally:
        os.close(descriptor)


def _opened_anew(folder: Path, size: int, journal_bytes: int) -> Database:
    check_folder(folder)
    with locked(folder):
        life = _life_of(folder, size, journal_bytes)
        lmdb = _lmdb()
        try:
            try:
                return _environment(folder, life)
            except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError, lmdb.PageNotFoundError):
                # What is there cannot be read. It held what can be spared: the messages of the last minutes.
                return _environment(folder, _new_life(folder, life.epoch, life.size, life.journal_bytes))
        except (lmdb.Error, OSError) as error:
            raise ChannelsUnavailable(f"there can be no channels in {folder}: {error}") from error


def _affordable(folder: Path, size: int) -> int:
    """At most `size`, and no more than half of what the file system could give: the memory of a container may be small."""
    try:
        room = os.statvfs(folder)
        own = _messages(folder).stat().st_blocks * 512 if _messages(folder).exists() else 0
    except OSError:
        return size
    most = max(_LEAST, (room.f_bavail * room.f_frsize + own) // 2)
    if most >= size:
        return size
    most -= most % 4096
    _log.warning(
        "the channels in %s take %s bytes instead of %s: the file system has no more. Give it more room (of a container, with "
        "--shm-size), or set LONGCONN_CHANNELS_SIZE",
        folder,
        f"{most:,}",
        f"{size:,}",
    )
    return most


def _environment(folder: Path, life: Life) -> Database:
    # No map that is written through: where shared memory is full (a container has 64 MB), writing to such a map kills the
    # process, while a write that fails is an error. Nor is anything synced: the file lives no longer than the machine runs.
    environment = _lmdb().open(
        str(_messages(folder)),
        subdir=False,
        map_size=life.size,
        max_dbs=4,
        max_readers=_MOST_READERS,
        mode=0o600,
        sync=False,
        metasync=False,
        max_spare_txns=4,
    )
    try:
        environment.reader_check()
        return Database(folder, environment, life)
    except BaseException:
        environment.close()
        raise


class Life(NamedTuple):
    """What is known of a database beside what it holds: on which start of the machine it was made, its epoch, and how large it
    and its journal may become. What one process gave it no other takes away."""

    boot: str
    epoch: int
    size: int
    journal_bytes: int


def _life_of(folder: Path, size: int, journal_bytes: int) -> Life:
    """The life of the database that is there, with as much room as is asked for; a new one is begun where there is none, or
    one of before the last start."""
    known = _life(folder)
    messages = _messages(folder)
    if known is None or known.boot != _boot() or not messages.exists() or not messages.stat().st_size:
        affordable = _affordable(folder, size)
        return _new_life(folder, known.epoch if known else 0, affordable, min(journal_bytes, affordable // 4))
    if known.size >= size and known.journal_bytes >= journal_bytes:
        return known
    larger = max(known.size, _affordable(folder, size) if size > known.size else 0)
    return _write_life(folder, known.epoch, larger, max(known.journal_bytes, min(journal_bytes, larger // 4)))


def _new_life(folder: Path, before: int, size: int, journal_bytes: int) -> Life:
    """Throw away what is there, and begin an epoch that is greater than `before`."""
    for leftover in (_messages(folder), folder / f"{_messages(folder).name}-lock"):
        leftover.unlink(missing_ok=True)
    return _write_life(folder, max(int(time.time() * 1000), before + 1), size, journal_bytes)


def _write_life(folder: Path, epoch: int, size: int, journal_bytes: int) -> Life:
    life = Life(_boot(), epoch, size, journal_bytes)
    new = folder / f"life.{LAYOUT}.new"
    try:
        new.touch(mode=0o600)
        new.write_text(" ".join(map(str, life)), encoding="ascii")
        new.replace(_life_file(folder))
    except OSError as error:
        raise ChannelsUnavailable(f"there can be no channels in {folder}: {error.strerror or error}") from None
    return life


def _life(folder: Path) -> Life | None:
    try:
        boot, epoch, size, journal_bytes = _life_file(folder).read_text(encoding="ascii").split()
        return Life(boot, int(epoch), int(size), int(journal_bytes))
    except (OSError, ValueError):
        return None


def _boot() -> str:
    """Which start of the machine this is: a file that was not synced may be half written after another one."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _life_file(folder: Path) -> Path:
    return folder / f"life.{LAYOUT}"


def _messages(folder: Path) -> Path:
    return folder / f"messages.{LAYOUT}"


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _lmdb() -> Any:
    # Only where channels are used: they are an extra.
    try:
        import lmdb
    except ImportError:
        raise ChannelsUnavailable("channels need the package lmdb: pip install lmdb") from None
    return lmdb


def _version(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def pause() -> None:
    """Wait for a moment without switching greenlets, whatever was patched: on a socket that nobody writes to."""
    with contextlib.closing(_socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as nothing:
        nothing.settimeout(_PAUSE)
        with contextlib.suppress(TimeoutError):
            nothing.recv(1)


def _before_fork() -> None:
    _opening.acquire()
    for database in _open.values():
        database.close()
    _open.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_opening.release, after_in_child=_opening.release)
