"""Questions to all processes that follow the same channels, and what each of them says.

A question is a message on a channel that no user can name; so is each answer. Who asks reads the news itself, and needs no
pump for it: a shell can ask as well as a worker.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from longconn.channels.errors import ChannelError
from longconn.channels.ports import Broker, HistoryLimits, Message

__all__ = ["ANSWERS", "QUESTIONS", "Answerer", "Answers", "ask"]

QUESTIONS: Final = "\0questions"
ANSWERS: Final = "\0answers"
"""No name of a user's channel begins with NUL."""

_FIRST_PAUSE: Final = 0.000_5
_LONGEST_PAUSE: Final = 0.01
_LOOK_WHO_LIVES: Final = 0.1
"""Seconds between looks whether those that are silent still live."""
_NOTHING_KEPT: Final = HistoryLimits(count=0)

_log = logging.getLogger("longconn.channels")

Answer = Callable[[dict[str, Any]], Mapping[str, Any] | None]


class Answers(list[dict[str, Any]]):
    """What the processes said, each as a dictionary with its `pid`; `silent` are the process ids of those that said nothing
    in time."""

    silent: tuple[int, ...] = ()


def ask(broker: Broker, topic: str, question: Mapping[str, Any], *, timeout: float = 1.0) -> Answers:
    """Ask all who follow, and wait for what they say, for `timeout` seconds at most. Raises `ChannelError`s."""
    waited_for = dict(broker.followers())
    number = uuid.uuid4().hex
    cursor = broker.cursor()
    now = time.monotonic()
    until, next_look = now + timeout, now + _LOOK_WHO_LIVES
    _send(broker, QUESTIONS, {"number": number, "topic": topic, "question": dict(question)})
    answers = Answers()
    pause = _FIRST_PAUSE
    while True:
        news = broker.news(cursor)
        cursor = news.cursor
        for message in news.messages:
            if message.channel == ANSWERS:
                _collect(message, number, waited_for, answers)
        now = time.monotonic()
        if not waited_for or now >= until:
            break
        if now >= next_look:
            alive = broker.followers()
            waited_for = {name: pid for name, pid in waited_for.items() if alive.get(name) == pid}
            next_look = now + _LOOK_WHO_LIVES
        elif not news.messages:
            time.sleep(min(pause, until - now))
            pause = min(2 * pause, _LONGEST_PAUSE)
    alive = broker.followers() if waited_for else {}
    answers.silent = tuple(sorted(pid for name, pid in waited_for.items() if alive.get(name) == pid))
    return answers


class Answerer:
    """What one process says when it is asked: a function for each topic."""

    def __init__(self) -> None:
        self._functions: dict[str, Answer] = {}

    def add(self, topic: str, function: Answer) -> None:
        """Have `function` answer questions about `topic`; the latest counts."""
        self._functions[topic] = function

    def asked(self, broker: Broker, name: str, message: Message) -> None:
        """Answer the question in `message` as the follower `name`, on a thread of its own: whatever it does, others go
        on."""
        threading.Thread(target=self._answer, args=(broker, name, message), name="longconn-answer", daemon=True).start()

    def _answer(self, broker: Broker, name: str, message: Message) -> None:
        asked = json.loads(message.data)
        answer: Any = None
        try:
            function = self._functions.get(asked["topic"])
            if function is not None:
                answer = function(asked["question"])
            said = {"number": asked["number"], "name": name, "pid": os.getpid(), "answer": answer}
            _send(broker, ANSWERS, said)
        except ChannelError as error:
            _log.warning("a question about %s was not answered: %s", asked["topic"], error)
        except Exception:  # noqa: BLE001 - it is the application's, and whoever asked is told that nobody answered
            _log.exception("a question about %s was not answered", asked["topic"])


def _collect(message: Message, number: str, waited_for: dict[str, int], answers: Answers) -> None:
    said = json.loads(message.data)
    if said["number"] == number and waited_for.pop(said["name"], None) is not None and said["answer"] is not None:
        answers.append({**said["answer"], "pid": said["pid"]})


def _send(broker: Broker, channel: str, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, separators=(",", ":"))
    broker.publish(channel, text, history=_NOTHING_KEPT, at=time.time())
