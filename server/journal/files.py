"""The files of the journal directory: makes, recycles and deletes segments. Belongs to the writer.

A segment is made under another name with all that it must hold, synced, renamed to its number, and the directory is
synced: a numbered segment always has a good header. A retired segment becomes a spare, and a spare is preferred for
the next segment: its blocks were written before, and syncing those is cheaper (see `server.journal.writer`).

What always holds: one process at a time has the directory (`flock`, which the kernel releases when its holder dies);
the numbers of the segments have no gap; `bytes` is the size of all files; no file takes the last room of its disk, so
that the databases can be written and segments given up. Leaves out what the groups mean.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from server.errors import JournalRefused, StartError
from server.journal import format
from server.journal.reader import Scan

log = logging.getLogger(__name__)

SPARES_MAX = 2  # one for the next segment and one more for a burst; they count towards the size of the journal
# Left free on the disk: the WAL of each database grows to some 4 MiB before SQLite starts it anew. Without it a journal
# that has taken the last block would wait for databases that can not commit, and they for it to give a segment up.
DATABASES_ROOM_BYTES = 16 << 20
CUT_CHUNK_BYTES = 1 << 20  # stale data is looked for and zeroed in pieces of this size


@dataclass(slots=True)
class SegmentFile:
    path: Path
    number: int
    size: int
    first_group: int
    first_seq: int
    seed: int
    is_recycled: bool = False
    is_abandoned: bool = False  # writing or syncing failed here: never used again, never recycled


class SegmentFiles:
    """Every file of the journal directory. Methods raise `OSError` unless they say otherwise."""

    def __init__(self, directory: Path, segment_bytes: int, max_bytes: int) -> None:
        """Make the directory if need be, and lock it. Raises `StartError` while another process has it."""
        self.directory = directory
        self.segment_bytes = segment_bytes
        self.max_bytes = max_bytes
        self.bytes = 0
        self.segments: list[SegmentFile] = []  # oldest first
        self._spares: list[Path] = []
        if not directory.exists():
            directory.mkdir(mode=0o700)
            _sync_directory(directory.parent)
        try:
            self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except NotADirectoryError:
            raise StartError(f"{directory} is not a directory") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise StartError(f"{directory} is in use by another process") from None

    @property
    def newest(self) -> SegmentFile | None:
        return self.segments[-1] if self.segments else None

    def close(self) -> None:
        """Release the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def sync_directory(self) -> None:
        os.fsync(self._fd)

    def adopt(self, scan: Scan) -> None:
        """Account for every file after a scan; remove what a crash, a cut or another segment size left over."""
        leftover = [self.directory / format.UNFINISHED_NAME]
        if scan.stub is not None:
            leftover.append(scan.stub)
        for path in sorted(self.directory.glob(format.SPARE_PATTERN)):
            if len(self._spares) < SPARES_MAX and path.stat().st_size == self.segment_bytes:
                self._spares.append(path)
                self.bytes += self.segment_bytes
            else:
                leftover.append(path)
        for path in leftover:
            path.unlink(missing_ok=True)
        self.sync_directory()
        for path, size, header, seed in scan.segments:
            self.segments.append(
                SegmentFile(path, header.segment, size, header.first_group, header.first_seq, seed)
            )
            self.bytes += size

    def make(self, header: format.SegmentHeader, seed: int, content: bytes) -> int:
        """Make the newest segment, which begins with `content`; return it open. `sync_directory` makes it durable.

        A segment of the same number is replaced. Raises `JournalRefused` at the limit, and when the disk has no room
        for another file; leaves no file when it raises.
        """
        newest = self.newest
        replaced = newest if newest is not None and newest.number == header.segment else None
        replaced_bytes = 0 if replaced is None else replaced.size
        size = max(self.segment_bytes, len(content))
        path = self.directory / format.SEGMENT_NAME.format(header.segment)
        is_recycled = bool(self._spares) and size == self.segment_bytes
        if is_recycled:
            self.bytes -= size
            fd = _fill(self._spares.pop(), content, 0, path)
        elif self.bytes - replaced_bytes + size > self.max_bytes:
            raise JournalRefused(f"the journal has reached its limit of {self.max_bytes} bytes", is_full=True)
        elif (free := self._free_bytes()) < size + DATABASES_ROOM_BYTES:
            raise JournalRefused(f"{free} bytes are left on the disk of the journal", is_full=True)
        else:
            fd = _fill(self.directory / format.UNFINISHED_NAME, content, size, path)
        self.bytes += size - replaced_bytes
        if replaced is not None:
            self.segments.pop()
        self.segments.append(
            SegmentFile(path, header.segment, size, header.first_group, header.first_seq, seed, is_recycled)
        )
        return fd

    def _free_bytes(self) -> int:
        disk = os.fstatvfs(self._fd)
        return disk.f_bavail * disk.f_frsize

    def retire(self, persisted_seq: int) -> None:
        """Recycle or delete every segment but the newest whose groups all have a last seq <= `persisted_seq`."""
        while len(self.segments) > 1 and self.segments[1].first_seq - 1 <= persisted_seq:
            oldest = self.segments[0]
            try:
                self._retire_oldest(oldest)
            except OSError as error:  # costs room until a later call or the next start
                log.warning("journal segment not retired: path=%s error=%s", oldest.path, error)
                return

    def _retire_oldest(self, oldest: SegmentFile) -> None:
        """Sync the directory each time: no gap can be seen after a crash, and no spare under its old number."""
        is_good = oldest.size == self.segment_bytes and not oldest.is_abandoned
        spare = self.directory / format.SPARE_NAME.format(oldest.number)
        if is_good and len(self._spares) < SPARES_MAX:
            oldest.path.rename(spare)
            del self.segments[0]
            self.sync_directory()
            self._spares.append(spare)
        else:
            oldest.path.unlink()
            del self.segments[0]
            self.bytes -= oldest.size
            self.sync_directory()


def _fill(unfinished: Path, content: bytes, reserve_bytes: int, path: Path) -> int:
    """Give `unfinished` its first bytes, sync it, rename it to `path`, and return it open; delete it on failure."""
    fd = os.open(unfinished, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if reserve_bytes:
            os.ftruncate(fd, 0)
            os.posix_fallocate(fd, 0, reserve_bytes)
        write_all(fd, content, 0)
        os.fsync(fd)
        unfinished.rename(path)
    except OSError:
        os.close(fd)
        with suppress(OSError):
            unfinished.unlink()
        raise
    return fd


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` or raise `OSError`. A file takes less than it was given only when no room is left for it."""
    written = os.pwrite(fd, data, offset)
    if written != len(data):
        raise OSError(errno.ENOSPC, f"short write, {written} of {len(data)} bytes")


def cut(fd: int, offset: int) -> None:
    """Zero all data of a segment from `offset` on and sync it, so that nothing there can ever be taken for a group."""
    size = os.fstat(fd).st_size
    for start in range(offset, size, CUT_CHUNK_BYTES):
        chunk = os.pread(fd, min(CUT_CHUNK_BYTES, size - start), start)
        if chunk.count(0) != len(chunk):
            write_all(fd, bytes(len(chunk)), start)
    os.fsync(fd)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
