"""The servers that are measured, each started by its constructor and stopped at the end of its `with` block.

    Millrace   run.py with its default settings; only workers, ports and data directory are given
    Bare       one constant response, the floor of Python (tools/bench/bare_server.py)
    Nginx      `return 200` with a body of the same size, one process, access log off
    Redis      append-only file, appendfsync always; no rewrites of the file meanwhile
    FastApi    FastAPI, uvicorn with uvloop and httptools, SQLite (tools/bench/fastapi_server.py)

All listen on a free port of the loopback interface and keep their files in a directory of the benchmark's own.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from server.shm.segment import SHM_DIRECTORY, Segment, remove_stale
from tools.bench.machine import find_program
from tools.bench.processes import MeasurementFailed, Memory, PinnedProcess
from tools.connection import Connection, get, post

HOST = "127.0.0.1"
START_TIMEOUT_S = 300.0  # with ten million records in SQLite
EXCHANGE_TIMEOUT_S = 120.0  # a flush of all that a benchmark wrote
POLL_S = 0.01
BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system

_READY = re.compile(rb"ready http://127\.0\.0\.1:(\d+) ")
T = TypeVar("T")


class Server:
    """A running server. `name` is the side in the tables."""

    name = ""

    def __init__(
        self,
        work_dir: Path,
        arguments: Sequence[str],
        cores: Sequence[int],
        *,
        is_piped: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.cores = tuple(dict.fromkeys(cores))
        self.port = 0
        log_path = work_dir / f"{self.name}.log"
        self.process = PinnedProcess(arguments, self.cores, log_path, is_piped=is_piped, environment=environment)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Stop what was started when the block that waits for it fails or is interrupted."""
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def await_port(self) -> None:
        """Return when the server accepts connections."""
        self.await_that(lambda: _is_open(self.port), "it does not listen")

    def await_line(self) -> bytes:
        """Return the first line of its standard output."""
        stdout = self.process.process.stdout
        line = stdout.readline() if stdout else b""
        if not line:
            raise MeasurementFailed(f"{self.name} did not start: {self.process.log_tail()}")
        return line

    def await_that(self, condition: Callable[[], T], complaint: str, timeout_s: float = START_TIMEOUT_S) -> T:
        """Return the first true value; raise when the server ends before or time is over."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if self.process.process.poll() is not None or time.monotonic() > deadline:
                raise MeasurementFailed(f"{self.name}: {complaint}: {self.process.log_tail()}")
            time.sleep(POLL_S)
        return value

    def settle(self) -> None:
        """Return when the work that the server put off is done, so that its CPU time is counted."""

    def cpu_s(self) -> float:
        return self.process.cpu_s()

    def memory(self) -> Memory:
        return self.process.memory()

    def connect(self) -> Connection:
        return Connection(HOST, self.port, EXCHANGE_TIMEOUT_S)

    def stop(self) -> None:
        self.process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Millrace(Server):
    """The server of this repository."""

    name = "millrace"

    def __init__(self, data_dir: Path, cores: Sequence[int], *arguments: str) -> None:
        """Start it with one worker per core and return when it serves; `start_s` is how long that took."""
        self.data_dir = data_dir
        workers = len(dict.fromkeys(cores))
        command = [
            sys.executable, "run.py", "--workers", str(workers), "--port", "0", "--admin-port", "0",
            "--data-dir", str(data_dir), "--log-level", "warning", *arguments,
        ]  # fmt: skip
        start = time.perf_counter()
        super().__init__(data_dir.parent, command, cores, is_piped=True)
        with self.starting():
            match = _READY.match(self.await_line())
            if match is None:
                raise MeasurementFailed("millrace printed something else than its ready line")
            self.start_s = time.perf_counter() - start
            self.port = int(match[1])
            run = json.loads((data_dir / "run.json").read_text())
        self.pids: dict[str, int] = run["pids"]
        self._segment_name: str = run["segment"]
        self._admin = Connection(HOST, run["admin_port"], EXCHANGE_TIMEOUT_S)

    def settle(self) -> None:
        """Flush: the work of the SQLite writers belongs to the requests that caused it."""
        answer = self._admin.exchange(post(HOST, "/flush?wait=1", b""))
        if answer.status != 200:
            raise MeasurementFailed(f"flush was answered {answer.status} {answer.body[:200]!r}")

    def stats(self) -> dict[str, Any]:
        """Return `/stats` of the admin port."""
        found: dict[str, Any] = json.loads(self._admin.exchange(get(HOST, "/stats")).body)
        return found

    def segment(self) -> Segment:
        """Map the shared segment read-only: looking into it costs the server nothing. The caller closes it."""
        return Segment.attach(self._segment_name)

    def memory_bytes(self) -> int:
        """Return what all processes take together, the shared segment once and whole.

        A page of the segment that only one process has touched counts as private to it (in USS), and one that is
        reserved, but not touched yet, is in no process at all. So the segment's part is taken out of the PSS of the
        processes and replaced by what its file occupies.
        """
        mapped = sum(mapped_pss_bytes(pid, self._segment_name) for pid in self.process.pids())
        return self.memory().pss - mapped + Path(SHM_DIRECTORY, self._segment_name).stat().st_blocks * BLOCK_BYTES

    def stop(self) -> None:
        if hasattr(self, "_admin"):
            self._admin.close()
        super().stop()
        if hasattr(self, "_segment_name"):
            remove_stale(self._segment_name)  # only when it had to be killed is there one


class Bare(Server):
    name = "bare"

    def __init__(self, work_dir: Path, cores: Sequence[int], response: bytes) -> None:
        path = work_dir / "bare-response"
        path.write_bytes(response)
        command = [sys.executable, "-m", "tools.bench.bare_server", str(path)]
        super().__init__(work_dir, command, cores, is_piped=True)
        with self.starting():
            self.port = int(self.await_line())


class Nginx(Server):
    name = "nginx"

    def __init__(self, work_dir: Path, cores: Sequence[int], body: bytes) -> None:
        port = free_port()
        directory = work_dir / "nginx"
        directory.mkdir(exist_ok=True)
        path = directory / "nginx.conf"
        path.write_text(_NGINX.format(directory=directory, port=port, body=body.decode().replace("'", "\\'")))
        command = [find_program("nginx") or "nginx", "-e", str(directory / "error.log"), "-c", str(path)]
        super().__init__(work_dir, command, cores)
        self.port = port
        with self.starting():
            self.await_port()


# One process without a master; every temporary path is named, because the compiled-in ones belong to root.
_NGINX = """
daemon off; master_process off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 1000000000; keepalive_timeout 300s; default_type application/json;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    server {{ listen 127.0.0.1:{port} backlog=1024; location / {{ return 200 '{body}'; }} }}
}}
"""


class Redis(Server):
    name = "redis"

    def __init__(self, work_dir: Path, cores: Sequence[int], is_durable: bool) -> None:
        """Start it; not durable means no file at all, for the comparison of memory."""
        port = free_port()
        directory = work_dir / "redis"
        directory.mkdir(exist_ok=True)
        command = [
            find_program("redis-server") or "redis-server", "--port", str(port), "--bind", HOST, "--save", "",
            "--dir", str(directory), "--daemonize", "no", "--appendonly", "yes" if is_durable else "no",
            "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0",
        ]  # fmt: skip
        super().__init__(work_dir, command, cores)
        self.port = port
        with self.starting():
            self.await_port()


class FastApi(Server):
    name = "fastapi"

    def __init__(self, work_dir: Path, cores: Sequence[int], users: int) -> None:
        from tools.bench.fastapi_server import open_database  # here: FastAPI may not be installed
        from tools.bench.records import fill_plain_database

        path = work_dir / "fastapi.db"
        if not path.exists():
            connection = open_database(str(path))
            fill_plain_database(connection, users)
            connection.close()
        port = free_port()
        command = [
            sys.executable, "-m", "uvicorn", "tools.bench.fastapi_server:app", "--host", HOST, "--port", str(port),
            "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning",
        ]  # fmt: skip
        super().__init__(work_dir, command, cores, environment=os.environ | {"DATABASE": str(path)})
        self.port = port
        with self.starting():
            self.await_port()


def mapped_pss_bytes(pid: int, name: str) -> int:
    """Return a process's share (PSS) in the mappings of a file."""
    total_kib, is_of_file = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        field, _, rest = line.partition(" ")
        if not field.endswith(":"):  # the first line of a mapping: its addresses, at the end its file
            is_of_file = rest.endswith("/" + name)
        elif is_of_file and field == "Pss:":
            total_kib += int(rest.split()[0])
    return total_kib << 10


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def _is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((HOST, port)) == 0
