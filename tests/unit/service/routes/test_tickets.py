"""`POST /api/v1/tickets`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from flask.testing import FlaskClient

from service.middleware.authentication import Authentication
from service.middleware.recovery import Recovery
from service.model import Caller, User
from service.routes.tickets import create_tickets_blueprint
from service.security.tickets import SpentInMemory, TicketSigner
from service.security.tokens import TokenSigner
from service.services.ports import Users
from tests.support.edge import serve
from tests.support.users import Everybody

SECRET = "a-secret-of-at-least-thirty-two-bytes"
NOW = datetime.now(UTC)
ANN = User(7, "Ann", "ann@example.com", "admin", version=1, created_at=NOW, updated_at=NOW)
TOKENS = TokenSigner(SECRET, lifetime=86_400)
TICKETS = TicketSigner(SECRET, lifetime=30, spent=SpentInMemory())
SIGNED_IN = {"Authorization": f"Bearer {TOKENS.issue(ANN)[0]}"}


def client(users: Users | None = None, *, guests: bool = True) -> FlaskClient:
    app = serve([Recovery(), Authentication(TOKENS)])
    app.register_blueprint(create_tickets_blueprint(TICKETS, TOKENS, users or Everybody(), guests=guests))
    return app.test_client()


def ask(client: FlaskClient, body: Any = None, **fields: str) -> Any:
    return client.post("/api/v1/tickets", json=body, headers=fields)


@pytest.mark.parametrize("guests", [True, False])
def test_whoever_is_signed_in_gets_a_ticket_for_themselves(guests: bool) -> None:
    response = client(guests=guests).post("/api/v1/tickets", headers=SIGNED_IN)
    answer = response.get_json()
    assert (201, 30, "user-7") == (response.status_code, answer["expires_in"], answer["user"])
    found = TICKETS.redeem(answer["ticket"])
    assert (Caller(7, "admin"), True) == (found.caller, bool(found.token))
    assert "no-store" == response.headers["Cache-Control"]


def test_a_guest_gets_one_without_a_token_and_is_the_same_one_each_time() -> None:
    asked = client()
    first, again, other = (ask(asked, {"visitor": letter * 24}).get_json()["user"] for letter in "aab")
    assert first == again
    assert other != first
    assert first.startswith("guest-")


def test_guests_who_do_not_say_who_they_are_are_different_ones() -> None:
    assert 2 == len({ask(client()).get_json()["user"] for _ in range(2)})


def test_where_guests_are_not_let_in_a_token_is_needed() -> None:
    response = ask(client(guests=False), {"visitor": "a" * 24})
    assert (401, 10003) == (response.status_code, response.get_json()["code"])


def test_a_wrong_token_makes_nobody_a_guest() -> None:
    assert [401, 401] == [ask(client(), Authorization=field).status_code for field in ("Bearer x", "Basic abc")]


@pytest.mark.parametrize("visitor", ["short", "a" * 65, "ä" * 20, "a b" * 8, 5])
def test_a_visitor_is_something_that_nobody_else_guesses(visitor: object) -> None:
    response = ask(client(), {"visitor": visitor})
    assert (400, ["/visitor"]) == (response.status_code, [each["pointer"] for each in response.get_json()["errors"]])


def test_a_user_who_is_gone_gets_no_ticket() -> None:
    response = client(Everybody({7: None})).post("/api/v1/tickets", headers=SIGNED_IN)
    assert (401, 10003) == (response.status_code, response.get_json()["code"])


def test_a_ticket_says_the_role_of_now() -> None:
    response = client(Everybody({7: "member"})).post("/api/v1/tickets", headers=SIGNED_IN)
    assert Caller(7, "member") == TICKETS.redeem(response.get_json()["ticket"]).caller
