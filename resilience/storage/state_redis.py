"""State on a Redis-compatible server, of Sentinel's or of a Cluster: what the processes of all hosts know at once.

A record is a key. It is replaced by a script if nobody else has replaced it meanwhile, and the same script publishes the new
text, so that every process that follows the record has it a moment later. A process that follows a thousand closed circuits
asks nothing but whether the server is still there, once a second.

The server's clock decides, so that hosts need not agree on the time.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import math
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from resilience.errors import StorageBusy, StorageUnavailable
from resilience.ports import Change, Stored
from resilience.storage.news import News, Record
from resilience.storage.server_time import ServerTime
from resilience.storage.state_records import check_left, check_record
from resilience.storage.state_servers import connector_to
from resilience.storage.wire import Inquiry, Wire, command
from resilience.storage.wrapping import forget_after_fork

__all__ = ["RedisStateStorage", "open_redis_state"]

_CHANCE = random.SystemRandom()  # of its own: an application that seeds `random` would have all workers act in step

T = TypeVar("T")

_TRIES: Final = 64
"""How often a change is worked out, where somebody else was faster each time."""
_SHORTEST_REST: Final = 0.000_5
"""Seconds before the third attempt, at most; twice as many before the next, and so on."""
_LONGEST_REST: Final = 0.008
_LEAST: Final = 0.2
"""The part of the timeout that must be left for another attempt."""
_READ_AGAIN_EVERY: Final = 5.0
"""Seconds after which records that are followed are read again: a message may have been lost."""
_AT_ONCE: Final = 500
"""Records that are read by one command."""
_LONGEST_KEPT: Final = 10**12
"""Milliseconds."""
_LONGEST_MESSAGE: Final = 1_048_576
_SLOT_TAG: Final = "{state}"
"""What all keys lie in one slot of a Cluster for: one node answers for all of them, in one order."""

_TIME: Final = command(b"TIME")


class _Script:
    """A script of this package, as the commands that run it."""

    def __init__(self, name: str) -> None:
        text = importlib.resources.files("resilience.storage").joinpath(f"lua/{name}.lua").read_bytes()
        self._text = text
        self._digest = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()

    def call(self, key: bytes, *arguments: bytes, whole: bool = False) -> bytes:
        """The call for one key; with the `whole` script, for a server that does not have it."""
        start = (b"EVAL", self._text) if whole else (b"EVALSHA", self._digest)
        return command(*start, b"1", key, *arguments)


_REPLACE: Final = _Script("replace_record")
_EXCHANGE: Final = _Script("exchange_texts")


def open_redis_state(uri: str, *, namespace: str = "seawall", timeout: float = 0.05) -> RedisStateStorage:
    """The storage of state at `uri`, an address of a server, a socket, Sentinel's or a Cluster's. See `RedisStateStorage`."""
    return RedisStateStorage(uri, namespace=namespace, timeout=timeout)


class RedisStateStorage:
    """Records on a Redis-compatible server: Redis from 6.2 on, or Valkey.

    `uri` is any address of a server, of Sentinel's or of a Cluster's that `open_storage` takes. `timeout` (seconds) bounds what
    callers wait. `namespace` starts every key and every channel; services that share a database of a server and must not share
    state need one each. A process has one connection, and a thread that looks after it; both are opened by the first use. Who
    follows a record, and has not looked at it yet, has not used it.

    While the server does not answer, whoever asks is refused at once with `StorageUnavailable`, except for those who had asked
    before that was known: they have waited for `timeout`. From then on the thread tries to connect about twice a second, and
    has a record written for a test. When it succeeds, everything that is followed has been read again. The numbers of all
    records that are followed change both times, so that whoever follows them looks.

    A server that was restarted without its data has no records. A replica that took the place of its primary may lack the
    last changes: Redis copies to replicas after it has answered. On a Cluster all state of a namespace lies on one primary
    (the load is small: circuits that stay closed cause none); while its slot is on the way to another node, or a replica has
    yet to take its place, the storage is unavailable.

    Times are those of the server's clock, in seconds since 1970; it may be set, and then jumps.
    """

    spans_hosts = True

    def __init__(self, uri: str, *, namespace: str = "seawall", timeout: float = 0.05) -> None:
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout={timeout!r}: a storage takes seconds above 0")
        self._connector = connector_to(uri, tag=_SLOT_TAG, timeout=timeout)
        self.uri = self._connector.uri
        self._namespace = namespace
        self._timeout = timeout
        self._news = News()
        self._ears = _StateEars(self._news, self._channel("news", ""), self._key("probe", ""))
        self._home = threading.get_native_id()
        self._opening = threading.Lock()
        self._wire: Wire | None = None
        self._finalizer: weakref.finalize[[], Any] | None = None
        forget_after_fork(self)

    def __repr__(self) -> str:
        return f"<RedisStateStorage: {self.uri}>"

    # Records

    def update(self, name: str, change: Change[T], *, keep: float) -> T:
        """Change the record `name`, atomically, and return the answer of `change`. Who follows it is told.

        Raises `StorageUnavailable` when that could not be had within the timeout; it may have been changed nevertheless. Raises
        `StorageBusy` when others have changed it again and again meanwhile; then it has not been changed. Raises `ValueError`
        for a text of more than 4,000 bytes, or if `keep` is not finite and above 0.
        """
        check_record(b"", keep)
        key = self._key("record", name)
        deadline = time.monotonic() + self._timeout
        stored = self._read(key, deadline)
        for tries in range(_TRIES):
            text, now = stored
            new, answer = change(text, now)
            if new is text:
                return answer
            if new is not None:
                check_record(new, keep)
            replaced, stored = self._replace(key, text, new, keep, deadline)
            if replaced:
                return answer
            if tries:  # or else it is known what it is now
                _rest(tries, deadline)
            if time.monotonic() > deadline - self._timeout * _LEAST:
                break
            if tries:
                stored = self._read(key, deadline)
        raise StorageBusy(f"{self.uri}: {name!r} was changed by others again and again")

    def read(self, name: str) -> Stored:
        """The record `name` as it is now. Raises `StorageUnavailable`."""
        return self._read(self._key("record", name), time.monotonic() + self._timeout)

    def follow(self, name: str, told: Callable[[], None] | None = None) -> RedisFollowing:
        """Follow the record `name`. Opens no connection: looking does. `told` is called in a thread (or greenlet) of the
        storage's, in which it may ask the storage."""
        record, is_new = self._news.follow(self._key("record", name), told)
        following = RedisFollowing(self, record, told)
        wire = self._wire
        if is_new and wire is not None and not wire.ended:
            wire.send(self._ears.reading([record], self._timeout))
        return following

    def exchange(self, name: str, member: str, text: bytes, *, keep: float) -> dict[str, bytes]:
        """Leave `text` under `name` for `member`, for `keep` seconds, and return what every member has left there.

        Raises `StorageUnavailable`, and `ValueError` for a text of more than 500 bytes, a member's name that is empty or longer
        than 200 bytes, or if `keep` is not finite and above 0.
        """
        check_left(member, text, keep)
        arguments = (_bytes(member), text, _milliseconds(keep))
        left = self._run(_EXCHANGE, self._key("members", name), arguments, time.monotonic() + self._timeout)
        found = iter(left)
        return {_str(each): value for each, value in zip(found, found, strict=True)}

    # Messages

    def publish(self, topic: str, message: bytes) -> None:
        """Tell everybody who listens to `topic`, this process included. Raises `StorageUnavailable` when it could not be sent
        in time, and `ValueError` for more than 1 MiB."""
        if len(message) > _LONGEST_MESSAGE:
            raise ValueError(f"a message of {len(message):,} bytes: {_LONGEST_MESSAGE:,} at most are passed on")
        self._ask(command(b"PUBLISH", self._channel("topic", topic), message), 1, time.monotonic() + self._timeout)

    def listen(self, topic: str, told: Callable[[bytes], None]) -> Callable[[], None]:
        """Call `told` with every message on `topic` from now on, in a thread (or greenlet) of the storage's, in order. Never
        raises `StorageUnavailable`: what cannot be reached now is listened to as soon as it can. Returns what ends it.

        When this returns the server has noted it, if it answers at all. A message that is sent while there is no connection
        is lost.
        """
        channel = self._channel("topic", topic)
        self._news.listen(channel, told)
        self._settle(command(b"SUBSCRIBE", channel))
        return partial(self._turn_away, channel, told)

    def _turn_away(self, channel: bytes, told: Callable[[bytes], None]) -> None:
        wire = self._wire
        if self._news.turn_away(channel, told) and wire is not None and not wire.is_down:
            self._settle(command(b"UNSUBSCRIBE", channel))

    def _settle(self, subscription: bytes) -> None:
        # The answer to a subscription comes among the news; that to the question after it says that it was heeded.
        try:
            self._ask(subscription + command(b"PING"), 1, time.monotonic() + self._timeout)
        except StorageUnavailable:
            return  # every new connection begins with all of them

    # The connection

    def close(self) -> None:
        """Close the connection and end the threads. Whoever asks or looks next begins anew."""
        with self._opening:
            wire, self._wire = self._wire, None
            if self._finalizer is not None:
                self._finalizer.detach()
        if wire is not None:
            wire.stop()
        self._connector.close()

    def after_fork(self) -> None:
        """In a forked child: the thread and the connection are the parent's."""
        wire, self._wire = self._wire, None
        self._opening = threading.Lock()
        self._home = threading.get_native_id()
        if self._finalizer is not None:
            self._finalizer.detach()
        if wire is not None:
            wire.leave_to_parent()
        self._news.after_fork()

    def _key(self, kind: str, name: str) -> bytes:
        return _bytes(f"{self._namespace}:{_SLOT_TAG}:{kind}:{name}")

    def _channel(self, kind: str, name: str) -> bytes:
        # A channel is the server's, whichever database somebody has selected: keys of the same name are not the same record.
        return self._key(kind, f"{self._connector.database}:{name}")

    def _read(self, key: bytes, deadline: float) -> Stored:
        heed = partial(self._ears.heed_record, key)
        text, server_time = self._ask(command(b"GET", key) + _TIME, 2, deadline, heed)
        return Stored(text, _seconds(server_time))

    def _replace(
        self, key: bytes, text: bytes | None, new: bytes | None, keep: float, deadline: float
    ) -> tuple[bool, Stored]:
        news = _news_of(key, new)
        arguments = (_tagged(text), _tagged(new), _milliseconds(keep), self._ears.channel, news)
        heed = partial(self._ears.heed_replacement, key, new)
        replaced, held, *server_time = self._run(_REPLACE, key, arguments, deadline, heed)
        return bool(replaced), Stored(_untagged(held), _seconds(server_time))

    def _run(
        self,
        script: _Script,
        key: bytes,
        arguments: Sequence[bytes],
        deadline: float,
        heed: Callable[[Inquiry], None] | None = None,
    ) -> Any:
        try:
            return self._ask(script.call(key, *arguments), 1, deadline, heed)[0]
        except _ScriptMissing:  # it has run nothing
            return self._ask(script.call(key, *arguments, whole=True), 1, deadline, heed)[0]

    def _ask(
        self, commands: bytes, count: int, deadline: float, heed: Callable[[Inquiry], None] | None = None
    ) -> list[Any]:
        wire = self._opened()
        left = deadline - time.monotonic()
        if left <= 0:
            raise StorageUnavailable(f"{self.uri} did not answer within {self._timeout:g} s")
        inquiry = Inquiry(commands, count, timeout=left, heed=heed)
        replies = wire.ask(inquiry)
        refusal = inquiry.refusal
        if refusal is None:
            return replies
        if refusal.startswith("NOSCRIPT"):
            raise _ScriptMissing(f"{self.uri}: {refusal}")
        raise StorageUnavailable(f"{self.uri} refused: {refusal}")

    def _opened(self) -> Wire:
        wire = self._wire
        if wire is not None and not wire.ended:
            return wire
        with self._opening:
            wire = self._wire
            if wire is not None and not wire.ended:
                return wire
            wire = self._wire = Wire(self._connector, self._ears, uri=self.uri, timeout=self._timeout)
            if self._finalizer is not None:
                self._finalizer.detach()
            # The thread knows the wire alone: when nobody holds the storage any more it ends.
            self._finalizer = weakref.finalize(self, wire.stop)
            self._finalizer.atexit = False
        self._connector.when_replaced(wire.reconnect)
        try:
            wire.start()
        except RuntimeError as error:  # there are too many threads already, or the interpreter is ending
            raise StorageUnavailable(f"{self.uri} did not answer: {error}") from error
        if not wire.lives_in(self._home):
            # A greenlet of a native thread that is there for a single task, perhaps: nobody would see to it afterwards.
            wire.stop()
            self._wire = None
            raise StorageUnavailable(f"{self.uri} is used first by the thread that has made the storage")
        return wire

    def _look(self, record: Record) -> Stored:
        """What is known of a record that is followed."""
        if not record.known:
            wire = self._opened()
            wire.ask(Inquiry(b"", 0, timeout=self._timeout))  # returns when somebody listens, or is not to be had
            if not record.known:  # it was followed a moment ago
                wire.ask(self._ears.reading([record], self._timeout))
        return Stored(record.text, self._ears.now())


