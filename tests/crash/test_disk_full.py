"""No space: refused writes never appear, reads go on, and writes come back by themselves when space does.

The long one, 20 times: python -m pytest tests/crash/test_disk_full.py -m slow      (some 2 minutes; needs root)
"""

from __future__ import annotations

import resource
import sqlite3
import time
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import pytest

from tests.crash.mounts import fill, server_on, tmpfs
from tests.crash.support import PERIOD_MS, assert_nothing_lost, deaths, loaded, wait_for_reads, wait_for_writes
from tests.support import ServerProcess
from tools.crash.clients import Load
from tools.crash.history import Fate

TIMES = 20
JOURNAL = ("--journal-segment", "1MiB", "--journal-max", "8MiB")
DISK_BYTES = 32 << 20
BACK_S = 1.0  # after space is back
MARGIN_S = 1.5  # for a machine that does other things as well
OUTAGE_S = 20.0
FULL = (503, 507)
PRODUCTS = 1000
PRODUCT = {"name": "lamp", "description": "x", "price": 1, "quantity": 1}
NEVER_TAKEN = 999_999_999  # id of a user whose creation is refused each time


def fill_and_free(server: ServerProcess, load: Load, directory: Path) -> None:
    """Let the disk be full until writes are refused, then make room and see them come back."""
    wait_for_writes(server, load, 30)
    filler = fill(directory)
    try:
        with server.client() as client:
            no_change = {"command": "update", "id": 1}
            server.wait_until(lambda: client.post("/user", no_change).status in FULL, OUTAGE_S, "writes are refused")
            wait_for_reads(server, load, 50)
            answer = client.post("/user", {"command": "create", "id": NEVER_TAKEN, "username": "u", "email": "e"})
            assert answer.status in FULL, answer
            assert client.get("/user/1").status == 200
    finally:
        filler.unlink()
    begin = time.monotonic()
    wait_for_writes(server, load, 1)
    assert time.monotonic() - begin < BACK_S + MARGIN_S


def run_full_disk(tmp_path: Path, times: int) -> None:
    with tmpfs(tmp_path / "disk", DISK_BYTES) as disk, server_on(disk, *PERIOD_MS, *JOURNAL) as server:
        with loaded(server) as load:
            for _ in range(times):
                fill_and_free(server, load, disk)
            wait_for_writes(server, load, 30)
        assert deaths(server) == []
        assert_nothing_lost(server, load)
        assert server.request("GET", f"/user/{NEVER_TAKEN}").status == 404


def test_full_disk_refuses_truthfully_and_writes_come_back(tmp_path: Path) -> None:
    run_full_disk(tmp_path, 1)


@pytest.mark.slow
def test_full_disk_twenty_times(tmp_path: Path) -> None:
    run_full_disk(tmp_path, TIMES)


def test_journal_alone_does_not_fill_the_disk(tmp_path: Path) -> None:
    """While the databases are locked the journal takes what it may; then all goes on without help."""
    no_limit = ("--journal-segment", "1MiB")
    with tmpfs(tmp_path / "disk", DISK_BYTES) as disk, server_on(disk, *PERIOD_MS, *no_limit) as server:
        with ExitStack() as locks, server.client() as client:
            for id in range(PRODUCTS):
                assert client.post("/product", PRODUCT | {"command": "create", "id": id}).status == 200
            server.flush()
            for name in ("users", "products", "orders"):
                path = disk / "data" / f"{name}.db"
                connection = locks.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
                connection.execute("BEGIN EXCLUSIVE")
            written = 0
            larger = {"command": "update", "description": "x" * 4000}  # files of SQLite that have to grow
            while client.post("/product", larger | {"id": written % PRODUCTS}).status == 200:
                written += 1
            assert written > PRODUCTS and client.get("/product/1").status == 200
            locks.close()
            server.wait_until(lambda: client.post("/user", {"command": "update", "id": 1}).status != 503, OUTAGE_S,
                              "writes are taken again")  # fmt: skip
            server.flush()
        assert deaths(server) == []


def test_one_database_without_space_holds_up_only_itself(tmp_path: Path) -> None:
    """The limit on the size of its files hits one writer; its rows wait in the journal, the other two go on."""
    with ServerProcess(tmp_path / "data", *PERIOD_MS) as server:
        with loaded(server) as load:
            wait_for_writes(server, load, 50)
            writer = server.pids["writer-orders"]
            psutil.Process(writer).rlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
            with server.admin() as admin:
                stuck = admin.get("/stats").json["seq"]["published"]
                wait_for_writes(server, load, 100)

                def checkpoints() -> dict[str, int]:
                    values: dict[str, int] = admin.get("/stats").json["checkpoints"]
                    return values

                server.wait_until(lambda: checkpoints()["users"] > stuck < checkpoints()["products"], OUTAGE_S,
                                  "users and products go on")  # fmt: skip
                assert checkpoints()["orders"] <= stuck + 50
                assert admin.get("/stats").json["processes"]["writer-orders"]["outages"] > 0
            psutil.Process(writer).rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            wait_for_writes(server, load, 20)
        assert {write.fate for write in load.history.writes if write.value is not None} == {Fate.APPLIED}
        assert deaths(server) == []
        assert_nothing_lost(server, load)
