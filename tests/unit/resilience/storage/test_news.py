"""What is known of records that are followed, and who is told."""

from __future__ import annotations

import gc
import threading

import pytest

from resilience.storage.news import News, Teller

PATIENCE = 10.0


def test_the_number_changes_with_the_text_and_with_nothing_else() -> None:
    news = News()
    record, _ = news.follow(b"key", None)
    numbers = []
    for text in (None, None, b"one", b"one", b"", None):
        news.learn(b"key", text)
        news.learn(b"another", b"text")
        numbers.append(record.cell[0])
    assert [1, 1, 2, 2, 3, 4] == numbers


def test_all_who_follow_one_record_share_it() -> None:
    news = News()
    (first, first_is_new), (second, second_is_new) = news.follow(b"key", None), news.follow(b"key", None)
    assert (True, False, True) == (first_is_new, second_is_new, first is second)
    news.leave(first, None)
    assert [second] == news.records
    news.leave(second, None)
    assert [] == news.records


def test_a_record_that_nobody_has_any_longer_is_forgotten() -> None:
    news = News()
    record, _ = news.follow(b"key", None)
    del record
    gc.collect()
    assert [] == news.records


def test_doubt_makes_everybody_look() -> None:
    news = News()
    record, _ = news.follow(b"key", None)
    news.learn(b"key", b"text")
    heard = record.cell[0]
    news.change_all(known=True)
    assert (heard + 1, True, b"text") == (record.cell[0], record.known, record.text)
    news.change_all(known=False)
    assert (heard + 2, False) == (record.cell[0], record.known)
    news.learn(b"key", b"text")
    assert (heard + 3, True) == (record.cell[0], record.known)


def test_who_follows_is_told_in_another_thread_and_may_follow_something_else_there() -> None:
    news = News()
    told: list[str] = []
    done = threading.Event()

    def look() -> None:
        told.append(threading.current_thread().name)
        news.leave(news.follow(b"another", None)[0], None)
        done.set()

    record, _ = news.follow(b"key", look)
    news.learn(b"key", b"text")
    assert done.wait(PATIENCE)
    assert ["seawall-news"] == told
    news.leave(record, look)
    news.end()


def test_messages_go_to_those_who_listen_there() -> None:
    news = News()
    heard: list[tuple[str, bytes]] = []
    done = threading.Event()

    def first(message: bytes) -> None:
        heard.append(("first", message))

    def second(message: bytes) -> None:
        heard.append(("second", message))
        if message == b"last":
            done.set()

    assert (True, False, True) == (
        news.listen(b"one", first),
        news.listen(b"one", second),
        news.listen(b"two", second),
    )
    news.pass_on(b"one", b"1")
    news.pass_on(b"nowhere", b"2")
    assert (False, False) == (news.turn_away(b"one", first), news.turn_away(b"one", first))
    news.pass_on(b"one", b"3")
    news.pass_on(b"two", b"last")
    assert done.wait(PATIENCE)
    assert [("first", b"1"), ("second", b"1"), ("second", b"3"), ("second", b"last")] == heard
    assert (True, [b"two"]) == (news.turn_away(b"one", second), news.channels)
    news.end()


def test_a_listener_that_has_stopped_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resilience.storage.news._MOST_UNTOLD", 5)
    teller, stuck, done, told = Teller(), threading.Event(), threading.Event(), list[int]()
    started = threading.Event()

    def wait() -> None:
        started.set()
        stuck.wait(PATIENCE)

    teller.tell(wait)
    assert started.wait(PATIENCE)
    for number in range(9):
        teller.tell(told.append, number)
    stuck.set()
    while len(told) < 5:
        threading.Event().wait(0.001)
    teller.tell(done.set)
    assert done.wait(PATIENCE)
    assert [0, 1, 2, 3, 4] == told
    teller.stop()


def test_a_child_is_made_to_look() -> None:
    news = News()
    record, _ = news.follow(b"key", None)
    news.learn(b"key", b"text")
    heard = record.cell[0]
    news.after_fork()
    assert (heard + 1, False) == (record.cell[0], record.known)


def test_without_threads_nobody_is_told_and_nothing_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    news = News()
    record, _ = news.follow(b"key", lambda: None)
    news.learn(b"key", b"text")
    assert b"text" == record.text
    assert "nobody is told of news" in caplog.text
