"""Each test has loggers and handlers of its own, and pipes for what may be read or not."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import logging
import logging.handlers
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longconn import logs

SIZE = 64 * 1024
FORMAT = logging.Formatter("%(levelname)s %(message)s")


class Pipe:
    """The least of pipes: one page, which a line or two can fill."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        self.stream = os.fdopen(writing, "w", encoding="utf-8")

    def read(self) -> str:
        """What is in the pipe now, and what follows until nothing has come for a while."""
        parts = []
        while select.select([self.reading], [], [], 0.3)[0]:
            parts.append(os.read(self.reading, SIZE))
            if not parts[-1]:
                break
        return b"".join(parts).decode()


@pytest.fixture
def dropped() -> list[int]:
    return []


@pytest.fixture
def names(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """The names of two loggers that nobody else has. The module forgets all handlers afterwards."""
    monkeypatch.setattr(type(caplog.handler), "never_waits", True, raising=False)  # pytest's own stay as they are
    made = [f"{request.node.name}.error", f"{request.node.name}.access"]
    writers, detached = dict(logs._writers), set(logs._detached)
    for name in made:
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.setLevel(logging.INFO)
    yield made
    for name in made:
        for handler in list(logging.getLogger(name).handlers):
            logging.getLogger(name).removeHandler(handler)
            handler.close()
    logs.flush(1.0)
    logs._writers.clear()
    logs._writers.update(writers)
    logs._detached = type(logs._detached)(detached)


@pytest.fixture
def pipe(names: list[str]) -> Iterator[Pipe]:
    made = Pipe()
    yield made
    with contextlib.suppress(OSError):
        os.close(made.reading)  # a thread that still waits for a reader goes on, and counts
    logs.flush(1.0)
    made.stream.close()


def with_handler(name: str, handler: logging.Handler) -> logging.Logger:
    handler.setFormatter(FORMAT)
    logging.getLogger(name).addHandler(handler)
    return logging.getLogger(name)


def test_lines_arrive_in_order_and_are_all_there_after_a_flush(
    pipe: Pipe, names: list[str], dropped: list[int]
) -> None:
    error = with_handler(names[0], logging.StreamHandler(pipe.stream))
    logs.detach(names, dropped.append)
    for number in range(100):
        error.info("line %d", number)
    assert logs.flush(5.0)
    assert [f"INFO line {number}" for number in range(100)] == pipe.read().splitlines()
    assert [] == dropped


def test_two_loggers_that_write_to_one_place_keep_their_common_order(
    pipe: Pipe, names: list[str], dropped: list[int]
) -> None:
    error = with_handler(names[0], logging.StreamHandler(pipe.stream))
    with os.fdopen(os.dup(pipe.stream.fileno()), "w", encoding="utf-8") as other:
        access = with_handler(names[1], logging.StreamHandler(other))
        logs.detach(names, dropped.append)
        for number in range(20):
            (error, access)[number % 2].info("line %d", number)
        assert logs.flush(5.0)
    assert [f"INFO line {number}" for number in range(20)] == pipe.read().splitlines()
    assert [] == dropped


def test_a_full_pipe_drops_and_counts_and_makes_nobody_wait(pipe: Pipe, names: list[str], dropped: list[int]) -> None:
    error = with_handler(names[0], logging.StreamHandler(pipe.stream))
    logs.detach(names, dropped.append)
    total, longest = 3 * logs.LINES_WAITING, 0.0
    gc.disable()  # a collection of all that pytest keeps, each of these records too, is no wait for a pipe
    try:
        for number in range(total):
            began = time.thread_time()
            error.info("line %d", number)
            longest = max(longest, time.thread_time() - began)
    finally:
        gc.enable()
    assert longest < 0.05
    assert total - logs.LINES_WAITING - 4096 < sum(dropped) < total  # besides the queue there is one page of pipe
    assert not logs.flush(0.05)
    lost = sum(dropped)
    *lines, notice = pipe.read().splitlines()
    assert [f"INFO line {number}" for number in range(total - lost)] == lines
    assert f"WARNING {lost} log lines dropped: nobody read them, or not fast enough" == notice
    error.info("again")
    assert logs.flush(5.0)
    assert "INFO again\n" == pipe.read()


def test_the_bytes_that_wait_are_bounded_but_no_single_line_is_too_long(
    pipe: Pipe, names: list[str], monkeypatch: pytest.MonkeyPatch, dropped: list[int]
) -> None:
    error = with_handler(names[0], logging.StreamHandler(pipe.stream))
    logs.detach(names, dropped.append)
    long = "x" * (logs.BYTES_WAITING + 10)
    error.info(long)
    error.info("one too many")
    assert [1] == dropped
    assert long in pipe.read()


def test_a_line_longer_than_a_pipe_takes_at_once_arrives_whole(
    pipe: Pipe, names: list[str], dropped: list[int]
) -> None:
    error = with_handler(names[0], logging.StreamHandler(pipe.stream))
    logs.detach(names, dropped.append)
    long = "".join(chr(97 + number % 26) for number in range(100_000))
    error.info(long)
    error.info("short")
    assert ["INFO " + long, "INFO short"] == pipe.read().splitlines()
    assert [] == dropped


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe, names: list[str], dropped: list[int]) -> None:
    os.set_blocking(pipe.stream.fileno(), False)
    error = with_handler(names[0], logging.StreamHandler(pipe.stream))
    logs.detach(names, dropped.append)
    for number in range(500):
        error.info("line %d", number)
    assert [f"INFO line {number}" for number in range(500)] == pipe.read().splitlines()
    assert [] == dropped


