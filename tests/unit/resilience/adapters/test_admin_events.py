"""Events of all workers: as a list that can be continued, and as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.adapters.admin.blueprint import _take_snapshot
from resilience.adapters.admin.events import (
    LONGEST,
    MOST_STREAMS,
    PAUSE,
    QUIET,
    MergedEvents,
    Stream,
    merged_events,
    read_cursor,
    write_cursor,
)
from resilience.adapters.admin.limiters import PARTS
from resilience.adapters.peers import Answers, Worker
from resilience.clock import epoch_seconds
from resilience.events import PROCESS_EVENTS
from resilience.registry import PROCESS_REGISTRY
from resilience.testing import FakeClock
from tests.support.operating import TOKEN, Operated

ONE, TWO, THREE = (Worker("web-1", pid) for pid in (1, 2, 3))


@pytest.fixture
def call() -> Iterator[Operated]:
    PROCESS_REGISTRY.clear()
    PROCESS_EVENTS.clear()
    yield Operated()
    PROCESS_REGISTRY.clear()
    PROCESS_EVENTS.clear()


class Told(NamedTuple):
    """One message of a stream."""

    event: str
    data: Any
    id: str | None


def read(lines: list[str]) -> list[Told]:
    told = []
    for block in "".join(lines).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            told.append(Told(fields["event"], json.loads(fields["data"]), fields.get("id")))
    return told


class Watching:
    """A stream that is read by hand: what it waits for goes by at once."""

    def __init__(self, call: Operated, **more: Any) -> None:
        self.clock = FakeClock()
        self.ends = False
        options: dict[str, Any] = {"wanted": {}, "known": None, "every": None, "session": None, **more}
        stream = Stream(
            call.application,
            take_snapshot=_take_snapshot,
            parts=("circuits", *PARTS),
            ends=lambda: self.ends,
            clock=self.clock,
            **options,
        )
        self.lines = stream.lines()

    def next(self, count: int = 1) -> list[Told]:
        """What the next pieces say."""
        return read([next(self.lines) for _ in range(count)])


# -- lists -------------------------------------------------------------------------------------------------------------


def test_events_are_listed_the_oldest_first_with_a_cursor_behind_them(call: Operated) -> None:
    call.circuit.open()
    call.circuit.close()
    answer = call("GET", "/admin/events").get_json()
    assert ["open", "closed"] == [event["new"] for event in answer["events"]]
    itself = call.application.worker
    assert f"{itself}/{PROCESS_EVENTS.last}" == answer["events"][-1]["id"]
    assert {str(itself): PROCESS_EVENTS.last} == read_cursor(answer["cursor"])


def test_whoever_comes_back_with_a_cursor_is_told_what_is_new(call: Operated) -> None:
    call.circuit.open()
    cursor = call("GET", "/admin/events").get_json()["cursor"]
    call.circuit.close()
    call.circuit.half_open()
    first = call("GET", "/admin/events", query_string={"limit": 1, "since": cursor}).get_json()
    second = call("GET", "/admin/events", query_string={"since": first["cursor"]}).get_json()
    third = call("GET", "/admin/events", query_string={"since": second["cursor"]}).get_json()
    assert [["closed"], ["half-open"], []] == [
        [event["new"] for event in answer["events"]] for answer in (first, second, third)
    ]


def test_events_can_be_narrowed_down(call: Operated) -> None:
    call.circuit.open()
    call("POST", "/admin/limiters/api/reset?key=k")
    for query, kinds in (
        ("", ["circuit", "limiter"]),
        ("kind=limiter", ["limiter"]),
        ("policy=pay/ments", ["circuit"]),
        ("type=STATE_TRANSITION", ["circuit"]),
        ("kind=limiter&type=STATE_TRANSITION", []),
    ):
        assert kinds == [event["kind"] for event in call("GET", f"/admin/events?{query}").get_json()["events"]]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=x",
        f"limit=000000001{'0' * 5_000}",
        "since=nonsense",
        "since=a=b",
        "since=web:1=-1",
    ],
)
def test_a_question_that_makes_no_sense_is_refused(call: Operated, query: str) -> None:
    assert 400 == call("GET", f"/admin/events?{query}").status_code


def test_a_number_from_the_future_is_that_of_an_earlier_process(call: Operated) -> None:
    call.circuit.open()
    since = write_cursor({str(call.application.worker): PROCESS_EVENTS.last + 1_000})
    events = call("GET", "/admin/events", query_string={"since": since}).get_json()["events"]
    assert ["open"] == [event["new"] for event in events]


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 10**17), max_size=5))
def test_a_cursor_is_read_as_it_was_written(cursor: dict[str, int]) -> None:
    assert cursor == read_cursor(write_cursor(cursor))


@given(st.text())
def test_whatever_is_no_cursor_is_refused_with_a_reason(text: str) -> None:
    refusal = ""
    try:
        read_cursor(text)
    except ValueError as error:
        refusal = str(error)
    assert not refusal or "cursor" in refusal


def answered(last: int, *events: tuple[int, float]) -> dict[str, Any]:
    return {"events": {"last": last, "entries": [{"number": number, "at": at} for number, at in events]}}


def test_events_of_several_workers_are_told_in_the_order_of_time() -> None:
    merged = merged_events(Answers({ONE: answered(5, (4, 10.0), (5, 30.0)), TWO: answered(9, (9, 20.0))}, ()))
    assert ["web-1:1/4", "web-1:2/9", "web-1:1/5"] == [event["id"] for event in merged.events]
    assert {"web-1:1": 5, "web-1:2": 9} == merged.cursor


def test_a_worker_that_did_not_answer_stays_in_the_cursor_and_one_that_is_gone_does_not() -> None:
    known = {"web-1:1": 4, "web-1:2": 7, "web-1:3": 8}
    merged = merged_events(Answers({ONE: answered(5)}, (TWO,)), known)
    assert MergedEvents([], {"web-1:1": 5, "web-1:2": 7}) == merged


# -- streams -----------------------------------------------------------------------------------------------------------


def test_a_stream_begins_with_what_is_remembered_and_goes_on_with_what_is_new(call: Operated) -> None:
    call.circuit.open()
    watching = Watching(call)
    assert "retry: 2000\n\n" == next(watching.lines)
    (first,) = watching.next()
    call.circuit.close()
    (second,) = watching.next()
    assert [("policy", "open"), ("policy", "closed")] == [(told.event, told.data["new"]) for told in (first, second)]
    assert {str(call.application.worker): PROCESS_EVENTS.last} == read_cursor(second.id or "")


def test_whoever_comes_back_to_a_stream_misses_nothing(call: Operated) -> None:
    call.circuit.open()
    watching = Watching(call)
    (first,) = watching.next(2)
    watching.lines.close()  # type: ignore[attr-defined]  # a generator
    call.circuit.close()
    again = Watching(call, known=read_cursor(first.id or ""))
    assert ["closed"] == [told.data["new"] for told in again.next(2)]


def test_only_the_last_of_several_events_carries_the_cursor(call: Operated) -> None:
    call.circuit.open()
    call.circuit.close()
    assert [False, True] == [told.id is not None for told in Watching(call).next(2)]


def test_a_stream_can_be_narrowed_down_and_its_cursor_goes_on_nevertheless(call: Operated) -> None:
    call.circuit.open()
    watching = Watching(call, wanted={"kind": "limiter"})
    next(watching.lines)
    assert f"id: {write_cursor({str(call.application.worker): PROCESS_EVENTS.last})}\n\n" == next(watching.lines)


def test_snapshots_come_at_once_and_then_so_often(call: Operated) -> None:
    watching = Watching(call, every=2.0)
    told = [(watching.clock.seconds(), each) for _ in range(3) for each in watching.next()]
    began = told[0][0]
    snapshots = [(round(at - began, 1), each) for at, each in told if each.event == "snapshot"]
    assert [0.0, 2.0] == [at for at, _ in snapshots]
    data = snapshots[0][1].data
    assert {"circuits", "limiters", "storage", "state", "workers"} == data.keys()
    assert ["pay/ments"] == [circuit["name"] for circuit in data["circuits"]]


def test_the_audit_log_comes_with_the_first_snapshot_and_whenever_it_has_changed(call: Operated) -> None:
    watching = Watching(call, every=PAUSE)
    heard = [told.event for told in watching.next(2) + watching.next()]
    assert ["snapshot", "audit", "snapshot"] == heard
    call("POST", "/admin/circuits/pay/ments/reset", {})
    (audit,) = (told for told in watching.next() if told.event == "audit")
    assert ["reset"] == [entry["action"] for entry in audit.data["entries"]]


def test_a_quiet_stream_says_that_it_is_still_there(call: Operated) -> None:
    watching = Watching(call)
    next(watching.lines)
    next(watching.lines)  # the cursor
    began = watching.clock.seconds()
    assert ": still here\n\n" == next(watching.lines)
    assert QUIET == watching.clock.seconds() - began


def test_a_stream_ends_with_the_session_of_its_reader(call: Operated) -> None:
    sessions = call.application.sessions
    assert sessions is not None
    _, session = sessions.begin("anna", epoch_seconds())
    watching = Watching(call, session=session)
    next(watching.lines)
    next(watching.lines)  # the cursor
    sessions.end(session.id, epoch_seconds())
    call.circuit.open()
    assert [("end", {"reason": "the session is over"})] == [
        (told.event, told.data) for told in read(list(watching.lines))
    ]


def test_the_stream_of_a_browser_ends_with_its_session(call: Operated) -> None:
    said = call("POST", "/admin/login", {"token": TOKEN}, token=None).headers["Set-Cookie"]
    stream = call("GET", "/admin/events", token=None, headers={"Accept": "text/event-stream"}, buffered=False)
    sessions = call.application.sessions
    assert sessions is not None
    sessions.end(said.partition("=")[2].partition(".")[0], epoch_seconds())
    assert "the session is over" in stream.get_data(as_text=True)


def test_a_stream_ends_when_its_worker_stops(call: Operated) -> None:
    watching = Watching(call)
    watching.ends = True
    *_, last = read(list(watching.lines))
    assert ("end", "this worker stops") == (last.event, last.data["reason"])


def test_a_stream_ends_when_its_application_is_closed(call: Operated) -> None:
    watching = Watching(call)
    next(watching.lines)
    call.application.close()
    assert "end" == read(list(watching.lines))[-1].event


def test_a_stream_ends_after_a_while_so_that_whoever_comes_back_is_looked_at_again(call: Operated) -> None:
    watching = Watching(call)
    began = watching.clock.seconds()
    *_, last = read(list(watching.lines))
    assert ("end", LONGEST) == (last.event, watching.clock.seconds() - began)


def test_who_accepts_a_stream_gets_one_and_who_asks_since_gets_a_list(call: Operated) -> None:
    accepting = {"Accept": "text/event-stream"}
    stream = call("GET", "/admin/events", headers=accepting, buffered=False)
    assert ("text/event-stream; charset=utf-8", "no-store", "no") == (
        stream.content_type, stream.headers["Cache-Control"], stream.headers["X-Accel-Buffering"]
    )  # fmt: skip
    stream.close()
    for path, headers in (("", {}), ("?since=", accepting), ("", {"Accept": "*/*"})):
        assert "application/json" == call("GET", f"/admin/events{path}", headers=headers).content_type


@pytest.mark.parametrize("every", ["0", "0.4", "61", "x", "nan"])
def test_snapshots_come_neither_too_often_nor_too_rarely(call: Operated, every: str) -> None:
    answer = call("GET", f"/admin/events?snapshots={every}", headers={"Accept": "text/event-stream"})
    assert 400 == answer.status_code


def test_a_worker_serves_so_many_streams_and_gives_every_place_back(call: Operated) -> None:
    def watch() -> Any:
        return call("GET", "/admin/events", headers={"Accept": "text/event-stream"}, buffered=False)

    streams = [watch() for _ in range(MOST_STREAMS)]
    refused = watch()
    assert (503, "5") == (refused.status_code, refused.headers["Retry-After"])
    for stream in streams:
        stream.close()
        stream.close()
    streams = [watch() for _ in range(MOST_STREAMS)]
    assert {200} == {stream.status_code for stream in streams}
    assert 503 == watch().status_code
    for stream in streams:
        stream.close()


def test_a_cursor_of_another_server_begins_anew(call: Operated) -> None:
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "nonsense"}
    stream = call("GET", "/admin/events", headers=headers, buffered=False)
    assert 200 == stream.status_code
    stream.close()
