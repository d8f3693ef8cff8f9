"""The admin endpoint of a real service of several workers: whichever is asked answers for all."""

from __future__ import annotations

import http.client
import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.launched import Launched, launched, prepare_folder

WORKERS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    folder = prepare_folder(tmp_path_factory.mktemp("admin"))
    with launched(folder, {"WEB_CONCURRENCY": str(WORKERS), "BACKEND_FAIL_MAX": "1"}) as running:
        assert WORKERS == len(wait_for_workers(running))  # it is ready when the first of them is
        yield running


def ask(run: Launched, method: str, path: str, token: str | None = None, port: int | None = None) -> Any:
    token = run.value("admin token") if token is None else token
    return run.ask(method, path, headers={"Authorization": f"Bearer {token}"}, port=port or run.admin_port)


def by_worker(run: Launched) -> dict[int, str]:
    circuit = ask(run, "GET", "/admin/circuits/demo").document["circuit"]
    return {worker["pid"]: worker["state"] for worker in circuit["by_worker"]}


def wait_for_workers(run: Launched, *, without: int = 0) -> dict[int, str]:
    deadline = time.monotonic() + 20
    while True:
        workers = by_worker(run)
        if (without not in workers and WORKERS == len(workers)) or time.monotonic() > deadline:
            return workers
        time.sleep(0.05)


def test_any_worker_speaks_for_all_and_moves_all(run: Launched) -> None:
    assert WORKERS == len(by_worker(run))
    for action, state in (("open", "open"), ("close", "closed"), ("open", "open"), ("reset", "closed")):
        answer = ask(run, "POST", f"/admin/circuits/demo/{action}").document
        assert ({state: WORKERS}, []) == (answer["circuit"]["states"], answer["workers"]["unreached"])
        for _ in range(10):  # some from each worker, since each connection is accepted by whoever is first
            assert {state} == set(by_worker(run).values())


def test_an_opened_circuit_rejects_in_every_worker(run: Launched) -> None:
    headers = run.sign_in()
    ask(run, "POST", "/admin/circuits/demo/open")
    answers = [run.ask("GET", "/api/v1/backends/demo/x", headers=headers) for _ in range(15)]
    assert {503} == {answer.status for answer in answers}
    assert {20004} == {answer.document["code"] for answer in answers}
    ask(run, "POST", "/admin/circuits/demo/reset")
    assert 200 == run.ask("GET", "/api/v1/backends/demo/x", headers=headers).status


def test_limiters_add_up_over_all_workers(run: Launched) -> None:
    def allowed() -> int:
        limiters = ask(run, "GET", "/admin/limiters").document["limiters"]
        return int(next(limiter["allowed"] for limiter in limiters if limiter["name"] == "default"))

    before = allowed()
    for _ in range(20):
        run.ask("GET", "/nonsense")
    assert 20 == allowed() - before


def test_on_the_public_listener_it_does_not_exist(run: Launched) -> None:
    for host in (f"127.0.0.1:{run.port}", f"127.0.0.1:{run.admin_port}", "localhost"):
        connection = http.client.HTTPConnection("127.0.0.1", run.port, timeout=10)
        token = run.value("admin token")
        connection.request("GET", "/admin/circuits", headers={"Host": host, "Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        assert (404, 10002) == (response.status, json.loads(response.read())["code"])
        connection.close()


def test_without_the_token_it_tells_nothing(run: Launched) -> None:
    answer = ask(run, "GET", "/admin/circuits", token="wrong")
    assert (401, 10003) == (answer.status, answer.document["code"])
    assert answer.header("WWW-Authenticate") is not None


def test_sockets_between_workers_are_the_owner_s_alone(run: Launched) -> None:
    # The kernel tells the name that a socket was bound to; it is put in its place once it listens.
    bound = [Path(path) for path in Path("/proc/net/unix").read_text().split() if path.endswith(".service.new")]
    ours = next(path.parent for path in bound if int(path.name.partition(".")[0]) in run.descendants())
    mine = list(ours.glob("*.service.sock"))
    assert WORKERS == len(mine)
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in mine}
    assert {0o700} == {stat.S_IMODE(path.parent.stat().st_mode) for path in mine}


def test_a_killed_worker_is_replaced_and_forgotten(run: Launched) -> None:
    killed = next(iter(by_worker(run)))
    os.kill(killed, signal.SIGKILL)
    workers = wait_for_workers(run, without=killed)
    assert (WORKERS, False) == (len(workers), killed in workers)


def test_metrics_of_all_workers_come_from_any_of_them(run: Launched) -> None:
    workers = {str(pid) for pid in wait_for_workers(run)}
    for _ in range(10):
        answer = ask(run, "GET", "/metrics")
        families = {family.name: family.samples for family in text_string_to_metric_families(answer.body.decode())}
        states = {sample.labels["state"]: sample.value for sample in families["longconn_workers"]}
        assert (200, WORKERS) == (answer.status, states["serving"])
        assert workers == {sample.labels["worker"] for sample in families["longconn_open_connections"]}
