"""Users of the channels of one host, as programs: each function is one, run in a process of its own by `programs.run`.

Each prints what it has seen; what else a process prints, on its standard error too, is a fault.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from longconn.channels.hub import Channels
from longconn.channels.lmdb_broker import LmdbBroker
from longconn.channels.ports import HistoryLimits, Message, Position
from longconn.channels.tables import Tables
from longconn.channels.waking import LOOK

__all__ = ["across", "beside", "crowd", "forking", "from_threads", "killed", "lagging", "leaving"]

PATIENCE = 30.0


class Listener:
    """A subscriber: the numbers it has got, and the messages."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.data: list[Any] = []
        self.late: list[float] = []
        self.lost: list[int] = []

    def take(self, message: Message) -> None:
        self.numbers.append(message.position.number)
        self.data.append(message.data)
        self.late.append(time.time() - message.at)


class ListenerWire:
    """Hands messages to listeners."""

    def encode(self, message: Message) -> Any:
        return None

    def write(self, subscribers: Sequence[Listener], first: int, encoded: Any, message: Message, until: float) -> int:
        for index in range(first, len(subscribers)):
            subscribers[index].take(message)
            if index % 16 == 15 and time.monotonic() > until:
                return index + 1
        return len(subscribers)

    def missed(self, subscriber: Listener, channel: str, position: Position) -> None:
        subscriber.lost.append(position.number)


def crowd(folder: str, publishers: str, messages: str) -> None:
    """So many processes publish so many messages each on one channel, while listeners join at all times and ask for what came
    before. Prints how many joined, and what any of them got otherwise than it should: each message once, in order, and those of
    one publisher in its own order."""
    hub = Channels(LmdbBroker(folder), history=HistoryLimits(count=100_000, size=64 << 20))
    start = hub.publish("room", "[-1, 0]")
    count = int(messages)

    def publish(number: int) -> None:
        mine = Channels(LmdbBroker(folder), history=HistoryLimits(count=100_000, size=64 << 20))
        for index in range(count):
            mine.publish("room", [number, index])
            if index % 8 == 0:
                time.sleep(0.001)

    children = [_forked(publish, number) for number in range(int(publishers))]
    wire = ListenerWire()
    total = count * len(children) + 1
    listeners: list[Listener] = []
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and (len(listeners) < 20 or hub.broker.position("room").number < total):
        listener = Listener()

        def before(history: Any, listener: Listener = listener) -> None:
            for message in history.messages:
                listener.take(message)

        hub.subscribe(listener, "room", wire, since="" if len(listeners) % 2 else start, before=before)
        listeners.append(listener)
        time.sleep(0.01)
    _wait(lambda: all(listener.numbers[-1:] == [total] for listener in listeners))
    faults = [index for index, listener in enumerate(listeners) if not _in_order(listener, total)]
    faults += [status for status in map(_ended, children) if status]
    print(len(listeners) >= 20, faults)
    hub.close()


def _in_order(listener: Listener, total: int) -> bool:
    """Whether each message came once, in the order of the channel and of each publisher."""
    expected = list(range(listener.numbers[0], total + 1))
    by_publisher: dict[int, list[int]] = {}
    for data in listener.data:
        number, index = json.loads(data)
        by_publisher.setdefault(number, []).append(index)
    ordered = all(one < other for indexes in by_publisher.values() for one, other in pairwise(indexes))
    return listener.numbers == expected and listener.numbers[0] in (1, 2) and ordered and not listener.lost


