"""Tokens: whom they speak for, and everything that does not make one."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from service.errors import Unauthenticated
from service.model import Caller, Role, User
from service.security.tokens import TokenSigner

SECRET = "a-secret-of-at-least-thirty-two-bytes"
OTHER = "another-secret-of-more-than-32-bytes."
NOW = datetime.now(UTC)
ANN = User(id=7, name="Ann", email="ann@example.com", role="admin", version=1, created_at=NOW, updated_at=NOW)
CLAIMS = {
    "iss": "seawall",
    "aud": "seawall-api",
    "sub": "7",
    "role": "admin",
    "iat": NOW,
    "exp": NOW + timedelta(hours=1),
    "jti": "once",
}


def signer(secret: str = SECRET, *, previous: str | None = None, now: datetime | None = None) -> TokenSigner:
    return TokenSigner(secret, previous=previous, lifetime=600, now=(lambda: now) if now else lambda: datetime.now(UTC))


def forged(**claims: Any) -> str:
    """A token with these claims instead of the right ones; None leaves one out. The signature is right."""
    kept = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(kept, SECRET, algorithm="HS256")


def refusal(token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        signer().verify(token)
    return caught.value.detail


@pytest.mark.parametrize("role", ["member", "admin"])
def test_a_token_speaks_for_the_user_it_was_issued_to(role: Role) -> None:
    user = User(id=7, name="Ann", email="a@example.com", role=role, version=1, created_at=NOW, updated_at=NOW)
    token, lifetime = signer().issue(user)
    assert (Caller(user_id=7, role=role), 600) == (signer().verify(token), lifetime)


def test_a_token_holds_what_it_has_to_and_nothing_about_the_person() -> None:
    token, _ = signer(now=NOW).issue(ANN)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert set(CLAIMS) == set(claims)
    assert 600 == claims["exp"] - claims["iat"]


def test_two_tokens_of_one_moment_differ() -> None:
    one = signer(now=NOW)
    assert one.issue(ANN) != one.issue(ANN)


def test_tokens_of_the_previous_secret_hold_while_it_is_known() -> None:
    token, _ = signer(OTHER).issue(ANN)
    assert Caller(user_id=7, role="admin") == signer(SECRET, previous=OTHER).verify(token)


def test_new_tokens_are_signed_with_the_new_secret() -> None:
    token, _ = signer(SECRET, previous=OTHER).issue(ANN)
    assert Caller(user_id=7, role="admin") == signer(SECRET).verify(token)


@pytest.mark.parametrize("previous", [None, "a-third-secret-of-more-than-32-bytes."])
def test_a_token_of_an_unknown_secret_is_refused(previous: str | None) -> None:
    token, _ = signer(OTHER).issue(ANN)
    with pytest.raises(Unauthenticated, match="signature is not ours"):
        signer(SECRET, previous=previous).verify(token)


def test_a_token_that_was_verified_once_still_ends() -> None:
    now = datetime.now(UTC)
    verifying = TokenSigner(SECRET, lifetime=600, now=lambda: now)
    token = forged(exp=datetime.now(UTC) + timedelta(seconds=-5))  # within the leeway
    assert Caller(user_id=7, role="admin") == verifying.verify(token)
    token = forged(exp=datetime.now(UTC) + timedelta(seconds=-11))
    with pytest.raises(Unauthenticated, match="has expired"):
        verifying.verify(token)
    token = forged()
    assert verifying.verify(token) is verifying.verify(token), "the second time from memory"
    now += timedelta(hours=2)
    assert verifying.verify(token) is not verifying.verify(token), "past its end nothing is taken from memory"


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.security.tokens.REMEMBERED", 3)
    verifying = signer()
    for number in range(5):
        verifying.verify(forged(jti=str(number)))
    assert 3 == len(verifying._verified)


def test_a_refused_token_is_not_remembered() -> None:
    verifying = signer()
    with pytest.raises(Unauthenticated):
        verifying.verify(jwt.encode(CLAIMS, OTHER, algorithm="HS256"))
    assert 0 == len(verifying._verified)


@pytest.mark.parametrize("secret", [SECRET, OTHER])
def test_an_expired_token_is_refused_with_what_to_do(secret: str) -> None:
    token, _ = signer(secret, now=NOW - timedelta(hours=1)).issue(ANN)
    with pytest.raises(Unauthenticated, match=r"has expired\. Sign in again with POST /api/v1/auth/token"):
        signer(SECRET, previous=OTHER).verify(token)


def test_clocks_may_differ_by_a_few_seconds() -> None:
    ahead, _ = signer(now=datetime.now(UTC) + timedelta(seconds=5)).issue(ANN)
    behind, _ = signer(now=datetime.now(UTC) - timedelta(seconds=605)).issue(ANN)
    assert signer().verify(ahead) == signer().verify(behind)


@pytest.mark.parametrize("claim", sorted(CLAIMS))
def test_a_token_without_one_of_its_claims_is_refused(claim: str) -> None:
    assert "not a token of this service" in refusal(forged(**{claim: None}))


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "someone else"},
        {"aud": "another service"},
        {"sub": "seven"},
        {"sub": "-7"},
        {"sub": "٧"},
        {"sub": ""},
        {"sub": 7},
        {"role": "owner"},
        {"role": ["admin"]},
        # Counted from the collection of the tests, which may be long ago. The name of a test must not depend on the time.
        pytest.param({"iat": NOW + timedelta(hours=12)}, id="iat in the future"),
        {"exp": "tomorrow"},
    ],
    ids=str,
)
def test_a_token_with_a_wrong_claim_is_refused(claims: dict[str, Any]) -> None:
    token = jwt.api_jws.encode(
        json.dumps({**CLAIMS, **claims}, default=lambda time: int(time.timestamp())).encode(), SECRET, algorithm="HS256"
    )
    assert "not a token of this service" in refusal(token)


def test_the_claims_above_are_right_but_for_what_is_wrong_with_them() -> None:
    assert Caller(user_id=7, role="admin") == signer().verify(forged())


@pytest.mark.parametrize("algorithm", ["none", "HS384", "HS512"])
@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
def test_a_token_of_another_algorithm_is_refused(algorithm: str) -> None:
    token = jwt.encode(CLAIMS, None if algorithm == "none" else SECRET, algorithm=algorithm)
    assert "not a token of this service" in refusal(token)


def test_a_changed_payload_is_refused() -> None:
    header, _, signature = forged(role="member").split(".")
    payload = forged(role="admin").split(".")[1]
    assert "signature is not ours" in refusal(f"{header}.{payload}.{signature}")


def test_a_header_of_nested_brackets_is_refused_like_any_other() -> None:
    header = base64.urlsafe_b64encode(b"[" * 5000 + b"]" * 5000).decode()
    assert "not a token of this service" in refusal(f"{header}.e30.e30")


ENCODED = some.binary(max_size=60).map(lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="))
JSON_PART = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=10),
    lambda part: some.lists(part, max_size=3) | some.dictionaries(some.text(max_size=5), part, max_size=3),
    max_leaves=5,
).map(lambda part: base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("="))
PART = ENCODED | JSON_PART | some.just(forged().split(".")[0]) | some.text(max_size=20)


@settings(deadline=None)
@given(some.lists(PART, max_size=5).map(".".join))
def test_nothing_that_was_not_signed_is_a_token_and_nothing_breaks_the_check(token: str) -> None:
    refusal(token)
