from __future__ import annotations

import dataclasses
import re

import flask
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.middleware.trace import Parent, Trace, Tracing, parse_traceparent
from tests.support.edge import serve

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
HEX = "0123456789abcdef"


def digits(count: int) -> st.SearchStrategy[str]:
    return st.text(HEX, min_size=count, max_size=count)


@given(trace_id=digits(32), span_id=digits(16), flags=digits(2))
def test_a_field_of_version_00_is_its_three_values(trace_id: str, span_id: str, flags: str) -> None:
    assume(trace_id.strip("0") and span_id.strip("0"))
    expected = Parent(trace_id, span_id, sampled=int(flags, 16) % 2 == 1)
    assert expected == parse_traceparent(f"00-{trace_id}-{span_id}-{flags}")


@given(st.text())
def test_no_text_makes_the_parser_raise_and_what_it_accepts_has_the_right_form(text: str) -> None:
    parent = parse_traceparent(text)
    if parent is not None:
        assert re.fullmatch(r"[0-9a-f]{32}", parent.trace_id)
        assert re.fullmatch(r"[0-9a-f]{16}", parent.span_id)


@given(version=digits(2), rest=st.text(st.characters(codec="latin-1", exclude_characters="\n")))
def test_a_later_version_is_read_by_its_first_four_fields(version: str, rest: str) -> None:
    assume(version not in ("00", "ff"))
    expected = Parent(TRACE, SPAN, sampled=True)
    assert expected == parse_traceparent(f"{version}-{TRACE}-{SPAN}-01")
    assert expected == parse_traceparent(f"{version}-{TRACE}-{SPAN}-01-{rest}")


@given(trace=st.builds(Trace, trace_id=digits(32), span_id=digits(16), sampled=st.booleans()))
def test_what_goes_out_can_be_read_by_the_next(trace: Trace) -> None:
    assume(trace.trace_id.strip("0") and trace.span_id.strip("0"))
    assert Parent(trace.trace_id, trace.span_id, trace.sampled) == parse_traceparent(trace.traceparent)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"01-{TRACE}-{SPAN}-01more",
        f"00-{TRACE}-{SPAN}-0",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"0-{TRACE}-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}٣-{SPAN}-01",
    ],
)
def test_what_the_specification_refuses_is_refused(text: str) -> None:
    assert parse_traceparent(text) is None


def test_a_request_takes_part_in_its_callers_trace_as_a_span_of_its_own() -> None:
    app = serve([Tracing()], thing=lambda: dataclasses.asdict(flask.g.trace))
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1,other=x"}
    response = app.test_client().get("/thing", headers=headers)
    assert response.json is not None
    assert (TRACE, True, "vendor=1,other=x") == tuple(
        response.json[name] for name in ("trace_id", "sampled", "tracestate")
    )
    assert response.json["span_id"] != SPAN
    assert TRACE == response.headers["X-Trace-Id"]


@pytest.mark.parametrize("traceparent", ["", f"00-{'0' * 32}-{SPAN}-01"])
def test_without_a_valid_parent_a_new_trace_starts_and_its_state_is_dropped(traceparent: str) -> None:
    app = serve([Tracing()], thing=lambda: dataclasses.asdict(flask.g.trace))
    headers = {"traceparent": traceparent, "tracestate": "vendor=1"}
    first, second = (app.test_client().get("/thing", headers=headers) for _ in range(2))
    assert first.json is not None
    assert (None, False) == (first.json["tracestate"], first.json["sampled"])
    assert first.headers["X-Trace-Id"] != second.headers["X-Trace-Id"]
    assert first.json["trace_id"] == first.headers["X-Trace-Id"]
