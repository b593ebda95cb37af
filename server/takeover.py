"""How a manager comes up: it loads the table at the first start of a run, or takes over that of a dead predecessor.

    load        databases, each up to its own checkpoint ─> journal groups after them ─> table
    take over   journal groups from JOURNAL_POSITION on ─> what the table misses of them, and their answers

Both begin with the journal: its lock keeps out whoever is not the manager any more, and its end is the end of history.
Each can be killed at any point and done again. Readers are served from a table that is taken over all the time; from
one that is loaded when the manager sets TABLE_STATE.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing
from typing import NamedTuple

from persist import recovery
from server.commands import ORDER, PERSISTED_KINDS, Outcome, Reply
from server.config import Config
from server.journal.format import DIRECTORY_NAME, Group
from server.journal.reader import read_groups
from server.journal.writer import Journal
from server.redo import decode_answers, redo_change
from server.shared import Shared
from server.shm import layout
from server.shm.table_writer import TableWriter, reset_table

log = logging.getLogger(__name__)

Answered = dict[tuple[int, int], Reply]  # by worker and number of the command


class Standing(NamedTuple):
    """What a manager starts from."""

    journal: Journal
    table: TableWriter
    last_seq: int
    answered: Answered  # what the predecessor applied and may not have answered


def load(config: Config, shared: Shared, epoch: int) -> Standing:
    """Build the table from the databases and the journal after their checkpoints."""
    shared.failpoint("load.start")
    words = shared.segment.words
    has_history = recovery.newest_checkpoint(config.data_dir) > 0
    with ExitStack() as stack:
        journal = stack.enter_context(closing(_open_journal(config, shared, epoch, is_expected=has_history)))
        shared.failpoint("load.journal_open")
        reset_table(shared.segment)
        shared.failpoint("load.reset")
        table = TableWriter(shared.segment)
        groups = read_groups(config.data_dir / DIRECTORY_NAME, shared.instance)
        recovered = recovery.load(config.data_dir, shared.instance.hex(), config.classic, table, groups)
        stack.pop_all()
    words[layout.NEXT_ORDER_ID] = recovered.next_order_id
    for kind, checkpoint in enumerate(recovered.checkpoints):
        words[layout.CHECKPOINT + kind] = checkpoint
    words[layout.PERSISTED_SEQ] = min(recovered.checkpoints)
    table.touched.clear()  # the persister begins with a scan
    records = [words[layout.RECORDS + kind] for kind in PERSISTED_KINDS]
    log.info("loaded last_seq=%d users=%d products=%d orders=%d", recovered.last_seq, *records)
    return Standing(journal, table, recovered.last_seq, {})


def take_over(config: Config, shared: Shared, epoch: int) -> Standing:
    """Publish what the predecessor journaled and did not publish, and learn what it did not answer."""
    words = shared.segment.words
    start = words[layout.JOURNAL_POSITION]
    answered: Answered = {}
    groups = 0
    with ExitStack() as stack:
        journal = stack.enter_context(closing(_open_journal(config, shared, epoch, start)))
        shared.failpoint("takeover.journal_open")
        table = TableWriter(shared.segment)
        with table.redoing():
            for group in read_groups(config.data_dir / DIRECTORY_NAME, shared.instance, start):
                _redo(group, table, words, answered)
                shared.failpoint("takeover.group_redone")
                groups += 1
        shared.failpoint("takeover.redone")
        unlocked = table.unlock_all()
        shared.failpoint("takeover.unlocked")
        stack.pop_all()
    log.info("took over epoch=%d groups=%d slots_repaired=%d", epoch, groups, unlocked)
    return Standing(journal, table, max(journal.last_seq, words[layout.PUBLISHED_SEQ]), answered)


def _open_journal(
    config: Config, shared: Shared, epoch: int, start: int = 0, is_expected: bool = False
) -> Journal:
    return Journal.open(
        config.data_dir / DIRECTORY_NAME,
        shared.instance,
        epoch,
        config.journal_segment_bytes,
        config.journal_max_bytes,
        start=start,
        failpoint=shared.failpoint,
        is_expected=is_expected,
    )


def _redo(group: Group, table: TableWriter, words: memoryview, answered: Answered) -> None:
    """Publish a group again; what a slot holds already, by its seq, stays as it is."""
    bodies = {}
    for change in group.changes:
        bodies[change.seq] = change.body
        redo_change(table, change)
        if change.kind == ORDER:
            words[layout.NEXT_ORDER_ID] = max(words[layout.NEXT_ORDER_ID], change.id + 1)
    for answer in decode_answers(group.answers):
        body = answer.body if answer.body is not None else bodies[answer.seq] or b"{}"
        answered[answer.worker, answer.number] = Reply(answer.number, Outcome.DONE, answer.seq, body)
