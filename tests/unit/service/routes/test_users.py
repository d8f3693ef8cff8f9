"""`/api/v1/users`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import pytest
from flask.testing import FlaskClient

from service.data.users import SqlUserRepository
from service.model import User
from service.routes.users import create_users_blueprint
from service.security.passwords import PasswordHasher
from service.services.users import NewUser, UserService, add_user
from tests.support.database import PASSWORD, migrated_sqlite, quick_hasher
from tests.support.routes import application, signed_in_as

USERS = "/api/v1/users"
EVE = {"name": "Eve", "email": "eve@example.com", "role": "member", "password": PASSWORD}


@pytest.fixture
def hasher() -> Iterator[PasswordHasher]:
    hasher = quick_hasher()
    yield hasher
    hasher.close()


@pytest.fixture
def users(tmp_path: Path) -> Iterator[SqlUserRepository]:
    database = migrated_sqlite(tmp_path)
    yield SqlUserRepository(database)
    database.close()


@pytest.fixture
def removed() -> list[int]:
    """The users of whom it was told that they are gone."""
    return []


@pytest.fixture
def changed() -> list[int]:
    """The users of whom it was told that they have another role."""
    return []


@pytest.fixture
def app(users: SqlUserRepository, hasher: PasswordHasher, removed: list[int], changed: list[int]) -> flask.Flask:
    return application(
        create_users_blueprint(UserService(users, hasher), on_removed=removed.append, on_role_changed=changed.append)
    )


@pytest.fixture
def client(app: flask.Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def ann(users: SqlUserRepository, hasher: PasswordHasher) -> User:
    """An admin."""
    return add_user(users, hasher, NewUser(name="Ann", email="ann@example.com", role="admin", password=PASSWORD))


@pytest.fixture
def ben(users: SqlUserRepository, hasher: PasswordHasher, ann: User) -> User:
    """A member."""
    return add_user(users, hasher, NewUser(name="Ben", email="ben@example.com", role="member", password=PASSWORD))


def fields(user: User, **more: str) -> dict[str, str]:
    return {**signed_in_as(user), **{name.replace("_", "-"): value for name, value in more.items()}}


def test_a_created_user_has_a_place_and_a_version_and_shows_no_password(client: FlaskClient, ann: User) -> None:
    response = client.post(USERS, json=EVE, headers=fields(ann))
    created = response.get_json()
    assert (201, f"{USERS}/2", '"1"') == (response.status_code, response.headers["Location"], response.headers["ETag"])
    assert {"id", "name", "email", "role", "version", "created_at", "updated_at"} == set(created)
    assert ("Eve", "eve@example.com", "member", 1) == tuple(
        created[name] for name in ("name", "email", "role", "version")
    )
    assert created["created_at"].endswith("Z")
    assert created == client.get(response.headers["Location"], headers=fields(ann)).get_json()


def test_members_create_nobody(client: FlaskClient, ben: User) -> None:
    assert 403 == client.post(USERS, json=EVE, headers=fields(ben)).status_code


def test_a_taken_name_is_a_conflict_that_names_the_member(client: FlaskClient, ann: User) -> None:
    response = client.post(USERS, json={**EVE, "name": "ANN"}, headers=fields(ann))
    assert (409, [{"pointer": "/name", "detail": "is taken"}]) == (response.status_code, response.get_json()["errors"])


def test_every_fault_of_a_body_is_named(client: FlaskClient, ann: User) -> None:
    body = {"name": "no spaces", "email": None, "role": "owner", "admin": True}
    response = client.post(USERS, json=body, headers=fields(ann))
    pointers = {error["pointer"] for error in response.get_json()["errors"]}
    assert (400, {"/name", "/email", "/role", "/password", "/admin"}) == (response.status_code, pointers)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("POST", ""), ("GET", "/1"), ("PUT", "/1"), ("PATCH", "/1"), ("DELETE", "/1")],
)
def test_everything_needs_a_caller(client: FlaskClient, ann: User, method: str, path: str) -> None:
    response = client.open(USERS + path, method=method, json=EVE, headers={"If-Match": "*"})
    assert 401 == response.status_code


def test_a_user_is_read_with_its_version(client: FlaskClient, ann: User, ben: User) -> None:
    response = client.get(f"{USERS}/{ann.id}", headers=fields(ben))
    assert (200, "Ann", '"1"') == (response.status_code, response.get_json()["name"], response.headers["ETag"])


@pytest.mark.parametrize("tags", ['"1"', 'W/"1"', '"7", "1"', '"", "1"', "*"])
def test_a_version_that_the_caller_has_is_not_sent_again(client: FlaskClient, ann: User, tags: str) -> None:
    response = client.get(f"{USERS}/{ann.id}", headers=fields(ann, If_None_Match=tags))
    assert (304, b"", '"1"') == (response.status_code, response.data, response.headers["ETag"])


def test_a_version_that_the_caller_has_not_is_sent(client: FlaskClient, ann: User) -> None:
    assert 200 == client.get(f"{USERS}/{ann.id}", headers=fields(ann, If_None_Match='"0"')).status_code


@pytest.mark.parametrize(
    "user_id", ["999", "0", "9" * 40, "9" * 5000, "-1", "x", "1.0", "\u0661", "%D9%A1", "\uff11", "+1"]
)
def test_nobody_is_found_where_nobody_is(client: FlaskClient, ann: User, user_id: str) -> None:
    assert 404 == client.get(f"{USERS}/{user_id}", headers=fields(ann)).status_code


def test_pages_lead_from_the_first_user_to_the_last(
    client: FlaskClient, users: SqlUserRepository, ann: User, ben: User
) -> None:
    users.add(name="Eve", email="eve@example.com", role="member", password_hash="-")
    seen: list[Any] = []
    link = f"{USERS}?limit=2"
    for _ in range(2):
        response = client.get(link, headers=fields(ben))
        seen += [user["name"] for user in response.get_json()["users"]]
        link = response.headers.get("Link", "").partition(">")[0].removeprefix("<")
    assert (["Ann", "Ben", "Eve"], None, "") == (seen, response.get_json()["next"], link)


def test_the_cursor_is_the_one_in_the_link(client: FlaskClient, ann: User, ben: User) -> None:
    response = client.get(f"{USERS}?limit=1", headers=fields(ben))
    cursor = response.get_json()["next"]
    assert f'<{USERS}?limit=1&after={cursor}>; rel="next"' == response.headers["Link"]
    following = client.get(f"{USERS}?after={cursor}", headers=fields(ben)).get_json()
    assert (["Ben"], None) == ([user["name"] for user in following["users"]], following["next"])


def test_a_page_holds_twenty_users_unless_told_otherwise(
    client: FlaskClient, users: SqlUserRepository, ann: User
) -> None:
    for number in range(20):
        users.add(name=f"user{number}", email=f"{number}@example.com", role="member", password_hash="-")
    assert 20 == len(client.get(USERS, headers=fields(ann)).get_json()["users"])


@pytest.mark.parametrize("limit", ["0", "101", "-1", "ten", "", "1.0", "+1", "1_0", "٧", "9" * 5000])
def test_a_limit_that_is_none_is_refused_with_its_range(client: FlaskClient, ann: User, limit: str) -> None:
    response = client.get(USERS, query_string={"limit": limit}, headers=fields(ann))
    assert (400, "limit must be a whole number from 1 to 100.") == (response.status_code, response.get_json()["detail"])


@pytest.mark.parametrize("after", ["x", "-1", "", "1.0", "9" * 5000])
def test_a_cursor_that_is_none_is_refused(client: FlaskClient, ann: User, after: str) -> None:
    response = client.get(USERS, query_string={"after": after}, headers=fields(ann))
    assert 400 == response.status_code
    assert "after must be the value of next" in response.get_json()["detail"]


@pytest.mark.parametrize("limit", ["1", "100"])
def test_limits_at_the_ends_of_the_range_are_accepted(client: FlaskClient, ann: User, limit: str) -> None:
    assert 200 == client.get(USERS, query_string={"limit": limit}, headers=fields(ann)).status_code


def test_a_replaced_user_has_a_new_version(client: FlaskClient, ben: User) -> None:
    body = {"name": "Bob", "email": "bob@example.com", "role": "member"}
    response = client.put(f"{USERS}/{ben.id}", json=body, headers=fields(ben, If_Match='"1"'))
    assert (200, "Bob", '"2"') == (response.status_code, response.get_json()["name"], response.headers["ETag"])


def test_a_replacement_is_whole(client: FlaskClient, ben: User) -> None:
    response = client.put(f"{USERS}/{ben.id}", json={"name": "Bob"}, headers=fields(ben, If_Match="*"))
    assert 400 == response.status_code


@pytest.mark.parametrize("content_type", ["application/json", "application/merge-patch+json"])
def test_a_patched_user_keeps_what_was_not_named(client: FlaskClient, ben: User, content_type: str) -> None:
    response = client.patch(
        f"{USERS}/{ben.id}",
        data='{"email": "b@example.com"}',
        content_type=content_type,
        headers=fields(ben, If_Match='"1"'),
    )
    patched = response.get_json()
    assert (200, "Ben", "b@example.com", 2) == (
        response.status_code,
        patched["name"],
        patched["email"],
        patched["version"],
    )


def test_an_empty_patch_changes_nothing(client: FlaskClient, ben: User) -> None:
    response = client.patch(f"{USERS}/{ben.id}", json={}, headers=fields(ben, If_Match='"1"'))
    assert (200, '"1"') == (response.status_code, response.headers["ETag"])


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_change_says_which_version_it_is_about(client: FlaskClient, ben: User, method: str) -> None:
    response = client.open(f"{USERS}/{ben.id}", method=method, json=EVE, headers=fields(ben))
    assert 428 == response.status_code
    assert "If-Match" in response.get_json()["detail"]


@pytest.mark.parametrize("tag", ['"2"', '"0"', '"01"', '"x"', '""', 'W/""', 'W/"1"', '"1,2"', '"' + "9" * 5000 + '"'])
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_a_change_of_another_version_is_refused(client: FlaskClient, ben: User, method: str, tag: str) -> None:
    body = {"name": "Bob", "email": "bob@example.com", "role": "member"}
    response = client.open(f"{USERS}/{ben.id}", method=method, json=body, headers=fields(ben, If_Match=tag))
    assert 412 == response.status_code
    assert "Ben" == client.get(f"{USERS}/{ben.id}", headers=fields(ben)).get_json()["name"]


@pytest.mark.parametrize("tags", ['"1", "2"', '"1",', "1", "W/1", '"1', '"1" x', 'w/"1"', '*, "1"', '"a b"'])
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_a_change_is_about_one_version_in_quotes(client: FlaskClient, ben: User, method: str, tags: str) -> None:
    response = client.open(f"{USERS}/{ben.id}", method=method, json={"name": "Bob"}, headers=fields(ben, If_Match=tags))
    assert (400, "If-Match takes one ETag in double quotes here, or *.") == (
        response.status_code,
        response.get_json()["detail"],
    )


@pytest.mark.parametrize("tags", ["*", '"99"', '""', "1"])
def test_reading_does_not_depend_on_if_match(client: FlaskClient, ann: User, tags: str) -> None:
    assert 200 == client.get(f"{USERS}/{ann.id}", headers=fields(ann, If_Match=tags)).status_code


def test_of_two_changes_of_one_version_the_second_is_refused(client: FlaskClient, ben: User) -> None:
    statuses = [
        client.patch(f"{USERS}/{ben.id}", json={"name": name}, headers=fields(ben, If_Match='"1"')).status_code
        for name in ("Bob", "Bo")
    ]
    assert [200, 412] == statuses


@pytest.mark.parametrize("tag", [None, "*", '"1"'])
def test_a_removed_user_is_gone(client: FlaskClient, ann: User, ben: User, tag: str | None) -> None:
    headers = fields(ann) if tag is None else fields(ann, If_Match=tag)
    response = client.delete(f"{USERS}/{ben.id}", headers=headers)
    assert (204, b"") == (response.status_code, response.data)
    assert 404 == client.get(f"{USERS}/{ben.id}", headers=fields(ann)).status_code


def test_whoever_wants_to_know_hears_who_is_gone(client: FlaskClient, ann: User, ben: User, removed: list[int]) -> None:
    client.delete(f"{USERS}/{ben.id}", headers=fields(ann, If_Match='"7"'))
    assert [] == removed  # nobody was
    client.delete(f"{USERS}/{ben.id}", headers=fields(ann))
    assert [ben.id] == removed


def test_the_last_admin_stays(client: FlaskClient, ann: User) -> None:
    assert 409 == client.delete(f"{USERS}/{ann.id}", headers=fields(ann)).status_code


def test_no_view_is_public(app: flask.Flask) -> None:
    assert not any(getattr(view, "is_public", False) for view in app.view_functions.values())


def test_whoever_wants_to_know_hears_whose_role_is_another(
    client: FlaskClient, ann: User, ben: User, changed: list[int]
) -> None:
    def patch(**members: str) -> int:
        path, headers = f"{USERS}/{ben.id}", fields(ann, If_Match="*")
        return client.patch(path, json=members, headers=headers).status_code

    assert [200, 200] == [patch(name="Benjamin"), patch(role="member")]
    assert [] == changed  # it is the one that he had
    assert 200 == patch(role="admin")
    assert [ben.id] == changed
