"""The timing wheel: what it promises, one by one, and against a plain dictionary of deadlines."""

from __future__ import annotations

import weakref
from math import nextafter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.stateful import Bundle as Entries
from hypothesis.stateful import RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from longconn.core.wheel import Entry, TimingWheel
from tests.support.examples import many


class Connection(Entry):
    """Derives as the engine does: sets what the contract asks for and calls no constructor of the base."""

    __slots__ = ("__weakref__", "name")

    def __init__(self, name: int) -> None:
        self.name = name
        self.slot = -1
        self.previous = None
        self.next = None

    def __repr__(self) -> str:
        return f"connection {self.name}"


def wheel(now: float = 0.0, *, slots: int = 8) -> TimingWheel:
    """A wheel whose ticks are half seconds, which floats hold exactly, with few slots, so that rounds are short."""
    return TimingWheel(now, resolution=0.5, slots=slots)


def scheduled(under_test: TimingWheel, *ticks: int) -> list[Connection]:
    connections = [Connection(name) for name in range(len(ticks))]
    for connection, tick in zip(connections, ticks, strict=True):
        under_test.schedule(connection, tick)
    return connections


def linked(under_test: TimingWheel) -> list[Any]:
    """All that is linked, after a check of every link in both directions."""
    found: list[Any] = []
    for place, head in enumerate(under_test._heads):
        before: Any = head
        entry: Any = head.next
        while entry is not head:
            assert entry.previous is before
            assert place == entry.slot % len(under_test._heads)
            found.append(entry)
            before, entry = entry, entry.next
        assert head.previous is before
    return found


def test_an_entry_fires_at_its_tick_and_not_before() -> None:
    under_test = wheel()
    [connection] = scheduled(under_test, 3)
    assert [] == under_test.advance(1.49)
    assert [connection] == under_test.advance(1.5)
    assert [] == under_test.advance(1.6)
    assert 0 == len(under_test)


def test_entries_fire_in_order_of_their_deadlines() -> None:
    under_test = wheel()
    late, early, between = scheduled(under_test, 30, 2, 17)
    assert [early, between, late] == under_test.advance(100.0)


def test_an_entry_beyond_one_round_waits_for_its_own_round() -> None:
    under_test = wheel(slots=8)
    [connection] = scheduled(under_test, 19)
    for tick in range(19):
        assert [] == under_test.advance(tick / 2)
    assert [connection] == under_test.advance(19 / 2)


def test_a_deadline_that_moves_later_costs_no_list_work_and_is_kept() -> None:
    under_test = wheel()
    first, connection, last = scheduled(under_test, 3, 3, 3)
    under_test.schedule(connection, 5)
    assert (3, first, last) == (connection.slot, connection.previous, connection.next)
    assert [first, last] == under_test.advance(2.0)
    assert 5 == connection.slot
    assert [connection] == under_test.advance(2.5)


def test_a_deadline_that_moves_earlier_is_kept() -> None:
    under_test = wheel()
    [connection] = scheduled(under_test, 7)
    under_test.schedule(connection, 2)
    assert [connection] == under_test.advance(1.0)


def test_a_deadline_that_moves_later_by_whole_rounds_is_kept() -> None:
    under_test = wheel(slots=8)
    [connection] = scheduled(under_test, 3)
    under_test.schedule(connection, 3 + 8 + 8)
    assert [] == under_test.advance(1.5 + 4)
    assert [] == under_test.advance(9.4)
    assert [connection] == under_test.advance(9.5)


def test_a_deadline_that_moved_later_and_back_is_kept() -> None:
    under_test = wheel()
    [connection] = scheduled(under_test, 4)
    under_test.schedule(connection, 40)
    under_test.schedule(connection, 4)
    assert [connection] == under_test.advance(2.0)


