"""Load, stop, start: everything is there. Load, kill everything, start: everything acknowledged is there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import RawClient, ServerProcess, request_bytes
from tools import load

USERS, PRODUCTS, ORDERS = 200, 150, 1500
THREADS = 10
PIPELINE = 100


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data") as server:
        yield server


def run_load(server: ServerProcess, report: Path, *more: str) -> dict[str, object]:
    sizes = ["--users", str(USERS), "--products", str(PRODUCTS), "--orders", str(ORDERS), "--threads", str(THREADS)]
    code = load.main(["--url", f"http://127.0.0.1:{server.port}", *sizes, "--json", str(report), *more])
    assert code == 0, f"{report.read_text()}\n{server.log()}"
    return json.loads(report.read_text())


def all_paths() -> list[str]:
    users = [f"/user/{id}" for id in range(1, USERS + 2)]
    purchases = [f"/user/purchased/{id}" for id in range(1, USERS + 2)]
    products = [f"/product/{id}" for id in range(1, PRODUCTS + 2)]
    return users + purchases + products + [f"/order/{id}" for id in range(1, ORDERS + 2)]


def read_all(server: ServerProcess) -> dict[str, tuple[int, bytes]]:
    """Return the answer to every GET that the load made possible, and to one more of each kind."""
    answers = {}
    paths = all_paths()
    with RawClient(server.port) as client:
        for start in range(0, len(paths), PIPELINE):
            part = paths[start : start + PIPELINE]
            for path, answer in zip(part, client.pipeline([request_bytes("GET", path) for path in part]), strict=True):
                answers[path] = (answer.status, answer.body)
    return answers


def rows_of(server: ServerProcess) -> dict[str, list[tuple[object, ...]]]:
    return {name: server.rows(name) for name in ("users", "products", "orders")}


def test_after_stop_and_start_every_get_answers_as_before(server: ServerProcess, tmp_path: Path) -> None:
    run_load(server, tmp_path / "report.json")
    before = read_all(server)
    assert sum(status == 200 for status, _ in before.values()) == 2 * USERS + PRODUCTS + ORDERS
    assert server.stop() == 0

    rows = rows_of(server)
    work = load.make_work(USERS, PRODUCTS, ORDERS, seed=1, has_passwords=False)
    sold = load.units_by_product(work.orders)
    assert rows["users"] == [(user["id"], user["username"], user["email"], None) for user in work.users]
    assert rows["products"] == [
        (p["id"], p["name"], p["description"], p["price"], p["quantity"] - sold[p["id"]]) for p in work.products
    ]
    assert sorted(row[1:] for row in rows["orders"]) == sorted(
        (order["product_id"], order["user_id"], order["quantity"], "Success") for order in work.orders
    )
    assert [row[0] for row in rows["orders"]] == list(range(1, ORDERS + 1))

    server.start()
    assert read_all(server) == before


def test_second_stop_and_start_without_writes_changes_nothing(server: ServerProcess, tmp_path: Path) -> None:
    run_load(server, tmp_path / "report.json")
    before = read_all(server)
    assert server.stop() == 0
    rows = rows_of(server)
    for _ in range(2):
        server.start()
        assert read_all(server) == before
        assert server.stop() == 0
        assert rows_of(server) == rows


def test_order_ids_go_on_after_a_restart(server: ServerProcess) -> None:
    def place() -> int:
        with server.client() as client:
            answer = client.post("/order", {"command": "place order", "product_id": 1, "user_id": 1, "quantity": 1})
            assert answer.status == 200, answer
            return int(answer.json["id"])

    with server.client() as client:
        client.post("/user", {"command": "create", "id": 1, "username": "u", "email": "e"})
        client.post("/product", {"command": "create", "id": 1, "name": "n", "description": "d", "price": 1,
                                 "quantity": 100})  # fmt: skip
    ids = [place(), place()]
    assert server.stop() == 0
    server.start()
    ids += [place(), place()]
    server.kill_all()
    server.start()
    ids += [place(), place()]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("period_ms", [50, 600_000], ids=["while rows go to SQLite", "before any row went to SQLite"])
def test_kill_of_everything_in_the_middle_of_the_load_loses_nothing_acknowledged(
    tmp_path: Path, period_ms: int
) -> None:
    work = load.make_work(USERS, PRODUCTS, ORDERS, seed=period_ms, has_passwords=False)
    with ServerProcess(tmp_path / "data", "--persist-period-ms", str(period_ms)) as server:
        client = load.Client(f"http://127.0.0.1:{server.port}", THREADS)
        users = send(client, "/user", "create", work.users)
        assert send(client, "/product", "create", work.products).is_all_200 and users.is_all_200
        orders = kill_in_the_middle(server, client, work)
        client.close()
        placed = load.placed_orders(work, orders.answers)
        assert ORDERS // 10 < len(placed) < ORDERS, f"the kill was not in the middle: {len(placed)} orders"

        server.start()
        check_nothing_lost(server, work, placed)
        assert server.stop() == 0
        stored = server.rows("orders")
        assert {tuple(order.values()) for order in placed} <= set(stored)
        check_consistent(server, work)


def kill_in_the_middle(server: ServerProcess, client: load.Client, work: load.Work) -> load.Phase:
    """Send all orders; kill the whole process group when a third of them is answered."""
    phases: list[load.Phase] = []
    sender = threading.Thread(target=lambda: phases.append(send(client, "/order", "place order", work.orders)))
    with server.client() as observer:
        sender.start()
        server.wait_until(lambda: observer.get(f"/order/{ORDERS // 3}").status == 200, 30, "a third of the orders")
        server.kill_all()
    sender.join()
    return phases[0]


def send(client: load.Client, path: str, command: str, records: list[load.JsonObject]) -> load.Phase:
    bodies = [json.dumps({"command": command} | record).encode() for record in records]
    return client.send(path, [load.post(client.host, path, body) for body in bodies])


def check_nothing_lost(server: ServerProcess, work: load.Work, placed: list[load.JsonObject]) -> None:
    answers = read_all(server)
    for user in work.users:
        assert json.loads(answers[f"/user/{user['id']}"][1]) == user
    for order in placed:
        assert answers[f"/order/{order['id']}"][0] == 200
        assert json.loads(answers[f"/order/{order['id']}"][1]) == order


def check_consistent(server: ServerProcess, work: load.Work) -> None:
    """Every order in SQLite took its stock, answered or not; at most one per client was never answered."""
    stored = [{"product_id": row[1], "quantity": row[3]} for row in server.rows("orders")]
    sold = load.units_by_product(stored)
    quantities = {row[0]: row[4] for row in server.rows("products")}
    assert quantities == {product["id"]: product["quantity"] - sold[product["id"]] for product in work.products}
