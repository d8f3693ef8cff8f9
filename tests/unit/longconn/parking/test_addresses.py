"""Addresses: whom one belongs to, and what it is when it has been packed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from longconn.parking.addresses import ProxiedAddress, host, packed, plain_address


@given(some.ip_addresses(v=4), some.integers(0, 65_535))
def test_an_ipv4_address_comes_back_from_one_number(address: Any, port: int) -> None:
    number = packed((str(address), port))
    assert isinstance(number, int)
    assert (str(address), port) == plain_address(number)
    assert str(address) == host(number)


@given(some.ip_addresses(v=6), some.integers(0, 65_535))
def test_an_ipv6_address_comes_back_from_one_number(address: Any, port: int) -> None:
    number = packed((address.compressed, port, 0, 0))
    assert isinstance(number, int)
    found, *rest = plain_address(number)
    assert type(address)(found) == address
    assert [port, 0, 0] == rest


@pytest.mark.parametrize(
    "address", ["", b"", b"\0name", "/run/socket", ("fe80::1", 80, 0, 2), ("host.example", 80), None]
)
def test_any_other_address_stays_as_it_is(address: Any) -> None:
    assert address == packed(address)
    assert address == plain_address(packed(address))


def test_of_a_proxied_address_the_address_itself_is_kept() -> None:
    proxied = ProxiedAddress(("10.0.0.1", 99))
    proxied.plain = ("10.0.0.1", 99)
    proxied.info = {"client_addr": "192.0.2.1"}
    assert ("10.0.0.1", 99) == plain_address(packed(proxied))
