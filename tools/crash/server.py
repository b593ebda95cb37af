"""A server of its own to be killed: started on free ports of the loop-back interface, in a process group of its own.

Only processes that `run.json` of its own data directory names, or that belong to the group it started, are ever
signalled. `close` leaves nothing behind, whatever happened.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from server.data_directory import Run, read_run
from server.errors import MillraceError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.002
RUN_PY = Path(__file__).resolve().parents[2] / "run.py"


class ServerFailed(MillraceError):
    """The server did not do what it had to; the text ends with its log."""


class Server:
    """`run.py` on a data directory; may be started again and again."""

    def __init__(self, data_dir: Path, workers: int, *arguments: str) -> None:
        self.data_dir = data_dir
        self.log_path = data_dir.with_name(data_dir.name + ".log")
        self.port = 0
        self.admin_port = 0
        self._command = [
            sys.executable, str(RUN_PY), "--workers", str(workers), "--port", "0", "--admin-port", "0",
            "--data-dir", str(data_dir), *arguments,
        ]  # fmt: skip
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")}
        self._process: subprocess.Popen[bytes] | None = None
        self._group = 0
        self._segment = ""

    def start(self) -> float:
        """Start it; return the seconds until its ready line."""
        begin = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=RUN_PY.parent, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True, env=self._environment,
            )  # fmt: skip
        self._group = self._process.pid
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], START_TIMEOUT_S)[0] or not output.readline().startswith(b"ready "):
            raise ServerFailed(f"no ready line\n{self.log()}")
        seconds = time.monotonic() - begin
        run = self.run()
        self.port, self.admin_port, self._segment = run.port, run.admin_port, run.segment
        return seconds

    def run(self) -> Run:
        """Return what `run.json` says."""
        run = read_run(self.data_dir)
        if run is None:
            raise ServerFailed(f"no run.json\n{self.log()}")
        return run

    def kill(self, role: str) -> int:
        """SIGKILL to one process; return its pid when it is dead."""
        pid = self.run().pids[role]
        os.kill(pid, signal.SIGKILL)
        if role == "supervisor":
            self._wait()
        else:
            self.wait_for(lambda: not is_alive(pid), f"{role} is dead")
        return pid

    def kill_group(self) -> None:
        """SIGKILL to all processes at once."""
        os.killpg(self._group, signal.SIGKILL)
        self._wait()

    def stop(self) -> int:
        """SIGTERM; return the exit code."""
        if self._process is not None:
            self._process.terminate()
        return self._wait()

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> float:
        """Wait for a condition; return the seconds. Raises `ServerFailed`."""
        begin = time.monotonic()
        while not condition():
            if time.monotonic() - begin > timeout_s:
                raise ServerFailed(f"not within {timeout_s} s: {what}\n{self.log()}")
            time.sleep(POLL_S)
        return time.monotonic() - begin

    def members(self) -> list[int]:
        """Return the living processes of its group."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _parent, group = stat.read_text().rpartition(") ")[2].split()[:3]
                if int(group) == self._group and state not in "ZX":
                    found.append(int(stat.parent.name))
        return found

    def has_segment(self) -> bool:
        return bool(self._segment) and Path("/dev/shm", self._segment).exists()

    def log(self) -> str:
        """Return the end of the log."""
        return self.log_path.read_text(errors="replace")[-8000:] if self.log_path.exists() else ""

    def close(self) -> None:
        """Kill what is left and remove its segment."""
        if self._group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, signal.SIGKILL)
        if self._process is not None:
            self._wait()
        if self.has_segment():
            Path("/dev/shm", self._segment).unlink()

    def _wait(self) -> int:
        process, self._process = self._process, None
        if process is None:
            raise ServerFailed("the server does not run")
        try:
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ServerFailed(f"the server did not end within {STOP_TIMEOUT_S} s\n{self.log()}") from None
        finally:
            if process.stdout is not None:
                process.stdout.close()
        return code


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False
