"""Parked event streams: what a client gets, from where, and how its stream ends."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from longconn import scoreboard
from longconn.channels.errors import ChannelsUnavailable
from longconn.channels.hub import Channels
from longconn.channels.ports import HistoryLimits, Message, Position
from longconn.core.event_stream import EventReader, StreamedEvent
from longconn.identity import Identity
from longconn.scoreboard import messages_field, slow_field
from longconn.streaming.event_streams import EventStream, EventStreamWire
from longconn.streaming.options import EventStreamOptions
from longconn.streaming.positions import EARLIEST, read_positions
from longconn.upgraded import About, UpgradedConnection
from tests.support.memory_broker import MemoryBroker
from tests.support.upgraded_scene import UpgradedScene, upgraded_scene

OPTIONS = EventStreamOptions()


@pytest.fixture
def scene() -> Iterator[UpgradedScene]:
    with upgraded_scene() as made:
        yield made


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def channels(broker: MemoryBroker) -> Iterator[Channels]:
    made = Channels(broker, history=HistoryLimits(count=5))
    yield made
    made.close()


class Client:
    """The client of a stream, and the server's side of it."""

    def __init__(self, connection: Any, sock: socket.socket) -> None:
        self.connection = connection
        self.socket = sock
        self.reader = EventReader()
        self.events: list[StreamedEvent] = []

    def read(self) -> list[str]:
        """The data of all that has arrived since the last time."""
        self.socket.setblocking(False)
        fresh: list[StreamedEvent] = []
        try:
            while data := self.socket.recv(1 << 20):
                fresh += self.reader.feed(data)
        except BlockingIOError:
            pass
        self.events += fresh
        return [event.data for event in fresh]

    @property
    def has_ended(self) -> bool:
        """Whether the server has closed it and everything was read."""
        self.socket.setblocking(False)
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False


Listen = Callable[..., Client]


@pytest.fixture
def listen(scene: UpgradedScene, channels: Channels) -> Listen:
    """Opens a stream."""

    def open_one(
        *names: str,
        options: EventStreamOptions = OPTIONS,
        since: Any = None,
        lost: bool = False,
        about: About | None = None,
        ended: Any = None,
        buffer: int = 0,
    ) -> Client:
        endpoint = EventStream.of(channels, names or ("news",), options=options, ended=ended)

        def begin(connection: UpgradedConnection) -> None:
            endpoint.begin(connection, since, lost=lost, about=about)

        return Client(*scene.upgraded(endpoint, begin=begin, buffer=buffer))

    return open_one


def test_a_client_gets_what_is_published_from_now_on(listen: Listen, channels: Channels) -> None:
    channels.publish("news", "old")
    client = listen()
    channels.publish("news", "new", event="flash")
    channels.publish("sport", "not for it")
    assert ["new"] == client.read()
    assert [StreamedEvent("new", "flash", "18f-2")] == client.events


def test_it_is_told_when_to_come_back_and_where_it_is_before_anything_happens(
    listen: Listen, channels: Channels
) -> None:
    channels.publish("news", "old")
    client = listen(options=EventStreamOptions(retry=1.5))
    assert [] == client.read()
    assert (1.5, "18f-1") == (client.reader.retry, client.reader.id)


def test_one_that_comes_back_gets_what_it_missed_and_then_what_is_new(listen: Listen, channels: Channels) -> None:
    for number in range(3):
        channels.publish("news", f"{number}")
    client = listen(since={"news": Position(0x18F, 1)})
    channels.publish("news", "3")
    assert ["1", "2", "3"] == client.read()


def test_all_that_is_held_can_be_asked_for(listen: Listen, channels: Channels) -> None:
    for number in range(7):
        channels.publish("news", f"{number}")
    assert ["2", "3", "4", "5", "6"] == listen(since={"news": EARLIEST}).read()


def test_one_that_was_away_for_too_long_is_told_so(listen: Listen, channels: Channels) -> None:
    for number in range(9):
        channels.publish("news", f"{number}")
    client = listen(since={"news": Position(0x18F, 1)})
    assert ['{"channel":"news","position":"18f-4"}', "4", "5", "6", "7", "8"] == client.read()
    assert ("missed", "18f-4") == (client.events[0].event, client.events[0].id)


def test_one_that_says_something_unknown_is_told_that_it_has_missed_something(
    listen: Listen, channels: Channels
) -> None:
    channels.publish("news", "old")
    client = listen(lost=True)
    assert ['{"channel":"news","position":"18f-1"}'] == client.read()


def test_one_whose_position_is_of_a_storage_that_was_lost_is_told_so(listen: Listen, channels: Channels) -> None:
    channels.publish("news", "new")
    client = listen(since={"news": Position(0x18E, 100)})
    assert ['{"channel":"news","position":"18f-0"}', "new"] == client.read()


