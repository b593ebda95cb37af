"""A segment of the journal is given up only when all three databases have what is in it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ServerProcess, running_server

SEGMENT_BYTES = 1 << 20
PRODUCTS = 600  # of 8 KB each: five segments


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    yield from running_server(tmp_path / "data", "--persist-period-ms", "50", "--journal-segment", str(SEGMENT_BYTES))


def test_changes_of_a_database_that_lags_outlive_many_segments(server: ServerProcess, tmp_path: Path) -> None:
    outside = sqlite3.connect(tmp_path / "data" / "users.db", isolation_level=None)
    try:
        outside.execute("BEGIN IMMEDIATE")  # the users can not be stored
        with server.client() as client:
            assert client.post("/user", {"command": "create", "id": 1, "username": "u", "email": "e"}).status == 200
            for id in range(PRODUCTS):
                text = {"name": "n" * 4000, "description": "d" * 4000}
                product = {"command": "create", "id": id, "price": 1, "quantity": 1} | text
                answer = client.post("/product", product)
                assert answer.status == 200
        seq = int(answer.fields["write-seq"])
        server.wait_until(lambda: products_checkpoint(server) >= seq, 15, "the products are stored")
        server.kill_all()
    finally:
        outside.close()
    server.start()
    with server.client() as client:
        assert client.get("/user/1").status == 200
        assert client.get(f"/product/{PRODUCTS - 1}").status == 200


def products_checkpoint(server: ServerProcess) -> int:
    with server.admin() as admin:
        return int(admin.get("/stats").json["checkpoints"]["products"])
