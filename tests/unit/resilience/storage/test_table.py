"""Places of fixed size: what was written is read, a full row gives up what is nearest to full, and no number is too large."""

from __future__ import annotations

import os
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from resilience.core.limiter import LARGEST, Bucket, Limit
from resilience.storage.table import KEY_SIZE, PLACES, ROW_SIZE, Table
from tests.support.examples import many

START = 64
LIMIT = Limit(1, 1, 100)
TOKEN = SECOND = 1_000_000
assert (TOKEN, SECOND) == (LIMIT.unit, LIMIT.unit), "so the tokens that a bucket lacks are the seconds until it is full"


def table_of(rows: int) -> Table:
    return Table(bytearray(START + rows * ROW_SIZE), START, rows)


def put(table: Table, key: bytes, level: int, stamp: int = 0, limit: Limit = LIMIT) -> None:
    _, row = table.row_of(key)
    table.write(row, table.find(row, key), key, limit, level, stamp)


def get(table: Table, key: bytes) -> Bucket | None:
    _, row = table.row_of(key)
    return table.read(row, table.find(row, key))


def key_of(number: int) -> bytes:
    return blake2b(str(number).encode(), digest_size=KEY_SIZE).digest()


def test_what_was_written_last_is_read() -> None:
    table = table_of(3)
    key = os.urandom(KEY_SIZE)
    assert None is get(table, key)
    for level, stamp in ((5, 7), (-(2**53), -9), (2**53, 2**62)):
        put(table, key, level, stamp)
        assert (level, stamp, LIMIT.unit) == get(table, key)
    assert 1 == len(table)


def test_what_was_cleared_is_gone_and_leaves_room() -> None:
    table = table_of(1)
    key = os.urandom(KEY_SIZE)
    put(table, key, 5)
    _, row = table.row_of(key)
    table.clear(row, table.find(row, key))
    assert (None, 0) == (get(table, key), len(table))
    put(table, key, 6)
    assert ((6, 0, LIMIT.unit), 1) == (get(table, key), len(table))


def test_to_clear_what_is_not_there_changes_nothing() -> None:
    table = table_of(1)
    put(table, key_of(1), 5)
    table.clear(START, -1)
    assert 1 == len(table)


def test_rows_are_numbered_and_know_their_number() -> None:
    table = table_of(7)
    seen = set()
    for _ in range(200):
        number, row = table.row_of(os.urandom(KEY_SIZE))
        assert number == table.number_of(row)
        assert START <= row <= START + 6 * ROW_SIZE
        seen.add(number)
    assert set(range(7)) == seen


def test_the_bucket_nearest_to_full_makes_room() -> None:
    table = table_of(1)
    for number in range(PLACES):
        put(table, key_of(number), (10 if number == 3 else number) * TOKEN)
    put(table, key_of(99), 0)
    assert None is get(table, key_of(15)), "15 tokens are the most"
    put(table, key_of(98), 0)
    assert None is get(table, key_of(14))
    assert (10 * TOKEN, 0, LIMIT.unit) == get(table, key_of(3))
    assert PLACES == len(table)


def test_a_bucket_that_is_full_again_by_now_makes_room_before_one_that_is_not() -> None:
    table = table_of(1)
    put(table, key_of(0), 0, stamp=-200 * SECOND)  # was empty, longer ago than it takes to fill
    for number in range(1, PLACES):
        put(table, key_of(number), 99 * TOKEN)
    put(table, key_of(99), 99 * TOKEN)
    assert None is get(table, key_of(0))


def test_a_flood_of_keys_each_used_a_little_displaces_itself() -> None:
    table = table_of(2)
    for number in range(PLACES):
        put(table, key_of(number), 0)
    limited = [key_of(number) for number in range(PLACES) if get(table, key_of(number)) is not None]
    assert 8 <= len(limited)
    for number in range(1_000, 6_000):
        put(table, key_of(number), 99 * TOKEN)
    assert [(0, 0, LIMIT.unit)] * len(limited) == [get(table, key) for key in limited]


operations = some.lists(
    some.tuples(some.integers(0, 60), some.integers(-50, 100), some.integers(0, 1_000)), min_size=30, max_size=200
)


@settings(max_examples=many(100))
@given(some.integers(1, 3), operations)
def test_with_collisions_of_every_kind_a_key_has_its_last_bucket_or_none(
    rows: int, walk: list[tuple[int, int, int]]
) -> None:
    """Buckets of level 100 are cleared. What is missing was nearest to full in its row at the time, and the row was full."""
    table = table_of(rows)
    model: dict[bytes, tuple[int, int]] = {}
    for number, level, stamp in walk:
        key = key_of(number)
        _, row = table.row_of(key)
        if level == 100:
            table.clear(row, table.find(row, key))
            model.pop(key, None)
            continue
        neighbours = {other: bucket for other, bucket in model.items() if table.row_of(other)[1] == row}
        put(table, key, level * TOKEN, stamp * SECOND)
        if key not in model and len(neighbours) == PLACES:
            lost = [other for other in neighbours if get(table, other) is None]
            assert 1 == len(lost)
            assert min(map(full_at, neighbours.values())) == full_at(model.pop(lost[0]))
        model[key] = (level, stamp)
    expected = {key: (level * TOKEN, stamp * SECOND, LIMIT.unit) for key, (level, stamp) in model.items()}
    found = {key: get(table, key) for key in map(key_of, range(61))}
    assert expected == {key: bucket for key, bucket in found.items() if bucket is not None}
    assert len(model) == len(table)


def full_at(bucket: tuple[int, int]) -> int:
    level, stamp = bucket
    return stamp + 100 - level


@pytest.mark.parametrize(
    "limit",
    [
        Limit(1, 366 * 86_400, 284),
        Limit(1, 86_400, 1_000_000_000),
        Limit(1, 366 * 86_400, 2**53 // (366 * 86_400) - 1),
        Limit(2**40, 1, 2**40),
        Limit(1, 0.000_001, 2**52),
    ],
    ids=str,
)
def test_the_slowest_and_the_largest_limits_fit(limit: Limit) -> None:
    table = table_of(1)
    for level in (limit.capacity, 0, limit.capacity - LARGEST):
        put(table, key_of(1), level, 2**55, limit)
        assert (level, 2**55, limit.unit) == get(table, key_of(1))
