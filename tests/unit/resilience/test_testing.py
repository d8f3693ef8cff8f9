"""The clock and the listener do as they are told; the conformance suite passes what is right and catches what is wrong."""

from __future__ import annotations

import threading
import unittest
from collections.abc import Callable, Sequence
from fractions import Fraction

import pybreaker
import pytest
from hypothesis import given
from hypothesis import strategies as some

from resilience.clock import SYSTEM_CLOCK
from resilience.core.limiter import Bucket, Charge, Decision, Limit, Quota, Refund, advance, decide, give_back
from resilience.ports import Clock, LimitStorage
from resilience.storage.memory import MemoryStorage
from resilience.testing import FakeClock, LimitStorageConformance, RecordingListener, smallest_burst

SECOND = 1_000_000


def test_a_fake_clock_moves_when_told_to_also_backwards() -> None:
    clock = FakeClock(5)
    clock.advance(1.5)
    clock.sleep(0.25)
    assert (6.75, 6_750_000) == (clock.seconds(), clock.microseconds())
    clock.advance(-6)
    assert 0.75 == clock.seconds()


def test_a_listener_remembers_what_it_was_told() -> None:
    listener = RecordingListener()
    breaker = pybreaker.CircuitBreaker(fail_max=1, listeners=[listener], throw_new_error_on_trip=False)
    breaker.call(lambda: None)
    with pytest.raises(ValueError, match="no"):
        breaker.call(int, "no")
    assert [
        ("before_call",),
        ("success",),
        ("before_call",),
        ("failure", "ValueError"),
        ("state_change", "closed", "open"),
    ] == listener.heard


@pytest.mark.parametrize(
    ("admitted", "expected"),
    [
        ([], Fraction(0)),
        ([(0, 1)], Fraction(1)),
        ([(0, 1), (0, 2)], Fraction(3)),
        ([(0, 1), (100_000, 1), (200_000, 1)], Fraction(1)),
        ([(0, 1), (50_000, 1), (100_000, 1)], Fraction(2)),
        ([(0, 5), (SECOND, 5), (SECOND, 2)], Fraction(7)),
        ([(10 * SECOND, 1), (10 * SECOND + 1, 1), (0, 1)], 2 - Fraction(1, 100_000)),
    ],
)
def test_the_worst_window_is_found_wherever_it_lies(admitted: list[tuple[int, int]], expected: Fraction) -> None:
    assert expected == smallest_burst(admitted, Limit(10, 1, 5))


@given(some.lists(some.tuples(some.integers(0, 2 * SECOND), some.integers(0, 9)), max_size=25))
def test_the_smallest_burst_is_that_of_the_worst_of_all_windows(admitted: list[tuple[int, int]]) -> None:
    rate = Fraction(10, SECOND)
    worst = Fraction(0)
    for begin, _ in admitted:
        for end, _ in admitted:
            inside = sum(cost for moment, cost in admitted if begin <= moment <= end)
            worst = max(worst, inside - (end - begin) * rate) if begin <= end else worst
    assert worst == smallest_burst(admitted, Limit(10, 1, 5))


class TestMemory(LimitStorageConformance):
    """What is right passes."""

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        return MemoryStorage(clock=clock or SYSTEM_CLOCK)


def test_it_runs_under_unittest_too() -> None:
    class Suite(TestMemory, unittest.TestCase):
        pass

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Suite).run(result)
    assert (len(names_of_tests()), True) == (result.testsRun, result.wasSuccessful())


def test_who_does_not_say_how_a_storage_is_opened_is_told_to() -> None:
    with pytest.raises(NotImplementedError, match="def open_storage"):
        LimitStorageConformance().test_its_address_is_a_text_without_credentials()


