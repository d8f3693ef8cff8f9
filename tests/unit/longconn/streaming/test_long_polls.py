"""Parked long polls: when they are answered, and with what."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from longconn.channels.hub import Channels
from longconn.channels.ports import History, HistoryLimits, Message, Position
from longconn.streaming.long_polls import WIRE, LongPoll, document
from longconn.streaming.positions import EARLIEST
from longconn.upgraded import About
from tests.support.memory_broker import MemoryBroker
from tests.support.upgraded_scene import UpgradedScene, upgraded_scene


@pytest.fixture
def scene() -> Iterator[UpgradedScene]:
    with upgraded_scene() as made:
        yield made


@pytest.fixture
def channels() -> Iterator[Channels]:
    made = Channels(MemoryBroker(), history=HistoryLimits(count=5))
    yield made
    made.close()


Ask = Callable[..., tuple[Any, socket.socket]]


@pytest.fixture
def ask(scene: UpgradedScene, channels: Channels) -> Ask:
    """Begins a poll."""

    def begin_one(since: Position | None = None, *, seconds: float = 25.0, most: int = 100, buffer: int = 0) -> Any:
        endpoint = LongPoll(channels, "news", seconds=seconds, most=most)
        endpoint.head = b"HTTP/1.1 200 OK\r\n"
        about = About("ann")
        return scene.upgraded(
            endpoint, begin=lambda connection: endpoint.begin(connection, since, about), buffer=buffer
        )

    return begin_one


def answered(client: socket.socket) -> dict[str, Any]:
    """The answer, whose connection ends with it."""
    head, _, body = client.recv(1 << 20).partition(b"\r\n\r\n")
    assert f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}".encode() == head
    found: dict[str, Any] = json.loads(body)
    return found


def data(found: dict[str, Any]) -> list[str]:
    return [message["data"] for message in found["messages"]]


def test_a_document_has_the_oldest_messages_and_where_to_go_on() -> None:
    messages = tuple(Message("news", Position(1, number), f"{number}", "e", "k", 5.5) for number in (4, 5, 6))
    found = json.loads(document(History(messages, complete=False, position=Position(1, 6)), 2))
    assert {"position": "1-4", "data": "4", "event": "e", "key": "k", "at": 5.5} == found["messages"][0]
    assert (2, "1-5", False) == (len(found["messages"]), found["position"], found["complete"])


def test_a_document_is_not_much_larger_than_a_mebibyte() -> None:
    messages = tuple(Message("news", Position(1, number), "x" * 400_000) for number in range(1, 6))
    found = json.loads(document(History(messages, complete=True, position=Position(1, 5)), 100))
    assert (3, "1-3") == (len(found["messages"]), found["position"])


def test_what_is_held_is_answered_at_once(ask: Ask, channels: Channels) -> None:
    for number in range(3):
        channels.publish("news", f"{number}")
    _, client = ask(Position(0x18F, 1))
    found = answered(client)
    assert (["1", "2"], "18f-3", True) == (data(found), found["position"], found["complete"])


def test_the_first_message_is_the_answer(ask: Ask, channels: Channels) -> None:
    connection, client = ask()
    assert (("news",), "ann", 1) == (connection.channels, connection.user, channels.subscribers("news"))
    channels.publish("news", "x")
    channels.publish("news", "y")
    assert ["x"] == data(answered(client))
    assert (False, 0) == (connection.alive, channels.subscribers("news"))


def test_when_nothing_comes_the_answer_is_nothing(ask: Ask, channels: Channels, scene: UpgradedScene) -> None:
    channels.publish("news", "old")
    _, client = ask(seconds=10)
    scene.pass_time(11)
    assert {"messages": [], "position": "18f-1", "complete": True} == answered(client)


def test_a_position_that_is_held_no_longer_is_told(ask: Ask, channels: Channels) -> None:
    for number in range(9):
        channels.publish("news", f"{number}")
    found = answered(ask(Position(0x18F, 1))[1])
    assert (False, ["4", "5", "6", "7", "8"]) == (found["complete"], data(found))


def test_all_that_is_held_can_be_asked_for(ask: Ask, channels: Channels) -> None:
    channels.publish("news", "0")
    assert ["0"] == data(answered(ask(EARLIEST)[1]))


def test_all_who_wait_get_the_message(ask: Ask, channels: Channels) -> None:
    clients = [ask()[1] for _ in range(5)]
    channels.publish("news", "x")
    assert [["x"]] * 5 == [data(answered(client)) for client in clients]


def test_one_that_was_not_told_in_time_hears_of_it(ask: Ask) -> None:
    connection, client = ask()
    WIRE.missed(connection, "news", Position(0x18F, 7))
    found = answered(client)
    assert (False, "18f-7") == (found["complete"], found["position"])


def test_a_client_that_leaves_is_forgotten(ask: Ask, channels: Channels, scene: UpgradedScene) -> None:
    connection, client = ask()
    client.send(b"something nobody asked for")
    client.close()
    scene.until(lambda: not connection.alive)
    assert 0 == channels.subscribers("news")


def test_when_the_worker_leaves_the_poll_is_answered(ask: Ask, scene: UpgradedScene) -> None:
    connection, client = ask()
    scene.lot.leaving_window = 10.0
    connection.drain(20.0)
    scene.pass_time(11)
    assert [] == data(answered(client))


def test_who_is_kicked_is_answered(ask: Ask) -> None:
    connection, client = ask()
    connection.kick()
    connection.kick()
    assert [] == data(answered(client))


def test_a_large_answer_waits_for_its_client(ask: Ask, channels: Channels, scene: UpgradedScene) -> None:
    connection, client = ask(buffer=8192)
    channels.publish("news", "x" * 500_000)
    connection.drain(0.0)
    assert connection.queued
    received = b""

    def all_came() -> bool:
        nonlocal received
        received += client.recv(1 << 20)
        return not connection.alive

    scene.until(all_came)
    assert b"x" * 500_000 in received + client.recv(1 << 20)


def test_an_answer_that_is_not_taken_is_cut(ask: Ask, channels: Channels, scene: UpgradedScene) -> None:
    connection, _ = ask(buffer=8192)
    channels.publish("news", "x" * 500_000)
    scene.pass_time(31)
    assert not connection.alive


def test_a_poll_that_cannot_begin_is_closed(channels: Channels, scene: UpgradedScene) -> None:
    endpoint = LongPoll(channels, "no good name", seconds=1, most=1)
    connection, _ = scene.upgraded(endpoint)
    with pytest.raises(ValueError, match="no name of a channel"):
        endpoint.begin(connection, None)
    assert not connection.alive


# On servers that cannot park


def test_elsewhere_it_waits_where_it_is_called(channels: Channels) -> None:
    channels.publish("news", "0")
    poll = LongPoll(channels, "news", seconds=0.01, most=100)
    assert ["0"] == data(json.loads(poll.wait(EARLIEST)))
    assert {"messages": [], "position": "18f-1", "complete": True} == json.loads(poll.wait(None))
    assert 0 == channels.subscribers("news")
