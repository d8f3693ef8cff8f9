"""How many CPUs this process may use: its affinity, and the quotas of its control group and of every group above.

`os.cpu_count()` counts the machine; a container with a quota of two CPUs on a machine of 64 would start 64 workers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

__all__ = ["available_processors", "parse_cfs_quota", "parse_cpu_max", "parse_own_groups", "quota_of"]

V1_MOUNTS = ("cpu", "cpu,cpuacct")


def available_processors(root: Path = Path("/")) -> int:
    """CPUs that this process may keep busy: affinity or quota, whichever is less, rounded up, at least 1.

    `root` is the folder that holds ``proc`` and ``sys``.
    """
    quota = quota_of(root)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def quota_of(root: Path) -> float | None:
    """The tightest CPU quota on this process, in CPUs, or None when there is none."""
    version_2, version_1 = parse_own_groups(_read(root / "proc/self/cgroup"))
    mount = root / "sys/fs/cgroup"
    quotas = [parse_cpu_max(_read(folder / "cpu.max")) for folder in _with_ancestors(mount, version_2)]
    for name in V1_MOUNTS:
        quotas += [
            parse_cfs_quota(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))
            for folder in _with_ancestors(mount / name, version_1)
        ]
    return min((quota for quota in quotas if quota is not None), default=None)


def parse_own_groups(text: str) -> tuple[str, str]:
    """The process's group in the unified (version 2) and in the cpu (version 1) hierarchy, out of /proc/self/cgroup.

    A hierarchy that is not there has the group ``/``.
    """
    version_2 = version_1 = "/"
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            version_2 = group
        elif "cpu" in controllers.split(","):
            version_1 = group
    return version_2, version_1


def parse_cpu_max(text: str) -> float | None:
    """CPUs out of a version 2 ``cpu.max``, such as ``150000 100000``. None: no limit, or not such a file."""
    quota, _, period = text.strip().partition(" ")
    return parse_cfs_quota(quota, period or "100000")


def parse_cfs_quota(quota: str, period: str) -> float | None:
    """CPUs out of a version 1 quota and period, both in microseconds. None: no limit (-1), or not such files."""
    try:
        quota_us, period_us = int(quota), int(period)
    except ValueError:
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _with_ancestors(mount: Path, group: str) -> Iterable[Path]:
    # Inside a container the path may be the host's and lead nowhere; the groups above it, up to the mount, do count.
    inside = PurePosixPath(group.lstrip("/"))
    parts = [part for part in inside.parts if part != ".."]
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
