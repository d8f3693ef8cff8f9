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


def order(run: Launched, action: str, body: dict[str, Any]) -> Any:
    headers = {"Authorization": f"Bearer {run.value('admin token')}", "Content-Type": "application/json"}
    path = f"/admin/circuits/demo/{action}"
    return run.ask("POST", path, body=json.dumps(body).encode(), headers=headers, port=run.admin_port)


def by_worker(run: Launched) -> dict[int, str]:
    circuit = ask(run, "GET", "/admin/circuits/demo").document["circuit"]
    return {each["worker"]["pid"]: each["state"] for each in circuit["by_worker"]}


def wait_for_workers(run: Launched, *, without: int = 0) -> dict[int, str]:
    deadline = time.monotonic() + 20
    while True:
        workers = by_worker(run)
        if (without not in workers and WORKERS == len(workers)) or time.monotonic() > deadline:
            return workers
        time.sleep(0.05)


def test_any_worker_speaks_for_all_and_moves_all(run: Launched) -> None:
    assert WORKERS == len(by_worker(run))
    for action, state in (("open", "forced-open"), ("close", "closed"), ("disable", "disabled"), ("reset", "closed")):
        answer = ask(run, "POST", f"/admin/circuits/demo/{action}").document
        assert ({state: WORKERS}, [], 1) == (
            answer["circuit"]["states"], answer["workers"]["unreached"], len(answer["executed"])
        )  # fmt: skip
        for _ in range(10):  # some from each worker, since each connection is accepted by whoever is first
            assert {state} == set(by_worker(run).values())


def test_what_holds_for_a_time_ends_by_itself_in_every_worker(run: Launched) -> None:
    answer = order(run, "open", {"reason": "trying it out", "ttl": 0.5}).document["circuit"]
    assert ("forced-open", "trying it out", "token (127.0.0.1)") == (
        answer["state"], answer["reason"], answer["author"]
    )  # fmt: skip
    time.sleep(0.6)
    headers = run.sign_in()
    assert 200 == run.ask("GET", "/api/v1/backends/demo/x", headers=headers).status, "the probe"
    assert {"closed"} == set(by_worker(run).values())


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


def test_who_did_what_is_told_by_every_worker(run: Launched) -> None:
    order(run, "close", {"reason": "for the record"})
    for _ in range(10):
        entry = ask(run, "GET", "/admin/audit").document["entries"][0]
        assert ("close", "circuit demo", "for the record", "done") == (
            entry["action"], entry["target"], entry["reason"], entry["outcome"]
        )  # fmt: skip


def test_a_login_holds_in_every_worker_and_so_does_a_logout(run: Launched) -> None:
    given = {"Content-Type": "application/json"}
    body = json.dumps({"token": run.value("admin token"), "name": "anna"}).encode()
    answer = run.ask("POST", "/admin/login", body=body, headers=given, port=run.admin_port)
    cookie = str(answer.header("Set-Cookie")).partition(";")[0]
    page = {**given, "Cookie": cookie, "Origin": f"http://127.0.0.1:{run.admin_port}"}

    def statuses(method: str, path: str, headers: dict[str, str]) -> set[int]:
        return {run.ask(method, path, headers=headers, port=run.admin_port).status for _ in range(10)}

    assert {200} == statuses("GET", "/admin/session", page)
    assert {403} == statuses("POST", "/admin/circuits/demo/reset", page)
    with_word = {**page, "X-Resilience-Csrf": answer.document["csrf"]}
    assert {200} == statuses("POST", "/admin/circuits/demo/reset", with_word)
    assert 200 == run.ask("POST", "/admin/logout", headers=with_word, port=run.admin_port).status
    assert {401} == statuses("GET", "/admin/session", page)


def test_limits_that_are_overridden_hold_in_every_worker(run: Launched) -> None:
    headers = {"Authorization": f"Bearer {run.value('admin token')}", "Content-Type": "application/json"}

    def change(action: str, **body: Any) -> Any:
        path = f"/admin/limiters/default/{action}"
        return run.ask("POST", path, body=json.dumps(body).encode(), headers=headers, port=run.admin_port)

    def wait_for(overridden: int) -> None:
        # Each is asked by name: ten calls may all come to those that have heard already.
        deadline = time.monotonic() + 5
        known = -1
        while known != overridden and time.monotonic() < deadline:
            limiters = ask(run, "GET", "/admin/limiters?detail=workers").document["limiters"]
            workers = next(limiter["by_worker"] for limiter in limiters if limiter["name"] == "default")
            assert WORKERS == len(workers)
            known = sum(worker["override"] is not None for worker in workers)
        assert overridden == known

    assert 200 == change("override", limits="1/hour", ttl=60, reason="a test").status
    try:
        wait_for(overridden=WORKERS)
        run.ask("GET", "/nonsense")  # the only one in an hour, unless somebody else had it
        assert {429} == {run.ask("GET", "/nonsense").status for _ in range(10)}
    finally:
        assert 200 == change("restore").status
    wait_for(overridden=0)
    assert {404} == {run.ask("GET", "/nonsense").status for _ in range(10)}


class Stream:
    """An event stream, read line by line."""

    def __init__(self, run: Launched, query: str = "") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", run.admin_port, timeout=10)
        headers = {"Authorization": f"Bearer {run.value('admin token')}", "Accept": "text/event-stream"}
        self._connection.request("GET", f"/admin/events{query}", headers=headers)
        self._response = self._connection.getresponse()
        assert 200 == self._response.status

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def messages(self) -> Iterator[tuple[str, Any]]:
        event = ""
        for line in self._response:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                event = value
            elif field == "data":
                yield event, json.loads(value)


def test_a_stream_tells_what_happens_in_every_worker(run: Launched) -> None:
    order(run, "reset", {})
    with Stream(run, "?type=STATE_TRANSITION&snapshots=1") as stream:
        messages = stream.messages()
        told = next(data for event, data in messages if event == "snapshot")
        assert (["demo"], WORKERS) == (
            [circuit["name"] for circuit in told["circuits"]], len(told["workers"]["answered"])
        )  # fmt: skip
        order(run, "disable", {"reason": "seen by all"})
        tellers = set()
        for event, data in messages:
            if event == "policy" and data["reason"] == "seen by all":
                tellers.add(data["worker"]["pid"])
            if len(tellers) == WORKERS:
                break
        told = next(data for event, data in messages if event == "snapshot")
        assert ("disabled", {"disabled": WORKERS}) == (told["circuits"][0]["state"], told["circuits"][0]["states"])
    order(run, "reset", {})


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
        demo = [each for each in families["resilience4j_circuitbreaker_state"] if each.labels["name"] == "demo"]
        assert (1, 7) == (sum(each.value for each in demo), len(demo)), "in one of seven states, for all workers"


def test_streams_end_when_their_workers_stop(run: Launched) -> None:
    with Stream(run) as stream:
        messages = stream.messages()
        order(run, "reset", {})
        assert "policy" == next(messages)[0]
        began = time.monotonic()
        for pid in wait_for_workers(run):
            os.kill(pid, signal.SIGTERM)
        assert "this worker stops" == next(data for event, data in messages if event == "end")["reason"]
        assert time.monotonic() - began < 10, "soon: a drain waits for what is open"
    wait_for_workers(run)
