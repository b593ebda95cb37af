"""Processes that are stopped, die at their start, or lose their supervisor; and what else is locked from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from pathlib import Path

import psutil
import pytest

from tests.crash.support import (
    PERIOD_MS,
    assert_nothing_lost,
    assert_sqlite_is_as_memory,
    deaths,
    loaded,
    ports_of,
    wait_for_reads,
    wait_for_time,
    wait_for_writes,
)
from tests.support import CHILDREN_GONE_S, RawClient, ServerProcess, is_open, request_bytes
from tools.crash.checker import check
from tools.crash.clients import Load, read_final
from tools.crash.history import Fate

STOPPED_S = 3.0
LOCKED_S = 2.0
WRITE_TIMEOUT_S = 1.0
ANSWERED_S = WRITE_TIMEOUT_S + 2.5  # the ticker of a worker adds a second, a busy machine the rest
BUSY_LOOP_CPU_S = 1.5  # several starts of a process cost some tenths; a loop that spins for three seconds costs three
HEALTHZ = request_bytes("GET", "/healthz")


def longest_write_s(load: Load, since: float) -> float:
    """Return how long the slowest answer took of the writes that began after `since`, those without one left out."""
    times = [write.replied - write.invoked for write in load.history.writes if write.invoked >= since]
    return max((seconds for seconds in times if seconds < float("inf")), default=0.0)


# ---- the manager -----------------------------------------------------------------------------------------------


def test_stopped_manager_reads_go_on_writes_end_in_time_and_nothing_is_applied_twice(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", *PERIOD_MS, "--write-timeout-s", str(WRITE_TIMEOUT_S)) as server:
        with loaded(server) as load, server.client() as client:
            wait_for_writes(server, load, 20)
            manager = server.pids["manager"]
            os.kill(manager, signal.SIGSTOP)
            try:
                begin = time.monotonic()
                update = {"command": "update", "id": 1}
                assert client.post("/user", update).status in (503, 504)
                assert time.monotonic() - begin < ANSWERED_S
                assert [client.get("/user/1").status for _ in range(100)] == [200] * 100
                wait_for_time(server, STOPPED_S)
            finally:
                os.kill(manager, signal.SIGCONT)
            server.wait_until(lambda: client.post("/user", update).status == 200, 5, "writes are taken again")
            wait_for_writes(server, load, 20)
        assert load.history.count(Fate.UNKNOWN) > 0, "the stop hit no write"
        assert deaths(server) == []
        assert_nothing_lost(server, load)


def test_manager_that_dies_at_start_again_and_again(tmp_path: Path) -> None:
    """Reads are served, `/readyz` says why writes are not, nothing spins, and in the end it is there again."""
    plan = "manager.start=die@2-6"
    with ServerProcess(tmp_path / "data", *PERIOD_MS, MILLRACE_FAILPOINTS=plan) as server:
        with loaded(server) as load, server.client() as client, server.admin() as admin:
            wait_for_writes(server, load, 20)
            supervisor = psutil.Process(server.pids["supervisor"])
            cpu_before = sum(supervisor.cpu_times()[:2])
            os.kill(server.pids["manager"], signal.SIGKILL)
            server.wait_until(lambda: admin.get("/readyz").status == 503, 5, "/readyz says it")
            assert "manager" in admin.get("/readyz").json["detail"]
            assert client.get("/user/1").status == 200
            answer = client.post("/user", {"command": "update", "id": 1})
            assert answer.status == 503 and int(answer.fields["retry-after"]) >= 0
            wait_for_reads(server, load, 50)
            server.wait_until(lambda: admin.get("/readyz").status == 200, 20, "ready again")
            assert deaths(server) == ["manager"] * 6
            assert sum(supervisor.cpu_times()[:2]) - cpu_before < BUSY_LOOP_CPU_S
            wait_for_writes(server, load, 20)
        assert_nothing_lost(server, load)


# ---- workers ---------------------------------------------------------------------------------------------------


def test_connections_that_queue_while_the_worker_is_restarted_are_all_answered(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", workers=1) as server, contextlib.ExitStack() as stack:
        for _ in range(3):
            worker = server.pids["worker-0"]
            os.kill(worker, signal.SIGSTOP)  # so that all of them queue before it is dead
            clients = [stack.enter_context(RawClient(server.port)) for _ in range(50)]
            for client in clients:
                client.send(HEALTHZ)
            os.kill(worker, signal.SIGKILL)
            assert [client.receive().status for client in clients] == [200] * 50


def test_death_of_a_worker_breaks_its_own_connections_only(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", workers=2) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.port)) for _ in range(40)]
        assert [client.pipeline([HEALTHZ])[0].status for client in clients] == [200] * 40
        kept = ports_of(server.pids["worker-1"])
        os.kill(server.pids["worker-0"], signal.SIGKILL)
        broken = 0
        for client in clients:
            port = client.socket.getsockname()[1]
            try:
                assert client.pipeline([HEALTHZ])[0].status == 200
            except OSError:
                broken += 1
                assert port not in kept
        assert 0 < broken < len(clients)


# ---- the databases ---------------------------------------------------------------------------------------------


def test_database_locked_from_outside_is_not_noticed_by_clients(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", *PERIOD_MS) as server:
        with loaded(server) as load:
            wait_for_writes(server, load, 20)
            begin = time.monotonic()
            with contextlib.closing(sqlite3.connect(tmp_path / "data" / "users.db", isolation_level=None)) as lock:
                lock.execute("BEGIN IMMEDIATE")
                wait_for_time(server, LOCKED_S)
                lock.execute("ROLLBACK")
            assert longest_write_s(load, begin) < LOCKED_S / 2
            wait_for_writes(server, load, 20)
        refused = [write for write in load.history.writes if write.fate is not Fate.APPLIED and write.value is not None]
        assert refused == []
        assert deaths(server) == []
        assert_nothing_lost(server, load)


# ---- the supervisor and everybody ------------------------------------------------------------------------------


def test_children_of_a_supervisor_killed_under_load_leave_and_the_next_start_has_everything(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", *PERIOD_MS) as server:
        with loaded(server) as load:
            wait_for_writes(server, load, 100)
            server.kill_supervisor()
            load.pause()
            server.wait_until(lambda: not server.group_members(), CHILDREN_GONE_S, "the children have left")
            assert not is_open(server.port) and not is_open(server.admin_port)
            server.start()
            load.resume()
            wait_for_writes(server, load, 20)
        assert_nothing_lost(server, load)


@pytest.mark.parametrize("period_ms", [50, 600_000], ids=["while rows go to SQLite", "before any row went to SQLite"])
def test_sigterm_under_full_load_ends_with_every_acknowledged_write_in_sqlite(tmp_path: Path, period_ms: int) -> None:
    with ServerProcess(tmp_path / "data", "--persist-period-ms", str(period_ms)) as server:
        with loaded(server, ("journal", "memory")) as load:
            wait_for_writes(server, load, 200)
            code = server.stop()
            load.pause()
            assert code == 0
            assert_sqlite_is_as_memory(server)
            server.start()
        final = read_final(load)
        assert check(load.history, final) == []
        assert {row[0] for row in server.rows("orders")} == set(final.orders)
