"""Frames as they are written, against the bytes of RFC 6455 and against another implementation that reads them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from websockets.frames import EXTERNAL_CLOSE_CODES, Frame
from websockets.streams import StreamReader
from websockets.utils import apply_mask as apply_mask_in_python

from longconn.core import frames
from longconn.core.frames import CloseCode, Opcode, ProtocolError, encode_close, encode_frame, parse_close

MASK = b"\x37\xfa\x21\x3d"


def as_read_elsewhere(data: bytes, *, mask: bool) -> Frame:
    """The one frame in `data`, as websockets reads it."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    reading = Frame.parse(reader.read_exact, mask=mask)
    with pytest.raises(StopIteration) as ended:
        next(reading)
    assert not reader.buffer
    frame: Frame = ended.value.value
    return frame


@pytest.mark.parametrize(
    ("expected", "arguments", "options"),
    [
        ("810548656c6c6f", (Opcode.TEXT, b"Hello"), {}),
        ("818537fa213d7f9f4d5158", (Opcode.TEXT, b"Hello"), {"mask": MASK}),
        ("010348656c", (Opcode.TEXT, b"Hel"), {"fin": False}),
        ("80026c6f", (Opcode.CONTINUATION, b"lo"), {}),
        ("890548656c6c6f", (Opcode.PING, b"Hello"), {}),
        ("8a8537fa213d7f9f4d5158", (Opcode.PONG, b"Hello"), {"mask": MASK}),
        ("827e0100" + "00" * 256, (Opcode.BINARY, bytes(256)), {}),
        ("827f0000000000010000" + "00" * 65_536, (Opcode.BINARY, bytes(65_536)), {}),
        ("c107f248cdc9c90700", (Opcode.TEXT, bytes.fromhex("f248cdc9c90700")), {"compressed": True}),
    ],
)
def test_the_examples_of_the_rfcs_come_out_byte_for_byte(
    expected: str, arguments: tuple[int, bytes], options: dict[str, Any]
) -> None:
    assert expected == encode_frame(*arguments, **options).hex()


@given(
    some.sampled_from([Opcode.CONTINUATION, Opcode.TEXT, Opcode.BINARY]),
    some.sampled_from([0, 1, 125, 126, 127, 65_535, 65_536, 70_000]),
    some.booleans(),
    some.none() | some.binary(min_size=4, max_size=4),
    some.sampled_from([bytes, bytearray, memoryview]),
)
def test_another_implementation_reads_what_is_written(
    opcode: Opcode, length: int, fin: bool, mask: bytes | None, kind: Any
) -> None:
    payload = bytes(each & 255 for each in range(length))
    frame = as_read_elsewhere(encode_frame(opcode, kind(payload), fin=fin, mask=mask), mask=mask is not None)
    assert (int(opcode), payload, fin) == (int(frame.opcode), bytes(frame.data), frame.fin)


@given(some.binary(max_size=300), some.binary(min_size=4, max_size=4))
def test_the_mask_in_c_is_the_mask_in_python(data: bytes, mask: bytes) -> None:
    assert apply_mask_in_python(data, mask) == frames.apply_mask(data, mask)


def test_a_control_frame_of_126_bytes_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="at most 125 bytes, and this one has 126"):
        encode_frame(Opcode.PING, bytes(126))


@given(some.sampled_from([*range(1000, 1004), *range(1007, 1015), 3000, 4999]), some.text(max_size=30))
def test_a_close_says_its_code_and_reason(code: int, reason: str) -> None:
    frame = encode_close(code, reason)
    assert frame[1] == len(frame) - 2
    assert (code, reason) == parse_close(frame[2:])


def test_a_close_without_a_code_is_empty() -> None:
    assert b"\x88\x00" == encode_close(CloseCode.NO_STATUS)
    assert (1005, "") == parse_close(b"")


@pytest.mark.parametrize("code", [0, 999, 1004, 1006, 1015, 1016, 2999, 5000, 65_536, -1])
def test_a_code_that_must_not_be_on_the_wire_is_not_written(code: int) -> None:
    with pytest.raises(ValueError, match=f"^{code} is not a close code that can be sent: use 1000 to 1014"):
        encode_close(code)


def test_a_reason_that_does_not_fit_is_not_written() -> None:
    assert 127 == len(encode_close(1000, "é" * 61 + "x"))
    with pytest.raises(ValueError, match="at most 123 bytes of UTF-8, and this one 124"):
        encode_close(1000, "é" * 62)


def test_the_codes_that_may_be_received_are_those_of_the_registry_and_of_applications() -> None:
    registered = {int(code) for code in EXTERNAL_CLOSE_CODES}
    expected = registered | set(range(3000, 5000))
    assert expected == {code for code in range(70_000) if frames.may_be_received(code)}
    assert expected - {1010} == {code for code in range(70_000) if frames.may_be_sent(code)}


@pytest.mark.parametrize(
    ("expected", "payload"),
    [
        (1002, b"\x03"),
        (1002, (1005).to_bytes(2)),
        (1002, (999).to_bytes(2) + b"reason"),
        (1007, (1000).to_bytes(2) + b"\xff"),
        (1007, (1000).to_bytes(2) + "é".encode()[:1]),
    ],
)
def test_a_close_that_is_none_breaks_the_protocol(expected: int, payload: bytes) -> None:
    with pytest.raises(ProtocolError) as refused:
        parse_close(payload)
    assert expected == refused.value.code
