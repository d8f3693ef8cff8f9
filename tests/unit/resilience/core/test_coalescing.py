"""What happens again and again is said at most once a second for each key."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from resilience.core.coalescing import OTHERS, Coalescing, Said


def test_the_first_is_said_at_once_and_the_rest_when_the_second_is_over() -> None:
    coalescing = Coalescing()
    assert [Said("a", 1, True)] == coalescing.add("a", 10.0)
    assert [(), (), ()] == [coalescing.add("a", now) for now in (10.1, 10.5, 10.99)]
    assert [Said("a", 4, True)] == coalescing.add("a", 11.0)


def test_what_is_left_of_others_is_said_when_anybody_comes() -> None:
    coalescing = Coalescing()
    for key in "abbccc":
        coalescing.add(key, 10.0)
    assert [Said("c", 2, False), Said("b", 1, False), Said("d", 1, True)] == coalescing.add("d", 11.0)


def test_what_is_left_is_said_to_who_looks() -> None:
    coalescing = Coalescing()
    for _ in range(3):
        coalescing.add("a", 10.0)
    assert () == coalescing.leftovers(10.9)
    assert [Said("a", 2, False)] == coalescing.leftovers(11.0)
    assert [] == list(coalescing.leftovers(12.0))


def test_a_clock_that_goes_backwards_stands_still() -> None:
    coalescing = Coalescing()
    coalescing.add("a", 10.0)
    assert () == coalescing.add("a", 5.0)
    assert [Said("a", 2, True)] == coalescing.add("a", 11.0)


def test_a_flood_of_keys_is_said_together() -> None:
    coalescing = Coalescing(most=2, room=4)
    said = [coalescing.add(key, 10.0) for key in ("a", "b", "c", "c", "d", "e", "f")]
    assert [[Said("a", 1, True)], [Said("b", 1, True)], [], (), [], [], []] == said
    # c twice, d once: those that are said of the first four; e and f were others
    assert [Said("c", 2, False), Said("d", 1, False), Said(OTHERS, 2, False)] == coalescing.leftovers(11.0)


def test_the_key_that_comes_is_never_among_the_others() -> None:
    coalescing = Coalescing(most=1, room=4)
    for key in "abbc":
        coalescing.add(key, 10.0)
    assert [Said(OTHERS, 2, False), Said("c", 2, True)] == coalescing.add("c", 11.0)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0.0, 0.7)), max_size=100),
    st.integers(1, 4),
    st.integers(1, 6),
)
def test_everything_is_said_once(steps: list[tuple[str, float]], most: int, room: int) -> None:
    coalescing, now, said, true = Coalescing(most=most, room=room), 10.0, Counter[str](), Counter[str]()
    for key, pause in steps:
        now += pause
        true[key] += 1
        for each in coalescing.add(key, now):
            said[each.key] += each.times
    for each in coalescing.leftovers(now + 10.0):
        said[each.key] += each.times
    assert true.total() == said.total()
    assert all(said[key] <= true[key] for key in true)
    # few keys, and no error: every count is exact
    assert dict(true) == {top.key: top.times for top in coalescing.top(20, now + 10.0)}


def test_the_present_second_counts_among_the_most_frequent() -> None:
    coalescing = Coalescing()
    for key in "abb":
        coalescing.add(key, 10.0)
    assert [("b", 2), ("a", 1)] == [(top.key, top.times) for top in coalescing.top(9, 10.0)]
