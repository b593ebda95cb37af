"""The results as text: the table of targets, then the figures of every experiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tools.bench.findings import Findings, Row, Spread, Target, spread_of

# figure: (heading, form); in the order of the columns
COLUMNS = {
    "rate": ("rate /s", "{:,.0f}"),
    "cpu_us": ("CPU µs/request", "{:.2f}"),
    "server_busy": ("cores used", "{:.0%}"),
    "p50_ms": ("p50 ms", "{:.3f}"),
    "p90_ms": ("p90 ms", "{:.3f}"),
    "p99_ms": ("p99 ms", "{:.3f}"),
    "p999_ms": ("p99.9 ms", "{:.3f}"),
    "max_ms": ("max ms", "{:.2f}"),
    "late_p99_ms": ("client late p99 ms", "{:.3f}"),
    "uss_mib": ("USS MiB", "{:.1f}"),
    "pss_mib": ("PSS MiB", "{:.1f}"),
    "total_s": ("seconds", "{:.2f}"),
    "ok_share": ("answered 200", "{:.2%}"),
    "users": ("users", "{:,.0f}"),
    "start_s": ("ready after s", "{:.2f}"),
    "bytes_per_record": ("bytes/user", "{:.0f}"),
    "order_cpu_us": ("order CPU µs", "{:.2f}"),
    "persister_us": ("persister µs/period", "{:.0f}"),
    "lag_p50_s": ("lag p50 s", "{:.2f}"),
    "lag_p99_s": ("lag p99 s", "{:.2f}"),
    "lag_max_s": ("lag max s", "{:.2f}"),
    "lag_growth": ("lag growth", "{:.2f}"),
    "records": ("users at the end", "{:,.0f}"),
    "read_p99_ms": ("read p99 ms", "{:.3f}"),
    "read_max_ms": ("read max ms", "{:.2f}"),
    "update_p99_ms": ("update p99 ms", "{:.3f}"),
    "update_max_ms": ("update max ms", "{:.2f}"),
    "write_p99_ms": ("write p99 ms", "{:.3f}"),
    "write_max_ms": ("write max ms", "{:.2f}"),
}

ROW_HEADINGS = ("row", "median [range] over rounds", "target", "verdict", "figure: side vs reference")


def target_text(target: Target) -> str:
    """Return `<= 1.30 x`."""
    return f"{'<=' if target.is_at_most else '>='} {target.limit:g} {target.unit}"


def value_text(row: Row) -> str:
    """Return the median and the range over the rounds."""
    if row.spread is None:
        return "-"
    middle, low, high = row.spread
    digits = 1 if abs(middle) >= 20 else 2
    return f"{middle:.{digits}f} [{low:.{digits}f} - {high:.{digits}f}] {row.target.unit}"


def compared_text(row: Row) -> str:
    """Return the figures behind the ratio, in words."""
    heading, form = COLUMNS[row.target.figure]
    sides = [(row.target.side, row.measured), (row.target.reference, row.compared)]
    return f"{heading}: " + " vs ".join(f"{side} {form.format(spread.median)}" for side, spread in sides if spread)


def row_cells(row: Row) -> tuple[str, str, str, str, str]:
    """Return a row of the table of targets, under ROW_HEADINGS."""
    shown = compared_text(row) if row.spread else ""
    remark = f" ({row.remark})" if row.remark and shown else row.remark
    return row.target.name, value_text(row), target_text(row.target), row.verdict.value, shown + remark


def figure_table(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells: one line per side, the median of each figure that any side has."""
    present = {name for rounds in findings.sides.values() for figures in rounds for name in figures}
    names = [name for name in COLUMNS if name in present]
    lines = []
    for side, rounds in findings.sides.items():
        spreads = [spread_of(findings.series(side, name)) for name in names]
        cells = [_cell(name, spread) for name, spread in zip(names, spreads, strict=True)]
        lines.append([side, str(len(rounds)), *cells])
    return ["side", "rounds", *(COLUMNS[name][0] for name in names)], lines


def _cell(name: str, spread: Spread | None) -> str:
    return "" if spread is None else COLUMNS[name][1].format(spread.median)


def render(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Lay out columns of text."""
    rows = [list(headings), *map(list, lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_text(machine: Mapping[str, str], found: Mapping[str, Findings], rows: Sequence[Row]) -> str:
    """Return everything that the terminal shows at the end."""
    parts = ["\n".join(f"{name}: {value}" for name, value in machine.items())]
    for name, findings in found.items():
        headings, lines = figure_table(findings)
        conditions = "; ".join(f"{key}: {value}" for key, value in findings.conditions.items())
        notes = [f"{side} FAILED: {reason}" for side, reason in findings.failures.items()]
        notes += [f"left out: {side} ({reason})" for side, reason in findings.missing.items()]
        notes += [findings.reduced] if findings.reduced else []
        body = [render(headings, lines)] if lines else []
        parts.append("\n".join([f"== {name} ({conditions})", *body, *notes]))
    parts.append(render(ROW_HEADINGS, (row_cells(row) for row in rows)))
    return "\n\n".join(parts)
