"""The first load: databases and journal become the table, or the start is refused."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import msgspec
import pytest

from persist.recovery import Recovered, load
from persist.store import Store
from server.commands import PERSISTED_KINDS, ClassicUser, Kind, Order, Product, User, encode_json
from server.errors import DataError
from server.journal.format import Change, Group
from server.messages import Row
from tests.backend import INSTANCE, Backend, make_backend, order_body

ANN = encode_json(User(1, "ann", "a@x"))
LAMP = encode_json(Product(2, "lamp", "a lamp", 162.58, 90))


@pytest.fixture
def backend() -> Iterator[Backend]:
    with make_backend() as backend:
        yield backend


@pytest.fixture
def classic() -> Iterator[Backend]:
    with make_backend(classic=True) as backend:
        yield backend


def fill(backend: Backend, kind: Kind, rows: list[Row], checkpoint: int) -> None:
    store = Store(backend.path(kind), kind, INSTANCE.hex(), backend.config.classic)
    store.apply(rows, checkpoint)
    store.close()


def fill_all(backend: Backend, users: int, products: int, orders: int) -> None:
    for kind, checkpoint in zip(PERSISTED_KINDS, (users, products, orders), strict=True):
        fill(backend, kind, [], checkpoint)


def recover(backend: Backend, *groups: Group) -> Recovered:
    config = backend.config
    return load(config.data_dir, INSTANCE.hex(), config.classic, backend.table, iter(groups))


def group(first_seq: int, *changes: tuple[Kind, int, bytes | None]) -> Group:
    numbered = [Change(kind, id, first_seq + index, body, b"") for index, (kind, id, body) in enumerate(changes)]
    return Group(0, 1, 1, first_seq, len(changes), numbered, b"")


def body_of(backend: Backend, kind: Kind, id: int) -> bytes | None:
    found = backend.table.get_private(kind, id)
    return found[0] if found else None


def test_new_data_directory_is_empty(backend: Backend) -> None:
    fill_all(backend, 0, 0, 0)
    assert recover(backend) == Recovered(0, 1, (0, 0, 0), (0, 0, 0), 0)


def test_rows_become_the_bodies_they_came_from(backend: Backend) -> None:
    fill(backend, Kind.USER, [Row(1, ANN, b"scrypt:x"), Row(2, encode_json(User(2, "bob", "b@x")))], 30)
    prices = [0, 162.58, 2**63 - 1, 1e300, 0.1, 9007199254740993]
    products = {id: encode_json(Product(id, "ü", '"', price, 5)) for id, price in enumerate(prices)}
    fill(backend, Kind.PRODUCT, [Row(id, body) for id, body in products.items()], 30)
    fill(backend, Kind.ORDER, [Row(7, order_body(7, 3)), Row(9, order_body(9, 4))], 30)
    assert recover(backend) == Recovered(30, 10, (30, 30, 30), (2, 6, 2), 0)
    assert backend.table.get_private(Kind.USER, 1) == (ANN, b"scrypt:x")
    assert backend.table.get_private(Kind.USER, 2) == (encode_json(User(2, "bob", "b@x")), b"")
    assert {id: body_of(backend, Kind.PRODUCT, id) for id in products} == products
    assert body_of(backend, Kind.ORDER, 9) == order_body(9, 4)


def test_classic_password_is_in_the_body_and_private(classic: Backend) -> None:
    body = encode_json(ClassicUser(1, "ann", "a@x", "ABCD"))
    fill(classic, Kind.USER, [Row(1, body, b"ABCD")], 1)
    fill(classic, Kind.PRODUCT, [], 1)
    fill(classic, Kind.ORDER, [], 1)
    recover(classic)
    assert classic.table.get_private(Kind.USER, 1) == (body, b"ABCD")


def test_orders_of_a_database_become_purchases_once(backend: Backend) -> None:
    fill(backend, Kind.USER, [Row(20, encode_json(User(20, "ann", "a@x")))], 9)
    fill(backend, Kind.PRODUCT, [], 9)
    fill(backend, Kind.ORDER, [Row(id, order_body(id, 2)) for id in (1, 2, 3)], 9)
    recover(backend)
    assert backend.table.purchases(20) == b'{"10":6}'


@pytest.mark.parametrize("held_max", [1, 2, 100])
def test_purchases_answer_in_the_order_in_which_they_did_before(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, held_max: int
) -> None:
    monkeypatch.setattr("persist.recovery.PURCHASES_HELD_MAX", held_max)
    fill(backend, Kind.USER, [Row(20, encode_json(User(20, "ann", "a@x")))], 9)
    fill(backend, Kind.PRODUCT, [], 9)
    products = [7, 3, 7, 9, 3, 1]
    orders = [Row(id, encode_json(Order(id, product, 20, id))) for id, product in enumerate(products, 1)]
    fill(backend, Kind.ORDER, orders, 9)
    recover(backend)
    with make_backend() as live:
        live.table.put(Kind.USER, 20, 1, b"{}")
        for id, product in enumerate(products, 1):
            live.table.add_purchase(20, product, id, id + 1)
        assert backend.table.purchases(20) == live.table.purchases(20)


def test_orders_of_a_user_who_is_gone_do_not_stop_the_load(backend: Backend) -> None:
    fill(backend, Kind.USER, [], 9)
    fill(backend, Kind.PRODUCT, [], 9)
    fill(backend, Kind.ORDER, [Row(1, order_body(1, 2))], 9)
    recover(backend)
    assert backend.table.purchases(20) is None
    backend.table.put(Kind.USER, 20, 10, b"{}")
    assert backend.table.purchases(20) == b'{"10":2}'


def test_journal_is_replayed_after_the_checkpoint_of_each_kind(backend: Backend) -> None:
    fill(backend, Kind.USER, [Row(1, b'{"id":1,"username":"new","email":"e"}')], 2)
    fill(backend, Kind.PRODUCT, [], 0)
    fill(backend, Kind.ORDER, [], 0)
    journal = (
        group(1, (Kind.USER, 1, b'{"id":1,"username":"old","email":"e"}'), (Kind.USER, 3, None)),
        group(3, (Kind.PRODUCT, 2, LAMP), (Kind.ORDER, 1, order_body(1, 2)), (Kind.USER, 4, ANN)),
        group(6, (Kind.USER, 4, None)),
    )
    assert recover(backend, *journal) == Recovered(6, 2, (2, 0, 0), (1, 0, 0), 4)
    assert body_of(backend, Kind.USER, 1) == b'{"id":1,"username":"new","email":"e"}'
    assert body_of(backend, Kind.PRODUCT, 2) == LAMP
    assert body_of(backend, Kind.USER, 4) is None and backend.table.seq_of(Kind.USER, 4) == 6
    assert [backend.table.seq_of(kind, id) for kind, id in [(0, 1), (1, 2), (2, 1)]] == [0, 3, 4]


def test_order_that_its_database_already_holds_is_counted_once(backend: Backend) -> None:
    fill(backend, Kind.USER, [Row(20, encode_json(User(20, "ann", "a@x")))], 0)
    fill(backend, Kind.PRODUCT, [], 0)
    fill(backend, Kind.ORDER, [Row(1, order_body(1, 2))], 0)  # newer than its checkpoint
    recover(backend, group(1, (Kind.ORDER, 1, order_body(1, 2)), (Kind.ORDER, 2, order_body(2, 5))))
    assert backend.table.purchases(20) == b'{"10":7}'


def test_order_ids_go_on_after_the_highest_anywhere(backend: Backend) -> None:
    fill(backend, Kind.USER, [], 5)
    fill(backend, Kind.PRODUCT, [], 5)
    fill(backend, Kind.ORDER, [Row(3, order_body(3)), Row(8, b"refused")], 5)
    assert recover(backend).next_order_id == 9
    assert recover(backend, group(6, (Kind.ORDER, 12, order_body(12)))).next_order_id == 13


def test_acknowledged_record_that_sqlite_refused_is_served_again(backend: Backend) -> None:
    refused = b'{"id":2,"name":"n","description":"\\ud800","price":1,"quantity":1}'
    fill(backend, Kind.USER, [Row(1, ANN + b" ", b"secret"), Row(5, b"?", b"secret")], 9)
    fill(backend, Kind.PRODUCT, [Row(2, refused)], 9)
    fill(backend, Kind.ORDER, [], 9)
    assert recover(backend).rows == (2, 1, 0)
    assert body_of(backend, Kind.PRODUCT, 2) == refused
    assert backend.table.get_private(Kind.USER, 5) == (b"?", b"secret")


# ---- refused -----------------------------------------------------------------------------------------------


def test_missing_database_is_refused(backend: Backend) -> None:
    fill_all(backend, 5, 5, 5)
    backend.path(Kind.PRODUCT).unlink()
    with pytest.raises(DataError, match=r"products\.db: the database is missing"):
        recover(backend)


def test_new_empty_database_beside_a_journal_without_its_beginning_is_refused(backend: Backend) -> None:
    fill_all(backend, 50, 0, 50)
    with pytest.raises(DataError, match=r"products\.db: changes 1 to 40 "):
        recover(backend, group(41, *[(Kind.USER, 1, ANN)] * 10))


def test_new_empty_database_beside_an_empty_journal_is_refused(backend: Backend) -> None:
    fill_all(backend, 50, 50, 0)
    with pytest.raises(DataError, match=r"orders\.db: changes 1 to 50 "):
        recover(backend)


def test_journal_that_ends_before_a_database_is_refused(backend: Backend) -> None:
    fill_all(backend, 50, 45, 50)
    with pytest.raises(DataError, match=r"products\.db: changes 49 to 50 "):
        recover(backend, group(44, *[(Kind.USER, 1, ANN)] * 5))


def test_database_replaced_by_an_older_copy_is_refused(backend: Backend) -> None:
    fill_all(backend, 10, 10, 10)
    shutil.copy(backend.path(Kind.USER), backend.config.data_dir / "backup")
    fill_all(backend, 50, 50, 50)
    shutil.move(backend.config.data_dir / "backup", backend.path(Kind.USER))
    with pytest.raises(DataError, match=r"users\.db: changes 11 to 40 "):
        recover(backend, group(41, *[(Kind.USER, 1, ANN)] * 10))


def test_database_of_another_instance_is_refused(backend: Backend) -> None:
    fill_all(backend, 0, 0, 0)
    with pytest.raises(DataError, match="another instance"):
        load(backend.config.data_dir, "ff" * 16, False, backend.table, [])


def test_database_of_the_other_contract_is_refused(backend: Backend) -> None:
    fill_all(backend, 0, 0, 0)
    with pytest.raises(DataError, match="default contract"):
        load(backend.config.data_dir, INSTANCE.hex(), True, backend.table, [])


def test_damaged_page_is_refused(backend: Backend) -> None:
    fill_all(backend, 1, 1, 1)
    fill(backend, Kind.ORDER, [Row(id, order_body(id)) for id in range(1, 3000)], 1)
    path = backend.path(Kind.ORDER)
    data = bytearray(path.read_bytes())
    for page in range(5, len(data) // 4096):
        data[page * 4096 : page * 4096 + 16] = b"\xff" * 16
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"orders\.db: database disk image is malformed"):
        recover(backend)


def test_load_does_not_change_a_database(backend: Backend) -> None:
    fill_all(backend, 5, 5, 5)
    before = {kind: backend.path(kind).read_bytes() for kind in PERSISTED_KINDS}
    recover(backend)
    assert {kind: backend.path(kind).read_bytes() for kind in PERSISTED_KINDS} == before


def test_load_sees_what_is_still_in_the_wal_of_a_running_writer(backend: Backend) -> None:
    fill_all(backend, 1, 1, 1)
    store = Store(backend.path(Kind.ORDER), Kind.ORDER, INSTANCE.hex(), False)
    store.apply([Row(1, order_body(1))], 1)
    assert recover(backend).rows == (0, 0, 1)
    store.close()


def test_every_recovered_body_is_canonical(backend: Backend) -> None:
    fill_all(backend, 1, 1, 1)
    with closing(sqlite3.connect(backend.path(Kind.PRODUCT))) as connection, connection:
        connection.execute("INSERT INTO products VALUES (1, 'n', 'd', 5.0, 1), (2, 'n', 'd', 2e19, 1)")
    recover(backend)
    for id, price in ((1, b'"price":5,'), (2, b'"price":2e19,')):
        body = body_of(backend, Kind.PRODUCT, id)
        assert body is not None and price in body
        assert encode_json(msgspec.json.decode(body, type=Product)) == body
