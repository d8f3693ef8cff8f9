"""Limits of a Flask application on real storages, asked by many threads at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from resilience import Resilience, rate_limit
from resilience.registry import PROCESS_REGISTRY
from resilience.scope import PROCESS
from tests.support.redis_server import running_redis, server_programs

THREADS = 16
EACH = 25
APPLICATION = 300
VIEW = 100


@pytest.fixture(params=["memory", "shm", *server_programs()])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        yield "memory://"
    elif request.param == "shm":
        yield f"shm://{tmp_path}/limits"
    else:
        with running_redis(server_programs()[request.param]) as server:
            yield server.uri


@pytest.fixture
def app(uri: str) -> Iterator[Flask]:
    PROCESS.forget()
    app = Flask("demo")
    # Of a day, so that nothing is gained while this runs. No server of a test's is that slow, but the machine may be.
    Resilience(app, storage_uri=uri, storage_timeout=5.0, application_limits=f"{APPLICATION}/day")
    app.add_url_rule("/limited", "limited", rate_limit(f"{VIEW}/day", name="view")(lambda: "hello"))
    app.add_url_rule("/plain", "plain", lambda: "hello")
    yield app
    app.extensions["resilience"].close()
    PROCESS_REGISTRY.clear()
    PROCESS.forget()


def ask(app: Flask, path: str) -> Counter[int]:
    """The statuses that all threads see together, each asking so many times."""
    statuses: Counter[int] = Counter()
    lock = threading.Lock()

    def repeat() -> None:
        client = app.test_client()
        seen = Counter(client.get(path).status_code for _ in range(EACH))
        with lock:
            statuses.update(seen)

    threads = [threading.Thread(target=repeat) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def test_what_the_view_s_limit_refuses_is_given_back_however_many_ask(app: Flask) -> None:
    assert {200: VIEW, 429: THREADS * EACH - VIEW} == ask(app, "/limited")
    # All that was refused there is left for the others: what was taken for it meanwhile is back.
    assert {200: APPLICATION - VIEW, 429: THREADS * EACH - (APPLICATION - VIEW)} == ask(app, "/plain")
