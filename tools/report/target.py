"""The server that is looked at: found by its data directory or by one of its pids, read from outside.

The segment is mapped read-only, as `verify` does: it says who the processes are (each writes its pid into its block of
counters, a successor into the same one), and has the figures of `GET /stats`. So the server has no work with a report,
which also works while no worker answers. Everything else is what the kernel tells the server's own user through psutil.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from server.config import WORKERS_MAX
from server.data_directory import read_run
from server.errors import DataError, MillraceError
from server.http.admin import statistics
from server.shm import layout
from server.shm.segment import NAME_PREFIX, SHM_DIRECTORY, Segment
from tools.bench.processes import MeasurementFailed, cpu_s
from tools.report.figures import FlushLag, Reading, Sample, ServerReading

STAT_BLOCK_BYTES = 512  # the unit of st_blocks, stat(2)


class ServerNotFound(MillraceError):
    """Nothing runs there, or it belongs to another user."""


def segment_by_directory(data_dir: Path) -> str:
    """Return the name of the segment of the server in a data directory."""
    try:
        run = read_run(data_dir)
    except OSError as error:
        raise ServerNotFound(f"{data_dir}: {error.strerror}") from None
    if run is None:
        raise ServerNotFound(f"no server runs in {data_dir}")
    return run.segment


def segment_by_pid(pid: int) -> str:
    """Return the name of the segment that a process, any one of the server's, has open."""
    prefix = os.path.join(SHM_DIRECTORY, NAME_PREFIX)
    try:
        paths: list[str] = [one.path for one in psutil.Process(pid).open_files()]
    except psutil.NoSuchProcess:
        raise ServerNotFound(f"there is no process {pid}") from None
    except psutil.AccessDenied:
        raise ServerNotFound(f"process {pid} belongs to another user") from None
    for path in paths:
        if path.startswith(prefix):
            return path.removeprefix(SHM_DIRECTORY + "/").removesuffix(" (deleted)")
    raise ServerNotFound(f"process {pid} is not a Millrace server")


class Target:
    """A running server."""

    def __init__(self, segment_name: str) -> None:
        """Map its segment. Raises `ServerNotFound`."""
        self.path = Path(SHM_DIRECTORY, segment_name)
        try:
            self._segment = Segment.attach(segment_name)
        except FileNotFoundError:
            raise ServerNotFound("the server is gone: it was killed, and what it says about itself is old") from None
        except PermissionError:
            raise ServerNotFound("the server belongs to another user") from None
        except DataError as error:
            raise ServerNotFound(str(error)) from None
        self._lag = FlushLag()

    def look(self) -> None:
        """Note the flush lag of this moment, which costs next to nothing: it changes faster than samples are taken."""
        words = self._segment.words
        self._lag.look(time.monotonic(), words[layout.PUBLISHED_SEQ], words[layout.PERSISTED_SEQ])

    def sample(self, t_s: float) -> Sample | None:
        """Return everything about this moment; None when the server has ended."""
        self.look()
        figures = statistics(self._segment, WORKERS_MAX, 0.0)
        processes = {}
        for role, counts in figures["processes"].items():
            reading = read_process(counts["pid"]) if counts["pid"] else None
            if reading is not None:
                processes[role] = reading
        try:
            file_bytes = self.path.stat().st_blocks * STAT_BLOCK_BYTES
        except FileNotFoundError:
            return None
        if "supervisor" not in processes:
            return None
        workers = [counts for role, counts in figures["processes"].items() if role.startswith("worker")]

        def of_workers(name: str) -> int:
            return sum(int(counts[name]) for counts in workers)

        records = figures["records"]
        server = ServerReading(
            requests=of_workers("requests"),
            reads=of_workers("reads"),
            writes=of_workers("writes"),
            client_errors=of_workers("client_errors"),
            server_errors=of_workers("server_errors"),
            connections=of_workers("connections"),
            records=sum(count for name, count in records.items() if name != "purchases"),
            flush_lag_ms=self._lag.take_highest_ms(),
            not_in_sqlite=figures["seq"]["published"] - figures["seq"]["persisted"],
            reserved_bytes=figures["memory"]["reserved_bytes"],
            limit_bytes=figures["memory"]["limit_bytes"],
            shm_file_bytes=file_bytes,
            journal_bytes=figures["journal_bytes"],
        )
        return Sample(t_s, server, processes)

    def close(self) -> None:
        self._segment.close()


def read_process(pid: int) -> Reading | None:
    """Return what the kernel says of a process; None when it is gone. Raises `ServerNotFound` when it may not say."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times, switches, disk = process.cpu_times(), process.num_ctx_switches(), process.io_counters()
            memory = process.memory_full_info()
            return Reading(
                pid=pid,
                cpu_s=cpu_s(pid),
                user_s=times.user,
                system_s=times.system,
                uss_bytes=memory.uss,
                pss_bytes=memory.pss,
                rss_bytes=memory.rss,
                threads=process.num_threads(),
                fds=process.num_fds(),
                voluntary_switches=switches.voluntary,
                involuntary_switches=switches.involuntary,
                read_bytes=disk.read_bytes,
                written_bytes=disk.write_bytes,
            )
    except (psutil.NoSuchProcess, MeasurementFailed):
        return None
    except psutil.AccessDenied:
        raise ServerNotFound(f"process {pid} belongs to another user: be that user, or root") from None
