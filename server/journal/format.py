"""The bytes of the journal: every offset, size, magic number and flag lives here and is spelled nowhere else.

The journal is a directory of segments, `00000001.journal`, `00000002.journal`, ... Each has one header and then
frames without gaps; a frame holds one group, which is one batch of changes that becomes true as a whole or not at
all. All integers are little-endian and unsigned. Everything is written by the manager only; the manager reads it at
its start, `python -m tools journal` reads it offline.

SEGMENT HEADER (HEADER_BYTES = 64), on the disk before the file gets its number, never changed after that.

    offset  size  type   field         meaning
    0       8     bytes  magic         "MLRJOURN"
    8       4     u32    version       FORMAT_VERSION
    12      4     u32    crc           CRC-32 of bytes 0-11 and 16-63; also the seed of the CRC of every frame below it
    16      16    bytes  instance      identity of the data directory
    32      8     u64    segment       number of this segment, the same as in the file name
    40      8     u64    epoch         epoch of the manager that made it
    48      8     u64    first group   number of the first group here; the segment before ends in front of that group,
                                       whatever else its file may hold
    56      8     u64    first seq     the groups of the segments before have no seq as high as this one

FRAME. The payload follows its header at once, the next frame follows the payload.

    offset  size  type   field         meaning
    0       4     bytes  magic         FF "GRP"; FF is in no UTF-8 text, so no record body can look like a frame
    4       4     u32    crc           CRC-32 of byte 8 up to the end of the payload, seeded by the segment's crc
    8       4     u32    length        bytes of the payload
    12      4     u32    changes       number of changes in the payload
    16      8     u64    epoch         of the manager that made the group; never less than in the group before
    24      8     u64    number        of the group: consecutive over all segments
    32      8     u64    first seq     of the group
    40      4     u32    count         seqs in the group: its last seq is first seq + count - 1
    44      4     u32    answers       bytes of the answers at the end of the payload
    48      8     u64    synced group  last group that was known to be on the disk when this one was made: if it is
                                       unreadable, that is damage and not the end of the log
    56      ..    bytes  payload       the heads of all changes; then body and private part of each; then the answers

CHANGE HEAD (24 bytes).

    offset  size  type   field         meaning
    0       1     u8     kind          server.commands.Kind
    1       1     u8     flags         bit 0: the record was deleted; there is no body
    2       2     u16    private       bytes of the private part
    4       4     u32    body          bytes of the body
    8       8     u64    id            of the record
    16      8     u64    seq           of the change

END MARK: eight zero bytes after the last frame, written together with it and overwritten by the next frame. Behind it
lies nothing (a fresh file) or what a recycled file held in its past life, whose frames do not fit the new seed.

    worked example: instance 00 01 .. 0f, segment 1, epoch 3, first group 1, first seq 1; one group of one change:
    kind 0, id 7, seq 1, body {"id":7}, private part "pw", answers "ok"
      0000  4d 4c 52 4a 4f 55 52 4e 01 00 00 00 cb 71 2f 10   MLRJOURN, version 1, crc
      0010  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f   instance
      0020  01 00 00 00 00 00 00 00 03 00 00 00 00 00 00 00   segment, epoch
      0030  01 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00   first group, first seq
      0040  ff 47 52 50 f7 82 db e7 24 00 00 00 01 00 00 00   magic, crc, length 36, changes 1
      0050  03 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00   epoch, number
      0060  01 00 00 00 00 00 00 00 01 00 00 00 02 00 00 00   first seq, count, answers
      0070  00 00 00 00 00 00 00 00 00 00 02 00 08 00 00 00   synced group 0; kind, flags, private 2, body 8
      0080  07 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00   id, seq
      0090  7b 22 69 64 22 3a 37 7d 70 77 6f 6b 00 00 00 00   body, private part, answers, end mark
      00a0  00 00 00 00
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from zlib import crc32

FORMAT_VERSION = 1

DIRECTORY_NAME = "journal"  # in the data directory
SEGMENT_NAME = "{:08d}.journal"
SEGMENT_PATTERN = "[0-9]" * 8 + ".journal"
SPARE_NAME = "spare-{:08d}.journal"
SPARE_PATTERN = "spare-*.journal"
UNFINISHED_NAME = "unfinished.tmp"  # a segment until its header is on the disk; one writer makes one at a time

HEADER_MAGIC = b"MLRJOURN"
FRAME_MAGIC = b"\xffGRP"
END_MARK = bytes(8)
DELETED = 1

_HEADER = struct.Struct("<8sII16sQQQQ")
_FRAME_PREFIX = struct.Struct("<4sI")
_FRAME_FIELDS = struct.Struct("<IIQQQIIQ")
_CHANGE = struct.Struct("<BBHIQQ")

HEADER_BYTES = 64
FRAME_PREFIX_BYTES = 8
FRAME_HEADER_BYTES = 56
CHANGE_HEAD_BYTES = 24

assert _HEADER.size == HEADER_BYTES and _CHANGE.size == CHANGE_HEAD_BYTES
assert _FRAME_PREFIX.size == FRAME_PREFIX_BYTES and FRAME_PREFIX_BYTES + _FRAME_FIELDS.size == FRAME_HEADER_BYTES

# A position is one word of shared memory: bits 40-63 number of the segment, bits 0-39 offset in its file.
SEGMENT_SHIFT = 40


class Change(NamedTuple):
    """The after-image of one record."""

    kind: int
    id: int
    seq: int
    body: bytes | None  # None: the record was deleted
    private: bytes


class Group(NamedTuple):
    """One batch: all of its changes are true, or none."""

    position: int
    epoch: int
    number: int
    first_seq: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs of a group
    changes: list[Change]
    answers: bytes  # the manager's own; the journal does not look inside


class UnknownVersion(ValueError):
    """The header of a segment names a format that this program does not know."""


class SegmentHeader(NamedTuple):
    instance: bytes
    segment: int
    epoch: int
    first_group: int
    first_seq: int


class Frame(NamedTuple):
    """The header of a frame whose checksum was right, and where it starts and ends in its file."""

    offset: int
    end: int
    changes: int
    epoch: int
    number: int
    first_seq: int
    seqs: int
    answers_bytes: int
    synced_group: int

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.seqs - 1


def pack_position(segment: int, offset: int) -> int:
    return segment << SEGMENT_SHIFT | offset


def position_segment(position: int) -> int:
    return position >> SEGMENT_SHIFT


def encode_header(header: SegmentHeader) -> tuple[bytes, int]:
    """Return the bytes of a segment header, and the seed for the frames of that segment."""
    unsigned = _HEADER.pack(HEADER_MAGIC, FORMAT_VERSION, 0, *header)
    seed = _header_crc(unsigned)
    return _HEADER.pack(HEADER_MAGIC, FORMAT_VERSION, seed, *header), seed


def decode_header(data: bytes) -> tuple[SegmentHeader, int]:
    """Return a segment's header and the seed for its frames; raise `ValueError` that says what is wrong with it."""
    if len(data) < HEADER_BYTES:
        raise ValueError("the segment header is cut short")
    magic, version, crc, *fields = _HEADER.unpack_from(data)
    if magic != HEADER_MAGIC:
        raise ValueError("not a journal segment, or its header is damaged")
    if version != FORMAT_VERSION:
        raise UnknownVersion(
            f"journal format {version}, this program knows {FORMAT_VERSION} (or the header is damaged)"
        )
    if crc != _header_crc(data):
        raise ValueError("the segment header is damaged: wrong checksum")
    return SegmentHeader(*fields), crc


