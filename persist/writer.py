"""The writer process: one database, batches in, transactions out.

    persister ──BatchPart──> writer ──> users.db | products.db | orders.db
              <─WriterReady─
              <──BatchDone──

Once the database is open the writer says how far it has come (`WriterReady`); from then on it commits every complete
batch and answers `BatchDone`. It holds at most one batch. A batch may come again (its writer or the persister died
in between): it gives the same rows.

When SQLite can not write now (locked from outside, no space, input/output error) the batch waits, with a growing
pause between the tries; the loop goes on meanwhile, so the writer still notices a stop and the end of the supervisor.

When the file is damaged, or no longer stands at its path, it is set aside under a name with a time stamp and a new,
empty one takes its place with checkpoint 0: the table in shared memory holds every record, and the persister sends
all of them. Only while the table is being loaded, when the database is where the records come from, such a file is
refused (`DataError`, exit code 3) and left as it is.

What always holds: a batch that builds on a checkpoint that the database does not hold (`after`) is never applied, so
a batch meant for a file that is gone can not make an empty one look complete.
"""

from __future__ import annotations

import logging
import selectors
import sqlite3
import time

from persist import schema
from persist.store import Store, set_aside
from server.commands import DATABASE_NAMES, Kind
from server.config import Config
from server.errors import DataError, PeerGone
from server.messages import BatchDone, BatchPart, WriterReady, decode_for_writer, encode
from server.shared import Shared
from server.shm import counters, layout
from server.shm.counters import counters_block
from server.stop_signal import StopSignal

log = logging.getLogger(__name__)

EXIT_STOPPED = 0
EXIT_ORPHANED = 1
EXIT_REFUSED = 3

RETRY_MIN_S = 0.05  # a lock from outside is mostly short
RETRY_MAX_S = 1.0  # after an outage the database is back in use within this time
IDLE_S = 3600.0  # a selector wants a number; nothing happens when it ends


def main(config: Config, shared: Shared, kind: Kind) -> int:
    """Run the writer of `kind` until it is asked to stop; return the exit code."""
    stop = StopSignal()
    writer = Writer(config, shared, kind)
    try:
        return writer.run(stop)
    except DataError as error:
        log.error("database refused error=%s", error)
        return EXIT_REFUSED
    except PeerGone:
        return EXIT_ORPHANED


