"""Writes the journal: appends groups and makes them durable.

Used by the manager only. The bytes are in `server.journal.format`, the life of the files in `server.journal.files`.
A group is one `pwrite` of frame and end mark into a preallocated file, and one `fdatasync` if asked.

What always holds:

- A refused group does not appear. After a failed write its header is zeroed. After a failed sync its segment is
  abandoned: a new one begins after the last durable group, so it ends the old one in front of the refused group
  even if that reached the disk. A failed sync is never tried again on the same file, because Linux drops the pages
  that it could not write and calls the next sync a success (https://wiki.postgresql.org/wiki/Fsync_Errors).
- A group that was appended without a sync is kept in memory until it is durable, and is written again at the head of
  the segment that replaces an abandoned one. All groups that are not durable stand in the newest segment.
- While no segment can be made, every append tries again: writes come back by themselves when space does.

What it leaves out: when a sync failed and no new segment could be made either, the refused group is only zeroed in the
page cache. A power cut before the next segment stands may bring it back, if the disk had taken it despite the error.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from server.errors import DataError, JournalRefused
from server.failpoints import Failpoint, not_armed
from server.journal import format
from server.journal.files import SegmentFiles, cut, write_all
from server.journal.format import Change, Frame, SegmentHeader
from server.journal.reader import End, Scan, State

log = logging.getLogger(__name__)

UNSYNCED_BYTES_MAX = 8 << 20  # groups kept in memory until they are durable; before it is passed, the journal syncs

# Syncing blocks of a preallocated file that were never written costs the file system a transaction of its own: 250 us
# per group against 150 us (ext4). So the end mark of a frame is this long where a segment was not written before.
WRITE_AHEAD_BYTES = 256 << 10

_FRAME_EXTRA_BYTES = format.FRAME_PREFIX_BYTES + len(format.END_MARK)  # around what `encode_group` returns


class Journal:
    """The journal, open for writing; not for threads."""

    def __init__(self, files: SegmentFiles, instance: bytes, epoch: int, failpoint: Failpoint = not_armed) -> None:
        """Use `open`."""
        self.epoch = epoch
        self.last_seq = 0
        self.group_position = 0  # of the last group that was appended
        self.synced_seq = 0
        self._instance = instance
        self._files = files
        self._failpoint = failpoint
        self._fd = -1  # of the newest segment; -1: there is none that can be written
        self._segment = 1  # number of that segment
        self._size = 0  # of that segment
        self._seed = 0  # of that segment
        self._offset = format.HEADER_BYTES  # where the next group goes
        self._written = 0  # up to here the blocks of that segment were written before
        self._number = 1  # of the next group
        self._synced_number = 0  # of the last durable group
        self._unsynced: list[bytes] = []  # the groups after that one, as `encode_group` made them
        self._unsynced_bytes = 0

    @classmethod
    def open(
        cls,
        directory: Path,
        instance: bytes,
        epoch: int,
        segment_bytes: int,
        max_bytes: int,
        start: int = 0,
        failpoint: Failpoint = not_armed,
        is_expected: bool = False,
    ) -> Journal:
        """Find the exact end of the log, cut a torn tail, and make durable what is there.

        `start` is a position the caller trusts everything before: segments before its own are not read.
        Raises `DataError` for damage, a foreign instance, an unknown version, an epoch that is over, and a journal
        that `is_expected` to be there and is not; `StartError` while another process has it open.
        """
        journal = cls(SegmentFiles(directory, segment_bytes, max_bytes), instance, epoch, failpoint)
        try:
            journal._recover(Scan(directory, instance, start), is_expected)
        except BaseException:
            journal.close()
            raise
        return journal

    @property
    def position(self) -> int:
        """Where the next group goes, or a place before it with no group between."""
        return format.pack_position(self._segment, self._offset)

    @property
    def group_bytes_max(self) -> int:
        """The largest sum of `format.CHANGE_HEAD_BYTES`, body and private part of all changes, and the answers.

        No batch may be larger: the manager ends a batch before it reaches this.
        """
        return self._files.segment_bytes - format.HEADER_BYTES - format.FRAME_HEADER_BYTES - len(format.END_MARK)

    def append(self, first_seq: int, count: int, changes: Sequence[Change], answers: bytes, sync: bool) -> None:
        """Write one group; with `sync` it is durable on return, and so is every group before it.

        Raises `JournalRefused`: the group is not in the journal, and the same seqs may be used again.
        """
        if first_seq <= self.last_seq:
            raise ValueError(f"seq {first_seq} after {self.last_seq}")
        group = format.encode_group(self.epoch, self._number, first_seq, count, changes, answers, self._synced_number)
        self._make_room(len(group) + _FRAME_EXTRA_BYTES)
        frame = format.seal(group, self._seed)
        try:
            self._failpoint("journal.before_write")
            write_all(self._fd, frame + self._end_mark(self._offset + len(frame)), self._offset)
            self._failpoint("journal.after_write")
        except OSError as error:
            self._erase_frame(error)
            raise _refusal("write", error) from error
        if sync:
            self._sync_frame()
        else:
            self._unsynced.append(group)
            self._unsynced_bytes += len(frame)
        self.group_position = self.position
        self._offset += len(frame)
        self._number += 1
        self.last_seq = max(self.last_seq, first_seq + count - 1)
        if sync:
            self._mark_synced()
            self._failpoint("journal.after_sync")

    def sync(self) -> None:
        """Make every group durable. Raises `JournalRefused`: they are kept, and the next call tries again."""
        if not self._unsynced:
            return
        if self._fd >= 0:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                self._abandon_segment(error)
            else:
                self._mark_synced()
                return
        self._start_segment()

    def retire(self, persisted_seq: int) -> None:
        """Recycle or delete every segment but the newest whose groups all have a last seq <= `persisted_seq`."""
        self._files.retire(persisted_seq)

    def close(self) -> None:
        """Release files and lock. Does not sync: `sync` first where that matters."""
        self._close_segment()
        self._files.close()

    # ---- opening --------------------------------------------------------------------------------------------------

    def _recover(self, scan: Scan, is_expected: bool) -> None:
        """Read the log and put this object into the state that its last writer was in."""
        pending: deque[Frame] = deque()  # frames that are not known to be on the disk
        last_data = b""
        for _, data, frame in scan.walk():
            while pending and pending[0].number <= frame.synced_group:
                self.synced_seq = pending.popleft().last_seq
            pending.append(frame)
            last_data = data
        scan.raise_damage()
        if is_expected and not scan.segments:
            directory = self._files.directory
            raise DataError(directory, "the journal is missing, though the databases hold changes that were in it")
        if scan.end.epoch > self.epoch:
            detail = f"written by the manager of epoch {scan.end.epoch}, this one has {self.epoch}"
            raise DataError(scan.end.path, detail, scan.end.offset)
        if scan.segments:
            newest = scan.segments[-1].header
            self.synced_seq = max(self.synced_seq, newest.first_seq - 1)
            while pending and pending[0].number < newest.first_group:
                pending.popleft()
        self._number = scan.end.number
        self._synced_number = self._number - 1 - len(pending)
        self.last_seq = scan.end.last_seq
        self._files.adopt(scan)
        try:
            self._continue_log(scan.end, last_data, pending)
        except JournalRefused as refused:
            log.warning("journal opened, but can not be written yet: error=%s", refused.detail)

    def _continue_log(self, end: End, data: bytes, pending: Sequence[Frame]) -> None:
        """Cut the torn tail and sync the rest. Raises `JournalRefused`; then the next append tries again.

        What is not known to be on the disk is written once more first: if its sync failed before the last writer
        died, its pages are clean though the disk never took them, and a sync alone would find nothing to do.
        """
        if end.state is State.TORN:
            log.warning("journal tail cut: path=%s offset=%d detail=%s", end.path, end.offset, end.detail)
        newest = self._files.newest
        if newest is None:
            self._start_segment()
            return
        self._offset = end.offset
        self._unsynced = [data[frame.offset + format.FRAME_PREFIX_BYTES : frame.end] for frame in pending]
        self._unsynced_bytes = sum(map(len, self._unsynced))
        self._fd, self._size, self._seed = os.open(newest.path, os.O_RDWR), newest.size, newest.seed
        self._segment = newest.number
        try:
            if end.state is State.TORN:
                cut(self._fd, end.offset)
            if pending:
                write_all(self._fd, data[pending[0].offset : pending[-1].end], pending[0].offset)
        except OSError as error:
            self._abandon_segment(error)
        self.sync()

    # ---- writing --------------------------------------------------------------------------------------------------

    def _make_room(self, size: int) -> None:
        """See to it that `size` bytes can be written at `self._offset`; raise `JournalRefused`."""
        if format.HEADER_BYTES + size > self._files.segment_bytes:
            raise JournalRefused(f"a group of {size} bytes does not fit into a journal segment", is_full=False)
        if self._fd < 0:
            self._start_segment()
        if self._unsynced_bytes + size > UNSYNCED_BYTES_MAX:
            self.sync()
        if self._offset + size > self._size:
            self.sync()  # all that is not durable stands in the newest segment; may have moved to a new one already
        if self._offset + size > self._size:
            self._start_segment()

    def _end_mark(self, offset: int) -> bytes:
        """Return the zeros that follow a frame which ends at `offset`; see WRITE_AHEAD_BYTES."""
        if offset + len(format.END_MARK) <= self._written:
            return format.END_MARK
        self._written = min(offset + WRITE_AHEAD_BYTES, self._size)
        return bytes(self._written - offset)

    def _start_segment(self) -> None:
        """Make the segment that begins after the last durable group, with all groups that are not; then they are.

        If the newest segment has no durable group it is replaced, number and all: a disk that fails every sync does
        not pile up abandoned segments. Raises `JournalRefused`.
        """
        newest = self._files.newest
        first_group = self._synced_number + 1
        number = 1 if newest is None else newest.number + (newest.first_group < first_group)
        header = SegmentHeader(self._instance, number, self.epoch, first_group, self.synced_seq + 1)
        head, seed = format.encode_header(header)
        content = b"".join((head, *(format.seal(group, seed) for group in self._unsynced), format.END_MARK))
        try:
            fd = self._files.make(header, seed, content)
        except OSError as error:
            raise _refusal("make a segment", error) from error
        self._close_segment()
        self._fd = fd
        try:
            self._files.sync_directory()
        except OSError as error:
            self._abandon_segment(error)
            raise _refusal("sync the directory", error) from error
        made = self._files.segments[-1]
        self._segment, self._size, self._seed = made.number, made.size, seed
        self._written = made.size if made.is_recycled else 0
        self._offset = len(content) - len(format.END_MARK)
        self._mark_synced()

    def _sync_frame(self) -> None:
        """Sync the frame just written at `self._offset`, or make it void and raise `JournalRefused`."""
        try:
            self._failpoint("journal.before_sync")
            os.fdatasync(self._fd)
        except OSError as error:
            with suppress(OSError):  # so that a successor does not find it should no new segment be possible now
                write_all(self._fd, bytes(format.FRAME_HEADER_BYTES), self._offset)
            self._abandon_segment(error)
            with suppress(JournalRefused):  # the next append tries again
                self._start_segment()
            raise _refusal("sync", error) from error

    def _erase_frame(self, error: OSError) -> None:
        """Restore the end of the log after a write that failed; what it left behind the header is never looked at."""
        try:
            write_all(self._fd, bytes(format.FRAME_HEADER_BYTES), self._offset)
        except OSError:
            self._abandon_segment(error)
            with suppress(JournalRefused):  # the next append tries again
                self._start_segment()

    def _abandon_segment(self, error: OSError) -> None:
        segment = self._files.segments[-1]
        log.warning("journal segment abandoned: path=%s offset=%d error=%s", segment.path, self._offset, error)
        segment.is_abandoned = True
        self._close_segment()

    def _close_segment(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _mark_synced(self) -> None:
        self._unsynced.clear()
        self._unsynced_bytes = 0
        self._synced_number = self._number - 1
        self.synced_seq = self.last_seq

    @property
    def bytes(self) -> int:  # the last in the class, because from here on its name hides the type
        """Total size of all files, spares included."""
        return self._files.bytes


def _refusal(action: str, error: OSError) -> JournalRefused:
    return JournalRefused(f"{action}: {error}", is_full=error.errno in (errno.ENOSPC, errno.EDQUOT))
