"""Messages out of bytes: each rule by itself, then any stream however it is cut, against what was written and against another
implementation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame
from websockets.frames import Opcode as TheirOpcode
from websockets.protocol import Protocol, Side, State

from longconn.core import deflate, messages
from longconn.core.frames import CloseCode, Opcode, ProtocolError, encode_close, encode_frame
from longconn.core.messages import Event, MessageLimits, Reading
from tests.support.examples import many

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = map(int, Opcode)
MASK = b"\x01\x9f\x00\xa5"
LIMITS = MessageLimits(message_bytes=2_000, fragments=8)
DEFLATION = deflate.Deflation("")


def frame(opcode: int, payload: bytes = b"", **options: Any) -> bytes:
    return encode_frame(opcode, payload, **{"mask": MASK, **options})


def taken(
    *parts: bytes, limits: MessageLimits = LIMITS, inflate: bool = False, masked: bool = True
) -> tuple[list[Event], Reading | None]:
    """All events of `parts`, one after the other. The reading of one fault tells what came before it, over all parts."""
    events: list[Event] = []
    reading: Reading | None = None
    for part in parts:
        try:
            found, reading = messages.read(part, reading, limits, inflate=inflate, masked=masked)
        except ProtocolError as error:
            error.events = events + error.events
            raise
        events += found
        if events and events[-1][0] == CLOSE:
            break
    return events, reading


def refused(*parts: bytes, **options: Any) -> tuple[int, list[Event]]:
    """The close code that `parts` deserve, and the events before."""
    with pytest.raises(ProtocolError) as error:
        taken(*parts, **options)
    return error.value.code, error.value.events


# One whole message


@pytest.mark.parametrize("length", [0, 1, 125, 126, 1_999, 2_000])
def test_a_message_in_one_piece_leaves_nothing_behind(length: int) -> None:
    text = "x" * length
    assert ([(TEXT, text)], None) == taken(frame(TEXT, text.encode()))
    assert ([(BINARY, text.encode())], None) == taken(frame(BINARY, text.encode()))


def test_several_messages_in_one_piece_come_in_order() -> None:
    data = frame(TEXT, b"a") + frame(PING, b"b") + frame(BINARY, b"c" * 300) + frame(TEXT, "é".encode()) + frame(PONG)
    assert ([(TEXT, "a"), (PING, b"b"), (BINARY, b"c" * 300), (TEXT, "é"), (PONG, b"")], None) == taken(data)


def test_a_longer_message_than_64_kib_comes_whole() -> None:
    payload = bytes(range(256)) * 300
    assert ([(BINARY, payload)], None) == taken(frame(BINARY, payload), limits=MessageLimits())


def test_what_a_server_sends_is_read_without_a_mask() -> None:
    data = frame(TEXT, b"a" * 20, mask=None) + frame(BINARY, b"b" * 200, mask=None) + frame(PING, mask=None)
    assert ([(TEXT, "a" * 20), (BINARY, b"b" * 200), (PING, b"")], None) == taken(data, masked=False)


def test_an_unmasked_message_may_end_in_the_middle_of_its_length() -> None:
    data = frame(BINARY, b"b" * 200, mask=None)
    assert ([(BINARY, b"b" * 200)], None) == taken(data[:3], data[3:], masked=False)


# Incomplete ones


def test_a_reading_exists_only_while_something_is_incomplete() -> None:
    data = frame(TEXT, b"hello")
    events, reading = messages.read(data[:-1], None, LIMITS)
    assert [] == events
    assert reading is not None
    assert ([(TEXT, "hello")], None) == messages.read(data[-1:], reading, LIMITS)


def test_a_control_frame_may_come_between_fragments_and_in_parts() -> None:
    first, ping, last = frame(TEXT, b"he", fin=False), frame(PING, b"?" * 125), frame(CONTINUATION, b"llo")
    assert ([(PING, b"?" * 125), (TEXT, "hello")], None) == taken(first, ping[:40], ping[40:] + last)


def test_what_is_held_of_an_incomplete_message_is_its_bytes() -> None:
    _, reading = taken(frame(TEXT, b"x" * 1_000)[:-1])
    assert reading is not None
    assert 999 == reading.held_bytes


def test_what_is_awaited_is_the_rest_of_the_frame() -> None:
    _, reading = taken(frame(TEXT, b"x" * 1_000)[:108])
    assert reading is not None
    assert 900 == reading.awaited
    _, reading = taken(frame(TEXT, b"x" * 1_000, fin=False))
    assert reading is not None
    assert 0 == reading.awaited


def test_a_part_of_a_head_is_held_and_no_more() -> None:
    _, reading = taken(frame(BINARY, b"x" * 1_000)[:7])
    assert reading is not None
    assert 7 == reading.held_bytes


# The close


def test_a_close_says_code_and_reason_or_neither() -> None:
    assert ([(CLOSE, (1000, "bye"))], None) == taken(encode_close(1000, "bye", mask=MASK))
    assert ([(CLOSE, (1005, ""))], None) == taken(frame(CLOSE))


def test_nothing_is_read_after_a_close() -> None:
    data = frame(TEXT, b"a") + encode_close(1001, mask=MASK) + frame(TEXT, b"b") + b"\xff"
    assert ([(TEXT, "a"), (CLOSE, (1001, ""))], None) == taken(data)


def test_a_close_ends_a_message_that_is_incomplete() -> None:
    data = frame(TEXT, b"a", fin=False) + frame(CLOSE)
    assert ([(CLOSE, (1005, ""))], None) == taken(data[:9], data[9:])


# What breaks the protocol


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x83", id="an opcode that is not in use"),
        pytest.param(b"\x8b", id="a control opcode that is not in use"),
        pytest.param(b"\x91", id="the third reserved bit"),
        pytest.param(b"\xa1", id="the second reserved bit"),
        pytest.param(b"\xc1", id="a compressed message where that was not agreed on"),
        pytest.param(b"\xc9", id="a compressed ping"),
        pytest.param(b"\x80", id="a continuation of nothing"),
        pytest.param(frame(TEXT, b"a") + frame(CONTINUATION, b"b")[:1], id="a continuation of what has ended"),
        pytest.param(frame(TEXT, b"a", fin=False) + b"\x82", id="a new message inside another"),
        pytest.param(b"\x09", id="a fragmented ping"),
        pytest.param(b"\x89\xfe", id="a long ping"),
        pytest.param(b"\x81\x05", id="no mask"),
        pytest.param(b"\x81\xfe\x00\x7d" + MASK + bytes(125), id="16 bits of length for 125"),
        pytest.param(b"\x81\xff" + (65_535).to_bytes(8), id="64 bits of length for 65,535"),
        pytest.param(frame(CLOSE, b"\x03"), id="half a close code"),
        pytest.param(frame(CLOSE, (1005).to_bytes(2)), id="a close code that must not be sent"),
    ],
)
def test_a_violation_is_refused_with_the_first_byte_that_shows_it(data: bytes) -> None:
    good = frame(PING, b"before")
    code, events = refused(good + data)
    assert CloseCode.PROTOCOL_ERROR == code
    assert (PING, b"before") == events[0]
    assert CloseCode.PROTOCOL_ERROR == refused(*(data[at : at + 1] for at in range(len(data))))[0]


def test_a_masked_frame_of_a_server_is_refused() -> None:
    assert (1002, []) == refused(frame(TEXT, b"a"), masked=False)


def test_rsv1_belongs_to_the_first_frame_of_a_message() -> None:
    data = frame(TEXT, b"a", fin=False, compressed=True)
    assert 1002 == refused(data + b"\xc0", inflate=True)[0]


# Text


@pytest.mark.parametrize(
    "bad", [b"\xff", b"\xc0\xaf", b"\xed\xa0", b"\xed\xbf\xbf", b"\xf4\x90", b"\xe0\x80", b"\xf8", b"\x80"]
)
def test_text_that_is_not_utf8_is_refused_as_it_arrives(bad: bytes) -> None:
    data = frame(TEXT, "κόσμε".encode() + bad + b" and more to come", fin=False)
    begun = 6 + len("κόσμε".encode()) + len(bad)
    assert 1007 == refused(data[:begun])[0]
    assert 1007 == refused(*(data[at : at + 1] for at in range(begun)))[0]
    assert 1007 == refused(data[:begun] + data[begun:])[0]


@pytest.mark.parametrize("size", [20, 200])
def test_text_that_ends_in_the_middle_of_a_character_is_refused(size: int) -> None:
    bad = b"x" * size + "é".encode()[:1]
    assert (1007, [(PONG, b"")]) == refused(frame(PONG) + frame(TEXT, bad))
    assert (1007, []) == refused(frame(TEXT, bad))
    assert (1007, []) == refused(frame(TEXT, bad, fin=False), frame(CONTINUATION))


def test_a_character_may_be_cut_by_frames_and_by_parts() -> None:
    text = "a𝄞é€"
    frames = b"".join(
        frame(CONTINUATION if at else TEXT, text.encode()[at : at + 2], fin=at == 8) for at in (0, 2, 4, 6, 8)
    )
    assert ([(TEXT, text)], None) == taken(*(frames[at : at + 1] for at in range(len(frames))))


def test_binary_data_may_be_anything() -> None:
    assert ([(BINARY, b"\xff\xc0")], None) == taken(frame(BINARY, b"\xff", fin=False), frame(CONTINUATION, b"\xc0"))


# Limits


def test_a_message_that_will_be_too_big_is_refused_by_its_head() -> None:
    assert (1009, []) == refused(frame(TEXT, b"x" * 2_001)[:4])
    assert (1009, []) == refused(b"\x82\xff" + (2**63 - 1).to_bytes(8))
    assert (1009, []) == refused(b"\x82\xff" + (2**64 - 1).to_bytes(8))
    assert (1009, []) == refused(frame(BINARY, b"x" * 1_500, fin=False) + frame(CONTINUATION, b"x" * 501)[:8])


def test_a_small_message_can_be_too_big_too() -> None:
    limits = MessageLimits(message_bytes=10)
    assert ([(TEXT, "x" * 10)], None) == taken(frame(TEXT, b"x" * 10), limits=limits)
    assert (1009, []) == refused(frame(TEXT, b"x" * 11), limits=limits)


def test_a_message_may_come_in_so_many_frames_and_no_more() -> None:
    begin, more, end = frame(TEXT, fin=False), frame(CONTINUATION, fin=False), frame(CONTINUATION, b"x")
    assert ([(TEXT, "x")], None) == taken(begin + more * 6 + end)
    assert (1009, []) == refused(begin + more * 7 + end)


# Compressed messages


@pytest.mark.parametrize("cut", [0, 1, 5])
def test_a_compressed_message_may_be_in_frames(cut: int) -> None:
    payload = DEFLATION.compress(b"hello " * 200)
    data = frame(TEXT, payload[:cut], fin=False, compressed=True) + frame(CONTINUATION, payload[cut:])
    assert ([(TEXT, "hello " * 200)], None) == taken(data, inflate=True)
    assert ([(TEXT, "hello " * 200)], None) == taken(*(data[at : at + 1] for at in range(len(data))), inflate=True)


def test_a_message_may_be_uncompressed_where_compression_was_agreed_on() -> None:
    data = frame(TEXT, b"plain") + frame(TEXT, DEFLATION.compress(b"not"), compressed=True) + frame(TEXT, b"plain")
    assert ([(TEXT, "plain"), (TEXT, "not"), (TEXT, "plain")], None) == taken(data, inflate=True)


@pytest.mark.parametrize("inflated", [2_001, 10_000_000])
def test_a_message_that_inflates_to_too_much_is_refused_while_it_inflates(inflated: int) -> None:
    data = frame(BINARY, DEFLATION.compress(bytes(inflated)), compressed=True)
    limits = MessageLimits(2_000)
    assert (1009, []) == refused(data, limits=limits, inflate=True)
    assert (1009, []) == refused(*(data[at : at + 3] for at in range(0, len(data), 3)), limits=limits, inflate=True)


def test_a_message_that_inflates_to_the_limit_is_taken() -> None:
    data = frame(BINARY, DEFLATION.compress(bytes(2_000)), compressed=True)
    assert ([(BINARY, bytes(2_000))], None) == taken(data, inflate=True)


def test_compressed_bytes_that_stand_for_nothing_are_limited_too() -> None:
    begin = frame(BINARY, compressed=True, fin=False)
    nothing = frame(CONTINUATION, b"\x00\x00\x00\xff\xff" * 1_000, fin=False)
    assert (1009, []) == refused(begin + nothing * 5, inflate=True)


def test_what_is_no_compressed_data_is_refused() -> None:
    assert (1007, []) == refused(frame(TEXT, b"\xff" * 20, compressed=True), inflate=True)


def test_compressed_text_that_is_not_utf8_is_refused_as_it_arrives() -> None:
    payload = DEFLATION.compress(b"\xff" + bytes(range(97, 123)) * 10)
    assert (1007, []) == refused(frame(TEXT, payload, compressed=True, fin=False), inflate=True)


# Any stream, however it is cut

PAYLOADS = some.binary(max_size=40) | some.builds(bytes, some.integers(0, 400))
TEXTS = some.text(max_size=40) | some.builds(lambda count: "é" * count, some.integers(0, 400))
CONTROLS = some.tuples(some.sampled_from([PING, PONG]), some.binary(max_size=125))
CUTS = some.lists(some.sampled_from([1, 1, 2, 3, 6, 7, 14, 40, 500]), min_size=1)


@some.composite
def streams(draw: Any, *, compressed: bool = False) -> tuple[bytes, list[Event]]:
    """A valid stream, and what it says."""
    data, events = b"", []
    for _ in range(draw(some.integers(0, 5))):
        opcode, content = draw(some.tuples(some.just(TEXT), TEXTS) | some.tuples(some.just(BINARY), PAYLOADS))
        payload = content.encode() if opcode == TEXT else content
        deflated = compressed and draw(some.booleans())
        wire = DEFLATION.compress(payload) if deflated else payload
        ends = sorted([*draw(some.lists(some.integers(0, len(wire)), max_size=6)), len(wire)])
        begin = 0
        for number, end in enumerate(ends):
            for control in draw(some.lists(CONTROLS, max_size=1)):
                data += frame(*control)
                events.append(control)
            part = wire[begin:end]
            last = number == len(ends) - 1
            mask = draw(some.binary(min_size=4, max_size=4))
            first = not number
            data += frame(opcode if first else CONTINUATION, part, fin=last, compressed=deflated and first, mask=mask)
            begin = end
        events.append((opcode, content))
    if draw(some.booleans()):
        data += encode_close(1001, "away", mask=MASK)
        events.append((CLOSE, (1001, "away")))
    return data, events


@some.composite
def damaged_streams(draw: Any, *, compressed: bool = False) -> bytes:
    """A valid stream in which some bytes are others now, and which may go on with anything."""
    stream: tuple[bytes, list[Event]] = draw(streams(compressed=compressed))
    data = bytearray(stream[0])
    for _ in range(draw(some.integers(0, 3))):
        if data:
            data[draw(some.integers(0, len(data) - 1))] = draw(some.integers(0, 255))
    more: bytes = draw(some.binary(max_size=20))
    return bytes(data) + more


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in parts of these sizes, over and over."""
    parts = []
    number = at = 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        parts.append(data[at : at + size])
        at, number = at + size, number + 1
    return parts


