"""A process's share of a limit: the rate divided exactly, the burst rounded up, quotas that say so."""

from __future__ import annotations

from fractions import Fraction

import pytest

from resilience.core.limiter import Charge, Limit, Refund
from resilience.storage.memory import MemoryStorage
from resilience.storage.share import Share, ShareStorage
from resilience.testing import FakeClock

LIMIT = Limit(100, 60)


def made(workers: int = 4) -> tuple[FakeClock, ShareStorage]:
    clock = FakeClock()
    return clock, ShareStorage(MemoryStorage(clock=clock), workers=workers)


@pytest.mark.parametrize(
    ("limit", "workers", "share"),
    [
        (Limit(100, 60), 4, Share(25, 60, 25)),
        (Limit(100, 60), 3, Share(Fraction(100, 3), 60, 34)),
        (Limit(1, 60, 3), 8, Share(Fraction(1, 8), 60, 1)),
        (Limit(0.5, 1), 2, Share(0.25, 1, 1)),
        (Limit(1, 366 * 86_400), 64, Share(Fraction(1, 64), 366 * 86_400, 1)),
    ],
)
def test_the_rate_is_divided_exactly_and_the_burst_rounded_up(limit: Limit, workers: int, share: Limit) -> None:
    storage = made(workers)[1]
    (quota,) = storage.take([Charge("scope", "s", limit, 0)]).quotas
    assert share == quota.limit
    assert quota.limit is storage.take([Charge("scope", "t", limit, 0)]).quotas[0].limit, "what edges cache by identity"


def test_shares_of_all_processes_admit_no_faster_than_the_limit() -> None:
    clock, storage = made(4)
    take = storage.taker("scope", LIMIT)
    admitted = 0
    for _ in range(6_001):
        admitted += take("s", 1).allowed
        clock.advance(0.1)
    assert 25 + 25 * 10 == admitted


def test_a_charge_dearer_than_the_share_is_decided_at_the_divided_rate_rather_than_never() -> None:
    clock, storage = made(10)
    take = storage.taker("scope", LIMIT)
    assert take("s", 50).allowed
    decision = take("s", 50)
    assert (False, 300.0) == (decision.allowed, decision.retry_after)
    clock.advance(300)
    assert take("s", 50).allowed
    assert take("s", 101).retry_after is None, "this one never could"


def test_a_debt_clears_as_soon_as_it_would_have() -> None:
    storage = made(4)[1]
    take = storage.taker("scope", LIMIT, floor=-LIMIT.debt(6.0))
    delays = [take("s", 1).quotas[0].debt_delay for _ in range(27)]
    assert [0.0] * 25 + [2.4, 4.8] == delays
    assert not take("s", 1).allowed, "7.2 seconds are more than six"


def test_what_is_to_be_left_for_others_is_the_same_part_of_the_bucket() -> None:
    storage = made(4)[1]
    assert storage.take([Charge("scope", "s", LIMIT, 12, floor=50 * LIMIT.unit)]).allowed
    assert not storage.take([Charge("scope", "s", LIMIT, 1, floor=50 * LIMIT.unit)]).allowed


def test_a_refund_of_a_share_is_what_was_taken_and_one_of_the_limit_is_translated() -> None:
    storage = made(4)[1]
    decision = storage.take([Charge("scope", "s", LIMIT, 10)])
    storage.give_back([Refund("scope", "s", decision.quotas[0].limit, 3, decision.quotas[0].level)])
    assert 18 == storage.take([Charge("scope", "s", LIMIT, 0)]).remaining
    storage.give_back([Refund("scope", "s", LIMIT, 3, expected=LIMIT.capacity)])
    assert 21 == storage.take([Charge("scope", "s", LIMIT, 0)]).remaining
    storage.give_back([Refund("scope", "s", LIMIT, None)])
    assert 25 == storage.take([Charge("scope", "s", LIMIT, 0)]).remaining


def test_several_limits_are_decided_together() -> None:
    storage = made(4)[1]
    charges = [Charge("a", "s", LIMIT, 1), Charge("b", "s", Limit(4, 3600), 1)]
    assert [True, False] == [storage.take(charges).allowed for _ in range(2)]
    assert 24 == storage.take([Charge("a", "s", LIMIT, 0)]).remaining


def test_where_the_divided_rate_cannot_be_exact_each_process_enforces_the_whole() -> None:
    limit = Limit(1, 3.000_001, 3_000_000_000)
    (quota,) = made(1_000_003)[1].take([Charge("scope", "s", limit, 2_999_999_999)]).quotas
    assert limit is quota.limit


def test_it_is_what_it_stands_before() -> None:
    storage = made()[1]
    storage.close()
    assert "memory://" == storage.uri
