"""Messages as events: what they look like, and which id they have for clients of several channels."""

from __future__ import annotations

from longconn.channels.ports import History, Message, Position
from longconn.streaming.encoding import Encoding, Event


def message(number: int, data: str | bytes = "x", channel: str = "news", event: str = "") -> Message:
    return Message(channel, Position(0x18F, number), data, event)


def test_with_one_channel_an_event_is_the_same_for_all() -> None:
    assert b"id: 18f-7\nevent: goal\ndata: 1\ndata: 0\n\n" == Encoding().encode(message(7, "1\n0", event="goal"))


def test_bytes_are_in_base64() -> None:
    assert b"id: 18f-7\ndata: AP8=\n\n" == Encoding().encode(message(7, b"\x00\xff"))


def test_an_application_may_say_how_a_message_looks() -> None:
    encoding = Encoding(encode=lambda it: f"{it.channel}: {it.data!r}")
    assert b"id: 18f-7\ndata: news: 'x'\n\n" == encoding.encode(message(7))


def test_a_line_break_in_an_events_name_begins_no_other_field() -> None:
    assert b"id: 18f-7\nevent: a data: b\ndata: x\n\n" == Encoding().encode(message(7, event="a\ndata: b"))


def test_with_several_channels_an_id_has_all_positions_of_the_client() -> None:
    event = Encoding(("news", "sport")).encode(message(7))
    assert isinstance(event, Event)
    stands, frame = event.after((Position(0x18F, 6), Position(0x18F, 3)))
    assert (Position(0x18F, 7), Position(0x18F, 3)) == stands
    assert b"id: 1dd39950.18f-7,1a85efd2.18f-3\ndata: x\n\n" == frame


def test_clients_that_stand_at_the_same_place_share_what_they_get() -> None:
    event = Encoding(("news", "sport")).encode(message(7))
    assert isinstance(event, Event)
    first = event.after((Position(0x18F, 6), Position(0x18F, 3)))
    assert first is event.after((Position(0x18F, 6), Position(0x18F, 3)))
    assert first != event.after((Position(0x18F, 6), Position(0x18F, 4)))


def test_what_is_lost_is_told_before_what_is_held() -> None:
    history = History((message(7), message(8)), complete=False, position=Position(0x18F, 8))
    frames = [frame for _, frame in Encoding().following("news", history, (Position(0x18F, 1),))]
    lost = b'id: 18f-6\nevent: missed\ndata: {"channel":"news","position":"18f-6"}\n\n'
    assert [lost, b"id: 18f-7\ndata: x\n\n", b"id: 18f-8\ndata: x\n\n"] == frames


def test_when_all_is_lost_the_channels_newest_position_is_told() -> None:
    history = History((), complete=False, position=Position(0x18F, 8))
    frames = [frame for _, frame in Encoding().following("news", history, (Position(0x18F, 1),))]
    assert [b'id: 18f-8\nevent: missed\ndata: {"channel":"news","position":"18f-8"}\n\n'] == frames


def test_catching_up_with_several_channels_moves_only_the_one() -> None:
    history = History((message(7), message(8)), complete=True, position=Position(0x18F, 8))
    *_, (stands, frame) = Encoding(("sport", "news")).following("news", history, (Position(1, 2), Position(0x18F, 6)))
    assert (Position(1, 2), Position(0x18F, 8)) == stands
    assert b"id: 1a85efd2.1-2,1dd39950.18f-8\ndata: x\n\n" == frame
