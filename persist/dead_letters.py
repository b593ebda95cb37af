"""The dead letters as an operator's request sees them: which there are, and which are left after another try.

Used by the workers, in a thread, while the writers have the databases open; it only reads. What a dead letter is and
how it goes away again is in `persist/store.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from persist import schema
from server.commands import PERSISTED_KINDS, Kind, ReplayDeadLetter
from server.errors import DataError


class DeadLetters:
    """The dead letters of a data directory. Raises `DataError` when a database can not be read now."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def oldest(self, count_max: int) -> list[ReplayDeadLetter]:
        """Return the first of them as commands. What fails again gets a higher seq and stands behind the others."""
        found: list[tuple[int, int, Kind]] = []
        for kind in PERSISTED_KINDS:
            with self._open(kind) as connection:
                query = f"SELECT seq, id FROM {schema.DEAD_LETTERS_TABLE} ORDER BY seq, id LIMIT ?"
                found += [(seq, id, kind) for seq, id in connection.execute(query, [count_max])]
        return [ReplayDeadLetter(kind, id) for _, id, kind in sorted(found)[:count_max]]

    def count(self, tried: Sequence[ReplayDeadLetter]) -> tuple[int, int]:
        """Return how many of these are no longer dead letters, and how many dead letters there are."""
        replayed = still_dead = 0
        for kind in PERSISTED_KINDS:
            ids = [letter.id for letter in tried if letter.kind == kind]
            with self._open(kind) as connection:
                still_dead += connection.execute(f"SELECT count(*) FROM {schema.DEAD_LETTERS_TABLE}").fetchone()[0]
                query = f"SELECT 1 FROM {schema.DEAD_LETTERS_TABLE} WHERE id = ?"
                replayed += sum(connection.execute(query, [id]).fetchone() is None for id in ids)
        return replayed, still_dead

    @contextmanager
    def _open(self, kind: Kind) -> Iterator[sqlite3.Connection]:
        path = schema.database_path(self._data_dir, kind)
        try:
            db = schema.open_read_only(path)
            try:
                yield db.conn
            finally:
                db.close()
        except sqlite3.DatabaseError as error:  # locked from outside, or just being set aside
            raise DataError(path, str(error)) from None
