"""The strategy "token-bucket" of the `limits` package, by the package's own interface, on every storage that both know."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import limits
import pytest
import redis
from limits import RateLimitItemPerDay, RateLimitItemPerHour, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.errors import ConfigurationError, StorageError
from limits.storage import MemoryStorage, RedisStorage, Storage, storage_from_string
from limits.strategies import STRATEGIES, FixedWindowRateLimiter, MovingWindowRateLimiter, RateLimiter

from resilience.adapters import limits_strategy
from resilience.adapters.limits_strategy import SharedMemory, TokenBucketRateLimiter
from resilience.core.limiter import Decision
from resilience.errors import StorageUnavailable
from tests.support.limit_storages import KINDS, SERVERS, address_of
from tests.support.redis_server import RedisServer, running_redis, server_programs

Open = Callable[[str], Storage]

_fresh = count()
# Long enough for a machine that stands still, and nothing of it is ever waited for.
PATIENT: dict[str, float] = {"socket_timeout": 10.0}


def opened(kind: str) -> Storage:
    options = PATIENT if kind in SERVERS else {}
    storage = storage_from_string(address_of(kind), **options)
    assert isinstance(storage, Storage)
    return storage


@pytest.fixture(params=KINDS)
def strategy(request: pytest.FixtureRequest) -> TokenBucketRateLimiter:
    return TokenBucketRateLimiter(opened(request.param))


@pytest.fixture
def key() -> str:
    return f"key{next(_fresh)}"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that the test may end."""
    programs = server_programs()
    if not programs:
        pytest.skip("no Redis-compatible server here")
    with running_redis(next(iter(programs.values()))) as running:
        yield running


