"""The tests that every broker of channels has to pass, whatever carries its messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from longconn.channels.errors import MessageRefused
from longconn.channels.ports import Broker, History, HistoryLimits, Message, Position

__all__ = ["LIMITS", "BrokerConformance", "numbers"]

LIMITS = HistoryLimits(count=10, size=10_000, age=300.0)
NOW = 1_700_000_000.0
PATIENCE = 5.0


def numbers(messages: tuple[Message, ...]) -> list[int]:
    """The numbers of messages, in their order."""
    return [message.position.number for message in messages]


class BrokerConformance:
    """Derive from it, and say how a broker is opened. `broker` is one with nothing in it; `another` meets `broker` at the same
    channels, as that of another process would."""

    @pytest.fixture
    def broker(self) -> Iterator[Broker]:
        raise NotImplementedError(f"{type(self).__name__} says how a broker is opened: a fixture `broker`")

    @pytest.fixture
    def another(self, broker: Broker) -> Iterator[Broker]:
        raise NotImplementedError(f"{type(self).__name__} says how a second one is opened: a fixture `another`")

    # Messages

    def test_a_message_is_what_was_published(self, broker: Broker) -> None:
        message = broker.publish("room", "héllo\n", event="said", key="7", history=LIMITS, at=NOW)
        assert Message("room", Position(broker.epoch, 1), "héllo\n", "said", "7", NOW) == message
        assert (message,) == broker.history("room", None, now=NOW).messages

    @pytest.mark.parametrize(
        "data",
        ["", b"", b"\0\xff" * 2_000, "é" * 3_000, "x" * 4_080, b"y" * 4_081, "z" * 30_000],
        ids=lambda data: str(len(data)),
    )
    def test_data_of_any_size_and_kind_comes_back_as_it_was(self, broker: Broker, data: str | bytes) -> None:
        limits = HistoryLimits(count=10, size=1_000_000)
        start = broker.cursor()
        broker.publish("room", "before", history=limits, at=NOW)
        broker.publish("room", data, history=limits, at=NOW)
        broker.publish("room", "behind", history=limits, at=NOW)
        expected = ["before", data, "behind"]
        assert expected == [message.data for message in broker.history("room", None, now=NOW).messages]
        assert expected == [message.data for message in broker.news(start).messages]

    def test_text_that_no_client_could_get_is_refused(self, broker: Broker) -> None:
        with pytest.raises(MessageRefused, match="cannot be sent"):
            broker.publish("room", "half a pair: \ud800", history=LIMITS, at=NOW)
        assert Position(broker.epoch, 0) == broker.position("room")

    def test_messages_of_a_channel_are_counted_from_one_without_gaps(self, broker: Broker, another: Broker) -> None:
        positions = [
            which.publish(channel, "x", history=LIMITS, at=NOW).position
            for which in (broker, another, broker)
            for channel in ("a", "b", "a")
        ]
        epoch = broker.epoch
        assert [(epoch, number) for number in (1, 1, 2, 3, 2, 4, 5, 3, 6)] == positions
        assert Position(epoch, 6) == another.position("a")

    # News

    def test_news_are_what_came_after_the_cursor_of_all_channels_in_order(
        self, broker: Broker, another: Broker
    ) -> None:
        broker.publish("a", "before", history=LIMITS, at=NOW)
        cursor = another.cursor()
        assert () == another.news(cursor).messages
        published = [broker.publish(channel, "x", history=LIMITS, at=NOW) for channel in "abca"]
        news = another.news(cursor)
        assert (tuple(published), False) == (news.messages, news.missed)
        assert () == another.news(news.cursor).messages

    def test_news_can_be_had_in_parts(self, broker: Broker) -> None:
        cursor = broker.cursor()
        for _ in range(5):
            broker.publish("a", "x", history=LIMITS, at=NOW)
        parts = []
        while (news := broker.news(cursor, most=2)).messages:
            parts.append(numbers(news.messages))
            cursor = news.cursor
        assert [[1, 2], [3, 4], [5]] == parts

    def test_a_channel_that_keeps_no_history_has_news_all_the_same(self, broker: Broker) -> None:
        cursor = broker.cursor()
        broker.publish("a", "x", history=HistoryLimits(count=0), at=NOW)
        assert [1] == numbers(broker.news(cursor).messages)
        assert History((), True, Position(broker.epoch, 1)) == broker.history("a", None, now=NOW)

    # History

    def test_the_history_of_a_channel_nobody_published_on_is_empty(self, broker: Broker) -> None:
        beginning = Position(broker.epoch, 0)
        assert History((), True, beginning) == broker.history("a", None, now=NOW)
        assert History((), True, beginning) == broker.history("a", beginning, now=NOW)
        assert beginning == broker.position("a")

    def test_whoever_comes_back_gets_what_it_missed(self, broker: Broker, another: Broker) -> None:
        positions = [broker.publish("a", "x", history=LIMITS, at=NOW).position for _ in range(5)]
        history = another.history("a", positions[2], now=NOW)
        assert ([4, 5], True, positions[4]) == (numbers(history.messages), history.complete, history.position)

    def test_whoever_missed_nothing_is_told_so(self, broker: Broker) -> None:
        position = broker.publish("a", "x", history=LIMITS, at=NOW).position
        assert History((), True, position) == broker.history("a", position, now=NOW)

    def test_a_history_keeps_so_many_messages_and_says_when_some_are_missing(self, broker: Broker) -> None:
        for _ in range(15):
            broker.publish("a", "x", history=LIMITS, at=NOW)
        epoch = broker.epoch
        seen = {
            since: (len(history.messages), history.complete)
            for since in (0, 4, 5, 6, 15)
            for history in [broker.history("a", Position(epoch, since), now=NOW)]
        }
        assert {0: (10, False), 4: (10, False), 5: (10, True), 6: (9, True), 15: (0, True)} == seen

    def test_what_is_asked_for_from_the_beginning_is_complete_by_what_it_means(self, broker: Broker) -> None:
        for _ in range(15):
            broker.publish("a", "x", history=LIMITS, at=NOW)
        history = broker.history("a", None, now=NOW)
        assert (list(range(6, 16)), True) == (numbers(history.messages), history.complete)

    def test_of_a_history_the_newest_can_be_asked_for(self, broker: Broker) -> None:
        for _ in range(5):
            broker.publish("a", "x", history=LIMITS, at=NOW)
        newest = broker.history("a", None, most=2, now=NOW)
        assert ([4, 5], True) == (numbers(newest.messages), newest.complete)
        cut = broker.history("a", Position(broker.epoch, 1), most=2, now=NOW)
        assert ([4, 5], False) == (numbers(cut.messages), cut.complete)

    @pytest.mark.parametrize("since", [Position(1, 3), Position(2**60, 1)], ids=["an older life", "no life yet"])
    def test_a_position_of_another_life_is_not_taken_for_one_of_this(self, broker: Broker, since: Position) -> None:
        for _ in range(5):
            broker.publish("a", "x", history=LIMITS, at=NOW)
        history = broker.history("a", since, now=NOW)
        assert ([1, 2, 3, 4, 5], False) == (numbers(history.messages), history.complete)

    def test_a_position_that_was_not_reached_yet_is_not_believed(self, broker: Broker) -> None:
        broker.publish("a", "x", history=LIMITS, at=NOW)
        history = broker.history("a", Position(broker.epoch, 9), now=NOW)
        assert ([1], False) == (numbers(history.messages), history.complete)

    def test_channels_are_listed_by_name(self, broker: Broker) -> None:
        for name in ("b", "a", "b"):
            broker.publish(name, "four", history=LIMITS, at=NOW)
        broker.publish("\0not for users", "x", history=LIMITS, at=NOW)
        assert [("a", 1), ("b", 2)] == [(held.channel, held.position.number) for held in broker.channels()]
        assert ["a"] == [held.channel for held in broker.channels(most=1)]

    # Followers

    def test_whoever_follows_hears_of_each_publication(self, broker: Broker, another: Broker) -> None:
        cursor = broker.cursor()
        with followed(broker) as told:
            for number in range(3):
                another.publish("a", "x", history=LIMITS, at=NOW)
                assert wait_until(lambda number=number: len(broker.news(cursor).messages) > number)  # type: ignore[misc]
                told.clear()
                another.publish("b", "x", history=LIMITS, at=NOW)
                assert told.wait(PATIENCE)

    def test_who_follows_is_known_by_name(self, broker: Broker, another: Broker) -> None:
        with followed(broker), followed(another):
            assert 2 == len(broker.followers())
            assert broker.followers() == another.followers()
        assert wait_until(lambda: not broker.followers())


@contextmanager
def followed(broker: Broker) -> Iterator[threading.Event]:
    """Follow `broker`: the event is set whenever it tells of something."""
    told = threading.Event()
    following = broker.follow(told.set)
    following.start()
    try:
        yield told
    finally:
        following.stop()


def wait_until(holds: Callable[[], bool]) -> bool:
    """Whether `holds()` does within some seconds."""
    until = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True