@pytest.mark.parametrize("tick", [-5, 0, 19, 20])
def test_a_deadline_that_has_passed_is_due_at_the_next_look_even_when_the_clock_stands_still(tick: int) -> None:
    under_test = wheel(10.0)
    [connection] = scheduled(under_test, tick)
    assert tick == connection.deadline
    assert [connection] == under_test.advance(10.0)
    assert [] == under_test.advance(10.0)


def test_an_overdue_entry_that_moves_later_before_the_next_look_is_not_due() -> None:
    under_test = wheel(10.0)
    [connection] = scheduled(under_test, 5)
    under_test.schedule(connection, 22)
    assert [] == under_test.advance(10.0)
    assert [] == under_test.advance(10.9)
    assert [connection] == under_test.advance(11.0)


def test_a_clock_that_goes_back_lets_nothing_pass_and_forgets_nothing() -> None:
    under_test = wheel(10.0)
    connection, overdue = scheduled(under_test, 21, 3)
    assert [overdue] == under_test.advance(2.0)
    assert 20 == under_test.now_tick
    assert [connection] == under_test.advance(10.5)


def test_after_a_jump_far_ahead_only_what_has_passed_fires() -> None:
    under_test = wheel(slots=4)
    connections = scheduled(under_test, *range(1, 1001))
    assert connections[:900] == under_test.advance(450.0)
    assert connections[900:] == under_test.advance(1e9)


def test_a_cancelled_entry_never_fires_and_cancelling_twice_does_nothing() -> None:
    under_test = wheel()
    connection, other = scheduled(under_test, 3, 3)
    under_test.cancel(connection)
    under_test.cancel(connection)
    assert (-1, None, None) == (connection.slot, connection.previous, connection.next)
    assert 1 == len(under_test)
    assert [other] == under_test.advance(10.0)


def test_an_entry_that_was_never_scheduled_can_be_cancelled() -> None:
    under_test = wheel()
    under_test.cancel(Connection(0))
    under_test.cancel(Entry())
    assert 0 == len(under_test)


def test_a_plain_entry_needs_no_deriving_class() -> None:
    under_test = wheel()
    entry = Entry()
    under_test.schedule(entry, 1)
    assert [entry] == under_test.advance(0.5)


def test_nothing_refers_to_a_cancelled_or_fired_entry_any_more() -> None:
    under_test = wheel()
    connections = scheduled(under_test, 3, 3, 3, 3, 40)
    under_test.schedule(connections[1], 4)  # moved lazily, then cancelled
    seen = [weakref.ref(connection) for connection in connections]
    under_test.cancel(connections[1])
    under_test.cancel(connections[4])
    under_test.advance(100.0)
    del connections
    assert [None] * 5 == [reference() for reference in seen]


