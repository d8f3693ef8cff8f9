"""Which client a request comes from: what a client writes itself is never believed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as some

from resilience.adapters.addresses import client_key, network_key

PEER = "192.0.2.1"


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "trusted_proxies", "expected"),
    [
        (PEER, None, 0, PEER),
        (PEER, "198.51.100.7", 0, PEER),
        (PEER, "198.51.100.7", 1, "198.51.100.7"),
        (PEER, "203.0.113.9, 198.51.100.7", 1, "198.51.100.7"),
        (PEER, "203.0.113.9, 198.51.100.7", 2, "203.0.113.9"),
        (PEER, "198.51.100.7", 3, "198.51.100.7"),
        (PEER, "nonsense", 1, PEER),
        (PEER, "198.51.100.7:4711", 1, "198.51.100.7"),
        (PEER, "[2001:db8:1:2::5]:4711", 1, "2001:db8:1:2::/64"),
        (PEER, "[2001:db8:1:2::5]", 1, "2001:db8:1:2::/64"),
        (PEER, "::ffff:198.51.100.7", 1, "198.51.100.7"),
        (PEER, "[::ffff:198.51.100.7]:4711", 1, "198.51.100.7"),
        (PEER, "::ffff:c633:6407", 1, "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", None, 0, "2001:db8:1:2::/64"),
        ("fe80::1%eth0", None, 0, "fe80::/64"),
        ("::ffff:192.0.2.1", None, 0, PEER),
        ("", None, 0, "unix"),
        (None, None, 0, "unix"),
    ],
)
def test_the_client_is_the_hop_before_our_proxies(
    peer: str | None, forwarded_for: str | None, trusted_proxies: int, expected: str
) -> None:
    assert expected == client_key(peer, forwarded_for, trusted_proxies)


@pytest.mark.parametrize(
    ("forwarded_for", "trusted_proxies", "expected"),
    [
        ("forged,198.51.100.7", 1, "198.51.100.7"),  # two fields, which WSGI joins without a space
        ("forged, also forged,,198.51.100.7", 1, "198.51.100.7"),
        (",198.51.100.7", 1, "198.51.100.7"),
        ("203.0.113.9, , 198.51.100.7", 2, PEER),  # empty hops count: else the client's own would be next
        ("203.0.113.9,", 1, PEER),
        (" , ", 1, PEER),
        ("  198.51.100.7\t", 1, "198.51.100.7"),
        ("unknown", 1, PEER),
        ("_hidden", 1, PEER),
        ("198.51.100.300", 1, PEER),
        ("198.051.100.007", 1, PEER),  # is it octal?
        ("198.51.100.7/8", 1, PEER),
        ("[2001:db8::1", 1, "2001:db8::/64"),
        ("\x00", 1, PEER),
        ("١٩٢.0.2.7", 1, PEER),  # digits, though not ASCII
    ],
)
def test_a_hop_that_is_no_address_leaves_the_socket_s(forwarded_for: str, trusted_proxies: int, expected: str) -> None:
    assert expected == client_key(PEER, forwarded_for, trusted_proxies)


@pytest.mark.parametrize(
    ("prefix", "expected"), [(48, "2001:db8:1::/48"), (56, "2001:db8:1:200::/56"), (128, "2001:db8:1:2ff::5/128")]
)
def test_how_much_of_an_ipv6_address_tells_clients_apart_can_be_chosen(prefix: int, expected: str) -> None:
    assert expected == client_key("2001:db8:1:2ff::5", None, 0, prefix)


def test_a_thousand_addresses_of_one_subscriber_are_one_bucket() -> None:
    digits = random.Random(4)
    addresses_of_one = [f"2001:db8:1:2:{digits.getrandbits(16):x}::{digits.getrandbits(16):x}" for _ in range(1_000)]
    assert {"2001:db8:1:2::/64"} == {client_key(address, None, 0) for address in addresses_of_one}


@pytest.mark.parametrize("trusted_proxies", [0, 1, 2])
def test_a_thousand_forged_fields_are_one_bucket(trusted_proxies: int) -> None:
    ours = ["198.51.100.7", "203.0.113.1"][:trusted_proxies]  # the client as the first proxy saw it, then that proxy
    forged = [f"10.{n >> 8}.{n & 255}.9" for n in range(1_000)]
    keys = {client_key(PEER, ", ".join([claim, *ours]), trusted_proxies) for claim in forged}
    assert {ours[0] if ours else PEER} == keys


@given(some.text(max_size=60))
def test_whatever_an_untrusted_client_sends_it_stays_one_bucket(forged: str) -> None:
    assert PEER == client_key(PEER, forged, 0)
    assert "198.51.100.7" == client_key(PEER, f"{forged}, 198.51.100.7", 1)


def test_what_is_too_long_for_an_address_is_not_remembered() -> None:
    client_key(PEER, None, 0)
    before = network_key.cache_info().currsize
    assert [PEER] * 3 == [client_key(PEER, digit * 65, 1) for digit in "123"]
    assert before == network_key.cache_info().currsize
