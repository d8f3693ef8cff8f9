"""Who opens a connection that stays."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import flask
import jwt
import pytest

from service.errors import Unauthenticated
from service.model import Caller, Participant, User
from service.routes.credentials import Credentials
from service.security.tickets import SpentInMemory, TicketSigner
from service.security.tokens import LEEWAY, TokenSigner
from service.services.ports import Users
from tests.support.users import Everybody

SECRET = "a-secret-of-at-least-thirty-two-bytes"
NOW = datetime.now(UTC)
TOKENS = TokenSigner(SECRET, lifetime=600)
TICKETS = TicketSigner(SECRET, lifetime=30, spent=SpentInMemory())
EVERYBODY = Everybody()


def token_of(number: int) -> str:
    user = User(number, f"user{number}", "a@example.com", "member", version=1, created_at=NOW, updated_at=NOW)
    return TOKENS.issue(user)[0]


def ticket_of(number: int) -> str:
    return TICKETS.issue(Participant(f"user-{number}", Caller(number, "member")))[0]


def who(path: str = "/ws", **headers: str) -> Participant:
    return who_among(EVERYBODY, path, headers)


def who_among(users: Users, path: str, headers: Mapping[str, str]) -> Participant:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    with flask.Flask("test").test_request_context(path, headers=fields):
        return Credentials(TOKENS, TICKETS, users).participant(flask.request)


@pytest.mark.parametrize(
    "fields",
    [
        {"Authorization": "Bearer {}"},
        {"Authorization": "bearer  {} "},
        {"Sec_WebSocket_Protocol": "bearer.{}"},
        {"Sec_WebSocket_Protocol": "seawall, bearer.{}"},
        {"Cookie": "other=1; seawall_token={}"},
    ],
)
def test_a_token_is_taken_from_where_a_client_can_put_it(fields: dict[str, str]) -> None:
    token = token_of(7)
    found = who(**{name: value.format(token) for name, value in fields.items()})
    claims = jwt.decode(token, options={"verify_signature": False})
    expected = Participant("user-7", Caller(7, "member"), claims["jti"], claims["exp"] + LEEWAY.total_seconds())
    assert expected == found


def test_a_ticket_stands_in_the_address_and_holds_once() -> None:
    path = f"/ws?ticket={ticket_of(7)}"
    assert "user-7" == who(path).name
    with pytest.raises(Unauthenticated, match="has been used"):
        who(path)


def test_what_is_named_first_counts() -> None:
    everything: dict[str, Any] = {
        "Authorization": f"Bearer {token_of(1)}",
        "Sec_WebSocket_Protocol": f"bearer.{token_of(3)}",
        "Cookie": f"seawall_token={token_of(4)}",
    }
    path = f"/ws?ticket={ticket_of(2)}"
    found = []
    for field in ("Authorization", None, "Sec_WebSocket_Protocol", "Cookie"):
        found.append(who(path if field in ("Authorization", None) else "/ws", **everything).name)
        everything.pop(field or "", None)
    assert ["user-1", "user-2", "user-3", "user-4"] == found


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/ws", {}),
        ("/ws?ticket=", {}),
        ("/ws", {"Authorization": "Basic abc"}),
        ("/ws", {"Authorization": "Bearer "}),
        ("/ws", {"Cookie": "seawall_token="}),
        ("/ws", {"Sec_WebSocket_Protocol": "seawall"}),
    ],
)
def test_who_shows_nothing_is_told_what_to_show(path: str, fields: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated, match="needs a token"):
        who(path, **fields)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/ws?ticket=x", {}),
        ("/ws", {"Authorization": "Bearer x"}),
        ("/ws", {"Cookie": "seawall_token=x"}),
        ("/ws", {"Sec_WebSocket_Protocol": "bearer."}),
    ],
)
def test_what_does_not_hold_is_refused_and_nothing_else_is_tried(path: str, fields: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated, match=r"not a (token|ticket) of this service"):
        who(path, **{"Cookie": f"seawall_token={token_of(1)}", **fields})


@pytest.mark.parametrize(
    ("trusted", "forwarded", "address"),
    [
        (0, "192.0.2.7", "10.0.0.1"),
        (1, "", "10.0.0.1"),
        (1, "192.0.2.7", "192.0.2.7"),
        (1, "198.51.100.1, 192.0.2.7", "192.0.2.7"),
        (2, "198.51.100.1, 192.0.2.7", "198.51.100.1"),
    ],
)
def test_a_connection_comes_from_where_trusted_proxies_say(trusted: int, forwarded: str, address: str) -> None:
    headers = {"Authorization": f"Bearer {token_of(1)}", **({"X-Forwarded-For": forwarded} if forwarded else {})}
    context = flask.Flask("test").test_request_context(
        "/ws", headers=headers, environ_overrides={"REMOTE_ADDR": "10.0.0.1"}
    )
    with context:
        Credentials(TOKENS, TICKETS, Everybody(), trusted_proxies=trusted).participant(flask.request)
        assert address == flask.request.remote_addr


def ways_of(number: int) -> list[tuple[str, dict[str, str]]]:
    token = token_of(number)
    return [
        ("/ws", {"Authorization": f"Bearer {token}"}),
        (f"/ws?ticket={ticket_of(number)}", {}),
        ("/ws", {"Sec_WebSocket_Protocol": f"bearer.{token}"}),
        ("/ws", {"Cookie": f"seawall_token={token}"}),
    ]


def test_a_user_who_is_gone_is_not_let_in_whatever_they_show() -> None:
    for path, fields in ways_of(7):
        with pytest.raises(Unauthenticated, match="is gone"):
            who_among(Everybody({7: None}), path, fields)


def test_a_user_has_the_role_of_now_and_not_that_of_their_token() -> None:
    found = [who_among(Everybody({7: "admin"}), path, fields) for path, fields in ways_of(7)]
    assert [Caller(7, "admin")] * 4 == [each.caller for each in found]
