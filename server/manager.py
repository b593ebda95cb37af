"""The manager process: the only writer of the table and the journal. It is the order of events.

    workers ──commands──> [ apply on an overlay > journal group > sync > publish > mark dirty ] ──replies──> workers
                                                                    persister ──sync?, checkpoints──> manager

Journal before publish, publish before reply: a value that a reader saw can not be lost, and an acknowledged write is
visible to every later read. While one batch is being synced the next one gathers in the sockets: that is the whole
group commit, there is no timer.

What a crash leaves behind, by the last step that was done:

    before the journal append     nothing; the workers send the commands again
    in the append                 a torn tail, cut at the next start; the commands come again
    after the append              the group is in the journal: the successor publishes what is missing of it
    while publishing              the same; a half-written slot stays locked until then, its readers wait
    before the replies            the same; the answers are in the group, so a command that comes again is answered
                                  from there and not applied twice

JOURNAL_POSITION says where the first group stands that may still be unpublished or unanswered. How a successor goes on
from there is in server/takeover.py.
"""

from __future__ import annotations

import gc
import heapq
import logging
import selectors
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from server import messages, takeover
from server.batch import Batch, Result
from server.command_queue import Arrival, Intake
from server.commands import DONE, Outcome, Reply
from server.config import Config, Durability
from server.errors import JournalRefused, MemoryFull
from server.idempotency import Keys
from server.journal.format import Change
from server.journal.writer import Journal
from server.redo import Answer, encode_answers
from server.shared import Shared
from server.shm import counters, layout
from server.shm.counters import counters_block
from server.shm.dirty import DirtyWriter
from server.shm.table_writer import TableWriter
from server.stop_signal import StopSignal

log = logging.getLogger(__name__)

GROUP_BYTES_EXTRA = 128  # of a command beside bodies and private part: the heads of its changes and of its answer
# its record, another image of it as answer, and that once more for an Idempotency-Key
GROUP_BYTES_PER_COMMAND_MAX = 3 * layout.RECORD_BYTES_MAX + GROUP_BYTES_EXTRA

# keys of the selector beside the numbers of the workers
_PERSISTER, _SUPERVISOR, _STOP = -1, -2, -3


class _Waiting(NamedTuple):
    """An answer that waits for the databases."""

    seq: int
    position: int  # of its group, or of an earlier one
    worker: int
    number: int
    reply: Reply


def main(config: Config, shared: Shared, epoch: int) -> int:
    """Run the manager of this epoch until it is told to stop."""
    stop = StopSignal()
    manager = Manager(config, shared, epoch)
    try:
        manager.recover()
        gc.collect()
        gc.freeze()  # what was loaded stays: the collector need not look at it again
        shared.tell_ready(counters.MANAGER)
        return manager.run(stop)
    finally:
        manager.close()


