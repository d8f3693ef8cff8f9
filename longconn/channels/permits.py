"""Who may do what with which channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from longconn.channels.errors import ChannelForbidden, ChannelNameError
from longconn.channels.names import matcher

__all__ = ["ACTIONS", "Permit", "Permits"]

ACTIONS = ("subscribe", "publish", "history")

Permit = Callable[[Any, str, str], Any]
"""Called with user, channel and action: whether it is allowed."""

P = TypeVar("P", bound=Permit)


class Permits:
    """Rules by pattern, in the order in which they were given; `otherwise` decides where no pattern fits (None:
    allowed)."""

    def __init__(self, otherwise: Permit | None = None) -> None:
        self._rules: list[tuple[Callable[[str], object], Permit]] = []
        self._otherwise = otherwise

    def add(self, pattern: str, permit: P) -> P:
        """Have `permit` decide for the channels of `pattern`, unless an earlier pattern means them, too."""
        self._rules.append((matcher(pattern), permit))
        return permit

    def check(self, user: Any, channel: str, action: str) -> None:
        """Raises `ChannelForbidden` unless `user` may do `action` with `channel`."""
        if action not in ACTIONS:
            raise ChannelNameError(f"{action!r} is nothing to do with a channel: {', '.join(ACTIONS)}")
        permit = self._otherwise
        for fits, of_rule in self._rules:
            if fits(channel):
                permit = of_rule
                break
        if permit is not None and not permit(user, channel, action):
            raise ChannelForbidden(user, channel, action)
