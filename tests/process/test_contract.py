"""Every row of the HTTP contract, in both contracts, against a real server: one table of requests per resource.

A row is sent to a world of its own: a user and a product with the id `ID` exist, `NEW` does not. Both words are
replaced in the text of a row, so bodies stand here exactly as they travel. Success bodies are compared byte by byte.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import Answer, Client, RawClient, ServerProcess, request_bytes, running_server

INT_MAX = 2**63 - 1
TEXT_MAX = 4096
BODY_MAX = 64 << 10
PASSWORD = "open sesame"
HASH = hashlib.sha256(PASSWORD.encode()).hexdigest().upper()


class World:
    """A server of one contract and a connection to it."""

    def __init__(self, server: ServerProcess, client: Client, is_classic: bool) -> None:
        self.server = server
        self.client = client
        self.is_classic = is_classic
        self._ids = itertools.count(1000, 10)
        self.untouched = self.make()  # for all requests that must change nothing

    def fill(self, text: str, id: int) -> str:
        return text.replace("NEW", str(id + 1)).replace("ID", str(id))

    def make(self) -> int:
        """Create a user and a product of a fresh id (a second product has id + 2) and return it."""
        id = next(self._ids)
        user, product = self.with_password(USER), PRODUCT.replace("ID", str(id + 2))
        for path, text in (("/user", user), ("/product", PRODUCT), ("/product", product)):
            self.expect_200(self.client.post(path, self.fill(text, id), Durability="memory"))
        return id

    def with_password(self, text: str) -> str:
        """Give a user command the password that the classic contract wants."""
        is_bare = self.is_classic and '"password"' not in text and '"update"' not in text
        return text.replace('"email"', f'"password":"{PASSWORD}","email"', 1) if is_bare else text

    @staticmethod
    def expect_200(answer: Answer) -> None:
        assert answer.status == 200, answer


USER = '{"command":"create","id":ID,"username":"ann","email":"ann@example.com"}'
PRODUCT = '{"command":"create","id":ID,"name":"lamp","description":"a lamp","price":162.58,"quantity":90}'


def open_world(tmp_path: Path, *arguments: str) -> Iterator[World]:
    for server in running_server(tmp_path / "data", *arguments):
        with server.client() as client:
            yield World(server, client, "--classic" in arguments)


@pytest.fixture(scope="module", params=["default", "classic"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    path = tmp_path_factory.mktemp(request.param)
    yield from open_world(path, *(["--classic"] if request.param == "classic" else []))


# ---- the tables --------------------------------------------------------------------------------------------------

# values that are no integer of 0 ... 2^63-1, and that are no text of 1 ... 4,096 bytes
NOT_INTEGERS = ["4.0", '"4"', "true", "null", "-1", str(2**63), "1e2", "[4]", "{}", "1" * 400]
NOT_TEXTS = ['""', "7", "null", "true", "[]", f'"{"x" * (TEXT_MAX + 1)}"', f'"{"é" * 2049}"', '"\\ud800"']
NOT_PRICES = ['"1"', "true", "null", "-1", "-0.01", "NaN", "Infinity", "1e999", "[]"]
NOT_COMMANDS = ['"Create"', '"CREATE"', '"create "', '"destroy"', '""', "1", "null", "[]"]
NOT_OBJECTS = ["", " ", "{", "[]", '"create"', "null", "7", '{"command":"create"', "{}{}", "{'a':1}", '{"a":1,}']


class Row(NamedTuple):
    """`body` to send and what must come back: the status and, for a success, the exact body."""

    name: str
    body: str
    status: int
    answer: str | None = None  # None: an error body
    classic_answer: str | None = None  # where it differs


def without(text: str, *fields: str) -> str:
    value = json.loads(text.replace("ID", "-5"))
    for field in fields:
        del value[field]
    return json.dumps(value).replace("-5", "ID")


def with_value(text: str, field: str, value: str) -> str:
    """Replace the JSON of one field (its first occurrence) by `value`."""
    return re.sub(rf'"{field}":("[^"]*"|[^,}}]+)', lambda _: f'"{field}":{value}', text, count=1)


def bad_fields(base: str, fields: dict[str, list[str]]) -> list[Row]:
    return [
        Row(f"{field}={value[:12]}{len(value)}", with_value(base, field, value), 400)
        for field, values in fields.items()
        for value in values
    ]


def missing_fields(base: str, *fields: str) -> list[Row]:
    return [Row(f"without {field}", without(base, field), 400) for field in fields]


USER_BODY = '{"id":ID,"username":"ann","email":"ann@example.com"}'
USER_NEW = USER.replace("ID", "NEW")
USER_NEW_BODY = USER_BODY.replace("ID", "NEW")
USER_TEXTS = {"username": NOT_TEXTS, "email": NOT_TEXTS}
USER_DELETE = '{"command":"delete","id":ID,"username":"ann","email":"ann@example.com"}'


def classic_user(body: str) -> str:
    return body[:-1] + f',"password":"{HASH}"}}'


def user_row(name: str, body: str, answer: str) -> Row:
    return Row(name, body, 200, answer, classic_user(answer))


USER_ROWS = [
    user_row("create", USER_NEW, USER_NEW_BODY),
    user_row("create, unknown field", with_value(USER_NEW, "username", '"ann","shoe":{"size":[41]}'), USER_NEW_BODY),
    user_row("create, spaces", USER_NEW.replace(",", " ,\n\t").replace(":", " : "), USER_NEW_BODY),
    user_row("create, username repeats", USER_NEW, USER_NEW_BODY),
    user_row("create, email needs no format", *[t.replace("ann@example.com", "x") for t in (USER_NEW, USER_NEW_BODY)]),
    user_row("create, text of 4096 bytes", *[t.replace('"ann"', f'"{"é" * 2048}"') for t in (USER_NEW, USER_NEW_BODY)]),
    user_row("create, controls", *[t.replace('"ann"', '"a\\"\\\\\\n\\u0001"') for t in (USER_NEW, USER_NEW_BODY)]),
    user_row("create, escapes", USER_NEW.replace("ann@", "\\u0061n\\u006e@"), USER_NEW_BODY),
    Row("create, id exists", USER, 409),
    Row("create, id exists and email bad: 400 first", with_value(USER, "email", "7"), 400),
    *missing_fields(USER_NEW.replace("NEW", "ID"), "command", "id", "username", "email"),
    *bad_fields(USER_NEW, {"id": NOT_INTEGERS, **USER_TEXTS, "command": NOT_COMMANDS}),
    *bad_fields(USER_NEW[:-1] + ',"password":"x"}', {"password": NOT_TEXTS}),
    user_row("update, id alone", '{"command":"update","id":ID}', USER_BODY),
    user_row("update, username", '{"command":"update","id":ID,"username":"bob"}', USER_BODY.replace('"ann"', '"bob"')),
    user_row("update, email", '{"command":"update","id":ID,"email":"b"}', USER_BODY.replace("ann@example.com", "b")),
    Row("update, password", f'{{"command":"update","id":ID,"password":"{PASSWORD}"}}', 200, USER_BODY,
        classic_user(USER_BODY)),
    user_row("update, both", '{"command":"update","id":ID,"username":"b","email":"c"}',
             '{"id":ID,"username":"b","email":"c"}'),
    Row("update, no such id", '{"command":"update","id":NEW,"username":"bob"}', 404),
    Row("update, no such id and email bad: 400 first", '{"command":"update","id":NEW,"email":7}', 400),
    Row("update, without id", '{"command":"update","username":"bob"}', 400),
    *bad_fields('{"command":"update","id":ID,"username":"bob","email":"c","password":"d"}',
                {"id": NOT_INTEGERS, **USER_TEXTS, "password": NOT_TEXTS}),
    Row("delete", USER_DELETE, 200, "{}", "{}"),
    Row("delete, username differs", with_value(USER_DELETE, "username", '"bob"'), 401),
    Row("delete, email differs", with_value(USER_DELETE, "email", '"bob"'), 401),
    Row("delete, no such id", USER_DELETE.replace("ID", "NEW"), 404),
    Row("delete, no such id and email bad: 400 first", with_value(USER_DELETE.replace("ID", "NEW"), "email", "7"), 400),
    Row("delete, differs and email bad: 400 first", '{"command":"delete","id":ID,"username":"bob","email":7}', 400),
    *missing_fields(USER_DELETE, "id", "username", "email"),
    *bad_fields(USER_DELETE, {"id": NOT_INTEGERS, **USER_TEXTS}),
    *(Row(f"not an object {text!r}", text, 400) for text in NOT_OBJECTS),
]  # fmt: skip

PRODUCT_BODY = '{"id":ID,"name":"lamp","description":"a lamp","price":162.58,"quantity":90}'
PRODUCT_NEW = PRODUCT.replace("ID", "NEW")
PRODUCT_NEW_BODY = PRODUCT_BODY.replace("ID", "NEW")
PRODUCT_DELETE = '{"command":"delete","id":ID,"name":"lamp","price":162.58,"quantity":90}'
PRODUCT_FIELDS = {
    "id": NOT_INTEGERS, "name": NOT_TEXTS, "description": NOT_TEXTS, "price": NOT_PRICES, "quantity": NOT_INTEGERS,
}  # fmt: skip
PRODUCT_UPDATE = PRODUCT.replace("create", "update")


def product_row(name: str, field: str, value: str, answered: str | None = None) -> Row:
    """A product created with another value in one field."""
    answer = with_value(PRODUCT_NEW_BODY, field, answered or value)
    return Row(name, with_value(PRODUCT_NEW, field, value), 200, answer)


def product_update(field: str, value: str) -> Row:
    body = f'{{"command":"update","id":ID,"{field}":{value}}}'
    return Row(f"update, {field}={value}", body, 200, with_value(PRODUCT_BODY, field, value))


PRODUCT_ROWS = [
    Row("create", PRODUCT_NEW, 200, PRODUCT_NEW_BODY),
    product_row("create, price 0", "price", "0"),
    product_row("create, price an integer", "price", "7"),
    product_row("create, price small", "price", "0.1"),
    product_row("create, quantity 0", "quantity", "0"),
    product_row("create, quantity the largest", "quantity", str(INT_MAX)),
    product_row("create, text of 4096 bytes", "description", f'"{"x" * TEXT_MAX}"'),
    product_row("create, four-byte characters", "name", '"🪔 lamp"'),
    Row("create, unknown field", with_value(PRODUCT_NEW, "price", '162.58,"shoe":null'), 200, PRODUCT_NEW_BODY),
    Row("create, id exists", PRODUCT, 409),
    Row("create, id exists and price bad: 400 first", with_value(PRODUCT, "price", "-1"), 400),
    *missing_fields(PRODUCT_NEW.replace("NEW", "ID"), "command", "id", "name", "description", "price", "quantity"),
    *bad_fields(PRODUCT_NEW, PRODUCT_FIELDS | {"command": NOT_COMMANDS}),
    Row("update, id alone", '{"command":"update","id":ID}', 200, PRODUCT_BODY),
    product_update("name", '"chair"'),
    product_update("description", '"a chair"'),
    product_update("price", "1"),
    product_update("price", "0"),
    product_update("price", "2.5"),
    product_update("quantity", "0"),
    product_update("quantity", "91"),
    Row("update, all", '{"command":"update","id":ID,"quantity":1,"price":2,"description":"c","name":"d"}', 200,
        '{"id":ID,"name":"d","description":"c","price":2,"quantity":1}'),
    Row("update, no such id", '{"command":"update","id":NEW,"name":"bob"}', 404),
    Row("update, no such id and price bad: 400 first", '{"command":"update","id":NEW,"price":-1}', 400),
    Row("update, without id", '{"command":"update","name":"bob"}', 400),
    *bad_fields(with_value(with_value(PRODUCT_UPDATE, "name", '"other"'), "quantity", "5"), PRODUCT_FIELDS),
    Row("delete", PRODUCT_DELETE, 200, "{}"),
    Row("delete, the price spelled otherwise", with_value(PRODUCT_DELETE, "price", "1.6258e2"), 200, "{}"),
    Row("delete, description is ignored", with_value(PRODUCT_DELETE, "name", '"lamp","description":"x"'), 200, "{}"),
    Row("delete, name differs", with_value(PRODUCT_DELETE, "name", '"lamb"'), 401),
    Row("delete, price differs", with_value(PRODUCT_DELETE, "price", "162.59"), 401),
    Row("delete, quantity differs", with_value(PRODUCT_DELETE, "quantity", "89"), 401),
    Row("delete, no such id", PRODUCT_DELETE.replace("ID", "NEW"), 404),
    Row("delete, no such id and price bad: 400 first", with_value(PRODUCT_DELETE.replace("ID", "NEW"), "price", "-1"),
        400),
    *missing_fields(PRODUCT_DELETE, "id", "name", "price", "quantity"),
    *bad_fields(PRODUCT_DELETE, {key: value for key, value in PRODUCT_FIELDS.items() if key != "description"}),
    *(Row(f"not an object {text!r}", text, 400) for text in NOT_OBJECTS),
]  # fmt: skip

ORDER = '{"command":"place order","product_id":ID,"user_id":ID,"quantity":20}'
INVALID, EXCEEDED = "Invalid Request", "Exceeded quantity limit"


class OrderRow(NamedTuple):
    name: str
    body: str
    status: int
    text: str = INVALID


NOT_QUANTITIES = [*NOT_INTEGERS, "0"]
ORDER_ROWS = [
    OrderRow("placed", ORDER, 200, "Success"),
    OrderRow("all of the stock", with_value(ORDER, "quantity", "90"), 200, "Success"),
    OrderRow("one more than the stock", with_value(ORDER, "quantity", "91"), 400, EXCEEDED),
    OrderRow("the largest quantity", with_value(ORDER, "quantity", str(INT_MAX)), 400, EXCEEDED),
    OrderRow("no such user", with_value(ORDER, "user_id", "NEW"), 404),
    OrderRow("no such product", with_value(ORDER, "product_id", "NEW"), 404),
    OrderRow("no such product and quantity bad: 400 first", '{"command":"place order","product_id":NEW,"user_id":ID,'
             '"quantity":0}', 400),
    *(OrderRow(*row[:3]) for row in missing_fields(ORDER, "product_id", "user_id", "quantity")),
    OrderRow("without command", ORDER.replace('"command":"place order",', ""), 400),
    *(OrderRow(*row[:3]) for row in bad_fields(
        ORDER, {"product_id": NOT_INTEGERS, "user_id": NOT_INTEGERS, "quantity": NOT_QUANTITIES,
                "command": [*NOT_COMMANDS, '"create"', '"Place order"', '"place  order"']})),
    *(OrderRow(f"not an object {text!r}", text, 400) for text in NOT_OBJECTS),
]  # fmt: skip


def named(rows: list[Any]) -> Any:
    return pytest.mark.parametrize("row", rows, ids=[row.name for row in rows])


# ---- users and products ------------------------------------------------------------------------------------------


def check_error(answer: Answer, is_classic: bool, classic_body: Any) -> None:
    """Assert the error body of the contract."""
    if is_classic:
        assert answer.fields["content-type"].startswith("application/json")
        assert answer.json == classic_body
        return
    problem = answer.json
    assert answer.fields["content-type"].startswith("application/problem+json")
    assert problem["status"] == answer.status
    assert all(isinstance(problem[name], str) and problem[name] for name in ("type", "title", "detail")), problem


def check_record_row(world: World, row: Row, path: str) -> None:
    """Send a row; a success shows in GET, an error has changed nothing."""
    id = world.untouched if row.answer is None else world.make()
    gets = [f"{path}/{id}", f"{path}/{id + 1}"]
    before = [world.client.get(get)[::2] for get in gets]
    text = world.with_password(row.body) if path == "/user" else row.body
    answer = world.client.post(path, world.fill(text, id))
    assert answer.status == row.status, answer
    if row.answer is None:
        check_error(answer, world.is_classic, {})
        assert [world.client.get(get)[::2] for get in gets] == before
        assert "write-seq" not in answer.fields
        return
    expected = world.fill((world.is_classic and row.classic_answer) or row.answer, id).encode()
    assert answer.body == expected
    assert answer.fields["content-type"].startswith("application/json")
    assert answer.fields["content-length"] == str(len(expected))
    assert int(answer.fields["write-seq"]) > 0
    if '"delete"' in row.body:
        assert world.client.get(gets[0]).status == 404
    else:
        get = gets["create" in row.body]
        assert world.client.get(get)[::2] == (200, expected)


@named(USER_ROWS)
def test_user(world: World, row: Row) -> None:
    check_record_row(world, row, "/user")


@named(PRODUCT_ROWS)
def test_product(world: World, row: Row) -> None:
    check_record_row(world, row, "/product")


@pytest.mark.parametrize("price", ["1e3", "4.0", "1E-7", "123456789012345680000", "1.7976931348623157e308", "5e-324"])
def test_price_comes_back_as_the_same_number(world: World, price: str) -> None:
    id = world.make()
    answer = world.client.post("/product", world.fill(with_value(PRODUCT_NEW, "price", price), id))
    assert answer.status == 200
    assert answer.json["price"] == float(price)
    assert world.client.get(f"/product/{id + 1}").body == answer.body


@pytest.mark.parametrize("id", [0, INT_MAX])
def test_ids_at_the_ends_of_the_range(world: World, id: int) -> None:
    user = world.client.post("/user", world.with_password(USER).replace("ID", str(id)))
    product = world.client.post("/product", PRODUCT.replace("ID", str(id)))
    assert (user.status, product.status) == (200, 200)
    assert world.client.get(f"/user/{id}").body == user.body
    assert world.client.get(f"/product/{id}").body == product.body
    assert world.client.get(f"/user/purchased/{id}")[::2] == (200, b"{}")


@pytest.mark.parametrize("path", ["/user", "/product", "/order"])
def test_body_that_is_not_utf_8_is_refused(world: World, path: str) -> None:
    id = world.make()
    body = {"/user": USER_NEW, "/product": PRODUCT_NEW, "/order": ORDER}[path]
    data = world.fill(body, id).encode().replace(b'"ann"', b'"\xff"').replace(b'"lamp"', b'"\xc3"')
    if path == "/order":
        data = data[:-1] + b',"x":"\xff"}'
        assert world.client.post(path, data).status in (200, 400)  # in a field that is ignored it may be
    else:
        assert world.client.post(path, data).status == 400
        assert world.client.get(f"{path}/{id + 1}").status == 404


@pytest.mark.parametrize("path", ["/user", "/product", "/order", "/user/purchased"])
@pytest.mark.parametrize("id", ["abc", "1.5", "1e3", "1%20", "--1", "0x1", "1_0"])
def test_get_of_what_is_no_integer(world: World, path: str, id: str) -> None:
    answer = world.client.get(f"{path}/{id}")
    assert answer.status == 400
    check_error(answer, world.is_classic, {"status": INVALID} if path == "/order" else {})


@pytest.mark.parametrize("path", ["/user", "/product", "/order", "/user/purchased"])
@pytest.mark.parametrize("id", ["-1", str(2**63), str(2**64), "1" * 400])
def test_get_of_an_integer_out_of_range_finds_nothing(world: World, path: str, id: str) -> None:
    assert world.client.get(f"{path}/{id}").status in (400, 404)


@pytest.mark.parametrize("path", ["/user", "/product", "/order", "/user/purchased"])
def test_get_of_what_is_not_there(world: World, path: str) -> None:
    answer = world.client.get(f"{path}/987654321")
    assert answer.status == 404
    check_error(answer, world.is_classic, {"status": INVALID} if path == "/order" else {})


def test_problem_names_the_field(world: World) -> None:
    if world.is_classic:
        pytest.skip("the classic error body is empty")
    id = world.make()
    for body, path in ((USER_NEW, "/user"), (PRODUCT_NEW, "/product"), (ORDER, "/order")):
        for field in json.loads(body.replace("ID", "1").replace("NEW", "1")):
            answer = world.client.post(path, world.fill(with_value(body, field, "[]"), id))
            assert field in answer.json["detail"], answer


# ---- passwords ---------------------------------------------------------------------------------------------------


def test_password_is_never_shown_and_guards_the_delete(world: World) -> None:
    id = world.make()
    create = world.fill(USER_NEW, id)[:-1] + f',"password":"{PASSWORD}"}}'
    public = world.fill(USER_NEW_BODY, id).encode()
    shown = world.fill(classic_user(USER_NEW_BODY), id).encode() if world.is_classic else public
    assert world.client.post("/user", create)[::2] == (200, shown)
    assert world.client.get(f"/user/{id + 1}").body == shown
    delete = world.fill(USER_DELETE.replace("ID", "NEW"), id)
    assert world.client.post("/user", delete).status == (400 if world.is_classic else 401)
    assert world.client.post("/user", delete[:-1] + ',"password":"open sesam"}').status == 401
    assert world.client.post("/user", delete[:-1] + f',"password":"{PASSWORD}"}}').status == 200


def test_classic_password_is_required_on_create(world: World) -> None:
    id = world.make()
    assert world.client.post("/user", world.fill(USER_NEW, id)).status == (400 if world.is_classic else 200)


def test_password_changes_by_update(world: World) -> None:
    id = world.make()
    update = world.client.post("/user", f'{{"command":"update","id":{id},"password":"another"}}')
    assert update.status == 200
    hashed = hashlib.sha256(b"another").hexdigest().upper()
    assert (hashed.encode() in update.body) == world.is_classic
    delete = world.fill(USER_DELETE, id)
    assert world.client.post("/user", delete[:-1] + f',"password":"{PASSWORD}"}}').status == 401
    assert world.client.post("/user", delete[:-1] + ',"password":"another"}').status == 200


def test_stored_password_is_a_salted_hash_in_sqlite(world: World) -> None:
    first, second = world.make(), world.make()
    for id in (first, second):
        world.expect_200(world.client.post("/user", f'{{"command":"update","id":{id},"password":"{PASSWORD}"}}'))
    world.server.flush()
    stored = {row[0]: row[3] for row in world.server.rows("users")}
    if world.is_classic:
        assert stored[first] == stored[second] == HASH
    else:
        assert stored[first] != stored[second]
        assert PASSWORD not in stored[first] and HASH not in stored[first].upper()


# ---- orders ------------------------------------------------------------------------------------------------------


@named(ORDER_ROWS)
def test_order(world: World, row: OrderRow) -> None:
    id = world.make() if row.status == 200 else world.untouched
    answer = world.client.post("/order", world.fill(row.body, id))
    assert answer.status == row.status, answer
    stock, purchases = world.client.get(f"/product/{id}").json["quantity"], f"/user/purchased/{id}"
    if row.status != 200:
        check_error(answer, world.is_classic, {"status": row.text})
        if not world.is_classic:
            assert answer.json["order_status"] == row.text
        assert (stock, world.client.get(purchases).body) == (90, b"{}")
        return
    quantity, order_id = json.loads(world.fill(row.body, id))["quantity"], answer.json["id"]
    order = f'{{"id":{order_id},"product_id":{id},"user_id":{id},"quantity":{quantity},"status":"Success"}}'.encode()
    assert answer.body == order
    assert world.client.get(f"/order/{order_id}")[::2] == (200, order)
    assert stock == 90 - quantity
    assert world.client.get(purchases)[::2] == (200, f'{{"{id}":{quantity}}}'.encode())


def test_order_ids_increase(world: World) -> None:
    id = world.make()
    ids = [world.client.post("/order", world.fill(with_value(ORDER, "quantity", "1"), id)).json["id"] for _ in "123456"]
    assert ids == sorted(set(ids)) and ids[0] > 0


def test_sold_out_product_takes_no_more_orders(world: World) -> None:
    id = world.make()
    assert world.client.post("/order", world.fill(with_value(ORDER, "quantity", "90"), id)).status == 200
    answer = world.client.post("/order", world.fill(with_value(ORDER, "quantity", "1"), id))
    assert (answer.status, EXCEEDED in answer.body.decode()) == (400, True)


def test_purchases_add_up_per_product(world: World) -> None:
    id = world.make()
    for product, quantity in ((id, 3), (id + 2, 1), (id, 4)):
        order = with_value(with_value(ORDER, "product_id", str(product)), "quantity", str(quantity))
        world.expect_200(world.client.post("/order", world.fill(order, id)))
    answer = world.client.get(f"/user/purchased/{id}")
    assert answer.json == {str(id): 7, str(id + 2): 1}
    assert b" " not in answer.body


def test_purchases_above_the_largest_integer_still_add_up(world: World) -> None:
    id = world.make()
    for _ in range(2):
        world.expect_200(world.client.post("/product", f'{{"command":"update","id":{id},"quantity":{INT_MAX}}}'))
        world.expect_200(world.client.post("/order", world.fill(with_value(ORDER, "quantity", str(INT_MAX)), id)))
    assert world.client.get(f"/user/purchased/{id}").json == {str(id): 2 * INT_MAX}


def test_purchases_of_a_user_are_there_again_when_the_id_comes_back(world: World) -> None:
    id = world.make()
    world.expect_200(world.client.post("/order", world.fill(ORDER, id)))
    world.expect_200(world.client.post("/user", world.fill(world.with_password(USER_DELETE), id)))
    world.expect_200(world.client.post("/user", world.fill(world.with_password(USER), id)))
    assert world.client.get(f"/user/purchased/{id}").json == {str(id): 20}


def test_orders_stay_when_user_and_product_are_deleted(world: World) -> None:
    id = world.make()
    order = world.client.post("/order", world.fill(ORDER, id))
    product = with_value(PRODUCT_DELETE, "quantity", "70")
    world.expect_200(world.client.post("/user", world.fill(world.with_password(USER_DELETE), id)))
    world.expect_200(world.client.post("/product", world.fill(product, id)))
    assert world.client.get(f"/order/{order.json['id']}").body == order.body
    assert world.client.get(f"/user/purchased/{id}").status == 404
    assert world.client.post("/order", world.fill(ORDER, id)).status == 404


# ---- common rules ------------------------------------------------------------------------------------------------

PATHS = {"/user": "POST", "/product": "POST", "/order": "POST"}
RECORD_PATHS = ["/user/1", "/product/1", "/order/1", "/user/purchased/1"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", sorted(PATHS))
def test_wrong_method_on_a_command_path(world: World, path: str, method: str) -> None:
    answer = world.client.request(method, path)
    assert (answer.status, allowed(answer)) == (405, {"POST"})


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", [*RECORD_PATHS, "/healthz"])
def test_wrong_method_on_a_record_path(world: World, path: str, method: str) -> None:
    answer = world.client.request(method, path, b"{}")
    assert (answer.status, allowed(answer)) == (405, {"GET", "HEAD"})


def allowed(answer: Answer) -> set[str]:
    return {method.strip() for method in answer.fields["allow"].split(",")}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize("path", ["/", "/users", "/usr/1", "/user/1/2", "/user/purchased/1/2", "/User/1", "//user/1"])
def test_unknown_path(world: World, path: str, method: str) -> None:
    assert world.client.request(method, path, b"{}" if method == "POST" else None).status == 404


def test_head_answers_as_get_without_the_body(world: World) -> None:
    id = world.make()
    order = world.client.post("/order", world.fill(ORDER, id)).json["id"]
    with world.server.raw() as raw:
        for path in (f"/user/{id}", f"/product/{id}", f"/order/{order}", f"/user/purchased/{id}", "/user/0x", "/no"):
            raw.send(request_bytes("HEAD", path) + request_bytes("GET", path))
            head, get = raw.receive(is_head=True), raw.receive()
            assert head.status == get.status
            assert {k: v for k, v in head.fields.items() if k != "date"} == {
                k: v for k, v in get.fields.items() if k != "date"
            }


def test_every_response_has_date_type_and_length(world: World) -> None:
    id = world.make()
    for method, path, body in (
        ("GET", f"/user/{id}", None),
        ("GET", "/user/x", None),
        ("GET", "/nowhere", None),
        ("PUT", "/user", None),
        ("POST", "/user", "{}"),
        ("POST", "/order", world.fill(ORDER, id)),
        ("GET", "/healthz", None),
    ):
        answer = world.client.request(method, path, body)
        assert {"date", "content-type", "content-length"} <= answer.fields.keys(), (path, answer)
        assert parsedate_to_datetime(answer.fields["date"]).tzinfo is not None
        assert answer.fields["date"].endswith(" GMT")


def test_body_of_64_kib_is_taken_and_one_byte_more_is_413(world: World) -> None:
    id = world.make()
    body = world.fill('{"command":"update","id":ID}', id).encode()
    assert world.client.post("/user", body + b" " * (BODY_MAX - len(body))).status == 200
    with world.server.raw() as raw:
        raw.send(request_bytes("POST", "/user", body + b" " * (BODY_MAX - len(body) + 1)))
        assert raw.receive().status == 413
    assert world.server.request("GET", f"/user/{id}").status == 200


def test_write_seq_increases_over_all_resources(world: World) -> None:
    id = world.make()
    seqs = []
    for path, body in (
        ("/user", '{"command":"update","id":ID,"email":"x"}'),
        ("/product", '{"command":"update","id":ID,"price":3}'),
        ("/order", ORDER),
        ("/order", ORDER),
        ("/user", USER_DELETE.replace("ann@example.com", "x")),
    ):
        answer = world.client.post(path, world.fill(world.with_password(body), id))
        seqs.append(int(answer.fields["write-seq"]))
    assert seqs == sorted(set(seqs))
    assert "write-seq" not in world.client.get(f"/product/{id}").fields


@pytest.mark.parametrize("level", ["memory", "journal", "database"])
def test_durability_of_one_request(world: World, level: str) -> None:
    id = world.make()
    answer = world.client.post("/product", f'{{"command":"update","id":{id},"quantity":41}}', Durability=level)
    assert (answer.status, answer.json["quantity"]) == (200, 41)
    assert "write-seq" in answer.fields
    if level == "database":
        assert (id, "lamp", "a lamp", 162.58, 41) in world.server.rows("products")


@pytest.mark.parametrize("level", ["disk", "1", "memory,journal"])
def test_unknown_durability_is_refused_and_changes_nothing(world: World, level: str) -> None:
    id = world.make()
    body = f'{{"command":"update","id":{id},"quantity":41}}'
    assert world.client.post("/product", body, Durability=level).status == 400
    assert world.client.get(f"/product/{id}").json["quantity"] == 90


def test_pipelined_answers_come_in_order_and_each_sees_the_ones_before(world: World) -> None:
    id = world.make()
    with world.server.raw() as raw:
        requests = [request_bytes("GET", f"/user/{id}")]
        for quantity in range(50):
            update = {"command": "update", "id": id, "quantity": quantity}
            requests += [request_bytes("POST", "/product", update), request_bytes("GET", f"/product/{id}")]
        answers = raw.pipeline([*requests, request_bytes("GET", "/nowhere")])
    assert [answer.status for answer in answers] == [200] * 101 + [404]
    assert [answer.json["quantity"] for answer in answers[1:-1]] == [n for n in range(50) for _ in "12"]


def test_slow_password_does_not_let_later_requests_overtake(world: World) -> None:
    id = world.make()
    update = {"command": "update", "id": id, "username": "eve", "password": "another"}
    with world.server.raw() as raw:
        answers = raw.pipeline([request_bytes("POST", "/user", update), request_bytes("GET", f"/user/{id}")])
    assert [answer.json["username"] for answer in answers] == ["eve", "eve"]


# ---- operations --------------------------------------------------------------------------------------------------


def test_healthz_on_both_ports(world: World) -> None:
    with world.server.admin() as admin:
        assert (admin.get("/healthz").status, world.client.get("/healthz").status) == (200, 200)


def test_readyz_answers_on_the_admin_port(world: World) -> None:
    with world.server.admin() as admin:
        assert admin.get("/readyz").status == 200
    assert world.client.get("/readyz").status == 404


def test_flush_makes_everything_visible_in_sqlite(world: World) -> None:
    id = world.make()
    order = world.client.post("/order", world.fill(ORDER, id)).json["id"]
    world.server.flush()
    users = {row[0]: row for row in world.server.rows("users")}
    assert users[id] == (id, "ann", "ann@example.com", HASH if world.is_classic else None)
    assert (id, "lamp", "a lamp", 162.58, 70) in world.server.rows("products")
    assert (order, id, id, 20, "Success") in world.server.rows("orders")


def test_stats_show_records_and_processes(world: World) -> None:
    world.make()
    world.server.flush()
    with world.server.admin() as admin:
        answer = admin.get("/stats")
    assert answer.status == 200
    assert answer.fields["content-type"].startswith("application/json")
    text = json.dumps(answer.json)
    for pid in world.server.pids.values():
        assert str(pid) in text


def test_no_request_of_this_module_ended_a_worker(world: World) -> None:
    before = world.server.pids
    with world.server.admin() as admin:
        stats = admin.get("/stats").json
    assert before == world.server.pids
    assert "Traceback" not in world.server.log(), stats


# ---- no room for more --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, int]]:
    """A server whose shared memory is used up, and how many products it took."""
    for server in running_server(tmp_path_factory.mktemp("full") / "data", "--memory", "16MiB"):
        with server.raw() as raw:
            yield server, fill_up(raw)


BIG_MATCH = {"name": "d" * TEXT_MAX, "price": 1, "quantity": 10}
BIG = BIG_MATCH | {"description": "d" * TEXT_MAX}


def big_product(id: int) -> bytes:
    return request_bytes("POST", "/product", {"command": "create", "id": id, **BIG})


def fill_up(raw: RawClient) -> int:
    for first in range(0, 4000, 50):
        statuses = [answer.status for answer in raw.pipeline([big_product(first + n) for n in range(50)])]
        if 507 in statuses:
            assert set(statuses) <= {200, 507}
            assert statuses == sorted(statuses)
            return first + statuses.count(200)
    raise AssertionError("16 MiB took 4,000 products of 8 KiB")


@pytest.mark.parametrize("fields", [{"quantity": 20}, {"name": "n"}, {"name": "n", "description": "d"}], ids=str)
def test_full_memory_takes_an_update_that_fits(full_server: tuple[ServerProcess, int], fields: dict[str, Any]) -> None:
    server, _count = full_server
    with server.client() as client:
        for id in range(30, 40):
            answer = client.post("/product", {"command": "update", "id": id} | fields)
            assert (answer.status, client.get(f"/product/{id}").body) == (200, answer.body)


def test_full_memory_refuses_only_what_needs_room(full_server: tuple[ServerProcess, int]) -> None:
    server, count = full_server
    with server.client() as client:
        assert client.get(f"/product/{count}").status == 404
        assert client.get(f"/product/{count - 1}").status == 200
        assert client.post("/product", {"command": "delete", "id": 1, **BIG_MATCH}).status == 200
        assert client.get("/product/1").status == 404
        assert client.post("/product", {"command": "create", "id": 1, **BIG, "price": -1}).status == 400


def test_full_memory_takes_records_again_after_deletes(full_server: tuple[ServerProcess, int]) -> None:
    server, count = full_server
    with server.client() as client, server.raw() as raw:
        for id in range(10, 30):
            assert client.post("/product", {"command": "delete", "id": id, **BIG_MATCH}).status == 200
        server.flush()
        before = len(server.rows("products"))
        assert [answer.status for answer in raw.pipeline([big_product(count + n) for n in range(10)])] == [200] * 10
        assert client.get(f"/product/{count + 9}").status == 200
    server.flush()
    assert len(server.rows("products")) == before + 10
