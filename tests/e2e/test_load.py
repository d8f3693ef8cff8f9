"""The service under a crowd, and while what it depends on dies: short here, long in `make prove`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.crowd import Crowd
from tests.support.gunicorn import RunningService, administrator, eventually, running_service
from tests.support.redis_server import running_redis, server_programs

pytestmark = pytest.mark.alone

GENEROUS: dict[str, Any] = {"rate_limit": "100000000/second", "rate_limit_burst": "none", "web_concurrency": 2}

short_and_long = pytest.mark.parametrize(
    ("connections", "seconds"),
    [
        pytest.param(100, 3, id="short"),
        pytest.param(1_000, 30, id="long", marks=[pytest.mark.prove, pytest.mark.timeout(180)]),
    ],
)


def open_files(service: RunningService) -> dict[int, int]:
    return {pid: len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in service.workers}


def connections_open(service: RunningService) -> int:
    """Established connections to the public listener."""
    port = f":{service.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] == "01" for row in rows)


def resident_kilobytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@short_and_long
def test_a_crowd_is_answered_without_an_error_and_leaves_nothing_behind(
    tmp_path: Path, connections: int, seconds: int
) -> None:
    with running_service(tmp_path, **GENEROUS) as service:
        headers = administrator(service)
        eventually(lambda: len(service.workers) == 2)
        Crowd(service.port, connections, 1, "/api/v1/users/1", headers).result()  # opens what each worker keeps
        eventually(lambda: not connections_open(service))
        before = open_files(service)
        seen = Crowd(service.port, connections, seconds, "/api/v1/users/1", headers).result()
        assert ({"200"}, {}) == (set(seen["statuses"]), seen["broken"])
        assert seen["statuses"]["200"] > connections
        eventually(lambda: all(count <= before[pid] for pid, count in open_files(service).items()))
        assert 0 == service.stop()
        logged = service.events("request")
        assert sum(seen["statuses"].values()) <= len([event for event in logged if event["status"] == 200])


@short_and_long
def test_a_store_of_limits_that_dies_and_comes_back_is_no_caller_s_trouble(
    tmp_path: Path, connections: int, seconds: int
) -> None:
    program = server_programs()["valkey"]
    with (
        running_redis(program) as store,
        running_service(tmp_path, **GENEROUS, resilience_storage_uri=store.uri) as service,
    ):
        crowd = Crowd(service.port, connections // 2, seconds, "/api/v1/users/1", administrator(service))
        time.sleep(seconds / 5)
        os.kill(store.pid, signal.SIGSTOP)
        time.sleep(seconds / 5)
        os.kill(store.pid, signal.SIGCONT)
        time.sleep(seconds / 5)
        store.stop()
        time.sleep(seconds / 5)
        store.start()
        seen = crowd.result()
        assert ({"200"}, {}) == (set(seen["statuses"]), seen["broken"])
        assert "answers again" in service.log.read_text()


@short_and_long
def test_a_worker_that_is_killed_costs_its_own_connections_only(tmp_path: Path, connections: int, seconds: int) -> None:
    with running_service(tmp_path, **GENEROUS) as service:
        eventually(lambda: len(service.workers) == 2)
        crowd = Crowd(service.port, connections, seconds, "/api/v1/users/1", administrator(service))
        time.sleep(seconds / 2)
        killed, survivor = service.workers
        os.kill(killed, signal.SIGKILL)
        seen = crowd.result()
        assert {"200"} == set(seen["statuses"])
        assert 0 < sum(seen["broken"].values()) < connections, "some were the dead worker's, and not all"
        assert survivor in service.workers
        eventually(lambda: len(service.workers) == 2)


@pytest.mark.prove
@pytest.mark.timeout(240)
def test_memory_and_descriptors_stay_flat_while_clients_come_and_go(tmp_path: Path) -> None:
    with running_service(tmp_path, **GENEROUS) as service:
        headers = administrator(service)
        marks = []
        for _ in range(8):
            for _ in range(3):
                Crowd(service.port, 200, 3, "/api/v1/users?limit=100", headers).result()
            eventually(lambda: not connections_open(service))
            marks.append({pid: (resident_kilobytes(pid), open_files(service)[pid]) for pid in service.workers})
            print(marks[-1])
        for pid, (memory, files) in marks[2].items():
            later, files_later = marks[-1][pid]
            assert files_later <= files
            assert later < memory * 1.05, "less than 5 % growth over 150,000 requests and more"
