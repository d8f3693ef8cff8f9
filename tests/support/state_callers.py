"""Users of a state storage on Redis, as programs: each function is one, run in a process of its own by `programs.run`.

Each prints what it has seen; what else a process prints, on its standard error too, is a fault.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from resilience.errors import StorageUnavailable
from resilience.ports import Following, StateStorage
from resilience.storage.state_redis import RedisStateStorage
from tests.support.redis_node import wait_until

__all__ = ["crowd", "ending", "forked", "frozen", "interrupted", "killed_first", "pooled", "threads"]


def count(text: bytes | None, _now: float) -> tuple[bytes, int]:
    """One more."""
    number = int(text or b"0") + 1
    return b"%d" % number, number


def crowd(uri: str, size: str) -> None:
    """So many greenlets change a record of their own three times each, while others change one that all share."""
    import gevent

    storage = RedisStateStorage(uri, timeout=10)

    def change(number: int) -> int:
        return [storage.update(f"circuit:{number}", count, keep=60) for _ in range(3)][-1]

    def share() -> int:
        for _ in range(100):
            with contextlib.suppress(StorageUnavailable):
                return storage.update("circuit", count, keep=60)
        raise TimeoutError

    own: list[Any] = [gevent.spawn(change, number) for number in range(int(size))]
    shared: list[Any] = [gevent.spawn(share) for _ in range(30)]
    gevent.joinall([*own, *shared], raise_error=True)
    print({each.value for each in own}, sorted(each.value for each in shared) == list(range(1, 31)))


def interrupted(uri: str, seed: str) -> None:
    """Greenlets change records of their own and are interrupted at random while they wait. Prints how many found another
    text than one that they had asked for, and whether there were interruptions at all."""
    import gevent

    chance = random.Random(int(seed))
    storage = RedisStateStorage(uri, timeout=10)
    wrong: list[bytes | None] = []
    interruptions: list[str] = []

    def change(name: str) -> None:
        possible: set[bytes | None] = {None}
        for turn in range(20):
            wanted = b"%d" % turn
            found: list[bytes | None] = []

            def note(
                text: bytes | None, _now: float, found: list[bytes | None] = found, wanted: bytes = wanted
            ) -> tuple[bytes, None]:
                found.append(text)
                return wanted, None

            before = possible
            try:
                with gevent.Timeout(chance.choice([0.000_1, 0.001, 0.005, 5])):
                    storage.update(name, note, keep=60)
                possible = {wanted}
            except gevent.Timeout:
                interruptions.append(name)
                possible = {*possible, wanted}
            wrong.extend(text for text in found if text not in before)

    gevent.joinall([gevent.spawn(change, f"circuit:{number}") for number in range(40)], raise_error=True)
    print(len(wrong), bool(interruptions))


def frozen(uri: str, pid: str) -> None:
    """A hundred greenlets ask a server that stands still. Prints how many were refused, and whether in time; how long the
    others could not run meanwhile, and whether all is well when it goes on."""
    import gevent

    logging.getLogger("resilience").addHandler(logging.NullHandler())  # an outage is not passed over in silence
    storage = RedisStateStorage(uri, timeout=0.25)
    following = storage.follow("circuit")
    following.read()
    gaps: list[float] = []
    heartbeat = gevent.spawn(_beat, gaps)
    os.kill(int(pid), signal.SIGSTOP)
    started = time.monotonic()
    refused: list[Any] = [gevent.spawn(_is_refused, lambda: storage.read("circuit")) for _ in range(100)]
    gevent.joinall(refused, raise_error=True)
    took = time.monotonic() - started
    os.kill(int(pid), signal.SIGCONT)
    wait_until(lambda: not _is_refused(following.read), "the server is used again", within=10)
    heartbeat.kill()
    print(sum(each.value for each in refused), took < 1, max(gaps) < 0.2)


def _beat(gaps: list[float]) -> None:
    last = time.monotonic()
    while True:
        time.sleep(0.005)
        now = time.monotonic()
        gaps.append(now - last)
        last = now


def _is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except StorageUnavailable:
        return True
    return False


def forked(uri: str) -> None:
    """A process whose threads are at work forks; both follow a record, and a third changes it. Prints what each has heard."""
    storage = RedisStateStorage(uri, timeout=10)
    messages: list[bytes] = []
    following = storage.follow("circuit", lambda: None)
    storage.listen("topic", messages.append)
    storage.update("circuit", lambda _text, _now: (b"before", None), keep=60)
    heard = following.cell[0]
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            assert heard != following.cell[0], "the child is to look"
            assert b"before" == following.read().text
            os.write(writing, b"r")
            wait_until(lambda: b"after" == following.read().text, "news in the child")
            wait_until(lambda: [b"message"] == messages, "a message in the child")
            storage.update("circuit", lambda _text, _now: (b"from the child", None), keep=60)
            code = 0
        finally:
            os._exit(code)
    os.read(reading, 1)
    another = RedisStateStorage(uri, timeout=10)
    another.update("circuit", lambda _text, _now: (b"after", None), keep=60)
    another.publish("topic", b"message")
    wait_until(lambda: b"from the child" == following.read().text, "news in the parent")
    wait_until(lambda: [b"message"] == messages, "a message in the parent")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def killed_first(uri: str) -> None:
    """The first who uses a storage is killed somewhere on its way, again and again. Prints how many greenlets are left, and
    what one that is not killed finds."""
    import gevent

    storage = RedisStateStorage(uri, timeout=10)
    following = storage.follow("circuit", lambda: None)
    for turns in range(8):
        for _ in range(10):
            first = gevent.spawn(following.read)
            for _ in range(turns):
                gevent.sleep(0)
            first.kill()
            del first
            storage.close()
    wait_until(lambda: not _greenlets(), "they end")
    left = _greenlets()
    storage.update("circuit", lambda _text, _now: (b"text", None), keep=60)
    print(left, following.read().text)


def _greenlets() -> int:
    import gevent

    gc.collect()
    here = gevent.getcurrent()
    return sum(isinstance(each, gevent.Greenlet) and bool(each) and each is not here for each in gc.get_objects())


def pooled(uri: str) -> None:
    """Native threads beside gevent's loop ask and look, too. Prints what they found, and what a greenlet did."""
    import gevent

    storage = RedisStateStorage(uri, timeout=10)
    following = storage.follow("circuit")
    pool: Any = gevent.get_hub().threadpool
    first = pool.spawn(_is_refused, lambda: storage.read("circuit")).get(timeout=10)
    here = storage.update("circuit", count, keep=60)
    there = [pool.spawn(storage.update, "circuit", count, keep=60).get(timeout=10) for _ in range(5)]
    seen = pool.spawn(following.read).get(timeout=10).text
    print(first, here, there, seen)


def threads(uri: str) -> None:
    """Eight threads change one record; nobody is lost."""
    storage: StateStorage = RedisStateStorage(uri, timeout=10)
    following: Following = storage.follow("circuit")
    answers: list[int] = []

    def change() -> None:
        while len(answers) < 200:
            with contextlib.suppress(StorageUnavailable):
                answers.append(storage.update("circuit", count, keep=60))

    crowd = [threading.Thread(target=change) for _ in range(8)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    print(sorted(answers) == list(range(1, len(answers) + 1)), following.read().text == b"%d" % len(answers))


def ending(uri: str) -> None:
    """A process that ends while its threads are at work, and one that is asked at its very end."""
    import atexit

    storage = RedisStateStorage(uri, timeout=10)
    storage.follow("circuit", lambda: None).read()
    storage.listen("topic", lambda _message: None)
    atexit.register(lambda: print(_is_refused(lambda: storage.read("circuit")) in (True, False)))
