"""The measures of `vaefast evaluate` as rows of text, for the terminal, Markdown and the page."""

from __future__ import annotations

import math
from typing import NamedTuple


class Measure(NamedTuple):
    """name; value with its interval, where there is one; direction: which way is better."""

    name: str
    value: float
    low: float | None
    high: float | None
    direction: str

    @property
    def text(self) -> str:
        """The value, and its interval in brackets."""
        interval = "" if self.low is None or self.high is None else f" [{number(self.low)}, {number(self.high)}]"
        return number(self.value) + interval

    def beats(self, other: Measure) -> bool:
        """Whether it is better than `other` with intervals that do not meet."""
        if None in (self.low, self.high, other.low, other.high):
            return False
        return {"higher": self.low > other.high, "lower": self.high < other.low}.get(self.direction, False)


def number(value: float) -> str:
    """Three significant digits, more before the point where it takes them; whole numbers whole."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value) or 1)))}f}" if abs(value) >= 1e-3 else f"{value:.3g}"


def measures(evaluation: dict) -> dict[str, Measure]:
    """By name, in the order of the evaluation, those of its entries that have a value."""
    return {
        name: Measure(name, entry["value"], entry.get("low"), entry.get("high"), entry.get("direction") or "")
        for name, entry in evaluation.items()
        if isinstance(entry, dict) and isinstance(entry.get("value"), (int, float))
    }


def compared(columns: list[dict[str, Measure]]) -> dict[str, tuple[str, list[tuple[str, bool]]]]:
    """Of several runs' measures, each one's direction, and for every run its text and whether it beats all others."""
    rows = {}
    for name in dict.fromkeys(name for column in columns for name in column):
        values = [column.get(name) for column in columns]
        cells = []
        for value in values:
            others = [other for other in values if other is not value]
            best = value is not None and all(other is not None and value.beats(other) for other in others)
            cells.append(("–" if value is None else value.text, best))
        rows[name] = next(value.direction for value in values if value is not None), cells
    return rows


def arrow(name: str, direction: str) -> str:
    """The measure's name for people, with an arrow where more, or less, is better."""
    return name.replace("_", " ") + {"higher": " ↑", "lower": " ↓"}.get(direction, "")


def training_measures(metrics: dict) -> dict[str, Measure]:
    """What a run knows of itself without an evaluation; no intervals."""
    held_out = metrics.get("held-out", {})
    known = {
        "held-out ELBO": (held_out.get("elbo"), "higher"),
        "held-out reconstruction": (held_out.get("reconstruction"), "lower"),
        "held-out KL": (held_out.get("kl"), ""),
        "active units": (metrics.get("active_units"), ""),
        "seconds": (metrics.get("seconds"), ""),
    }
    return {name: Measure(name, value, None, None, way) for name, (value, way) in known.items() if value is not None}


def table(rows: list[list[str]]) -> str:
    """Rows of cells, the header first, as a Markdown table with its columns aligned, all but the first to the right."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([f"{first[0]:<{first[1]}}", *[f"{c:>{w}}" for c, w in others]]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *["-" * (w + 1) + ":" for w in widths[1:]]]) + "|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])
