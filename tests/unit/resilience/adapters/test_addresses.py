"""Which client a request comes from: what a client writes itself is never believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from resilience.adapters.addresses import client_key


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "trusted_proxies", "expected"),
    [
        ("192.0.2.1", None, 0, "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", 0, "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", 1, "198.51.100.7"),
        ("192.0.2.1", "203.0.113.9, 198.51.100.7", 1, "198.51.100.7"),
        ("192.0.2.1", "203.0.113.9, 198.51.100.7", 2, "203.0.113.9"),
        ("192.0.2.1", "198.51.100.7", 3, "198.51.100.7"),
        ("192.0.2.1", "nonsense", 1, "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7:4711", 1, "198.51.100.7"),
        ("192.0.2.1", "[2001:db8:1:2::5]:4711", 1, "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3:4:5:6", None, 0, "2001:db8:1:2::/64"),
        ("fe80::1%eth0", None, 0, "fe80::/64"),
        ("::ffff:192.0.2.1", None, 0, "192.0.2.1"),
        ("", None, 0, "unix"),
        (None, None, 0, "unix"),
    ],
)
def test_the_client_is_the_hop_before_our_proxies(
    peer: str | None, forwarded_for: str | None, trusted_proxies: int, expected: str
) -> None:
    assert expected == client_key(peer, forwarded_for, trusted_proxies)


@given(some.text(max_size=60))
def test_whatever_an_untrusted_client_sends_it_stays_one_bucket(forged: str) -> None:
    assert "192.0.2.1" == client_key("192.0.2.1", forged, 0)
    assert "198.51.100.7" == client_key("192.0.2.1", f"{forged}, 198.51.100.7", 1)
