"""What one writer still has to be told: the persister's state for one database.

    later ──(when pending is empty)──> pending ──rows──> batch ──parts──> writer ──BatchDone──> checkpoint

A period adds dirty slots to `later`. While a batch is under way, or the database is locked or full, they only
collect there - slot numbers, not rows, so a long outage costs little memory and a record that changes a thousand
times is one row at its end. When everything of one diff is sent, `later` becomes the next diff. So a diff always
ends, however fast new changes come, and with it the checkpoint moves.

What always holds: `checkpoint` is what the writer reported, never a guess; a batch carries a new checkpoint only when
no slot of its diff is left; at most one batch is under way, and nothing of it leaves before the journal is durable up
to `need_seq`, the newest change in its rows or under its checkpoint.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from persist import diff
from server.commands import Kind
from server.message_socket import MessageSocket
from server.shm.table import TableReader


@dataclass(slots=True)
class Batch:
    """A batch that is under way."""

    number: int
    need_seq: int
    rows: int
    unsent: deque[bytes]
    is_released: bool = False  # the journal is durable: it may go


class Feed:
    """One writer as the persister sees it. Numbers of batches are the caller's, never the same twice."""

    def __init__(self, kind: Kind, channel: MessageSocket, checkpoint: int) -> None:
        self.kind = kind
        self.channel = channel
        self.restart(checkpoint)

    def restart(self, checkpoint: int) -> None:
        """Forget what was under way: a writer has (re)started and holds `checkpoint`; a scan finds the rest."""
        self.checkpoint = checkpoint
        self.needs_scan = True
        self.batch: Batch | None = None
        self.pending: set[int] = set()
        self.pending_upto = checkpoint
        self.later: set[int] = set()
        self.later_upto = checkpoint

    @property
    def scan_after(self) -> int:
        """Seq after which a scan finds all that the database misses.

        An empty database misses also the records with seq 0, those that were loaded from the file it replaces.
        """
        return self.checkpoint or -1

    @property
    def dirty_records(self) -> int:
        """Records that are known to be dirty and not yet stored; one may be counted twice."""
        return len(self.pending) + len(self.later) + (self.batch.rows if self.batch else 0)

    def add(self, slots: set[int], upto: int) -> None:
        """Add the dirty slots of a period; with them every change up to `upto` is known here."""
        self.later |= slots
        self.later_upto = upto
        self.needs_scan = False

    def try_compose(self, reader: TableReader, number: int) -> bool:
        """Make the next batch, if none is under way and there is something to tell."""
        if self.batch is not None or self.needs_scan:
            return False
        if not self.pending:
            self.pending, self.pending_upto = self.later, self.later_upto
            self.later = set()
        # a new manager marks slots dirty again whose changes are in the database: no news, but they must go
        if not self.pending and self.pending_upto <= self.checkpoint:
            return False
        rows, newest_seq = diff.take_rows(reader, self.kind, self.pending)
        if self.pending and not rows:  # only locked slots are left
            return False
        checkpoint = self.checkpoint if self.pending else max(self.checkpoint, self.pending_upto)
        parts = diff.encode_parts(number, self.checkpoint, checkpoint, rows)
        # a row may hold a change that is in the table but not yet in PUBLISHED_SEQ: its own seq decides
        self.batch = Batch(number, max(checkpoint, newest_seq), len(rows), deque(parts))
        return True

    def send(self) -> bool:
        """Send as much of a released batch as the channel takes; return whether its last part has gone now."""
        batch = self.batch
        if batch is None or not batch.is_released or not batch.unsent:
            return False
        while batch.unsent and self.channel.try_send(batch.unsent[0]):
            batch.unsent.popleft()
        return not batch.unsent

    def wants_write(self) -> bool:
        """Return whether parts wait for room in the channel."""
        return self.batch is not None and self.batch.is_released and bool(self.batch.unsent)

    def finish(self, number: int, checkpoint: int) -> None:
        """Take in that a batch is committed; one of an earlier persister counts as well."""
        self.checkpoint = max(self.checkpoint, checkpoint)
        if self.batch is not None and self.batch.number == number:
            self.batch = None
