"""While the shared storage is down the stand-in decides, and only one caller at a time pays for finding out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from resilience.core.limiter import Charge, Decision, Limit
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.storage.memory import MemoryStorage
from resilience.storage.standin import OnFailure, StandInStorage
from resilience.testing import FakeClock


class Frail:
    """A storage that can be down."""

    uri = "frail://"

    def __init__(self, clock: FakeClock) -> None:
        self.down = False
        self.asked = 0
        self.closed = False
        self._storage = MemoryStorage(clock=clock)

    def take(self, charges: Sequence[Charge]) -> Decision:
        self.asked += 1
        if self.down:
            raise StorageUnavailable("frail:// did not decide: down")
        return self._storage.take(charges)

    def close(self) -> None:
        self.closed = True


def made(on_failure: OnFailure = "local") -> tuple[FakeClock, Frail, StandInStorage]:
    clock = FakeClock()
    frail = Frail(clock)
    return clock, frail, StandInStorage(frail, on_failure=on_failure, clock=clock)


def take(storage: StandInStorage, cost: int = 1) -> Decision:
    return storage.take([Charge("scope", "s", Limit(1, 60, 3), cost)])


def test_while_it_answers_the_primary_decides() -> None:
    _, frail, storage = made()
    assert 2 == take(storage).remaining
    assert (1, "frail://", True) == (frail.asked, storage.uri, storage.available)


def test_one_failure_spares_all_others_the_wait_until_the_pause_is_over(caplog: pytest.LogCaptureFixture) -> None:
    clock, frail, storage = made()
    frail.down = True
    with caplog.at_level(logging.WARNING):
        assert [2, 1, 0] == [take(storage).remaining for _ in range(3)]
        assert not take(storage).allowed
        assert (1, "frail:// (down: local)") == (frail.asked, storage.uri)
        clock.advance(1.01)
        take(storage)
        take(storage)
        assert 2 == frail.asked
        frail.down = False
        clock.advance(1.01)
        assert 2 == take(storage).remaining
    assert storage.available
    assert 2 == len(caplog.records), "one line when it goes, one when it comes back"


def test_of_callers_that_come_together_one_tries_the_primary_again() -> None:
    clock, frail, storage = made()
    frail.down = True
    take(storage)
    clock.advance(1.01)
    real_take = frail.take
    together: list[Decision] = []

    def while_it_tries(charges: Sequence[Charge]) -> Decision:
        if not together:
            together.append(take(storage))
        return real_take(charges)

    frail.take = while_it_tries  # type: ignore[method-assign]  # another caller comes while this one waits
    take(storage)
    assert (2, 1) == (frail.asked, len(together))


def test_a_caller_who_finds_no_place_is_decided_here_and_the_primary_stays_in_use() -> None:
    _, frail, storage = made()
    real_take = frail.take

    def no_place(charges: Sequence[Charge]) -> Decision:
        raise StorageBusy("frail://: all connections in use")

    frail.take = no_place  # type: ignore[method-assign]
    assert take(storage).allowed
    assert storage.available
    frail.take = real_take  # type: ignore[method-assign]
    take(storage)
    assert 1 == frail.asked


def test_open_allows_all() -> None:
    _, frail, storage = made("open")
    frail.down = True
    assert all(take(storage).allowed for _ in range(10))


def test_closed_refuses_all_and_says_when_to_come_back() -> None:
    _, frail, storage = made("closed")
    frail.down = True
    decision = take(storage)
    assert (False, 0) == (decision.allowed, decision.remaining)
    assert decision.retry_after == pytest.approx(1.0, abs=0.01)


def test_closing_it_closes_the_primary() -> None:
    _, frail, storage = made()
    storage.close()
    assert frail.closed


def test_another_way_to_decide_is_refused() -> None:
    with pytest.raises(ValueError, match="choose 'local', 'open' or 'closed'"):
        made("sometimes")  # type: ignore[arg-type]  # what a typing mistake in a configuration looks like
