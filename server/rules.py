"""The rules of the shop: pure functions from what is stored and what is asked to what is stored then.

No input or output, no state: the manager calls them with the records as they are after the command before. Each
returns the new record, or the `Outcome` that refuses the command; a refused command changes nothing.
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

from msgspec.structs import replace

from server.commands import (
    CreateProduct,
    CreateUser,
    DeleteProduct,
    DeleteUser,
    Order,
    Outcome,
    PlaceOrder,
    Product,
    UpdateProduct,
    UpdateUser,
    User,
)


class StoredUser(NamedTuple):
    """A user with the secret that is in no answer of the default contract (None: no password)."""

    user: User
    secret: str | None


def create_user(stored: StoredUser | None, command: CreateUser) -> StoredUser | Outcome:
    """Unique id on create."""
    if stored is not None:
        return Outcome.EXISTS
    return StoredUser(User(command.id, command.username, command.email), command.secret)


def update_user(stored: StoredUser | None, command: UpdateUser) -> StoredUser | Outcome:
    """Change the given fields; no field at all is a valid change of nothing."""
    if stored is None:
        return Outcome.MISSING
    user = stored.user
    return StoredUser(
        User(
            user.id,
            user.username if command.username is None else command.username,
            user.email if command.email is None else command.email,
        ),
        stored.secret if command.secret is None else command.secret,
    )


def delete_user(stored: StoredUser | None, command: DeleteUser) -> Outcome | None:
    """Delete only when all given fields match, the password too if the user has one. None: delete."""
    if stored is None:
        return Outcome.MISSING
    user, secret = stored
    is_secret_equal = secret is None or hmac.compare_digest(secret.encode(), (command.secret or "").encode())
    is_match = is_secret_equal and user.username == command.username and user.email == command.email
    return None if is_match else Outcome.MISMATCH


def create_product(stored: Product | None, command: CreateProduct) -> Product | Outcome:
    """Unique id on create."""
    if stored is not None:
        return Outcome.EXISTS
    return Product(command.id, command.name, command.description, command.price, command.quantity)


def update_product(stored: Product | None, command: UpdateProduct) -> Product | Outcome:
    """Change the given fields; no field at all is a valid change of nothing."""
    if stored is None:
        return Outcome.MISSING
    given = {name: getattr(command, name) for name in ("name", "description", "price", "quantity")}
    return replace(stored, **{name: value for name, value in given.items() if value is not None})


def delete_product(stored: Product | None, command: DeleteProduct) -> Outcome | None:
    """Delete only when name, price and quantity match. None: delete."""
    if stored is None:
        return Outcome.MISSING
    is_match = (stored.name, stored.price, stored.quantity) == (command.name, command.price, command.quantity)
    return None if is_match else Outcome.MISMATCH


def place_order(has_user: bool, stock: int | None, command: PlaceOrder, id: int) -> Order | Outcome:
    """Record the order; the caller takes its quantity from the stock (None: no such product) in the same step.

    Exactly the remaining stock is fine.
    """
    if not has_user or stock is None:
        return Outcome.MISSING
    if command.quantity > stock:
        return Outcome.OUT_OF_STOCK
    return Order(id, command.product_id, command.user_id, command.quantity)
