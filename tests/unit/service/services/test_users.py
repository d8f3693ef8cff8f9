"""The rules about users, over a real database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from service.data.users import SqlUserRepository
from service.errors import Conflict, Forbidden, NotFound, PreconditionFailed, Unauthenticated, ValidationFailed
from service.model import Caller, Page, Participant, User
from service.security.passwords import PasswordHasher
from service.services.users import (
    NewUser,
    UserChanges,
    UserService,
    add_user,
    is_name,
    parse_new_user,
    parse_patch,
    parse_replacement,
)
from tests.support.database import PASSWORD, migrated_sqlite, quick_hasher

ANN = NewUser(name="Ann", email="ann@example.com", role="admin", password=PASSWORD)
BEN = NewUser(name="Ben", email="ben@example.com", role="member", password=PASSWORD)
EVE = NewUser(name="Eve", email="eve@example.com", role="member", password=PASSWORD)
MEMBERS = {"name": "Ann", "email": "ann@example.com", "role": "admin", "password": PASSWORD}
NOBODY = 999


@pytest.fixture
def users(tmp_path: Path) -> Iterator[SqlUserRepository]:
    database = migrated_sqlite(tmp_path)
    yield SqlUserRepository(database)
    database.close()


@pytest.fixture
def hasher() -> Iterator[PasswordHasher]:
    hasher = quick_hasher()
    yield hasher
    hasher.close()


@pytest.fixture
def service(users: SqlUserRepository, hasher: PasswordHasher) -> UserService:
    return UserService(users, hasher)


@pytest.fixture
def ann(users: SqlUserRepository, hasher: PasswordHasher) -> User:
    """An admin."""
    return add_user(users, hasher, ANN)


@pytest.fixture
def ben(users: SqlUserRepository, hasher: PasswordHasher, ann: User) -> User:
    """A member."""
    return add_user(users, hasher, BEN)


def caller(user: User) -> Caller:
    return Caller(user_id=user.id, role=user.role)


def test_a_new_user_is_stored_with_a_hash_in_place_of_the_password(
    users: SqlUserRepository, hasher: PasswordHasher, ann: User
) -> None:
    credentials = users.credentials("ann")
    assert credentials is not None
    user, password_hash = credentials
    assert (ann, True) == (user, hasher.verify(password_hash, PASSWORD))
    assert ("Ann", "ann@example.com", "admin", 1) == (user.name, user.email, user.role, user.version)


def test_an_admin_creates_users(service: UserService, ann: User) -> None:
    assert "Eve" == service.create(caller(ann), EVE).name


def test_a_member_creates_nobody(service: UserService, ben: User) -> None:
    with pytest.raises(Forbidden, match="Only an admin creates users"):
        service.create(caller(ben), EVE)


def test_a_taken_name_cannot_be_created(service: UserService, ann: User) -> None:
    with pytest.raises(Conflict):
        service.create(caller(ann), ANN)


def test_a_user_that_is_there_is_found(service: UserService, ann: User) -> None:
    assert ann == service.get(ann.id)


def test_a_user_that_is_not_there_is_not_found(service: UserService) -> None:
    with pytest.raises(NotFound, match="There is no user 999"):
        service.get(NOBODY)


def test_pages_hold_users_by_id(service: UserService, ann: User, ben: User) -> None:
    assert Page(users=(ann,), next=str(ann.id)) == service.page(after=0, size=1)
    assert Page(users=(ben,), next=None) == service.page(after=ann.id, size=1)


def test_members_change_themselves(service: UserService, ben: User) -> None:
    changed = service.change(caller(ben), ben.id, 1, UserChanges(name="Bob", email="bob@example.com"))
    assert ("Bob", "bob@example.com", "member", 2) == (changed.name, changed.email, changed.role, changed.version)


def test_a_password_can_be_changed(
    service: UserService, users: SqlUserRepository, hasher: PasswordHasher, ben: User
) -> None:
    service.change(caller(ben), ben.id, 1, UserChanges(password="another password"))
    credentials = users.credentials("Ben")
    assert credentials is not None
    assert hasher.verify(credentials[1], "another password") is True
    assert hasher.verify(credentials[1], PASSWORD) is False


def test_members_change_nobody_else(service: UserService, ann: User, ben: User) -> None:
    with pytest.raises(Forbidden, match="Only an admin may change other users"):
        service.change(caller(ben), ann.id, None, UserChanges(name="Anna"))
    with pytest.raises(Forbidden, match="Only an admin may remove other users"):
        service.remove(caller(ben), ann.id, None)


def test_members_learn_nothing_about_ids_that_are_not_theirs(service: UserService, ben: User) -> None:
    with pytest.raises(Forbidden):
        service.change(caller(ben), NOBODY, None, UserChanges(name="Anna"))
    with pytest.raises(Forbidden):
        service.remove(caller(ben), NOBODY, None)


def test_members_do_not_change_their_role(service: UserService, ben: User) -> None:
    with pytest.raises(Forbidden, match="Only an admin changes roles"):
        service.change(caller(ben), ben.id, 1, UserChanges(name="Bob", role="admin"))
    assert ben == service.get(ben.id)


def test_members_may_say_the_role_that_they_have(service: UserService, ben: User) -> None:
    assert "Bob" == service.change(caller(ben), ben.id, 1, UserChanges(name="Bob", role="member")).name


def test_admins_change_anyone_and_roles(service: UserService, ann: User, ben: User) -> None:
    changed = service.change(caller(ann), ben.id, 1, UserChanges(name="Bob", role="admin"))
    assert ("Bob", "admin") == (changed.name, changed.role)


def test_admins_demote_others_and_then_themselves_no_more(service: UserService, ann: User, ben: User) -> None:
    service.change(caller(ann), ben.id, 1, UserChanges(role="admin"))
    service.change(caller(ann), ben.id, 2, UserChanges(role="member"))
    with pytest.raises(Conflict, match="last admin"):
        service.change(caller(ann), ann.id, 1, UserChanges(role="member"))
    with pytest.raises(Conflict, match="last admin"):
        service.remove(caller(ann), ann.id, 1)


def test_a_change_of_another_version_is_refused(service: UserService, ben: User) -> None:
    with pytest.raises(PreconditionFailed):
        service.change(caller(ben), ben.id, 2, UserChanges(name="Bob"))
    with pytest.raises(PreconditionFailed):
        service.remove(caller(ben), ben.id, 2)


def test_an_admin_finds_nobody_to_change_or_remove_where_nobody_is(service: UserService, ann: User) -> None:
    with pytest.raises(NotFound):
        service.change(caller(ann), NOBODY, None, UserChanges(name="Eve"))
    with pytest.raises(NotFound):
        service.remove(caller(ann), NOBODY, None)


def test_members_remove_themselves(service: UserService, ben: User) -> None:
    service.remove(caller(ben), ben.id, 1)
    with pytest.raises(NotFound):
        service.get(ben.id)


def test_admins_remove_others(service: UserService, ann: User, ben: User) -> None:
    service.remove(caller(ann), ben.id, None)
    with pytest.raises(NotFound):
        service.get(ben.id)


def test_a_removed_user_writes_no_more_whatever_the_token_says(service: UserService, ann: User, ben: User) -> None:
    service.remove(caller(ann), ben.id, None)
    for attempt in (
        lambda: service.change(caller(ben), ben.id, None, UserChanges(name="Bob")),
        lambda: service.remove(caller(ben), ben.id, None),
        lambda: service.create(caller(ben), EVE),
    ):
        with pytest.raises(Unauthenticated, match="is gone"):
            attempt()


def test_a_demoted_admin_writes_as_a_member_whatever_the_token_says(service: UserService, ann: User, ben: User) -> None:
    service.change(caller(ann), ben.id, None, UserChanges(role="admin"))
    stale = Caller(user_id=ben.id, role="admin")
    service.change(caller(ann), ben.id, None, UserChanges(role="member"))
    with pytest.raises(Forbidden):
        service.change(stale, ann.id, None, UserChanges(name="Anna"))
    with pytest.raises(Forbidden):
        service.create(stale, EVE)


def test_a_whole_user_is_read_from_its_members() -> None:
    assert ANN == parse_new_user(MEMBERS)


@pytest.mark.parametrize("missing", sorted(MEMBERS))
def test_a_new_user_needs_every_member(missing: str) -> None:
    members = {name: value for name, value in MEMBERS.items() if name != missing}
    with pytest.raises(ValidationFailed) as caught:
        parse_new_user(members)
    assert ((f"/{missing}", "is required"),) == caught.value.fields


def test_a_replacement_may_leave_out_the_password_and_nothing_else() -> None:
    without_password = {name: value for name, value in MEMBERS.items() if name != "password"}
    assert UserChanges(name="Ann", email="ann@example.com", role="admin") == parse_replacement(without_password)
    with pytest.raises(ValidationFailed, match="/name is required"):
        parse_replacement({"email": "ann@example.com", "role": "admin"})


def test_a_patch_may_leave_out_anything() -> None:
    assert UserChanges() == parse_patch({})
    assert UserChanges(email="ann@example.com") == parse_patch({"email": "ann@example.com"})


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_a_patch_removes_nothing(member: str) -> None:
    with pytest.raises(ValidationFailed, match=f"/{member} must be a string"):
        parse_patch({member: None})


@pytest.mark.parametrize("member", ["id", "version", "created_at", "password_hash", "Name", ""])
def test_unknown_members_are_refused_by_name(member: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        parse_patch({member: "x"})
    assert f"/{member}" == caught.value.fields[0][0]


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "x" * 64, "-", "0"])
def test_names_that_a_user_can_have(name: str) -> None:
    assert is_name(name)
    assert UserChanges(name=name) == parse_patch({"name": name})


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "ä", "a\n", "a\0", "a/b", "a@b", "\ud800"])
def test_names_that_a_user_cannot_have(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(ValidationFailed, match="/name must be 1 to 64"):
        parse_patch({"name": name})


@pytest.mark.parametrize(
    "email", ["a@b", "a.b+c@example.co.uk", "x" * 64 + "@example.com", "o'hara@xn--bcher-kva.example"]
)
def test_addresses_that_a_user_can_have(email: str) -> None:
    assert UserChanges(email=email) == parse_patch({"email": email})


@pytest.mark.parametrize(
    "email",
    [
        "",
        "ann",
        "@b",
        "a@",
        "a@b@c",
        "a b@c",
        "a@b c",
        "a@b\n",
        "a@-b",
        "a@b-",
        "a@b..c",
        "a@.b",
        "ä@b",
        "a@ä",
        "x" * 65 + "@b",
        "a@" + "b" * 64,
        "a@" + ".".join(["b" * 60] * 5),
        '"a"@b',
        "a@[127.0.0.1]",
    ],
)
def test_addresses_that_a_user_cannot_have(email: str) -> None:
    with pytest.raises(ValidationFailed, match="/email must be an e-mail address"):
        parse_patch({"email": email})


@settings(deadline=None)
@given(some.text(alphabet="ab.-@_ \n", max_size=300))
def test_an_accepted_address_is_one_word_with_one_at_sign(email: str) -> None:
    try:
        parse_patch({"email": email})
    except ValidationFailed:
        return
    local, at, domain = email.partition("@")
    assert (True, "@", True, False) == (bool(local), at, bool(domain), "@" in domain)
    assert len(email.split()) == 1
    assert len(email) <= 254


@pytest.mark.parametrize(("length", "fits"), [(11, False), (12, True), (256, True), (257, False)])
def test_passwords_have_a_length(length: int, fits: bool) -> None:
    password = "ü" * length
    if fits:
        assert UserChanges(password=password) == parse_patch({"password": password})
    else:
        with pytest.raises(ValidationFailed, match="/password must be 12 to 256 characters") as caught:
            parse_patch({"password": password})
        assert password not in str(caught.value)


@pytest.mark.parametrize("role", ["", "Admin", "owner"])
def test_there_are_two_roles(role: str) -> None:
    with pytest.raises(ValidationFailed, match="/role must be one of: member, admin"):
        parse_patch({"role": role})


def test_who_opens_a_connection_is_who_they_are_now(service: UserService, ann: User, ben: User) -> None:
    was = Participant(f"user-{ben.id}", caller(ben), token="t", expires_at=5.0)
    assert was == service.present(was)
    service.change(caller(ann), ben.id, None, UserChanges(role="admin"))
    assert Participant(was.name, Caller(ben.id, "admin"), "t", 5.0) == service.present(was)
    assert ("admin", None) == (service.role(ben.id), service.role(NOBODY))
    service.remove(caller(ann), ben.id, None)
    with pytest.raises(Unauthenticated, match="is gone"):
        service.present(was)


def test_a_guest_is_no_user_and_is_not_looked_for(service: UserService) -> None:
    assert Participant("guest-x") == service.present(Participant("guest-x"))
