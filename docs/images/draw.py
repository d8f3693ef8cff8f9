"""Draws the pictures of docs/rate-limiting.md from the real bucket: `python docs/images/draw.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from resilience.core.limiter import Bucket, Charge, Decision, Limit, advance, decide

FOLDER = Path(__file__).parent
SECOND = 1_000_000
BUCKET, TAKEN, REFUSED, QUIET = "#3b82f6", "#16a34a", "#dc2626", "#888888"
LEFT, PIXELS = 90, 78  # where 0 s is drawn, and how long a second is


class Call(NamedTuple):
    """A call as it came, and what became of it: the seconds it was delayed, None when it was refused."""

    at: float
    delay: float | None


def token_bucket() -> str:
    """The level of one bucket, 2 tokens a second and 5 at most, and the calls that it admits and refuses."""
    limit = Limit(2, 1, burst=5)
    arrivals = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 2.5, 2.6, 2.7, 4.0, 4.9, 5.0, 5.1, 5.2]
    calls, levels = _play(limit, arrivals, until=8.0)
    bottom, height = 178, 120
    scale = height / 5
    points = " ".join(f"{_x(at):.1f},{bottom - level * scale:.1f}" for at, level in levels)
    first, last = f"{_x(0):.1f},{bottom}", f"{_x(8):.1f},{bottom}"
    shapes = [
        f'<polygon points="{first} {points} {last}" fill="{BUCKET}" fill-opacity="0.18"/>',
        f'<polyline points="{points}" fill="none" stroke="{BUCKET}" stroke-width="2"/>',
        _text(LEFT - 10, bottom - height + 4, "5 tokens", anchor="end"),
        _text(LEFT - 10, bottom + 4, "0", anchor="end"),
        _text(LEFT - 10, 34, "calls", anchor="end"),
        *(_mark(call, 30) for call in calls),
        *_seconds(bottom, 8),
        _line(LEFT, bottom - height, _x(8), bottom - height, dashed=True),
        *_legend(222, [(TAKEN, "admitted"), (REFUSED, "refused"), (BUCKET, "tokens in the bucket")]),
    ]
    return _svg(LEFT + 8 * PIXELS + 30, 240, "A token bucket: 2 tokens a second, 5 at most", shapes)


def three_ways() -> str:
    """The same calls under the same limit: refused at once, waited for, and smoothed."""
    limit = Limit(2, 1, burst=3)
    arrivals = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 4.1, 4.2, 5.5]
    rows = [
        ("refuse", _play(limit, arrivals, until=7)[0]),
        ("wait=1", _play(limit, arrivals, until=7, floor=-limit.debt(1.0), delay=lambda d: d.quotas[0].debt_delay)[0]),
        ("shape=True", _play(limit, arrivals, until=7, delay=lambda d: d.quotas[0].queue_delay)[0]),
    ]
    shapes = []
    for number, (title, calls) in enumerate(rows):
        top = 34 + number * 70
        shapes += [
            _text(LEFT - 10, top + 16, title, anchor="end"),
            _line(LEFT, top, _x(7), top),
            _line(LEFT, top + 28, _x(7), top + 28),
            *(_flight(call, top) for call in calls),
        ]
    bottom = 34 + 2 * 70 + 28
    shapes += _seconds(bottom + 14, 7)
    shapes += _legend(bottom + 58, [(TAKEN, "asks (above), goes on (below)"), (REFUSED, "refused")])
    return _svg(LEFT + 7 * PIXELS + 30, bottom + 76, "2 a second, burst 3: three ways to treat the same calls", shapes)


PICTURES: dict[str, Callable[[], str]] = {"token-bucket.svg": token_bucket, "three-ways.svg": three_ways}


def _play(
    limit: Limit,
    arrivals: Sequence[float],
    *,
    until: float,
    floor: int = 0,
    delay: Callable[[Decision], float] = lambda _: 0.0,
) -> tuple[list[Call], list[tuple[float, float]]]:
    """What becomes of each arrival, and the level of the bucket over time, in tokens."""
    bucket: Bucket | None = None
    calls: list[Call] = []
    levels: list[tuple[float, float]] = []

    def level_at(seconds: float) -> float:
        return advance(limit, bucket, round(seconds * SECOND))[0] / limit.unit

    moments = sorted({*arrivals, *(tenth / 20 for tenth in range(int(until * 20) + 1))})
    for moment in moments:
        levels.append((moment, level_at(moment)))
        if moment in arrivals:
            charge = Charge("picture", "caller", limit, 1, floor)
            decision, stored = decide([charge], [bucket], round(moment * SECOND))
            bucket = stored[0] if stored else bucket
            calls.append(Call(moment, delay(decision) if decision.allowed else None))
            levels.append((moment, level_at(moment)))
    return calls, levels


def _x(seconds: float) -> float:
    return LEFT + seconds * PIXELS


def _mark(call: Call, y: float) -> str:
    x = _x(call.at)
    if call.delay is None:
        return f'<path d="M{x - 3:.1f} {y - 3}l6 6m0 -6l-6 6" stroke="{REFUSED}" stroke-width="2"/>'
    return f'<circle cx="{x:.1f}" cy="{y}" r="3.2" fill="{TAKEN}"/>'


def _flight(call: Call, y: float) -> str:
    if call.delay is None:
        return _mark(call, y)
    there = _x(call.at + call.delay)
    return (
        f'<line x1="{_x(call.at):.1f}" y1="{y}" x2="{there:.1f}" y2="{y + 28}" stroke="{TAKEN}" stroke-opacity="0.6"/>'
        f'{_mark(call, y)}<circle cx="{there:.1f}" cy="{y + 28}" r="3.2" fill="{TAKEN}"/>'
    )


def _seconds(y: float, count: int) -> list[str]:
    marks = [_line(LEFT, y, _x(count), y)]
    for second in range(count + 1):
        marks += [_line(_x(second), y, _x(second), y + 4), _text(_x(second), y + 18, f"{second} s")]
    return marks


def _legend(y: float, entries: Iterable[tuple[str, str]]) -> list[str]:
    shapes, x = [], float(LEFT)
    for colour, text in entries:
        shapes += [f'<circle cx="{x:.0f}" cy="{y - 4}" r="4" fill="{colour}"/>', _text(x + 10, y, text, anchor="start")]
        x += 40 + 6.6 * len(text)
    return shapes


def _line(x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1}" x2="{x2:.1f}" y2="{y2}" stroke="{QUIET}"{dash}/>'


def _text(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}">{text}</text>'


def _svg(width: int, height: int, title: str, shapes: Iterable[str]) -> str:
    # Grey reads on white and on black: the page chooses the background.
    style = f'font-family="sans-serif" font-size="12" fill="{QUIET}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" {style}>',
        f"<title>{title}</title>",
        *shapes,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
