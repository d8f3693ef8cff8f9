"""Questions travel together and every answer finds its caller: the test is the server, at the other end of a socket pair."""

from __future__ import annotations

import gc
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import hiredis
import pytest
import redis
from redis.connection import AbstractConnection

from resilience.core.limiter import Limit
from resilience.errors import StorageUnavailable
from resilience.storage.carrier import AskAlone, Carrier, Question, Redirected
from resilience.storage.line import Line
from resilience.storage.script import bulk, charge_terms
from resilience.testing import FakeClock

TEN = Limit(10, 60)
ONE = charge_terms(TEN, 1)
PATIENCE = 10.0
"""For what always comes, however busy the machine."""


class Server:
    """What the test says and hears, on the connection that came last."""

    def __init__(self) -> None:
        self.connections = 0
        self.theirs: Noticed
        self.refuses: Exception | None = None
        self._arrived: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._end: socket.socket | None = None
        self._heard: deque[list[bytes]] = deque()
        self._reader = hiredis.Reader()

    def connect(self) -> AbstractConnection:
        """What a carrier is given to connect by."""
        if self.refuses is not None:
            raise self.refuses
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE)
        self.connections += 1
        self._arrived.put(ours)
        self.theirs = Noticed(fileno=theirs.detach())
        return Connected(self.theirs)

    @property
    def end(self) -> socket.socket:
        """Our end, once there is one."""
        if self._end is None:
            self._end = self._arrived.get(timeout=PATIENCE)
            self._reader = hiredis.Reader()
        return self._end

    def hear(self) -> list[bytes]:
        """The next command."""
        while not self._heard:
            data = self.end.recv(1_000_000)
            if not data:
                self.hang_up()
            self._reader.feed(data)
            while (command := self._reader.gets()) is not False:
                self._heard.append(command)
        return self._heard.popleft()

    def hear_keys(self) -> list[bytes]:
        """The buckets that the next call is about."""
        command = self.hear()
        return command[3 : 3 + int(command[2])]

    def silent(self) -> bool:
        """Whether nothing more has come."""
        self.end.settimeout(0.05)
        try:
            return not self._heard and not self.end.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.end.settimeout(PATIENCE)

    def allow(self, *levels: int) -> None:
        """Answer a call: everything is allowed, and this is left."""
        self.say(b"*%d\r\n%b" % (len(levels) + 1, bulk(b"1" * len(levels))) + b"".join(b":%d\r\n" % x for x in levels))

    def say(self, answer: bytes) -> None:
        """Put bytes on the wire."""
        self.end.sendall(answer)

    def is_left(self) -> bool:
        """Whether the carrier has closed the connection."""
        return not self.end.recv(1)

    def hang_up(self) -> None:
        """Close the connection."""
        end, self._end = self.end, None
        end.close()

    def close(self) -> None:
        """Close what there is."""
        if self._end is not None:
            self.hang_up()
        while not self._arrived.empty():
            self._arrived.get().close()


class Noticed(socket.socket):
    """The carrier's end, which says whether somebody listens."""

    listening = False

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.listening = False
        super().sendall(data, flags)

    def recv(self, size: int, flags: int = 0) -> bytes:
        self.listening = True
        return super().recv(size, flags)


class Connected(redis.connection.Connection):
    """A connection of redis-py that is one already."""

    def __init__(self, connected: Noticed) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sock = connected  # type: ignore[assignment]


@pytest.fixture
def server() -> Iterator[Server]:
    """The other end."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def carrier(server: Server) -> Iterator[Carrier]:
    """A carrier that is in no hurry."""
    carrier = Carrier(server.connect, uri="redis://test", timeout=PATIENCE)
    yield carrier
    carrier.close()


def question(key: str = "key", *, asking: bool = False) -> Question:
    return Question((bulk(key.encode()),), (ONE,), asking=asking)


def asked(carrier: Carrier, *keys: str) -> list[Question]:
    """Questions about these buckets, on their way."""
    questions = [question(key) for key in keys]
    for each in questions:
        carrier.send(each)
    return questions


def under_way(carrier: Carrier, server: Server) -> Question:
    """A question that the server has heard and not answered: what is sent now waits."""
    (first,) = asked(carrier, "first")
    assert [b"first"] == server.hear_keys()
    until(lambda: server.theirs.listening)
    return first


def connected(carrier: Carrier) -> bool:
    return carrier._line is not None and carrier._line._connection is not None


def in_background(function: Callable[[], Any]) -> list[Any]:
    """What comes of `function` in a thread, once it has."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:  # noqa: BLE001  # looked at by the test
            results.append(error)

    threading.Thread(target=run, daemon=True).start()
    return results


