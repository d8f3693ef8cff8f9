"""Callers of a Redis storage, as programs: each function is one, run in a process of its own by `programs.run`.

Each prints what it has seen; what else a process prints, on its standard error too, is a fault.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import redis

from resilience.core.limiter import Charge, Decision, Limit
from resilience.errors import StorageUnavailable
from resilience.storage.redis import RedisStorage

__all__ = [
    "SLOW",
    "busy_process",
    "crowd",
    "delayed",
    "exact",
    "forked",
    "forked_after_close",
    "frozen",
    "interrupted",
    "killed_first",
    "leaving",
    "native",
    "shaken",
    "struck",
    "threads",
]

SLOW = Limit(1, 366 * 86_400, 280)
"""Nothing comes back while a test runs."""


def left(decision: Decision) -> int:
    """Tokens in the bucket of a single charge."""
    return decision.quotas[0].level // SLOW.unit


def crowd(uri: str, count: str) -> None:
    """So many greenlets decide once, on buckets of their own: how many calls of the script was that?"""
    import gevent

    storage = RedisStorage(uri, timeout=5)
    take = storage.taker("crowd", SLOW)
    take("first", 1)
    with redis.Redis.from_url(uri) as client:
        client.config_resetstat()
        decisions: list[Any] = [gevent.spawn(take, str(number), 1) for number in range(int(count))]
        gevent.joinall(decisions, raise_error=True)
        calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    print({left(decision.value) for decision in decisions}, calls)


def interrupted(uri: str, seed: str) -> None:
    """Greenlets with a bucket and an allowance of their own are interrupted at random while they wait.

    Prints how many answers were wrong, how many buckets do not hold in the end what their owner has not used, and whether
    there were interruptions at all.
    """
    import gevent

    chance = random.Random(int(seed))
    storage = RedisStorage(uri, timeout=5)
    wrong, interruptions = [], []
    used: dict[int, int] = {}

    def owner(number: int) -> None:
        limit = Limit(1, 366 * 86_400, 102 + number)
        take = storage.taker("own", limit)
        given_up = 0
        while used[number] < 62:
            try:
                with gevent.Timeout(chance.choice([0, 0.0005, 0.001, 0.01, 5])):
                    decision = take(str(number), 1)
            except gevent.Timeout:
                given_up += 1
                interruptions.append(number)
                continue
            used[number] += 1
            most = limit.size - used[number]
            if not (decision.allowed and most - given_up <= decision.quotas[0].level // limit.unit <= most):
                wrong.append((number, used[number], given_up, decision))

    for number in range(150):  # a full bucket is not given back what it would have gained meanwhile
        storage.take([Charge("own", str(number), Limit(1, 366 * 86_400, 102 + number), 2)])
        used[number] = 2
    owners = [gevent.spawn(owner, number) for number in range(100)]
    killed = [gevent.spawn(owner, number) for number in range(100, 150)]
    gevent.spawn_later(0.02, gevent.killall, killed)
    gevent.joinall(owners, raise_error=True)
    gevent.killall(killed)
    time.sleep(0.3)  # what was given up comes back
    kept = [
        number
        for number, count in used.items()
        if left_of(storage, "own", Limit(1, 366 * 86_400, 102 + number), str(number)) != 102 + number - count
    ]
    print(len(wrong), len(kept), bool(interruptions), *wrong[:3])


def left_of(storage: RedisStorage, scope: str, limit: Limit, subject: str) -> int:
    """Tokens that the bucket holds, by a look."""
    return storage.take([Charge(scope, subject, limit, 0)]).quotas[0].level // limit.unit


def frozen(uri: str, pid: str) -> None:
    """Fifty greenlets ask a server that is stopped. Prints how many failed, and whether in about one timeout together."""
    import gevent

    storage = RedisStorage(uri, timeout=0.3)
    take = storage.taker("frozen", SLOW)
    take("a", 1)
    waits: list[float] = []

    def caller(number: int) -> None:
        gevent.sleep(number / 1_000)
        started = time.monotonic()
        try:
            take("a", 1)
        except StorageUnavailable:
            waits.append(time.monotonic() - started)

    os.kill(int(pid), signal.SIGSTOP)
    try:
        gevent.joinall([gevent.spawn(caller, number) for number in range(50)], raise_error=True)
    finally:
        os.kill(int(pid), signal.SIGCONT)
    print(len(waits), max(waits) < 2, left(take("a", 1)))


def delayed(uri: str) -> None:
    """While the server works for another, one asks and then a second. Prints whether both were answered by the same call."""
    import gevent

    storage = RedisStorage(uri, timeout=10)
    take = storage.taker("delayed", SLOW)
    take("a", 1)
    answered: list[float] = []

    def caller(after: float) -> None:
        gevent.sleep(after)
        take(str(after), 1)
        answered.append(time.monotonic())

    with redis.Redis.from_url(uri) as other:
        sleeping = gevent.spawn(other.execute_command, "DEBUG", "SLEEP", "0.5")
        gevent.joinall([gevent.spawn(caller, 0.1), gevent.spawn(caller, 0.2)], raise_error=True)
        sleeping.join()
    print(len(answered), answered[1] - answered[0] < 0.3)


def forked(uri: str) -> None:
    """Decisions before a fork, by both sides after it, and by one that waits for its answer during the fork.

    Prints what is left in the bucket of each.
    """
    storage = RedisStorage(uri, timeout=10)
    take = storage.taker("forked", SLOW)
    take("shared", 1)
    # A second storage, so that both the one that has asked and the one that has not are there during the fork.
    RedisStorage(uri).taker("forked", SLOW)("shared", 1)
    waiting: list[Decision] = []
    address = urlsplit(uri)
    with socket.create_connection((address.hostname, address.port)) as other:
        other.sendall(b"DEBUG SLEEP 0.5\r\n")  # the answer is read by nobody, on neither side of the fork
        time.sleep(0.1)
        under_way = threading.Thread(target=lambda: waiting.append(take("waiting", 7)))
        under_way.start()
        time.sleep(0.1)
        children = [fork(lambda: [take("shared", 1) for _ in range(20)]) for _ in range(3)]
        for _ in range(20):
            take("shared", 1)
        endings = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        under_way.join()
    print(endings, [left(decision) for decision in waiting], left_of(storage, "forked", SLOW, "shared"))


def forked_after_close(uri: str) -> None:
    """A fork between `close` and the answers to those who wait. Prints what is left to each of them, and the child's end."""
    storage = RedisStorage(uri, timeout=10)
    take = storage.taker("closed", SLOW)
    take("warm", 1)
    waiting: list[int] = []
    address = urlsplit(uri)
    with socket.create_connection((address.hostname, address.port)) as other:
        other.sendall(b"DEBUG SLEEP 0.5\r\n")
        time.sleep(0.1)
        under_way = list(_started(lambda number: waiting.append(left(take(str(number), 7))), 3))
        time.sleep(0.1)
        storage.close()
        child = fork(lambda: time.sleep(0.7))  # long enough to read the parent's answers
        for each in under_way:
            each.join()
    print(waiting, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def killed_first(uri: str) -> None:
    """The first caller of a storage is killed somewhere on its way, again and again.

    Prints how many greenlets are left, and what one that is not killed is left.
    """
    import gevent

    storage = RedisStorage(uri, timeout=5)
    take = storage.taker("killed", SLOW)
    for turns in range(6):
        for number in range(20):
            first = gevent.spawn(take, "a", 1)
            for _ in range(turns):
                gevent.sleep(0)
            first.kill()
            if number % 2:
                storage.close()
            del first
        storage.close()
    deadline = time.monotonic() + 5
    while (alive := _greenlets()) and time.monotonic() < deadline:
        gevent.sleep(0.05)
    print(alive, left(take("b", 1)))


def _greenlets() -> int:
    import gevent

    return sum(isinstance(known, gevent.Greenlet) and not known.dead for known in gc.get_objects())


def fork(work: Callable[[], object]) -> int:
    """The process id of a child that does this work and is gone then, with the status 0 when it went well."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        time.sleep(0.3)  # were anything left of the parent's carrier, it would have its chance now
        status = 0
    finally:
        os._exit(status)


def leaving(uri: str, how: str) -> None:
    """The process ends while the carrier rests, or while it waits for an answer, or with a storage in a cycle."""
    storage = RedisStorage(uri, timeout=5)
    if how == "unused":
        return
    left(storage.taker("leaving", SLOW)("a", 1))
    if how == "cycle":
        storage.itself = storage  # type: ignore[attr-defined]
    if how == "closed":
        storage.close()
    if how == "asking":
        with redis.Redis.from_url(uri, socket_timeout=0.1) as other, contextlib.suppress(redis.RedisError):
            other.execute_command("DEBUG", "SLEEP", "0.5")
        threading.Thread(target=storage.taker("leaving", SLOW), args=("a", 1), daemon=True).start()
        time.sleep(0.05)


def native(uri: str) -> None:
    """Native threads of gevent's pool ask too, before and while greenlets do. Prints what is left of 280."""
    import gevent

    storage = RedisStorage(uri, timeout=10)
    take = storage.taker("native", SLOW)
    pool = gevent.get_hub().threadpool
    pool.spawn(take, "a", 1).get(timeout=20)
    pending: list[Any] = [gevent.spawn(take, "a", 1) for _ in range(50)]
    pending += [pool.spawn(take, "a", 1) for _ in range(20)]
    for each in pending:
        each.get(timeout=20)
    print(left_of(storage, "native", SLOW, "a"))


def busy_process(uri: str) -> None:
    """This process stands still for longer than the timeout while answers are there for the taking: nobody fails."""
    import gevent

    storage = RedisStorage(uri, timeout=0.1)
    take = storage.taker("busy", SLOW)
    take("a", 1)
    asking = [gevent.spawn(take, "a", 1) for _ in range(100)]
    for _ in range(6):
        gevent.sleep(0)  # the question is asked, and perhaps sent
        until = time.perf_counter() + 0.2
        while time.perf_counter() < until:
            pass
    gevent.joinall(asking, raise_error=True)
    print(left(take("a", 0)))


def exact(uri: str) -> None:
    """2,000 greenlets want one of 100 tokens each. Prints how many got one."""
    import gevent

    take = RedisStorage(uri, timeout=10).taker("exact", Limit(100, 366 * 86_400))
    asking: list[Any] = [gevent.spawn(take, "a", 1) for _ in range(2_000)]
    gevent.joinall(asking, raise_error=True)
    print(sum(each.value.allowed for each in asking))


def threads(uri: str) -> None:
    """Threads with buckets of their own: every answer is the one asked for. Prints how many were not."""
    storage = RedisStorage(uri, timeout=10)
    wrong: list[Decision] = []

    def owner(number: int) -> None:
        limit = Limit(1, 366 * 86_400, 100 + number)
        take = storage.taker("own", limit)
        for used in range(1, 100):
            decision = take(str(number), 1)
            if decision.quotas[0].level // limit.unit != limit.size - used:
                wrong.append(decision)

    for started in list(_started(owner, 16)):
        started.join()
    print(len(wrong))


def _started(function: Callable[[int], None], count: int) -> Iterator[threading.Thread]:
    for number in range(count):
        thread = threading.Thread(target=function, args=(number,))
        thread.start()
        yield thread


def struck(uri: str, pid: str) -> None:
    """A signal's handler raises in a caller that reads for itself. Prints what is left after the next decision."""

    class StruckError(BaseException):
        pass

    def strike(*_: object) -> None:
        raise StruckError

    signal.signal(signal.SIGUSR1, strike)
    storage = RedisStorage(uri, timeout=10)
    take = storage.taker("struck", SLOW)
    take("a", 1)
    take("a", 1)
    os.kill(int(pid), signal.SIGSTOP)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        take("a", 1)
    except StruckError:
        print("struck", end=" ")
    finally:
        os.kill(int(pid), signal.SIGCONT)
        timer.join()
    print(left(take("b", 1)), left(take("b", 1)))


def shaken(uri: str) -> None:
    """Threads ask while connections are cut, scripts forgotten and the storage closed, all the time.

    Prints whether there were decisions, whether there were failures, and how many callers waited for much longer than the
    timeout.
    """
    storage = RedisStorage(uri, timeout=0.5)
    end = time.monotonic() + 1.5
    decided, failed, late = [], [], []

    def caller(number: int) -> None:
        take = storage.taker(f"shaken{number}", Limit(1_000_000, 1))
        while time.monotonic() < end:
            started = time.monotonic()
            try:
                decided.append(take("a", 1))
            except StorageUnavailable as error:
                failed.append(error)
            if time.monotonic() - started > 5:
                late.append(number)

    callers = list(_started(caller, 20))
    chance = random.Random(1)
    while time.monotonic() < end:
        with redis.Redis.from_url(uri) as client:
            client.client_kill_filter(_type="normal", skipme=True)
            if chance.random() < 0.3:
                client.script_flush()
        if chance.random() < 0.1:
            storage.close()
        time.sleep(chance.random() * 0.02)
    for each in callers:
        each.join()
    print(bool(decided), bool(failed), len(late))