def outcome(*parts: bytes, inflate: bool) -> tuple[list[Event], bool, int | None]:
    """The events, whether something is incomplete at the end, and the code of the fault if there is one."""
    try:
        events, reading = taken(*parts, inflate=inflate)
    except ProtocolError as error:
        return error.events, False, error.code
    return events, reading is not None, None


@settings(max_examples=many(70))
@given(streams() | streams(compressed=True), CUTS)
def test_any_cut_of_any_valid_stream_gives_what_was_written(
    stream: tuple[bytes, list[Event]], sizes: list[int]
) -> None:
    data, expected = stream
    assert (expected, None) == taken(data, inflate=True)
    assert (expected, None) == taken(*cut(data, sizes), inflate=True)


@settings(max_examples=many(120))
@given(some.binary(max_size=200) | damaged_streams(), CUTS)
@example(b"\x81\xfe", [1])
def test_any_bytes_give_events_or_one_fault_however_they_are_cut(data: bytes, sizes: list[int]) -> None:
    assert outcome(data, inflate=False) == outcome(*cut(data, sizes), inflate=False)


@settings(max_examples=many(70))
@given(damaged_streams(compressed=True), CUTS)
def test_any_bytes_with_compression_give_events_or_one_fault_however_they_are_cut(
    data: bytes, sizes: list[int]
) -> None:
    whole, in_parts = outcome(data, inflate=True), outcome(*cut(data, sizes), inflate=True)
    assert whole[:2] == in_parts[:2]
    # What is both too big and not UTF-8 is refused for what shows first, which depends on how much was inflated at once.
    assert whole[2] == in_parts[2] or {whole[2], in_parts[2]} == {1007, 1009}