def failure_of(asked_for: Question) -> Exception | None:
    try:
        asked_for.wait()
    except Exception as error:  # noqa: BLE001  # looked at by the test
        return error
    return None


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_an_answer_is_whether_it_is_allowed_and_what_is_left(carrier: Carrier, server: Server) -> None:
    both = Question((bulk(b"a"), bulk(b"b")), (charge_terms(TEN, 1, more=True), ONE))
    carrier.send(both)
    assert [b"a", b"b"] == server.hear_keys()
    server.say(b"*3\r\n$2\r\n00\r\n:-5\r\n:9007199254740992\r\n")
    assert not both.wait()
    assert ([-5, 2**53], -5) == (both.levels, both.level)


def test_what_is_asked_meanwhile_travels_together(carrier: Carrier, server: Server) -> None:
    first = under_way(carrier, server)
    others = asked(carrier, *"abcab")
    assert server.silent()
    server.allow(1)
    assert [b"a", b"b", b"c"] == server.hear_keys()
    server.allow(10, 20, 30, 11, 21)
    assert all(each.wait() for each in (first, *others))
    assert [1, 10, 20, 30, 11, 21] == [each.level for each in (first, *others)]


def test_of_very_many_half_go_first_so_that_two_writes_are_under_way(carrier: Carrier, server: Server) -> None:
    under_way(carrier, server)
    others = asked(carrier, *map(str, range(128)))
    server.allow(1)
    first, second = server.hear_keys(), server.hear_keys()
    assert [str(number).encode() for number in range(128)] == [*first, *second]
    assert 64 == len(first)
    waiting = asked(carrier, "late")
    assert server.silent()
    server.allow(*range(len(first)))
    assert [b"late"] == server.hear_keys()
    server.allow(*range(len(second)))
    server.allow(7)
    assert all(each.wait() for each in (*others, *waiting))
    assert [*range(len(first)), *range(len(second)), 7] == [each.level for each in (*others, *waiting)]


def test_questions_of_very_many_steps_are_spread_over_several_calls(carrier: Carrier, server: Server) -> None:
    """A call has room for 65,536 steps."""
    under_way(carrier, server)
    others = [Question((bulk(b"key"),) * 1_200, (ONE,) * 1_200) for _ in range(128)]
    for each in others:
        carrier.send(each)
    server.allow(1)
    heard = 0
    while heard < 128 * 1_200:
        steps = len(server.hear()[5]) // 2
        assert steps <= 40_000
        server.allow(*range(heard, heard + steps))
        heard += steps
    assert all(each.wait() for each in others)
    assert [place * 1_200 for place in range(128)] == [each.level for each in others]


def test_answers_in_pieces_are_put_together(carrier: Carrier, server: Server) -> None:
    asked_for = under_way(carrier, server)
    for byte in b"*2\r\n$1\r\n1\r\n:123456\r\n":
        server.say(bytes([byte]))
    assert (True, 123_456) == (asked_for.wait(), asked_for.level)


def test_a_clock_of_the_callers_own_is_told(server: Server) -> None:
    carrier = Carrier(server.connect, uri="redis://test", timeout=PATIENCE, clock=FakeClock(5))
    carrier.send(question())
    assert b"5000000" == server.hear()[4]
    carrier.close()


def test_one_who_asks_and_waits_gets_the_answer(carrier: Carrier, server: Server) -> None:
    for level in range(3):  # the first is written by the carrier's thread, the others by the one who asks
        results = in_background(lambda: carrier.ask(question()))
        assert [b"key"] == server.hear_keys()
        server.allow(level)
        until(lambda: results)  # noqa: B023
        assert [True] == results


def test_whoever_asks_for_itself_also_sends_what_others_ask_meanwhile(carrier: Carrier, server: Server) -> None:
    under_way(carrier, server)
    server.allow(1)
    time.sleep(0.01)
    first = in_background(lambda: carrier.ask(question("first")))
    assert [b"first"] == server.hear_keys()
    until(lambda: server.theirs.listening)
    second = in_background(lambda: carrier.ask(question("second")))
    until(lambda: carrier._line is not None and carrier._line._waiting)
    server.allow(1)
    assert [b"second"] == server.hear_keys()
    until(lambda: first)
    server.allow(1)
    until(lambda: second)
    assert [True, True] == [*first, *second]


