"""The writing half of the table: exactly one process at a time, the manager (or a tool on a segment of its own).

Nothing but the slots is needed to start writing: `TableWriter` rebuilds free slots, tombstones, the arena's blocks and
the counts from them, and finishes the split that its predecessor may have died in. A slot with a locked lock word
keeps it until the redo of the journal's last groups writes it again.

A deleted record leaves a tombstone, so that the persister finds the deletion; `reclaim` frees the slot when the
deletion is in SQLite. A user's tombstone stays while he has purchases: the list hangs on it, should his id come back,
and his purchases are found by the number of his slot.

A purchase is changed in its slot, so what was there is saved to the header first. A successor that finds the slot
locked puts it back, and redo counts the order again.

Slots and buckets once reserved stay: memory that small records needed for them is not there for larger ones later.
The other way round the arena gives memory back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from server.commands import ORDER, PERSISTED_KINDS, PURCHASE, USER
from server.errors import MemoryFull
from server.shm import layout
from server.shm.arena import SPARE_PAGES, Arena
from server.shm.chains import Chains, OrderChains, PurchaseChains
from server.shm.layout import (
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
    OFFSET_SHIFT,
    PRIVATE_MASK,
    PRIVATE_SHIFT,
    RECORDS,
    REF,
    SEQ,
    SLOT_USED,
    SLOT_WORDS,
    TAG_MASK,
    UNITS_MAX,
    VERSION_STEP,
)
from server.shm.segment import Region, Segment
from server.shm.table import Get, TableReader

FRESH_SLOTS = 64  # taken at once from those that were never used
COMPACT_SHARE = 64  # compaction scans all slots: not again before 1/64 of the arena was freed


Change = Iterable[Any]  # an after-image: kind, id, seq, body (None: deleted), private part
Bought = Iterable[Any]  # units bought in a batch: user id, product id, quantity, seq

# A change with its room: slot | is it a new one | kind | key | seq | ref of a fresh block, 0: a deletion | checksum;
# of a purchase the last two are its units and the slot of its user. A plain tuple: a named one costs a tenth of a put.
Prepared = tuple[int, bool, int, int, int, int, int]


class TableWriter(TableReader):
    """Changes one slot at a time; `touched` collects the slots that become dirty."""

    def __init__(self, segment: Segment) -> None:
        super().__init__(segment)
        self._segment = segment
        self._compact_after = 0  # value of Arena.freed_bytes
        self.touched: list[int] = []
        self._free_slots: list[int] = []
        self._tombstones: list[deque[tuple[int, int]]] = [deque() for _ in range(KINDS)]  # (seq, slot)
        self._chains = [Chains(segment, kind, self._seed) for kind in range(KINDS)]
        self._chains[ORDER] = self._orders = OrderChains(segment, ORDER, self._seed)
        self._chains[PURCHASE] = self._purchases = PurchaseChains(segment, PURCHASE, self._seed)
        self.getters = [self._make_own_get(chains) for chains in self._chains[: len(PERSISTED_KINDS)]]
        self.get_user, self.get_product, self.get_order = self.getters
        self._arena = Arena(segment)
        slots_bytes = segment.words[layout.SLOTS_USED] * layout.SLOT_BYTES
        slots_max_bytes = segment.regions.slots_max * layout.SLOT_BYTES
        self._slot_region = Region(segment, segment.regions.slots, slots_max_bytes, slots_bytes)
        self._slots_room = 0  # slots that the region has memory for, as far as known
        self._adopt()

    # ---- what the manager calls ----------------------------------------------------------------

    def prepare(self, records: Iterable[Change], bought: Iterable[Bought], orders: Iterable[Change]) -> list[Prepared]:
        """Find room for all of a batch, so that `publish` can not fail; nothing of it is visible yet.

        The orders have to be new, the users who bought in the table or among the records. Raises `MemoryFull`, and
        then nothing has changed.
        """
        prepared: list[Prepared] = []
        try:
            for kind, id, seq, body, private in records:
                prepared.append(self._prepare(self._chains[kind].find(id), kind, id, seq, body, private))
            self._prepare_purchases(bought, prepared)
            for kind, id, seq, body, private in orders:
                prepared.append(self._prepare(0, kind, id, seq, body, private))
        except MemoryFull:
            self.discard(prepared)
            raise
        return prepared

    def publish(self, batch: Iterable[Prepared]) -> None:
        """Show a prepared batch to the readers, one slot at a time, in the order prepared."""
        mark = self.touched.append
        for slot, is_new, kind, key, seq, ref, check in batch:
            if kind == PURCHASE:
                if is_new:
                    self._insert_purchase(slot, key, seq, ref, check)
                else:
                    self._set_units(slot, ref, seq)
                continue
            if is_new:
                self._insert(slot, kind, key, seq, ref, check)
            else:
                self._replace(slot, kind, seq, ref, check)
            mark(slot)

    def spread(self) -> None:
        """Split buckets for what was published, so that the chains stay short; publishing works without it as well."""
        for chains in self._chains:
            chains.spread()

    def discard(self, batch: Iterable[Prepared]) -> None:
        """Give back the room of a batch that is not published."""
        for slot, is_new, kind, _, _, ref, _ in batch:
            if ref and kind != PURCHASE:
                self._arena.free(_offset_of(ref))
            if is_new:
                self._free_slots.append(slot)

    def _make_own_get(self, chains: Chains) -> Get:
        """Build the writer's read of a record: nobody else changes a slot, so one look is enough."""
        words, mm, find, arena_base = self._words, self._mm, chains.find, self._arena_base

        def get(id: int) -> bytes | None:
            slot = find(id)
            ref = words[slot + REF] if slot else 0
            if not ref:
                return None
            start = arena_base + (ref >> OFFSET_SHIFT << 3)
            return mm[start : start + (ref & LENGTH_MASK)]

        return get

    def put(self, kind: int, id: int, seq: int, body: bytes, private: bytes = b"") -> None:
        """Create or replace a record. Raises `MemoryFull`, and then nothing has changed."""
        self.publish((self._prepare(self._chains[kind].find(id), kind, id, seq, body, private),))
        self.spread()

    def delete(self, kind: int, id: int, seq: int) -> None:
        """Turn a record into a tombstone."""
        self.publish((self._prepare(self._chains[kind].find(id), kind, id, seq, None, b""),))

    def add_purchase(self, user_id: int, product_id: int, quantity: int, seq: int) -> None:
        """Count `quantity` units of a product for a user; no effect when it already counted this seq (redo).

        `seq` 0 (rows of a database) is always counted. Raises `MemoryFull`, and then nothing has changed.
        """
        words = self._words
        user = self._user_slot(user_id)
        slot = self._purchases.find_purchase(product_id, self._number_of(user))
        if not slot:
            self._insert_purchase(self._new_slot(), product_id, seq, min(quantity, UNITS_MAX), user)
            self.spread()
            return
        if not seq or words[slot + SEQ] < seq:
            self._set_units(slot, min(words[slot + REF] + quantity, UNITS_MAX), seq)
        self._link_purchase(user, slot)  # the writer that made it may have died just before

    @contextmanager
    def redoing(self) -> Iterator[None]:
        """For the redo: what is new may take the spare pages.

        The dead writer had found room for it beside them, but in pages of its own choice: those that held nothing else
        went back to the free ones, and some of these to classes without room.
        """
        self._arena.spare_pages = 0
        try:
            yield
        finally:
            self._arena.spare_pages = SPARE_PAGES

    def presize(self, kind: int, records: int) -> None:
        """Prepare an empty kind for so many records (first load): cheaper than to grow with each of them."""
        self._chains[kind].presize(records)

    def touch(self, kind: int, id: int) -> None:
        """Mark a record for the persister though it did not change here (redo)."""
        if slot := self._chains[kind].find(id):
            self.touched.append(slot)

    def seq_of(self, kind: int, id: int) -> int:
        """Return the seq of a record or tombstone, or -1 when there is neither."""
        slot = self._chains[kind].find(id)
        return self._words[slot + SEQ] if slot else -1

    def unlock_all(self) -> int:
        """Release what a dead predecessor left locked and the redo did not write: moved or freed, never changed."""
        words = self._words
        locked = [slot for slot, lock in self.scan(LOCK) if lock & LOCKED]
        for slot in locked:
            record, private = self._peek(slot)
            words[slot + CHECK] = crc32(private, crc32(record)) | words[slot + CHECK] >> LINK_SHIFT << LINK_SHIFT
            words[slot + LOCK] = (words[slot + LOCK] & ~LOCKED) + VERSION_STEP
        return len(locked)

    def reclaim(self, checkpoint: int) -> None:
        """Free the slots of deletions up to this seq, which every database has."""
        words = self._words
        for kind, tombstones in enumerate(self._tombstones):
            while tombstones and tombstones[0][0] <= checkpoint:
                seq, slot = tombstones.popleft()
                is_tombstone = words[slot + REF] == 0 and words[slot + SEQ] == seq and words[slot + NEXT] & SLOT_USED
                if is_tombstone and not words[slot + CHECK] >> LINK_SHIFT:
                    self._free_slot(slot, self._chains[kind])

    # ---- one slot ------------------------------------------------------------------------------

    def _prepare(self, slot: int, kind: int, id: int, seq: int, body: bytes | None, private: bytes) -> Prepared:
        """Write an after-image to a fresh block for a slot (0: a new one). The slot is taken last: nothing leaks."""
        is_new = not slot
        if is_new and not self._free_slots:
            self._find_slots()
        ref, crc = (0, 0) if body is None else self._store(0 if is_new else self._words[slot + REF], body, private)
        return slot or self._free_slots.pop(), is_new, kind, id, seq, ref, crc

    def _insert(self, slot: int, kind: int, key: int, seq: int, ref: int, check: int) -> None:
        """Fill a fresh slot and hang it into its chain with one store; it is locked until it hangs there."""
        words = self._words
        lock = (words[slot] & ~TAG_MASK) + VERSION_STEP | kind << KIND_SHIFT
        words[slot + LOCK] = lock | LOCKED  # [slot-order]
        words[slot + KEY] = key
        words[slot + REF] = ref
        words[slot + SEQ] = seq
        words[slot + CHECK] = check
        self._chains[kind].insert(slot)
        words[slot + LOCK] = lock
        if ref:
            words[RECORDS + kind] += 1
        else:
            self._tombstones[kind].append((seq, slot))

    def _replace(self, slot: int, kind: int, seq: int, ref: int, crc: int) -> None:
        """Switch a slot to new bytes, or to none: then it is a tombstone."""
        words = self._words
        lock, old = words[slot + LOCK], words[slot + REF]
        words[slot + LOCK] = lock | LOCKED  # [slot-order]
        words[slot + REF] = ref
        words[slot + SEQ] = seq
        words[slot + CHECK] = crc | words[slot + CHECK] >> LINK_SHIFT << LINK_SHIFT
        words[slot + LOCK] = (lock & ~LOCKED) + VERSION_STEP
        if old:
            self._arena.free(_offset_of(old))
        if not old or not ref:
            words[RECORDS + kind] += bool(ref) - bool(old)
        if not ref:
            self._tombstones[kind].append((seq, slot))

    def _free_slot(self, slot: int, chains: Chains | None) -> None:
        """Make a slot free, out of its chain if it is in one; locked until it is both, so that a crash shows."""
        words = self._words
        lock = words[slot + LOCK] & ~LOCKED
        words[slot + LOCK] = lock | LOCKED  # [slot-order]
        if chains:
            chains.unlink(slot)
        words[slot + NEXT] = 0
        words[slot + REF] = 0
        words[slot + LOCK] = lock + VERSION_STEP
        self._free_slots.append(slot)

    def _store(self, replaced: int, body: bytes, private: bytes) -> tuple[int, int]:
        """Write a record to a fresh block; return its ref and checksum. `replaced` is the ref it replaces, or 0."""
        data = b"%d\r\n\r\n%b%b" % (len(body), body, private)  # RECORD in layout.py
        size, private_bytes = len(data), len(private)
        if size > layout.RECORD_BYTES_MAX or private_bytes > layout.PRIVATE_BYTES_MAX:
            raise ValueError(f"record of {size} bytes, {private_bytes} of them private")
        try:
            offset = self._arena.allocate(size, _offset_of(replaced) if replaced else None)
        except MemoryFull:
            if not self._compact():
                raise
            offset = self._arena.allocate(size)
        start = self._arena_base + offset
        self._mm[start : start + size] = data
        return offset << (OFFSET_SHIFT - 3) | private_bytes << PRIVATE_SHIFT | size - private_bytes, crc32(data)

    def _new_slot(self) -> int:
        if not self._free_slots:
            self._find_slots()
        return self._free_slots.pop()

    def _find_slots(self) -> None:
        """Take some slots that were never used, as far as there is memory for them. Raises `MemoryFull`."""
        words = self._words
        number = words[layout.SLOTS_USED]
        if number >= self._slots_room:
            self._slot_region.ensure((number + 1) * layout.SLOT_BYTES)
            self._slots_room = self._slot_region.reserved_bytes // layout.SLOT_BYTES
        end = min(number + FRESH_SLOTS, self._slots_room)
        words[layout.SLOTS_USED] = end
        self._free_slots += map(self.slot_of, reversed(range(number, end)))  # the first ones first

    def _peek(self, slot: int) -> tuple[bytes, bytes]:
        """Return (record, private part) of a slot, locked or not: nobody else writes."""
        ref = self._words[slot + REF]
        start = self._arena_base + _offset_of(ref)
        middle = start + (ref & LENGTH_MASK)
        return self._mm[start:middle], self._mm[middle : middle + (ref >> PRIVATE_SHIFT & PRIVATE_MASK)]

    # ---- purchases -----------------------------------------------------------------------------

    def _prepare_purchases(self, bought: Iterable[Bought], prepared: list[Prepared]) -> None:
        """Prepare the purchases of a batch, whose users may be among the records prepared so far."""
        words, find_user, find_purchase = self._words, self._chains[USER].find, self._purchases.find_purchase
        new_users: dict[int, int] | None = None
        for user_id, product_id, quantity, seq in bought:
            user = find_user(user_id)
            if not user:
                if new_users is None:
                    new_users = {key: slot for slot, _, kind, key, _, _, _ in prepared if kind == USER}
                user = new_users[user_id]
            slot = find_purchase(product_id, self._number_of(user))
            units = min(words[slot + REF] + quantity if slot else quantity, UNITS_MAX)
            prepared.append((slot or self._new_slot(), not slot, PURCHASE, product_id, seq, units, user))

    def _insert_purchase(self, slot: int, product_id: int, seq: int, units: int, user: int) -> None:
        """Fill a fresh slot, and put it at the head of its user's list with one store."""
        words = self._words
        words[layout.UNDO_UNITS], words[layout.UNDO_SEQ] = units, seq
        check = words[user + CHECK]
        link = check >> LINK_SHIFT << LINK_SHIFT
        self._insert(slot, PURCHASE, product_id, seq, units, self._number_of(user) | link)
        words[user + CHECK] = check ^ link | self._number_of(slot) << LINK_SHIFT

    def _set_units(self, slot: int, units: int, seq: int) -> None:
        """Change a purchase in its slot."""
        words = self._words
        lock = words[slot + LOCK]
        words[layout.UNDO_UNITS], words[layout.UNDO_SEQ] = words[slot + REF], words[slot + SEQ]
        words[slot + LOCK] = lock | LOCKED  # [slot-order]
        words[slot + REF] = units
        words[slot + SEQ] = seq
        words[slot + LOCK] = lock + VERSION_STEP

    def _undo_units(self, slot: int) -> None:
        """Put back what the slot of a purchase held when its writer died."""
        words = self._words
        words[slot + REF], words[slot + SEQ] = words[layout.UNDO_UNITS], words[layout.UNDO_SEQ]
        words[slot + LOCK] = (words[slot + LOCK] & ~LOCKED) + VERSION_STEP

    def _user_slot(self, user_id: int) -> int:
        """Return the slot that the list hangs on; a deleted user of old orders gets a tombstone (first load)."""
        slot = self._chains[USER].find(user_id)
        if not slot:
            slot = self._new_slot()
            self._insert(slot, USER, user_id, 0, 0, 0)
        return slot

    def _link_purchase(self, user: int, slot: int) -> None:
        """Put a purchase at the head of its user's list, unless it is in it. One store shows it to readers."""
        words = self._words
        number = self._number_of(slot)
        check = words[user + CHECK]
        if number != check >> LINK_SHIFT and words[slot + CHECK] >> LINK_SHIFT == check >> LINK_SHIFT:
            words[user + CHECK] = check & CRC_MASK | number << LINK_SHIFT

    def _number_of(self, slot: int) -> int:
        return (slot - self._slots_base) // SLOT_WORDS

    # ---- space ---------------------------------------------------------------------------------

    def _make_room(self) -> bool:
        return self._arena.give_back() or (self._compact() and self._arena.give_back())

    def _compact(self) -> bool:
        """Empty sparse pages by moving their records together; True when it was worth a try."""
        arena = self._arena
        if arena.freed_bytes < self._compact_after:
            return False
        self._compact_after = arena.freed_bytes + arena.pages * layout.ARENA_PAGE_BYTES // COMPACT_SHARE
        sparse = arena.sparse_pages()
        if not sparse:
            return False
        arena.withhold(sparse)
        for slot, ref in self._refs():
            if _offset_of(ref) // layout.ARENA_PAGE_BYTES in sparse:
                self._move(slot, ref)
        arena.restore(sparse)
        return True

    def _move(self, slot: int, ref: int) -> None:
        words = self._words
        data = b"".join(self._peek(slot))
        offset = self._arena.allocate(len(data), _offset_of(ref))
        start = self._arena_base + offset
        self._mm[start : start + len(data)] = data
        lock = words[slot + LOCK]
        words[slot + LOCK] = lock | LOCKED  # [slot-order]
        words[slot + REF] = offset << (OFFSET_SHIFT - 3) | ref & ((1 << OFFSET_SHIFT) - 1)
        words[slot + LOCK] = lock + VERSION_STEP
        self._arena.free(_offset_of(ref))

    # ---- taking over ---------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Rebuild everything private from the slots, and repair what the predecessor was interrupted in."""
        words = self._words
        self._slot_region.make_room = self._make_room
        for chains in self._chains:
            chains.region.make_room = self._arena.give_back
            chains.repair()
        records = [0] * KINDS
        for slot, lock, key, following, ref, seq in self.scan(LOCK, KEY, NEXT, REF, SEQ):
            kind = lock >> KIND_SHIFT & KIND_MASK
            if lock & LOCKED and not self._chains[kind].holds(slot):  # died on its way in or out
                self._free_slot(slot, None)
            elif not following & SLOT_USED:
                self._free_slots.append(slot)
            else:
                if lock & LOCKED and kind == PURCHASE:
                    self._undo_units(slot)
                self._chains[kind].adopt(key)
                records[kind] += bool(ref)
                if not ref:
                    self._tombstones[kind].append((seq, slot))
        for kind in range(KINDS):
            words[RECORDS + kind] = records[kind]
            self._tombstones[kind] = deque(sorted(self._tombstones[kind]))
        self._free_slots.reverse()  # the first ones first
        self._arena.adopt((_offset_of(ref), _size_of(ref)) for _, ref in self._refs())

    def _refs(self) -> Iterator[tuple[int, int]]:
        """Yield (slot, ref) of every record in the arena."""
        for slot, lock, ref in self.scan(LOCK, REF):
            if ref and lock >> KIND_SHIFT & KIND_MASK != PURCHASE:
                yield slot, ref


def _offset_of(ref: int) -> int:
    """Return the arena offset of a record in bytes."""
    return ref >> OFFSET_SHIFT << 3


def _size_of(ref: int) -> int:
    """Return the bytes of a record with its private part."""
    return (ref & LENGTH_MASK) + (ref >> PRIVATE_SHIFT & PRIVATE_MASK)


def reset_table(segment: Segment) -> None:
    """Empty the table after a manager died in the first load, when nobody has read it yet."""
    segment.initialise_table()
