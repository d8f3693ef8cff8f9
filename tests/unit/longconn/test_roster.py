"""Who is connected: lists, counts and kicks over the connections of this process."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from longconn.channels.hub import Channels
from longconn.channels.lmdb_broker import LmdbBroker
from longconn.identity import Identity
from longconn.roster import Kicked, Roster
from longconn.streaming.event_streams import EventStream
from longconn.streaming.options import EventStreamOptions
from longconn.upgraded import About, Endpoint
from tests.support.memory_broker import MemoryBroker
from tests.support.upgraded_scene import UpgradedScene, upgraded_scene

ANN = Identity("ann", token="t1")


@pytest.fixture
def channels() -> Iterator[Channels]:
    made = Channels(MemoryBroker())
    yield made
    made.close()


@pytest.fixture
def scene(channels: Channels) -> Iterator[UpgradedScene]:
    """One with three event streams and a connection of another kind."""
    with upgraded_scene() as made:
        for who, names in (
            (About("ann", ANN, path="/a"), ("news", "sport")),
            (About("bob", address="10.0.0.9", path="/b"), ("news",)),
            (About(path="/b"), ("news",)),
        ):
            endpoint = EventStream.of(channels, names, options=EventStreamOptions())
            made.upgraded(endpoint, begin=functools.partial(endpoint.begin, about=who))
        made.upgraded(Endpoint())
        yield made


@pytest.fixture
def roster(scene: UpgradedScene) -> Roster:
    return Roster()


def users(found: list[dict[str, Any]]) -> list[Any]:
    return sorted(str(each["user"]) for each in found)


def test_a_connection_is_described_in_full(roster: Roster) -> None:
    (found,) = roster.connections(user="ann")
    since = found.pop("since")
    assert since > 1_700_000_000
    assert {
        "id": found["id"],
        "kind": "sse",
        "user": "ann",
        "address": "127.0.0.1",
        "path": "/a",
        "channels": ["news", "sport"],
        "queued": 0,
        "worker": os.getpid(),
    } == found


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, ["None", "None", "ann", "bob"]),
        ({"user": "ann"}, ["ann"]),
        ({"user": "nobody"}, []),
        ({"address": "10.0.0.9"}, ["bob"]),
        ({"channel": "sport"}, ["ann"]),
        ({"channel": "news"}, ["None", "ann", "bob"]),
        ({"kind": "other"}, ["None"]),
        ({"path": "/b"}, ["None", "bob"]),
        ({"path": "/b", "user": "bob"}, ["bob"]),
        ({"worker": os.getpid()}, ["None", "None", "ann", "bob"]),
        ({"worker": 1}, []),
    ],
)
def test_those_are_listed_that_fit_all_that_is_given(
    roster: Roster, wanted: dict[str, Any], expected: list[str]
) -> None:
    found = roster.connections(**wanted)
    assert (expected, len(expected)) == (users(found), found.total)


def test_the_newest_come_first_and_all_are_counted(roster: Roster) -> None:
    found = roster.connections(most=2)
    assert (2, 4, ()) == (len(found), found.total, found.silent)
    assert found[0]["since"] > found[1]["since"]
    assert "other" == found[0]["kind"]


@pytest.mark.parametrize("most", [0, 10_001])
def test_a_list_has_an_end(roster: Roster, most: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 10000"):
        roster.connections(most=most)


def test_there_are_counts_of_everything(roster: Roster) -> None:
    assert {
        "connections": 4,
        "queued": 0,
        "kinds": {"sse": 3, "other": 1},
        "users": {"ann": 1, "bob": 1},
        "addresses": {"127.0.0.1": 3, "10.0.0.9": 1},
        "channels": {"news": 3, "sport": 1},
        "workers": {os.getpid(): 4},
    } == roster.counts()


def test_counts_may_be_cut_to_the_greatest(roster: Roster) -> None:
    assert {"news": 3} == roster.counts(most=1)["channels"]


def test_one_is_kicked_by_its_id(roster: Roster) -> None:
    (found,) = roster.connections(user="bob")
    assert (1, ()) == (roster.kick(id=found["id"]), roster.kick(id=found["id"]).silent)
    assert ["None", "None", "ann"] == users(roster.connections())


def test_all_that_fit_are_kicked(roster: Roster, scene: UpgradedScene) -> None:
    kicked = roster.kick(channel="news", reason="enough")
    assert (3, True) == (kicked, isinstance(kicked, Kicked))
    assert ["None"] == users(roster.connections())
    assert b": 1008 enough\n" in scene.clients[0].recv(4096)


def test_a_plain_connection_is_kicked_too(roster: Roster) -> None:
    assert 1 == roster.kick(kind="other")


def test_a_revoked_token_ends_its_connections(roster: Roster, scene: UpgradedScene) -> None:
    assert (1, 0) == (roster.revoke("t1"), roster.revoke("t1"))
    assert b": 1008 the authorization has been revoked\n" in scene.clients[0].recv(4096)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({}, "say who is to go"),
        ({"user": "ann", "code": 1006}, "code=1006 cannot be sent"),
        ({"user": "ann", "code": 999}, "code=999 cannot be sent"),
        ({"user": "ann", "reason": "x" * 124}, "123"),
    ],
)
def test_a_kick_that_makes_no_sense_is_refused(roster: Roster, what: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roster.kick(**what)
    assert 4 == roster.connections().total


def test_nothing_is_no_token(roster: Roster) -> None:
    with pytest.raises(ValueError, match="which token"):
        roster.revoke("")


def test_an_empty_text_means_nobody_and_is_refused(roster: Roster) -> None:
    for name in ("token", "user", "id", "address", "channel", "kind", "path"):
        with pytest.raises(ValueError, match=f"{name}='' fits nobody"):
            roster.kick(**dict.fromkeys([name], cast("Any", "")))
    assert 4 == roster.connections().total


def test_a_process_with_two_applications_answers_once(scene: UpgradedScene, tmp_path: Path) -> None:
    hubs = [Channels(LmdbBroker(tmp_path / "channels")) for _ in range(2)]
    rosters = [Roster(hub) for hub in hubs]
    for hub, roster in zip(hubs, rosters, strict=True):
        roster.answer()
        hub.start()
    assert (4, 4) == (rosters[0].counts()["connections"], rosters[0].connections().total)
    assert 4 == len(rosters[1].connections())
    assert 1 == rosters[1].kick(user="ann")
    for hub in hubs:
        hub.close()


def test_a_list_that_is_larger_than_a_message_is_cut(scene: UpgradedScene, tmp_path: Path) -> None:
    hub = Channels(LmdbBroker(tmp_path / "channels", size=1 << 20))
    roster = Roster(hub)
    hub.start()
    many = tuple(f"channel{number:0190}" for number in range(30))
    for name in ("ann", "bob", "cat"):
        endpoint = EventStream.of(hub, many, options=EventStreamOptions())
        scene.upgraded(endpoint, begin=functools.partial(endpoint.begin, about=About(name)))
    listed = roster.connections()
    assert (7, ()) == (listed.total, listed.silent)
    assert ["cat", "bob"] == [each["user"] for each in listed]
    counts = roster.counts()
    assert (7, ()) == (counts["connections"], counts.silent)
    assert 15 <= len(counts["channels"]) < 30
    hub.close()


def test_workers_are_asked_through_their_channels(channels: Channels, scene: UpgradedScene) -> None:
    roster = Roster(channels)
    assert (4, {os.getpid(): 4}) == (roster.connections().total, roster.counts()["workers"])