class Writer:
    """The loop and what it waits for."""

    def __init__(self, config: Config, shared: Shared, kind: Kind) -> None:
        self._kind = kind
        self._path = schema.database_path(config.data_dir, kind)
        self._is_classic = config.classic
        self._shared = shared
        self._failpoint = shared.failpoint
        self._channel = shared.writer_pairs[kind][1]
        self._words = shared.segment.words
        self._counters = counters_block(shared.segment, counters.WRITER + kind)
        self._is_ready = False
        self._store: Store | None = None
        self._parts: list[BatchPart] = []
        self._unsent: list[bytes] = []  # found the channel full; one answer to each start and to each batch
        self._retry_at = 0.0
        self._retry_s = RETRY_MIN_S

    def run(self, stop: StopSignal) -> int:
        """Work until a stop, then finish what is queued and close; leave at once when the supervisor is gone."""
        orphaned = self._shared.supervisor_pidfd
        with selectors.DefaultSelector() as selector:
            for watched in (self._channel, stop, orphaned):
                selector.register(watched, selectors.EVENT_READ)
            while True:
                self.turn()
                wants_write = selectors.EVENT_WRITE if self._unsent else 0
                selector.modify(self._channel, selectors.EVENT_READ | wants_write)
                ready = {key.fileobj for key, _ in selector.select(self._timeout(stop.is_set))}
                if orphaned in ready:
                    return EXIT_ORPHANED
                if stop in ready:
                    stop.drain()
                if stop.is_set and not ready and not self._has_batch():
                    return self.close()

    def turn(self) -> None:
        """Send what waits, take in one message, and work unless the database is to be left alone for a while."""
        self._send_unsent()
        self._receive()
        if time.monotonic() >= self._retry_at:
            self._work()

    def close(self) -> int:
        """Close the database, whole and without a WAL."""
        if self._store is not None:
            self._store.close()
        log.info("writer stopped database=%s", DATABASE_NAMES[self._kind])
        return EXIT_STOPPED

    def _timeout(self, is_stopping: bool) -> float:
        if self._store is None or self._has_batch():
            return max(0.0, self._retry_at - time.monotonic())
        return 0.0 if is_stopping else IDLE_S

    def _has_batch(self) -> bool:
        return bool(self._parts) and len(self._parts) == self._parts[0].parts

    # ---- messages ------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take one message and keep it if it is the next part of a batch."""
        data = self._channel.try_receive()
        if data is None:
            return
        part = decode_for_writer(data)
        if self._parts and self._parts[0].batch != part.batch:
            self._parts.clear()
        if part.part == len(self._parts):  # else its beginning went to a writer that died
            self._parts.append(part)

    def _send(self, message: WriterReady | BatchDone) -> None:
        self._unsent.append(encode(message))
        self._send_unsent()

    def _send_unsent(self) -> None:
        while self._unsent and self._channel.try_send(self._unsent[0]):
            del self._unsent[0]

    # ---- the database --------------------------------------------------------------------------------

    def _work(self) -> None:
        """Open the database if it is not, then commit the batch if it is complete."""
        try:
            if self._store is None:
                self._store = self._open()
                self._announce(self._store)
            if self._has_batch():
                self._commit(self._store)
        except sqlite3.DatabaseError as error:
            if schema.is_damage(error):
                self._give_up(str(error))
            else:
                self._put_off(error)
        except OSError as error:  # of the file system around SQLite: renaming, looking up
            self._put_off(error)
        else:
            self._retry_s = RETRY_MIN_S

    def _commit(self, store: Store) -> None:
        first = self._parts[0]
        if first.after > store.checkpoint:  # made for a file that is gone; our WriterReady tells the persister
            self._parts.clear()
            return
        if not store.is_in_place():
            self._give_up("the file was deleted or replaced")
            return
        rows = [row for part in self._parts for row in part.rows]
        self._failpoint("writer.before_begin")
        buried = store.apply(rows, first.checkpoint)
        self._failpoint("writer.after_commit")
        self._parts.clear()
        self._counters[counters.WRITER_BATCHES] += 1
        self._counters[counters.WRITER_ROWS] += len(rows)
        self._counters[counters.DEAD_LETTERS] = store.dead_letters
        if buried:
            log.error("rows not stored file=%s dead_letters=%d", self._path.name, buried)
        self._send(BatchDone(first.batch, store.checkpoint, len(rows), buried))

    def _announce(self, store: Store) -> None:
        log.info("database open file=%s checkpoint=%d", self._path.name, store.checkpoint)
        self._counters[counters.DEAD_LETTERS] = store.dead_letters
        self._send(WriterReady(store.checkpoint))
        if not self._is_ready:
            self._is_ready = True
            self._shared.tell_ready(counters.WRITER + self._kind)

    def _open(self) -> Store:
        """Open the database; a new one if what stands there is not what this run has written."""
        try:
            store = self._open_file()
        except DataError as error:
            self._set_aside(error.detail)
            return self._open_file()
        if self._is_table_complete() and store.checkpoint < self._words[layout.CHECKPOINT + self._kind]:
            store.abandon()
            self._set_aside(f"its checkpoint went back to {store.checkpoint}")
            return self._open_file()
        return store

    def _open_file(self) -> Store:
        instance = self._shared.instance.hex()
        return Store(self._path, self._kind, instance, self._is_classic, self._shared.failpoint)

    def _give_up(self, reason: str) -> None:
        """Let a broken file go; the next turn opens an empty one and the persister fills it."""
        if self._store is not None:
            self._store.abandon()
            self._store = None
        self._parts.clear()
        self._set_aside(reason)

    def _set_aside(self, reason: str) -> None:
        """Rename the file. Raises `DataError` instead while it is needed to load the table."""
        if not self._is_table_complete():
            raise DataError(self._path, reason)
        aside = set_aside(self._path)
        log.error("database set aside file=%s as=%s reason=%s", self._path.name, aside.name, reason)
        self._counters[counters.ERRORS] += 1

    def _is_table_complete(self) -> bool:
        return self._words[layout.TABLE_STATE] == layout.TABLE_SERVING

    def _put_off(self, error: sqlite3.Error | OSError) -> None:
        """Try again later: the rows are safe in the journal and in shared memory."""
        if self._retry_s == RETRY_MIN_S:
            log.warning("database not writable file=%s error=%s", self._path.name, error)
        self._counters[counters.OUTAGES] += 1
        self._retry_at = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
