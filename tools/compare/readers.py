"""The reads of the comparison: k6 and wrk as fast as they get answers, and a probe at a fixed rate beside k6.

    k6       200 virtual users, each reads, waits for the answer (a second at most) and reads again
    wrk      the same with 64 connections and little CPU of its own
    wrk x16  the same with 16 requests in flight on each connection: the ceiling
    probe    one read every 20 ms, whatever happened to the one before

The first two take as much of a small machine as the shape that answers them, most of it for system calls: what they
find says as much about the client. With 16 requests in one piece, and their answers in one piece as well, these costs
are shared by 16, and what is left is what a shape does for an answer.

All three ask less when they are answered late: a server that is away for a second costs k6 200 requests of 50,000.
The probe asks as often as before, so the share of its reads with an answer is the share of the time in which there was
one.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from tools.bench.machine import find_program
from tools.bench.processes import ROOT, MeasurementFailed, run_client
from tools.connection import Connection, get

VIRTUAL_USERS = 200  # of the original experiment
CONNECTIONS = 64
PIPELINE_DEPTH = 16  # as `python -m tools bench`; a shape takes them with one read of its socket
PATIENCE_S = 1.0  # how long k6 and the probe wait for an answer
PROBE_INTERVAL_S = 0.02
EXTRA_TIME_S = 60.0  # a client that needs so much longer than its load is stuck
PROMPT_S = 0.1  # a read that is answered within this is not waiting for a flush
PROMPT_IN_A_ROW = 10
SETTLE_TIMEOUT_S = 300.0  # version 1 with 7,500 commands on a slow disk
SETTLE_STEP_S = 0.05

_WRK_LINE = re.compile(r"^wrk-json (\{.*\})$", re.MULTILINE)


class K6(NamedTuple):
    """What k6 found."""

    requests: int
    answered_200: int
    rate: float  # of answers with 200
    p95_ms: float
    max_ms: float


class Wrk(NamedTuple):
    """What wrk found."""

    rate: float  # of answers with 200
    requests: int


class ProbePoint(NamedTuple):
    """One read of the probe: when it was due, and the milliseconds until its answer; None: none within a second."""

    t_s: float
    ms: float | None


def run_k6(url: str, users: int, seconds: int, directory: Path) -> K6:
    """Run tools/compare/reads.js and return its figures."""
    summary = directory / "k6.json"
    command = [
        find_program("k6") or "k6", "run", "--quiet", "--no-usage-report", "--summary-export", str(summary),
        "-e", f"URL={url}", "-e", f"COUNT={users}", "-e", f"VUS={VIRTUAL_USERS}", "-e", f"DURATION={seconds}s",
        "-e", f"TIMEOUT={int(PATIENCE_S * 1000)}ms", str(ROOT / "tools" / "compare" / "reads.js"),
    ]  # fmt: skip
    run_client(command, _all_cores(), directory / "k6.log", seconds + EXTRA_TIME_S)
    metrics = json.loads(summary.read_text())["metrics"]
    requests, checks, duration = metrics["http_reqs"], metrics["checks"], metrics["http_req_duration"]
    elapsed_s = requests["count"] / requests["rate"]
    passes = checks["passes"]
    return K6(requests["count"], passes, passes / elapsed_s, duration["p(95)"], duration["max"])


def run_wrk(url: str, users: int, seconds: int, directory: Path, depth: int = 1) -> Wrk:
    """Run a script of tools/wrk with `depth` requests in flight on each connection, and return its figures.

    Late and wrong answers do not count. wrk notes as late, once, the requests that went out together.
    """
    script, arguments = ("reads.lua", [1, users]) if depth == 1 else ("pipeline.lua", [1, users, depth])
    command = [
        find_program("wrk") or "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency",
        "-s", str(ROOT / "tools" / "wrk" / script), url, "--", *map(str, arguments),
    ]  # fmt: skip
    output = run_client(command, _all_cores(), directory / "wrk.log", seconds + EXTRA_TIME_S)
    match = _WRK_LINE.search(output)
    if match is None:
        raise MeasurementFailed(f"wrk printed no figures: {output[-300:]}")
    found = json.loads(match[1])
    good = max(0, found["requests"] - found["status_errors"] - depth * found["timeouts"])
    return Wrk(good / found["seconds"], found["requests"])


def settle(url: str) -> float:
    """Wait until reads are answered promptly; return how long that took."""
    start = time.monotonic()
    connection, request = _connection(url, SETTLE_TIMEOUT_S), _request(url, 1)
    prompt = 0
    while prompt < PROMPT_IN_A_ROW:
        asked = time.monotonic()
        if asked - start > SETTLE_TIMEOUT_S:
            raise MeasurementFailed("reads are not answered promptly again")
        connection.exchange(request)
        prompt = prompt + 1 if time.monotonic() - asked < PROMPT_S else 0
        time.sleep(SETTLE_STEP_S)
    connection.close()
    return time.monotonic() - start


class Probe:
    """Threads that read at a fixed rate for the length of a `with` block; `points` is what they saw, in order.

    A thread reads once in the time that it waits at most for an answer, so there is always one free when a read is due.
    """

    def __init__(self, url: str, users: int) -> None:
        self.points: list[ProbePoint] = []
        self._url = url
        self._users = users
        self._is_over = threading.Event()
        self._start = 0.0
        offsets = [n * PROBE_INTERVAL_S for n in range(round(PATIENCE_S / PROBE_INTERVAL_S))]
        self._threads = [threading.Thread(target=self._run, args=(offset,), daemon=True) for offset in offsets]

    @property
    def served(self) -> float:
        """The share of the reads that were answered in time."""
        return sum(point.ms is not None for point in self.points) / max(1, len(self.points))

    def _run(self, offset_s: float) -> None:
        connection, chance = _connection(self._url, PATIENCE_S), random.Random(offset_s)
        due = self._start + offset_s
        while not self._is_over.wait(max(0.0, due - time.monotonic())):
            ms = None
            with suppress(OSError):
                if connection.exchange(_request(self._url, chance.randint(1, self._users))).status == 200:
                    ms = (time.monotonic() - due) * 1000
            self.points.append(ProbePoint(due - self._start, ms))
            due += PATIENCE_S
        connection.close()

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self.points.sort(key=lambda point: point.t_s)


def _connection(url: str, timeout_s: float) -> Connection:
    parts = urlsplit(url)
    return Connection(parts.hostname or "", parts.port or 80, timeout_s)


def _request(url: str, id: int) -> bytes:
    return get(urlsplit(url).netloc, f"/user/{id}")


def _all_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))
