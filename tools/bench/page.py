"""results.html: one page without foreign parts - tables, plots (inline SVG), machine, command, every figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from tools.bench.findings import Findings, Row, Verdict
from tools.bench.plots import Plot
from tools.bench.table import ROW_HEADINGS, figure_table, row_cells

CLASSES = {
    Verdict.REACHED: "reached",
    Verdict.MISSED: "missed",
    Verdict.FAILED: "missed",
    Verdict.LEFT_OUT: "open",
    Verdict.NOT_JUDGED: "open",
}

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Millrace benchmarks</title>
<style>
:root { color-scheme: light; --ink: #1d2126; --soft: #5c6570; --line: #dfe3e8; --card: #fff; --page: #f5f6f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { margin: 0 0 2px; font-size: 26px; } h2 { font-size: 18px; margin: 34px 0 8px; } h3 { font-size: 15px; margin: 0; }
p { margin: 4px 0; } .soft, dt, caption { color: var(--soft); }
.counts { display: flex; gap: 10px; flex-wrap: wrap; margin: 14px 0; }
.counts span { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 6px 14px; }
.counts b { font-size: 20px; margin-right: 6px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; margin: 12px 0;
  overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); } th, td { padding: 5px 10px 5px 0; vertical-align: top;
  border-bottom: 1px solid var(--line); } tr:last-child td { border-bottom: 0; }
.figures td:not(:first-child), .figures th:not(:first-child) { text-align: right; white-space: nowrap; }
td.what { color: var(--soft); } td.value, td.limit { white-space: nowrap; }
.tag { border-radius: 6px; padding: 1px 8px; font-weight: 600; font-size: 12.5px; white-space: nowrap; }
.reached { background: #e2f2e8; color: #22693f; } .missed { background: #f8e2e0; color: #96281f; }
.open { background: #eceef1; color: #555e68; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; } dd { margin: 0; }
code { font: 13px ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--soft); padding: 6px 0; }
svg { width: 100%; height: auto; display: block; } .note { color: #96281f; }
</style></head><body><main>
"""


def render_page(
    machine: Mapping[str, str],
    run: Mapping[str, str],
    found: Mapping[str, Findings],
    rows: Sequence[Row],
    plots: Sequence[Plot],
) -> str:
    """Return the whole page."""
    return "".join(
        [
            _HEAD,
            "<h1>Millrace benchmarks</h1>",
            f'<p class="soft">{escape(run["started"])} · {escape(machine["cpu"])} · {escape(machine["kernel"])}</p>',
            f'<p class="note">{escape(machine["warning"])}</p>' if "warning" in machine else "",
            _counts(rows),
            "<h2>Targets</h2>",
            '<p class="soft">Ratios are taken in each round between sides measured in turn; median and range.</p>',
            f'<div class="card">{_targets(rows)}</div>',
            "<h2>Plots</h2>" if plots else "",
            *(f'<div class="card" id="plot-{escape(plot.name)}">{plot.svg}</div>' for plot in plots),
            "<h2>All figures</h2>",
            *(_experiment(name, findings) for name, findings in found.items()),
            "<h2>Machine and run</h2>",
            f'<div class="card">{_definitions({**machine, **run})}</div>',
            "</main></body></html>\n",
        ]
    )


def _counts(rows: Sequence[Row]) -> str:
    counts = {verdict: sum(row.verdict is verdict for row in rows) for verdict in Verdict}
    cells = [f"<span><b>{count}</b>{verdict.value}</span>" for verdict, count in counts.items() if count]
    return f'<div class="counts">{"".join(cells)}</div>'


def _targets(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        name, value, target, verdict, shown = map(escape, row_cells(row))
        lines.append(
            f'<tr><td><b>{name}</b><br><span class="soft">{escape(row.target.what)}</span></td>'
            f'<td class="value">{value}</td><td class="limit">{target}</td>'
            f'<td><span class="tag {CLASSES[row.verdict]}">{verdict}</span></td><td class="what">{shown}</td></tr>'
        )
    return f"<table>{_heading(ROW_HEADINGS)}{''.join(lines)}</table>"


def _experiment(name: str, findings: Findings) -> str:
    headings, lines = figure_table(findings)
    notes = [f"{side} failed: {reason}" for side, reason in findings.failures.items()]
    notes += [f"left out: {side} ({reason})" for side, reason in findings.missing.items()]
    notes += [findings.reduced] if findings.reduced else []
    conditions = " · ".join(f"{key}: {value}" for key, value in findings.conditions.items())
    return (
        f'<div class="card"><h3>{escape(name)}</h3><p class="soft">{escape(conditions)}</p>'
        + "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
        + (f'<table class="figures">{_heading(headings)}{_lines(lines)}</table>' if lines else "")
        + "".join(_processes(side, processes) for side, processes in findings.processes.items())
        + "</div>"
    )


def _processes(side: str, processes: Mapping[str, Mapping[str, float]]) -> str:
    """Return a folded table of the processes of one server."""
    lines = [
        [name, f"{one['uss_mib']:.1f}", f"{one['pss_mib']:.1f}", f"{one['cpu_s']:.2f}"]
        for name, one in processes.items()
    ]
    headings = ("process", "USS MiB", "PSS MiB", "CPU s since its start")
    return (
        f"<details><summary>processes of {escape(side)}</summary>"
        f'<table class="figures">{_heading(headings)}{_lines(lines)}</table></details>'
    )


def _lines(lines: Iterable[Sequence[str]]) -> str:
    return "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)


def _heading(cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in cells)}</tr>"


def _definitions(pairs: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd><code>{escape(v)}</code></dd>' for k, v in pairs.items())}</dl>"
