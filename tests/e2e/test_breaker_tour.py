from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.launched import Answer, Launched, launched, prepare_folder

# One worker, so that its circuit is the only one.
VARIABLES = {"WEB_CONCURRENCY": "1", "BACKEND_FAIL_MAX": "3", "BACKEND_RESET_TIMEOUT": "1"}


class Tour:
    """The demo backend as a caller, as an operator and as its saboteur sees it."""

    def __init__(self, run: Launched) -> None:
        self._run = run
        self._credentials = run.sign_in()

    def call(self) -> Answer:
        return self._run.ask("GET", "/api/v1/backends/demo/hello", headers=self._credentials)

    def tell_demo(self, settings: str) -> None:
        assert 200 == self._run.ask("POST", f"/settings?{settings}", port=self._run.demo_port).status

    def wait_for_the_open_time(self) -> float:
        """Return when the next call is a probe. For how long that was."""
        left = float(self._run.circuit("demo")["retry_after"])
        time.sleep(left + 0.05)
        return left

    def close(self) -> None:
        """Begin anew, whatever was before."""
        self.tell_demo("failure_rate=0&latency=0")
        credentials = {"Authorization": f"Bearer {self._run.value('admin token')}"}
        path = "/admin/circuits/demo/reset"
        assert 200 == self._run.ask("POST", path, headers=credentials, port=self._run.admin_port).status

    def circuit(self) -> tuple[str, int]:
        """Its state and its failures in a row."""
        circuit = self._run.circuit("demo")
        return circuit["state"], circuit["failures"]

    def calls(self) -> dict[str, int]:
        calls: dict[str, int] = self._run.circuit("demo")["calls"]
        return calls


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    folder: Path = prepare_folder(tmp_path_factory.mktemp("tour"))
    with launched(folder, VARIABLES) as run:
        yield run


def test_a_backend_that_breaks_and_heals_takes_its_circuit_all_the_way_round(run: Launched) -> None:
    tour = Tour(run)
    assert 200 == tour.call().status
    assert ("closed", 0) == tour.circuit()

    tour.tell_demo("failure_rate=1")
    broken = [tour.call() for _ in range(3)]

    assert [500] * 3 == [answer.status for answer in broken]
    assert [{"error": "failing as told", "served": n} for n in (2, 3, 4)] == [answer.document for answer in broken]
    assert ("open", 3) == tour.circuit()

    refused = tour.call()

    assert (503, 20004) == (refused.status, refused.document["code"])
    assert "application/problem+json" == refused.header("Content-Type")
    assert refused.header("Retry-After") in ("1", "2")
    assert {"succeeded": 1, "failed": 3, "ignored": 0, "not_permitted": 1, "slow": 0} == tour.calls()

    tour.tell_demo("failure_rate=0&latency=0.5")
    tour.wait_for_the_open_time()
    with ThreadPoolExecutor() as pool:
        probe = pool.submit(tour.call)
        time.sleep(0.25)

        assert "half-open" == tour.circuit()[0]
        assert 503 == tour.call().status  # one probe at a time
        assert 200 == probe.result().status

    assert ("closed", 0) == tour.circuit()
    tour.tell_demo("latency=0")
    assert [200] * 5 == [tour.call().status for _ in range(5)]


def test_a_probe_that_fails_opens_the_circuit_again_and_for_longer(run: Launched) -> None:
    tour = Tour(run)
    tour.close()
    tour.tell_demo("failure_rate=1")
    assert [500, 500, 500, 503] == [tour.call().status for _ in range(4)]

    assert 1.1 >= tour.wait_for_the_open_time()

    assert [500, 503] == [tour.call().status for _ in range(2)]
    assert "open" == tour.circuit()[0]
    tour.tell_demo("failure_rate=0")
    assert 1.5 < tour.wait_for_the_open_time() <= 2.2
    assert 200 == tour.call().status


def test_an_open_circuit_costs_no_waiting_for_a_backend_that_hangs(
    run: Launched, record_property: Callable[[str, object], None]
) -> None:
    tour = Tour(run)
    tour.close()
    tour.tell_demo("failure_rate=1&latency=0.3")
    assert [500] * 3 == [tour.call().status for _ in range(3)]

    times = []
    for _ in range(20):
        started = time.perf_counter()
        assert 503 == tour.call().status
        times.append(time.perf_counter() - started)

    record_property("milliseconds of the quickest refusal", round(min(times) * 1000, 2))
    assert 0.05 > min(times)
    tour.tell_demo("failure_rate=0&latency=0")
