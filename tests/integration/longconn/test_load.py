"""Clients in processes of their own, against a server that has nothing of ours in it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longconn.load import Load, Plan, Tally
from longconn.load.conductor import run
from longconn.load.crowd import Crowd
from tests.support.gunicorn import eventually
from tests.support.load_peer import LoadPeer, load_peer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def peer() -> Iterator[LoadPeer]:
    """The server that all tests share."""
    with load_peer() as running:
        yield running


def plan(kind: str, url: str, **options: Any) -> Plan:
    """Twenty clients that come back soon."""
    return Plan(kind=kind, url=url, **{"connections": 20, "rate": 1_000.0, "reconnect": 0.05, **options})


def seen(wanted: Plan, enough: Callable[[Tally], bool]) -> Tally:
    """What the clients of a plan, in this process, have counted when it is enough."""
    (share,) = wanted.shares()
    crowd = Crowd(share)
    deadline = time.monotonic() + 15.0
    try:
        while not enough(crowd.tally) and time.monotonic() < deadline:
            crowd.turn()
        open_before = crowd.tally.open
        crowd.leave()
    finally:
        crowd.close()
    crowd.tally.open = open_before
    return crowd.tally


def test_websockets_are_held_pings_answered_and_messages_checked(peer: LoadPeer) -> None:
    wanted = plan("ws", f"{peer.ws}/news", check=True)
    tally = seen(wanted, lambda tally: tally.pings >= 20 and tally.messages >= 20 * 10)
    assert (20, 20, 20) == (tally.open, tally.opened, tally.settled)
    assert (0, 0, 0, 0) == (tally.lost, tally.doubled, tally.disordered, tally.unnumbered)
    assert ({}, {}) == (tally.ended, tally.failed)
    assert tally.messages == tally.delivery.count


def test_an_echo_is_timed_from_the_message_to_its_return(peer: LoadPeer) -> None:
    wanted = plan("ws", f"{peer.ws}/echo", check=True, send_every=0, connections=3)
    tally = seen(wanted, lambda tally: tally.messages > 100)
    assert (0, 0, 0) == (tally.lost, tally.doubled, tally.disordered)
    assert tally.messages <= tally.sent <= tally.messages + 3
    assert tally.messages == tally.delivery.count


def test_messages_are_sent_at_a_pace(peer: LoadPeer) -> None:
    started = time.monotonic()
    tally = seen(plan("ws", f"{peer.ws}/echo", send_every=0.1, size=500), lambda tally: tally.messages >= 20 * 4)
    assert tally.sent <= 20 * (10 * (time.monotonic() - started) + 1)
    assert tally.received_bytes >= 500 * tally.messages


def test_a_message_that_the_server_does_not_take_at_once_arrives_whole(peer: LoadPeer) -> None:
    wanted = plan("ws", f"{peer.ws}/echo", send_every=0, size=9_000_000, connections=2, check=True)
    tally = seen(wanted, lambda tally: tally.messages >= 4)
    assert (0, 0, 0, 0) == (tally.lost, tally.doubled, tally.disordered, tally.unnumbered)
    assert {} == tally.ended


def test_what_is_wrong_with_the_order_is_counted(peer: LoadPeer) -> None:
    tally = seen(plan("ws", f"{peer.ws}/faulty", check=True, connections=5), lambda tally: tally.messages >= 35)
    assert (10, 5, 5, 5) == (tally.lost, tally.doubled, tally.disordered, tally.unnumbered)


def test_messages_of_several_channels_are_told_apart(peer: LoadPeer) -> None:
    tally = seen(plan("ws", f"{peer.ws}/two", check=True, connections=2), lambda tally: tally.messages >= 12)
    assert (2, 2, 0) == (tally.lost, tally.doubled, tally.disordered)


def test_one_that_is_closed_comes_back_and_goes_on_where_it_was(peer: LoadPeer) -> None:
    wanted = plan("ws", f"{peer.ws}/short", check=True, resume="since")
    tally = seen(wanted, lambda tally: tally.reopened >= 40)
    assert {"1012"} == set(tally.ended)
    assert (0, 0, 0) == (tally.lost, tally.doubled, tally.disordered)


def test_one_that_comes_back_may_say_what_it_saw_in_its_first_message(peer: LoadPeer) -> None:
    wanted = plan("ws", f"{peer.ws}/asked", check=True, hello='{"since": ""}', hello_again='{"since": "{since}"}')
    tally = seen(wanted, lambda tally: tally.reopened >= 40)
    assert {"1001"} == set(tally.ended)
    assert (0, 0, 0) == (tally.lost, tally.doubled, tally.disordered)


def test_one_that_does_not_say_where_it_was_counts_anew(peer: LoadPeer) -> None:
    wanted = plan("ws", f"{peer.ws}/short", check=True, connections=5)
    tally = seen(wanted, lambda tally: tally.reopened >= 10)
    assert (0, 0, 0) == (tally.lost, tally.doubled, tally.disordered)


@pytest.mark.parametrize("query", ["short=1", "short=1&chunked=1"])
def test_event_streams_come_back_after_the_wait_that_they_are_told(peer: LoadPeer, query: str) -> None:
    wanted = plan("sse", f"{peer.http}/events?{query}", check=True, reconnect=60.0)
    tally = seen(wanted, lambda tally: tally.reopened >= 40)
    assert {"ended"} == set(tally.ended)
    assert (0, 0, 0, 0) == (tally.lost, tally.doubled, tally.disordered, tally.unnumbered)
    assert tally.messages == tally.heartbeats


def test_plain_connections_are_kept_and_asked_on(peer: LoadPeer) -> None:
    tally = seen(plan("http", f"{peer.http}/", send_every=0.1), lambda tally: tally.messages >= 20 * 3)
    assert ({}, {}) == (tally.ended, tally.failed)
    assert tally.messages == tally.delivery.count


def test_a_refusal_is_counted_and_tried_again(peer: LoadPeer) -> None:
    wanted = plan("ws", f"{peer.ws}/refused", connections=3)
    tally = seen(wanted, lambda tally: tally.failed["answered 403"] > 6)
    assert (0, 0) == (tally.open, tally.settled)


def test_one_that_does_not_come_back_is_given_up(peer: LoadPeer) -> None:
    wanted = plan("ws", f"{peer.ws}/refused", connections=3, reconnect=0)
    assert {"answered 403": 3} == seen(wanted, lambda tally: tally.settled == 3).failed


def test_nobody_waits_for_ever(peer: LoadPeer) -> None:
    wanted = plan("sse", f"{peer.http}/silent", connections=3, reconnect=0, patience=0.2)
    assert {"no answer in time": 3} == seen(wanted, lambda tally: tally.settled == 3).failed


def test_where_nobody_listens_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        wanted = plan("ws", f"ws://127.0.0.1:{taken.getsockname()[1]}/", connections=3, reconnect=0)
        assert {"connection refused": 3} == seen(wanted, lambda tally: tally.settled == 3).failed


def test_an_address_that_is_not_ours_is_said(peer: LoadPeer) -> None:
    wanted = plan("ws", f"{peer.ws}/echo", connections=1, reconnect=0, addresses=("192.0.2.1",))
    tally = seen(wanted, lambda tally: tally.settled == 1)
    assert {"cannot assign requested address": 1} == tally.failed


def test_several_processes_are_one_load(peer: LoadPeer) -> None:
    shown: list[int] = []
    wanted = plan("ws", f"{peer.ws}/news", check=True, processes=2, seconds=0.3)
    report = run(wanted, lambda tally, seconds: shown.append(tally.open))
    assert [] == report.faults
    assert (20, 20) == (report.tally.open, shown[-1])
    assert 0.3 <= report.held
    assert 0 < report.tally.busiest


def test_a_load_that_never_opens_ends(peer: LoadPeer) -> None:
    report = run(
        plan("ws", f"{peer.ws}/refused", connections=3, patience=0.3, seconds=0.0), lambda tally, seconds: None
    )
    assert ["3 connections were not open at the end"] == report.faults


def test_connections_come_from_the_addresses_in_turn(peer: LoadPeer) -> None:
    addresses = ("127.0.0.3", "127.0.0.4")
    (share,) = plan("ws", f"{peer.ws}/echo", connections=6, addresses=addresses).shares()
    crowd = Crowd(share)
    with contextlib.closing(crowd):
        while crowd.tally.open < 6:
            crowd.turn()
        found = _peers_of(int(peer.ws.rpartition(":")[2]))
        assert [3, 3] == [found.get(address) for address in addresses]


def _peers_of(port: int) -> dict[str, int]:
    """From where connections to this port come, by the kernel's own table."""
    found: dict[str, int] = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, state = line.split()[1:4]
        if state == "01" and int(remote.partition(":")[2], 16) == port:
            address = socket.inet_ntoa(bytes.fromhex(local.partition(":")[0])[::-1])
            found[address] = found.get(address, 0) + 1
    return found


