"""What a circuit raises in place of a call."""

from __future__ import annotations

from typing import Final

import pybreaker

from resilience.errors import Rejected

__all__ = ["STILL_OPEN", "CircuitOpen", "refusal"]

STILL_OPEN: Final = "Timeout not elapsed yet, circuit breaker still open"
"""In pybreaker's words, which callers may match."""


class CircuitOpen(pybreaker.CircuitBreakerError, Rejected):
    """The circuit is open, or half-open with all its probes under way: the call was not made.

    Also raised, for the call that trips the circuit, by a breaker with `throw_new_error_on_trip`. `retry_after` is in seconds.
    """

    retry_after: float

    def __str__(self) -> str:
        # Put together when somebody reads it: most rejections are never printed.
        return f"{self.args[0]} (circuit {self.policy!r}, retry in {self.retry_after:.3f} s)"


_bare = BaseException.__new__


def refusal(message: str, policy: str, retry_after: float) -> CircuitOpen:
    """A `CircuitOpen`, made without the calls of its constructors: an open circuit is asked as often as a closed one."""
    error: CircuitOpen = _bare(CircuitOpen, message)
    error.policy = policy
    error.retry_after = retry_after
    return error
