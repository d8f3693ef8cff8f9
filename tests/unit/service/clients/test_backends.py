from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from service.clients.backends import build_backends
from service.settings import Settings, SettingsError
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


@pytest.mark.parametrize("url", ["http://caf\xe9.example", "http://a.example/caf\xe9"])
def test_refuses_an_address_that_cannot_be_put_on_the_wire(url: str) -> None:
    with pytest.raises(SettingsError, match="a must be ASCII; percent-encode the path"):
        build_backends(settings(backends={"a": url}))
