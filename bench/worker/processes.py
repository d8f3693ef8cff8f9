"""What the kernel knows about processes: memory, children, descriptors; and how ours are ended."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "available_memory",
    "children",
    "descriptors",
    "forget_peak",
    "mapped",
    "peak",
    "processor_time",
    "raise_descriptor_limit",
    "resident",
    "share",
    "slab",
    "stop",
]

PAGE = resource.getpagesize()


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open files, and so that of all it starts, as far as allowed; the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use: its resident set."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE


def forget_peak(pid: int) -> None:
    """Have `peak` begin anew with what a process has in use now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak(pid: int) -> int:
    """The most bytes of memory that a process has had in use at once."""
    return _kilobytes(Path(f"/proc/{pid}/status").read_text(encoding="ascii"), "VmHWM")


def mapped(pid: int) -> int:
    """Bytes of its resident set that are files and memory which processes share: no others hold them."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return _kilobytes(text, "RssFile") + _kilobytes(text, "RssShmem")


def share(pids: Iterable[int]) -> int:
    """Bytes that processes have in use together, memory that they share counted once (PSS)."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        total += _kilobytes(text, "Pss")
    return total


def available_memory() -> int:
    """Bytes that the machine could still give."""
    return _kilobytes(Path("/proc/meminfo").read_text(encoding="ascii"), "MemAvailable")


def slab() -> int:
    """Bytes that the kernel has in use for its objects, those of sockets among them."""
    return _kilobytes(Path("/proc/meminfo").read_text(encoding="ascii"), "Slab")


def processor_time(pids: Iterable[int]) -> float:
    """Seconds of processor time that processes have taken, all their threads together."""
    ticks = 0
    for pid in pids:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])  # utime, stime
    return ticks / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return sorted(int(child) for child in text.split())


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a name each is all that is needed


def stop(process: subprocess.Popen[bytes], *, within: float = 10.0) -> None:
    """End a process that was started as the leader of a group of its own, and the group with it: politely, then not."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(within)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # workers that outlived it; nobody else is in its group
    process.wait(within)


def _kilobytes(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
