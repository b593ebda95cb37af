"""What the benchmarks produce: figures of each round, ratios to a reference, verdicts. Plain data, no processes.

A measurement of one side (Millrace or a reference) in one round is a dictionary of `Figures`; names carry their unit.
A ratio is taken within each round, where both sides ran one after the other on the same machine in the same minute,
and then the median over the rounds: what slows the whole machine down for a while slows down both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any, NamedTuple

Figures = dict[str, float]  # one round of one side
Point = dict[str, float]  # one moment of a curve

ALL = "all"  # in `failures` and `missing`: every side of the experiment
SATURATED_SHARE = 0.9  # below, a closed loop did not fill the server: its client, or the disk, set the pace
LATE_SHARE = 0.3  # above, a latency tells as much about the client as about the server
PERCENTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "p999_ms": 99.9}


class Spread(NamedTuple):
    """Median and range over the rounds."""

    median: float
    low: float
    high: float


class Verdict(StrEnum):
    """What is said of a row."""

    REACHED = "reached"
    MISSED = "MISSED"
    FAILED = "FAILED"  # a wrong answer, or a server that did not hold out: there is no figure to judge
    LEFT_OUT = "left out"  # something is not installed
    NOT_JUDGED = "not judged"  # measured on less than what the target speaks of (--quick)


@dataclass
class Findings:
    """All that one experiment found."""

    sides: dict[str, list[Figures]] = field(default_factory=dict)
    processes: dict[str, dict[str, Figures]] = field(default_factory=dict)  # side: process: its figures at the end
    curves: dict[str, list[Point]] = field(default_factory=dict)  # over time, or over the number of records
    conditions: dict[str, str] = field(default_factory=dict)  # level, cores, what was counted
    failures: dict[str, str] = field(default_factory=dict)  # side: why its rows fail
    missing: dict[str, str] = field(default_factory=dict)  # side: what is not installed, and the command
    reduced: str = ""  # how a quick run measured less than the target asks for; empty: it did not

    def add(self, side: str, figures: Figures) -> None:
        self.sides.setdefault(side, []).append(figures)

    def series(self, side: str, figure: str) -> list[float]:
        """Return a figure of a side, round by round; rounds without it are left out."""
        return [figures[figure] for figures in self.sides.get(side, []) if figure in figures]


@dataclass(frozen=True)
class Target:
    """One row of the table: a figure of a side, as a ratio to that of a reference, or as it is."""

    name: str
    what: str
    experiment: str
    side: str
    figure: str
    reference: str | None  # None: the figure itself is judged
    limit: float
    is_at_most: bool
    unit: str = "x"


@dataclass(frozen=True)
class Row:
    """A target and what was found."""

    target: Target
    verdict: Verdict
    spread: Spread | None
    measured: Spread | None  # the figure itself
    compared: Spread | None  # that of the reference
    rounds: int
    remark: str


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of values in ascending order; NaN when there are none."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def latency_figures(latencies_ms: Sequence[float]) -> Figures:
    """Return the percentiles and the maximum of latencies in any order; nothing when there are none."""
    if not latencies_ms:
        return {}
    ordered = sorted(latencies_ms)
    return {name: percentile(ordered, percent) for name, percent in PERCENTILES.items()} | {"max_ms": ordered[-1]}


def spread_of(values: Sequence[float]) -> Spread | None:
    """Return median and range; None without values."""
    return Spread(median(values), min(values), max(values)) if values else None


def ratios(values: Sequence[float], references: Sequence[float]) -> list[float]:
    """Return the ratio of each round that both sides have."""
    return [value / reference for value, reference in zip(values, references, strict=False) if reference]


def judge(target: Target, findings: Findings) -> Row:
    """Return the row of a target."""
    sides = [ALL, target.side] + ([target.reference] if target.reference else [])
    values = findings.series(target.side, target.figure)
    references = findings.series(target.reference, target.figure) if target.reference else []
    judged = ratios(values, references) if target.reference else values
    spread = spread_of(judged)
    verdict, remark = _verdict(target, findings, sides, spread)
    return Row(target, verdict, spread, spread_of(values), spread_of(references), len(judged), remark)


def _verdict(target: Target, findings: Findings, sides: list[str], spread: Spread | None) -> tuple[Verdict, str]:
    for side in sides:
        if side in findings.failures:
            return Verdict.FAILED, f"{side}: {findings.failures[side]}"
    for side in sides:
        if side in findings.missing:
            return Verdict.LEFT_OUT, findings.missing[side]
    if spread is None:
        return Verdict.FAILED, "no figure"
    if findings.reduced:
        return Verdict.NOT_JUDGED, findings.reduced
    is_reached = spread.median <= target.limit if target.is_at_most else spread.median >= target.limit
    return (Verdict.REACHED if is_reached else Verdict.MISSED), _saturation(target, findings, sides)


def _saturation(target: Target, findings: Findings, sides: list[str]) -> str:
    """Say when a figure may be that of the client: the server had time left, or the client was late itself."""
    said = []
    for side in sides:
        busy = spread_of(findings.series(side, "server_busy"))
        if target.figure == "rate" and busy and busy.median < SATURATED_SHARE:
            said.append(f"{side} used {busy.median:.0%} of its cores")
        late, latency = (spread_of(findings.series(side, name)) for name in ("late_p99_ms", "p99_ms"))
        if target.figure == "p99_ms" and late and latency and late.median > LATE_SHARE * latency.median:
            said.append(f"{side}: p99 {late.median:.2f} ms of it is the client's own delay")
    return "; ".join(said)


def as_json(findings: Findings) -> dict[str, Any]:
    """Return an experiment for results.json: every round, and the spread of every figure."""
    return {
        "conditions": findings.conditions,
        "reduced": findings.reduced or None,
        "failures": findings.failures,
        "missing": findings.missing,
        "sides": {
            side: {
                "rounds": rounds,
                "spread": {
                    figure: spread._asdict()
                    for figure in dict.fromkeys(name for figures in rounds for name in figures)
                    if (spread := spread_of(findings.series(side, figure))) is not None
                },
            }
            for side, rounds in findings.sides.items()
        },
        "processes": findings.processes,
        "curves": findings.curves,
    }


def row_as_json(row: Row) -> dict[str, Any]:
    """Return a row for results.json."""
    target = row.target
    return {
        "name": target.name,
        "what": target.what,
        "experiment": target.experiment,
        "side": target.side,
        "figure": target.figure,
        "reference": target.reference,
        "target": f"{'<=' if target.is_at_most else '>='} {target.limit:g} {target.unit}",
        "verdict": row.verdict.value,
        "value": row.spread._asdict() if row.spread else None,
        "measured": row.measured._asdict() if row.measured else None,
        "compared": row.compared._asdict() if row.compared else None,
        "rounds": row.rounds,
        "remark": row.remark or None,
    }
