"""Applying batches to a real database: whole or not at all, and no bad row holds up a good one."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from persist.store import Store, set_aside
from server.commands import ClassicUser, Kind, Product, User, encode_json
from server.messages import Row
from tests.backend import order_body, rows_of

INSTANCE = "00" * 16


def open_store(path: Path, kind: Kind = Kind.ORDER, is_classic: bool = False) -> Store:
    return Store(path, kind, INSTANCE, is_classic)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = open_store(path)
    yield store
    store.abandon()


def orders(*ids: int, quantity: int = 1) -> list[Row]:
    return [Row(id, order_body(id, quantity)) for id in ids]


def ids_in(path: Path) -> list[int]:
    return [id for (id,) in rows_of(path, "SELECT id FROM orders ORDER BY id")]


def checkpoint_in(path: Path) -> int:
    return int(rows_of(path, "SELECT checkpoint FROM millrace")[0][0])


def test_rows_and_checkpoint_are_committed(path: Path, store: Store) -> None:
    assert store.apply(orders(1, 2, 3), 17) == 0
    assert rows_of(path, "SELECT * FROM orders WHERE id = 2") == [(2, 10, 20, 1, "Success")]
    assert checkpoint_in(path) == store.checkpoint == 17


def test_batch_twice_gives_the_same_rows(path: Path, store: Store) -> None:
    batch = [*orders(1, 2, 3, quantity=5), Row(4, None), Row(5, b'{"id":5')]
    store.apply(orders(1, 4), 1)
    results = []
    for _ in range(2):
        assert store.apply(batch, 9) == 1
        results.append((rows_of(path, "SELECT * FROM orders"), rows_of(path, "SELECT id, seq, body FROM dead_letters")))
    assert results[0] == results[1] and store.dead_letters == 1


def test_empty_batch_moves_the_checkpoint(path: Path, store: Store) -> None:
    store.apply([], 5)
    assert checkpoint_in(path) == 5


def test_checkpoint_never_goes_down(path: Path, store: Store) -> None:
    store.apply([], 5)
    store.apply(orders(1), 3)
    assert checkpoint_in(path) == store.checkpoint == 5 and ids_in(path) == [1]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"id":500,"product_id":9223372036854775808,"user_id":1,"quantity":1,"status":"Success"}', "OverflowError"),
        (b'{"id":500,"product_id":null,"user_id":1,"quantity":1,"status":"Success"}', "ValidationError"),
        (b'{"id":500,"product_id":1,"user_id":1,"quantity":1,"status":"\\ud800"}', "DecodeError"),
        (b"\xff\xfe", "DecodeError"),
        (b"", "DecodeError"),
        (order_body(501), "ValueError: the body is that of id 501"),
    ],
)
def test_poison_row_is_the_only_one_of_a_thousand_not_stored(
    path: Path, store: Store, body: bytes, reason: str
) -> None:
    batch = [Row(500, body) if row.id == 500 else row for row in orders(*range(1, 1001))]
    assert store.apply(batch, 1000) == 1
    assert ids_in(path) == [id for id in range(1, 1001) if id != 500]
    ((id, seq, kept, why),) = rows_of(path, "SELECT id, seq, body, reason FROM dead_letters")
    assert (id, seq, kept) == (500, 1000, body) and reason in why
    assert checkpoint_in(path) == 1000 and store.dead_letters == 1


def test_lone_surrogate_past_the_decoder_is_a_dead_letter(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = store._values_of
    monkeypatch.setattr(store, "_values_of", lambda row: (2, 1, 1, 1, "\ud800") if row.id == 2 else good(row))
    assert store.apply(orders(1, 2, 3), 3) == 1
    assert ids_in(path) == [1, 3]
    assert "surrogates not allowed" in rows_of(path, "SELECT reason FROM dead_letters")[0][0]


def test_value_that_sqlite_would_turn_into_null_is_a_dead_letter(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_values_of", lambda row: (row.id, float("nan"), 1, 1, "Success"))
    assert store.apply(orders(1), 1) == 1
    assert "NOT NULL" in rows_of(path, "SELECT reason FROM dead_letters")[0][0]


def test_id_is_in_its_table_or_among_the_dead_letters(path: Path, store: Store) -> None:
    store.apply(orders(1), 1)
    store.apply([Row(1, b"bad")], 2)
    assert ids_in(path) == [] and store.dead_letters == 1
    store.apply(orders(1), 3)
    assert ids_in(path) == [1] and store.dead_letters == 0
    assert rows_of(path, "SELECT * FROM dead_letters") == []


def test_dead_letters_are_counted_at_the_next_open(path: Path, store: Store) -> None:
    store.apply([Row(1, b"bad")], 1)
    store.close()
    again = open_store(path)
    assert again.dead_letters == 1
    again.close()


def test_failing_batch_leaves_rows_and_checkpoint_as_they_were(path: Path, store: Store) -> None:
    store.apply(orders(1), 1)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            store.apply([*orders(2), Row(3, b"bad")], 2)
    assert ids_in(path) == [1] and checkpoint_in(path) == store.checkpoint == 1
    assert rows_of(path, "SELECT * FROM dead_letters") == [] and store.dead_letters == 0
    assert store.apply(orders(2), 2) == 0
    assert ids_in(path) == [1, 2] and checkpoint_in(path) == 2


def test_rows_are_stored_after_a_lock_that_met_the_very_first_batch(path: Path, store: Store) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            store.apply(orders(1), 1)
    store.apply(orders(1), 1)
    assert ids_in(path) == [1]


def test_full_disk_is_not_the_fault_of_a_row(path: Path, store: Store) -> None:
    store.apply(orders(1), 1)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.apply(orders(*range(2, 2000)), 2)
    assert ids_in(path) == [1] and checkpoint_in(path) == 1
    store._db.execute("PRAGMA max_page_count = 100000")
    store.apply(orders(*range(2, 2000)), 2)
    assert len(ids_in(path)) == 1999 and checkpoint_in(path) == 2


def test_database_equals_a_dict_after_random_batches(path: Path, store: Store) -> None:
    seed = random.randrange(2**32)
    print(f"seed={seed}")
    rng = random.Random(seed)
    model: dict[int, int] = {}
    for checkpoint in range(1, 40):
        batch = []
        for id in rng.sample(range(1, 400), rng.randrange(1, 300)):
            quantity = rng.randrange(1, 100)
            is_deleted = rng.random() < 0.3
            batch.append(Row(id, None if is_deleted else order_body(id, quantity)))
            if is_deleted:
                model.pop(id, None)
            else:
                model[id] = quantity
        store.apply(batch, checkpoint)
    assert dict(rows_of(path, "SELECT id, quantity FROM orders")) == model


def test_password_of_a_user_is_his_private_part(path: Path) -> None:
    store = open_store(path, Kind.USER)
    ann, bob = encode_json(User(1, "ann", "a@x")), encode_json(User(2, "bob", "b@x"))
    store.apply([Row(1, ann, b"scrypt:1"), Row(2, bob)], 1)
    store.close()
    assert rows_of(path, "SELECT * FROM users") == [(1, "ann", "a@x", "scrypt:1"), (2, "bob", "b@x", None)]


def test_password_of_a_classic_user_is_in_his_body(path: Path) -> None:
    store = open_store(path, Kind.USER, is_classic=True)
    store.apply([Row(1, encode_json(ClassicUser(1, "ann", "a@x", "ABCD")), b"ABCD")], 1)
    store.close()
    assert rows_of(path, "SELECT * FROM users") == [(1, "ann", "a@x", "ABCD")]


def test_price_keeps_its_value_and_type(path: Path) -> None:
    store = open_store(path, Kind.PRODUCT)
    prices = [0, 5, 162.58, 2**63 - 1, 1e300, 0.1]
    rows = [Row(id, encode_json(Product(id, "n", "d", price, 1))) for id, price in enumerate(prices)]
    assert store.apply(rows, 1) == 0
    store.close()
    stored = [price for (price,) in rows_of(path, "SELECT price FROM products ORDER BY id")]
    assert stored == prices and [type(price) for price in stored] == [type(price) for price in prices]


def test_clean_stop_leaves_no_wal(path: Path, store: Store) -> None:
    store.apply(orders(1), 1)
    store.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_wal_stays_bounded(path: Path, store: Store) -> None:
    for checkpoint in range(1, 101):
        store.apply(orders(*range(1, 500), quantity=checkpoint), checkpoint)
    assert path.with_name(path.name + "-wal").stat().st_size < 8 << 20


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_deleted_file_is_noticed(path: Path, store: Store, suffix: str) -> None:
    store.apply(orders(1), 1)
    assert store.is_in_place()
    path.with_name(path.name + suffix).unlink()
    assert not store.is_in_place()


def test_set_aside_database_can_still_be_read(path: Path, store: Store) -> None:
    store.apply(orders(1, 2), 7)
    aside = set_aside(path)
    store.abandon()
    assert not path.exists() and aside.suffix == ".broken"
    assert ids_in(aside) == [1, 2]
