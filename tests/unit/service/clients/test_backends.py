from __future__ import annotations

from datetime import UTC, datetime

import gevent
import pytest
from structlog.testing import capture_logs

from service.clients.backends import CallerTooSlow, build_backends, seconds_to_wait
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
            backend_failure_rate=0.25,
            backend_reset_timeout=3,
            backend_quorum=4,
        )
    )

    policies = [(backend.circuit.name, backend.circuit.policy) for backend in backends.values()]
    assert [("a", 7, 0.25, 3.0, 30.0, 4), ("b", 7, 0.25, 3.0, 30.0, 4)] == [
        (name, each.fail_max, each.failure_rate, each.reset_timeout, each.open_time_cap, each.quorum)
        for name, each in policies
    ]
    assert backends["a"].circuit is not backends["b"].circuit


def test_logs_when_a_circuit_changes() -> None:
    backend = build_backends(settings(backends={"moved": "http://a.example"}))["moved"]
    other = build_backends(settings(backends={"other": "http://b.example"}))["other"]

    with capture_logs() as lines:
        backend.circuit.open()
        backend.circuit.force_open(reason="bank is away", author="ann", expires_in=60)
        for each in (backend, other):
            each.close()
        backend.circuit.close()

    logged = {"event": "circuit changed", "log_level": "warning", "circuit": "moved"}
    forced = {"reason": "bank is away", "author": "ann", "expires_in": 60}
    assert [
        {**logged, "old": "closed", "new": "open", "cause": "opened by hand"},
        {**logged, "old": "open", "new": "forced-open", "cause": "forced open", **forced},
    ] == lines


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


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("99999999999999999999", 86_400.0),
        ("Fri, 13 Nov 2026 07:28:30 GMT", 30.0),
        ("Fri, 13 Nov 2026 07:00:00 GMT", 0.0),
        ("Fri, 13 Nov 9999 07:00:00 GMT", 86_400.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("Fri, 99 Nov 2026 07:28:30 GMT", None),
    ],
)
def test_reads_for_how_long_a_backend_asks_to_be_left_alone(field: str, seconds: float | None) -> None:
    now = datetime(2026, 11, 13, 7, 28, tzinfo=UTC).timestamp()
    assert seconds == seconds_to_wait(field, now)
