"""The tests that every storage of buckets has to pass, with the pure core as the oracle."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import ClassVar, TypeVar

from resilience.core.limiter import Bucket, Charge, Decision, Limit, Refund, advance, decide, give_back
from resilience.errors import StorageBusy
from resilience.ports import Clock, LimitStorage, Taker
from resilience.testing.crowds import crowd
from resilience.testing.fakes import FakeClock
from resilience.testing.windows import smallest_burst

__all__ = ["LimitStorageConformance"]

_PERIODS = (0.001, 0.5, 1, 7, 60, 86_400)
_SUBJECTS = ("alice", "böse {tag} *:\n", "x" * 500)
_LONG_AGO = 1_700_000_000.0

A = TypeVar("A")
T = TypeVar("T")

_fresh = itertools.count()


class LimitStorageConformance:
    """Tests for a storage of your own: derive from it, and say how one is opened.

        class TestMine(LimitStorageConformance):
            def open_storage(self, clock):
                return MyStorage(ADDRESS, clock=clock)

    `open_storage` is called by every test, with a `FakeClock` or, where threads or the storage's own time matter, with None:
    then the storage uses the clock that it uses in production. What it returns is closed when the test is over. All
    storages may share one server: every test uses scopes that nobody used before.

    The tests are plain methods and use nothing of a test framework: pytest runs the class as it stands, unittest runs it
    when it is also derived from `unittest.TestCase`. A walk that fails is printed with its seed and every step of it; short
    walks come first. A storage that offers `taker` is asked through both, in turns.

    The attributes may be set by the class that derives from it: how many random `walks`, how many `threads` make how many
    `calls` in all, and whether the numbers that come with a denial or a look are those of that very moment (`exact_denials`;
    where denials are remembered for a while only the decision itself is the oracle's), and whether buckets of several
    subjects are decided in `one_transaction` (where they live on several servers, what a refusal took from the one is
    given back a moment later).
    """

    walks: ClassVar[int] = 40
    threads: ClassVar[int] = 20
    calls: ClassVar[int] = 2_000
    exact_denials: ClassVar[bool] = True
    one_transaction: ClassVar[bool] = True

    def open_storage(self, clock: Clock | None) -> LimitStorage:
        """A storage to be tested: under `clock`, or under its own if that is None."""
        raise NotImplementedError(f"{type(self).__name__} says how a storage is opened: def open_storage(self, clock)")

    # Random walks

    def test_every_walk_is_decided_as_the_pure_core_decides_it(self) -> None:
        """Times also go backwards, rates change in mid-flight, several buckets are decided together, tokens come back."""
        for seed in range(self.walks):
            clock = FakeClock(_LONG_AGO)
            with self._opened(clock) as storage:
                walk = _Walk(storage, clock, seed, exact_denials=self.exact_denials, mixed=self.one_transaction)
                walk.go(steps=3 + 2 * seed)

    def test_no_window_wherever_it_is_placed_is_given_more_than_the_burst_and_its_time(self) -> None:
        """Whoever asks exactly when the next token is there, a microsecond before, and in bursts, gets no more."""
        for limit in (Limit(10, 1, 5), Limit(7, 1), Limit(Fraction(1, 3), 0.1, 2), Limit(999_983, 86_400, 50)):
            clock = FakeClock(_LONG_AGO)
            chance = random.Random(1)  # noqa: S311  # a walk, not a secret
            charge = Charge(_fresh_scope(), "subject", limit, 1)
            admitted: list[tuple[int, int]] = []
            with self._opened(clock) as storage:
                for _ in range(150):
                    decision = storage.take([charge])
                    if decision.allowed:
                        admitted.append((clock.microseconds(), 1))
                        continue
                    wait = decision.quotas[0].wait or 0.0
                    clock.advance(chance.choice([wait, wait - 0.000001, wait / 2, 3 * wait, 0.0]))
            burst = smallest_burst(admitted, limit)
            _expect(
                True, burst <= limit.size, f"{limit}: a window was given {float(burst)} tokens more than its time gives"
            )

    # Time

    def test_a_fraction_of_a_token_gained_between_two_calls_is_kept(self) -> None:
        """Half a token a second: a storage that counts whole tokens, or whole seconds, never gives it."""
        self._rows(
            Limit(30, 60, 10),
            [(0, 1, True, 9), (1, 1, True, 8), (1, 1, True, 8), (1, 1, True, 7), (1, 1, True, 7), (1, 1, True, 6)],
        )

    def test_time_is_counted_in_microseconds(self) -> None:
        """A tenth of a second gives a tenth of the rate, and not a microsecond less does."""
        self._rows(
            Limit(10, 1, 1), [(0, 1, True, 0), (0.099_999, 1, False, 0), (0.000_001, 1, True, 0), (0.1, 1, True, 0)]
        )

    def test_rates_that_do_not_divide_are_exact(self) -> None:
        """The two hundredth of seven a second comes at its time, however often that was no whole microsecond."""
        for limit in (Limit(7, 1, 2), Limit(Fraction(1, 3), 0.01, 2), Limit(0.7, 0.1, 2)):
            clock = FakeClock(_LONG_AGO)
            charge = Charge(_fresh_scope(), "subject", limit, 1)
            with self._opened(clock) as storage:
                start = clock.microseconds()
                answers: list[bool] = []
                while len(answers) < 400 and sum(answers) < 200:
                    decision = storage.take([charge])
                    answers.append(decision.allowed)
                    if not decision.allowed:
                        clock.advance(decision.quotas[0].wait or 0.0)
                exact = Fraction(198 * limit.unit * limit.tick, limit.refill)
                late = clock.microseconds() - start - exact
                # Each is at most a microsecond late, and none makes the next one later.
                _expect(True, 0 <= late < 1, f"{limit}: the last of 200 came {float(late)} us after its time")

    def test_a_clock_that_goes_backwards_gives_nothing_and_takes_nothing(self) -> None:
        """Time counts again from where the clock is now."""
        self._rows(
            Limit(1, 1, 2),
            [
                (0, 1, True, 1),
                (-5, 0, True, 1),
                (0, 1, True, 0),
                (0.5, 1, False, 0),
                (0.5, 1, True, 0),
                (-1, 1, False, 0),
            ],
        )

    def test_after_a_clock_went_backwards_a_denial_says_truly_when_to_come_again(self) -> None:
        """An hour back, and an empty bucket is not empty for an hour: what was promised at the denial is kept."""
        limit, other = Limit(10, 1), Limit(1, 60)
        for scopes in ((_fresh_scope(),), (_fresh_scope(), _fresh_scope())):
            clock = FakeClock(_LONG_AGO)
            charges = [Charge(scope, "subject", one, 1) for scope, one in zip(scopes, (limit, other), strict=False)]
            with self._opened(clock) as storage:
                _expect(True, storage.take([charges[0]._replace(cost=10)]).allowed, "all there is")
                _expect(False, storage.take(charges).allowed, "one more")
                clock.advance(-3_600)
                denied = storage.take(charges)
                _expect((False, 0.1), (denied.allowed, denied.retry_after), "an hour earlier")
                clock.advance(denied.retry_after or 0.0)
                _expect(True, storage.take(charges).allowed, f"{denied.retry_after} s after the denial")

    def test_a_bucket_is_not_forgotten_before_it_is_full(self) -> None:
        """However fast it fills: 2,000 calls at one moment are given the burst, also where that is full in a blink."""
        for limit in (Limit(100, 1, 40), Limit(1_000_000, 1, 10), Limit(1_000, 0.001, 1), Limit(1, 0.000_001, 3)):
            clock = FakeClock(_LONG_AGO)
            scope = _fresh_scope()
            with self._opened(clock) as storage:
                allowed = sum(storage.take([Charge(scope, "subject", limit, 1)]).allowed for _ in range(200))
            _expect(limit.size, allowed, f"{limit}: admitted at one moment")

    def test_a_bucket_that_fills_for_a_long_time_is_not_forgotten_meanwhile(self) -> None:
        """A year is a long time to wait for a token."""
        self._rows(
            Limit(1, 365 * 86_400, 2),
            [(0, 2, True, 0), (300 * 86_400, 1, False, 0), (65 * 86_400 - 1, 1, False, 0), (1, 1, True, 0)],
        )

    # Charges

    def test_a_denial_takes_nothing_and_neither_does_a_look(self) -> None:
        """Whoever hammers a closed door is let in when it opens, not later."""
        rows = [(0, 3, True, 0), *[(0.01, 1, False, 0), (0.0, 0, True, 0), (0.0, 3, False, 0)] * 9, (0.01, 1, True, 0)]
        self._rows(Limit(10, 1, 3), rows)

    def test_a_cost_above_the_burst_is_never_granted(self) -> None:
        """Neither from a full bucket nor on a debt, and nothing is taken for the attempt."""
        limit = Limit(10, 1, 5)
        clock = FakeClock(_LONG_AGO)
        scope = _fresh_scope()
        with self._opened(clock) as storage:
            for cost in (6, 7, 1_000, 2**40):
                for floor in (0, -limit.debt(3_600), limit.unit):
                    decision = storage.take([Charge(scope, "subject", limit, cost, floor)])
                    _expect((False, 5), (decision.allowed, decision.remaining), f"cost {cost}, floor {floor}")
            _expect(True, storage.take([Charge(scope, "subject", limit, 5)]).allowed, "the whole burst at once")

    def test_the_largest_numbers_are_exact(self) -> None:
        """Up to 2**53 parts in a bucket, where a double is exact and one more is not."""
        cases = [
            (Limit(999_999, 1, 2**53 // 1_000_000 - 1), 1),
            (Limit(10**6, 1, 2**40), 2**39 + 1),
            (Limit(1, 2, 2**32), 3),
        ]
        for limit, cost in cases:
            clock = FakeClock(_LONG_AGO)
            oracle = _Oracle(clock)
            charges = [Charge(_fresh_scope(), "subject", limit, cost, -limit.debt(1_000_000_000))]
            with self._opened(clock) as storage:
                for _ in range(8):
                    actual = storage.take(charges)
                    _expect(oracle.take(charges, actual), actual, f"{limit}, cost {cost}")
                    clock.advance(0.000_001)

    def test_a_changed_rate_keeps_whole_tokens_up_to_the_new_burst(self) -> None:
        """A deployment with another limit neither frees those who were limited nor locks out the others."""
        scope = _fresh_scope()
        before, after = Limit(10, 1, 10), Limit(7, 60, 4)
        with self._opened(FakeClock(_LONG_AGO)) as storage:
            for limit, cost, remaining in (
                (before, 3, 7),
                (after, 0, 4),
                (after, 3, 1),
                (before, 0, 1),
                (before, 1, 0),
            ):
                decision = storage.take([Charge(scope, "subject", limit, cost)])
                _expect((True, remaining), (decision.allowed, decision.remaining), f"{cost} of {limit}")

    def test_one_bucket_named_twice_in_a_decision_is_refused(self) -> None:
        """Each of the two would be decided as if the other were not there."""
        limit = Limit(10, 1)
        scope = _fresh_scope()
        with self._opened(FakeClock(_LONG_AGO)) as storage:
            try:
                storage.take([Charge(scope, "subject", limit, 6), Charge(scope, "subject", limit, 6)])
            except ValueError:
                pass
            else:
                raise AssertionError("two charges to one bucket in one decision were not refused with a ValueError")
            _expect(10, storage.take([Charge(scope, "subject", limit, 0)]).remaining, "nothing was taken for it")

    def test_several_buckets_are_all_or_nothing(self) -> None:
        """The limit that has room gives nothing away when another one has none."""
        first, second = _fresh_scope(), _fresh_scope()
        charges = [Charge(first, "subject", Limit(10, 1), 1), Charge(second, "subject", Limit(2, 60), 1)]
        with self._opened(FakeClock(_LONG_AGO)) as storage:
            answers = [storage.take(charges) for _ in range(4)]
        _expect([True, True, False, False], [answer.allowed for answer in answers], "ten and two at once")
        _expect((8, 0), tuple(quota.remaining for quota in answers[-1].quotas), "left in each")
        _expect(30.0, answers[-1].retry_after, "the wait for the slower one")

    def test_buckets_of_several_callers_are_all_or_nothing(self) -> None:
        """A limit for each caller and one for all of them, decided together."""
        each, everybody = _fresh_scope(), _fresh_scope()
        narrow, wide = Limit(1, 3_600, 3), Limit(1, 3_600, 4)

        def ask(subject: str) -> bool:
            charges = [Charge(each, subject, narrow, 1), Charge(everybody, "*", wide, 1)]
            return storage.take(charges).allowed

        def left() -> tuple[int, ...]:
            buckets = ((each, "alice", narrow), (each, "bob", narrow), (everybody, "*", wide))
            return tuple(storage.take([Charge(*bucket, 0)]).remaining for bucket in buckets)

        with self._opened(FakeClock(_LONG_AGO)) as storage:
            answers = [ask(subject) for subject in ("alice", "alice", "alice", "alice", "bob", "bob")]
            _expect([True, True, True, False, True, False], answers, "three for alice, one is left for bob")
            # Where no single transaction reaches all of them what a refusal took in the one may come back a moment later.
            _expect_soon((0, 2, 0), left, "left for alice, for bob and for all")

    def test_subjects_and_scopes_of_any_characters_are_kept_apart(self) -> None:
        """Whatever callers send, no two of them share a bucket, and a long one is a subject like any other."""
        limit = Limit(1, 3_600)
        scope = _fresh_scope()
        subjects = [
            "",
            " ",
            "a",
            "A",
            "a ",
            "a:b",
            "a/b",
            "a|b",
            "{a}",
            "a}:b:{c",
            "ä",
            "a\u0308",
            "\ud800",
            "\0",
            "a\0b",
        ]
        subjects += ["line\nbreak", "*", "%61", "x" * 200, "x" * 201, "y" * 1_000_000, "y" * 999_999 + "z"]
        buckets = [(scope, subject) for subject in subjects]
        buckets += [(f"{scope}:a", "b"), (f"{scope}/a", "b"), (f"{scope}|a", "b"), (f"{scope} a", "b")]
        with self._opened(FakeClock(_LONG_AGO)) as storage:
            for turn in (True, False):
                for where, subject in buckets:
                    decision = storage.take([Charge(where, subject, limit, 1)])
                    _expect(turn, decision.allowed, f"scope {where!r}, subject {subject[:20]!r} of {len(subject)}")

    # Debts and floors

    def test_a_debt_is_taken_on_down_to_the_floor_and_clears_with_time(self) -> None:
        """Reservations: each comes due after those before it, and whoever would wait too long is refused at once."""
        limit = Limit(10, 1, 2)
        clock = FakeClock(_LONG_AGO)
        charge = Charge(_fresh_scope(), "subject", limit, 1, -limit.debt(0.25))
        with self._opened(clock) as storage:
            answers = [storage.take([charge]) for _ in range(5)]
            _expect(
                [(True, 0.0), (True, 0.0), (True, 0.1), (True, 0.2), (False, 0.2)],
                [(answer.allowed, answer.quotas[0].debt_delay) for answer in answers],
                "three at once, two and a half of them on credit",
            )
            _expect(False, storage.take([charge._replace(floor=0)]).allowed, "nobody who does not wait passes a debt")
            clock.advance(0.05)
            _expect(0.25, storage.take([charge]).quotas[0].debt_delay, "as soon as it clears in time")
            clock.advance(0.35)
            _expect(True, storage.take([charge._replace(floor=0)]).allowed, "the debt has cleared")

    def test_a_debt_is_not_forgotten_before_it_has_cleared(self) -> None:
        """An expiry that counts from an empty bucket comes too early for one in debt."""
        limit = Limit(1, 60, 1)
        clock = FakeClock(_LONG_AGO)
        scope = _fresh_scope()
        with self._opened(clock) as storage:
            for _ in range(10):
                storage.take([Charge(scope, "subject", limit, 1, -limit.debt(600))])
            clock.advance(599)
            _expect(
                False, storage.take([Charge(scope, "subject", limit, 1)]).allowed, "a second before the tenth minute"
            )
            clock.advance(1)
            _expect(True, storage.take([Charge(scope, "subject", limit, 1)]).allowed, "ten minutes later")

    def test_a_floor_above_nothing_leaves_so_much_for_others(self) -> None:
        """Whoever takes ahead leaves at least as much as it was told to."""
        limit = Limit(1, 3_600, 10)
        scope = _fresh_scope()
        with self._opened(FakeClock(_LONG_AGO)) as storage:
            ahead = [storage.take([Charge(scope, "subject", limit, 3, 4 * limit.unit)]).allowed for _ in range(3)]
            _expect([True, True, False], ahead, "three times three of ten, of which four are to stay")
            _expect(4, storage.take([Charge(scope, "subject", limit, 0)]).remaining, "what is left")
            _expect(True, storage.take([Charge(scope, "subject", limit, 4)]).allowed, "others may have it")

    # Refunds

    def test_tokens_given_back_can_be_taken_again_up_to_the_burst(self) -> None:
        """More than was taken does no harm, and a bucket that nobody has taken from stays full."""
        limit = Limit(1, 3_600, 5)
        scope = _fresh_scope()
        look = Charge(scope, "subject", limit, 0)
        with self._opened(FakeClock(_LONG_AGO)) as storage:
            storage.give_back([Refund(scope, "subject", limit, 3)])
            _expect(5, storage.take([look]).remaining, "given back before anything was taken")
            storage.take([look._replace(cost=4)])
            storage.give_back([Refund(scope, "subject", limit, 2)])
            _expect(3, storage.take([look]).remaining, "four taken, two given back")
            storage.give_back([Refund(scope, "subject", limit, 3)])
            _expect(5, storage.take([look]).remaining, "never above the burst")

    def test_a_refund_without_an_amount_fills_the_bucket_also_from_a_debt(self) -> None:
        """It is a reset: of that bucket, and of no other."""
        limit = Limit(1, 3_600, 5)
        scope = _fresh_scope()
        with self._opened(FakeClock(_LONG_AGO)) as storage:
            for subject in ("alice", "bob"):
                storage.take([Charge(scope, subject, limit, 5)])
                storage.take([Charge(scope, subject, limit, 2, -limit.debt(1e9))])
            storage.give_back([Refund(scope, "alice", limit, None)])
            left = [storage.take([Charge(scope, subject, limit, 0)]).quotas[0].level for subject in ("alice", "bob")]
        _expect([5 * limit.unit, -2 * limit.unit], left, "alice's was filled")

    def test_several_refunds_are_all_given(self) -> None:
        """A decision over several limits is given back as one."""
        limit = Limit(1, 3_600, 5)
        scopes = [_fresh_scope(), _fresh_scope()]
        with self._opened(FakeClock(_LONG_AGO)) as storage:
            storage.take([Charge(scope, "subject", limit, 4) for scope in scopes])
            storage.give_back([Refund(scope, "subject", limit, 3) for scope in scopes])
            _expect([4, 4], [storage.take([Charge(scope, "subject", limit, 0)]).remaining for scope in scopes], "left")

    def test_a_reservation_given_up_comes_back_unless_a_later_one_counts_on_its_going_first(self) -> None:
        """Those who came after were told when their turn is. What is given back then would be taken twice at that moment."""
        limit = Limit(1, 3_600, 10)
        with self._opened(FakeClock(_LONG_AGO)) as storage:
            for later, left in ((0, 0), (1, -4), (9, -12)):
                reservation = Charge(_fresh_scope(), "subject", limit, 3, -limit.debt(1e9))
                storage.take([reservation._replace(cost=10)])
                behind = storage.take([reservation]).quotas[0].level
                storage.take([reservation._replace(cost=later)])
                storage.give_back([Refund(reservation.scope, reservation.subject, limit, 3, behind)])
                level = storage.take([reservation._replace(cost=0)]).quotas[0].level
                _expect(left * limit.unit, level, f"three given up, {later} reserved since")

    def test_a_look_among_charges_is_never_refused_and_takes_nothing(self) -> None:
        """It says what the bucket holds, whatever becomes of the others."""
        limit = Limit(1, 3_600, 2)
        looked, charged = (Charge(_fresh_scope(), "subject", limit, cost) for cost in (0, 2))
        with self._opened(FakeClock(_LONG_AGO)) as storage:
            storage.take([looked._replace(cost=2)])
            rows = [storage.take([looked, charged]) for _ in range(2)]
        _expect(
            [(True, (0, 0)), (False, (0, 0))],
            [(row.allowed, tuple(quota.remaining for quota in row.quotas)) for row in rows],
            "a look at an empty bucket, and all of another one, twice",
        )

    def test_a_denial_is_over_when_tokens_were_given_back(self) -> None:
        """Whatever remembers denials has to hear of refunds."""
        limit = Limit(1, 3_600, 2)
        charge = Charge(_fresh_scope(), "subject", limit, 2)
        with self._opened(FakeClock(_LONG_AGO)) as storage:
            answers = [storage.take([charge]).allowed for _ in range(3)]
            storage.give_back([Refund(charge.scope, charge.subject, limit, 2)])
            answers.append(storage.take([charge]).allowed)
        _expect([True, False, False, True], answers, "two of two, then nothing, then given back")

    # Crowds

    def test_a_crowd_of_threads_is_given_exactly_the_burst(self) -> None:
        """Two thousand calls at once for a hundred tokens: a hundred are admitted, not one more and not one fewer."""
        limit = Limit(1, 86_400, 100)
        scope = _fresh_scope()
        with self._opened(None) as storage:
            allowed = self._crowd(lambda _: _patiently(storage.take, [Charge(scope, "subject", limit, 1)]).allowed)
        _expect((self.calls, 100), (len(allowed), sum(allowed)), "calls, and how many were admitted")

    def test_a_crowd_at_several_buckets_is_given_all_or_nothing(self) -> None:
        """Half of them name the buckets in the other order: nobody waits for another for ever."""
        wide, narrow = Limit(1, 86_400, 100), Limit(1, 86_400, 60)
        first, second = _fresh_scope(), _fresh_scope()
        charges = [Charge(first, "subject", wide, 1), Charge(second, "subject", narrow, 1)]
        with self._opened(None) as storage:
            allowed = self._crowd(
                lambda index: _patiently(storage.take, charges if index % 2 else charges[::-1]).allowed
            )
            left = [storage.take([charge._replace(cost=0)]).remaining for charge in charges]
        _expect((60, [40, 0]), (sum(allowed), left), "admitted, and left in each")

    def test_a_crowd_that_takes_and_gives_back_leaves_a_full_bucket(self) -> None:
        """No refund is lost between a reading and a writing."""
        limit = Limit(1, 86_400, 10)
        charge = Charge(_fresh_scope(), "subject", limit, 1)

        def borrow(_: int) -> bool:
            allowed = _patiently(storage.take, [charge]).allowed
            if allowed:
                _patiently(storage.give_back, [Refund(charge.scope, charge.subject, limit, 1)])
            return allowed

        with self._opened(None) as storage:
            self._crowd(borrow)
            _expect(10, storage.take([charge._replace(cost=0)]).remaining, "left when everybody has given back")

    # What else a storage promises

    def test_a_closed_storage_may_be_used_again(self) -> None:
        """Closing gives connections back; it is no end."""
        charge = Charge(_fresh_scope(), "subject", Limit(1, 3_600, 5), 1)
        with self._opened(FakeClock(_LONG_AGO)) as storage:
            storage.take([charge])
            storage.close()
            storage.close()
            _expect(True, storage.take([charge]).allowed, "after closing twice")

    def test_its_address_is_a_text_without_credentials(self) -> None:
        """It is shown to operators and written to logs."""
        with self._opened(FakeClock(_LONG_AGO)) as storage:
            _expect((True, False), (bool(storage.uri), "@" in storage.uri), storage.uri)

    @contextlib.contextmanager
    def _opened(self, clock: Clock | None) -> Iterator[LimitStorage]:
        storage = self.open_storage(clock)
        try:
            yield storage
        finally:
            storage.close()

    def _rows(self, limit: Limit, rows: Sequence[tuple[float, int, bool, int]]) -> None:
        """Each row: seconds since the one before, cost, and what is expected: allowed, whole tokens left."""
        clock = FakeClock(_LONG_AGO)
        scope = _fresh_scope()
        with self._opened(clock) as storage:
            for number, (elapsed, cost, allowed, remaining) in enumerate(rows, 1):
                clock.advance(elapsed)
                decision = storage.take([Charge(scope, "subject", limit, cost)])
                what = f"{limit}: row {number}, {elapsed} s later, cost {cost}"
                _expect((allowed, remaining), (decision.allowed, decision.remaining), what)

    def _crowd(self, call: Callable[[int], bool]) -> list[bool]:
        """What `call` answered to everybody; the first thing it raised, if it raised."""
        each = self.calls // self.threads
        answers = crowd(self.threads, lambda index: [call(index) for _ in range(each)])
        return [answer for those in answers for answer in those]


class _Oracle:
    """What the pure core says, with a dictionary for a storage.

    A bucket that has been full may have been forgotten since, or not. To the limit that it was full under that is the same;
    to another one, or when the clock goes back, it is not. So it is taken to be either, until an answer shows which.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._limits: dict[tuple[str, str], Limit] = {}
        self._forgettable: set[tuple[str, str]] = set()

    def take(
        self, charges: Sequence[Charge], actual: Decision, same: Callable[[Decision, Decision], bool] = Decision.__eq__
    ) -> Decision:
        """What is expected of a storage that answered `actual`, which is believed where either would be right."""
        self._note_full_ones()
        keys = [(charge.scope, charge.subject) for charge in charges]
        known = [self._buckets.get(key) for key in keys]
        choices = [
            (bucket, None) if key in self._forgettable else (bucket,) for key, bucket in zip(keys, known, strict=True)
        ]
        now = self._clock.microseconds()
        options = [(*decide(charges, buckets, now), buckets) for buckets in itertools.product(*choices)]
        expected, stored, buckets = next((option for option in options if same(option[0], actual)), options[0])
        for index, charge in enumerate(charges):
            if stored is not None and stored[index] is not buckets[index]:
                self._put(charge, stored[index])
            elif buckets[index] is None:
                self._put(charge, None)
        return expected

    def give_back(self, refunds: Sequence[Refund]) -> None:
        """Give tokens back, or fill buckets. One that was forgotten stays so."""
        self._note_full_ones()
        for refund in refunds:
            key = refund.scope, refund.subject
            forgettable = key in self._forgettable
            self._put(refund, give_back(refund, self._buckets.get(key), self._clock.microseconds()))
            if forgettable and key in self._buckets:
                self._forgettable.add(key)

    def _put(self, named: Charge | Refund, bucket: Bucket | None) -> None:
        key = named.scope, named.subject
        self._forgettable.discard(key)
        if bucket is None:
            self._buckets.pop(key, None)
        else:
            self._buckets[key] = bucket
            self._limits[key] = named.limit

    def _note_full_ones(self) -> None:
        now = self._clock.microseconds()
        for key, bucket in self._buckets.items():
            limit = self._limits[key]
            if advance(limit, bucket, now)[0] >= limit.capacity:
                self._forgettable.add(key)


class _Walk:
    """One random walk: the same steps for the oracle and for the storage, and the same answers."""

    def __init__(
        self, storage: LimitStorage, clock: FakeClock, seed: int, *, exact_denials: bool = True, mixed: bool = True
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._oracle = _Oracle(clock)
        self._seed = seed
        self._exact_denials = exact_denials
        self._mixed = mixed
        self._chance = random.Random(seed)  # noqa: S311  # a walk, not a secret
        self._limits = [self._some_limit() for _ in range(self._chance.randint(2, 5))]
        self._scopes = [_fresh_scope() for _ in range(3)]
        self._levels = [0]
        self._takers: dict[tuple[str, Limit, int], Taker] = {}
        self._told: list[str] = []

    def go(self, steps: int) -> None:
        for _ in range(steps):
            self._clock.advance(self._some_time())
            if self._chance.random() < 0.15:
                self._refund()
            else:
                self._charge()

    def _charge(self) -> None:
        scopes = self._chance.sample(self._scopes, self._chance.choice([1, 1, 1, 2, 3]))
        subjects = [self._chance.choice(_SUBJECTS)] * len(scopes)
        if self._mixed and self._chance.random() < 0.5:
            subjects = [self._chance.choice(_SUBJECTS) for _ in scopes]
        # Whether a look among others is written down, as it is then, is left to the storage.
        least = 1 if len(scopes) > 1 else 0
        charges = [self._some_charge(scope, subject, least) for scope, subject in zip(scopes, subjects, strict=True)]
        self._tell("take " + " and ".join(map(_shown, charges)))
        actual = self._asked(charges)
        looking = not any(charge.cost for charge in charges)

        def same(expected: Decision, actual: Decision) -> bool:
            if self._exact_denials or (expected.allowed and not looking):
                return expected == actual
            return expected.allowed is actual.allowed

        expected = self._oracle.take(charges, actual, same)
        if not same(expected, actual):
            self._fail(f"the core says    {_said(expected)}\n  the storage says {_said(actual)}")
        self._levels = [quota.level for quota in expected.quotas]

    def _asked(self, charges: Sequence[Charge]) -> Decision:
        """Through the fast path, where there is one, every other time."""
        offer = getattr(self._storage, "taker", None)
        if offer is None or len(charges) > 1 or self._chance.random() < 0.5:
            return self._storage.take(charges)
        scope, subject, limit, cost, floor, _ = charges[0]
        taker = self._takers.get((scope, limit, floor))
        if taker is None:
            taker = self._takers[scope, limit, floor] = offer(scope, limit, floor)
        self._told[-1] += " by its taker"
        return taker(subject, cost)

    def _refund(self) -> None:
        limit = self._chance.choice(self._limits)
        scopes = self._chance.sample(self._scopes, self._chance.choice([1, 2]))
        subject = self._chance.choice(_SUBJECTS)
        cost = self._chance.choice([None, 1, 2, 20])
        expected = None if cost is None else self._chance.choice([None, self._chance.choice(self._levels)])
        refunds = [Refund(scope, subject, limit, cost, expected) for scope in scopes]
        self._tell("give_back " + " and ".join(map(_shown, refunds)))
        self._oracle.give_back(refunds)
        self._storage.give_back(refunds)

    def _some_charge(self, scope: str, subject: str, least: int) -> Charge:
        limit = self._chance.choice(self._limits)
        cost = max(least, self._chance.choice([0, 1, 1, 1, 2, 5, self._chance.randint(0, limit.size + 1)]))
        floor = 0
        if self._chance.random() < 0.3:
            floor = -limit.debt(self._chance.choice([0.001, 1, 90, 1e9]))
        elif self._chance.random() < 0.2:
            floor = self._chance.randint(1, limit.capacity)
        return Charge(scope, subject, limit, cost, floor)

    def _some_limit(self) -> Limit:
        chance = self._chance
        amounts: list[int | float | Fraction] = [chance.randint(1, 100), chance.randint(1, 1_000_000)]
        amounts += [chance.randint(1, 999) / 100, Fraction(chance.randint(1, 50), 7)]
        amount = chance.choice(amounts)
        return Limit(amount, chance.choice(_PERIODS), chance.choice([1, 3, 20, chance.randint(1, 1_000)]))

    def _some_time(self) -> float:
        chance = self._chance
        return chance.choice(
            [0.0, 0.0, 0.000_001, chance.random() / 1_000, chance.random(), 30 * chance.random(), -2 * chance.random()]
        )

    def _tell(self, step: str) -> None:
        self._told.append(f"at {self._clock.seconds() - _LONG_AGO:.6f}: {step}")

    def _fail(self, what: str) -> None:
        steps = "\n  ".join(self._told)
        raise AssertionError(f"walk {self._seed}, step {len(self._told)}:\n  {what}\nafter these steps:\n  {steps}")


def _shown(step: Charge | Refund) -> str:
    """Short enough to be read among many."""
    number = step.scope.rpartition("-")[2]
    bucket = f"{number}/{step.subject[:10]!r}"
    if isinstance(step, Charge):
        return f"{step.cost} of {bucket} ({step.limit}, floor {step.floor})"
    return f"{'all' if step.cost is None else step.cost} to {bucket} ({step.limit}, expected {step.expected})"


def _said(decision: Decision) -> str:
    levels = ", ".join(f"{quota.level} of {quota.limit.capacity} parts" for quota in decision.quotas)
    return f"{'allowed' if decision.allowed else 'denied'}, leaving {levels}"


def _fresh_scope() -> str:
    """A scope that nobody has used before, in whatever process, so that a server may be shared and kept."""
    return f"conformance-{_RUN}-{next(_fresh)}"


_RUN = uuid.uuid4().hex[:12]


def _patiently(ask: Callable[[A], T], argument: A) -> T:
    """Ask again where a storage says that it has no time to decide, as it may in a crowd: then it has taken nothing."""
    for _ in range(1_000):
        with contextlib.suppress(StorageBusy):
            return ask(argument)
        time.sleep(0.005)
    return ask(argument)


def _expect(expected: object, actual: object, what: str) -> None:
    if expected != actual:
        raise AssertionError(f"{what}: expected {expected!r}, was {actual!r}")


def _expect_soon(expected: object, look: Callable[[], object], what: str) -> None:
    for _ in range(100):
        if expected == look():
            return
        time.sleep(0.02)
    _expect(expected, look(), what)
