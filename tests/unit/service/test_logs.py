from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import re
import select
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import logs

NASTY = st.text(st.characters() | st.sampled_from("\r\n\x00\x1b\x7f\x85\x9b\u2028\u2029"))


class Output:
    """What the test has written to standard output since it was last asked."""

    def __init__(self, capture: pytest.CaptureFixture[bytes]) -> None:
        self._capture = capture

    def text(self) -> str:
        return self._capture.readouterr().out.decode()

    def lines(self) -> list[str]:
        return self.text().splitlines()


@pytest.fixture
def output(capsysbinary: pytest.CaptureFixture[bytes]) -> Iterator[Output]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield Output(capsysbinary)
    root.handlers, root.level = before, level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def only_event(output: Output) -> dict[str, Any]:
    (line,) = output.lines()
    event: dict[str, Any] = json.loads(line)
    return event


def test_an_event_is_one_line_of_json_that_begins_with_when_how_bad_and_what(output: Output) -> None:
    logs.configure(level="info", style="json")
    structlog.get_logger().info("served", status=200)
    event = only_event(output)
    assert ["timestamp", "level", "event"] == list(event)[:3]
    assert ("info", "served", 200) == (event["level"], event["event"], event["status"])


def test_timestamps_are_utc_with_milliseconds(output: Output) -> None:
    logs.configure()
    structlog.get_logger().info("now")
    timestamp = only_event(output)["timestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", timestamp)
    assert abs(datetime.fromisoformat(timestamp).timestamp() - datetime.now().astimezone().timestamp()) < 60


def test_events_below_the_level_are_not_written(output: Output) -> None:
    logs.configure(level="warning")
    structlog.get_logger().info("quiet")
    logging.getLogger("library").info("quiet")
    assert [] == output.lines()


def test_what_is_bound_to_the_context_is_in_every_line(output: Output) -> None:
    logs.configure()
    structlog.contextvars.bind_contextvars(trace_id="abc")
    structlog.get_logger().info("one")
    logging.getLogger("library").info("two")
    assert ["abc", "abc"] == [json.loads(line)["trace_id"] for line in output.lines()]


def test_records_of_the_standard_library_have_the_same_form(output: Output) -> None:
    logs.configure()
    logging.getLogger("sqlalchemy.pool").warning("lost %s of %d", "connection", 3)
    event = only_event(output)
    assert ("warning", "lost connection of 3", "sqlalchemy.pool") == (event["level"], event["event"], event["logger"])


def test_configuring_again_does_not_double_lines(output: Output) -> None:
    logs.configure()
    logs.configure()
    logging.getLogger("library").warning("once")
    structlog.get_logger().warning("once")
    assert 2 == len(output.lines())


def test_an_exception_is_within_its_line(output: Output) -> None:
    logs.configure()
    error = ValueError("first\nsecond")
    structlog.get_logger().error("broke", exc_info=error)
    logging.getLogger("library").error("broke too", exc_info=error)
    assert ["first\nsecond" in json.loads(line)["exception"] for line in output.lines()] == [True, True]


def test_a_record_that_does_not_fit_its_arguments_is_no_failure_of_the_caller(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.configure()
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logging.getLogger("library").warning("%d", "not a number")
    assert [] == output.lines()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=NASTY)
def test_no_value_ends_a_json_line_or_reaches_a_terminal_as_a_control_character(output: Output, value: str) -> None:
    logs.configure()
    structlog.get_logger().info(value, path=value)
    text = output.text()
    assert 1 == text.count("\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", text)
    assert value == json.loads(text)["path"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=NASTY)
def test_no_value_ends_a_console_line_or_steers_the_terminal(output: Output, value: str) -> None:
    logs.configure(style="console")
    structlog.get_logger().info(value, path=value)
    text = output.text()
    assert 1 == text.count("\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", text)


def test_no_message_of_an_exception_passes_for_a_console_line_of_its_own(output: Output) -> None:
    logs.configure(style="console")
    error = ValueError("\x1b[2J\n2026-01-01T00:00:00.000Z [info] all is well")
    structlog.get_logger().error("broke", exc_info=error)
    first, *rest = output.lines()
    assert "broke" in first
    assert all(line.startswith(logs.TRACEBACK_MARGIN) for line in rest)
    assert not any("\x1b" in line for line in rest)


@pytest.mark.parametrize("value", ["\ud800", 2**70, {1: "a"}, {(1, 2): "b"}, object(), b"\xff", float("nan")])
def test_values_that_json_cannot_hold_are_written_all_the_same(output: Output, value: object) -> None:
    logs.configure()
    structlog.get_logger().info("odd", value=value)
    assert "odd" == only_event(output)["event"]


def test_a_line_that_cannot_be_written_is_dropped(monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    logs.configure()
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    monkeypatch.setattr("sys.stdout", closed)
    structlog.get_logger().info("nobody reads this")
    assert "" == output.text()


@contextlib.contextmanager
def unread_pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make a small pipe the standard output. Gives its reading end."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    with os.fdopen(writing, "w") as stream, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", stream)
        yield reading
    os.close(reading)


@pytest.mark.usefixtures("output")
def test_lines_that_nobody_reads_hold_nobody_up_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    total = logs.LINES_WAITING + 500
    numbers: list[int] = []
    dropped, rest = 0, b""
    with unread_pipe(monkeypatch) as pipe:
        logs.configure()
        for number in range(total):
            structlog.get_logger().info("waiting", number=number)
        logs._writer.flush(0.05)  # gives up, since nobody reads
        while len(numbers) + dropped < total:
            assert select.select([pipe], [], [], 5)[0], f"{len(numbers)} written and {dropped} dropped of {total}"
            *lines, rest = (rest + os.read(pipe, 65536)).split(b"\n")
            events = [json.loads(line) for line in lines]
            dropped += sum(event.get("dropped", 0) for event in events)
            numbers += [event["number"] for event in events if "number" in event]
    assert sorted(numbers) == numbers
    assert 0 < dropped <= 500


@pytest.mark.usefixtures("output")
def test_lines_for_a_pipe_keep_their_order_and_are_there_after_a_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    with unread_pipe(monkeypatch) as pipe:
        logs.configure()
        for number in range(5):
            structlog.get_logger().info("read", number=number)
        logs._writer.flush()
        assert list(range(5)) == [json.loads(line)["number"] for line in os.read(pipe, 65536).splitlines()]


def test_a_crash_of_a_greenlet_is_logged_with_its_stack(output: Output) -> None:
    class Hub:
        print_exception: Any = None

    hub = Hub()
    logs.configure()
    logs.log_greenlet_crashes(hub)
    error = ValueError("lost")
    hub.print_exception(hub, ValueError, error, None)
    event = only_event(output)
    assert ("error", "greenlet crashed", repr(hub)) == (event["level"], event["event"], event["greenlet"])
    assert "ValueError: lost" in event["exception"]
