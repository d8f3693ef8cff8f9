"""The diagram of the documentation is the table of the code."""

from __future__ import annotations

import re
from pathlib import Path

from resilience.core.breaker import STATES, TRANSITIONS
from resilience.core.diagram import state_diagram

PAGE = Path(__file__).parents[4] / "docs" / "circuit-breaker.md"
_MOVE = re.compile(r"(\S+) --> (\S+): (.+)")


def moves() -> set[tuple[str, str, str]]:
    """What the diagram draws, by the names of states."""
    found = (_MOVE.fullmatch(line.strip()) for line in state_diagram().splitlines())
    return {
        (old.replace("_", "-"), new.replace("_", "-"), cause) for old, new, cause in (m.groups() for m in found if m)
    }


def test_the_diagram_draws_every_move_of_the_table_and_no_other() -> None:
    drawn = {(state, new, cause) for old, new, cause in moves() for state in (STATES if old == "any" else (old,))}
    assert {(old, new, event.value) for (old, event), new in TRANSITIONS.items()} == drawn


def test_what_leads_from_everywhere_to_one_state_is_drawn_once() -> None:
    assert len(moves()) == 8 + len(STATES)


def test_the_page_shows_the_diagram_as_it_is() -> None:
    shown = re.findall(r"```mermaid\n(stateDiagram-v2\n.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert [state_diagram()] == shown
