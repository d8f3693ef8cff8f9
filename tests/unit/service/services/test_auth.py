"""Signing in: what comes of a name and a password."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.data.users import SqlUserRepository
from service.errors import Unauthenticated
from service.model import Caller, User
from service.security.passwords import PasswordHasher
from service.security.tokens import TokenSigner
from service.services.auth import AuthService
from service.services.users import LONGEST_PASSWORD, NewUser, add_user
from tests.support.database import PASSWORD, migrated_sqlite, quick_hasher

SECRET = "a-secret-of-at-least-thirty-two-bytes"


class CountingHasher:
    """A real hasher that notes the work it was asked for."""

    def __init__(self, hasher: PasswordHasher) -> None:
        self._hasher = hasher
        self.verified: list[tuple[str | None, str]] = []

    def hash(self, password: str) -> str:
        return self._hasher.hash(password)

    def verify(self, password_hash: str | None, password: str) -> bool:
        self.verified.append((password_hash, password))
        return self._hasher.verify(password_hash, password)


@pytest.fixture
def hasher() -> Iterator[CountingHasher]:
    hasher = quick_hasher()
    yield CountingHasher(hasher)
    hasher.close()


@pytest.fixture
def users(tmp_path: Path) -> Iterator[SqlUserRepository]:
    database = migrated_sqlite(tmp_path)
    yield SqlUserRepository(database)
    database.close()


@pytest.fixture
def ann(users: SqlUserRepository, hasher: CountingHasher) -> User:
    return add_user(users, hasher, NewUser(name="Ann", email="ann@example.com", role="admin", password=PASSWORD))


@pytest.fixture
def signer() -> TokenSigner:
    return TokenSigner(SECRET, lifetime=600)


@pytest.fixture
def service(users: SqlUserRepository, hasher: CountingHasher, signer: TokenSigner) -> AuthService:
    return AuthService(users, hasher, signer)


@pytest.mark.parametrize("name", ["Ann", "ann", "ANN"])
def test_a_name_in_whatever_case_and_its_password_give_a_token(
    service: AuthService, signer: TokenSigner, ann: User, name: str
) -> None:
    token = service.sign_in(name, PASSWORD)
    assert Caller(user_id=ann.id, role="admin") == signer.verify(token.value)
    assert 600 == token.expires_in


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("Ann", "not the password"),
        ("Ann", ""),
        ("Nobody", PASSWORD),
        ("ann@example.com", PASSWORD),
        ("", PASSWORD),
        ("a\0b", PASSWORD),
        ("x" * 100_000, "y" * 100_000),
        ("Ann", PASSWORD + " "),
        ("\ud800", PASSWORD),
    ],
)
def test_every_wrong_pair_is_refused_in_the_same_words_after_one_check(
    service: AuthService, hasher: CountingHasher, ann: User, name: str, password: str
) -> None:
    with pytest.raises(Unauthenticated) as caught:
        service.sign_in(name, password)
    assert "The name or the password is wrong." == caught.value.detail
    assert 1 == len(hasher.verified)
    assert len(hasher.verified[0][1]) <= LONGEST_PASSWORD + 1


def test_a_password_of_which_the_right_one_is_only_the_beginning_is_wrong(
    service: AuthService, users: SqlUserRepository, hasher: CountingHasher
) -> None:
    longest = "x" * LONGEST_PASSWORD
    add_user(users, hasher, NewUser(name="Lee", email="lee@example.com", role="member", password=longest))
    service.sign_in("Lee", longest)
    with pytest.raises(Unauthenticated):
        service.sign_in("Lee", longest + "x")
