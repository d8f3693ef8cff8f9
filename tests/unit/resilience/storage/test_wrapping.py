"""What storages in front of another one have in common."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence

import pytest

from resilience.core.limiter import Charge, Decision, Limit
from resilience.errors import StorageUnavailable
from resilience.storage.memory import MemoryStorage
from resilience.storage.wrapping import ask_whether_it_takes, forget_after_fork, taker_of
from resilience.testing import FakeClock

LIMIT = Limit(10, 60)


class Plain(MemoryStorage):
    """A storage without a fast path, that remembers what it was charged."""

    taker = None  # type: ignore[assignment]  # what a storage of a user's own looks like

    def __init__(self) -> None:
        super().__init__(clock=FakeClock())
        self.charged: list[Charge] = []

    def take(self, charges: Sequence[Charge]) -> Decision:
        self.charged += charges
        return super().take(charges)


def test_a_storage_without_a_fast_path_is_charged_the_same() -> None:
    storage = Plain()
    take = taker_of(storage, "scope", LIMIT, -5, 3)
    assert 8 == take("subject", 2).remaining
    assert [Charge("scope", "subject", LIMIT, 2, -5, 3)] == storage.charged


def test_a_storage_is_probed_with_a_charge_that_lives_a_second() -> None:
    storage = Plain()
    for _ in range(2):
        ask_whether_it_takes(storage)
    first, second = storage.charged
    assert (first, 1, 1.0) == (second, first.cost, first.limit.seconds_to_fill)
    assert str(os.getpid()) in first.scope, "processes that probe at once do not empty one bucket"


def test_a_storage_that_knows_better_is_asked_its_own_way() -> None:
    class Knowing(Plain):
        def probe(self) -> None:
            raise StorageUnavailable("one of three is away")

    with pytest.raises(StorageUnavailable, match="one of three"):
        ask_whether_it_takes(Knowing())


def test_a_child_is_told_and_who_is_told_may_be_forgotten() -> None:
    class Told:
        def __init__(self) -> None:
            self.times = 0

        def after_fork(self) -> None:
            self.times += 1

    told, forgotten = Told(), Told()
    forget_after_fork(told)
    forget_after_fork(forgotten)
    del forgotten
    gc.collect()
    child = os.fork()
    if child == 0:
        os._exit(told.times)
    assert 1 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 0 == told.times
