"""The scoreboard in Prometheus' format, read back by Prometheus' own parser."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from math import isnan
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from longconn import scoreboard
from longconn.core.histogram import Histogram
from longconn.core.states import State
from longconn.metrics import CONTENT_TYPE, MetricsUnavailable, ScoreboardCollector, collect, render
from longconn.scoreboard import (
    Row,
    Scoreboard,
    close_code_field,
    closed_field,
    evicted_field,
    messages_field,
    refused_field,
    slow_field,
)

ROOT = Path(__file__).parents[3]
WORKER = str(os.getpid())

Labels = tuple[tuple[str, str], ...]


def samples(board: Scoreboard) -> dict[tuple[str, Labels], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(render(board).decode())
        for sample in family.samples
    }


def value(board: Scoreboard, name: str, **labels: str) -> float:
    return samples(board)[f"longconn_{name}", tuple(sorted(labels.items()))]


@pytest.fixture
def board() -> Scoreboard:
    return Scoreboard()


@pytest.fixture
def row(board: Scoreboard) -> Row:
    row = board.claim(1)
    row.begin(os.getpid())
    row.values[scoreboard.SLOT_STATE] = scoreboard.SERVING
    return row


def publish(row: Row, fields: dict[int, int]) -> None:
    tally = row.tally()
    for field, number in fields.items():
        tally[field] = number
    row.publish(tally)


@pytest.mark.parametrize(
    ("field", "name", "labels"),
    [
        (scoreboard.STATES + State.PARKED, "connections", {"state": "parked"}),
        (scoreboard.STATES + State.READING_HEAD, "connections", {"state": "reading_head"}),
        (scoreboard.KINDS + scoreboard.KIND_NAMES.index("tls"), "connections_by_kind", {"kind": "tls"}),
        (scoreboard.GREENLETS, "greenlets", {}),
        (scoreboard.GREENLETS_IDLE, "greenlets_idle", {}),
        (scoreboard.DESCRIPTORS, "open_descriptors", {}),
        (scoreboard.QUEUE, "queue_length", {}),
        (scoreboard.HEAD_BYTES, "head_bytes", {}),
        (scoreboard.QUEUED_BYTES, "send_queue_bytes", {}),
    ],
)
def test_a_gauge_has_the_worker_it_belongs_to(
    board: Scoreboard, row: Row, field: int, name: str, labels: dict[str, str]
) -> None:
    publish(row, {field: 17})

    assert 17 == value(board, name, worker=WORKER, **labels)


@pytest.mark.parametrize(
    ("field", "name", "labels"),
    [
        (scoreboard.ACCEPTED, "accepts_total", {}),
        (scoreboard.ACCEPT_MISSES, "accept_misses_total", {}),
        (scoreboard.REQUESTS, "requests_total", {}),
        (scoreboard.LOG_DROPPED, "log_dropped_total", {}),
        (scoreboard.LOOP_BLOCKED, "loop_blocked_total", {}),
        (scoreboard.BYTES_IN, "bytes_total", {"direction": "in"}),
        (scoreboard.BYTES_OUT, "bytes_total", {"direction": "out"}),
        (closed_field("client"), "closed_total", {"reason": "client"}),
        (closed_field("maximum requests"), "closed_total", {"reason": "maximum_requests"}),
        (refused_field("per client"), "rejected_total", {"reason": "per_client"}),
        (evicted_field("parked"), "evicted_total", {"reason": "parked"}),
        (messages_field("websocket in"), "messages_total", {"kind": "websocket", "direction": "in"}),
        (messages_field("sse out"), "messages_total", {"kind": "sse", "direction": "out"}),
        (slow_field("dropped"), "slow_consumers_total", {"action": "dropped"}),
        (close_code_field(1001), "websocket_closed_total", {"code": "1001"}),
        (close_code_field(4321), "websocket_closed_total", {"code": "4xxx"}),
        (scoreboard.COLLECTIONS + 2, "gc_collections_total", {"generation": "2"}),
    ],
)
def test_a_counter_is_the_sum_over_all_workers(
    board: Scoreboard, row: Row, field: int, name: str, labels: dict[str, str]
) -> None:
    other = board.claim(2)
    other.begin(os.getpid())
    publish(row, {field: 5})
    publish(other, {field: 7})

    assert 12 == value(board, name, **labels)


@pytest.mark.parametrize(
    ("first", "name"), [(scoreboard.TURNS, "loop_lag_seconds"), (scoreboard.GC_PAUSES, "gc_pause_seconds")]
)
def test_a_histogram_is_in_seconds(board: Scoreboard, row: Row, first: int, name: str) -> None:
    tally = row.tally()
    histogram = Histogram(scoreboard.DURATION_BOUNDS, tally, first)
    for milliseconds in (1, 3, 20_000):
        histogram.observe(milliseconds * 1_000_000)
    row.publish(tally)
    seen = samples(board)

    assert [0, 1, 2, 2, 3] == [
        seen[f"longconn_{name}_bucket", (("le", bound),)] for bound in ("0.0005", "0.001", "0.005", "10.0", "+Inf")
    ]
    assert (3, 20.004) == (seen[f"longconn_{name}_count", ()], seen[f"longconn_{name}_sum", ()])


def test_workers_are_counted_by_what_they_do(board: Scoreboard, row: Row) -> None:
    board.claim(2)
    board.claim(3).values[scoreboard.SLOT_STATE] = scoreboard.DRAINING
    board.claim(4).values[scoreboard.SLOT_STATE] = scoreboard.DRAINING

    assert {"booting": 1, "serving": 1, "draining": 2} == {
        state: value(board, "workers", state=state) for state in ("booting", "serving", "draining")
    }


def test_a_worker_that_has_not_begun_has_no_gauges(board: Scoreboard) -> None:
    board.claim(1)

    assert not [labels for _, labels in samples(board) if any(label == "worker" for label, _ in labels)]


def test_what_is_written_directly_is_shown_before_anything_is_published(board: Scoreboard, row: Row) -> None:
    row.values[scoreboard.CONNECTIONS] = 3
    row.values[scoreboard.MAXIMUM] = 900

    assert (3, 900) == (
        value(board, "open_connections", worker=WORKER),
        value(board, "connections_limit", worker=WORKER),
    )


def test_a_turn_that_still_lasts_shows_how_long_it_has(board: Scoreboard, row: Row) -> None:
    sleeping = value(board, "loop_turn_seconds", worker=WORKER)
    row.values[scoreboard.TURN_NS] = time.monotonic_ns() - 2_000_000_000

    assert sleeping == 0
    assert value(board, "loop_turn_seconds", worker=WORKER) >= 2


def test_a_silent_worker_shows_for_how_long(board: Scoreboard, row: Row) -> None:
    row.values[scoreboard.HEARD_NS] -= 3_000_000_000

    assert value(board, "silence_seconds", worker=WORKER) >= 3


def test_the_memory_of_a_worker_is_its_processs(board: Scoreboard, row: Row) -> None:
    assert 1_000_000 < value(board, "resident_memory_bytes", worker=WORKER) < 10_000_000_000


def test_memory_that_cannot_be_told_is_not_a_number(
    board: Scoreboard, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    memory = value(board, "resident_memory_bytes", worker=WORKER)

    assert isnan(memory)


def test_every_counter_of_the_board_is_shown(board: Scoreboard, row: Row) -> None:
    row.publish([0] * scoreboard.COUNTERS + list(range(1, 1 + scoreboard.WIDTH - scoreboard.COUNTERS)))
    before = samples(board)
    unseen = []
    for field in range(scoreboard.COUNTERS, len(scoreboard.FIELDS)):
        row.values[field] += 10**9
        unseen += [] if samples(board) != before else [scoreboard.FIELDS[field]]
        row.values[field] -= 10**9

    assert [] == unseen


def test_every_name_has_the_packages_prefix_and_every_counter_ends_in_total(board: Scoreboard, row: Row) -> None:
    for family in text_string_to_metric_families(render(board).decode()):
        assert family.name.startswith("longconn_")
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_no_label_needs_quoting(board: Scoreboard, row: Row) -> None:
    for _, labels in samples(board):
        assert all(text.replace("_", "").replace("+", "").replace(".", "").isalnum() for _, text in labels)


def test_no_two_families_or_samples_have_one_name(board: Scoreboard, row: Row) -> None:
    families = list(collect(board))
    found = [(sample.name, tuple(sample.labels.items())) for family in families for sample in family.samples]

    assert len(families) == len({family.name for family in families})
    assert len(found) == len(set(found))


def test_an_applications_own_registry_can_show_the_board(board: Scoreboard, row: Row) -> None:
    registry = CollectorRegistry()
    registry.register(ScoreboardCollector(board))
    publish(row, {scoreboard.REQUESTS: 3})

    assert b"longconn_requests_total 3.0\n" in generate_latest(registry)


def test_a_registry_refuses_a_second_metric_of_such_a_name(board: Scoreboard) -> None:
    registry = CollectorRegistry()
    registry.register(ScoreboardCollector(board))

    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Gauge("longconn_greenlets", "Not ours.", registry=registry)


def test_the_content_type_is_that_of_the_format() -> None:
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_without_prometheus_client_the_error_says_what_to_install(
    board: Scoreboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    with pytest.raises(MetricsUnavailable, match=r"install seawall\[metrics\]"):
        render(board)
    with pytest.raises(MetricsUnavailable, match=r"install seawall\[metrics\]"):
        list(collect(board))


def test_prometheus_client_is_not_imported_before_metrics_are_asked_for() -> None:
    script = "import sys, longconn.metrics; print('prometheus_client' in sys.modules)"

    assert "False\n" == subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True)


def test_any_worker_answers_for_all_and_counters_outlive_a_killed_one() -> None:
    script = """
import os, signal
from longconn.metrics import render
from longconn.scoreboard import *

signal.alarm(60)
board = Scoreboard()
life, lifeline = os.pipe()

def start(age, requests):
    row = board.claim(age)
    ready, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        os.close(lifeline)
        row.begin(os.getpid())
        tally = row.tally()
        tally[REQUESTS] = requests
        row.publish(tally)
        row.values[SLOT_STATE] = SERVING
        os.write(say, render(board))
        os.close(say)
        os.read(life, 1)
        os._exit(0)
    os.close(say)
    with open(ready) as text:
        shown = [line.split()[1] for line in text if line.startswith("longconn_requests_total ")]
    print(*shown)
    return pid

first = start(1, 10)
start(2, 5)
os.kill(first, signal.SIGKILL)
os.waitpid(first, 0)
start(3, 100)
"""
    shown = subprocess.check_output([sys.executable, "-W", "error", "-c", script], cwd=ROOT, text=True, timeout=60)

    assert ["10.0", "15.0", "115.0"] == shown.split()
