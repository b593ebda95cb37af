"""What every experiment is given: the options, the cores, a directory, the clients, and how rounds are run in turn."""

from __future__ import annotations

import random
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.bench.clients import Clients
from tools.bench.findings import Figures, Findings
from tools.bench.machine import Cores
from tools.bench.processes import MeasurementFailed
from tools.bench.records import FIRST_ID, user_body
from tools.bench.servers import EXCHANGE_TIMEOUT_S, HOST, Server
from tools.connection import get

CHECKED_READS = 200

Measure = Callable[[], Figures]


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    is_quick: bool
    is_huge: bool
    rounds: int


class Session:
    """One run of the benchmark."""

    def __init__(self, options: Options, cores: Cores, work_dir: Path, missing: Mapping[str, str]) -> None:
        self.options = options
        self.cores = cores
        self.clients = Clients(cores.client, work_dir)
        self._work_dir = work_dir
        self._missing = missing
        self._start = time.monotonic()
        self._directories = 0

    @property
    def seconds(self) -> float:
        """How long one round of one side lasts."""
        return 1.0 if self.options.is_quick else 4.0

    @property
    def fewer_rounds(self) -> int:
        """Rounds of what a quick run measures too little of to be judged anyway."""
        return 1 if self.options.is_quick else self.options.rounds

    def has(self, findings: Findings, side: str, *programs: str) -> bool:
        """Return whether a side can be measured; note what is missing."""
        absent = [program for program in programs if program in self._missing]
        if absent:
            commands = "; ".join(dict.fromkeys(self._missing[program] for program in absent))
            findings.missing[side] = f"{', '.join(absent)} not installed: {commands}"
            self.say(f"left out: {side} ({findings.missing[side]})")
        return not absent

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """A new directory for the length of a block."""
        self._directories += 1
        path = self._work_dir / str(self._directories)
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def run_rounds(self, findings: Findings, sides: Mapping[str, Measure], rounds: int | None = None) -> None:
        """Measure the sides in turn: A B C, A B C, ... A side that fails is not measured again."""
        total = rounds or self.options.rounds
        for number in range(1, total + 1):
            for side, measure in sides.items():
                if side in findings.failures:
                    continue
                try:
                    figures = measure()
                except (MeasurementFailed, OSError) as error:
                    findings.failures[side] = str(error)
                    self.say(f"{side} FAILED: {error}")
                    continue
                findings.add(side, figures)
                self.say(f"round {number}/{total} {side:<12} {describe(figures)}")

    def note_processes(self, findings: Findings, server: Server) -> None:
        """Keep what each process of a server has used, for results.json and the page."""
        findings.processes[server.name] = server.process.figures()

    def say(self, text: str) -> None:
        """Show progress."""
        print(f"[{time.monotonic() - self._start:6.1f} s] {text}", file=sys.stderr, flush=True)


def describe(figures: Figures) -> str:
    """Return the figures that a progress line has room for."""
    forms = {
        "rate": "{:,.0f}/s", "cpu_us": "{:.2f} µs CPU", "total_s": "{:.2f} s", "start_s": "start {:.2f} s",
        "p50_ms": "p50 {:.3f}", "p99_ms": "p99 {:.3f}", "max_ms": "max {:.2f} ms",
        "bytes_per_record": "{:.0f} B/record", "persister_us": "persister {:.0f} µs", "order_cpu_us": "order {:.1f} µs",
        "server_busy": "busy {:.0%}", "lag_p99_s": "lag p99 {:.2f} s", "read_max_ms": "read max {:.1f} ms",
        "update_max_ms": "update max {:.1f} ms",
    }  # fmt: skip
    return "  ".join(form.format(figures[name]) for name, form in forms.items() if name in figures)


def check_reads(server: Server, users: int) -> None:
    """Read random users and compare every byte of their bodies."""
    connection = server.connect()
    try:
        for id in random.Random(7).choices(range(FIRST_ID, FIRST_ID + users), k=CHECKED_READS):
            answer = connection.exchange(get(HOST, f"/user/{id}"))
            if answer.status != 200 or answer.body != user_body(id):
                raise MeasurementFailed(f"GET /user/{id} was answered {answer.status} {answer.body[:200]!r}")
    finally:
        connection.close()


def check_constant(server: Server) -> None:
    """Make sure that a static server answers with a body of the right size."""
    connection = server.connect()
    try:
        answer = connection.exchange(get(HOST, f"/user/{FIRST_ID}"))
    finally:
        connection.close()
    if answer.status != 200 or answer.body != user_body(FIRST_ID):
        raise MeasurementFailed(f"{server.name} answered {answer.status} {answer.body[:200]!r}")


def whole_answer(port: int) -> bytes:
    """Return all bytes of the answer to a GET of the first user."""
    with socket.create_connection((HOST, port), EXCHANGE_TIMEOUT_S) as sock:
        sock.sendall(get(HOST, f"/user/{FIRST_ID}"))
        data = b""
        while not data.endswith(user_body(FIRST_ID)):
            more = sock.recv(1 << 16)
            if not more:
                raise MeasurementFailed(f"GET /user/{FIRST_ID} was answered {data[:200]!r}")
            data += more
    return data
