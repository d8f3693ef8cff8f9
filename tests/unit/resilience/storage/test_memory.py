"""What only the storage in this process promises: it is bounded, and it forgets the silent first."""

from __future__ import annotations

import threading
import time

import pytest

from resilience.core.limiter import Charge, Limit
from resilience.storage.memory import MemoryStorage
from resilience.testing import FakeClock

LIMIT = Limit(1, 60, 2)


def charge(subject: str) -> Charge:
    return Charge("scope", subject, LIMIT, 1)


def test_a_flood_of_keys_is_bounded_and_forgets_who_was_silent_longest() -> None:
    storage = MemoryStorage(size=3, clock=FakeClock())
    for subject in ("a", "b", "c", "a", "d"):
        storage.take([charge(subject)])
    assert 3 == len(storage)
    assert 0 == storage.take([charge("a")]).remaining, "used again, so kept"
    assert 1 == storage.take([charge("b")]).remaining, "silent longest, so forgotten"


def test_a_flood_of_several_keys_at_once_is_bounded() -> None:
    storage = MemoryStorage(size=3, clock=FakeClock())
    for index in range(10):
        storage.take([charge(f"{index}a"), charge(f"{index}b")])
    assert 3 == len(storage)
    assert "<MemoryStorage: 3 of at most 3 buckets>" == repr(storage)


class YieldingClock(FakeClock):
    """Lets every other thread run at the moment between reading a bucket and writing it."""

    def microseconds(self) -> int:
        time.sleep(0.0002)
        return super().microseconds()


@pytest.mark.parametrize("charges", [["one"], ["one", "two"]])
def test_threads_are_never_given_more_than_the_burst(charges: list[str]) -> None:
    storage = MemoryStorage(clock=YieldingClock())
    allowed: list[bool] = []

    def hammer() -> None:
        for _ in range(10):
            allowed.append(storage.take([charge(subject) for subject in charges]).allowed)  # noqa: PERF401

    threads = [threading.Thread(target=hammer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (80, 2) == (len(allowed), sum(allowed))


def test_a_denial_takes_no_room() -> None:
    storage = MemoryStorage(clock=FakeClock())
    storage.take([Charge("scope", "s", LIMIT, 3)])
    assert 0 == len(storage)


def test_naming_one_bucket_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="same bucket"):
        MemoryStorage().take([charge("a"), charge("a")])


def test_a_storage_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="size=0"):
        MemoryStorage(size=0)
