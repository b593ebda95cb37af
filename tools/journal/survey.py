"""Reads a whole journal, past every damage, and says what is wrong where. Never writes.

The server stops at the first damage (`server.journal.reader`). A survey goes on: it looks in every segment for every
frame whose checksum is right. A group is sound when it and all groups before it are there; the groups behind a damage
are whole, but what happened between is not known, so a server can not replay them.

    torn tail             the log ends in a group that is not whole; it was never acknowledged as synced. Not damage
    damaged frame         bytes that are no frame stand where a group belongs
    missing group         nothing stands where a group belongs, or a later one
    damaged header        the header of a segment can not be read. The frames below are still found if the checksum in
                          it is intact, which is their seed
    foreign segment       of another instance
    newer segment         of a format that this program does not know
    missing segment       the numbers of the files have a gap

What always holds: the state (clean, torn, damaged) is the one that the server would find; a test compares them.
Groups that a later segment replaced (refused ones that reached the disk after all) are void and not shown. Leaves
out: where the header of the next segment is unreadable, a void group at the end of a segment can not be told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from server.journal import format
from server.journal.format import Frame, Group, SegmentHeader
from server.journal.reader import State


class Fault(Enum):
    """The classes of damage."""

    TORN_TAIL = "torn tail"
    FRAME = "damaged frame"
    GROUP_GAP = "missing group"
    HEADER = "damaged header"
    FOREIGN = "foreign segment"
    NEWER = "newer segment"
    SEGMENT_GAP = "missing segment"


class Finding(NamedTuple):
    """One fault and where it begins."""

    fault: Fault
    path: Path
    offset: int
    detail: str


class Found(NamedTuple):
    """A group that is whole by itself."""

    segment: int
    offset: int
    group: Group
    is_sound: bool  # no damage and no torn group stands before it


@dataclass(slots=True)
class Part:
    """One segment file."""

    path: Path
    size: int
    header: SegmentHeader | None = None
    seed: int | None = None  # None: nothing in it can be read
    first_group: int | None = None  # where the segment before ends
    findings: list[Finding] = field(default_factory=list)
    groups: int = 0  # whole ones
    group_numbers: tuple[int, int] | None = None  # of the first and the last
    seqs: tuple[int, int] | None = None  # the first and the last of them
    end: int = 0  # of the last whole group


class Survey:
    """One pass: iterate for the groups, then look at the findings. Raises nothing but `OSError`."""

    def __init__(self, directory: Path, instance: bytes | None) -> None:
        """With `instance` None that of the first readable header is taken for the right one."""
        self.instance = instance
        self.parts: list[Part] = []
        self.findings: list[Finding] = []  # in the order of the log
        self.sound_groups = self.later_groups = self.changes = 0
        self.epoch = 0  # of the newest group or segment that can be read
        self.last_seq = 0  # of the last sound group
        self._number: int | None = None  # of the group that is next; None: whatever stands there
        self._group_epoch = 0
        paths = sorted(directory.glob(format.SEGMENT_PATTERN))
        self._stub = paths.pop() if paths and paths[-1].stat().st_size < format.HEADER_BYTES else None
        for path in paths:
            with suppress(FileNotFoundError):  # a server has retired it meanwhile
                self._read_header(path)

    @property
    def damage(self) -> Finding | None:
        """The first fault that a server would refuse."""
        return next((finding for finding in self.findings if finding.fault is not Fault.TORN_TAIL), None)

    @property
    def state(self) -> State:
        """What a server would find."""
        if self.damage is not None:
            return State.DAMAGED
        return State.TORN if self.findings else State.CLEAN

    @property
    def is_readable(self) -> bool:
        """Whether there is a segment that can be read at all."""
        return any(part.seed is not None for part in self.parts)

    def __iter__(self) -> Iterator[Found]:
        for index, part in enumerate(self.parts):
            self.findings += part.findings  # of its header
            if part.seed is None:
                self._number = None
                continue
            self._number = part.first_group  # a gap before it is noted already
            is_last = index == len(self.parts) - 1
            try:
                data = part.path.read_bytes()
            except FileNotFoundError:  # a server has retired it meanwhile, and those before it
                self._number = None
                continue
            yield from self._walk(part, data, part.seed, None if is_last else self.parts[index + 1])
        if self._stub is not None:
            finding = Finding(Fault.TORN_TAIL, self._stub, 0, "the file is cut off within its header")
            self.findings.append(finding)

    # ---- headers

    def _read_header(self, path: Path) -> None:
        with path.open("rb") as file:
            data = file.read(format.HEADER_BYTES)
        part = Part(path, path.stat().st_size, end=format.HEADER_BYTES)
        before = self.parts[-1] if self.parts else None
        self.parts.append(part)
        number = int(path.stem)
        if before is not None and number != int(before.path.stem) + 1:
            detail = f"segments {int(before.path.stem) + 1} to {number - 1} before it are missing"
            part.findings.append(Finding(Fault.SEGMENT_GAP, path, 0, detail))
        try:
            part.header, part.seed = format.decode_header(data)
        except format.UnknownVersion as error:
            part.findings.append(Finding(Fault.NEWER, path, 0, str(error)))
            return
        except ValueError as error:
            part.findings.append(Finding(Fault.HEADER, path, 0, str(error)))
            self._guess_header(part, data)
            return
        self._check_header(part, part.header, before)

    def _guess_header(self, part: Part, data: bytes) -> None:
        """Use the seed of a damaged header if a frame proves it."""
        if len(data) == format.HEADER_BYTES:
            seed = format.stored_seed(data)
            first = next(format.search_frames(part.path.read_bytes(), format.HEADER_BYTES, seed), None)
            if first is not None:
                part.seed, part.first_group = seed, first.number

    def _check_header(self, part: Part, header: SegmentHeader, before: Part | None) -> None:
        if self.instance is None:
            self.instance = header.instance
        if header.instance != self.instance:
            detail = f"belongs to instance {header.instance.hex()}, not to {self.instance.hex()}"
            part.findings.append(Finding(Fault.FOREIGN, part.path, 0, detail))
            part.seed = None
            return
        part.first_group = header.first_group
        self.epoch = max(self.epoch, header.epoch)
        if header.segment != int(part.path.stem):
            detail = f"is segment {header.segment} by its header"
            part.findings.append(Finding(Fault.HEADER, part.path, 0, detail))
        elif before is not None and before.header is not None and before.seed is not None:
            is_earlier = header.first_group < before.header.first_group or header.first_seq < before.header.first_seq
            if is_earlier:
                detail = f"begins before segment {before.header.segment}"
                part.findings.append(Finding(Fault.HEADER, part.path, 0, detail))

    # ---- frames

    def _walk(self, part: Part, data: bytes, seed: int, following: Part | None) -> Iterator[Found]:
        """Yield the whole groups of one segment and note what is wrong between them."""
        is_last = following is None
        stop = None if following is None else following.first_group
        frames = [frame for frame in format.search_frames(data, part.end, seed) if stop is None or frame.number < stop]
        for index, frame in enumerate(frames):
            if self._number is not None and frame.number < self._number:
                continue  # it was there before
            is_next = frame.number == self._number or self._number is None
            if frame.offset != part.end or not is_next or frame.epoch < self._group_epoch:
                self._note_gap(part, data, frames[index:], is_last)
            self._number = frame.number + 1
            self._group_epoch = frame.epoch
            part.end = frame.end
            try:
                group = format.decode_group(data, frame, int(part.path.stem))
            except ValueError as error:
                self._note(part, Fault.FRAME, frame.offset, f"group {frame.number}: {error}")
                continue
            yield self._count(part, frame, group)
        is_end_mark = not any(data[part.end : part.end + len(format.END_MARK)])
        # what the next segment says of its beginning counts for this one only if nothing is wrong with it
        is_stop_known = following is not None and not following.findings
        if is_stop_known and stop is not None and self._number is not None and self._number < stop:
            fault = Fault.GROUP_GAP if is_end_mark else Fault.FRAME
            detail = f"{_groups(self._number, stop - 1)} damaged or missing, but the next segment begins with {stop}"
            self._note(part, fault, part.end, detail)
        elif is_last and not is_end_mark:
            self._note(part, Fault.TORN_TAIL, part.end, f"group {self._number} is not whole")

    def _note_gap(self, part: Part, data: bytes, later: list[Frame], is_last: bool) -> None:
        """A group does not stand where it belongs, but there are later ones: damage if it was ever synced."""
        frame, number = later[0], self._number
        if number is None:  # the first of a segment whose beginning is not known
            return
        is_proved = not is_last or any(frame.synced_group >= number for frame in later)
        if not is_proved:
            detail = f"group {number} is not whole, though group {frame.number} is"
            self._note(part, Fault.TORN_TAIL, part.end, detail)
        elif frame.number == number:
            detail = f"bytes that are no group stand before group {number} at {frame.offset}"
            self._note(part, Fault.FRAME, part.end, detail)
        else:
            is_empty = frame.offset == part.end or not any(data[part.end : part.end + len(format.END_MARK)])
            detail = f"{_groups(number, frame.number - 1)} damaged or missing before group {frame.number}"
            self._note(part, Fault.GROUP_GAP if is_empty else Fault.FRAME, part.end, detail)

    def _note(self, part: Part, fault: Fault, offset: int, detail: str) -> None:
        finding = Finding(fault, part.path, offset, detail)
        part.findings.append(finding)
        self.findings.append(finding)

    def _count(self, part: Part, frame: Frame, group: Group) -> Found:
        is_sound = not self.findings
        if is_sound:
            self.sound_groups += 1
            self.last_seq = frame.last_seq
        else:
            self.later_groups += 1
        self.changes += len(group.changes)
        self.epoch = max(self.epoch, frame.epoch)
        part.groups += 1
        first_group, first_seq = frame.number, frame.first_seq
        if part.group_numbers is not None and part.seqs is not None:
            first_group, first_seq = part.group_numbers[0], part.seqs[0]
        part.group_numbers, part.seqs = (first_group, frame.number), (first_seq, frame.last_seq)
        return Found(int(part.path.stem), frame.offset, group, is_sound)


def _groups(first: int, last: int) -> str:
    return f"group {first} is" if first == last else f"groups {first} to {last} are"