class Faulty:
    """A right storage with its parts in the open, for the faults below to break one each. Many of them are those of other
    libraries."""

    uri = "memory://faulty"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.buckets: dict[object, Bucket] = {}
        self.lock = threading.Lock()

    def now(self) -> int:
        return self.clock.microseconds()

    def key(self, charge: Charge | Refund) -> object:
        return charge.scope, charge.subject

    def get(self, charge: Charge | Refund) -> Bucket | None:
        return self.buckets.get(self.key(charge))

    def put(self, charge: Charge | Refund, bucket: Bucket | None) -> None:
        if bucket is None:
            self.buckets.pop(self.key(charge), None)
        else:
            self.buckets[self.key(charge)] = bucket

    def decide(
        self, charges: Sequence[Charge], buckets: Sequence[Bucket | None], now: int
    ) -> tuple[Decision, Sequence[Bucket | None] | None]:
        return decide(charges, buckets, now)

    def refunded(self, refund: Refund, bucket: Bucket | None, now: int) -> Bucket | None:
        return give_back(refund, bucket, now)

    def check(self, charges: Sequence[Charge]) -> None:
        if len({self.key(charge) for charge in charges}) < len(charges):
            raise ValueError("two charges of one decision name the same bucket")

    def take(self, charges: Sequence[Charge]) -> Decision:
        self.check(charges)
        with self.lock:
            decision, stored = self.decide(charges, [self.get(charge) for charge in charges], self.now())
            for charge, bucket in zip(charges, stored or (), strict=False):
                self.put(charge, bucket)
        return decision

    def give_back(self, refunds: Sequence[Refund]) -> None:
        with self.lock:
            for refund in refunds:
                self.put(refund, self.refunded(refund, self.get(refund), self.now()))

    def close(self) -> None:
        pass


class NothingWrong(Faulty):
    pass


class WholeSeconds(Faulty):
    """Reads the time in whole seconds."""

    def now(self) -> int:
        return super().now() // SECOND * SECOND


class LosesFractions(Faulty):
    """Adds whole tokens only, and moves its stamp all the same."""

    def get(self, charge: Charge | Refund) -> Bucket | None:
        bucket = super().get(charge)
        if bucket is None or bucket.stamp >= self.now():
            return bucket
        level, _ = advance(charge.limit, bucket, self.now())
        whole = level - (level - bucket.level) % charge.limit.unit
        self.buckets[self.key(charge)] = Bucket(whole, self.now(), charge.limit.unit)
        return self.buckets[self.key(charge)]


class ExpiresEarly(Faulty):
    """Keeps a bucket for the whole milliseconds that it takes to fill, rounded down: nothing where that is none."""

    def put(self, charge: Charge | Refund, bucket: Bucket | None) -> None:
        if bucket is not None and int(charge.limit.seconds_to_fill * 1_000) == 0:
            bucket = None
        super().put(charge, bucket)


class ForgetsDebts(Faulty):
    """Keeps a bucket as long as an empty one takes to fill."""

    def get(self, charge: Charge | Refund) -> Bucket | None:
        bucket = super().get(charge)
        if bucket is not None and self.now() - bucket.stamp > charge.limit.seconds_to_fill * SECOND:
            return None
        return bucket


class ForgetsAfterADay(Faulty):
    """Keeps nothing for longer than a day."""

    def get(self, charge: Charge | Refund) -> Bucket | None:
        bucket = super().get(charge)
        return None if bucket is not None and self.now() - bucket.stamp > 86_400 * SECOND else bucket


class DenialsTake(Faulty):
    """Counts down on denials too."""

    def decide(
        self, charges: Sequence[Charge], buckets: Sequence[Bucket | None], now: int
    ) -> tuple[Decision, Sequence[Bucket | None] | None]:
        decision, stored = decide(charges, buckets, now)
        if not decision.allowed:
            stored = tuple(Bucket(quota.level - quota.limit.unit, now, quota.limit.unit) for quota in decision.quotas)
        return decision, stored


class DenialsNeverWrite(Faulty):
    """Writes nothing on a denial, not even the time of a clock that went backwards."""

    def decide(
        self, charges: Sequence[Charge], buckets: Sequence[Bucket | None], now: int
    ) -> tuple[Decision, Sequence[Bucket | None] | None]:
        decision, stored = decide(charges, buckets, now)
        return decision, stored if decision.allowed else None


class OneByOne(Faulty):
    """Decides several charges one after the other."""

    def take(self, charges: Sequence[Charge]) -> Decision:
        self.check(charges)
        answers = [super(OneByOne, self).take([charge]) for charge in charges]
        quotas = tuple(answer.quotas[0] for answer in answers)
        return Decision(all(answer.allowed for answer in answers), quotas)


