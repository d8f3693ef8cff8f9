"""The workers of all hosts ask each other, through the storage in which they keep their state.

The workers of one machine ask each other over Unix sockets (`peers.py`); those of others are told of by their heartbeat in
the storage, hear a question that names them on a topic that all listen to, and answer on a topic of whoever asks. Where the
storage is out of reach each machine answers for itself, and says so.

Whoever may write to the storage may ask, and so open circuits: it is to be reached by the service alone.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from resilience.adapters.peers import Answers, Message, Peers, Worker, in_one_text
from resilience.clock import SYSTEM_CLOCK
from resilience.errors import StorageUnavailable
from resilience.ports import Messenger, StateStorage
from resilience.storage.wrapping import Attendant, forget_after_fork

__all__ = ["HostPeers", "Meeting"]

BEAT: Final = 2.0
"""Seconds from one heartbeat to the next."""

MISSED: Final = 3.5
"""A worker is forgotten when its heart has not beaten for so many beats."""

_SHORTEST: Final = 0.05
"""Seconds that the word of a worker that leaves is kept."""
_LONG: Final = 8_192
"""Bytes from which on a message is compressed."""
_LARGEST: Final = 64 * 1024 * 1024
"""Bytes of a message that came compressed."""
_COMPRESSED: Final = b"x"
"""What zlib begins with; JSON does not."""
_LONGEST_PROBLEM: Final = 300
_REMEMBERED: Final = 64
"""Questions whose answers are kept, for when they are asked again."""

_LOG = logging.getLogger(__name__)


class Meeting(StateStorage, Messenger, Protocol):
    """A storage of state through which the processes of several hosts can also talk."""


class _Question:
    """What was asked, and what has been answered so far."""

    def __init__(self, awaited: Iterable[str]) -> None:
        self._awaited = set(awaited)
        self.answers: dict[str, Any] = {}
        self.problems: dict[str, str] = {}
        self.is_answered = threading.Event()
        self.check()

    def check(self) -> None:
        """Wake who waits when nothing is awaited any more."""
        if self._awaited <= self.answers.keys() | self.problems.keys():
            self.is_answered.set()


class HostPeers:
    """This worker, its siblings (`peers`), and the workers of other hosts, which meet in `storage`.

    Offers what `Peers` does. `timeout` is how many seconds another host's worker has to answer. A worker that was silent is
    not waited for again before its heart has beaten.
    """

    def __init__(self, peers: Peers, storage: Meeting, *, timeout: float = 1.0) -> None:
        self._peers = peers
        self._storage = storage
        self._timeout = timeout
        self._members = f"members:{peers.label}"
        self._questions = f"peers:{peers.label}:questions"
        self._closed = False
        self._begin_anew()
        forget_after_fork(self)

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._listening_as: int | None = None  # guarded by _lock
        self._ends: list[Callable[[], None]] = []
        self._attendant: Attendant | None = None
        self._beats = 0
        self._pending: dict[str, _Question] = {}  # guarded by _lock
        self._answered: dict[str, bytes | None] = {}  # guarded by _lock; None: the answer is being made
        self._silent: dict[Worker, bytes] = {}  # replaced, never changed

    def after_fork(self) -> None:
        """The child has questions, a heart and ears of its own, once it listens."""
        self._begin_anew()

    @property
    def itself(self) -> Worker:
        """This process."""
        return self._peers.itself

    def listen(self) -> None:
        """Answer siblings and other hosts from now on. Raises what `Peers.listen` does."""
        self._peers.listen()
        if self._closed:
            return
        with self._lock:
            if self._listening_as == os.getpid():
                return
            self._listening_as = os.getpid()
        self._ends = [
            self._storage.listen(self._questions, self._hear_question),
            self._storage.listen(self._answers_of(self.itself), self._hear_answer),
        ]
        self._attendant = Attendant(self, pause=0.0, name="seawall-heartbeat")
        self._attendant.start()

    @property
    def is_listening(self) -> bool:
        """Whether there is nothing to do for `listen`."""
        return (self._closed or self._listening_as == os.getpid()) and self._peers.is_listening

    def close(self) -> None:
        """Stop answering, for good, and be no member any more."""
        with self._lock:
            self._closed = True
            was_listening = self._listening_as == os.getpid()
            self._listening_as = None
        if was_listening:
            if self._attendant is not None:
                self._attendant.dismiss()
            for end in self._ends:
                end()
            try:
                self._storage.exchange(self._members, str(self.itself), b"", keep=_SHORTEST)
            except StorageUnavailable:
                _LOG.debug("the other hosts were not told that this worker leaves")
        self._peers.close()

    def ask(self, message: Message) -> Answers:
        """Ask every worker of every host, this one included, side by side. Those that do not answer in time are named."""
        members, problem = self._find_members()
        near = {self.itself, *self._peers.siblings()}
        far = {worker: beat for worker, beat in members.items() if worker not in near}
        if not far:
            own = self._peers.ask(message)
            return own._replace(problem=in_one_text(problem, own.problem))
        silent = self._silent
        question = _Question(str(worker) for worker, beat in far.items() if silent.get(worker) != beat)
        number = secrets.token_hex(8)
        text = _written(
            {"question": number, "asks": self.itself.describe(), "to": list(map(str, far)), "message": message}
        )
        deadline = SYSTEM_CLOCK.seconds() + self._timeout
        with self._lock:
            self._pending[number] = question
        try:
            problem = self._publish(self._questions, text) or problem
            own = self._peers.ask(message)
            # A message may have been lost while somebody connected anew. Who has heard it twice answers twice, and acts once.
            if not problem and not question.is_answered.wait(self._timeout / 2):
                problem = self._publish(self._questions, text)
                question.is_answered.wait(max(0.0, deadline - SYSTEM_CLOCK.seconds()))
        finally:
            with self._lock:
                del self._pending[number]
        heard = {worker: question.answers[str(worker)] for worker in far if str(worker) in question.answers}
        troubled = {worker: question.problems[str(worker)] for worker in far if str(worker) in question.problems}
        self._silent = {worker: beat for worker, beat in far.items() if worker not in {*heard, *troubled}}
        answers, misfits = self._peers.sifted(message, heard)
        troubles = [f"{worker} gave no answer: {trouble}" for worker, trouble in sorted(troubled.items())]
        return Answers(
            {**own.by_worker, **answers},
            tuple(sorted({*own.unreached, *far.keys() - answers.keys()})),
            in_one_text(problem, own.problem, *troubles, *misfits),
        )

    def attend(self, attendant: Attendant) -> float | None:
        """Let the heart beat."""
        if attendant is not self._attendant or self._closed:
            return None
        self._beats += 1
        self._find_members()
        return BEAT

    def left(self, attendant: Attendant) -> None:
        """Without a heartbeat nobody asks this worker: the next `listen` starts another."""
        with self._lock:
            if attendant is not self._attendant or self._closed:
                return
            ends, self._ends = self._ends, []
            self._listening_as = None
        for end in ends:
            end()

    def _find_members(self) -> tuple[dict[Worker, bytes], str]:
        """Who is there, with its last heartbeat, and why that may not be all. Counts as a sign of life of this worker."""
        own = json.dumps({**self.itself.describe(), "beat": self._beats}).encode()
        try:
            left = self._storage.exchange(self._members, str(self.itself), own, keep=MISSED * BEAT)
        except StorageUnavailable as error:
            return {}, f"other hosts could not be asked: {error}"
        members: dict[Worker, bytes] = {}
        for text in left.values():
            member = _worker(_read(text))
            if member is not None:
                members[member] = text
        return members, ""

    def _publish(self, topic: str, text: bytes) -> str:
        """Say it. Returns why that could not be done, else nothing."""
        try:
            self._storage.publish(topic, text)
        except (StorageUnavailable, ValueError) as error:  # out of reach, or too long for it
            return f"other hosts could not be asked: {error}"
        return ""

    def _answers_of(self, worker: Worker) -> str:
        return f"peers:{self._peers.label}:answers:{worker}"

    # -- what the storage's thread tells: handed on at once ------------------------------------------------------------

    def _hear_question(self, text: bytes) -> None:
        question = _read(text)
        number, message, asks = question.get("question"), question.get("message"), question.get("asks")
        to = question.get("to")
        asking = _worker(asks)
        if not (isinstance(number, str) and isinstance(message, dict) and asking is not None and isinstance(to, list)):
            _LOG.warning("a question of another host could not be read")
            return
        if str(self.itself) not in to:
            return
        with self._lock:
            is_known = number in self._answered
            answer = self._answered.get(number)
            if not is_known:
                while len(self._answered) >= _REMEMBERED:
                    del self._answered[next(iter(self._answered))]
                self._answered[number] = None
        if is_known and answer is None:
            return  # being answered
        threading.Thread(
            target=self._reply, args=(number, asking, message, answer), name="seawall-reply", daemon=True
        ).start()

    def _reply(self, number: str, asks: Worker, message: Mapping[str, Any], answer: bytes | None) -> None:
        if answer is None:
            try:
                said = self._peers.answer(message)
                answer = _written({"question": number, "from": str(self.itself), "answer": said})
            except Exception:  # noqa: BLE001  # whoever asks is told of a worker that did not answer
                _LOG.exception("a question of %s could not be answered", asks)
                return
            with self._lock:
                if number in self._answered:
                    self._answered[number] = answer
        try:
            self._storage.publish(self._answers_of(asks), answer)
        except ValueError as error:  # too long
            _LOG.warning("an answer to %s could not be sent: %s", asks, error)
            told = {"question": number, "from": str(self.itself), "problem": f"it could not be sent: {error}"}
            self._publish(self._answers_of(asks), _written(told))
        except StorageUnavailable as error:
            _LOG.warning("an answer did not reach %s: %s", asks, error)

    def _hear_answer(self, text: bytes) -> None:
        heard = _read(text)
        said, problem, who = heard.get("answer"), heard.get("problem"), heard.get("from")
        with self._lock:
            question = self._pending.get(str(heard.get("question")))
            if question is None or not isinstance(who, str):
                return
            if isinstance(said, dict):
                question.answers[who] = said
            elif isinstance(problem, str):
                question.problems[who] = problem[:_LONGEST_PROBLEM]
            question.check()


def _worker(described: Any) -> Worker | None:
    if not isinstance(described, dict):
        return None
    host, pid = described.get("host"), described.get("pid")
    return Worker(host, pid) if isinstance(host, str) and type(pid) is int else None


def _written(message: Mapping[str, Any]) -> bytes:
    text = json.dumps(message, separators=(",", ":")).encode()
    return zlib.compress(text, 1) if len(text) > _LONG else text


def _read(text: bytes) -> dict[str, Any]:
    try:
        if text.startswith(_COMPRESSED):
            stream = zlib.decompressobj()
            text = stream.decompress(text, _LARGEST)
            if not stream.eof:
                return {}
        read = json.loads(text)
    except (ValueError, RecursionError, zlib.error):
        return {}
    return read if isinstance(read, dict) else {}
