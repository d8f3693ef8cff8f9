"""Workers of several hosts ask each other through a storage. Here the storage is in memory, and the hosts are names."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from resilience.adapters.hosts import BEAT, HostPeers
from resilience.adapters.peers import Answers, Peers, Worker
from resilience.errors import StorageUnavailable
from resilience.storage.state_memory import MemoryStateStorage
from resilience.testing import FakeClock


class Meeting(MemoryStateStorage):
    """A storage through which several hosts can talk: what is published is heard by whoever listens, unless it is lost."""

    spans_hosts = True

    def __init__(self) -> None:
        self.clock = FakeClock()
        super().__init__(clock=self.clock)
        self.is_down = False
        self.lost = 0
        self.published: list[tuple[str, bytes]] = []
        self.told: list[tuple[str, Callable[[bytes], None]]] = []

    def exchange(self, name: str, member: str, text: bytes, *, keep: float) -> dict[str, bytes]:
        self._refuse()
        return super().exchange(name, member, text, keep=keep)

    def publish(self, topic: str, message: bytes) -> None:
        self._refuse()
        if len(message) > 1_048_576:
            raise ValueError(f"a message of {len(message):,} bytes: 1,048,576 at most are passed on")
        self.published.append((topic, message))
        if self.lost:
            self.lost -= 1
            return
        for listened, told in list(self.told):
            if listened == topic:
                told(message)

    def listen(self, topic: str, told: Callable[[bytes], None]) -> Callable[[], None]:
        entry = (topic, told)
        self.told.append(entry)
        return lambda: self.told.remove(entry)

    def _refuse(self) -> None:
        if self.is_down:
            raise StorageUnavailable("the storage is out of reach")


class Host:
    """One worker on a host of its own."""

    def __init__(self, meeting: Meeting, name: str, *, label: str = "peers", timeout: float = 5.0) -> None:
        self.heard: list[Mapping[str, Any]] = []
        self.is_mute = False
        self.says: dict[str, Any] = {}
        siblings = Peers(self._answer, directory=None, host=name, label=label, misfit=self._misfit)
        self.peers = HostPeers(siblings, meeting, timeout=timeout)
        self.peers.listen()

    @property
    def worker(self) -> Worker:
        return self.peers.itself

    def _answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if self.is_mute:
            raise ZeroDivisionError
        self.heard.append(dict(message))
        return {"here": self.worker.host, **self.says}

    def _misfit(self, message: Mapping[str, Any], answer: Any) -> str:
        return "" if "here" in answer and answer["here"] != "elsewhere" else "here is missing"

    def ask(self, message: Mapping[str, Any] | None = None) -> Answers:
        return self.peers.ask(message or {"tell": ["circuits"]})


@pytest.fixture
def meeting() -> Meeting:
    return Meeting()


@pytest.fixture
def hosts(meeting: Meeting) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(name: str, **options: Any) -> Host:
        made.append(Host(meeting, name, **options))
        made[-1].ask()  # a sign of life: its heart has a thread of its own, which may be late
        return made[-1]

    yield make
    meeting.is_down = False
    for each in made:
        each.peers.close()


def test_a_host_without_others_answers_alone(hosts: Callable[..., Host], meeting: Meeting) -> None:
    alone = hosts("web-1")
    assert Answers({alone.worker: {"here": "web-1"}}, (), "") == alone.ask()
    assert [] == meeting.published


def test_every_host_answers_whichever_is_asked(hosts: Callable[..., Host]) -> None:
    several = [hosts(name) for name in ("web-1", "web-2", "web-3")]
    expected = {each.worker: {"here": each.worker.host} for each in several}
    for each in several:
        assert Answers(expected, (), "") == each.ask()


def test_every_host_hears_a_question_once(hosts: Callable[..., Host], meeting: Meeting) -> None:
    one, two = hosts("web-1"), hosts("web-2")
    del two.heard[:]
    one.ask({"do": "open"})
    for topic, question in list(meeting.published):
        if topic.endswith(":questions"):
            meeting.publish(topic, question)  # once more, as after a message that seemed lost
    assert [{"do": "open"}] == two.heard


@pytest.mark.parametrize("lost", [1, 2])
def test_a_message_that_is_lost_is_sent_again(hosts: Callable[..., Host], meeting: Meeting, lost: int) -> None:
    one, two = hosts("web-1", timeout=0.2), hosts("web-2")
    del two.heard[:]
    if lost == 2:  # the answer
        original = two.peers._peers.answer

        def answer(message: Mapping[str, Any]) -> dict[str, Any]:
            meeting.lost = 1
            return original(message)

        two.peers._peers.answer = answer
    else:
        meeting.lost = 1
    assert {one.worker, two.worker} == one.ask({"do": "open"}).by_worker.keys()
    assert [{"do": "open"}] == two.heard


def test_applications_of_other_names_are_left_alone(hosts: Callable[..., Host]) -> None:
    one, other = hosts("web-1", label="shop"), hosts("web-2", label="forum")
    assert {one.worker} == one.ask().by_worker.keys()
    assert {other.worker} == other.ask().by_worker.keys()


def test_a_silent_worker_is_named_and_not_waited_for_again_before_its_heart_beats(hosts: Callable[..., Host]) -> None:
    one, two = hosts("web-1", timeout=0.02), hosts("web-2")
    two.is_mute = True
    assert Answers({one.worker: {"here": "web-1"}}, (two.worker,), "") == one.ask()
    one.peers._timeout = 1_000.0  # as long as this test would take if it were waited for
    assert (two.worker,) == one.ask().unreached
    two.is_mute = False
    assert two.peers._attendant is not None
    two.peers.attend(two.peers._attendant)
    assert {one.worker, two.worker} == one.ask().by_worker.keys()


def test_a_worker_whose_heart_has_stopped_is_forgotten_after_three_beats_and_a_half(
    hosts: Callable[..., Host], meeting: Meeting
) -> None:
    one, two = hosts("web-1"), hosts("web-2")
    meeting.clock.advance(3.4 * BEAT)
    assert {one.worker, two.worker} == one.ask().by_worker.keys()
    meeting.clock.advance(0.2 * BEAT)
    assert {one.worker} == one.ask().by_worker.keys()


def test_a_worker_that_leaves_is_asked_no_more(hosts: Callable[..., Host]) -> None:
    one, two = hosts("web-1"), hosts("web-2")
    two.peers.close()
    two.peers.close()
    assert two.peers.is_listening
    assert Answers({one.worker: {"here": "web-1"}}, (), "") == one.ask()


def test_without_the_storage_a_host_answers_for_itself_and_says_so(
    hosts: Callable[..., Host], meeting: Meeting
) -> None:
    one = hosts("web-1")
    hosts("web-2")
    meeting.is_down = True
    answers = one.ask()
    assert ([one.worker], ()) == ([*answers.by_worker], answers.unreached)
    assert "other hosts could not be asked: the storage is out of reach" == answers.problem


def test_a_storage_that_goes_while_it_is_asked_leaves_the_others_unreached(
    hosts: Callable[..., Host], meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = hosts("web-1"), hosts("web-2")
    exchange = meeting.exchange

    def goes(*args: Any, **options: Any) -> dict[str, bytes]:
        found = exchange(*args, **options)
        meeting.is_down = True
        return found

    monkeypatch.setattr(meeting, "exchange", goes)
    answers = one.ask()
    assert ([one.worker], (two.worker,)) == ([*answers.by_worker], answers.unreached)
    assert "out of reach" in answers.problem


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"question":1}',
        b'{"question":"x","message":{},"asks":{},"to":5}',
        b'{"question":"x","answer":1}',
        b"[" * 100_000,
        zlib.compress(b"{}")[:-1],
        zlib.compress(b"[" * 100_000),
        b"x is how zlib begins",
    ],
    ids=range(11),
)
def test_junk_on_a_topic_hurts_nobody(hosts: Callable[..., Host], meeting: Meeting, junk: bytes) -> None:
    one, two = hosts("web-1"), hosts("web-2")
    meeting.exchange("members:peers", "junk", junk[:500], keep=60)
    for topic, told in list(meeting.told):
        assert topic.startswith("peers:peers:")
        told(junk)
    assert {one.worker, two.worker} == one.ask().by_worker.keys()


def test_an_answer_that_is_long_is_sent_compressed(hosts: Callable[..., Host], meeting: Meeting) -> None:
    one, two = hosts("web-1"), hosts("web-2")
    two.says = {"circuits": [{"name": f"circuit-{number}", "state": "closed"} for number in range(50_000)]}
    assert two.says.items() <= one.ask().by_worker[two.worker].items()
    assert max(len(text) for _, text in meeting.published) < 500_000


def test_an_answer_that_is_too_long_all_the_same_says_so_at_once(hosts: Callable[..., Host]) -> None:
    one, two = hosts("web-1", timeout=1_000.0), hosts("web-2")
    two.says = {"circuits": os.urandom(1_500_000).hex()}
    answers = one.ask()
    assert ([one.worker], (two.worker,)) == ([*answers.by_worker], answers.unreached)
    assert f"{two.worker} gave no answer: it could not be sent: a message of" in answers.problem


def test_who_gives_an_answer_of_another_kind_is_unreached_with_what_is_wrong(hosts: Callable[..., Host]) -> None:
    one, two = hosts("web-1", timeout=1_000.0), hosts("web-2")
    two.says = {"here": "elsewhere"}
    for _ in range(2):
        answers = one.ask()
        assert ([one.worker], (two.worker,)) == ([*answers.by_worker], answers.unreached)
        assert (
            f"{two.worker} gave no answer that can be used: here is missing (is it another release" in answers.problem
        )
    assert [one.worker] == [*two.ask().by_worker.keys() - {two.worker}], "the other is not concerned"


def test_an_answer_that_nobody_waits_for_is_dropped(hosts: Callable[..., Host], meeting: Meeting) -> None:
    one = hosts("web-1")
    late = json.dumps({"question": "gone", "from": "web-2:1", "answer": {}}).encode()
    meeting.publish(f"peers:peers:answers:{one.worker}", late)
    assert {one.worker} == one.ask().by_worker.keys()


def test_a_forked_child_begins_anew(hosts: Callable[..., Host], meeting: Meeting) -> None:
    one = hosts("web-1")
    listening = [one.peers.is_listening]
    one.peers.after_fork()
    listening.append(one.peers.is_listening)
    before = len(meeting.told)
    one.peers.listen()
    one.peers.listen()
    assert ([True, False, True], before + 2) == ([*listening, one.peers.is_listening], len(meeting.told))
