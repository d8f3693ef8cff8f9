"""Rate limiters as objects and as decorators, outside of any web framework."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import limits as limits_package
import pytest

from resilience import Limit, MemoryStorage, RateLimited, RateLimiter, Rejected, rate_limit
from resilience.registry import PROCESS_REGISTRY
from resilience.scope import PROCESS
from resilience.testing import FakeClock


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
        limiter(cost=3).acquire()
    assert caught.value.retry_after is None


@pytest.mark.parametrize(
    ("notation", "expected"),
    [
        ("10/second", (Limit(10, 1),)),
        ("10 per 5 minutes", (Limit(10, 300),)),
        ("10/second; 1000/hour", (Limit(10, 1), Limit(1_000, 3_600))),
        (Limit(3, 0.5, 9), (Limit(3, 0.5, 9),)),
        (limits_package.parse("7/day"), (Limit(7, 86_400),)),
        ([Limit(1, 1), limits_package.parse("7/day")], (Limit(1, 1), Limit(7, 86_400))),
    ],
)
def test_limits_are_written_as_people_write_them(notation: Any, expected: tuple[Limit, ...]) -> None:
    assert expected == limiter(notation).limits


def test_a_burst_replaces_every_bucket_size() -> None:
    assert (Limit(10, 1, 50), Limit(100, 60, 50)) == limiter("10/second; 100/minute", burst=50).limits


@pytest.mark.parametrize(
    ("notation", "reason"),
    [
        ("lots", "'lots' is not a rate limit: write"),
        ("10/second; 20/second", "two limits of the same period"),
        ([], "names no limit"),
        ([5], "5 is not a limit"),
        ("0/second", "amount=0"),
    ],
)
def test_what_is_no_limit_is_refused_when_it_is_written(notation: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        limiter(notation)


def test_a_limiter_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        limiter(name="")


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
        limiter(cost=3).acquire()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(caught.value), caught.value.decision) == (str(copy), copy.decision)


@pytest.mark.parametrize("mistake", [lambda: None, 100])
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

    with pytest.raises(TypeError, match=r"call limiter\.acquire\(\) in it"):
        rate_limit("1/second")(later)
