"""Charts over time as inline SVG, drawn by hand: the report needs no package that the server does not need.

A chart has one vertical axis with its unit above it, seconds below, a legend as HTML, and dashed lines at the moments
when a process was replaced. A stacked chart puts the series on one another, so that its outline is their sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

HEIGHT = 230
TOP, RIGHT, BOTTOM, LEFT = 26, 14, 34, 58
WIDE, HALF = 1060, 518
TICKS = 4
TICK_PIXELS_X = 90
POINTS_MAX = 600  # more can not be told apart, and would make the page heavy


class Series(NamedTuple):
    name: str
    colour: str
    values: list[float]
    is_dashed: bool = False  # a line that may lie on another one


class Mark(NamedTuple):
    """A moment worth a dashed line."""

    t_s: float
    text: str


class Chart(NamedTuple):
    title: str
    remark: str
    unit: str
    times: list[float]  # the end of each interval, seconds
    series: list[Series]
    is_stacked: bool = False
    is_wide: bool = False
    has_legend: bool = True
    keeps_peaks: bool = False  # when points are too many: the highest of several, not their mean


class _Frame:
    """From seconds and values to pixels."""

    def __init__(self, width: int, t_max: float, v_max: float) -> None:
        self.width = width
        self.t_max = max(t_max, 1e-9)
        self.step = nice_step(v_max / TICKS)
        self.v_max = self.step * max(1, math.ceil(v_max / self.step - 1e-9))

    def x(self, t_s: float) -> float:
        return LEFT + (self.width - LEFT - RIGHT) * t_s / self.t_max

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(value, 0.0), self.v_max) / self.v_max


def draw(chart: Chart, marks: Sequence[Mark] = ()) -> str:
    """Return a figure with caption, legend and plot."""
    times, series = _thinned(chart)
    layers = _stacked(series) if chart.is_stacked else [[[0.0] * len(times), one.values] for one in series]
    top = max((value for _, upper in layers for value in upper), default=0.0)
    frame = _Frame(WIDE if chart.is_wide else HALF, times[-1] if times else 0.0, top)
    shapes = [
        _area(frame, times, lower, upper, one) if chart.is_stacked else _line(frame, times, upper, one)
        for one, (lower, upper) in zip(series, layers, strict=True)
    ]
    legend = _legend(series) if chart.has_legend and len(series) > 1 else ""
    kind = ' class="wide"' if chart.is_wide else ""
    return (
        f"<figure{kind}><figcaption><b>{escape(chart.title)}</b> {escape(chart.remark)}</figcaption>{legend}"
        f'<svg viewBox="0 0 {frame.width} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
        f"{_grid(frame, chart.unit)}{''.join(shapes)}{_time_axis(frame)}"
        f"{''.join(_mark(frame, mark) for mark in marks)}</svg></figure>"
    )


def nice_step(least: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is at least this."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


def thin(values: Sequence[float], points_max: int, keeps_peaks: bool) -> list[float]:
    """Return at most `points_max` values, each for several neighbours: their mean, or the highest."""
    if len(values) <= points_max:
        return list(values)
    size = math.ceil(len(values) / points_max)
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    return [max(group) if keeps_peaks else sum(group) / len(group) for group in groups]


def _thinned(chart: Chart) -> tuple[list[float], list[Series]]:
    times = thin(chart.times, POINTS_MAX, keeps_peaks=True)
    thinned = [s._replace(values=thin(s.values, POINTS_MAX, chart.keeps_peaks)) for s in chart.series]
    if times and times[0] > 0:  # the first interval began at zero
        times = [0.0, *times]
        thinned = [s._replace(values=[s.values[0], *s.values]) for s in thinned]
    return times, thinned


def _stacked(series: Sequence[Series]) -> list[list[list[float]]]:
    """Return lower and upper edge of each series."""
    layers, lower = [], [0.0] * len(series[0].values) if series else []
    for one in series:
        upper = [below + value for below, value in zip(lower, one.values, strict=True)]
        layers.append([lower, upper])
        lower = upper
    return layers


def _area(frame: _Frame, times: Sequence[float], lower: Sequence[float], upper: Sequence[float], one: Series) -> str:
    edge = [*zip(times, upper, strict=True), *reversed(list(zip(times, lower, strict=True)))]
    return f'<polygon points="{_points(frame, edge)}" fill="{one.colour}"><title>{escape(one.name)}</title></polygon>'


def _line(frame: _Frame, times: Sequence[float], values: Sequence[float], one: Series) -> str:
    points = _points(frame, list(zip(times, values, strict=True)))
    dashes = ' stroke-dasharray="6 5"' if one.is_dashed else ""
    return f'<polyline points="{points}" stroke="{one.colour}"{dashes}><title>{escape(one.name)}</title></polyline>'


def _points(frame: _Frame, pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{frame.x(t_s):.1f},{frame.y(value):.1f}" for t_s, value in pairs)


def _grid(frame: _Frame, unit: str) -> str:
    parts = [f'<text x="{LEFT - 44}" y="14">{escape(unit)}</text>']
    for number in range(round(frame.v_max / frame.step) + 1):
        value = number * frame.step
        y = frame.y(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{frame.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="value" x="{LEFT - 7}" y="{y + 4:.1f}">{_number(value)}</text>'
        )
    return "".join(parts)


def _time_axis(frame: _Frame) -> str:
    """Return the axis below; it is drawn over the series, which end on it."""
    bottom, parts = HEIGHT - BOTTOM, []
    step = nice_step(frame.t_max * TICK_PIXELS_X / frame.width)
    for number in range(math.floor(frame.t_max / step + 1e-9) + 1):
        x = frame.x(number * step)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text class="time" x="{x:.1f}" y="{bottom + 17}">{_number(number * step)}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{frame.width - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="value" x="{frame.width - RIGHT}" y="{HEIGHT - 2}">seconds</text>')
    return "".join(parts)


def _mark(frame: _Frame, mark: Mark) -> str:
    x = frame.x(mark.t_s)
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
        f"<title>{escape(mark.text)}</title></line>"
    )


def _legend(series: Sequence[Series]) -> str:
    entries = [f'<span><i style="background:{one.colour}"></i>{escape(one.name)}</span>' for one in series]
    return f'<div class="legend">{"".join(entries)}</div>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"
