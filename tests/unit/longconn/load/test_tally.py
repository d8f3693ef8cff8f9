"""Tallies, added up and sent from process to process."""

from __future__ import annotations

import itertools
import json
from collections import Counter

from longconn.load.tally import BOUNDS, SECOND, Tally


def tally(count: int) -> Tally:
    """One in which something of everything was counted."""
    made = Tally(wanted=count, open=count, messages=7 * count, busiest=count / 10, processor=0.5 * count)
    made.failed["refused"] += count
    made.ended[f"100{count}"] += count
    for number in range(count):
        made.delivery.observe(number * SECOND // 100)
    return made


def test_tallies_add_up() -> None:
    total = Tally()
    total.add(tally(3))
    total.add(tally(2))
    assert (5, 5, 35, 2.5) == (total.wanted, total.open, total.messages, total.processor)
    assert Counter({"refused": 5}) == total.failed
    assert Counter({"1003": 3, "1002": 2}) == total.ended
    assert (5, 4 * SECOND // 100) == (total.delivery.count, total.delivery.sum)


def test_the_busiest_process_stays_the_busiest() -> None:
    total = Tally()
    total.add(tally(3))
    total.add(tally(2))
    assert 0.3 == total.busiest


def test_a_tally_travels_as_json() -> None:
    told = json.loads(json.dumps(tally(3).as_json()))
    again = Tally.from_json(told)
    assert tally(3).as_json() == again.as_json()
    again.add(tally(1))
    assert 4 == again.wanted


def test_times_are_known_to_a_tenth_from_ten_microseconds_to_five_minutes() -> None:
    assert 10_000 == BOUNDS[0]
    assert 270 * SECOND < BOUNDS[-1] <= 300 * SECOND
    assert all(high <= low * 1.1001 for low, high in itertools.pairwise(BOUNDS))
