"""The measures of `vaefast evaluate` as rows of text, for the terminal, Markdown and the page."""

from __future__ import annotations

import math
from typing import NamedTuple


class Measure(NamedTuple):
    """label: the name for people; value with its interval, where there is one; direction: which is better, "lower" or
    "higher", "real" for as near to real images' as can be, else neither; attained: real images in place of samples."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    direction: str = ""
    attained: float | None = None

    @property
    def text(self) -> str:
        """The value, and its interval in brackets."""
        interval = f" [{number(self.low)},\N{NO-BREAK SPACE}{number(self.high)}]" if self._has_interval else ""
        return number(self.value) + interval

    @property
    def better(self) -> str:
        """The direction in words."""
        return {"real": "as real"}.get(self.direction, self.direction)

    @property
    def _has_interval(self) -> bool:
        return self.low is not None and self.high is not None

    def _distances(self) -> tuple[float, float] | None:
        """The least and the largest distance of the interval from what is best; None where nothing is."""
        if not self._has_interval:
            return None
        if self.direction == "lower":
            return self.low, self.high
        if self.direction == "higher":
            return -self.high, -self.low
        if self.direction != "real" or self.attained is None:
            return None
        ends = abs(self.low - self.attained), abs(self.high - self.attained)
        return 0.0 if self.low <= self.attained <= self.high else min(ends), max(ends)

    def beats(self, other: Measure) -> bool:
        """Whether it is better than `other` with intervals that do not meet."""
        mine, theirs = self._distances(), other._distances()
        return mine is not None and theirs is not None and mine[1] < theirs[0]


def number(value: float) -> str:
    """Three significant digits, more before the point where it takes them; whole numbers whole."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    if abs(value) < 1e-12:  # what rounding leaves of 0
        return "0"
    return f"{value:.{2 - math.floor(math.log10(abs(value)))}f}" if abs(value) >= 1e-3 else f"{value:.2e}"


def measures(evaluation: dict) -> dict[str, Measure]:
    """By name, in the order of the evaluation, those of its entries that have a value."""
    return {
        name: Measure(
            entry.get("label", name.replace("_", " ")),
            entry["value"],
            entry.get("low"),
            entry.get("high"),
            "" if entry.get("direction") == "none" else entry.get("direction", ""),
            entry.get("training_images"),
        )
        for name, entry in evaluation.items()
        if isinstance(entry, dict) and isinstance(entry.get("value"), (int, float))
    }


def missing(evaluation: dict) -> dict[str, str]:
    """Why what could not be measured could not, by label."""
    return {
        entry.get("label", name): entry["why_not"]
        for name, entry in evaluation.items()
        if isinstance(entry, dict) and entry.get("why_not")
    }


def compared(columns: list[dict[str, Measure]]) -> dict[str, list[tuple[str, bool]]]:
    """Of several runs' measures, by label and which way is better: for every run its text and whether it beats all
    others. Measures with one name and two labels, such as distances in two networks' features, are two rows."""
    rows = {}
    for name, label in dict.fromkeys((name, measure.label) for column in columns for name, measure in column.items()):
        found = [column.get(name) for column in columns]
        values = [value if value is not None and value.label == label else None for value in found]
        cells = []
        for value in values:
            others = [other for other in values if other is not value]
            best = value is not None and all(other is not None and value.beats(other) for other in others)
            cells.append(("–" if value is None else value.text, best))
        first = next(value for value in values if value is not None)
        ways = {"higher": " ↑", "lower": " ↓"}
        if first.attained is not None:
            ways["real"] = f" (real images {number(first.attained)})"
        rows[label + ways.get(first.direction, "")] = cells
    return rows


def training_measures(metrics: dict) -> dict[str, Measure]:
    """What a run knows of itself without an evaluation; no intervals."""
    held_out = metrics.get("held-out", {})
    known = {
        "held-out ELBO": (held_out.get("elbo"), "higher"),
        "held-out reconstruction": (held_out.get("reconstruction"), "lower"),
        "held-out KL": (held_out.get("kl"), ""),
        "active units in training": (metrics.get("active_units"), ""),
        "seconds": (metrics.get("seconds"), ""),
    }
    return {name: Measure(name, value, direction=way) for name, (value, way) in known.items() if value is not None}


def table(rows: list[list[str]]) -> str:
    """Rows of cells, the header first, as a Markdown table with its columns aligned, all but the first to the right."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([f"{first[0]:<{first[1]}}", *[f"{c:>{w}}" for c, w in others]]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *["-" * (w + 1) + ":" for w in widths[1:]]]) + "|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])
