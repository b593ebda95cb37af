"""What the shop stores (records) and what a worker asks the manager to do (commands).

The command queue carries these as MessagePack arrays (msgspec, `array_like`): field order is the wire format
between processes of one run, never stored. A worker builds a command only from a fully checked request body
(`server/http/bodies.py`), so neither the manager nor SQLite ever meets a bad value.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

import msgspec
from msgspec import Struct

INT_MAX = 2**63 - 1  # SQLite's INTEGER


class Kind(IntEnum):
    """The kinds of record. The number is stored in slots and in journal records: never renumber."""

    USER = 0
    PRODUCT = 1
    ORDER = 2
    PURCHASE = 3  # units that one user bought of one product; derived from the orders, never journaled or persisted
    KEY = 4  # an Idempotency-Key and the answer it stands for; stored in the database of the orders


PERSISTED_KINDS = (Kind.USER, Kind.PRODUCT, Kind.ORDER)  # those with a database of their own
# For hot paths: on CPython 3.11 `Kind.ORDER` costs 0.12 us and a name 0.02 us.
USER, PRODUCT, ORDER, PURCHASE, KEY = Kind
DATABASE_NAMES = {Kind.USER: "users", Kind.PRODUCT: "products", Kind.ORDER: "orders"}


# ---- records: the canonical JSON of one of these is the response body; field order is the answer's --------------


class User(Struct, frozen=True):
    """The public part of a user. The stored password is the record's private part, never in this body."""

    id: int
    username: str
    email: str


class ClassicUser(Struct, frozen=True):
    """A user in the contract of the original services, where the hashed password is part of every answer."""

    id: int
    username: str
    email: str
    password: str


class Product(Struct, frozen=True):
    id: int
    name: str
    description: str
    price: int | float
    quantity: int


def split_stock(product: bytes) -> tuple[bytes, int]:
    """Part the canonical JSON of a product into what stands before its stock and the stock; see `join_stock`.

    An order changes nothing else, so its batch need not decode the product: `quantity` is the last field.
    """
    head, colon, tail = product.rpartition(b":")
    return head + colon, int(tail[:-1])


def join_stock(head: bytes, stock: int) -> bytes:
    """Return the canonical JSON of a product that `split_stock` has parted, with this stock."""
    return b"%b%d}" % (head, stock)


class Order(Struct, frozen=True):
    id: int
    product_id: int
    user_id: int
    quantity: int
    status: Literal["Success"] = "Success"


class KeyEntry(Struct, frozen=True, array_like=True):
    """What an Idempotency-Key stands for; MessagePack, because no client ever sees it."""

    key: bytes  # 16-byte hash of the key; the id of the record is a part of it
    digest: bytes  # 16-byte hash of path and body
    seq: int
    body: bytes
    at_s: int  # unix time


# ---- commands: None means "not given"; `secret` is a stored password, already hashed by the worker --------------


class CreateUser(Struct, frozen=True, array_like=True, tag=1):
    id: int
    username: str
    email: str
    secret: str | None


class UpdateUser(Struct, frozen=True, array_like=True, tag=2):
    id: int
    username: str | None
    email: str | None
    secret: str | None


class DeleteUser(Struct, frozen=True, array_like=True, tag=3):
    id: int
    username: str
    email: str
    secret: str | None


class CreateProduct(Struct, frozen=True, array_like=True, tag=4):
    id: int
    name: str
    description: str
    price: int | float
    quantity: int


class UpdateProduct(Struct, frozen=True, array_like=True, tag=5):
    id: int
    name: str | None
    description: str | None
    price: int | float | None
    quantity: int | None


class DeleteProduct(Struct, frozen=True, array_like=True, tag=6):
    id: int
    name: str
    price: int | float
    quantity: int


class PlaceOrder(Struct, frozen=True, array_like=True, tag=7):
    product_id: int
    user_id: int
    quantity: int


class Flush(Struct, frozen=True, array_like=True, tag=8):
    """Answered when all that was acknowledged before it is committed in the three databases."""


class ReplayDeadLetter(Struct, frozen=True, array_like=True, tag=9):
    """Write a record once more, as it is, under a new seq: so its database, which refused it, is sent it again."""

    kind: Kind
    id: int


Command = (
    CreateUser
    | UpdateUser
    | DeleteUser
    | CreateProduct
    | UpdateProduct
    | DeleteProduct
    | PlaceOrder
    | Flush
    | ReplayDeadLetter
)


class Token(Struct, frozen=True, array_like=True):
    """The Idempotency-Key of a command, hashed by the worker."""

    key: bytes
    digest: bytes

    @property
    def id(self) -> int:
        """The id of the key's record."""
        return int.from_bytes(self.key[:8], "little") & INT_MAX


class Outcome(IntEnum):
    """What the manager says of one command. Everything but DONE means: not applied."""

    DONE = 0
    EXISTS = 1  # create of an id that is there
    MISSING = 2  # no record of that id
    MISMATCH = 3  # delete whose fields do not match what is stored
    OUT_OF_STOCK = 4  # order for more than the stock
    MEMORY_FULL = 5  # no shared memory for the new record
    JOURNAL_FULL = 6  # no space for the journal, or its limit is reached
    JOURNAL_FAILED = 7  # the journal could not be written or synced
    KEY_REUSED = 8  # the Idempotency-Key was used for another request


DONE = Outcome.DONE  # as the names of the kinds


class Reply(Struct, frozen=True, array_like=True):
    """The manager's answer to the command of this number; `body` is the JSON to send when DONE."""

    number: int
    outcome: Outcome
    seq: int = 0
    body: bytes = b""


def canonical_price(price: int | float) -> int | float:
    """Return the one spelling of a price that memory, journal and SQLite share.

    A float whose value is an integer below 2^63 becomes that integer, as SQLite's NUMERIC affinity would make it
    (https://sqlite.org/datatype3.html#type_affinity); a larger integer becomes the double that JSON means by it.
    Raises `OverflowError` for an integer beyond the range of a double.
    """
    if isinstance(price, float):
        return int(price) if price <= INT_MAX and price.is_integer() else price
    return price if price <= INT_MAX else float(price)


encode_json = msgspec.json.Encoder().encode
