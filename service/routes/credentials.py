"""Who opens a connection that stays: a token or a ticket, wherever a browser can put one.

| where | for |
|---|---|
| `Authorization: Bearer <token>` | programs |
| `?ticket=<ticket>` | browsers: `POST /api/v1/tickets` gives one, which holds once and for seconds |
| `Sec-WebSocket-Protocol: seawall, bearer.<token>` | browsers with a token at hand, for a WebSocket |
| `Cookie: seawall_token=<token>` | pages of the same site; the origin is checked |

The first that is there counts, in this order. A token or a ticket says who somebody was when it was issued, so the users are
asked who that is at present: a user who was removed is let in no more, and one who was an admin has the role of now.
"""

from __future__ import annotations

from typing import Protocol

from flask import Request, g

from service.errors import Unauthenticated
from service.model import Participant
from service.services.backends import believed_addresses
from service.services.ports import TicketSigner, Users

__all__ = ["COOKIE", "SUBPROTOCOL", "Credentials", "TokenReader"]

COOKIE = "seawall_token"
SUBPROTOCOL = "seawall"
"""The subprotocol of `/ws`. A browser that offers subprotocols wants one of them chosen, so it is offered with the token."""

TOKEN_PREFIX = "bearer."  # noqa: S105 - a mark, not a secret
TICKET = "ticket"


class TokenReader(Protocol):
    """Tells who a token speaks for."""

    def participant(self, token: str) -> Participant:
        """Who, and until when. Raises `Unauthenticated` when the token does not hold."""


class Credentials:
    """Reads who is asking out of a request, and from where as far as `trusted_proxies` proxies are believed."""

    def __init__(self, tokens: TokenReader, tickets: TicketSigner, users: Users, *, trusted_proxies: int = 0) -> None:
        self._tokens = tokens
        self._tickets = tickets
        self._users = users
        self._trusted_proxies = trusted_proxies

    def participant(self, request: Request) -> Participant:
        """Who opens the connection; `request.remote_addr` is where they are from then on. Raises `Unauthenticated`."""
        forwarded = request.headers.get("X-Forwarded-For", "") if self._trusted_proxies else ""
        if forwarded:
            request.remote_addr = believed_addresses(request.remote_addr, forwarded, self._trusted_proxies).partition(
                ","
            )[0]
        return self._users.present(self._participant(request))

    def _participant(self, request: Request) -> Participant:
        scheme, _, token = request.headers.get("Authorization", "").strip().partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return self._of_token(token.strip())
        ticket = request.args.get(TICKET)
        if ticket:
            g.token_given = True
            return self._tickets.redeem(ticket)
        offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")
        for subprotocol in offered:
            if subprotocol.strip().startswith(TOKEN_PREFIX):
                return self._of_token(subprotocol.strip().removeprefix(TOKEN_PREFIX))
        cookie = request.cookies.get(COOKIE)
        if cookie:
            return self._of_token(cookie)
        raise Unauthenticated(
            "This needs a token, as Authorization: Bearer <token>, or a ticket of POST /api/v1/tickets, as ?ticket=<ticket>."
        )

    def _of_token(self, token: str) -> Participant:
        g.token_given = True
        return self._tokens.participant(token)
