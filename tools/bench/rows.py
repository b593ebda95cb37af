"""The table of targets, and the experiments that measure them. A new row is a line here.

Several rows come from one experiment, so that a run measures nothing twice: the rate against nginx and the CPU time
against `bare` are two figures of the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tools.bench import flushing, latency, reads, scale, writes
from tools.bench.findings import Findings, Target
from tools.bench.session import Session


@dataclass(frozen=True)
class Experiment:
    """What is measured together."""

    name: str
    what: str
    measure: Callable[[Session, Findings], None]


EXPERIMENTS = (
    Experiment("reads", "GET /user/{id}, uniform over 10,000 users, 64 connections", reads.closed_loop),
    Experiment("orders", "POST /order, 64 connections, server on two cores", writes.orders),
    Experiment("threads", "the 7,500 POSTs of the original work by 10 Python threads", writes.threads),
    Experiment("k6", "k6, 200 virtual users, GETs", reads.virtual_users),
    Experiment("reads-with-writes", "GETs at half the ceiling, with and without 5,000 orders/s", latency.with_writes),
    Experiment("open-loop", "fixed rates of 50, 70 and 90 % of the ceiling", latency.open_loop),
    Experiment("flush-lag", "10,000 orders/s, default period", flushing.flush_lag),
    Experiment("scale", "tables of different sizes", scale.sizes),
    Experiment("growth", "users created at 10,000/s: the longest stalls", scale.growth),
    Experiment("hot", "orders of a user with 100,000 orders", scale.hot_user),
)


def _row(
    name: str, what: str, experiment: str, side: str, figure: str, target: str, reference: str | None, unit: str = "x"
) -> Target:
    relation, _, limit = target.partition(" ")
    return Target(name, what, experiment, side, figure, reference, float(limit), relation == "<=", unit)


# name, what is compared, experiment, side, figure, target, reference
TARGETS = (
    _row("get-cpu", "GET, CPU per request vs bare", "reads", "millrace", "cpu_us", "<= 1.30", "bare"),
    _row("get-rate", "GET, rate vs nginx", "reads", "millrace", "rate", ">= 0.90", "nginx"),
    _row("get-pipelined", "GET, rate pipelined x16 vs not", "reads", "pipelined", "rate", ">= 3", "millrace"),
    _row("get-fastapi", "GET, rate vs FastAPI", "reads", "millrace", "rate", ">= 12", "fastapi"),
    _row("get-with-writes", "GET, p99 with 5,000 orders/s vs alone",
         "reads-with-writes", "with writes", "p99_ms", "<= 2", "alone"),
    _row("get-scale", "GET, CPU per request, 1 M users vs 10 k", "scale", "large", "cpu_us", "<= 1.15", "small"),
    _row("order-rate", "POST /order, rate vs Redis SET, appendfsync always",
         "orders", "millrace", "rate", ">= 0.6", "redis"),
    _row("order-cpu", "POST /order, CPU of all processes, SQLite included",
         "orders", "millrace", "cpu_us", "<= 40", None, "µs"),
    _row("order-fastapi", "POST /order, rate vs FastAPI", "orders", "millrace", "rate", ">= 15", "fastapi"),
    _row("threads", "7,500 POSTs by 10 Python threads, time vs bare",
         "threads", "millrace", "total_s", "<= 1.25", "bare"),
    _row("k6-answers", "k6, 200 VUs, share answered 200", "k6", "millrace", "ok_share", ">= 1", None, "of all"),
    _row("k6-rate", "k6, 200 VUs, rate vs nginx", "k6", "millrace", "rate", ">= 0.95", "nginx"),
    _row("persister", "period with 100 dirty records, persister CPU, 1 M vs 10 k",
         "scale", "large", "persister_us", "<= 1.5", "small"),
    _row("flush-lag", "flush lag at 10,000 orders/s, p99", "flush-lag", "millrace", "lag_p99_s", "<= 2.5", None, "s"),
    _row("flush-lag-growth", "flush lag, median of the last third vs the first",
         "flush-lag", "millrace", "lag_growth", "<= 1.2", None),
    _row("memory", "memory per user record at 1 M vs Redis strings",
         "scale", "large", "bytes_per_record", "<= 1.0", "redis"),
    _row("restart", "ready after a restart with 1 M users in SQLite",
         "scale", "restart", "start_s", "<= 10", None, "s"),
    _row("hot-user", "POST /order, CPU: user with 100,000 orders vs new user",
         "hot", "hot user", "cpu_us", "<= 1.15", "new user"),
)  # fmt: skip


def select(names: list[str]) -> tuple[list[Target], list[Experiment]]:
    """Return the rows with these names (or of the experiments with these names), and their experiments.

    Without names: all. Raises `KeyError` with the first name that is neither.
    """
    known = {target.name for target in TARGETS} | {experiment.name for experiment in EXPERIMENTS}
    for name in names:
        if name not in known:
            raise KeyError(name)
    targets = [target for target in TARGETS if not names or target.name in names or target.experiment in names]
    wanted = {target.experiment for target in targets} | set(names) if names else {one.name for one in EXPERIMENTS}
    return targets, [experiment for experiment in EXPERIMENTS if experiment.name in wanted]