def test_a_client_process_that_dies_is_noticed(peer: LoadPeer) -> None:
    with Load(plan("ws", f"{peer.ws}/echo", connections=4, processes=2)) as load:
        assert load.until(lambda tally: tally.open == 4, within=10)
        os.kill(load._clients[0].process.pid, signal.SIGKILL)
        assert load.until(lambda tally: load.living == 1, within=10)
        report = load.finish()
    assert "1 client processes died" in report.faults


def test_clients_end_with_whoever_started_them(peer: LoadPeer) -> None:
    arguments = ["ws", f"{peer.ws}/echo", "--connections", "3", "--seconds", "60"]
    command = subprocess.Popen(
        [sys.executable, "-m", "longconn.load", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
        eventually(lambda: children.read_text().split())
        client = int(children.read_text().split()[0])
    finally:
        command.kill()
        command.communicate()
    eventually(lambda: not _runs(client))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the command says."""
    return subprocess.run(
        [sys.executable, "-m", "longconn.load", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_command_prints_a_report(peer: LoadPeer) -> None:
    done = command("ws", f"{peer.ws}/news", "--connections", "5", "--seconds", "0.3", "--check", "sequence", "--json")
    assert 0 == done.returncode
    figures = json.loads(done.stdout)
    assert (5, 0, []) == (figures["open"], figures["lost"], figures["faults"])


def test_the_command_fails_when_something_is_wrong(peer: LoadPeer) -> None:
    done = command("ws", f"{peer.ws}/faulty", "--connections", "2", "--seconds", "0.3", "--check", "sequence")
    assert 1 == done.returncode
    assert "4 messages lost" in done.stdout.splitlines()[-1]


def test_the_command_says_what_cannot_be() -> None:
    done = command("ws", "wss://127.0.0.1/")
    assert (2, "") == (done.returncode, done.stdout)
    assert "TLS is not spoken here" in done.stderr


def limited(limit: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same under another limit of open files."""
    script = f'ulimit {limit}; exec {sys.executable} -m longconn.load "$@"'
    return subprocess.run(
        ["sh", "-c", script, "sh", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )


def test_the_soft_limit_of_open_files_is_raised(peer: LoadPeer) -> None:
    done = limited("-Sn 60", "ws", f"{peer.ws}/echo", "--connections", "200", "--seconds", "0")
    assert (0, "") == (done.returncode, done.stderr)


def test_the_hard_limit_of_open_files_is_told_before_anything_begins(peer: LoadPeer) -> None:
    done = limited("-n 300", "ws", f"{peer.ws}/echo", "--connections", "1000", "--processes", "2")
    assert 2 == done.returncode
    assert "1000 connections are too many for 2 processes, which may hold 199 each (ulimit -Hn); use 6" in done.stderr


def test_ctrl_c_ends_a_load_early_and_in_order(peer: LoadPeer) -> None:
    arguments = ["ws", f"{peer.ws}/echo", "--connections", "3", "--seconds", "60"]
    process = subprocess.Popen(
        [sys.executable, "-m", "longconn.load", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The tests may have been started with it ignored, as what a shell puts into the background is.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        port = int(peer.ws.rpartition(":")[2])
        eventually(lambda: sum(_peers_of(port).values()) >= 3)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert "nothing to complain of" in output
