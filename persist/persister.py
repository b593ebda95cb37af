"""The persister process: in each period, what has changed goes to the writers.

    shared memory ──dirty slots──> persister ──BatchPart──> 3 writers
                      manager <──Sync, Checkpoints── │ ^──BatchDone, WriterReady──┘
                              ──Synced, FlushNow──>

A period reads PUBLISHED_SEQ first and takes the dirty slots then, so every change up to that seq is among them. When
the dirty ring does not know (at the start, after a long delay, for a writer that has just started) one scan of the
table by seq does. The rows are read, and leave only when the journal is durable up to the newest change
among them: after a power cut no database is ever ahead of the journal.

The three writers go on independently (`persist/feed.py`): one locked or full database holds up only itself. A writer
that starts says which checkpoint it holds and gets everything after it. The reports of the writers move CHECKPOINT
and PERSISTED_SEQ and are passed to the manager, which then retires journal segments and answers who waits.

A stop (SIGUSR1) shortens the period until every checkpoint has reached PUBLISHED_SEQ; how long that may take is the
supervisor's decision. Without changes nothing is sent and nothing is written.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections import deque
from typing import Any

from persist import diff
from persist.feed import Feed
from server.commands import PERSISTED_KINDS
from server.config import Config
from server.errors import PeerGone
from server.messages import (
    BatchDone,
    Checkpoints,
    FlushNow,
    Sync,
    Synced,
    WriterReady,
    decode_for_persister,
    encode,
)
from server.shared import Shared
from server.shm import counters, layout
from server.shm.counters import counters_block
from server.shm.dirty import DirtyReader
from server.shm.table import TableReader
from server.stop_signal import StopSignal

log = logging.getLogger(__name__)

EXIT_STOPPED = 0
EXIT_ORPHANED = 1

SYNC_RETRY_S = 0.5  # a manager that died took the question with it; its successor is up within about this time
STOP_PERIOD_S = 0.01  # at a stop nobody waits for more changes
LAG_MARKS_MAX = 1024  # seqs whose first sight is remembered for the flush lag; beyond, lag is rounded up
NEVER = 1 << 63  # above every seq


def main(config: Config, shared: Shared) -> int:
    """Run the persister until it is asked to stop and everything is in SQLite; return the exit code."""
    stop = StopSignal()
    persister = Persister(config, shared)
    shared.tell_ready(counters.PERSISTER)
    try:
        return persister.run(stop)
    except PeerGone:
        return EXIT_ORPHANED


class Persister:
    """The loop, and what it knows of the writers."""

    def __init__(self, config: Config, shared: Shared) -> None:
        self._failpoint = shared.failpoint
        self._period_s = config.persist_period_ms / 1000
        self._orphaned = shared.supervisor_pidfd
        self._words = shared.segment.words
        self._counters = counters_block(shared.segment, counters.PERSISTER)
        self._reader = TableReader(shared.segment)
        self._dirty = DirtyReader(shared.segment)
        self._manager = shared.persist_pair[0]
        self._outbox: dict[type[Sync] | type[Checkpoints], bytes] = {}  # the newest of each, until the manager takes it
        self._feeds = {
            kind: Feed(kind, shared.writer_pairs[kind][0], self._words[layout.CHECKPOINT + kind])
            for kind in PERSISTED_KINDS
        }
        self._batch_number = time.monotonic_ns()  # a predecessor's answers never look like those to our batches
        self._period_at = 0.0
        self._synced_seq = 0
        self._sync_at = 0.0  # when the manager may be asked again
        self._looked_at = time.monotonic()
        self._marks: deque[tuple[int, float]] = deque()  # (seq, no change up to it was published before this time)

    def run(self, stop: StopSignal) -> int:
        """Work until a stop and the last flush; leave at once when the supervisor is gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(stop, selectors.EVENT_READ)
            selector.register(self._orphaned, selectors.EVENT_READ)
            selector.register(self._manager, selectors.EVENT_READ)
            for feed in self._feeds.values():
                selector.register(feed.channel, selectors.EVENT_READ, feed)
            while True:
                if stop.is_set:
                    if self._is_flushed():
                        log.info("persister stopped persisted_seq=%d", self._words[layout.PERSISTED_SEQ])
                        return EXIT_STOPPED
                    self._period_s = STOP_PERIOD_S
                    self._period_at = min(self._period_at, time.monotonic() + STOP_PERIOD_S)
                self._watch(selector)
                events = selector.select(self._timeout())
                ready = {key.fileobj for key, _ in events}
                if self._orphaned in ready:
                    return EXIT_ORPHANED
                if stop in ready:
                    stop.drain()
                self.turn()

    def turn(self) -> None:
        """Take in what has arrived, start a period if it is time, send what can be sent."""
        self._receive_from_manager()
        for feed in self._feeds.values():
            self._receive_from_writer(feed)
        if time.monotonic() >= self._period_at:
            self._start_period()
        for feed in self._feeds.values():
            self._compose(feed)
        self._release()
        for feed in self._feeds.values():
            if feed.send():
                self._failpoint("persister.batch_sent")
        self._send_to_manager()

    # ---- waiting -------------------------------------------------------------------------------------

    def _watch(self, selector: selectors.BaseSelector) -> None:
        """Ask for room in a channel only while something waits for it."""
        waiting: dict[Any, bool] = {feed.channel: feed.wants_write() for feed in self._feeds.values()}
        waiting[self._manager] = bool(self._outbox)
        for channel, wants_write in waiting.items():
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wants_write else 0)
            key = selector.get_key(channel)
            if key.events != events:
                selector.modify(channel, events)

    def _timeout(self) -> float:
        until = min(self._period_at, self._sync_at) if self._waiting() else self._period_at
        return max(0.0, until - time.monotonic())

    def _is_flushed(self) -> bool:
        """Return whether all three databases hold everything, and the manager knows it."""
        published = self._words[layout.PUBLISHED_SEQ]
        is_done = all(feed.checkpoint >= published and feed.batch is None for feed in self._feeds.values())
        return is_done and not self._outbox

    # ---- a period ------------------------------------------------------------------------------------

    def _start_period(self) -> None:
        """Hand every feed the slots that became dirty."""
        self._period_at = time.monotonic() + self._period_s
        words = self._words
        if words[layout.TABLE_STATE] != layout.TABLE_SERVING:
            return  # records are being loaded; nothing is published
        upto = words[layout.PUBLISHED_SEQ]  # before the slots are taken: see the module's docstring
        self._mark(upto)
        self._failpoint("persister.before_diff")
        slots = self._dirty.take()
        self._failpoint("persister.in_diff")
        if slots is None:
            slots = []
            for feed in self._feeds.values():
                feed.needs_scan = True
        groups = diff.group_by_kind(words, slots + self._scan())
        for kind, feed in self._feeds.items():
            feed.add(groups[kind], upto)
        self._publish_lag()
        self._counters[counters.PERIODS] += 1
        self._failpoint("persister.after_diff")

    def _scan(self) -> list[int]:
        """Return the slots of all changes that the feeds which need it are missing."""
        feeds = self._feeds.values()
        if not any(feed.needs_scan for feed in feeds):
            return []
        self._counters[counters.SCANS] += 1
        return self._reader.changed_slots([feed.scan_after if feed.needs_scan else NEVER for feed in feeds])

    def _compose(self, feed: Feed) -> None:
        if feed.try_compose(self._reader, self._batch_number):
            self._batch_number += 1

    # ---- the journal first ---------------------------------------------------------------------------

    def _waiting(self) -> list[Feed]:
        """Return the feeds whose batch waits for the journal."""
        return [feed for feed in self._feeds.values() if feed.batch is not None and not feed.batch.is_released]

    def _release(self) -> None:
        """Let go the batches that the durable journal covers; ask the manager to sync for the others."""
        durable = max(self._synced_seq, self._words[layout.SYNCED_SEQ])
        is_waiting = False
        for feed in self._waiting():
            batch = feed.batch
            if batch is not None and batch.need_seq <= durable:
                batch.is_released = True
                self._counters[counters.ROWS_SENT] += batch.rows
            else:
                is_waiting = True
        now = time.monotonic()
        if is_waiting and now >= self._sync_at:
            self._sync_at = now + SYNC_RETRY_S
            self._outbox[Sync] = encode(Sync())

    # ---- messages ------------------------------------------------------------------------------------

    def _receive_from_manager(self) -> None:
        while (data := self._manager.try_receive()) is not None:
            match decode_for_persister(data):
                case Synced(seq):
                    self._synced_seq = max(self._synced_seq, seq)
                    self._sync_at = 0.0
                case FlushNow():
                    self._period_at = 0.0

    def _receive_from_writer(self, feed: Feed) -> None:
        before = feed.checkpoint
        while (data := feed.channel.try_receive()) is not None:
            match decode_for_persister(data):
                case WriterReady(checkpoint):
                    log.info("writer ready kind=%s checkpoint=%d", feed.kind.name.lower(), checkpoint)
                    feed.restart(checkpoint)
                    self._period_at = 0.0
                case BatchDone(number, checkpoint):
                    feed.finish(number, checkpoint)
        if feed.checkpoint != before:
            self._report()

    def _report(self) -> None:
        """Publish the checkpoints, in shared memory and to the manager."""
        self._failpoint("persister.before_report")
        words = self._words
        checkpoints = [feed.checkpoint for feed in self._feeds.values()]
        for kind, feed in self._feeds.items():
            words[layout.CHECKPOINT + kind] = feed.checkpoint
        words[layout.PERSISTED_SEQ] = min(checkpoints)
        self._outbox[Checkpoints] = encode(Checkpoints(*checkpoints))
        self._publish_lag()

    def _send_to_manager(self) -> None:
        for message in list(self._outbox):
            if self._manager.try_send(self._outbox[message]):
                del self._outbox[message]

    # ---- flush lag -----------------------------------------------------------------------------------

    def _mark(self, published: int) -> None:
        """Remember since when changes up to a seq may have been published: since the look before this one."""
        if published > max(self._words[layout.PERSISTED_SEQ], self._marks[-1][0] if self._marks else 0):
            if len(self._marks) < LAG_MARKS_MAX:
                self._marks.append((published, self._looked_at))
            else:
                self._marks[-1] = (published, self._marks[-1][1])
        self._looked_at = time.monotonic()
        self._publish_lag()

    def _publish_lag(self) -> None:
        persisted = self._words[layout.PERSISTED_SEQ]
        while self._marks and self._marks[0][0] <= persisted:
            self._marks.popleft()
        since = self._marks[0][1] if self._marks else self._looked_at
        self._words[layout.UNFLUSHED_SINCE_MS] = int(since * 1000)
        self._words[layout.DIRTY_RECORDS] = sum(feed.dirty_records for feed in self._feeds.values())
