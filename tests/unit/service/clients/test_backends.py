from __future__ import annotations

import gevent
import pytest
from structlog.testing import capture_logs

from service.clients.backends import CallerTooSlow, build_backends
from service.errors import BackendFailed, BackendSaturated, BackendTimedOut
from service.settings import Settings
from tests.support.database import settings_for


def settings(**values: object) -> Settings:
    return settings_for("sqlite:///unused.db", **values)


def test_builds_none_when_none_is_configured() -> None:
    assert {} == build_backends(settings())


def test_gives_each_backend_a_circuit_of_its_own_as_configured() -> None:
    backends = build_backends(
        settings(
            backends={"a": "http://a.example", "b": "https://b.example/base"},
            backend_fail_max=7,
            backend_reset_timeout=3,
        )
    )

    assert [("a", 7, 3.0), ("b", 7, 3.0)] == [
        (backend.circuit.name, backend.circuit.fail_max, backend.circuit.reset_timeout) for backend in backends.values()
    ]
    assert backends["a"].circuit is not backends["b"].circuit


def test_logs_when_a_circuit_changes() -> None:
    circuit = build_backends(settings(backends={"a": "http://a.example"}))["a"].circuit

    with capture_logs() as lines:
        circuit.open()
        circuit.close()

    assert [("a", "closed", "open"), ("a", "open", "closed")] == [
        (line["circuit"], line["old"], line["new"]) for line in lines
    ]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (BackendFailed(), "open"),
        (BackendTimedOut(), "open"),
        (gevent.Timeout(), "open"),
        (BackendSaturated(), "closed"),
        (CallerTooSlow(), "closed"),
        (ValueError(), "closed"),
        (gevent.GreenletExit(), "closed"),
    ],
)
def test_opens_the_circuit_for_what_the_backend_did_and_for_nothing_else(error: BaseException, state: str) -> None:
    circuit = build_backends(settings(backends={"a": "http://a.example"}, backend_fail_max=1))["a"].circuit

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        circuit.call(fail)
    assert state == circuit.current_state
