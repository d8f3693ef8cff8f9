"""Attempts to get in by the token: wrong ones run out, right ones do not, and refused ones leave a trace."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from werkzeug.exceptions import TooManyRequests

from resilience import Decision, MemoryStorage, StorageUnavailable
from resilience.adapters.attempts import Attempts
from resilience.adapters.audit import AuditLog
from resilience.core.limiter import Charge
from resilience.testing import FakeClock

TOKEN, HERE, THERE = "a-token-for-tests", "192.0.2.1", "192.0.2.2"


class Guessed:
    """Attempts of one worker under a clock that stands still."""

    def __init__(self, storage: MemoryStorage | None = None) -> None:
        self.clock = FakeClock()
        self.audit = AuditLog()
        storage = MemoryStorage(clock=self.clock) if storage is None else storage
        self.attempts = Attempts(TOKEN, storage=storage, audit=self.audit)
        self.attempts.own_buckets = MemoryStorage(clock=self.clock)

    def __call__(self, given: str, address: str | None = HERE) -> str:
        try:
            return "right" if self.attempts.is_right(given, address) else "wrong"
        except TooManyRequests:
            return "wait"


def test_after_five_wrong_tokens_every_attempt_of_an_address_waits_the_right_one_too() -> None:
    guess = Guessed()
    assert ["wrong"] * 5 + ["wait"] * 2 == [guess("guess") for _ in range(7)]
    assert ["wait", "right"] == [guess(TOKEN), guess(TOKEN, THERE)]
    guess.clock.advance(12)
    assert ["right", "wrong", "wait"] == [guess(TOKEN), guess("guess"), guess(TOKEN)]


def test_right_tokens_use_nothing_up_however_many_come_at_once() -> None:
    guess, said = Guessed(), []
    threads = [threading.Thread(target=lambda: said.append(guess(TOKEN))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ["right"] * 20 == said


def test_workers_count_together() -> None:
    shared = MemoryStorage(clock=FakeClock())
    one, two = Guessed(shared), Guessed(shared)
    assert ["wrong"] * 3 == [one("guess") for _ in range(3)]
    assert ["wrong", "wrong", "wait"] == [two("guess") for _ in range(3)]
    assert "wait" == one(TOKEN)


def test_a_worker_counts_for_itself_before_it_compares() -> None:
    class Slow(MemoryStorage):
        """Nothing is counted yet when others look."""

        def take(self, charges: Sequence[Charge]) -> Decision:
            return super().take([charge._replace(cost=0) for charge in charges])

    guess = Guessed(Slow())
    assert ["wrong"] * 5 + ["wait"] == [guess("guess") for _ in range(6)]


def test_a_worker_counts_for_itself_while_the_storage_is_out_of_reach() -> None:
    class Gone(MemoryStorage):
        def take(self, charges: Sequence[Charge]) -> Decision:
            raise StorageUnavailable("gone")

    guess = Guessed(Gone())
    assert ["right"] * 7 == [guess(TOKEN) for _ in range(7)]
    assert ["wrong"] * 5 + ["wait"] == [guess("guess") for _ in range(6)]


@pytest.mark.parametrize("given", ["\ud800", "ümlaut", TOKEN[:-1], TOKEN + "x"])
def test_whatever_is_not_the_token_is_wrong(given: str) -> None:
    assert "wrong" == Guessed()(given, None)


def test_refused_attempts_are_entered_once_a_minute_with_how_many_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    guess = Guessed()
    monkeypatch.setattr("resilience.adapters.attempts.SYSTEM_CLOCK", guess.clock)
    for address in (HERE, HERE, HERE, None):
        guess.attempts.note(address)
    guess.attempts.tell()
    guess.clock.advance(60)
    guess.attempts.tell()
    guess.attempts.tell()
    entries = [each.entry for each in guess.audit.entries()]
    assert [
        ("somebody (192.0.2.1)", "1 attempt"),
        ("somebody (unix)", "1 attempt"),
        ("somebody (192.0.2.1)", "2 attempts"),
    ] == [(entry.author, entry.detail) for entry in entries]
    assert {("token", "admin", "refused")} == {(entry.action, entry.target, entry.outcome) for entry in entries}


def test_attempts_that_have_to_wait_are_entered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    guess = Guessed()
    monkeypatch.setattr("resilience.adapters.attempts.SYSTEM_CLOCK", guess.clock)
    for _ in range(6):
        guess("guess")
    assert ["1 attempt"] == [each.entry.detail for each in guess.audit.entries()], "others are the caller's to enter"
