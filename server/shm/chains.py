"""The chains of one kind, for their writer: the writing half of linear hashing (`HASHING` in layout.py).

A change of the chains that a reader could stumble over makes STRUCTURE odd while it lasts [chain-order]. Every single
store leaves chains in which each slot is found: a split only ever takes slots out of the chain where they do not
belong any more. So a writer that dies in the middle leaves at worst two chains that share their end, those of the
newest bucket and of the one it was split from, and `repair` goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from server.errors import MemoryFull
from server.shm.layout import (
    BUCKETS,
    BUCKETS_MIN,
    CHECK,
    KEY,
    NEXT,
    NEXT_MASK,
    OWNER_MASK,
    PAGE_BYTES,
    SLOT_USED,
    STRUCTURE,
    WORD_BYTES,
)
from server.shm.segment import Region, Segment
from server.shm.table import address_mask, hash_factors

SPLIT_RETRY_SLOTS = 1024  # without memory for more buckets, ask again after so many inserts
FOUND_MAX = 1 << 14  # slots remembered per kind, some 2 MB
ORDERS_AHEAD = 1 << 13  # buckets made at once for the next orders: two of the largest batches
SPLITS_MAX = 16  # while STRUCTURE is odd, some 20 us: a reader that finds nothing tries for longer than that

# A whole table's worth at once would make malloc keep large blocks in the heap from then on: 13 MB more of it.
_EMPTY = memoryview(bytes(PAGE_BYTES)).cast("Q")


class Chains:
    """Buckets and chains of one kind. Whoever takes over tells them which slots are in them (`adopt`)."""

    def __init__(self, segment: Segment, kind: int, seed: int) -> None:
        self._words = segment.words
        self._seed = seed
        self._factors = hash_factors(kind, seed)
        self.hash_of = self._make_hash()
        self._buckets_word = BUCKETS + kind
        self._structure_word = STRUCTURE + kind
        self._base = segment.regions.buckets[kind] // WORD_BYTES
        self._buckets = self._words[self._buckets_word]
        self._mask = address_mask(self._buckets)
        self._split_above = self._buckets  # slots
        self._found: dict[int, int] = {}  # slots by key: what `find` has found, and is still in its chain
        self.slots = 0
        size_max = segment.regions.buckets_max * WORD_BYTES
        self.region = Region(segment, segment.regions.buckets[kind], size_max, self._buckets * WORD_BYTES)
        self._room = self.region.reserved_bytes // WORD_BYTES  # buckets

    def find(self, key: int) -> int:
        """Return the slot that holds the key, tombstones included, or 0.

        A batch asks for its users and products more than once, so what was found is remembered.
        """
        if known := self._found.get(key):
            return known
        words = self._words
        a, s = self._factors
        slot = words[self.bucket(hash(key * (a * key + s)))]
        while slot and words[slot + KEY] != key:
            slot = words[slot + NEXT] & NEXT_MASK
        if slot:
            if len(self._found) >= FOUND_MAX:
                self._found.clear()
            self._found[key] = slot
        return slot

    def bucket(self, hashed: int) -> int:
        """Return the word of the bucket where a hash belongs."""
        bucket = hashed & self._mask
        if bucket >= self._buckets:
            bucket &= self._mask >> 1
        return self._base + bucket

    def holds(self, slot: int) -> bool:
        """Whether a slot is in the chain where it belongs."""
        return slot in self._chain(self.bucket(self.hash_of(slot)))

    def adopt(self, _key: int) -> None:
        """Count a slot that is in its chain."""
        self.slots += 1

    def presize(self, records: int) -> None:
        """Make buckets for so many records at once, if there are no slots yet and there is memory."""
        if self.slots or records <= self._buckets:
            return
        with suppress(MemoryFull):
            self.region.ensure(records * WORD_BYTES)
        self._room = self.region.reserved_bytes // WORD_BYTES
        buckets = min(records, self._room)
        self._add_empty(buckets)

    def insert(self, slot: int) -> None:
        """Hang a slot into the chain where it belongs; all else in it is written, so readers may find it."""
        words = self._words
        bucket = self.hash_of(slot) & self._mask
        if bucket >= self._buckets:
            bucket &= self._mask >> 1
        bucket += self._base
        words[slot + NEXT] = words[bucket] | SLOT_USED
        words[bucket] = slot
        self.slots += 1

    def spread(self) -> None:
        """Split buckets in turn until there are as many as slots: so the chains stay short."""
        while self.slots > self._split_above:
            if self._buckets >= self._room and not self._find_room():
                return
            self._split(min(self.slots, self._buckets + SPLITS_MAX, self._room))

    def unlink(self, slot: int) -> None:
        """Take a slot out of its chain."""
        words = self._words
        before = self.bucket(self.hash_of(slot))
        while (following := words[before] & NEXT_MASK) != slot:
            before = following + NEXT
        words[self._structure_word] += 1  # [chain-order]
        words[before] = words[before] & SLOT_USED | words[slot + NEXT] & NEXT_MASK
        words[self._structure_word] += 1
        self._found.pop(words[slot + KEY], None)
        self.slots -= 1

    def repair(self) -> None:
        """Finish what a predecessor was interrupted in."""
        words = self._words
        if words[self._structure_word] & 1:
            self._finish_split()
            words[self._structure_word] += 1

    def _make_hash(self) -> Callable[[int], int]:
        """Return the function that hashes what is in a slot; a closure, because it runs more than once per insert."""
        words = self._words
        a, s = self._factors

        def hash_of(slot: int) -> int:
            key = words[slot + KEY]
            return hash(key * (a * key + s))

        return hash_of

    def _chain(self, bucket: int) -> Iterator[int]:
        words = self._words
        slot = words[bucket]
        while slot:
            yield slot
            slot = words[slot + NEXT] & NEXT_MASK

    def _set_buckets(self, buckets: int) -> None:
        self._words[self._buckets_word] = self._buckets = self._split_above = buckets
        self._mask = address_mask(buckets)

    def _split(self, buckets: int) -> None:
        """Split buckets in turn until there are so many."""
        words, base, hash_of, buckets_word = self._words, self._base, self.hash_of, self._buckets_word
        words[self._structure_word] += 1  # [chain-order]
        for newest in range(self._buckets, buckets):
            mask = address_mask(newest)
            stay, move = base + (newest & mask >> 1), base + newest
            slot = words[stay] & NEXT_MASK
            while slot and hash_of(slot) & mask != newest:
                stay = slot + NEXT
                slot = words[stay] & NEXT_MASK
            words[move] = slot
            words[buckets_word] = newest + 1
            if not slot:
                continue
            if words[slot + NEXT] & NEXT_MASK:
                self._unzip(slot, stay, move, newest)
            else:  # the last of its chain moves, nothing else does
                words[stay] &= SLOT_USED
        self._set_buckets(buckets)
        words[self._structure_word] += 1

    def _add_empty(self, buckets: int) -> None:
        """Add buckets that no slot has to move to, until there are so many."""
        end = self._base + buckets
        for start in range(self._base + self._buckets, end, len(_EMPTY)):
            stop = min(start + len(_EMPTY), end)
            self._words[start:stop] = _EMPTY[: stop - start]
        self._set_buckets(buckets)

    def _find_room(self) -> bool:
        """Reserve memory for more buckets; without it the chains get longer, which is better than a refused record."""
        try:
            self.region.ensure(self._buckets * WORD_BYTES + 1)
        except MemoryFull:
            self._split_above = self.slots + SPLIT_RETRY_SLOTS
            return False
        self._room = self.region.reserved_bytes // WORD_BYTES
        return True

    def _unzip(self, slot: int, stay: int, move: int, newest: int) -> None:
        """Part a chain from `slot` on into the slots that stay and those that move to the bucket `newest`.

        `stay` and `move` are the words that point to the next slot of either; both lead to `slot`. Front to back, one
        store where a slot of one sort follows one of the other: what is not yet parted is reached from both sides.
        """
        words, hash_of, mask = self._words, self.hash_of, address_mask(newest)
        last, other, is_moving = move, stay, True
        while slot:
            if (hash_of(slot) & mask == newest) != is_moving:
                last, other, is_moving = other, last, not is_moving
                words[last] = words[last] & SLOT_USED | slot
            last = slot + NEXT
            slot = words[last] & NEXT_MASK
        words[other] &= SLOT_USED

    def _finish_split(self) -> None:
        """Part the chains of the newest bucket and of the one that it was split from, wherever they meet."""
        if self._buckets == BUCKETS_MIN:
            return
        words, newest = self._words, self._buckets - 1
        stay, move = self._base + (newest & address_mask(newest) >> 1), self._base + newest
        moved = set(self._chain(move))
        while (slot := words[stay] & NEXT_MASK) and slot not in moved:
            stay = slot + NEXT
        common = slot
        while (slot := words[move] & NEXT_MASK) != common:
            move = slot + NEXT
        if common:
            self._unzip(common, stay, move, newest)


class OrderChains(Chains):
    """The chains of the orders: their hash is the id, and while there are more buckets than ids, each has its own."""

    _end = 0  # above all ids
    _extend_at = 0  # value of `_end`

    def adopt(self, key: int) -> None:
        super().adopt(key)
        self._end = max(self._end, key + 1)

    def insert(self, slot: int) -> None:
        super().insert(slot)
        id = self._words[slot + KEY]
        if id >= self._end:
            self._end = id + 1

    def spread(self) -> None:
        """Keep empty buckets for the next orders; split only when ids are above the number of buckets."""
        if self._end > self._buckets:
            super().spread()
        elif self._end >= self._extend_at:
            self._extend()

    def _extend(self) -> None:
        wanted = self._end + ORDERS_AHEAD
        if wanted > self._buckets:  # a successor finds those that its predecessor made
            try:
                self.region.ensure(wanted * WORD_BYTES)
            except MemoryFull:
                self._extend_at = self._end + SPLIT_RETRY_SLOTS
                return
            self._room = self.region.reserved_bytes // WORD_BYTES
            self._add_empty(wanted)
        self._extend_at = self._buckets - ORDERS_AHEAD // 2


class PurchaseChains(Chains):
    """The chains of the purchases, found by product and user."""

    def find_purchase(self, product_id: int, owner: int) -> int:
        """Return the slot of what the user whose slot has the number `owner` bought of a product, or 0."""
        words, seed = self._words, self._seed
        hashed = hash(product_id * (product_id + seed) + owner * (owner + seed) * seed)
        slot = words[self.bucket(hashed)]
        while slot and (words[slot + KEY] != product_id or words[slot + CHECK] & OWNER_MASK != owner):
            slot = words[slot + NEXT] & NEXT_MASK
        return slot

    def _make_hash(self) -> Callable[[int], int]:
        words, seed = self._words, self._seed

        def hash_of(slot: int) -> int:
            product_id, owner = words[slot + KEY], words[slot + CHECK] & OWNER_MASK
            return hash(product_id * (product_id + seed) + owner * (owner + seed) * seed)

        return hash_of
