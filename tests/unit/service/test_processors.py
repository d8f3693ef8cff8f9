from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.processors import available_processors, parse_cfs_quota, parse_cpu_max, parse_own_groups, quota_of


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", None),
        ("150000 100000\n", 1.5),
        ("200000\n", 2.0),
        ("50000 50000", 1.0),
        ("", None),
        ("nonsense", None),
        ("100000 0", None),
        ("0 100000", None),
    ],
)
def test_cpu_max_is_quota_over_period(text: str, expected: float | None) -> None:
    assert expected == parse_cpu_max(text)


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("-1\n", "100000\n", None), ("250000\n", "100000\n", 2.5), ("", "", None), ("100000", "", None)],
)
def test_cfs_quota_of_minus_one_means_no_limit(quota: str, period: str, expected: float | None) -> None:
    assert expected == parse_cfs_quota(quota, period)


@given(st.text(), st.text())
def test_no_file_content_makes_the_parsers_raise(first: str, second: str) -> None:
    for quota in (parse_cpu_max(first), parse_cfs_quota(first, second)):
        assert quota is None or quota > 0
    parse_own_groups(first)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0::/system.slice/seawall.service\n", ("/system.slice/seawall.service", "/")),
        ("4:memory:/a\n3:cpu,cpuacct:/docker/b\n1:name=systemd:/c\n", ("/", "/docker/b")),
        ("2:cpuset:/a\n1:cpuacct:/b\n0::/\n", ("/", "/")),
        ("", ("/", "/")),
        ("0::/odd:name\n", ("/odd:name", "/")),
    ],
)
def test_own_groups_are_found_in_either_hierarchy(text: str, expected: tuple[str, str]) -> None:
    assert expected == parse_own_groups(text)


def test_the_tightest_quota_of_the_own_group_and_those_above_counts(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/container\n",
            "sys/fs/cgroup/pod/container/cpu.max": "400000 100000",
            "sys/fs/cgroup/pod/cpu.max": "150000 100000",
        },
    )
    assert 1.5 == quota_of(root)


def test_a_group_path_of_the_host_still_finds_the_quota_at_the_mount(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/0123abcd\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert 3.0 == quota_of(root)


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert quota_of(tmp_path) is None


def test_a_fraction_of_a_processor_counts_as_one(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000"})
    assert 1 == available_processors(root)


def test_a_fraction_above_is_rounded_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000"})
    assert 3 == available_processors(root)


def test_affinity_bounds_a_generous_quota(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "99900000 100000"})
    assert len(os.sched_getaffinity(0)) == available_processors(root)
