"""What the process tests share: waiting for a condition, a server in its own process group, clients, SQLite rows.

No test sleeps: `wait_until` looks again and again until the condition holds or a deadline is over, and then shows the
log of the server. `ServerProcess` leaves nothing behind, however the test ends: its whole process group is killed, its
segment removed. When the test itself went well it also checks that the server had cleaned up by itself.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.01
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 30.0
CHILDREN_GONE_S = 2.0  # how long children may outlive a killed supervisor (design)
LOG_CHARACTERS_SHOWN = 8000

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout_s: float, message: str, log: Callable[[], str] = lambda: "") -> T:
    """Return the first true value of `condition`; fail with the message and the server's log when time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {message}\n{log()}")
        select.select([], [], [], POLL_S)


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Answer(NamedTuple):
    """One HTTP answer; `fields` has lower-case names."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One keep-alive connection through `http.client`, which checks the framing of what it reads."""

    def __init__(self, port: int, timeout_s: float = 15.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)

    def request(
        self, method: str, path: str, body: bytes | str | dict[str, Any] | None = None, **fields: str
    ) -> Answer:
        """Send one request; a dict becomes JSON; field names may be written with `_` for `-`."""
        if isinstance(body, dict):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, path: str, **fields: str) -> Answer:
        return self.request("GET", path, **fields)

    def post(self, path: str, body: bytes | str | dict[str, Any], **fields: str) -> Answer:
        return self.request("POST", path, body, **fields)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RawClient:
    """One connection that sends exactly the bytes it is given: pipelining, malformed requests."""

    def __init__(self, port: int, timeout_s: float = 15.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, is_head: bool = False) -> Answer:
        """Read the next answer (`is_head`: one without a body). Raises `ConnectionError` at the end."""
        line = self._file.readline()
        if not line:
            raise ConnectionResetError("the server closed the connection")
        status = int(line.split()[1])
        fields = {}
        while (line := self._file.readline()) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            assert value, f"broken header section: {line!r}"
            fields[name.lower()] = value.strip()
        body = b"" if is_head else self._file.read(int(fields["content-length"]))
        return Answer(status, fields, body)

    def pipeline(self, requests: list[bytes]) -> list[Answer]:
        """Send all requests at once and return their answers, which come in order."""
        self.send(b"".join(requests))
        return [self.receive() for _ in requests]

    def is_closed_by_server(self) -> bool:
        """Wait for the end of the stream; anything else that arrives is an error."""
        return self._file.read(1) == b""

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def request_bytes(method: str, path: str, body: bytes | dict[str, Any] = b"", **fields: str) -> bytes:
    """Return a request as bytes, for `RawClient`."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: test"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class ServerProcess:
    """`run.py` in a session of its own, on free ports and a given data directory; may be started again and again."""

    def __init__(self, data_dir: Path, *arguments: str, workers: int = 2, **environment: str) -> None:
        self.data_dir = data_dir
        self.output_path = data_dir.with_name(data_dir.name + ".stdout")
        self.log_path = data_dir.with_name(data_dir.name + ".stderr")
        self.port = 0
        self.admin_port = 0
        self._command = [
            sys.executable, "run.py", "--workers", str(workers), "--port", "0", "--admin-port", "0",
            "--data-dir", str(data_dir), "--memory", "64MiB", *arguments,
        ]  # fmt: skip
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")} | environment
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: set[int] = set()
        self._segments: set[str] = set()
        self._groups: list[int] = []
        self._was_killed = False

    # ---- life

    def start(self, *more: str) -> Self:
        """Start the server and wait for its ready line."""
        self.spawn(*more)
        line = self.wait_until(self._ready_line, START_TIMEOUT_S, "ready line")
        self.port = int(line.split()[1].rpartition(":")[2])
        self.admin_port = self.run_json()["admin_port"]
        self._ports |= {self.port, self.admin_port}
        self._note_segment()
        return self

    def spawn(self, *more: str) -> None:
        """Start the program without waiting for anything."""
        assert self._process is None, "the server runs already"
        self._was_killed = False
        with self.output_path.open("wb") as output, self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *more], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=log,
                start_new_session=True, env=self._environment,
            )  # fmt: skip
        self._groups.append(self._process.pid)

    def _ready_line(self) -> str:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the server ended with exit code {self._process.returncode}\n{self.log()}")
        lines = self.output_path.read_text().splitlines(keepends=True)
        return next((line for line in lines if line.startswith("ready ") and line.endswith("\n")), "")

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Send SIGTERM to the supervisor, wait for it and return its exit code."""
        self._note_segment()
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for the supervisor to end and return its exit code."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not end within {timeout_s} s\n{self.log()}") from None
        self._process = None
        return code

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor alone."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill_all(self) -> None:
        """SIGKILL to the whole process group at once."""
        assert self._process is not None
        self._note_segment()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._was_killed = True
        self.wait()
        self.wait_until(lambda: not self.group_members(), STOP_TIMEOUT_S, "killed processes are gone")

    def kill_supervisor(self) -> None:
        """SIGKILL to the supervisor alone; its children notice by themselves."""
        self._note_segment()
        self._was_killed = True
        self.signal(signal.SIGKILL)
        self.wait()

    # ---- looking at it

    def run_json(self) -> dict[str, Any]:
        """Return the content of run.json; it is replaced atomically, so it is whole at any moment."""
        value: dict[str, Any] = json.loads((self.data_dir / "run.json").read_text())
        return value

    @property
    def pids(self) -> dict[str, int]:
        value: dict[str, int] = self.run_json()["pids"]
        return value

    def log(self) -> str:
        """Return the end of what the server wrote to stderr and stdout."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        output = self.output_path.read_text(errors="replace") if self.output_path.exists() else ""
        return f"--- log of the server ---\n{text[-LOG_CHARACTERS_SHOWN:]}--- stdout ---\n{output}"

    def wait_until(self, condition: Callable[[], T], timeout_s: float, message: str) -> T:
        return wait_until(condition, timeout_s, message, self.log)

    def group_members(self) -> list[int]:
        """Return the processes (zombies aside) of every process group this object started."""
        members = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _parent, group = stat.read_text().rpartition(") ")[2].split()[:3]
                if int(group) in self._groups and state not in "ZX":
                    members.append(int(stat.parent.name))
        return members

    # ---- clients

    def client(self) -> Client:
        return Client(self.port)

    def admin(self) -> Client:
        return Client(self.admin_port)

    def raw(self) -> RawClient:
        return RawClient(self.port)

    def request(
        self, method: str, path: str, body: bytes | str | dict[str, Any] | None = None, **fields: str
    ) -> Answer:
        """One request over a connection of its own."""
        with self.client() as client:
            return client.request(method, path, body, **fields)

    def flush(self) -> None:
        """Return when everything acknowledged so far is in SQLite."""
        with self.admin() as admin:
            answer = admin.post("/flush?wait=1", b"")
        assert answer.status == 200, f"{answer}\n{self.log()}"

    def rows(self, name: str) -> list[tuple[Any, ...]]:
        """Return the rows of `users`, `products` or `orders` in order of their id, as any SQLite tool sees them."""
        return database_rows(self.data_dir, name)

    # ---- leaving

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.check_left_clean()
            else:
                print(self.log(), file=sys.stderr)
        finally:
            self.clean_up()

    def check_left_clean(self) -> None:
        """Stop the server if it runs (exit code 0) and assert that no child, segment or open port is left."""
        if self._process is not None:
            code = self.stop()
            assert code == 0, f"exit code {code}\n{self.log()}"
        self.wait_until(lambda: not self.group_members(), CHILDREN_GONE_S, f"no child left: {self.group_members()}")
        if not self._was_killed:
            left = [name for name in self._segments if Path("/dev/shm", name).exists()]
            assert not left, f"segments left: {left}\n{self.log()}"
        still_open = [port for port in self._ports if is_open(port)]
        assert not still_open, f"ports still open: {still_open}"

    def clean_up(self) -> None:
        """Kill what is left and remove its segments, whatever happened."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            self._note_segment()
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None
        for name in self._segments:
            Path("/dev/shm", name).unlink(missing_ok=True)

    def _note_segment(self) -> None:
        if (self.data_dir / "run.json").exists():
            self._segments.add(self.run_json()["segment"])


def is_open(port: int) -> bool:
    """Return whether somebody accepts connections on a port."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def database_rows(data_dir: Path, name: str) -> list[tuple[Any, ...]]:
    """Return all rows of one database, ordered by id, through a read-only connection."""
    with contextlib.closing(sqlite3.connect(f"file:{data_dir / name}.db?mode=ro", uri=True)) as database:
        return database.execute(f"SELECT * FROM {name} ORDER BY id").fetchall()


def running_server(data_dir: Path, *arguments: str, workers: int = 2) -> Iterator[ServerProcess]:
    """The body of a fixture: a server for as long as its tests run."""
    with ServerProcess(data_dir, *arguments, workers=workers) as server:
        yield server
