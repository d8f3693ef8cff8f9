"""Tables of figures: as Markdown for people, as a document for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.worker.figures import Numbers, medians, ratio

__all__ = ["Column", "Row", "Section", "Target", "targets_markdown"]

MISSING = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """A figure that a table shows: its name in the rounds, its heading, and how many decimals it has."""

    name: str
    heading: str
    decimals: int = 0

    def show(self, figure: float | None) -> str:
        """The figure as text."""
        return MISSING if figure is None else f"{figure:,.{self.decimals}f}"


@dataclass(slots=True)
class Row:
    """What one contender showed, round by round, and why it showed nothing if that is so."""

    contender: str
    rounds: list[Numbers] = field(default_factory=list)
    failure: str = ""

    @property
    def medians(self) -> dict[str, float]:
        """The median of each figure over the rounds."""
        return medians(self.rounds)

    def median(self, name: str) -> float | None:
        """The median of one figure; None when no round has it."""
        return self.medians.get(name)


@dataclass(frozen=True, slots=True)
class Target:
    """Something asked for, what was seen, and whether that is it. `met` is None when nothing could be seen."""

    what: str
    wanted: str
    seen: str
    met: bool | None


@dataclass(slots=True)
class Section:
    """One table. `compared` is the figure whose ratio to the contender `against` every row shows."""

    title: str
    columns: Sequence[Column]
    rows: list[Row]
    compared: str = ""
    against: str = ""
    notes: list[str] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def row(self, contender: str) -> Row | None:
        """The row of a contender; None when it was not asked."""
        return next((row for row in self.rows if row.contender == contender), None)

    def median(self, contender: str, name: str) -> float | None:
        """The median of a contender's figure; None when there is none."""
        row = self.row(contender)
        return None if row is None else row.median(name)

    def markdown(self) -> str:
        """The table, its notes below it."""
        headings = ["what", *(column.heading for column in self.columns)]
        base = self.median(self.against, self.compared) if self.compared else None
        if base:
            headings.append(f"times {self.against}")
        lines = [f"### {self.title}", "", _line(headings), "|" + "---|" * len(headings)]
        lines += [self._row_line(row, base) for row in self.rows]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])

    def _row_line(self, row: Row, base: float | None) -> str:
        seen = row.medians
        if not seen:
            blank = [""] * (len(self.columns) - 1 + bool(base))
            return _line([row.contender, f"left out: {row.failure or 'no round'}", *blank])
        cells = [row.contender, *(column.show(seen.get(column.name)) for column in self.columns)]
        if base:
            times = ratio(seen.get(self.compared), base)
            cells.append(MISSING if times is None else f"{times:.2f}")
        return _line(cells)

    def document(self) -> dict[str, Any]:
        """Everything, every round of it, for JSON."""
        return {
            "title": self.title,
            "compared": self.compared,
            "against": self.against,
            "rows": [
                {
                    "contender": row.contender,
                    "medians": row.medians,
                    "rounds": [dict(numbers) for numbers in row.rounds],
                    "failure": row.failure,
                }
                for row in self.rows
            ],
            "notes": self.notes,
            "targets": [
                {"what": target.what, "wanted": target.wanted, "seen": target.seen, "met": target.met}
                for target in self.targets
            ],
        }


def targets_markdown(targets: Sequence[Target]) -> str:
    """A table of what was asked for and what was seen."""
    verdicts = {True: "met", False: "**missed**", None: "not seen"}
    lines = ["### Targets", "", "| what | wanted | seen | |", "|---|---|---|---|"]
    lines += [_line([target.what, target.wanted, target.seen, verdicts[target.met]]) for target in targets]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"
