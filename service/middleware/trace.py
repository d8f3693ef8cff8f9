"""W3C Trace Context: takes part in the caller's trace, or starts one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import flask
import structlog

from service.middleware.current import current_request, current_scratch
from service.middleware.link import Proceed

__all__ = ["Parent", "Trace", "Tracing", "parse_traceparent"]

FIELD = "X-Trace-Id"
TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
SAMPLED = 0x01


@dataclass(frozen=True, slots=True)
class Parent:
    """The caller's side of a trace: what `traceparent` said."""

    trace_id: str
    span_id: str
    sampled: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """This request's place in its trace. `traceparent` and `tracestate` are what goes out with calls to others."""

    trace_id: str
    span_id: str
    sampled: bool
    tracestate: str | None = None

    @property
    def traceparent(self) -> str:
        """The outgoing field: this request is the parent."""
        return f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}"


def parse_traceparent(text: str) -> Parent | None:
    """The caller's side of the trace, or None when the field is absent or does not hold: then a new trace starts.

    A version after 00 is read by the four fields that it shares with 00; more may follow them.
    """
    match = TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & SAMPLED))


class Tracing:
    """Fixes `flask.g.trace` and puts its id into every log line and the response."""

    def __call__(self, proceed: Proceed) -> flask.Response:
        """Find the request's place in its trace, answer it, report the id."""
        environ = current_request().environ
        trace = _place(environ.get("HTTP_TRACEPARENT", ""), environ.get("HTTP_TRACESTATE"))
        current_scratch().trace = trace
        structlog.contextvars.bind_contextvars(trace_id=trace.trace_id)
        response = proceed()
        response.headers[FIELD] = trace.trace_id
        return response


def _place(traceparent: str, tracestate: str | None) -> Trace:
    parent = parse_traceparent(traceparent)
    fresh = os.urandom(24).hex()
    if parent is None:
        # A tracestate belongs to its traceparent. Without one it says nothing.
        return Trace(trace_id=fresh[:32], span_id=fresh[32:], sampled=False)
    return Trace(parent.trace_id, fresh[32:], parent.sampled, tracestate or None)
