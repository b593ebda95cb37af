"""Readers in other processes never see a torn, mixed, old or missing record while the writer changes it at full speed.

Every body says what it is: its kind, its id, a version, and a filler made of them, of another length each time. A
reader checks each answer against itself and against the versions that it saw before. The same checker must see the
bugs that the protocol prevents: the last tests write in a wrong way and expect it to complain.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
import pytest

from server.commands import Kind
from server.errors import SlotBusy
from server.shm import chains, layout
from server.shm.counters import WORKER, counters_block
from server.shm.layout import BUCKETS, HASH_SEED, LENGTH_MASK, LOCK, LOCKED, OFFSET_SHIFT, REF, WORD_BYTES
from server.shm.segment import Segment
from server.shm.table import TableReader, hash_of
from server.shm.table_writer import TableWriter
from tests.table_model import open_segment

READERS = 2
STEADY = range(1, 5)  # ids that are always there
FLICKERING = range(101, 109)  # ids that are created and deleted
NEVER = 201
SLOT_KINDS = (Kind.USER, Kind.PRODUCT, Kind.ORDER)
BUYER = 301
BOUGHT_PRODUCTS = (1, 2, 3, 4)  # one unit of each in turn
READS = 600_000  # per reader
READS_LONG = 20_000_000
CONTROL_READS = 50_000
SEEDED_BUG_S = 30.0  # at most; each bug shows within a second or two
# what a reader counts, in a block of words of its own
GOOD, TORN, MIXED, BACKWARDS, MISSING, BUSY = range(6)
BAD = {TORN: "torn", MIXED: "mixed", BACKWARDS: "backwards", MISSING: "missing"}


def body_of_version(kind: int, id: int, version: int) -> bytes:
    name = b"%d.%d.%d;" % (kind, id, version)
    return name * (1 + version * 7 % 23)


def record_of(body: bytes) -> bytes:
    """Return a body as it is stored (RECORD in layout.py)."""
    return b"%d\r\n\r\n%b" % (len(body), body)


def judge(kind: int, id: int, record: bytes, newest: dict[int, int]) -> int:
    """Return what is wrong with an answer; `newest` holds the version last seen of each id."""
    length, _, body = record.partition(b"\r\n\r\n")
    name, _, _ = body.partition(b";")
    found_kind, found_id, version = map(int, name.split(b"."))
    if int(length) != len(body) or body != body_of_version(found_kind, found_id, version):
        return TORN
    if (found_kind, found_id) != (kind, id):
        return MIXED
    if version < newest.get(id, 0):
        return BACKWARDS
    newest[id] = version
    return GOOD


def judge_purchases(found: bytes | None, newest: dict[int, int]) -> int:
    """One state of the list: the units of a product are those of the next one, or one more up to some product."""
    if found is None:
        return MISSING
    units = [msgspec.json.decode(found).get(str(product), 0) for product in BOUGHT_PRODUCTS]
    if not units[0] - 1 <= units[-1] <= units[0] or units != sorted(units, reverse=True):
        return MIXED
    if sum(units) < newest.get(0, 0):
        return BACKWARDS
    newest[0] = sum(units)
    return GOOD


def judge_slot(reader: TableReader, slot: int) -> int:
    found = reader.read_slot(slot)
    if found is None or found.body is None or found.kind == Kind.PURCHASE or found.id == BUYER:
        return GOOD
    return judge(found.kind, found.id, record_of(found.body), {})


def judge_key(reader: TableReader, kind: int, id: int, newest: dict[int, int]) -> int:
    record = reader.get(kind, id)
    if record is None:
        return MISSING if id in STEADY else GOOD
    return judge(kind, id, record, newest)


def judge_private(reader: TableReader, kind: int, id: int, newest: dict[int, int]) -> int:
    """The way of the manager: it always walks the chain."""
    found = reader.get_private(kind, id)
    return judge(kind, id, record_of(found[0]), newest) if found else MISSING


def read_for_ever(segment: Segment, counts: memoryview, seed: int) -> None:
    """What a reader process does: one read after the other, until it is killed."""
    reader, rng = TableReader(segment), random.Random(seed)
    newest: list[dict[int, int]] = [{} for _ in range(4)]
    plan: list[Callable[[], int]] = []
    for kind in SLOT_KINDS:
        plan.extend(partial(judge_key, reader, kind, id, newest[kind]) for id in (*STEADY, *FLICKERING, NEVER))
        plan.extend(partial(judge_private, reader, kind, id, newest[kind]) for id in STEADY)
    plan.extend(partial(judge_slot, reader, slot) for slot in list(reader.slots())[:10])
    plan.append(lambda: judge_purchases(reader.purchases(BUYER), newest[3]))
    while True:
        rng.shuffle(plan)
        for read in plan:
            try:
                counts[read()] += 1
            except SlotBusy:
                counts[BUSY] += 1
            except Exception:  # nothing of it makes sense
                counts[TORN] += 1


class Changes:
    """What the writer does, for ever: versions of the same few records, and slots that change hands."""

    def __init__(self, writer: TableWriter, keep_every: int = 0) -> None:
        self.writer = writer
        self.seq = 0
        self._turns = 0
        self._keep_every = keep_every  # of so many turns the new record of one stays: the table grows
        writer.put(Kind.USER, BUYER, 0, b"buyer")
        for product in BOUGHT_PRODUCTS:
            writer.add_purchase(BUYER, product, 1, 0)
        for kind in SLOT_KINDS:
            for id in STEADY:
                self._put(kind, id)

    def turn(self) -> None:
        self._turns += 1
        for number, id in enumerate((*STEADY, *FLICKERING)):
            for kind in SLOT_KINDS:
                self._put(kind, id)
            self.seq += 1
            self.writer.add_purchase(BUYER, BOUGHT_PRODUCTS[number % 4], 1, self.seq)
        new_id = 10_000 + self._turns
        for id in FLICKERING:
            kind = SLOT_KINDS[(self._turns + id) % 3]
            self._delete(kind, id)
            self.writer.reclaim(self.seq)
            self._put(kind, new_id)  # in the slot and the block just given back
            if not self._keep_every or self._turns % self._keep_every:
                self._delete(kind, new_id)
        self.writer.touched.clear()

    def _put(self, kind: int, id: int) -> None:
        self.seq += 1
        self.writer.put(kind, id, self.seq, body_of_version(kind, id, self.seq))

    def _delete(self, kind: int, id: int) -> None:
        self.seq += 1
        self.writer.delete(kind, id, self.seq)


@contextmanager
def reading(segment: Segment, readers: int) -> Iterator[list[memoryview]]:
    """Yield the counts of reader processes that read from now on."""
    counts = [counters_block(segment, WORKER + number)[:16] for number in range(readers)]
    pids = []
    try:
        for number, block in enumerate(counts):
            pid = os.fork()
            if not pid:
                try:
                    read_for_ever(segment, block, number)
                finally:
                    os._exit(1)
            pids.append(pid)
        yield counts
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        ends = [os.waitpid(pid, 0)[1] for pid in pids]
        assert set(ends) == {signal.SIGKILL}, "a reader died by itself"
        for block in counts:
            block.release()


def complaints(counts: list[memoryview]) -> dict[str, int]:
    return {name: sum(block[word] for block in counts) for word, name in BAD.items()}


def run(change: Callable[[], Any], segment: Segment, is_enough: Callable[[list[memoryview]], bool]) -> dict[str, int]:
    with reading(segment, READERS) as counts:
        while not is_enough(counts):
            for _ in range(20):
                change()
        total = sum(block[word] for block in counts for word in (GOOD, *BAD))
        print(f"reads={total} busy={sum(block[BUSY] for block in counts)} {complaints(counts)}")
        return complaints(counts)


def check_no_complaints(reads: int) -> None:
    with open_segment(64 << 20) as segment:
        changes = Changes(TableWriter(segment), keep_every=2)
        bad = run(changes.turn, segment, lambda counts: all(block[GOOD] >= reads for block in counts))
        assert not any(bad.values()), bad
        assert segment.words[BUCKETS + Kind.USER] > 50, "buckets were split under the readers"


@pytest.fixture(autouse=True)
def few_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the table start with 4 buckets, so that the chains of the steady records are split and relinked."""
    monkeypatch.setattr(layout, "BUCKETS_MIN", 4)
    monkeypatch.setattr(chains, "BUCKETS_MIN", 4)


