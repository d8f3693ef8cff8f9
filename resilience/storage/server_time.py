"""A server's clock, read without asking the server. Pure: time is an argument.

Every answer that carries the server's time says something about how far the two clocks are apart: the server read its own
between the moment in which the question left and the one in which the answer came. The narrowest of what several answers agree
on is kept, after Marzullo's algorithm (Keith Marzullo, "Maintaining the Time in a Distributed System", 1984).
"""

from __future__ import annotations

__all__ = ["ServerTime"]

_DRIFT = 100e-6
"""How much clocks drift apart, in seconds a second: what quartz does at its worst."""


class ServerTime:
    """How far the server's clock is ahead of the local one, as far as is known. All times are in seconds."""

    def __init__(self) -> None:
        self._least = self._most = 0.0
        self._seen: float | None = None

    @property
    def known(self) -> bool:
        """Whether the server has ever said what time it is."""
        return self._seen is not None

    @property
    def uncertainty(self) -> float:
        """By how much `at` may be wrong, either way, just after the last answer."""
        return (self._most - self._least) / 2

    def learn(self, server: float, asked: float, answered: float) -> None:
        """The server's clock stood at `server` between `asked` and `answered`, which are of the local clock."""
        least, most = server - answered, server - asked
        if self._seen is not None:
            slack = _DRIFT * max(0.0, answered - self._seen)
            agreed_least, agreed_most = max(least, self._least - slack), min(most, self._most + slack)
            if agreed_least <= agreed_most:  # or else one of the clocks was set: what was known is of no use
                least, most = agreed_least, agreed_most
        self._least, self._most, self._seen = least, most, answered

    def at(self, local: float) -> float:
        """What the server's clock shows when the local one shows `local`."""
        return local + (self._least + self._most) / 2
