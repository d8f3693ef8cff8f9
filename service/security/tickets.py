"""One-time tickets: a browser can put no Authorization field on a WebSocket or an event stream, and a token has no place in an
address, which proxies and logs keep. A ticket has: it holds for seconds, and once.

A ticket is signed like a token, for another audience, so that neither passes for the other. That it is redeemed once is what
the workers agree on in a folder: who redeems one makes a file named after it, which the system lets only one of them do. The
folder knows nothing of what was before it, so a ticket that is older does not hold.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, get_args

import jwt

from service.errors import Overloaded, Unauthenticated
from service.model import Caller, Participant, Role
from service.security.tokens import ISSUER

__all__ = ["SpentInFolder", "SpentInMemory", "SpentTickets", "TicketSigner"]

ALGORITHM = "HS256"
AUDIENCE = "seawall-ticket"
CLAIMS = ("iss", "aud", "sub", "iat", "exp", "jti")
GUEST_LETTERS = 8
BEFORE_FORGOTTEN = 60.0
"""Seconds for which a spent ticket is remembered after its end: clocks may be set back a little."""
BEGAN = "began"
"""The file that says since when a folder knows of tickets."""
SWEEP_EVERY = 1.0
SWEPT_AT_ONCE = 1_000
"""Tickets that are forgotten in one go: more would hold up everybody else."""

ANOTHER = "Get another one with POST /api/v1/tickets: each holds once, and for some seconds."


class SpentTickets(Protocol):
    """Which tickets have been redeemed."""

    def began(self) -> float:
        """Since when, in seconds since the epoch, it is known which: asked before a ticket is issued, and before one is spent.
        Raises `Overloaded` where that cannot be told."""

    def spend(self, ticket: str, until: float) -> bool:
        """Whether this is the first time that `ticket` (letters, digits, - and _) is spent. After `until`, in seconds since the
        epoch, nobody will ask any more."""


class SpentInMemory:
    """Known to this process alone: for one that serves by itself."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._began = now()
        self._spent: dict[str, float] = {}
        self._sweep_at = 0.0

    def began(self) -> float:
        """See `SpentTickets`."""
        return self._began

    def spend(self, ticket: str, until: float) -> bool:
        """See `SpentTickets`."""
        with self._lock:
            now = self._now()
            if now >= self._sweep_at:
                self._sweep_at = now + SWEEP_EVERY
                self._spent = {name: end for name, end in self._spent.items() if end + BEFORE_FORGOTTEN > now}
            if ticket in self._spent:
                return False
            self._spent[ticket] = until
            return True


class SpentInFolder:
    """Known to all processes that use the same folder, which is made when the first ticket is spent.

    Each minute in which tickets end has a folder in it, so that what is over is found without a look at what is not.
    """

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now
        self._began: float | None = None
        self._sweep_at = 0.0

    def began(self) -> float:
        """See `SpentTickets`: when the first of the processes asked."""
        if self._began is None:
            try:
                self._began = self._found_or_begun()
            except (OSError, ValueError) as error:
                raise Overloaded("Tickets are out of order at the moment. Try again.", retry_after=1.0) from error
        return self._began

    def _found_or_begun(self) -> float:
        file = self._folder / BEGAN
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if not file.exists():
            # Written elsewhere first, so that nobody finds half of it; of several who do so at once, one is right.
            mine = self._folder / f"{BEGAN}-{secrets.token_hex(8)}"
            mine.write_text(repr(self._now()))
            with suppress(FileExistsError):
                file.hardlink_to(mine)
            mine.unlink()
        return float(file.read_text())

    def spend(self, ticket: str, until: float) -> bool:
        """See `SpentTickets`. Raises `Overloaded` where that cannot be told: what might hold twice does not hold at all."""
        minute = self._folder / str(int(until) // 60)
        try:
            self._sweep()
            try:
                _make(minute / ticket)
            except FileNotFoundError:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                minute.mkdir(mode=0o700, exist_ok=True)
                _make(minute / ticket)
        except FileExistsError:
            return False
        except OSError as error:
            raise Overloaded("Tickets cannot be redeemed at the moment. Try again.", retry_after=1.0) from error
        return True

    def _sweep(self) -> None:
        """Remove some of what is over, and the folders that it leaves empty."""
        now = self._now()
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_EVERY
        with suppress(FileNotFoundError):  # another process was quicker, or there is nothing yet
            for name in os.listdir(self._folder):  # noqa: PTH208 - names are all that is needed
                if name.isdecimal() and (int(name) + 1) * 60 + BEFORE_FORGOTTEN < now:
                    minute = self._folder / name
                    with os.scandir(minute) as tickets:
                        for ticket in list(itertools.islice(tickets, SWEPT_AT_ONCE)):
                            Path(ticket).unlink()
                    with suppress(OSError):  # there are more
                        minute.rmdir()


def _make(file: Path) -> None:
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


class TicketSigner:
    """Issues tickets under `secret` and redeems those signed with it or with `previous`. `lifetime` is in seconds."""

    def __init__(
        self,
        secret: str,
        *,
        previous: str | None = None,
        lifetime: int,
        spent: SpentTickets,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._secret = secret
        self._accepted = (secret,) if previous is None else (secret, previous)
        self._lifetime = lifetime
        self._spent = spent
        self._now = now

    def issue(self, participant: Participant) -> tuple[str, int]:
        """A ticket for `participant` and its lifetime in seconds. Raises `Overloaded` when it could not be redeemed."""
        self._spent.began()
        now = self._now()
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": participant.name,
            "iat": now,
            "exp": now + self._lifetime,
            "jti": secrets.token_urlsafe(16),
        }
        if participant.caller is not None:
            claims["user"] = [participant.caller.user_id, participant.caller.role]
            claims["token"] = participant.token
            claims["until"] = participant.expires_at
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM), self._lifetime

    def redeem(self, ticket: str) -> Participant:
        """Who the ticket was issued for, once. Raises `Unauthenticated` with the reason when it does not hold."""
        claims = self._claims(ticket)
        if claims["exp"] <= self._now():
            raise Unauthenticated(f"The ticket has expired. {ANOTHER}")
        if claims["iat"] < self._spent.began():
            raise Unauthenticated(f"The ticket is from before the service started. {ANOTHER}")
        participant = _participant(claims)
        if not self._spent.spend(str(claims["jti"]), claims["exp"]):
            raise Unauthenticated(f"The ticket has been used. {ANOTHER}")
        return participant

    def guest(self, visitor: str) -> Participant:
        """The guest who comes with `visitor`, a text that only they know: the same each time, and nobody else can be it."""
        digest = hmac.digest(self._secret.encode(), b"guest " + visitor.encode(), hashlib.sha256)
        return Participant("guest-" + base64.b32encode(digest).decode()[:GUEST_LETTERS].lower())

    def _claims(self, ticket: str) -> dict[str, Any]:
        for secret in self._accepted:
            with suppress(jwt.PyJWTError, RecursionError):
                return jwt.decode(
                    ticket,
                    secret,
                    algorithms=[ALGORITHM],
                    issuer=ISSUER,
                    audience=AUDIENCE,
                    options={"require": list(CLAIMS), "verify_exp": False, "verify_iat": False},  # by our own clock
                )
        raise Unauthenticated(f"This is not a ticket of this service. {ANOTHER}")


def _participant(claims: dict[str, Any]) -> Participant:
    if "user" not in claims:
        return Participant(claims["sub"])
    user_id, said = claims["user"]
    role: Role = next(role for role in get_args(Role) if role == said)
    return Participant(claims["sub"], Caller(user_id=user_id, role=role), claims["token"], claims["until"])
