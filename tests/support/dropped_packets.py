"""A server whose packets are lost on the way: nobody is refused, nobody is answered.

Every socket of the process, also one that it accepts later, is given a filter that takes no packet (classic BPF, as tcpdump
uses it): the kernel drops what arrives there, the first packet of a new connection included. That is what a firewall does, but
for one process and without any privilege over the machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

__all__ = ["dropped_packets", "lose_all_packets"]

_ATTACH_FILTER, _DETACH_FILTER = 26, 27  # SO_ATTACH_FILTER, SO_DETACH_FILTER
_PIDFD_GETFD = 438
_TAKE_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)  # one instruction: return 0 bytes

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def dropped_packets(pid: int) -> Iterator[None]:
    """While it lasts, process `pid`, a child of this one, receives nothing over its connections."""
    try:
        for connection in _sockets(pid):
            lose_all_packets(connection)
        yield
    finally:
        for connection in _sockets(pid):
            with contextlib.suppress(FileNotFoundError):  # there was none
                connection.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)


def lose_all_packets(connection: socket.socket) -> None:
    """`connection` receives nothing more, not even the end: for its other side, this one has vanished."""
    instructions = ctypes.create_string_buffer(_TAKE_NOTHING)
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(instructions))
    connection.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)


def _sockets(pid: int) -> Iterator[socket.socket]:
    """The process's own sockets, in hand."""
    process = os.pidfd_open(pid)
    try:
        for entry in list(Path(f"/proc/{pid}/fd").iterdir()):
            with contextlib.suppress(FileNotFoundError):
                if not str(entry.readlink()).startswith("socket:"):
                    continue
                number = _libc.syscall(_PIDFD_GETFD, process, int(entry.name), 0)
                if number < 0:
                    raise OSError(ctypes.get_errno(), f"socket {entry.name} of process {pid} is not to be had")
                with socket.socket(fileno=number) as connection:
                    yield connection
    finally:
        os.close(process)
