"""The cache server of versions 1 to 3: a hash map of the whole shop, and a period after which something is sent on.

    client ──> cache: check, apply to the hash map, answer ──(each period)──> whoever has the databases

A write is acknowledged when it is in the hash map, so a crash takes what was not sent on. At start the cache asks the
services that have databases for their rows. What is sent on, to whom, and who waits meanwhile is what the versions
differ in: a subclass notes what a write did (`note`) and sends it on (`flush`).
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec.structs import replace

from server import rules
from server.commands import PERSISTED_KINDS, Kind, Outcome, PlaceOrder, encode_json
from server.http.routes import KINDS
from tools.lineage.batches import decode_entries
from tools.lineage.http_client import UpstreamLost
from tools.lineage.records import (
    FROM_COLUMNS,
    Checked,
    Columns,
    body_of,
    check,
    columns_of,
    write_product,
    write_user,
)
from tools.lineage.routes import Context, Service, Work

log = logging.getLogger(__name__)


class Shop:
    """The hash map of records. An answer is encoded when it is asked for, as it was in the original caches."""

    def __init__(self) -> None:
        self.records: dict[Kind, dict[int, Any]] = {kind: {} for kind in PERSISTED_KINDS}
        self.bought: dict[int, Counter[int]] = {}  # by user
        self._next_order_id = 1

    def load(self, kind: Kind, row: Columns) -> None:
        """Take a record from its database."""
        record = FROM_COLUMNS[kind](row)
        self.records[kind][row[0]] = record
        if kind is Kind.ORDER:
            self._count(record.id, record.user_id, record.product_id, record.quantity)

    def execute(self, kind: Kind, checked: Checked) -> bytes | Outcome:
        """Apply a command; return the body that answers it, or why it is refused."""
        command = checked.command
        if isinstance(command, PlaceOrder):
            return self._place(command)
        return (write_user if kind is Kind.USER else write_product)(self.records[kind], command)

    def answer(self, kind: Kind, id: int) -> bytes | None:
        """Return the length and the body of a record, as an answer ends with them, or None when there is none."""
        record = self.records[kind].get(id)
        if record is None:
            return None
        body = body_of(record)
        return b"%d\r\n\r\n%b" % (len(body), body)

    def columns(self, kind: Kind, id: int) -> Columns:
        """Return the row of a record, or only the id of one that is deleted."""
        record = self.records[kind].get(id)
        return (id,) if record is None else columns_of(record)

    def _place(self, command: PlaceOrder) -> bytes | Outcome:
        user_id, product_id = command.user_id, command.product_id
        products = self.records[Kind.PRODUCT]
        has_user = user_id in self.records[Kind.USER]
        product = products.get(product_id)
        stock = None if product is None else product.quantity
        order = rules.place_order(has_user, stock, command, self._next_order_id)
        if isinstance(order, Outcome):
            return order
        assert product is not None
        products[product_id] = replace(product, quantity=product.quantity - order.quantity)
        self.records[Kind.ORDER][order.id] = order
        self._count(order.id, user_id, product_id, order.quantity)
        return body_of(order)

    def _count(self, id: int, user_id: int, product_id: int, quantity: int) -> None:
        self.bought.setdefault(user_id, Counter())[product_id] += quantity
        self._next_order_id = max(self._next_order_id, id + 1)


class Cache(Service):
    """The service in front. `sources` are the services that have the databases, by kind."""

    def __init__(self, context: Context, sources: Mapping[Kind, str]) -> None:
        super().__init__(context)
        self.shop = Shop()
        self._period_s = context.period_s
        self._sources = {kind: context.upstream(name) for kind, name in sources.items()}
        self._is_stopping = asyncio.Event()
        self._periods: asyncio.Task[None] | None = None

    # ---- what the versions differ in

    @abstractmethod
    def note(self, kind: Kind, checked: Checked, body: bytes) -> None:
        """Keep in mind what a write did; `body` is what it was answered."""

    @abstractmethod
    async def flush(self) -> None:
        """Send on what was noted. Raises `UpstreamLost`; what was not sent stays noted."""

    @property
    @abstractmethod
    def is_flushed(self) -> bool:
        """Whether nothing is noted that was not sent on."""

    # ---- requests

    def getters(self) -> Mapping[bytes, Callable[[int], bytes | None]]:
        return {b"GET /%b" % name.encode(): partial(self.shop.answer, kind) for name, kind in KINDS.items()}

    def read(self, kind: Kind, id: int) -> Work:
        answer = self.shop.answer(kind, id)
        return self.missing(kind) if answer is None else self.replies.record(answer)

    def purchases(self, user_id: int) -> Work:
        if user_id not in self.shop.records[Kind.USER]:
            return self.missing(Kind.USER)
        return self.replies.ok(encode_json(self.shop.bought.get(user_id, {})))

    def write(self, kind: Kind, body: bytes) -> Work:
        checked = check(kind, body)
        answer = self.shop.execute(kind, checked)
        if isinstance(answer, bytes):
            self.note(kind, checked, answer)
        return self.outcome(kind, answer)

    # ---- the period

    async def start(self) -> None:
        for kind, source in self._sources.items():
            await self._load(kind, source)
            source.close()
        self._periods = self._loop.create_task(self._run_periods())

    async def stop(self) -> bool:
        self._is_stopping.set()
        if self._periods is not None:
            await self._periods
        return self.is_flushed

    async def _load(self, kind: Kind, source: Any) -> None:
        next_id = 0
        while rows := decode_entries((await source.exchange("GET", f"/rows/{next_id}")).body):
            for row in rows:
                self.shop.load(kind, row)
            next_id = rows[-1][0] + 1

    async def _run_periods(self) -> None:
        """Flush after each period, and once more at the end."""
        while not self._is_stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopping.wait(), self._period_s)
            try:
                await self.flush()
            except UpstreamLost as lost:
                log.warning("the flush was not finished: %s", lost)
