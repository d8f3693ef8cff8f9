"""Random crowds before one bucket, on a simulated clock: in no window begin more calls than the limit says."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from greenlet import greenlet
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resilience import Limit, MemoryStorage, RateLimited, RateLimiter
from resilience.notation import parse_limits
from resilience.testing import smallest_burst
from tests.support.examples import many
from tests.support.simulated import Interruption, Simulation

RATES = [Fraction(10), Fraction(7, 3), Fraction(1, 3), Fraction(1_000)]


class Caller(NamedTuple):
    """Comes so many milliseconds after the one before, and gives up when it has waited for so long."""

    after: int
    cost: int
    verb: str = "acquire"
    patience: int | None = None
    wait: float | None = None


@st.composite
def crowds(draw: st.DrawFn) -> list[Caller]:
    """Mostly at once, so that they get in each other's way."""
    after = st.sampled_from([0, 0, 0, 0, 1, 50, 99, 100, 101, 300, 1_000, 4_000])
    patience = st.sampled_from([None, None, 0, 1, 100, 250, 900, 2_500])
    verbs = st.sampled_from(["acquire", "acquire", "acquire", "try", "attempt", "held", "peek"])
    waits = st.sampled_from([None, None, 0.0, 0.3, 5.0])
    caller = st.builds(Caller, after, st.integers(0, 12), verbs, patience, waits)
    return draw(st.lists(caller, max_size=40))


def begin(limiter: RateLimiter, caller: Caller) -> bool:
    """Whether the call may begin, now that this returns."""
    cost = caller.cost
    if caller.verb == "try":
        return limiter.try_acquire(cost=cost).allowed
    if caller.verb == "attempt":
        return limiter.attempt(cost=cost).decision.allowed
    if caller.verb == "peek":
        limiter.peek(cost=cost)
        return False
    try:
        if caller.verb == "held":
            with limiter.held(cost=cost, wait=caller.wait):
                return True
        limiter.acquire(cost=cost, wait=caller.wait)
    except (RateLimited, Interruption):
        return False
    return True


def walk(limit: Limit | list[Limit], crowd: list[Caller], **options: Any) -> list[tuple[int, int, int]]:
    """Those that began: the moment in microseconds, the cost, and the place in the crowd."""
    clock = Simulation()
    limiter = RateLimiter(limit, name="walk", key="all", storage=MemoryStorage(clock=clock), clock=clock, **options)
    began: list[tuple[int, int, int]] = []
    moment = 0
    for place, caller in enumerate(crowd):
        moment += caller.after * 1_000
        clock.at(moment, enter(clock, limiter, caller, place, began))
    clock.run()
    return began


def enter(
    clock: Simulation, limiter: RateLimiter, caller: Caller, place: int, began: list[tuple[int, int, int]]
) -> Callable[[], object]:
    def call() -> None:
        if begin(limiter, caller):
            began.append((clock.microseconds(), caller.cost, place))

    def come() -> None:
        running = greenlet(call)
        if caller.patience is not None:
            clock.at(caller.patience * 1_000, lambda: clock.interrupt(running))
        running.switch()

    return come


def worst(began: list[tuple[int, int, int]], limit: Limit) -> Fraction:
    """The most that began in any window beyond what its time gives. Moments are whole microseconds: they say no more than
    that about the time between them."""
    return smallest_burst([(moment, cost) for moment, cost, _ in began], limit) - Fraction(limit.refill, limit.unit)


@settings(max_examples=many(300))
@given(
    crowd=crowds(), rate=st.sampled_from(RATES), burst=st.integers(1, 10), wait=st.sampled_from([0.0, 0.5, 3.0, 60.0])
)
@example(  # a giver-up whose turn was counted on by another, and a newcomer who would take it
    crowd=[Caller(0, 10), Caller(0, 9, patience=100), Caller(0, 9), Caller(101, 9)],
    rate=Fraction(10),
    burst=10,
    wait=60.0,
)
def test_whoever_waits_or_gives_up_no_window_holds_more_than_the_limit_says(
    crowd: list[Caller], rate: Fraction, burst: int, wait: float
) -> None:
    limit = Limit(rate, 1, burst)
    began = walk(limit, crowd, wait=wait)
    assert worst(began, limit) <= burst


@st.composite
def queues(draw: st.DrawFn) -> list[Caller]:
    """All wait, many give up, newcomers come just then."""
    patience = st.sampled_from([None, 0, 100, 500, 900])
    after, cost, verb, wait = (
        st.sampled_from([0, 0, 1, 101]),
        st.sampled_from([1, 2, 9, 10]),
        st.just("acquire"),
        st.none(),
    )
    caller = st.builds(Caller, after, cost, verb, patience, wait)
    return draw(st.lists(caller, min_size=4, max_size=12))


@settings(max_examples=many(300))
@given(crowd=queues())
def test_turns_that_are_given_up_are_used_no_more_than_once(crowd: list[Caller]) -> None:
    limit = Limit(10, 1, 10)
    began = walk(limit, crowd, wait=60.0)
    assert worst(began, limit) <= 10


PAIRS = [("10/second", "20 per 10 seconds"), ("2/second", "100/minute"), ("3/second", "4 per 2 seconds")]


@settings(max_examples=many(200))
@given(crowd=st.one_of(crowds(), queues()), pair=st.sampled_from(PAIRS), burst=st.integers(2, 10))
def test_of_several_limits_each_holds_whoever_waits_for_which(
    crowd: list[Caller], pair: tuple[str, str], burst: int
) -> None:
    limits = [parse_limits(text, burst=burst)[0] for text in pair]
    began = walk(limits, crowd, wait=30.0)
    assert [True, True] == [worst(began, limit) <= burst for limit in limits]


@settings(max_examples=many(200))
@given(crowd=crowds(), rate=st.sampled_from(RATES), burst=st.integers(1, 10))
def test_those_who_wait_begin_in_the_order_of_asking(crowd: list[Caller], rate: Fraction, burst: int) -> None:
    paying = [caller._replace(verb="acquire", cost=max(1, caller.cost)) for caller in crowd]
    began = walk(Limit(rate, 1, burst), paying, wait=60.0)
    assert [place for _, _, place in began] == sorted(place for _, _, place in began)


@settings(max_examples=many(200))
@given(crowd=crowds(), rate=st.sampled_from(RATES), burst=st.integers(1, 10), wait=st.sampled_from([None, 0.5, 3.0]))
def test_smoothed_calls_leave_no_faster_than_the_rate(
    crowd: list[Caller], rate: Fraction, burst: int, wait: float | None
) -> None:
    limit = Limit(rate, 1, burst)
    began = walk(limit, [caller._replace(wait=None) for caller in crowd], wait=wait, shape=True)
    assert worst(began, limit) <= max((cost for _, cost, _ in began), default=0)


@settings(max_examples=many(100))
@given(crowd=crowds(), burst=st.integers(1, 10))
def test_nobody_waits_longer_than_it_may(crowd: list[Caller], burst: int) -> None:
    patient = [caller._replace(verb="acquire", patience=None) for caller in crowd]
    came, moment = [], 0
    for caller in patient:
        moment += caller.after * 1_000
        came.append(moment)
    for options in ({"wait": 1.0}, {"wait": 1.0, "shape": True}):
        for moment, _, place in walk(Limit(10, 1, burst), patient, **options):
            wait = patient[place].wait
            assert moment - 1_000_000_000 - came[place] <= (1.0 if wait is None else wait) * 1_000_000
