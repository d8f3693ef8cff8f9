"""permessage-deflate: what is agreed on, and that each side's data stands alone and is bounded; against zlib and another
implementation."""

from __future__ import annotations

import random
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from websockets.exceptions import InvalidHeaderFormat, NegotiationError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.headers import parse_extension

from longconn.core import deflate
from longconn.core.deflate import Deflation, Inflation, negotiate
from longconn.core.frames import ProtocolError
from tests.support.examples import many

ALWAYS = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def inflated(data: bytes, bits: int = 15) -> bytes:
    """A message's payload, by zlib alone, with a window of this many bits."""
    return zlib.decompressobj(-bits).decompress(data + b"\x00\x00\xff\xff")


def refused(data: bytes, most: int) -> int:
    with pytest.raises(ProtocolError) as error:
        Inflation().inflate(data, most, ended=True)
    return error.value.code


# Negotiation


@pytest.mark.parametrize(
    ("expected", "offer"),
    [
        (ALWAYS, "permessage-deflate"),
        (ALWAYS, "permessage-deflate; client_max_window_bits"),
        (ALWAYS, "permessage-deflate;server_no_context_takeover ; client_no_context_takeover"),
        (f"{ALWAYS}; server_max_window_bits=10", 'permessage-deflate; server_max_window_bits="10"'),
        (f"{ALWAYS}; client_max_window_bits=12", "permessage-deflate; client_max_window_bits=12"),
        (ALWAYS, "x-webkit-deflate-frame, permessage-deflate"),
        (ALWAYS, "permessage-deflate; server_max_window_bits=16, permessage-deflate"),
        (ALWAYS, "permessage-deflate; mystery, permessage-deflate"),
        (ALWAYS, "?;=, permessage-deflate"),
        (ALWAYS, ",, permessage-deflate ,"),
    ],
)
def test_the_first_offer_that_can_be_met_is_taken(expected: str, offer: str) -> None:
    deflation = negotiate(offer)
    assert deflation is not None
    assert expected == deflation.response


@pytest.mark.parametrize(
    "offer",
    [
        None,
        "",
        "permessage-bzip2",
        "x-permessage-deflate",
        "permessage-deflate; mystery",
        "permessage-deflate; mystery=permessage-deflate",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=010",
        "permessage-deflate; client_max_window_bits=x",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_max_window_bits; client_max_window_bits",
        "permessage-deflate x",
        'permessage-deflate; a="b c"',
    ],
)
def test_what_cannot_be_met_is_passed_over(offer: str | None) -> None:
    assert negotiate(offer) is None


def test_equal_agreements_are_one_object() -> None:
    first, second = negotiate("permessage-deflate"), negotiate("permessage-deflate; client_max_window_bits")
    assert first is second


PARAMETERS = some.sampled_from(  # without a window of 2**8, which the other does not take
    [
        "server_no_context_takeover", "client_no_context_takeover", "server_max_window_bits=9", "server_max_window_bits=15",
        "client_max_window_bits", "client_max_window_bits=9", "server_max_window_bits", "client_max_window_bits=16", "other",
        "server_no_context_takeover=yes",
    ]
)  # fmt: skip
OFFERS = some.lists(PARAMETERS, max_size=4).map(lambda parameters: "; ".join(["permessage-deflate", *parameters]))


def taken_by_websockets(offer: str) -> bool:
    [(_, parameters)] = parse_extension(offer)
    try:
        ServerPerMessageDeflateFactory().process_request_params(parameters, [])
    except NegotiationError:
        return False
    return True


@given(some.lists(OFFERS, min_size=1, max_size=3))
def test_another_implementation_takes_the_same_offers(offers: list[str]) -> None:
    assert any(map(taken_by_websockets, offers)) == (negotiate(", ".join(offers)) is not None)


@settings(max_examples=many(100))
@given(some.text(some.sampled_from('permessage-deflate;,= \t"server_max_window_bits15'), max_size=80))
def test_any_field_is_read_and_an_answer_can_be_parsed(offer: str) -> None:
    deflation = negotiate(f"{offer},permessage-deflate;{offer}")
    assert deflation is None or "permessage-deflate" == parse_extension(deflation.response)[0][0]


def test_a_field_made_to_be_slow_is_read_quickly() -> None:
    for part in ("; a", " ", "\t;", ";a = ", ';a="', ",\x00", "a"):
        assert negotiate("permessage-deflate\x00" + part * 30_000 + "\x00") is None
        assert negotiate("permessage-deflate;a" + part * 30_000 + "\x00") is None


# Compressing


@pytest.mark.parametrize("bits", range(8, 16))
@given(payload=some.binary(max_size=2_000) | some.builds(bytes, some.integers(0, 70_000)))
@settings(max_examples=many(50))
def test_each_message_stands_alone_in_its_window(bits: int, payload: bytes) -> None:
    deflation = Deflation("", bits)
    first, second = deflation.compress(payload), deflation.compress(memoryview(payload))
    assert payload == inflated(first, bits) == inflated(second, bits)


