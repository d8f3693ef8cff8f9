"""What a caller asks a storage on the network, and the call of the script in which it travels."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from resilience.errors import StorageUnavailable

__all__ = ["AskAlone", "Bunch", "Call", "Question", "Redirected", "Returns"]

_ALLOWED = ord("1")


class Redirected(Exception):
    """The slot is served by another node of the cluster; nothing was executed.

    `host` may be empty: the host of the node that said so. `ask`: only this time, with `Question.asking`, since the slot is
    on its way there.
    """

    def __init__(self, host: str, port: int, ask: bool) -> None:
        super().__init__(host, port, ask)
        self.host = host
        self.port = port
        self.ask = ask


class AskAlone(Redirected):
    """The slot is on its way to another node and the keys of the call are not all on one side; nothing was executed."""

    def __init__(self, host: str = "", port: int = 0, ask: bool = False) -> None:
        super().__init__(host, port, ask)


class Question:
    """Charges to be decided together, or refunds; their keys are in one hash slot.

    `keys` and `terms` have an entry for each, as `resilience.storage.script` makes them. `asking`: it travels by itself,
    after an ASKING, to a node that the slot is on its way to. A question is sent once.
    """

    __slots__ = ("asking", "bunch", "call", "keys", "place", "terms", "withdrawn")

    def __init__(self, keys: Sequence[bytes], terms: Sequence[bytes], *, asking: bool = False) -> None:
        self.keys = keys
        self.terms = terms
        self.asking = asking
        self.withdrawn = False
        self.bunch: Bunch | None = None
        self.call: Call | None = None
        self.place = -1  # of its first charge in the call; not sent while below 0

    def wait(self) -> bool:
        """Whether all charges were allowed; `levels` says what their buckets hold then. Called once it was sent.

        Takes about the carrier's timeout at most. Raises `StorageUnavailable` when no decision came (it may have been taken),
        and `Redirected` when it is for another node to decide. A caller who is killed here abandons the question.
        """
        try:
            self.bunch.event.wait()  # type: ignore[union-attr]
        except BaseException:
            self.abandon()
            raise
        call = self.call
        if call.reply is None:  # type: ignore[union-attr]
            raise call.failure()  # type: ignore[union-attr]
        return call.reply[0][self.place] == _ALLOWED  # type: ignore[no-any-return, union-attr]

    @property
    def levels(self) -> list[int]:
        """What each bucket holds after the decision, in parts. There once `wait` has returned."""
        return self.call.reply[self.place + 1 : self.place + 1 + len(self.keys)]  # type: ignore[index, union-attr]

    @property
    def level(self) -> int:
        """The first of the levels."""
        return self.call.reply[self.place + 1]  # type: ignore[index, no-any-return, union-attr]

    @property
    def took(self) -> bool:
        """Whether it was sent and allowed. Known once the call is answered."""
        return self.place >= 0 and self.call.reply[0][self.place] == _ALLOWED  # type: ignore[index, union-attr]

    def abandon(self) -> None:
        """Nobody waits any more. Not sent yet, it never is; otherwise what it takes is given back when the answer comes."""
        self.withdrawn = True
        call = self.call
        if call is not None:
            call.abandoned.append(self)
            if call.reply is not None:
                call.line.return_abandoned(call)


class Bunch:
    """Questions whose callers are woken together. What is added once it is sealed may not be collected any more."""

    __slots__ = ("asked", "calls", "event", "questions", "sealed")

    def __init__(self) -> None:
        self.questions: deque[Question] = deque()
        self.event = threading.Event()
        self.sealed = False
        self.asked = time.monotonic()
        self.calls = 0  # that carry questions of it and are not answered


class Returns(Protocol):
    """Whoever made a call: what it takes back."""

    uri: str

    def return_abandoned(self, call: Call) -> None:
        """Give back what the call took for those who did not wait for it."""


class Call:
    """One call of the script, and what came of it: a reply or an error."""

    __slots__ = (
        "abandoned",
        "asking",
        "asks",
        "bunches",
        "deadline",
        "error",
        "keys",
        "last",
        "line",
        "reply",
        "terms",
        "whole",
    )

    def __init__(self, line: Returns, *, asking: bool = False) -> None:
        self.line = line
        self.asking = asking
        self.asks = False  # the answer to an ASKING comes first
        self.keys: list[bytes] = []
        self.terms: list[bytes] = []
        self.bunches: list[Bunch] = []
        self.abandoned: deque[Question] = deque()
        self.whole = False  # the script's text travels: the server did not know it
        self.last = False  # of a write
        self.deadline = 0.0
        self.reply: list[Any] | None = None
        self.error: Exception = ConnectionError("not answered")

    def finish(self) -> None:
        """Wake whose questions are all answered. Called once there is a reply or an error."""
        for bunch in self.bunches:
            bunch.calls -= 1
            if not bunch.calls:
                bunch.event.set()

    def failure(self) -> Exception:
        """An error of the caller's own: one that were raised by many would collect all their tracebacks."""
        error = self.error
        if isinstance(error, Redirected):
            return type(error)(error.host, error.port, error.ask)
        failure = StorageUnavailable(f"{self.line.uri} did not decide: {error}")
        failure.__cause__ = error
        return failure
