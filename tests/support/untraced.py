"""An environment in which a process is not traced: what interrupts it at any instant would interrupt the tracer."""

from __future__ import annotations

import os

__all__ = ["without_coverage"]


def without_coverage() -> dict[str, str]:
    """This process's environment, less what has coverage measured in a child."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
