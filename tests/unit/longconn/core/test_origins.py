"""Origins: the same one and named ones are let in, and nothing that looks like them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from longconn.core import origins


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        (None, "app.example", "https"),
        ("https://app.example", "app.example", "https"),
        ("https://app.example", "app.example", "wss"),
        ("http://localhost:8000", "localhost:8000", "http"),
        ("http://localhost:8000", "localhost:8000", "ws"),
        ("https://APP.example", "app.Example", "https"),
        ("https://app.example:443", "app.example", "https"),
        ("https://app.example", "app.example:443", "https"),
        ("http://app.example", "app.example:80", "http"),
        ("http://[::1]:8000", "[::1]:8000", "http"),
        # TLS ends before this side, and the proxy says nothing of it.
        ("https://app.example", "app.example", "http"),
        ("https://app.example:8443", "app.example:8443", "http"),
    ],
)
def test_the_same_origin_and_clients_without_one_are_let_in(origin: str | None, host: str, scheme: str) -> None:
    assert origins.allowed(origin, host, scheme)


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        ("https://evil.example", "app.example", "https"),
        ("https://app.example.evil", "app.example", "https"),
        ("https://evilapp.example", "app.example", "https"),
        ("https://sub.app.example", "app.example", "https"),
        ("https://app.example:8443", "app.example", "https"),
        ("http://localhost:3000", "localhost:8000", "http"),
        ("http://localhost", "localhost:8000", "http"),
        ("http://app.example", "app.example", "https"),  # a page that could have been changed on its way
        ("null", "app.example", "https"),
        ("null", "null", "http"),
        ("", "", "http"),
        ("", "app.example", "http"),
        ("app.example", "app.example", "http"),
        ("https://app.example/", "app.example", "https"),
        ("https://user@app.example", "app.example", "https"),
        ("https://app.example,https://app.example", "app.example", "https"),
        ("https://app.example https://evil.example", "app.example", "https"),
        ("file://", "app.example", "https"),
        ("chrome-extension://abcdef", "app.example", "https"),
        ("https://app.example\n", "app.example", "https"),
        ("http://app.example", "user@app.example", "http"),
    ],
)
def test_everything_else_is_foreign(origin: str, host: str, scheme: str) -> None:
    assert not origins.allowed(origin, host, scheme)


@pytest.mark.parametrize(
    ("expected", "origin", "extra"),
    [
        (True, "https://other.example", ["https://other.example"]),
        (True, "https://other.example:443", ["https://OTHER.example"]),
        (True, "https://other.example:8443", ["https://other.example:8443"]),
        (False, "https://other.example:8443", ["https://other.example"]),
        (False, "http://other.example", ["https://other.example"]),
        (True, "https://a.other.example", ["https://*.other.example"]),
        (True, "https://a.b.other.example", ["https://*.other.example"]),
        (False, "https://other.example", ["https://*.other.example"]),
        (False, "https://evilother.example", ["https://*.other.example"]),
        (False, "https://a.other.example.evil", ["https://*.other.example"]),
        (True, "chrome-extension://abcdef", ["chrome-extension://abcdef"]),
        (True, "https://x.example", ["https://y.example", "*"]),
        (True, "null", ["*"]),
        (False, "null", ["https://other.example", "null"]),
        (False, "https://other.example", ["nonsense"]),
    ],
)
def test_more_origins_can_be_let_in(expected: bool, origin: str, extra: list[str]) -> None:
    assert expected == origins.allowed(origin, "app.example", "https", extra)


def test_what_can_be_let_in_is_checked() -> None:
    good = ["*", "https://app.example", "https://app.example:8443", "https://*.example.com", "http://[::1]:80"]
    assert tuple(good) == origins.check(good)


@pytest.mark.parametrize(
    "bad", ["app.example", "https://", "https://app.example/", "https://*", "null", "", "https://a.*.b"]
)
def test_what_is_no_origin_is_refused_with_what_to_write(bad: str) -> None:
    with pytest.raises(ValueError, match=r"not an origin: .*https://\*\.example\.com, or \* for all"):
        origins.check([bad])


@given(some.text(max_size=40), some.text(max_size=40))
def test_any_text_is_answered(origin: str, host: str) -> None:
    assert origins.allowed(origin, host, "http") in (True, False)
