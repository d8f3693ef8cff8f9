"""The tests that every storage of state has to pass."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar, Final, TypeVar

from resilience.errors import StorageUnavailable
from resilience.ports import Change, Clock, StateStorage, Stored
from resilience.testing.crowds import crowd
from resilience.testing.fakes import FakeClock

__all__ = ["StateStorageConformance"]

_LONG_AGO: Final = 1_700_000_000.0
_KEEP: Final = 60.0

T = TypeVar("T")

_fresh = itertools.count()
_RUN = uuid.uuid4().hex[:12]


class StateStorageConformance:
    """Tests for a storage of state of your own: derive from it, and say how one is opened.

        class TestMine(StateStorageConformance):
            def open_state_storage(self, clock):
                return MyStorage(ADDRESS, clock=clock)

            def open_another(self, storage):
                return MyStorage(ADDRESS)

    `open_state_storage` is called by every test, with a `FakeClock` or, where threads or the storage's own time matter, with
    None: then the storage uses the clock that it uses in production. `open_another` opens one that meets `storage` at the
    same records, as a second process would; without it the same object is asked twice. What they return is closed when the
    test is over. All storages may share one server: every test uses names that nobody used before.

    The tests are plain methods and use nothing of a test framework: pytest runs the class as it stands, unittest runs it
    when it is also derived from `unittest.TestCase`.

    The attributes may be set by the class that derives from it: whether time is that of the `FakeClock` (`fake_time`; else
    the tests sleep for fractions of a second), for how many seconds news are waited for (`patience`), whether followers are
    called when there are news (`tells`), and how many `threads` make how many `changes` each.
    """

    fake_time: ClassVar[bool] = True
    patience: ClassVar[float] = 2.0
    tells: ClassVar[bool] = False
    threads: ClassVar[int] = 8
    changes: ClassVar[int] = 25

    def open_state_storage(self, clock: Clock | None) -> StateStorage:
        """A storage to be tested: under `clock`, or under its own if that is None."""
        raise NotImplementedError(
            f"{type(self).__name__} says how a storage is opened: def open_state_storage(self, clock)"
        )

    def open_another(self, storage: StateStorage) -> StateStorage:
        """Another one that meets `storage` at the same records, under the same clock."""
        return storage

    # Records

    def test_a_record_that_nobody_made_has_no_text(self) -> None:
        """Neither when it is read nor when it is changed."""
        name = _fresh_name()
        with self._opened(None) as storage:
            seen: list[bytes | None] = []
            _expect(None, storage.read(name).text, "the text of no record")
            _expect("answer", storage.update(name, _looking(seen, "answer"), keep=_KEEP), "what the change answered")
            _expect([None], seen, "what the change was given")
            _expect(None, storage.read(name).text, "the text after nothing was written")

    def test_everybody_reads_what_was_written_last(self) -> None:
        """A change is given the text of the one before, and its answer is the caller's."""
        name = _fresh_name()
        with self._opened(None) as storage, self._another(storage) as other:
            texts: list[bytes | None] = []
            for turn, (writer, reader) in enumerate([(storage, other), (other, storage), (storage, storage)]):
                text = b"text %d" % turn
                _expect(turn, writer.update(name, _noting(texts, text, turn), keep=_KEEP), "the answer")
                _expect(text, reader.read(name).text, f"read after change {turn}")
            _expect([None, b"text 0", b"text 1"], texts, "what the changes were given")

    def test_a_record_is_removed_by_a_change_to_nothing(self) -> None:
        """An empty text is a text."""
        name = _fresh_name()
        with self._opened(None) as storage, self._another(storage) as other:
            _write(storage, name, b"")
            _expect(b"", other.read(name).text, "an empty record")
            _write(other, name, None)
            _expect(None, storage.read(name).text, "a removed one")
            _write(storage, name, b"again")
            _expect(b"again", other.read(name).text, "one that was made again")

    def test_a_change_that_raises_changes_nothing(self) -> None:
        """Nor does it keep others from the record, and its error is the caller's."""
        name = _fresh_name()

        def fail(_text: bytes | None, _now: float) -> tuple[bytes | None, None]:
            raise ZeroDivisionError

        with self._opened(None) as storage, self._another(storage) as other:
            _write(storage, name, b"before")
            for _ in range(3):
                with _raises(ZeroDivisionError):
                    storage.update(name, fail, keep=_KEEP)
            _expect(b"before", other.read(name).text, "after a change that raised")
            _write(other, name, b"after")
            _expect(b"after", storage.read(name).text, "after another one")

    def test_any_bytes_are_kept_up_to_4000(self) -> None:
        """One more is refused, and so is no time; the record stays as it was."""
        name = _fresh_name()
        with self._opened(None) as storage, self._another(storage) as other:
            for text in (bytes(range(256)), bytes(4_000), b"\xff" * 4_000, b"\0", b"\r\n"):
                _write(storage, name, text)
                _expect(text, other.read(name).text, f"a text of {len(text)} bytes")
            for wrong, keep in (
                (b"x" * 4_001, _KEEP),
                (b"x", 0.0),
                (b"x", -1.0),
                (b"x", float("inf")),
                (b"x", float("nan")),
            ):
                with _raises(ValueError):
                    _write(storage, name, wrong, keep=keep)
            _expect(b"\r\n", other.read(name).text, "after what was refused")

    def test_records_of_any_names_are_kept_apart(self) -> None:
        """Whatever a circuit is called, no other one shares its record."""
        name = _fresh_name()
        others = [f"{name}{end}" for end in ("", " ", ":", "*", "\0", "\n", "ä", "@host", "{a}", "x" * 500, "x" * 501)]
        with self._opened(None) as storage, self._another(storage) as other:
            for number, one in enumerate(others):
                _write(storage, one, b"%d" % number)
            for number, one in enumerate(others):
                _expect(b"%d" % number, other.read(one).text, f"the record {one[:60]!r} of {len(one)} characters")

    # Time

    def test_everybody_reads_the_same_clock(self) -> None:
        """What one says of a moment, the others understand; and it goes on."""
        name = _fresh_name()
        with self._opened_under_time() as (storage, wait), self._another(storage) as other:
            following = other.follow(name)
            times: list[float] = []
            for one in (storage, other, storage, other):
                times.append(one.read(name).now)
                times.append(one.update(name, lambda _, now: (b"x%f" % now, now), keep=_KEEP))
                self._expect_soon(b"x%f" % times[-1], lambda: following.read().text, "followed")
                times.append(following.read().now)
                wait(0.1)
            following.close()
            gone = [later - earlier for earlier, later in itertools.pairwise(times)]
            # A clock that is learned over a network may be off by as long as an answer takes.
            _expect([], [each for each in gone if each < -0.02], "times that went backwards by more than 20 ms")
            _expect(
                True, 0.2 < times[-1] - times[0] < 30, f"three tenths of a second later: {times[-1] - times[0]:f} s"
            )

    def test_a_record_is_kept_for_as_long_as_was_asked(self) -> None:
        """Since its last change."""
        name, longer = _fresh_name(), _fresh_name()
        with self._opened_under_time() as (storage, wait), self._another(storage) as other:
            _write(storage, longer, b"kept", keep=30 * 86_400.0)
            _write(storage, name, b"first", keep=0.6)
            wait(0.3)
            _expect(b"first", other.read(name).text, "before its time is over")
            _write(other, name, b"second", keep=0.6)
            wait(0.4)
            _expect(b"second", storage.read(name).text, "its time began anew")
            _expect(b"kept", other.read(longer).text, "what is to be kept for a month")

    def test_a_record_that_was_forgotten_is_made_anew(self) -> None:
        """It is forgotten some time after it was to be kept, and until then it is as it was."""
        name = _fresh_name()
        with self._opened_under_time() as (storage, wait), self._another(storage) as other:
            following = other.follow(name)
            _write(storage, name, b"first", keep=0.05)
            wait(0.3)
            seen: list[bytes | None] = []
            storage.update(name, _noting(seen, b"second", None), keep=_KEEP)
            _expect(True, seen[-1] in (None, b"first"), f"what the change was given: {seen[-1]!r}")
            _expect(b"second", other.read(name).text, "made anew")
            self._expect_soon(b"second", lambda: following.read().text, "followed")
            following.close()

    # Followers

    def test_who_follows_sees_every_change_in_the_number_and_reads_what_it_is(self) -> None:
        """Made, changed, changed back, removed: by others and by the follower's own process."""
        name = _fresh_name()
        with self._opened(None) as storage, self._another(storage) as other:
            following = storage.follow(name)
            self._expect_soon(None, lambda: following.read().text, "before it is made")
            for writer in (other, storage):
                for text in (b"one", b"two", b"one", None, b"three", None):
                    heard = following.cell[following.place]
                    _write(writer, name, text)
                    self._expect_news(following.read, lambda: following.cell[following.place], heard, text)
            following.close()

    def test_a_record_that_is_there_already_is_followed_as_it_is(self) -> None:
        """Soon: over a network the first news is that it exists."""
        name = _fresh_name()
        with self._opened(None) as storage, self._another(storage) as other:
            _write(storage, name, b"before")
            following = other.follow(name)
            self._expect_soon(b"before", lambda: following.read().text, "followed")
            following.close()

    def test_nothing_is_heard_of_other_records_nor_of_changes_to_the_same(self) -> None:
        """Calls on closed circuits are not disturbed by what does not concern them."""
        name, another = _fresh_name(), _fresh_name()
        with self._opened(None) as storage, self._another(storage) as other:
            _write(storage, name, b"same")
            following = other.follow(name)
            self._expect_soon(b"same", lambda: following.read().text, "followed")
            heard = following.cell[following.place]
            for number in range(5):
                _write(storage, another, b"%d" % number)
                storage.update(name, _looking([], None), keep=_KEEP)
                storage.exchange(name, "member", b"%d" % number, keep=_KEEP)
            # What is heard after them is heard in order, so had there been news of these, they would be here.
            last = other.follow(another)
            self._expect_soon(b"4", lambda: last.read().text, "the last change of the other one")
            _expect(heard, following.cell[following.place], "the number")
            following.close()
            last.close()

    def test_followers_of_one_record_do_not_depend_on_each_other(self) -> None:
        """One that stopped following takes nothing from the others."""
        name = _fresh_name()
        with self._opened(None) as storage, self._another(storage) as other:
            first, second = other.follow(name), other.follow(name)
            _write(storage, name, b"one")
            self._expect_soon((b"one", b"one"), lambda: (first.read().text, second.read().text), "both follow")
            first.close()
            first.close()
            heard = second.cell[second.place]
            _write(storage, name, b"two")
            self._expect_news(second.read, lambda: second.cell[second.place], heard, b"two")
            second.close()

    def test_who_is_to_be_told_is_told(self) -> None:
        """By storages that tell; by others the number says it all."""
        name = _fresh_name()
        told = threading.Event()
        with self._opened(None) as storage, self._another(storage) as other:
            following = other.follow(name, told.set)
            self._expect_soon(None, lambda: following.read().text, "before it is made")
            told.clear()
            _write(storage, name, b"news")
            self._expect_soon(b"news", lambda: following.read().text, "followed")
            if self.tells:
                _expect(True, told.wait(self.patience), "told")
            following.close()

    # Members

    def test_members_see_what_everybody_has_left(self) -> None:
        """The latest of each, and of nobody under another name."""
        name, another = _fresh_name(), _fresh_name()
        with self._opened(None) as storage, self._another(storage) as other:
            _expect({"a": b"1"}, storage.exchange(name, "a", b"1", keep=_KEEP), "the first alone")
            _expect({"a": b"1", "b": b""}, other.exchange(name, "b", b"", keep=_KEEP), "and a second")
            _expect({"a": b"2", "b": b""}, storage.exchange(name, "a", b"2", keep=_KEEP), "the first again")
            _expect({"c": b"3"}, other.exchange(another, "c", b"3", keep=_KEEP), "under another name")
            _write(storage, name, b"a record")
            _expect({"a": b"2", "b": b"4"}, other.exchange(name, "b", b"4", keep=_KEEP), "beside a record of that name")

    def test_what_a_member_left_is_gone_when_its_time_is_over(self) -> None:
        """Unless it comes again: those that died are not counted for long."""
        name = _fresh_name()
        with self._opened_under_time() as (storage, wait), self._another(storage) as other:
            storage.exchange(name, "dies", b"1", keep=0.3)
            storage.exchange(name, "stays", b"2", keep=_KEEP)
            storage.exchange(name, "leaves", b"3", keep=_KEEP)
            storage.exchange(name, "leaves", b"", keep=0.05)
            wait(0.2)
            _expect({"dies", "stays", "looks"}, set(other.exchange(name, "looks", b"", keep=_KEEP)), "a little later")
            storage.exchange(name, "dies", b"1", keep=0.3)
            wait(0.2)
            _expect({"dies", "stays", "looks"}, set(other.exchange(name, "looks", b"", keep=_KEEP)), "it came again")
            wait(0.2)
            _expect({"stays", "looks"}, set(other.exchange(name, "looks", b"", keep=_KEEP)), "it did not")

    def test_a_member_leaves_any_bytes_up_to_500_under_any_name_up_to_200(self) -> None:
        """One more is refused, and so is no time."""
        name = _fresh_name()
        with self._opened(None) as storage, self._another(storage) as other:
            left = {"web-1:123": bytes(range(256)), "x" * 200: b"\xff" * 500, "ä{*} \n": bytes(500), "\0": b"\r\n"}
            for member, text in left.items():
                storage.exchange(name, member, text, keep=_KEEP)
            _expect(left, other.exchange(name, "\0", b"\r\n", keep=_KEEP), "what they left")
            for member, text, keep in (
                ("m", b"x" * 501, _KEEP),
                ("m", b"", 0.0),
                ("m", b"", float("nan")),
                ("x" * 201, b"", _KEEP),
                ("", b"", _KEEP),
            ):
                with _raises(ValueError):
                    storage.exchange(name, member, text, keep=keep)
            _expect(left, other.exchange(name, "\0", b"\r\n", keep=_KEEP), "after what was refused")

    # Crowds

    def test_no_change_of_a_crowd_is_lost(self) -> None:
        """Each counts from what the one before has left, and each is given the answer of its own."""
        name = _fresh_name()

        def count(text: bytes | None, _now: float) -> tuple[bytes, int]:
            number = int(text or b"0") + 1
            return b"%d" % number, number

        with self._opened(None) as storage, self._another(storage) as other:
            following = other.follow(name)

            def change(thread: int) -> list[int]:
                mine = (storage, other)[thread % 2]
                return [_patiently(lambda: mine.update(name, count, keep=_KEEP)) for _ in range(self.changes)]

            answers = sorted(answer for each in crowd(self.threads, change) for answer in each)
            total = self.threads * self.changes
            _expect(list(range(1, total + 1)), answers, "the answers")
            _expect(b"%d" % total, storage.read(name).text, "the record")
            self._expect_soon(b"%d" % total, lambda: following.read().text, "followed")
            following.close()

    def test_so_many_of_a_crowd_are_let_in_as_there_are_places(self) -> None:
        """However many ask at once, of whatever process: that is what probes of a circuit need."""
        name = _fresh_name()

        def enter(text: bytes | None, _now: float) -> tuple[bytes | None, bool]:
            inside = int(text or b"0")
            return (text, False) if inside >= 3 else (b"%d" % (inside + 1), True)

        with self._opened(None) as storage, self._another(storage) as other:

            def ask(thread: int) -> int:
                mine = (storage, other)[thread % 2]
                return sum(_patiently(lambda: mine.update(name, enter, keep=_KEEP)) for _ in range(5))

            _expect(3, sum(crowd(self.threads, ask)), "let in")

    def test_every_member_of_a_crowd_is_seen(self) -> None:
        """None overwrites what another one leaves at the same time."""
        name = _fresh_name()
        with self._opened(None) as storage, self._another(storage) as other:

            def leave(thread: int) -> None:
                mine = (storage, other)[thread % 2]
                member = f"{thread}"
                for turn in range(5):
                    text = b"%d" % turn
                    left = _patiently(partial(mine.exchange, name, member, text, keep=_KEEP))
                    _expect(text, left[member], "what this one has left itself")

            crowd(self.threads, leave)
            left = storage.exchange(name, "looks", b"", keep=_KEEP)
        _expect({f"{thread}": b"4" for thread in range(self.threads)} | {"looks": b""}, left, "what everybody left")

    # What else a storage promises

    def test_a_closed_storage_may_be_used_again(self) -> None:
        """Closing gives connections back; it is no end, and what is there stays."""
        name = _fresh_name()
        with self._opened(None) as storage, self._another(storage) as other:
            _write(storage, name, b"one")
            storage.close()
            storage.close()
            _expect(b"one", storage.read(name).text, "after closing twice")
            following = storage.follow(name)
            _write(other, name, b"two")
            self._expect_soon(b"two", lambda: following.read().text, "followed after closing")
            following.close()

    def test_it_is_a_storage_of_state_with_an_address_without_credentials(self) -> None:
        """It is shown to operators and written to logs."""
        with self._opened(None) as storage:
            _expect(True, isinstance(storage, StateStorage), "a StateStorage")
            _expect((True, False), (bool(storage.uri), "@" in storage.uri), storage.uri)
            _expect(True, storage.spans_hosts in (True, False), "it says whether hosts meet there")

    @contextlib.contextmanager
    def _opened(self, clock: Clock | None) -> Iterator[StateStorage]:
        storage = self.open_state_storage(clock)
        try:
            yield storage
        finally:
            storage.close()

    @contextlib.contextmanager
    def _another(self, storage: StateStorage) -> Iterator[StateStorage]:
        another = self.open_another(storage)
        try:
            yield another
        finally:
            another.close()

    @contextlib.contextmanager
    def _opened_under_time(self) -> Iterator[tuple[StateStorage, Callable[[float], None]]]:
        """A storage, and what lets its time go on."""
        clock = FakeClock(_LONG_AGO) if self.fake_time else None
        with self._opened(clock) as storage:
            yield storage, time.sleep if clock is None else clock.advance

    def _expect_soon(self, expected: object, look: Callable[[], object], what: str) -> None:
        """Where the news do not arrive `look` may raise `StorageUnavailable`, for a while."""
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            with contextlib.suppress(StorageUnavailable):
                if expected == look():
                    return
            time.sleep(0.005)
        _expect(expected, look(), what)

    def _expect_news(
        self, read: Callable[[], Stored], number: Callable[[], int], heard: int, text: bytes | None
    ) -> None:
        self._expect_soon(True, lambda: number() != heard, f"the number changed when the text became {text!r}")
        self._expect_soon(text, lambda: read().text, "the text that followed")


