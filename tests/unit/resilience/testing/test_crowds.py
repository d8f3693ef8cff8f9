"""Crowds of threads do what they are told, and hide nothing."""

from __future__ import annotations

import pytest

from resilience.testing.crowds import crowd


def test_what_fails_in_a_thread_fails_the_test() -> None:
    def fail(_: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crowd(3, fail)


def test_everybody_is_asked_once_under_a_number_of_its_own() -> None:
    assert [0, 1, 4, 9] == sorted(crowd(4, lambda thread: thread**2))
