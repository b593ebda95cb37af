"""The shared segment: one sparse file in /dev/shm, mapped whole, reserved piece by piece before it is touched.

The supervisor creates it before the fork and everybody inherits the mapping; only tools map it by name, read-only
and without the resource tracker of multiprocessing. The tracker (a helper process that Python itself starts for
`SharedMemory`) unlinks the segment should the supervisor be killed.

Touching memory that was never reserved is a SIGBUS when /dev/shm is full, so a `Region` calls `posix_fallocate`
first: a full /dev/shm is an exception (`MemoryFull`), never a signal.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from server.errors import DataError, MemoryFull, StartError
from server.shm import layout
from server.shm.layout import Regions

NAME_PREFIX = "millrace-"
SHM_DIRECTORY = "/dev/shm"


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
        descriptor = os.open(os.path.join(SHM_DIRECTORY, owner.name), os.O_RDWR | os.O_CLOEXEC)
        segment = cls(owner.name, descriptor, mmap.mmap(descriptor, regions.segment_bytes), owner)
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
            mm = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        segment = cls(name, -1, mm, None)
        words = segment.words
        if words[layout.MAGIC] != layout.MAGIC_VALUE or words[layout.VERSION] != layout.LAYOUT_VERSION:
            segment.close()
            raise DataError(path, "not a Millrace segment of this version")
        segment.regions = Regions.plan(words[layout.MEMORY_BYTES])
        return segment

    def _initialise(self, memory_bytes: int, is_classic: bool) -> None:
        fixed_bytes = layout.DIRTY_OFFSET + layout.DIRTY_BYTES
        self.reserve(0, fixed_bytes)
        words = self.words
        words[layout.VERSION] = layout.LAYOUT_VERSION
        words[layout.SEGMENT_BYTES] = self.regions.segment_bytes
        words[layout.MEMORY_BYTES] = memory_bytes
        words[layout.SLOTS_MAX] = self.regions.slots_max
        words[layout.HASH_SEED] = secrets.randbits(62)
        words[layout.CONTRACT] = int(is_classic)
        words[layout.RESERVED_BYTES] = fixed_bytes
        words[layout.MAGIC] = layout.MAGIC_VALUE

    def reserve(self, offset: int, size: int) -> None:
        """Make `size` bytes at `offset` safe to touch. Raises `MemoryFull` when the file system has no room."""
        try:
            os.posix_fallocate(self.descriptor, offset, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise MemoryFull(f"{SHM_DIRECTORY} is full") from None
            raise

    def discard(self, offset: int, size: int) -> None:
        """Zero a range that may never have been reserved, touching only pages that exist (manager, first load)."""
        end = offset + size
        while offset < end:
            try:
                start = os.lseek(self.descriptor, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data after offset
                    return
                raise
            stop = min(os.lseek(self.descriptor, start, os.SEEK_HOLE), end)
            stop = min(stop, start + layout.GROW_BYTES)
            if start < end:
                self.mm[start:stop] = bytes(stop - start)
            offset = stop

    def close(self) -> None:
        """Unmap; the creator also removes the segment."""
        self.words.release()
        self.mm.close()
        if self._owner is not None:
            os.close(self.descriptor)
            self._owner.close()
            self._owner.unlink()
            self._owner = None


class Region:
    """A growing part of the segment (manager): reserved in steps, within the budget of `--memory`."""

    def __init__(self, segment: Segment, start: int, size_max: int, used_bytes: int) -> None:
        """Take over what a predecessor used: it always reserved whole steps before it counted them as used."""
        self._segment = segment
        self._start = start
        self._size_max = size_max
        self.reserved_bytes = min(-(-used_bytes // layout.GROW_BYTES) * layout.GROW_BYTES, size_max)

    def ensure(self, used_bytes: int) -> None:
        """Reserve up to `used_bytes` from the start. Raises `MemoryFull`, and then nothing has changed."""
        while self.reserved_bytes < used_bytes:
            self._grow()

    def _grow(self) -> None:
        step = min(layout.GROW_BYTES, self._size_max - self.reserved_bytes)
        words = self._segment.words
        total = words[layout.RESERVED_BYTES] + step
        if step <= 0 or total > words[layout.MEMORY_BYTES]:
            raise MemoryFull("--memory is used up")
        self._segment.reserve(self._start + self.reserved_bytes, step)
        self.reserved_bytes += step
        words[layout.RESERVED_BYTES] = total


def remove_stale(name: str) -> bool:
    """Unlink the segment that a killed supervisor left behind; True when there was one."""
    if not name.startswith(NAME_PREFIX) or "/" in name:
        return False
    try:
        Path(SHM_DIRECTORY, name).unlink()
    except FileNotFoundError:
        return False
    return True
