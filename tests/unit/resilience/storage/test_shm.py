"""What only shared memory promises: it is shared, bounded, remembers the limited, and its file is looked after."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from resilience.core.limiter import Bucket, Charge, Decision, Limit, Refund, decide, give_back
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.ports import QuickStorage
from resilience.storage import shared_file, shm
from resilience.storage.mutex import Locks, RecordLocks, RobustMutexes
from resilience.storage.shm import SharedMemoryStorage
from resilience.testing import FakeClock
from tests.support.examples import many

LIMIT = Limit(1, 60, 2)
Opener = Callable[..., SharedMemoryStorage]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=[RobustMutexes, RecordLocks])
def opener(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Opener:
    """Opens a storage on the one file of the test, as often as it is called."""
    kind: type[Locks] = request.param

    def open_one(query: str = "?buckets=64", clock: FakeClock = clock) -> SharedMemoryStorage:
        return SharedMemoryStorage(f"shm://{tmp_path}/limits{query}", clock=clock, _kind=kind)

    return open_one


@pytest.fixture
def storage(opener: Opener) -> SharedMemoryStorage:
    return opener()


def charge(subject: str = "s", cost: int = 1, scope: str = "scope", limit: Limit = LIMIT) -> Charge:
    return Charge(scope, subject, limit, cost)


limits = some.builds(
    Limit,
    amount=some.integers(1, 1_000_000),
    period=some.sampled_from([0.001, 1, 7, 60, 86_400, 366 * 86_400]),
    burst=some.integers(1, 280),
)
walks = some.lists(
    some.tuples(
        some.integers(-2_000_000, 30_000_000),
        some.sampled_from(["alice", "b\ud800se {tag} *:\n", "x" * 500]),
        some.integers(0, 3),
        some.lists(some.integers(0, 20), min_size=1, max_size=3),
        some.integers(-(10**9), 10**9),
        some.sampled_from(["take", "taker", "give back", "reset", "reopen"]),
    ),
    max_size=40,
)
_fresh = itertools.count()


@settings(max_examples=many(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some.lists(limits, min_size=3, max_size=6), walks)
def test_every_walk_is_decided_as_the_pure_core_decides_it(
    opener: Opener, choices: list[Limit], walk: list[tuple[int, str, int, list[int], int, str]]
) -> None:
    """Times also go backwards, rates change in mid-flight, debts are taken on, several limits are decided together."""
    clock = FakeClock(1_700_000_000)
    storage, quick = opener("?buckets=512", clock=clock), opener("?buckets=512", clock=clock)
    namespace = f"walk{next(_fresh)}"
    oracle: dict[tuple[str, str], Bucket | None] = {}
    for elapsed, subject, first, costs, floor, what in walk:
        clock.advance(elapsed / 1_000_000)
        charges = [
            Charge(f"{namespace}:{index}", subject, choices[(first + index) % len(choices)], cost, floor)
            for index, cost in enumerate(costs[: 1 if what == "taker" else 3])
        ]
        keys = [(charge.scope, charge.subject) for charge in charges]
        buckets = [oracle.get(key) for key in keys]
        if what in ("give back", "reset"):
            refunds = [Refund(*charge[:3], charge.cost if what == "give back" else None) for charge in charges]
            storage.give_back(refunds)
            given_back = map(give_back, refunds, buckets, itertools.repeat(clock.microseconds()))
            oracle.update(zip(keys, given_back, strict=True))
            continue
        if what == "reopen":
            storage.close()
        expected, stored = decide(charges, buckets, clock.microseconds())
        if stored is not None:  # a charge of 0 looks, it writes nothing but the time that went backwards
            written = zip(keys, charges, stored, strict=True)
            oracle |= {key: bucket for key, charge, bucket in written if charge.cost or not expected.allowed}
        (scope, _, limit, cost, floor, _), *_ = charges
        decided = quick.taker(scope, limit, floor)(subject, cost) if what == "taker" else storage.take(charges)
        assert expected == decided
        assert oracle_size(oracle) == len(storage)
        for key in keys:
            assert stored_bucket(storage, *key) == oracle.get(key)
    for key in oracle:
        storage.give_back([Refund(*key, LIMIT, None)])


def oracle_size(oracle: dict[tuple[str, str], Bucket | None]) -> int:
    return sum(bucket is not None for bucket in oracle.values())


def stored_bucket(storage: SharedMemoryStorage, scope: str, subject: str) -> Bucket | None:
    opened = storage._opened or storage._open()
    _, row, key = opened.home(scope, subject)
    return opened.table.read(row, opened.table.find(row, key))


@settings(max_examples=many(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some.lists(some.lists(some.tuples(some.integers(0, 39), some.integers(0, 2)), min_size=1, max_size=4)))
def test_when_buckets_displace_each_other_none_gets_the_level_of_another(
    opener: Opener, walk: list[list[tuple[int, int]]]
) -> None:
    """One row for forty subjects. Each has a limit of its own, so that a bucket in the wrong place would show."""
    storage = opener("?buckets=16")
    storage.path.unlink(missing_ok=True)
    own = [Limit(1, 3_600, 2 + index) for index in range(40)]
    spent = [0] * 40
    for step in walk:
        chosen = dict(step)
        decision = storage.take([charge(str(index), cost, limit=own[index]) for index, cost in chosen.items()])
        for index, quota in zip(chosen, decision.quotas, strict=True):
            if quota.level == own[index].capacity - quota.cost * own[index].unit * decision.allowed:
                spent[index] = 0  # new, or forgotten in between
            if decision.allowed:
                spent[index] += quota.cost
            assert own[index].capacity - spent[index] * own[index].unit == quota.level
    assert len(storage) <= 16


def test_a_charge_that_displaces_the_bucket_of_another_charge_of_the_decision_does_not_take_its_place(
    opener: Opener,
) -> None:
    storage, limit = opener("?buckets=16"), Limit(1, 3_600, 100)
    for index in range(16):
        storage.take([charge(str(index), 50 if index else 1, limit=limit)])
    assert storage.take([charge("new", 60, limit=limit), charge("0", 70, limit=limit)]).allowed
    looks = [charge(name, 0, limit=limit) for name in ("new", "0")]
    assert [40, 29] == [quota.remaining for quota in storage.take(looks).quotas]


def test_storages_of_one_address_share_and_others_do_not(opener: Opener, tmp_path: Path, clock: FakeClock) -> None:
    first, second = opener(), opener()
    other = SharedMemoryStorage(f"shm://{tmp_path}/other?buckets=16", clock=clock)
    assert [1, 0, 1] == [storage.take([charge()]).remaining for storage in (first, second, other)]
    assert not first.take([charge()]).allowed
    second.give_back([Refund("scope", "s", LIMIT, 1)])
    assert first.take([charge()]).allowed


def test_scopes_and_subjects_are_not_confused(storage: SharedMemoryStorage) -> None:
    names = [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", ""), ("a:b", "c"), ("a", "b:c"), ("1:", "a"), ("", "1:a")]
    for scope, subject in names:
        assert 1 == storage.take([charge(subject, scope=scope)]).remaining
    assert len(names) == len(storage)


def test_a_denial_and_a_look_write_nothing(storage: SharedMemoryStorage) -> None:
    assert not storage.take([charge(cost=3)]).allowed
    assert storage.take([charge(cost=0)]).allowed
    assert not storage.take([charge(cost=3), charge("t")]).allowed
    assert 0 == len(storage)


def test_after_the_clock_went_backwards_who_is_denied_waits_no_longer_than_told(
    storage: SharedMemoryStorage, clock: FakeClock
) -> None:
    take = storage.taker("scope", LIMIT)
    asks: list[Callable[[], Decision]] = [
        lambda: take("s", 1),
        lambda: storage.take([charge("s"), charge("t", cost=0)]),
    ]
    for ask in asks:
        assert storage.take([charge("s", 2)]).allowed
        clock.advance(-3_600)
        assert (False, 60.0) == ((denied := ask()).allowed, denied.retry_after)
        assert (LIMIT.capacity - 2 * LIMIT.unit, clock.microseconds(), LIMIT.unit) == stored_bucket(
            storage, "scope", "s"
        )
        clock.advance(59)
        assert (False, 1.0) == ((denied := ask()).allowed, denied.retry_after)
        clock.advance(1)
        assert ask().allowed
        storage.give_back([Refund("scope", "s", LIMIT, None)])


def test_a_bucket_that_is_filled_leaves_its_place(storage: SharedMemoryStorage) -> None:
    storage.take([charge(), charge("t", cost=2)])
    assert 2 == len(storage)
    storage.give_back([Refund("scope", "s", LIMIT, None), Refund("scope", "t", LIMIT, 1)])
    assert 1 == len(storage)
    storage.give_back([Refund("scope", "t", LIMIT, 1), Refund("scope", "new", LIMIT, 1)])
    assert 0 == len(storage)


def test_two_refunds_of_one_bucket_are_both_given(storage: SharedMemoryStorage) -> None:
    storage.take([charge(cost=2)])
    storage.give_back([Refund("scope", "s", LIMIT, 1)] * 2)
    assert 0 == len(storage)


def test_naming_one_bucket_twice_is_refused(storage: SharedMemoryStorage) -> None:
    with pytest.raises(ValueError, match="two charges of one decision name the same bucket: add their costs instead"):
        storage.take([charge(), charge()])
    assert storage.take([charge()]).allowed, "no lock was kept"


def test_a_flood_of_keys_neither_grows_the_file_nor_forgets_who_is_limited(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shm, "_REMEMBERED", 100)
    storage = opener("?buckets=64")
    limit = Limit(10, 60)
    limited = [charge(f"limited {index}", 10, limit=limit) for index in range(8)]
    assert all(storage.take([one]).allowed for one in limited)
    before = storage.path.stat()
    take = storage.taker("scope", limit)
    for index in range(3_000):
        assert 9 == take(f"flood {index}", 1).remaining
    after = storage.path.stat()
    assert (before.st_size, before.st_blocks) == (after.st_size, after.st_blocks)
    assert not any(storage.take([one]).allowed for one in limited)
    assert 64 == len(storage)
    assert storage._opened is not None
    assert sum(map(len, storage._opened.homes.values())) <= 100


def test_long_subjects_are_not_remembered_in_the_process(storage: SharedMemoryStorage) -> None:
    long = "x" * 1_000_000
    assert [1, 0] == [storage.take([charge(long)]).remaining for _ in range(2)]
    assert storage._opened is not None
    assert {"scope": {}} == storage._opened.homes


def test_threads_are_never_given_more_than_the_burst(opener: Opener) -> None:
    class YieldingClock(FakeClock):
        """Holds the lock for a moment in which other threads run."""

        def microseconds(self) -> int:
            threading.Event().wait(0.000_01)
            return super().microseconds()

    storage, limit, allowed = opener(clock=YieldingClock()), Limit(1, 3_600, 20), []

    def hammer() -> None:
        take = storage.taker("scope", limit)
        for _ in range(20):
            allowed.append(decided(lambda: take("s", 1)).allowed)  # noqa: PERF401

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (80, 20) == (len(allowed), sum(allowed))


def decided(ask: Callable[[], Decision]) -> Decision:
    """Asks until there is a decision: who holds the lock takes his time here."""
    while True:
        with contextlib.suppress(StorageBusy):
            return ask()


def test_a_closed_storage_gives_back_its_memory_and_may_be_used_again(tmp_path: Path) -> None:
    storage = SharedMemoryStorage(f"shm://{tmp_path}/limits?buckets=16")
    take = storage.taker("scope", LIMIT)
    assert 1 == take("s", 1).remaining
    inode = storage.path.stat().st_ino
    assert 1 == Path("/proc/self/maps").read_text().count(f" {inode} ")
    storage.close()
    assert 0 == Path("/proc/self/maps").read_text().count(f" {inode} ")
    assert 0 == take("s", 1).remaining


def test_a_file_that_was_removed_is_made_again_within_a_second(opener: Opener, clock: FakeClock) -> None:
    first, second = opener(), opener()
    assert [1, 0] == [storage.take([charge()]).remaining for storage in (first, second)]
    first.path.unlink()
    assert not first.take([charge()]).allowed, "nobody has looked yet"
    clock.advance(1)
    first.take([charge()])
    second.take([charge("other"), charge("another")])
    assert [1, 0] == [storage.take([charge()]).remaining for storage in (second, first)]


def test_a_file_that_was_replaced_is_left_for_the_new_one(opener: Opener, clock: FakeClock) -> None:
    first = opener()
    first.take([charge()])
    first.path.unlink()
    second = opener()
    second.take([charge()])
    clock.advance(1.5)
    first.take([charge()])
    assert 0 == first.take([charge()]).remaining
    clock.advance(1.5)
    assert not first.take([charge()]).allowed, "and stays there while it is the same"


def test_nothing_is_opened_before_the_first_decision(tmp_path: Path) -> None:
    storage = SharedMemoryStorage(f"shm://{tmp_path}/gone/limits")
    take = storage.taker("scope", LIMIT)
    for ask in (lambda: take("s", 1), lambda: storage.take([charge(), charge("t")]), lambda: storage.give_back([])):
        with pytest.raises(StorageUnavailable, match="there is no folder"):
            ask()
    (tmp_path / "gone").mkdir()
    assert 1 == take("s", 1).remaining


def test_a_file_of_another_size_is_used_and_said(opener: Opener, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        opener("?buckets=60").take([charge()])
        opener("?buckets=64").take([charge()])
        opener("").take([charge("t")])
        assert [] == caplog.messages
        other = opener("?buckets=65")
        assert 1 == other.take([charge("u")]).remaining
    assert [
        f"{other.uri}: the file holds 64 buckets already, not 65: to change that, stop its users and remove {other.path}"
    ] == caplog.messages


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared_file, "_FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("shm://", "seawall-{}-limits.1"),
        ("shm://?buckets=16", "seawall-{}-limits.1"),
        ("shm://Sign-In_2.x", "seawall-{}-Sign-In_2.x.1"),
        ("shm://name/", "seawall-{}-name.1"),
        ("shm://{folder}/my%20limits?buckets=1", "my limits"),
    ],
)
def test_an_address_names_a_file(folder: Path, uri: str, name: str) -> None:
    storage = SharedMemoryStorage(uri.format(folder=folder))
    assert folder / name.format(os.geteuid()) == storage.path
    assert uri.format(folder=folder) == storage.uri
    assert f"<SharedMemoryStorage: {storage.path}>" == repr(storage)


def test_the_default_holds_65536_buckets(folder: Path) -> None:
    storage = SharedMemoryStorage()
    storage.take([charge()])
    assert 5_513_216 == storage.path.stat().st_size


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("memory://", "names no shared memory: use shm://, shm://name or shm:///absolute/path"),
        ("shm:", "names no shared memory"),
        ("shm:name", "names no shared memory"),
        ("shm://name#1", "names no shared memory"),
        ("shm://.name", "a name is up to 64 letters, digits, dots, dashes and underscores"),
        ("shm://na me", "a name is"),
        ("shm://user@host", "a name is"),
        ("shm://host:1", "a name is"),
        ("shm://nämè", "a name is"),
        ("shm://" + "x" * 65, "a name is"),
        ("shm://name/more", "a path has three slashes, shm:///absolute/path"),
        ("shm://..", "a name is"),
        ("shm:///", "the path is that of a file"),
        ("shm:///tmp/", "the path is that of a file"),
        ("shm:///tmp/%00", "the path is that of a file"),
        ("shm://?bucket=3", "there is no option 'bucket', only buckets"),
        ("shm://?buckets=0", "buckets=0: a whole number from 1 to 16,777,216 is needed"),
        ("shm://?buckets=16777217", "buckets=16777217: a whole number"),
        ("shm://?buckets=", "buckets=: a whole number"),
        ("shm://?buckets=-1", "buckets=-1: a whole number"),
        ("shm://?buckets=²", "buckets=²: a whole number"),
    ],
)
def test_other_addresses_are_refused_with_the_reason(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")) as caught:
        SharedMemoryStorage(uri)
    assert repr(uri) in str(caught.value)


def test_it_is_a_quick_storage(storage: SharedMemoryStorage) -> None:
    assert isinstance(storage, QuickStorage)
    decision: Decision = storage.taker("scope", LIMIT, floor=LIMIT.unit)("s", 1)
    assert (True, LIMIT.unit) == (decision.allowed, decision.quotas[0].level)
    assert not storage.taker("scope", LIMIT, floor=LIMIT.unit)("s", 1).allowed
