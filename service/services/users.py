"""The rules about users: what one looks like, and who may do what to whom."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

from service.errors import Forbidden, NotFound, Unauthenticated
from service.model import Caller, Page, Participant, Role, User
from service.services.members import Fault, check_members
from service.services.ports import PasswordHasher, UserRepository

__all__ = [
    "LARGEST_PAGE",
    "LONGEST_PASSWORD",
    "NewUser",
    "UserChanges",
    "UserService",
    "add_user",
    "is_name",
    "parse_new_user",
    "parse_patch",
    "parse_replacement",
]

LARGEST_PAGE = 100
SHORTEST_PASSWORD = 12
LONGEST_PASSWORD = 256
LONGEST_EMAIL = 254

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
# What browsers accept for <input type="email">: no quoted local parts, no address literals.
EMAIL = re.compile(rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{LABEL}(?:\.{LABEL})*")


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user to be: every member has been checked."""

    name: str
    email: str
    role: Role
    password: str


@dataclass(frozen=True, slots=True)
class UserChanges:
    """What is to change: every member has been checked, None leaves what is there."""

    name: str | None = None
    email: str | None = None
    role: Role | None = None
    password: str | None = None


def is_name(text: str) -> bool:
    """Whether a user can have this name."""
    return NAME.fullmatch(text) is not None


def _name_fault(value: str) -> str | None:
    return None if is_name(value) else "must be 1 to 64 letters (A to Z), digits, dots, underscores or hyphens"


def _email_fault(value: str) -> str | None:
    fits = len(value) <= LONGEST_EMAIL and EMAIL.fullmatch(value)
    return None if fits else f"must be an e-mail address in ASCII of at most {LONGEST_EMAIL} characters"


def _role_fault(value: str) -> str | None:
    return None if value in get_args(Role) else f"must be one of: {', '.join(get_args(Role))}"


def _password_fault(value: str) -> str | None:
    fits = SHORTEST_PASSWORD <= len(value) <= LONGEST_PASSWORD
    return None if fits else f"must be {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters long"


FAULTS: Mapping[str, Fault] = {
    "name": _name_fault,
    "email": _email_fault,
    "role": _role_fault,
    "password": _password_fault,
}


def parse_new_user(members: Mapping[str, object]) -> NewUser:
    """The user that the members of an input describe. Raises `ValidationFailed` with everything that is wrong."""
    return NewUser(**check_members(members, FAULTS, required=("name", "email", "role", "password")))


def parse_replacement(members: Mapping[str, object]) -> UserChanges:
    """A whole user in place of what is there; without a password the old one stays. Raises `ValidationFailed`."""
    return UserChanges(**check_members(members, FAULTS, required=("name", "email", "role")))


def parse_patch(members: Mapping[str, object]) -> UserChanges:
    """Any of the members (RFC 7396). Nothing of a user can be removed, so null is refused. Raises `ValidationFailed`."""
    return UserChanges(**check_members(members, FAULTS, required=()))


def add_user(users: UserRepository, hasher: PasswordHasher, new: NewUser) -> User:
    """Store a user without asking who wants it: the first admin comes this way. Raises `Conflict` when name or e-mail
    is taken."""
    return users.add(name=new.name, email=new.email, role=new.role, password_hash=hasher.hash(new.password))


class UserService:
    """Users, as far as the caller may see and change them.

    Whoever is signed in reads. Members change and remove themselves; admins anyone, and they alone create users and
    change roles. The last admin stays one.

    A write looks its caller up again, so a removed user or a lost role counts at once. A read believes the token: a
    removed user may go on reading until the token expires. That is the price of reads that cost one query; a shorter
    token lifetime lowers it. For the same reason a changed password ends no session before its token expires.

    Who opens a connection that stays is looked up as well (`present`): that is rare, and lasts.
    """

    def __init__(self, users: UserRepository, hasher: PasswordHasher) -> None:
        self._users = users
        self._hasher = hasher

    def get(self, user_id: int) -> User:
        """The user. Raises `NotFound`."""
        user = self._users.get(user_id)
        if user is None:
            raise _no_such_user(user_id)
        return user

    def role(self, user_id: int) -> Role | None:
        """The role that the user has now; None when there is no such user."""
        user = self._users.get(user_id)
        return None if user is None else user.role

    def present(self, who: Participant) -> Participant:
        """`who`, with the role of now instead of that of their token or ticket. A guest is who they are.

        Raises `Unauthenticated` when they are a user who is gone.
        """
        if who.caller is None:
            return who
        return replace(who, caller=Caller(who.caller.user_id, self._acting(who.caller).role))

    def page(self, *, after: int, size: int) -> Page:
        """Up to `size` users (1 to `LARGEST_PAGE`) that follow the one with the id `after`; 0 starts at the first."""
        return self._users.page(after, size)

    def create(self, caller: Caller, new: NewUser) -> User:
        """Store a new user. Raises `Forbidden` unless the caller is an admin, `Conflict` when name or e-mail is taken."""
        if self._acting(caller).role != "admin":
            raise Forbidden("Only an admin creates users.")
        return add_user(self._users, self._hasher, new)

    def change(self, caller: Caller, user_id: int, version: int | None, changes: UserChanges) -> User:
        """Change the user if it is at `version` (None: at whatever version), and return it as it is then.

        Raises `Forbidden`, `NotFound`, `PreconditionFailed` on another version, and `Conflict` when name or e-mail is
        taken or the last admin would be demoted.
        """
        acting = self._allowed(caller, user_id, "change")
        if changes.role not in (None, acting.role) and acting.role != "admin":
            raise Forbidden("Only an admin changes roles.")
        values: dict[str, str | None] = {"name": changes.name, "email": changes.email, "role": changes.role}
        if changes.password is not None:
            values["password_hash"] = self._hasher.hash(changes.password)
        given = {name: value for name, value in values.items() if value is not None}
        user = self._users.change(user_id, version, given)
        if user is None:
            raise _no_such_user(user_id)
        return user

    def remove(self, caller: Caller, user_id: int, version: int | None) -> None:
        """Remove the user under the same rule about versions. Raises `Forbidden`, `NotFound`, `PreconditionFailed`,
        and `Conflict` for the last admin."""
        self._allowed(caller, user_id, "remove")
        if not self._users.remove(user_id, version):
            raise _no_such_user(user_id)

    def _allowed(self, caller: Caller, user_id: int, verb: str) -> User:
        acting = self._acting(caller)
        if acting.role != "admin" and acting.id != user_id:
            raise Forbidden(f"Only an admin may {verb} other users.")
        return acting

    def _acting(self, caller: Caller) -> User:
        user = self._users.get(caller.user_id)
        if user is None:
            raise Unauthenticated("The user of this token is gone. Sign in as another one.")
        return user


def _no_such_user(user_id: int) -> NotFound:
    return NotFound(f"There is no user {user_id}.")