def killed(folder: str, seed: str, rounds: str) -> None:
    """Processes that publish and read are killed at random instants. Prints what was found to be half done afterwards."""
    chance = random.Random(int(seed))
    limits = HistoryLimits(count=20, size=100_000)
    broker = LmdbBroker(folder, size=4 << 20)
    broker.publish("room0", b"", history=limits, at=time.time())

    def publish(number: int) -> None:
        mine = LmdbBroker(folder, size=4 << 20)
        mine.follow(lambda: None).start()
        cursor = mine.cursor()
        while True:
            for index in range(5):
                mine.publish(
                    f"room{index}", os.urandom(chance.choice((10, 3_000, 20_000))), history=limits, at=time.time()
                )
            cursor = mine.news(cursor).cursor
            mine.history("room1", None, now=time.time())

    faults: list[str] = []
    for _ in range(int(rounds)):
        children = [_forked(publish, number) for number in range(3)]
        time.sleep(chance.uniform(0.02, 0.1))
        for child in children:
            os.kill(child, signal.SIGKILL)
            _ended(child)
        faults += _half_done(broker)
        broker.publish("room0", b"still works", history=limits, at=time.time())
    print(faults, broker.position("room0").number > int(rounds), len(broker.followers()))
    broker.close()


def _half_done(broker: LmdbBroker) -> list[str]:
    """What does not fit together in the database."""
    faults = []

    def look(tables: Tables) -> None:
        about = tables.about()
        news = tables.news(about.next - 1, 1)
        if news.missed or len(news.messages) != 1:
            faults.append(f"the journal does not end at {about.next}")
        for held in tables.channels(1_000):
            history = tables.history(held.channel, None, None, time.time())
            numbers = [message.position.number for message in history.messages]
            newest = held.position.number
            if numbers != list(range(newest + 1 - held.count, newest + 1)):
                faults.append(f"{held.channel} at {newest} holds {numbers}")
            if sum(len(message.data) for message in history.messages) != held.size:
                faults.append(f"{held.channel} counts {held.size} bytes")

    broker._try(look)
    return faults


def lagging(folder: str) -> None:
    """A worker stands still while more is published than the journal takes. Prints what its listeners are told."""
    hub = Channels(LmdbBroker(folder, size=1 << 20, journal_bytes=50_000))
    wire = ListenerWire()
    kept, lost = Listener(), Listener()
    hub.subscribe(kept, "kept", wire)
    hub.subscribe(lost, "lost", wire)

    def publish(_number: int) -> None:
        mine = Channels(
            LmdbBroker(folder, size=1 << 20, journal_bytes=50_000),
            history_of={"kept": HistoryLimits(count=1_000), "lost": HistoryLimits(count=10)},
        )
        for index in range(500):
            mine.publish("kept", index)
            mine.publish("lost", "x" * 200)

    with hub._lock:  # no thread hands on anything meanwhile
        child = _forked(publish, 0)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # and no greenlet: this waits for it in the kernel
    status = _ended(child)
    _wait(lambda: kept.numbers[-1:] == [500] == lost.numbers[-1:])
    print(status, kept.numbers == list(range(1, 501)), kept.lost, len(lost.lost) == 1, _without_gap(lost))
    hub.close()


def _without_gap(listener: Listener) -> bool:
    """Whether a listener got every message but those it was told are lost."""
    told = set(range(1, 501)) - set(listener.numbers)
    return len(listener.numbers) == len(set(listener.numbers)) and max(told) == listener.lost[0]


def across(folder: str, listeners: str, messages: str, rate: str) -> None:
    """One process publishes so many messages a second, and listeners of another get them. Prints for how long the slowest
    of 100 deliveries took, in milliseconds, and whether each got all in order."""
    hub = Channels(LmdbBroker(folder))
    wire = ListenerWire()
    all_of_them = [Listener() for _ in range(int(listeners))]
    for listener in all_of_them:
        hub.subscribe(listener, "room", wire)
    count, pause = int(messages), 1 / float(rate)

    def publish(_number: int) -> None:
        mine = Channels(LmdbBroker(folder))
        began = time.monotonic()
        for index in range(count):
            mine.publish("room", index)
            time.sleep(max(0.0, began + (index + 1) * pause - time.monotonic()))

    child = _forked(publish, 0)
    _wait(lambda: all(len(listener.numbers) == count for listener in all_of_them))
    _ended(child)
    late = sorted(seconds for listener in all_of_them for seconds in listener.late)
    whole = all(listener.numbers == list(range(1, count + 1)) for listener in all_of_them)
    print(f"{1000 * late[len(late) * 99 // 100]:.2f}", whole)
    hub.close()


