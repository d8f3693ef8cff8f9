"""The scoreboard as Prometheus shows it: gauges per worker, counters and histograms over all workers there have been.

Any worker answers for all of them. Counters carry no worker, so that they go on when one is replaced. prometheus_client
is imported when the first metrics are asked for, in the worker: some of its modes must not be loaded before a fork.

For an application with a registry of its own: `registry.register(ScoreboardCollector(board))`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from longconn import scoreboard
from longconn.core.histogram import Histogram
from longconn.core.states import State
from longconn.errors import LongConnError
from longconn.scoreboard import Row, Scoreboard

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["CONTENT_TYPE", "MetricsUnavailable", "ScoreboardCollector", "collect", "render"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `render` returns."""

_NS: Final = 1_000_000_000
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class MetricsUnavailable(LongConnError, ImportError):
    """prometheus_client is not installed."""


def render(board: Scoreboard) -> bytes:
    """All metrics of `board` in Prometheus' text format, for an answer of `CONTENT_TYPE`.

    Raises `MetricsUnavailable` when prometheus_client is missing.
    """
    _require_prometheus_client()
    from prometheus_client import generate_latest

    return generate_latest(ScoreboardCollector(board))


class ScoreboardCollector:
    """`board` for a registry of prometheus_client."""

    __slots__ = ("_board",)

    def __init__(self, board: Scoreboard) -> None:
        self._board = board

    def collect(self) -> Iterable[Metric]:
        """What the board holds now."""
        return collect(self._board)

    def describe(self) -> Iterable[Metric]:
        """What the board can hold. Lets a registry find clashing names when this is registered."""
        return collect(Scoreboard(rows=1))


def collect(board: Scoreboard) -> Iterator[Metric]:
    """The metric families of `board`, in one look. Raises `MetricsUnavailable` when prometheus_client is missing."""
    _require_prometheus_client()
    rows = [row for row in board.rows() if row.pid]
    yield from _connections(rows)
    yield from _workers(list(board.rows()))
    yield from _gauges(rows)
    counters = board.counters()
    yield from _counters(counters)
    yield from _counters_by_label(counters)
    yield _messages(counters)
    yield from _histograms(counters)


def _require_prometheus_client() -> None:
    try:
        import prometheus_client  # noqa: F401 - asked for here, so that one place says what is missing
    except ImportError as error:
        raise MetricsUnavailable("metrics need prometheus_client: install seawall[metrics]") from error


