"""What policies tell of: frozen values, each with the policy it is about and when it happened."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

__all__ = [
    "EVENT_TYPES",
    "CallFailed",
    "CallIgnored",
    "CallNotPermitted",
    "CallSlow",
    "CallSucceeded",
    "CircuitReset",
    "LimitExceeded",
    "LimitOverridden",
    "LimitReset",
    "PolicyEvent",
    "RateExceeded",
    "SharingChanged",
    "StateChanged",
    "StoreChanged",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyEvent:
    """Something that happened to the policy named `policy`, at `at` (seconds since 1970).

    `kind` says what the policy is ("circuit", "limiter", "storage"), `type` what happened: for circuits in the words of
    resilience4j, so that what reads its events reads these.
    """

    kind: ClassVar[str] = ""
    type: ClassVar[str] = ""

    policy: str
    at: float

    def describe(self) -> dict[str, Any]:
        """The event as JSON takes it: its kind, its type, and every field."""
        return {"kind": self.kind, "type": self.type, **{each.name: getattr(self, each.name) for each in fields(self)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged(PolicyEvent):
    """A circuit moved. `cause` is what moved it, in words; `reason` and `author` what was said when it was moved by hand;
    `expires_in` for how many seconds it stays so unless it is moved again (None: for ever)."""

    kind = "circuit"
    type = "STATE_TRANSITION"

    old: str
    new: str
    cause: str
    reason: str = ""
    author: str = ""
    expires_in: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSucceeded(PolicyEvent):
    """A call succeeded. Told only while somebody listens, and never kept."""

    kind = "circuit"
    type = "SUCCESS"

    duration: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailed(PolicyEvent):
    """A call failed, with `error` in a line."""

    kind = "circuit"
    type = "ERROR"

    error: str
    duration: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallIgnored(PolicyEvent):
    """A call raised what counts as neither success nor failure."""

    kind = "circuit"
    type = "IGNORED_ERROR"

    error: str
    duration: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSlow(PolicyEvent):
    """A call took as long as counts as slow."""

    kind = "circuit"
    type = "SLOW_CALL"

    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallNotPermitted(PolicyEvent):
    """A circuit refused calls: `count` of them since it last said so, at most once a second."""

    kind = "circuit"
    type = "NOT_PERMITTED"

    count: int
    retry_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RateExceeded(PolicyEvent):
    """A circuit that is set to metrics only, or that needs more hosts than this one to open for all, would have opened."""

    kind = "circuit"
    type = "FAILURE_RATE_EXCEEDED"

    rule: str
    failed: int
    slow: int
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitReset(PolicyEvent):
    """A circuit was closed and its counts forgotten."""

    kind = "circuit"
    type = "RESET"

    reason: str = ""
    author: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingChanged(PolicyEvent):
    """A circuit lost the storage that it shares its state through (`alone`), or has it again."""

    kind = "circuit"
    type = "SHARING"

    alone: bool
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitExceeded(PolicyEvent):
    """A limit refused, or would have (`shadow`), `count` calls since it last said so for this `key`, at most once a second."""

    kind = "limiter"
    type = "REFUSED"

    key: str
    count: int
    retry_after: float | None
    shadow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReset(PolicyEvent):
    """The bucket of `key` was filled by hand."""

    kind = "limiter"
    type = "RESET"

    key: str
    author: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOverridden(PolicyEvent):
    """Other limits hold for a time, by hand; None for `limits`: the limiter's own hold again."""

    kind = "limiter"
    type = "OVERRIDE"

    limits: str | None
    reason: str = ""
    author: str = ""
    expires_in: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreChanged(PolicyEvent):
    """The storage of limits went out of reach, or came back: `mode` says who decides now."""

    kind = "storage"
    type = "MODE"

    mode: str
    error: str = ""


EVENT_TYPES: tuple[type[PolicyEvent], ...] = (
    StateChanged, CallSucceeded, CallFailed, CallIgnored, CallSlow, CallNotPermitted, RateExceeded, CircuitReset,
    SharingChanged, LimitExceeded, LimitReset, LimitOverridden, StoreChanged,
)  # fmt: skip
"""Every type of event."""
