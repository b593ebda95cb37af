"""Version 3: the cache distributes what changed to three push services, which take it in batches.

             ┌───────┐   each period: only the records that   ┌──────────────────────┐
             │ cache │───── changed, as rows, many in one ───>│  user push service   │──> users.db
    client ─>│ hash  │      request, one commit per request   ├──────────────────────┤
      all    │  map  │───────────────────────────────────────>│ product push service │──> products.db
             │       │                                        ├──────────────────────┤
             └───────┘───────────────────────────────────────>│  order push service  │──> orders.db
                                                              └──────────────────────┘

The cache checks, applies and distributes; behind it nothing is checked or asked any more. A record that changed many
times in a period is one row, and some hundred rows share a commit: the databases keep up. What is left: it is one
process, and a write is acknowledged before it is anywhere else than in the memory of that process. All that was not
pushed yet is lost in a crash, and as the three push services do not know of each other, the stock of a product may be
there without the order that took it, or the other way round.
"""

from __future__ import annotations

import asyncio

import msgspec

from server.commands import PERSISTED_KINDS, Kind, Order
from tools.lineage.batches import batches
from tools.lineage.cache import Cache
from tools.lineage.http_client import UpstreamLost
from tools.lineage.records import Checked
from tools.lineage.roles import Role
from tools.lineage.routes import Context, Service
from tools.lineage.table_service import order_push_service, product_push_service, user_push_service

SOURCES = {Kind.USER: "user push", Kind.PRODUCT: "product push", Kind.ORDER: "order push"}

_decode_order = msgspec.json.Decoder(Order).decode


class DistributingCache(Cache):
    """The cache that knows which records changed."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, SOURCES)
        self._changed: dict[Kind, set[int]] = {kind: set() for kind in PERSISTED_KINDS}
        self._push_services = {kind: context.upstream(name) for kind, name in SOURCES.items()}

    def note(self, kind: Kind, checked: Checked, body: bytes) -> None:
        if kind is Kind.ORDER:
            order = _decode_order(body)
            self._changed[Kind.ORDER].add(order.id)
            self._changed[Kind.PRODUCT].add(order.product_id)
        else:
            self._changed[kind].add(checked.fields["id"])

    async def flush(self) -> None:
        pushed = await asyncio.gather(*(self._push(kind) for kind in PERSISTED_KINDS), return_exceptions=True)
        for problem in pushed:
            if problem is not None:
                raise problem

    async def _push(self, kind: Kind) -> None:
        ids, self._changed[kind] = list(self._changed[kind]), set()
        sent = 0
        try:
            for batch in batches([self.shop.columns(kind, id) for id in ids]):
                answer = await self._push_services[kind].exchange("POST", "/push", batch.body)
                if answer.status != 200:
                    raise UpstreamLost(f"the push service answered {answer.status}")
                sent += batch.entries
        finally:
            self._changed[kind].update(ids[sent:])

    @property
    def is_flushed(self) -> bool:
        return not any(self._changed.values())


def cache(context: Context) -> Service:
    return DistributingCache(context)


ROLES = (
    Role("user push", user_push_service),
    Role("product push", product_push_service),
    Role("order push", order_push_service),
    Role("cache", cache),
)
