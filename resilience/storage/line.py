"""A connection that many share, and the thread that looks after it."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import reprlib
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

import hiredis
import redis
from redis.connection import AbstractConnection

from resilience.errors import StorageUnavailable
from resilience.ports import Clock
from resilience.storage.question import AskAlone, Bunch, Call, Question, Redirected
from resilience.storage.script import encode, returned_terms

__all__ = ["Line"]

_BUNCH = 32
"""Callers who are woken together: an event each would cost them half as much again."""
_MOST = 1_000
"""Charges in one write, about. Other clients of the server wait for its end, some 3 ms."""
_UNDER_WAY = 2
"""Writes that are not answered yet."""
_LEAST = 0.2
"""The part of the timeout that the server has at least, however long a question waited for its turn."""
_NEARLY = 0.95
"""The part of the timeout from which on it need not be set anew."""
_AT_REST = 0.5
"""Seconds without a question, after which the server may have closed the connection."""
_RECEIVED = 65_536
_ASKING = b"*1\r\n$6\r\nASKING\r\n"

_TROUBLE = (OSError, redis.RedisError, hiredis.HiredisError, StorageUnavailable)
_NOTHING_YET = (TimeoutError, BlockingIOError, ssl.SSLWantReadError)
# Not here any more, or not yet: another connection may lead to a server that can.
_ELSEWHERE = re.compile(r"\b(READONLY|LOADING|MASTERDOWN|NOAUTH)\b")
# What only a node of a cluster says.
_SLOTS = re.compile(r"(MOVED|ASK|TRYAGAIN|CROSSSLOT)\b")
_REDIRECTION = re.compile(r"(?P<code>MOVED|ASK) \d+ (?P<host>\S*):(?P<port>\d{1,5})$")
_CLOSED = ConnectionError("the connection was closed")


class Line:
    """The connection of a carrier, one after the other, and its thread.

    Whoever has the floor writes and reads: the thread, or a caller whose thread would only wait for that one. It is taken by
    popping `_floor`, and given back by `_yield_floor`, which passes it to the thread if there is something to do. Callers and
    whoever has the floor share no lock: a caller adds to the last bunch and looks then whether that was sealed meanwhile; the
    other seals a bunch and collects then. Whoever takes a question out of a bunch has it.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractConnection],
        *,
        uri: str,
        timeout: float,
        together: Callable[[Question], Hashable] | None,
        clock: Clock | None,
    ) -> None:
        self.uri = uri
        self.ended = False
        """Whether the thread is gone: nothing is carried any more."""
        self.beside = False
        """Whether the thread runs beside the callers: it is a real one, not a greenlet of the thread `native`."""
        self.native = 0
        self._connect = connect
        self._timeout = timeout
        self._together = together
        self._clock = clock
        self._last = Bunch()
        self._last.sealed = True
        self._waiting: deque[Bunch] = deque()
        self._floor: deque[None] = deque([None])
        # Has the thread take the floor. Also put to by the garbage collector, in the middle of anything.
        self._passed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopped = False
        self._left = False
        # From here on for those who have the floor.
        self._under_way: deque[Call] = deque()
        self._writes = 0
        self._attempt: _Attempt | None = None
        self._connection: AbstractConnection | None = None
        self._socket: socket.socket
        self._patience = 0.0  # the socket's timeout: setting it is a system call
        self._used = 0.0
        self._reader: hiredis.Reader
        # What fails without being sent fails with this one. Made in advance: it may be for want of memory.
        self._spare = Call(self)

    def start(self) -> None:
        """Start the thread. Raises `RuntimeError` when there cannot be one."""
        try:
            threading.Thread(target=self._run, name="seawall-carrier", daemon=True).start()
        except BaseException:  # nobody looks after a thread that was not seen to start; if it did, it ends
            self._stopped = True
            self._end()
            self._passed.put(None)
            raise

    def stop(self) -> None:
        """Let the thread end when all is answered."""
        self._stopped = True
        if self._take_floor():
            self._passed.put(None)

    def send(self, question: Question) -> None:
        """Add a question to those that wait, and have the thread look after them."""
        self._add(question)
        if self._floor and self._take_floor():
            self._passed.put(None)

    def speak(self, question: Question) -> None:
        """Add a question and, where nobody has the floor, see to it until it is answered."""
        self._add(question)
        if not (self._floor and self._take_floor()):
            return
        if self._connection is None:
            self._passed.put(None)  # connecting takes its time: that is for the thread
            return
        try:
            self._converse(question.bunch)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is no decision; it is the cause of what is raised
            self._fail(error)
        except BaseException:
            self._fail(ConnectionError("its reader was interrupted"))
            raise
        finally:
            self._yield_floor()

    def serve(self, question: Question) -> None:
        """Ask one question, without a thread, over a connection for it alone."""
        self._add(question)
        try:
            connection = self._connect()
            connection.connect()  # type: ignore[no-untyped-call]
            self._adopt(connection)
            self._converse(question.bunch)
        except Exception as error:  # noqa: BLE001  # as in `speak`
            self._fail(error)
        except BaseException:
            self._fail(ConnectionError("its reader was interrupted"))
            raise
        finally:
            self.ended = True
            self._drop()

    def leave_to_parent(self) -> None:
        """In a forked child: never to touch the parent's connection again.

        Greenlets survive a fork, also the one that is about to read from it: its descriptor becomes another, dead one.
        """
        self._left = True
        for connection in (self._connection, None if self._attempt is None else self._attempt.opening):
            sock = None if connection is None else _socket_of(connection)
            if sock is not None:
                with contextlib.suppress(OSError, ValueError):
                    reading, writing = os.pipe()
                    os.close(writing)
                    os.dup2(reading, sock.fileno(), inheritable=False)
                    os.close(reading)

    def return_abandoned(self, call: Call) -> None:
        """Give back what the call took for those who did not wait for it."""
        with contextlib.suppress(IndexError):
            while True:
                question = call.abandoned.popleft()
                if question.took:
                    self._return(question)

    def _add(self, question: Question) -> None:
        while True:
            bunch = self._last
            if bunch.sealed or len(bunch.questions) >= _BUNCH:
                self._last = bunch = Bunch()
                self._waiting.append(bunch)
            question.bunch = bunch
            bunch.questions.append(question)
            if not bunch.sealed:
                break
            try:
                bunch.questions.remove(question)
            except ValueError:
                break  # it was collected after all
        if self.ended:
            self._refuse_waiting(_CLOSED)

    def _return(self, question: Question) -> None:
        assert question.bunch is not None
        seconds = time.monotonic() - question.bunch.asked + self._timeout  # the refund is under way for so long at most
        returned = [
            (key, back)
            for key, terms, level in zip(question.keys, question.terms, question.levels, strict=True)
            if (back := returned_terms(terms, level, seconds)) is not None
        ]
        if returned:
            self.send(Question([key for key, _ in returned], [back for _, back in returned]))

    # The floor.

    def _take_floor(self) -> bool:
        try:
            self._floor.pop()
        except IndexError:
            return False
        return True

    def _yield_floor(self) -> None:
        self._floor.append(None)
        if (self._waiting or self._under_way or self._stopped) and self._take_floor():
            self._passed.put(None)

    def _run(self) -> None:
        try:
            while True:
                self._passed.get()
                try:
                    self._converse(None)
                except _TROUBLE as error:
                    if self._left:
                        return
                    self._fail(error)
                if self._stopped:
                    return
                self._yield_floor()
        finally:
            if self._left:
                threading.Event().wait()  # for ever: the parent goes on with this, and with those who wait for it
            self._end()

    def _end(self) -> None:
        self.ended = True
        try:
            self._fail(_CLOSED)
        finally:
            if self._attempt is not None:
                self._attempt.give_up()

    # What whoever has the floor does.

    def _converse(self, own: Bunch | None) -> None:
        """Ask and listen: until nobody asks any more, or until one's `own` bunch is answered."""
        if not self._under_way:
            if not self._waiting:
                return
            self._require_connection()
        while True:
            while self._waiting and self._writes < _UNDER_WAY:
                self._write(self._collect())
            if not self._under_way or (own is not None and own.event.is_set()):
                return
            self._listen()
            if own is None:
                time.sleep(0)  # whoever was answered may ask again now: those questions travel together

    def _collect(self) -> list[Call]:
        """The calls of the next write. Of very many questions half: the others are for the second write under way."""
        waiting = sum(len(bunch.questions) for bunch in list(self._waiting))
        under_way = sum(len(call.keys) for call in self._under_way)
        most = min(max(_BUNCH, (waiting + under_way + 1) // 2), _MOST)
        calls: dict[Hashable, Call] = {}
        collected = steps = 0
        # To the nearest bunch. A question may have very many steps.
        while self._waiting and collected + len(self._waiting[0].questions) // 2 < most and steps < _MOST:
            bunch = self._waiting.popleft()
            bunch.sealed = True
            collected += len(bunch.questions)
            if self._together is None:
                steps += self._collect_bunch(bunch, self._call_for(bunch, calls, None))
            else:
                steps += self._collect_groups(bunch, calls, self._together)
        return list(calls.values())

    def _collect_bunch(self, bunch: Bunch, call: Call) -> int:
        """Returns how many steps that were."""
        keys, terms = call.keys, call.terms
        before = len(keys)
        take = bunch.questions.popleft
        with contextlib.suppress(IndexError):
            while True:
                question = take()
                question.call = call  # first: whoever withdraws it from now on says so to the call
                if not question.withdrawn:
                    question.place = len(keys)
                    keys += question.keys
                    terms += question.terms
        return len(keys) - before

    def _collect_groups(
        self, bunch: Bunch, calls: dict[Hashable, Call], together: Callable[[Question], Hashable]
    ) -> int:
        steps = 0
        collected: list[Question] = []
        with contextlib.suppress(IndexError):
            while True:
                collected.append(bunch.questions.popleft())
        try:
            groups = [question if question.asking else together(question) for question in collected]
        except BaseException:
            lost = self._call_for(bunch, calls, None)
            for question in collected:
                question.call = lost
            raise
        for question, group in zip(collected, groups, strict=True):
            call = self._call_for(bunch, calls, group, asking=question.asking)
            question.call = call
            if not question.withdrawn:
                question.place = len(call.keys)
                call.keys += question.keys
                call.terms += question.terms
                steps += len(question.keys)
        return steps

    def _call_for(self, bunch: Bunch, calls: dict[Hashable, Call], group: Hashable, *, asking: bool = False) -> Call:
        call = calls.get(group)
        if call is None:
            call = calls[group] = Call(self, asking=asking)
            self._under_way.append(call)  # now: whatever happens, somebody answers it
        if not call.bunches or call.bunches[-1] is not bunch:
            call.bunches.append(bunch)
            bunch.calls += 1
        return call

    def _write(self, calls: list[Call]) -> None:
        now = time.monotonic()
        told = b"" if self._clock is None else b"%d" % self._clock.microseconds()
        written: list[bytes] = []
        last: Call | None = None
        for call in calls:
            if not call.keys:  # all were withdrawn
                self._under_way.remove(call)
                call.finish()
                continue
            call.deadline = max(call.bunches[0].asked + self._timeout, now + self._timeout * _LEAST)
            call.asks = call.asking
            if call.asking:
                written.append(_ASKING)
            written.append(encode(call.keys, call.terms, told, whole=call.whole))
            last = call
        if last is not None:
            last.last = True
            self._writes += 1
            self._used = now
            self._wait_up_to(last.deadline - now)
            self._socket.sendall(b"".join(written))

    def _listen(self) -> None:
        """Hand out the answers that come next."""
        data = self._receive(self._under_way[0].deadline - time.monotonic())
        if not data:
            raise ConnectionResetError("the server closed the connection")
        reader = self._reader
        reader.feed(data)
        while (reply := reader.gets()) is not False:
            if not self._under_way:
                raise ConnectionError("the server answered what nobody had asked")
            self._hand_out(reply)

    def _receive(self, seconds: float) -> bytes:
        if seconds > 0:
            try:
                self._wait_up_to(seconds)
                return self._socket.recv(_RECEIVED)
            except _NOTHING_YET:
                pass
        try:
            # Perhaps it was this process that stood still, and the answer is there.
            self._wait_up_to(0.0)
            return self._socket.recv(_RECEIVED)
        except _NOTHING_YET:
            raise TimeoutError(f"no answer within {self._timeout:g} s") from None

    def _wait_up_to(self, seconds: float) -> None:
        if seconds > self._timeout * _NEARLY:
            seconds = self._timeout
        if seconds != self._patience:
            self._socket.settimeout(seconds)
            self._patience = seconds

    def _hand_out(self, reply: Any) -> None:
        call = self._under_way[0]
        if call.asks:
            call.asks = False
            return
        self._under_way.popleft()
        if call.last:
            call.last = False
            self._writes -= 1
        if _is_decision(reply, len(call.keys)):
            call.reply = reply
            call.finish()
            if call.abandoned:
                self.return_abandoned(call)
        elif isinstance(reply, hiredis.ReplyError):
            self._refused(call, str(reply))
        else:
            self._under_way.appendleft(call)
            raise ConnectionError(f"this is no answer of the script: {reprlib.repr(reply)}")

    def _refused(self, call: Call, message: str) -> None:
        if message.startswith("NOSCRIPT") and not call.whole:
            call.whole = True
            self._under_way.append(call)
            self._write([call])
            return
        # Where there is one server only, nobody could follow.
        elsewhere = None if self._together is None else _REDIRECTION.match(message)
        if elsewhere is not None:
            call.error = Redirected(elsewhere["host"], int(elsewhere["port"]), elsewhere["code"] == "ASK")
        elif self._together is not None and message.startswith("TRYAGAIN"):
            call.error = AskAlone()
        else:
            if _ELSEWHERE.search(message):
                self._under_way.appendleft(call)
                raise redis.ConnectionError(message)
            if self._together is None and _SLOTS.match(message):
                message += " (this is a node of a cluster: name it as redis+cluster://)"
            call.error = redis.ResponseError(message)
        call.finish()

    def _fail(self, error: Exception) -> None:
        """Fail everything under way and everything that waits; not what those ask then whose questions have failed."""
        try:
            self._drop()
        finally:
            self._writes = 0
            self._collect_waiting(self._spare)
            self._under_way.append(self._spare)
            while self._under_way:
                call = self._under_way.popleft()
                call.error = error
                call.finish()
            self._spare = Call(self)

    def _refuse_waiting(self, error: Exception) -> None:
        refused = Call(self)
        self._collect_waiting(refused)
        refused.error = error
        refused.finish()

    def _collect_waiting(self, call: Call) -> None:
        """Put everything that waits in a call that is never made."""
        with contextlib.suppress(IndexError):
            while True:
                bunch = self._waiting.popleft()
                bunch.sealed = True
                bunch.calls += 1
                call.bunches.append(bunch)
                self._collect_bunch(bunch, call)

    # Connections.

    def _require_connection(self) -> None:
        if self._connection is not None and (time.monotonic() - self._used < _AT_REST or self._stands()):
            return
        self._drop()
        self._adopt(self._connected())
        if not self._stands():  # it was made for questions that have failed since
            self._drop()
            self._adopt(self._connected())

    def _connected(self) -> AbstractConnection:
        """A new connection. The one that is being opened already, if there is one: they do not pile up."""
        attempt = self._attempt
        if attempt is None:
            attempt = self._attempt = _Attempt.begin(self._connect)
        left = self._waiting[0].asked + self._timeout - time.monotonic()
        if not attempt.done.wait(max(left, self._timeout * _LEAST)):
            raise TimeoutError(f"no connection within {self._timeout:g} s")
        self._attempt = None
        if attempt.connection is None:
            raise attempt.error
        return attempt.connection

    def _adopt(self, connection: AbstractConnection) -> None:
        sock = _socket_of(connection)
        if sock is None or self._left:
            raise ConnectionError("no connection")
        self._socket = sock
        self._patience = -1.0
        self._used = time.monotonic()
        self._reader = hiredis.Reader()
        self._connection = connection

    def _stands(self) -> bool:
        """Whether the server has not closed the connection while nothing was asked."""
        try:
            self._wait_up_to(0.0)
            self._socket.recv(1)
        except _NOTHING_YET:
            return True
        except OSError:
            return False
        return False  # its end, or an answer that nobody waits for

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()  # type: ignore[no-untyped-call]


def _is_decision(reply: Any, steps: int) -> bool:
    """Whether the reply has a flag and a level for every step. For every call: it takes 10 ns a step."""
    if type(reply) is not list or len(reply) != steps + 1 or type(reply[0]) is not bytes or len(reply[0]) != steps:
        return False
    try:
        sum(reply[1:])
    except TypeError:  # one is no number
        return False
    return True


def _socket_of(connection: AbstractConnection) -> socket.socket | None:
    """Read from here and not by redis-py, whose parser cannot be interrupted and go on."""
    return connection._sock  # noqa: SLF001


class _Attempt:
    """A connection that is being opened, by a thread of its own: finding an address has no timeout, callers have."""

    def __init__(self, connect: Callable[[], AbstractConnection]) -> None:
        self.done = threading.Event()
        self.connection: AbstractConnection | None = None
        self.opening: AbstractConnection | None = None
        self.error: Exception = ConnectionError("no connection")
        self._connect = connect
        self._wanted = True
        self._process = os.getpid()

    @classmethod
    def begin(cls, connect: Callable[[], AbstractConnection]) -> _Attempt:
        """One that is under way."""
        attempt = cls(connect)
        try:
            threading.Thread(target=attempt._run, name="seawall-connecting", daemon=True).start()
        except RuntimeError as error:  # there are too many threads already, or the interpreter is ending
            raise ConnectionError(str(error)) from error
        return attempt

    def _run(self) -> None:
        try:
            self.opening = connection = self._connect()
            connection.connect()  # type: ignore[no-untyped-call]
            self.connection = connection
        except _TROUBLE as error:
            self.error = error
        except Exception as error:  # noqa: BLE001  # UnicodeError for the name of a host; redis-py's of its options
            self.error = ConnectionError(f"{type(error).__name__}: {error}")
        finally:
            if os.getpid() != self._process:
                # The copy in a forked child, under greenlets: the connection is the parent's, and threading would complain
                # about the end of a thread that it does not know.
                threading.Event().wait()
            self.done.set()
            if not self._wanted:
                self._disconnect()

    def give_up(self) -> None:
        """Nobody needs it any more."""
        self._wanted = False
        if self.done.is_set():
            self._disconnect()

    def _disconnect(self) -> None:
        if self.connection is not None:
            self.connection.disconnect()  # type: ignore[no-untyped-call]
