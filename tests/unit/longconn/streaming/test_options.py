"""What an application may choose for an event stream."""

from __future__ import annotations

from typing import Any

import pytest

from longconn.streaming.options import EventStreamOptions


def test_the_defaults_are_good_ones() -> None:
    options = EventStreamOptions()
    assert (3.0, 15.0, 1_048_576, "disconnect") == (
        options.retry,
        options.heartbeat,
        options.queue_bytes,
        options.overflow,
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"retry": -1}, "retry=-1: it is a number of seconds from 0 to 86400"),
        ({"retry": float("nan")}, "retry=nan"),
        ({"heartbeat": 0}, "heartbeat=0: it is a number of seconds from 1 to 3600"),
        ({"heartbeat": "15"}, "heartbeat='15'"),
        ({"heartbeat": True}, "heartbeat=True"),
        ({"queue_bytes": -1}, "queue_bytes=-1: it is a whole number from 0"),
        ({"queue_bytes": 1.5}, "queue_bytes=1.5"),
        ({"overflow": "explode"}, "overflow='explode': it is one of disconnect, drop-oldest, conflate"),
    ],
)
def test_what_is_out_of_range_is_refused_with_what_is_accepted(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EventStreamOptions(**option)
