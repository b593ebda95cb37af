"""The experiment about flush lag: how old the oldest change is that SQLite does not hold, under a steady load."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import closing
from statistics import median

from server.shm import layout
from tools.bench.findings import Figures, Findings, Point, percentile
from tools.bench.latency import figures_of, stream
from tools.bench.processes import MeasurementFailed
from tools.bench.records import USERS, fill_data_directory
from tools.bench.servers import Millrace
from tools.bench.session import Session
from tools.bench.writes import LEVEL

WRITES_PER_S = 10_000
SECONDS, SECONDS_QUICK = 60.0, 5.0
SAMPLE_PERIOD_S = 0.02
BEHIND_MAX_S = 1.0  # a server that is further behind at the end did not sustain the rate
LAG_MIN_S = 0.05  # below, two lags are the same: a ratio of two nothings is no growth


def flush_lag(session: Session, findings: Findings) -> None:
    """Orders at a fixed rate; the lag is seen in the shared segment, which costs the server nothing."""
    seconds = SECONDS_QUICK if session.options.is_quick else SECONDS
    if session.options.is_quick:
        findings.reduced = f"quick run: {SECONDS_QUICK:g} s instead of {SECONDS:g} s"
    findings.conditions |= {
        "durability": LEVEL, "cores": "server 2, client on one of them or a third", "period": "the default",
        "rate": f"{WRITES_PER_S:,} orders/s for {seconds:g} s",
    }  # fmt: skip
    with session.directory() as directory:
        fill_data_directory(directory / "data", USERS)
        with Millrace(directory / "data", session.cores.two) as millrace:
            session.run_rounds(findings, {"millrace": lambda: _measure(session, findings, millrace, seconds)}, rounds=1)


def _measure(session: Session, findings: Findings, millrace: Millrace, seconds: float) -> Figures:
    stop = threading.Event()
    points: list[Point] = []
    sampler = threading.Thread(target=_sample, args=(millrace, stop, points))
    sampler.start()
    try:
        found = session.clients.open_loop(millrace.port, seconds, {"order": stream("order", WRITES_PER_S)})
    finally:
        stop.set()
        sampler.join()
    order = found["streams"]["order"]
    lags = [point["lag_s"] for point in points]
    third = len(lags) // 3
    findings.curves["flush lag"] = points
    findings.curves["order latency"] = order["over_time"]
    if found["behind_s"] > BEHIND_MAX_S:
        behind = f"the last answer came {found['behind_s']:.1f} s late"
        raise MeasurementFailed(f"the server did not keep up with {WRITES_PER_S:,} orders/s: {behind}")
    return {
        "rate": order["answered"] / seconds,
        "lag_p50_s": percentile(sorted(lags), 50),
        "lag_p99_s": percentile(sorted(lags), 99),
        "lag_max_s": max(lags),
        "lag_growth": max(LAG_MIN_S, median(lags[-third:])) / max(LAG_MIN_S, median(lags[:third])),
        **figures_of(order),
    }


def _sample(millrace: Millrace, stop: threading.Event, points: list[Point]) -> None:
    """Note the lag until `stop`, from the first change on.

    It is worked out here from the seqs, not taken from what the persister says about itself: the time since the
    oldest change that is published, but not persisted, was first seen.
    """
    start = time.monotonic()
    marks: deque[tuple[int, float]] = deque()  # (published seq, when it was first seen), not persisted yet
    with closing(millrace.segment()) as segment:
        words = segment.words
        last_seq = words[layout.PUBLISHED_SEQ]
        while not stop.wait(SAMPLE_PERIOD_S):
            now, published, persisted = time.monotonic(), words[layout.PUBLISHED_SEQ], words[layout.PERSISTED_SEQ]
            if published > last_seq:
                marks.append((published, now))
                last_seq = published
            while marks and marks[0][0] <= persisted:
                marks.popleft()
            if points or marks:
                points.append({"t_s": round(now - start, 3), "lag_s": now - marks[0][1] if marks else 0.0})
