"""Experiments in open loop: latency at fixed rates, counted from the intended send time."""

from __future__ import annotations

from functools import partial
from typing import Any

from tools.bench.clients import CONNECTIONS
from tools.bench.findings import ALL, Figures, Findings
from tools.bench.reads import WARM_UP_S
from tools.bench.records import FIRST_ID, USERS, fill_data_directory
from tools.bench.servers import Millrace
from tools.bench.session import Session, check_reads
from tools.bench.writes import LEVEL, ORDER_ARGUMENTS, place_orders

SHARES = (50, 70, 90)  # per cent of the ceiling
WRITES_PER_S = 5_000
READ_SHARE = 0.5
OPEN_LOOP_S, OPEN_LOOP_QUICK_S = 10.0, 1.0

Stream = dict[str, Any]


def stream(kind: str, rate: float, connections: int = CONNECTIONS, **more: int) -> Stream:
    """Return a stream over the usual records."""
    return {
        "kind": kind, "rate": rate, "connections": connections, "first_id": FIRST_ID, "count": USERS, **more
    }  # fmt: skip


def figures_of(found: Stream) -> Figures:
    """Return the figures of a stream without its curve. `late_p99_ms` is the client's own share in the latency."""
    names = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")
    figures = {name: found[name] for name in names if name in found} | {"requests": float(found["answered"])}
    if found["late_ms"]:
        figures["late_p99_ms"] = found["late_ms"]["p99_ms"]
    return figures


def with_writes(session: Session, findings: Findings) -> None:
    """Reads at a fixed rate, alone and beside orders, on a server with one core for all its processes."""
    if not session.has(findings, ALL, "wrk"):
        return
    findings.conditions |= {"durability": LEVEL, "cores": "server 1, client 1", "workers": "1"}
    with session.directory() as directory:
        fill_data_directory(directory / "data", USERS)
        with Millrace(directory / "data", session.cores.one) as millrace:
            rate = READ_SHARE * _read_ceiling(session, millrace)
            findings.conditions["rate"] = f"{rate:,.0f} GETs/s, {WRITES_PER_S:,} orders/s"
            reads = {"read": stream("read", rate)}
            both = reads | {"order": stream("order", WRITES_PER_S)}

            def measure(side: str, streams: dict[str, Stream]) -> Figures:
                found = session.clients.open_loop(millrace.port, session.seconds + 1, streams)["streams"]
                findings.curves[f"GET {side}"] = found["read"]["over_time"]
                millrace.settle()
                check_reads(millrace, USERS)
                return figures_of(found["read"])

            sides = {"alone": reads, "with writes": both}
            session.run_rounds(findings, {side: partial(measure, side, streams) for side, streams in sides.items()})


def _read_ceiling(session: Session, millrace: Millrace) -> float:
    """Return the reads per second of a closed loop, after a warm-up."""
    loads = [
        session.clients.wrk(millrace.port, "reads.lua", [FIRST_ID, USERS], seconds)
        for seconds in (WARM_UP_S, session.seconds)
    ]
    return loads[-1].requests / loads[-1].seconds


def open_loop(session: Session, findings: Findings) -> None:
    """Reads on one core and durable orders on two, each at three shares of their ceiling."""
    if not session.has(findings, ALL, "wrk"):
        return
    findings.conditions |= {
        "durability": LEVEL, "cores": "reads: server 1, client 1; orders: server 2", "workers": "as many as cores"
    }  # fmt: skip
    seconds = OPEN_LOOP_QUICK_S if session.options.is_quick else OPEN_LOOP_S
    for kind, cores in (("read", session.cores.one), ("order", session.cores.two)):
        with session.directory() as directory:
            fill_data_directory(directory / "data", USERS)
            with Millrace(directory / "data", cores) as millrace:
                if kind == "read":
                    ceiling = _read_ceiling(session, millrace)
                else:
                    place_orders(session, millrace, ORDER_ARGUMENTS, WARM_UP_S)
                    ceiling = place_orders(session, millrace, ORDER_ARGUMENTS, session.seconds)["rate"]
                findings.conditions[f"{kind} ceiling"] = f"{ceiling:,.0f}/s"
                for share in SHARES:
                    side = f"{kind} {share} %"

                    def measure(side: str = side, kind: str = kind, rate: float = ceiling * share / 100) -> Figures:
                        found = session.clients.open_loop(millrace.port, seconds, {kind: stream(kind, rate)})
                        findings.curves[side] = found["streams"][kind]["over_time"]
                        millrace.settle()
                        return {"rate": rate} | figures_of(found["streams"][kind])

                    session.run_rounds(findings, {side: measure}, rounds=1)