def stored_seed(data: bytes) -> int:
    """Return the seed as it stands in a header that may be damaged elsewhere (offline tools)."""
    crc: int = _HEADER.unpack_from(data)[2]
    return crc


def _header_crc(data: bytes) -> int:
    return crc32(data[16:HEADER_BYTES], crc32(data[:12]))


def encode_group(
    epoch: int, number: int, first_seq: int, count: int, changes: Sequence[Change], answers: bytes, synced_group: int
) -> bytes:
    """Return a frame without its first FRAME_PREFIX_BYTES, which depend on the segment: see `seal`."""
    pack = _CHANGE.pack
    heads = []
    texts = []
    for kind, record_id, seq, body, private in changes:
        if body is None:
            heads.append(pack(kind, DELETED, len(private), 0, record_id, seq))
        else:
            heads.append(pack(kind, 0, len(private), len(body), record_id, seq))
            texts.append(body)
        if private:
            texts.append(private)
    payload = b"".join((*heads, *texts, answers))
    fields = _FRAME_FIELDS.pack(
        len(payload), len(heads), epoch, number, first_seq, count, len(answers), synced_group
    )
    return fields + payload


def seal(group: bytes, seed: int) -> bytes:
    """Return the whole frame of what `encode_group` made, for the segment of this seed."""
    return _FRAME_PREFIX.pack(FRAME_MAGIC, crc32(group, seed)) + group


def read_frame(data: bytes, offset: int, seed: int) -> Frame | None:
    """Return the frame that stands at `offset`; None if there is no whole frame of this segment."""
    if len(data) - offset < FRAME_HEADER_BYTES:
        return None
    magic, crc = _FRAME_PREFIX.unpack_from(data, offset)
    if magic != FRAME_MAGIC:
        return None
    length, *fields = _FRAME_FIELDS.unpack_from(data, offset + FRAME_PREFIX_BYTES)
    end = offset + FRAME_HEADER_BYTES + length
    if end > len(data) or crc32(memoryview(data)[offset + FRAME_PREFIX_BYTES : end], seed) != crc:
        return None
    return Frame(offset, end, *fields)


def search_frames(data: bytes, offset: int, seed: int) -> Iterator[Frame]:
    """Yield every whole frame of this segment at or after `offset`, wherever it stands and whatever lies between."""
    offset = data.find(FRAME_MAGIC, offset)
    while offset >= 0:
        frame = read_frame(data, offset, seed)
        if frame is not None:
            yield frame
        offset = data.find(FRAME_MAGIC, frame.end if frame is not None else offset + 1)


def decode_group(data: bytes, frame: Frame, segment: int) -> Group:
    """Return the group of a frame; raise `ValueError` if its lengths contradict each other."""
    heads_end = frame.offset + FRAME_HEADER_BYTES + frame.changes * CHANGE_HEAD_BYTES
    answers_start = frame.end - frame.answers_bytes
    if heads_end > answers_start:
        raise ValueError("the group is longer than its frame")
    start = heads_end
    changes = []
    new = tuple.__new__  # half the time of calling the class
    heads = memoryview(data)[frame.offset + FRAME_HEADER_BYTES : heads_end]
    for kind, flags, private_bytes, body_bytes, record_id, seq in _CHANGE.iter_unpack(heads):
        body_end = start + body_bytes
        end = body_end + private_bytes
        body = None if flags & DELETED else data[start:body_end]
        changes.append(new(Change, (kind, record_id, seq, body, data[body_end:end])))
        start = end
    if start != answers_start:
        raise ValueError("the changes do not fill their frame")
    position = pack_position(segment, frame.offset)
    answers = data[answers_start : frame.end]
    return Group(position, frame.epoch, frame.number, frame.first_seq, frame.seqs, changes, answers)
