from __future__ import annotations

import resource

import pytest

from service.worker import MOST_CONNECTIONS, connections_within, raise_file_limit


@pytest.mark.parametrize(
    ("files", "reserve", "expected"),
    [
        (1024, 266, 758),
        (20_000, 266, MOST_CONNECTIONS),
        (1_048_576, 266, MOST_CONNECTIONS),
        (256, 266, 16),
        (300, 290, 16),
    ],
)
def test_clients_get_the_files_that_the_worker_does_not_need_itself(files: int, reserve: int, expected: int) -> None:
    assert expected == connections_within(files, reserve=reserve)


class Limits:
    """Stands in for the process's limits of open files."""

    def __init__(self, soft: int, hard: int, *, error: Exception | None = None) -> None:
        self.soft, self.hard, self._error = soft, hard, error

    def getrlimit(self, _: int) -> tuple[int, int]:
        return self.soft, self.hard

    def setrlimit(self, _: int, limits: tuple[int, int]) -> None:
        if self._error is not None:
            raise self._error
        self.soft, self.hard = limits


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (1024, 4096, 4096),
        (4096, 4096, 4096),
        (1024, resource.RLIM_INFINITY, 1_048_576),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1_048_576),
    ],
)
def test_the_limit_is_raised_to_what_the_process_may_have(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, expected: int
) -> None:
    limits = Limits(soft, hard)
    monkeypatch.setattr(resource, "getrlimit", limits.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", limits.setrlimit)
    assert expected == raise_file_limit()
    assert hard == limits.hard


def test_a_system_that_refuses_leaves_the_limit_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(1024, 4096, error=ValueError())
    monkeypatch.setattr(resource, "getrlimit", limits.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", limits.setrlimit)
    assert 1024 == raise_file_limit()
