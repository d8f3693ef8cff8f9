"""Both pollers tell of the same things, over real sockets in a real loop of gevent's."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from longconn.parking.poller import GONE, READABLE, WRITABLE, EpollPoller, WatcherPoller, make_poller

Pair = tuple[socket.socket, socket.socket]
PATIENCE = 5.0


class Heard:
    """What a poller has told."""

    def __init__(self, kind: Callable[..., Any]) -> None:
        self.events: list[tuple[int, int]] = []
        self.poller: Any = kind(gevent.get_hub().loop, self.events.extend)

    def told(self, descriptor: int, mask: int) -> bool:
        """Lets the loop turn until the descriptor has been told of with one of these flags, then forgets it all."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if any(each == descriptor and found & mask for each, found in self.events):
                self.events.clear()
                return True
            gevent.sleep(0.001)
        return False

    def quiet(self) -> bool:
        """Whether some turns of the loop bring nothing."""
        for _ in range(4):
            gevent.sleep(0.002)
        return not self.events


@pytest.fixture(params=[EpollPoller, WatcherPoller])
def heard(request: pytest.FixtureRequest) -> Iterator[Heard]:
    made = Heard(request.param)
    yield made
    made.poller.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    both = socket.socketpair()
    for each in both:
        each.setblocking(False)
    yield both
    for each in both:
        each.close()


def added(heard: Heard, one: socket.socket) -> int:
    """The descriptor of a socket that is watched, after what is told of it at first."""
    descriptor = one.fileno()
    heard.poller.add(descriptor)
    for _ in range(3):
        gevent.sleep(0.001)
    heard.events.clear()
    return descriptor


def fill(one: socket.socket) -> None:
    """Send until nothing more is taken."""
    with contextlib.suppress(BlockingIOError):
        while True:
            one.send(bytes(65_536))


def drain(one: socket.socket) -> bytes:
    """Receive all there is."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while piece := one.recv(1 << 20):
            data += piece
    return data


def test_what_arrives_is_told_once_and_again_when_it_was_used_up(heard: Heard, pair: Pair) -> None:
    ours, client = pair
    descriptor = added(heard, ours)
    for _ in range(3):
        client.send(b"a")
        assert heard.told(descriptor, READABLE)
        assert heard.quiet()
        assert b"a" == drain(ours)
        heard.poller.rearm(descriptor)
        assert heard.quiet()


def test_what_had_arrived_before_is_told_too(heard: Heard, pair: Pair) -> None:
    ours, client = pair
    client.send(b"a")
    heard.poller.add(ours.fileno())
    assert heard.told(ours.fileno(), READABLE)


def test_an_end_is_told(heard: Heard, pair: Pair) -> None:
    ours, client = pair
    descriptor = added(heard, ours)
    client.shutdown(socket.SHUT_WR)
    assert heard.told(descriptor, READABLE | GONE)


def test_a_client_that_is_gone_is_told(heard: Heard, pair: Pair) -> None:
    ours, client = pair
    descriptor = added(heard, ours)
    client.close()
    assert heard.told(descriptor, READABLE | GONE)


def test_room_is_told_to_who_waits_for_it(heard: Heard, pair: Pair) -> None:
    ours, client = pair
    descriptor = added(heard, ours)
    fill(ours)
    heard.poller.rearm(descriptor, 2)
    assert heard.quiet()
    drain(client)
    assert heard.told(descriptor, WRITABLE)
    assert heard.quiet()


def test_who_waits_for_either_is_told_of_either(heard: Heard, pair: Pair) -> None:
    ours, client = pair
    descriptor = added(heard, ours)
    fill(ours)
    heard.poller.rearm(descriptor, 3)
    assert heard.quiet()
    client.send(b"a")
    assert heard.told(descriptor, READABLE)
    assert b"a" == drain(ours)
    heard.poller.rearm(descriptor, 3)
    drain(client)
    assert heard.told(descriptor, WRITABLE)


def test_rearming_twice_is_rearming_once(heard: Heard, pair: Pair) -> None:
    ours, client = pair
    descriptor = added(heard, ours)
    heard.poller.rearm(descriptor)
    heard.poller.rearm(descriptor)
    client.send(b"a")
    assert heard.told(descriptor, READABLE)
    assert heard.quiet()


def test_of_who_is_discarded_nothing_is_told(heard: Heard, pair: Pair) -> None:
    ours, client = pair
    descriptor = added(heard, ours)
    heard.poller.discard(descriptor)
    heard.poller.discard(descriptor)
    heard.poller.rearm(descriptor)
    client.send(b"a")
    assert heard.quiet()


def test_a_descriptor_may_be_added_again(heard: Heard, pair: Pair) -> None:
    ours, client = pair
    for _ in range(3):
        descriptor = added(heard, ours)
        client.send(b"a")
        assert heard.told(descriptor, READABLE)
        heard.poller.discard(descriptor)
        drain(ours)


def test_each_who_connects_is_told(heard: Heard) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        heard.poller.add_listener(listener.fileno())
        for _ in range(3):
            with socket.create_connection(listener.getsockname()):
                assert heard.told(listener.fileno(), READABLE)
                listener.accept()[0].close()
                gevent.sleep(0.002)
                heard.events.clear()
        heard.poller.discard(listener.fileno())
        with socket.create_connection(listener.getsockname()):
            assert heard.quiet()


def test_many_are_told_of_together(heard: Heard) -> None:
    pairs = [socket.socketpair() for _ in range(600)]
    try:
        for ours, client in pairs:
            heard.poller.add(ours.fileno())
            client.send(b"a")
        deadline = time.monotonic() + PATIENCE
        wanted = {ours.fileno() for ours, _ in pairs}
        while time.monotonic() < deadline and {each for each, mask in heard.events if mask & READABLE} != wanted:
            gevent.sleep(0.001)
        assert wanted == {each for each, mask in heard.events if mask & READABLE}
    finally:
        for ours, client in pairs:
            heard.poller.discard(ours.fileno())
            ours.close()
            client.close()


def test_a_poller_that_is_closed_leaves_nothing_in_the_loop(pair: Pair) -> None:
    for kind in (EpollPoller, WatcherPoller):
        heard = Heard(kind)
        added(heard, pair[0])
        before = gevent.get_hub().loop.activecnt
        heard.poller.close()
        assert before - 1 == gevent.get_hub().loop.activecnt


def test_epoll_is_taken_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = gevent.get_hub().loop
    made: Any = make_poller(loop, lambda events: None)
    assert ("epoll", EpollPoller) == (made.name, type(made))
    made.close()
    monkeypatch.delattr(select, "epoll")
    made = make_poller(loop, lambda events: None)
    assert ("watchers", WatcherPoller) == (made.name, type(made))
    made.close()
