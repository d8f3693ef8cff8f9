"""Event streams and long polls on real workers: parked, over all of them, and over the end of one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longconn.core.event_stream import EventReader, StreamedEvent
from tests.support.dropped_packets import lose_all_packets
from tests.support.gunicorn import eventually
from tests.support.longconn_server import Client, Ended, GunicornServer, gunicorn_server
from tests.support.opened import opened

APP = "tests.support.streaming_app:application"
MOST_PER_STREAM = 1536
"""Bytes of the process for one stream that is parked, in a measurement of few."""
AT_ONCE = 100
MOST_OF_MANY = 544
"""The same for many: half a KiB, and what a measurement in pages of 4 KiB may miss by."""


@contextlib.contextmanager
def streaming(*arguments: str, workers: int = 2, worker: str = "", unix: bool = False, tls: bool = False) -> Any:
    """A server of `streaming_app` with channels of its own."""
    chosen = {"worker": worker} if worker else {}
    with tempfile.TemporaryDirectory(prefix="lc-") as folder:
        environment = {"LONGCONN_CHANNELS": f"{folder}/channels"}
        with gunicorn_server(
            *arguments, app=APP, workers=workers, environment=environment, unix=unix, tls=tls, **chosen
        ) as server:
            yield server


@pytest.fixture(scope="module")
def server() -> Iterator[GunicornServer]:
    """A server for all tests that do not end it."""
    with streaming() as running:
        yield running


class Stream:
    """A client of an event stream."""

    def __init__(self, client: Client, target: str, *fields: str) -> None:
        self.client = client
        lines = [f"GET {target} HTTP/1.1", "Host: localhost", *fields]
        client.send("\r\n".join([*lines, "", ""]).encode())
        self.head = client.until(b"\r\n\r\n").decode()
        assert self.head.startswith("HTTP/1.1 200 "), self.head
        self.reader = EventReader()
        self.waiting: list[StreamedEvent] = []
        self.until(lambda: self.reader.id != "")

    def until(self, condition: Any) -> None:
        """Read until it is so. Raises what the client raises."""
        while not condition():
            if not self.client.buffer:
                self.client._receive()
            data, self.client.buffer = self.client.buffer, b""
            self.waiting += self.reader.feed(data)

    def next(self) -> StreamedEvent:
        """The next event."""
        self.until(lambda: self.waiting)
        return self.waiting.pop(0)

    def rest(self) -> list[str]:
        """The data of all that comes until the stream ends."""
        self.waiting += self.reader.feed(self.client.rest())
        found = [event.data for event in self.waiting]
        self.waiting.clear()
        return found


def listen(server: GunicornServer, target: str, *fields: str, timeout: float = 10.0) -> Stream:
    return Stream(opened(server.client(timeout)), target, *fields)


def listen_on_all(server: GunicornServer, path: str, channel: str, least: int) -> tuple[list[Stream], dict[int, int]]:
    """Streams, `least` of them or more, whose users are 0, 1 and so on; and the worker of each user, of which there are two."""
    streams: list[Stream] = []
    workers: dict[int, int] = {}
    while len(streams) < least or (len(set(workers.values())) < 2 and len(streams) < 200):
        streams.append(listen(server, f"{path}?user={len(streams)}"))
        if len(streams) >= least:
            found = ask(server, f"/roster?channel={channel}")["connections"]
            workers = {int(each["user"]): each["worker"] for each in found}
    assert 2 == len(set(workers.values()))
    assert len(streams) == len(workers)
    return streams, workers


def publish(server: GunicornServer, channel: str, data: str, query: str = "") -> str:
    """Its position."""
    with server.client(10.0) as client:
        reply = client.ask(f"/publish/{channel}?{query}", method="POST", body=data.encode())
    assert 200 == reply.status
    return reply.body.decode()


def ask(server: GunicornServer, target: str, method: str = "GET") -> Any:
    with server.client(10.0) as client:
        return json.loads(client.ask(target, method=method).body)


def test_a_request_with_a_body_is_answered_too(server: GunicornServer, name: str) -> None:
    client = opened(server.client(10.0))
    client.send(f"GET /events/{name} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody".encode())
    client.until(b"retry: 3000\n")


def test_what_one_worker_publishes_the_clients_of_all_get_once_and_in_order(server: GunicornServer, name: str) -> None:
    streams, _ = listen_on_all(server, f"/events/{name}", name, 8)
    for number in range(3):
        publish(server, name, f"{number} {{number}}", "times=10")
    expected = [f"{turn} {number}" for turn in range(3) for number in range(10)]
    for stream in streams:
        assert expected == [stream.next().data for _ in range(30)]
        assert not stream.waiting


def test_the_head_is_out_at_once_with_what_the_application_added(server: GunicornServer, name: str) -> None:
    stream = listen(server, f"/events/{name}?retry=1.5")
    lines = stream.head.split("\r\n")
    for line in (
        "Connection: close",
        "Content-Type: text/event-stream; charset=utf-8",
        "Cache-Control: no-store",
        "X-Accel-Buffering: no",
        "Set-Cookie: seen=yes; Path=/",
    ):
        assert line in lines
    assert not [line for line in lines if line.startswith(("Content-Length", "Transfer-Encoding"))]
    assert 1.5 == stream.reader.retry


def test_a_client_that_comes_back_gets_what_it_missed(server: GunicornServer, name: str) -> None:
    stream = listen(server, f"/events/{name}")
    publish(server, name, "0")
    last = stream.next().id
    stream.client.close()
    publish(server, name, "1")
    publish(server, name, "2", "event=goal")
    again = listen(server, f"/events/{name}", f"Last-Event-ID: {last}")
    publish(server, name, "3")
    assert ["1", "2", "3"] == [again.next().data for _ in range(3)]


@pytest.mark.together
def test_a_quiet_stream_beats_and_holds_no_greenlet(server: GunicornServer, name: str) -> None:
    streams = [listen(server, f"/events/{name}?heartbeat=1") for _ in range(20)]
    for stream in streams[:3]:
        stream.until(lambda stream=stream: stream.reader.comments >= 1)
    found = ask(server, "/figures")
    assert found["kind sse"] >= 5
    assert found["greenlets"] <= 8


def test_a_client_that_left_is_noticed_at_once(server: GunicornServer, name: str) -> None:
    streams = [listen(server, f"/events/{name}?user={name}") for _ in range(10)]
    assert 10 == ask(server, f"/roster?channel={name}")["total"]
    for stream in streams:
        stream.client.close()
    eventually(lambda: 0 == ask(server, f"/roster?channel={name}")["total"])
    ends = ask(server, "/ended") + ask(server, "/ended") + ask(server, "/ended")
    assert f"{name} client" in ends


@pytest.mark.together
def test_a_client_that_vanished_is_noticed_by_its_silence(server: GunicornServer, name: str) -> None:
    stream = listen(server, f"/events/{name}?heartbeat=1&user={name}")
    lose_all_packets(stream.client.socket)
    eventually(lambda: 0 == ask(server, f"/roster?channel={name}")["total"])


def test_one_that_does_not_read_is_let_go_and_others_are_not_delayed(server: GunicornServer, name: str) -> None:
    slow = listen(server, f"/events/{name}?queue_bytes=100000&user={name}")
    quick = listen(server, f"/events/{name}")
    received = 0
    while 2 == ask(server, f"/roster?channel={name}")["total"]:
        publish(server, name, "x" * 200_000, "times=5")
        for _ in range(5):
            assert 200_000 == len(quick.next().data)
        received += 5
        assert received < 200
    assert len(slow.rest()) < received


@pytest.mark.together
def test_a_stream_ends_with_the_credentials(server: GunicornServer, name: str) -> None:
    stream = listen(server, f"/events/{name}?seconds=0.5")
    assert [] == stream.rest()
    assert 1 == stream.reader.comments


def test_who_may_not_hear_a_channel_gets_an_answer(server: GunicornServer) -> None:
    with server.client() as client:
        assert 403 == client.ask("/events/secret").status
        assert 400 == client.ask("/events/news?since=yesterday").status
        assert 400 == client.ask(f"/poll/{'x' * 201}").status
        assert 200 == client.ask("/poll/secret?user=ann&wait=0").status


# Long polls


def test_a_poll_is_answered_when_something_comes(server: GunicornServer, name: str) -> None:
    clients = [opened(server.client(10.0)) for _ in range(6)]
    for client in clients:
        client.send(f"GET /poll/{name}?wait=20 HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    eventually(lambda: 6 == ask(server, f"/roster?channel={name}")["total"])
    position = publish(server, name, "x", "event=goal")
    for client in clients:
        reply = client.response()
        found = json.loads(reply.body)
        assert ("close", "no-store") == (reply.headers["Connection"], reply.headers["Cache-Control"])
        assert (position, True) == (found["position"], found["complete"])
        assert [("x", "goal")] == [(message["data"], message["event"]) for message in found["messages"]]


def test_polls_in_a_row_get_everything(server: GunicornServer, name: str) -> None:
    publish(server, name, "{number}", "times=7")
    position = "earliest"
    found: list[str] = []
    with server.client() as client:
        while len(found) < 7:
            answer = json.loads(client.ask(f"/poll/{name}?most=3&since={position}").body)
            found += [message["data"] for message in answer["messages"]]
            position = answer["position"]
        assert [str(number) for number in range(7)] == found
        assert [] == json.loads(client.ask(f"/poll/{name}?wait=0&since={position}").body)["messages"]


@pytest.mark.together
def test_a_poll_to_which_nothing_comes_is_answered_in_time(server: GunicornServer, name: str) -> None:
    started = time.monotonic()
    assert [] == ask(server, f"/poll/{name}?wait=0.3")["messages"]
    assert 0.25 < time.monotonic() - started < 5.0


# Over all workers


def test_an_operator_sees_and_sends_away_the_clients_of_all_workers(server: GunicornServer, name: str) -> None:
    streams = [listen(server, f"/events/{name},{name}-2?user={name}-{number % 2}&token={name}") for number in range(8)]
    found = ask(server, f"/roster?user={name}-1")
    assert (4, []) == (found["total"], found["silent"])
    assert {f"{name}-1"} == {each["user"] for each in found["connections"]}
    assert {(name, f"{name}-2")} == {tuple(each["channels"]) for each in found["connections"]}
    counts = ask(server, "/counts")
    assert 8 == counts["channels"][name]
    assert counts["connections"] == sum(counts["workers"].values())
    assert {"kicked": 4} == ask(server, f"/kick?user={name}-1", "POST")
    assert {"kicked": 4} == ask(server, f"/kick?token={name}", "POST")
    for stream in streams:
        assert [] == stream.rest()
        assert 1 == stream.reader.comments
    assert 0 == ask(server, f"/roster?channel={name}")["total"]


@pytest.mark.together
def test_a_worker_that_does_not_answer_is_named() -> None:
    with streaming() as server, server.client(10.0) as client:
        asked = int(client.ask("/pid").body)
        (other,) = set(server.worker_pids()) - {asked}
        streams, workers = listen_on_all(server, "/events/news", "news", 6)
        ours = [*workers.values()].count(asked)
        os.kill(other, signal.SIGSTOP)
        try:
            found = json.loads(client.ask("/roster").body)
        finally:
            os.kill(other, signal.SIGCONT)
        assert (ours, [other]) == (found["total"], found["silent"])
        assert len(streams) > ours


# When workers end


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.together
def test_over_a_reload_nothing_is_lost_or_doubled(number: int) -> None:
    with streaming("--graceful-timeout", "8") as server:
        streams = [listen(server, "/events/news,sport") for _ in range(10)]
        publish(server, "news", "before")
        assert ["before"] * 10 == [stream.next().data for stream in streams]
        server.signal(number)
        if number == signal.SIGTERM:
            assert [[]] * 10 == [stream.rest() for stream in streams]
            assert 0 == server.process.wait(15)
            assert all(stream.reader.retry != 3.0 for stream in streams)
            return
        for each in range(5):
            publish(server, "news", f"meanwhile {each}")
        got = [stream.rest() for stream in streams]
        assert all(stream.reader.retry != 3.0 and 1.5 <= (stream.reader.retry or 0) <= 4.5 for stream in streams)
        publish(server, "sport", "after")
        for stream, already in zip(streams, got, strict=True):
            again = listen(server, "/events/sport,news", f"Last-Event-ID: {stream.reader.id}")
            again.until(lambda again=again, already=already: len(already) + len(again.waiting) >= 6)
            everything = Counter([*already, *(event.data for event in again.waiting)])
            assert Counter([*(f"meanwhile {each}" for each in range(5)), "after"]) == everything


@pytest.mark.together
def test_a_kill_costs_only_the_clients_of_that_worker_who_come_back_to_what_they_missed() -> None:
    with streaming() as server:
        streams, workers = listen_on_all(server, "/events/news", "news", 10)
        publish(server, "news", "before")
        last = {stream.next().id for stream in streams}
        assert 1 == len(last)
        victim = server.worker_pids()[0]
        theirs = {user for user, worker in workers.items() if worker == victim}
        os.kill(victim, signal.SIGKILL)
        assert all([] == streams[number].rest() for number in theirs)
        publish(server, "news", "after")
        for number, stream in enumerate(streams):
            if number in theirs:
                stream = listen(server, "/events/news", f"Last-Event-ID: {stream.reader.id}")
            assert "after" == stream.next().data


class Wanderer(threading.Thread):
    """A client that goes away and comes back, again and again, until it has heard the last messages."""

    def __init__(self, server: GunicornServer, target: str) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.target = target
        self.ends = target.count(",") + 1
        self.last = ""
        self.heard: list[str] = []

    def run(self) -> None:
        """Come and go, and stay for a while when the last message is out."""
        until = time.monotonic() + 60.0
        while time.monotonic() < until and self.heard.count("end") < self.ends:
            with contextlib.suppress(OSError, Ended, TimeoutError), self.server.client(1.0) as client:
                fields = [f"Last-Event-ID: {self.last}"] if self.last else []
                stream = Stream(client, self.target, *fields)
                self.last = stream.reader.id
                leaves = time.monotonic() + random.uniform(0.1, 2.0)
                while time.monotonic() < leaves and self.heard.count("end") < self.ends:
                    event = stream.next()
                    self.last = event.id
                    self.heard.append(event.data)


@pytest.mark.prove
@pytest.mark.parametrize("names", [("news",), ("news", "sport")])
def test_clients_that_come_and_go_over_reloads_hear_everything_once(names: tuple[str, ...]) -> None:
    with streaming("--graceful-timeout", "8") as server:
        wanderers = [Wanderer(server, f"/events/{','.join(names)}") for _ in range(50)]
        for wanderer in wanderers:
            wanderer.start()
        eventually(lambda: all(wanderer.last for wanderer in wanderers))
        expected = []
        for number in range(300):
            expected.append(f"{names[number % len(names)]} {number}")
            publish(server, names[number % len(names)], expected[-1])
            if number in (80, 180):
                server.signal(signal.SIGHUP)
            time.sleep(0.01)
        for name in names:
            publish(server, name, "end")
        for wanderer in wanderers:
            wanderer.join(70)
        for wanderer in wanderers:
            for name in names:
                of_channel = [data for data in wanderer.heard if data.startswith(f"{name} ")]
                assert [data for data in expected if data.startswith(f"{name} ")] == of_channel


# Elsewhere


@pytest.mark.parametrize(
    ("worker", "arguments"),
    [("gevent", ()), ("gthread", ("--threads", "8")), ("", ())],
    ids=["gevent", "gthread", "unix"],
)
@pytest.mark.together
def test_on_other_servers_and_sockets_it_is_the_same(worker: str, arguments: tuple[str, ...]) -> None:
    with streaming(*arguments, worker=worker, unix=not worker) as server:
        stream = listen_chunked(server, "/events/news,sport?heartbeat=1")
        poll = opened(server.client(10.0))
        poll.send(b"GET /poll/news?wait=9 HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.2)
        publish(server, "news", "1")
        assert "1" == json.loads(poll.response().body)["messages"][0]["data"]
        publish(server, "sport", "2")
        assert ["1", "2"] == [stream.next().data for _ in range(2)]
        stream.until(lambda: stream.reader.comments)
        again = listen_chunked(server, "/events/news,sport", f"Last-Event-ID: {stream.waiting or stream.reader.id}")
        publish(server, "news", "3")
        assert ["3", "3"] == [again.next().data, stream.next().data]


class ChunkedStream(Stream):
    """A client of a server that sends its stream in chunks, or not."""

    def until(self, condition: Any) -> None:
        if "chunked" not in self.head:
            super().until(condition)
            return
        while not condition():
            self.waiting += self.reader.feed(self.client._chunk())


def listen_chunked(server: GunicornServer, target: str, *fields: str) -> Stream:
    return ChunkedStream(opened(server.client(10.0)), target, *fields)


@pytest.mark.together
def test_a_stream_over_tls() -> None:
    with streaming(tls=True, workers=1) as server:
        stream = listen(server, "/events/news?heartbeat=1")
        publish(server, "news", "x" * 300_000)
        assert "x" * 300_000 == stream.next().data
        stream.until(lambda: stream.reader.comments)
        stream.client.close()
        eventually(lambda: 0 == ask(server, "/roster")["total"])


# What it costs


def resident(pid: int) -> int:
    """Bytes of the process that are its own."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return sum(int(found) for found in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE)) * 1024


