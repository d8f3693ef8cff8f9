"""Checking the members of an input: known, present, strings, and each by its own rule; every fault in one answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from service.errors import ValidationFailed

__all__ = ["Fault", "check_members"]

Fault = Callable[[str], str | None]
"""What is wrong with a value, as a phrase that follows its name; None when nothing is."""

REPORTED = 20
LONGEST_POINTER = 64


def check_members(
    members: Mapping[str, object], rules: Mapping[str, Fault], *, required: Collection[str], free: Collection[str] = ()
) -> dict[str, Any]:
    """The members, all of them strings that their rules accept; those named in `free` may be anything.

    Raises `ValidationFailed` that names every member which is missing, unknown or wrong (the first 20).
    """
    missing = [(name, "is required") for name in required if name not in members]
    looked_at = [(name, value) for name, value in members.items() if name not in free or name not in rules]
    wrong = [(name, fault) for name, value in looked_at if (fault := _fault(rules, name, value)) is not None]
    faults = [(_pointer(name), fault) for name, fault in (*missing, *wrong)]
    if faults:
        pointer, fault = faults[0]
        more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ValidationFailed(f"{pointer} {fault}{more}.", fields=faults[:REPORTED])
    return dict(members)


def _fault(rules: Mapping[str, Fault], name: str, value: object) -> str | None:
    if name not in rules:
        return f"is not known here; known are {', '.join(rules)}"
    return rules[name](value) if isinstance(value, str) else "must be a string"


def _pointer(name: str) -> str:
    """As RFC 6901 writes it, shortened: an unknown name may be of any length."""
    return "/" + name[:LONGEST_POINTER].replace("~", "~0").replace("/", "~1")
