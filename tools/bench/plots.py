"""The plots: each is drawn once with matplotlib and saved as PNG (for the README) and as SVG (inside results.html).

Without matplotlib there are no plots and the tables stay. One colour means one side in every plot.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.bench.findings import PERCENTILES, Findings, Row, Verdict, spread_of

COLOURS = {
    "millrace": "#1f5fa8", "pipelined": "#6fa3d8", "bare": "#8a8f98", "nginx": "#3a8f5c", "redis": "#b8433a",
    "fastapi": "#c98a2b", "mix 90/10": "#6fa3d8",
}  # fmt: skip
MORE_COLOURS = ("#1f5fa8", "#c98a2b", "#b8433a", "#3a8f5c", "#7a5aa8", "#8a8f98")
VERDICT_COLOURS = {Verdict.REACHED: "#3a8f5c", Verdict.MISSED: "#b8433a", Verdict.NOT_JUDGED: "#8a8f98"}
WIDE, TALL = (9.0, 3.4), (9.0, 5.0)
PNG_DOTS_PER_INCH = 130
SHARE_SHOWN_MAX = 2.5  # of a target; bars and ranges beyond it are cut, with a mark and the figure beside them
HEADROOM = 1.1  # above the highest point
SIZE_ORDER = ("small", "middle", "large", "huge")
STYLE: dict[str, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888",
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.grid": True,
    "axes.axisbelow": True, "grid.color": "#e4e4e4", "legend.frameon": False, "svg.fonttype": "path",
    "svg.hashsalt": "millrace", "figure.constrained_layout.use": True, "lines.linewidth": 1.4,
}  # fmt: skip


class Plot(NamedTuple):
    """A finished plot; `name` is that of its PNG file."""

    name: str
    title: str
    svg: str
    png: bytes


def draw_all(found: Mapping[str, Findings], rows: Sequence[Row]) -> list[Plot]:
    """Return every plot that there is data for."""
    import matplotlib  # here: without it the benchmark still has its tables

    matplotlib.use("Agg")
    from matplotlib import pyplot

    none = Findings()
    reads, orders, loop, beside, flushing, scale, growth = (
        found.get(name, none)
        for name in ("reads", "orders", "open-loop", "reads-with-writes", "flush-lag", "scale", "growth")
    )
    drawings: list[tuple[str, str, tuple[float, float], Callable[[Any], bool]]] = [
        ("targets", "Every figure as a share of its target", TALL, lambda figure: _targets(figure, rows)),
        ("reads", "GET /user/{id}, closed loop, 64 connections", WIDE, lambda figure: _bars(figure, reads)),
        ("orders", "POST /order, level journal, 64 connections", WIDE, lambda figure: _bars(figure, orders)),
        ("percentiles", "Open loop: latency from the intended send time", WIDE,
         lambda figure: _percentiles(figure, loop)),
        ("latency-over-time", "Open loop: slowest request in each 0.1 s", TALL,
         lambda figure: _over_time(figure, loop)),
        ("reads-with-writes", "GET beside 5,000 orders/s: p99 in each 0.1 s", WIDE,
         lambda figure: _curves(figure, beside, "p99_ms", "p99 (ms)")),
        ("flush-lag", "Flush lag at 10,000 orders/s", TALL, lambda figure: _flush_lag(figure, flushing)),
        ("scale", "Tables of different sizes", TALL, lambda figure: _scale(figure, scale)),
        ("growth", "Slowest probe in each 0.1 s, steady and while 10,000 users/s are created", WIDE,
         lambda figure: _curves(figure, growth, "max_ms", "max (ms)")),
    ]  # fmt: skip
    plots = []
    with pyplot.rc_context(STYLE):
        for name, title, size, draw in drawings:
            figure = pyplot.figure(figsize=size)
            if draw(figure):
                figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
                plots.append(Plot(name, title, _svg(figure), _png(figure)))
            pyplot.close(figure)
    return plots


def write_images(plots: Sequence[Plot], directory: Path) -> None:
    """Write the PNG files."""
    for plot in plots:
        (directory / f"{plot.name}.png").write_bytes(plot.png)


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_DOTS_PER_INCH)
    return buffer.getvalue()


def _colour(side: str, number: int) -> str:
    return COLOURS.get(side, MORE_COLOURS[number % len(MORE_COLOURS)])


def _use_log_scale(axes: Any) -> None:
    """Set a logarithmic scale with 1, 2, 5, 10, ... as people write them: the span may be less than a decade."""
    axes.set_yscale("log", subs=[])
    axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    axes.yaxis.set_major_formatter("{x:g}")


def _targets(figure: Any, rows: Sequence[Row]) -> bool:
    """One bar per row, 1.0 is the target: left of it is better, whatever the direction of the target."""
    shown = [row for row in reversed(rows) if row.spread and row.spread.median > 0 and row.verdict in VERDICT_COLOURS]
    if not shown:
        return False
    axes = figure.add_subplot()
    for place, row in enumerate(shown):
        limit, values = row.target.limit, list(row.spread or ())
        shares = [v / limit if row.target.is_at_most else limit / max(v, 1e-9) for v in values]
        middle, low, high = (min(share, SHARE_SHOWN_MAX) for share in shares)
        axes.barh(place, middle, color=VERDICT_COLOURS[row.verdict], height=0.6)
        axes.plot([low, high], [place, place], color="#333", linewidth=1)
        mark = " >" if max(shares) > SHARE_SHOWN_MAX else ""
        label = f"{mark} {values[0]:.3g} {row.target.unit} (target {row.target.limit:g})"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.text(max(low, high) + 0.02, place, label.strip(), va="center", fontsize=8, bbox=box)
    axes.axvline(1.0, color="#333", linewidth=1, zorder=0.5)
    axes.set_yticks(range(len(shown)), [row.target.name for row in shown])
    axes.set_xlabel("share of the target, 1 or less is reached; green reached, red missed, grey not judged")
    axes.set_xlim(0, SHARE_SHOWN_MAX * 1.3)
    axes.grid(axis="y", visible=False)
    return True


def _bars(figure: Any, findings: Findings) -> bool:
    """Rate and CPU time of each side, with the range over the rounds."""
    if not findings.sides:
        return False
    panels = (("rate", "requests/s", 1e-3, "thousand/s"), ("cpu_us", "server CPU per request", 1.0, "µs"))
    for number, (name, title, scale, unit) in enumerate(panels):
        axes = figure.add_subplot(1, 2, number + 1)
        for place, side in enumerate(findings.sides):
            spread = spread_of([value * scale for value in findings.series(side, name)])
            if spread is None:
                continue
            reach = [[spread.median - spread.low], [spread.high - spread.median]]
            axes.bar(place, spread.median, yerr=reach, color=_colour(side, place), width=0.65, capsize=3)
            axes.text(place, spread.high, f"{spread.median:.1f}", ha="center", va="bottom", fontsize=8)
        axes.set_xticks(range(len(findings.sides)), list(findings.sides), rotation=15)
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.grid(axis="x", visible=False)
        _clip_to_second(axes, findings, name, scale)
    return True


def _clip_to_second(axes: Any, findings: Findings, name: str, scale: float) -> None:
    """Let one bar far above all others leave the plot (its value stands beside it), so that the others can be read."""
    medians = sorted(
        ((spread.median * scale, place) for place, side in enumerate(findings.sides)
         if (spread := spread_of(findings.series(side, name)))), reverse=True
    )  # fmt: skip
    if len(medians) > 2 and medians[0][0] > 5 * medians[1][0]:
        top = 2.5 * medians[1][0]
        axes.set_ylim(0, top)
        for text in axes.texts:
            if text.get_position()[1] > top:
                text.set_position((text.get_position()[0], top))
                text.set_text(f"{text.get_text()} ^")


def _percentiles(figure: Any, findings: Findings) -> bool:
    """From the median to the maximum, one line per share of the ceiling."""
    if not findings.sides:
        return False
    names = [*PERCENTILES, "max_ms"]
    labels = ["p50", "p90", "p99", "p99.9", "max"]
    kinds = [kind for kind in ("read", "order") if any(side.startswith(kind) for side in findings.sides)]
    for number, kind in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), number + 1)
        for colour, side in zip(MORE_COLOURS, [s for s in findings.sides if s.startswith(kind)], strict=False):
            figures = findings.sides[side][0]
            rate = f"{side.removeprefix(kind)} = {figures['rate']:,.0f}/s"
            axes.plot(labels, [figures[name] for name in names], marker="o", label=rate, color=colour)
        _use_log_scale(axes)
        axes.set_title(f"{kind}s")
        axes.set_ylabel("ms")
        axes.legend(fontsize=8)
    return True


def _over_time(figure: Any, findings: Findings) -> bool:
    if not findings.curves:
        return False
    kinds = [kind for kind in ("read", "order") if any(name.startswith(kind) for name in findings.curves)]
    for number, kind in enumerate(kinds):
        axes = figure.add_subplot(len(kinds), 1, number + 1)
        _draw_curves(axes, {n: c for n, c in findings.curves.items() if n.startswith(kind)}, "max_ms")
        axes.set_ylabel(f"{kind}s: max (ms)")
    axes.set_xlabel("seconds")
    return True


def _curves(figure: Any, findings: Findings, name: str, label: str) -> bool:
    if not findings.curves:
        return False
    axes = figure.add_subplot()
    _draw_curves(axes, findings.curves, name)
    axes.set_ylabel(label)
    axes.set_xlabel("seconds")
    return True


def _draw_curves(axes: Any, curves: Mapping[str, Sequence[Mapping[str, float]]], name: str) -> None:
    for number, (label, points) in enumerate(curves.items()):
        colour = MORE_COLOURS[number % len(MORE_COLOURS)]
        axes.plot([p["t_s"] for p in points], [p.get(name, math.nan) for p in points], label=label, color=colour)
    _use_log_scale(axes)
    axes.legend(fontsize=8, ncols=4, loc="upper left", bbox_to_anchor=(0, 1.18))


def _flush_lag(figure: Any, findings: Findings) -> bool:
    """The lag above, the latency of the orders below: a flush that hurts is seen in both."""
    if "flush lag" not in findings.curves:
        return False
    upper = figure.add_subplot(2, 1, 1)
    lag, latency = findings.curves["flush lag"], findings.curves["order latency"]
    upper.plot([p["t_s"] for p in lag], [p["lag_s"] for p in lag], color=COLOURS["millrace"])
    upper.set_ylabel("lag (s)")
    upper.set_ylim(0)
    lower = figure.add_subplot(2, 1, 2, sharex=upper)
    times = [point["t_s"] for point in latency]
    for name, colour in zip(("p50_ms", "p99_ms", "max_ms"), MORE_COLOURS, strict=False):
        lower.plot(times, [point[name] for point in latency], label=name.removesuffix("_ms"), color=colour)
    _use_log_scale(lower)
    lower.set_ylabel("order latency (ms)")
    lower.set_xlabel("seconds")
    lower.legend(fontsize=8, ncols=3, loc="upper right")
    return True


def _scale(figure: Any, findings: Findings) -> bool:
    """Four curves over the number of users."""
    sides = [side for side in SIZE_ORDER if findings.series(side, "cpu_us")]
    if len(sides) < 2:
        return False
    panels = (
        ("cpu_us", "GET: CPU per request", "µs"),
        ("order_cpu_us", "POST /order: CPU, all processes", "µs"),
        ("persister_us", "persister CPU: period, 100 dirty", "µs"),
        ("bytes_per_record", "memory per user", "bytes"),
        ("start_s", "ready after a start", "s"),
    )
    for number, (name, title, unit) in enumerate(panels):
        axes = figure.add_subplot(2, 3, number + 1)
        spreads = [spread_of(findings.series(side, name)) for side in sides]
        users = [findings.series(side, "users")[0] for side in sides]
        middles = [spread.median if spread else math.nan for spread in spreads]
        reach = [[s.median - s.low if s else 0 for s in spreads], [s.high - s.median if s else 0 for s in spreads]]
        axes.errorbar(users, middles, yerr=reach, marker="o", color=COLOURS["millrace"], capsize=3, label="millrace")
        if name == "bytes_per_record" and findings.sides.get("redis"):
            redis = findings.sides["redis"][0]
            axes.plot(redis["users"], redis[name], marker="s", color=COLOURS["redis"], linestyle="", label="redis")
            axes.legend(fontsize=8)
        axes.set_xscale("log")
        axes.set_ylim(0, HEADROOM * max(axes.get_ylim()[1], 1e-9))
        axes.set_title(title, fontsize=9)
        axes.set_ylabel(unit)
        axes.set_xlabel("users")
    return True
