"""Sessions of the admin page: a signed text that a browser keeps, and nothing on the server but those that were ended.

The keys are derived from the admin token, so a session holds in every worker of every host that has the same token, and in
none after the token was changed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import secrets
import threading
from typing import Final, NamedTuple

from resilience.errors import StorageUnavailable
from resilience.ports import StateStorage

__all__ = ["LIFETIME", "Session", "Sessions"]

LIFETIME: Final = 12 * 3_600
"""Seconds after which a session is over."""
MOST_ENDED: Final = 1_000
"""Sessions of which a process remembers that they were ended early: beyond that the first to run out is forgotten."""

_LONGEST = 512
_PURPOSE = b"resilience admin session 1"
_CSRF_PURPOSE = b"resilience admin csrf 1"

_LOG = logging.getLogger(__name__)


class Session(NamedTuple):
    """Somebody who has shown the token: `name` is what they called themselves, `expires` in seconds since 1970. `csrf` is
    what a page must show besides, which another site cannot read."""

    id: str
    name: str
    expires: float
    csrf: str


class Sessions:
    """Makes and reads the texts that browsers keep. Safe to share between threads and greenlets.

    That a session was ended is kept in `state`, where there is one, as long as the session would have lasted: so it is over
    also for processes that begin later. Without one, and while it is out of reach, a process knows what it was told itself.
    """

    def __init__(self, token: str, state: StateStorage | None = None) -> None:
        # Two keys: what is signed with the one is no signature under the other.
        self._key = hmac.digest(token.encode("utf-8", "surrogatepass"), _PURPOSE, hashlib.sha256)
        self._csrf_key = hmac.digest(token.encode("utf-8", "surrogatepass"), _CSRF_PURPOSE, hashlib.sha256)
        self._state = state
        self._lock = threading.Lock()
        self._ended: dict[str, float] = {}

    def begin(self, name: str, now: float) -> tuple[str, Session]:
        """A new session at `now`, in seconds since 1970, and the text that stands for it."""
        number, expires = secrets.token_urlsafe(12), int(now) + LIFETIME
        said = f"{number}.{expires}.{_encoded(name.encode())}"
        return f"{said}.{_signature(self._key, said)}", self._session(number, name, expires)

    def read(self, text: str, now: float) -> Session | None:
        """The session that `text` stands for; None where it is none, is over, or was ended."""
        said, dot, signature = text.rpartition(".")
        if not dot or len(text) > _LONGEST or not text.isascii():
            return None
        if not hmac.compare_digest(signature, _signature(self._key, said)):
            return None
        # Signed, so it is ours, and as `begin` wrote it.
        number, expires, name = said.split(".")
        session = self._session(number, _decoded(name), int(expires))
        return session if self.holds(session, now) else None

    def holds(self, session: Session, now: float) -> bool:
        """Whether the session is neither over nor ended."""
        if now >= session.expires or session.id in self._ended:
            return False
        if self._state is None:
            return True
        try:
            was_ended = self._state.read(_record(session.id)).text is not None
        except StorageUnavailable:
            return True
        if was_ended:
            self.end(session.id, now)
        return not was_ended

    def end(self, number: str, now: float) -> None:
        """Refuse the session with the id `number` from now on, in this process."""
        with self._lock:
            ended = {known: until for known, until in self._ended.items() if until > now}
            ended.pop(number, None)
            while len(ended) >= MOST_ENDED:
                del ended[next(iter(ended))]
            self._ended = {**ended, number: now + LIFETIME}

    def keep_ended(self, session: Session, now: float) -> bool:
        """Let every process that shares the storage know that the session was ended, those that are to come too. Whether they
        will."""
        if self._state is None or now >= session.expires:
            return self._state is not None
        try:
            self._state.update(_record(session.id), lambda _, __: (b"ended", None), keep=session.expires - now)
        except StorageUnavailable as error:
            _LOG.warning("a session was ended, and workers that begin later do not know it: %s", error)
            return False
        return True

    def _session(self, number: str, name: str, expires: float) -> Session:
        return Session(number, name, float(expires), _signature(self._csrf_key, number))


def _record(number: str) -> str:
    return f"ended:{number}"


def _signature(key: bytes, text: str) -> str:
    return _encoded(hmac.digest(key, text.encode(), hashlib.sha256))


def _encoded(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def _decoded(text: str) -> str:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
