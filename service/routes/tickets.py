"""`POST /api/v1/tickets`: a ticket, with which a browser opens one WebSocket or event stream."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Final

from flask import Blueprint, Response, g, jsonify, request

from service.errors import Unauthenticated
from service.model import Participant
from service.routes.access import admits_guests
from service.routes.bodies import json_object
from service.routes.credentials import TokenReader
from service.services.members import Fault, check_members
from service.services.ports import TicketSigner, Users

__all__ = ["create_tickets_blueprint"]

VISITOR: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")


def _visitor_fault(value: str) -> str | None:
    return None if VISITOR.fullmatch(value) else "must be 16 to 64 letters, digits, - and _, that nobody else can guess"


RULES: Final[Mapping[str, Fault]] = {"visitor": _visitor_fault}


def create_tickets_blueprint(tickets: TicketSigner, tokens: TokenReader, users: Users, *, guests: bool) -> Blueprint:
    """The route that gives tickets to whoever shows the token of a user whom there is, and to guests, who show none, where
    `guests` says so."""
    blueprint = Blueprint("tickets", __name__, url_prefix="/api/v1/tickets")

    def issue_ticket() -> Response:
        has_body = bool(request.content_length or request.headers.get("Transfer-Encoding"))
        members = check_members(json_object(request) if has_body else {}, RULES, required=())
        participant = _participant(members.get("visitor"))
        ticket, lifetime = tickets.issue(participant)
        response = jsonify(ticket=ticket, expires_in=lifetime, user=participant.name)
        response.status_code = 201
        response.headers["Cache-Control"] = "no-store"
        return response

    def _participant(visitor: str | None) -> Participant:
        if "caller" in g:
            token = request.headers["Authorization"].strip().partition(" ")[2].strip()
            return users.present(tokens.participant(token))
        if not guests:
            raise Unauthenticated("This needs a token: sign in, and send it as Authorization: Bearer <token>.")
        return tickets.guest(visitor or secrets.token_urlsafe(16))

    blueprint.post("")(admits_guests(issue_ticket) if guests else issue_ticket)
    return blueprint
