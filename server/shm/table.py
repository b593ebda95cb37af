"""The table: slots found by (kind, id) through linear hashing, read by everybody without locks, written by one.

Writer and readers meet in the words of `server/shm/layout.py` only. Two rules carry it, tagged where they apply:

[slot-order]   The writer sets bit 0 of the lock word, changes the slot, and stores the lock word with the next version.
               A reader takes the lock word first, then key, ref and the bytes, then the lock word again: equal words
               without bit 0 mean that all of it is one record, of the kind that the word names. This leans on x86-64
               keeping the order of stores and of loads, and on CPython executing them as written; on other machines
               the checksum decides as well. Words are written through `cast("Q")` only, because `struct.pack_into`
               would show readers a 0 in between (measured: 3 % of the reads).
[chain-order]  A hit is a hit however the reader came to the slot. A miss counts only when STRUCTURE was the same, and
               even, before and after the walk: the writer makes it odd while it takes a slot out of a chain or splits
               a bucket. Inserting is one store and needs neither. No store ever closes a chain to a ring.

A reader never waits: after READ_TRIES it raises `SlotBusy`, and its caller decides. That happens only when the
writer was interrupted inside a slot write; its successor repairs the slot from the journal.

The reading half is here, the writing half in `server/shm/table_writer.py`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from zlib import crc32

from msgspec import Struct

from server.commands import ORDER, PERSISTED_KINDS, PURCHASE, Kind
from server.errors import SlotBusy
from server.shm import layout
from server.shm.layout import (
    BUCKETS,
    CHECK,
    CRC_MASK,
    KEY,
    KIND_MASK,
    KIND_SHIFT,
    LENGTH_MASK,
    LINK_SHIFT,
    LOCK,
    LOCKED,
    NEXT,
    NEXT_MASK,
    OFFSET_SHIFT,
    PRIVATE_MASK,
    PRIVATE_SHIFT,
    REF,
    SEQ,
    SLOT_USED,
    SLOT_WORDS,
    STRUCTURE,
    TAG_MASK,
    WORD_BYTES,
)
from server.shm.segment import Segment

READ_TRIES = 64  # some 50 us: far longer than a slot write, far shorter than a time slice
PURCHASES_TRIES = 16
KNOWN_RECORDS = 1 << 14  # that a process remembers, per kind: four fifths off a read, some 4 MB with 100 bytes each
KNOWN_RECORD_BYTES_MAX = 1 << 10  # so 20 MB with the largest
SCAN_SLOTS = 1 << 14  # slots per step of a scan: a table of millions is never copied at once

# Loads and stores keep their order here, so the lock word decides alone.
IS_STRONGLY_ORDERED = platform.machine() in ("x86_64", "AMD64")

Get = Callable[[int], bytes | None]
_Known = tuple[int, int, int, bytes]  # id, its slot, lock word, record
_NOTHING_KNOWN: _Known = (-1, 0, 0, b"")


class SlotRecord(Struct, frozen=True, gc=False):
    """What a slot holds. `record` None: free (not `is_used`), a tombstone, or a purchase (`id`: of its product)."""

    kind: int
    id: int
    seq: int
    is_used: bool
    record: bytes | None
    private: bytes

    @property
    def body(self) -> bytes | None:
        return None if self.record is None else body_of(self.record)


def body_of(record: bytes) -> bytes:
    """Return the body of a stored record."""
    return record.partition(b"\r\n\r\n")[2]


def hash_factors(kind: int, seed: int) -> tuple[int, int]:
    """Return a, s of h(id) = id * (a * id + s) mod p (HASHING in layout.py), which hot paths spell out."""
    return (0, 1) if kind == ORDER else (1, seed)


def hash_of(kind: int, id: int, seed: int) -> int:
    """Return the hash of an id."""
    a, s = hash_factors(kind, seed)
    return hash(id * (a * id + s))


def address_mask(buckets: int) -> int:
    """Return 2m - 1, where m is the largest power of two <= buckets: the mask of the larger address function."""
    return (1 << buckets.bit_length()) - 1


class TableReader:
    """Lock-free reads, in any process."""

    def __init__(self, segment: Segment) -> None:
        self._words = segment.words
        self._mm = segment.mm
        self._arena_base = segment.regions.arena
        self._slots_base = segment.regions.slots // WORD_BYTES
        self._bucket_bases = [start // WORD_BYTES for start in segment.regions.buckets]
        self._seed = segment.words[layout.HASH_SEED]
        self.getters: list[Get] = [self._make_get(kind) for kind in PERSISTED_KINDS]
        self.get_user, self.get_product, self.get_order = self.getters
        self.get_key = self._make_get(Kind.KEY)

    def get(self, kind: int, id: int) -> bytes | None:
        """Return the stored record (`34\\r\\n\\r\\n{...}`), or None when there is none. Raises `SlotBusy`."""
        return self.getters[kind](id)

    def _make_get(self, kind: int) -> Get:
        """Build the hot path of a GET: everything it needs is a local of the closure, constants are spelled out.

        It looks first at what it found last for this id (or for one with the same low bits): as long as the slot has
        the same lock word it holds the same record, because that word never comes again [slot-order].
        """
        words, mm = self._words, self._mm
        a, s = hash_factors(kind, self._seed)
        bucket_base, arena_base = self._bucket_bases[kind], self._arena_base
        tag, tag_mask, next_mask, length_mask = kind << KIND_SHIFT, TAG_MASK, NEXT_MASK, LENGTH_MASK
        known: list[_Known] = [_NOTHING_KNOWN] * KNOWN_RECORDS
        known_mask, bytes_max = KNOWN_RECORDS - 1, KNOWN_RECORD_BYTES_MAX
        buckets = mask = 0

        def get(id: int) -> bytes | None:
            nonlocal buckets, mask
            known_id, slot, lock, record = known[id & known_mask]
            if known_id == id and words[slot] == lock:
                return record
            bucket = hash(id * (a * id + s)) & mask
            if bucket >= buckets:
                bucket &= mask >> 1
            slot = words[bucket_base + bucket]
            while slot:
                lock = words[slot]  # [slot-order] lock word, key, ref, bytes, and the lock word again
                if words[slot + 1] == id:
                    ref = words[slot + 3]
                    start = arena_base + (ref >> 25 & -8)
                    record = mm[start : start + (ref & length_mask)]
                    if words[slot] == lock and lock & tag_mask == tag and ref:
                        if len(record) <= bytes_max:
                            known[id & known_mask] = (id, slot, lock, record)
                        return record
                    break
                slot = words[slot + 2] & next_mask
            # a miss, a deleted record, or a slot that is being written; or the table has more buckets by now
            buckets = words[BUCKETS + kind]
            mask = address_mask(buckets)
            return get_with_care(id)

        def get_with_care(id: int) -> bytes | None:
            found = self._get_with_care(kind, id)
            return found.record if found else None

        return get if IS_STRONGLY_ORDERED else get_with_care

    def get_private(self, kind: int, id: int) -> tuple[bytes, bytes] | None:
        """Return (body, private part) of a record, or None. Raises `SlotBusy`."""
        found = self._get_with_care(kind, id)
        return (body_of(found.record), found.private) if found and found.record is not None else None

    def _get_with_care(self, kind: int, id: int) -> SlotRecord | None:
        """Return the slot of a live record, or None once it is certain that there is none."""
        words = self._words
        slot = 0
        for _ in range(READ_TRIES):
            structure = words[STRUCTURE + kind]
            slot = self._find(kind, id)
            if slot:
                found = self._try_read(slot)
                if found and found.id == id and found.kind == kind:
                    return found if found.record is not None else None
            elif not structure & 1 and words[STRUCTURE + kind] == structure:  # [chain-order]
                return None
        raise SlotBusy(slot)

    def _find(self, kind: int, id: int) -> int:
        """Return the slot that holds the key, tombstones included, or 0."""
        words = self._words
        slot = words[self._bucket(kind, hash_of(kind, id, self._seed))]
        while slot and words[slot + KEY] != id:
            slot = words[slot + NEXT] & NEXT_MASK
        return slot

    def _bucket(self, kind: int, hashed: int) -> int:
        """Return the word of the bucket that a hash belongs to, by the number of buckets as it is now."""
        buckets = self._words[BUCKETS + kind]
        mask = address_mask(buckets)
        bucket = hashed & mask
        if bucket >= buckets:
            bucket &= mask >> 1
        return self._bucket_bases[kind] + bucket

    def _try_read(self, slot: int) -> SlotRecord | None:
        """Return what a slot holds, if it stayed the same meanwhile [slot-order]."""
        words, mm = self._words, self._mm
        lock, key, following, ref, seq, check = words[slot : slot + SLOT_WORDS].tolist()  # one by one, the lock first
        kind = lock >> KIND_SHIFT & KIND_MASK
        record, private = None, b""
        if ref and kind != PURCHASE:  # its REF is no ref
            start = self._arena_base + (ref >> OFFSET_SHIFT << 3)
            middle = start + (ref & LENGTH_MASK)
            record = mm[start:middle]
            if private_bytes := ref >> PRIVATE_SHIFT & PRIVATE_MASK:
                private = mm[middle : middle + private_bytes]
        if lock & LOCKED or words[slot + LOCK] != lock:
            return None
        if record is not None and not IS_STRONGLY_ORDERED and crc32(private, crc32(record)) != check & CRC_MASK:
            return None
        return SlotRecord(kind, key, seq, following & SLOT_USED != 0, record, private)

    def read_slot(self, slot: int) -> SlotRecord | None:
        """Return what a slot holds, or None for a free one. Raises `SlotBusy`."""
        for _ in range(READ_TRIES):
            found = self._try_read(slot)
            if found:
                return found if found.is_used else None
        raise SlotBusy(slot)

    def is_intact(self, slot: int) -> bool:
        """Whether the record of a slot, if it has one, matches its checksum (tools). Raises `SlotBusy`."""
        for _ in range(READ_TRIES):
            check = self._words[slot + CHECK] & CRC_MASK
            found = self._try_read(slot)
            if found and check == self._words[slot + CHECK] & CRC_MASK:
                return found.record is None or crc32(found.private, crc32(found.record)) == check
        raise SlotBusy(slot)

    def slots(self) -> range:
        """Return every slot that was ever used."""
        used = self._words[layout.SLOTS_USED]
        return range(self.slot_of(1), self.slot_of(max(used, 1)), SLOT_WORDS)

    def scan(self, *fields: int) -> Iterator[tuple[int, ...]]:
        """Yield (slot, the named words of it) for every slot ever used; each word is read at another moment."""
        words, slots = self._words, self.slots()
        for first in range(0, len(slots), SCAN_SLOTS):
            part = slots[first : first + SCAN_SLOTS]
            columns = [words[part.start + field : part.stop : SLOT_WORDS].tolist() for field in fields]
            yield from zip(part, *columns, strict=True)

    def changed_slots(self, after: Sequence[int]) -> list[int]:
        """Return the slots of persisted kinds changed after the seq given for each kind: one scan of the table."""
        never = 1 << 64
        limits = [after[kind] if kind in PERSISTED_KINDS else never for kind in range(KIND_MASK + 1)]
        limits[Kind.KEY] = after[Kind.ORDER]
        return [
            slot
            for slot, lock, following, seq in self.scan(LOCK, NEXT, SEQ)
            if seq > limits[lock >> KIND_SHIFT & KIND_MASK] and following & SLOT_USED
        ]

    def purchases(self, user_id: int) -> bytes | None:
        """Return the JSON object of units bought per product, or None when there is no such user. Raises `SlotBusy`.

        The answer is one state of all the user's purchases: none of them changed between the moment when the last
        was read and the moment when the first was looked at again. A retry reads only those that changed.
        """
        known: dict[int, tuple[int, bytes]] = {}  # slot -> lock word, units of one product
        user = 0
        for _ in range(PURCHASES_TRIES):
            if self._get_with_care(Kind.USER, user_id) is None:
                return None
            user = self._find(Kind.USER, user_id)
            if user and self._collect_purchases(user, user_id, known):
                return b"{%b}" % b",".join([fragment for _, fragment in known.values()])
        raise SlotBusy(user)

    def _collect_purchases(self, user: int, user_id: int, known: dict[int, tuple[int, bytes]]) -> bool:
        words = self._words
        newest = link = words[user + CHECK] >> LINK_SHIFT
        while link:
            slot = self.slot_of(link)
            lock = words[slot + LOCK]  # [slot-order]
            if lock & TAG_MASK != Kind.PURCHASE << KIND_SHIFT:  # locked, or no purchase any more
                return False
            if slot not in known or known[slot][0] != lock:
                known[slot] = (lock, b'"%d":%d' % (words[slot + KEY], words[slot + REF]))
            link = words[slot + CHECK] >> LINK_SHIFT
        is_same_list = words[user + KEY] == user_id and words[user + CHECK] >> LINK_SHIFT == newest
        return is_same_list and all(words[slot + LOCK] == lock for slot, (lock, _) in known.items())

    def slot_of(self, number: int) -> int:
        """Return the slot with this number."""
        return self._slots_base + number * SLOT_WORDS
