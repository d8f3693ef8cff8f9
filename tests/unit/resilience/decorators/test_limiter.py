"""Rate limiters as objects and as decorators, outside of any web framework."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from resilience import (
    MemoryStorage,
    RateLimited,
    RateLimiter,
    Rejected,
    StorageUnavailable,
    all_of,
    rate_limit,
    shared_limit,
)
from resilience.registry import PROCESS_REGISTRY
from resilience.scope import PROCESS
from resilience.testing import FakeClock
from tests.support.surroundings import Surroundings, surrounded_by


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    PROCESS.forget()
    yield
    PROCESS_REGISTRY.clear()
    PROCESS.forget()


def limiter(limits: Any = "2/minute", **options: Any) -> RateLimiter:
    return RateLimiter(limits, **{"name": "demo", "storage": MemoryStorage(clock=FakeClock()), **options})


def test_it_allows_what_the_limit_says_and_then_raises_with_the_wait() -> None:
    demo = limiter()
    assert [1, 0] == [demo.acquire().remaining for _ in range(2)]
    with pytest.raises(RateLimited, match=r"rate limit 'demo' exceeded: retry in 30\.000 s") as caught:
        demo.acquire()
    assert isinstance(caught.value, Rejected)
    assert (429, "demo", 30.0, False) == (
        caught.value.status, caught.value.policy, caught.value.retry_after, caught.value.decision.allowed
    )  # fmt: skip


def test_trying_never_raises() -> None:
    demo = limiter()
    assert [True, True, False] == [demo.try_acquire().allowed for _ in range(3)]
    assert (2, 1) == (demo.snapshot().allowed, demo.snapshot().denied)


def test_every_key_has_a_bucket_of_its_own() -> None:
    demo = limiter("1/minute")
    assert demo.try_acquire("alice").allowed
    assert demo.try_acquire("bob").allowed
    assert not demo.try_acquire("alice").allowed


def test_a_tuple_is_a_key_whose_parts_cannot_run_into_each_other() -> None:
    demo = limiter("1/minute")
    assert demo.try_acquire(("a|b", "c")).allowed
    assert demo.try_acquire(("a", "b|c")).allowed
    assert not demo.try_acquire(("a|b", "c")).allowed


@pytest.mark.parametrize("key", ["constant", lambda: "constant", lambda: ("tuple", 1)])
def test_a_key_may_be_a_constant_or_asked_for(key: Any) -> None:
    demo = limiter("1/minute", key=key)
    assert [True, False] == [demo.try_acquire().allowed for _ in range(2)]


def test_a_key_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="the key of rate limit 'demo' is 5"):
        limiter(key=lambda: 5).acquire()


def test_a_cost_may_be_a_number_or_asked_for() -> None:
    assert 8 == limiter("10/minute", cost=2).acquire().remaining
    assert 7 == limiter("10/minute", cost=lambda: 3).acquire().remaining
    assert 6 == limiter("10/minute").acquire(cost=4).remaining


@pytest.mark.parametrize("cost", [-1, 1.5, True, "1"])
def test_a_cost_that_is_no_whole_number_is_refused(cost: Any) -> None:
    with pytest.raises(ValueError, match="a cost is a whole number from 0"):
        limiter(cost=cost)
    with pytest.raises(ValueError, match="a cost is a whole number from 0"):
        limiter().acquire(cost=cost)
    with pytest.raises(ValueError, match="a cost is a whole number from 0"):
        limiter(cost=lambda: cost).acquire()


def test_a_cost_above_the_burst_says_that_no_wait_helps() -> None:
    with pytest.raises(RateLimited, match="above the burst, so no wait helps") as caught:
        limiter(cost=lambda: 3).acquire()
    assert caught.value.retry_after is None


def test_several_limits_are_taken_together_or_not_at_all() -> None:
    demo = limiter("10/second; 3/hour")
    assert [True, True, True, False] == [demo.try_acquire().allowed for _ in range(4)]
    assert (7, 0) == tuple(quota.remaining for quota in demo.try_acquire(cost=0).quotas)


def test_a_decorated_function_is_limited_and_keeps_its_name_and_result() -> None:
    @rate_limit("2/minute", name="greeting")
    def greet(name: str) -> str:
        return f"hello {name}"

    assert ("greet", "hello you", "hello me") == (greet.__name__, greet("you"), greet(name="me"))
    with pytest.raises(RateLimited):
        greet("again")
    assert "<RateLimiter greeting: 2 per 60 s>" == repr(greet.limiter)  # type: ignore[attr-defined]
    assert ["greeting"] == list(PROCESS_REGISTRY.limiters)


def test_without_a_name_the_function_names_the_limit() -> None:
    @rate_limit("2/minute")
    def greet() -> None: ...

    greet()
    assert [f"{__name__}.test_without_a_name_the_function_names_the_limit.<locals>.greet"] == list(
        PROCESS_REGISTRY.limiters
    )


def test_code_of_one_qualified_name_gets_a_bucket_each_and_a_factory_may_run_again() -> None:
    def factory(limits: str) -> Any:
        @rate_limit(limits)
        def view() -> None: ...

        return view

    first, again, other = factory("1/minute"), factory("1/minute"), factory("5/minute")
    assert first.limiter.name == again.limiter.name
    assert f"{first.limiter.name}#2" == other.limiter.name
    assert ("view", "view-2") == (first.limiter.title, other.limiter.title)


def test_two_limits_around_one_function_are_charged_apart() -> None:
    @rate_limit("10/minute")
    @rate_limit("10/minute")
    def greet() -> None: ...

    greet()
    assert [1, 1] == [limiter.snapshot().allowed for limiter in PROCESS_REGISTRY.limiters.values()]


def test_functions_of_one_name_are_listed_as_one_policy() -> None:
    for _ in range(2):
        rate_limit("10/minute", name="api")(lambda: None)()
    assert 2 == PROCESS_REGISTRY.limiters["api"].snapshot().allowed


def test_a_key_of_any_length_takes_a_bounded_amount_of_memory() -> None:
    storage = MemoryStorage(clock=FakeClock())
    demo = limiter("1/minute", storage=storage)
    assert [True, False] == [demo.try_acquire("x" * 1_000_000).allowed for _ in range(2)]
    assert max(map(len, storage._buckets)) < 200


def test_a_look_is_not_counted() -> None:
    demo = limiter()
    demo.try_acquire(cost=0)
    assert 0 == demo.snapshot().allowed


def test_a_refusal_can_be_sent_to_another_process() -> None:
    with pytest.raises(RateLimited) as caught:
        limiter().acquire(cost=3)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(caught.value), caught.value.decision) == (str(copy), copy.decision)


def test_a_decorator_without_its_limit_is_told_so_when_the_function_is_called() -> None:
    @rate_limit
    def greet() -> None: ...

    with pytest.raises(TypeError, match=r"write @rate_limit\('10/second'\)"):
        greet()  # type: ignore[call-arg]


@pytest.mark.parametrize("mistake", [lambda user: None, 100])
def test_a_decorator_without_its_limit_is_refused_when_it_is_written(mistake: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="write"):
        rate_limit(mistake)(lambda: None)


def test_an_empty_variable_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESILIENCE_STORAGE_URI", "")
    assert "memory://" == RateLimiter("1/second", name="demo").snapshot().storage


def test_the_first_storage_that_is_offered_is_used_outside_of_applications() -> None:
    first, second = MemoryStorage(clock=FakeClock()), MemoryStorage(clock=FakeClock())
    PROCESS.adopt(first)
    PROCESS.adopt(second)
    RateLimiter("1/second", name="demo").acquire()
    assert (1, 0) == (len(first), len(second))


def test_outside_an_application_the_environment_names_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESILIENCE_STORAGE_URI", "redis://127.0.0.1:1/0")
    assert "redis://127.0.0.1:1/0" == RateLimiter("1/second", name="demo").snapshot().storage
    PROCESS.forget()
    monkeypatch.delenv("RESILIENCE_STORAGE_URI")
    assert "memory://" == RateLimiter("1/second", name="demo").snapshot().storage


def test_two_limiters_of_one_name_share_their_buckets() -> None:
    one, other = RateLimiter("1/minute", name="shared"), RateLimiter("1/minute", name="shared")
    assert one.try_acquire().allowed
    assert not other.try_acquire().allowed


def test_a_changed_rate_keeps_what_callers_have_left() -> None:
    storage = MemoryStorage(clock=FakeClock())
    limiter("10/minute", storage=storage).acquire(cost=8)
    assert 1 == limiter("5/minute", storage=storage).acquire().remaining


def test_a_coroutine_function_is_refused_when_it_is_decorated() -> None:
    async def later() -> None: ...

    with pytest.raises(TypeError, match=r"later is a coroutine function: call limiter\.acquire\(\) in it"):
        rate_limit("1/second")(later)


def test_an_async_generator_function_is_refused_when_it_is_decorated() -> None:
    async def each() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"each is an async generator function: call limiter\.acquire\(\) in it"):
        rate_limit("1/second")(each)


def test_a_shared_limit_is_one_bucket_for_many_functions_and_listed_once() -> None:
    api = shared_limit("2/minute", name="api", key="all")
    calls = [api(lambda number=number: number) for number in range(3)]
    assert [0, 1] == [call() for call in calls[:2]]
    with pytest.raises(RateLimited):
        calls[2]()
    assert ({"api": api}, api) == (PROCESS_REGISTRY.limiters, calls[0].limiter)  # type: ignore[attr-defined]


def test_a_shared_limit_that_is_made_again_goes_on_counting() -> None:
    for _ in range(2):
        shared_limit("9/minute", name="api").acquire()
    assert 2 == PROCESS_REGISTRY.limiters["api"].snapshot().allowed


def test_a_decorator_may_be_told_the_limits_for_each_call() -> None:
    plans = {"free": "1/minute", "paying": "3/minute"}
    plan = ["paying"]

    @rate_limit(lambda: plans[plan[0]], key=lambda: plan[0])
    def view() -> str:
        return plan[0]

    assert ["paying"] * 3 == [view() for _ in range(3)]
    plan[0] = "free"
    view()
    with pytest.raises(RateLimited):
        view()


def test_a_dynamic_limit_of_a_factory_is_the_same_policy_every_time() -> None:
    def factory() -> Any:
        return rate_limit(lambda: "1/minute")(view)

    def view() -> None: ...

    assert factory().limiter.name == factory().limiter.name


def test_the_storage_of_each_application_is_found_anew() -> None:
    demo = RateLimiter("1/minute", name="demo")
    first, second = MemoryStorage(clock=FakeClock()), MemoryStorage(clock=FakeClock())
    answers = []
    for storage in (first, second, first, second):
        with surrounded_by(Surroundings(storage)):
            answers.append(demo.try_acquire().allowed)
    assert [True, True, False, False] == answers


# Faults of other limiters.


def test_calls_that_are_refused_cost_nothing() -> None:
    clock = FakeClock()
    demo = limiter("5/minute", storage=MemoryStorage(clock=clock))
    assert 5 == sum(demo.try_acquire().allowed for _ in range(20))
    clock.advance(12)
    assert [True, False] == [demo.try_acquire().allowed for _ in range(2)]


def test_a_burst_that_refills_within_a_second_is_not_refilled_by_asking() -> None:
    demo = limiter("100/second", burst=40)
    assert 40 == sum(demo.try_acquire().allowed for _ in range(2_000))


def test_no_fraction_of_a_token_is_lost() -> None:
    clock = FakeClock()
    demo = limiter("30/minute", burst=10, storage=MemoryStorage(clock=clock))
    tokens = []
    for _ in range(5):
        quota = demo.acquire().quotas[0]
        tokens.append(quota.level / quota.limit.unit)
        clock.advance(1)
    assert [9.0, 8.5, 8.0, 7.5, 7.0] == tokens


def test_a_limit_that_would_allow_a_call_is_not_charged_when_another_refuses() -> None:
    storage = MemoryStorage(clock=FakeClock())
    for demo in (
        limiter("10/minute; 1/hour", key="all", storage=storage),
        all_of(limiter("10/minute", name="a", storage=storage), limiter("1/hour", name="b", storage=storage)),
    ):
        assert 1 == sum(demo.try_acquire().allowed for _ in range(6))
        assert [9, 0] == [quota.remaining for quota in demo.peek().quotas]


@pytest.mark.parametrize("options", [{}, {"wait": 5.0}, {"deduct_when": bool}])
def test_who_is_allowed_is_not_told_to_come_back_later(options: Any) -> None:
    assert 0.0 == limiter(clock=FakeClock(), **options).acquire().retry_after


def test_no_number_is_negative_for_who_had_to_wait_or_owes() -> None:
    demo = limiter("1/second", wait=60.0, clock=FakeClock())
    decisions = [demo.acquire() for _ in range(5)]
    assert [0] * 5 == [decision.remaining for decision in decisions]
    assert all(quota.reset_after > 0 for decision in decisions for quota in decision.quotas)


def test_a_storage_that_does_not_answer_is_said_to_be_unavailable_by_every_verb() -> None:
    class Down(MemoryStorage):
        def take(self, charges: Any) -> Any:
            raise StorageUnavailable("no answer in 0.05 s")

        give_back = take  # type: ignore[assignment]
        taker = joint_taker = None  # type: ignore[assignment]

    demo = limiter(storage=Down())
    for verb in (demo.try_acquire, demo.acquire, demo.attempt, demo.peek, demo.refund, demo.reset, demo(lambda: None)):
        with pytest.raises(StorageUnavailable):
            verb()
