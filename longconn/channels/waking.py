"""How those that publish wake those that follow: a Unix datagram each, and only for those that sleep.

Everybody who follows has a number, a datagram socket under that number in the folder, and a flag in a file that all map.
Its flag stands while it sleeps (or is about to). Whoever has published looks for flags, takes each down and sends its owner
one byte. So a burst of publications wakes a sleeper once, and one that is awake is left alone.

The flag is put up before the news are read, and taken down after they were written: no publication goes unnoticed between
the two. Should a wake be lost all the same, the next look comes after `LOOK` seconds.
"""

from __future__ import annotations

import _socket
import contextlib
import logging
import mmap
import os
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from longconn.channels.database import LAYOUT, check_folder, locked
from longconn.channels.errors import ChannelsUnavailable

__all__ = ["LOOK", "Follower", "Wakers", "beside_the_loop", "is_the_end"]

LOOK: Final = 0.5
"""Seconds after which a follower looks for news that nobody told it of."""
MOST: Final = 1024
"""Followers of one folder at a time."""

_LONGEST_PATH: Final = 103
_FOR_EVER: Final = 86_400.0
_ASLEEP: Final = 1
_PID: Final = struct.Struct("<I")
_SIZE: Final = MOST + MOST * _PID.size
_UP: Final = bytes([_ASLEEP])

_log = logging.getLogger("longconn.channels")

_followers: weakref.WeakSet[Follower] = weakref.WeakSet()


class Wakers:
    """The side of those that publish: the flags of a folder, mapped, and a socket to send from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._flags = _mapped(folder)
        self._socket = _sender()

    def wake(self) -> None:
        """Wake all who sleep."""
        flags = self._flags
        with contextlib.suppress(ValueError):  # closed by somebody else meanwhile: the followers look by themselves
            number = flags.find(_UP, 0, MOST)
            while number >= 0:
                flags[number] = 0
                # One that is full is awake soon; one that nobody listens on was killed, and its flag is down now.
                with contextlib.suppress(OSError), _address(self.folder, number) as address:
                    self._socket.sendto(b"!", address)
                number = flags.find(_UP, number + 1, MOST)

    def followers(self) -> dict[str, int]:
        """All who follow: their process ids by name."""
        return {
            str(number): pid
            for number in range(MOST)
            if (pid := _PID.unpack_from(self._flags, MOST + number * _PID.size)[0]) and _lives(self.folder, number)
        }

    def close(self) -> None:
        """Give back the socket and the map."""
        self._socket.close()
        self._flags.close()

    def __del__(self) -> None:
        # Channels that nobody closes end with their process, and are nothing to be warned of. By then modules may be gone.
        sender = getattr(self, "_socket", None)
        if sender is not None:
            sender.close()


class Follower:
    """One that follows: calls `heard` on a thread of its own, at once after `start`, after wakes, and every `LOOK` seconds.

    In a process that gevent has patched the thread is a greenlet of the loop that `start` was called on.
    """

    def __init__(self, folder: Path, heard: Callable[[], None]) -> None:
        self._folder = folder
        self._heard = heard
        self._stopped = False
        self.ended = False
        """Whether it calls nobody any more."""
        self._flags: mmap.mmap | None = None
        self._number = -1
        self._inode = 0
        self._socket: socket.socket | None = None
        self._process = os.getpid()
        self._take_a_number()
        _followers.add(self)

    @property
    def name(self) -> str:
        """Its number, as text."""
        return str(self._number)

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="longconn-channels", daemon=True).start()

    def stop(self) -> None:
        """Be called no longer. May be called twice, and from `heard`."""
        if self._stopped or self._process != os.getpid():
            return
        self._stopped = True
        # Its thread gives everything back, which a datagram has it do at once.
        with (
            contextlib.suppress(OSError),
            contextlib.closing(_sender()) as sender,
            _address(self._folder, self._number) as address,
        ):
            sender.sendto(b"!", address)

    def _run(self) -> None:
        try:
            while self._goes_on():
                if self._flags is not None and self._number >= 0:
                    self._flags[self._number] = _ASLEEP
                try:
                    self._heard()
                except BaseException as error:  # noqa: BLE001 - a timeout too; the next publication is another chance
                    if is_the_end(error):
                        return
                    _log.exception("what was published could not be handed on")
                if self._goes_on():
                    self._sleep()
        finally:
            self.ended = True
            self._give_back()

    def _goes_on(self) -> bool:
        while self._process != os.getpid():
            # The greenlets of a parent go on in its child as well. Who follows is the parent; this one has nothing to do, and
            # cannot end either, because `threading` does not know it in the child.
            time.sleep(_FOR_EVER)
        return not self._stopped

    def _sleep(self) -> None:
        if self._socket is None:
            time.sleep(LOOK)
        else:
            with contextlib.suppress(OSError):  # a timeout is one
                if self._socket.recv(16):
                    return
        if self._goes_on() and not self._is_reachable():
            self._begin_again()

    def _begin_again(self) -> None:
        """The folder was removed, with the socket in it: make another. Until there is one, looks have to do."""
        self._give_back()
        with contextlib.suppress(ChannelsUnavailable):
            self._take_a_number()

    def _take_a_number(self) -> None:
        check_folder(self._folder)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            listening.settimeout(LOOK)
            with locked(self._folder):
                flags = _mapped(self._folder)
                try:
                    number = self._bound(listening)
                    flags[number] = 0
                    _PID.pack_into(flags, MOST + number * _PID.size, os.getpid())
                    self._inode = _path(self._folder, number).stat().st_ino
                except BaseException:
                    flags.close()
                    raise
        except BaseException:
            listening.close()
            raise
        self._socket, self._flags, self._number = listening, flags, number

    def _bound(self, listening: socket.socket) -> int:
        for number in range(MOST):
            path = _path(self._folder, number)
            with _address(self._folder, number) as address:
                try:
                    listening.bind(address)
                except OSError:
                    if _lives(self._folder, number):
                        continue
                    # Left behind by one that was killed. The folder is locked, so nobody can have taken it meanwhile.
                    try:
                        path.unlink(missing_ok=True)
                        listening.bind(address)
                    except OSError as error:
                        raise ChannelsUnavailable(f"no socket can be made in {self._folder}: {error}") from None
            path.chmod(0o600)
            return number
        raise ChannelsUnavailable(f"{MOST:,} processes follow the channels in {self._folder} already")

    def _is_reachable(self) -> bool:
        try:
            return _path(self._folder, self._number).stat().st_ino == self._inode
        except OSError:
            return False

    def _give_back(self) -> None:
        listening, self._socket = self._socket, None
        flags, self._flags = self._flags, None
        if listening is None or flags is None:
            return
        listening.close()
        with contextlib.suppress(ChannelsUnavailable, OSError):
            if self._is_reachable():
                with locked(self._folder):
                    flags[self._number] = 0
                    _PID.pack_into(flags, MOST + self._number * _PID.size, 0)
                    _path(self._folder, self._number).unlink(missing_ok=True)
        flags.close()


def is_the_end(error: BaseException) -> bool:
    """Whether an error is the order to end, and no accident of whoever was called (as the timeout of a greenlet may be)."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return True
    greenlet = sys.modules.get("greenlet")
    return greenlet is not None and isinstance(error, greenlet.GreenletExit)