def test_importing_the_library_registers_it_and_imports_no_flask() -> None:
    program = (
        "import sys, resilience, limits.strategies as package;"
        "print('token-bucket' in package.STRATEGIES, {'flask', 'flask_limiter', 'gevent'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "True set()\n" == done.stdout


def test_it_is_one_of_the_strategies_and_has_their_signatures() -> None:
    strategy = STRATEGIES["token-bucket"]
    assert issubclass(strategy, RateLimiter)
    for name in ("hit", "test", "get_window_stats", "clear"):
        theirs = inspect.signature(getattr(RateLimiter, name)).parameters.values()
        ours = inspect.signature(getattr(strategy, name)).parameters.values()
        assert [(each.name, each.kind, each.default) for each in theirs] == [
            (each.name, each.kind, each.default) for each in ours
        ]


def test_a_burst_is_admitted_and_then_one_as_each_token_comes(strategy: TokenBucketRateLimiter, key: str) -> None:
    item = RateLimitItemPerHour(4)
    assert [True] * 4 + [False] * 3 == [strategy.hit(item, key) for _ in range(7)]
    assert strategy.hit(item, f"{key} of another")
    quick = RateLimitItemPerSecond(5)
    assert [True] * 5 == [strategy.hit(quick, key) for _ in range(5)]
    time.sleep(0.25)
    assert strategy.hit(quick, key)


def test_a_cost_is_taken_whole_or_not_at_all(strategy: TokenBucketRateLimiter, key: str) -> None:
    item = RateLimitItemPerDay(10)
    assert [True, False, True, True] == [strategy.hit(item, key, cost=cost) for cost in (7, 4, 3, 0)]
    assert not strategy.hit(item, f"{key} of another", cost=11)


def test_a_test_takes_nothing_and_says_what_a_hit_would(strategy: TokenBucketRateLimiter, key: str) -> None:
    item = RateLimitItemPerDay(3)
    assert [True, True, True, False] == [strategy.test(item, key, cost=cost) for cost in (1, 3, 3, 4)]
    assert strategy.hit(item, key, cost=2)
    assert [True, False] == [strategy.test(item, key, cost=cost) for cost in (1, 2)]
    assert strategy.hit(item, key)
    assert not strategy.test(item, key)


def test_stats_say_what_is_left_and_when_it_is_full_again_or_holds_what_was_refused(
    strategy: TokenBucketRateLimiter, key: str
) -> None:
    item = RateLimitItemPerHour(10)  # a token in six minutes
    now = time.time()
    rows = []
    for cost in (0, 1, 6, 5, 3):
        strategy.hit(item, key, cost=cost)
        for _ in range(2):  # what a hit has learnt, and what a look says
            reset, remaining = strategy.get_window_stats(item, key)
            rows.append((remaining, round((reset - now) / 60)))
    # The first answer after the refusal of five knows of it: two more are needed.
    assert [(10, 0), (10, 0), (9, 6), (9, 6), (3, 42), (3, 42)] == rows[:6]
    assert [(3, 12), (3, 42)] == rows[6:8]
    assert [(0, 6), (0, 6)] == rows[8:], "of an empty bucket: its next token"


def test_clearing_fills_the_bucket_and_no_other(strategy: TokenBucketRateLimiter, key: str) -> None:
    item = RateLimitItemPerDay(2)
    for identifiers in ((key,), (key, "more")):
        strategy.hit(item, *identifiers, cost=2)
    strategy.clear(item, key)
    assert (2, 0) == tuple(strategy.get_window_stats(item, *each).remaining for each in ((key,), (key, "more")))
    assert strategy.hit(item, key, cost=2)


def test_limits_of_other_amounts_periods_and_namespaces_have_buckets_of_their_own(
    strategy: TokenBucketRateLimiter, key: str
) -> None:
    items = [
        RateLimitItemPerDay(1),
        RateLimitItemPerDay(2),
        RateLimitItemPerHour(1),
        RateLimitItemPerDay(1, 2),
        RateLimitItemPerDay(1, namespace="other"),
    ]
    assert [True] * 5 == [strategy.hit(item, key, cost=item.amount) for item in items]
    assert [False] * 5 == [strategy.hit(item, key) for item in items]


def test_equal_limits_share_their_buckets(strategy: TokenBucketRateLimiter, key: str) -> None:
    assert [True, True, False] == [strategy.hit(limits.parse("2/day"), key) for _ in range(3)]


def test_identifiers_of_any_kind_are_kept_apart(strategy: TokenBucketRateLimiter, key: str) -> None:
    item = RateLimitItemPerDay(1)
    several: list[tuple[object, ...]] = [
        (key, "a/b", "c"), (key, "a", "b/c"), (key, "a%2Fb", "c"), (key, 1), (key, 1.5), (key, b"bytes"), (key,), (key, ""),
    ]  # fmt: skip
    for turn in (True, False):
        assert [turn] * len(several) == [strategy.hit(item, *each) for each in several]  # type: ignore[arg-type]
    assert not strategy.hit(item, key, "1"), "a number is the same as its text, like in the package's own keys"


@pytest.mark.parametrize("cost", [-1, 1.0, True, "1", None])
def test_a_cost_that_is_no_whole_number_is_refused(strategy: TokenBucketRateLimiter, key: str, cost: object) -> None:
    item = RateLimitItemPerDay(1)
    for ask in (strategy.hit, strategy.test):
        with pytest.raises(ValueError, match="a cost is a whole number from 0"):
            ask(item, key, cost=cost)  # type: ignore[arg-type]
    assert strategy.hit(item, key)


def test_a_limit_of_nothing_admits_nothing(strategy: TokenBucketRateLimiter, key: str) -> None:
    item = limits.parse("0/minute")
    assert (False, False) == (strategy.hit(item, key), strategy.test(item, key))
    reset, remaining = strategy.get_window_stats(item, key)
    assert (0, True) == (remaining, 59 < reset - time.time() <= 60)
    strategy.clear(item, key)
    assert not strategy.hit(item, key)


def test_a_crowd_of_threads_is_given_exactly_the_burst(strategy: TokenBucketRateLimiter, key: str) -> None:
    item = RateLimitItemPerDay(50)
    answers: list[bool] = []
    crowd = [
        threading.Thread(target=lambda: answers.extend(strategy.hit(item, key) for _ in range(25))) for _ in range(8)
    ]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert (200, 50) == (len(answers), sum(answers))


def test_only_storages_of_the_package_are_taken() -> None:
    with pytest.raises(AssertionError):
        TokenBucketRateLimiter("memory://")  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        TokenBucketRateLimiter(storage_from_string("async+memory://"))


def test_a_storage_that_is_not_known_is_refused_like_by_the_other_strategies() -> None:
    class Elsewhere(Storage):
        base_exceptions = ValueError

        def incr(self, key: str, expiry: int, amount: int = 1) -> int:
            return 0

        def get(self, key: str) -> int:
            return 0

        def get_expiry(self, key: str) -> float:
            return 0

        def check(self) -> bool:
            return True

        def reset(self) -> int | None:
            return None

        def clear(self, key: str) -> None:
            pass

    with pytest.raises(NotImplementedError, match="use memory, shm or a Redis-compatible server"):
        TokenBucketRateLimiter(Elsewhere())


# In memory


def test_strategies_on_one_storage_share_its_buckets_and_others_do_not(key: str) -> None:
    storage, item = MemoryStorage(), RateLimitItemPerDay(1)
    assert TokenBucketRateLimiter(storage).hit(item, key)
    assert not TokenBucketRateLimiter(storage).hit(item, key)
    assert TokenBucketRateLimiter(MemoryStorage()).hit(item, key)


def test_resetting_the_packages_storage_fills_all_buckets(key: str) -> None:
    storage, item = MemoryStorage(), RateLimitItemPerDay(1)
    strategy = TokenBucketRateLimiter(storage)
    for _ in range(2):
        assert [True, False] == [strategy.hit(item, key) for _ in range(2)]
        storage.reset()


def test_the_packages_own_strategies_work_on_the_same_storage(key: str) -> None:
    storage, item = MemoryStorage(), RateLimitItemPerDay(2)
    strategies = [kind(storage) for kind in (TokenBucketRateLimiter, FixedWindowRateLimiter, MovingWindowRateLimiter)]
    assert [True, True, False] * 3 == [strategy.hit(item, key) for strategy in strategies for _ in range(3)]


def test_a_storage_that_is_gone_takes_its_buckets_with_it() -> None:
    storage = MemoryStorage()
    storage.timer.join()
    strategy = TokenBucketRateLimiter(storage)
    gone = weakref.ref(strategy._home.storage)
    del storage, strategy
    gc.collect()
    assert gone() is None


def test_limits_made_up_for_every_caller_take_a_bounded_amount_of_memory(key: str) -> None:
    strategy = TokenBucketRateLimiter(MemoryStorage())
    for amount in range(1, 3_000):
        assert strategy.hit(RateLimitItemPerDay(amount), key)
    assert len(strategy._home.policies) <= 1_024


# Shared memory


def test_shared_memory_is_an_address_of_the_package(key: str) -> None:
    first, second = (TokenBucketRateLimiter(opened("shm")) for _ in range(2))
    assert isinstance(first.storage, SharedMemory)
    assert [True, False] == [strategy.hit(RateLimitItemPerDay(1), key) for strategy in (first, second)]
    assert first.storage.check()


def test_shared_memory_says_what_it_cannot_do(key: str) -> None:
    storage = opened("shm")
    with pytest.raises(NotImplementedError, match='choose strategy="token-bucket"'):
        FixedWindowRateLimiter(storage).hit(RateLimitItemPerDay(1), key)
    for ask in (storage.get, storage.get_expiry, storage.clear):
        with pytest.raises(NotImplementedError, match='choose strategy="token-bucket"'):
            ask(key)
    with pytest.raises(NotImplementedError, match="is shared with others"):
        storage.reset()
    with pytest.raises(ConfigurationError, match="'size'"):
        storage_from_string("shm://", size=3)


def test_shared_memory_that_cannot_be_opened_is_an_error_of_the_storage() -> None:
    storage = storage_from_string("shm:///proc/nowhere/limits")
    assert isinstance(storage, SharedMemory)
    assert not storage.check()
    with pytest.raises(StorageUnavailable):
        TokenBucketRateLimiter(storage).hit(RateLimitItemPerDay(1), "key")
    wrapping = storage_from_string("shm:///proc/nowhere/limits", wrap_exceptions=True)
    with pytest.raises(StorageError):
        TokenBucketRateLimiter(wrapping).hit(RateLimitItemPerDay(1), "key")


# Servers


@pytest.fixture(params=SERVERS)
def distant(request: pytest.FixtureRequest) -> TokenBucketRateLimiter:
    return TokenBucketRateLimiter(opened(request.param))


class Counting:
    """Counts the decisions that are asked of a storage."""

    def __init__(self, strategy: TokenBucketRateLimiter) -> None:
        self.asked = 0
        storage = strategy._home.storage
        make = storage.taker  # type: ignore[attr-defined]

        def taker(*arguments: object) -> Callable[[str, int], Decision]:
            ask = make(*arguments)

            def take(subject: str, cost: int) -> Decision:
                self.asked += 1
                decision: Decision = ask(subject, cost)
                return decision

            return take

        storage.taker = taker  # type: ignore[attr-defined]


def test_a_hit_and_the_stats_after_it_are_one_question(distant: TokenBucketRateLimiter, key: str) -> None:
    counting = Counting(distant)
    item = RateLimitItemPerDay(5)
    for left in (4, 3, 2):
        assert distant.hit(item, key)
        assert left == distant.get_window_stats(item, key).remaining
    assert 3 == counting.asked
    assert 2 == distant.get_window_stats(item, key).remaining
    assert 4 == counting.asked, "what is shown once is forgotten: others may have come meanwhile"


def test_stats_shown_from_memory_know_what_time_has_added(distant: TokenBucketRateLimiter, key: str) -> None:
    item = RateLimitItemPerSecond(20)
    assert distant.hit(item, key, cost=20)
    time.sleep(0.16)
    assert distant.get_window_stats(item, key).remaining >= 3


def test_stats_are_not_shown_from_memory_for_long(
    distant: TokenBucketRateLimiter, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(distant)
    item = RateLimitItemPerDay(5)
    distant.hit(item, key)
    monkeypatch.setattr(limits_strategy, "_LONGEST_REMEMBERED", -1)
    assert 4 == distant.get_window_stats(item, key).remaining
    assert 2 == counting.asked


def test_what_a_thread_was_shown_is_not_shown_to_another(distant: TokenBucketRateLimiter, key: str) -> None:
    counting = Counting(distant)
    item = RateLimitItemPerDay(5)
    distant.hit(item, key)
    thread = threading.Thread(target=distant.get_window_stats, args=(item, key))
    thread.start()
    thread.join()
    assert 2 == counting.asked


def test_hits_whose_stats_nobody_asks_for_take_a_bounded_amount_of_memory(
    distant: TokenBucketRateLimiter, key: str
) -> None:
    for index in range(100):
        distant.hit(RateLimitItemPerDay(5), key, str(index))
    assert len(distant._shown.__dict__) <= 16


def test_what_one_takes_is_gone_for_all_and_what_one_clears_is_there_again(key: str) -> None:
    item = RateLimitItemPerDay(2)
    for kind in SERVERS:
        first, second = (TokenBucketRateLimiter(opened(kind)) for _ in range(2))
        assert [True, True, False] == [strategy.hit(item, key) for strategy in (first, second, first)]
        second.clear(item, key)
        assert second.hit(item, key)


def test_resetting_a_servers_storage_removes_its_buckets_too(key: str, server: RedisServer) -> None:
    """`reset` deletes what begins with the storage's prefix; other services of the server keep theirs."""
    item = RateLimitItemPerDay(1)
    storages = [storage_from_string(server.uri, key_prefix=prefix) for prefix in ("ONE", "OTHER")]
    strategies = [TokenBucketRateLimiter(storage) for storage in storages]
    assert [True, True] == [strategy.hit(item, key) for strategy in strategies]
    assert 1 == storages[0].reset()
    for strategy in strategies:
        strategy._home.storage.close()  # as in another process: nobody here remembers having been refused
    assert [True, False] == [strategy.hit(item, key) for strategy in strategies]


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_a_server_that_is_down_is_an_error_of_the_packages_storage(scheme: str, server: RedisServer) -> None:
    uri = server.uri.replace("redis", scheme)
    storage, wrapping = storage_from_string(uri), storage_from_string(uri, wrap_exceptions=True)
    item = RateLimitItemPerDay(9)
    assert TokenBucketRateLimiter(storage).hit(item, "key")
    server.stop()
    assert isinstance(storage, RedisStorage)
    kind = storage.base_exceptions
    assert scheme == kind.__module__.split(".")[0]
    for strategy in (TokenBucketRateLimiter(storage), TokenBucketRateLimiter(wrapping)):
        expected = StorageError if strategy.storage is wrapping else kind
        for ask in (strategy.hit, strategy.test, strategy.get_window_stats, strategy.clear):
            with pytest.raises(expected):
                ask(item, "key")
    server.start()
    assert TokenBucketRateLimiter(storage).hit(item, "key")


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ("redis://127.0.0.1:1", {}, "redis://127.0.0.1:1/0"),
        ("redis://[::1]:1/3", {}, "redis://[::1]:1/3"),
        ("redis://me:p%40ss@127.0.0.1:1/2", {}, "redis://me:p%40ss@127.0.0.1:1/2"),
        ("redis://127.0.0.1:1", {"password": "p@ss"}, "redis://:p%40ss@127.0.0.1:1/0"),
        ("valkey://:secret@127.0.0.1:1", {}, "redis://:secret@127.0.0.1:1/0"),
        ("redis+unix:///run/redis%20here.sock?db=4", {}, "redis+unix:///run/redis%20here.sock?db=4"),
        ("redis+unix://me:secret@/run/redis.sock", {}, "redis+unix://me:secret@/run/redis.sock?db=0"),
        (
            "rediss://127.0.0.1:1/0?ssl_cert_reqs=none&ssl_ca_certs=/etc/own.pem",
            {},
            "rediss://127.0.0.1:1/0?ssl_cert_reqs=none&ssl_ca_certs=%2Fetc%2Fown.pem",
        ),
        (
            "redis+sentinel://127.0.0.1:1,127.0.0.1:2/mine",
            {"password": "secret"},
            "redis+sentinel://:secret@127.0.0.1:1,127.0.0.1:2/mine/0",
        ),
    ],
)
def test_the_address_of_a_storage_is_found_again(given: str, options: dict[str, str], expected: str) -> None:
    storage = storage_from_string(given, **options)
    assert isinstance(storage, RedisStorage)
    assert (expected, 0.05) == limits_strategy._server_of(storage)


