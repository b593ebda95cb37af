"""The rules of the shop as tables: what is stored and asked, what comes of it."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from server import rules
from server.commands import (
    INT_MAX,
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
from server.rules import StoredUser

ANN = StoredUser(User(1, "ann", "a@x"), "secret")
BOB = StoredUser(User(2, "bob", "b@x"), None)
LAMP = Product(7, "lamp", "a lamp", 162.58, 90)
SEED = 20260101


@pytest.mark.parametrize("secret", ["hash", None])
def test_create_user_keeps_what_was_given(secret: str | None) -> None:
    stored = rules.create_user(None, CreateUser(1, "ann", "a@x", secret))
    assert stored == StoredUser(User(1, "ann", "a@x"), secret)


def test_create_of_an_id_that_is_there_is_refused_even_with_equal_fields() -> None:
    assert rules.create_user(ANN, CreateUser(1, "ann", "a@x", "secret")) is Outcome.EXISTS
    assert rules.create_product(LAMP, CreateProduct(7, "lamp", "a lamp", 162.58, 90)) is Outcome.EXISTS


@pytest.mark.parametrize(
    ("username", "email", "secret", "expected"),
    [
        (None, None, None, ANN),
        ("eve", None, None, StoredUser(User(1, "eve", "a@x"), "secret")),
        (None, "e@x", None, StoredUser(User(1, "ann", "e@x"), "secret")),
        (None, None, "new", StoredUser(User(1, "ann", "a@x"), "new")),
        ("eve", "e@x", "new", StoredUser(User(1, "eve", "e@x"), "new")),
    ],
)
def test_update_user_changes_the_given_fields_only(
    username: str | None, email: str | None, secret: str | None, expected: StoredUser
) -> None:
    assert rules.update_user(ANN, UpdateUser(1, username, email, secret)) == expected


@pytest.mark.parametrize(
    ("stored", "username", "email", "secret", "expected"),
    [
        (ANN, "ann", "a@x", "secret", None),
        (ANN, "ann", "a@x", "other", Outcome.MISMATCH),
        (ANN, "ann", "a@x", "", Outcome.MISMATCH),
        (ANN, "ann", "a@x", None, Outcome.MISMATCH),
        (ANN, "Ann", "a@x", "secret", Outcome.MISMATCH),
        (ANN, "ann", "b@x", "secret", Outcome.MISMATCH),
        (BOB, "bob", "b@x", None, None),
        (BOB, "bob", "a@x", None, Outcome.MISMATCH),
        (None, "ann", "a@x", "secret", Outcome.MISSING),
        (StoredUser(User(3, "\u00e9", "x"), "s\u00e9"), "\u00e9", "x", "s\u00e9", None),
    ],
)
def test_delete_user_needs_every_field_and_the_secret_if_there_is_one(
    stored: StoredUser | None, username: str, email: str, secret: str | None, expected: Outcome | None
) -> None:
    assert rules.delete_user(stored, DeleteUser(1, username, email, secret)) is expected


@pytest.mark.parametrize("command", [UpdateUser(1, "x", None, None), UpdateUser(1, None, None, None)])
def test_update_of_a_missing_user_is_refused(command: UpdateUser) -> None:
    assert rules.update_user(None, command) is Outcome.MISSING


@pytest.mark.parametrize(
    ("name", "description", "price", "quantity", "expected"),
    [
        (None, None, None, None, LAMP),
        ("torch", None, None, None, Product(7, "torch", "a lamp", 162.58, 90)),
        (None, "bright", None, None, Product(7, "lamp", "bright", 162.58, 90)),
        (None, None, 0, None, Product(7, "lamp", "a lamp", 0, 90)),
        (None, None, None, 0, Product(7, "lamp", "a lamp", 162.58, 0)),
        ("torch", "bright", 1.5, 3, Product(7, "torch", "bright", 1.5, 3)),
    ],
)
def test_update_product_changes_the_given_fields_only_and_zero_is_given(
    name: str | None, description: str | None, price: float | None, quantity: int | None, expected: Product
) -> None:
    assert rules.update_product(LAMP, UpdateProduct(7, name, description, price, quantity)) == expected


def test_update_of_a_missing_product_is_refused() -> None:
    assert rules.update_product(None, UpdateProduct(7, "x", None, None, None)) is Outcome.MISSING


@pytest.mark.parametrize(
    ("stored", "name", "price", "quantity", "expected"),
    [
        (LAMP, "lamp", 162.58, 90, None),
        (LAMP, "lamps", 162.58, 90, Outcome.MISMATCH),
        (LAMP, "lamp", 162.57, 90, Outcome.MISMATCH),
        (LAMP, "lamp", 162.58, 89, Outcome.MISMATCH),
        (Product(7, "lamp", "", 4, 0), "lamp", 4.0, 0, None),
        (None, "lamp", 162.58, 90, Outcome.MISSING),
    ],
)
def test_delete_product_needs_name_price_and_quantity(
    stored: Product | None, name: str, price: float, quantity: int, expected: Outcome | None
) -> None:
    assert rules.delete_product(stored, DeleteProduct(7, name, price, quantity)) is expected


@pytest.mark.parametrize(
    ("has_user", "product", "quantity", "expected"),
    [
        (True, LAMP, 1, 89),
        (True, LAMP, 90, 0),
        (True, LAMP, 91, Outcome.OUT_OF_STOCK),
        (True, LAMP, INT_MAX, Outcome.OUT_OF_STOCK),
        (True, Product(7, "lamp", "", 1, 0), 1, Outcome.OUT_OF_STOCK),
        (True, Product(7, "lamp", "", 1, INT_MAX), INT_MAX, 0),
        (False, LAMP, 1, Outcome.MISSING),
        (False, LAMP, 91, Outcome.MISSING),
        (True, None, 1, Outcome.MISSING),
        (False, None, 1, Outcome.MISSING),
    ],
)
def test_an_order_takes_at_most_the_stock_or_is_refused(
    has_user: bool, product: Product | None, quantity: int, expected: int | Outcome
) -> None:
    ruled = rules.place_order(has_user, product and product.quantity, PlaceOrder(7, 1, quantity), 55)
    if isinstance(expected, Outcome):
        assert ruled is expected
    else:
        assert product is not None and expected == product.quantity - quantity
        assert ruled == Order(55, 7, 1, quantity, "Success")


def test_stock_never_goes_below_zero_under_random_orders_and_updates() -> None:
    chance = random.Random(SEED)
    product, taken, given = LAMP, 0, LAMP.quantity
    for _ in range(2000):
        if chance.random() < 0.1:
            quantity = chance.randrange(100)
            given += quantity - product.quantity
            updated = rules.update_product(product, UpdateProduct(7, None, None, None, quantity))
            assert isinstance(updated, Product)
            product = updated
        else:
            quantity = chance.randrange(1, 40)
            ruled = rules.place_order(True, product.quantity, PlaceOrder(7, 1, quantity), 1)
            assert (ruled is Outcome.OUT_OF_STOCK) == (quantity > product.quantity), f"seed {SEED}"
            if isinstance(ruled, Order):
                product = replace(product, quantity=product.quantity - quantity)
                taken += quantity
        assert product.quantity == given - taken >= 0, f"seed {SEED}"


def test_rules_leave_their_arguments_as_they_were() -> None:
    stored, product = StoredUser(User(1, "ann", "a@x"), "s"), Product(7, "lamp", "d", 1, 5)
    rules.update_user(stored, UpdateUser(1, "x", "y", "z"))
    rules.update_product(product, UpdateProduct(7, "x", "y", 2, 3))
    rules.place_order(True, product.quantity, PlaceOrder(7, 1, 2), 1)
    assert stored == StoredUser(User(1, "ann", "a@x"), "s")
    assert product == Product(7, "lamp", "d", 1, 5)