@settings(max_examples=many(50))
@given(damaged_streams(compressed=True), CUTS)
def test_what_is_held_never_exceeds_the_limit(data: bytes, sizes: list[int]) -> None:
    reading: Reading | None = None
    for part in cut(data, sizes):
        try:
            events, reading = messages.read(part, reading, LIMITS, inflate=True)
        except ProtocolError:
            return
        assert reading is None or reading.held_bytes <= LIMITS.message_bytes + 14 + 125
        if events and events[-1][0] == CLOSE:
            return


# The other implementation


def said_by_websockets(data: bytes) -> tuple[list[Event], int | None]:
    """What websockets' sans-IO protocol makes of `data`. It leaves UTF-8 to its callers, as this does to `decode`."""
    protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=LIMITS.message_bytes)
    protocol.extensions = [PerMessageDeflate(True, True, 15, 15)]
    protocol.receive_data(data)
    events: list[Event] = []
    opcode, payload = 0, b""
    for each in protocol.events_received():
        assert isinstance(each, Frame)
        if each.opcode in (TheirOpcode.PING, TheirOpcode.PONG):
            events.append((int(each.opcode), bytes(each.data)))
        elif each.opcode is TheirOpcode.CLOSE:
            assert protocol.close_rcvd is not None
            events.append((CLOSE, (protocol.close_rcvd.code, protocol.close_rcvd.reason)))
        else:
            opcode = opcode or int(each.opcode)
            payload += bytes(each.data)
            if each.fin:
                try:
                    events.append((opcode, payload.decode() if opcode == TEXT else payload))
                except UnicodeDecodeError:
                    return events, 1007
                opcode, payload = 0, b""
    faultless = protocol.parser_exc is None or (events and events[-1][0] == CLOSE)
    return events, None if faultless or protocol.close_sent is None else int(protocol.close_sent.code)


@settings(max_examples=many(120))
@given(damaged_streams() | damaged_streams(compressed=True))
def test_another_implementation_agrees(data: bytes) -> None:
    theirs, their_fault = said_by_websockets(data)
    ours, _, fault = outcome(data, inflate=True)
    if fault is None and their_fault == 1002:
        # A close inside a message: there it is a fault, here a goodbye, as RFC 6455 lets any control frame come in between.
        assert ours == [*theirs, ours[-1]]
        assert CLOSE == ours[-1][0]
    elif fault is None:
        assert (theirs, their_fault) == (ours, None)
    else:
        # Ours may be earlier: text is checked before its message is whole, and lengths for being as short as they can be.
        assert ours == theirs[: len(ours)]


@settings(max_examples=many(60))
@given(streams(compressed=True))
def test_another_implementation_takes_what_is_valid_here(stream: tuple[bytes, list[Event]]) -> None:
    data, expected = stream
    assert (expected, None) == said_by_websockets(data)
