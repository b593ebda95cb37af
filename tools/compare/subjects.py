"""What is compared: the four earlier shapes and the server, each started, measured, killed and started again.

All speak the classic contract and have the same persistence period; everything else is as each is shipped. They share
the machine with the clients: the original experiment did, and what a shape leaves to its clients is part of it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from server.shm.segment import remove_stale
from tools.bench.processes import MeasurementFailed, PinnedProcess
from tools.lineage.main import SHAPES

# the server, with the level of its acknowledgements: its default, and the one that waits for no disk, as v1 to v3
SERVERS = {"millrace": "journal", "millrace-memory": "memory"}
SUBJECTS = (*SHAPES, *SERVERS)  # in the order of their history
GONE_TIMEOUT_S = 10.0
POLL_S = 0.01

_READY = re.compile(rb"ready (http://127\.0\.0\.1:\d+) ")


class Subject:
    """A running shape or server in a process group of its own. Use as a context manager: nothing is left behind."""

    def __init__(self, name: str, data_dir: Path, period_ms: int) -> None:
        """Start it and return when it serves; `start_s` is how long that took."""
        self.name = name
        self._data_dir = data_dir
        self._segments: set[str] = set()
        start = time.perf_counter()
        self._process = PinnedProcess(
            [sys.executable, *_arguments(name, data_dir, period_ms)],
            sorted(os.sched_getaffinity(0)),
            data_dir.with_suffix(".log"),
            is_piped=True,
        )
        self.url = self._await_ready()
        self.port = int(self.url.rpartition(":")[2])
        self.start_s = time.perf_counter() - start
        self._note_segment()

    def _await_ready(self) -> str:
        """Return the address in the ready line."""
        for line in self._process.process.stdout or ():
            if match := _READY.match(line):
                return match[1].decode()
        self.kill()
        raise MeasurementFailed(f"{self.name} did not start: {self._process.log_tail()}")

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes so far."""
        return self._process.cpu_s()

    def memory_bytes(self) -> int:
        """Return the memory of all its processes, shared pages counted once (PSS)."""
        return self._process.memory().pss

    def process_count(self) -> int:
        return len(self._process.pids())

    def kill(self) -> None:
        """SIGKILL to every process of the group at once, and wait until they are gone."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.process.wait()
        deadline = time.monotonic() + GONE_TIMEOUT_S
        while _has_members(self._process.pid):
            if time.monotonic() > deadline:
                raise MeasurementFailed(f"{self.name}: killed processes are still there")
            time.sleep(POLL_S)

    def _note_segment(self) -> None:
        if self.name in SERVERS:
            self._segments.add(json.loads((self._data_dir / "run.json").read_text())["segment"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._process.stop()
        for segment in self._segments:
            remove_stale(segment)


def _arguments(name: str, data_dir: Path, period_ms: int) -> list[str]:
    common = ["--port", "0", "--data-dir", str(data_dir)]
    if name in SERVERS:
        settings = ["--classic", "--durability", SERVERS[name], "--persist-period-ms", str(period_ms)]
        return ["run.py", *common, "--admin-port", "0", "--log-level", "warning", *settings]
    return ["-m", "tools", "lineage", "run", name, *common, "--period-ms", str(period_ms)]


def _has_members(group: int) -> bool:
    """Return whether a process of the group still runs."""
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group:
                return True
    return False
