"""Processes of a benchmark: started on given cores, stopped by their pid, their CPU time and memory read from /proc.

CPU time comes from the clock that the kernel keeps for each process (clock_getcpuclockid(3)): user + system of all its
threads in nanoseconds. /proc/PID/stat has the same in steps of 10 ms, too coarse for one period of the persister.

Every process gets a session of its own, so that Ctrl-C reaches the benchmark alone, which then stops them in order;
should the benchmark be killed, the kernel sends each of them SIGTERM (setpriv --pdeathsig).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil

from server.errors import MillraceError

ROOT = Path(__file__).resolve().parents[2]
STOP_TIMEOUT_S = 60.0  # a server flushes when it stops; one with a million changes needs a while
CPU_CLOCK = 2  # CPUCLOCK_SCHED of <linux/posix-timers.h>
LOG_CHARACTERS_SHOWN = 600
TITLE_PREFIX = "millrace"  # the processes of the server name themselves


class MeasurementFailed(MillraceError):
    """A wrong answer, or a process that did not do what it should: the rows of this side fail."""


class Memory(NamedTuple):
    """Of all processes of a server, in bytes."""

    uss: int
    pss: int


class PinnedProcess:
    """A process and its children, on some cores. Use as a context manager: it is stopped however the block ends."""

    def __init__(
        self,
        arguments: Sequence[str],
        cores: Sequence[int],
        log_path: Path,
        *,
        is_piped: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it in the directory of run.py. Its output goes to `log_path`, or standard output into a pipe."""
        self.log_path = log_path
        setpriv = shutil.which("setpriv")
        prefix = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # a child inherits it; set afterwards it could miss threads and grandchildren
        try:
            with log_path.open("ab") as log:
                self.process = subprocess.Popen(
                    [*prefix, *arguments],
                    stdout=subprocess.PIPE if is_piped else log,
                    stderr=log,
                    cwd=ROOT,
                    env=environment,
                    start_new_session=True,
                )
        finally:
            os.sched_setaffinity(0, before)
        self._pids: tuple[int, ...] = ()

    @property
    def pid(self) -> int:
        return self.process.pid

    def pids(self) -> tuple[int, ...]:
        """Return the process and all its descendants. Python's resource tracker is one of them, and idle."""
        try:
            root = psutil.Process(self.pid)
            return (self.pid, *sorted(child.pid for child in root.children(recursive=True)))
        except psutil.Error:
            raise MeasurementFailed(f"process {self.pid} is gone: {self.log_tail()}") from None

    def cpu_s(self) -> float:
        """Return the CPU seconds of all processes. Raises when one was replaced since the last call: its are lost."""
        pids = self.pids()
        if self._pids and pids != self._pids:
            raise MeasurementFailed(f"a process was replaced: {self._pids} -> {pids}: {self.log_tail()}")
        self._pids = pids
        return sum(cpu_s(pid) for pid in pids)

    def memory(self) -> Memory:
        """Return the memory of all processes together."""
        found = [psutil.Process(pid).memory_full_info() for pid in self.pids()]
        return Memory(sum(one.uss for one in found), sum(one.pss for one in found))

    def figures(self) -> dict[str, dict[str, float]]:
        """Return memory and CPU time of each process by its title."""
        found = {}
        for pid in self.pids():
            process = psutil.Process(pid)
            title = " ".join(process.cmdline())
            name = title if title.startswith(TITLE_PREFIX) else process.name()
            memory = process.memory_full_info()
            figures = {"uss_mib": memory.uss / (1 << 20), "pss_mib": memory.pss / (1 << 20), "cpu_s": cpu_s(pid)}
            found[name if name not in found else f"{name} ({pid})"] = figures
        return found

    def log_tail(self) -> str:
        """Return the end of its log in one line."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return " | ".join(text[-LOG_CHARACTERS_SHOWN:].split("\n")).strip(" |")

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Send SIGTERM and wait; kill it and its descendants when that takes too long."""
        descendants: tuple[int, ...] = ()
        with suppress(MeasurementFailed):
            descendants = self.pids()[1:]
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            for pid in descendants:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    try:
        return time.clock_gettime_ns((~pid << 3) | CPU_CLOCK) / 1e9
    except OSError:
        raise MeasurementFailed(f"process {pid} is gone") from None


def run_client(arguments: Sequence[str], cores: Sequence[int], log_path: Path, timeout_s: float) -> str:
    """Run a client to its end on its cores and return what it printed."""
    with PinnedProcess(arguments, cores, log_path, is_piped=True) as client:
        try:
            output, _ = client.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise MeasurementFailed(f"{Path(arguments[0]).name} did not end within {timeout_s:.0f} s") from None
        if client.process.returncode != 0:
            code, tail = client.process.returncode, client.log_tail()
            raise MeasurementFailed(f"{Path(arguments[0]).name} ended with {code}: {tail}")
        return output.decode(errors="replace")
