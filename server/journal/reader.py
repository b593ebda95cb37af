"""Reads the journal and says how it ends.

Used by the manager (at its start and when it takes over) and by the offline journal tool. Never writes; a scan of a
journal that a live manager writes sees some prefix of it.

How it works: the segments are walked in the order of their numbers, each read into memory as a whole. A group counts
if its frame is whole, its number is the next one, and its epoch is not less than that of the group before. A segment
ends in front of the first group of the next segment. In the last segment the log ends where no such group stands:

    clean    there is the end mark, and no whole frame behind it
    torn     a write did not reach the disk before a crash; what stands there was never acknowledged as synced
    damaged  a group that can not be read is followed by proof that it was once on the disk: a later frame that names
             it as synced, or a next segment, which is only begun when all groups before are synced

The last group of all can not be proved: damaged or cut off, it looks like a torn tail. Nothing before it does.

Leaves out: repair. `server.journal.writer` cuts a torn tail; damage is for a person and the journal tool.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from server.errors import DataError
from server.journal import format


class State(Enum):
    """How a scan ended."""

    CLEAN = "clean"
    TORN = "torn"
    DAMAGED = "damaged"


class Segment(NamedTuple):
    """One segment file whose header is good."""

    path: Path
    size: int
    header: format.SegmentHeader
    seed: int

    @property
    def number(self) -> int:
        return self.header.segment


class End(NamedTuple):
    """Where and how the valid groups end."""

    state: State
    path: Path
    offset: int  # in that file: where the next group belongs, or where the damage is
    detail: str
    number: int  # of the group that is next
    last_seq: int
    epoch: int  # of the last group or segment


def read_groups(directory: Path, instance: bytes, start: int = 0) -> Iterator[format.Group]:
    """Yield the groups at `start` (a `Group.position`) and after it; 0 means all.

    Stops at a torn tail. Raises `DataError` for damage, a foreign instance and an unknown version.
    """
    scan = Scan(directory, instance, start)
    yield from scan
    scan.raise_damage()


class Scan:
    """One pass over the journal: iterate for the groups, then look at `end`. Raises nothing but `OSError`.

    `start` is a position: segments before its own are not read (but for their headers), groups before it are checked
    and not yielded. With `instance` None the first segment's instance is taken for the right one (offline tools).
    """

    end: End  # set when the iteration is over

    def __init__(self, directory: Path, instance: bytes | None, start: int = 0) -> None:
        self.directory = directory
        self.segments: list[Segment] = []
        self.stub: Path | None = None  # a last file too short for a header: cut there, it holds nothing
        self._instance = instance
        self._start = start
        self._number = 1
        self._last_seq = 0
        self._epoch = 0

    def raise_damage(self) -> None:
        """Raise `DataError` if the scan ended at damage."""
        if self.end.state is State.DAMAGED:
            raise DataError(self.end.path, self.end.detail, self.end.offset)

    def __iter__(self) -> Iterator[format.Group]:
        for segment, data, frame in self.walk():
            if format.pack_position(segment.number, frame.offset) < self._start:
                continue
            try:
                group = format.decode_group(data, frame, segment.number)
            except ValueError as error:
                self.end = self._end(State.DAMAGED, segment.path, frame.offset, str(error))
                return
            yield group

    def walk(self) -> Iterator[tuple[Segment, bytes, format.Frame]]:
        """Yield segment, its bytes and the frame of every valid group, undecoded; then set `end`."""
        end = self._read_headers() or self._end(State.CLEAN, self.directory, 0, "")
        segments = self._segments_from_start()
        for segment, following in zip_longest(segments, segments[1:]):
            if end.state is State.DAMAGED:
                break
            stop = None if following is None else following.header.first_group
            data = segment.path.read_bytes()
            offset = format.HEADER_BYTES
            while self._number != stop:
                frame = format.read_frame(data, offset, segment.seed)
                if frame is None or frame.number != self._number or frame.epoch < self._epoch:
                    end = self._judge(segment, data, offset, stop)
                    break
                self._number += 1
                self._last_seq = max(self._last_seq, frame.last_seq)
                self._epoch = frame.epoch
                offset = frame.end
                yield segment, data, frame
        if self.stub is not None and end.state is not State.DAMAGED:
            end = end._replace(state=State.TORN, detail=f"{self.stub.name} is cut off within its header")
        self.end = end

    def _read_headers(self) -> End | None:
        """Fill `segments`; return what is wrong with a header, or None."""
        paths = sorted(self.directory.glob(format.SEGMENT_PATTERN))
        if paths and paths[-1].stat().st_size < format.HEADER_BYTES:
            self.stub = paths.pop()  # no crash leaves one, but a log cut off at any byte is its valid prefix
        for path in paths:
            with path.open("rb") as file:
                data = file.read(format.HEADER_BYTES)
            try:
                header, seed = format.decode_header(data)
                self._check_header(path, header)
            except ValueError as error:
                return self._end(State.DAMAGED, path, 0, str(error))
            self.segments.append(Segment(path, path.stat().st_size, header, seed))
        return None

    def _segments_from_start(self) -> list[Segment]:
        """Return the segments to walk; the first header says which group is next."""
        first = format.position_segment(self._start)
        segments = [segment for segment in self.segments if segment.number >= first] or self.segments[-1:]
        if segments:
            self._number = segments[0].header.first_group
            self._last_seq = segments[0].header.first_seq - 1
        return segments

    def _check_header(self, path: Path, header: format.SegmentHeader) -> None:
        if self._instance is None:
            self._instance = header.instance
        if header.instance != self._instance:
            raise ValueError(f"belongs to instance {header.instance.hex()}, not to {self._instance.hex()}")
        if header.segment != int(path.stem):
            raise ValueError(f"is segment {header.segment} by its header")
        if not self.segments:
            return
        before = self.segments[-1].header
        if header.segment != before.segment + 1:
            raise ValueError(f"segment {before.segment + 1} before it is missing")
        if header.first_group < before.first_group or header.first_seq < before.first_seq:
            raise ValueError(f"begins before segment {before.segment}")

    def _judge(self, segment: Segment, data: bytes, offset: int, stop: int | None) -> End:
        """Say what it means that group `self._number` does not stand at `offset`."""
        number = self._number
        if stop is not None:
            detail = f"group {number} is damaged or missing, but the next segment begins with group {stop}"
            return self._end(State.DAMAGED, segment.path, offset, detail)
        is_torn = any(data[offset : offset + len(format.END_MARK)])
        for frame in format.search_frames(data, offset, segment.seed):
            if frame.number > number:
                is_torn = True
                if frame.synced_group >= number:
                    detail = f"group {number} is damaged: group {frame.number} at {frame.offset} knows it was synced"
                    return self._end(State.DAMAGED, segment.path, offset, detail)
        if is_torn:
            return self._end(State.TORN, segment.path, offset, f"group {number} is not whole")
        return self._end(State.CLEAN, segment.path, offset, "")

    def _end(self, state: State, path: Path, offset: int, detail: str) -> End:
        epoch = max([self._epoch, *(segment.header.epoch for segment in self.segments)])
        return End(state, path, offset, detail, self._number, self._last_seq, epoch)
