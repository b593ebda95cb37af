"""The dirty diff: from slots to rows, at a cost that follows the number of dirty records.

Used by the persister only. A slot number says nothing but "something changed here": what is sent is what the slot
holds when it is read, so many changes of one record are one row, and reading later never gives an older value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

from server.commands import KEY, ORDER, PERSISTED_KINDS, Kind
from server.errors import SlotBusy
from server.message_socket import MESSAGE_BYTES_MAX
from server.messages import BatchPart, Row, encode
from server.shm.layout import KIND_MASK, KIND_SHIFT, LOCK
from server.shm.table import TableReader

# One batch is one transaction: large enough that its fsync does not count, short enough (some 0.2 s) that a writer
# notices within its bound of two seconds when the supervisor is gone, and that a restart repeats little.
BATCH_ROWS_MAX = 20_000
BATCH_BYTES_MAX = 8 << 20

ROW_BYTES = 32  # of a packed row beside body and private part: headers of one array, one integer, two strings
PART_BYTES_MAX = MESSAGE_BYTES_MAX - 128  # rows of one part; the rest is for the part's own fields

_by_id = attrgetter("id")


class Taken(NamedTuple):
    """Rows for one batch, in the order of their ids, and the seq of the newest change among them (0: no rows)."""

    rows: list[Row]
    newest_seq: int


def group_by_kind(words: memoryview, slots: Iterable[int]) -> dict[Kind, set[int]]:
    """Return the slots for each database; keys go with the orders, purchases are left out: the orders hold them.

    A slot that changes hands meanwhile is caught by `take_rows`: its new record was marked dirty for itself.
    """
    groups: dict[int, set[int]] = {kind: set() for kind in range(KIND_MASK + 1)}
    for slot in slots:
        groups[words[slot + LOCK] >> KIND_SHIFT & KIND_MASK].add(slot)
    groups[Kind.ORDER] |= groups[Kind.KEY]
    return {kind: groups[kind] for kind in PERSISTED_KINDS}


def take_rows(reader: TableReader, kind: Kind, slots: set[int]) -> Taken:
    """Take slots out of `slots` until a batch is full, and return their rows.

    A slot that its writer left locked (`SlotBusy`) stays in `slots`: the next manager repairs it. Free slots and
    records of another kind are dropped.
    """
    rows: list[Row] = []
    busy: list[int] = []
    size = newest_seq = 0
    kinds = (kind, KEY) if kind == ORDER else (kind,)
    while slots and len(rows) < BATCH_ROWS_MAX and size < BATCH_BYTES_MAX:
        slot = slots.pop()
        try:
            record = reader.read_slot(slot)
        except SlotBusy:
            busy.append(slot)
            continue
        if record is None or record.kind not in kinds:
            continue
        row = Row(record.id, record.body, record.private, record.kind == KEY)
        rows.append(row)
        size += row_bytes(row)
        if record.seq > newest_seq:
            newest_seq = record.seq
    slots.update(busy)
    rows.sort(key=_by_id)
    return Taken(rows, newest_seq)


def encode_parts(batch: int, after: int, checkpoint: int, rows: list[Row]) -> list[bytes]:
    """Return a batch as messages of at most MESSAGE_BYTES_MAX; without rows it is one message."""
    parts = list(split_rows(rows)) or [[]]
    return [encode(BatchPart(batch, part, len(parts), after, checkpoint, some)) for part, some in enumerate(parts)]


def split_rows(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield the rows in lists that fit into one message each."""
    part: list[Row] = []
    size = 0
    for row in rows:
        of_row = row_bytes(row)
        size += of_row
        if size > PART_BYTES_MAX and part:
            yield part
            part, size = [], of_row
        part.append(row)
    if part:
        yield part


def row_bytes(row: Row) -> int:
    """Return the most that a row takes in a message."""
    return ROW_BYTES + len(row.body or b"") + len(row.private)
