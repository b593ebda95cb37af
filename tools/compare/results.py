"""What the comparison found: the figures of every round, and which of them is shown. Plain data, no processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from tools.bench.findings import Spread, spread_of
from tools.compare.experiment import Figures, Floor, Plan
from tools.compare.readers import PIPELINE_DEPTH, ProbePoint


@dataclass(frozen=True)
class Column:
    """One figure of the table. `is_better` is the direction: -1 less, 1 more, 0 no direction."""

    name: str
    heading: str
    what: str
    form: str
    direction: int
    tool: str = ""  # without which it can not be measured
    scale: float = 1.0
    is_worst: bool = False  # of the rounds, not their median, which would hide what went wrong in a few of them


# in the order of the table; the sentences compare those that have a direction
COLUMNS = (
    Column("post_s", "POSTs s", "seconds for the POSTs of ten threads", "{:.2f}", -1),
    Column("post_ratio", "POSTs vs bare", "seconds for the POSTs, in times of a server that does nothing", "{:.2f}x",
           -1),
    Column("k6_rate", "k6 GET/s", "reads per second that k6 got a 200 for", "{:,.0f}", 1, "k6"),
    Column("k6_ratio", "k6 vs bare", "reads per second of k6, in times of a server that does nothing", "{:.2f}x", 1,
           "k6"),
    Column("wrk_rate", "wrk GET/s", "reads per second of wrk, when nothing of the POSTs is left", "{:,.0f}", 1, "wrk"),
    Column("pipelined_rate", f"wrk x{PIPELINE_DEPTH} GET/s",
           f"reads per second of wrk with {PIPELINE_DEPTH} requests in flight on each connection", "{:,.0f}", 1, "wrk"),
    Column("ok_share", "200s", "share of the reads of k6 with a 200 within a second", "{:.1f}%", 1, "k6", 100),
    Column("served", "time served", "share of the time in which a read got its answer within a second", "{:.0f}%", 1,
           "", 100),
    Column("p95_ms", "p95 ms", "95 of 100 reads of k6 were at most this late", "{:.1f}", -1, "k6"),
    Column("max_ms", "max ms", "the latest answer that k6 waited for", "{:,.0f}", -1, "k6"),
    Column("read_cpu_us", "CPU us/GET", "CPU time of all processes, per read of wrk", "{:.1f}", -1, "wrk"),
    Column("cpu_s", "CPU s", "CPU time of all processes, up to the crash", "{:.1f}", 0),
    Column("memory_mib", "MiB", "memory of all processes, shared pages once", "{:.0f}", 0),
    Column("processes", "proc.", "number of processes", "{:.0f}", 0),
    Column("lost", "rows lost", "acknowledged writes that were gone after kill -9 and a restart, in the worst round",
           "{:,.0f}", -1, is_worst=True),
)  # fmt: skip


@dataclass
class Results:
    """All rounds."""

    plan: Plan
    missing: dict[str, str]  # tool: the command that installs it
    rounds: dict[str, list[Figures]] = field(default_factory=dict)
    probes: dict[str, list[ProbePoint]] = field(default_factory=dict)  # of the last round
    floors: list[Floor] = field(default_factory=list)  # of each round
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[Column]:
        """Return the columns that could be measured."""
        return [column for column in COLUMNS if column.tool not in self.missing]

    def spread(self, subject: str, name: str) -> Spread | None:
        """Return median and range of a figure over the rounds."""
        values = [figures.figure(name) for figures in self.rounds.get(subject, [])]
        return spread_of([value for value in values if value is not None])

    def median(self, subject: str, name: str) -> float | None:
        spread = self.spread(subject, name)
        return spread.median if spread else None

    def shown(self, subject: str, column: Column) -> float | None:
        """Return what stands for all rounds: the median, or the worst round."""
        spread = self.spread(subject, column.name)
        if spread is None or not column.is_worst:
            return spread.median if spread else None
        return spread.low if column.direction > 0 else spread.high

    def text(self, subject: str, column: Column) -> str:
        """Return the figure as it stands in the table."""
        value = self.shown(subject, column)
        return "-" if value is None else column.form.format(value * column.scale)