def test_the_id_of_several_channels_leads_back_to_all_of_them(listen: Listen, channels: Channels) -> None:
    client = listen("news", "sport")
    channels.publish("news", "n1")
    channels.publish("sport", "s1")
    channels.publish("news", "n2")
    assert ["n1", "s1", "n2"] == client.read()
    places = [read_positions(event.id, ["news", "sport"]) for event in client.events]
    assert [(1, 0), (1, 1), (2, 1)] == [(place["news"].number, place["sport"].number) for place in places]
    channels.publish("sport", "s2")
    again = listen("sport", "news", since=places[0])
    assert {"s1", "s2", "n2"} == set(again.read())


def test_a_client_without_an_event_of_several_channels_can_come_back(listen: Listen, channels: Channels) -> None:
    channels.publish("news", "old")
    client = listen("news", "sport")
    client.read()
    channels.publish("news", "meanwhile")
    assert ["meanwhile"] == listen("news", "sport", since=read_positions(client.reader.id, ["news", "sport"])).read()


def test_those_who_listen_alike_share_an_endpoint_and_what_is_said_of_them(listen: Listen) -> None:
    first, second, other = (listen(about=About(user, path="/events")) for user in ("ann", "ann", "bob"))
    assert first.connection.endpoint is second.connection.endpoint is other.connection.endpoint
    assert first.connection.about is second.connection.about is not other.connection.about
    assert first.connection.channels is other.connection.channels
    assert first.connection.state_of_endpoint is None
    assert ("ann", "/events", ("news",)) == (
        first.connection.user,
        first.connection.path,
        first.connection.channels,
    )


def test_a_caller_that_cannot_be_compared_is_nobodys_twin(listen: Listen) -> None:
    user: list[str] = []
    assert listen(about=About(user)).connection.user is user


def test_an_event_is_encoded_once_for_all(listen: Listen, channels: Channels) -> None:
    calls: list[Message] = []

    def encode(message: Message) -> str:
        calls.append(message)
        return "shown"

    wire = EventStreamWire.of((), encode)
    assert wire is EventStreamWire.of((), encode)
    assert b"id: 1-1\ndata: shown\n\n" == wire.encode(Message("news", Position(1, 1), "x"))
    assert 1 == len(calls)


def test_messages_are_counted(listen: Listen, channels: Channels, scene: UpgradedScene) -> None:
    clients = [listen(), listen(), listen("news", "sport")]
    channels.publish("news", "x")
    assert [["x"]] * 3 == [client.read() for client in clients]
    assert 3 == scene.tally[messages_field("sse out")]


# Heartbeats and ends


def test_a_quiet_stream_beats(listen: Listen, scene: UpgradedScene) -> None:
    client = listen()
    for _ in range(3):
        scene.pass_time(16)
    client.read()
    assert 3 == client.reader.comments


def test_a_client_that_leaves_is_noticed_at_once(listen: Listen, channels: Channels, scene: UpgradedScene) -> None:
    ends: list[str] = []
    client = listen(ended=lambda connection, reason: ends.append(f"{connection.user} {reason}"), about=About("ann"))
    client.socket.close()
    scene.until(lambda: ends)
    assert (["ann client"], 0) == (ends, channels.subscribers("news"))


def test_what_a_client_says_is_thrown_away(listen: Listen, channels: Channels, scene: UpgradedScene) -> None:
    client = listen()
    client.socket.send(b"GET / HTTP/1.1\r\n\r\n")
    scene.turn()
    channels.publish("news", "still here")
    assert ["still here"] == client.read()


def test_one_that_talks_without_end_is_sent_away(listen: Listen, scene: UpgradedScene) -> None:
    ends: list[str] = []
    client = listen(ended=lambda _, reason: ends.append(reason))
    client.socket.setblocking(False)

    def talk() -> bool:
        with contextlib.suppress(OSError):
            client.socket.send(b"x" * 200_000)
        return bool(ends)

    scene.until(talk)
    assert ["invalid"] == ends


def test_a_stream_ends_with_the_credentials_of_its_caller(listen: Listen, scene: UpgradedScene) -> None:
    client = listen(about=About("ann", Identity("ann", "t", time.time() - 1)))
    scene.pass_time(1)
    scene.until(lambda: not client.connection.alive)
    assert b": 1008 the authorization has expired\n\n" in client.socket.recv(4096)


