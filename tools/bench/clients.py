"""The load generators: how each is called, and how what it prints becomes figures.

    wrk              closed loop at full speed: the ceiling
    redis-benchmark  the same for Redis
    k6               200 virtual users, checks
    open_loop        fixed rates, latency from the intended send time (tools/bench/open_loop.py)
    original_work    7,500 POSTs by 10 Python threads (tools/bench/original_work.py)

Each runs as a process on the client's cores. `loaded` wraps a run with the CPU time of the server around it.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench.findings import Figures
from tools.bench.machine import find_program
from tools.bench.processes import ROOT, MeasurementFailed, run_client
from tools.bench.servers import HOST, Server

CONNECTIONS = 64
EXTRA_TIME_S = 60.0  # a client that needs so much longer than its load is stuck

_WRK_LINE = re.compile(r"^wrk-json (\{.*\})$", re.MULTILINE)
_WRK_ERRORS = ("connect_errors", "read_errors", "write_errors", "status_errors", "timeouts")
LATENCY_FIGURES = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")


@dataclass(frozen=True)
class Load:
    """What a client did: answers, in what time, and its own figures."""

    requests: int
    seconds: float
    figures: Figures


class Clients:
    """Runs the clients on their cores."""

    def __init__(self, cores: Sequence[int], work_dir: Path) -> None:
        self._cores = tuple(cores)
        self._log = work_dir / "client.log"
        self._work_dir = work_dir

    def wrk(
        self, port: int, script: str, arguments: Sequence[int], seconds: float, answer_bytes: int | None = None
    ) -> Load:
        """Run a script of tools/wrk. With `answer_bytes` every answer must have this size."""
        command = [
            find_program("wrk") or "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--timeout", "10s",
            "-s", str(ROOT / "tools" / "wrk" / script), f"http://{HOST}:{port}", "--", *map(str, arguments),
        ]  # fmt: skip
        return read_wrk(run_client(command, self._cores, self._log, seconds + EXTRA_TIME_S), answer_bytes)

    def redis_set(self, port: int, value: bytes, keys: int, requests: int) -> Load:
        """SET random keys."""
        command = [
            find_program("redis-benchmark") or "redis-benchmark", "-h", HOST, "-p", str(port), "-c", str(CONNECTIONS),
            "-n", str(requests), "-r", str(keys), "-t", "set", "-d", str(len(value)), "--csv",
        ]  # fmt: skip
        return read_redis(run_client(command, self._cores, self._log, 10 * EXTRA_TIME_S), requests)

    def k6(self, port: int, script: str, seconds: float, settings: dict[str, Any]) -> Load:
        """Run a script of tools/k6; a failed check ends k6 with an error, and so the measurement."""
        summary = self._work_dir / "k6-summary.json"
        command = [
            find_program("k6") or "k6", "run", "--quiet", "--no-usage-report", "--summary-export", str(summary),
            "--summary-trend-stats", "med,p(90),p(99),p(99.9),max", "-e", f"URL=http://{HOST}:{port}",
        ]  # fmt: skip
        for name, value in settings.items():
            command += ["-e", f"{name}={value}"]
        command.append(str(ROOT / "tools" / "k6" / script))
        run_client(command, self._cores, self._log, seconds + EXTRA_TIME_S)
        return read_k6(json.loads(summary.read_text()))

    def open_loop(self, port: int, seconds: float, streams: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Send streams at fixed rates; see the module for what they are and what it prints."""
        plan = json.dumps({"port": port, "seconds": seconds, "streams": streams})
        command = [sys.executable, "-m", "tools.bench.open_loop", plan]
        found: dict[str, Any] = json.loads(run_client(command, self._cores, self._log, seconds + EXTRA_TIME_S))
        for name, stream in found["streams"].items():
            if stream["sent"] < stream["due"]:
                rate, what = streams[name]["rate"], f"{stream['sent']:,} of {stream['due']:,} could be sent"
                raise MeasurementFailed(f"{name}: the server did not keep up with {rate:,.0f}/s: {what}")
            if stream["wrong"] or stream["unanswered"]:
                what = f"{stream['wrong']} wrong, {stream['unanswered']} without an answer"
                raise MeasurementFailed(f"{name}: of {stream['sent']} requests {what}: {stream['first_wrong']}")
        return found

    def original_work(self, port: int, is_echo: bool) -> Load:
        """Send the 7,500 POSTs; to an echo server only the status of the answers is looked at."""
        command = [sys.executable, "-m", "tools.bench.original_work", str(port), *(["--echo"] if is_echo else [])]
        found = json.loads(run_client(command, self._cores, self._log, EXTRA_TIME_S))
        if found["problem"]:
            raise MeasurementFailed(found["problem"])
        return Load(found["requests"], found["seconds"], {})