def test_the_same_message_compresses_to_the_same_bytes_whatever_came_before() -> None:
    deflation = Deflation("")
    first = deflation.compress(b"hello, hello, hello")
    deflation.compress(b"hello, hello, hello, and something else")
    assert first == deflation.compress(b"hello, hello, hello")


def test_a_small_window_refers_to_nothing_beyond_it() -> None:
    payload = random.Random(1).randbytes(4_000) * 2  # repeats what a window of 2**12 no longer holds
    assert len(Deflation("", 15).compress(payload)) < 4_100
    for bits in (8, 9, 11):
        assert payload == inflated(Deflation("", bits).compress(payload), bits)


def test_an_empty_message_is_one_byte() -> None:
    assert b"\x00" == Deflation("").compress(b"")
    assert b"" == Inflation().inflate(b"\x00", 0, ended=True)


def test_threads_never_share_a_compressor() -> None:
    deflation = Deflation("")
    payloads = [bytes([number]) * 50_000 + bytes(range(256)) for number in range(60)]
    with ThreadPoolExecutor(4) as threads:
        assert payloads == [inflated(data) for data in threads.map(deflation.compress, payloads)]


# Inflating


@pytest.mark.parametrize("payload", [b"", b"Hello", b"x" * 40_000])
@pytest.mark.parametrize("part", [1, 3, 1_000])
def test_what_was_compressed_is_inflated_in_parts(payload: bytes, part: int) -> None:
    data = Deflation("").compress(payload)
    inflation = Inflation()
    parts = [data[at : at + part] for at in range(0, len(data), part)]
    out = b"".join(inflation.inflate(each, len(payload), ended=False) for each in parts)
    assert payload == out + inflation.inflate(b"", len(payload) - len(out), ended=True)


@pytest.mark.parametrize(
    "data",
    [
        "f248cdc9c90700",  # one block
        "000500faff48656c6c6f00",  # not compressed
        "f348cdc9c90700" + "00",  # a block that says it is the last
        "f348cdc9c90700",  # and without the empty one after it
        "f248050000" + "00ffff" + "cac9c90700",  # two blocks
    ],
)
def test_the_examples_of_the_rfc_say_hello(data: str) -> None:
    payload = bytes.fromhex(data)
    assert b"Hello" == Inflation().inflate(payload, 5, ended=True)
    inflation = Inflation()
    assert b"Hello" == b"".join(
        inflation.inflate(payload[at : at + 1], 5, ended=at == len(payload) - 1) for at in range(len(payload))
    )


def test_a_stream_may_begin_anew_and_refer_to_what_came_before() -> None:
    compressor = zlib.compressobj(wbits=-15)
    first = compressor.compress(b"hello, world! ") + compressor.flush(zlib.Z_FINISH)
    with_window = zlib.compressobj(wbits=-15, zdict=b"hello, world! ")
    second = with_window.compress(b"hello, world!") + with_window.flush(zlib.Z_SYNC_FLUSH)
    assert b"hello, world! hello, world!" == Inflation().inflate(first + second[:-4], 100, ended=True)


def test_a_message_of_many_tiny_streams_is_refused() -> None:
    compressor = zlib.compressobj(wbits=-15)
    tiny = compressor.flush(zlib.Z_FINISH)
    assert b"" == Inflation().inflate(tiny * 14, 100, ended=True)
    assert 1007 == refused(tiny * 500_000, 100)


def test_no_more_is_inflated_than_one_byte_over_the_limit() -> None:
    bomb = Deflation("").compress(bytes(1_000_000))
    assert 1009 == refused(bomb, 999_999)
    assert 1009 == refused(bomb, 0)
    assert 1_000_000 == len(Inflation().inflate(bomb, 1_000_000, ended=True))


def test_a_bomb_behind_a_last_block_is_refused_too() -> None:
    compressor = zlib.compressobj(wbits=-15)
    first = compressor.compress(b"x") + compressor.flush(zlib.Z_FINISH)
    assert 1009 == refused(first + Deflation("").compress(bytes(1_000_000)), 1_000)


def test_what_is_not_compressed_is_refused() -> None:
    assert 1007 == refused(b"\xff\xff\xff", 100)
    assert 1007 == refused(Deflation("").compress(b"Hello" * 100)[3:], 10_000)


def test_what_cannot_be_compressed_fits_on_the_wire() -> None:
    for size in (0, 1_000, 1_048_576):
        compressor = zlib.compressobj(0, zlib.DEFLATED, -15, 1)
        data = compressor.compress(bytes(size)) + compressor.flush(zlib.Z_SYNC_FLUSH)
        assert len(data) <= deflate.compressed_limit(size)


@given(some.text(max_size=100))
def test_no_extension_field_raises(field: str) -> None:
    negotiate(field)


def test_what_another_implementation_cannot_read_is_passed_over_here() -> None:
    with pytest.raises(InvalidHeaderFormat):
        parse_extension("permessage-deflate; =")
    assert negotiate("permessage-deflate; =") is None
