"""Many clients, one product: exactly the stock is sold, whoever asks how fast."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support import RawClient, ServerProcess, request_bytes, running_server

STOCK = 1000
CLIENTS = 64
USERS = 8
PRODUCT = {"command": "create", "id": 5, "name": "lamp", "description": "a lamp", "price": 9.5, "quantity": STOCK}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    yield from running_server(tmp_path_factory.mktemp("stock") / "data")


def test_64_clients_sell_exactly_the_stock(server: ServerProcess) -> None:
    with server.client() as client:
        assert client.post("/product", PRODUCT).status == 200
        for id in range(USERS):
            user = {"command": "create", "id": id, "username": f"u{id}", "email": "e"}
            assert client.post("/user", user).status == 200
    orders = order_until_sold_out(server)
    assert sum(order["quantity"] for order in orders) == STOCK
    assert len({order["id"] for order in orders}) == len(orders)
    with server.client() as client:
        assert client.get("/product/5").json["quantity"] == 0
        for order in orders:
            assert client.get(f"/order/{order['id']}").json == order
        for user, units in units_by_user(orders).items():
            assert client.get(f"/user/purchased/{user}").json == {"5": units}
    server.flush()
    assert server.rows("products") == [(5, "lamp", "a lamp", 9.5, 0)]
    assert server.rows("orders") == sorted(tuple(order.values()) for order in orders)


def units_by_user(orders: list[dict[str, int]]) -> Counter[int]:
    units: Counter[int] = Counter()
    for order in orders:
        units[order["user_id"]] += order["quantity"]
    return units


def order_until_sold_out(server: ServerProcess) -> list[dict[str, int]]:
    """Let every client order until one unit is too much; return all orders that were answered 200."""
    orders: list[dict[str, int]] = []
    problems: list[str] = []
    barrier = threading.Barrier(CLIENTS)

    def buy(number: int) -> None:
        quantity = number % 3 + 1
        with RawClient(server.port) as client:
            barrier.wait()
            while quantity:
                body = {"command": "place order", "product_id": 5, "user_id": number % USERS, "quantity": quantity}
                client.send(request_bytes("POST", "/order", body))
                answer = client.receive()
                if answer.status == 200:
                    orders.append(json.loads(answer.body))
                elif answer.json.get("order_status") == "Exceeded quantity limit":
                    quantity -= 1
                else:
                    problems.append(str(answer))
                    return

    threads = [threading.Thread(target=buy, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[:3]
    return orders
