"""The database files: what they hold, who may read them, and which ones are refused."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from persist import schema
from server.commands import PERSISTED_KINDS, Kind
from server.errors import DataError

INSTANCE = "00" * 16


def open_orders(path: Path, instance: str = INSTANCE, contract: str = "default") -> schema.Database:
    return schema.open_for_writing(path, Kind.ORDER, instance, contract)


def make_orders(path: Path) -> None:
    open_orders(path).close()


@pytest.mark.parametrize("kind", PERSISTED_KINDS)
def test_new_database_is_empty_at_checkpoint_zero(tmp_path: Path, kind: Kind) -> None:
    path = schema.database_path(tmp_path, kind)
    with schema.open_for_writing(path, kind, INSTANCE, "default") as db:
        assert schema.read_meta(path, db) == (schema.SCHEMA_VERSION, INSTANCE, "default", 0)
        table = db.table(path.stem)
        assert tuple(table.columns_dict) == schema.COLUMNS[kind] and table.count == 0
        nullable = [column.name for column in table.columns if not column.notnull and not column.is_pk]
        assert nullable == (["password"] if kind is Kind.USER else [])


@pytest.mark.parametrize("table", ["orders", schema.DEAD_LETTERS_TABLE, schema.KEYS_TABLE])
def test_database_without_one_of_its_tables_is_refused(tmp_path: Path, table: str) -> None:
    path = tmp_path / "orders.db"
    make_orders(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"DROP TABLE {table}")
    with pytest.raises(DataError, match=f"{table} is missing"):
        open_orders(path)


def test_every_commit_is_synced_into_a_wal(tmp_path: Path) -> None:
    with open_orders(tmp_path / "orders.db") as db:
        assert db.journal_mode == "wal"
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_all_files_of_a_database_are_for_their_owner_only(tmp_path: Path) -> None:
    with open_orders(tmp_path / "orders.db") as db:
        schema.set_checkpoint(db, 1)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"orders.db": 0o600, "orders.db-wal": 0o600, "orders.db-shm": 0o600}


def test_existing_database_keeps_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    with open_orders(path) as db:
        schema.set_checkpoint(db, 41)
    with open_orders(path) as db:
        assert schema.read_meta(path, db).checkpoint == 41


def test_interrupted_creation_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    with open_orders(path) as db:
        assert schema.read_meta(path, db).checkpoint == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE millrace SET version = version + 1", "schema version 2"),
        ("UPDATE millrace SET instance = 'other'", "another instance"),
        ("UPDATE millrace SET contract = 'classic'", "classic contract"),
        ("DELETE FROM millrace", "row about the file"),
        ("DROP TABLE millrace", "not a Millrace database"),
    ],
)
def test_foreign_database_is_refused_and_left_as_it_is(tmp_path: Path, change: str, reason: str) -> None:
    path = tmp_path / "orders.db"
    make_orders(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(change)
    before = path.read_bytes()
    with pytest.raises(DataError, match=reason):
        open_orders(path)
    assert path.read_bytes() == before


def test_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    path.write_bytes(b"my poems\n" * 1000)
    with pytest.raises(DataError, match="not a database"):
        open_orders(path)
    assert path.read_bytes() == b"my poems\n" * 1000


def test_wal_without_its_database_is_refused(tmp_path: Path) -> None:
    wal = tmp_path / "orders.db-wal"
    wal.write_bytes(b"committed rows")
    with pytest.raises(DataError, match="missing"):
        open_orders(tmp_path / "orders.db")
    assert wal.read_bytes() == b"committed rows" and not (tmp_path / "orders.db").exists()


def test_reader_can_not_write_and_does_not_create(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    with pytest.raises(DataError, match="missing"):
        schema.open_read_only(path)
    make_orders(path)
    with schema.open_read_only(path) as db, pytest.raises(sqlite3.OperationalError, match="readonly"):
        schema.set_checkpoint(db, 7)


def test_locked_database_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    make_orders(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            open_orders(path)