def loaded(server: Server, run: Callable[[], Load]) -> Figures:
    """Run a client and return its figures with the CPU time that the server, all processes, spent on them."""
    server.settle()
    cpu_before, start = server.cpu_s(), time.perf_counter()
    load = run()
    busy_s, elapsed_s = server.cpu_s() - cpu_before, time.perf_counter() - start
    server.settle()
    cpu_s = server.cpu_s() - cpu_before
    memory = server.memory()
    return {
        "rate": load.requests / load.seconds,
        "requests": load.requests,
        "seconds": load.seconds,
        "cpu_us": cpu_s / load.requests * 1e6,
        "server_busy": min(1.0, busy_s / (elapsed_s * len(server.cores))),
        "uss_mib": memory.uss / (1 << 20),
        "pss_mib": memory.pss / (1 << 20),
        **load.figures,
    }


def read_wrk(output: str, answer_bytes: int | None = None) -> Load:
    """Read the line that tools/wrk/report.lua prints. Raises on any error, and on answers of another size."""
    match = _WRK_LINE.search(output)
    if match is None:
        raise MeasurementFailed(f"wrk printed no figures: {output[-300:]}")
    found = json.loads(match[1])
    errors = {name: found[name] for name in _WRK_ERRORS if found[name]}
    if errors:
        raise MeasurementFailed(f"wrk: {errors} of {found['requests']} requests")
    if not found["requests"]:
        raise MeasurementFailed("wrk: not one answer")
    if answer_bytes is not None:
        # what was under way on the connections at the end was received, but is not counted as an answer
        surplus = found["bytes"] - found["requests"] * answer_bytes
        if not 0 <= surplus <= CONNECTIONS * answer_bytes * PIPELINE_DEPTH:
            raise MeasurementFailed(f"wrk: {found['bytes']} bytes in {found['requests']} answers of {answer_bytes}")
    return Load(found["requests"], found["seconds"], {name: found[name] for name in LATENCY_FIGURES})


PIPELINE_DEPTH = 16


def read_redis(output: str, requests: int) -> Load:
    """Read `redis-benchmark --csv`; it has no 90th and 99.9th percentile."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(lines))
    if len(rows) != 1:
        raise MeasurementFailed(f"redis-benchmark printed no figures: {output[-300:]}")
    row = rows[0]
    rate = float(row["rps"])
    latencies = {
        "p50_ms": float(row["p50_latency_ms"]),
        "p99_ms": float(row["p99_latency_ms"]),
        "max_ms": float(row["max_latency_ms"]),
    }
    return Load(requests, requests / rate, latencies)


def read_k6(summary: dict[str, Any]) -> Load:
    """Read a summary of k6; `ok_share` is the share of answers with the right status."""
    metrics = summary["metrics"]
    requests, rate = metrics["http_reqs"]["count"], metrics["http_reqs"]["rate"]
    checks, duration = metrics["checks"], metrics["http_req_duration"]
    figures = {
        "ok_share": checks["passes"] / max(1, checks["passes"] + checks["fails"]),
        "p50_ms": duration["med"],
        "p90_ms": duration["p(90)"],
        "p99_ms": duration["p(99)"],
        "p999_ms": duration["p(99.9)"],
        "max_ms": duration["max"],
    }
    return Load(requests, requests / rate, figures)
