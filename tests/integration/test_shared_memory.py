"""Shared memory with real processes: exact together, whole after a kill at any instant, and never waited for without end.

Processes are forked by scripts in a process of their own, never by pytest's. In a script, `start(work)` forks a child that
does `work()` and leaves; `storage(...)` opens a storage on the one file of the test; what is printed is what was seen. The rest
of what scripts begin with is in `tests.support.forked`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest

from tests.support import forked

PRELUDE = (
    forked.PRELUDE
    + """
from resilience.core.limiter import Charge, Limit, Refund
from resilience.storage.shm import SharedMemoryStorage

HOUR = Limit(1, 3600, 100)

def storage(buckets=1024, clock=SYSTEM_CLOCK):
    return SharedMemoryStorage(f"shm://{PATH}?buckets={buckets}", clock=clock, _kind=KIND)

def stripes_of(buckets):
    return buckets._opened.stripes

def charge(subject, cost=1, limit=HOUR, scope="scope"):
    return Charge(scope, subject, limit, cost)

def take(buckets, subject, cost=1, limit=HOUR):
    return buckets.take([charge(subject, cost, limit)])

def lock_of(buckets, subject):
    opened = buckets._opened or buckets._open()
    return opened.home("scope", subject)[0]
"""
)
run = partial(forked.run, PRELUDE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "limits"


both_kinds = pytest.mark.parametrize("kind", ["mutexes", "records"])


@both_kinds
@pytest.mark.parametrize("opened", ["before the fork", "by each"])
def test_four_processes_together_are_given_exactly_the_burst(path: Path, kind: str, opened: str) -> None:
    script = f"""
    buckets = storage()
    if {opened == "before the fork"}:
        take(buckets, "s", cost=0)
    ready, go = os.pipe()
    results, say = os.pipe()
    def hammer():
        os.close(go)
        os.read(ready, 1)  # all begin together: it ends
        quick = buckets.taker("scope", HOUR)
        several = [charge("s"), charge("t", limit=Limit(1, 3600, 100_000))]
        allowed = sum(quick("s", 1).allowed + buckets.take(several).allowed for _ in range(250))
        os.write(say, allowed.to_bytes(4, "big"))
    pids = [start(hammer) for _ in range(4)]
    os.close(go)
    assert [0] * 4 == join(*pids)
    counts = [int.from_bytes(os.read(results, 4), "big") for _ in pids]
    print(json.dumps([sum(counts), take(buckets, "s", cost=0).remaining, all_locks_are_free(buckets)]))
    """
    assert [100, 0, True] == run(script, path, kind)


@both_kinds
def test_threads_of_several_processes_together_are_given_exactly_the_burst(path: Path, kind: str) -> None:
    script = """
    import threading
    sys.setswitchinterval(0.000_01)
    buckets = storage()
    results, say = os.pipe()
    def hammer():
        allowed = []
        quick = buckets.taker("scope", HOUR)
        def one():
            allowed.extend(quick("s", 1).allowed for _ in range(100))
        threads = [threading.Thread(target=one) for _ in range(5)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        os.write(say, bytes([sum(allowed)]))
    assert [0, 0] == join(start(hammer), start(hammer))
    print(json.dumps(sum(os.read(results, 2))))
    """
    assert 100 == run(script, path, kind)


def test_greenlets_of_several_processes_together_are_given_exactly_the_burst(path: Path) -> None:
    script = """
    import gevent
    results, say = os.pipe()
    def hammer():
        buckets, allowed = storage(), []
        def one():
            for _ in range(5):
                allowed.append(take(buckets, "s").allowed)
                gevent.sleep(0)
        gevent.joinall([gevent.spawn(one) for _ in range(200)], raise_error=True)
        os.write(say, bytes([sum(allowed)]))
    assert [0, 0] == join(start(hammer), start(hammer))
    print(json.dumps(sum(os.read(results, 2))))
    """
    assert 100 == run(script, path, patched=True)


def test_processes_that_make_the_file_at_the_same_time_share_one(path: Path) -> None:
    script = """
    ready, go = os.pipe()
    results, say = os.pipe()
    def first():
        os.close(go)
        os.read(ready, 1)
        buckets = storage(65_536)
        take(buckets, "s")
        os.write(say, buckets._opened.identity[1].to_bytes(8, "big"))
    pids = [start(first) for _ in range(8)]
    os.close(go)
    assert [0] * 8 == join(*pids)
    inodes = {os.read(results, 8) for _ in pids}
    print(json.dumps([len(inodes), take(storage(65_536), "s", cost=0).remaining, os.listdir(os.path.dirname(PATH))]))
    """
    assert [1, 92, ["limits"]] == run(script, path)


def test_processes_that_find_the_file_of_an_earlier_boot_share_the_new_one(path: Path) -> None:
    script = """
    from resilience.storage import segment
    real, segment._boot = segment._boot, lambda: b"the boot before".ljust(36)
    take(storage(), "s", cost=50)
    segment._boot = real
    ready, go = os.pipe()
    def first():
        os.close(go)
        os.read(ready, 1)
        take(storage(), "s")
    pids = [start(first) for _ in range(8)]
    os.close(go)
    assert [0] * 8 == join(*pids)
    print(json.dumps([take(storage(), "s", cost=0).remaining, os.listdir(os.path.dirname(PATH))]))
    """
    assert [92, ["limits"]] == run(script, path)


def killed_at_every_step(path: Path, script: str, *, kind: str = "mutexes", buckets: int = 1024) -> list[list[int]]:
    """What `look(buckets)` saw after `work(buckets)` ended at any of its steps, each answer once."""
    steps = f"""
    from resilience.storage import shm, table
    FILES = {{shm.__file__, table.__file__, mutex.__file__}}
    STORAGE = storage({buckets}, FakeClock())
    """
    return forked.killed_at_every_step(PRELUDE, textwrap.dedent(steps) + textwrap.dedent(script), path, kind)


@both_kinds
def test_a_bucket_is_as_before_or_as_after_when_its_worker_is_killed_at_any_step(path: Path, kind: str) -> None:
    script = """
    def prepare(buckets):
        buckets.give_back([Refund("scope", "s", HOUR, None)])
        take(buckets, "s", cost=40)
    def work(buckets):
        take(buckets, "s", cost=10)
    def look(buckets):
        return [take(buckets, "s", cost=0).remaining]
    """
    assert [[50], [60]] == killed_at_every_step(path, script, kind=kind)


def test_a_new_bucket_is_there_or_not_when_its_worker_is_killed_at_any_step(path: Path) -> None:
    script = """
    def prepare(buckets):
        buckets.give_back([Refund("scope", "s", HOUR, None)])
    def work(buckets):
        take(buckets, "s", cost=10)
    def look(buckets):
        return [len(buckets), take(buckets, "s", cost=0).remaining]
    """
    assert [[0, 100], [1, 90]] == killed_at_every_step(path, script)


def test_no_bucket_but_the_displaced_one_is_touched_when_a_worker_is_killed_at_any_step(path: Path) -> None:
    """Sixteen buckets fill the one row, of which `15`, with a single token taken, is the nearest to full."""
    script = """
    names = [*map(str, range(16)), "s"]
    def prepare(buckets):
        buckets.give_back([Refund("scope", name, HOUR, None) for name in names])
        for index in range(16):
            take(buckets, str(index), cost=16 - index)
    def work(buckets):
        take(buckets, "s", cost=50)
    def look(buckets):
        return [take(buckets, name, cost=0).remaining for name in names]
    """
    others = list(range(84, 99))
    assert [[*others, 99, 100], [*others, 100, 50], [*others, 100, 100]] == killed_at_every_step(
        path, script, buckets=16
    )


def test_a_refund_is_given_or_not_when_its_worker_is_killed_at_any_step(path: Path) -> None:
    script = """
    def prepare(buckets):
        buckets.give_back([Refund("scope", "s", HOUR, None)])
        take(buckets, "s", cost=40)
    def work(buckets):
        buckets.give_back([Refund("scope", "s", HOUR, 40)])
    def look(buckets):
        return [len(buckets), take(buckets, "s", cost=0).remaining]
    """
    assert [[0, 100], [1, 60]] == killed_at_every_step(path, script)


def test_of_several_charges_some_may_be_spent_but_none_is_lost_when_their_worker_is_killed_at_any_step(
    path: Path,
) -> None:
    """Nobody was answered: the bounds hold, one limit may have counted a call that the other has not."""
    script = """
    def prepare(buckets):
        buckets.give_back([Refund("scope", name, HOUR, None) for name in "st"])
        take(buckets, "s", cost=40)
        take(buckets, "t", cost=40)
    def work(buckets):
        buckets.take([charge("s", 10), charge("t", 10)])
    def look(buckets):
        return [take(buckets, name, cost=0).remaining for name in "st"]
    """
    assert [[50, 50], [50, 60], [60, 60]] == killed_at_every_step(path, script)


@both_kinds
def test_workers_killed_at_random_instants_wedge_nothing_and_forget_nobody(path: Path, kind: str) -> None:
    script = """
    buckets, hot = storage(48), Limit(1, 3600, 1_000_000)
    results, say = os.pipe()
    assert take(buckets, "limited", cost=100).allowed
    def hammer():
        quick, flood = buckets.taker("scope", HOUR), 0
        os.write(say, b"1")
        while True:
            take(buckets, "hot", limit=hot)
            quick(str(flood % 200), 1)
            buckets.take([charge("hot", limit=hot), charge(str(-flood % 200))])
            buckets.give_back([Refund("scope", str(flood % 200), HOUR, 1)])
            flood += 1
    deaths, level, slowest, decisions = 0, hot.capacity, 0.0, []
    for _ in range(60):
        pid = start(hammer)
        os.read(results, 1)
        time.sleep(random.random() * 0.01)
        os.kill(pid, signal.SIGKILL)
        assert [-signal.SIGKILL] == join(pid)
        deaths += take_and_leave_all_locks(buckets).count(errno.EOWNERDEAD)
        opened = buckets._opened
        before = time.monotonic()
        decisions.append(take(buckets, "limited").allowed)
        now = take(buckets, "hot", cost=0, limit=hot).quotas[0].level
        slowest = max(slowest, time.monotonic() - before)
        assert now <= level + 60 * hot.refill * 1_000_000, "more than it can have been refilled"
        level = now
        for row in range(opened.table._start, len(opened._memory), 1344):
            places = [place for place in range(16) if opened._memory[row + place]]
            keys = {opened._memory[row + 16 + 16 * place : row + 32 + 16 * place] for place in places}
            assert len(keys) == len(places)
            assert all(opened.table.read(row, place)[0] <= max(hot.capacity, HOUR.capacity) for place in places)
    print(json.dumps([any(decisions), deaths, level < hot.capacity, slowest < 1]))
    """
    limited_was_admitted, deaths, spent, quick = run(script, path, kind)
    assert (False, True, True) == (limited_was_admitted, spent, quick)
    assert kind == "records" or deaths > 0, "not one died with a lock"


STOPPED = """
results, say = os.pipe()
buckets = storage()
take(buckets, "s")
lock = lock_of(buckets, "s")
other = next(str(number) for number in range(10_000) if lock_of(buckets, str(number)) is not lock
             and lock_of(buckets, str(number)) != lock)

holder = stopped_with(buckets, lock)
slept, logged = noted_sleeps(), noted_log()

def asked(ask):
    slept.clear()
    before = time.monotonic()
    try:
        ask()
    except StorageBusy as error:
        return ["busy", sum(slept) <= 0.005, bool(slept), time.monotonic() - before < 0.1]
    return "decided"
"""


@both_kinds
def test_a_worker_stopped_with_a_lock_costs_the_others_a_bounded_wait(path: Path, kind: str) -> None:
    script = """
    first = asked(lambda: take(buckets, "s"))
    later = [asked(ask) for ask in (
        lambda: take(buckets, "s"),
        lambda: buckets.take([charge("s"), charge(other)]),
        lambda: buckets.give_back([Refund("scope", "s", HOUR, 1)]),
    )]
    elsewhere = asked(lambda: take(buckets, other))
    os.kill(holder, signal.SIGCONT)
    ended = join(holder)
    time.sleep(0.3)  # for so long what was seen is taken for granted
    again = asked(lambda: take(buckets, "s"))
    remaining = [take(buckets, name, cost=0).remaining for name in ("s", other)]
    print(json.dumps([first, later, elsewhere, ended, again, remaining, len(logged)]))
    """
    assert [
        ["busy", True, True, True],
        [["busy", True, False, True]] * 3,
        "decided",
        [0],
        "decided",
        [98, 99],
        1,
    ] == run(STOPPED + textwrap.dedent(script), path, kind)


@both_kinds
def test_a_worker_killed_while_stopped_with_a_lock_leaves_it(path: Path, kind: str) -> None:
    script = """
    first = asked(lambda: take(buckets, "s"))
    os.kill(holder, signal.SIGKILL)
    join(holder)
    print(json.dumps([first[0], asked(lambda: take(buckets, "s")), take(buckets, "s", cost=0).remaining]))
    """
    assert ["busy", "decided", 98] == run(STOPPED + textwrap.dedent(script), path, kind)


def test_while_greenlets_wait_for_a_stopped_worker_their_loop_goes_on(path: Path) -> None:
    script = """
    import gevent
    ticks = 0
    def tick():
        global ticks
        while True:
            gevent.sleep(0)
            ticks += 1
    ticker = gevent.spawn(tick)
    gevent.sleep(0)
    before, started = ticks, time.monotonic()
    crowd = [gevent.spawn(asked, lambda: take(buckets, "s")) for _ in range(100)]
    elsewhere = gevent.spawn(asked, lambda: take(buckets, other))
    gevent.joinall([*crowd, elsewhere], raise_error=True)
    took = time.monotonic() - started
    os.kill(holder, signal.SIGCONT)
    join(holder)
    ticker.kill()
    print(json.dumps([
        {greenlet.value[0] for greenlet in crowd} == {"busy"}, elsewhere.value, ticks - before > 5, took < 0.5,
        len(logged),
    ]))
    """
    assert [True, "decided", True, True, 1] == run(STOPPED + textwrap.dedent(script), path, patched=True)


def test_a_greenlet_that_is_given_up_while_it_waits_leaves_no_lock_behind(path: Path) -> None:
    script = """
    import gevent
    mutex.PATIENCE = mutex.LONGEST = 5.0
    def impatient():
        with gevent.Timeout(0.01, False):
            buckets.take([charge(other), charge("s")])
            return "decided"
        return "given up"
    crowd = [gevent.spawn(impatient) for _ in range(20)]
    gevent.joinall(crowd, raise_error=True)
    os.kill(holder, signal.SIGCONT)
    join(holder)
    print(json.dumps([{greenlet.value for greenlet in crowd} == {"given up"}, all_locks_are_free(buckets)]))
    """
    assert [True, True] == run(STOPPED + textwrap.dedent(script), path, patched=True)


@both_kinds
def test_an_exception_out_of_a_signal_handler_at_any_instant_leaves_no_lock_behind(path: Path, kind: str) -> None:
    script = """
    class Interrupted(Exception):
        pass
    inside, hits = False, 0
    def handler(number, frame):
        if inside:
            raise Interrupted
    signal.signal(signal.SIGALRM, handler)
    buckets = storage()
    quick = buckets.taker("scope", HOUR)
    take(buckets, "s")
    several, refunds = [charge("s"), charge("t")], [Refund("scope", name, HOUR, None) for name in "st"]
    for _ in range(3000):
        try:
            inside = True
            signal.setitimer(signal.ITIMER_REAL, random.randint(1, 60) / 1_000_000)
            for _ in range(20):
                quick("s", 1)
                buckets.take(several)
                buckets.give_back(refunds)
            inside = False
        except Interrupted:
            hits += 1
    inside = False
    print(json.dumps([hits > 1000, all_locks_are_free(buckets)]))
    """
    assert [True, True] == run(script, path, kind)


@both_kinds
def test_an_exception_out_of_a_signal_handler_leaves_no_lock_behind_where_others_want_it_as_well(
    path: Path, kind: str
) -> None:
    """Then a lock is had by one of many tries, and the exception may come before that one has been heard to succeed."""
    script = """
    class Interrupted(BaseException):
        pass
    inside, hits, left = False, 0, 0
    def handler(number, frame):
        if inside:
            raise Interrupted
    signal.signal(signal.SIGALRM, handler)
    wide = Limit(1_000_000, 1)
    buckets = storage()
    quick = buckets.taker("scope", wide)
    quick("s", 1)
    stripes, lock = buckets._opened.stripes, lock_of(buckets, "s")
    def contend():
        while True:
            try:
                quick("s", 1)
            except StorageBusy:
                pass
    pid = start(contend)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        try:
            inside = True
            signal.setitimer(signal.ITIMER_REAL, random.uniform(5e-6, 3e-4))
            while True:
                try:
                    quick("s", 1)
                except StorageBusy:
                    pass
        except Interrupted:
            inside = False
            hits += 1
            left += stripes.try_lock(lock) == errno.EDEADLK
            stripes.abandon([lock])
    os.kill(pid, signal.SIGKILL)
    join(pid)
    take_and_leave_all_locks(buckets)  # of which the other may have died with one
    print(json.dumps([hits > 100, left, all_locks_are_free(buckets)]))
    """
    assert [True, 0, True] == run(script, path, kind)


def flood(path: Path, *, keys: int, buckets: int) -> None:
    script = f"""
    import resource
    buckets = storage({buckets}, FakeClock())
    for number in range(50):
        assert take(buckets, f"limited {{number}}", cost=100).allowed
    before, quick = os.stat(PATH), buckets.taker("scope", HOUR)
    for number in range(2 * {buckets}):
        quick(f"warm-up {{number}}", 1)
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range({keys}):
        quick(f"{{random.getrandbits(128):x}}", 1)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size
    after = os.stat(PATH)
    print(json.dumps([
        (before.st_size, before.st_blocks) == (after.st_size, after.st_blocks), grown < 16_000,
        sum(take(buckets, f"limited {{number}}").allowed for number in range(50)), len(buckets) / {buckets} > 0.99,
    ]))
    """
    assert [True, True, 0, True] == run(script, path)


def test_random_keys_neither_grow_the_memory_nor_set_a_limited_caller_free(path: Path) -> None:
    flood(path, keys=20_000, buckets=2_048)


@pytest.mark.prove
def test_a_million_random_keys_neither_grow_the_memory_nor_set_a_limited_caller_free(path: Path) -> None:
    flood(path, keys=1_000_000, buckets=65_536)


def test_a_full_file_system_is_told_of_before_the_first_decision(path: Path) -> None:
    script = """
    try:
        take(storage(65_536), "s")
    except StorageUnavailable as error:
        said = str(error)
    small = take(storage(1_024), "s").remaining
    print(json.dumps([said, small, os.listdir(os.path.dirname(PATH))]))
    """
    mounted = f"mount -t tmpfs -o size=1m none {path.parent}"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    if subprocess.run([*inside, mounted], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a small file system")
    command = [*inside, f'{mounted}; exec "$@"', "sh", sys.executable, "-W", "error", "-c"]
    finished = subprocess.run(
        [*command, PRELUDE + textwrap.dedent(script), str(path), "mutexes"],
        cwd=forked.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert [
        (
            f"{path}: no room for 5,513,216 bytes on its file system: enlarge that (docker run --shm-size), "
            "remove what is not needed, or ask for less with ?buckets="
        ),
        99,
        ["limits"],
    ] == json.loads(finished.stdout)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_file_of_another_user_is_refused_even_to_root(path: Path) -> None:
    script = """
    take(storage(), "s")
    os.chown(PATH, 12345, 12345)
    try:
        take(storage(), "s")
    except StorageUnavailable as error:
        print(json.dumps(str(error)))
    """
    assert (
        f"{path}: it belongs to user 12345, and this process runs as user 0: "
        "choose another name, or run all workers as the same user"
    ) == run(script, path)
