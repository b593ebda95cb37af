"""One batch over a table that is a dict: what it answers, and which after-images come out."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from server.batch import Batch, Result
from server.commands import (
    Command,
    CreateProduct,
    CreateUser,
    DeleteProduct,
    DeleteUser,
    Flush,
    Kind,
    Outcome,
    PlaceOrder,
    ReplayDeadLetter,
    UpdateProduct,
    UpdateUser,
)
from server.journal.format import Change

SEED = 20260102


class FakeTable:
    """Returns what `server.shm.table.TableReader` documents."""

    def __init__(self) -> None:
        self.records: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        self.seqs: dict[tuple[int, int], int] = {}

    def get_user(self, id: int) -> bytes | None:
        return self._record(Kind.USER, id)

    def get_product(self, id: int) -> bytes | None:
        return self._record(Kind.PRODUCT, id)

    def get_private(self, kind: int, id: int) -> tuple[bytes, bytes] | None:
        return self.records.get((kind, id))

    def _record(self, kind: int, id: int) -> bytes | None:
        found = self.records.get((kind, id))
        return None if found is None else b"%d\r\n\r\n%b" % (len(found[0]), found[0])

    def publish(self, changes: list[Change]) -> None:
        for change in changes:
            self.seqs[change.kind, change.id] = change.seq
            if change.body is None:
                del self.records[change.kind, change.id]
            else:
                self.records[change.kind, change.id] = change.body, change.private


@pytest.fixture
def table() -> FakeTable:
    table = FakeTable()
    table.publish(
        [
            Change(Kind.USER, 1, 1, b'{"id":1,"username":"ann","email":"a@x"}', b"hash"),
            Change(Kind.USER, 2, 2, b'{"id":2,"username":"bob","email":"b@x"}', b""),
            Change(Kind.PRODUCT, 7, 3, b'{"id":7,"name":"lamp","description":"d","price":4.5,"quantity":10}', b""),
        ]
    )
    return table


def make_batch(table: FakeTable, is_classic: bool = False, last_seq: int = 100, next_order_id: int = 1) -> Batch:
    return Batch(table, is_classic, last_seq, next_order_id)  # type: ignore[arg-type]


def outcomes(batch: Batch, *commands: Command) -> list[Outcome]:
    return [batch.execute(command).outcome for command in commands]


DONE, EXISTS, MISSING, MISMATCH, OUT = (
    Outcome.DONE, Outcome.EXISTS, Outcome.MISSING, Outcome.MISMATCH, Outcome.OUT_OF_STOCK
)  # fmt: skip


# ---- the overlay -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ([CreateUser(5, "a", "b", None), CreateUser(5, "a", "b", None)], [DONE, EXISTS]),
        ([DeleteUser(2, "bob", "b@x", None), CreateUser(2, "c", "d", None)], [DONE, DONE]),
        ([DeleteUser(2, "bob", "b@x", None), UpdateUser(2, "c", None, None)], [DONE, MISSING]),
        ([DeleteUser(2, "bob", "b@x", None), PlaceOrder(7, 2, 1)], [DONE, MISSING]),
        ([CreateUser(5, "a", "b", None), PlaceOrder(7, 5, 1)], [DONE, DONE]),
        ([UpdateUser(2, "eve", None, None), DeleteUser(2, "bob", "b@x", None)], [DONE, MISMATCH]),
        ([UpdateUser(2, None, None, "new"), DeleteUser(2, "bob", "b@x", None)], [DONE, MISMATCH]),
        ([UpdateUser(2, None, None, "new"), DeleteUser(2, "bob", "b@x", "new")], [DONE, DONE]),
        ([PlaceOrder(7, 1, 6), PlaceOrder(7, 1, 6), PlaceOrder(7, 1, 4), PlaceOrder(7, 1, 1)], [DONE, OUT, DONE, OUT]),
        ([PlaceOrder(7, 1, 6), DeleteProduct(7, "lamp", 4.5, 10)], [DONE, MISMATCH]),
        ([PlaceOrder(7, 1, 6), DeleteProduct(7, "lamp", 4.5, 4), PlaceOrder(7, 1, 1)], [DONE, DONE, MISSING]),
        ([PlaceOrder(7, 1, 6), UpdateProduct(7, None, None, None, 50), PlaceOrder(7, 1, 50)], [DONE, DONE, DONE]),
        ([DeleteProduct(7, "lamp", 4.5, 10), CreateProduct(7, "x", "y", 1, 1), PlaceOrder(7, 1, 1)], [DONE] * 3),
        ([CreateProduct(8, "x", "y", 1, 0), PlaceOrder(8, 1, 1)], [DONE, OUT]),
        ([PlaceOrder(7, 3, 1), CreateUser(3, "x", "y", None), PlaceOrder(7, 3, 1)], [MISSING, DONE, DONE]),
    ],
)
def test_a_command_sees_the_effect_of_the_one_before(
    table: FakeTable, commands: list[Command], expected: list[Outcome]
) -> None:
    assert outcomes(make_batch(table), *commands) == expected


def test_nothing_outside_changes_while_a_batch_is_made(table: FakeTable) -> None:
    before = dict(table.records)
    batch = make_batch(table)
    outcomes(batch, UpdateUser(1, "x", None, None), PlaceOrder(7, 1, 3), DeleteUser(2, "bob", "b@x", None))
    batch.records()
    assert table.records == before


@pytest.mark.parametrize(
    "command",
    [
        CreateUser(1, "x", "y", None),
        UpdateUser(9, "x", None, None),
        DeleteUser(1, "ann", "a@x", "wrong"),
        DeleteUser(9, "ann", "a@x", None),
        CreateProduct(7, "x", "y", 1, 1),
        UpdateProduct(9, "x", None, None, None),
        DeleteProduct(7, "lamp", 4.5, 9),
        PlaceOrder(7, 1, 11),
        PlaceOrder(9, 1, 1),
        PlaceOrder(7, 9, 1),
    ],
)
def test_a_refused_command_changes_nothing_and_takes_no_seq(table: FakeTable, command: Command) -> None:
    batch = make_batch(table, last_seq=100, next_order_id=40)
    result = batch.execute(command)
    assert result.outcome != DONE
    assert (result.seq, result.body) == (0, b"")
    assert (batch.seq, batch.next_order_id) == (100, 40)
    assert (batch.records(), batch.orders, batch.bought()) == ([], [], [])


# ---- what comes out --------------------------------------------------------------------------------------------


def test_every_command_that_was_done_takes_the_next_seq(table: FakeTable) -> None:
    batch = make_batch(table, last_seq=100)
    results = [
        batch.execute(command)
        for command in (UpdateUser(1, "x", None, None), CreateUser(1, "", "", None), PlaceOrder(7, 1, 1), Flush())
    ]
    assert [result.seq for result in results] == [101, 0, 102, 102]
    assert batch.seq == 102


def test_one_change_per_record_with_the_last_image_and_the_last_seq(table: FakeTable) -> None:
    batch = make_batch(table)
    outcomes(
        batch,
        UpdateUser(1, "x", None, None),
        PlaceOrder(7, 1, 1),
        UpdateProduct(7, "torch", None, None, None),
        UpdateUser(1, None, "e@x", None),
        PlaceOrder(7, 1, 2),
        PlaceOrder(7, 2, 3),
    )
    assert sorted(batch.records()) == [
        Change(Kind.USER, 1, 104, b'{"id":1,"username":"x","email":"e@x"}', b"hash"),
        Change(Kind.PRODUCT, 7, 106, b'{"id":7,"name":"torch","description":"d","price":4.5,"quantity":4}', b""),
    ]
    assert batch.records() == batch.records()


def test_a_product_deleted_after_its_last_order_comes_out_deleted(table: FakeTable) -> None:
    batch = make_batch(table)
    outcomes(batch, PlaceOrder(7, 1, 6), DeleteProduct(7, "lamp", 4.5, 4))
    assert batch.records() == [Change(Kind.PRODUCT, 7, 102, None, b"")]
    assert len(batch.orders) == 1


def test_a_record_made_and_deleted_in_one_batch_comes_out_deleted(table: FakeTable) -> None:
    batch = make_batch(table)
    outcomes(batch, CreateUser(5, "a", "b", "s"), DeleteUser(5, "a", "b", "s"))
    assert batch.records() == [Change(Kind.USER, 5, 102, None, b"")]


def test_orders_are_numbered_on_and_carry_the_answer(table: FakeTable) -> None:
    batch = make_batch(table, next_order_id=40)
    results = [batch.execute(PlaceOrder(7, user, 2)) for user in (1, 9, 2)]
    bodies = [
        b'{"id":40,"product_id":7,"user_id":1,"quantity":2,"status":"Success"}',
        b'{"id":41,"product_id":7,"user_id":2,"quantity":2,"status":"Success"}',
    ]
    assert results == [Result(DONE, 101, bodies[0]), Result(MISSING), Result(DONE, 102, bodies[1])]
    assert batch.orders == [Change(Kind.ORDER, 40, 101, bodies[0], b""), Change(Kind.ORDER, 41, 102, bodies[1], b"")]
    assert batch.next_order_id == 42


def test_purchases_are_summed_up_per_user_and_product(table: FakeTable) -> None:
    batch = make_batch(table)
    outcomes(
        batch,
        CreateProduct(8, "x", "y", 1, 100),
        PlaceOrder(7, 1, 2),
        PlaceOrder(8, 1, 30),
        PlaceOrder(7, 2, 4),
        PlaceOrder(7, 1, 3),
    )
    assert batch.bought() == [(1, 7, 5, 105), (1, 8, 30, 103), (2, 7, 4, 104)]


# ---- the two contracts -----------------------------------------------------------------------------------------


def test_default_contract_keeps_the_secret_in_the_private_part_and_in_no_answer(table: FakeTable) -> None:
    batch = make_batch(table)
    answer = batch.execute(CreateUser(5, "a", "b", "scrypt-hash")).body
    assert answer == b'{"id":5,"username":"a","email":"b"}'
    assert batch.execute(CreateUser(6, "a", "b", None)).body == b'{"id":6,"username":"a","email":"b"}'
    assert [change.private for change in batch.records()] == [b"scrypt-hash", b""]


def test_default_contract_reads_the_secret_of_a_published_user(table: FakeTable) -> None:
    assert outcomes(
        make_batch(table),
        DeleteUser(1, "ann", "a@x", None),
        DeleteUser(1, "ann", "a@x", "hash"),
        DeleteUser(2, "bob", "b@x", None),
    ) == [MISMATCH, DONE, DONE]


def test_an_update_without_password_keeps_the_stored_one(table: FakeTable) -> None:
    batch = make_batch(table)
    batch.execute(UpdateUser(1, "x", None, None))
    assert [change.private for change in batch.records()] == [b"hash"]


def test_classic_contract_returns_the_password_and_keeps_no_private_part() -> None:
    table = FakeTable()
    batch = make_batch(table, is_classic=True)
    body = b'{"id":5,"username":"a","email":"b","password":"AB12"}'
    assert batch.execute(CreateUser(5, "a", "b", "AB12")) == Result(DONE, 101, body)
    assert batch.records() == [Change(Kind.USER, 5, 101, body, b"")]
    table.publish(batch.records())
    again = make_batch(table, is_classic=True)
    assert outcomes(again, DeleteUser(5, "a", "b", "CD"), DeleteUser(5, "a", "b", "AB12")) == [MISMATCH, DONE]


def test_classic_update_shows_the_new_password() -> None:
    table = FakeTable()
    table.publish([Change(Kind.USER, 5, 1, b'{"id":5,"username":"a","email":"b","password":"AB12"}', b"")])
    batch = make_batch(table, is_classic=True)
    assert batch.execute(UpdateUser(5, None, None, "EF")).body == b'{"id":5,"username":"a","email":"b","password":"EF"}'
    assert batch.execute(UpdateUser(5, "z", None, None)).body == b'{"id":5,"username":"z","email":"b","password":"EF"}'


@pytest.mark.parametrize("price", [0, 4, 4.5, 0.1, 1e300, 2**53 + 1, 162.58])
def test_a_price_comes_back_as_the_same_number(table: FakeTable, price: float) -> None:
    batch = make_batch(table)
    batch.execute(CreateProduct(8, "x", "y", price, 1))
    table.publish(batch.records())
    again = make_batch(table)
    answer = json.loads(again.execute(UpdateProduct(8, "z", None, None, None)).body)
    assert answer["price"] == price
    assert again.execute(DeleteProduct(8, "z", price, 1)).outcome is DONE


# ---- model -----------------------------------------------------------------------------------------------------


class Model:
    """The shop in plain dicts, one command at a time, with no batches."""

    def __init__(self, is_classic: bool) -> None:
        self.is_classic = is_classic
        self.users: dict[int, dict[str, Any]] = {}
        self.secrets: dict[int, str] = {}
        self.products: dict[int, dict[str, Any]] = {}
        self.orders: list[dict[str, Any]] = []
        self.bought: dict[tuple[int, int], int] = {}

    def execute(self, command: Command) -> tuple[Outcome, Any]:
        match command:
            case CreateUser(id, username, email, secret):
                if id in self.users:
                    return EXISTS, None
                self.users[id] = {"id": id, "username": username, "email": email}
                self._set_secret(id, secret)
                return DONE, self.users[id]
            case UpdateUser(id, username, email, secret):
                if id not in self.users:
                    return MISSING, None
                given = {"username": username, "email": email}
                self.users[id].update({k: v for k, v in given.items() if v is not None})
                self._set_secret(id, secret)
                return DONE, self.users[id]
            case DeleteUser(id, username, email, secret):
                if id not in self.users:
                    return MISSING, None
                user = self.users[id]
                if (user["username"], user["email"]) != (username, email) or self.secrets.get(id, secret) != secret:
                    return MISMATCH, None
                del self.users[id]
                self.secrets.pop(id, None)
                return DONE, {}
            case CreateProduct(id, name, description, price, quantity):
                if id in self.products:
                    return EXISTS, None
                self.products[id] = {
                    "id": id, "name": name, "description": description, "price": price, "quantity": quantity
                }  # fmt: skip
                return DONE, self.products[id]
            case UpdateProduct(id, name, description, price, quantity):
                if id not in self.products:
                    return MISSING, None
                changed: dict[str, Any] = {
                    "name": name, "description": description, "price": price, "quantity": quantity
                }  # fmt: skip
                self.products[id].update({k: v for k, v in changed.items() if v is not None})
                return DONE, self.products[id]
            case DeleteProduct(id, name, price, quantity):
                if id not in self.products:
                    return MISSING, None
                product = self.products[id]
                if (product["name"], product["price"], product["quantity"]) != (name, price, quantity):
                    return MISMATCH, None
                del self.products[id]
                return DONE, {}
            case PlaceOrder(product_id, user_id, quantity):
                return self._order(product_id, user_id, quantity)
        raise AssertionError(command)

    def _set_secret(self, id: int, secret: str | None) -> None:
        if secret is not None:
            self.secrets[id] = secret
            if self.is_classic:
                self.users[id]["password"] = secret

    def _order(self, product_id: int, user_id: int, quantity: int) -> tuple[Outcome, Any]:
        if product_id not in self.products or user_id not in self.users:
            return MISSING, None
        if quantity > self.products[product_id]["quantity"]:
            return OUT, None
        self.products[product_id]["quantity"] -= quantity
        order = {
            "id": len(self.orders) + 1, "product_id": product_id, "user_id": user_id, "quantity": quantity,
            "status": "Success",
        }  # fmt: skip
        self.orders.append(order)
        self.bought[user_id, product_id] = self.bought.get((user_id, product_id), 0) + quantity
        return DONE, order


def random_command(chance: random.Random, is_classic: bool) -> Command:
    id = chance.randrange(6)
    text = chance.choice("ab")
    other = chance.choice(["a", "b", None])
    secret = chance.choice(["S", "T"] if is_classic else ["S", "T", None])
    number = chance.randrange(8)
    kinds: list[Command] = [
        CreateUser(id, text, "e", secret),
        UpdateUser(id, other, None, chance.choice(["S", None])),
        DeleteUser(id, text, "e", secret),
        CreateProduct(id, text, "d", number / 2, number),
        UpdateProduct(id, other, None, None, chance.choice([None, number])),
        DeleteProduct(id, text, number / 2, number),
        PlaceOrder(id, chance.randrange(6), chance.randrange(1, 5)),
    ]
    return chance.choices(kinds, [2, 2, 1, 2, 3, 1, 8])[0]


@pytest.mark.parametrize("is_classic", [False, True])
def test_random_batches_agree_with_plain_dicts(is_classic: bool) -> None:
    chance = random.Random(SEED)
    table, model = FakeTable(), Model(is_classic)
    seq, next_order_id = 0, 1
    bought: dict[tuple[int, int], int] = {}
    for _ in range(400):
        batch = make_batch(table, is_classic, seq, next_order_id)
        for _ in range(chance.randrange(1, 40)):
            command = random_command(chance, is_classic)
            outcome, answer = model.execute(command)
            result = batch.execute(command)
            assert result.outcome == outcome, f"seed {SEED} {command}"
            if outcome is DONE:
                seq += 1
                assert result.seq == seq
                assert json.loads(result.body) == answer, f"seed {SEED} {command}"
        changes = [*batch.records(), *batch.orders]
        assert len({(change.kind, change.id) for change in changes}) == len(changes)
        table.publish([change for change in changes if change.body or (change.kind, change.id) in table.records])
        for user_id, product_id, units, _ in batch.bought():
            bought[user_id, product_id] = bought.get((user_id, product_id), 0) + units
        assert batch.seq == seq
        next_order_id = batch.next_order_id
    check_equal(table, model, bought)


def check_equal(table: FakeTable, model: Model, bought: dict[tuple[int, int], int]) -> None:
    stored: dict[int, dict[int, Any]] = {kind: {} for kind in (Kind.USER, Kind.PRODUCT, Kind.ORDER)}
    for (kind, id), (body, _) in table.records.items():
        stored[kind][id] = json.loads(body)
    assert stored[Kind.USER] == model.users
    assert stored[Kind.PRODUCT] == model.products
    assert list(stored[Kind.ORDER].values()) == model.orders
    assert bought == model.bought
    assert len(model.orders) > 500, "the random commands must reach the interesting cases"
    if not model.is_classic:
        privates = {id: private.decode() for (kind, id), (_, private) in table.records.items() if kind == Kind.USER}
        assert {id: secret for id, secret in privates.items() if secret} == model.secrets


def test_replayed_dead_letter_is_the_same_record_under_a_new_seq(table: FakeTable) -> None:
    table.publish([Change(Kind.ORDER, 5, 4, b'{"id":5}', b"")])
    batch = make_batch(table)
    replays = [ReplayDeadLetter(Kind.USER, 1), ReplayDeadLetter(Kind.ORDER, 5), ReplayDeadLetter(Kind.USER, 99)]
    assert outcomes(batch, *replays) == [DONE, DONE, MISSING]
    body, private = table.records[Kind.USER, 1]
    assert batch.records() == [
        Change(Kind.USER, 1, 101, body, private),
        Change(Kind.ORDER, 5, 102, b'{"id":5}', b""),
    ]
    assert batch.orders == [] and batch.bought() == []


def test_replay_of_a_record_that_the_batch_changes_anyway_adds_nothing(table: FakeTable) -> None:
    batch = make_batch(table)
    update = UpdateUser(1, "eve", None, None)
    replays = [ReplayDeadLetter(Kind.USER, 1), ReplayDeadLetter(Kind.PRODUCT, 7)]
    assert outcomes(batch, update, PlaceOrder(7, 1, 2), *replays) == [DONE] * 4
    assert batch.seq == 102
    assert [(change.kind, change.id, change.seq) for change in batch.records()] == [
        (Kind.USER, 1, 101),
        (Kind.PRODUCT, 7, 102),
    ]
