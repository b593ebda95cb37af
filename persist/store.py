"""One database as its writer uses it: apply a batch whole, put aside what SQLite can not hold.

A batch is one transaction: deletions, then whole new rows, then the checkpoint. Rows are after-images, so a batch
that is applied twice, or again after a crash, gives the same rows. A row that SQLite refuses is found by bisection in
savepoints and buried in `dead_letters`, in the same transaction, so that one bad row never holds up the others; a
later batch with the same id takes it out again.

Rows are written with INSERT OR REPLACE, not with the upsert of sqlite-utils (4.2.1): that one tries ON CONFLICT on a
table of its own first, takes a lock from outside for "not supported", remembers it, and from then on uses INSERT OR
IGNORE, which drops a row that breaks NOT NULL without an error. The rows are complete, so the two mean the same.

What always holds: the checkpoint never goes down; an id is in its table or among the dead letters, never in both.
Errors that speak of the file and not of a row (locked, full, input/output, damaged) are left to the caller, and then
nothing of the batch is there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from persist import schema
from server.commands import DATABASE_NAMES, ClassicUser, Kind, Order, Product, User
from server.failpoints import Failpoint, not_armed
from server.messages import Row

# Rows in one INSERT. sqlite-utils binds at most 999 values a statement, and five columns are the most there are; its
# own default of 100 rows costs a tenth of the speed.
STATEMENT_ROWS = 999 // 5

Values = tuple[Any, ...]
Record = User | ClassicUser | Product | Order


class Store:
    """An open database. Raises `DataError` and `sqlite3.OperationalError` as `schema.open_for_writing` does."""

    def __init__(
        self, path: Path, kind: Kind, instance: str, is_classic: bool, failpoint: Failpoint = not_armed
    ) -> None:
        self.path = path
        self._failpoint = failpoint
        self._db = schema.open_for_writing(path, kind, instance, schema.contract_name(is_classic))
        self._table = self._db.table(DATABASE_NAMES[kind])
        self._dead = self._db.table(schema.DEAD_LETTERS_TABLE)
        self._columns = schema.COLUMNS[kind]
        self._values_of = make_values_of(kind, is_classic)
        self.checkpoint: int = schema.read_meta(path, self._db).checkpoint
        self.dead_letters: int = self._dead.count
        self._files = self._identity()

    def apply(self, rows: Sequence[Row], checkpoint: int) -> int:
        """Commit rows and checkpoint as one; return how many of the rows became dead letters."""
        checkpoint = max(checkpoint, self.checkpoint)
        with self._db.atomic():
            if self.dead_letters:
                self._delete(schema.DEAD_LETTERS_TABLE, rows)
            keys = [row for row in rows if row.is_key]
            if keys:
                self._write_keys(keys)
                rows = [row for row in rows if not row.is_key]
            buried = self._store(rows, checkpoint) if rows else 0
            schema.set_checkpoint(self._db, checkpoint)
            dead_letters = self._dead.count if buried or self.dead_letters else 0
            self._failpoint("writer.in_transaction")
        self.checkpoint = checkpoint
        self.dead_letters = dead_letters
        return buried

    def is_in_place(self) -> bool:
        """Return whether the files that were opened are still the ones that stand at their path."""
        return self._identity() == self._files

    def close(self) -> None:
        """Move the WAL into the database and close it."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._db.close()

    def abandon(self) -> None:
        """Close a database that can not be trusted any more."""
        try:
            self._db.close()
        except sqlite3.Error:  # the file is beyond help; it is only let go
            pass

    def _identity(self) -> list[int | None]:
        """Return the inodes of database and WAL; SQLite goes on writing to a deleted file without a word."""
        names = (self.path, self.path.with_name(self.path.name + "-wal"))
        return [_inode(name) for name in names]

    # ---- rows, inside the transaction --------------------------------------------------------------

    def _store(self, rows: Sequence[Row], checkpoint: int) -> int:
        """Store all rows that SQLite takes and bury the others; return how many those are."""
        try:
            with self._db.atomic():  # a savepoint: all of these rows or none
                self._write(rows)
            return 0
        except Exception as error:
            if not _is_fault_of_row(error):
                raise
            if len(rows) == 1:
                self._bury(rows[0], error, checkpoint)
                return 1
        middle = len(rows) // 2
        return self._store(rows[:middle], checkpoint) + self._store(rows[middle:], checkpoint)

    def _write(self, rows: Sequence[Row]) -> None:
        deleted = [row for row in rows if row.body is None]
        if deleted:
            self._delete(self._table.name, deleted)
        self._table.insert_all(self._records(rows), replace=True, batch_size=STATEMENT_ROWS)

    def _write_keys(self, rows: Sequence[Row]) -> None:
        """Store Idempotency-Keys; bytes that SQLite never refuses."""
        self._delete(schema.KEYS_TABLE, [row for row in rows if row.body is None])
        entries = [{"id": row.id, "entry": row.body} for row in rows if row.body is not None]
        self._db.table(schema.KEYS_TABLE).insert_all(entries, replace=True)

    def _records(self, rows: Sequence[Row]) -> Iterator[Values]:
        """Yield the column names and then the values of each row: the list form of sqlite-utils, twice as fast."""
        yield self._columns
        values_of = self._values_of
        for row in rows:
            if row.body is not None:
                yield values_of(row)

    def _bury(self, row: Row, error: Exception, checkpoint: int) -> None:
        """Keep a row that can not be stored, whole, where the recovery finds it."""
        self._delete(self._table.name, [row])
        self._dead.insert(
            {
                "id": row.id,
                "seq": checkpoint,
                "body": row.body,
                "private": row.private,
                "reason": f"{type(error).__name__}: {error}",
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            replace=True,
        )

    def _delete(self, table: str, rows: Sequence[Row]) -> None:
        # one prepared statement; `delete_where` of sqlite-utils would open a savepoint for each row
        self._db.conn.executemany(f"DELETE FROM {table} WHERE id = ?", ((row.id,) for row in rows))


def make_values_of(kind: Kind, is_classic: bool) -> Callable[[Row], Values]:
    """Return the function that turns a row into the values of its columns. It raises `ValueError` for a bad body."""
    user_type = ClassicUser if is_classic else User
    record_types: dict[Kind, type[Record]] = {Kind.USER: user_type, Kind.PRODUCT: Product, Kind.ORDER: Order}
    decode: Callable[[bytes], Record] = msgspec.json.Decoder(record_types[kind]).decode
    astuple = msgspec.structs.astuple
    has_private = kind is Kind.USER and not is_classic

    def values_of(row: Row) -> Values:
        record = decode(row.body or b"")
        if record.id != row.id:
            raise ValueError(f"the body is that of id {record.id}")
        if has_private:
            return (*astuple(record), row.private.decode() or None)
        return astuple(record)

    return values_of


def set_aside(path: Path) -> Path:
    """Rename a database and what belongs to it, so that a new one can take its place; return the new name."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = path.with_name(f"{path.name}.{stamp}.broken")
    for suffix in schema.COMPANION_SUFFIXES:
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(aside.with_name(aside.name + suffix))
    return aside


def _is_fault_of_row(error: Exception) -> bool:
    """Return whether an error is about a value and not about the file, the disk, a lock or memory."""
    if schema.is_damage(error):
        return False
    return not isinstance(error, (sqlite3.OperationalError, sqlite3.InternalError, MemoryError, OSError))


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
