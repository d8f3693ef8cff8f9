"""What of a decision lies in one slot, and what of it may be taken back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as some

from resilience.core.limiter import Bucket, Charge, Limit, advance
from resilience.storage.parts import Part, Step, parts_to_return
from resilience.storage.slots import slot_of
from tests.support.examples import many

HOURLY = Limit(100, 3_600)


def test_what_was_taken_from_a_bucket_with_room_is_returned_whole() -> None:
    assert 3 * HOURLY.unit == parts_to_return(Charge("s", "a", HOURLY, 3), HOURLY.capacity // 2, 1.0)


def test_of_a_full_bucket_the_refill_meanwhile_is_left_out() -> None:
    charge = Charge("s", "a", HOURLY, 1)
    left = HOURLY.capacity - HOURLY.unit
    returned = parts_to_return(charge, left, 0.1)
    assert HOURLY.unit * 0.99 < returned < HOURLY.unit


def test_nothing_is_returned_to_a_bucket_that_has_refilled() -> None:
    fast = Limit(1_000_000, 1, 10)
    assert parts_to_return(Charge("s", "a", fast, 1), fast.capacity - fast.unit, 0.1) <= 0


@settings(max_examples=many(300))
@given(
    some.sampled_from([Limit(10, 1), Limit(7, 3, 5), Limit(100, 60, 3), Limit(1, 1, 1)]),
    some.floats(0, 1),
    some.integers(1, 5),
    some.lists(some.tuples(some.integers(0, 300_000), some.integers(0, 10)), max_size=4),
)
def test_what_is_returned_never_lets_others_have_more_than_without_the_charge(
    limit: Limit, fill: float, cost: int, others: list[tuple[int, int]]
) -> None:
    """`others` take all they can get, up to so many tokens, so many microseconds after each other; all before the refund."""
    cost = min(cost, limit.size)
    start = max(cost * limit.unit, int(fill * limit.capacity))
    given_with, level_with = _had_by_others(limit, start - cost * limit.unit, others)
    given_without, level_without = _had_by_others(limit, start, others)
    elapsed = sum(pause for pause, _ in others) / 1_000_000
    returned = max(0, parts_to_return(Charge("s", "a", limit, cost), start - cost * limit.unit, elapsed))
    level_with = min(limit.capacity, level_with + returned)
    assert given_with + level_with <= given_without + level_without


def _had_by_others(limit: Limit, level: int, others: list[tuple[int, int]]) -> tuple[int, int]:
    """What they had, and what is left then, in parts."""
    bucket, now, had = Bucket(level, 0, limit.unit), 0, 0
    for pause, most in others:
        now += pause
        level, stamp = advance(limit, bucket, now)
        taken = min(level // limit.unit, most) * limit.unit
        had += taken
        bucket = Bucket(level - taken, stamp, limit.unit)
    return had, bucket.level


def test_a_part_is_put_asunder_by_keys_and_each_piece_travels_alone() -> None:
    charges = [Charge(scope, "a", HOURLY, 1) for scope in ("x", "y")]
    steps = [Step(place, b"{a}:" + charge.scope.encode(), charge) for place, charge in enumerate(charges)]
    whole = Part(slot_of(b"a"), steps)
    assert b" " in whole.ask().terms[0]
    assert [b"m", b"c"] == [terms.split(b"\r\n")[1][:1] for terms in whole.ask().terms]
    pieces = whole.pieces()
    assert [([b"{a}:x"], [0]), ([b"{a}:y"], [1])] == [
        (piece.keys, [step.place for step in piece.steps]) for piece in pieces
    ]
    assert [b"c", b"c"] == [piece.ask().terms[0].split(b"\r\n")[1][:1] for piece in pieces]
    assert all(piece.alone for piece in pieces)
