"""`shm://`: records of all processes of one machine, in memory that they share. No server, and news are there at once."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from resilience.clock import SYSTEM_CLOCK
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.ports import Change, Clock, Following, Stored
from resilience.storage.mutex import Handle, Locks, Stripes, Words, best_locks
from resilience.storage.segment import Form, Segment, attach
from resilience.storage.shared_file import Addresses
from resilience.storage.state_records import LONGEST_LEFT, LONGEST_MEMBER, LONGEST_RECORD, check_left, check_record
from resilience.storage.state_table import KEY_SIZE, Content, DamagedError, StateTable
from resilience.storage.wrapping import Attendant, forget_after_fork

__all__ = ["DEFAULT_RECORDS", "SharedMemoryStateStorage"]

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

DEFAULT_RECORDS: Final = 512
"""5.7 MB: fits the 64 MB that a container has in /dev/shm."""

_MEMBERS: Final = 2
"""Places for members, for each record."""
_LONGEST_MEMBER: Final = 2 + LONGEST_MEMBER + LONGEST_LEFT
"""The length of its name, its name, and what it left."""

_LAYOUT: Final = 1
"""Of the file. It changes with every change of the header, the locks or the tables."""
_PLACES: Final = 16
_FORM: Final = Form(
    b"seastate",
    _LAYOUT,
    _PLACES,
    StateTable.size(_PLACES, LONGEST_RECORD) + StateTable.size(_MEMBERS * _PLACES, _LONGEST_MEMBER),
    "records",
)
_ADDRESSES: Final = Addresses(default="state", ending=f"state-{_LAYOUT}", option="records", most=2**16)
_WORDS: Final = Words(thing="record", work="change", stall="one record in {} is left to each process alone")

_LOOK_EVERY: Final = 1.0  # seconds
_SILENCE: Final = 10.0  # seconds between two warnings
_TRIES: Final = 200
_TRIES_IN_A_ROW: Final = 10
_PAUSE: Final = 0.000_2  # seconds, between further tries


class SharedMemoryStateStorage:
    """Records in a file of shared memory, of all processes of a machine that name the same one.

    `uri` is `shm://` or `shm://name` (a file of this user in /dev/shm), or `shm:///absolute/path` (on a tmpfs if it can
    be, never on a network's file system). `?records=N` says how many it holds: 512 by default, up to 65,536, 11 KB each,
    reserved when the file is made; one that exists keeps its size. `namespace` starts every name. `clock` must be the same
    for all. Raises `ValueError` with the reason for any other address.

    The file is opened, or made, when it is first needed. `StorageUnavailable` says why it cannot be, and what to do.
    `StorageBusy` says that a process which stands still (stopped by a signal, say) holds the lock of the record, which is
    one of 32: after 5 ms at most, and at once for those who ask next. It says so after a second where the holder runs but
    the machine has too much to do, or where it cannot be seen because it is of another container. To read a record needs
    no lock. A process that is killed, at any instant, leaves every record whole and every lock free.

    A change is worked out without any lock, and stored if nobody else was faster; else it is worked out again. Where all
    places are taken, the record whose time was over first makes room, and one that nobody has written to before it. Where
    none is to be forgotten, `StorageUnavailable` is raised.

    The file outlives its users, so that a restart forgets nothing; after a boot of the machine it starts empty. One that
    is removed is made again within a second; then, and only then, what is followed moves to another `cell`.
    """

    spans_hosts = False

    def __init__(
        self,
        uri: str = "shm://",
        *,
        namespace: str = "seawall",
        clock: Clock = SYSTEM_CLOCK,
        _kind: type[Locks] | None = None,
    ) -> None:
        self.uri = uri
        self.path, self._asked = _ADDRESSES.parse(uri)
        self._namespace = namespace
        self._clock = clock
        self._kind = _kind or best_locks()
        self._opened: _Opened | None = None
        self._is_trouble_told = False
        self._lock = threading.Lock()
        """Guards the set of followings and the attendant, for a moment."""
        self._followings: weakref.WeakSet[_Following] = weakref.WeakSet()
        self._attendant: Attendant | None = None
        self._is_watched = False
        """Whether anybody has read what is followed: before that there is no attendant. A server that only makes what its
        workers will follow, and forks them then, has no thread."""
        self._silent_until = 0.0
        forget_after_fork(self)

    def __repr__(self) -> str:
        return f"<SharedMemoryStateStorage: {self.path}>"

    def __len__(self) -> int:
        return len(self.current().records)

    def update(self, name: str, change: Change[T], *, keep: float) -> T:
        """Change the record `name`, atomically, and return the answer of `change`."""
        check_record(b"", keep)
        for turn in range(_TRIES):
            opened = self.current()
            key = opened.key(self._namespace, name)
            known, place = opened.look(opened.records, key)
            now = self._clock.seconds()
            before = _text(known, now)
            after, answer = change(before, now)
            if after is before:
                return answer
            if after is not None:
                check_record(after, keep)
            if place < 0:
                self._place_of(opened, opened.records, key)
                known, place = opened.look(opened.records, key)
            if (
                place >= 0
                and _text(known, now) == before
                and opened.replace(place, key, known.number, after, now if after is None else now + keep)
            ):
                return answer
            if turn >= _TRIES_IN_A_ROW:
                SYSTEM_CLOCK.sleep(_PAUSE)
        raise StorageBusy(f"{self.uri}: others changed the record {name!r} {_TRIES} times meanwhile: try again")

    def read(self, name: str) -> Stored:
        """The record `name` as it is now."""
        opened = self.current()
        return self.stored(opened.look(opened.records, opened.key(self._namespace, name))[0])

    def follow(self, name: str, told: Callable[[], None] | None = None) -> Following:  # noqa: ARG002  # nobody is told
        """Follow the record `name`."""
        following = _Following(self, name)
        with self._lock:
            self._followings.add(following)
        if self._is_watched:
            self._have_an_attendant()
        return following

    def exchange(self, name: str, member: str, text: bytes, *, keep: float) -> dict[str, bytes]:
        """Leave `text` under `name` for `member`, for `keep` seconds, and return what every member has left there."""
        check_left(member, text, keep)
        opened = self.current()
        group, key = opened.member_key(self._namespace, name, member)
        now = self._clock.seconds()
        called = member.encode("utf-8", "surrogatepass")
        left = len(called).to_bytes(2, "little") + called + text
        for _ in range(_TRIES):
            if opened.leave(self._place_of(opened, opened.members, key), key, left, now + keep):
                return opened.left(group, now)
        raise StorageBusy(f"{self.uri}: others take every place that becomes free: try again")

    def close(self) -> None:
        """Let go of the memory. The file stays, and so does what it holds; what is followed stays so."""
        self._opened = None
        with self._lock:
            attendant, self._attendant = self._attendant, None
        if attendant is not None:
            attendant.dismiss()

    def after_fork(self) -> None:
        """The attendant is a thread of the parent. The memory is shared with it, and stays."""
        self._lock = threading.Lock()
        self._attendant = None

    def attend(self, attendant: Attendant) -> float | None:
        """Once a second: a file that was removed is shared only with those who have it open still."""
        with self._lock:
            followings = list(self._followings)
            if attendant is not self._attendant or not followings:
                return None
        for following in followings:
            try:
                following.look_after()
            except StorageUnavailable as error:
                _LOG.debug("%s: %s", self.uri, error)  # whoever asks for something is told
        return _LOOK_EVERY

    def left(self, attendant: Attendant) -> None:
        """The attendant is gone; whoever needs one next starts another."""
        with self._lock:
            if self._attendant is attendant:
                self._attendant = None

    def stored(self, content: Content) -> Stored:
        """What a place holds, as of now."""
        now = self._clock.seconds()
        return Stored(_text(content, now), now)

    def displaced(self, name: str) -> None:
        """Told when a record that is followed lost its place to another one."""
        now = SYSTEM_CLOCK.seconds()
        if now < self._silent_until:
            return
        self._silent_until = now + _SILENCE
        _LOG.warning(
            "%s: there are more records than places, so that %r lost its own for a second: stop its users, remove %s and ask "
            "for more with ?records=",
            self.uri,
            name,
            self.path,
        )

    def place_to_follow(self, name: str) -> _Place:
        """Where a record that is to be followed is, or will be from now on."""
        opened = self.current()
        key = opened.key(self._namespace, name)
        return _Place(opened, key, self._place_of(opened, opened.records, key))

    def _place_of(self, opened: _Opened, table: StateTable, key: bytes) -> int:
        """Where `key` is, or will be from now on."""
        for _ in range(_TRIES):
            place = table.find(key)
            if place >= 0:
                return place
            place, since = table.place_to_give()
            now = self._clock.seconds()  # after that: others write meanwhile
            if since > now:
                raise StorageUnavailable(
                    f"{self.uri}: all {table.count} places are taken by what is to be kept: stop its users, remove "
                    f"{self.path} and ask for more with ?records="
                )
            opened.give(table, place, key, now)
        raise StorageBusy(f"{self.uri}: others take every place that becomes free: try again")

    def current(self) -> _Opened:
        """The file that has the name now."""
        if self._is_watched and self._attendant is None and self._followings:  # in a forked child, say
            self._have_an_attendant()
        opened = self._opened
        if opened is not None and opened.is_at(self.uri):
            return opened
        return self._open()

    def _open(self) -> _Opened:
        asked = self._asked or DEFAULT_RECORDS
        try:
            segment = attach(self.path, places=asked, kind=self._kind, form=_FORM)
        except StorageUnavailable as error:
            if not self._is_trouble_told:  # once: circuits try again every second
                self._is_trouble_told = True
                _LOG.warning(
                    "%s cannot be used, so that each process keeps its circuits for itself: %s", self.uri, error
                )
            raise
        self._is_trouble_told = False
        there = segment.rows * _PLACES
        if self._asked and segment.rows != _FORM.rows(asked):
            _LOG.warning(
                "%s: the file holds %d records already, not %d: to change that, stop its users and remove %s",
                self.uri,
                there,
                asked,
                self.path,
            )
        self._opened = opened = _Opened(segment, self.uri, os.fspath(self.path))
        return opened

    def watch(self) -> None:
        """Told when what is followed is read: from now on there is an attendant."""
        if self._attendant is None:
            self._is_watched = True
            self._have_an_attendant()

    def _have_an_attendant(self) -> None:
        with self._lock:
            if self._attendant is not None:
                return
            attendant = self._attendant = Attendant(self, pause=_LOOK_EVERY, name="seawall-state")
        if not attendant.start():
            self.left(attendant)


class _Opened:
    """An open file, and where in it the tables are."""

    __slots__ = ("_memory", "_path", "_secret", "_stripes", "_title", "identity", "members", "records")

    def __init__(self, segment: Segment, title: str, path: str) -> None:
        self._memory = segment.memory  # whose end would be the end of the locks' addresses
        self.identity = segment.identity
        self._path = path
        self._secret = segment.secret
        self._title = title
        self._stripes = Stripes(segment.locks, title, _WORDS)
        count = segment.rows * _PLACES
        self.records = StateTable(segment.memory, segment.start, count, LONGEST_RECORD)
        behind = segment.start + StateTable.size(count, LONGEST_RECORD)
        self.members = StateTable(segment.memory, behind, _MEMBERS * count, _LONGEST_MEMBER)

    def is_at(self, title: str) -> bool:
        """Whether the file still has its name."""
        try:
            status = os.lstat(self._path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageUnavailable(f"{title}: {self._path} cannot be seen ({error.strerror})") from error
        return (status.st_dev, status.st_ino) == self.identity

    def key(self, namespace: str, name: str) -> bytes:
        """The key of a record."""
        return self._digest(namespace, name, KEY_SIZE)

    def member_key(self, namespace: str, name: str, member: str) -> tuple[bytes, bytes]:
        """What the keys of all members begin with, and the key of this one."""
        group = self._digest(namespace, name, KEY_SIZE // 2)
        return group, group + self._digest(name, member, KEY_SIZE - len(group))

    def look(self, table: StateTable, key: bytes) -> tuple[Content, int]:
        """What `key` holds, and its place: -1 where it has none."""
        while True:
            place = table.find(key)
            if place < 0:
                return Content(0, None, 0.0), place
            content = self.read(table, place)
            if table.key(place) == key:  # else it was given away meanwhile
                return content, place

    def read(self, table: StateTable, place: int) -> Content:
        """What the place holds."""
        try:
            return table.read(place)
        except DamagedError:
            raise self._damaged() from None

    def replace(self, place: int, key: bytes, number: int, text: bytes | None, until: float) -> bool:
        """Write the text of a record, unless it has another `number` by now."""
        records = self.records

        def write() -> bool:
            if records.key(place) != key or records.numbers[place] != number:
                return False
            records.write(place, text, until)
            return True

        return self._locked([self._lock_of(place)], write)

    def leave(self, place: int, key: bytes, text: bytes, until: float) -> bool:
        """Write what a member leaves, unless its place was given away."""
        members = self.members

        def write() -> bool:
            if members.key(place) != key:
                return False
            members.write(place, text, until)
            return True

        return self._locked([self._lock_of(place)], write)

    def left(self, group: bytes, now: float) -> dict[str, bytes]:
        """What the members of a group have left, by their names."""
        found: dict[str, bytes] = {}
        for place in self.members.places_of(group):
            text = _text(self.read(self.members, place), now)
            if text is not None and self.members.key(place).startswith(group):
                end = 2 + int.from_bytes(text[:2], "little")
                found[text[2:end].decode("utf-8", "surrogatepass")] = text[end:]
        return found

    def give(self, table: StateTable, place: int, key: bytes, now: float) -> None:
        """Give the place to `key`, if that has none yet and nobody else was faster."""
        handles = self._stripes.handles
        # That of the directory first, as everybody does; the only one, it may be.
        both = [handles[0], *([self._lock_of(place)] if len(handles) > 1 else [])]
        self._locked(both, lambda: table.give(place, key, now))

    def touch(self, place: int, key: bytes) -> None:
        """Change the number of a record and nothing else, so that all who follow it come and look."""
        records = self.records

        def write() -> None:
            if records.key(place) == key:
                content = records.read(place)
                records.write(place, content.text, content.until)

        self._locked([self._lock_of(place)], write)

    def _damaged(self) -> StorageUnavailable:
        return StorageUnavailable(f"{self._title}: {self._path} is damaged: stop its users and remove it")

    def _lock_of(self, place: int) -> Handle:
        handles = self._stripes.handles
        return handles[1 + place % (len(handles) - 1)] if len(handles) > 1 else handles[0]

    def _locked(self, handles: Sequence[Handle], work: Callable[[], T]) -> T:
        """Do `work`, which is arithmetic, while this thread has the locks. Raises as `Stripes.take_all` does."""
        stripes = self._stripes
        try:
            stripes.take_all(handles)
            done = work()
            stripes.leave_all(handles)
        except StorageUnavailable:
            raise  # they were not taken: whose they are is not always to be seen
        except DamagedError:
            stripes.abandon(handles)
            raise self._damaged() from None
        except BaseException:
            stripes.abandon(handles)
            raise
        return done

    def _digest(self, scope: str, name: str, size: int) -> bytes:
        # With the file's own secret: nobody outside can work out which names meet.
        text = f"{len(scope)}:{scope}{name}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=size, salt=self._secret).digest()


class _Place(NamedTuple):
    """Where a record is."""

    opened: _Opened
    key: bytes
    place: int

    def is_its_own(self) -> bool:
        """Whether it was not given to another record."""
        return self.opened.records.key(self.place) == self.key


class _Lone(Sequence[int]):
    """The number of a record that has no place in the file. It is at every index: another thread may know the place already
    to which the record moves, and not yet the cell."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: Any) -> Any:
        return self.number


class _Following:
    """A record of the machine, watched: `cell` is the shared memory itself.

    To read takes no lock but the first time, and opens no file. Where the record must move to another place, the attendant
    finds that, and changes the number in the old one: whoever comes and reads then is moved.
    """

    __slots__ = ("__weakref__", "_at", "_name", "_next", "_own", "_storage", "cell", "place")

    def __init__(self, storage: SharedMemoryStateStorage, name: str) -> None:
        self._storage: SharedMemoryStateStorage | None = storage
        self._name = name
        self._at: _Place | None = None
        self._next: _Place | None = None
        self._own = _Lone()
        self.cell: Sequence[int] = self._own
        self.place = 0
        with contextlib.suppress(StorageUnavailable):
            self._move(storage.place_to_follow(name))

    def read(self) -> Stored:
        """The record as it is. Raises `StorageUnavailable` while it has no place."""
        storage = self._storage
        if storage is None:
            raise ValueError(f"the record {self._name!r} is followed no longer")
        storage.watch()
        found = self._next
        if found is not None:
            self._next = None
            self._move(found)
        at = self._at
        if at is None:
            raise StorageUnavailable(f"{storage.uri}: the record {self._name!r} has no place yet")
        content = at.opened.read(at.opened.records, at.place)
        if not at.is_its_own():
            self._move(None)
            storage.displaced(self._name)
            raise StorageUnavailable(f"{storage.uri}: the record {self._name!r} lost its place to another one")
        return storage.stored(content)

    def close(self) -> None:
        """Stop following."""
        self._storage = self._next = None
        self._move(None)

    def look_after(self) -> None:
        """Told once a second: find a place where it has none, or none in the file that has the name now."""
        storage, at = self._storage, self._next or self._at
        if storage is None or (at is not None and at.opened.identity == storage.current().identity and at.is_its_own()):
            return
        self._next = storage.place_to_follow(self._name)
        old = self._at
        if old is None:
            self._own.number += 1
        else:
            old.opened.touch(old.place, old.key)

    def _move(self, at: _Place | None) -> None:
        self._at = at
        # In this order the place is in the cell at every moment.
        self.place = 0
        self.cell = self._own if at is None else at.opened.records.numbers
        self.place = 0 if at is None else at.place


def _text(content: Content, now: float) -> bytes | None:
    return content.text if content.until > now else None
