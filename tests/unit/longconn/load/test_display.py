"""What is shown of a load."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import replace

from longconn.load.conductor import Report
from longconn.load.display import Progress, picture, plain, summary
from longconn.load.plan import Plan
from longconn.load.tally import Tally

PLAN = Plan(kind="ws", url="ws://127.0.0.1:8000/ws", connections=20_000, check=True)
ESCAPE = re.compile(r"\033\[[0-9;]*[mKF]")


def tally(**figures: int) -> Tally:
    """A load that goes well, but for what is said."""
    made = Tally(wanted=20_000, open=15_000, opened=15_000, messages=45_000, busiest=0.25, memory=52_428_800)
    for name, value in figures.items():
        setattr(made, name, value)
    for number in range(1, 101):
        made.delivery.observe(number * 1_000_000)
        made.connecting.observe(number * 10_000)
    return made


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        return True


def test_the_picture_fits_the_terminal() -> None:
    for width in (20, 40, 80, 200):
        lines = picture(PLAN, tally(), 12.0, (2_000.0, 15_000.0), width=width, colours=True)
        assert all(len(ESCAPE.sub("", line)) < width for line in lines)
        assert all(line.count("\033") == len(ESCAPE.findall(line)) for line in lines)


def test_the_picture_says_how_things_are() -> None:
    lines = picture(PLAN, tally(lost=2), 12.0, (2_000.0, 15_000.0), width=100)
    assert "ws ws://127.0.0.1:8000/ws  12 s" == lines[0].strip()
    assert f"open      {'█' * 30}{'·' * 10} 15,000 of 20,000  +2,000/s" == lines[1].strip()
    assert "messages  45,000  15,000/s  sent 0, pings 0" == lines[2].strip()
    assert lines[3].strip().startswith("under way p50 5")
    assert "sequence  2 lost, 0 doubled, 0 out of order" == lines[4].strip()
    assert "trouble   ended none; failed none" == lines[5].strip()


def test_a_line_says_the_same_where_there_is_no_terminal() -> None:
    troubled = replace(
        tally(), ended=Counter({"1012": 3}), failed=Counter({"connection refused": 7}), delivery=Tally().delivery
    )
    assert (
        "12 s: 15,000 of 20,000 open (+5/s); 45,000 messages (6/s); 0 lost, 0 doubled, 0 out of order; ended 3 1012;"
        " failed 7 connection refused"
    ) == plain(troubled, 12.0, (5.0, 6.0))


def test_progress_stays_in_place_on_a_terminal() -> None:
    output = Terminal()
    progress = Progress(PLAN, output)
    progress.show(tally(), 1.0)
    once = output.getvalue()
    progress.show(tally(), 1.5)
    assert "\033[6F" not in once
    assert output.getvalue().startswith(once + "\033[6F")


def test_progress_is_a_line_now_and_then_elsewhere() -> None:
    output = io.StringIO()
    progress = Progress(PLAN, output)
    for tenths in range(121):
        progress.show(tally(messages=tenths * 100), tenths / 10)
    lines = output.getvalue().splitlines()
    assert ["5 s", "10 s"] == [line.partition(":")[0] for line in lines]
    assert "messages (1,000/s)" in lines[1]
    assert "\033" not in output.getvalue()


def report(**figures: int) -> Report:
    """How such a load went."""
    return Report(PLAN, tally(**figures), opening=10.0, held=60.0)


def test_the_summary_says_what_was_held_and_how_fast() -> None:
    text = summary(report(open=20_000, opened=20_000))
    assert "ws ws://127.0.0.1:8000/ws: 20,000 connections" == text.splitlines()[0]
    assert "open      20,000 of 20,000 at the end, 60.0 s after the last was opened" in text
    assert "opening   10.0 s, 2,000/s" in text
    assert "the busiest 25%; 50 MiB" in text
    assert "nothing to complain of" in text


def test_the_summary_says_what_is_wrong() -> None:
    went = report(lost=2, doubled=1)
    went.tally.ended["1006"] = 7
    assert [
        "5,000 connections were not open at the end",
        "7 connections were ended by the server",
        "2 messages lost",
        "1 messages doubled",
    ] == went.faults
    assert summary(went).endswith("; ".join(went.faults))


def test_a_client_that_is_too_busy_to_measure_says_so() -> None:
    busy = replace(report(), tally=replace(tally(), busiest=0.97))
    assert "as busy as it can be" in summary(busy)
    assert "as busy as it can be" not in summary(report())


def test_a_report_is_figures_with_their_units() -> None:
    figures = report(open=20_000).as_json()
    assert (20_000, 60.0, []) == (figures["open"], figures["held_seconds"], figures["faults"])
    assert 50.0 <= figures["delivery_p50_ms"] <= 55.0
    assert figures["delivery_p999_ms"] >= 100.0


def test_times_are_short_to_read() -> None:
    slow = Tally(wanted=1)
    for nanoseconds in (12_345, 1_500_000_000, 400_000_000_000):
        slow.connecting.observe(nanoseconds)
    assert "one took p50 1,642 ms, p90 more than 280,000 ms" in summary(replace(report(), tally=slow))


def test_many_reasons_are_cut_short() -> None:
    many = replace(tally(), failed=Counter({f"reason {number}": number for number in range(1, 6)}))
    assert plain(many, 1.0, (0.0, 0.0)).endswith("failed 5 reason 5, 4 reason 4, 3 reason 3 and 2 more")
