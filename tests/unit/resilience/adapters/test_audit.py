"""The audit log: what was done by hand, remembered for a while and logged for good."""

from __future__ import annotations

import logging

import pytest

from resilience.adapters.audit import AuditEntry, AuditLog


def entry(target: str = "circuit payments", **more: object) -> AuditEntry:
    return AuditEntry(at=1.0, author="anna (192.0.2.1)", action="open", target=target, **more)  # type: ignore[arg-type]


def test_the_last_entries_are_remembered_with_their_numbers() -> None:
    audit = AuditLog(kept=2)
    for name in "abc":
        audit.record(entry(f"circuit {name}"))
    assert [(2, "circuit b"), (3, "circuit c")] == [(each.number, each.entry.target) for each in audit.entries()]


def test_every_entry_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "resilience.audit"):
        AuditLog().record(
            entry("circuit a\nb", reason="two\nlines", ttl=60.0, detail="key 'k'", unreached=("web-1:7",))
        )
    (said,) = caplog.messages
    assert (
        "circuit 'a\\nb': open by anna (192.0.2.1): done, key 'k', for 60 s, reason 'two\\nlines', unreached web-1:7"
        == said
    )


def test_an_entry_is_described_with_every_field() -> None:
    assert {
        "at": 1.0,
        "author": "anna (192.0.2.1)",
        "action": "open",
        "target": "circuit payments",
        "outcome": "done",
        "reason": "",
        "ttl": None,
        "detail": "",
        "unreached": (),
    } == entry().describe()
