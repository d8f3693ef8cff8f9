"""Who listens to a channel in one process gets each of its messages once, in order, at whatever moment it joins or leaves."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longconn.channels.errors import (
    ChannelError,
    ChannelForbidden,
    ChannelNameError,
    ChannelsUnavailable,
    MessageRefused,
    PositionError,
)
from longconn.channels.hub import Channels, default_channels
from longconn.channels.lmdb_broker import LmdbBroker
from longconn.channels.ports import History, HistoryLimits, Message, News, Position
from longconn.settings import Settings
from tests.support.broker_conformance import wait_until
from tests.support.examples import many
from tests.support.memory_broker import MemoryBroker

EPOCH = 0x18F


class Ear:
    """A subscriber: what it has heard."""

    def __init__(self) -> None:
        self.heard: list[Any] = []


class ListWire:
    """Writes to ears, `at_once` of them in one call; what is done `between` two calls may change who listens."""

    def __init__(self, at_once: int = 1_000_000) -> None:
        self.at_once = at_once
        self.encoded: list[int] = []

    def encode(self, message: Message) -> Any:
        self.encoded.append(message.position.number)
        return message.data

    def write(self, subscribers: Sequence[Ear], first: int, encoded: Any, message: Message, until: float) -> int:
        part = subscribers[first : first + self.at_once]
        for ear in part:
            ear.heard.append(encoded)
        return first + len(part)

    def missed(self, subscriber: Ear, channel: str, position: Position) -> None:
        subscriber.heard.append(("missed", channel, str(position)))


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(EPOCH)


@pytest.fixture
def hub(broker: MemoryBroker) -> Channels:
    return Channels(broker)


# Publishing


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        ("text", "text"),
        (b"\x00bytes", b"\x00bytes"),
        ({"a": [1, "é", None]}, '{"a":[1,"é",null]}'),
        ([True, 1.5], "[true,1.5]"),
        (7, "7"),
        (None, "null"),
    ],
)
def test_what_is_published_is_text_or_bytes_or_compact_json(hub: Channels, data: Any, sent: str | bytes) -> None:
    assert Position(EPOCH, 1) == hub.publish("room", data)
    assert (sent,) == tuple(message.data for message in hub.history("room").messages)


@pytest.mark.parametrize("data", [object(), {"a": {1}}, float("nan"), {(1, 2): 3}], ids=repr)
def test_what_json_does_not_have_is_refused(hub: Channels, data: Any) -> None:
    with pytest.raises(MessageRefused, match="text, bytes or what JSON has"):
        hub.publish("room", data)


def test_a_message_has_its_event_its_key_and_its_time(hub: Channels) -> None:
    before = time.time()
    hub.publish("prices", "1", event="price", key="gold")
    (message,) = hub.history("prices").messages
    assert ("price", "gold") == (message.event, message.key)
    assert before <= message.at <= time.time()


@pytest.mark.parametrize("event", ["two\nlines", "\0", "x" * 201], ids=repr)
def test_an_event_that_would_break_a_line_is_refused(hub: Channels, event: str) -> None:
    with pytest.raises(ChannelNameError, match="event of a message"):
        hub.publish("room", "x", event=event)


def test_no_method_takes_a_name_that_is_none(hub: Channels) -> None:
    for call in (
        lambda: hub.publish("a b", "x"),
        lambda: hub.history("a b"),
        lambda: hub.subscribe(Ear(), "a b", ListWire()),
        lambda: hub.may(None, "a b", "publish"),
    ):
        with pytest.raises(ChannelNameError, match="no name of a channel"):
            call()


@pytest.mark.parametrize("since", ["x", "12", "1-", "-1", "g-1", "1-1-1", "1-²"])
def test_a_position_that_is_none_is_refused(hub: Channels, since: str) -> None:
    with pytest.raises(PositionError, match="looks like 18f2a3b4c5-17"):
        hub.history("room", since)
    with pytest.raises(PositionError):
        hub.subscribe(Ear(), "room", ListWire(), since=since)
    assert {} == hub.counts()


def test_a_number_of_messages_that_is_none_is_refused(hub: Channels) -> None:
    with pytest.raises(ChannelError, match="most=0"):
        hub.history("room", most=0)


# What channels keep


def test_the_first_pattern_that_fits_says_what_a_channel_keeps() -> None:
    few, none = HistoryLimits(count=2), HistoryLimits(count=0)
    hub = Channels(MemoryBroker(), history_of={"user:*": none, "*:7": few})
    assert [none, few, HistoryLimits()] == [hub.limits(name) for name in ("user:7", "room:7", "room:8")]


def test_a_function_may_say_what_a_channel_keeps() -> None:
    few = HistoryLimits(count=2)
    hub = Channels(MemoryBroker(), history_of=lambda name: few if name == "a" else None)
    assert [few, HistoryLimits()] == [hub.limits(name) for name in ("a", "b")]


# Listening


def test_all_who_listen_get_a_message_that_was_encoded_once(hub: Channels) -> None:
    wire, ears = ListWire(), [Ear() for _ in range(3)]
    for ear in ears:
        assert History((), True, Position(EPOCH, 0)) == hub.subscribe(ear, "room", wire)
    hub.publish("room", "hello")
    hub.publish("other", "not for them")
    assert [["hello"]] * 3 == [ear.heard for ear in ears]
    assert [1] == wire.encoded


def test_each_kind_of_subscriber_has_its_own_encoding(hub: Channels) -> None:
    class Loud(ListWire):
        def encode(self, message: Message) -> Any:
            return str(message.data).upper()

    quiet, loud = Ear(), Ear()
    hub.subscribe(quiet, "room", ListWire())
    hub.subscribe(loud, "room", Loud())
    hub.publish("room", "hello")
    assert (["hello"], ["HELLO"]) == (quiet.heard, loud.heard)


def test_a_message_that_nobody_needs_is_not_encoded(hub: Channels, broker: MemoryBroker) -> None:
    wire = ListWire()
    stays, leaves = Ear(), Ear()
    hub.subscribe(leaves, "room", wire)
    broker.quiet = True
    hub.publish("room", "old")
    hub.subscribe(stays, "room", wire)
    hub.unsubscribe(leaves, "room")
    broker.tell()
    assert [] == wire.encoded


def test_nothing_comes_after_leaving(hub: Channels) -> None:
    wire, stays, leaves = ListWire(), Ear(), Ear()
    for ear in (stays, leaves):
        hub.subscribe(ear, "room", wire)
    assert hub.unsubscribe(leaves, "room")
    assert not hub.unsubscribe(leaves, "room")
    assert not hub.unsubscribe(leaves, "nowhere")
    hub.publish("room", "x")
    assert (["x"], []) == (stays.heard, leaves.heard)


def test_it_is_counted_who_listens(hub: Channels) -> None:
    ears = [Ear(), Ear()]
    for ear in ears:
        hub.subscribe(ear, "a", ListWire())
    hub.subscribe(ears[0], "b", ListWire())
    assert (2, 1, 0) == (hub.subscribers("a"), hub.subscribers("b"), hub.subscribers("c"))
    assert {"a": 2, "b": 1} == hub.counts()
    hub.unsubscribe(ears[0], "b")
    assert {"a": 2} == hub.counts()


# Coming back


def test_whoever_comes_back_gets_what_it_missed_and_then_the_rest_once(hub: Channels, broker: MemoryBroker) -> None:
    first = hub.publish("room", "1")
    hub.publish("room", "2")
    other, ear, wire = Ear(), Ear(), ListWire()
    hub.subscribe(other, "room", wire)
    broker.quiet = True  # this worker's pump has not yet seen what comes now
    hub.publish("room", "3")
    history = hub.subscribe(ear, "room", wire, since=str(first))
    ear.heard.extend(message.data for message in history.messages)
    broker.tell()
    broker.quiet = False
    hub.publish("room", "4")
    assert (["2", "3", "4"], True) == (ear.heard, history.complete)
    assert ["3", "4"] == other.heard


@pytest.mark.parametrize("since", ["", "0-0", Position(0, 0)])
def test_all_that_is_held_can_be_asked_for(hub: Channels, since: Position | str) -> None:
    hub.publish("room", "1")
    history = hub.subscribe(Ear(), "room", ListWire(), since=since)
    assert (["1"], True) == ([message.data for message in history.messages], history.complete)


def test_whoever_asks_for_what_is_gone_is_told_so() -> None:
    hub = Channels(MemoryBroker(EPOCH), history=HistoryLimits(count=1))
    first = hub.publish("room", "1")
    for data in "23":
        hub.publish("room", data)
    history = hub.subscribe(Ear(), "room", ListWire(), since=first)
    assert (["3"], False) == ([message.data for message in history.messages], history.complete)


def test_what_was_missed_can_be_sent_before_anything_new_is_written(hub: Channels) -> None:
    hub.publish("room", "1")
    ear = Ear()
    hub.subscribe(
        ear,
        "room",
        ListWire(),
        since="",
        before=lambda history: ear.heard.extend(message.data for message in history.messages),
    )
    hub.publish("room", "2")
    assert ["1", "2"] == ear.heard


def test_whoever_joins_again_begins_again(hub: Channels) -> None:
    ear, wire = Ear(), ListWire()
    hub.subscribe(ear, "room", wire)
    hub.subscribe(ear, "room", wire)
    hub.publish("room", "x")
    assert (["x"], 1) == (ear.heard, hub.subscribers("room"))


ears = st.integers(0, 2)
steps = st.lists(
    st.one_of(
        st.just(("publish",)),
        st.just(("pump",)),
        st.tuples(st.just("join"), ears),
        st.tuples(st.just("return"), ears, st.integers(0, 5)),
        st.tuples(st.just("leave"), ears),
    ),
    max_size=40,
)


@settings(max_examples=many(300))
@given(steps, st.integers(1, 2))
def test_at_whatever_moment_one_joins_it_gets_every_later_number_once(
    steps: list[tuple[Any, ...]], at_once: int
) -> None:
    """`pump` is when this process reads what has been published, anywhere, since it did last."""
    broker = MemoryBroker(EPOCH)
    hub, wire = Channels(broker), ListWire(at_once)
    broker.quiet = True
    listening: dict[int, tuple[Ear, list[int]]] = {}
    published = 0
    for step in steps:
        match step:
            case ("publish",):
                published += 1
                hub.publish("room", published)
            case ("pump",):
                broker.tell()
                for ear, expected in listening.values():
                    expected.extend(range(expected[-1] + 1, published + 1))
                    assert expected[1:] == [int(data) for data in ear.heard]
            case ("join", number):
                _leave(hub, listening, number)
                listening[number] = (Ear(), [published])
                hub.subscribe(listening[number][0], "room", wire)
            case ("return", number, missed):
                _leave(hub, listening, number)
                seen = max(0, published - missed)
                ear = Ear()
                listening[number] = (ear, list(range(seen, published + 1)))
                history = hub.subscribe(ear, "room", wire, since=Position(EPOCH, seen) if seen else "")
                ear.heard.extend(message.data for message in history.messages)
            case ("leave", number):
                _leave(hub, listening, number)
        assert len(listening) == hub.subscribers("room")


def _leave(hub: Channels, listening: dict[int, tuple[Ear, list[int]]], number: int) -> None:
    if number in listening:
        ear, expected = listening.pop(number)
        assert hub.unsubscribe(ear, "room")
        assert expected[1:] == [int(data) for data in ear.heard]


# In slices


def test_whoever_joins_or_leaves_in_the_middle_of_a_broadcast_gets_what_it_should(
    hub: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = ListWire(at_once=2)
    ears = [Ear() for _ in range(6)]
    late = Ear()
    for ear in ears:
        hub.subscribe(ear, "room", wire)
    rests = []

    def rest(seconds: float) -> None:
        rests.append(seconds)
        if len(rests) == 1:
            hub.unsubscribe(ears[0], "room")  # has it
            hub.unsubscribe(ears[3], "room")  # would get it next
            hub.unsubscribe(ears[4], "room")
            hub.subscribe(ears[4], "room", wire)  # begins again, after it
            hub.subscribe(late, "room", wire)

    monkeypatch.setattr("longconn.channels.hub.time.sleep", rest)
    hub.publish("room", "1")
    assert [["1"], ["1"], ["1"], [], [], ["1"]] == [ear.heard for ear in ears]
    hub.publish("room", "2")
    assert ["2"] == late.heard == ears[4].heard
    assert [] == ears[3].heard


def test_a_subscriber_that_fails_does_not_keep_the_message_from_another_kind(
    hub: Channels, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(ListWire):
        def encode(self, message: Message) -> Any:
            raise RuntimeError("no such letter")

    ear = Ear()
    hub.subscribe(Ear(), "room", Broken())
    hub.subscribe(ear, "room", ListWire())
    with caplog.at_level(logging.ERROR):
        hub.publish("room", "x")
    assert ["x"] == ear.heard
    assert ["a message of channel room did not reach all who listen"] == [record.message for record in caplog.records]


class Timeout(BaseException):
    """As gevent's."""