def beside_the_loop() -> bool:
    """Whether this is a native thread of a process whose threads are greenlets: what is started here runs on no loop."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return False
    # There the main thread has the number of the process, whatever gevent calls it.
    return sys.platform == "linux" and threading.get_native_id() != os.getpid()


def _after_fork() -> None:
    """In a child: let its parent's datagrams be. What it inherited is exchanged for sockets that nobody sends to."""
    for follower in list(_followers):
        inherited = follower._socket  # noqa: SLF001 - of this module
        if inherited is not None and inherited.fileno() >= 0:
            with contextlib.closing(_sender()) as nothing:
                os.dup2(nothing.fileno(), inherited.fileno(), inheritable=False)


os.register_at_fork(after_in_child=_after_fork)


def _mapped(folder: Path) -> mmap.mmap:
    """The flags, and behind them the process ids."""
    try:
        descriptor = os.open(folder / f"waking.{LAYOUT}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_size < _SIZE:
                # Written, not a hole: a map over a hole ends the process when there is no memory left for it.
                os.pwrite(descriptor, bytes(_SIZE), 0)
            return mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ChannelsUnavailable(f"there can be no channels in {folder}: {error.strerror or error}") from None


def _path(folder: Path, number: int) -> Path:
    return folder / f"s{number}.{LAYOUT}"


def _lives(folder: Path, number: int) -> bool:
    """Whether somebody listens there."""
    with contextlib.closing(_sender()) as probe:
        try:
            with _address(folder, number) as address:
                probe.connect(address)
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _address(folder: Path, number: int) -> Iterator[str]:
    """The address of a socket: its path, or a shorter way to it where that is longer than a socket's may be."""
    path = str(_path(folder, number))
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield path
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{_path(folder, number).name}"
    finally:
        os.close(descriptor)


def _sender() -> _socket.socket:
    # The interpreter's own socket: it waits for nothing, so no loop needs to know of it, and every thread may use it.
    sender = _socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.setblocking(False)
    return sender
