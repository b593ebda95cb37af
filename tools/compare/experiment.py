"""The original experiment on one subject: posts, reads with k6, reads with wrk, a crash, and what is left after it.

    start ─> 7,500 POSTs ─> k6 + trickle + probe ─> settle ─> wrk + trickle ─> settle ─> wrk x16 + trickle ─> settle ─┐
             seconds        rate, share of 200s, p95          rate, CPU per read         rate                         │
                                                                                                                      │
             rows lost <─ read everything back <─ start again <─ kill -9 everything <─ burst of writes <──────────────┘

The period is longer than the POSTs take with a cache, as in the original experiment: what was posted is flushed while
the reads go on, and that is where a shape shows what it does meanwhile. Before wrk it is awaited that reads are
answered promptly again, so that wrk shows how fast a shape is and not how long its flush of the POSTs takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench.processes import MeasurementFailed
from tools.bench.servers import Bare
from tools.compare.readers import K6, PIPELINE_DEPTH, Probe, ProbePoint, Wrk, run_k6, run_wrk, settle
from tools.compare.subjects import Subject
from tools.compare.writes import Acknowledged, Burst, Trickle, count_lost, send_work
from tools.load import Work, make_work

BARE_RESPONSE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{"id":1}'
SEED = 1


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    users: int = 1000
    products: int = 1000
    orders: int = 5500
    k6_s: int = 10
    wrk_s: int = 5
    burst_s: float = 1.0
    trickle_rate: float = 100.0
    period_ms: int = 5000

    @property
    def posts(self) -> int:
        return self.users + self.products + self.orders

    def work(self) -> Work:
        return make_work(self.users, self.products, self.orders, SEED, has_passwords=True)


QUICK = Plan(users=100, products=100, orders=550, k6_s=3, wrk_s=2, burst_s=0.5, period_ms=1000)


@dataclass
class Figures:
    """What one subject showed in one round. None: the tool is not installed."""

    processes: int
    post_s: float
    post_ratio: float  # to `bare` in the same round
    k6_rate: float | None = None
    ok_share: float | None = None
    p95_ms: float | None = None
    max_ms: float | None = None
    served: float = 0.0
    wrk_rate: float | None = None
    pipelined_rate: float | None = None
    read_cpu_us: float | None = None  # all processes, per read of wrk
    settle_s: float = 0.0  # after k6, until reads are answered promptly
    cpu_s: float = 0.0  # all processes, up to the crash
    memory_mib: float = 0.0
    acknowledged: int = 0
    lost: int = 0
    restart_s: float = 0.0
    first_lost: str = ""

    def figure(self, name: str) -> float | None:
        value: float | None = getattr(self, name)
        return value


def measure_bare(plan: Plan, directory: Path, cores: list[int]) -> float:
    """Return the seconds that the POSTs take when nothing is done for them."""
    with Bare(directory, cores, BARE_RESPONSE) as bare:
        seconds, _ = send_work(f"http://127.0.0.1:{bare.port}", plan.work())
    return seconds


def measure(
    name: str, plan: Plan, directory: Path, bare_s: float, missing: dict[str, str], say: Callable[[str], None]
) -> tuple[Figures, list[ProbePoint]]:
    """Run the experiment on one subject; return its figures and what the probe saw."""
    data_dir = directory / name
    acknowledged = Acknowledged(plan.work())
    with Subject(name, data_dir, plan.period_ms) as subject:
        post_s, phases = send_work(subject.url, acknowledged.work)
        acknowledged.user_answers, acknowledged.order_answers = phases[0].answers, phases[2].answers
        figures = Figures(subject.process_count(), post_s, post_s / bare_s)
        say(f"{name:<10} {plan.posts:,} POSTs in {post_s:.2f} s")
        probe, ended = _read_with_k6(subject, plan, acknowledged, figures, directory, "k6" not in missing)
        shown = "" if figures.k6_rate is None else f"{figures.k6_rate:,.0f} reads/s, {figures.ok_share:.1%} of 200s, "
        say(f"{name:<10} k6: {shown}answers during {probe.served:.0%} of the time")
        settle(subject.url)
        figures.settle_s = time.monotonic() - ended
        if "wrk" not in missing:
            found, cpu_s = _read_with_wrk(subject, plan, acknowledged, directory)
            figures.wrk_rate = found.rate
            figures.read_cpu_us = cpu_s / found.requests * 1e6 if found.requests else None
            settle(subject.url)
            found, _ = _read_with_wrk(subject, plan, acknowledged, directory, PIPELINE_DEPTH)
            figures.pipelined_rate = found.rate
            say(f"{name:<10} wrk: {figures.wrk_rate:,.0f} reads/s, x{PIPELINE_DEPTH} {found.rate:,.0f}")
            settle(subject.url)
        figures.cpu_s, figures.memory_mib = subject.cpu_s(), subject.memory_bytes() / (1 << 20)
        _crash(subject, plan, acknowledged)
    with Subject(name, data_dir, plan.period_ms) as subject:
        figures.restart_s = subject.start_s
        figures.acknowledged = acknowledged.count
        figures.lost, figures.first_lost = count_lost(subject.url, acknowledged)
    say(f"{name:<10} crash: {figures.lost:,} of {figures.acknowledged:,} acknowledged writes are gone")
    return figures, probe.points


def _read_with_k6(
    subject: Subject, plan: Plan, acknowledged: Acknowledged, figures: Figures, directory: Path, has_k6: bool
) -> tuple[Probe, float]:
    with Trickle(subject.url, acknowledged, plan.trickle_rate), Probe(subject.url, plan.users) as probe:
        if has_k6:
            found: K6 = run_k6(subject.url, plan.users, plan.k6_s, directory)
            figures.k6_rate, figures.p95_ms, figures.max_ms = found.rate, found.p95_ms, found.max_ms
            figures.ok_share = found.answered_200 / found.requests
        else:
            time.sleep(plan.k6_s)
        ended = time.monotonic()
    figures.served = probe.served
    return probe, ended


def _read_with_wrk(
    subject: Subject, plan: Plan, acknowledged: Acknowledged, directory: Path, depth: int = 1
) -> tuple[Wrk, float]:
    """Return what wrk found, and the CPU seconds that all processes of the subject spent meanwhile."""
    cpu_before_s = subject.cpu_s()
    with Trickle(subject.url, acknowledged, plan.trickle_rate):
        found = run_wrk(subject.url, plan.users, plan.wrk_s, directory, depth)
        cpu_s = subject.cpu_s() - cpu_before_s
    return found, cpu_s


def _crash(subject: Subject, plan: Plan, acknowledged: Acknowledged) -> None:
    """Kill everything in the middle of the burst."""
    burst = Burst(subject.url, acknowledged)
    burst.start()
    time.sleep(plan.burst_s)
    subject.kill()
    burst.join()
    if not acknowledged.created:
        raise MeasurementFailed("nothing was acknowledged before the crash")


def as_json(figures: Figures) -> dict[str, Any]:
    """Return the figures for results.json."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in vars(figures).items()}