def test_lines_for_a_reader_that_is_gone_are_counted(pipe: Pipe, names: list[str], dropped: list[int]) -> None:
    error = with_handler(names[0], logging.StreamHandler(pipe.stream))
    logs.detach(names, dropped.append)
    os.close(pipe.reading)
    error.info("in vain")
    assert logs.flush(5.0)
    pipe.reading = os.open(os.devnull, os.O_RDONLY)  # for the fixture to close
    assert 1 == sum(dropped)


def test_text_that_the_stream_cannot_encode_is_escaped(pipe: Pipe, names: list[str], dropped: list[int]) -> None:
    handler = logging.StreamHandler(pipe.stream)
    error = with_handler(names[0], handler)
    logs.detach(names, dropped.append)
    # Past the logger: what pytest captured there, it could not tell another process.
    handler.handle(error.makeRecord(error.name, logging.INFO, __file__, 1, "lone \ud800 surrogate", (), None))
    assert "INFO lone \\ud800 surrogate\n" == pipe.read()
    assert [] == dropped


def test_a_handler_is_detached_once_and_shared_as_before(pipe: Pipe, names: list[str], dropped: list[int]) -> None:
    handler = logging.StreamHandler(pipe.stream)
    error = with_handler(names[0], handler)
    logging.getLogger(names[1]).handlers = error.handlers  # as applications do with gunicorn's
    logs.detach(names, dropped.append)
    stream = handler.stream
    logs.detach(names, dropped.append)
    assert handler in error.handlers
    assert stream is handler.stream
    logging.getLogger(names[1]).info("shared")
    assert "INFO shared\n" == pipe.read()
    assert [] == dropped


def test_handlers_above_are_detached_when_records_propagate(pipe: Pipe, names: list[str], dropped: list[int]) -> None:
    handler = logging.StreamHandler(pipe.stream)
    with_handler(names[0], handler)
    below = logging.getLogger(f"{names[0]}.below")
    logs.detach([below.name], dropped.append)
    assert pipe.stream is not handler.stream
    below.info("from below")
    assert "INFO from below\n" == pipe.read()
    assert [] == dropped


def test_a_handler_in_memory_or_one_that_never_waits_is_left_alone(names: list[str], dropped: list[int]) -> None:
    class Quick(logging.Handler):
        never_waits = True

    memory, quick, nothing = logging.StreamHandler(io.StringIO()), Quick(), logging.NullHandler()
    kept = [vars(handler).copy() for handler in (memory, quick, nothing)]
    for handler in (memory, quick, nothing):
        logging.getLogger(names[0]).addHandler(handler)
    logs.detach(names, dropped.append)
    assert kept == [vars(handler) for handler in (memory, quick, nothing)]
    assert [] == dropped


def reopen(handler: logging.FileHandler) -> None:
    """What gunicorn's `reopen_files` does with each handler."""
    handler.acquire()
    try:
        if handler.stream:
            handler.close()
            handler.stream = handler._open()
    finally:
        handler.release()


def test_a_file_that_is_reopened_has_what_came_before_and_its_successor_what_comes_after(
    names: list[str], tmp_path: Path, dropped: list[int]
) -> None:
    handler = logging.FileHandler(tmp_path / "access.log")
    access = with_handler(names[1], handler)
    logs.detach(names, dropped.append)
    for number in range(50):
        access.info("line %d", number)
    (tmp_path / "access.log").rename(tmp_path / "access.log.1")
    access.info("line 50")
    reopen(handler)
    access.info("line 51")
    old: Any = handler.stream
    reopen(handler)
    access.info("line 52")
    assert logs.flush(5.0)
    lines = [(tmp_path / name).read_text().splitlines() for name in ("access.log.1", "access.log")]
    assert [[f"INFO line {number}" for number in range(51)], ["INFO line 51", "INFO line 52"]] == lines
    with pytest.raises(ValueError, match="closed"):
        old.write("too late")
    assert [] == dropped


def test_a_file_that_opens_with_its_first_line_is_detached_too(
    names: list[str], tmp_path: Path, dropped: list[int]
) -> None:
    handler = logging.FileHandler(tmp_path / "late.log", delay=True)
    access = with_handler(names[1], handler)
    logs.detach(names, dropped.append)
    assert not (tmp_path / "late.log").exists()
    access.info("first")
    assert logs.flush(5.0)
    stream: Any = handler.stream
    assert logs._HandlerStream is type(stream)
    assert "INFO first\n" == (tmp_path / "late.log").read_text()
    assert [] == dropped


