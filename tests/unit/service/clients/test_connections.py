from __future__ import annotations

import pytest

from service.clients.connections import Patience


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("after", "expected"),
    [(0.0, 5.0), (3.0, 5.0), (7.5, 2.5), (9.875, 0.125)],
)
def test_waits_for_the_shorter_of_the_longest_silence_and_what_is_left(after: float, expected: float) -> None:
    clock = Clock()
    patience = Patience(silence=5.0, clock=clock)
    patience.grant(10.0)

    clock.now += after

    assert expected == patience.next_wait()


@pytest.mark.parametrize("after", [10.0, 10.5, 1e9])
def test_is_at_an_end_when_the_whole_has_taken_too_long(after: float) -> None:
    clock = Clock()
    patience = Patience(silence=5.0, clock=clock)
    patience.grant(10.0)

    clock.now += after

    with pytest.raises(TimeoutError, match="used up"):
        patience.next_wait()


def test_can_be_granted_anew_for_what_comes_next() -> None:
    clock = Clock()
    patience = Patience(silence=5.0, clock=clock)
    clock.now += 4.0
    assert 1.0 == patience.next_wait()

    patience.grant(60.0)

    assert 5.0 == patience.next_wait()
