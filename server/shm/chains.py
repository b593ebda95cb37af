"""The chains of one kind, for their writer: the writing half of linear hashing (`HASHING` in layout.py).

A change of the chains that a reader could stumble over makes STRUCTURE odd while it lasts [chain-order]. Every single
store leaves chains in which each slot is found: a split only ever takes slots out of the chain where they do not
belong any more. So a writer that dies in the middle leaves at worst two chains that share their end, and `repair`
goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from server.commands import Kind
from server.errors import MemoryFull
from server.shm.layout import BUCKETS, BUCKETS_MIN, KEY, NEXT, NEXT_MASK, SLOT_USED, STRUCTURE, WORD_BYTES
from server.shm.segment import Region, Segment
from server.shm.table import address_mask

SPLIT_RETRY_SLOTS = 1024  # without memory for more buckets, ask again after so many inserts


class Chains:
    """Buckets and chains of one kind. `slots` in them is counted by the owner when it takes over.

    The hash of a key is spelled out where it is needed, as in `TableReader`: a call would cost more than the hash.
    """

    def __init__(self, segment: Segment, kind: int, seed: int) -> None:
        self._words = segment.words
        self._is_hashed = kind == Kind.PURCHASE  # KEY of a purchase is a hash already
        self._seed = seed
        self._buckets_word = BUCKETS + kind
        self._structure_word = STRUCTURE + kind
        self._base = segment.regions.buckets[kind] // WORD_BYTES
        self._buckets = self._words[self._buckets_word]
        self._mask = address_mask(self._buckets)
        self._split_above = self._buckets  # slots
        self.slots = 0
        size_max = segment.regions.buckets_max * WORD_BYTES
        self.region = Region(segment, segment.regions.buckets[kind], size_max, self._buckets * WORD_BYTES)
        self._room = self.region.reserved_bytes // WORD_BYTES  # buckets

    def bucket(self, key: int) -> int:
        """Return the word of the bucket where a key belongs."""
        bucket = (key if self._is_hashed else hash(key * (key + self._seed))) & self._mask
        if bucket >= self._buckets:
            bucket &= self._mask >> 1
        return self._base + bucket

    def find(self, key: int) -> int:
        """Return the slot that holds the key, tombstones included, or 0."""
        words = self._words
        slot = words[self.bucket(key)]
        while slot and words[slot + KEY] != key:
            slot = words[slot + NEXT] & NEXT_MASK
        return slot

    def holds(self, slot: int) -> bool:
        """Whether a slot is in the chain where its key belongs."""
        return slot in self._chain(self.bucket(self._words[slot + KEY]))

    def presize(self, records: int) -> None:
        """Make buckets for so many records at once, if there are no slots yet and there is memory."""
        if self.slots or records <= self._buckets:
            return
        with suppress(MemoryFull):
            self.region.ensure(records * WORD_BYTES)
        self._room = self.region.reserved_bytes // WORD_BYTES
        buckets = min(records, self._room)
        words = self._words
        for bucket in range(self._base + self._buckets, self._base + buckets):
            words[bucket] = 0
        self._set_buckets(buckets)

    def count_insert(self) -> None:
        """Count a slot that was hung into its chain; split a bucket when there are more slots than buckets."""
        self.slots += 1
        if self.slots > self._split_above:
            self._split()

    def unlink(self, slot: int) -> None:
        """Take a slot out of its chain."""
        words = self._words
        before = self.bucket(words[slot + KEY])
        while (following := words[before] & NEXT_MASK) != slot:
            before = following + NEXT
        words[self._structure_word] += 1  # [chain-order]
        words[before] = words[before] & SLOT_USED | words[slot + NEXT] & NEXT_MASK
        words[self._structure_word] += 1
        self.slots -= 1

    def repair(self) -> None:
        """Finish what a predecessor was interrupted in."""
        words = self._words
        if words[self._structure_word] & 1:
            self._finish_split()
            words[self._structure_word] += 1

    def _chain(self, bucket: int) -> Iterator[int]:
        words = self._words
        slot = words[bucket]
        while slot:
            yield slot
            slot = words[slot + NEXT] & NEXT_MASK

    def _set_buckets(self, buckets: int) -> None:
        self._words[self._buckets_word] = self._buckets = self._split_above = buckets
        if buckets > self._mask:
            self._mask = address_mask(buckets)

    def _split(self) -> None:
        """Split the next bucket in turn: one step per insert keeps the chains short."""
        words, seed, newest, mask = self._words, self._seed, self._buckets, self._mask
        if newest >= self._room and not self._find_room():
            return
        before = self._base + (newest & mask >> 1)
        while first := words[before] & NEXT_MASK:
            key = words[first + KEY]
            if (key if self._is_hashed else hash(key * (key + seed))) & mask == newest:
                break
            before = first + NEXT
        words[self._base + newest] = first
        if first:
            words[self._structure_word] += 1  # [chain-order]
            self._set_buckets(newest + 1)
            self._unzip(first, before, self._base + newest)
            words[self._structure_word] += 1
        else:  # nobody moves, so no reader can miss anything
            self._set_buckets(newest + 1)

    def _find_room(self) -> bool:
        """Reserve memory for more buckets; without it the chains get longer, which is better than a refused record."""
        try:
            self.region.ensure(self._buckets * WORD_BYTES + 1)
        except MemoryFull:
            self._split_above = self.slots + SPLIT_RETRY_SLOTS
            return False
        self._room = self.region.reserved_bytes // WORD_BYTES
        return True

    def _unzip(self, slot: int, stay: int, move: int) -> None:
        """Part a chain from `slot` on into the slots that stay and those that move to the newest bucket.

        `stay` and `move` are the words that point to the next slot of either; both lead to `slot`. Front to back, one
        store where a slot of one sort follows one of the other: what is not yet parted is reached from both sides.
        """
        words, seed, newest = self._words, self._seed, self._buckets - 1
        mask = address_mask(newest)
        last, other, is_moving = move, stay, True
        while slot:
            key = words[slot + KEY]
            if ((key if self._is_hashed else hash(key * (key + seed))) & mask == newest) != is_moving:
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
            self._unzip(common, stay, move)
