"""What this host is called."""

from __future__ import annotations

import socket

import pytest

from resilience.host import host_name


def test_the_operating_system_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESILIENCE_HOST", raising=False)
    assert socket.gethostname() == host_name()
    monkeypatch.setenv("RESILIENCE_HOST", " ")
    assert socket.gethostname() == host_name()


def test_unless_the_environment_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESILIENCE_HOST", "web-1.example.org:8000")
    assert "web-1.example.org:8000" == host_name()


@pytest.mark.parametrize("name", ["web 1", "web@1", "wéb", "x" * 101, "web\n1"])
def test_a_name_that_could_be_taken_for_something_else_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("RESILIENCE_HOST", name)
    with pytest.raises(ValueError, match=r"RESILIENCE_HOST=.*: write 1 to 100 letters"):
        host_name()
