"""The first load: three databases and the journal behind them become the table.

Used by the manager once, before anything is served. Each database is read as of its own checkpoint; then the groups
of the journal are replayed in order, of each kind only what is newer than the checkpoint of that kind. Changes are
after-images, so a database that already holds some of them ends in the same state.

Purchases are no records of their own: each order adds to them once. An order never changes, so one that is already in
the table is skipped, its purchase with it.

Records that SQLite refused are loaded from the dead letters: they were acknowledged. A row's own seq is not stored; it
is 0 in the table, "older than any checkpoint".

What always holds: nothing is served that has a hole. A journal whose beginning was retired goes with databases that
hold what is gone from it; a missing or new database file, or one from a backup, is refused with `DataError`. This
counts on seqs without gaps: those of a refused group are used again. That no group is missing inside the journal is
the journal's own promise.

Leaves out: a check of every value. SQLite finds damaged pages while it reads; who writes other values into the files
with another program will see them.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from persist import schema
from server.commands import (
    DATABASE_NAMES,
    PERSISTED_KINDS,
    ClassicUser,
    Kind,
    Order,
    Product,
    User,
    canonical_price,
    encode_json,
)
from server.errors import DataError
from server.journal.format import Change, Group

log = logging.getLogger(__name__)

FETCH_ROWS = 1000  # enough that a call into SQLite costs nothing per row, few enough to stay in the CPU's cache
ROW_SEQ = 0  # older than any change
# Orders of the same user and product are added up here before the table counts them: that costs it more than a dict.
PURCHASES_HELD_MAX = 100_000  # pairs; some 20 MiB

Row = tuple[Any, ...]
decode_order = msgspec.json.Decoder(Order).decode


class Table(Protocol):
    """What the load needs of the table's writer."""

    def put(self, kind: int, id: int, seq: int, body: bytes, private: bytes = b"") -> None: ...

    def delete(self, kind: int, id: int, seq: int) -> None: ...

    def add_purchase(self, user_id: int, product_id: int, quantity: int, seq: int) -> None: ...

    def seq_of(self, kind: int, id: int) -> int: ...

    def presize(self, kind: int, records: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Recovered:
    """Where the server goes on. Sequences of three are in the order of the kinds."""

    last_seq: int
    next_order_id: int
    checkpoints: tuple[int, int, int]
    rows: tuple[int, int, int]  # loaded from the databases, dead letters included
    replayed: int  # changes taken from the journal


def load(data_dir: Path, instance: str, is_classic: bool, table: Table, groups: Iterable[Group]) -> Recovered:
    """Fill an empty table. `groups` is the whole journal, oldest first.

    Raises `DataError` when a file can not be trusted or something is missing, `MemoryFull` when the table is too small.
    """
    loader = _Loader(table, is_classic)
    for kind in PERSISTED_KINDS:
        loader.load_database(schema.database_path(data_dir, kind), kind, instance)
    last_seq = loader.replay(groups, data_dir)
    users, products, orders = (loader.checkpoints[kind] for kind in PERSISTED_KINDS)
    return Recovered(
        last_seq=last_seq,
        next_order_id=loader.last_order_id + 1,
        checkpoints=(users, products, orders),
        rows=(loader.rows[Kind.USER], loader.rows[Kind.PRODUCT], loader.rows[Kind.ORDER]),
        replayed=loader.replayed,
    )


def newest_checkpoint(data_dir: Path) -> int:
    """Return how far the database has come that came furthest. Raises `DataError` when one can not be trusted."""
    newest = 0
    for kind in PERSISTED_KINDS:
        path = schema.database_path(data_dir, kind)
        db = schema.open_read_only(path)
        try:
            newest = max(newest, schema.read_meta(path, db).checkpoint)
        finally:
            db.close()
    return newest


class _Loader:
    def __init__(self, table: Table, is_classic: bool) -> None:
        self._table = table
        self._is_classic = is_classic
        self.checkpoints: dict[int, int] = {}
        self.rows: dict[int, int] = {}
        self.last_order_id = 0
        self.replayed = 0

    # ---- databases -----------------------------------------------------------------------------------

    def load_database(self, path: Path, kind: Kind, instance: str) -> None:
        """Put all rows of one database into the table, as of one moment."""
        db = schema.open_read_only(path)
        try:
            db.begin()  # one snapshot: the checkpoint and the rows that belong to it
            meta = schema.read_meta(path, db)
            schema.check(path, kind, meta, instance, schema.contract_name(self._is_classic))
            self.checkpoints[kind] = meta.checkpoint
            self.rows[kind] = self._load_rows(db.conn, kind) + self._load_dead_letters(db.conn, kind)
            if kind is Kind.ORDER:
                self._load_keys(db.conn)
        except sqlite3.DatabaseError as error:
            raise DataError(path, str(error)) from None
        finally:
            db.close()

    def _load_rows(self, connection: sqlite3.Connection, kind: Kind) -> int:
        columns = ", ".join(schema.COLUMNS[kind])
        self._table.presize(kind, connection.execute(f"SELECT count(*) FROM {DATABASE_NAMES[kind]}").fetchone()[0])
        rows = _fetch(connection.execute(f"SELECT {columns} FROM {DATABASE_NAMES[kind]} ORDER BY id"))
        put_all: Callable[[Iterator[Row]], int] = {
            Kind.USER: self._put_classic_users if self._is_classic else self._put_users,
            Kind.PRODUCT: self._put_products,
            Kind.ORDER: self._put_orders,
        }[kind]
        return put_all(rows)

    def _put_users(self, rows: Iterator[Row]) -> int:
        put, count = self._table.put, 0
        for id, username, email, password in rows:
            body = encode_json(User(id, username, email))
            put(Kind.USER, id, ROW_SEQ, body, password.encode() if password else b"")
            count += 1
        return count

    def _put_classic_users(self, rows: Iterator[Row]) -> int:
        put, count = self._table.put, 0
        for id, username, email, password in rows:
            body = encode_json(ClassicUser(id, username, email, password))
            put(Kind.USER, id, ROW_SEQ, body, (password or "").encode())
            count += 1
        return count

    def _put_products(self, rows: Iterator[Row]) -> int:
        put, count = self._table.put, 0
        for id, name, description, price, quantity in rows:
            product = Product(id, name, description, canonical_price(price), quantity)
            put(Kind.PRODUCT, id, ROW_SEQ, encode_json(product))
            count += 1
        return count

    def _put_orders(self, rows: Iterator[Row]) -> int:
        put, count, id = self._table.put, 0, 0
        units: dict[tuple[int, int], int] = {}  # in the order of the first purchase, which is that of the answers
        for id, product_id, user_id, quantity, status in rows:
            put(Kind.ORDER, id, ROW_SEQ, encode_json(Order(id, product_id, user_id, quantity, status)))
            pair = user_id, product_id
            units[pair] = units.get(pair, 0) + quantity
            if len(units) == PURCHASES_HELD_MAX:
                self._add_purchases(units)
            count += 1
        self._add_purchases(units)
        self.last_order_id = max(self.last_order_id, id)
        return count

    def _add_purchases(self, units: dict[tuple[int, int], int]) -> None:
        for (user_id, product_id), quantity in units.items():
            self._table.add_purchase(user_id, product_id, quantity, ROW_SEQ)
        units.clear()

    def _load_dead_letters(self, connection: sqlite3.Connection, kind: Kind) -> int:
        count = 0
        for id, body, private in connection.execute(f"SELECT id, body, private FROM {schema.DEAD_LETTERS_TABLE}"):
            self._put_record(kind, id, ROW_SEQ, body, private)
            count += 1
        return count

    def _load_keys(self, connection: sqlite3.Connection) -> None:
        for id, entry in connection.execute(f"SELECT id, entry FROM {schema.KEYS_TABLE}"):
            self._table.put(Kind.KEY, id, ROW_SEQ, entry)

    # ---- journal -------------------------------------------------------------------------------------

    def replay(self, groups: Iterable[Group], data_dir: Path) -> int:
        """Apply what the databases do not have yet; return the last seq there is."""
        lowest, highest = min(self.checkpoints.values()), max(self.checkpoints.values())
        last_seq = lowest
        for number, group in enumerate(groups):
            if number == 0 and group.first_seq > lowest + 1:
                raise DataError(self._path_of_lowest(data_dir), _missing(lowest + 1, group.first_seq - 1))
            last_seq = max(last_seq, group.first_seq + group.count - 1)
            for change in group.changes:
                if change.seq > self.checkpoints[Kind.ORDER if change.kind == Kind.KEY else change.kind]:
                    self._apply(change)
                    self.replayed += 1
        if last_seq < highest:
            raise DataError(self._path_of_lowest(data_dir), _missing(last_seq + 1, highest))
        return last_seq

    def _path_of_lowest(self, data_dir: Path) -> Path:
        lowest = min(PERSISTED_KINDS, key=lambda kind: self.checkpoints[kind])
        return schema.database_path(data_dir, lowest)

    def _apply(self, change: Change) -> None:
        if change.body is None:
            self._table.delete(change.kind, change.id, change.seq)
        else:
            self._put_record(change.kind, change.id, change.seq, change.body, change.private)

    def _put_record(self, kind: int, id: int, seq: int, body: bytes, private: bytes) -> None:
        if kind == Kind.ORDER:
            self._put_order(id, seq, body)
        else:
            self._table.put(kind, id, seq, body, private)

    def _put_order(self, id: int, seq: int, body: bytes) -> None:
        self.last_order_id = max(self.last_order_id, id)
        if self._table.seq_of(Kind.ORDER, id) >= 0:
            return
        self._table.put(Kind.ORDER, id, seq, body)
        try:
            order = decode_order(body)
        except msgspec.MsgspecError as error:
            log.error("order without purchase id=%d error=%s", id, error)
            return
        self._table.add_purchase(order.user_id, order.product_id, order.quantity, seq)


def _missing(first: int, last: int) -> str:
    return f"changes {first} to {last} are neither in this database nor in the journal (a lost or replaced file?)"


def _fetch(cursor: sqlite3.Cursor) -> Iterator[Row]:
    while rows := cursor.fetchmany(FETCH_ROWS):
        yield from rows
