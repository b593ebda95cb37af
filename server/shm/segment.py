"""The shared segment: one sparse file in /dev/shm, mapped whole, reserved piece by piece before it is touched.

The supervisor creates it before the fork and everybody inherits the mapping; only tools map it by name, read-only
and without the resource tracker of multiprocessing. The tracker (a helper process that Python itself starts for
`SharedMemory`) unlinks the segment should the supervisor be killed.

Touching memory that was never reserved is a SIGBUS when /dev/shm is full, so a `Region` calls `posix_fallocate`
first: a full /dev/shm is an exception (`MemoryFull`), never a signal. How much is reserved is asked of the file
itself, so no crash can get it wrong.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from server.errors import DataError, MemoryFull, StartError
from server.shm import layout
from server.shm.layout import Regions

NAME_PREFIX = "millrace-"
SHM_DIRECTORY = "/dev/shm"
STAT_BLOCK_BYTES = 512  # unit of st_blocks, whatever the file system's own


class Segment:
    """A mapped segment: `words` reads and writes single 64-bit words, `mm` slices bytes."""

    def __init__(self, name: str, descriptor: int, mm: mmap.mmap, owner: SharedMemory | None) -> None:
        self.name = name
        self.descriptor = descriptor
        self.mm = mm
        self.words = memoryview(mm).cast("Q")
        self.regions: Regions
        self._owner = owner

    @classmethod
    def create(cls, memory_bytes: int, is_classic: bool) -> Segment:
        """Make, reserve and initialise an empty segment (supervisor). Raises `StartError` when there is no room."""
        regions = Regions.plan(memory_bytes)
        try:
            owner = SharedMemory(NAME_PREFIX + secrets.token_hex(8), create=True, size=regions.segment_bytes)
        except OSError as error:
            raise StartError(f"no shared memory: {error.strerror}") from None
        try:
            descriptor = os.open(os.path.join(SHM_DIRECTORY, owner.name), os.O_RDWR | os.O_CLOEXEC)
            segment = cls(owner.name, descriptor, mmap.mmap(descriptor, regions.segment_bytes), owner)
        except OSError as error:
            owner.unlink()
            owner.close()
            raise StartError(f"no shared memory: {error.strerror}") from None
        segment.regions = regions
        try:
            segment._initialise(memory_bytes, is_classic)
        except MemoryFull:
            segment.close()
            raise StartError(f"{SHM_DIRECTORY} has no room for an empty table (16 MiB)") from None
        return segment

    @classmethod
    def attach(cls, name: str) -> Segment:
        """Map an existing segment read-only (tools). Raises `DataError` when it is not one of this version."""
        path = os.path.join(SHM_DIRECTORY, name)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size < layout.PAGE_BYTES or size % layout.PAGE_BYTES:
                raise DataError(path, "not a Millrace segment")
            mm = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        segment = cls(name, -1, mm, None)
        words = segment.words
        is_ready = words[layout.MAGIC] == layout.MAGIC_VALUE and words[layout.VERSION] == layout.LAYOUT_VERSION
        if not is_ready or words[layout.SEGMENT_BYTES] != size:
            segment.close()
            raise DataError(path, "not a Millrace segment of this version")
        segment.regions = Regions.plan(words[layout.MEMORY_BYTES])
        return segment

    def _initialise(self, memory_bytes: int, is_classic: bool) -> None:
        self.reserve(0, layout.FIXED_BYTES)
        words = self.words
        words[layout.VERSION] = layout.LAYOUT_VERSION
        words[layout.SEGMENT_BYTES] = self.regions.segment_bytes
        words[layout.MEMORY_BYTES] = memory_bytes
        words[layout.SLOTS_MAX] = self.regions.slots_max
        words[layout.HASH_SEED] = 1 + secrets.randbelow(layout.HASH_MODULUS - 1)
        words[layout.CONTRACT] = int(is_classic)
        self.initialise_table()
        words[layout.MAGIC] = layout.MAGIC_VALUE

    def initialise_table(self) -> None:
        """Make the table empty, at the start or when nobody has read it yet. Raises `MemoryFull`.

        The first step of the buckets and the slots is reserved, so that readers may look at any time.
        """
        words, regions = self.words, self.regions
        self.give_back(layout.FIXED_BYTES, regions.segment_bytes - layout.FIXED_BYTES)
        for start in (*regions.buckets, regions.slots):
            self.reserve(start, layout.GROW_BYTES)
        words[layout.SLOTS_USED] = 1  # slot 0 is never used
        words[layout.ARENA_PAGES] = 0
        for kind in range(layout.KINDS):
            words[layout.RECORDS + kind] = words[layout.STRUCTURE + kind] = 0
            words[layout.BUCKETS + kind] = layout.BUCKETS_MIN

    def reserve(self, offset: int, size: int) -> None:
        """Make `size` bytes at `offset` safe to touch. Raises `MemoryFull` when the file system has no room."""
        try:
            os.posix_fallocate(self.descriptor, offset, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise MemoryFull(f"{SHM_DIRECTORY} is full") from None
            raise
        self._count_reserved()

    def give_back(self, offset: int, size: int) -> None:
        """Return the memory of a range to the system; it reads as zeros, and must be reserved before it is written."""
        self.mm.madvise(mmap.MADV_REMOVE, offset, size)
        self._count_reserved()

    def has_headroom(self) -> bool:
        """Whether a late reader of a range given back would not meet a full file system (which is a SIGBUS)."""
        device = os.fstatvfs(self.descriptor)
        return device.f_blocks == 0 or device.f_bavail * device.f_frsize >= layout.GROW_BYTES  # 0: without a limit

    def _count_reserved(self) -> None:
        self.words[layout.RESERVED_BYTES] = os.fstat(self.descriptor).st_blocks * STAT_BLOCK_BYTES

    def close(self) -> None:
        """Unmap; the creator also removes the segment, even when parts of it are still in use here."""
        if self._owner is not None:
            self._owner.unlink()
            self._owner.close()
            self._owner = None
            os.close(self.descriptor)
        self.words.release()
        with suppress(BufferError):  # a block of counters is still held: the mapping goes with its last view
            self.mm.close()


class Region:
    """A growing part of the segment (manager): reserved in steps, within the budget of `--memory`."""

    def __init__(self, segment: Segment, start: int, size_max: int, used_bytes: int) -> None:
        """Take over what a predecessor used: it always reserved whole steps before it counted them as used."""
        self._segment = segment
        self._start = start
        self._size_max = size_max
        self.reserved_bytes = min(-(-used_bytes // layout.GROW_BYTES) * layout.GROW_BYTES, size_max)
        self.make_room: Callable[[], bool] | None = None  # tries to free a step of the budget elsewhere

    def ensure(self, used_bytes: int) -> None:
        """Reserve up to `used_bytes` from the start. Raises `MemoryFull`; steps reserved before that stay so."""
        while self.reserved_bytes < used_bytes:
            self._grow()

    def _grow(self) -> None:
        step = min(layout.GROW_BYTES, self._size_max - self.reserved_bytes)
        if step <= 0 or not (self._is_in_budget(step) or (self.make_room and self.make_room())):
            raise MemoryFull("--memory is used up")
        self._segment.reserve(self._start + self.reserved_bytes, step)
        self.reserved_bytes += step

    def _is_in_budget(self, step: int) -> bool:
        words = self._segment.words
        return words[layout.RESERVED_BYTES] + step <= words[layout.MEMORY_BYTES]


def remove_stale(name: str) -> bool:
    """Unlink the segment that a killed supervisor left behind; True when there was one."""
    if not name.startswith(NAME_PREFIX) or "/" in name:
        return False
    try:
        Path(SHM_DIRECTORY, name).unlink()
    except FileNotFoundError:
        return False
    return True
