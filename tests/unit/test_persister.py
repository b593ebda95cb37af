"""The persister's turns, with real shared memory and channels; the test plays manager and writers."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from persist import diff
from persist.feed import Feed
from persist.persister import LAG_MARKS_MAX, Persister
from server.commands import PERSISTED_KINDS, Kind
from server.messages import (
    BatchDone,
    BatchPart,
    Checkpoints,
    FlushNow,
    ManagerMessage,
    Row,
    Sync,
    Synced,
    WriterReady,
    decode_for_manager,
    encode,
)
from server.shm import counters, layout
from server.shm.counters import counters_block
from tests.backend import Backend, make_backend, order_body, receive_batch, rows_in


class Office:
    """A persister and the test's ends of its channels. `rows` is what the three databases would hold."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.persister = Persister(backend.config, backend.shared)
        self.rows: dict[Kind, dict[int, bytes]] = {kind: {} for kind in PERSISTED_KINDS}
        self.checkpoints = dict.fromkeys(PERSISTED_KINDS, 0)
        self.sent_rows = 0

    def turn(self) -> None:
        """One turn with a period, as if the timer had run out."""
        self.persister._period_at = 0.0
        self.persister.turn()

    def announce(self, kind: Kind, checkpoint: int = 0) -> None:
        self.backend.shared.writer_pairs[kind][1].try_send(encode(WriterReady(checkpoint)))

    def take(self, kind: Kind) -> list[BatchPart]:
        return receive_batch(self.backend.shared.writer_pairs[kind][1])

    def commit(self, kind: Kind) -> list[Row]:
        """Do what a writer does with what waits for it."""
        parts = self.take(kind)
        return self.apply(kind, parts) if parts else []

    def apply(self, kind: Kind, parts: list[BatchPart]) -> list[Row]:
        rows = rows_in(parts)
        for row in rows:
            if row.body is None:
                self.rows[kind].pop(row.id, None)
            else:
                self.rows[kind][row.id] = row.body
        assert parts[0].after <= self.checkpoints[kind]
        self.checkpoints[kind] = max(self.checkpoints[kind], parts[-1].checkpoint)
        self.report(kind, parts[-1])
        self.sent_rows += len(rows)
        return rows

    def report(self, kind: Kind, part: BatchPart) -> None:
        done = BatchDone(part.batch, part.checkpoint, 0, 0)
        self.backend.shared.writer_pairs[kind][1].try_send(encode(done))

    def tell(self, message: Synced | FlushNow) -> None:
        self.backend.shared.persist_pair[1].try_send(encode(message))

    def told(self) -> list[ManagerMessage]:
        """Return what the manager received."""
        found = []
        while (data := self.backend.shared.persist_pair[1].try_receive()) is not None:
            found.append(decode_for_manager(data))
        return found

    def settle(self) -> None:
        """Let periods and commits go on until everything published is stored."""
        published = self.backend.words[layout.PUBLISHED_SEQ]
        for _ in range(200):
            self.turn()
            for kind in PERSISTED_KINDS:
                self.commit(kind)
            self.told()
            if self.backend.words[layout.PERSISTED_SEQ] >= published:
                return
        raise AssertionError("the checkpoints do not reach the published seq")


@pytest.fixture
def backend() -> Iterator[Backend]:
    with make_backend() as backend:
        yield backend


@pytest.fixture
def office(backend: Backend) -> Iterator[Office]:
    office = Office(backend)
    for kind in PERSISTED_KINDS:
        office.announce(kind)
    office.turn()
    office.told()
    yield office
    del office.persister


def test_idle_period_sends_nothing(office: Office) -> None:
    office.backend.put_order(1)
    office.settle()
    for _ in range(3):
        office.turn()
    assert [office.take(kind) for kind in PERSISTED_KINDS] == [[], [], []] and office.told() == []


