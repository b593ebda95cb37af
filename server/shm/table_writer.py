"""The writing half of the table: exactly one process at a time, the manager (or a tool on a segment of its own).

Nothing but the slots is needed to start writing: `TableWriter` rebuilds free slots, tombstones, the arena's blocks and
the counts from them, and the chains too if its predecessor died while relinking one (STRUCTURE odd). A slot with a
locked lock word keeps it until the redo of the journal's last groups writes it again.

A deleted record leaves a tombstone, so that the persister finds the deletion; `reclaim` frees the slot when the
deletion is in SQLite. A user's tombstone stays while he has purchases: the list hangs on it, should his id come back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol
from zlib import crc32

from server.commands import Kind
from server.errors import MemoryFull
from server.shm import layout
from server.shm.arena import Arena
from server.shm.layout import (
    BUCKETS,
    CHECK,
    CRC_MASK,
    KEY,
    KIND_MASK,
    KIND_SHIFT,
    KINDS,
    LENGTH_MASK,
    LINK_SHIFT,
    LOCK,
    LOCKED,
    NEXT,
    NEXT_MASK,
    OFFSET_SHIFT,
    PRIVATE_MASK,
    PRIVATE_SHIFT,
    RECORDS,
    REF,
    SEQ,
    SLOT_BYTES,
    SLOT_USED,
    SLOT_WORDS,
    STRUCTURE,
    TAG_MASK,
    VERSION_STEP,
    WORD_BYTES,
)
from server.shm.segment import Region, Segment
from server.shm.table import TableReader, address_mask, record_of


class Change(Protocol):
    """An after-image: kind, id, seq, body (None: deleted), private part. `server.journal.format.Change` is one."""

    def __iter__(self) -> Iterator[Any]: ...


class Bought(Protocol):
    """Units bought in a batch: user id, product id, quantity, seq. `server.batch.Bought` is one."""

    def __iter__(self) -> Iterator[Any]: ...


class Prepared(NamedTuple):
    """A change with its room: a fresh block (ref 0: a deletion) and, if the record is new, a slot."""

    slot: int
    is_new: bool
    kind: int
    key: int
    hashed: int
    seq: int
    ref: int
    crc: int
    owner_id: int | None  # the user of a purchase


class TableWriter(TableReader):
    """Changes one slot at a time; `touched` collects the slots that become dirty."""

    def __init__(self, segment: Segment) -> None:
        super().__init__(segment)
        self._segment = segment
        self._compacted_at = -1  # value of Arena.freed_bytes at the last try
        self.touched: list[int] = []
        self._adopt()

    # ---- what the manager calls ----------------------------------------------------------------

    def prepare(
        self, records: Iterable[Change], bought: Iterable[Bought], orders: Iterable[Change]
    ) -> list[Prepared]:
        """Find room for all of a batch, so that `publish` can not fail; nothing of it is visible yet.

        Raises `MemoryFull`, and then nothing has changed.
        """
        prepared: list[Prepared] = []
        try:
            for change in records:
                prepared.append(self._prepare_record(*change))
            for item in bought:
                prepared.append(self._prepare_purchase(*item))
            for change in orders:
                prepared.append(self._prepare_record(*change))
        except MemoryFull:
            self.discard(prepared)
            raise
        return prepared

    def publish(self, batch: Iterable[Prepared]) -> None:
        """Show a prepared batch to the readers, one slot at a time, in the order prepared."""
        for prepared in batch:
            if prepared.is_new:
                self._insert(prepared)
            else:
                self._replace(prepared)
            if prepared.owner_id is None:
                self.touched.append(prepared.slot)
            else:
                self._link_purchase(self._user_slot(prepared.owner_id), prepared.slot)

    def discard(self, batch: Iterable[Prepared]) -> None:
        """Give back the room of a batch that is not published."""
        for prepared in batch:
            if prepared.ref:
                self._arena.free(prepared.ref >> OFFSET_SHIFT << 3)
            if prepared.is_new:
                self._free_slots.append(prepared.slot)

    def put(self, kind: int, id: int, seq: int, body: bytes, private: bytes = b"") -> None:
        """Create or replace a record. Raises `MemoryFull`, and then nothing has changed."""
        self.publish([self._prepare_record(kind, id, seq, body, private)])

    def delete(self, kind: int, id: int, seq: int) -> None:
        """Turn a record into a tombstone."""
        self.publish([self._prepare_record(kind, id, seq, None, b"")])

    def add_purchase(self, user_id: int, product_id: int, quantity: int, seq: int) -> None:
        """Count `quantity` units of a product for a user; no effect when it already counted this seq (redo).

        `seq` 0 (rows of a database) is always counted. Raises `MemoryFull`, and then nothing has changed.
        """
        slot = self._find_purchase(user_id, product_id)
        if slot and seq and int.from_bytes(self._peek(slot)[1][8:], "little") >= seq:
            self._link_purchase(self._user_slot(user_id), slot)
        else:
            self.publish([self._prepare_purchase(user_id, product_id, quantity, seq)])

    def touch(self, kind: int, id: int) -> None:
        """Mark a record for the persister though it did not change here (redo)."""
        if slot := self._find(kind, id):
            self.touched.append(slot)

    def seq_of(self, kind: int, id: int) -> int:
        """Return the seq of a record or tombstone, or -1 when there is neither."""
        slot = self._find(kind, id)
        return self._words[slot + SEQ] if slot else -1

    def unlock_all(self) -> int:
        """Release what a dead predecessor left locked and the redo did not write: moved or freed, never changed."""
        words = self._words
        locked = [slot for slot, lock in zip(self.slots(), self.column(LOCK), strict=True) if lock & LOCKED]
        for slot in locked:
            record, private = self._peek(slot)
            words[slot + CHECK] = crc32(private, crc32(record)) | words[slot + CHECK] >> LINK_SHIFT << LINK_SHIFT
            words[slot + LOCK] = (words[slot + LOCK] & ~LOCKED) + VERSION_STEP
        return len(locked)

    def reclaim(self, checkpoints: Sequence[int]) -> None:
        """Free the slots of deletions that every database has (checkpoint of each kind)."""
        words = self._words
        for kind, checkpoint in enumerate(checkpoints):
            tombstones = self._tombstones[kind]
            while tombstones and tombstones[0][0] <= checkpoint:
                seq, slot = tombstones.popleft()
                is_tombstone = words[slot + REF] == 0 and words[slot + SEQ] == seq and words[slot + NEXT] & SLOT_USED
                if is_tombstone and not words[slot + CHECK] >> LINK_SHIFT:
                    self._unlink(kind, slot)

    # ---- one slot ------------------------------------------------------------------------------

    def _prepare_record(self, kind: int, id: int, seq: int, body: bytes | None, private: bytes) -> Prepared:
        slot = self._find(kind, id)
        return self._prepare(slot, kind, id, hash((id, self._seed)), seq, body, private, None)

    def _prepare_purchase(self, user_id: int, product_id: int, quantity: int, seq: int) -> Prepared:
        slot = self._find_purchase(user_id, product_id)
        if slot:
            quantity += int(self._peek(slot)[0].rpartition(b":")[2])
        private = user_id.to_bytes(8, "little") + seq.to_bytes(8, "little")
        body = b'"%d":%d' % (product_id, quantity)
        hashed = hash((user_id, product_id, self._seed))
        return self._prepare(slot, Kind.PURCHASE, product_id, hashed, seq, body, private, user_id)

    def _prepare(
        self,
        slot: int,
        kind: int,
        key: int,
        hashed: int,
        seq: int,
        body: bytes | None,
        private: bytes,
        owner_id: int | None,
    ) -> Prepared:
        ref, crc = (0, 0) if body is None else self._store(body, private)
        is_new = not slot
        if is_new:
            try:
                slot = self._new_slot()
            except MemoryFull:
                if ref:
                    self._arena.free(ref >> OFFSET_SHIFT << 3)
                raise
        return Prepared(slot, is_new, kind, key, hashed, seq, ref, crc, owner_id)

    def _insert(self, prepared: Prepared) -> None:
        """Fill a fresh slot and hang it into its chain with one store."""
        words = self._words
        slot, _, kind, key, hashed, seq, ref, crc, owner_id = prepared
        self._grow_buckets(kind)
        link = 0 if owner_id is None else words[self._user_slot(owner_id) + CHECK] >> LINK_SHIFT
        bucket = self._bucket(kind, hashed)
        version = (words[slot + LOCK] & ~TAG_MASK) + VERSION_STEP
        words[slot + LOCK] = version | kind << KIND_SHIFT | LOCKED  # [slot-order]
        words[slot + KEY] = key
        words[slot + NEXT] = words[bucket] | SLOT_USED
        words[slot + REF] = ref
        words[slot + SEQ] = seq
        words[slot + CHECK] = crc | link << LINK_SHIFT
        words[slot + LOCK] = version | kind << KIND_SHIFT
        words[bucket] = slot
        self._slots_in[kind] += 1
        if ref:
            words[RECORDS + kind] += 1
        else:
            self._tombstones[kind].append((seq, slot))

    def _replace(self, prepared: Prepared) -> None:
        """Switch a slot to new bytes, or to none: then it is a tombstone."""
        words = self._words
        slot, _, kind, _, _, seq, ref, crc, _ = prepared
        lock, old = words[slot + LOCK], words[slot + REF]
        words[slot + LOCK] = lock | LOCKED  # [slot-order]
        words[slot + REF] = ref
        words[slot + SEQ] = seq
        words[slot + CHECK] = crc | words[slot + CHECK] >> LINK_SHIFT << LINK_SHIFT
        words[slot + LOCK] = (lock & ~LOCKED) + VERSION_STEP
        if old:
            self._arena.free(old >> OFFSET_SHIFT << 3)
        words[RECORDS + kind] += bool(ref) - bool(old)
        if not ref:
            self._tombstones[kind].append((seq, slot))

    def _store(self, body: bytes, private: bytes) -> tuple[int, int]:
        """Write a record to a fresh block; return its ref and checksum."""
        data = record_of(body)
        length = len(data)
        data += private
        offset = self._allocate(len(data))
        start = self._arena_base + offset
        self._mm[start : start + len(data)] = data
        return offset << (OFFSET_SHIFT - 3) | len(private) << PRIVATE_SHIFT | length, crc32(data)

    def _allocate(self, size: int) -> int:
        try:
            return self._count_pages(self._arena.allocate(size))
        except MemoryFull:
            if not self._compact():
                raise
            return self._count_pages(self._arena.allocate(size))

    def _count_pages(self, offset: int) -> int:
        if self._words[layout.ARENA_PAGES] != self._arena.pages:
            self._words[layout.ARENA_PAGES] = self._arena.pages
        return offset

    def _new_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        number = self._words[layout.SLOTS_USED]
        if (number + 1) * SLOT_BYTES > self._slot_region.reserved_bytes:
            self._slot_region.ensure((number + 1) * SLOT_BYTES)
        self._words[layout.SLOTS_USED] = number + 1
        return self.slot_of(number)

    def _peek(self, slot: int) -> tuple[bytes, bytes]:
        """Return (record, private part) of a slot, locked or not: nobody else writes."""
        ref = self._words[slot + REF]
        start = self._arena_base + (ref >> OFFSET_SHIFT << 3)
        middle = start + (ref & LENGTH_MASK)
        return self._mm[start:middle], self._mm[middle : middle + (ref >> PRIVATE_SHIFT & PRIVATE_MASK)]

    # ---- purchases -----------------------------------------------------------------------------

    def _find_purchase(self, user_id: int, product_id: int) -> int:
        words = self._words
        owner = user_id.to_bytes(8, "little")
        slot = words[self._bucket(Kind.PURCHASE, hash((user_id, product_id, self._seed)))]
        while slot and not (words[slot + KEY] == product_id and self._peek(slot)[1].startswith(owner)):
            slot = words[slot + NEXT] & NEXT_MASK
        return slot

    def _user_slot(self, user_id: int) -> int:
        """Return the slot on which the list hangs; a deleted user of old orders gets a tombstone for it (first load)."""
        slot = self._find(Kind.USER, user_id)
        if not slot:
            tombstone = self._prepare_record(Kind.USER, user_id, 0, None, b"")
            self._insert(tombstone)
            slot = tombstone.slot
        return slot

    def _link_purchase(self, user: int, slot: int) -> None:
        """Put a purchase at the head of its user's list, unless it is in it. One store shows it to readers."""
        words = self._words
        number = (slot - self._slots_base) // SLOT_WORDS
        check = words[user + CHECK]
        if number != check >> LINK_SHIFT and words[slot + CHECK] >> LINK_SHIFT == check >> LINK_SHIFT:
            words[user + CHECK] = check & CRC_MASK | number << LINK_SHIFT

    # ---- chains --------------------------------------------------------------------------------

    def _chain(self, bucket: int) -> Iterator[int]:
        words = self._words
        slot = words[bucket]
        while slot:
            following = words[slot + NEXT] & NEXT_MASK
            yield slot
            slot = following

    def _hash_of(self, kind: int, slot: int) -> int:
        key = self._words[slot + KEY]
        if kind != Kind.PURCHASE:
            return hash((key, self._seed))
        return hash((int.from_bytes(self._peek(slot)[1][:8], "little"), key, self._seed))

    def _grow_buckets(self, kind: int) -> None:
        """Split one bucket when there are more slots than buckets (linear hashing: one step per insert)."""
        words = self._words
        buckets = words[BUCKETS + kind]
        if self._slots_in[kind] < buckets or buckets >= self._segment.regions.buckets_max:
            return
        region = self._bucket_regions[kind]
        if (buckets + 1) * WORD_BYTES > region.reserved_bytes:
            try:
                region.ensure((buckets + 1) * WORD_BYTES)
            except MemoryFull:
                return  # longer chains are better than a refused record
        mask = address_mask(buckets)
        base = self._bucket_bases[kind]
        source = base + (buckets & mask >> 1)
        chain = list(self._chain(source))
        moves = [self._hash_of(kind, slot) & mask == buckets for slot in chain]
        words[STRUCTURE + kind] += 1  # [chain-order]
        self._relink(base + buckets, [slot for slot, is_moving in zip(chain, moves, strict=True) if is_moving])
        self._relink(source, [slot for slot, is_moving in zip(chain, moves, strict=True) if not is_moving])
        words[BUCKETS + kind] = buckets + 1
        words[STRUCTURE + kind] += 1

    def _relink(self, bucket: int, slots: list[int]) -> None:
        words = self._words
        following = 0
        for slot in reversed(slots):
            words[slot + NEXT] = following | SLOT_USED
            following = slot
        words[bucket] = following

    def _unlink(self, kind: int, slot: int) -> None:
        """Take a tombstone out of its chain and free the slot."""
        words = self._words
        bucket = self._bucket(kind, self._hash_of(kind, slot))
        chain = list(self._chain(bucket))
        words[STRUCTURE + kind] += 1  # [chain-order]
        self._relink(bucket, [other for other in chain if other != slot])
        words[STRUCTURE + kind] += 1
        words[slot + NEXT] = 0
        self._slots_in[kind] -= 1
        self._free_slots.append(slot)

    # ---- space ---------------------------------------------------------------------------------

    def _compact(self) -> bool:
        """Empty sparse pages by moving their records together; True when it was worth a try."""
        if self._arena.freed_bytes == self._compacted_at:
            return False
        self._compacted_at = self._arena.freed_bytes
        sparse = self._arena.sparse_pages()
        self._arena.withhold(sparse)
        for slot, ref in zip(self.slots(), self.column(REF), strict=True):
            if ref and (ref >> OFFSET_SHIFT << 3) // layout.ARENA_PAGE_BYTES in sparse:
                self._move(slot, ref)
        self._arena.restore(sparse)
        return bool(sparse)

    def _move(self, slot: int, ref: int) -> None:
        words = self._words
        data = b"".join(self._peek(slot))
        offset = self._arena.allocate(len(data))
        start = self._arena_base + offset
        self._mm[start : start + len(data)] = data
        lock = words[slot + LOCK]
        words[slot + LOCK] = lock | LOCKED  # [slot-order]
        words[slot + REF] = offset << (OFFSET_SHIFT - 3) | ref & ((1 << OFFSET_SHIFT) - 1)
        words[slot + LOCK] = lock + VERSION_STEP
        self._arena.free(ref >> OFFSET_SHIFT << 3)

    # ---- taking over ---------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Rebuild everything private from the slots."""
        words, regions, segment = self._words, self._segment.regions, self._segment
        words[layout.SLOTS_USED] = used = max(words[layout.SLOTS_USED], 1)
        self._slot_region = Region(segment, regions.slots, regions.slots_max * SLOT_BYTES, used * SLOT_BYTES)
        pages = words[layout.ARENA_PAGES]
        arena_region = Region(segment, regions.arena, regions.arena_bytes, pages * layout.ARENA_PAGE_BYTES)
        self._arena = Arena(arena_region, pages)
        self._bucket_regions = []
        for kind, start in enumerate(regions.buckets):
            buckets = words[BUCKETS + kind]
            self._bucket_regions.append(Region(segment, start, regions.buckets_max * WORD_BYTES, buckets * WORD_BYTES))
        reserved = [region.reserved_bytes for region in (self._slot_region, arena_region, *self._bucket_regions)]
        words[layout.RESERVED_BYTES] = layout.DIRTY_OFFSET + layout.DIRTY_BYTES + sum(reserved)
        for kind, region in enumerate(self._bucket_regions):
            region.ensure(layout.BUCKETS_MIN * WORD_BYTES)
            words[BUCKETS + kind] = max(words[BUCKETS + kind], layout.BUCKETS_MIN)
        self._slot_region.ensure(used * SLOT_BYTES)
        self._adopt_slots()

    def _adopt_slots(self) -> None:
        words = self._words
        refs = self.column(REF)
        self._arena.adopt(
            (ref >> OFFSET_SHIFT << 3, (ref & LENGTH_MASK) + (ref >> PRIVATE_SHIFT & PRIVATE_MASK))
            for ref in refs
            if ref
        )
        self._slots_in = [0] * KINDS
        records = [0] * KINDS
        self._tombstones: list[deque[tuple[int, int]]] = [deque() for _ in range(KINDS)]
        reachable = self._reachable()
        self._free_slots = [slot for slot in self.slots() if slot not in reachable]
        for slot in self._free_slots:
            words[slot + NEXT] = 0
            words[slot + REF] = 0
            words[slot + LOCK] &= ~LOCKED
        tombstones: list[list[tuple[int, int]]] = [[] for _ in range(KINDS)]
        for slot, kind in reachable.items():
            self._slots_in[kind] += 1
            if words[slot + REF]:
                records[kind] += 1
            else:
                tombstones[kind].append((words[slot + SEQ], slot))
        for kind in range(KINDS):
            words[RECORDS + kind] = records[kind]
            self._tombstones[kind].extend(sorted(tombstones[kind]))

    def _reachable(self) -> dict[int, int]:
        """Return the kind of every slot that is in a chain; rebuild chains that a predecessor left half linked."""
        words = self._words
        reachable: dict[int, int] = {}
        for kind in range(KINDS):
            if words[STRUCTURE + kind] & 1:
                self._rebuild_chains(kind)
            base = self._bucket_bases[kind]
            for slot in words[base : base + words[BUCKETS + kind]].tolist():
                while slot:
                    reachable[slot] = kind
                    slot = words[slot + NEXT] & NEXT_MASK
        return reachable

    def _rebuild_chains(self, kind: int) -> None:
        words = self._words
        base = self._bucket_bases[kind]
        for bucket in range(base, base + words[BUCKETS + kind]):
            words[bucket] = 0
        for slot, lock, following in zip(self.slots(), self.column(LOCK), self.column(NEXT), strict=True):
            if following & SLOT_USED and lock >> KIND_SHIFT & KIND_MASK == kind:
                bucket = self._bucket(kind, self._hash_of(kind, slot))
                words[slot + NEXT] = words[bucket] | SLOT_USED
                words[bucket] = slot
        words[STRUCTURE + kind] += 1


def reset_table(segment: Segment) -> None:
    """Empty the table after a manager died in the first load, when nobody has read it yet."""
    words, regions = segment.words, segment.regions
    segment.discard(regions.buckets[0], regions.arena - regions.buckets[0])
    words[layout.SLOTS_USED] = 0
    words[layout.ARENA_PAGES] = 0
    for kind in range(KINDS):
        words[BUCKETS + kind] = words[RECORDS + kind] = words[STRUCTURE + kind] = 0
