"""The events: frozen, each of a kind and type of its own, and as JSON takes them."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from resilience.core import events
from resilience.core.events import EVENT_TYPES, CallFailed, PolicyEvent, StateChanged

SAMPLES: dict[str, Any] = {
    "str": "text",
    "float": 1.5,
    "float | None": None,
    "int": 3,
    "bool": True,
    "str | None": None,
}


def sample(kind: type[PolicyEvent]) -> PolicyEvent:
    """One event of this type, with something in every field."""
    return kind(**{each.name: SAMPLES[str(each.type)] for each in fields(kind)})


def test_every_event_is_listed_and_public() -> None:
    found = {each for each in vars(events).values() if isinstance(each, type) and issubclass(each, PolicyEvent)}
    assert found - {PolicyEvent} == set(EVENT_TYPES)
    assert {each.__name__ for each in EVENT_TYPES} <= set(events.__all__)


def test_kind_and_type_tell_every_event_from_every_other() -> None:
    assert len(EVENT_TYPES) == len({(each.kind, each.type) for each in EVENT_TYPES})
    assert {"circuit", "limiter", "storage"} == {each.kind for each in EVENT_TYPES}


def test_circuits_tell_in_the_words_of_resilience4j() -> None:
    words = {"ERROR", "IGNORED_ERROR", "SUCCESS", "NOT_PERMITTED", "STATE_TRANSITION", "RESET", "FAILURE_RATE_EXCEEDED"}
    assert words <= {each.type for each in EVENT_TYPES if each.kind == "circuit"}


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_an_event_describes_itself_as_json(kind: type[PolicyEvent]) -> None:
    event = sample(kind)
    described = json.loads(json.dumps(event.describe()))
    assert {"kind": kind.kind, "type": kind.type} | {
        each.name: getattr(event, each.name) for each in fields(kind)
    } == described


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_an_event_is_a_value(kind: type[PolicyEvent]) -> None:
    event = sample(kind)
    assert sample(kind) == event
    assert 1 == len({event, sample(kind)})
    with pytest.raises(FrozenInstanceError):
        event.at = 2.0  # type: ignore[misc]  # that is the point


def test_an_event_is_made_by_the_names_of_its_fields() -> None:
    with pytest.raises(TypeError):
        CallFailed("payments", 1.0, "OSError")  # type: ignore[call-arg]  # that is the point
    moved = StateChanged(policy="payments", at=1.0, old="closed", new="open", cause="too many failed calls")
    assert ("", "", None) == (moved.reason, moved.author, moved.expires_in)
