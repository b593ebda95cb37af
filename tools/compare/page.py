"""comparison.html: one page without foreign parts - table, plots, a picture per shape, and what the figures show."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from tools.compare.charts import bars, strip
from tools.compare.pictures import LEGEND, draw
from tools.compare.readers import CONNECTIONS, PIPELINE_DEPTH, VIRTUAL_USERS
from tools.compare.results import Column, Results
from tools.compare.sentences import TITLES, sentence, verdicts
from tools.compare.subjects import SUBJECTS

PLOTTED = ("post_s", "post_ratio", "k6_rate", "k6_ratio", "wrk_rate", "pipelined_rate", "ok_share", "served",
           "p95_ms", "read_cpu_us", "cpu_s", "memory_mib", "lost")  # fmt: skip
STEPS = {
    "original": "Every request goes through SQLite",
    "v1": "A cache in front",
    "v2": "A transfer service that does the waiting",
    "v3": "Push services that take batches",
    "millrace": "Many processes, shared memory, a journal",
    "millrace-memory": "The same, acknowledged without waiting for the disk",
}

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Millrace and its earlier shapes</title>
<style>
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5c6570; --line: #dfe3e8; --card: #fff; --page: #f5f6f8;
  --box: #f1f3f5; --memory: #dcebfa; --memory-line: #4a86c5; --bad: #c8443c;
  --original: #9aa3ad; --v1: #d08a3e; --v2: #b9a23a; --v3: #5a9f8f; --millrace: #2f6db5; --millrace-memory: #7ba9dd; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --soft: #9aa4af; --line: #333a42; --card: #1b1f24;
  --page: #121519; --box: #262c33; --memory: #1d3550; --millrace: #5b9be0; --millrace-memory: #3f6fa3; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { margin: 0 0 2px; font-size: 26px; } h2 { font-size: 18px; margin: 34px 0 8px; } h3 { font-size: 16px; margin: 0; }
p { margin: 4px 0; } .soft, dt { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; margin: 12px 0;
  overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; line-height: 1.25; } td { white-space: nowrap; }
th, td { text-align: right; padding: 6px 4px 6px 10px;
  border-bottom: 1px solid var(--line); } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; font-weight: 600; }
td.best { color: var(--millrace); font-weight: 700; } td.bad { color: var(--bad); font-weight: 700; }
tr.millrace td, tr.millrace-memory td { background: color-mix(in srgb, var(--millrace) 8%, transparent); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 12px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
figcaption { font-size: 13px; color: var(--soft); margin-bottom: 6px; } figcaption b { color: var(--ink); }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg text.soft { fill: var(--soft); font-size: 10px; } svg text.tick { text-anchor: middle; }
svg text.value { font-weight: 600; } .range, .grid { stroke: var(--ink); stroke-width: 1.2; }
.grid { stroke: var(--line); stroke-width: 1; } .unserved { stroke: var(--bad); stroke-width: 1.6; opacity: .55; }
.original { --own: var(--original); } .v1 { --own: var(--v1); } .v2 { --own: var(--v2); } .v3 { --own: var(--v3); }
.millrace { --own: var(--millrace); } .millrace-memory { --own: var(--millrace-memory); }
.bar, .dot { fill: var(--own); }
.step { border-left: 5px solid var(--own); } .step h3 span { color: var(--soft); font-weight: 400; }
.picture { margin: 10px 0 2px; } .box { fill: var(--box); stroke: var(--soft); stroke-width: 1.2; }
.box.memory { fill: var(--memory); stroke: var(--memory-line); } .box.client { fill: none; stroke-dasharray: none; }
.arrow { stroke: var(--ink); stroke-width: 1.4; } .arrow.later { stroke: var(--soft); stroke-dasharray: 5 4; }
.picture text.title { text-anchor: middle; font-weight: 600; }
.picture text.note { text-anchor: middle; font-size: 10px; fill: var(--soft); }
.picture text.label { font-size: 10.5px; fill: var(--soft); paint-order: stroke;
  stroke: var(--card); stroke-width: 4px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; } dd { margin: 0; }
code { font: 13px ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; } .problem { color: var(--bad); }
</style></head><body>
<svg width="0" height="0" style="position:absolute"><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4"
 markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="context-stroke"/></marker></defs>
</svg><main>
"""