def test_many_changes_of_one_record_are_one_row(office: Office) -> None:
    for quantity in range(1, 1001):
        office.backend.put_order(7, quantity)
    office.turn()
    assert rows_in(office.take(Kind.ORDER)) == [Row(7, order_body(7, 1000))]
    assert office.backend.words[layout.DIRTY_RECORDS] == 1


def test_cost_of_a_period_follows_the_dirty_records(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    for id in range(1, 500):
        office.backend.put_order(id)
    office.settle()
    monkeypatch.setattr(office.persister._reader, "changed_slots", lambda _: pytest.fail("the table was scanned"))
    office.sent_rows = 0
    office.backend.put_order(3, 99)
    office.settle()
    assert office.sent_rows == 1


def test_database_without_dirty_rows_moves_its_checkpoint_too(office: Office) -> None:
    office.backend.put_order(1)
    office.turn()
    (part,) = office.take(Kind.USER)
    assert part.rows == [] and part.checkpoint == 1


def test_deletion_is_sent(office: Office) -> None:
    office.backend.put(Kind.USER, 5, b"ann", b"secret")
    office.settle()
    assert office.rows[Kind.USER] == {5: b"ann"}
    office.backend.delete(Kind.USER, 5)
    office.settle()
    assert office.rows[Kind.USER] == {}


def test_checkpoints_are_published_and_reported(office: Office) -> None:
    office.backend.put_order(1)
    office.turn()
    office.commit(Kind.USER)
    office.commit(Kind.ORDER)
    office.turn()
    words = office.backend.words
    assert [words[layout.CHECKPOINT + kind] for kind in PERSISTED_KINDS] == [1, 0, 1]
    assert words[layout.PERSISTED_SEQ] == 0 and office.told() == [Checkpoints(1, 0, 1)]
    office.commit(Kind.PRODUCT)
    office.turn()
    assert words[layout.PERSISTED_SEQ] == 1 and office.told() == [Checkpoints(1, 1, 1)]


# ---- nothing is skipped, nothing waits for another -------------------------------------------------------


def test_change_during_a_batch_is_in_a_later_one(office: Office) -> None:
    office.backend.put_order(1, 1)
    office.turn()
    office.backend.put_order(1, 2)
    office.turn()  # the first batch is still under way
    assert [row.body for row in office.commit(Kind.ORDER)] == [order_body(1, 1)]
    office.turn()
    assert [row.body for row in office.commit(Kind.ORDER)] == [order_body(1, 2)]


def test_change_between_reading_the_seq_and_taking_the_slots_is_not_lost(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, backend = office.persister._dirty.take, office.backend

    def take_after_a_change() -> list[int] | None:
        monkeypatch.undo()
        backend.put_order(2)
        return take()

    backend.put_order(1)
    monkeypatch.setattr(office.persister._dirty, "take", take_after_a_change)
    office.turn()
    (part,) = office.take(Kind.ORDER)
    assert {row.id for row in part.rows} == {1, 2} and part.checkpoint == 1
    office.apply(Kind.ORDER, [part])
    office.settle()
    assert office.checkpoints[Kind.ORDER] == 2


def test_slow_writer_does_not_stop_the_others(office: Office) -> None:
    for round in range(1, 6):
        office.backend.put(Kind.USER, round, b"u")
        office.backend.put_order(round)
        office.backend.put(Kind.PRODUCT, 1, b"%d" % round)
        office.turn()
        office.commit(Kind.USER)
        office.commit(Kind.ORDER)  # the writer of products is stuck
    office.turn()
    words = office.backend.words
    assert words[layout.CHECKPOINT + Kind.USER] == words[layout.CHECKPOINT + Kind.ORDER] == 15
    assert words[layout.CHECKPOINT + Kind.PRODUCT] == 0
    office.settle()
    assert office.rows[Kind.PRODUCT] == {1: b"5"} and words[layout.PERSISTED_SEQ] == 15


def test_outage_collects_slots_and_not_rows(office: Office) -> None:
    for round in range(100):
        office.backend.put_order(1, round + 1)
        office.turn()
    feed = office.persister._feeds[Kind.ORDER]
    assert len(feed.later) == 1
    office.sent_rows = 0
    office.settle()
    assert office.sent_rows == 2 and office.rows[Kind.ORDER] == {1: order_body(1, 100)}


def test_diff_larger_than_a_batch_moves_the_checkpoint_with_its_last_batch(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diff, "BATCH_ROWS_MAX", 10)
    for id in range(1, 26):
        office.backend.put_order(id)
    office.turn()
    seen = []
    while parts := office.take(Kind.ORDER):
        seen.append((len(rows_in(parts)), parts[-1].checkpoint))
        office.report(Kind.ORDER, parts[-1])
        office.persister.turn()
    assert seen == [(10, 0), (10, 0), (5, 25)]


def test_diff_ends_although_new_changes_keep_coming(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "BATCH_ROWS_MAX", 10)
    for id in range(1, 26):
        office.backend.put_order(id)
    office.turn()
    for id in range(100, 103):
        assert len(office.commit(Kind.ORDER)) in (5, 10)
        for fresh in range(20):
            office.backend.put_order(id * 100 + fresh)
        office.turn()
    assert office.checkpoints[Kind.ORDER] == 25


def test_full_channel_is_waited_for(office: Office) -> None:
    for id in range(1, 60):
        office.backend.put(Kind.PRODUCT, id, b"x" * 40_000)
    office.turn()
    feed = office.persister._feeds[Kind.PRODUCT]
    assert feed.wants_write()
    office.backend.put(Kind.USER, 1, b"u")
    office.turn()
    assert office.take(Kind.USER) != []
    parts: list[BatchPart] = []
    while feed.wants_write():
        parts += office.take(Kind.PRODUCT)
        office.persister.turn()
    parts += office.take(Kind.PRODUCT)
    assert len(rows_in(parts)) == 59 and [part.part for part in parts] == list(range(parts[0].parts))


def test_locked_slot_holds_back_the_checkpoint_and_nothing_else(office: Office) -> None:
    office.backend.put_order(1)
    office.backend.put_order(2)
    locked = next(iter(office.backend.table.slots()))
    office.backend.words[locked + layout.LOCK] |= layout.LOCKED
    office.turn()
    (part,) = office.take(Kind.ORDER)
    assert [row.id for row in part.rows] == [2] and part.checkpoint == 0
    office.report(Kind.ORDER, part)
    office.turn()
    assert office.take(Kind.ORDER) == []
    office.backend.words[locked + layout.LOCK] &= ~layout.LOCKED  # a new manager came
    office.settle()
    assert office.rows[Kind.ORDER] == {1: order_body(1)}


def test_databases_equal_memory_after_random_changes(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "BATCH_ROWS_MAX", 7)
    seed = random.randrange(2**32)
    print(f"seed={seed}")
    rng = random.Random(seed)
    model: dict[Kind, dict[int, bytes]] = {kind: {} for kind in PERSISTED_KINDS}
    for step in range(2000):
        kind, id = rng.choice(PERSISTED_KINDS), rng.randrange(1, 40)
        if rng.random() < 0.3 and id in model[kind] and kind is not Kind.ORDER:
            office.backend.delete(kind, id)
            del model[kind][id]
        else:
            body = order_body(id, step) if kind is Kind.ORDER else b"%d" % step
            office.backend.put(kind, id, body)
            model[kind][id] = body
        if rng.random() < 0.1:
            office.turn()
        if rng.random() < 0.1:
            office.commit(rng.choice(PERSISTED_KINDS))
        if rng.random() < 0.02:
            office.backend.table.reclaim(office.backend.words[layout.PERSISTED_SEQ])
        if rng.random() < 0.02:
            restarted = rng.choice(PERSISTED_KINDS)
            office.take(restarted)  # its writer dies with these in its hands
            office.announce(restarted, office.checkpoints[restarted])
    office.settle()
    assert office.rows == model


# ---- the journal first -----------------------------------------------------------------------------------


def test_nothing_leaves_before_the_journal_is_durable(office: Office) -> None:
    office.backend.put_order(1, is_synced=False)
    office.turn()
    assert [office.take(kind) for kind in PERSISTED_KINDS] == [[], [], []] and office.told() == [Sync()]
    office.tell(Synced(1))
    office.persister.turn()
    assert rows_in(office.take(Kind.ORDER)) == [Row(1, order_body(1))]


def test_answer_for_an_older_seq_does_not_release_a_newer_row(office: Office) -> None:
    office.backend.put_order(1, is_synced=False)
    office.backend.put_order(2, is_synced=False)
    office.turn()
    office.tell(Synced(1))
    office.told()
    office.persister.turn()
    assert office.take(Kind.ORDER) == [] and office.told() == [Sync()]


def test_row_newer_than_the_published_seq_waits_for_its_own_seq(office: Office) -> None:
    office.backend.put_order(1)
    office.backend.table.put(Kind.ORDER, 1, 2, order_body(1, 2))  # in the table, not yet in PUBLISHED_SEQ, not synced
    office.turn()
    assert office.take(Kind.ORDER) == [] and office.told() == [Sync()]


def test_question_lost_with_its_manager_is_asked_again(office: Office) -> None:
    office.backend.put_order(1, is_synced=False)
    office.turn()
    assert office.told() == [Sync()]
    office.turn()
    assert office.told() == []
    office.persister._sync_at = 0.0  # the time for an answer is over
    assert office.persister._timeout() == 0.0
    office.turn()
    assert office.told() == [Sync()]


def test_client_that_waits_starts_a_period_at_once(office: Office) -> None:
    office.backend.put_order(1)
    office.persister.turn()
    assert office.take(Kind.ORDER) == []
    office.tell(FlushNow())
    office.persister.turn()
    assert rows_in(office.take(Kind.ORDER)) == [Row(1, order_body(1))]


# ---- restarts --------------------------------------------------------------------------------------------


def test_restarted_writer_gets_its_unfinished_batch_with_the_rows_of_now(office: Office) -> None:
    office.backend.put_order(1, 1)
    office.turn()
    office.take(Kind.ORDER)
    office.backend.put_order(1, 2)
    office.announce(Kind.ORDER, 0)
    office.persister.turn()
    (part,) = office.take(Kind.ORDER)
    assert part.rows == [Row(1, order_body(1, 2))] and part.checkpoint == 2


def test_empty_new_database_gets_every_record_also_those_loaded_at_the_start(office: Office) -> None:
    for id in range(1, 11):
        office.backend.table.put(Kind.ORDER, id, 0, order_body(id))  # as the recovery does
    office.backend.publish(50, True)
    for kind in PERSISTED_KINDS:
        office.announce(kind, 50)
    office.turn()
    assert office.backend.words[layout.PERSISTED_SEQ] == 50
    office.report(Kind.ORDER, office.take(Kind.ORDER)[0])  # what the recovery marked as changed
    office.announce(Kind.ORDER, 0)
    office.persister.turn()
    (part,) = office.take(Kind.ORDER)
    assert [row.id for row in part.rows] == list(range(1, 11)) and (part.after, part.checkpoint) == (0, 50)
    assert office.backend.words[layout.PERSISTED_SEQ] == 0 and office.told()[-1] == Checkpoints(50, 50, 0)


def test_second_persister_skips_nothing(office: Office) -> None:
    office.backend.put_order(1)
    office.settle()
    office.backend.put_order(2)
    office.turn()  # its batch is sent, and then it dies
    office.backend.put_order(3)
    second = Office(office.backend)
    second.rows, second.checkpoints = office.rows, office.checkpoints
    second.commit(Kind.ORDER)  # its writer finishes that batch, and the second persister hears of it
    second.turn()
    assert [row.id for row in second.commit(Kind.ORDER)] == [3]
    second.settle()
    assert second.backend.words[layout.PERSISTED_SEQ] == 3 and set(second.rows[Kind.ORDER]) == {1, 2, 3}


def test_persister_after_a_crash_sends_what_its_predecessor_had_not_finished(office: Office) -> None:
    office.backend.put_order(1)
    office.settle()
    office.backend.put_order(2)
    office.turn()
    for kind in PERSISTED_KINDS:
        office.take(kind)  # lost with their writers
    second = Office(office.backend)
    second.rows, second.checkpoints = office.rows, office.checkpoints
    second.settle()
    assert second.rows[Kind.ORDER] == {1: order_body(1), 2: order_body(2)}


def test_overrun_of_the_dirty_ring_costs_one_scan(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = counters_block(office.backend.shared.segment, counters.PERSISTER)[counters.SCANS]
    office.backend.put_order(1)
    monkeypatch.setattr(office.persister._dirty, "take", lambda: None)
    office.turn()
    monkeypatch.undo()
    assert rows_in(office.take(Kind.ORDER)) == [Row(1, order_body(1))]
    assert counters_block(office.backend.shared.segment, counters.PERSISTER)[counters.SCANS] == scans + 1


def test_nothing_is_sent_while_the_table_is_loaded(office: Office) -> None:
    office.backend.words[layout.TABLE_STATE] = layout.TABLE_LOADING
    office.backend.put_order(1)
    office.turn()
    assert office.take(Kind.ORDER) == []


def test_report_of_an_earlier_batch_does_not_end_the_present_one(office: Office) -> None:
    office.backend.put_order(1)
    office.turn()
    feed: Feed = office.persister._feeds[Kind.ORDER]
    batch = feed.batch
    office.report(Kind.ORDER, BatchPart(1, 0, 1, 0, 0, []))
    office.persister.turn()
    assert batch is not None and feed.batch is batch


# ---- figures and the stop --------------------------------------------------------------------------------


def test_flush_lag_is_the_age_of_the_oldest_change_not_stored(office: Office) -> None:
    words = office.backend.words
    office.backend.put_order(1)
    office.turn()
    seq, seen = office.persister._marks[0]
    office.persister._marks[0] = (seq, seen - 2.0)
    office.backend.put_order(2)
    office.turn()
    assert words[layout.UNFLUSHED_SINCE_MS] == int((seen - 2.0) * 1000)
    office.settle()
    assert words[layout.UNFLUSHED_SINCE_MS] > int(seen * 1000)
    assert words[layout.DIRTY_RECORDS] == 0


def test_marks_of_a_long_outage_are_bounded(office: Office) -> None:
    for _ in range(LAG_MARKS_MAX + 100):
        office.backend.put_order(1)
        office.turn()
    assert len(office.persister._marks) == LAG_MARKS_MAX
    office.settle()
    assert not office.persister._marks


def test_it_is_flushed_only_when_all_three_databases_hold_everything(office: Office) -> None:
    office.backend.put_order(1)
    office.turn()
    for kind in PERSISTED_KINDS:
        assert not office.persister._is_flushed()
        office.commit(kind)
        office.persister.turn()
    assert office.persister._is_flushed()
    office.backend.put_order(2)
    assert not office.persister._is_flushed()


def test_slots_marked_again_without_a_new_seq_do_not_hold_up_what_follows(office: Office) -> None:
    """A successor of the manager marks the slots of the last groups again, though the databases may have them."""
    office.backend.put_order(1)
    office.settle()
    office.backend.table.touch(Kind.ORDER, 1)
    office.backend.publish(office.backend.words[layout.PUBLISHED_SEQ], is_synced=True)
    office.turn()
    assert [row.id for row in office.commit(Kind.ORDER)] == [1]
    office.backend.put_order(2)
    office.settle()
    assert set(office.rows[Kind.ORDER]) == {1, 2}