class NoLock(Faulty):
    """Reads, lets others go first, and writes."""

    def take(self, charges: Sequence[Charge]) -> Decision:
        self.check(charges)
        buckets = [self.get(charge) for charge in charges]
        threading.Event().wait(0.000_01)
        decision, stored = self.decide(charges, buckets, self.now())
        for charge, bucket in zip(charges, stored or (), strict=False):
            self.put(charge, bucket)
        return decision


class OwnClock(Faulty):
    """Uses another clock than the one it was given."""

    def now(self) -> int:
        return SYSTEM_CLOCK.microseconds()


class ClockOnlyForward(Faulty):
    """Takes a clock that went backwards for one that has stood still, and makes callers wait until it is back."""

    def get(self, charge: Charge | Refund) -> Bucket | None:
        bucket = super().get(charge)
        if bucket is not None and bucket.stamp > self.now():
            return bucket._replace(level=0)
        return bucket


class NewRateNewBucket(Faulty):
    """Keeps another bucket for another rate."""

    def key(self, charge: Charge | Refund) -> object:
        return charge.scope, charge.subject, charge.limit


class TakesUnitsForUnits(Faulty):
    """Reads parts that were written under another rate as its own."""

    def get(self, charge: Charge | Refund) -> Bucket | None:
        bucket = super().get(charge)
        return None if bucket is None else bucket._replace(unit=charge.limit.unit)


class JoinsNames(Faulty):
    """Makes one text of scope and subject."""

    def key(self, charge: Charge | Refund) -> object:
        return f"{charge.scope}:{charge.subject}"


class ReplacesStrangeCharacters(Faulty):
    """Writes what is not UTF-8 as a question mark."""

    def key(self, charge: Charge | Refund) -> object:
        return charge.scope, charge.subject.encode("ascii", "replace")


class CutsLongNames(Faulty):
    """Keeps the first hundred characters of a subject."""

    def key(self, charge: Charge | Refund) -> object:
        return charge.scope, charge.subject[:100]


class Doubles(Faulty):
    """Computes in floating point, as a script would that divides."""

    def put(self, charge: Charge | Refund, bucket: Bucket | None) -> None:
        if bucket is not None:
            bucket = bucket._replace(level=int(float(f"{float(bucket.level):.14g}")))
        super().put(charge, bucket)


class NoFloor(Faulty):
    """Knows nothing of floors."""

    def take(self, charges: Sequence[Charge]) -> Decision:
        return super().take([charge._replace(floor=0) for charge in charges])


class NoDebt(Faulty):
    """Stores a debt as an empty bucket."""

    def put(self, charge: Charge | Refund, bucket: Bucket | None) -> None:
        super().put(charge, None if bucket is None else bucket._replace(level=max(0, bucket.level)))


class NamedTwice(Faulty):
    """Lets a decision name a bucket twice."""

    def check(self, charges: Sequence[Charge]) -> None:
        pass


class RefundsWithoutEnd(Faulty):
    """Fills a bucket beyond its burst."""

    def refunded(self, refund: Refund, bucket: Bucket | None, now: int) -> Bucket | None:
        level, stamp = advance(refund.limit, bucket, now)
        amount = refund.limit.capacity - level if refund.cost is None else refund.cost * refund.limit.unit
        return Bucket(level + amount, stamp, refund.limit.unit)

    def get(self, charge: Charge | Refund) -> Bucket | None:
        return super().get(charge)

    def decide(
        self, charges: Sequence[Charge], buckets: Sequence[Bucket | None], now: int
    ) -> tuple[Decision, Sequence[Bucket | None] | None]:
        if len(charges) == 1 and buckets[0] is not None and buckets[0].level > charges[0].limit.capacity:
            charge, bucket = charges[0], buckets[0]
            left = bucket.level - charge.cost * charge.limit.unit
            return Decision(True, (Quota(charge.limit, left, charge.cost, charge.floor),)), (
                bucket._replace(level=left),
            )
        return super().decide(charges, buckets, now)


class RefundsNothing(Faulty):
    """Takes refunds for a courtesy."""

    def give_back(self, refunds: Sequence[Refund]) -> None:
        pass


class RefundsTheFirst(Faulty):
    """Gives the first one back."""

    def give_back(self, refunds: Sequence[Refund]) -> None:
        super().give_back(refunds[:1])


