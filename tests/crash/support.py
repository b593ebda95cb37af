"""What the crash tests share: a server under the checked load of `tools.crash`, and the check at the end."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support import ServerProcess, wait_until
from tools import verify
from tools.crash.checker import check
from tools.crash.clients import Load, read_final
from tools.crash.history import Fate

JOURNAL = ("journal",)
CLIENTS = 4
PERIOD_MS = ("--persist-period-ms", "50")  # many periods in a short test
PROGRESS_S = 20.0


@contextmanager
def loaded(server: ServerProcess, levels: tuple[str, ...] = JOURNAL, seed: int = 1) -> Iterator[Load]:
    """Put a running server under load; the load ends with the block."""
    load = Load(server, CLIENTS, seed, levels)
    load.prepare()
    load.start()
    try:
        yield load
    finally:
        load.stop()


def wait_for_writes(server: ServerProcess, load: Load, count: int) -> None:
    """Wait until so many more writes are acknowledged."""
    wanted = load.history.count(Fate.APPLIED) + count
    server.wait_until(lambda: load.history.count(Fate.APPLIED) >= wanted, PROGRESS_S, f"{count} more writes")


def wait_for_reads(server: ServerProcess, load: Load, count: int) -> None:
    """Wait until so many more reads are answered."""
    wanted = len(load.history.reads) + count
    server.wait_until(lambda: len(load.history.reads) >= wanted, PROGRESS_S, f"{count} more reads")


def wait_for_time(server: ServerProcess, seconds: float) -> None:
    """Let a fault last for so long."""
    end = time.monotonic() + seconds
    server.wait_until(lambda: time.monotonic() >= end, 2 * seconds + 1, "time goes on")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let a process stand still; it goes on after the block, if it still lives."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until_stopped(pid)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def wait_until_stopped(pid: int) -> None:
    """Return when a process stands still, by a signal or at a failpoint."""
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, PROGRESS_S, f"{pid} stands still")


def ports_of(pid: int) -> set[int]:
    """Return the clients' ports of the connections that a process has."""
    return {connection.raddr.port for connection in psutil.Process(pid).net_connections() if connection.raddr}


def assert_nothing_lost(server: ServerProcess, load: Load) -> None:
    """Check all that the clients saw and the last state of a running server; memory and SQLite are the same."""
    final = read_final(load)
    violations = check(load.history, final)
    assert not violations, "\n".join([*(f"{v.fault.value}: {v.text}" for v in violations[:20]), server.log()])
    assert_sqlite_is_as_memory(server)


def assert_sqlite_is_as_memory(server: ServerProcess) -> None:
    """Compare memory, or what a start would make of the files, with the databases; they are sound."""
    texts: list[str] = []

    def compare() -> bool:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = verify.main(["--data-dir", str(server.data_dir)])
        texts.append(output.getvalue())
        assert code != verify.EXIT_DIFFERENT, f"{texts[-1]}\n{server.log()}"
        return code == verify.EXIT_SAME  # else the flush for it was what somebody died of: ask again

    server.wait_until(compare, PROGRESS_S, f"memory and SQLite were compared: {texts}")
    for name in ("users", "products", "orders"):
        assert integrity(server.data_dir / f"{name}.db") == "ok"


def integrity(path: Path) -> str:
    """Return what SQLite says of the pages of a database."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


def deaths(server: ServerProcess) -> list[str]:
    """Return the roles of the children that died so far, in order."""
    lines = server.log_path.read_text(errors="replace").splitlines()
    return [line.split("died role=")[1].split()[0] for line in lines if "died role=" in line]
