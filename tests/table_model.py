"""What a table must hold: a model of plain dicts, and a check of every shared byte against it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import msgspec

from server.commands import Kind
from server.shm import layout
from server.shm.arena import Arena
from server.shm.layout import CHECK, LINK_SHIFT, LOCK, LOCKED, NEXT, NEXT_MASK, REF, SLOT_USED
from server.shm.segment import Segment
from server.shm.table import TableReader, body_of
from server.shm.table_writer import TableWriter

MEMORY_BYTES = 16 << 20


@contextmanager
def open_segment(memory_bytes: int = MEMORY_BYTES) -> Iterator[Segment]:
    """Yield an empty segment; nothing of it is left."""
    segment = Segment.create(memory_bytes, False)
    try:
        yield segment
    finally:
        segment.close()


class Model:
    """The same changes, on dicts."""

    def __init__(self) -> None:
        self.records: dict[tuple[int, int], tuple[int, bytes, bytes]] = {}  # kind, id -> seq, body, private part
        self.deleted: dict[tuple[int, int], int] = {}  # kind, id -> seq
        self.purchases: dict[int, dict[str, int]] = defaultdict(dict)  # user -> product -> units

    def put(self, kind: int, id: int, seq: int, body: bytes, private: bytes = b"") -> None:
        self.records[kind, id] = (seq, body, private)
        self.deleted.pop((kind, id), None)

    def delete(self, kind: int, id: int, seq: int) -> None:
        self.records.pop((kind, id), None)
        self.deleted[kind, id] = seq

    def add_purchase(self, user_id: int, product_id: int, quantity: int) -> None:
        product = str(product_id)
        self.purchases[user_id][product] = self.purchases[user_id].get(product, 0) + quantity
        if (Kind.USER, user_id) not in self.records:
            self.deleted.setdefault((Kind.USER, user_id), 0)

    def reclaim(self, checkpoint: int) -> None:
        for (kind, id), seq in list(self.deleted.items()):
            if seq <= checkpoint and not (kind == Kind.USER and self.purchases.get(id)):
                del self.deleted[kind, id]


def check_table(writer: TableWriter, model: Model) -> None:
    """Readers find exactly the model, and nothing is lost or doubled in what lies under it."""
    check_readers(TableReader(writer._segment), model)
    check_slots(writer, model)
    check_blocks(writer)


def check_readers(reader: TableReader, model: Model) -> None:
    for (kind, id), (_, body, private) in model.records.items():
        record = reader.get(kind, id)
        assert record is not None and body_of(record) == body, (kind, id, record, body)
        assert record == b"%d\r\n\r\n%b" % (len(body), body)
        assert reader.get_private(kind, id) == (body, private)
    for kind, id in model.deleted:
        assert reader.get(kind, id) is None
    for kind in (Kind.USER, Kind.PRODUCT, Kind.ORDER):
        assert reader.get(kind, 1 << 62) is None
    for (kind, id) in list(model.records) + list(model.deleted):
        if kind == Kind.USER:
            found = reader.purchases(id)
            expected = model.purchases.get(id, {}) if (kind, id) in model.records else None
            assert (found if found is None else msgspec.json.decode(found)) == expected, (id, found, expected)


def check_slots(writer: TableWriter, model: Model) -> None:
    """Every used slot is in one chain, every other one is free once; counts and seqs are those of the model."""
    words, in_chains = writer._words, chained_slots(writer)
    used = {slot for slot in writer.slots() if words[slot + NEXT] & SLOT_USED}
    assert sorted(in_chains) == sorted(used)
    assert sorted([*used, *writer._free_slots]) == list(writer.slots())
    found, deleted = {}, {}
    for slot in used:
        assert not words[slot + LOCK] & LOCKED and writer.is_intact(slot)
        record = writer.read_slot(slot)
        assert record is not None and record.kind == in_chains[slot]
        if record.kind == Kind.PURCHASE:
            continue
        if record.body is None:
            deleted[record.kind, record.id] = record.seq
        else:
            found[record.kind, record.id] = (record.seq, record.body, record.private)
    assert found == model.records
    assert deleted == model.deleted
    pairs = sum(len(products) for products in model.purchases.values())
    for kind in Kind:
        slots = sum(1 for other in in_chains.values() if other == kind)
        records = pairs if kind == Kind.PURCHASE else sum(1 for other, _ in model.records if other == kind)
        assert words[layout.RECORDS + kind] == records
        assert writer._chains[kind].slots == slots
        assert not words[layout.STRUCTURE + kind] & 1


def chained_slots(writer: TableWriter) -> dict[int, int]:
    """Return the kind of every slot that is in a chain; each must be where its hash leads."""
    words, found = writer._words, {}
    for kind, chains in enumerate(writer._chains):
        assert words[layout.BUCKETS + kind] == chains._buckets
        base = writer._bucket_bases[kind]
        for bucket in range(base, base + words[layout.BUCKETS + kind]):
            slot = words[bucket]
            while slot:
                assert slot not in found, "a slot in two chains, or a ring"
                assert chains.bucket(chains.hash_of(slot)) == bucket
                found[slot] = kind
                slot = words[slot + NEXT] & NEXT_MASK
    return found


def check_blocks(writer: TableWriter) -> None:
    """The arena counts exactly the blocks that slots refer to, no two overlap, and the purchase lists are whole."""
    words, blocks = writer._words, []
    linked = set()
    for slot in writer.slots():
        ref, kind = words[slot + REF], words[slot + LOCK] >> layout.KIND_SHIFT & layout.KIND_MASK
        if ref and kind != Kind.PURCHASE:
            size = (ref & layout.LENGTH_MASK) + (ref >> layout.PRIVATE_SHIFT & layout.PRIVATE_MASK)
            blocks.append((ref >> layout.OFFSET_SHIFT << 3, size))
        if words[slot + NEXT] & SLOT_USED and kind == Kind.USER:
            link = words[slot + CHECK] >> LINK_SHIFT
            while link:
                assert link not in linked
                linked.add(link)
                link = words[writer.slot_of(link) + CHECK] >> LINK_SHIFT
    assert len(linked) == words[layout.RECORDS + Kind.PURCHASE]
    blocks.sort()
    assert all(start + size <= other for (start, size), (other, _) in pairwise(blocks))
    assert live_blocks(writer._arena) == {offset for offset, _ in blocks}
    assert words[layout.ARENA_PAGES] == writer._arena.pages
    assert words[layout.RESERVED_BYTES] <= words[layout.MEMORY_BYTES]


def live_blocks(arena: Arena) -> set[int]:
    """Return the offsets that the allocator takes for used."""
    live = set()
    for page in arena._pages:
        if page.index >= 0:
            live |= {page.start + offset for offset in arena._cuts[page.index]} - {page.start + o for o in page.free}
    free = [page.number for page in arena._pages if page.index < 0]
    assert sorted(free) == sorted(arena._free_pages + arena._holes)
    return live
