"""One SQLite database of one service, as a mapping from id to record: every write is a commit of its own.

SQLite runs with its default settings (rollback journal, synchronous=FULL), as whoever opens a database and starts to
write has it: a commit is on the disk when the statement returns, and takes as long as the disk takes. The service
waits for it, and so does everybody who asked something of the service.

    users[5] = ann          INSERT OR REPLACE ... ; commit
    users[5]                SELECT ... WHERE id = 5
    del users[5]            DELETE ... ; commit
    write(rows)             many of the above in one commit: what the push services of version 3 are for

The tables are those of the server (`persist/schema.py`), so that the rows of all shapes can be compared.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import Generic, TypeVar

from persist.schema import COLUMNS, RECORD_SCHEMAS, database_path
from server.commands import DATABASE_NAMES, Kind, Order, Product
from server.rules import StoredUser
from tools.lineage.records import FROM_COLUMNS, Columns, columns_of

R = TypeVar("R", StoredUser, Product, Order)


class Store(MutableMapping[int, R], Generic[R]):
    """The records of one kind in their database. One process has it open."""

    def __init__(self, data_dir: Path, kind: Kind) -> None:
        self._make = FROM_COLUMNS[kind]
        name, places = DATABASE_NAMES[kind], ", ".join("?" * len(COLUMNS[kind]))
        # no isolation level: SQLite commits each statement by itself
        self._database = sqlite3.connect(database_path(data_dir, kind), isolation_level=None)
        self._database.execute(RECORD_SCHEMAS[kind].replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1))
        if kind is Kind.ORDER:
            self._database.execute("CREATE INDEX IF NOT EXISTS orders_of_user ON orders (user_id)")
        self._select = f"SELECT * FROM {name} WHERE id = ?"
        self._select_from = f"SELECT * FROM {name} WHERE id >= ? ORDER BY id LIMIT ?"
        self._select_ids = f"SELECT id FROM {name}"
        self._count = f"SELECT count(*) FROM {name}"
        self._last = f"SELECT max(id) FROM {name}"
        self._insert = f"INSERT OR REPLACE INTO {name} VALUES ({places})"
        self._delete = f"DELETE FROM {name} WHERE id = ?"

    def __getitem__(self, id: int) -> R:
        row = self._database.execute(self._select, (id,)).fetchone()
        if row is None:
            raise KeyError(id)
        record: R = self._make(row)
        return record

    def __setitem__(self, id: int, record: R) -> None:
        self._database.execute(self._insert, columns_of(record))

    def __delitem__(self, id: int) -> None:
        if not self._database.execute(self._delete, (id,)).rowcount:
            raise KeyError(id)

    def __iter__(self) -> Iterator[int]:
        return (id for (id,) in self._database.execute(self._select_ids))

    def __len__(self) -> int:
        count: int = self._database.execute(self._count).fetchone()[0]
        return count

    def last_id(self) -> int:
        """Return the largest id, 0 when there is none."""
        last: int | None = self._database.execute(self._last).fetchone()[0]
        return last or 0

    def rows_from(self, id: int, count_max: int) -> list[Columns]:
        """Return the first rows from an id on."""
        return self._database.execute(self._select_from, (id, count_max)).fetchall()

    def write(self, rows: Iterable[Columns]) -> None:
        """Write many rows in one commit; a row that is only an id is deleted."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for row in rows:
                self._database.execute(self._delete if len(row) == 1 else self._insert, row)
            self._database.execute("COMMIT")
        except BaseException:
            self._database.execute("ROLLBACK")
            raise

    def bought_by(self, user_id: int) -> Counter[int]:
        """Return the units that a user bought per product (orders only). Not SUM: it ends at 2^63."""
        bought: Counter[int] = Counter()
        for product_id, quantity in self._database.execute(
            "SELECT product_id, quantity FROM orders WHERE user_id = ? ORDER BY id", (user_id,)
        ):
            bought[product_id] += quantity
        return bought

    def close(self) -> None:
        self._database.close()
