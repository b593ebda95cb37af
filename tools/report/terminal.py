"""The report on a terminal: a table that is redrawn in place, one line per sample elsewhere, and the summary."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TextIO

from tools.report.figures import ALL, Interval, RoleSummary, Spent, Summary, total

LIVE_HEADINGS = ("process", "pid", "CPU %", "USS MiB", "PSS MiB", "RSS MiB", "threads", "fds",
                 "waits/s", "preempted/s", "read/s", "written/s")  # fmt: skip
HEADINGS = ("process", "pid", "CPU %", "max %", "user s", "system s", "USS MiB", "PSS MiB", "max MiB", "RSS MiB",
            "threads", "fds", "waits/s", "preempted/s", "read", "written")  # fmt: skip
EXPLANATION = (
    "CPU: 100 % is one core. PSS adds up to the memory of the server, RSS does not: it counts shared pages in each"
    " process. max: the highest of a sample. waits: voluntary context switches, preempted: involuntary ones,"
    " both of the main thread. read, written: bytes to and from disk. A pid with (+1): its role was replaced once."
)

Cells = list[str]


class LiveView:
    """Shows each interval as it comes."""

    def __init__(self, output: TextIO, seconds: float) -> None:
        self._output = output
        self._seconds = seconds
        self._is_terminal = output.isatty()
        self._lines_shown = 0

    def show(self, interval: Interval) -> None:
        """Draw over the last table, or add a line."""
        if not self._is_terminal:
            print(plain_line(interval), file=self._output, flush=True)
            return
        size = shutil.get_terminal_size()
        # a line that wraps, or a table higher than the screen, could not be drawn over
        lines = [line[: size.columns - 1] for line in live_lines(interval, self._seconds)][: size.lines - 1]
        self._output.write(self._back() + "\n".join(lines) + "\n")
        self._output.flush()
        self._lines_shown = len(lines)

    def clear(self) -> None:
        """Take the table away: the summary comes in its place."""
        self._output.write(self._back())
        self._output.flush()
        self._lines_shown = 0

    def _back(self) -> str:
        return f"\x1b[{self._lines_shown}F\x1b[J" if self._lines_shown else ""


def plain_line(interval: Interval) -> str:
    """Return one interval in one line."""
    server = interval.sample.server
    line = (
        f"t={interval.sample.t_s:.1f}s cpu={interval.cpu_percent_all:.1f}% requests/s={interval.requests_per_s:.0f}"
        f" flush_lag={server.flush_lag_ms}ms pss={mib(_pss_bytes(interval))}MiB shm={mib(server.reserved_bytes)}MiB"
    )
    return line + "".join(f" {one.role}={one.old_pid}->{one.new_pid}" for one in interval.replacements)


def live_lines(interval: Interval, seconds: float) -> list[str]:
    """Return the table of one interval."""
    server = interval.sample.server
    head = [
        f"{interval.sample.t_s:.1f} of {seconds:g} s   {interval.requests_per_s:,.0f} requests/s   "
        f"{server.connections:,} connections   flush lag {server.flush_lag_ms:,} ms   "
        f"{server.not_in_sqlite:,} changes not in SQLite",
        f"{server.records:,} records   shared memory {mib(server.reserved_bytes)} MiB reserved, "
        f"{mib(server.shm_file_bytes)} MiB in its file, limit {mib(server.limit_bytes)} MiB",
    ]
    rows = [_live_row(role, interval) for role in interval.sample.processes]
    readings = interval.sample.processes.values()
    spent = total(interval.spent.values())
    rows.append(
        [ALL, "", f"{interval.cpu_percent_all:.1f}", mib(sum(r.uss_bytes for r in readings)),
         mib(_pss_bytes(interval)), "", str(sum(r.threads for r in readings)), str(sum(r.fds for r in readings)),
         *_rates(spent, interval.seconds), *_disk(spent, interval.seconds)]
    )  # fmt: skip
    return [*head, "", *aligned(LIVE_HEADINGS, rows)]


def _live_row(role: str, interval: Interval) -> Cells:
    reading, spent = interval.sample.processes[role], interval.spent[role]
    sizes = (reading.uss_bytes, reading.pss_bytes, reading.rss_bytes)
    return [
        role, str(reading.pid), f"{interval.cpu_percent(role):.1f}", *map(mib, sizes), str(reading.threads),
        str(reading.fds), *_rates(spent, interval.seconds), *_disk(spent, interval.seconds),
    ]  # fmt: skip


def summary_lines(summary: Summary) -> list[str]:
    """Return the summary as text."""
    cpu = f"{summary.cpu_us_per_request:.2f} µs per request" if summary.cpu_us_per_request else "no requests"
    return [
        f"{summary.seconds:.1f} s: {summary.requests:,} requests ({summary.reads:,} reads, {summary.writes:,} writes,"
        f" {summary.errors:,} answered with an error)",
        f"requests/s       {summary.requests_per_s:,.0f}, at most {summary.requests_per_s_max:,.0f}",
        f"CPU              {summary.cpu_s:.2f} s, {summary.cpu_percent:.1f} % of one core, {cpu}",
        f"flush lag        median {summary.flush_lag_ms_median:,.0f} ms, at most {summary.flush_lag_ms_max:,} ms",
        f"shared memory    {mib(summary.shm_first_bytes)} MiB reserved, {mib(summary.shm_last_bytes)} MiB at the end,"
        f" {summary.records:,} records",
        *(f"replaced         {one.role} at {one.t_s:.1f} s: {one.old_pid} -> {one.new_pid}"
          for one in summary.replacements),
        "",
        *aligned(HEADINGS, summary_rows(summary)),
    ]  # fmt: skip


def summary_rows(summary: Summary) -> list[Cells]:
    """Return the table of the processes, and of all together."""
    rows = [_summary_row(role, one, summary.seconds) for role, one in summary.roles.items()]
    roles = summary.roles.values()
    spent = total(one.spent for one in roles)
    rows.append(
        [ALL, "", f"{summary.cpu_percent:.1f}", "", f"{spent.user_s:.2f}", f"{spent.system_s:.2f}",
         mib(sum(one.uss_bytes for one in roles)), mib(summary.pss_bytes), "", "",
         str(sum(one.threads_max for one in roles)), str(sum(one.fds_max for one in roles)),
         *_rates(spent, summary.seconds), amount(spent.read_bytes), amount(spent.written_bytes)]
    )  # fmt: skip
    return rows


def _summary_row(role: str, one: RoleSummary, seconds: float) -> Cells:
    return [
        role, pid_text(one.pids), f"{one.cpu_percent:.1f}", f"{one.cpu_percent_max:.1f}",
        f"{one.spent.user_s:.2f}", f"{one.spent.system_s:.2f}", mib(one.uss_bytes), mib(one.pss_bytes),
        mib(one.pss_bytes_max), mib(one.rss_bytes), str(one.threads_max), str(one.fds_max),
        *_rates(one.spent, seconds), amount(one.spent.read_bytes), amount(one.spent.written_bytes),
    ]  # fmt: skip


def pid_text(pids: Sequence[int]) -> str:
    """Return the last pid, and how many the role had before it."""
    return f"{pids[-1]} (+{len(pids) - 1})" if len(pids) > 1 else str(pids[-1])


def aligned(headings: Sequence[str], rows: Sequence[Cells]) -> list[str]:
    """Return lines with the first column on the left and the others on the right."""
    table = [list(headings), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    return [
        "  ".join(cell.rjust(width) if column else cell.ljust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in table
    ]  # fmt: skip


def mib(count: float) -> str:
    return f"{count / (1 << 20):,.1f}"


def amount(count: float) -> str:
    """Return bytes in a unit that keeps the number short."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _pss_bytes(interval: Interval) -> int:
    return sum(reading.pss_bytes for reading in interval.sample.processes.values())


def _rates(spent: Spent, seconds: float) -> Cells:
    return [f"{spent.voluntary_switches / seconds:,.0f}", f"{spent.involuntary_switches / seconds:,.0f}"]


def _disk(spent: Spent, seconds: float) -> Cells:
    return [amount(spent.read_bytes / seconds), amount(spent.written_bytes / seconds)]
