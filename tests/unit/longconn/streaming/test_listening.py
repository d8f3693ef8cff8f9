"""Event streams on servers that cannot park: the same words, from an iterator."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from longconn.channels.hub import Channels
from longconn.channels.ports import HistoryLimits, Position
from longconn.core.event_stream import EventReader
from longconn.identity import Identity
from longconn.streaming.event_streams import EventStream
from longconn.streaming.listening import Listener, ListenerWire, stream
from longconn.streaming.options import EventStreamOptions
from longconn.streaming.positions import EARLIEST, read_positions
from tests.support.memory_broker import MemoryBroker


@pytest.fixture
def channels() -> Iterator[Channels]:
    made = Channels(MemoryBroker(), history=HistoryLimits(count=5))
    yield made
    made.close()


def endpoint(channels: Channels, *names: str, queue_bytes: int = 1_000_000) -> EventStream:
    return EventStream(channels, names, options=EventStreamOptions(queue_bytes=queue_bytes))


def test_a_stream_begins_at_once_and_goes_on_with_what_comes(channels: Channels) -> None:
    channels.publish("news", "0")
    body = stream(endpoint(channels, "news"), {"news": EARLIEST})
    assert b"retry: 3000\nid: 0-0\n\nid: 18f-1\ndata: 0\n\n" == next(body)
    channels.publish("news", "1")
    channels.publish("news", "2")
    assert [b"id: 18f-2\ndata: 1\n\n", b"id: 18f-3\ndata: 2\n\n"] == [next(body), next(body)]


def test_several_channels_have_one_id(channels: Channels) -> None:
    names = ("news", "sport")
    body = stream(endpoint(channels, *names))
    reader = EventReader()
    reader.feed(next(body))
    channels.publish("news", "n")
    channels.publish("sport", "s")
    for _ in range(2):
        reader.feed(next(body))
    assert {"news": Position(0x18F, 1), "sport": Position(0x18F, 1)} == read_positions(reader.id, names)


def test_a_server_that_closes_the_body_ends_the_subscription(channels: Channels) -> None:
    body = stream(endpoint(channels, "news"))
    next(body)
    assert 1 == channels.subscribers("news")
    body.close()  # type: ignore[attr-defined]
    assert 0 == channels.subscribers("news")


def test_one_that_falls_behind_is_ended_behind_what_waits_for_it(channels: Channels) -> None:
    body = stream(endpoint(channels, "news", queue_bytes=10))
    next(body)
    for number in range(20):
        channels.publish("news", f"{number}")
    assert 10 == len(list(body))
    assert 0 == channels.subscribers("news")


def test_a_stream_ends_with_the_credentials_of_its_caller(channels: Channels) -> None:
    body = stream(endpoint(channels, "news"), identity=Identity("ann", expires_at=time.time() + 0.05))
    assert [b":\n\n"] == list(body)[1:]


def test_what_was_lost_on_the_way_is_told(channels: Channels) -> None:
    listener = Listener(100)
    wire = endpoint(channels, "news").wire
    ListenerWire(wire.encoding).missed(listener, "news", Position(0x18F, 7))
    assert listener.get(0.0).startswith(b"id: 18f-7\nevent: missed\n")


def test_a_listener_waits_for_what_another_thread_puts() -> None:
    listener = Listener(100)
    thread = threading.Timer(0.01, listener.put, ["x", 1])
    thread.start()
    assert "x" == listener.get(5.0)
    thread.join()


def test_a_listener_to_whom_nothing_comes_says_so() -> None:
    with pytest.raises(TimeoutError):
        Listener(100).get(0.0)


def test_one_item_may_always_wait_and_what_was_taken_makes_room() -> None:
    listener = Listener(10)
    listener.put("large", 1000)
    assert "large" == listener.get(0.0)
    listener.put("again", 1000)
    listener.put("too much", 1)
    listener.put("not even that", 1)
    assert "again" == listener.get(0.0)
    with pytest.raises(EOFError):
        listener.get(0.0)
