"""How many connections fit into a process."""

from __future__ import annotations

import os
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as some

from longconn.capacity import UNLIMITED_FILES, Capacity, capacity_within, open_files, raise_file_limit

INFINITE = resource.RLIM_INFINITY


class Limits:
    """Stands for the limits of a process: the kernel's rules without touching this one's."""

    def __init__(self, soft: int, hard: int, *, refuses: bool = False) -> None:
        self.now = (soft, hard)
        self.refuses = refuses

    def get(self, what: int) -> tuple[int, int]:
        assert resource.RLIMIT_NOFILE == what
        return self.now

    def set(self, what: int, limits: tuple[int, int]) -> None:
        if self.refuses:
            raise ValueError("not allowed to raise maximum limit")
        self.now = limits


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Limits:
    found: Limits = request.param
    monkeypatch.setattr(resource, "getrlimit", found.get)
    monkeypatch.setattr(resource, "setrlimit", found.set)
    return found


@pytest.mark.parametrize(
    ("limits", "expected", "after"),
    [
        (Limits(1024, 20_000), 20_000, (20_000, 20_000)),
        (Limits(20_000, 20_000), 20_000, (20_000, 20_000)),
        (Limits(1024, INFINITE), UNLIMITED_FILES, (UNLIMITED_FILES, INFINITE)),
        (Limits(INFINITE, INFINITE), UNLIMITED_FILES, (INFINITE, INFINITE)),
        (Limits(2_000_000, INFINITE), 2_000_000, (2_000_000, INFINITE)),
        (Limits(256, INFINITE, refuses=True), 256, (256, INFINITE)),
    ],
    indirect=["limits"],
)
def test_the_limit_of_files_is_raised_to_what_it_may_be(limits: Limits, expected: int, after: tuple[int, int]) -> None:
    assert expected == raise_file_limit()
    assert after == limits.now


def test_the_files_that_are_open_are_counted() -> None:
    before = open_files()
    descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    try:
        assert before + 5 == open_files()
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_where_open_files_cannot_be_seen_some_are_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(path: str) -> list[str]:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "listdir", hidden)
    assert 64 == open_files()


def test_an_eighth_of_the_files_up_to_512_is_kept_back() -> None:
    assert Capacity(1024, 24, 128, 872) == capacity_within(1024, 24)
    assert Capacity(20_000, 24, 512, 19_464) == capacity_within(20_000, 24)


def test_the_wanted_number_is_the_limit_where_it_fits() -> None:
    assert 100 == capacity_within(1024, 24, wanted=100).connections
    assert 872 == capacity_within(1024, 24, wanted=5000).connections


@given(files=some.integers(1, 2_000_000), in_use=some.integers(0, 5_000), wanted=some.integers(0, 2_000_000))
def test_there_is_room_for_somebody_and_never_for_more_than_there_are_files(
    files: int, in_use: int, wanted: int
) -> None:
    found = capacity_within(files, in_use, wanted=wanted)
    assert 1 <= found.connections
    assert found.connections == 1 or found.connections + found.in_use + found.kept_back <= files
    assert not wanted or found.connections <= wanted
