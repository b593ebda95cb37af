"""Starts the processes of a shape, watches them, and stops them.

They are forked from back to front, each when the one before it serves: a cache that starts asks the services behind
it for their rows. They are stopped from front to back, each when the one before it has flushed into it. Like the
supervisor of the server the launcher opens all listening sockets itself, and closes none before the end. When a
process ends that should not, the shape is broken, and the launcher kills the rest.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from server.errors import StartError
from server.listeners import open_listeners
from tools.lineage import service_process
from tools.lineage.roles import Role

HOST = "127.0.0.1"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

EXIT_CRASH = 1
EXIT_NOT_FLUSHED = 5


class Launcher:
    """The processes of one shape. `roles` go from back to front; the last one has the public port."""

    def __init__(self, shape: str, roles: Sequence[Role], port: int, data_dir: Path, period_s: float) -> None:
        self._shape = shape
        self._roles = roles
        self._data_dir = data_dir
        self._period_s = period_s
        self._pids: dict[str, int] = {}  # from back to front, without those that have ended
        self._listeners = self._listen(port)
        self._ports = {name: listener.getsockname()[1] for name, listener in self._listeners.items()}

    def _listen(self, port: int) -> dict[str, socket.socket]:
        front = self._roles[-1].name
        return {role.name: open_listeners(HOST, port if role.name == front else 0, 1)[0] for role in self._roles}

    def run(self) -> int:
        """Start everything, say so, wait for the end, stop everything; return the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # from here on they wait until they are asked for
        try:
            for role in self._roles:
                self._start(role)
            front = self._roles[-1].name
            url = f"http://{HOST}:{self._ports[front]}"
            print(f"ready {url} pid={os.getpid()} shape={self._shape} processes={len(self._pids)}", flush=True)
            while (number := signal.sigwait(SIGNALS)) == signal.SIGCHLD:
                if name := self._ended():
                    print(f"{self._shape}: the process '{name}' ended by itself", file=sys.stderr)
                    return EXIT_CRASH
            print(f"{self._shape}: stopping on {signal.Signals(number).name}, after a flush", file=sys.stderr)
            return self._stop()
        finally:
            self._kill()
            for listener in self._listeners.values():
                listener.close()

    def _start(self, role: Role) -> None:
        """Fork one process and wait until it serves. Raises `StartError`."""
        ready_read_fd, ready_fd = os.pipe()
        launcher_pidfd = os.pidfd_open(os.getpid())
        pid = os.fork()
        if pid == 0:
            os.close(ready_read_fd)
            os._exit(self._run_child(role, ready_fd, launcher_pidfd))
        self._pids[role.name] = pid
        os.close(ready_fd)
        os.close(launcher_pidfd)
        is_ready = os.read(ready_read_fd, 1)
        os.close(ready_read_fd)
        if not is_ready:
            raise StartError(f"the process '{role.name}' did not start")

    def _run_child(self, role: Role, ready_fd: int, launcher_pidfd: int) -> int:
        try:
            return service_process.main(
                self._shape, role, self._listeners[role.name], self._ports, self._data_dir, self._period_s,
                ready_fd, launcher_pidfd,
            )  # fmt: skip
        except BaseException:  # a child must never return into the code of its parent
            sys.excepthook(*sys.exc_info())
            return EXIT_CRASH

    def _ended(self) -> str | None:
        """Return the name of a process that has ended."""
        for name, pid in self._pids.items():
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return name
        return None

    def _stop(self) -> int:
        """Stop from front to back; a second signal leaves at once."""
        exit_code = 0
        for name, pid in reversed(list(self._pids.items())):
            os.kill(pid, signal.SIGTERM)
            while not (ended := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)):
                if signal.sigwait(SIGNALS) in STOP_SIGNALS:
                    print(f"{self._shape}: left at once; what was not flushed is lost", file=sys.stderr)
                    return EXIT_NOT_FLUSHED
            del self._pids[name]
            if ended.si_code != os.CLD_EXITED or ended.si_status:
                print(f"{self._shape}: the process '{name}' ended with {ended.si_status}", file=sys.stderr)
                exit_code = EXIT_NOT_FLUSHED
        return exit_code

    def _kill(self) -> None:
        for pid in self._pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
