"""Signing in: a name and a password for a token."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import Unauthenticated
from service.services.ports import PasswordHasher, TokenSigner, UserRepository
from service.services.users import LONGEST_PASSWORD, is_name

__all__ = ["AccessToken", "AuthService"]


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A bearer token and the seconds it holds for."""

    value: str
    expires_in: int


class AuthService:
    """Who may have a token."""

    def __init__(self, users: UserRepository, hasher: PasswordHasher, signer: TokenSigner) -> None:
        self._users = users
        self._hasher = hasher
        self._signer = signer

    def sign_in(self, name: str, password: str) -> AccessToken:
        """A token for the user of that name (in whatever case).

        Raises `Unauthenticated` for a wrong name and for a wrong password, in the same words and after the same work,
        so that nobody learns which names exist. Raises `Overloaded` when too many passwords are being checked.
        """
        # A name or password that no user can have is not looked up or hashed as it stands: it may be of any size.
        known = self._users.credentials(name) if is_name(name) else None
        matches = self._hasher.verify(None if known is None else known[1], password[: LONGEST_PASSWORD + 1])
        if known is None or not matches:
            raise Unauthenticated("The name or the password is wrong.")
        value, expires_in = self._signer.issue(known[0])
        return AccessToken(value=value, expires_in=expires_in)
