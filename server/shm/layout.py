"""Every shared byte: offsets, sizes, formats and flags live here and are spelled nowhere else.

The segment is one sparse file under /dev/shm, mapped whole by every process before the fork. All integers are
little-endian 64-bit words at offsets divisible by 8, read and written one at a time through `memoryview.cast("Q")`
(an aligned 8-byte store is never seen half done on x86-64; `struct.pack_into` zeroes first and is never used here).

REGIONS, in this order. Each has room for the largest table that `--memory` allows, but takes memory only as far as
it was reserved (`posix_fallocate`) - so a region never moves, and growth never stops a reader.

    offset                 region            content
    0                      header            one page: the words below
    COUNTERS_OFFSET        counters          one block of COUNTER_WORDS words per process
    DIRTY_OFFSET           dirty ring        DIRTY_RING_ENTRIES slots, one word each
    (Regions.buckets[k])   buckets, 5 kinds  one word per bucket: the first slot of its chain, 0 = empty
    (Regions.slots)        slots             SLOT_BYTES each; slot 0 is never used
    (Regions.arena)        arena             pages of ARENA_PAGE_BYTES, cut into blocks of one size each

HEADER WORDS (offset = 8 x index). The value of a word that a crash leaves behind is always usable.

    index  name                 written by   meaning
    0      MAGIC                supervisor   "MILLRACE" as ASCII; written last: a segment without it is not ready
    1      VERSION              supervisor   LAYOUT_VERSION
    2      SEGMENT_BYTES        supervisor   size of the whole mapping
    3      MEMORY_BYTES         supervisor   --memory: the most that may be reserved
    4      SLOTS_MAX            supervisor   capacity of the slot region
    5      HASH_SEED            supervisor   random; mixed into every key hash so that nobody can aim at one bucket
    6      CONTRACT             supervisor   1 = classic, 0 = default
    7      MANAGER_EPOCH        supervisor   the epoch of the manager that runs, or of the next one once it died
    8      RESERVED_BYTES       manager      memory of the segment, never over MEMORY_BYTES (at first: supervisor)
    9      READY_EPOCH          manager      epoch whose manager takes commands; writes are up when it equals word 7
    10     TABLE_STATE          manager      TABLE_LOADING until the first load is complete, then TABLE_SERVING
    11     PUBLISHED_SEQ        manager      every change up to this seq is in the table and in the dirty ring
    12     SYNCED_SEQ           manager      every change up to this seq is durable in the journal
    13     NEXT_ORDER_ID        manager      id of the next order
    14     SLOTS_USED           manager      slots from here on were never touched (slot 0 counts as used)
    15     JOURNAL_BYTES        manager      size of all journal segments
    16     JOURNAL_POSITION     manager      where the first group stands that a successor must look at:
                                             bits 40-63 number of its segment | bits 0-39 offset in that file
    17     REFUSED_AT_MS        manager      monotonic ms when the journal refused a group last; 0: it took one since
    18     DIRTY_HEAD           manager      slots ever written to the dirty ring
    19     ARENA_PAGES          manager      arena pages reserved so far
    20     DIRTY_RECORDS        persister    records it knows to be dirty: taken from the ring, not yet in SQLite
    21     UNFLUSHED_SINCE_MS   persister    monotonic ms: no change that is not in SQLite was published before; while
                                             PUBLISHED_SEQ > PERSISTED_SEQ the flush lag counts from it
    22     PERSISTED_SEQ        persister    the smallest of the checkpoints below
    23     DIRTY_TAIL           persister    entries of the dirty ring it has taken
    24-26  CHECKPOINT + kind    persister    every change of that kind up to this seq is committed in its database
    28     WORKERS              supervisor   worker slots that have a process, from 0
    29     LISTENERS            supervisor   listening sockets in use; those from WORKERS on are served by worker
                                             (slot % WORKERS), so that none of their queued connections is lost
    30     UNDO_UNITS           manager      while the slot of a purchase is locked, what to put back into it: UNITS
    31     UNDO_SEQ             manager      and SEQ
    32-36  BUCKETS + kind       manager      number of buckets in use, at least BUCKETS_MIN
    40-44  RECORDS + kind       manager      live records
    48-52  STRUCTURE + kind     manager      version of the chains: odd while one is being relinked

SLOT (SLOT_BYTES = 48, six words). "A slot" in code and in every shared word is the index of its word 0, counted from
the start of the segment; only LINK, which has 32 bits, holds a slot number. A slot is live (ref != 0), a tombstone
(SLOT_USED and ref == 0) until the deletion is in SQLite, or free (no SLOT_USED). Written by the manager only.

    word  name      meaning
    0     LOCK      lock word of the seqlock: bit 0 set while words 1-5 change | bits 1-3 kind | bits 4-63 version,
                    one more after every change, so that the word is never 0 once used and never the same again
    1     KEY       id of the record; of a purchase the id of the product
    2     NEXT      bits 0-39 next slot of the chain, 0 = end | bit 40 SLOT_USED
    3     REF       bits 0-15 record length | bits 16-27 private length | bits 28-63 arena offset in 8-byte units;
                    of a purchase UNITS, how many were bought, at most UNITS_MAX: it has no record in the arena
    4     SEQ       seq of the last change of this record
    5     CHECK     bits 0-31 CRC-32 of record + private part; of a purchase the number of its user's slot
                    bits 32-63 LINK: for a user the number of the newest slot of his purchases, for a purchase that of
                    the next older one, 0 = end

A slot that is not locked is in a chain of its kind exactly if it has SLOT_USED; a locked one may be on its way in or
out. NEXT (of a used slot) and LINK change without the lock word, by one store: they say where other slots are, not
what this one holds.

RECORD (in the arena): the ASCII decimal length of the body, CR LF CR LF, the body - the tail of an HTTP response
that only wants `Content-Length: ` in front. The private part (a stored password) follows the record directly and is
in no answer. A block holds one record and is never changed while a slot refers to it: new bytes go to a fresh block,
then the slot is switched.

    worked example: an empty table, user 7 is created with seq 4 and changed with seq 5 to
    {"id":7,"username":"a","email":"b"} (35 bytes), no private part; it got slot 1 and the second block of 48 bytes:
      LOCK  20 00 00 00 00 00 00 00      version 2 (created, changed once), kind 0, not locked
      KEY   07 00 00 00 00 00 00 00
      NEXT  00 00 00 00 00 01 00 00      no next, used
      REF   29 00 00 60 00 00 00 00      48 / 8 = 6, << 28 | 0 << 16 | 41 bytes: "35\\r\\n\\r\\n" + 35
      SEQ   05 00 00 00 00 00 00 00
      CHECK 64 e6 bf 73 00 00 00 00      CRC-32, no purchases

HASHING is linear hashing with chains (Litwin, "Linear hashing", VLDB 1980): the buckets of a kind grow one at a time,
`address = h & (2m - 1)`, and if that is not there yet `h & (m - 1)`, where m is the largest power of two <= buckets.
So no insert ever pays for a rehash of the table. With s = HASH_SEED and p = 2^61 - 1 (which is Python's `hash` of an
integer, so the remainder is cheap):

    h(id) = id * (id + s) mod p, and of an order h(id) = id mod p
    h(product, user) = (product * (product + s) + user * (user + s) * s) mod p    user: the number of his slot

Whoever does not know s can not aim at a bucket: for two ids fixed before s is drawn, the difference of their hashes is
(a - b) * (a + b + s) mod p, equally often every remainder, so they meet in one of m buckets with a chance of about 2/m
(Carter and Wegman, "Universal classes of hash functions", 1979). The square keeps consecutive ids from falling into
step with the number of buckets. The ids of orders are given by the manager, one after the other, so nobody can aim with
them either, and while there are more buckets than ids each has one of its own: then a further bucket is empty, and
needs no split.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

PAGE_BYTES = 4096
WORD_BYTES = 8

MAGIC_VALUE = int.from_bytes(b"MILLRACE", "little")
LAYOUT_VERSION = 3

# header words
MAGIC = 0
VERSION = 1
SEGMENT_BYTES = 2
MEMORY_BYTES = 3
SLOTS_MAX = 4
HASH_SEED = 5
CONTRACT = 6
MANAGER_EPOCH = 7
RESERVED_BYTES = 8
READY_EPOCH = 9
TABLE_STATE = 10
PUBLISHED_SEQ = 11
SYNCED_SEQ = 12
NEXT_ORDER_ID = 13
SLOTS_USED = 14
JOURNAL_BYTES = 15
JOURNAL_POSITION = 16
REFUSED_AT_MS = 17
DIRTY_HEAD = 18
ARENA_PAGES = 19
DIRTY_RECORDS = 20
UNFLUSHED_SINCE_MS = 21
PERSISTED_SEQ = 22
DIRTY_TAIL = 23
CHECKPOINT = 24
WORKERS = 28
LISTENERS = 29
UNDO_UNITS = 30
UNDO_SEQ = 31
BUCKETS = 32
RECORDS = 40
STRUCTURE = 48

TABLE_LOADING = 0
TABLE_SERVING = 1

KINDS = 5
HASH_MODULUS = 2**61 - 1

# slots
SLOT_WORDS = 6
SLOT_BYTES = SLOT_WORDS * WORD_BYTES
LOCK = 0
KEY = 1
NEXT = 2
REF = 3
SEQ = 4
CHECK = 5

NEXT_MASK = (1 << 40) - 1
SLOT_USED = 1 << 40
LOCKED = 1
KIND_SHIFT = 1
KIND_MASK = 7
TAG_MASK = 15  # lock bit and kind: equal to kind << KIND_SHIFT in a slot of that kind that is not being written
VERSION_STEP = 16
LENGTH_MASK = 0xFFFF
PRIVATE_SHIFT = 16
PRIVATE_MASK = 0xFFF
OFFSET_SHIFT = 28
CRC_MASK = 0xFFFF_FFFF
OWNER_MASK = CRC_MASK
UNITS_MAX = (1 << 64) - 1  # a word; two orders of the largest quantity still add up, then the count stays there
LINK_SHIFT = 32
LINK_MAX = (1 << 32) - 1
ARENA_BYTES_MAX = 1 << 39  # 36 bits of 8-byte units

# with the private part; the largest body (two texts of 4,096 bytes, at most six bytes of JSON each) is below 50,000
RECORD_BYTES_MAX = LENGTH_MASK
PRIVATE_BYTES_MAX = PRIVATE_MASK

# counters: block 0 supervisor, 1 manager, 2 persister, 3-5 writers by kind, 6.. workers by slot
COUNTER_WORDS = 64
COUNTER_BLOCKS = 6 + 64
COUNTERS_OFFSET = PAGE_BYTES
COUNTERS_BYTES = COUNTER_BLOCKS * COUNTER_WORDS * WORD_BYTES

# one million changes: over eight seconds of the fastest writing measured; a longer delay costs the persister one scan
DIRTY_RING_ENTRIES = 1 << 20
DIRTY_OFFSET = -(-(COUNTERS_OFFSET + COUNTERS_BYTES) // PAGE_BYTES) * PAGE_BYTES
DIRTY_BYTES = DIRTY_RING_ENTRIES * WORD_BYTES
FIXED_BYTES = DIRTY_OFFSET + DIRTY_BYTES  # header, counters and ring: reserved at once
DIRTY_STEP_ENTRIES = 1 << 16  # entries written at once beyond DIRTY_HEAD

BUCKETS_MIN = 1024
ARENA_PAGE_BYTES = 64 << 10  # the largest block is one page
GROW_BYTES = 256 << 10  # a region is reserved in steps of this size: one call of posix_fallocate


@dataclass(frozen=True, slots=True)
class Regions:
    """Where the regions of a segment start (bytes), for a given `--memory`."""

    slots_max: int
    buckets_max: int  # per kind, a power of two
    buckets: tuple[int, ...]
    slots: int
    arena: int
    arena_bytes: int
    segment_bytes: int

    @classmethod
    def plan(cls, memory_bytes: int) -> Regions:
        """Lay out a segment; the size of the mapping is about three times `memory_bytes`, nearly all never touched."""
        slots_max = min(memory_bytes // SLOT_BYTES, LINK_MAX)
        buckets_max = 1 << (slots_max - 1).bit_length()
        offset = FIXED_BYTES
        buckets = []
        for _ in range(KINDS):
            buckets.append(offset)
            offset = _page_up(offset + buckets_max * WORD_BYTES)
        slots = offset
        arena = -(-(slots + slots_max * SLOT_BYTES) // ARENA_PAGE_BYTES) * ARENA_PAGE_BYTES
        arena_bytes = min(memory_bytes, ARENA_BYTES_MAX) // ARENA_PAGE_BYTES * ARENA_PAGE_BYTES
        return cls(slots_max, buckets_max, tuple(buckets), slots, arena, arena_bytes, arena + arena_bytes)


def _page_up(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES


assert sys.hash_info.modulus == HASH_MODULUS, "needs a 64-bit CPython"
assert DIRTY_OFFSET % PAGE_BYTES == 0 and DIRTY_RING_ENTRIES & (DIRTY_RING_ENTRIES - 1) == 0
assert SLOT_BYTES == 48 and SLOT_BYTES % WORD_BYTES == 0
assert BUCKETS_MIN & (BUCKETS_MIN - 1) == 0
assert RECORD_BYTES_MAX < ARENA_PAGE_BYTES
assert (STRUCTURE + KINDS) * WORD_BYTES <= PAGE_BYTES
