"""Tickets: whom they speak for, that they do so once, and everything that does not make one."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

import service.security.tickets as tickets_module
from service.errors import Overloaded, Unauthenticated
from service.model import Caller, Participant
from service.security.tickets import SpentInFolder, SpentInMemory, SpentTickets, TicketSigner
from service.security.tokens import TokenSigner

SECRET = "a-secret-of-at-least-thirty-two-bytes"
OTHER = "another-secret-of-more-than-32-bytes."
ANN = Participant("user-7", Caller(user_id=7, role="admin"), token="t1", expires_at=2_000_000.5)
GUEST = Participant("guest-abc")
NOW = 1_000_000.25


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "folder"])
def spent(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> SpentTickets:
    return SpentInMemory(now=clock) if request.param == "memory" else SpentInFolder(tmp_path / "spent", now=clock)


def signer(clock: Clock, spent: SpentTickets, secret: str = SECRET, previous: str | None = None) -> TicketSigner:
    return TicketSigner(secret, previous=previous, lifetime=30, spent=spent, now=clock)


def refusal(signer: TicketSigner, ticket: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        signer.redeem(ticket)
    return caught.value.detail


@pytest.mark.parametrize("participant", [ANN, GUEST])
def test_a_ticket_speaks_for_whom_it_was_issued_to(clock: Clock, spent: SpentTickets, participant: Participant) -> None:
    tickets = signer(clock, spent)
    ticket, lifetime = tickets.issue(participant)
    assert (participant, 30) == (tickets.redeem(ticket), lifetime)


def test_a_ticket_holds_once(clock: Clock, spent: SpentTickets) -> None:
    tickets = signer(clock, spent)
    ticket, _ = tickets.issue(ANN)
    tickets.redeem(ticket)
    assert "The ticket has been used." in refusal(tickets, ticket)


def test_a_ticket_of_before_the_start_does_not_hold_since_nobody_knows_whether_it_was_used(
    clock: Clock, tmp_path: Path
) -> None:
    ticket, _ = signer(clock, SpentInFolder(tmp_path / "before", now=clock)).issue(ANN)
    clock.now += 5
    for spent in (SpentInMemory(now=clock), SpentInFolder(tmp_path / "after", now=clock)):
        restarted = signer(clock, spent)
        assert "from before the service started" in refusal(restarted, ticket)
        assert ANN == restarted.redeem(restarted.issue(ANN)[0])


def test_a_worker_that_comes_later_takes_tickets_of_those_before_it(clock: Clock, tmp_path: Path) -> None:
    ticket, _ = signer(clock, SpentInFolder(tmp_path / "spent", now=clock)).issue(ANN)
    clock.now += 5
    assert ANN == signer(clock, SpentInFolder(tmp_path / "spent", now=clock)).redeem(ticket)


def test_where_nobody_can_tell_since_when_tickets_are_known_none_is_issued(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Overloaded, match="out of order"):
        signer(clock, SpentInFolder(tmp_path / "file" / "spent", now=clock)).issue(ANN)


def test_two_tickets_of_one_caller_hold_each(clock: Clock, spent: SpentTickets) -> None:
    tickets = signer(clock, spent)
    assert [ANN, ANN] == [tickets.redeem(tickets.issue(ANN)[0]) for _ in range(2)]


def test_a_ticket_ends_on_time(clock: Clock, spent: SpentTickets) -> None:
    tickets = signer(clock, spent)
    first, second = (tickets.issue(ANN)[0] for _ in range(2))
    clock.now += 29.9
    tickets.redeem(first)
    clock.now += 0.1
    assert "The ticket has expired." in refusal(tickets, second)


def test_tickets_signed_with_the_previous_secret_still_hold(clock: Clock, spent: SpentTickets) -> None:
    ticket, _ = signer(clock, spent, OTHER).issue(ANN)
    assert ANN == signer(clock, spent, SECRET, previous=OTHER).redeem(ticket)


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "é", "." * 5000])
def test_what_is_no_ticket_is_refused(clock: Clock, spent: SpentTickets, text: str) -> None:
    assert "This is not a ticket of this service." in refusal(signer(clock, spent), text)


def test_a_ticket_of_another_service_is_refused(clock: Clock, spent: SpentTickets) -> None:
    ticket, _ = signer(clock, spent, OTHER).issue(ANN)
    assert "This is not a ticket of this service." in refusal(signer(clock, spent), ticket)


def test_a_token_is_no_ticket_and_a_ticket_no_token(clock: Clock, spent: SpentTickets) -> None:
    tokens, tickets = TokenSigner(SECRET, lifetime=60), signer(clock, spent)
    claims: dict[str, Any] = {"iss": "seawall", "aud": "seawall-api", "sub": "7", "exp": NOW + 60, "jti": "j"}
    assert "This is not a ticket" in refusal(tickets, jwt.encode(claims, SECRET, algorithm="HS256"))
    with pytest.raises(Unauthenticated):
        tokens.verify(tickets.issue(ANN)[0])


def test_a_guest_is_the_same_one_for_the_same_visitor_only(clock: Clock, spent: SpentTickets) -> None:
    tickets = signer(clock, spent)
    again, other = tickets.guest("a" * 24), tickets.guest("b" * 24)
    assert (tickets.guest("a" * 24), True, None) == (again, again.name.startswith("guest-"), again.caller)
    assert again != other
    assert again != signer(clock, spent, OTHER).guest("a" * 24)


def test_of_many_who_spend_one_ticket_at_once_one_does(tmp_path: Path) -> None:
    folder = tmp_path / "spent"
    workers = [SpentInFolder(folder) for _ in range(8)]
    begin, done = threading.Barrier(8), []

    def spend(worker: SpentInFolder) -> None:
        begin.wait()
        done.append(worker.spend("ticket", time.time() + 30))

    threads = [threading.Thread(target=spend, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [False] * 7 + [True] == sorted(done)


def test_tickets_that_ended_a_while_ago_leave_nothing_behind(tmp_path: Path, clock: Clock) -> None:
    spent = SpentInFolder(tmp_path / "spent", now=clock)
    for number in range(5):
        assert spent.spend(f"t{number}", clock.now + 30)
    clock.now += 200
    assert spent.spend("late", clock.now + 30)
    assert ["late"] == [path.name for path in (tmp_path / "spent").glob("*/*")]
    assert 1 == len(list((tmp_path / "spent").iterdir()))  # nobody asked since when it knows
    assert not spent.spend("late", clock.now + 30)


def test_of_many_that_ended_some_are_forgotten_at_a_time(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tickets_module, "SWEPT_AT_ONCE", 3)
    spent = SpentInFolder(tmp_path / "spent", now=clock)
    for number in range(5):
        spent.spend(f"t{number}", clock.now)
    left = []
    for _ in range(3):
        clock.now += 200
        spent.spend("late", clock.now)
        left.append(len(list((tmp_path / "spent").glob("*/t*"))))
    assert [2, 0, 0] == left


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    SpentInFolder(tmp_path / "spent").spend("t", time.time())
    assert 0o700 == (tmp_path / "spent").stat().st_mode & 0o777


def test_where_nobody_can_tell_whether_a_ticket_was_used_it_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Overloaded, match="cannot be redeemed"):
        SpentInFolder(tmp_path / "file" / "spent").spend("t", time.time())
