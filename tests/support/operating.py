"""An application with one circuit and one limiter, and its admin endpoint as an operator calls it."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from resilience import CircuitBreaker, MemoryStorage, RateLimiter, Resilience, create_admin_blueprint
from resilience.adapters.flask import Application
from resilience.testing import FakeClock

__all__ = ["TOKEN", "Operated"]

TOKEN = "a-token-for-tests-that-is-long-enough"


class Operated:
    """Called like an HTTP client: method, path, and what the body says. `options` are those of `Resilience`."""

    def __init__(self, *, blueprint: dict[str, Any] | None = None, **options: Any) -> None:
        self.clock = FakeClock()
        self.circuit = CircuitBreaker(name="pay/ments", fail_max=2, reset_timeout=10, clock=self.clock)
        self.limiter = RateLimiter("2/minute", name="api", key="k", storage=MemoryStorage(clock=self.clock))
        self.app = Flask("demo")
        given = {"admin_token": TOKEN, "storage": MemoryStorage(clock=self.clock), **options}
        Resilience(self.app, circuits=[self.circuit], limiters=[self.limiter], **given)
        if self.application.attempts is not None:
            self.application.attempts.own_buckets = MemoryStorage(clock=self.clock)
        self.app.register_blueprint(create_admin_blueprint(**(blueprint or {})))
        self.client: FlaskClient = self.app.test_client()

    @property
    def application(self) -> Application:
        application: Application = self.app.extensions["resilience"]
        return application

    def __call__(self, method: str, path: str, body: Any = None, *, token: str | None = TOKEN, **more: Any) -> Any:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        headers.update(more.pop("headers", {}))
        port = str(more.pop("port", 8001))
        return self.client.open(
            path, method=method, headers=headers, json=body, environ_overrides={"SERVER_PORT": port}, **more
        )