def test_readers_see_whole_records_only() -> None:
    check_no_complaints(READS)


@pytest.mark.slow
def test_readers_see_whole_records_only_for_minutes() -> None:
    check_no_complaints(READS_LONG)


# ---- the checker sees the bugs -------------------------------------------------------------------


class NoOddPhase(TableWriter):
    """Changes a record and gives its old block back while the lock word says that nothing happens."""

    def _replace(self, slot: int, kind: int, seq: int, ref: int, crc: int) -> None:
        lock, old = self._words[slot + LOCK], self._words[slot + REF]
        super()._replace(slot, kind, seq, ref, crc)
        self._words[slot + LOCK] = lock
        assert old != self._words[slot + REF]


class RefBeforeBytes(TableWriter):
    """Shows a block to the readers and fills it afterwards."""

    def _replace(self, slot: int, kind: int, seq: int, ref: int, crc: int) -> None:
        super()._replace(slot, kind, seq, ref, crc)
        if ref:
            start, size = self._arena_base + (ref >> OFFSET_SHIFT << 3), ref & LENGTH_MASK
            data = self._mm[start : start + size]
            self._mm[start : start + size] = bytes(size)
            self._mm[start : start + size] = data


def is_seen(counts: list[memoryview]) -> bool:
    return any(complaints(counts).values())


