"""What every storage of state refuses, in the same words: records that are too long, and times that are none."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["LONGEST_LEFT", "LONGEST_MEMBER", "LONGEST_RECORD", "check_left", "check_record"]

LONGEST_RECORD: Final = 4_000
"""Bytes of a record."""

LONGEST_LEFT: Final = 500
"""Bytes that a member may leave for the others."""

LONGEST_MEMBER: Final = 200
"""Bytes of a member's name, in UTF-8."""


def check_record(text: bytes, keep: float) -> None:
    """Return if `text` can be a record that is kept for `keep` seconds. Raises `ValueError` otherwise."""
    if len(text) > LONGEST_RECORD:
        raise ValueError(f"a record of {len(text):,} bytes: a storage of state takes {LONGEST_RECORD:,} at most")
    _check_keep(keep)


def check_left(member: str, text: bytes, keep: float) -> None:
    """Return if `member` can leave `text` for `keep` seconds. Raises `ValueError` otherwise."""
    if not 1 <= len(member.encode("utf-8", "surrogatepass")) <= LONGEST_MEMBER:
        raise ValueError(f"the member {member[:20]!r}: a name has from 1 to {LONGEST_MEMBER} bytes")
    if len(text) > LONGEST_LEFT:
        raise ValueError(f"a member leaves {len(text):,} bytes: a storage of state takes {LONGEST_LEFT} at most")
    _check_keep(keep)


def _check_keep(keep: float) -> None:
    if not (math.isfinite(keep) and keep > 0):
        raise ValueError(f"keep={keep!r}: a storage of state keeps for finite seconds above 0")