def _connections(rows: Sequence[Row]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    states = GaugeMetricFamily("longconn_connections", "Open connections, by what they do.", labels=["state", "worker"])
    kinds = GaugeMetricFamily(
        "longconn_connections_by_kind", "Open connections, by what they speak.", labels=["kind", "worker"]
    )
    for row in rows:
        for number, name in enumerate(scoreboard.STATE_NAMES):
            if number != State.CLOSED:
                states.add_metric([_label(name), str(row.pid)], row.values[scoreboard.STATES + number])
        for number, name in enumerate(scoreboard.KIND_NAMES):
            kinds.add_metric([_label(name), str(row.pid)], row.values[scoreboard.KINDS + number])
    yield states
    yield kinds


def _workers(rows: Sequence[Row]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily("longconn_workers", "Worker processes, by what they do.", labels=["state"])
    found = [row.values[scoreboard.SLOT_STATE] for row in rows]
    for state, name in (
        (scoreboard.BOOTING, "booting"),
        (scoreboard.SERVING, "serving"),
        (scoreboard.DRAINING, "draining"),
    ):
        family.add_metric([name], found.count(state))
    yield family


def _field(field: int) -> Callable[[Row], float]:
    return lambda row: row.values[field]


def _current_turn(row: Row) -> float:
    began = row.values[scoreboard.TURN_NS]
    return max(0, time.monotonic_ns() - began) / _NS if began else 0.0


def _silence(row: Row) -> float:
    return max(0, time.monotonic_ns() - row.values[scoreboard.HEARD_NS]) / _NS


def _resident(row: Row) -> float:
    try:
        return int(Path(f"/proc/{row.pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError):  # not Linux, hidden from this user, or gone since
        return float("nan")


_GAUGES: Final[tuple[tuple[str, str, Callable[[Row], float]], ...]] = (
    ("open_connections", "Connections that the worker holds.", _field(scoreboard.CONNECTIONS)),
    ("connections_limit", "Connections that the worker can hold.", _field(scoreboard.MAXIMUM)),
    ("greenlets", "Greenlets that the worker has for connections.", _field(scoreboard.GREENLETS)),
    ("greenlets_idle", "Those that wait for something to do.", _field(scoreboard.GREENLETS_IDLE)),
    ("open_descriptors", "File descriptors that the worker has open.", _field(scoreboard.DESCRIPTORS)),
    ("queue_length", "Connections that wait for a greenlet.", _field(scoreboard.QUEUE)),
    ("head_bytes", "Bytes that incomplete request heads hold.", _field(scoreboard.HEAD_BYTES)),
    ("send_queue_bytes", "Bytes that wait until their clients take them.", _field(scoreboard.QUEUED_BYTES)),
    ("loop_turn_seconds", "How long the current turn of the event loop has lasted; 0 while it sleeps.", _current_turn),
    ("silence_seconds", "How long ago the worker was last heard of.", _silence),
    ("resident_memory_bytes", "Memory of the worker's process, shared pages included.", _resident),
)


def _gauges(rows: Sequence[Row]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    for name, documentation, value in _GAUGES:
        family = GaugeMetricFamily(f"longconn_{name}", documentation, labels=["worker"])
        for row in rows:
            family.add_metric([str(row.pid)], value(row))
        yield family


_COUNTERS: Final = (
    ("accepts", "Connections accepted.", scoreboard.ACCEPTED),
    ("accept_misses", "Times a worker woke to accept and another had been faster.", scoreboard.ACCEPT_MISSES),
    ("requests", "Requests answered.", scoreboard.REQUESTS),
    ("log_dropped", "Log lines dropped because their reader was too slow.", scoreboard.LOG_DROPPED),
    ("loop_blocked", "Turns of the event loop longer than LONGCONN_BLOCKED_THRESHOLD.", scoreboard.LOOP_BLOCKED),
)


def _counters(counters: Sequence[int]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    for name, documentation, field in _COUNTERS:
        yield CounterMetricFamily(f"longconn_{name}", documentation, value=counters[field])


_LABELLED: Final = (
    ("bytes", "Bytes read from clients and written to them.", "direction", scoreboard.BYTES_IN, ("in", "out")),
    ("closed", "Connections closed, by reason.", "reason", scoreboard.CLOSED, scoreboard.CLOSE_REASONS),
    (
        "rejected",
        "Connections and requests refused, by reason.",
        "reason",
        scoreboard.REFUSED,
        scoreboard.REFUSE_REASONS,
    ),
    ("evicted", "Connections closed to make room, by reason.", "reason", scoreboard.EVICTED, scoreboard.EVICT_REASONS),
    (
        "slow_consumers",
        "Times that more waited for a client than may wait for one, by what was done.",
        "action",
        scoreboard.SLOW_CONSUMERS,
        scoreboard.SLOW_ACTIONS,
    ),
    ("websocket_closed", "WebSockets ended, by code.", "code", scoreboard.CLOSED_CODES, scoreboard.CLOSE_CODES),
    (
        "gc_collections",
        "Runs of Python's garbage collector.",
        "generation",
        scoreboard.COLLECTIONS,
        tuple(str(generation) for generation in range(scoreboard.GENERATIONS)),
    ),
)


def _counters_by_label(counters: Sequence[int]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    for name, documentation, label, first, values in _LABELLED:
        family = CounterMetricFamily(f"longconn_{name}", documentation, labels=[label])
        for number, value in enumerate(values):
            family.add_metric([_label(value)], counters[first + number])
        yield family


def _messages(counters: Sequence[int]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(
        "longconn_messages", "Messages to and from clients, by what they speak.", labels=["kind", "direction"]
    )
    for number, flow in enumerate(scoreboard.MESSAGE_FLOWS):
        family.add_metric(flow.split(), counters[scoreboard.MESSAGES + number])
    return family


_HISTOGRAMS: Final = (
    ("loop_lag_seconds", "Turns of the event loop: how long everything else waited.", scoreboard.TURNS),
    ("gc_pause_seconds", "Pauses for Python's garbage collector.", scoreboard.GC_PAUSES),
)


def _histograms(counters: list[int]) -> Iterator[Metric]:
    from prometheus_client.core import HistogramMetricFamily

    bounds = [*(str(bound / _NS) for bound in scoreboard.DURATION_BOUNDS), "+Inf"]
    for name, documentation, first in _HISTOGRAMS:
        histogram = Histogram(scoreboard.DURATION_BOUNDS, counters, first)
        buckets = list(zip(bounds, map(float, histogram.cumulative()), strict=True))
        yield HistogramMetricFamily(f"longconn_{name}", documentation, buckets=buckets, sum_value=histogram.sum / _NS)


def _label(name: str) -> str:
    return name.replace(" ", "_")