def test_a_stuck_pipe_does_not_hold_up_a_file(pipe: Pipe, names: list[str], tmp_path: Path) -> None:
    error = with_handler(names[0], logging.StreamHandler(pipe.stream))
    access = with_handler(names[1], logging.FileHandler(tmp_path / "access.log"))
    logs.detach(names, lambda count: None)
    for number in range(1_000):
        error.info("nobody reads %d", number)
        access.info("line %d", number)
    logs.flush(0.2)
    assert [f"INFO line {number}" for number in range(1_000)] == (tmp_path / "access.log").read_text().splitlines()


def test_a_rotating_file_rotates_where_nobody_waits_for_it(
    names: list[str], tmp_path: Path, dropped: list[int]
) -> None:
    handler = logging.handlers.RotatingFileHandler(tmp_path / "error.log", maxBytes=200, backupCount=20)
    error = with_handler(names[0], handler)
    logs.detach(names, dropped.append)
    for number in range(40):
        error.info("line %02d", number)
    assert logs.flush(5.0)
    files = sorted(tmp_path.iterdir(), key=lambda path: -int(path.suffix[1:]) if path.suffix[1:].isdigit() else 0)
    assert len(files) > 2
    lines = [line for path in files for line in path.read_text().splitlines()]
    assert [f"INFO line {number:02d}" for number in range(40)] == lines
    assert [] == dropped


def test_syslog_gets_the_message_as_it_was_when_it_was_logged(
    names: list[str], tmp_path: Path, dropped: list[int]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "syslog"))
        server.settimeout(5)
        error = with_handler(names[0], logging.handlers.SysLogHandler(address=str(tmp_path / "syslog")))
        logs.detach(names, dropped.append)
        changing = ["before"]
        error.warning("it was %s", changing, exc_info=OSError("broken"))
        changing[0] = "after"
        message = server.recv(4096).decode()
    assert message.rstrip("\0").endswith("WARNING it was ['before']\nOSError: broken")
    assert [] == dropped


def test_a_handler_that_fails_counts_as_dropped_and_is_tried_again(names: list[str], dropped: list[int]) -> None:
    class Failing(logging.Handler):
        tried = 0

        def emit(self, record: logging.LogRecord) -> None:
            self.tried += 1
            if self.tried == 1:
                raise OSError("no route to the collector")

    handler = Failing()
    error = with_handler(names[0], handler)
    logs.detach(names, dropped.append)
    error.info("first")
    assert logs.flush(5.0)
    error.info("second")
    assert logs.flush(5.0)
    assert [1] == dropped
    assert 2 <= handler.tried  # and the notice


def test_a_filter_of_a_handler_is_asked_before_anything_is_queued(names: list[str], dropped: list[int]) -> None:
    class Collecting(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.seen.append(record.getMessage())

    handler = Collecting()
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    error = with_handler(names[0], handler)
    logs.detach(names, dropped.append)
    error.info("a %s", "secret")
    error.info("a %s", "greeting")
    assert logs.flush(5.0)
    assert ["a greeting"] == handler.seen
    assert [] == dropped


def test_a_forked_child_begins_with_an_empty_queue(pipe: Pipe, names: list[str]) -> None:
    error = with_handler(names[0], logging.StreamHandler(pipe.stream))
    logs.detach(names, lambda count: None)
    for number in range(1_000):
        error.info("of the parent %d", number)
    writer = next(iter(logs._writers.values()))
    queue = writer._queue
    writer.start_anew()
    assert (0, 0) == (writer._queue.qsize(), writer._queued)
    assert queue is not writer._queue
    error.info("of the child")
    lines = pipe.read().splitlines()
    assert 1 == lines.count("INFO of the child")


def test_standard_streams_of_a_test_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = io.StringIO()
    monkeypatch.setattr(sys, "stdout", memory)
    monkeypatch.setattr(sys, "stderr", None)
    logs.detach_standard_streams()
    assert (memory, None) == (sys.stdout, sys.stderr)
    assert logs.flush(1.0)


def test_standard_streams_are_queued_line_by_line(
    pipe: Pipe, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", pipe.stream)
    monkeypatch.setattr(sys, "stderr", pipe.stream)
    logs.detach_standard_streams()
    detached = sys.stdout
    logs.detach_standard_streams()
    assert detached is sys.stdout
    print("one", "line", 1)
    sys.stderr.write("another\n")
    sys.stdout.buffer.write(b"bytes\n")
    print("the rest", end="")
    assert logs.flush(5.0)
    assert "one line 1\nanother\nbytes\nthe rest" == pipe.read()
    assert pipe.stream.fileno() == sys.stdout.fileno()
    assert not sys.stdout.isatty()


def test_a_handler_on_a_detached_stream_needs_no_more(
    pipe: Pipe, names: list[str], monkeypatch: pytest.MonkeyPatch, dropped: list[int]
) -> None:
    monkeypatch.setattr(sys, "stderr", pipe.stream)
    monkeypatch.setattr(sys, "stdout", pipe.stream)
    logs.detach_standard_streams()
    error = with_handler(names[0], logging.StreamHandler())
    logs.detach(names, dropped.append)
    error.info("once")
    assert logs.flush(5.0)
    assert "INFO once\n" == pipe.read()
    assert [] == dropped
