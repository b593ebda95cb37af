"""The three databases: their SQL, how they are opened, and when they are refused.

One file per kind (`users.db`, `products.db`, `orders.db`), each with three tables: the records, one row about the
file itself (`millrace`), and the records that SQLite would not take (`dead_letters`). The writer of a kind is the
only process that opens its file for writing: SQLite before 3.51.3 can corrupt a WAL file when two connections write
or checkpoint at once. Everybody else opens read-only.

WAL with synchronous=FULL: with NORMAL a power cut may take back commits that were reported, and the journal groups
behind them would be gone already (https://sqlite.org/pragma.html#pragma_synchronous).

A file that was made by another instance, another contract or a newer version, or that is not a database, is refused
with `DataError` and left as it is. Only a file without any table in it (new, or its creation was interrupted) is
filled. No other module spells the SQL schema. Reading a file whole to find damage is not done here: the recovery
reads every row anyway.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from sqlite_utils import Database

from server.commands import DATABASE_NAMES, Kind
from server.errors import DataError

SCHEMA_VERSION = 1
META_TABLE = "millrace"
DEAD_LETTERS_TABLE = "dead_letters"
KEYS_TABLE = "idempotency_keys"  # in the database of the orders
COMPANION_SUFFIXES = ("", "-wal", "-shm")  # the files that together are one database

FILE_MODE = 0o600  # password hashes and addresses; SQLite gives -wal and -shm the mode of the database
BUSY_TIMEOUT_S = 0.25  # for a short lock from outside; a longer one is the writer's back-off, which stays responsive
CACHE_KIB = 16 << 10  # keeps the pages of one batch (BATCH_BYTES_MAX) in memory until it commits
WAL_BYTES_KEPT = 16 << 20  # after a checkpoint the -wal file is cut to this; otherwise it keeps its largest size

RECORD_SCHEMAS = {
    Kind.USER: (
        "CREATE TABLE users (id INTEGER PRIMARY KEY, username TEXT NOT NULL, email TEXT NOT NULL, password TEXT)"
    ),
    Kind.PRODUCT: (
        "CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT NOT NULL, description TEXT NOT NULL,"
        " price NUMERIC NOT NULL, quantity INTEGER NOT NULL)"
    ),
    Kind.ORDER: (
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, product_id INTEGER NOT NULL, user_id INTEGER NOT NULL,"
        " quantity INTEGER NOT NULL, status TEXT NOT NULL)"
    ),
}
META_SCHEMA = (
    f"CREATE TABLE {META_TABLE} (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL,"
    " instance TEXT NOT NULL, contract TEXT NOT NULL, checkpoint INTEGER NOT NULL)"
)
# An id is in its table or here, never in both. `seq` is the checkpoint of the batch that the record came with.
DEAD_LETTERS_SCHEMA = (
    f"CREATE TABLE {DEAD_LETTERS_TABLE} (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, body BLOB NOT NULL,"
    " private BLOB NOT NULL, reason TEXT NOT NULL, at TEXT NOT NULL)"
)

KEYS_SCHEMA = f"CREATE TABLE {KEYS_TABLE} (id INTEGER PRIMARY KEY, entry BLOB NOT NULL)"

# in the order of the fields of the record (server/commands.py), which the writer and the recovery rely on
COLUMNS = {
    Kind.USER: ("id", "username", "email", "password"),
    Kind.PRODUCT: ("id", "name", "description", "price", "quantity"),
    Kind.ORDER: ("id", "product_id", "user_id", "quantity", "status"),
}


class Meta(NamedTuple):
    """The row about the file itself."""

    version: int
    instance: str  # hexadecimal; the same in the journal and in all three databases
    contract: str  # "default" or "classic"
    checkpoint: int  # every change of this kind up to this seq is in the file


def database_path(data_dir: Path, kind: Kind) -> Path:
    """Return where the database of a kind stands."""
    return data_dir / f"{DATABASE_NAMES[kind]}.db"


def contract_name(is_classic: bool) -> str:
    """Return the word that the meta table holds for a contract."""
    return "classic" if is_classic else "default"


def open_for_writing(path: Path, kind: Kind, instance: str, contract: str) -> Database:
    """Open a database, creating it if there is none. Writer of this kind only.

    Raises `DataError` for a file that must not be written, `sqlite3.OperationalError` when it can not be opened now
    (locked, no space).
    """
    _create_file(path)
    path.chmod(FILE_MODE)
    with _refusing(path):
        db = Database(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S), execute_plugins=False)
        try:
            is_empty = not db.table_names()
            if not is_empty:
                check(path, kind, read_meta(path, db), instance, contract)
                _check_tables(path, kind, db)
            db.enable_wal()
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
            if is_empty:
                _create_tables(db, kind, instance, contract)
        except BaseException:
            db.close()
            raise
    return db


def open_read_only(path: Path) -> Database:
    """Open an existing database for reading, in any process, while its writer runs. Raises `DataError` if missing."""
    if not path.is_file():
        raise DataError(path, "the database is missing")
    uri = f"file:{quote(str(path))}?mode=ro"
    return Database(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S), execute_plugins=False)


def read_meta(path: Path, db: Database) -> Meta:
    """Return the row about the file. Raises `DataError` when it has none."""
    with _refusing(path):
        if META_TABLE not in db.table_names():
            raise DataError(path, "not a Millrace database")
        row = db.execute(f"SELECT version, instance, contract, checkpoint FROM {META_TABLE}").fetchone()
    if row is None:
        raise DataError(path, "the row about the file itself is missing")
    return Meta(*row)


def check(path: Path, kind: Kind, meta: Meta, instance: str, contract: str) -> None:
    """Raise `DataError` unless the file belongs to this version, this instance and this contract."""
    if meta.version != SCHEMA_VERSION:
        raise DataError(path, f"schema version {meta.version}, this program knows {SCHEMA_VERSION}")
    if meta.instance != instance:
        raise DataError(path, f"{DATABASE_NAMES[kind]} of another instance ({meta.instance}, not {instance})")
    if meta.contract != contract:
        raise DataError(path, f"written with the {meta.contract} contract, started with the {contract} contract")


def _check_tables(path: Path, kind: Kind, db: Database) -> None:
    expected = {DATABASE_NAMES[kind], DEAD_LETTERS_TABLE, *([KEYS_TABLE] if kind is Kind.ORDER else [])}
    missing = sorted(expected - set(db.table_names()))
    if missing:
        raise DataError(path, f"the table {missing[0]} is missing")


def set_checkpoint(db: Database, checkpoint: int) -> None:
    """Store how far the database has come; inside the transaction of the rows."""
    db.execute(f"UPDATE {META_TABLE} SET checkpoint = ?", [checkpoint])


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what SQLite says of a file that is no database, or a damaged one, into `DataError`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise DataError(path, str(error)) from None
        raise


def is_damage(error: BaseException) -> bool:
    """Return whether SQLite says that the file itself is damaged or no database (SQLITE_CORRUPT, SQLITE_NOTADB)."""
    return type(error) is sqlite3.DatabaseError


def _create_file(path: Path) -> None:
    """Make an empty file that only its owner may read, or leave the one that is there."""
    if path.exists():
        return
    wal = path.with_name(path.name + "-wal")
    if wal.exists():  # SQLite would delete it
        raise DataError(path, f"the database is missing, but its {wal.name} is there")
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _create_tables(db: Database, kind: Kind, instance: str, contract: str) -> None:
    with db.atomic():
        for statement in (RECORD_SCHEMAS[kind], DEAD_LETTERS_SCHEMA, META_SCHEMA):
            db.execute(statement)
        if kind is Kind.ORDER:
            db.execute(KEYS_SCHEMA)
        db.table(META_TABLE).insert(
            {"id": 1, "version": SCHEMA_VERSION, "instance": instance, "contract": contract, "checkpoint": 0}
        )