def test_who_is_kicked_hears_why(listen: Listen, scene: UpgradedScene, channels: Channels) -> None:
    client = listen()
    client.connection.kick(1008, "enough")
    client.connection.kick(1008, "twice")
    channels.publish("news", "too late")
    assert client.socket.recv(4096).endswith(b"\n\n: 1008 enough\n\n")
    scene.until(lambda: client.has_ended)
    assert (0, False) == (channels.subscribers("news"), client.connection.alive)


def test_when_the_worker_leaves_the_client_is_told_when_to_come_back(
    listen: Listen, channels: Channels, scene: UpgradedScene
) -> None:
    ends: list[str] = []
    client = listen(ended=lambda _, reason: ends.append(reason))
    scene.lot.leaving_window = 10.0
    client.connection.drain(20.0)
    channels.publish("news", "still served")
    assert ["still served"] == client.read()
    scene.pass_time(11)
    scene.until(lambda: not client.connection.alive)
    assert [] == client.read()
    assert 1.5 <= client.reader.retry <= 4.5  # type: ignore[operator]
    assert ["drain"] == ends


# Slow clients


def fill(client: Client, channels: Channels, size: int = 30_000) -> int:
    """Publish until something waits; how many messages that were."""
    count = 0
    while not client.connection.queued:
        channels.publish("news", f"{count} ".ljust(size, "."))
        count += 1
    return count


def test_a_slow_client_gets_everything_in_order(listen: Listen, channels: Channels, scene: UpgradedScene) -> None:
    client = listen(buffer=8192)
    count = fill(client, channels)
    channels.publish("news", "last")
    got: list[str] = []

    def all_came() -> bool:
        got.extend(text.split(" ")[0] for text in client.read())
        return len(got) > count

    scene.until(all_came)
    assert [*map(str, range(count)), "last"] == got
    assert (None, 0) == (client.connection.underway, scene.tally[scoreboard.QUEUED_BYTES])


def test_one_that_is_too_slow_is_sent_away_and_counted(
    listen: Listen, channels: Channels, scene: UpgradedScene
) -> None:
    client = listen(buffer=8192, options=EventStreamOptions(queue_bytes=100_000))
    fill(client, channels)
    for _ in range(5):
        channels.publish("news", "." * 30_000)
    assert not client.connection.alive
    assert 1 == scene.tally[slow_field("disconnected")]


def test_one_that_is_too_slow_may_lose_the_oldest_instead(
    listen: Listen, channels: Channels, scene: UpgradedScene
) -> None:
    options = EventStreamOptions(queue_bytes=100_000, overflow="drop-oldest")
    client = listen(buffer=8192, options=options)
    fill(client, channels)
    for number in range(10):
        channels.publish("news", f"then {number}".ljust(30_000, "."))
    texts: list[str] = []

    def last_came() -> bool:
        texts.extend(client.read())
        return bool(texts) and texts[-1].startswith("then 9")

    scene.until(last_came)
    assert not [text for text in texts if text.startswith("then 2")]
    assert scene.tally[slow_field("dropped")] >= 1


def test_a_client_that_has_something_to_read_gets_no_heartbeat(
    listen: Listen, channels: Channels, scene: UpgradedScene
) -> None:
    client = listen(buffer=8192)
    fill(client, channels)
    waits = client.connection.queued
    scene.pass_time(20)
    assert waits == client.connection.queued


def test_last_words_come_behind_all_that_waits(listen: Listen, channels: Channels, scene: UpgradedScene) -> None:
    client = listen(buffer=8192)
    count = fill(client, channels)
    client.connection.drain(1.0)
    scene.pass_time(2)
    assert client.connection.alive
    got: list[str] = []

    def ended() -> bool:
        got.extend(client.read())
        return client.has_ended

    scene.until(ended)
    assert (count, True) == (len(got), client.reader.retry is not None)


def test_one_that_does_not_take_its_last_words_is_cut(listen: Listen, channels: Channels, scene: UpgradedScene) -> None:
    client = listen(buffer=8192)
    fill(client, channels)
    client.connection.kick()
    assert client.connection.alive
    scene.pass_time(20)
    assert not client.connection.alive


def test_all_of_a_broadcast_that_takes_longer_than_a_slice_is_written(
    listen: Listen, channels: Channels, scene: UpgradedScene
) -> None:
    clients = [listen() for _ in range(70)]
    connections = [client.connection for client in clients]
    wire = connections[0].endpoint.wire
    message = Message("news", Position(0x18F, 1), "x")
    first, calls = 0, 0
    while first < len(connections):
        first = wire.write(connections, first, wire.encode(message), message, 0.0)
        calls += 1
    assert [["x"]] * 70 == [client.read() for client in clients]
    assert calls >= 2
    assert 70 == wire.write(connections, 70, b"", message, 0.0)