def from_threads(folder: str) -> None:
    """Native threads publish beside the loop, which listens, joins and leaves. Prints whether each message came once and in the
    order of its thread."""
    from concurrent.futures import ThreadPoolExecutor

    start_threads: Any = ThreadPoolExecutor
    if "gevent" in sys.modules:
        import gevent.threadpool

        start_threads = gevent.threadpool.ThreadPoolExecutor  # the other one has greenlets in a patched process
    hub = Channels(LmdbBroker(folder))
    listener, comes_and_goes = Listener(), Listener()
    wire = ListenerWire()
    hub.subscribe(listener, "room", wire)

    def publish(number: int) -> None:
        for index in range(200):
            hub.publish("room", [number, index])

    with start_threads(4) as threads:
        running = [threads.submit(publish, number) for number in range(4)]
        while not all(one.done() for one in running):
            hub.subscribe(comes_and_goes, "room", wire)
            time.sleep(0.001)
            hub.unsubscribe(comes_and_goes, "room")
    _wait(lambda: len(listener.numbers) == 800)
    ascending = all(one < other for one, other in pairwise(comes_and_goes.numbers))
    print([one.exception() for one in running], _in_order(listener, 800), ascending)
    hub.close()


def beside(folder: str) -> None:
    """A native thread asks before anybody listens. Prints what it was told, and what a listener gets that comes later."""
    import gevent.threadpool

    hub = Channels(LmdbBroker(folder))
    listener = Listener()

    def ask() -> tuple[int, str]:
        hub.start()
        answers = len(hub.ask("anything", {}, timeout=0.2))
        try:
            hub.subscribe(Listener(), "room", ListenerWire())
        except RuntimeError as error:
            return answers, str(error)
        return answers, ""

    with gevent.threadpool.ThreadPoolExecutor(1) as threads:
        print(*threads.submit(ask).result())
    hub.subscribe(listener, "room", ListenerWire())
    hub.publish("room", "x")
    _wait(lambda: bool(listener.numbers))
    print(listener.numbers)
    hub.close()


def leaving(folder: str) -> None:
    """A program that publishes, and ends without giving anything back."""
    global _kept
    _kept = Channels(LmdbBroker(folder))
    _kept.publish("room", "x")


_kept: Channels | None = None


def _forked(work: Callable[[int], None], number: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work(number)
        except BaseException:  # noqa: BLE001 - told by the status
            os._exit(1)
        os._exit(0)
    return pid


def _ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _wait(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not holds() and time.monotonic() < until:
        time.sleep(0.005)


def forking(folder: str) -> None:
    """A process that follows has a child, which publishes, listens itself, and lives on. Prints whether the parent gets
    everything at once, what it was told is lost, and whether the child got its own."""
    hub = Channels(LmdbBroker(folder))
    listener = Listener()
    hub.subscribe(listener, "room", ListenerWire())
    hub.publish("room", "before")
    reader, writer = os.pipe()

    def listen_and_publish(_number: int) -> None:
        own = Listener()
        hub.subscribe(own, "room", ListenerWire())
        for index in range(50):
            hub.publish("room", index)
            time.sleep(0.002)
        _wait(lambda: len(own.numbers) == 50)
        os.write(writer, b"%d" % (len(own.numbers) == 50))
        time.sleep(PATIENCE)

    child = _forked(listen_and_publish, 0)
    _wait(lambda: len(listener.numbers) == 51)
    own = os.read(reader, 1)
    os.kill(child, signal.SIGKILL)
    _ended(child)
    at_once = listener.numbers == list(range(1, 52)) and max(listener.late) < LOOK
    print(at_once, listener.lost, own == b"1")
    hub.close()
