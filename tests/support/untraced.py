"""How processes that tests start are measured: by greenlet, or not at all, where what interrupts them at any instant would
interrupt the tracer."""

from __future__ import annotations

import base64
import json
import os

__all__ = ["trace_children_by_greenlet", "without_coverage"]

_CONFIGURATION = "COVERAGE_PROCESS_CONFIG"
"""Where coverage tells the processes that are started what to do: JSON in base64 (coverage 7.10 and later)."""


def trace_children_by_greenlet() -> None:
    """Have coverage, where it runs, tell the greenlets of a child apart. In this process it does not: see pyproject.toml."""
    told = os.environ.get(_CONFIGURATION)
    if told is not None:
        configuration = json.loads(base64.b64decode(told))
        configuration["concurrency"] = ["greenlet", "thread"]
        os.environ[_CONFIGURATION] = base64.b64encode(json.dumps(configuration).encode()).decode()


def without_coverage() -> dict[str, str]:
    """This process's environment, less what has coverage measured in a child."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
