"""Sessions of the admin page: a signed text that a browser keeps, and nothing on the server but those that were ended.

The key is derived from the admin token, so a session holds in every worker of every host that has the same token, and in none
after the token was changed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
from typing import Final, NamedTuple

__all__ = ["LIFETIME", "Session", "Sessions"]

LIFETIME: Final = 12 * 3_600
"""Seconds after which a session is over."""
MOST_ENDED: Final = 1_000
"""Sessions of which a process remembers that they were ended early: beyond that the first to run out is forgotten."""

_LONGEST = 512
_PURPOSE = b"resilience admin session 1"


class Session(NamedTuple):
    """Somebody who has shown the token: `name` is what they called themselves, `expires` in seconds since 1970. `csrf` is
    what a page must show besides, which another site cannot read."""

    id: str
    name: str
    expires: float
    csrf: str


class Sessions:
    """Makes and reads the texts that browsers keep. Safe to share between threads and greenlets."""

    def __init__(self, token: str) -> None:
        self._key = hmac.digest(token.encode(), _PURPOSE, hashlib.sha256)
        self._lock = threading.Lock()
        self._ended: dict[str, float] = {}

    def begin(self, name: str, now: float) -> tuple[str, Session]:
        """A new session at `now`, in seconds since 1970, and the text that stands for it."""
        number, expires = secrets.token_urlsafe(12), int(now) + LIFETIME
        said = f"{number}.{expires}.{_encoded(name.encode())}"
        return f"{said}.{self._signature(said)}", self._session(number, name, expires)

    def read(self, text: str, now: float) -> Session | None:
        """The session that `text` stands for; None where it is none, is over, or was ended."""
        said, dot, signature = text.rpartition(".")
        if not dot or len(text) > _LONGEST or not text.isascii():
            return None
        if not hmac.compare_digest(signature, self._signature(said)):
            return None
        # Signed, so it is ours, and as `begin` wrote it.
        number, expires, name = said.split(".")
        if now >= int(expires) or number in self._ended:
            return None
        return self._session(number, _decoded(name), int(expires))

    def end(self, number: str, now: float) -> None:
        """Refuse the session with the id `number` from now on."""
        with self._lock:
            ended = {known: until for known, until in self._ended.items() if until > now}
            ended.pop(number, None)
            while len(ended) >= MOST_ENDED:
                del ended[next(iter(ended))]
            self._ended = {**ended, number: now + LIFETIME}

    def _session(self, number: str, name: str, expires: float) -> Session:
        return Session(number, name, float(expires), self._signature(f"csrf.{number}"))

    def _signature(self, text: str) -> str:
        return _encoded(hmac.digest(self._key, text.encode(), hashlib.sha256))


def _encoded(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def _decoded(text: str) -> str:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
