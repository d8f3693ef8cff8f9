"""Addresses of services behind sentinels. What the storage does is in tests/integration/test_redis_sentinel.py."""

from __future__ import annotations

import pytest

from resilience.storage.forms import parse_servers
from resilience.storage.sentinel import Primary, RedisSentinelStorage


def options(uri: str) -> tuple[dict[str, object], dict[str, object]]:
    """What connections to servers and to sentinels are made with."""
    primary = Primary(parse_servers(uri, default_port=26_379), timeout=0.05)
    return primary._server.keywords, primary._sentinel.keywords  # type: ignore[attr-defined]


def test_user_and_password_are_for_the_servers() -> None:
    servers, sentinels = options("redis+sentinel://user:p%40ss@h/s/3")
    assert ("user", "p@ss", 3) == tuple(servers[name] for name in ("username", "password", "db"))
    assert (None, None, 0) == (sentinels["username"], sentinels["password"], sentinels.get("db", 0))


def test_sentinels_have_some_of_their_own() -> None:
    servers, sentinels = options("redis+sentinel://user:p%40ss@h/s?sentinel_username=w&sentinel_password=a%40b")
    assert ("w", "a@b") == (sentinels["username"], sentinels["password"])
    assert ("user", "p@ss") == (servers["username"], servers["password"])
    assert not any(name.startswith("sentinel") for name in (*servers, *sentinels))


def test_an_option_that_nobody_knows_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="'colour'"):
        RedisSentinelStorage("redis+sentinel://h/s?colour=blue")


def test_tls_and_its_options_are_for_both() -> None:
    for made in options("rediss+sentinel://h/s?ssl_ca_certs=%2Fca.pem"):
        assert "/ca.pem" == made["ssl_ca_certs"]


def test_an_answer_of_a_sentinel_has_a_time_of_its_own() -> None:
    """No caller waits for it, and a sentinel that is far away or busy may need longer than a decision."""
    for made in options("redis+sentinel://h/s"):
        assert (0.25, 0.25) == (made["socket_timeout"], made["socket_connect_timeout"])


def test_a_service_may_have_an_unusual_name() -> None:
    assert "my/master" == Primary(parse_servers("redis+sentinel://h/my%2Fmaster", default_port=1), timeout=1)._service


def test_an_address_is_shown_without_its_passwords() -> None:
    storage = RedisSentinelStorage("redis+sentinel://user:secret@h:1,i/s/2?sentinel_password=secret")
    assert "redis+sentinel://h:1,i/s/2" == storage.uri
    assert "secret" not in repr(storage)
    assert "redis+sentinel://h:1,[::1]:2/s" == RedisSentinelStorage("redis+sentinel://h:1,[::1]:2/s").uri
