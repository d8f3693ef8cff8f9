"""The suite for storages of state finds what is wrong with one, and says it in the name of the test."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from resilience.clock import SYSTEM_CLOCK
from resilience.ports import Change, Clock, Following, StateStorage, Stored
from resilience.storage.state_memory import MemoryStateStorage
from resilience.testing import StateStorageConformance

T = TypeVar("T")


class Hasty(MemoryStateStorage):
    """Writes without looking whether somebody else was faster."""

    def update(self, name: str, change: Change[T], *, keep: float) -> T:
        text, now = self.read(name)
        time.sleep(0.001)
        after, answer = change(text, now)
        super().update(name, lambda _text, _now: (after, None), keep=keep)
        return answer


class Silent(MemoryStateStorage):
    """Tells nobody."""

    def follow(self, name: str, told: Callable[[], None] | None = None) -> Following:
        return Deaf(super().follow(name, told))


class Deaf:
    """Follows a record by a number that stays as it is."""

    cell: Sequence[int] = (0,)
    place = 0

    def __init__(self, following: Following) -> None:
        self.read, self.close = following.read, following.close


class Noisy(MemoryStateStorage):
    """Writes what has not changed."""

    def update(self, name: str, change: Change[T], *, keep: float) -> T:
        def always(text: bytes | None, now: float) -> tuple[bytes | None, T]:
            after, answer = change(text, now)
            return (None if after is None else bytes(bytearray(after))), answer

        return super().update(name, always, keep=keep)


class Forgetful(MemoryStateStorage):
    """Keeps nothing for longer than a tenth of a second."""

    def update(self, name: str, change: Change[T], *, keep: float) -> T:
        return super().update(name, change, keep=min(keep, 0.1))


class Faithful(MemoryStateStorage):
    """Keeps what members left for ever."""

    def exchange(self, name: str, member: str, text: bytes, *, keep: float) -> dict[str, bytes]:
        return super().exchange(name, member, text, keep=keep + 1e9)


class Blurred(MemoryStateStorage):
    """Does not tell an empty record from none."""

    def read(self, name: str) -> Stored:
        text, now = super().read(name)
        return Stored(text or None, now)


class Careless(MemoryStateStorage):
    """Cuts names."""

    def read(self, name: str) -> Stored:
        return super().read(name[:400])

    def update(self, name: str, change: Change[T], *, keep: float) -> T:
        return super().update(name[:400], change, keep=keep)


class Lone(MemoryStateStorage):
    """Shares nothing."""


class Suite(StateStorageConformance):
    """For one kind of storage, without much patience."""

    patience = 0.05
    threads = 4
    changes = 5
    __test__ = False

    def __init__(self, kind: type[MemoryStateStorage]) -> None:
        self._kind = kind

    def open_state_storage(self, clock: Clock | None) -> StateStorage:
        return self._kind(clock=clock or SYSTEM_CLOCK)

    def open_another(self, storage: StateStorage) -> StateStorage:
        return self._kind() if self._kind is Lone else storage


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (Hasty, "no_change_of_a_crowd_is_lost"),
        (Hasty, "so_many_of_a_crowd_are_let_in_as_there_are_places"),
        (Silent, "who_follows_sees_every_change_in_the_number_and_reads_what_it_is"),
        (Noisy, "nothing_is_heard_of_other_records_nor_of_changes_to_the_same"),
        (Forgetful, "a_record_is_kept_for_as_long_as_was_asked"),
        (Faithful, "what_a_member_left_is_gone_when_its_time_is_over"),
        (Blurred, "a_record_is_removed_by_a_change_to_nothing"),
        (Careless, "records_of_any_names_are_kept_apart"),
        (Lone, "everybody_reads_what_was_written_last"),
        (Lone, "members_see_what_everybody_has_left"),
        (Lone, "a_record_that_is_there_already_is_followed_as_it_is"),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else each,
)
def test_a_faulty_storage_fails_the_test_that_says_so(kind: type[MemoryStateStorage], test: str) -> None:
    with pytest.raises(AssertionError, match="expected"):
        getattr(Suite(kind), f"test_{test}")()


def test_whoever_does_not_say_how_a_storage_is_opened_is_told_to() -> None:
    with pytest.raises(NotImplementedError, match="says how a storage is opened: def open_state_storage"):
        StateStorageConformance().test_a_record_that_nobody_made_has_no_text()
