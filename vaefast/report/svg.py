"""Charts as SVG text that takes its colours from the page, so that dark mode and print need no second chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import torch

_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 38
_MOST_TICKS = 5
_MOST_NAMED = 20


class _Axis:
    """Maps [low, high] to [start, end] of the drawing; `ticks` are round numbers between."""

    def __init__(self, low: float, high: float, start: float, end: float, least_step: float = 0.0):
        if not low < high:  # a flat line still has a place
            low, high = low - 0.5, high + 0.5
        self.low, self.high, self.start, self.end, self.least_step = low, high, start, end, least_step

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        step = max(_round_step((self.high - self.low) / _MOST_TICKS), self.least_step)
        return [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, … (and of .5, .2, .1, …) that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= least * (1 - 1e-9))


def _frame(x: _Axis, y: _Axis, x_title: str, y_title: str, body: str, label: str) -> str:
    """The drawing around `body`: grid, numbers, titles; `label` is what a screen reader says."""
    middle_x, middle_y = (x.start + x.end) / 2, (y.start + y.end) / 2
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in y.ticks:
        parts.append(f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{x.start - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x.ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{y.start}" y2="{y.end}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{y.start + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(body)
    parts.append(f'<text x="{middle_x}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_title)}</text>')
    turned = f'transform="rotate(-90 12 {middle_y})"'
    parts.append(f'<text x="12" y="{middle_y}" text-anchor="middle" {turned}>{escape(y_title)}</text></svg>')
    return "".join(parts)


def lines(series: dict[str, Sequence[float]], x_title: str, y_title: str, label: str) -> str:
    """A line for each of `series`, drawn over 1, 2, 3, …; colours by order. Values that are not finite leave gaps.

    The first tenth of a training run, steep, would leave the rest flat: it may leave the drawing at the top, if there
    are more than 20 values.
    """
    count = max(map(len, series.values()))
    settled = [v for values in series.values() for v in values[count // 10 if count > 20 else 0 :] if math.isfinite(v)]
    low, high = (min(settled), max(settled)) if settled else (0.0, 1.0)
    margin = 0.06 * (high - low)
    x = _Axis(1, count, _LEFT, _WIDTH - _RIGHT, least_step=1)
    y = _Axis(low - margin, high + margin, _HEIGHT - _BOTTOM, _TOP)
    body = []
    for i, (name, values) in enumerate(series.items()):
        points = [(x(n), y(v)) for n, v in enumerate(values, 1) if math.isfinite(v)]
        # far outside the drawing is cut off by it; a renderer's numbers are finite
        shown = " ".join(f"{px:.1f},{max(-_HEIGHT, py):.1f}" for px, py in points)
        body.append(f'<polyline class="line s{i}" points="{shown}"><title>{escape(name)}</title></polyline>')
        if len(points) == 1:  # no line goes through it
            body.append(f'<g class="dots s{i}"><circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/></g>')
    clip = f'<svg x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_HEIGHT - _TOP - _BOTTOM}" '
    view = f'viewBox="{_LEFT} {_TOP} {_WIDTH - _LEFT - _RIGHT} {_HEIGHT - _TOP - _BOTTOM}">'
    return _frame(x, y, x_title, y_title, f"{clip}{view}{''.join(body)}</svg>", label)


def scatter(points: torch.Tensor, labels: torch.Tensor | None, x_title: str, y_title: str, label: str) -> str:
    """Points [N, 2], coloured by class where `labels` [N] are given; each of at most 20 classes is named at its
    middle."""
    (x_low, y_low), (x_high, y_high) = points.amin(0).tolist(), points.amax(0).tolist()
    x_margin, y_margin = 0.04 * (x_high - x_low), 0.04 * (y_high - y_low)
    x = _Axis(x_low - x_margin, x_high + x_margin, _LEFT, _WIDTH - _RIGHT)
    y = _Axis(y_low - y_margin, y_high + y_margin, _HEIGHT - _BOTTOM, _TOP)
    classes = [None] if labels is None else labels.unique().tolist()
    named = len(classes) <= _MOST_NAMED
    dots, names = [], []
    for i, name in enumerate(classes):
        of_class = points if name is None else points[labels == name]
        circles = "".join(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="1.8"/>' for a, b in of_class.tolist())
        dots.append(f'<g class="dots s{i % 10}">{circles}</g>')
        if name is not None and named:
            a, b = of_class.median(0).values.tolist()
            names.append(f'<text class="name" x="{x(a):.1f}" y="{y(b) + 5:.1f}" text-anchor="middle">{name}</text>')
    return _frame(x, y, x_title, y_title, "".join(dots + names), label)
