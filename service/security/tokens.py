"""Bearer tokens: JWT, signed with HMAC SHA-256 and nothing else."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import jwt

from service.errors import Unauthenticated
from service.model import Caller, Participant, Role, User, user_name

__all__ = ["TokenSigner"]

ALGORITHM = "HS256"
ISSUER = "seawall"
AUDIENCE = "seawall-api"
CLAIMS = ("iss", "aud", "sub", "role", "iat", "exp", "jti")
LEEWAY = timedelta(seconds=10)
"""How far the clocks of two hosts may be apart. A token lives this much longer than it says."""

REMEMBERED = 4_096
"""Tokens whose signature need not be checked again. Checking one takes 60 us, a good part of a cheap request."""

SIGN_IN = "Sign in again with POST /api/v1/auth/token."


def _now() -> datetime:
    return datetime.now(UTC)


class TokenSigner:
    """Issues tokens under `secret` and accepts those signed with it or with `previous`, so that it can be changed
    while tokens are about. `lifetime` is in seconds. Secrets hold at least 32 bytes."""

    def __init__(
        self, secret: str, *, previous: str | None = None, lifetime: int, now: Callable[[], datetime] = _now
    ) -> None:
        self._secret = secret
        self._accepted = (secret,) if previous is None else (secret, previous)
        self._lifetime = lifetime
        self._now = now
        self._verified: OrderedDict[str, tuple[Participant, float]] = OrderedDict()  # by token: who, and until when

    def issue(self, user: User) -> tuple[str, int]:
        """A token for `user` and its lifetime in seconds."""
        now = self._now()
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user.id),
            "role": user.role,
            "iat": now,
            "exp": now + timedelta(seconds=self._lifetime),
            "jti": str(uuid.uuid4()),
        }
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM), self._lifetime

    def verify(self, token: str) -> Caller:
        """Who the token speaks for. Raises `Unauthenticated` with the reason when it does not hold.

        The database is not asked: the role is that of the moment the token was issued.
        """
        caller = self.participant(token).caller
        assert caller is not None  # guests have no tokens
        return caller

    def participant(self, token: str) -> Participant:
        """As `verify`, with what a connection that stays needs to know of the token: its id, and when it ends."""
        known = self._verified.get(token)
        if known is not None and self._now().timestamp() < known[1]:
            return known[0]
        try:
            claims = self._claims(token)
            return self._remember(token, _participant(claims), claims["exp"])
        except jwt.ExpiredSignatureError:
            raise Unauthenticated(f"The token has expired. {SIGN_IN}") from None
        except jwt.InvalidSignatureError:
            raise Unauthenticated(f"The token's signature is not ours. {SIGN_IN}") from None
        except (jwt.PyJWTError, RecursionError):  # of the latter, not every PyJWT makes one of its own
            raise Unauthenticated(f"This is not a token of this service. {SIGN_IN}") from None

    def _remember(self, token: str, participant: Participant, expires: float) -> Participant:
        self._verified[token] = (participant, expires)  # without the leeway: a token at its end is checked each time
        while len(self._verified) > REMEMBERED:
            self._verified.popitem(last=False)
        return participant

    def _claims(self, token: str) -> dict[str, Any]:
        for secret in self._accepted[:-1]:
            try:
                return _decode(token, secret)
            except jwt.InvalidSignatureError:
                continue
        return _decode(token, self._accepted[-1])


def _decode(token: str, secret: str) -> dict[str, Any]:
    return jwt.decode(
        token,
        secret,
        algorithms=[ALGORITHM],
        issuer=ISSUER,
        audience=AUDIENCE,
        leeway=LEEWAY,
        options={"require": list(CLAIMS)},
    )


def _participant(claims: dict[str, Any]) -> Participant:
    role: Role | None = next((role for role in get_args(Role) if role == claims["role"]), None)
    subject = claims["sub"]
    if role is None or not (subject.isascii() and subject.isdigit()):
        raise jwt.InvalidTokenError
    caller = Caller(user_id=int(subject), role=role)
    expires_at = claims["exp"] + LEEWAY.total_seconds()
    return Participant(user_name(caller.user_id), caller, token=str(claims["jti"]), expires_at=expires_at)
