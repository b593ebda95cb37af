"""Dead letters: a row that SQLite refuses is shown, kept, and tried again by `POST /dead-letters/replay`."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.http.dead_letters import REPLAY_MAX
from tests.support import Answer, ServerProcess, request_bytes

PERIOD = ("--persist-period-ms", "50")
GOOD_USERS = 50

POISON = {
    "users": "CREATE TRIGGER poison BEFORE INSERT ON users WHEN NEW.username LIKE 'poison%' BEGIN"
    " SELECT RAISE(ABORT, 'poisoned'); END",
    "orders": "CREATE TRIGGER poison BEFORE INSERT ON orders BEGIN SELECT RAISE(ABORT, 'poisoned'); END",
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", *PERIOD) as server:
        yield server


def execute_while_stopped(server: ServerProcess, name: str, statement: str) -> None:
    """Stop the server, do what an operator would do to a database, and start it again."""
    assert server.stop() == 0
    with contextlib.closing(sqlite3.connect(server.data_dir / f"{name}.db")) as database, database:
        database.execute(statement)
    server.start()


def create_user(server: ServerProcess, id: int, username: str) -> Answer:
    body = {"command": "create", "id": id, "username": username, "email": "e"}
    with server.client() as client:
        return client.post("/user", body)


def replay(server: ServerProcess) -> dict[str, int]:
    with server.admin() as admin:
        answer = admin.post("/dead-letters/replay", b"")
    assert answer.status == 200, f"{answer}\n{server.log()}"
    counts: dict[str, int] = answer.json
    return counts


def stats(server: ServerProcess) -> dict[str, Any]:
    with server.admin() as admin:
        figures: dict[str, Any] = admin.get("/stats").json
    return figures


def ids(server: ServerProcess, name: str) -> list[int]:
    return [row[0] for row in server.rows(name)]


def dead_ids(server: ServerProcess, name: str) -> list[int]:
    with contextlib.closing(sqlite3.connect(f"file:{server.data_dir / name}.db?mode=ro", uri=True)) as database:
        return [row[0] for row in database.execute("SELECT id FROM dead_letters ORDER BY id")]


def test_poison_row_is_shown_stays_readable_and_is_stored_by_a_replay(server: ServerProcess) -> None:
    execute_while_stopped(server, "users", POISON["users"])
    for id in range(1, GOOD_USERS + 1):
        assert create_user(server, id, f"user{id}").status == 200
    assert create_user(server, 1000, "poison").status == 200
    server.flush()
    assert ids(server, "users") == list(range(1, GOOD_USERS + 1)) and dead_ids(server, "users") == [1000]
    figures = stats(server)
    assert figures["alarm"] == "dead letters: users 1"
    assert figures["dead_letters"] == {"users": 1, "products": 0, "orders": 0}

    assert replay(server) == {"replayed": 0, "still_dead": 1}  # the reason is still there
    assert dead_ids(server, "users") == [1000]

    execute_while_stopped(server, "users", "DROP TRIGGER poison")
    assert stats(server)["alarm"] == "dead letters: users 1"
    before = server.request("GET", "/user/1000").json
    assert before["username"] == "poison"
    assert replay(server) == {"replayed": 1, "still_dead": 0}
    assert ids(server, "users") == [*range(1, GOOD_USERS + 1), 1000] and dead_ids(server, "users") == []
    assert stats(server)["alarm"] == "" and server.request("GET", "/user/1000").json == before
    assert replay(server) == {"replayed": 0, "still_dead": 0}


def test_replay_over_the_death_of_the_manager_counts_no_order_twice(tmp_path: Path) -> None:
    # the two writes below and the replay: the third group is journaled, half published, and its manager dies
    points = "manager.in_publish=die@3"
    with ServerProcess(tmp_path / "data", *PERIOD) as server:
        create_user(server, 1, "u")
        product = {"command": "create", "id": 1, "name": "n", "description": "d", "price": 1, "quantity": 10}
        assert server.request("POST", "/product", product).status == 200
        execute_while_stopped(server, "orders", POISON["orders"])
        order = {"command": "place order", "product_id": 1, "user_id": 1, "quantity": 3}
        assert server.request("POST", "/order", order).status == 200
        server.flush()
        assert dead_ids(server, "orders") == [1] and ids(server, "orders") == []
        execute_while_stopped(server, "orders", "DROP TRIGGER poison")
        assert server.stop() == 0
    with ServerProcess(tmp_path / "data", *PERIOD, MILLRACE_FAILPOINTS=points) as server:
        create_user(server, 2, "v")
        create_user(server, 3, "w")
        manager = server.pids["manager"]
        assert replay(server) == {"replayed": 1, "still_dead": 0}
        assert server.pids["manager"] != manager
        assert ids(server, "orders") == [1] and dead_ids(server, "orders") == []
        assert server.request("GET", "/user/purchased/1").json == {"1": 3}
        assert server.request("GET", "/product/1").json["quantity"] == 7


def test_letters_that_fail_again_do_not_stand_before_the_others(server: ServerProcess) -> None:
    """More letters than one request tries: the ones that can be stored are, though the first never can."""
    execute_while_stopped(server, "users", POISON["users"])
    count = REPLAY_MAX + 10
    with server.raw() as client:
        for first in range(1, count + 1, 10):
            names = {id: "poison" if id <= REPLAY_MAX else "poison b" for id in range(first, first + 10)}
            answers = client.pipeline([create_request(id, name) for id, name in names.items()])
            assert {answer.status for answer in answers} == {200}
    server.flush()
    assert len(dead_ids(server, "users")) == count
    execute_while_stopped(server, "users", "DROP TRIGGER poison")
    execute_while_stopped(server, "users", POISON["users"].replace("LIKE 'poison%'", "= 'poison'"))
    replayed = [replay(server)["replayed"] for _ in range(2)]
    assert sum(replayed) == 10
    assert ids(server, "users") == list(range(REPLAY_MAX + 1, count + 1))


def create_request(id: int, username: str) -> bytes:
    body = {"command": "create", "id": id, "username": username, "email": "e"}
    return request_bytes("POST", "/user", body)


def test_get_of_the_replay_is_405(server: ServerProcess) -> None:
    with server.admin() as admin:
        assert admin.get("/dead-letters/replay").status == 405