def test_an_entry_that_fired_can_be_scheduled_again() -> None:
    under_test = wheel()
    [connection] = scheduled(under_test, 1)
    assert [connection] == under_test.advance(0.5)
    under_test.schedule(connection, 2)
    assert [connection] == under_test.advance(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 0.0}, "resolution=0.0"),
        ({"resolution": float("nan")}, "resolution=nan"),
        ({"slots": 0}, "slots=0"),
        ({"slots": 1000}, "slots=1000"),
        ({"now": -1.0}, "now=-1.0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimingWheel(**{"now": 0.0, **arguments})


moments = some.floats(0, 1e7, allow_nan=False)
resolutions = some.sampled_from([0.1, 0.05, 0.01, 0.3, 1 / 3, 1.0, 0.25])


@given(moments, moments, resolutions)
def test_an_entry_is_never_early_and_at_most_one_tick_late(moment: float, now: float, resolution: float) -> None:
    under_test = TimingWheel(0.0, resolution=resolution, slots=16)
    under_test.schedule(Entry(), under_test.tick(moment))
    fired = bool(under_test.advance(now))
    if now < moment:
        assert not fired
    if now >= moment + resolution:
        assert fired


@given(some.integers(1, 10**8), resolutions)
def test_the_last_moment_before_a_tick_does_not_belong_to_it(tick: int, resolution: float) -> None:
    before = nextafter(tick * resolution, 0.0)
    assert tick - 1 == TimingWheel(before, resolution=resolution, slots=1).now_tick


@given(some.integers(0, 10**8), resolutions)
def test_the_beginning_of_a_tick_belongs_to_it(tick: int, resolution: float) -> None:
    begins = tick * resolution
    under_test = TimingWheel(begins, resolution=resolution, slots=1)
    assert tick == under_test.now_tick
    assert tick == under_test.tick(begins)


@given(moments, some.floats(0, 1e5), resolutions)
def test_ticks_counted_from_now_tick_cover_the_seconds(now: float, seconds: float, resolution: float) -> None:
    under_test = TimingWheel(now, resolution=resolution, slots=1)
    entry = Entry()
    under_test.schedule(entry, under_test.now_tick + under_test.ticks(seconds))
    assert entry.deadline * resolution >= now + seconds - 1e-6
    assert entry.deadline * resolution <= now + seconds + 2 * resolution + 1e-6


ticks = some.integers(-3, 80)


class AgainstADictionary(RuleBasedStateMachine):
    """Whatever is scheduled, moved, cancelled and awaited: a dictionary of deadlines says the same."""

    entries = Entries("entries")

    @initialize(slots=some.sampled_from([1, 2, 8, 32]), start=some.integers(0, 40))
    def begin(self, slots: int, start: int) -> None:
        self.now = start / 2
        self.reached = start
        self.under_test = wheel(self.now, slots=slots)
        self.deadlines: dict[Connection, int] = {}
        self.made = 0

    @rule(target=entries, count=some.integers(1, 4), tick=ticks)
    def make(self, count: int, tick: int) -> Any:
        made = []
        for _ in range(count):
            self.made += 1
            connection = Connection(self.made)
            self.schedule(connection, tick)
            made.append(connection)
        return multiple(*made)

    @rule(entry=entries, tick=ticks)
    def schedule(self, entry: Connection, tick: int) -> None:
        self.under_test.schedule(entry, self.reached + tick)
        self.deadlines[entry] = self.reached + tick

    @rule(entry=entries, later=some.integers(0, 40))
    def move_later(self, entry: Connection, later: int) -> None:
        """What a connection that is in use does all the time."""
        self.schedule(entry, self.deadlines.get(entry, self.reached) - self.reached + later)

    @rule(entry=entries)
    def cancel(self, entry: Connection) -> None:
        self.under_test.cancel(entry)
        self.deadlines.pop(entry, None)

    @rule(entry=consumes(entries))
    def close(self, entry: Connection) -> None:
        self.cancel(entry)

    @rule(half_ticks=some.one_of(some.integers(0, 6), some.integers(0, 300), some.integers(-20, 0)))
    def wait(self, half_ticks: int) -> None:
        self.now = max(0.0, self.now + half_ticks / 4)
        self.reached = max(self.reached, int(self.now * 2))
        expected = sorted(tick for tick in self.deadlines.values() if tick <= self.reached)
        due = self.under_test.advance(self.now)
        assert expected == [entry.deadline for entry in due]
        assert {entry for entry, tick in self.deadlines.items() if tick <= self.reached} == set(due)
        for entry in due:
            assert (-1, None, None) == (entry.slot, entry.previous, entry.next)
            assert isinstance(entry, Connection)
            del self.deadlines[entry]

    @invariant()
    def the_wheel_holds_what_the_dictionary_holds(self) -> None:
        if not hasattr(self, "under_test"):
            return
        held = linked(self.under_test)
        assert len(self.deadlines) == len(held) == len(self.under_test)
        assert self.deadlines == {entry: entry.deadline for entry in held}
        assert self.reached == self.under_test.now_tick


AgainstADictionary.TestCase.settings = settings(max_examples=many(150), stateful_step_count=40, deadline=None)
TestAgainstADictionary = AgainstADictionary.TestCase