class TestGroups:
    """On a cluster a call of the script is about one slot."""

    @pytest.fixture
    def carrier(self, server: Server) -> Iterator[Carrier]:
        def first_letter(asked: Question) -> Hashable:
            return asked.keys[0].split(b"\r\n")[1][:1]

        carrier = Carrier(server.connect, uri="redis://test", timeout=PATIENCE, together=first_letter)
        yield carrier
        carrier.close()

    def test_each_has_a_call_of_its_own_in_one_write(self, carrier: Carrier, server: Server) -> None:
        under_way(carrier, server)
        others = asked(carrier, "a1", "b1", "a2", "c1", "b1")
        server.allow(1)
        assert [[b"a1", b"a2"], [b"b1"], [b"c1"]] == [server.hear_keys() for _ in range(3)]
        server.allow(11, 12)
        server.allow(21, 22)
        server.say(b"-CLUSTERDOWN Hash slot not served\r\n")
        assert all(each.wait() for each in (others[0], others[1], others[2], others[4]))
        assert [11, 21, 12, 22] == [each.level for each in (others[0], others[1], others[2], others[4])]
        with pytest.raises(StorageUnavailable, match="redis://test did not decide: CLUSTERDOWN"):
            others[3].wait()

    def test_only_the_group_whose_script_is_missing_is_asked_again(self, carrier: Carrier, server: Server) -> None:
        under_way(carrier, server)
        others = asked(carrier, "a", "b")
        server.allow(1)
        assert [b"a"] == server.hear_keys()
        assert [b"b"] == server.hear_keys()
        server.say(b"-NOSCRIPT No matching script.\r\n")
        server.allow(2)
        again = server.hear()
        assert [b"EVAL", b"1", b"a"] == [again[0], *again[2:4]]
        server.allow(1)
        assert [True, True] == [each.wait() for each in others]

    def test_who_asks_for_a_slot_on_its_way_travels_alone(self, carrier: Carrier, server: Server) -> None:
        under_way(carrier, server)
        plain, asking = question("a"), question("a", asking=True)
        carrier.send(plain)
        carrier.send(asking)
        server.allow(1)
        assert [b"a"] == server.hear_keys()
        assert [b"ASKING"] == server.hear()
        assert [b"a"] == server.hear_keys()
        server.allow(1)
        server.say(b"+OK\r\n")
        server.allow(2)
        assert [True, True] == [plain.wait(), asking.wait()]
        assert [1, 2] == [plain.level, asking.level]

    def test_asking_comes_before_the_whole_script_too(self, carrier: Carrier, server: Server) -> None:
        asking = question("a", asking=True)
        carrier.send(asking)
        for command, answer in ((b"EVALSHA", b"-NOSCRIPT No matching script.\r\n"), (b"EVAL", b"*2\r\n+1\r\n:5\r\n")):
            assert [b"ASKING"] == server.hear()
            assert command == server.hear()[0]
            server.say(b"+OK\r\n" + answer)
        assert (True, 5) == (asking.wait(), asking.level)

    @pytest.mark.parametrize(
        "answer", [b"-MOVED\r\n", b"-ASK 5\r\n", b"-MOVED 1 h:123456\r\n", b"*0\r\n", b"*3\r\n+1\r\n:1\r\n:2\r\n"]
    )
    def test_what_makes_no_sense_is_no_decision(self, carrier: Carrier, server: Server, answer: bytes) -> None:
        (one,) = asked(carrier, "a")
        server.hear()
        server.say(answer)
        with pytest.raises(StorageUnavailable):
            one.wait()

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (b"MOVED 3999 10.0.0.1:6381", ("10.0.0.1", 6381, False)),
            (b"ASK 3999 ::1:7000", ("::1", 7000, True)),
            (b"MOVED 1 :6381", ("", 6381, False)),
        ],
    )
    def test_another_node_is_named(
        self, carrier: Carrier, server: Server, answer: bytes, expected: tuple[str, int, bool]
    ) -> None:
        first = under_way(carrier, server)
        two = asked(carrier, "a", "a")
        server.allow(1)
        assert first.wait()
        server.hear()
        server.say(b"-%b\r\n" % answer)
        caught = []
        for each in two:
            with pytest.raises(Redirected) as raised:
                each.wait()
            caught.append(raised.value)
        assert [expected] * 2 == [(error.host, error.port, error.ask) for error in caught]
        assert caught[0] is not caught[1]
        assert not isinstance(caught[0], AskAlone)

    def test_a_slot_that_is_divided_is_told_from_one_that_is_elsewhere(self, carrier: Carrier, server: Server) -> None:
        (one,) = asked(carrier, "a")
        server.hear()
        server.say(b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n")
        with pytest.raises(AskAlone):
            one.wait()


class TestAbandoned:
    """A caller who is gone before the answer."""

    def test_what_was_not_sent_never_is(self, carrier: Carrier, server: Server) -> None:
        first = under_way(carrier, server)
        gone, stays = asked(carrier, "gone", "stays")
        gone.abandon()
        server.allow(1)
        assert [b"stays"] == server.hear_keys()
        server.allow(2)
        assert [True, True] == [first.wait(), stays.wait()]
        assert 2 == stays.level

    def test_a_write_of_which_everything_was_withdrawn_is_not_made(self, carrier: Carrier, server: Server) -> None:
        under_way(carrier, server)
        for gone in asked(carrier, "gone", "gone too"):
            gone.abandon()
        server.allow(1)
        assert server.silent()
        (after,) = asked(carrier, "after")
        assert [b"after"] == server.hear_keys()
        server.allow(2)
        assert after.wait()

    def test_what_it_took_is_given_back(self, carrier: Carrier, server: Server) -> None:
        gone = Question(
            (bulk(b"a"), bulk(b"b"), bulk(b"c")),
            (charge_terms(TEN, 1, more=True), charge_terms(TEN, 0, more=True), charge_terms(TEN, 2, -TEN.debt(6))),
        )
        carrier.send(gone)
        assert [b"a", b"b", b"c"] == server.hear_keys()
        gone.abandon()
        server.allow(1, 2, -3)
        refund = server.hear()
        assert [b"a", b"c"] == refund[3:5]
        assert [b"r 60000000 1 6000000 1 6000000 -", b"r 60000000 1 6000000 1 12000000 -3"] == refund[8:]

    def test_what_a_full_bucket_would_not_have_gained_meanwhile_is_not(self, carrier: Carrier, server: Server) -> None:
        """Or whoever came between would have had that and the burst."""
        fast, slow = Limit(100, 1), Limit(10, 36_000)
        gone = Question((bulk(b"a"), bulk(b"b")), (charge_terms(fast, 100, more=True), charge_terms(slow, 1)))
        carrier.send(gone)
        server.hear()
        gone.abandon()
        server.allow(0, slow.capacity - slow.unit)
        refund = server.hear()
        assert b"b" == refund[3]
        assert slow.unit - 3 * PATIENCE * 1_000_000 < int(refund[7].split(b" ")[5]) <= slow.unit - PATIENCE * 1_000_000

    def test_what_was_refused_is_not(self, carrier: Carrier, server: Server) -> None:
        gone = under_way(carrier, server)
        gone.abandon()
        server.say(b"*2\r\n$1\r\n0\r\n:5\r\n")
        assert server.silent()

    def test_who_leaves_after_the_answer_gives_back_too(self, carrier: Carrier, server: Server) -> None:
        gone = under_way(carrier, server)
        server.allow(5)
        assert gone.wait()
        gone.abandon()
        assert [b"first"] == server.hear_keys()

    def test_no_answer_no_refund(self, carrier: Carrier, server: Server) -> None:
        gone = under_way(carrier, server)
        gone.abandon()
        server.hang_up()
        until(lambda: not connected(carrier))
        asked(carrier, "after")
        assert [b"after"] == server.hear_keys()


class TestTrouble:
    """A failure is everybody's, and at once."""

    def test_the_end_of_the_connection_fails_what_is_under_way_and_what_waits(
        self, carrier: Carrier, server: Server
    ) -> None:
        failing = [under_way(carrier, server), *asked(carrier, *"abc")]
        server.hang_up()
        errors = []
        for each in failing:
            with pytest.raises(StorageUnavailable, match="redis://test did not decide: ") as caught:
                each.wait()
            errors.append(caught.value)
        assert 4 == len(set(map(id, errors))), "each has an error of its own: a shared one collects tracebacks"
        assert all(isinstance(error.__cause__, ConnectionError) for error in errors)

    def test_the_next_question_opens_a_new_connection(self, carrier: Carrier, server: Server) -> None:
        failed = under_way(carrier, server)
        server.say(b"-READONLY You can't write against a read only replica.\r\n")
        with pytest.raises(StorageUnavailable, match="READONLY"):
            failed.wait()
        (after,) = asked(carrier, "after")
        assert [b"after"] == server.hear_keys()
        server.allow(5)
        assert after.wait()

    def test_an_error_that_says_nothing_about_the_server_keeps_the_connection(
        self, carrier: Carrier, server: Server
    ) -> None:
        failed = under_way(carrier, server)
        (waiting,) = asked(carrier, "waiting")
        server.say(b"-OOM command not allowed when used memory > 'maxmemory'.\r\n")
        with pytest.raises(StorageUnavailable, match="OOM"):
            failed.wait()
        assert [b"waiting"] == server.hear_keys()
        server.allow(5)
        assert waiting.wait()
        assert 1 == server.connections

    def test_a_server_that_lacks_the_script_even_so_is_not_asked_for_ever(
        self, carrier: Carrier, server: Server
    ) -> None:
        one = under_way(carrier, server)
        server.say(b"-NOSCRIPT No matching script.\r\n")
        assert b"EVAL" == server.hear()[0]
        server.say(b"-NOSCRIPT No matching script.\r\n")
        with pytest.raises(StorageUnavailable, match="NOSCRIPT"):
            one.wait()

    def test_an_answer_that_does_not_come_fails_everybody_at_once(self, server: Server) -> None:
        carrier = Carrier(server.connect, uri="redis://test", timeout=0.5)
        failing = [under_way(carrier, server), *asked(carrier, *"abc")]
        started = time.monotonic()
        for each in failing:
            with pytest.raises(StorageUnavailable, match=r"no answer within 0\.5 s"):
                each.wait()
        assert time.monotonic() - started < 1.5, "one after the other it would be two seconds"
        carrier.close()

    def test_an_answer_that_came_while_this_process_stood_still_is_no_failure(self, server: Server) -> None:
        line = Line(server.connect, uri="redis://test", timeout=0.1, together=None, clock=None)
        line._adopt(server.connect())
        server.say(b"here")
        assert b"here" == line._receive(-60)
        with pytest.raises(TimeoutError):
            line._receive(-60)
        line._drop()

    def test_an_answer_that_nobody_asked_for_ends_the_connection(self, carrier: Carrier, server: Server) -> None:
        one = under_way(carrier, server)
        server.say(b"*2\r\n$1\r\n1\r\n:5\r\n*2\r\n$1\r\n1\r\n:6\r\n")
        assert (True, 5) == (one.wait(), one.level)
        until(lambda: not connected(carrier))

    @pytest.mark.parametrize(
        "answer",
        [
            b"*2\r\n$0\r\n\r\n:1\r\n",
            b"*2\r\n:1\r\n:1\r\n",
            b"*2\r\n$1\r\n1\r\n$1\r\n5\r\n",
            b"*2\r\n-ERR\r\n:1\r\n",
            b"+OK\r\n",
        ],
    )
    def test_an_answer_that_is_none_ends_the_connection(self, carrier: Carrier, server: Server, answer: bytes) -> None:
        failing = [under_way(carrier, server), *asked(carrier, "waiting")]
        server.say(answer)
        for each in failing:
            with pytest.raises(
                StorageUnavailable, match="redis://test did not decide: this is no answer of the script: "
            ):
                each.wait()
        assert server.is_left()

    def test_nobody_to_connect_to(self, carrier: Carrier, server: Server) -> None:
        server.refuses = ConnectionRefusedError("nobody is there")
        (failed,) = asked(carrier, "a")
        with pytest.raises(StorageUnavailable, match="nobody is there"):
            failed.wait()
        server.refuses = None
        (after,) = asked(carrier, "b")
        server.hear()
        server.allow(1)
        assert after.wait()


class TestEnd:
    """Threads and connections are given back."""

    def test_a_closed_carrier_answers_what_is_under_way_and_lets_its_thread_go(
        self, carrier: Carrier, server: Server
    ) -> None:
        one = under_way(carrier, server)
        carrier.close()
        server.allow(5)
        assert one.wait()
        assert server.is_left()

    def test_a_closed_carrier_may_be_used_again(self, carrier: Carrier, server: Server) -> None:
        for number in range(3):
            (one,) = asked(carrier, "a")
            server.hear()
            server.allow(number)
            assert (True, number) == (one.wait(), one.level)
            carrier.close()

    def test_who_comes_too_late_is_told_so(self, carrier: Carrier, server: Server) -> None:
        """Between asking for the line and sending on it another thread may have closed it."""
        under_way(carrier, server)
        server.allow(1)
        line = carrier._line
        assert line is not None
        carrier.close()
        until(lambda: line.ended)
        late = question()
        line.send(late)
        with pytest.raises(StorageUnavailable, match="the connection was closed"):
            late.wait()

    def test_a_carrier_that_nobody_holds_ends_its_thread(self, server: Server) -> None:
        carrier = Carrier(server.connect, uri="redis://test", timeout=PATIENCE)
        one = under_way(carrier, server)
        server.allow(1)
        assert one.wait()
        line = carrier._line
        del carrier
        gc.collect()
        assert line is not None
        until(lambda: line.ended)
        assert server.is_left()

    def test_a_connection_that_comes_when_nobody_wants_it_is_closed(self, server: Server) -> None:
        release = threading.Event()

        def connect() -> AbstractConnection:
            release.wait(PATIENCE)
            return server.connect()

        carrier = Carrier(connect, uri="redis://test", timeout=0.01)
        (failed,) = asked(carrier, "a")
        with pytest.raises(StorageUnavailable, match="no connection within"):
            failed.wait()
        line = carrier._line
        carrier.close()
        assert line is not None
        until(lambda: line.ended)
        release.set()
        assert server.is_left()

    def test_an_error_that_nobody_foresaw_leaves_nobody_waiting(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Any] = []
        monkeypatch.setattr(threading, "excepthook", seen.append)

        def together(_: Question) -> Hashable:
            raise ZeroDivisionError

        carrier = Carrier(server.connect, uri="redis://test", timeout=PATIENCE, together=together)
        (one,) = asked(carrier, "a")
        with pytest.raises(StorageUnavailable):
            one.wait()
        until(lambda: seen)
        assert ZeroDivisionError is seen[0].exc_type
        carrier.close()

    @pytest.mark.parametrize("method", ["_listen", "_drop", "_hand_out", "_receive"])
    def test_a_thread_that_dies_leaves_nobody_waiting(
        self, carrier: Carrier, server: Server, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        seen: list[Any] = []
        monkeypatch.setattr(threading, "excepthook", seen.append)
        failing = [under_way(carrier, server), *asked(carrier, *"abc")]
        line = carrier._line
        assert line is not None

        def die(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(line, method, die)
        server.say(b"*0\r\n" if method == "_drop" else b"*2\r\n$1\r\n1\r\n:5\r\n")
        failures = in_background(lambda: [failure_of(each) for each in failing[1:]])
        until(lambda: failures)
        assert [StorageUnavailable] * 3 == [type(each) for each in failures[0]]
        until(lambda: line.ended and seen)
        server.theirs.close()
        server.close()
        (after,) = asked(carrier, "after")
        assert [b"after"] == server.hear_keys()
        server.allow(7)
        assert (True, 7) == (after.wait(), after.level)

    @pytest.mark.parametrize("allowed", [0, 1, 2])
    def test_without_threads_there_is_no_decision_and_nobody_waits(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, allowed: int
    ) -> None:
        """The first thread finds out what threads are, the second is the carrier's, the third connects."""
        left = [True] * allowed
        start = threading.Thread.start

        def start_if_there_are_any(thread: threading.Thread) -> None:
            if not left:
                raise RuntimeError("can't start new thread")
            left.pop()
            start(thread)

        carrier = Carrier(server.connect, uri="redis://test", timeout=PATIENCE)
        monkeypatch.setattr(threading.Thread, "start", start_if_there_are_any)
        with pytest.raises(StorageUnavailable, match="redis://test did not decide: can't start new thread"):
            carrier.ask(question())
        monkeypatch.undo()
        (one,) = asked(carrier, "a")
        server.hear()
        server.allow(1)
        assert one.wait()
        carrier.close()
