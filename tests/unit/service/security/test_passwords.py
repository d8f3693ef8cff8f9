"""Passwords: hashes that hold, the same work for every answer, and a line with an end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import argon2
import gevent
import pytest
from gevent.monkey import get_original
from structlog.testing import capture_logs

from service.errors import Overloaded
from service.security.passwords import PARAMETERS, PasswordHasher
from tests.support.database import PASSWORD, QUICK, quick_hasher

native_ident: Callable[[], int] = get_original("_thread", "get_ident")


class Recorder:
    """argon2, noting what it is asked and where."""

    def __init__(self) -> None:
        self._argon2 = argon2.PasswordHasher.from_parameters(QUICK)
        self.verified: list[str] = []
        self.threads: set[int] = set()

    def hash(self, password: str) -> str:
        self.threads.add(native_ident())
        return self._argon2.hash(password)

    def verify(self, password_hash: str, password: str) -> bool:
        self.threads.add(native_ident())
        self.verified.append(password_hash)
        return self._argon2.verify(password_hash, password)


@pytest.fixture
def hasher() -> Iterator[PasswordHasher]:
    hasher = quick_hasher(threads=1, waiting=1)
    yield hasher
    hasher.close()


@pytest.fixture
def recorder(hasher: PasswordHasher) -> Recorder:
    recorder: Any = Recorder()
    hasher._argon2 = recorder
    seen: Recorder = recorder
    return seen


@pytest.mark.parametrize("password", [PASSWORD, "ünïcödé 密码 🔑", "with\0zero bytes", "x" * 256])
def test_only_the_password_itself_matches_its_hash(hasher: PasswordHasher, password: str) -> None:
    password_hash = hasher.hash(password)
    assert hasher.verify(password_hash, password) is True
    assert hasher.verify(password_hash, password + " ") is False
    assert hasher.verify(password_hash, "") is False


def test_a_hash_is_salted_and_does_not_hold_the_password(hasher: PasswordHasher) -> None:
    one, other = hasher.hash(PASSWORD), hasher.hash(PASSWORD)
    assert one != other
    assert PASSWORD not in one
    assert one.startswith("$argon2id$")


def test_nobody_has_no_password_at_the_price_of_somebody(hasher: PasswordHasher, recorder: Recorder) -> None:
    assert hasher.verify(None, PASSWORD) is False
    assert [hasher._nobodys_hash] == recorder.verified
    assert QUICK == argon2.extract_parameters(hasher._nobodys_hash)


def test_nobody_is_let_in_even_with_the_password_of_nobody(hasher: PasswordHasher) -> None:
    hasher._nobodys_hash = hasher.hash(PASSWORD)
    assert hasher.verify(None, PASSWORD) is False


def test_hashing_stays_off_the_thread_of_the_event_loop(hasher: PasswordHasher, recorder: Recorder) -> None:
    hasher.verify(hasher.hash(PASSWORD), PASSWORD)
    assert native_ident() not in recorder.threads


def test_more_passwords_than_the_line_takes_are_refused(hasher: PasswordHasher) -> None:
    jobs = [gevent.spawn(hasher.hash, PASSWORD) for _ in range(2)]
    gevent.sleep(0)
    with pytest.raises(Overloaded) as caught:
        hasher.hash(PASSWORD)
    assert 1.0 == caught.value.retry_after
    assert all(job.get().startswith("$argon2id$") for job in jobs)
    assert hasher.verify(None, PASSWORD) is False


def test_interrupted_callers_leave_no_place_taken(hasher: PasswordHasher) -> None:
    for _ in range(20):
        jobs = [gevent.spawn(hasher.hash, PASSWORD) for _ in range(2)]
        gevent.sleep(0)
        gevent.killall(jobs)
    gevent.spawn(hasher.hash, PASSWORD).get()
    assert 2 == hasher._threads.free_places


@pytest.mark.parametrize("broken", ["", "plain", "$argon2id$v=19$m=8,t=1,p=1$broken"])
def test_a_stored_hash_that_cannot_be_read_lets_nobody_in_and_is_reported(hasher: PasswordHasher, broken: str) -> None:
    with capture_logs() as logs:
        assert hasher.verify(broken, PASSWORD) is False
    assert ["a stored password hash cannot be read; give its owner a new password"] == [line["event"] for line in logs]


def test_the_real_parameters_are_those_that_owasp_asks_for() -> None:
    hasher = PasswordHasher(threads=1, waiting=1)
    password_hash = hasher.hash(PASSWORD)
    assert password_hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert hasher.verify(password_hash, PASSWORD) is True
    assert PARAMETERS == argon2.extract_parameters(password_hash)
    hasher.close()
