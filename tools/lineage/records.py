"""The records of the shop and its rules, over any mapping: a dict is a cache, a table in SQLite is a service's store.

All shapes share the rules of the server (`server/rules.py`) and its checks of bodies, in the classic contract; what
differs between the shapes is only where the mappings are and who waits for whom.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET
from msgspec.structs import asdict, astuple

from server import rules
from server.commands import (
    ClassicUser,
    Command,
    CreateProduct,
    CreateUser,
    DeleteProduct,
    DeleteUser,
    Kind,
    Order,
    Outcome,
    PlaceOrder,
    Product,
    UpdateProduct,
    UpdateUser,
    User,
    encode_json,
)
from server.http.bodies import decode_order, decode_product, decode_user
from server.http.passwords import classic_secret
from server.rules import StoredUser

Users = MutableMapping[int, StoredUser]
Products = MutableMapping[int, Product]
Record = StoredUser | Product | Order
Columns = tuple[Any, ...]
RecordMaker = Callable[[Columns], Any]

EMPTY_BODY = b"{}"
PATHS = {Kind.USER: "/user", Kind.PRODUCT: "/product", Kind.ORDER: "/order"}

_COMMAND_NAMES: dict[type, str] = {
    CreateProduct: "create", UpdateProduct: "update", DeleteProduct: "delete", PlaceOrder: "place order",
}  # fmt: skip

# a row of the database of a kind to the record (server/commands.py has its fields in the order of the columns)
FROM_COLUMNS: dict[Kind, RecordMaker] = {
    Kind.USER: lambda row: StoredUser(User(*row[:3]), row[3]),
    Kind.PRODUCT: lambda row: Product(*row),
    Kind.ORDER: lambda row: Order(*row),
}


class Checked(NamedTuple):
    """A checked body: the command in it, and its known fields, from which an equal body can be made again."""

    command: Command
    fields: dict[str, Any]


def check(kind: Kind, body: bytes) -> Checked:
    """Check the body of a POST completely. Raises `BodyInvalid`."""
    if kind is Kind.USER:
        user = decode_user(body, is_classic=True)
        secret = None if user.password is UNSET else classic_secret(user.password)
        return Checked(user.command(secret), msgspec.to_builtins(user))
    command = decode_product(body) if kind is Kind.PRODUCT else decode_order(body)
    given = {name: value for name, value in asdict(command).items() if value is not None}
    return Checked(command, {"command": _COMMAND_NAMES[type(command)]} | given)


def write_user(users: Users, command: Command) -> bytes | Outcome:
    """Apply a command to the users; return the body that answers it, or why it is refused."""
    match command:
        case CreateUser():
            ruled = rules.create_user(users.get(command.id), command)
        case UpdateUser():
            ruled = rules.update_user(users.get(command.id), command)
        case DeleteUser():
            refusal = rules.delete_user(users.get(command.id), command)
            return _delete(users, command.id) if refusal is None else refusal
        case _:
            raise TypeError(f"not a command for users: {command}")
    return ruled if isinstance(ruled, Outcome) else _put(users, command.id, ruled)


def write_product(products: Products, command: Command) -> bytes | Outcome:
    """Apply a command to the products; return the body that answers it, or why it is refused."""
    match command:
        case CreateProduct():
            ruled = rules.create_product(products.get(command.id), command)
        case UpdateProduct():
            ruled = rules.update_product(products.get(command.id), command)
        case DeleteProduct():
            refusal = rules.delete_product(products.get(command.id), command)
            return _delete(products, command.id) if refusal is None else refusal
        case _:
            raise TypeError(f"not a command for products: {command}")
    return ruled if isinstance(ruled, Outcome) else _put(products, command.id, ruled)


def _put(records: MutableMapping[int, Any], id: int, record: Record) -> bytes:
    records[id] = record
    return body_of(record)


def _delete(records: MutableMapping[int, Any], id: int) -> bytes:
    del records[id]
    return EMPTY_BODY


def body_of(record: Record) -> bytes:
    """Return the JSON that shows a record."""
    if isinstance(record, StoredUser):
        user = record.user
        return encode_json(ClassicUser(user.id, user.username, user.email, record.secret or ""))
    return encode_json(record)


def columns_of(record: Record) -> Columns:
    """Return the row of a record, in the order of its columns in the database."""
    if isinstance(record, StoredUser):
        return (*astuple(record.user), record.secret)
    return astuple(record)
