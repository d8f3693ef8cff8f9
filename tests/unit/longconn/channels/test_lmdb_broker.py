"""Messages of one host, in a database that is bounded, private, and made again when it is lost."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longconn.channels import database
from longconn.channels.errors import ChannelsUnavailable, MessageRefused
from longconn.channels.lmdb_broker import SMALLEST, LmdbBroker
from longconn.channels.ports import HistoryLimits, Position
from tests.support.broker_conformance import LIMITS, NOW, BrokerConformance, numbers
from tests.support.examples import many


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "channels"


@pytest.fixture
def broker(folder: Path) -> Iterator[LmdbBroker]:
    made = LmdbBroker(folder, size=SMALLEST)
    yield made
    made.close()


class TestConformance(BrokerConformance):
    @pytest.fixture
    def broker(self, folder: Path) -> Iterator[LmdbBroker]:
        made = LmdbBroker(folder)
        yield made
        made.close()

    @pytest.fixture
    def another(self, folder: Path) -> Iterator[LmdbBroker]:
        made = LmdbBroker(folder)
        yield made
        made.close()


# Histories


class Model:
    """What a channel holds, said in the plainest way."""

    def __init__(self) -> None:
        self.number = 0
        self.age = 0.0
        self.held: deque[tuple[int, int, float]] = deque()

    def publish(self, size: int, limits: HistoryLimits, at: float) -> None:
        self.number += 1
        self.age = limits.age
        self.held.append((self.number, size, at))
        while self.held and not self._fits(limits, at):
            self.held.popleft()

    def _fits(self, limits: HistoryLimits, at: float) -> bool:
        return (
            len(self.held) <= limits.count
            and sum(size for _, size, _ in self.held) <= limits.size
            and self.held[0][2] >= at - limits.age
        )

    def history(self, since: int | None, now: float) -> tuple[list[int], bool]:
        seen = [number for number, _, at in self.held if at >= now - self.age]
        if since is None:
            return seen, True
        wanted = range(since + 1, self.number + 1)
        return [number for number in seen if number > since], all(number in seen for number in wanted)


publications = st.tuples(
    st.sampled_from("ab"), st.sampled_from([0, 10, 100, 1_000, 5_000]), st.sampled_from([0.0, 1.0, 40.0])
)
limits = st.builds(
    HistoryLimits,
    count=st.integers(0, 4),
    size=st.sampled_from([0, 100, 1_200, 6_000]),
    age=st.sampled_from([10.0, 60.0]),
)


@settings(max_examples=many(60))
@given(st.lists(publications, max_size=25), limits, st.integers(0, 25), st.sampled_from([0.0, 30.0]))
def test_a_history_holds_what_the_plainest_model_holds(
    published: list[tuple[str, int, float]], limits: HistoryLimits, since: int, later: float
) -> None:
    folder = Path(tempfile.mkdtemp())
    broker = LmdbBroker(folder, size=SMALLEST)
    try:
        models = {name: Model() for name in "ab"}
        now = time.time()  # and later: what is too old by the clock on the wall is thrown away now and then
        for name, size, pause in published:
            now += pause
            broker.publish(name, b"x" * size, history=limits, at=now)
            models[name].publish(size, limits, now)
        now += later
        for name, model in models.items():
            for number in (None, min(since, model.number)):
                position = None if number is None else Position(broker.epoch, number)
                history = broker.history(name, position, now=now)
                assert model.history(number, now) == (numbers(history.messages), history.complete)
                assert model.number == history.position.number
    finally:
        broker.close()
        shutil.rmtree(folder)


def test_a_message_larger_than_a_history_leaves_it_empty_and_no_gap(broker: LmdbBroker) -> None:
    broker.publish("a", "x" * 10, history=LIMITS, at=NOW)
    broker.publish("a", "x" * 10_001, history=LIMITS, at=NOW)
    broker.publish("a", "x" * 10, history=LIMITS, at=NOW)
    assert [3] == numbers(broker.history("a", None, now=NOW).messages)
    assert not broker.history("a", Position(broker.epoch, 1), now=NOW).complete


def test_limits_that_shrink_take_effect_with_the_next_message(broker: LmdbBroker) -> None:
    for _ in range(8):
        broker.publish("a", "x", history=LIMITS, at=NOW)
    broker.publish("a", "x", history=HistoryLimits(count=3), at=NOW)
    assert [7, 8, 9] == numbers(broker.history("a", None, now=NOW).messages)


# Bounds


def test_a_worker_that_lags_behind_is_told_that_it_missed_something(folder: Path) -> None:
    broker = LmdbBroker(folder, size=SMALLEST, journal_bytes=4096)
    start = broker.cursor()
    for _ in range(100):
        broker.publish("a", "x" * 100, history=LIMITS, at=NOW)
    news = broker.news(start)
    assert news.missed
    assert list(range(101 - len(news.messages), 101)) == numbers(news.messages)
    assert 10 < len(news.messages) < 50
    assert not broker.news(news.cursor).missed
    broker.close()


def test_news_of_large_messages_come_a_few_at_a_time(broker: LmdbBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longconn.channels.tables._MOST_READ", 50_000)
    start = broker.cursor()
    for _ in range(4):
        broker.publish("a", b"x" * 20_000, history=LIMITS, at=NOW)
    assert [1, 2, 3] == numbers(broker.news(start).messages)


def test_a_message_that_is_too_large_is_refused_with_what_to_do(broker: LmdbBroker) -> None:
    largest = SMALLEST // 32
    broker.publish("a", "x" * largest, history=LIMITS, at=NOW)
    for data in ("x" * (largest + 1), "é" * (largest // 2 + 1)):
        with pytest.raises(MessageRefused, match=r"too large: these channels take 32,768\. .*LONGCONN_CHANNELS_SIZE"):
            broker.publish("a", data, history=LIMITS, at=NOW)
    assert 1 == broker.position("a").number


@pytest.mark.parametrize("size", [10, 1_900, 5_000, 30_000])
def test_more_than_there_is_room_for_can_be_published_and_the_oldest_goes(broker: LmdbBroker, size: int) -> None:
    generous = HistoryLimits(count=1_000_000, size=1 << 30, age=1e9)
    total = 2 * SMALLEST // size if size > 100 else 3_000
    for number in range(total):
        broker.publish(f"room{number % 7}", b"x" * size, history=generous, at=NOW + number)
    assert (broker.folder / "messages.1").stat().st_size <= SMALLEST
    newest = broker.history(f"room{(total - 1) % 7}", None, now=NOW + total)
    assert b"x" * size == newest.messages[-1].data
    first, last = newest.messages[0].position.number, newest.position.number
    assert list(range(first, last + 1)) == numbers(newest.messages)


def test_the_history_that_is_longest_without_a_message_goes_first(broker: LmdbBroker) -> None:
    generous = HistoryLimits(count=1_000_000, size=1 << 30, age=1e9)
    for name in ("first", "second"):
        for _ in range(150):
            broker.publish(name, b"x" * 1_000, history=generous, at=NOW)
    broker.publish("first", b"once more", history=generous, at=NOW + 100)

    def count(name: str) -> int:
        return len(broker.history(name, None, now=NOW).messages)

    seconds = 100
    while count("second") == 150:
        seconds += 1
        broker.publish("busy", b"x" * 1_000, history=generous, at=NOW + seconds)
    assert (151, seconds - 100) == (count("first"), count("busy"))
    assert not broker.history("second", Position(broker.epoch, 1), now=NOW).complete
    assert Position(broker.epoch, 150) == broker.position("second")


def test_names_without_end_are_forgotten_and_numbers_never_go_back(broker: LmdbBroker) -> None:
    nothing_kept = HistoryLimits(count=0)
    for _ in range(5):
        broker.publish("early", b"", history=nothing_kept, at=NOW)
    before = broker.position("early")
    for number in range(2_500):
        broker.publish(f"name{number}", b"x" * 30, history=nothing_kept, at=NOW + 1 + number)
    assert len(broker.channels(most=100_000)) < 2 * SMALLEST // 1024
    assert before < broker.position("early")
    assert not broker.history("name3", Position(broker.epoch, 1), now=NOW).complete
    assert before < broker.publish("early", b"", history=nothing_kept, at=NOW).position


def test_what_is_too_old_is_thrown_away_without_being_asked_for(broker: LmdbBroker) -> None:
    broker.publish("a", "secret", history=HistoryLimits(age=10), at=NOW)
    for _ in range(40):
        broker.publish("b", b"x" * 1_000, history=LIMITS, at=time.time())
    assert [("a", 0), ("b", 10)] == [(held.channel, held.count) for held in broker.channels()]


def test_one_that_is_slow_to_read_is_waited_for_and_costs_nothing(broker: LmdbBroker) -> None:
    epoch = broker.publish("a", "x", history=LIMITS, at=time.time()).position.epoch
    slow = broker._current().environment.begin()
    done = threading.Timer(0.05, slow.abort)
    done.start()
    for number in range(400):
        broker.publish("room", b"%d" % number, history=LIMITS, at=time.time())
    done.join()
    assert (epoch, 400) == broker.position("room")
    assert [1] == numbers(broker.history("a", None, now=time.time()).messages)


def test_one_that_was_stopped_while_it_read_stops_nobody_else(
    broker: LmdbBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longconn.channels.lmdb_broker.GIVING_UP", 0.0)
    position = broker.publish("a", "x", history=LIMITS, at=NOW).position
    stopped = broker._current().environment.begin()  # a reader holds back every page that it may still look at
    for number in range(1_200):
        last = broker.publish(f"room{number}", b"x" * 1_000, history=LIMITS, at=time.time()).position
    stopped.abort()
    assert position.epoch < last.epoch == broker.epoch
    assert (broker.folder / "messages.1").stat().st_size <= SMALLEST


def test_where_the_file_system_has_little_room_channels_take_half_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Little:
        f_bavail, f_frsize = 1024, 4096

    monkeypatch.setattr("longconn.channels.database.os.statvfs", lambda place: Little)
    broker = LmdbBroker(folder)
    generous = HistoryLimits(count=1_000_000, size=1 << 30, age=1e9)
    for number in range(2_500):
        broker.publish(f"room{number % 9}", b"x" * 1_000, history=generous, at=NOW)
    assert (folder / "messages.1").stat().st_size <= 2 << 20
    assert "take 2,097,152 bytes instead of 134,217,728: the file system has no more" in caplog.text
    broker.close()


def test_a_size_without_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="channels need 1,048,576 bytes at least"):
        LmdbBroker("/nowhere", size=1000)
    with pytest.raises(ValueError, match=r"journal_bytes=1000: from 4,096 to a quarter"):
        LmdbBroker("/nowhere", journal_bytes=1000)


# The folder


def test_nothing_is_opened_before_it_is_needed(folder: Path) -> None:
    LmdbBroker(folder).close()
    assert not folder.exists()


def test_the_folder_and_what_is_in_it_are_for_nobody_else(broker: LmdbBroker, folder: Path) -> None:
    broker.publish("a", "x", history=LIMITS, at=NOW)
    follower = broker.follow(lambda: None)
    assert 0o700 == folder.stat().st_mode & 0o777
    assert [] == [file.name for file in folder.iterdir() if file.stat().st_mode & 0o077]
    follower.start()
    follower.stop()


def test_a_folder_that_others_can_enter_is_refused(folder: Path, broker: LmdbBroker) -> None:
    folder.mkdir(mode=0o755)
    with pytest.raises(ChannelsUnavailable, match=r"let in nobody else \(mode 0700\).*LONGCONN_CHANNELS"):
        broker.cursor()


def test_a_link_to_a_folder_is_not_followed(folder: Path, broker: LmdbBroker, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    with pytest.raises(ChannelsUnavailable, match="not a folder"):
        broker.cursor()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    broker = LmdbBroker(tmp_path / "missing" / "channels")
    with pytest.raises(ChannelsUnavailable, match="missing/channels: No such file or directory"):
        broker.publish("a", "x", history=LIMITS, at=NOW)


def test_messages_outlive_all_who_published_them(broker: LmdbBroker) -> None:
    position = broker.publish("a", "x", history=LIMITS, at=NOW).position
    broker.close()
    assert position == broker.position("a")
    assert [1] == numbers(broker.history("a", None, now=NOW).messages)


@pytest.mark.parametrize("damage", ["garbage", "empty", "gone", "another start of the machine"])
def test_a_storage_that_is_lost_begins_a_greater_epoch(broker: LmdbBroker, folder: Path, damage: str) -> None:
    position = broker.publish("a", "x", history=LIMITS, at=NOW).position
    broker.close()
    match damage:
        case "garbage":
            (folder / "messages.1").write_bytes(os.urandom(20_000))
        case "empty":
            (folder / "messages.1").write_bytes(b"")
        case "gone":
            (folder / "messages.1").unlink()
        case _:
            (folder / "life.1").write_text(f"another-start {position.epoch}\n")
    history = broker.history("a", position, now=NOW)
    assert ((), False, 0) == (history.messages, history.complete, history.position.number)
    assert position < broker.publish("a", "x", history=LIMITS, at=NOW).position


def test_a_folder_that_is_removed_under_its_users_is_made_again(
    broker: LmdbBroker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longconn.channels.lmdb_broker.LOOK", 0.0)
    other = LmdbBroker(folder, size=SMALLEST)
    cursor = other.cursor()
    position = broker.publish("a", "x", history=LIMITS, at=NOW).position
    shutil.rmtree(folder)
    assert position < broker.publish("a", "y", history=LIMITS, at=NOW).position
    news = other.news(cursor)
    assert (["y"], True) == ([message.data for message in news.messages], news.missed)
    other.close()


def test_one_that_was_given_less_room_throws_nothing_away(folder: Path) -> None:
    large = LmdbBroker(folder, size=8 * SMALLEST)
    generous = HistoryLimits(count=10_000, size=1 << 30, age=1e9)
    start = large.cursor()
    for _ in range(600):
        before = large.publish("a", b"x" * 1_900, history=generous, at=NOW).position
    large.close()
    small = LmdbBroker(folder, size=SMALLEST)
    after = small.publish("a", b"x", history=generous, at=NOW).position
    assert (before.epoch, 601) == after
    assert 601 == len(small.history("a", None, now=NOW).messages)
    lagging = small.news(start, most=10_000)
    assert len(lagging.messages) > SMALLEST // 4 // 1_900
    small.close()


def test_one_that_opened_it_smaller_keeps_up_when_it_grows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longconn.channels.lmdb_broker.LOOK", 0.0)
    small = LmdbBroker(folder, size=SMALLEST)
    small.cursor()
    held = small._database
    assert held is not None
    # As another process does it, which has the database open for itself.
    (folder / "life.1").unlink()
    database._write_life(folder, held.epoch, 8 * SMALLEST, SMALLEST)
    small.cursor()
    assert (8 * SMALLEST, SMALLEST) == (held.size, held.journal_bytes)
    small.close()


def test_a_history_that_is_much_too_long_is_trimmed_a_part_at_a_time(folder: Path) -> None:
    """So that no publication keeps others waiting for long."""
    broker = LmdbBroker(folder)
    broker_limits = HistoryLimits(count=10_000, age=1e9)
    for _ in range(750):
        broker.publish("a", b"", history=broker_limits, at=NOW)
    seen = []
    for _ in range(4):
        broker.publish("a", b"", history=HistoryLimits(count=0), at=NOW)
        seen.append(broker.channels()[0].count)
    assert [451, 152, 0, 0] == seen
    broker.close()


def test_one_publication_expires_a_part_of_what_is_too_old(broker: LmdbBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longconn.channels.lmdb_broker._STEPS", 100)
    now = time.time()
    for number in range(700):
        broker.publish(f"old{number}", b"", history=HistoryLimits(age=1_000), at=now)
    monkeypatch.setattr("longconn.channels.lmdb_broker.time.time", lambda: now + 2_000)
    seen = []
    for _ in range(40):
        broker.publish("new", b"x" * 1_000, history=HistoryLimits(count=0), at=now + 2_000)
        seen.append(sum(held.count for held in broker.channels(most=2_000)))
    assert [700, 600, 500, 400, 300, 200, 100, 0] == sorted(set(seen), reverse=True)


def test_one_that_was_given_less_room_reads_what_others_wrote(folder: Path) -> None:
    small, large = LmdbBroker(folder, size=SMALLEST), LmdbBroker(folder, size=8 * SMALLEST)
    generous = HistoryLimits(count=100, size=1 << 30, age=1e9)
    try:
        small.publish("a", b"x", history=generous, at=NOW)
        for _ in range(30):
            large.publish("a", b"x" * 100_000, history=generous, at=NOW)
        assert 31 == small.publish("a", b"x", history=HistoryLimits(count=1), at=NOW).position.number - 1
    finally:
        small.close()
        large.close()
