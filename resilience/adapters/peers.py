"""The workers of one service ask each other: one Unix socket per worker, in a folder that only its owner can enter.

A message and its answer are one line of JSON each. Runs on threads; in a patched process these are greenlets.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from resilience.adapters.meeting import is_private
from resilience.clock import SYSTEM_CLOCK
from resilience.host import host_name

__all__ = ["Answer", "Answers", "Message", "Misfit", "Peers", "Worker", "in_one_text"]

_LOG = logging.getLogger(__name__)
_LARGEST_MESSAGE = 64 * 1024 * 1024
_PAUSE = 0.1
_TRIES = 3
_SHORT_WAIT = 0.1
"""Seconds that a worker has which did not answer the last time: a stopped one is to cost no more."""
_SUN_PATH = 104  # the longest socket path that every Unix takes, with its final zero

Message = Mapping[str, Any]

Answer = Callable[[Message], dict[str, Any]]
"""Turns a message into what this worker says to it."""

Misfit = Callable[[Message, Any], str]
"""What keeps the answer that somebody gave to a message from being used; "" if nothing does."""

_taken: set[tuple[int, Path]] = set()
"""The sockets of this process's applications, with its id: a fork inherits the set and none of the sockets."""


class Worker(NamedTuple):
    """A process, and the machine that it runs on: process ids of different machines may be the same."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"

    def describe(self) -> dict[str, Any]:
        """The worker as JSON takes it."""
        return {"host": self.host, "pid": self.pid}


class Answers(NamedTuple):
    """What the workers said, by worker, and which did not answer in time, or nothing that can be used. `problem` says why
    that is where it is known, and why there may be more of them that nobody knows of; it is empty where all were asked."""

    by_worker: dict[Worker, dict[str, Any]]
    unreached: tuple[Worker, ...]
    problem: str = ""


class Peers:
    """This worker and its siblings, which are the processes with a socket in `directory`.

    `answer` turns a message into this worker's answer. Without a directory this worker is alone. `label` tells the
    applications that meet in one folder apart. `timeout` bounds each step of a question to a sibling, in seconds; one that
    was silent is given a tenth of a second until it has answered again. `host` is what this machine is called
    (`host_name()`). `misfit` looks at the answers of others: who gives one that cannot be used counts as silent.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        directory: Path | None,
        label: str = "peers",
        timeout: float = 1.0,
        host: str | None = None,
        misfit: Misfit = lambda _message, _answer: "",
    ) -> None:
        self.answer = answer
        self._misfit = misfit
        self._silent: frozenset[Worker] = frozenset()  # replaced, never changed
        self.directory = directory
        self.problem = ""
        """Why others cannot ask this worker, if so; every answer says it."""
        self.label = re.sub(r"[^A-Za-z0-9_-]", "-", label)[:24] or "peers"
        self._timeout = timeout
        self._host = host_name() if host is None else host
        self._lock = threading.Lock()
        self._listening_as: int | None = None  # guarded by _lock; the process that listens: a fork does not
        self._listener: socket.socket | None = None
        self._closed = False

    def listen(self) -> None:
        """Answer siblings from now on. Does nothing without a directory, or when this process listens already.

        Raises `PermissionError` when the folder belongs to another user or lets others in, and `ValueError` when its
        path is too long for a socket, or when another application of this process has the same label.
        """
        if self.is_listening:
            return
        with self._lock:
            if self._listening_as == os.getpid():
                return
            path = self._socket_path()
            if (os.getpid(), path) in _taken:
                raise ValueError(
                    f"two applications of this process are named {self.label!r} and meet in {self.directory}: "
                    "give one of them another name or another folder"
                )
            self._listener = _bind(path)
            self._listening_as = os.getpid()
            _taken.add((os.getpid(), path))
        threading.Thread(target=self._accept, args=(self._listener,), name="seawall-peers", daemon=True).start()

    @property
    def itself(self) -> Worker:
        """This process."""
        return Worker(self._host, os.getpid())

    @property
    def is_listening(self) -> bool:
        """Whether there is nothing to do for `listen`: this process listens, need not, or has been closed."""
        return self.directory is None or self._closed or self._listening_as == os.getpid()

    def close(self) -> None:
        """Stop answering, for good, and take the socket out of the folder."""
        with self._lock:
            self._closed = True
            listener, self._listener = self._listener, None
            owned = self._listening_as == os.getpid()
            self._listening_as = None
        if listener is None:
            return
        if owned:
            path = self._socket_path()
            path.unlink(missing_ok=True)
            _taken.discard((os.getpid(), path))
        # Closing alone does not wake a thread that waits in accept.
        try:
            listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            _LOG.debug("peer socket was gone already")
        listener.close()

    def give_up(self, problem: str) -> None:
        """Answer nobody from now on, and say why in every answer."""
        self.problem = problem
        self.close()

    def ask(self, message: Message) -> Answers:
        """Ask every worker, this one included, side by side. Those that do not answer in time are named."""
        answers: dict[Worker, Any] = {}
        problems: list[str] = []
        siblings = self._siblings()
        silent = {worker for worker, _ in siblings}
        lock = threading.Lock()

        def question(worker: Worker, path: Path) -> None:
            try:
                answer = self._question(path, message)
            except (ConnectionRefusedError, FileNotFoundError):
                path.unlink(missing_ok=True)  # nobody listens: killed before it could tidy up, whoever has its id now
                with lock:
                    silent.discard(worker)
                return
            except (OSError, ValueError, RecursionError) as error:
                _LOG.warning("worker %s did not answer: %s", worker, error)
                if not isinstance(error, OSError):
                    with lock:
                        problems.append(f"{worker} gave no answer that can be used: {error}")
                return
            self._silent -= {worker}  # perhaps too late for this time
            with lock:
                silent.discard(worker)
                answers[worker] = answer

        threads = {
            worker: threading.Thread(target=question, args=(worker, path), daemon=True) for worker, path in siblings
        }
        for thread in threads.values():
            thread.start()
        own = self.answer(message)
        began = SYSTEM_CLOCK.seconds()
        for worker, thread in threads.items():
            patience = min(_SHORT_WAIT, self._timeout) if worker in self._silent else 2 * self._timeout
            thread.join(max(0.0, began + patience - SYSTEM_CLOCK.seconds()))
        with lock:
            self._silent = frozenset(silent)
            fitting, misfits = self.sifted(message, answers)
            unreached = sorted({*silent, *answers.keys() - fitting.keys()})
            return Answers(
                {self.itself: own, **fitting}, tuple(unreached), in_one_text(self.problem, *problems, *misfits)
            )

    def sifted(self, message: Message, answers: Mapping[Worker, Any]) -> tuple[dict[Worker, dict[str, Any]], list[str]]:
        """The answers to `message` that can be used, and what is wrong with the others."""
        wrong = {worker: self._misfit(message, answer) for worker, answer in answers.items()}
        fitting = {worker: answer for worker, answer in answers.items() if not wrong[worker]}
        return fitting, [
            f"{worker} gave no answer that can be used: {what} (is it another release, or another application?)"
            for worker, what in sorted(wrong.items())
            if what
        ]

    def siblings(self) -> list[Worker]:
        """The other workers of this machine that have a socket in the folder."""
        return [worker for worker, _ in self._siblings()]

    def _siblings(self) -> list[tuple[Worker, Path]]:
        if self.directory is None or not is_private(self.directory):
            return []  # nobody has made it, or others may have put into it what they like
        found = ((path.name.partition(".")[0], path) for path in self.directory.glob(f"*.{self.label}.sock"))
        return [
            (Worker(self._host, int(pid)), path) for pid, path in found if pid.isdecimal() and int(pid) != os.getpid()
        ]

    def _socket_path(self) -> Path:
        assert self.directory is not None
        return self.directory / f"{os.getpid()}.{self.label}.sock"

    def _question(self, path: Path, message: Message) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self._timeout)
            connection.connect(str(path))
            connection.sendall(json.dumps(message).encode() + b"\n")
            return _object_in(_read_line(connection))

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._listener is not listener:
                    return  # closed
                _LOG.warning("a sibling could not be heard: %s", error)
                time.sleep(_PAUSE)  # out of descriptors, most likely: they come back
                continue
            threading.Thread(target=self._serve, args=(connection,), name="seawall-peer", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(self._timeout)
            try:
                message = _object_in(_read_line(connection))
                connection.sendall(json.dumps(self.answer(message)).encode() + b"\n")
            except (OSError, ValueError, RecursionError) as error:
                _LOG.warning("a sibling's question could not be answered: %s", error)
            except Exception:  # noqa: BLE001  # whoever asks is told of a worker that did not answer
                _LOG.exception("a sibling's question could not be answered")


def in_one_text(*problems: str) -> str:
    """What is wrong, said once each."""
    return "; ".join(dict.fromkeys(filter(None, problems)))


def _bind(path: Path) -> socket.socket:
    if len(os.fsencode(path)) >= _SUN_PATH:
        raise ValueError(f"{path} is too long for a Unix socket: choose a shorter RESILIENCE_PEER_DIRECTORY")
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):  # whoever was the last to leave has just taken the folder away
            return _bound(path)
    return _bound(path)


def _bound(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(path.parent):
        raise PermissionError(
            f"{path.parent} must be a folder of this user's that nobody else can enter: chmod 700 it or choose another"
        )
    unready = path.with_suffix(".new")
    unready.unlink(missing_ok=True)  # of an earlier process with this id
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(unready))
        unready.chmod(0o600)
        listener.listen(64)
        unready.rename(path)  # only now: a socket under this name that refuses is a dead one's
    except BaseException:
        listener.close()
        raise
    return listener


def _read_line(connection: socket.socket) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        chunk = connection.recv(65_536)
        if not chunk:
            raise ConnectionResetError("the line broke off")
        received += chunk
        if len(received) > _LARGEST_MESSAGE:
            raise ValueError(f"it is longer than {_LARGEST_MESSAGE:,} bytes")
    return bytes(received)


def _object_in(line: bytes) -> dict[str, Any]:
    """Raises `ValueError`, or `RecursionError` where brackets stand in brackets without end."""
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004  # handled like bad JSON
    return found