@pytest.mark.parametrize(
    ("count", "most"), [(600, MOST_PER_STREAM), pytest.param(15_000, MOST_OF_MANY, marks=pytest.mark.prove)]
)
def test_it_costs_little_memory(count: int, most: int) -> None:
    with streaming(workers=1) as server, contextlib.ExitStack() as stack:
        (pid,) = server.worker_pids()

        def open_some(number: int) -> None:
            for first in range(0, number, AT_ONCE):
                some = [
                    stack.enter_context(
                        server.connect(10.0, f"127.0.1.{1 + each % 50}")
                    )  # there are only so many ports
                    for each in range(first, min(first + AT_ONCE, number))
                ]
                for connection in some:
                    connection.sendall(b"GET /events/news?heartbeat=5 HTTP/1.1\r\nHost: a\r\n\r\n")
                for connection in some:
                    assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")

        open_some(count // 6)
        time.sleep(0.3)
        before = resident(pid)
        open_some(count)
        time.sleep(0.3)
        each = (resident(pid) - before) / count
        print(f"\n{each:.0f} bytes for each of {count} event streams, in a channel and with heartbeats")
        assert each < most


def test_clients_that_ask_for_much_and_do_not_read_take_no_memory() -> None:
    with streaming(workers=1) as server, contextlib.ExitStack() as stack:
        (pid,) = server.worker_pids()
        publish(server, "news", "{number} ".ljust(100_000, "."), "times=100")
        one = listen(server, "/events/news?earliest=1")
        assert [str(number) for number in range(100)] == [one.next().data.split(" ")[0] for _ in range(100)]
        before = resident(pid)
        for _ in range(20):
            client = stack.enter_context(server.client(10.0))
            client.send(b"GET /events/news?earliest=1 HTTP/1.1\r\nHost: a\r\n\r\n")
            client.until(b"\r\n\r\n")
        eventually(lambda: ask(server, "/counts")["queued"] > 0)
        publish(server, "news", "new")
        assert "new" == one.next().data
        # Twenty times ten megabytes wait, and a quarter of one for each is in the process.
        assert resident(pid) - before < 20 * 500_000 + 16_000_000