@pytest.mark.parametrize("names", [("news",), ("news", "sport")])
def test_what_was_lost_on_the_way_is_told(listen: Listen, names: tuple[str, ...], scene: UpgradedScene) -> None:
    client = listen(*names)
    client.connection.endpoint.wire.missed(client.connection, "news", Position(0x18F, 7))
    assert ['{"channel":"news","position":"18f-7"}'] == client.read()
    assert 7 == read_positions(client.events[0].id, names)["news"].number


def test_a_stream_that_cannot_begin_is_closed(channels: Channels, scene: UpgradedScene) -> None:
    endpoint = EventStream(channels, ("no good name",), options=OPTIONS)
    connection, _ = scene.upgraded(endpoint)
    with pytest.raises(ValueError, match="no name of a channel"):
        endpoint.begin(connection)
    assert not connection.alive


# Much that was missed


@pytest.mark.parametrize("names", [("news",), ("sport", "news")])
def test_much_that_was_missed_comes_page_by_page(
    listen: Listen, broker: MemoryBroker, channels: Channels, scene: UpgradedScene, names: tuple[str, ...]
) -> None:
    for number in range(5):
        channels.publish("news", f"{number} ".ljust(200_000, "."))
    client = listen(*names, since=dict.fromkeys(names, EARLIEST), buffer=8192)
    assert (0, True) == (channels.subscribers("news"), client.connection.queued < 600_000)
    channels.publish("sport", "meanwhile")
    got: list[str] = []

    def up_to_date() -> bool:
        got.extend(text.split(" ")[0] for text in client.read())
        return bool(channels.subscribers("news"))

    scene.until(up_to_date)
    channels.publish("news", "new")
    scene.until(lambda: up_to_date() and "new" in got)
    assert ["0", "1", "2", "3", "4", "new"] == [text for text in got if text != "meanwhile"]
    assert (len(names) - 1, None) == (got.count("meanwhile"), client.connection.underway)
    assert 6 == read_positions(client.reader.id, names)["news"].number


def test_one_that_reads_fast_gets_all_pages_at_once(listen: Listen, channels: Channels) -> None:
    for _ in range(5):
        channels.publish("news", "." * 60_000)
    client = listen(since={"news": EARLIEST}, buffer=1 << 21)
    assert 1 == channels.subscribers("news")
    assert 5 == len(client.read())


def test_one_that_leaves_between_two_pages_is_forgotten(
    listen: Listen, channels: Channels, scene: UpgradedScene
) -> None:
    for _ in range(5):
        channels.publish("news", "." * 200_000)
    client = listen(since={"news": EARLIEST}, buffer=8192)
    client.socket.close()
    scene.until(lambda: not client.connection.alive)
    assert 0 == channels.subscribers("news")


def test_one_that_is_sent_away_between_two_pages_gets_no_more(
    listen: Listen, channels: Channels, scene: UpgradedScene
) -> None:
    for _ in range(5):
        channels.publish("news", "." * 200_000)
    client = listen(since={"news": EARLIEST}, buffer=8192)
    client.connection.kick()
    got: list[str] = []

    def ended() -> bool:
        got.extend(client.read())
        return client.has_ended

    scene.until(ended)
    assert (True, 0) == (len(got) < 4, channels.subscribers("news"))


def test_when_the_channels_fail_between_two_pages_the_stream_ends(
    listen: Listen,
    channels: Channels,
    broker: MemoryBroker,
    scene: UpgradedScene,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(5):
        channels.publish("news", "." * 200_000)
    ends: list[str] = []
    client = listen(since={"news": EARLIEST}, buffer=8192, ended=lambda _, reason: ends.append(reason))

    def fail(*_: Any, **__: Any) -> None:
        raise ChannelsUnavailable("the folder is gone")

    monkeypatch.setattr(broker, "history", fail)
    scene.until(lambda: client.read() and ends)
    assert ["error"] == ends
    assert "cannot read on" in caplog.text


def test_what_is_published_while_the_history_is_encoded_comes_after_it(
    scene: UpgradedScene, channels: Channels
) -> None:
    def encode(message: Message) -> str:
        gevent.sleep(0.002)
        return str(message.data)

    endpoint = EventStream.of(channels, ("news",), options=OPTIONS, encode=encode)
    for number in range(3):
        channels.publish("news", f"old {number}")
    publishing = [gevent.spawn_later(0.003, channels.publish, "news", "new")]
    client = Client(*scene.upgraded(endpoint, begin=lambda connection: endpoint.begin(connection, {"news": EARLIEST})))
    gevent.joinall(publishing)
    scene.turn()
    assert ["old 0", "old 1", "old 2", "new"] == client.read()
    assert "18f-4" == client.reader.id