class NoReset(Faulty):
    """Does not know that no amount means all."""

    def refunded(self, refund: Refund, bucket: Bucket | None, now: int) -> Bucket | None:
        return give_back(refund._replace(cost=refund.cost or 0), bucket, now)


class IgnoresThoseAfter(Faulty):
    """Gives a reservation back in full though others came after it."""

    def refunded(self, refund: Refund, bucket: Bucket | None, now: int) -> Bucket | None:
        return give_back(refund._replace(expected=None), bucket, now)


class ClosedForGood(Faulty):
    """Cannot be used after it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True

    def now(self) -> int:
        if self.closed:
            raise RuntimeError("closed")
        return super().now()


class ShowsPassword(Faulty):
    """Shows the address as it was given."""

    uri = "redis://user:secret@127.0.0.1"


class WrongTaker(Faulty):
    """Its fast path forgets the floor."""

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Callable[[str, int], Decision]:
        return lambda subject, cost: self.take([Charge(scope, subject, limit, cost)])


class RemembersDenials(Faulty):
    """Goes on denying for a while whatever happens."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.denied: dict[object, tuple[int, Decision]] = {}

    def take(self, charges: Sequence[Charge]) -> Decision:
        key = tuple(charges)
        until, decision = self.denied.get(key, (0, None))
        if decision is not None and self.now() < until:
            return decision
        decision = super().take(charges)
        if not decision.allowed:
            self.denied[key] = (self.now() + 1_000, decision)
        return decision


FAULTS = [kind for kind in Faulty.__subclasses__() if kind is not NothingWrong]


def names_of_tests() -> list[str]:
    return [name for name in dir(LimitStorageConformance) if name.startswith("test_")]


def first_failure(kind: type[Faulty]) -> str | None:
    """The first test that this storage does not pass."""

    class Suite(LimitStorageConformance):
        walks = 25
        threads = 8
        calls = 400

        def open_storage(self, clock: Clock | None) -> LimitStorage:
            return kind(clock or SYSTEM_CLOCK)

    for name in names_of_tests():
        try:
            getattr(Suite(), name)()
        except (AssertionError, RuntimeError):
            return name
    return None


def test_a_storage_with_nothing_wrong_passes() -> None:
    assert first_failure(NothingWrong) is None


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_a_storage_with_a_fault_does_not(kind: type[Faulty]) -> None:
    assert first_failure(kind), kind.__doc__


def test_a_walk_that_fails_is_printed_with_all_its_steps() -> None:
    class Suite(LimitStorageConformance):
        def open_storage(self, clock: Clock | None) -> LimitStorage:
            return DenialsTake(clock or SYSTEM_CLOCK)

    with pytest.raises(AssertionError, match=r"walk \d+, step (\d+):\n  the core says ") as caught:
        Suite().test_every_walk_is_decided_as_the_pure_core_decides_it()
    text = str(caught.value)
    assert str(text.count("\n  at ")) == text.split("step ")[1].split(":")[0]


def test_where_denials_are_remembered_only_their_numbers_may_be_of_an_earlier_moment() -> None:
    class Stale(Faulty):
        """Says of every denial that the bucket is empty."""

        def take(self, charges: Sequence[Charge]) -> Decision:
            decision = super().take(charges)
            if decision.allowed:
                return decision
            return Decision(False, tuple(quota._replace(level=0) for quota in decision.quotas))

    class Exact(LimitStorageConformance):
        def open_storage(self, clock: Clock | None) -> LimitStorage:
            return Stale(clock or SYSTEM_CLOCK)

    class Remembered(Exact):
        exact_denials = False

    Remembered().test_every_walk_is_decided_as_the_pure_core_decides_it()
    with pytest.raises(AssertionError):
        Exact().test_every_walk_is_decided_as_the_pure_core_decides_it()


def test_a_crowd_that_never_comes_back_is_a_failure() -> None:
    class Raises(Faulty):
        def take(self, charges: Sequence[Charge]) -> Decision:
            raise OSError("no")

    class Suite(LimitStorageConformance):
        def open_storage(self, clock: Clock | None) -> LimitStorage:
            return Raises(clock or SYSTEM_CLOCK)

    with pytest.raises(OSError, match="no"):
        Suite().test_a_crowd_of_threads_is_given_exactly_the_burst()
