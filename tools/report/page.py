"""report.html: one page without foreign parts - the figures in short, charts over time, a row per process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from tools.report.charts import Chart, Mark, Series, draw
from tools.report.figures import RATE_WINDOW_S, Interval, Reading, Spent, Summary, roles_of
from tools.report.terminal import EXPLANATION, HEADINGS, mib, summary_rows

MIB = 1 << 20
COLOURS = {
    "manager": "#d9822b", "persister": "#2f8f6b", "writer-users": "#7b5ea7", "writer-products": "#a58ac9",
    "writer-orders": "#c9b8e0", "supervisor": "#8a8f98",
}  # fmt: skip
WORKER_COLOURS = ("#1f5fa8", "#4b8ccc", "#86b5e3", "#2c7fb0", "#5fa9cf", "#9fcbe4")
BLUE, ORANGE, GREY = "#1f5fa8", "#d9822b", "#8a8f98"

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Millrace resource report</title>
<style>
:root { color-scheme: light; --ink: #1d2126; --soft: #5c6570; --line: #dfe3e8; --card: #fff; --page: #f5f6f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { margin: 0 0 2px; font-size: 26px; } h2 { font-size: 18px; margin: 30px 0 8px; }
p { margin: 4px 0; } .soft, dt { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; margin: 18px 0 12px; }
.tiles div, figure, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tiles div { padding: 10px 14px; } .tiles b { display: block; font-size: 22px; line-height: 1.3; }
.tiles span { color: var(--soft); font-size: 13px; display: block; line-height: 1.35; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px; }
@media (max-width: 760px) { .charts { grid-template-columns: minmax(0, 1fr); } }
figure { margin: 0; padding: 12px 14px; } .charts .wide { grid-column: 1 / -1; }
figcaption { font-size: 13.5px; color: var(--soft); } figcaption b { color: var(--ink); margin-right: 4px; }
.legend { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 12.5px; margin: 3px 0; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 5px; }
svg { width: 100%; height: auto; display: block; margin-top: 4px; }
svg text { fill: var(--soft); font: 11.5px system-ui, sans-serif; }
svg .value { text-anchor: end; } svg .time { text-anchor: middle; }
.grid { stroke: #e8ebef; } .axis { stroke: #9aa3ad; } .mark { stroke: #b8433a; stroke-dasharray: 4 3; }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; } polygon { stroke: #fff; stroke-width: .4; }
.card { padding: 12px 16px; overflow-x: auto; } .replaced { color: #96281f; }
table { border-collapse: collapse; width: 100%; font-size: 12.5px; font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; line-height: 1.25; }
th, td { text-align: right; padding: 5px 0 5px 9px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr:last-child td { border-bottom: 0; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; } dd { margin: 0; }
code { font: 13px ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
</style></head><body><main>
"""


def render_page(run: Mapping[str, str], intervals: Sequence[Interval], summary: Summary) -> str:
    """Return the whole page."""
    marks = [Mark(one.t_s, f"{one.role} replaced: {one.old_pid} -> {one.new_pid}") for one in summary.replacements]
    headings = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in summary_rows(summary)
    )
    facts = "".join(f"<dt>{escape(key)}</dt><dd><code>{escape(value)}</code></dd>" for key, value in run.items())
    return "".join(
        [
            _HEAD,
            "<h1>Millrace resource report</h1>",
            f'<p class="soft">{escape(run["started"])} · {escape(run["machine"])} · {escape(run["samples"])}</p>',
            _tiles(summary),
            *(f'<p class="replaced">{mark.t_s:.1f} s: {escape(mark.text)}</p>' for mark in marks),
            f'<div class="charts">{"".join(draw(chart, marks) for chart in charts_of(intervals))}</div>',
            "<h2>Processes</h2>",
            f'<div class="card"><table><tr>{headings}</tr>{rows}</table></div>',
            f'<p class="soft">{escape(EXPLANATION)}</p>',
            f'<h2>This report</h2><div class="card"><dl>{facts}</dl></div>',
            "</main></body></html>\n",
        ]
    )