def check_bug_is_seen(change: Callable[[], Any], segment: Segment) -> None:
    deadline = time.monotonic() + SEEDED_BUG_S
    bad = run(change, segment, lambda counts: is_seen(counts) or time.monotonic() > deadline)
    assert any(bad.values()), "the checker is blind"


@pytest.mark.parametrize("writer_type", [NoOddPhase, RefBeforeBytes])
def test_checker_sees_a_wrong_order_of_stores(writer_type: type[TableWriter]) -> None:
    with open_segment() as segment:
        check_bug_is_seen(Changes(writer_type(segment)).turn, segment)


def store(segment: Segment, word: int, value: int) -> None:
    segment.words[word] = value


def store_packed(segment: Segment, word: int, value: int) -> None:
    struct.pack_into("<Q", segment.mm, word * WORD_BYTES, value)


def head_of_a_chain(segment: Segment, writer: TableWriter) -> int:
    """The store that every insert makes."""
    return writer._bucket(Kind.USER, hash_of(Kind.USER, STEADY[0], segment.words[HASH_SEED]))


def lock_word_of_half_a_record(segment: Segment, writer: TableWriter) -> int:
    """The store that every change makes; between its two stores the record is not whole."""
    slot = writer._find(Kind.USER, STEADY[0])
    segment.words[slot + LOCK] |= LOCKED
    segment.words[slot + REF] -= 2
    return slot + LOCK


@pytest.mark.parametrize("word_of", [head_of_a_chain, lock_word_of_half_a_record])
@pytest.mark.parametrize("write", [store, store_packed])
def test_words_are_whole_by_cast_and_torn_by_pack_into(word_of: Callable[..., int], write: Callable[..., None]) -> None:
    """One word is stored again and again, always with the value that it has."""
    with open_segment() as segment:
        writer = TableWriter(segment)
        Changes(writer)
        word = word_of(segment, writer)
        value = segment.words[word]

        def change() -> None:
            for _ in range(1000):
                write(segment, word, value)

        if write is store_packed:
            check_bug_is_seen(change, segment)
        else:
            bad = run(change, segment, lambda counts: all(block[GOOD] >= CONTROL_READS for block in counts))
            assert not any(bad.values()), bad
