"""A server's clock, from what it has said of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from resilience.storage.server_time import ServerTime

LATENCIES = some.floats(0, 0.5)


def test_nothing_is_known_at_first() -> None:
    assert (False, 5.0) == (ServerTime().known, ServerTime().at(5))


def test_one_answer_puts_it_into_the_middle_of_its_journey() -> None:
    server = ServerTime()
    server.learn(1_000.0, asked=10.0, answered=10.5)
    assert (True, 1_000.0, 0.25) == (server.known, server.at(10.25), server.uncertainty)


def test_an_answer_that_was_quick_is_believed_for_longer() -> None:
    server = ServerTime()
    server.learn(1_000.0, asked=10.0, answered=10.002)
    server.learn(1_001.3, asked=11.0, answered=11.4)  # most of it on the way there
    assert abs(server.at(11.4) - 1_001.4) < 0.002


def test_a_clock_that_was_set_is_believed_at_once() -> None:
    server = ServerTime()
    server.learn(1_000.0, asked=10.0, answered=10.002)
    server.learn(400.0, asked=11.0, answered=11.002)
    assert abs(server.at(12.001) - 401.0) < 0.001


@given(
    offset=some.floats(-1e9, 1e9),
    journeys=some.lists(some.tuples(some.floats(0.001, 60), LATENCIES, LATENCIES), min_size=1, max_size=20),
)
def test_the_truth_is_never_further_away_than_it_says(
    offset: float, journeys: list[tuple[float, float, float]]
) -> None:
    server, local = ServerTime(), 0.0
    for pause, there, back in journeys:
        asked = local = local + pause
        answered = local = asked + there + back
        server.learn(asked + there + offset, asked, answered)
        assert abs(server.at(local) - (local + offset)) <= server.uncertainty + 1e-6
        assert server.uncertainty <= (there + back) / 2 + 1e-6


@given(
    drift=some.floats(-90e-6, 90e-6),
    journeys=some.lists(some.tuples(some.floats(0.1, 60), LATENCIES, LATENCIES), min_size=1, max_size=20),
)
def test_clocks_that_drift_apart_are_followed(drift: float, journeys: list[tuple[float, float, float]]) -> None:
    server, local = ServerTime(), 0.0
    for pause, there, back in journeys:
        asked = local = local + pause
        answered = local = asked + there + back
        server.learn((asked + there) * (1 + drift), asked, answered)
        assert abs(server.at(local) - local * (1 + drift)) <= server.uncertainty + 1e-3