def _tiles(summary: Summary) -> str:
    cpu = summary.cpu_us_per_request
    tiles = (
        ("requests/s", f"{summary.requests_per_s:,.0f}", f"at most {summary.requests_per_s_max:,.0f}"),
        ("CPU, all processes", f"{summary.cpu_percent:.0f} %", "100 % is one core"),
        ("CPU per request", f"{cpu:.1f} µs" if cpu else "-", "all processes" if cpu else "no requests"),
        ("flush lag, at most", f"{summary.flush_lag_ms_max:,} ms", f"median {summary.flush_lag_ms_median:,.0f} ms"),
        ("memory, all processes", f"{mib(summary.pss_bytes)} MiB", "PSS at the end"),
        ("shared memory", f"{mib(summary.shm_last_bytes)} MiB", f"{summary.records:,} records"),
    )
    cells = [f"<div><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(remark)}</span></div>"
             for name, value, remark in tiles]  # fmt: skip
    return f'<div class="tiles">{"".join(cells)}</div>'


def charts_of(intervals: Sequence[Interval]) -> list[Chart]:
    """Return what is drawn, in this order."""
    times = [interval.sample.t_s for interval in intervals]

    def spent(value_of: Callable[[Spent], float], scale: float = 1.0) -> list[Series]:
        return _by_role(intervals, lambda one, role: scale * value_of(one.spent[role]) / one.seconds)

    def size(value_of: Callable[[Reading], float]) -> list[Series]:
        return _by_role(intervals, lambda one, role: value_of(one.sample.processes[role]) / MIB)

    def server(name: str, colour: str, value_of: Callable[[Interval], float]) -> Series:
        return Series(name, colour, [value_of(interval) for interval in intervals])

    return [
        Chart("CPU", "per process, stacked; 100 % is one core; the same colours below", "% CPU", times,
              spent(lambda one: one.cpu_s, 100), is_stacked=True, is_wide=True),
        Chart("Requests", f"means of {RATE_WINDOW_S:g} s, stacked", "per second", times,
              [server("reads", BLUE, lambda one: one.reads_per_s),
               server("writes", ORANGE, lambda one: one.writes_per_s)], is_stacked=True),
        Chart("Flush lag", "age of the oldest change not in SQLite, its peaks", "ms", times,
              [server("flush lag", BLUE, lambda one: one.sample.server.flush_lag_ms)], keeps_peaks=True),
        Chart("Memory", "PSS per process, stacked: every page counts once", "MiB", times,
              size(lambda one: one.pss_bytes), is_stacked=True, has_legend=False),
        Chart("Shared memory", "the segment", "MiB", times,
              [server("reserved by its header", BLUE, lambda one: one.sample.server.reserved_bytes / MIB),
               server("blocks of its file", ORANGE, lambda one: one.sample.server.shm_file_bytes / MIB)
               ._replace(is_dashed=True)]),
        Chart("Waits", "voluntary context switches, stacked", "per second", times,
              spent(lambda one: one.voluntary_switches), is_stacked=True, has_legend=False),
        Chart("Preemptions", "involuntary context switches, stacked", "per second", times,
              spent(lambda one: one.involuntary_switches), is_stacked=True, has_legend=False),
        Chart("Written to disk", "per process, stacked", "MiB/s", times,
              spent(lambda one: one.written_bytes, 1 / MIB), is_stacked=True, has_legend=False),
        Chart("Changes not in SQLite", "and on their way there", "changes", times,
              [server("changes", BLUE, lambda one: one.sample.server.not_in_sqlite)], keeps_peaks=True),
    ]  # fmt: skip


def _by_role(intervals: Sequence[Interval], value_of: Callable[[Interval, str], float]) -> list[Series]:
    """Return one series per role, workers first; a role without a process is 0."""
    roles = sorted(roles_of(intervals), key=lambda role: (not role.startswith("worker"), role == "supervisor"))
    workers = [role for role in roles if role.startswith("worker")]
    colours = {role: WORKER_COLOURS[number % len(WORKER_COLOURS)] for number, role in enumerate(workers)} | COLOURS
    return [
        Series(role, colours.get(role, GREY),
               [value_of(one, role) if role in one.sample.processes else 0.0 for one in intervals])
        for role in roles
    ]  # fmt: skip
