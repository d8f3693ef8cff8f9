"""What a call of the script looks like on the wire."""

from __future__ import annotations

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from resilience.core.limiter import LARGEST, Bucket, Limit, advance
from resilience.storage.script import bulk, charge_terms, encode, parts_of, refund_terms, returned_terms
from tests.support.examples import many

TEN = Limit(10, 60)
"""A token is 6,000,000 parts, a microsecond brings one."""


def read(data: bytes) -> list[bytes]:
    """The arguments of a command."""
    reader = hiredis.Reader()
    reader.feed(data)
    command = reader.gets()
    assert reader.gets() is False
    return list(command)


def content(wire: bytes) -> bytes:
    return wire.split(b"\r\n")[1]


def test_one_charge_is_a_key_and_its_terms() -> None:
    command = read(encode([bulk(b"key")], [charge_terms(TEN, 2)], b""))
    assert [b"EVALSHA", b"1", b"key", b"", b"", b"", b"c 60000000 1 6000000 1 12000000 0"] == [command[0], *command[2:]]
    assert 40 == len(command[1])


def test_a_server_that_lacks_the_script_is_sent_its_text() -> None:
    command = read(encode([bulk(b"key")], [charge_terms(TEN, 2)], b"", whole=True))
    assert b"EVAL" == command[0]
    assert b"redis.call('TIME')" in command[1]


def test_a_time_of_the_callers_own_goes_first() -> None:
    assert b"1700000000000000" == read(encode([bulk(b"key")], [charge_terms(TEN, 1)], b"1700000000000000"))[4]


def test_distinct_keys_under_the_same_terms_need_no_places() -> None:
    command = read(encode([bulk(b"%d" % place) for place in range(300)], [charge_terms(TEN, 1)] * 300, b""))
    assert [b"300", b"0", b"299"] == [command[2], command[3], command[302]]
    assert [b"", b"", b""] == command[303:306]
    assert 307 == len(command)


def test_keys_and_terms_travel_once_and_steps_say_which() -> None:
    one, two = charge_terms(TEN, 1), charge_terms(TEN, 2)
    command = read(encode([bulk(b"a"), bulk(b"b"), bulk(b"a")], [one, two, two], b""))
    assert [b"2", b"a", b"b"] == command[2:5]
    assert [b"\0\0\1\0\0\0", b"\0\0\1\0\1\0"] == command[6:8]
    assert [content(one), content(two)] == command[8:]


def test_more_than_256_keys_are_told_apart_by_two_bytes() -> None:
    keys = [bulk(b"%d" % place) for place in range(258)]
    command = read(encode([*keys, keys[-1]], [charge_terms(TEN, 1)] * 259, b""))
    assert b"\1\1" == command[3 + 258 + 1][-2:]


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (charge_terms(TEN, 0), b"c 60000000 1 6000000 1 0 0"),
        (charge_terms(TEN, 1, more=True), b"m 60000000 1 6000000 1 6000000 0"),
        (charge_terms(TEN, 1, 5), b"c 60000000 1 6000000 1 6000000 5"),
        (charge_terms(TEN, 1, -TEN.debt(1)), b"c 60000000 1 6000000 1 6000000 -1000000"),
        (charge_terms(Limit(7, 1, 2), 1), b"c 2000000 7 1000000 1 1000000 0"),
        (refund_terms(TEN, 12), b"r 60000000 1 6000000 1 12 -"),
        (refund_terms(TEN, None), b"r 60000000 1 6000000 1 - -"),
        (refund_terms(TEN, 12, -3), b"r 60000000 1 6000000 1 12 -3"),
    ],
)
def test_terms_are_the_numbers_of_a_limit_and_of_what_is_asked(terms: bytes, expected: bytes) -> None:
    assert expected == content(terms)


def test_numbers_beyond_every_bucket_stay_short() -> None:
    assert b"%d 0" % (2 * LARGEST) == content(charge_terms(TEN, 10**6_000)).split(b" ", 5)[5]
    assert b"%d" % (2 * LARGEST) == content(charge_terms(TEN, 1, 10**6_000)).split(b" ")[6]
    assert b"%d" % (TEN.capacity - LARGEST) == content(charge_terms(TEN, 1, -(10**6_000))).split(b" ")[6]
    assert b"%d -%d" % (2 * LARGEST, 2 * LARGEST) == content(refund_terms(TEN, 10**99, -(10**99))).split(b" ", 5)[5]


def test_a_charge_is_taken_back_whole_where_there_was_room() -> None:
    terms = charge_terms(TEN, 2, more=True)
    assert 12_000_000 == parts_of(terms)
    assert refund_terms(TEN, 12_000_000) == returned_terms(terms, 46_999_999, 1.0)


def test_of_a_full_bucket_the_refill_meanwhile_is_left_out() -> None:
    assert refund_terms(TEN, 10_999_999) == returned_terms(charge_terms(TEN, 2), 48_000_000, 1.0)


@pytest.mark.parametrize("burst", [10, 100_000])
def test_nothing_is_taken_back_by_a_bucket_that_is_full_again(burst: int) -> None:
    fast = Limit(1_000_000, 1, burst)
    assert returned_terms(charge_terms(fast, burst), 0, 0.1) is None


def test_a_charge_in_advance_is_taken_back_only_if_nobody_came_after_it() -> None:
    assert refund_terms(TEN, 6_000_000, -6_000_000) == returned_terms(charge_terms(TEN, 1, -7_000_000), -6_000_000, 1.0)


@pytest.mark.parametrize("terms", [charge_terms(TEN, 0), refund_terms(TEN, 5)])
def test_what_took_nothing_is_not_taken_back(terms: bytes) -> None:
    assert returned_terms(terms, 5, 1.0) is None


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
    terms = returned_terms(charge_terms(limit, cost), start - cost * limit.unit, elapsed)
    level_with = min(limit.capacity, level_with + (0 if terms is None else parts_of(terms)))
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
