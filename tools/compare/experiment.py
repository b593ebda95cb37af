"""The original experiment on one subject: posts, reads with k6, reads with wrk, a crash, and what is left after it.

    start ─> 7,500 POSTs ─> k6 + trickle + probe ─> settle ─> wrk + trickle ─> settle ─> wrk x16 + trickle ─> settle ─┐
             seconds        rate, share of 200s, p95          rate, CPU per read         rate                         │
                                                                                                                      │
             rows lost <─ read everything back <─ start again <─ kill -9 everything <─ burst of writes <──────────────┘

The period is longer than the POSTs take with a cache, as in the original experiment: what was posted is flushed while
the reads go on, and that is where a shape shows what it does meanwhile. Before wrk it is awaited that reads are
answered promptly again, so that wrk shows how fast a shape is and not how long its flush of the POSTs takes.

The POSTs and the reads of k6, with what goes on beside them, are also sent to `bare`, once per round: what a subject
shows in both is put in relation to a server that does nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tools.bench.processes import MeasurementFailed
from tools.bench.servers import HOST, Bare
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


class Floor(NamedTuple):
    """What `bare` showed in a round: what the clients need when nothing is done for them."""

    post_s: float
    k6_rate: float | None = None


@dataclass
class Figures:
    """What one subject showed in one round. None: the tool is not installed."""

    processes: int
    post_s: float
    post_ratio: float  # to `bare` in the same round
    k6_rate: float | None = None
    k6_ratio: float | None = None  # to `bare`, too
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


def measure_bare(plan: Plan, directory: Path, cores: list[int], missing: dict[str, str]) -> Floor:
    """Send the POSTs and the reads of k6 to a server that does nothing for them."""
    acknowledged = Acknowledged(plan.work())
    with Bare(directory, cores, BARE_RESPONSE) as bare:
        url = f"http://{HOST}:{bare.port}"
        post_s, _ = send_work(url, acknowledged.work)
        if "k6" in missing:
            return Floor(post_s)
        found, _, _ = _read_with_k6(url, plan, acknowledged, directory, has_k6=True)
    return Floor(post_s, found.rate if found else None)


def measure(
    name: str, plan: Plan, directory: Path, floor: Floor, missing: dict[str, str], say: Callable[[str], None]
) -> tuple[Figures, list[ProbePoint]]:
    """Run the experiment on one subject; return its figures and what the probe saw."""
    data_dir = directory / name
    acknowledged = Acknowledged(plan.work())
    with Subject(name, data_dir, plan.period_ms) as subject:
        post_s, phases = send_work(subject.url, acknowledged.work)
        acknowledged.user_answers, acknowledged.order_answers = phases[0].answers, phases[2].answers
        figures = Figures(subject.process_count(), post_s, post_s / floor.post_s)
        say(f"{name:<10} {plan.posts:,} POSTs in {post_s:.2f} s")
        found, probe, ended = _read_with_k6(subject.url, plan, acknowledged, directory, "k6" not in missing)
        _note_k6(figures, found, floor)
        figures.served = probe.served
        shown = "" if figures.k6_rate is None else f"{figures.k6_rate:,.0f} reads/s, {figures.ok_share:.1%} of 200s, "
        say(f"{name:<10} k6: {shown}answers during {probe.served:.0%} of the time")
        settle(subject.url)
        figures.settle_s = time.monotonic() - ended
        if "wrk" not in missing:
            single, cpu_s = _read_with_wrk(subject, plan, acknowledged, directory)
            figures.wrk_rate = single.rate
            figures.read_cpu_us = cpu_s / single.requests * 1e6 if single.requests else None
            settle(subject.url)
            deep, _ = _read_with_wrk(subject, plan, acknowledged, directory, PIPELINE_DEPTH)
            figures.pipelined_rate = deep.rate
            say(f"{name:<10} wrk: {single.rate:,.0f} reads/s, x{PIPELINE_DEPTH} {deep.rate:,.0f}")
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
    url: str, plan: Plan, acknowledged: Acknowledged, directory: Path, has_k6: bool
) -> tuple[K6 | None, Probe, float]:
    """Return what k6 found, what the probe saw beside it (for as long without k6), and when that ended."""
    found = None
    with Trickle(url, acknowledged, plan.trickle_rate), Probe(url, plan.users) as probe:
        if has_k6:
            found = run_k6(url, plan.users, plan.k6_s, directory)
        else:
            time.sleep(plan.k6_s)
        ended = time.monotonic()
    return found, probe, ended


def _note_k6(figures: Figures, found: K6 | None, floor: Floor) -> None:
    if found is None:
        return
    figures.k6_rate, figures.p95_ms, figures.max_ms = found.rate, found.p95_ms, found.max_ms
    figures.k6_ratio = found.rate / floor.k6_rate if floor.k6_rate else None
    figures.ok_share = found.answered_200 / found.requests


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