def test_a_timeout_given_to_the_storage_is_that_of_its_buckets() -> None:
    storage = storage_from_string("redis://127.0.0.1:1", socket_timeout=0.25)
    assert isinstance(storage, RedisStorage)
    assert 0.25 == limits_strategy._server_of(storage).timeout


def test_credentials_that_cannot_be_written_down_are_refused() -> None:
    class Provider(redis.CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            return "me", "secret"

    storage = storage_from_string("redis://127.0.0.1:1", credential_provider=Provider())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="write user and password into the address"):
        TokenBucketRateLimiter(storage)


def test_who_was_refused_is_refused_again_without_asking(key: str, server: RedisServer) -> None:
    """An attacker costs no round trip here either."""
    strategy = TokenBucketRateLimiter(storage_from_string(server.uri, **PATIENT))
    item = RateLimitItemPerDay(1)
    assert [True, False] == [strategy.hit(item, key) for _ in range(2)]
    client = redis.Redis.from_url(server.uri)
    client.config_resetstat()
    assert not any(strategy.hit(item, key) for _ in range(50))
    assert "cmdstat_evalsha" not in client.info("commandstats")
    client.close()


def test_minutes_are_minutes(strategy: TokenBucketRateLimiter, key: str) -> None:
    item = RateLimitItemPerMinute(60, 2)  # a token in two seconds
    strategy.hit(item, key, cost=60)
    reset, _ = strategy.get_window_stats(item, key)
    assert 1.0 < reset - time.time() <= 2.0


def test_what_a_greenlet_was_shown_is_not_shown_to_another(server: RedisServer) -> None:
    program = """
    from gevent import monkey; monkey.patch_all()
    import sys, gevent, resilience, limits
    from limits.storage import storage_from_string
    from limits.strategies import STRATEGIES
    strategy = STRATEGIES["token-bucket"](storage_from_string(sys.argv[1], socket_timeout=10.0))
    item = limits.parse("9/day")
    strategy.hit(item, "another")
    def one(turn):
        strategy.hit(item, "key")
        gevent.sleep(0.05 * (2 - turn))
        return strategy.get_window_stats(item, "key").remaining
    greenlets = [gevent.spawn(one, turn) for turn in range(2)]
    gevent.joinall(greenlets, raise_error=True)
    print(*(greenlet.value for greenlet in greenlets))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), server.uri]
    folder = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=folder)
    assert "8 7\n" == done.stdout
