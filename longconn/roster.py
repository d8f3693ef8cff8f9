"""Who is connected, on all workers: WebSockets, event streams, and whatever else has taken connections over.

    roster = Roster(channels)
    roster.answer()                                  # once in the application, so that each worker tells of its own
    roster.connections(user="ann")                   # a list of dictionaries
    roster.counts()["channels"]["news"]
    roster.kick(user="ann", code=1008, reason="enough")

Workers ask each other through the channels. Each answers for all connections of its process, whichever application has them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Self, TypeVar

from longconn.core.frames import encode_close, may_be_sent
from longconn.upgraded import UpgradedConnection, upgraded_connections

__all__ = ["Connections", "Counts", "Kicked", "Roster"]

CONNECTIONS: Final = "longconn.connections"
COUNTS: Final = "longconn.counts"
KICK: Final = "longconn.kick"

MOST: Final = 10_000
"""Connections, or different names, that one worker tells of in one answer."""
REVOKED: Final = "the authorization has been revoked"
COUNTED: Final = ("kinds", "users", "addresses", "channels")
_AT_ONCE: Final = 500
"""Connections that are looked at before others have their turn."""

T = TypeVar("T")


class Connections(list[dict[str, Any]]):
    """Connections, the newest first, each with its `id`, `kind`, `user` (None for anybody), `address`, `path`, `channels`,
    `since` (seconds since the epoch), `queued` (bytes that wait for its client) and `worker` (a process id).

    `total` is how many there are, `silent` are the process ids of workers that did not answer.
    """

    total: int = 0
    silent: tuple[int, ...] = ()


class Counts(dict[str, Any]):
    """How many `connections` there are, how many by `kinds`, `users`, `addresses`, `channels` and `workers`, the most first,
    and how many bytes are `queued` for them. `silent` are the process ids of workers that did not answer."""

    silent: tuple[int, ...] = ()


class Kicked(int):
    """How many were sent away. `silent` are the process ids of workers that did not answer."""

    silent: tuple[int, ...]

    def __new__(cls, number: int, silent: Iterable[int] = ()) -> Self:
        kicked = super().__new__(cls, number)
        kicked.silent = tuple(silent)
        return kicked


class Roster:
    """The connections of all processes on the same `channels` (a `longconn.channels.hub.Channels`); of this one only without.

    Everything that asks takes up to `timeout` seconds when a worker does not answer, and raises `ChannelsUnavailable` when none
    can be asked. A user is known by `str(user)`.
    """

    def __init__(self, channels: Any = None) -> None:
        self._channels = channels

    def answer(self) -> None:
        """Tell others of this process's connections when they ask. Opens nothing; may be called before a fork."""
        if self._channels is not None:
            for topic, function in _ANSWERS.items():
                self._channels.answers(topic, function)

    def connections(
        self,
        *,
        id: str | None = None,  # noqa: A002 - the name that it has everywhere
        user: Any = None,
        address: str | None = None,
        channel: str | None = None,
        kind: str | None = None,
        path: str | None = None,
        worker: int | None = None,
        most: int = 1000,
        timeout: float = 1.0,
    ) -> Connections:
        """Those that fit all that is given, at most `most` (1 to 10000); of each worker no more than half a message of the
        channels takes, some 7,000 unless the channels are small. `total` counts them all."""
        if not 1 <= most <= MOST:
            raise ValueError(f"most={most!r}: from 1 to {MOST} connections can be listed")
        wanted = _wanted(id=id, user=user, address=address, channel=channel, kind=kind, path=path, worker=worker)
        answers, silent = self._ask(CONNECTIONS, {"wanted": wanted, "most": most}, timeout)
        found = sorted((each for answer in answers for each in answer["found"]), key=_since, reverse=True)
        listed = Connections(found[:most])
        listed.total = sum(answer["total"] for answer in answers)
        listed.silent = silent
        return listed

    def counts(self, *, most: int = 100, timeout: float = 1.0) -> Counts:
        """How many there are; of each kind of name, the `most` that have most. Where a worker knows more than 10000 different
        names, it leaves out those that have least."""
        answers, silent = self._ask(COUNTS, {}, timeout)
        counts = Counts(connections=0, queued=0, workers={})
        sums: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
        for answer in answers:
            counts["connections"] += answer["connections"]
            counts["queued"] += answer["queued"]
            counts["workers"][answer["pid"]] = answer["connections"]
            for name in COUNTED:
                sums[name].update(answer[name])
        for name in COUNTED:
            counts[name] = dict(sums[name].most_common(most))
        counts.silent = silent
        return counts

    def kick(
        self,
        *,
        id: str | None = None,  # noqa: A002 - the name that it has everywhere
        user: Any = None,
        address: str | None = None,
        channel: str | None = None,
        token: str | None = None,
        kind: str | None = None,
        path: str | None = None,
        worker: int | None = None,
        code: int = 1008,
        reason: str = "",
        timeout: float = 1.0,
    ) -> Kicked:
        """Send away those that fit all that is given, WebSockets with `code` and `reason`. Returns how many these were.

        Raises `ValueError` when nothing is given, since that would be everybody, and for a code or reason that cannot be sent.
        """
        wanted = _wanted(
            id=id, user=user, address=address, channel=channel, token=token, kind=kind, path=path, worker=worker
        )
        if not wanted:
            raise ValueError("say who is to go: id, user, address, channel, token, kind, path or worker")
        if not may_be_sent(code):
            raise ValueError(f"code={code!r} cannot be sent: use 1000, 1001, 1003, 1007 to 1014, 3000 to 4999")
        encode_close(code, reason)
        answers, silent = self._ask(KICK, {"wanted": wanted, "code": code, "reason": reason}, timeout)
        return Kicked(sum(answer["kicked"] for answer in answers), silent)

    def revoke(self, token: str, *, timeout: float = 1.0) -> Kicked:
        """Send away all whose `Identity` has this `token`, WebSockets with 1008. New ones are the application's to refuse."""
        if not token:
            raise ValueError("say which token is revoked: the `token` of its Identity")
        return self.kick(token=token, reason=REVOKED, timeout=timeout)

    def _ask(
        self, topic: str, question: Mapping[str, Any], timeout: float
    ) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
        if self._channels is None:
            return [{**_ANSWERS[topic](dict(question)), "pid": os.getpid()}], ()
        self.answer()
        self._channels.start()
        room = self._channels.broker.largest // 2
        answers = self._channels.ask(topic, {**question, "room": room}, timeout=timeout)
        # A process with several applications has as many channels that answer, each for all of its connections.
        by_process: dict[int, dict[str, Any]] = {}
        for answer in answers:
            known = by_process.get(answer["pid"])
            if known is None or answer.get("kicked", 0) > known.get("kicked", 0):
                by_process[answer["pid"]] = answer
        return list(by_process.values()), answers.silent


