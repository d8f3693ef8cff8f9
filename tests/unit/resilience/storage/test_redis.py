"""Names and terms of a Redis storage, and what its address means."""

from __future__ import annotations

import re
from typing import Any

import pytest
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

from resilience.core.limiter import Charge, Limit, Refund
from resilience.storage.redis import (
    Keys,
    RedisStorage,
    charges_question,
    connection_options,
    decision_of,
    refunds_question,
    without_credentials,
)
from resilience.storage.script import bulk, charge_terms, refund_terms

TEN = Limit(10, 60)


@pytest.fixture
def keys() -> Keys:
    """Of the usual namespace."""
    return Keys("seawall")


@pytest.mark.parametrize("subject", ["10.0.0.1", "2001:db8::/64", "user@example.org", "x" * 96])
def test_a_key_is_namespaced_and_tagged_by_its_subject(keys: Keys, subject: str) -> None:
    assert f"seawall:limit:{{{subject}}}:api:60" == keys.key("api:60", subject)


@pytest.mark.parametrize("subject", ["x" * 97, "a}:api:60:{b", "line\nbreak", "\ud800", "ä", "", "*", "#0"])
def test_a_subject_that_is_long_or_unusual_is_hashed(keys: Keys, subject: str) -> None:
    assert re.fullmatch(r"#[0-9a-f]{32}", keys.tag(subject))
    assert f"seawall:limit:{{{keys.tag(subject)}}}:api:60" == keys.key("api:60", subject)


def test_a_name_travels_as_a_bulk_string(keys: Keys) -> None:
    for _ in range(2):  # the second time it is ready
        assert bulk(b"seawall:limit:{s}:a") == keys.encoded("a", "s")


def test_names_and_terms_without_end_do_not_grow_the_process(keys: Keys) -> None:
    for number in range(10_000):
        keys.encoded("scope", f"subject{number}")
        keys.terms(TEN, number, 0, more=False)
    keys.encoded("scope", "x" * 100_000)
    assert 0 < len(keys._names) <= 4_096
    assert 0 < len(keys._terms) <= 4_096
    assert max(len(subject) for _, subject in keys._names) <= 256


def test_terms_that_are_kept_ready_are_those_of_that_very_limit(keys: Keys) -> None:
    """A limit that is gone may leave its identity to another one."""
    keys._terms[id(TEN), 1, 0, False] = Limit(7, 1), b"of another"
    assert charge_terms(TEN, 1) == keys.terms(TEN, 1, 0, more=False)
    assert charge_terms(TEN, 1, 5, more=True) == keys.terms(TEN, 1, 5, more=True) == keys.terms(TEN, 1, 5, more=True)


def test_charges_become_a_question_whose_steps_belong_together(keys: Keys) -> None:
    seven = Limit(7, 1)
    question = charges_question(
        keys, [Charge("a", "s", TEN, 1), Charge("b", "s", seven, 2, -3), Charge("c", "s", TEN, 0)]
    )
    assert [keys.encoded(scope, "s") for scope in "abc"] == question.keys
    assert [
        charge_terms(TEN, 1, more=True),
        charge_terms(seven, 2, -3, more=True),
        charge_terms(TEN, 0),
    ] == question.terms


def test_refunds_become_a_question_of_parts(keys: Keys) -> None:
    question = refunds_question(
        keys, [Refund("a", "s", TEN, 2), Refund("b", "s", TEN, None), Refund("c", "s", TEN, 1, -5)]
    )
    assert [refund_terms(TEN, 12_000_000), refund_terms(TEN, None), refund_terms(TEN, 6_000_000, -5)] == question.terms


@pytest.mark.parametrize(
    ("charged", "reason"),
    [
        ([], "0 charges: a decision takes 1 to 512"),
        ([Charge(f"{place}", "s", TEN, 1) for place in range(513)], "513 charges"),
        ([Charge("a", "s", TEN, 1), Charge("a", "s", TEN, 2)], "two charges of one decision name the same bucket"),
    ],
)
def test_a_decision_without_meaning_is_refused(keys: Keys, charged: list[Charge], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        charges_question(keys, charged)


def test_a_decision_carries_what_was_asked_and_what_is_left() -> None:
    decision = decision_of([Charge("a", "s", TEN, 2, -7), Charge("b", "s", TEN, 1)], False, [-5, 6_000_000])
    assert (False, [(TEN, -5, 2, -7), (TEN, 6_000_000, 1, 0)]) == (decision.allowed, [*decision.quotas])


@pytest.mark.parametrize(
    ("uri", "kind", "expected"),
    [
        ("redis://cache", Connection, {"host": "cache"}),
        (
            "valkey://u%40:p%3A@cache:7000/3?max_connections=5&timeout=9",
            Connection,
            {"host": "cache", "port": 7000, "db": 3, "username": "u@", "password": "p:"},
        ),
        ("valkeys://cache?ssl_ca_certs=/ca", SSLConnection, {"host": "cache", "ssl_ca_certs": "/ca"}),
        ("redis+unix:///run/redis.sock?db=2", UnixDomainSocketConnection, {"path": "/run/redis.sock", "db": 2}),
    ],
)
def test_an_address_is_read_as_redis_py_reads_it(uri: str, kind: type, expected: dict[str, Any]) -> None:
    made, options = connection_options(uri, timeout=0.25)
    assert (kind, expected) == (made, {name: options[name] for name in expected})
    assert {"max_connections", "timeout"}.isdisjoint(options)


@pytest.mark.parametrize("scheme", ["redis", "valkeys", "redis+unix"])
def test_an_option_that_nobody_knows_is_refused_at_once(scheme: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^{re.escape(scheme)}:// with an option that redis-py does not take: .*'colour'"
    ) as caught:
        RedisStorage(f"{scheme}://user:secret@h/1?colour=blue")
    assert "secret" not in str(caught.value)


def test_the_timeouts_are_the_storages_and_nothing_is_tried_again() -> None:
    _, options = connection_options("redis://h?socket_timeout=9&socket_connect_timeout=9&protocol=3", timeout=0.25)
    assert (0.25, 0.25, 2) == (options["socket_timeout"], options["socket_connect_timeout"], options["protocol"])
    assert 0 == options["retry"].get_retries()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("redis://user:secret@cache:1/0?password=secret", "redis://cache:1/0"),
        ("redis+unix://:secret@/run/redis.sock?db=2", "redis+unix:///run/redis.sock"),
    ],
)
def test_an_address_is_shown_without_credentials(uri: str, shown: str) -> None:
    assert shown == without_credentials(uri)
    assert f"<RedisStorage: {shown}>" == repr(RedisStorage(uri))


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match=f"timeout={timeout}: a storage takes seconds above 0"):
        RedisStorage("redis://127.0.0.1:1", timeout=timeout)