class Manager:
    """All state of the process; `run` is the loop."""

    def __init__(self, config: Config, shared: Shared, epoch: int) -> None:
        self._config = config
        self._shared = shared
        self._epoch = epoch
        self._failpoint = shared.failpoint
        self._words = shared.segment.words
        self._counters = counters_block(shared.segment, counters.MANAGER)
        self._persister = shared.persist_pair[1]
        self._selector = selectors.DefaultSelector()
        self._unsent: deque[bytes] = deque()
        self._waiting: list[_Waiting] = []  # a heap: the lowest seq first
        self._answered: dict[tuple[int, int], Reply] = {}  # what the predecessor applied and may not have answered
        self._keys = Keys()
        self._is_refusing = False  # the journal refused the last group
        self._last_seq = 0
        self._journal: Journal
        self._table: TableWriter
        self._dirty = DirtyWriter(shared.segment)
        self._intake: Intake

    # ---- the loop ------------------------------------------------------------------------------

    def run(self, stop: StopSignal) -> int:
        """Take batches and commit them; 0 after the stop signal, 1 when the supervisor is dead."""
        self._selector.register(self._persister, selectors.EVENT_READ, _PERSISTER)
        self._selector.register(self._shared.supervisor_pidfd, selectors.EVENT_READ, _SUPERVISOR)
        self._selector.register(stop, selectors.EVENT_READ, _STOP)
        while not stop.is_set:
            ready: list[int] = []
            for key, events in self._selector.select():
                source: int = key.data
                if source == _SUPERVISOR:
                    return 1
                if source == _PERSISTER:
                    self._serve_persister()
                elif source >= 0:
                    if events & selectors.EVENT_WRITE:
                        self._intake.send_unsent(source)
                    if events & selectors.EVENT_READ:
                        ready.append(source)
            if arrivals := self._intake.take(ready):
                self._counters[counters.BATCHES] += 1
                self._counters[counters.COMMANDS] += len(arrivals)
                self._commit(arrivals)
                self._settle()
        return 0

    def close(self) -> None:
        """Close the journal, if it was opened."""
        if hasattr(self, "_journal"):
            self._journal.close()

    # ---- one batch -----------------------------------------------------------------------------

    def _commit(self, arrivals: Sequence[Arrival]) -> None:
        """Apply, journal, publish and answer commands as one group; as two where memory is too short for all."""
        next_order_id, now_s = self._words[layout.NEXT_ORDER_ID], int(time.time())
        batch = Batch(self._table, self._config.classic, self._last_seq, next_order_id, now_s)
        if self._answered:
            results = [self._execute(batch, arrival) for arrival in arrivals]
        else:
            results = [batch.execute(request.command, request.token) for _, request in arrivals]
        forgotten = self._keys.forget(batch, now_s) if batch.keys else []
        records = batch.records()
        changes = [*records, *batch.orders]
        if changes:
            if self._is_too_large(changes, results):
                self._commit_less(arrivals)
                return
            try:
                prepared = self._table.prepare(records, batch.bought(), batch.orders)
            except MemoryFull:
                self._commit_less(arrivals)
                return
            self._failpoint("manager.before_append")
            refusal = self._append(arrivals, results, changes, batch.seq - self._last_seq)
            if refusal is None:
                slots = iter(prepared)
                self._table.publish(islice(slots, len(prepared) // 2))
                self._failpoint("manager.in_publish")
                self._table.publish(slots)
                self._table.spread()
                self._failpoint("manager.before_dirty")
                self._keys.note(batch.keys, forgotten)
                self._last_seq = batch.seq
                self._words[layout.NEXT_ORDER_ID] = batch.next_order_id
                self._mark_published()
                self._failpoint("manager.after_publish")
            else:
                self._table.discard(prepared)
                results = [Result(refusal) if result.seq > self._last_seq else result for result in results]
        self._answer(arrivals, results)

    def _execute(self, batch: Batch, arrival: Arrival) -> Result:
        """Apply a command, unless the predecessor did: then its answer is known."""
        worker, request = arrival
        if known := self._answered.get((worker, request.number)):
            return Result(known.outcome, known.seq, known.body)
        return batch.execute(request.command, request.token)

    def _commit_less(self, arrivals: Sequence[Arrival]) -> None:
        """Too much for one group or for the memory: first one half, then the other; a single one is refused."""
        if len(arrivals) == 1:
            self._answer(arrivals, [Result(Outcome.MEMORY_FULL)])
            return
        middle = len(arrivals) // 2
        self._commit(arrivals[:middle])
        self._commit(arrivals[middle:])

    def _is_too_large(self, changes: Sequence[Change], results: Sequence[Result]) -> bool:
        """Whether the group could exceed a journal segment: many small commands can change large records."""
        limit = self._journal.group_bytes_max
        if len(results) * GROUP_BYTES_PER_COMMAND_MAX <= limit:
            return False
        size = sum(len(result.body) + GROUP_BYTES_EXTRA for result in results)
        return size + sum(len(change.body or b"") + len(change.private) for change in changes) > limit

    def _append(
        self, arrivals: Sequence[Arrival], results: Sequence[Result], changes: list[Change], seqs: int
    ) -> Outcome | None:
        """Write the journal group as durable as its most demanding command asks; None when that is done.

        `seqs` is how many the group takes. A flush answers with the seq of another command and takes none.
        """
        first_seq = self._last_seq + 1
        bodies = {change.seq: change.body for change in changes}
        answers = []
        level: int = Durability.MEMORY
        for (worker, request), result in zip(arrivals, results, strict=True):
            seq, body = result.seq, result.body
            if seq >= first_seq:
                is_in_change = bodies.get(seq) == body
                answers.append(Answer(worker, request.number, seq, None if is_in_change else body))
                if request.level > level:
                    level = request.level
        is_synced = level >= Durability.JOURNAL
        try:
            self._journal.append(first_seq, seqs, changes, encode_answers(answers), is_synced)
        except JournalRefused as refused:
            self._counters[counters.JOURNAL_REFUSED] += 1
            if not self._is_refusing:  # once: on a full disk it is every batch, and the log may be on the same disk
                log.warning("journal refused detail=%r", refused.detail)
            self._is_refusing = True
            self._words[layout.REFUSED_AT_MS] = int(time.monotonic() * 1000)
            return Outcome.JOURNAL_FULL if refused.is_full else Outcome.JOURNAL_FAILED
        if self._is_refusing:
            log.info("journal takes writes again refused=%d", self._counters[counters.JOURNAL_REFUSED])
            self._is_refusing = False
            self._words[layout.REFUSED_AT_MS] = 0
        self._counters[counters.GROUPS] += 1
        self._counters[counters.SYNCS] += is_synced
        return None

    def _mark_published(self) -> None:
        """The group is in the table: tell the readers of the header, then the persister."""
        self._dirty.append(self._table.touched)
        self._table.touched.clear()
        words = self._words
        words[layout.SYNCED_SEQ] = self._journal.synced_seq
        words[layout.JOURNAL_BYTES] = self._journal.bytes
        words[layout.PUBLISHED_SEQ] = self._last_seq

    def _answer(self, arrivals: Sequence[Arrival], results: Sequence[Result]) -> None:
        """Send the replies, one message per worker; hold back those that wait for the databases."""
        replies: dict[int, list[Reply]] = {}
        persisted_seq = self._words[layout.PERSISTED_SEQ]
        for (worker, request), result in zip(arrivals, results, strict=True):
            reply = Reply(request.number, result.outcome, result.seq, result.body)
            if result.outcome is not DONE:
                self._counters[counters.REJECTED] += 1
            elif request.level == Durability.DATABASE and result.seq > persisted_seq:
                self._hold(worker, reply)
                continue
            if worker in replies:
                replies[worker].append(reply)
            else:
                replies[worker] = [reply]
        for worker, of_worker in replies.items():
            self._intake.reply(worker, of_worker)
            self._failpoint("manager.half_answered")

    def _settle(self) -> bool:
        """Let a successor look at later groups only; False while an earlier answer may be asked for again."""
        if not self._intake.is_settled():
            return False
        self._answered.clear()
        self._words[layout.JOURNAL_POSITION] = self._waiting[0].position if self._waiting else self._journal.position
        return True

    # ---- the persister -------------------------------------------------------------------------

    def _hold(self, worker: int, reply: Reply) -> None:
        """Keep an answer until the databases have its write; hurry the persister."""
        if not self._waiting:
            self._send_persister(messages.encode(messages.FlushNow()))
        is_of_predecessor = (worker, reply.number) in self._answered
        position = self._words[layout.JOURNAL_POSITION] if is_of_predecessor else self._journal.group_position
        heapq.heappush(self._waiting, _Waiting(reply.seq, position, worker, reply.number, reply))

    def _serve_persister(self) -> None:
        while self._unsent and self._persister.try_send(self._unsent[0]):
            self._unsent.popleft()
        if not self._unsent:
            self._selector.modify(self._persister, selectors.EVENT_READ, _PERSISTER)
        while (message := self._persister.try_receive()) is not None:
            match messages.decode_for_manager(message):
                case messages.Sync():
                    self._sync()
                case messages.Checkpoints(users, products, orders):
                    self._advance((users, products, orders))

    def _sync(self) -> None:
        """Make the journal durable; no answer when it can not be: the persister asks again."""
        try:
            self._journal.sync()
        except JournalRefused as refused:
            log.warning("journal not synced detail=%r", refused.detail)
            return
        self._words[layout.SYNCED_SEQ] = self._journal.synced_seq
        self._send_persister(messages.encode(messages.Synced(self._journal.synced_seq)))

    def _advance(self, checkpoints: tuple[int, int, int]) -> None:
        """The databases came further: retire segments, free deleted slots, answer who waited for it."""
        persisted_seq = min(checkpoints)
        while self._waiting and self._waiting[0].seq <= persisted_seq:
            waiting = heapq.heappop(self._waiting)
            self._intake.reply(waiting.worker, [waiting.reply])
        if self._waiting:
            self._send_persister(messages.encode(messages.FlushNow()))
        if self._settle():
            self._failpoint("manager.before_retire")
            self._journal.retire(persisted_seq)
            self._words[layout.JOURNAL_BYTES] = self._journal.bytes
            self._table.reclaim(persisted_seq)

    def _send_persister(self, message: bytes) -> None:
        if self._unsent or not self._persister.try_send(message):
            self._unsent.append(message)
            events = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(self._persister, events, _PERSISTER)

    # ---- coming up -----------------------------------------------------------------------------

    def recover(self) -> None:
        """Load the databases and the journal, or take over the table of a dead predecessor; then greet the workers."""
        self._failpoint("manager.start")
        words = self._words
        is_first = words[layout.TABLE_STATE] != layout.TABLE_SERVING
        come_up = takeover.load if is_first else takeover.take_over
        self._journal, self._table, self._last_seq, self._answered = come_up(self._config, self._shared, self._epoch)
        self._mark_published()
        if is_first:
            words[layout.JOURNAL_POSITION] = self._journal.position
            self._failpoint("load.loaded")
            words[layout.TABLE_STATE] = layout.TABLE_SERVING
        self._keys.adopt(self._table)
        self._intake = Intake(self._shared, self._epoch, self._selector)
        self._failpoint("manager.before_ready")
        words[layout.READY_EPOCH] = self._epoch
