"""Who comes the most often, in bounded memory."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from resilience.core.top import Frequent, RecentlyFrequent, Top

STREAMS = st.lists(st.tuples(st.integers(0, 30).map(str), st.integers(1, 20)), max_size=200)


@given(STREAMS, st.integers(1, 8))
def test_no_count_is_too_high_nor_short_by_more_than_the_error(stream: list[tuple[str, int]], size: int) -> None:
    frequent, true = Frequent(size), Counter[str]()
    for key, count in stream:
        frequent.add(key, count)
        true[key] += count
        assert len(frequent.counts) < 2 * size
    for key, count in true.items():
        assert frequent.counts.get(key, 0) <= count <= frequent.counts.get(key, 0) + frequent.error
    assert frequent.error * size <= true.total()


@given(STREAMS, st.integers(1, 8))
def test_a_key_that_came_oftener_than_its_share_is_kept(stream: list[tuple[str, int]], size: int) -> None:
    frequent, true = Frequent(size), Counter[str]()
    for key, count in stream:
        frequent.add(key, count)
        true[key] += count
    assert {key for key, count in true.items() if count * size > true.total()} <= frequent.counts.keys()


def test_few_keys_are_counted_exactly() -> None:
    frequent = Frequent()
    for number in range(100):
        frequent.add(str(number), number + 1)
    assert (0, 100, 50) == (frequent.error, frequent.counts["99"], frequent.counts["49"])


def test_a_flood_of_others_does_not_hide_who_comes_the_most_often() -> None:
    recent = RecentlyFrequent()
    for number in range(20_000):
        recent.add(f"other {number}", 1, 0.0)
        if number % 10 == 0:
            recent.add("greedy", 1, 0.0)
    (greedy,) = recent.top(1, 0.0)
    assert "greedy" == greedy.key
    assert greedy.times <= 2_000 <= greedy.times + greedy.error
    assert greedy.error <= 22_000 / 64


def test_the_most_frequent_come_first_and_equals_by_name() -> None:
    recent = RecentlyFrequent()
    for key, count in (("b", 2), ("a", 2), ("c", 3), ("d", 1)):
        recent.add(key, count, 0.0)
    assert [Top("c", 3, 0), Top("a", 2, 0), Top("b", 2, 0)] == recent.top(3, 0.0)


def test_what_is_yet_to_be_added_counts() -> None:
    recent = RecentlyFrequent()
    recent.add("a", 1, 0.0)
    assert [Top("b", 2, 0), Top("a", 1, 0)] == recent.top(9, 0.0, besides={"b": 2, "c": 0})
    assert [Top("a", 1, 0)] == recent.top(9, 0.0)


def test_who_has_not_come_for_two_spans_is_forgotten() -> None:
    recent = RecentlyFrequent(span=300.0)
    recent.add("early", 1, 0.0)
    recent.add("late", 1, 299.0)
    recent.add("later", 1, 301.0)
    assert ["early", "late", "later"] == [top.key for top in recent.top(9, 599.0)]
    assert ["later"] == [top.key for top in recent.top(9, 601.5)]
    assert [] == recent.top(9, 2_000.0)
