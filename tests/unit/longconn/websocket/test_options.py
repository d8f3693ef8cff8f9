"""The options of an endpoint: what is accepted, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from longconn.core.messages import MessageLimits
from longconn.websocket.options import WebSocketOptions


def test_the_limits_of_a_message_are_those_of_the_options() -> None:
    assert MessageLimits(10, 20) == WebSocketOptions(message_bytes=10, fragments=20).limits


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        ({"message_bytes": 0}, "message_bytes=0: it is a whole number from 1 to"),
        ({"message_bytes": 1.5}, "message_bytes=1.5: it is a whole number"),
        ({"fragments": True}, "fragments=True: it is a whole number"),
        ({"queue_bytes": -1}, "queue_bytes=-1: it is a whole number from 0"),
        ({"compression_from": "1K"}, "compression_from='1K': it is a whole number"),
        ({"ping_interval": -1}, "ping_interval=-1: it is a number of seconds from 0 to 86400"),
        ({"ping_timeout": 0}, "ping_timeout=0: it is a number of seconds from 0.1"),
        ({"close_timeout": float("nan")}, "close_timeout=nan: it is a number of seconds"),
        ({"idle_timeout": True}, "idle_timeout=True: it is a number of seconds"),
        ({"overflow": "drop"}, "overflow='drop': it is one of disconnect, drop-oldest, conflate"),
        ({"overflow_code": 1000}, "overflow_code=1000: it is 1013, 1008 or one from 3000 to 4999"),
        ({"messages_per_second": 100}, 'messages_per_second=100: it is a limit such as "100/second"'),
        ({"subprotocols": "chat"}, r"subprotocols='chat': it is several texts, such as \['chat'\]"),
        ({"subprotocols": None}, "subprotocols=None: it is several texts"),
        ({"allowed_origins": ["https://a", ""]}, "allowed_origins=.*none of them empty"),
    ],
)
def test_what_is_out_of_range_is_refused_with_what_is_accepted(options: dict[str, Any], accepted: str) -> None:
    with pytest.raises(ValueError, match=accepted):
        WebSocketOptions(**options)


def test_several_texts_may_come_in_any_collection() -> None:
    options = WebSocketOptions(subprotocols=["a", "b"], allowed_origins=["https://a.example"])  # type: ignore[arg-type]
    assert (("a", "b"), ("https://a.example",)) == (options.subprotocols, options.allowed_origins)


def test_an_unknown_option_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(TypeError, match=r"no option ping_intervall: there are allowed_origins, close_timeout, .*"):
        WebSocketOptions.of({"ping_intervall": 3})


def test_options_by_name_are_those_options() -> None:
    assert WebSocketOptions(ping_interval=3.0) == WebSocketOptions.of({"ping_interval": 3.0})
