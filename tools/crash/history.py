"""What happened, as the clients saw it: the input of the checker, and the only thing it knows of a run.

Times are of one monotonic clock, taken outside of the server: `invoked` before the first byte was sent, `replied` when
the answer was there. Every write carries a value that no other write has, so a read says which write it saw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

NEVER = math.inf  # `replied` of what was not answered: it may be applied at any later time

Key = tuple[str, int]  # ("user", 7): kind and id


class Fate(Enum):
    """The three answers, and no other."""

    APPLIED = "applied"  # 2xx
    REFUSED = "refused"  # 4xx, 503, 507: not applied, not later either
    UNKNOWN = "unknown"  # connection lost, 504


class Write(NamedTuple):
    """A record was created, changed or deleted (`value` None)."""

    key: Key
    value: str | None
    fate: Fate
    invoked: float
    replied: float
    seq: int  # Write-Seq; 0 unless applied


class Read(NamedTuple):
    """A record was read; `value` None: it was not there."""

    key: Key
    value: str | None
    invoked: float
    replied: float


class StockRead(NamedTuple):
    """A product was read: its stock."""

    product_id: int
    quantity: int
    invoked: float
    replied: float


class Terms(NamedTuple):
    """What was ordered. No two requests of a history have the same, so an order says which request it came from."""

    product_id: int
    user_id: int
    quantity: int


class OrderRequest(NamedTuple):
    """An order was asked for."""

    terms: Terms
    fate: Fate
    invoked: float
    replied: float
    seq: int  # 0 unless applied
    order_id: int  # 0 unless applied


class OrderRead(NamedTuple):
    """An order was read; `terms` None: it was not there."""

    order_id: int
    terms: Terms | None
    invoked: float
    replied: float


class Failure(NamedTuple):
    """An answer that is none of the three, or to a read neither the record nor 404."""

    request: str
    answer: str


@dataclass
class Final:
    """Everything as it is in the end, read when nothing was under way any more."""

    orders: dict[int, Terms]
    stock: dict[int, int]
    purchases: dict[int, dict[int, int]]  # user id -> product id -> units


@dataclass
class History:
    """All that the clients did. Appending to a list is safe between threads."""

    initial_stock: dict[int, int] = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    stock_reads: list[StockRead] = field(default_factory=list)
    orders: list[OrderRequest] = field(default_factory=list)
    order_reads: list[OrderRead] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def count(self, fate: Fate) -> int:
        """Return how many writes and orders came to this."""
        return sum(write.fate is fate for write in self.writes) + sum(order.fate is fate for order in self.orders)
