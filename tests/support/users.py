"""Users of whom nothing but their present role is known, for tests of what asks for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from service.errors import Unauthenticated
from service.model import Caller, Participant, Role

__all__ = ["Everybody"]


class Everybody:
    """Whoever comes is a user, with the role that their token says. `roles` are those of now; None is a user who is gone."""

    def __init__(self, roles: Mapping[int, Role | None] = MappingProxyType({})) -> None:
        self._roles = roles

    def present(self, who: Participant) -> Participant:
        if who.caller is None or who.caller.user_id not in self._roles:
            return who
        role = self._roles[who.caller.user_id]
        if role is None:
            raise Unauthenticated("The user of this token is gone.")
        return replace(who, caller=Caller(who.caller.user_id, role))
