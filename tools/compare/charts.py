"""The plots of the page as inline SVG: bars of one figure, and what the probe saw over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from tools.bench.findings import Spread
from tools.compare.readers import PATIENCE_S, ProbePoint
from tools.compare.results import Column, Results
from tools.compare.subjects import SUBJECTS

BAR_HEIGHT, BAR_STEP = 18, 26
LABEL_WIDTH, BAR_WIDTH, VALUE_WIDTH = 116, 220, 70
STRIP_WIDTH, STRIP_HEIGHT = 620, 54
MS_LOW, MS_HIGH = 0.2, PATIENCE_S * 1000
LOG_FROM = 40.0  # times between the largest and the smallest bar, above which the axis is logarithmic


def bars(results: Results, column: Column) -> str:
    """Return the bars of one figure: the median or the worst round, and the range over the rounds as a line."""
    found = [(name, results.spread(name, column.name)) for name in SUBJECTS if results.rounds.get(name)]
    spreads = [spread for _, spread in found if spread]
    top = max((spread.high for spread in spreads), default=0.0) or 1.0
    smallest = min((spread.median for spread in spreads if spread.median > 0), default=top)
    is_log = column.direction != 0 and all(s.median > 0 for s in spreads) and top / smallest > LOG_FROM
    height = BAR_STEP * len(found)
    parts = [_bar(results, column, row, name, spread, _Scale(top, smallest, is_log))
             for row, (name, spread) in enumerate(found)]  # fmt: skip
    better = {1: "more is better", -1: "less is better", 0: ""}[column.direction]
    remark = ", ".join(part for part in (better, "logarithmic" if is_log else "") if part)
    return (
        f'<figure><figcaption><b>{escape(column.heading)}</b> {escape(column.what)}'
        f'{f" <i>({remark})</i>" if remark else ""}</figcaption>'
        f'<svg viewBox="0 0 {LABEL_WIDTH + BAR_WIDTH + VALUE_WIDTH} {height}" role="img">{"".join(parts)}</svg>'
        "</figure>"
    )


class _Scale:
    """From a value to a length."""

    def __init__(self, top: float, smallest: float, is_log: bool) -> None:
        self._top, self._floor, self._is_log = top, smallest / 3, is_log

    def __call__(self, value: float) -> float:
        if not self._is_log:
            return max(0.0, value / self._top * BAR_WIDTH)
        return max(0.0, math.log(max(value, self._floor) / self._floor) / math.log(self._top / self._floor) * BAR_WIDTH)


def _bar(results: Results, column: Column, row: int, name: str, spread: Spread | None, scale: _Scale) -> str:
    y = row * BAR_STEP + (BAR_STEP - BAR_HEIGHT) / 2
    middle = y + BAR_HEIGHT / 2
    label = f'<text class="label" x="{LABEL_WIDTH - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>'
    if spread is None:
        return label + f'<text class="soft" x="{LABEL_WIDTH}" y="{middle + 4}">not measured</text>'
    length, end = scale(results.shown(name, column) or 0.0), scale(spread.high)
    size = f'width="{max(length, 1):.1f}" height="{BAR_HEIGHT}"'
    bar = f'<rect class="bar {name}" x="{LABEL_WIDTH}" y="{y}" {size} rx="3"/>'
    line = (
        f'<line class="range" x1="{LABEL_WIDTH + scale(spread.low):.1f}" x2="{LABEL_WIDTH + end:.1f}" y1="{middle}"'
        f' y2="{middle}"/>'
        if len(results.rounds[name]) > 1
        else ""
    )
    value = f'<text class="value" x="{LABEL_WIDTH + max(length, end) + 6:.1f}" y="{middle + 4}">'
    return label + bar + line + value + f"{escape(results.text(name, column))}</text>"


def strip(name: str, points: Sequence[ProbePoint], span_s: float) -> str:
    """Return what the probe saw of one subject: a dot per answer, a red line for each read without one."""
    width, height = STRIP_WIDTH, STRIP_HEIGHT
    parts = []
    for ms in (1, 10, 100, 1000):
        y = _height(ms)
        parts.append(f'<line class="grid" x1="{LABEL_WIDTH}" x2="{LABEL_WIDTH + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for point in points:
        x = LABEL_WIDTH + point.t_s / span_s * width
        if point.ms is None:
            parts.append(f'<line class="unserved" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height - 2}"/>')
        else:
            parts.append(f'<circle class="dot {name}" cx="{x:.1f}" cy="{_height(point.ms):.1f}" r="1.6"/>')
    ticks = "".join(
        f'<text class="soft tick" x="{LABEL_WIDTH + s / span_s * width:.1f}" y="{height + 12}">{s}</text>'
        for s in range(0, int(span_s) + 1, 1 if span_s <= 15 else 5)
    )
    scale = "".join(
        f'<text class="soft" x="{LABEL_WIDTH + width + 4}" y="{max(10.0, _height(ms) + 3):.1f}">{text}</text>'
        for ms, text in ((1, "1 ms"), (1000, "1 s"))
    )
    label = f'<text class="label" x="{LABEL_WIDTH - 8}" y="{height / 2 + 4}" text-anchor="end">{escape(name)}</text>'
    shapes = f"{label}{''.join(parts)}{ticks}{scale}"
    return f'<svg viewBox="0 0 {LABEL_WIDTH + width + 34} {height + 16}" role="img">{shapes}</svg>'


def _height(ms: float) -> float:
    share = math.log(min(max(ms, MS_LOW), MS_HIGH) / MS_LOW) / math.log(MS_HIGH / MS_LOW)
    return STRIP_HEIGHT - 3 - share * (STRIP_HEIGHT - 6)
