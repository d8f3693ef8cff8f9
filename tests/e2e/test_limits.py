"""The service's limits over several workers: counted together without any server, and told to the operator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from resilience.storage.shm import SharedMemoryStorage
from tests.support.gunicorn import ADMIN_TOKEN, RunningService, eventually, running_service

ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
BURST = 20
LIMITED = {
    # Not those of the tests, where each worker counts by itself.
    "seawall_environment": "development",
    "token_secret": "a-secret-of-these-tests-that-signs-nothing-of-value",
    "web_concurrency": 2,
    "rate_limit": f"{BURST}/hour",
    "rate_limit_burst": BURST,
}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    with running_service(tmp_path, **LIMITED) as running:
        try:
            yield running
        finally:
            shared_file(running).unlink(missing_ok=True)


def shared_file(service: RunningService) -> Path:
    """Where the limits of the service are counted, unless it is told otherwise."""
    return SharedMemoryStorage(f"shm://seawall-{service.port}").path


def metric(service: RunningService, outcome: str) -> dict[str, int]:
    """How many requests the limit on all of them has met, by worker."""
    text = service.get("/metrics", ADMIN, admin=True).body.decode()
    shape = rf'resilience_limit_decisions_total{{limiter="default",outcome="{outcome}",worker="(\d+)"}} (\d+)'
    return {worker: int(count) for worker, count in re.findall(shape, text)}


def wait_for_both(service: RunningService) -> None:
    """Ready is a service as soon as one worker is."""
    eventually(lambda: len(metric(service, "allowed")) == 2)


def test_all_workers_count_a_caller_s_requests_together_without_a_server(service: RunningService) -> None:
    wait_for_both(service)
    statuses = [service.get("/nothing").status for _ in range(3 * BURST)]
    assert [404] * BURST + [429] * (2 * BURST) == statuses
    assert 0o600 == shared_file(service).stat().st_mode & 0o777
    allowed, denied = metric(service, "allowed"), metric(service, "denied")
    assert (2, BURST, 2 * BURST) == (len(allowed), sum(allowed.values()), sum(denied.values()))
    answer = service.get("/admin/limiters", ADMIN, admin=True).json
    (limiter,) = [each for each in answer["limiters"] if each["name"] == "default"]
    assert (f"shm://seawall-{service.port}", BURST, 2 * BURST) == (
        limiter["storage"], limiter["allowed"], limiter["denied"]
    )  # fmt: skip
    assert ("primary", {"primary": 2}) == (answer["storage"]["mode"], answer["storage"]["modes"])


def test_a_worker_that_is_replaced_forgets_nobody_and_an_operator_can_forgive(service: RunningService) -> None:
    wait_for_both(service)
    while service.get("/nothing").status != 429:
        pass
    before = set(service.workers)
    service.signal(1)  # HUP: all workers are replaced
    eventually(lambda: len(service.workers) == 2 and not before & set(service.workers), within=30)
    assert 429 == service.get("/nothing").status
    wait_for_both(service)
    answer = service.request("POST", "/admin/limiters/default/reset?key=127.0.0.1", headers=ADMIN, admin=True)
    assert (200, 2) == (answer.status, len(answer.json["workers"]["answered"]))
    assert 404 == service.get("/nothing").status


def test_workers_learn_how_many_share_a_limit_while_its_storage_is_away(tmp_path: Path) -> None:
    # Nobody listens there. Half of the limit each, however many processors the configuration would have counted.
    options = {**LIMITED, "resilience_storage_uri": "redis://127.0.0.1:1/0", "gunicorn_cmd_args": "--workers=2"}
    options["web_concurrency"] = 1
    with running_service(tmp_path, **options) as service:
        wait_for_both(service)
        statuses = [service.get("/nothing").status for _ in range(2 * BURST)]
        allowed = metric(service, "allowed")
        assert 2 == len(allowed)
        assert all(count <= BURST // 2 for count in allowed.values())
        assert sum(allowed.values()) == statuses.count(404)
        assert "local" == service.get("/admin/limiters", ADMIN, admin=True).json["storage"]["mode"]
