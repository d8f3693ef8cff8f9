"""A process's share of a limit: the rate divided exactly, the burst rounded up, quotas that say so."""

from __future__ import annotations

from fractions import Fraction

import pytest

from resilience.core.limiter import Charge, Decision, Limit, Refund
from resilience.storage.memory import MemoryStorage
from resilience.storage.share import Share, ShareStorage
from resilience.testing import FakeClock, smallest_burst

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


def test_the_share_of_a_single_process_is_the_limit() -> None:
    storage = made(1)[1]
    (quota,) = storage.take([Charge("scope", "s", LIMIT, 40, floor=-7)]).quotas
    assert (True, LIMIT, 60 * LIMIT.unit, -7) == (LIMIT == quota.limit, quota.limit, quota.level, quota.floor)
    assert ({LIMIT}, str(LIMIT)) == ({quota.limit}, str(quota.limit))
    assert Limit(100, 61) != quota.limit
    assert quota.limit.__eq__("100 per 60 s") is NotImplemented
    assert isinstance(quota.limit, Share), "and says that it was decided here"


@pytest.mark.parametrize("quick", [True, False])
def test_dear_charges_among_cheap_ones_are_admitted_no_faster_than_the_share(quick: bool) -> None:
    clock, storage = made(8)
    limit = Limit(100, 100)
    taker = storage.taker("scope", limit)
    admitted: list[tuple[int, int]] = []

    def take(cost: int) -> Decision:
        decision = taker("s", cost) if quick else storage.take([Charge("scope", "s", limit, cost)])
        if decision.allowed:
            admitted.append((clock.microseconds(), cost))
        return decision

    assert take(100).allowed
    for second in range(0, 12_000, 5):
        if second % 3_000 < 1_500:
            # What is taken and given back at once must not make the bucket look full.
            decision = take(1)
            if decision.allowed:
                admitted.pop()
                storage.give_back([Refund("scope", "s", decision.quotas[0].limit, 1)])
        take((100, 14, 60, 1)[second // 1_000 % 4])
        clock.advance(5)
    share = Share(Fraction(100, 8), 100, 13)
    assert 100 >= smallest_burst(admitted, share) > 99, "the dearest charge at once, and the share's rate"
    assert {1, 14, 60, 100} == {cost for _, cost in admitted}


def test_without_dear_charges_all_workers_together_admit_a_burst_and_one_less_than_they_are() -> None:
    admitted = 0
    for _ in range(8):
        take = made(8)[1].taker("scope", LIMIT)
        admitted += sum(take("s", 1).allowed for _ in range(100))
    assert 8 * 13 == admitted <= 100 + 8 - 1


def test_a_dear_charge_says_when_it_fits_and_leaves_a_debt_that_cheap_ones_see() -> None:
    clock, storage = made(10)
    take = storage.taker("scope", LIMIT)
    assert take("s", 1).allowed
    refused = take("s", 50)
    assert (False, 6.0) == (refused.allowed, refused.retry_after), "once the bucket is full"
    clock.advance(6)
    decision = take("s", 50)
    assert (True, 0, Share(10, 60, 50)) == (decision.allowed, decision.remaining, decision.quotas[0].limit)
    cheap = take("s", 1)
    assert (False, 0, -40.0, 246.0) == (
        cheap.allowed,
        cheap.remaining,
        cheap.quotas[0].level / cheap.quotas[0].limit.unit,
        cheap.retry_after,
    )


def test_a_dear_charge_that_is_given_back_leaves_the_bucket_as_it_was() -> None:
    storage = made(10)[1]
    (quota,) = storage.take([Charge("scope", "s", LIMIT, 50)]).quotas
    storage.give_back([Refund("scope", "s", quota.limit, 50, quota.level)])
    assert 10 == storage.take([Charge("scope", "s", LIMIT, 0)]).remaining
    (quota,) = storage.take([Charge("scope", "s", LIMIT, 50)]).quotas
    storage.take([Charge("scope", "s", LIMIT, 1, floor=-LIMIT.debt(3600))])
    storage.give_back([Refund("scope", "s", quota.limit, 50, quota.level)])
    assert -41 == storage.take([Charge("scope", "s", LIMIT, 0)]).quotas[0].level / quota.limit.unit, (
        "someone came after"
    )


def test_a_charge_that_fits_the_limit_and_its_floor_fits_the_full_share() -> None:
    storage = made(4)[1]
    half = 50 * LIMIT.unit
    take = storage.taker("scope", LIMIT, half)
    assert [True, True] == [take("cheap", 20).allowed, take("dear", 40).allowed]
    assert take("other", 51).retry_after is None, "this one never could"


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
    assert Share(1, 3.000_001, 3_000_000_000) == quota.limit, "and says that it was here"


def test_it_is_what_it_stands_before() -> None:
    storage = made()[1]
    storage.close()
    assert "memory://" == storage.uri
