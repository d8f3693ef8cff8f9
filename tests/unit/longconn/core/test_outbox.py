"""What waits for a client: whole messages, in order, within the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from longconn.core.outbox import CONFLATED, DROPPED, OVERFLOWS, PIECE, QUEUED, REFUSED, Outbox


def box(limit: int = 10, overflow: str = "disconnect", *, begun: bytes = b"<begun>", sent: int = 1) -> Outbox:
    """One whose client has not taken all of a message."""
    made = Outbox(limit, overflow)
    made.begin(begun, sent)
    return made


def emptied(outbox: Outbox, most: int = 1 << 20) -> bytes:
    """All that it holds, taken in steps of at most `most` bytes."""
    data = b""
    while (piece := outbox.next()) is not None:
        taken = bytes(piece[:most])
        outbox.took(len(taken))
        data += taken
    return data


@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_the_rest_of_what_has_begun_leaves_first_and_the_others_in_order(overflow: str) -> None:
    outbox = box(overflow=overflow)
    assert [QUEUED, QUEUED] == [outbox.put(b"one"), outbox.put(b"two")]
    assert 12 == outbox.size
    assert b"begun>onetwo" == emptied(outbox, 2)
    assert 0 == outbox.size


def test_what_has_begun_does_not_count_against_the_limit() -> None:
    outbox = box(4, begun=b"x" * 1000)
    assert [QUEUED, REFUSED] == [outbox.put(b"1234"), outbox.put(b"5")]
    assert b"1234" == emptied(outbox)[-4:]


def test_one_message_may_wait_however_large_it_is() -> None:
    outbox = box(4)
    assert [QUEUED, REFUSED] == [outbox.put(b"x" * 1000), outbox.put(b"y")]


def test_the_oldest_are_thrown_away_for_a_new_one() -> None:
    outbox = box(6, "drop-oldest")
    assert [QUEUED, QUEUED, DROPPED] == [outbox.put(b"111"), outbox.put(b"222"), outbox.put(b"333")]
    assert b"begun>222333" == emptied(outbox)


def test_all_are_thrown_away_for_one_that_is_larger_than_the_limit() -> None:
    outbox = box(6, "drop-oldest")
    outbox.put(b"111")
    assert DROPPED == outbox.put(b"x" * 7)
    assert b"begun>xxxxxxx" == emptied(outbox)


def test_a_message_takes_the_place_of_the_one_of_its_key() -> None:
    outbox = box(9, "conflate")
    outcomes = [outbox.put(b"a1", "a"), outbox.put(b"b1", "b"), outbox.put(b"a2", "a"), outbox.put(b"no key")]
    assert [QUEUED, QUEUED, CONFLATED, REFUSED] == outcomes
    assert b"begun>a2b1" == emptied(outbox)


def test_a_message_takes_no_place_of_one_that_has_begun() -> None:
    outbox = Outbox(100, "conflate")
    outbox.put(b"a1", "a")
    assert outbox.next() is not None
    assert QUEUED == outbox.put(b"a2", "a")
    assert b"a1a2" == emptied(outbox)


def test_a_key_that_grows_beyond_the_limit_is_refused_and_the_older_one_stays() -> None:
    outbox = box(6, "conflate")
    outbox.put(b"a1", "a")
    outbox.put(b"b1", "b")
    assert REFUSED == outbox.put(b"a" * 5, "a")
    assert b"begun>a1b1" == emptied(outbox)


@pytest.mark.parametrize("overflow", ["disconnect", "drop-oldest"])
def test_keys_mean_nothing_where_nothing_is_conflated(overflow: str) -> None:
    outbox = box(overflow=overflow)
    assert [QUEUED, QUEUED] == [outbox.put(b"a1", "a"), outbox.put(b"a2", "a")]
    assert b"begun>a1a2" == emptied(outbox)


def test_a_control_frame_leaves_before_what_has_not_begun_and_there_is_one_of_each() -> None:
    outbox = box()
    outbox.put(b"data")
    outbox.put_control(b"pong1", "pong")
    outbox.put_control(b"ping", "ping")
    outbox.put_control(b"pong22", "pong")
    assert 6 + 4 + 6 + 4 == outbox.size
    assert b"begun>pong22pingdata" == emptied(outbox)


def test_the_last_frame_comes_after_all_others_room_or_not() -> None:
    outbox = box(4)
    outbox.put(b"1234")
    outbox.end_with(b"bye")
    assert b"begun>1234bye" == emptied(outbox)


def test_only_what_has_begun_may_be_kept() -> None:
    outbox = box(100, "conflate")
    outbox.put(b"data", "key")
    outbox.put_control(b"ping", "ping")
    outbox.keep_begun()
    assert 6 == outbox.size
    outbox.end_with(b"bye")
    assert b"begun>bye" == emptied(outbox)


def test_many_small_messages_leave_together() -> None:
    outbox = Outbox(1 << 20, "disconnect")
    for _ in range(1000):
        outbox.put(b"x" * 100)
    piece = outbox.next()
    assert piece is not None
    assert PIECE - 100 < len(piece) <= PIECE


def test_what_is_next_stays_the_same_until_it_is_taken() -> None:
    outbox = box()
    first, second = outbox.next(), outbox.next()
    outbox.took(0)
    assert [b"begun>"] * 3 == [bytes(piece or b"") for piece in (first, second, outbox.next())]


@given(some.lists(some.binary(max_size=50)), some.integers(1, 60))
def test_nothing_is_lost_where_there_is_room(frames: list[bytes], step: int) -> None:
    outbox = Outbox(1 << 20, "disconnect")
    for frame in frames:
        outbox.put(frame)
    assert b"".join(frames) == emptied(outbox, step)
    assert 0 == outbox.size


class Accounts(RuleBasedStateMachine):
    """Messages are lines, so that half a one would be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(40, "drop-oldest")
        self.number = 0
        self.left = b""

    @rule(length=some.integers(1, 30))
    def put(self, length: int) -> None:
        self.number += 1
        self.outbox.put(b"%d:%s\n" % (self.number, b"x" * length))

    @rule(count=some.integers(1, 50))
    @precondition(lambda self: self.outbox.size)
    def take(self, count: int) -> None:
        piece = self.outbox.next()
        assert piece is not None
        self.left += bytes(piece[:count])
        self.outbox.took(min(count, len(piece)))

    @invariant()
    def whole_lines_in_order_and_within_the_limit(self) -> None:
        *lines, _ = self.left.split(b"\n")
        numbers = [int(line.partition(b":")[0]) for line in lines]
        assert sorted(set(numbers)) == numbers
        assert self.outbox._waiting <= 40


TestAccounts = Accounts.TestCase
