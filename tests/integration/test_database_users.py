"""One conformance suite for users at rest, on every database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import gevent
import pytest

from service.data.database import Database
from service.data.users import LARGEST_ID, SqlUserRepository
from service.errors import Conflict, PreconditionFailed, ServiceError
from service.model import Page, User
from tests.support.database import migrated
from tests.support.postgres import PostgresServer

NEW_YEAR = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)


class Clock:
    """Moves when told to."""

    def __init__(self) -> None:
        self.time = NEW_YEAR

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'test.db'}"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.create_database()
    database = migrated(url)
    yield database
    database.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def users(database: Database, clock: Clock) -> SqlUserRepository:
    return SqlUserRepository(database, now=clock)


@pytest.fixture
def ann(users: SqlUserRepository) -> User:
    return users.add(name="Ann", email="ann@example.com", role="admin", password_hash="hash of ann")


@pytest.fixture
def ben(users: SqlUserRepository, ann: User) -> User:
    return users.add(name="Ben", email="ben@example.com", role="member", password_hash="hash of ben")


def test_a_stored_user_is_found_as_it_was_stored(users: SqlUserRepository, ann: User) -> None:
    expected = User(
        id=ann.id,
        name="Ann",
        email="ann@example.com",
        role="admin",
        version=1,
        created_at=NEW_YEAR,
        updated_at=NEW_YEAR,
    )
    assert expected == ann == users.get(ann.id)


@pytest.mark.parametrize("user_id", [0, -1, 999, LARGEST_ID, LARGEST_ID + 1, 10**30])
def test_an_id_that_nobody_has_finds_nobody(users: SqlUserRepository, ann: User, user_id: int) -> None:
    assert users.get(user_id) is None
    assert users.change(user_id, None, {"name": "Eve"}) is None
    assert users.remove(user_id, None) is False


@pytest.mark.parametrize("name", ["Ann", "ann", "ANN"])
def test_credentials_are_found_by_name_in_whatever_case(users: SqlUserRepository, ann: User, name: str) -> None:
    assert (ann, "hash of ann") == users.credentials(name)


def test_a_name_that_nobody_has_has_no_credentials(users: SqlUserRepository, ann: User) -> None:
    assert users.credentials("an") is None


def test_a_name_that_differs_only_in_case_is_taken(users: SqlUserRepository, ann: User) -> None:
    with pytest.raises(Conflict, match=r"This name is taken\.") as caught:
        users.add(name="aNN", email="other@example.com", role="member", password_hash="-")
    assert (("/name", "is taken"),) == caught.value.fields


def test_an_address_that_differs_only_in_case_is_taken(users: SqlUserRepository, ann: User) -> None:
    with pytest.raises(Conflict, match=r"This email is taken\.") as caught:
        users.add(name="Eve", email="Ann@Example.com", role="member", password_hash="-")
    assert (("/email", "is taken"),) == caught.value.fields


def test_a_taken_name_refuses_a_change_too_and_leaves_everything(
    users: SqlUserRepository, ann: User, ben: User
) -> None:
    with pytest.raises(Conflict):
        users.change(ben.id, 1, {"name": "ann", "role": "admin"})
    assert ben == users.get(ben.id)


def test_users_may_keep_their_own_name_in_another_case(users: SqlUserRepository, ann: User) -> None:
    changed = users.change(ann.id, 1, {"name": "ANN"})
    assert changed is not None
    assert "ANN" == changed.name


def test_pages_follow_each_other_to_the_last(users: SqlUserRepository) -> None:
    stored = [
        users.add(name=f"user{number}", email=f"{number}@example.com", role="member", password_hash="-")
        for number in range(5)
    ]
    first = users.page(0, 2)
    second = users.page(int(first.next or "-"), 2)
    third = users.page(int(second.next or "-"), 2)
    assert stored == [*first.users, *second.users, *third.users]
    assert third.next is None


def test_a_page_that_ends_with_the_last_user_has_no_next(users: SqlUserRepository, ann: User, ben: User) -> None:
    assert Page(users=(ann, ben), next=None) == users.page(0, 2)


@pytest.mark.parametrize("after", [10, LARGEST_ID, 10**18, 10**30])
def test_after_the_last_user_comes_an_empty_page(users: SqlUserRepository, ann: User, after: int) -> None:
    assert Page(users=(), next=None) == users.page(after, 10)


def test_a_change_applies_everything_and_raises_the_version(users: SqlUserRepository, clock: Clock, ben: User) -> None:
    clock.time += timedelta(days=1)
    changes = {"name": "Bob", "email": "bob@example.com", "role": "admin", "password_hash": "other hash"}
    changed = users.change(ben.id, 1, changes)
    expected = User(
        id=ben.id,
        name="Bob",
        email="bob@example.com",
        role="admin",
        version=2,
        created_at=NEW_YEAR,
        updated_at=NEW_YEAR + timedelta(days=1),
    )
    assert expected == changed
    assert (expected, "other hash") == users.credentials("bob")


def test_a_change_of_another_version_is_refused(users: SqlUserRepository, ben: User) -> None:
    with pytest.raises(PreconditionFailed, match="version 1 now"):
        users.change(ben.id, 2, {"name": "Bob"})
    assert ben == users.get(ben.id)


def test_a_change_of_whatever_version_is_applied(users: SqlUserRepository, ben: User) -> None:
    users.change(ben.id, None, {"name": "Bob"})
    changed = users.change(ben.id, None, {"name": "Bo"})
    assert changed is not None
    assert ("Bo", 3) == (changed.name, changed.version)


def test_no_changes_change_nothing_but_the_version_is_still_checked(users: SqlUserRepository, ben: User) -> None:
    assert ben == users.change(ben.id, 1, {})
    with pytest.raises(PreconditionFailed):
        users.change(ben.id, 2, {})


def test_a_removed_user_is_gone(users: SqlUserRepository, ben: User) -> None:
    assert users.remove(ben.id, 1) is True
    assert users.get(ben.id) is None
    assert users.remove(ben.id, None) is False


def test_a_removal_of_another_version_is_refused(users: SqlUserRepository, ben: User) -> None:
    with pytest.raises(PreconditionFailed):
        users.remove(ben.id, 7)
    assert ben == users.get(ben.id)


def test_the_id_of_a_removed_user_never_comes_back(users: SqlUserRepository, ben: User) -> None:
    users.remove(ben.id, None)
    eve = users.add(name="Eve", email="eve@example.com", role="member", password_hash="-")
    assert eve.id > ben.id


def test_the_last_admin_is_neither_demoted_nor_removed(users: SqlUserRepository, ann: User, ben: User) -> None:
    with pytest.raises(Conflict, match="last admin"):
        users.change(ann.id, None, {"role": "member"})
    with pytest.raises(Conflict, match="last admin"):
        users.remove(ann.id, None)
    assert ann == users.get(ann.id)


def test_the_last_admin_may_change_in_other_ways(users: SqlUserRepository, ann: User) -> None:
    changed = users.change(ann.id, 1, {"role": "admin", "name": "Anna"})
    assert changed is not None
    assert "Anna" == changed.name


def test_one_of_two_admins_may_go(users: SqlUserRepository, ann: User, ben: User) -> None:
    users.change(ben.id, None, {"role": "admin"})
    assert users.remove(ann.id, None) is True


def test_two_admins_who_demote_each_other_at_once_leave_one(users: SqlUserRepository, ann: User, ben: User) -> None:
    users.change(ben.id, None, {"role": "admin"})

    def demote(user: User) -> str:
        try:
            users.change(user.id, None, {"role": "member"})
        except ServiceError as error:
            return type(error).__name__
        return "demoted"

    jobs = [gevent.spawn(demote, user) for user in (ann, ben)]
    assert ["Conflict", "demoted"] == sorted(job.get() for job in jobs)
