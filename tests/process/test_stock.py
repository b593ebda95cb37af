"""Many clients, one product: exactly the stock is sold, whoever asks how fast, and whoever is killed meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import Answer, RawClient, ServerProcess, request_bytes, running_server

STOCK = 1000
STOCK_UNDER_KILLS = 1_000_000  # more than is sold before the last kill
CLIENTS = 64
USERS = 8

Order = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    yield from running_server(tmp_path_factory.mktemp("stock") / "data")


class Market:
    """What the clients did: orders answered 200, and how many have an unknown outcome (504, connection lost)."""

    def __init__(self, server: ServerProcess, product_id: int) -> None:
        self.server = server
        self.product_id = product_id
        self.orders: list[Order] = []
        self.unknown = 0
        self.problems: list[str] = []
        self.is_open = threading.Event()
        self._lock = threading.Lock()

    def stock(self, quantity: int) -> None:
        """Create the product, and the users if this is the first market."""
        product = {"id": self.product_id, "name": "lamp", "description": "a lamp", "price": 9.5, "quantity": quantity}
        with self.server.client() as client:
            assert client.post("/product", {"command": "create"} | product).status == 200
            for id in range(USERS):
                user = {"command": "create", "id": id, "username": f"u{id}", "email": "e"}
                assert client.post("/user", user).status in (200, 409)

    @contextlib.contextmanager
    def clients(self) -> Iterator[None]:
        """Let all clients buy until the product is sold out or the block ends."""
        self.is_open.set()
        threads = [threading.Thread(target=self._buy, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.is_open.clear()
            for thread in threads:
                thread.join()

    def _buy(self, number: int) -> None:
        body = {"command": "place order", "product_id": self.product_id, "user_id": number % USERS}
        quantity = number % 3 + 1
        client: RawClient | None = None
        while quantity and self.is_open.is_set():
            try:
                client = client or RawClient(self.server.port)
                client.send(request_bytes("POST", "/order", body | {"quantity": quantity}))
                quantity -= self._note(client.receive())
            except OSError:
                with self._lock:
                    self.unknown += 1
                if client:
                    client.close()
                client = None
        if client:
            client.close()

    def _note(self, answer: Answer) -> int:
        """Count an answer; return by how much less the client should ask for."""
        with self._lock:
            if answer.status == 200:
                self.orders.append(answer.json)
            elif answer.status == 504:
                self.unknown += 1
            elif answer.status == 400 and answer.json["order_status"] == "Exceeded quantity limit":
                return 1
            elif answer.status != 503:
                self.problems.append(str(answer))
        return 0

    def check(self, quantity: int) -> None:
        """Assert that answers, memory and SQLite tell one story that begins with `quantity` units."""
        assert not self.problems, self.problems[:3]
        assert len({order["id"] for order in self.orders}) == len(self.orders)
        self.server.flush()
        [product] = [row for row in self.server.rows("products") if row[0] == self.product_id]
        stored = {row[0]: row for row in self.server.rows("orders") if row[1] == self.product_id}
        for order in self.orders:
            assert stored[order["id"]] == tuple(order.values())
        assert len(stored) <= len(self.orders) + self.unknown, "an order was applied twice, or one answered 503 was"
        assert product[4] == quantity - sum(row[3] for row in stored.values()) >= 0
        units: Counter[int] = Counter()
        for _id, _product, user, sold, _status in stored.values():
            units[user] += sold
        with self.server.client() as client:
            assert client.get(f"/product/{self.product_id}").json["quantity"] == product[4]
            for user, sold in units.items():
                assert client.get(f"/user/purchased/{user}").json[str(self.product_id)] == sold


def test_64_clients_sell_exactly_the_stock(server: ServerProcess) -> None:
    market = Market(server, 5)
    market.stock(STOCK)
    with market.clients(), server.client() as client:
        server.wait_until(lambda: client.get("/product/5").json["quantity"] == 0, 30, "the product is sold out")
    # a client leaves when one unit is too much for it, so nobody was cut off
    assert (sum(order["quantity"] for order in market.orders), market.unknown) == (STOCK, 0)
    market.check(STOCK)


@pytest.mark.parametrize("role", ["manager", "persister", "writer-products", "worker-1"])
def test_kills_while_64_clients_order_lose_nothing_and_sell_nothing_twice(server: ServerProcess, role: str) -> None:
    market = Market(server, 10 + len(role))
    market.stock(STOCK_UNDER_KILLS)
    with market.clients():
        for _ in range(3):
            sold, dead = len(market.orders), server.pids[role]
            server.wait_until(lambda sold=sold: len(market.orders) > sold + 100, 20, "orders are answered")
            os.kill(dead, signal.SIGKILL)
            server.wait_until(lambda dead=dead: server.pids.get(role, dead) != dead, 20, f"{role} is replaced")
        sold = len(market.orders)
        server.wait_until(lambda: len(market.orders) > sold + 100, 20, "orders are answered after the last kill")
    market.check(STOCK_UNDER_KILLS)
