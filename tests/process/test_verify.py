"""`python -m tools verify` on real servers: nothing to say when all is well, by name when it is not."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT, ServerProcess
from tools import load

NEVER_MS = "600000"


@pytest.fixture(params=["default", "classic"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", *(["--classic"] if request.param == "classic" else [])) as server:
        fill(server, "--passwords" if request.param == "classic" else "--seed=1")
        yield server


def fill(server: ServerProcess, *more: str, orders: int = 200) -> None:
    sizes = ["--users", "50", "--products", "40", "--orders", str(orders), "--threads", "4"]
    assert load.main(["--url", f"http://127.0.0.1:{server.port}", *sizes, *more]) == 0, server.log()


def verify(data_dir: Path) -> tuple[int, list[str], str]:
    """Return exit code, lines of stdout, and stderr."""
    command = [sys.executable, "-m", "tools", "verify", "--data-dir", str(data_dir)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return result.returncode, result.stdout.splitlines(), result.stderr


def change_by_hand(data_dir: Path, name: str, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(data_dir / f"{name}.db")) as database, database:
        assert database.execute(statement).rowcount == 1


def test_nothing_differs_in_a_running_server_nor_in_the_stopped_one(server: ServerProcess) -> None:
    before = server.run_json()
    code, lines, errors = verify(server.data_dir)
    assert (code, errors) == (0, "")
    assert lines[-1].startswith("running server: ") and lines[-1].endswith(" 0 differences")
    assert server.run_json() == before
    assert Path("/dev/shm", before["segment"]).exists()
    assert server.request("GET", "/user/1").status == 200
    assert server.stop() == 0
    code, lines, errors = verify(server.data_dir)
    assert (code, errors) == (0, "")
    assert lines[-1].startswith("stopped server: ") and lines[-1].endswith(" 0 differences")


def test_every_difference_made_by_hand_is_named(server: ServerProcess) -> None:
    server.flush()
    change_by_hand(server.data_dir, "users", "UPDATE users SET email = 'other@x' WHERE id = 3")
    change_by_hand(server.data_dir, "users", "DELETE FROM users WHERE id = 4")
    change_by_hand(server.data_dir, "products", "UPDATE products SET quantity = quantity + 1 WHERE id = 7")
    change_by_hand(server.data_dir, "orders", "UPDATE orders SET quantity = quantity + 1 WHERE id = 9")
    change_by_hand(server.data_dir, "orders", "INSERT INTO orders VALUES (5000, 1, 1, 1, 'Success')")
    user = server.request("GET", "/order/9").json["user_id"]
    code, lines, _ = verify(server.data_dir)
    assert code == 1
    heads = {line.partition(":")[0] for line in lines[:-1]}
    assert {"user 3", "user 4", "product 7", "order 9", "order 5000", "purchase 1", f"purchase {user}"} <= heads
    assert heads <= {"user 3", "user 4", "product 7", "order 9", "order 5000", "purchase 1", f"purchase {user}",
                     "purchase 4"}  # fmt: skip
    [email] = [line for line in lines if line.startswith("user 3:")]
    assert email == 'user 3: memory {"email": "user-3@example.com"} database {"email": "other@x"}'
    [missing] = [line for line in lines if line.startswith("user 4:")]
    assert missing.endswith("database has none")
    # what was changed by hand is written again, or forgotten, so that the stop finds everything as it was
    assert server.stop() == 0


def test_writes_going_on_make_no_false_difference(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--persist-period-ms", "50") as server:
        fill(server, orders=0)
        stop = threading.Event()
        orders = threading.Thread(target=order_until, args=(server, stop))
        orders.start()
        try:
            results = [verify(server.data_dir) for _ in range(3)]
        finally:
            stop.set()
            orders.join()
        assert [code for code, _, _ in results] == [0, 0, 0], results
        assert verify(server.data_dir)[0] == 0
        assert server.request("GET", "/order/10").status == 200  # writes did go on


def order_until(server: ServerProcess, stop: threading.Event) -> None:
    """Change users, stocks and orders as fast as one client can."""
    with server.client() as client:
        number = 0
        while not stop.is_set():
            number += 1
            id = number % 40 + 1
            client.post("/product", {"command": "update", "id": id, "quantity": 1000})
            client.post("/order", {"command": "place order", "product_id": id, "user_id": id, "quantity": 1})
            client.post("/user", {"command": "update", "id": id, "email": f"mail-{number}"})
            user = {"id": 1000, "username": "u", "email": "e"}
            client.post("/user", {"command": "create"} | user)
            client.post("/user", {"command": "delete"} | user)


def test_rows_that_only_the_journal_holds_are_named_after_a_kill(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--persist-period-ms", NEVER_MS) as server:
        fill(server)
        server.flush()
        with server.client() as client:
            client.post("/product", {"command": "update", "id": 7, "price": 0.25})
            client.post("/user", {"command": "create", "id": 900, "username": "ann", "email": "e"})
            client.post("/user", {"command": "delete", "id": 5, "username": "user-5", "email": "user-5@example.com"})
        server.kill_all()
        code, lines, _ = verify(server.data_dir)
        assert code == 1
        heads = {line.partition(":")[0] for line in lines[:-1]} - {"purchase 5"}
        assert heads == {"product 7", "user 900", "user 5"}
        assert lines[-1].startswith("stopped server: ")
        server.start()
        assert server.request("GET", "/user/900").status == 200
        assert verify(server.data_dir)[0] == 0


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_data_directory_exits_2(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    code, lines, errors = verify(tmp_path / name)
    assert (code, lines) == (2, [])
    assert str(tmp_path / name) in errors
    assert not list((tmp_path / "empty").iterdir())


def test_command_line() -> None:
    def tools(*arguments: str) -> tuple[int, str]:
        result = subprocess.run([sys.executable, "-m", "tools", *arguments], cwd=ROOT, capture_output=True, text=True)
        return result.returncode, result.stdout + result.stderr

    code, text = tools("--help")
    assert code == 0 and "load" in text and "verify" in text
    assert tools()[0] == 2
    code, text = tools("lode")
    assert code == 2 and "lode" in text
    assert tools("verify", "--what")[0] == 2
    assert tools("load", "--help")[0] == 0
