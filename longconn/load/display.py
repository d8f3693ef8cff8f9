"""What a load looks like while it runs, and when it is over."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from typing import TextIO

from longconn.core.histogram import Histogram
from longconn.load.conductor import QUANTILES, Report, milliseconds
from longconn.load.plan import Plan
from longconn.load.tally import Tally

__all__ = ["Progress", "picture", "plain", "summary"]

PLAIN_EVERY = 5.0
"""Seconds between two lines where there is no terminal."""

EIGHTHS = " ▏▎▍▌▋▊▉█"
_BOLD, _DIM, _RED, _GREEN, _RESET = "\033[1m", "\033[2m", "\033[31m", "\033[32m", "\033[0m"


class Progress:
    """Shows a tally again and again: in place on a terminal, as a line now and then elsewhere."""

    def __init__(self, plan: Plan, output: TextIO) -> None:
        self._plan = plan
        self._output = output
        self._terminal = output.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = self._terminal and "NO_COLOR" not in os.environ
        self._lines = 0
        self._shown_at = 0.0
        self._before: tuple[Tally, float] = (Tally(), 0.0)
        self._rates: tuple[float, float] = (0.0, 0.0)

    def show(self, tally: Tally, seconds: float) -> None:
        """Show how things are, so many seconds after the start."""
        self._notice(tally, seconds)
        if self._terminal:
            width = shutil.get_terminal_size().columns
            lines = picture(self._plan, tally, seconds, self._rates, width=width, colours=self._colours)
            up = f"\033[{self._lines}F" if self._lines else ""
            self._output.write(up + "".join(f"{line}\033[K\n" for line in lines))
            self._lines = len(lines)
        elif seconds - self._shown_at >= PLAIN_EVERY:
            self._shown_at = seconds
            self._output.write(plain(tally, seconds, self._rates) + "\n")
        self._output.flush()

    def _notice(self, tally: Tally, seconds: float) -> None:
        before, at = self._before
        if seconds - at >= 1.0:
            passed = seconds - at
            self._rates = (tally.opened - before.opened) / passed, (tally.messages - before.messages) / passed
            self._before = tally, seconds


def picture(
    plan: Plan, tally: Tally, seconds: float, rates: tuple[float, float], *, width: int, colours: bool = False
) -> list[str]:
    """Lines for a terminal of `width` columns. `rates`: connections opened and messages received a second."""
    bold, dim, red, green, reset = (_BOLD, _DIM, _RED, _GREEN, _RESET) if colours else ("",) * 5
    wrong = tally.lost + tally.doubled + tally.disordered
    share = tally.open / tally.wanted if tally.wanted else 0.0
    counts = f"{tally.open:,} of {tally.wanted:,}"
    bar = _bar(share, max(10, min(40, width - len(counts) - 32)))
    rows = [
        ("", f"{bold}{plan.kind}{reset} {plan.url}  {dim}{seconds:.0f} s{reset}"),
        ("open", f"{green}{bar}{reset} {counts}  {dim}+{rates[0]:,.0f}/s{reset}"),
        ("messages", f"{tally.messages:,}  {rates[1]:,.0f}/s  {dim}sent {tally.sent:,}, pings {tally.pings:,}{reset}"),
        ("under way", _times(tally.delivery) or f"{dim}connecting {_times(tally.connecting) or '-'}{reset}"),
    ]
    if plan.check:
        colour = red if wrong else green
        rows.append(("sequence", f"{colour}{_sequence(tally)}{reset}"))
    ended, failed = _most(tally.ended), _most(tally.failed)
    colour = red if ended or failed else dim
    rows.append(("trouble", f"{colour}ended {ended or 'none'}; failed {failed or 'none'}{reset}"))
    return [_cut(f"  {name:<10}{text}" if name else f"  {text}", width) for name, text in rows]


def plain(tally: Tally, seconds: float, rates: tuple[float, float]) -> str:
    """One line that says the same."""
    parts = [
        f"{seconds:.0f} s: {tally.open:,} of {tally.wanted:,} open (+{rates[0]:,.0f}/s)",
        f"{tally.messages:,} messages ({rates[1]:,.0f}/s)",
        _sequence(tally),
    ]
    parts += [f"under way {times}"] if (times := _times(tally.delivery)) else []
    parts += [f"ended {most}"] if (most := _most(tally.ended)) else []
    parts += [f"failed {most}"] if (most := _most(tally.failed)) else []
    return "; ".join(parts)


def summary(report: Report) -> str:
    """The whole of a report, as text."""
    plan, tally = report.plan, report.tally
    held = f"{report.held:.1f}"
    speed = (tally.opened - tally.reopened) / report.opening if report.opening else 0.0
    rows = [
        ("open", f"{tally.open:,} of {tally.wanted:,} at the end, {held} s after the last was opened"),
        ("opening", f"{report.opening:.1f} s, {speed:,.0f}/s; one took {_times(tally.connecting) or '-'}"),
        ("messages", f"{tally.messages:,} received, {tally.sent:,} sent, {tally.received_bytes:,} bytes received"),
    ]
    if times := _times(tally.delivery):
        rows.append(("under way", times))
    if plan.check:
        rows.append(("sequence", f"{_sequence(tally)}; {tally.unnumbered:,} without a number"))
    rows += [
        ("alive", f"{tally.pings:,} pings answered, {tally.heartbeats:,} heartbeats seen"),
        ("ended", f"{_most(tally.ended, 9) or 'none'}; {tally.reopened:,} came back"),
        ("failed", _most(tally.failed, 9) or "none"),
        (
            "clients",
            f"{tally.processor:.1f} s of a processor, the busiest {tally.busiest:.0%}; {_mebibytes(tally.memory)}",
        ),
    ]
    if tally.busiest > 0.9:
        rows.append(("", "a client process was as busy as it can be: its times are its own, not the server's"))
    rows.append(("", "; ".join(report.faults) if report.faults else "nothing to complain of"))
    head = f"{plan.kind} {plan.url}: {plan.connections:,} connections"
    return "\n".join([head, *(f"  {name:<10}{text}" for name, text in rows)])


def _sequence(tally: Tally) -> str:
    restarted = f", {tally.restarted:,} restarted" if tally.restarted else ""
    return f"{tally.lost:,} lost, {tally.doubled:,} doubled, {tally.disordered:,} out of order{restarted}"


def _times(counted: Histogram) -> str:
    if not counted.count:
        return ""
    found = ((name, milliseconds(counted.quantile(share))) for name, share in QUANTILES.items())
    return ", ".join(f"{name} {_milliseconds(value)} ms" for name, value in found)


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "more than 280,000"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _mebibytes(size: int) -> str:
    return f"{size / 1_048_576:,.0f} MiB"


def _most(counter: Counter[str], most: int = 3) -> str:
    named = ", ".join(f"{count:,} {reason}" for reason, count in counter.most_common(most))
    more = len(counter) - most
    return f"{named} and {more} more" if more > 0 else named


def _bar(share: float, width: int) -> str:
    eighths = round(min(1.0, share) * width * 8)
    whole, part = divmod(eighths, 8)
    return ("█" * whole + (EIGHTHS[part] if part else "")).ljust(width, "·")


def _cut(line: str, width: int) -> str:
    """The line, without what a terminal of this width has no room for. What sets colours takes no room."""
    shown, room, position = [], width - 1, 0
    while position < len(line):
        if line[position] == "\033":
            end = line.index("m", position) + 1
            shown.append(line[position:end])
            position = end
            continue
        if room > 0:
            shown.append(line[position])
            room -= 1
        position += 1
    return "".join(shown)
