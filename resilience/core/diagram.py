"""The table of a circuit's moves as a diagram, in the language of Mermaid.

The diagram in the documentation is this one: `python -m resilience.core.diagram` prints it.
"""

from __future__ import annotations

from resilience.core.breaker import CLOSED, STATES, TRANSITIONS, Event

__all__ = ["state_diagram"]


def state_diagram() -> str:
    """Every move of `TRANSITIONS`, as a Mermaid state diagram. What leads from every state to the same one is drawn once."""
    names = [f'    state "{state}" as {_identifier(state)}' for state in STATES if _identifier(state) != state]
    targets = {event: {new for (_, each), new in TRANSITIONS.items() if each is event} for event in Event}
    sources = {event: [state for state in STATES if (state, event) in TRANSITIONS] for event in Event}
    anywhere = [event for event in Event if len(sources[event]) == len(STATES) and len(targets[event]) == 1]
    lines = ["stateDiagram-v2", *names, '    state "any state" as any', f"    [*] --> {CLOSED}"]
    lines += [_move(old, event, new) for (old, event), new in TRANSITIONS.items() if event not in anywhere]
    lines += [_move("any", event, next(iter(targets[event]))) for event in anywhere]
    return "\n".join(lines) + "\n"


def _move(old: str, event: Event, new: str) -> str:
    return f"    {_identifier(old)} --> {_identifier(new)}: {event.value}"


def _identifier(state: str) -> str:
    return state.replace("-", "_")


if __name__ == "__main__":
    import sys

    sys.stdout.write(state_diagram())
