"""The layout: its worked example is what the writer writes, and its regions never overlap."""

from __future__ import annotations

import re
from itertools import pairwise
from zlib import crc32

import pytest

from server.commands import Kind
from server.config import MEMORY_BYTES_MAX, MEMORY_BYTES_MIN
from server.shm import layout
from server.shm.layout import Regions
from server.shm.table_writer import TableWriter
from tests.table_model import open_segment

BODY = b'{"id":7,"username":"a","email":"b"}'


def documented_words() -> dict[str, bytes]:
    lines = re.findall(r"^ {6}([A-Z]+) +([0-9a-f]{2}(?: [0-9a-f]{2}){7})\b", layout.__doc__ or "", re.MULTILINE)
    return {name: bytes.fromhex(text) for name, text in lines}


def test_worked_example_is_what_the_writer_writes() -> None:
    with open_segment() as segment:
        writer = TableWriter(segment)
        writer.put(Kind.USER, 7, 4, BODY.replace(b'"a"', b'"x"'))
        writer.put(Kind.USER, 7, 5, BODY)
        start = segment.regions.slots + layout.SLOT_BYTES
        slot = segment.mm[start : start + layout.SLOT_BYTES]
        record = segment.mm[segment.regions.arena + 48 : segment.regions.arena + 48 + 41]
    assert record == b"35\r\n\r\n" + BODY
    documented = documented_words()
    assert list(documented) == ["LOCK", "KEY", "NEXT", "REF", "SEQ", "CHECK"]
    for number, (name, word) in enumerate(documented.items()):
        assert slot[8 * number : 8 * number + 8].hex(" ") == word.hex(" "), name
    assert int.from_bytes(documented["CHECK"], "little") == crc32(record)


def test_documented_header_words_have_their_numbers() -> None:
    header = r"^ {4}(\d+)(?:-\d+)? +([A-Z_]+)(?: \+ kind)? +(?:supervisor|manager|persister) "
    lines = re.findall(header, layout.__doc__ or "", re.MULTILINE)
    assert len(lines) >= 23
    for number, name in lines:
        assert getattr(layout, name) == int(number), name


@pytest.mark.parametrize("memory_bytes", [MEMORY_BYTES_MIN, 100_000_000, 1 << 30, MEMORY_BYTES_MAX])
def test_regions_follow_each_other_and_are_aligned(memory_bytes: int) -> None:
    regions = Regions.plan(memory_bytes)
    starts = [layout.DIRTY_OFFSET, *regions.buckets, regions.slots, regions.arena, regions.segment_bytes]
    sizes = [
        layout.DIRTY_BYTES,
        *[regions.buckets_max * layout.WORD_BYTES] * layout.KINDS,
        regions.slots_max * layout.SLOT_BYTES,
        regions.arena_bytes,
    ]
    assert all(start + size <= other for (start, other), size in zip(pairwise(starts), sizes, strict=True))
    assert all(start % layout.PAGE_BYTES == 0 for start in starts)


def test_largest_memory_fits_the_fields_of_a_slot() -> None:
    regions = Regions.plan(MEMORY_BYTES_MAX)
    assert regions.slots_max <= layout.LINK_MAX
    assert regions.segment_bytes // layout.WORD_BYTES <= layout.NEXT_MASK
    assert (regions.arena_bytes - 8) // 8 < 1 << (64 - layout.OFFSET_SHIFT)
