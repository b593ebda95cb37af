"""Request bodies: what becomes a command, and what is refused with the field named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import UNSET

from server.commands import (
    INT_MAX,
    Command,
    CreateProduct,
    CreateUser,
    DeleteProduct,
    DeleteUser,
    PlaceOrder,
    UpdateProduct,
    UpdateUser,
)
from server.http.bodies import TEXT_BYTES_MAX, BodyInvalid, decode_order, decode_product, decode_user

USER: dict[str, Any] = {"command": "create", "id": 1, "username": "ann", "email": "a@b"}
PRODUCT: dict[str, Any] = {
    "command": "create",
    "id": 1,
    "name": "lamp",
    "description": "a lamp",
    "price": 162.58,
    "quantity": 90,
}
ORDER: dict[str, Any] = {"command": "place order", "product_id": 2, "user_id": 1, "quantity": 20}


def user(raw: bytes) -> Command:
    return decode_user(raw, is_classic=False).command("secret")


DECODERS = {"user": (user, USER), "product": (decode_product, PRODUCT), "order": (decode_order, ORDER)}
FIELDS = [
    *(("user", name) for name in ("id", "username", "email", "password")),
    *(("product", name) for name in ("id", "name", "description", "price", "quantity")),
    *(("order", name) for name in ("product_id", "user_id", "quantity")),
]
INTEGERS = {"id", "quantity", "product_id", "user_id"}


def without(body: dict[str, Any], *names: str, **more: Any) -> bytes:
    return json.dumps({name: value for name, value in body.items() if name not in names} | more).encode()


def detail_of(kind: str, raw: bytes) -> str:
    with pytest.raises(BodyInvalid) as caught:
        DECODERS[kind][0](raw)
    return caught.value.detail


# ---- what becomes a command -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "body", "command"),
    [
        ("user", USER, CreateUser(1, "ann", "a@b", "secret")),
        ("user", {"command": "update", "id": 1}, UpdateUser(1, None, None, "secret")),
        ("user", {"command": "update", "id": 1, "email": "c"}, UpdateUser(1, None, "c", "secret")),
        ("user", USER | {"command": "delete"}, DeleteUser(1, "ann", "a@b", "secret")),
        ("product", PRODUCT, CreateProduct(1, "lamp", "a lamp", 162.58, 90)),
        ("product", {"command": "update", "id": 1}, UpdateProduct(1, None, None, None, None)),
        ("product", {"command": "update", "id": 1, "quantity": 0}, UpdateProduct(1, None, None, None, 0)),
        ("product", {"command": "update", "id": 1, "price": 0}, UpdateProduct(1, None, None, 0, None)),
        ("product", PRODUCT | {"command": "delete"}, DeleteProduct(1, "lamp", 162.58, 90)),
        ("order", ORDER, PlaceOrder(2, 1, 20)),
    ],
)
def test_body_becomes_its_command(kind: str, body: dict[str, Any], command: Command) -> None:
    assert DECODERS[kind][0](json.dumps(body).encode()) == command


def test_field_order_and_unknown_fields_do_not_matter() -> None:
    raw = b'{"x":{"y":[1,null]},"quantity":20,"user_id":1,"product_id":2,"command":"place order"}'
    assert decode_order(raw) == PlaceOrder(2, 1, 20)


def test_last_of_duplicate_fields_counts() -> None:
    raw = b'{"command":"place order","user_id":9,"product_id":2,"quantity":20,"user_id":1}'
    assert decode_order(raw) == PlaceOrder(2, 1, 20)


@pytest.mark.parametrize(
    ("price", "canonical"),
    [
        ("0", 0),
        ("162.58", 162.58),
        ("5.0", 5),
        ("-0.0", 0),
        ("1e2", 100),
        (str(INT_MAX), INT_MAX),
        (str(INT_MAX + 1), float(2**63)),
        ("1e308", 1e308),
        ("5e-324", 5e-324),
    ],
)
@pytest.mark.parametrize("command", ["create", "update", "delete"])
def test_price_gets_its_canonical_spelling(price: str, canonical: float, command: str) -> None:
    raw = without(PRODUCT, "price", command=command)[:-1] + b', "price": ' + price.encode() + b"}"
    found = decode_product(raw).price  # type: ignore[union-attr]
    assert found == canonical and type(found) is type(canonical)


@pytest.mark.parametrize("name", sorted(INTEGERS))
def test_integers_reach_from_zero_to_the_largest_of_sqlite(name: str) -> None:
    decode, body = DECODERS["order" if name in ORDER else "user"]
    lowest = 1 if name == "quantity" else 0
    for value in (lowest, INT_MAX):
        decode(without(body, **{name: value}))
    for value in (lowest - 1, INT_MAX + 1, -INT_MAX, 10**30):
        with pytest.raises(BodyInvalid, match=name):
            decode(without(body, **{name: value}))


@pytest.mark.parametrize("text", ["x", "x" * TEXT_BYTES_MAX, "é" * (TEXT_BYTES_MAX // 2), "\0", "😀", " ", "null"])
def test_texts_up_to_their_bytes_are_taken(text: str) -> None:
    assert user(without(USER, username=text)) == CreateUser(1, text, "a@b", "secret")


# ---- what is refused, with the field named ----------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_wrong_type_names_its_field(kind: str, name: str) -> None:
    body = DECODERS[kind][1]
    wrong = ["4", 4.0, True, None, [], {}, "", -1] if name in INTEGERS else [4, True, None, [], {}, "", "x" * 5000]
    if name == "price":
        wrong = ["4", True, None, [], {}, "", -1, -0.5]
    for value in wrong:
        assert f"$.{name}" in detail_of(kind, without(body, **{name: value})), value


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name in FIELDS if name != "password"])
@pytest.mark.parametrize("command", ["create", "delete"])
def test_missing_field_is_named(kind: str, name: str, command: str) -> None:
    if kind == "order":
        command = "place order"
    if (name, command) == ("description", "delete"):
        decode_product(without(PRODUCT, "description", command="delete"))
        return
    assert f"`{name}`" in detail_of(kind, without(DECODERS[kind][1], name, command=command))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name in FIELDS if kind != "order" and name != "id"])
def test_null_in_an_update_is_an_error(kind: str, name: str) -> None:
    assert f"$.{name}" in detail_of(kind, json.dumps({"command": "update", "id": 1, name: None}).encode())


@pytest.mark.parametrize("name", ["username", "email", "password"])
@pytest.mark.parametrize("command", ["create", "update", "delete"])
def test_texts_are_bounded_in_bytes_not_characters(name: str, command: str) -> None:
    text = "é" * (TEXT_BYTES_MAX // 2) + "x"
    assert f"$.{name}" in detail_of("user", without(USER, command=command, **{name: text}))


@pytest.mark.parametrize("name", ["name", "description"])
def test_texts_of_a_product_are_bounded_in_bytes(name: str) -> None:
    for command in ("create", "update"):
        assert f"$.{name}" in detail_of("product", without(PRODUCT, command=command, **{name: "é" * 2049}))


@pytest.mark.parametrize("command", ["Create", "create ", "", "drop", 1, None, True, ["create"], {}])
@pytest.mark.parametrize("kind", list(DECODERS))
def test_other_command_is_refused(kind: str, command: object) -> None:
    assert "command" in detail_of(kind, without(DECODERS[kind][1], command=command))


def test_missing_command_is_refused() -> None:
    for kind, (_, body) in DECODERS.items():
        assert "command" in detail_of(kind, without(body, "command"))


@pytest.mark.parametrize("price", ["1e309", "9" * 400, "9" * 5000, "-1e-320"])
def test_price_beyond_a_double_is_refused(price: str) -> None:
    raw = without(PRODUCT, "price")[:-1] + b', "price": ' + price.encode() + b"}"
    assert "$.price" in detail_of("product", raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"{}",
        b'{"command":"update","id":1} x',
        b'{"command":"update","id":1,}',
        b"{'command':'update','id':1}",
        b'{"command":"update","id":01}',
        b'{"command":"update","id":1,"x":NaN}',
        b'{"command":"update","id":1,"x":Infinity}',
        b'\xef\xbb\xbf{"command":"update","id":1}',
        b'{"command":"update","id":1,"username":"\xff"}',
        b'{"command":"update","id":1,"username":"\xed\xa0\x80"}',
        b'{"command":"update","id":1,"unknown":"\xff"}',
        b'{"command":"update","id":1,"username":"\\ud800"}',
        b'{"command":"update","id":1,"username":"\\udc00x"}',
        b'{"command":"update","id":1,"username":"\\x"}',
        b'{"command":"update","id":1,"username":"a\nb"}',
        b'{"command":"update","id":1,"unknown":' + b"[" * 60_000,
        b'{"command":"update","id":1,"unknown":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
        '{"command":"update","id":1}'.encode("utf-16"),
    ],
)
@pytest.mark.parametrize("kind", list(DECODERS))
def test_what_is_no_json_object_of_utf_8_is_refused(kind: str, raw: bytes) -> None:
    assert detail_of(kind, raw)


# ---- passwords --------------------------------------------------------------------------------------------------


def test_password_is_optional_and_separate_from_the_command() -> None:
    body = decode_user(json.dumps(USER).encode(), is_classic=False)
    assert body.password is UNSET and body.id == 1
    assert decode_user(without(USER, password="pw"), is_classic=False).password == "pw"


@pytest.mark.parametrize("command", ["create", "delete"])
def test_classic_contract_requires_the_password(command: str) -> None:
    with pytest.raises(BodyInvalid, match="password"):
        decode_user(without(USER, command=command), is_classic=True)
    assert decode_user(without(USER, command=command, password="pw"), is_classic=True).password == "pw"
    assert decode_user(b'{"command":"update","id":1}', is_classic=True).password is UNSET