class RedisFollowing:
    """A record that is followed: `cell[place]` changes when the news arrive, when they no longer do, and when they do again."""

    place = 0

    def __init__(self, storage: RedisStateStorage, record: Record, told: Callable[[], None] | None) -> None:
        self._storage = storage
        self._record = record
        self._told = told
        self._closed = False
        self.cell = record.cell

    def __repr__(self) -> str:
        return f"<RedisFollowing: {self._record.key.decode(errors='replace')}>"

    def read(self) -> Stored:
        """The record as last heard of. Asks nobody; but whoever looks first in a process waits until the connection is made,
        for the timeout at most, so that a new worker knows of a circuit that is open. Raises `StorageUnavailable` while the
        news do not arrive."""
        return self._storage._look(self._record)  # noqa: SLF001  # the two are one

    def close(self) -> None:
        """Stop following."""
        if not self._closed:
            self._closed = True
            self._storage._news.leave(self._record, self._told)  # noqa: SLF001


class _ScriptMissing(StorageUnavailable):
    """The server does not have the script, and has run nothing."""


class _StateEars:
    """Heeds what comes over the wire. Everything here runs in the wire's thread."""

    def __init__(self, news: News, channel: bytes, probe: bytes) -> None:
        self.channel = channel
        self._news = news
        self._probe = probe
        self._time = ServerTime()
        self._read_again_at = 0.0

    def now(self) -> float:
        """The server's time. Any thread may ask."""
        return self._time.at(time.monotonic())

    def greeting(self, timeout: float) -> Inquiry:
        """Listen, show that records can be written, and read all that are followed."""
        records = self._news.records
        subscription = command(b"SUBSCRIBE", self.channel, *self._news.channels)
        probe = self._probe + os.urandom(8).hex().encode()
        test = _REPLACE.call(probe, b"-", b"+", b"1000", b"", b"", whole=True)
        greeting = self.reading(records, timeout, before=subscription + test, answered=1)
        self._read_again_at = time.monotonic() + _READ_AGAIN_EVERY
        return greeting

    def keeping_alive(self, timeout: float) -> Inquiry:
        """The time, and every few seconds all that is followed."""
        records: list[Record] = []
        if time.monotonic() >= self._read_again_at:
            self._read_again_at = time.monotonic() + _READ_AGAIN_EVERY
            records = self._news.records
        return self.reading(records, timeout)

    def reading(self, records: list[Record], timeout: float, *, before: bytes = b"", answered: int = 0) -> Inquiry:
        """What reads these records, after commands that are `answered` so often."""
        parts = [records[first : first + _AT_ONCE] for first in range(0, len(records), _AT_ONCE)]
        commands = b"".join(command(b"MGET", *(record.key for record in part)) for part in parts)

        def heed(inquiry: Inquiry) -> None:
            if inquiry.refusal is None:
                texts = (text for reply in inquiry.replies[answered:-1] for text in reply)
                for record, text in zip(records, texts, strict=True):
                    self._news.learn(record.key, text)
                self._learn_time(inquiry.replies[-1], inquiry)

        return Inquiry(before + commands + _TIME, answered + len(parts) + 1, timeout=timeout, heed=heed)

    def heed_record(self, key: bytes, inquiry: Inquiry) -> None:
        """A record was read."""
        if inquiry.refusal is None:
            text, server_time = inquiry.replies
            self._news.learn(key, text)
            self._learn_time(server_time, inquiry)

    def heed_replacement(self, key: bytes, new: bytes | None, inquiry: Inquiry) -> None:
        """A record was replaced, or found to be another: what is followed is known before the caller goes on."""
        if inquiry.refusal is None:
            replaced, held, *server_time = inquiry.replies[0]
            self._news.learn(key, new if replaced else _untagged(held))
            self._learn_time(server_time, inquiry)

    def heard(self, news: Sequence[Any]) -> None:
        """A record was changed, or somebody has published something."""
        kind, channel, message = (*news, None, None)[:3]
        if kind != b"message":
            return
        if channel == self.channel:
            key, text = _record_in(message)
            self._news.learn(key, text)
        else:
            self._news.pass_on(channel, message)

    def changed(self, *, hears: bool) -> None:
        """Whoever follows something looks."""
        self._news.change_all(known=hears)

    def ended(self) -> None:
        """Nothing is heard until somebody looks."""
        self._news.end()

    def _learn_time(self, server_time: Sequence[bytes], inquiry: Inquiry) -> None:
        self._time.learn(_seconds(server_time), inquiry.sent, inquiry.answered)


def _rest(tries: int, deadline: float) -> None:
    """Let others go first, for a while that depends on chance."""
    rest = _CHANCE.uniform(0, min(_LONGEST_REST, _SHORTEST_REST * 2**tries))
    time.sleep(max(0.0, min(rest, deadline - time.monotonic())))


def _tagged(text: bytes | None) -> bytes:
    """As the script takes it: an empty text is one."""
    return b"-" if text is None else b"+" + text


def _untagged(held: bytes) -> bytes | None:
    return None if held == b"-" else held[1:]


def _news_of(key: bytes, text: bytes | None) -> bytes:
    return b"%d:%b%b" % (len(key), key, _tagged(text))


def _record_in(news: bytes) -> tuple[bytes, bytes | None]:
    """The key and the text. Raises `ValueError` for what is no news."""
    length, _, rest = news.partition(b":")
    return rest[: int(length)], _untagged(rest[int(length) :])


def _seconds(server_time: Sequence[bytes]) -> float:
    seconds, microseconds = server_time
    return int(seconds) + int(microseconds) / 1_000_000


def _milliseconds(keep: float) -> bytes:
    return b"%d" % min(_LONGEST_KEPT, math.ceil(keep * 1_000))


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _str(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")
