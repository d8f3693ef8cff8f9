"""The service's own counters."""

from __future__ import annotations

import json
import logging
import os

import pytest

from longconn import scoreboard
from longconn.channels.errors import ChannelsUnavailable
from longconn.scoreboard import Scoreboard
from service.services.live import LiveCounters, figures
from tests.support.channels import HeldChannels


class Ended(Exception):
    pass


def worker(board: Scoreboard, pid: int, *, state: int = scoreboard.SERVING, websockets: int = 0) -> None:
    row = board.claim(age=pid)
    row.begin(pid)
    row.values[scoreboard.HEARD_NS] = 2**62  # it is alive, whoever has that number
    row.values[scoreboard.SLOT_STATE] = state
    row.values[scoreboard.CONNECTIONS] = websockets + 1
    row.values[scoreboard.KINDS + scoreboard.KIND_NAMES.index("websocket")] = websockets
    row.values[scoreboard.REQUESTS] = 10
    row.values[scoreboard.messages_field("websocket out")] = 5
    row.values[scoreboard.messages_field("sse out")] = 2


def test_the_figures_are_those_of_all_workers() -> None:
    board = Scoreboard(4)
    worker(board, os.getppid(), websockets=3)
    worker(board, os.getpid(), websockets=4)
    found = figures(board, 1.23456)
    assert (1.235, {os.getppid(), os.getpid()}, 9, 7, 0, 20, 14) == (
        found["at"],
        {each["pid"] for each in found["workers"]},
        *(found[name] for name in ("connections", "websocket", "sse", "requests", "messages_out")),
    )
    assert {(4, 3), (5, 4)} == {(each["connections"], each["websocket"]) for each in found["workers"]}


def rounds(board: Scoreboard, channels: HeldChannels, count: int) -> list[float]:
    """How long is slept after each of so many rounds that begin at 10.25 seconds."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == count:
            raise Ended

    with pytest.raises(Ended):
        LiveCounters(board, channels, clock=lambda: 10.25, sleep=sleep).run()
    return slept


def test_they_are_published_once_a_second() -> None:
    channels = HeldChannels()
    assert [0.75, 0.75] == rounds(Scoreboard(4), channels, 2)
    assert ["live", "live"] == [message.channel for message in channels.messages]
    assert "service" == json.loads(channels.messages[0].data)["from"]


@pytest.mark.parametrize(
    ("other", "state", "published"),
    [
        (os.getpid() + 1, scoreboard.SERVING, 1),
        (1, scoreboard.SERVING, 0),
        (1, scoreboard.DRAINING, 1),
        (1, scoreboard.BOOTING, 1),
    ],
)
def test_one_worker_publishes_for_all(other: int, state: int, published: int) -> None:
    board, channels = Scoreboard(4), HeldChannels()
    worker(board, os.getpid())
    worker(board, other, state=state)
    rounds(board, channels, 1)
    assert published == len(channels.messages)


def test_a_failure_is_said_once_and_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    board, channels = Scoreboard(4), HeldChannels()
    counters = LiveCounters(board, channels, clock=lambda: 1.0, sleep=lambda _: None)
    channels.failure = ChannelsUnavailable("full")
    with caplog.at_level(logging.WARNING, "service.live"):
        counters.publish(1.0)
        counters.publish(2.0)
        channels.failure = None
        counters.publish(3.0)
        channels.failure = ChannelsUnavailable("full")
        counters.publish(4.0)
    assert (2, 1) == (len(caplog.records), len(channels.messages))
