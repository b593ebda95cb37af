"""Which Idempotency-Keys are remembered, and until when: at most KEYS_MAX, at most KEY_AGE_MAX_S each.

The keys themselves are records in the table (`Kind.KEY`): written with the write they stand for, in the same journal
group, and stored in the database of the orders, so they hold over every crash and restart. The manager keeps only
their order by age here, rebuilt from the table when it comes up. What is too old or one too many is deleted in the
next batch that brings a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from server.batch import KEY_AGE_MAX_S, Batch, decode_entry
from server.commands import KeyEntry, Kind
from server.shm.layout import KIND_MASK, KIND_SHIFT, LOCK
from server.shm.table import TableReader

KEYS_MAX = 100_000  # some 300 bytes of shared memory each: 30 MB
FORGET_MAX = 64  # per batch: more than a batch of keys adds in the long run, too few to delay it


class Keys:
    """Ids of the keys and when they were used, oldest first."""

    def __init__(self) -> None:
        self._at_s: dict[int, int] = {}

    def adopt(self, table: TableReader) -> None:
        """Learn the keys that the table holds."""
        found: list[tuple[int, int]] = []
        for slot, lock in table.scan(LOCK):
            if lock >> KIND_SHIFT & KIND_MASK == Kind.KEY:
                record = table.read_slot(slot)
                if record is not None and record.body is not None:
                    found.append((decode_entry(record.body).at_s, record.id))
        self._at_s = {id: at_s for at_s, id in sorted(found)}

    def forget(self, batch: Batch, now_s: int) -> list[int]:
        """Let a batch delete keys that are too old or too many; return their ids."""
        forgotten: list[int] = []
        too_many = len(self._at_s) + len(batch.keys) - KEYS_MAX
        for id, at_s in self._at_s.items():
            if len(forgotten) >= FORGET_MAX + len(batch.keys) or (
                len(forgotten) >= too_many and at_s + KEY_AGE_MAX_S > now_s
            ):
                break
            if id not in batch.keys:
                batch.forget_key(id)
                forgotten.append(id)
        return forgotten

    def note(self, used: Mapping[int, KeyEntry], forgotten: Iterable[int]) -> None:
        """Take in what a published batch did."""
        for id in forgotten:
            del self._at_s[id]
        for id, entry in used.items():
            if self._at_s.get(id) != entry.at_s:
                self._at_s.pop(id, None)
                self._at_s[id] = entry.at_s