def test_whatever_an_encoding_raises_the_pump_goes_on(on_host: Channels, caplog: pytest.LogCaptureFixture) -> None:
    class Late(ListWire):
        def encode(self, message: Message) -> Any:
            raise Timeout

    ear = Ear()
    on_host.subscribe(Ear(), "slow", Late())
    on_host.subscribe(ear, "room", ListWire())
    on_host.publish("slow", "x")
    on_host.publish("room", "y")
    assert wait_until(lambda: ear.heard == ["y"])
    assert "a message of channel slow did not reach all who listen" in caplog.text


def test_a_pump_that_was_ended_is_begun_again_where_it_was(on_host: Channels) -> None:
    class Ending(ListWire):
        def encode(self, message: Message) -> Any:
            raise SystemExit

    ear = Ear()
    on_host.subscribe(Ear(), "end", Ending())
    on_host.subscribe(ear, "room", ListWire())
    on_host.publish("end", "x")
    assert wait_until(lambda: on_host._following is not None and on_host._following.ended)
    on_host.publish("room", "y")
    on_host.start()
    assert wait_until(lambda: ear.heard == ["y"])


def test_one_that_joins_again_during_a_broadcast_gets_no_message_twice(
    hub: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = ListWire(at_once=1)
    ears = [Ear() for _ in range(3)]
    for ear in ears:
        hub.subscribe(ear, "room", wire)

    def rest(_seconds: float) -> None:
        for ear in ears:
            history = hub.subscribe(ear, "room", wire, since="")
            ear.heard[:] = [message.data for message in history.messages]

    monkeypatch.setattr("longconn.channels.hub.time.sleep", rest)
    hub.publish("room", "1")
    assert [["1"]] * 3 == [ear.heard for ear in ears]


def test_one_that_joins_again_by_another_wire_is_there_once(hub: Channels) -> None:
    ear = Ear()
    hub.subscribe(ear, "room", ListWire())
    hub.subscribe(ear, "room", ListWire())
    hub.publish("room", "1")
    assert (["1"], 1) == (ear.heard, hub.subscribers("room"))


def test_what_is_published_while_one_is_still_sent_what_it_missed_comes_behind_it(hub: Channels) -> None:
    hub.publish("room", "1")
    ear = Ear()

    def send(history: History) -> None:
        if len(ear.heard) < 3:  # an encoding that waits, while others publish
            hub.publish("room", str(len(ear.heard) + 2))
        ear.heard.extend(message.data for message in history.messages)

    history = hub.subscribe(ear, "room", ListWire(), since="", before=send)
    hub.publish("room", "5")
    assert ["1", "2", "3", "4", "5"] == ear.heard
    assert ["1", "2", "3", "4"] == [message.data for message in history.messages]
    assert (True, 4) == (history.complete, history.position.number)


def test_one_that_cannot_be_sent_what_it_missed_does_not_listen(hub: Channels) -> None:
    def fail(history: History) -> None:
        raise Timeout

    for since in (None, ""):
        with pytest.raises(Timeout):
            hub.subscribe(Ear(), "room", ListWire(), since=since, before=fail)
    assert {} == hub.counts()


# What was lost


class Overrun(MemoryBroker):
    """Its journal forgets what was published quietly."""

    def news(self, cursor: int, *, most: int = 1000) -> News:
        news = super().news(cursor, most=most)
        if news.messages and self.forgets:
            self.forgets = False
            return News((), news.cursor, missed=True)
        return news

    forgets = False


def test_what_the_journal_forgot_comes_from_the_history() -> None:
    broker = Overrun(EPOCH)
    hub = Channels(broker)
    ear = Ear()
    hub.subscribe(ear, "room", ListWire())
    hub.publish("room", "1")
    broker.quiet = True
    for data in "234":
        hub.publish("room", data)
    broker.forgets, broker.quiet = True, False
    broker.tell()
    hub.publish("room", "5")
    assert ["1", "2", "3", "4", "5"] == ear.heard


def test_what_the_history_does_not_hold_either_is_told_of() -> None:
    broker = Overrun(EPOCH)
    hub = Channels(broker, history=HistoryLimits(count=2))
    early, late = Ear(), Ear()
    wire = ListWire()
    hub.subscribe(early, "room", wire)
    broker.quiet = True
    for data in "1234":
        hub.publish("room", data)
    hub.subscribe(late, "room", wire)
    broker.forgets = True
    broker.tell()
    broker.quiet = False
    hub.publish("room", "5")
    assert [("missed", "room", "18f-2"), "3", "4", "5"] == early.heard
    assert ["5"] == late.heard


def test_a_storage_that_began_anew_is_told_of_and_listened_to() -> None:
    broker = Overrun(EPOCH)
    hub = Channels(broker)
    ear = Ear()
    hub.subscribe(ear, "room", ListWire())
    for data in "abc":
        hub.publish("room", data)
    broker.epoch += 1
    broker.numbers.clear()
    broker.histories.clear()
    broker.forgets = True
    hub.publish("room", "new")
    hub.publish("room", "next")
    assert ["a", "b", "c", ("missed", "room", "190-0"), "new", "next"] == ear.heard


def test_who_begins_in_the_new_life_before_it_was_noticed_gets_nothing_twice() -> None:
    broker = Overrun(EPOCH)
    hub, wire = Channels(broker), ListWire()
    old, returned, late = Ear(), Ear(), Ear()
    hub.subscribe(old, "room", wire)
    for data in "abc":
        hub.publish("room", data)
    broker.epoch += 1
    broker.numbers.clear()
    broker.histories.clear()
    broker.quiet = True
    for data in ("n1", "n2"):
        hub.publish("room", data)
    history = hub.subscribe(returned, "room", wire, since="")
    returned.heard.extend(message.data for message in history.messages)
    hub.subscribe(late, "room", wire)
    broker.quiet, broker.forgets = False, True
    hub.publish("room", "n3")
    hub.publish("room", "n4")
    assert ["a", "b", "c", ("missed", "room", "190-0"), "n1", "n2", "n3", "n4"] == old.heard
    assert (["n1", "n2", "n3", "n4"], ["n3", "n4"]) == (returned.heard, late.heard)


def test_a_storage_that_does_not_answer_is_told_of_once(
    hub: Channels, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_news(cursor: int) -> News:
        raise ChannelsUnavailable("gone")

    ear = Ear()
    hub.subscribe(ear, "room", ListWire())
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(broker, "news", no_news)
        broker.tell()
        broker.tell()
    assert ["no messages of any channel for now: gone"] == [record.message for record in caplog.records]
    hub.publish("room", "back again")
    assert ["back again"] == ear.heard


# Who may


def test_the_first_rule_whose_pattern_fits_decides() -> None:
    hub = Channels(MemoryBroker(), authorize=lambda user, channel, action: action != "publish")

    @hub.authorizes("user:*")
    def own(user: Any, channel: str, action: str) -> bool:
        return channel == f"user:{user}"

    @hub.authorizes("*")
    def not_reached(user: Any, channel: str, action: str) -> bool:
        return bool(channel != "closed")

    hub.may("ann", "user:ann", "publish")
    hub.may(None, "open", "publish")
    for user, channel in (("bob", "user:ann"), ("ann", "closed")):
        with pytest.raises(ChannelForbidden) as refused:
            hub.may(user, channel, "subscribe")
        assert (403, user, channel, "subscribe") == (
            refused.value.status,
            refused.value.user,
            refused.value.channel,
            refused.value.action,
        )


def test_where_no_rule_fits_the_general_one_decides_and_without_it_all_is_allowed() -> None:
    strict = Channels(MemoryBroker(), authorize=lambda user, channel, action: action != "publish")
    strict.may(None, "room", "history")
    with pytest.raises(ChannelForbidden, match="not allowed to publish on channel 'room'"):
        strict.may(None, "room", "publish")
    Channels(MemoryBroker()).may(None, "room", "publish")


def test_what_nobody_can_do_with_a_channel_is_refused(hub: Channels) -> None:
    with pytest.raises(ChannelNameError, match="'read' is nothing to do with a channel: subscribe, publish, history"):
        hub.may(None, "room", "read")


# Ending


def test_one_that_was_closed_hears_nothing_and_can_begin_anew(hub: Channels) -> None:
    ear, wire = Ear(), ListWire()
    hub.subscribe(ear, "room", wire)
    hub.close()
    hub.publish("room", "1")
    assert ([], {}) == (ear.heard, hub.counts())
    hub.subscribe(ear, "room", wire)
    hub.publish("room", "2")
    assert ["2"] == ear.heard


# With the broker of a host


@pytest.fixture
def on_host(tmp_path: Path) -> Iterator[Channels]:
    made = Channels(lambda: LmdbBroker(tmp_path / "channels"))
    yield made
    made.close()


def test_messages_of_one_process_come_to_all_hubs_of_the_host(on_host: Channels, tmp_path: Path) -> None:
    ear = Ear()
    on_host.subscribe(ear, "room", ListWire())
    other = Channels(LmdbBroker(tmp_path / "channels"))
    for number in range(100):
        other.publish("room", str(number))
    until = time.monotonic() + 5
    while len(ear.heard) < 100 and time.monotonic() < until:
        time.sleep(0.001)
    assert [str(number) for number in range(100)] == ear.heard
    other.close()


def test_an_application_has_channels_of_its_own_where_the_settings_say(tmp_path: Path) -> None:
    settings = Settings(channels=str(tmp_path / "here"), channels_size=4 << 20)
    hub = default_channels("app", "/srv/app", settings=settings, history=HistoryLimits(count=1))
    assert not (tmp_path / "here").exists()
    hub.publish("room", "x")
    assert (tmp_path / "here" / "messages.1").exists()
    assert 1 == hub.limits("room").count
    hub.close()


def test_without_a_setting_the_application_gives_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LONGCONN_CHANNELS", raising=False)
    one, other = (default_channels("shop.app", path).broker for path in ("/srv/a", "/srv/b"))
    assert isinstance(one, LmdbBroker)
    assert isinstance(other, LmdbBroker)
    assert "-shop-app-" in one.folder.name
    assert one.folder != other.folder