def render_page(results: Results, machine: Mapping[str, str], run: Mapping[str, str]) -> str:
    """Return the whole page."""
    names = [name for name in SUBJECTS if results.rounds.get(name)]
    notes = [f"{name} failed: {reason}" for name, reason in results.failures.items()]
    notes += [f"{name} is missing, its columns are left out: {command}" for name, command in results.missing.items()]
    return "".join(
        [
            _HEAD,
            "<h1>Millrace and its earlier shapes</h1>",
            f'<p class="soft">{escape(run["started"])} · {escape(machine["cpu"])} · {escape(_rounds(results))}</p>',
            *(f'<p class="problem">{escape(note)}</p>' for note in notes),
            f'<div class="card">{_table(results, names)}</div>',
            *(f"<p>{escape(text)}</p>" for text in verdicts(results)),
            "<h2>What a reader sees while the shape flushes</h2>",
            f'<p class="soft">{escape(_probe_text(results))}</p>',
            f'<div class="card">{_strips(results, names)}</div>',
            "<h2>Figures</h2>",
            f'<div class="plots">{"".join(bars(results, c) for c in results.columns if c.name in PLOTTED)}</div>',
            "<h2>The shapes, and what their figures show</h2>",
            f'<p class="soft">{escape(LEGEND)}</p>',
            *(_step(results, name) for name in names),
            "<h2>The experiment, the machine</h2>",
            f'<div class="card">{_definitions(_conditions(results) | {**machine, **run})}</div>',
            "</main></body></html>\n",
        ]
    )


def _rounds(results: Results) -> str:
    count = max((len(rounds) for rounds in results.rounds.values()), default=0)
    return "one round" if count == 1 else f"median of {count} rounds, rows lost in the worst of them"


def _table(results: Results, names: list[str]) -> str:
    heading = "".join(f'<th title="{escape(one.what)}">{escape(one.heading)}</th>' for one in results.columns)
    lines = []
    for name in names:
        marks = [_mark(results, names, name, column) for column in results.columns]
        texts = [results.text(name, column) for column in results.columns]
        cells = "".join(f"<td{mark}>{text}</td>" for mark, text in zip(marks, texts, strict=True))
        lines.append(f'<tr class="{name}"><td>{escape(name)}</td>{cells}</tr>')
    return f"<table><tr><th></th>{heading}</tr>{''.join(lines)}</table>"


def _mark(results: Results, names: list[str], name: str, column: Column) -> str:
    """The best of a column, and rows lost."""
    value = results.shown(name, column)
    if column.name == "lost" and value:
        return ' class="bad"'
    values = [found for one in names if (found := results.shown(one, column)) is not None]
    if not column.direction or value is None or len(values) < 2:
        return ""
    return ' class="best"' if value == (max if column.direction > 0 else min)(values) else ""


def _strips(results: Results, names: list[str]) -> str:
    """All on the same axis, as long as the longest."""
    times = [point.t_s for points in results.probes.values() for point in points]
    span_s = max([results.plan.k6_s, *times])
    return "".join(strip(name, results.probes.get(name, []), span_s) for name in names)


def _probe_text(results: Results) -> str:
    plan = results.plan
    return (
        f"One read every 20 ms beside k6, from the end of the {plan.posts:,} POSTs on, with {plan.trickle_rate:.0f}"
        f" updates per second and a period of {plan.period_ms / 1000:g} s. A dot is an answer and how late it was; red"
        " is a read without an answer within a second. Seconds to the right (last round)."
    )


def _step(results: Results, name: str) -> str:
    heading = f"<h3>{escape(TITLES[name])} <span>· {escape(STEPS[name])}</span></h3>"
    shown = escape(sentence(results, name).partition(": ")[2])
    return f'<div class="card step {name}">{heading}{draw(name)}<p>{shown}</p></div>'


def _conditions(results: Results) -> dict[str, str]:
    plan = results.plan
    return {
        "POSTs": f"{plan.users:,} users, {plan.products:,} products, {plan.orders:,} orders by 10 Python threads",
        "reads": f"k6: {VIRTUAL_USERS} virtual users, {plan.k6_s} s; wrk: {CONNECTIONS} connections, {plan.wrk_s} s,"
        f" then again with {PIPELINE_DEPTH} requests in flight on each; all beside {plan.trickle_rate:.0f} updates/s",
        "crash": f"kill -9 of all processes {plan.burst_s:g} s into a burst of writes, then a restart",
        "period": f"{plan.period_ms} ms for all that have one",
        "cores": "clients and servers share all cores, nothing is pinned",
        "durability": "millrace acknowledges when its journal is synced (its default), millrace-memory when it is"
        " written; the caches of v1 to v3 write nothing before they acknowledge; SQLite with its defaults",
        "order": "each round begins with bare, then with another subject than the one before",
        "bare": _floors(results),
    }


def _floors(results: Results) -> str:
    """Return what the server that does nothing showed, round by round."""
    seconds = ", ".join(f"{floor.post_s:.2f}" for floor in results.floors)
    rates = "; ".join(f"{floor.k6_rate:,.0f}" for floor in results.floors if floor.k6_rate is not None)
    return f"POSTs in {seconds} s" + (f"; k6 {rates} reads/s" if rates else "")


def _definitions(pairs: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd><code>{escape(v)}</code></dd>' for k, v in pairs.items())}</dl>"
