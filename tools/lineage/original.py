"""The original: the order service takes every request, and every request goes through SQLite.

                        ┌───────────────┐  HTTP   ┌─────────────────┐
                   ┌───>│               │────────>│  user service   │──> users.db     a commit per write
    client ────────┘    │ order service │         └─────────────────┘
      every request     │               │  HTTP   ┌─────────────────┐
                        │               │────────>│ product service │──> products.db  a commit per write
                        └───────┬───────┘         └─────────────────┘
                                └──────────────────────────────────────> orders.db    a commit per write

A request for a user or a product is forwarded as it is, and the answer is passed on. An order asks the user service
whether the user is there and the product service for the stock, writes the reduced stock back to the product service,
and then records itself: three requests between services and two commits, while the orders of other clients wait for the
same disks. Orders of the same product follow each other, so that no unit is sold twice.

What it leaves out, as it always did: there is no transaction over the databases. A crash between the two commits of
an order takes stock for an order that was never recorded (nor acknowledged), and a client that changes a product
while an order is under way may see its change of the stock undone.
"""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

import msgspec

from server import rules
from server.commands import Kind, Order, Outcome, PlaceOrder, Product, encode_json
from server.http.replies import JSON
from tools.lineage.http_client import UpstreamLost
from tools.lineage.records import PATHS, body_of, check
from tools.lineage.roles import Role
from tools.lineage.routes import Context, Service, Work
from tools.lineage.store import Store
from tools.lineage.table_service import RowService, product_service, user_service

_decode_product = msgspec.json.Decoder(Product).decode


class OrderService(RowService):
    """Forwards users and products, and places the orders."""

    store: Store[Order]

    def __init__(self, context: Context) -> None:
        super().__init__(context, Kind.ORDER)
        self._upstreams = {Kind.USER: context.upstream("user"), Kind.PRODUCT: context.upstream("product")}
        self._next_id = self.store.last_id() + 1
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()  # by product, while one is held

    def read(self, kind: Kind, id: int) -> Work:
        if kind is not Kind.ORDER:
            return self._forward(kind, "GET", f"{PATHS[kind]}/{id}")
        order = self.store.get(id)
        return self.missing(kind) if order is None else self.replies.ok(body_of(order))

    def write(self, kind: Kind, body: bytes) -> Work:
        if kind is not Kind.ORDER:
            return self._forward(kind, "POST", PATHS[kind], body)
        command = check(kind, body).command
        return self._place(command) if isinstance(command, PlaceOrder) else self.nothing()

    async def purchases(self, user_id: int) -> bytes:
        if not await self._has_user(user_id):
            return self.missing(Kind.USER)
        return self.replies.ok(encode_json(self.store.bought_by(user_id)))

    async def _forward(self, kind: Kind, method: str, path: str, body: bytes = b"") -> bytes:
        answer = await self._upstreams[kind].exchange(method, path, body)
        return self.replies.answer(answer.status, JSON, answer.body)

    async def _has_user(self, id: int) -> bool:
        return (await self._upstreams[Kind.USER].exchange("GET", f"/user/{id}")).status == 200

    async def _place(self, command: PlaceOrder) -> bytes:
        lock = self._locks.setdefault(command.product_id, asyncio.Lock())
        async with lock:
            return self.outcome(Kind.ORDER, await self._place_alone(command))

    async def _place_alone(self, command: PlaceOrder) -> bytes | Outcome:
        """Place an order while no other order of the product is under way."""
        products = self._upstreams[Kind.PRODUCT]
        has_user = await self._has_user(command.user_id)
        found = await products.exchange("GET", f"/product/{command.product_id}")
        product = _decode_product(found.body) if found.status == 200 else None
        order = rules.place_order(has_user, None if product is None else product.quantity, command, self._next_id)
        if isinstance(order, Outcome):
            return order
        assert product is not None
        self._next_id += 1
        change = {"command": "update", "id": product.id, "quantity": product.quantity - order.quantity}
        changed = await products.exchange("POST", "/product", encode_json(change))
        if changed.status == 404:  # deleted meanwhile
            return Outcome.MISSING
        if changed.status != 200:
            raise UpstreamLost(f"the product service answered {changed.status}")
        self.store[order.id] = order
        return body_of(order)


def order_service(context: Context) -> Service:
    return OrderService(context)


# from back to front: the last one has the public port
ROLES = (Role("user", user_service), Role("product", product_service), Role("order", order_service))
