"""How many examples property tests try: few on every save, many in `make test` (HYPOTHESIS_PROFILE=thorough)."""

from __future__ import annotations

import os

from hypothesis import settings

__all__ = ["load_profile", "many"]

QUICK = 10
THOROUGH = 50


def load_profile() -> None:
    """Load the profile that HYPOTHESIS_PROFILE names."""
    # A shared machine may stand still for a second: examples have no time limit of their own, tests do.
    settings.register_profile("quick", deadline=None, max_examples=QUICK)
    settings.register_profile("thorough", deadline=None, max_examples=THOROUGH)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def many(count: int) -> int:
    """`count` examples, or fewer on every save."""
    return count if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else max(10, count // 5)