def _fresh_name() -> str:
    """A name that nobody has used before, in whatever process, so that a server may be shared and kept."""
    return f"conformance-{_RUN}-{next(_fresh)}"


def _write(storage: StateStorage, name: str, text: bytes | None, *, keep: float = _KEEP) -> None:
    storage.update(name, lambda _text, _now: (text, None), keep=keep)


def _noting(seen: list[bytes | None], text: bytes | None, answer: T) -> Change[T]:
    """A change to `text` that notes what was there, once even if it is asked again."""
    place = len(seen)

    def change(before: bytes | None, _now: float) -> tuple[bytes | None, T]:
        seen[place:] = [before]
        return text, answer

    return change


def _looking(seen: list[bytes | None], answer: T) -> Change[T]:
    def change(before: bytes | None, _now: float) -> tuple[bytes | None, T]:
        seen[:] = [before]
        return before, answer

    return change


def _patiently(ask: Callable[[], T]) -> T:
    """Ask again where a storage says that it has no time, as it may in a crowd that wants one record."""
    for _ in range(200):
        with contextlib.suppress(StorageUnavailable):
            return ask()
        time.sleep(0.005)
    return ask()


@contextlib.contextmanager
def _raises(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} was raised")


def _expect(expected: object, actual: object, what: str) -> None:
    if expected != actual:
        raise AssertionError(f"{what}: expected {expected!r}, was {actual!r}")