# What one process answers.


def _list(question: dict[str, Any]) -> dict[str, Any]:
    newest = sorted(_matching(question["wanted"]), key=_number, reverse=True)
    described = (_described(connection) for connection in newest[: question["most"]])
    return {"total": len(newest), "found": list(_as_many_as_fit(described, question.get("room")))}


def _count(question: dict[str, Any]) -> dict[str, Any]:
    counters: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    connections = queued = 0
    for connection in _matching({}):
        connections += 1
        queued += connection.queued
        counters["kinds"][connection.endpoint.kind] += 1
        counters["addresses"][connection.host] += 1
        counters["channels"].update(connection.channels)
        if connection.user is not None:
            counters["users"][str(connection.user)] += 1
    room = question.get("room")
    share = None if room is None else room // len(COUNTED)
    most = {name: dict(_as_many_as_fit(counter.most_common(MOST), share)) for name, counter in counters.items()}
    return {"connections": connections, "queued": queued, **most}


def _as_many_as_fit(found: Iterable[T], room: int | None) -> Iterator[T]:
    """The first that have room in a message of `room` bytes (None: no message). Others have a turn now and then."""
    left = math.inf if room is None else room
    for index, each in enumerate(found):
        if index % _AT_ONCE == _AT_ONCE - 1:
            time.sleep(0)
        left -= len(json.dumps(each)) + 2
        if left < 0:
            return
        yield each


def _send_away(question: dict[str, Any]) -> dict[str, Any]:
    kicked = 0
    for connection in list(_matching(question["wanted"])):
        connection.kick(question["code"], question["reason"])
        kicked += 1
        if not kicked % _AT_ONCE:
            time.sleep(0)
    return {"kicked": kicked}


_ANSWERS: Final = {CONNECTIONS: _list, COUNTS: _count, KICK: _send_away}


def _matching(wanted: Mapping[str, Any]) -> Iterator[UpgradedConnection]:
    """The connections of this process that fit. Others have a turn now and then."""
    if wanted.get("worker", os.getpid()) != os.getpid():
        return
    questions = [(_TOLD[name], value) for name, value in wanted.items() if name != "worker"]
    for index, connection in enumerate(upgraded_connections()):
        if not index % _AT_ONCE:
            time.sleep(0)
        if connection.alive and all(fits(connection, value) for fits, value in questions):
            yield connection


_TOLD: Final[Mapping[str, Any]] = {
    "id": lambda connection, id_: connection.id == id_,
    "user": lambda connection, user: connection.user is not None and str(connection.user) == user,
    "address": lambda connection, address: connection.host == address,
    "channel": lambda connection, channel: channel in connection.channels,
    "kind": lambda connection, kind: connection.endpoint.kind == kind,
    "path": lambda connection, path: connection.path == path,
    "token": lambda connection, token: connection.identity is not None and connection.identity.token == token,
}


def _wanted(**given: Any) -> dict[str, Any]:
    if given.get("user") is not None:
        given["user"] = str(given["user"])
    for name, value in given.items():
        if value == "":
            raise ValueError(f"{name}='' fits nobody: leave it out, or say which")
    return {name: value for name, value in given.items() if value is not None}


def _described(connection: UpgradedConnection) -> dict[str, Any]:
    user = connection.user
    return {
        "id": connection.id,
        "kind": connection.endpoint.kind,
        "user": None if user is None else str(user),
        "address": connection.host,
        "path": connection.path,
        "channels": list(connection.channels),
        "since": connection.since,
        "queued": connection.queued,
        "worker": os.getpid(),
    }


def _number(connection: UpgradedConnection) -> int:
    return connection.number


def _since(described: dict[str, Any]) -> float:
    return float(described["since"])
