"""The dirty ring: everything appended is taken once, or the reader is told to scan."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from server.shm import dirty, layout
from server.shm.dirty import DirtyReader, DirtyWriter
from server.shm.segment import Segment
from tests.table_model import open_segment

RING = 64
STEP = 8


@pytest.fixture
def segment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Segment]:
    """A segment with a ring of 64 entries, written in steps of 8."""
    monkeypatch.setattr(layout, "DIRTY_RING_ENTRIES", RING)
    monkeypatch.setattr(layout, "DIRTY_STEP_ENTRIES", STEP)
    monkeypatch.setattr(dirty, "_MASK", RING - 1)
    monkeypatch.setattr(dirty, "_BEHIND_MAX", RING - STEP)
    with open_segment() as segment:
        yield segment


def test_reader_in_time_is_a_step_away_from_what_is_overwritten() -> None:
    assert dirty._BEHIND_MAX + layout.DIRTY_STEP_ENTRIES <= layout.DIRTY_RING_ENTRIES


def test_first_take_tells_to_scan(segment: Segment) -> None:
    writer, reader = DirtyWriter(segment), DirtyReader(segment)
    writer.append([1, 2])
    assert reader.take() is None
    assert reader.take() == []
    writer.append([3])
    assert reader.take() == [3]


def test_slots_are_taken_once_however_often_they_changed(segment: Segment) -> None:
    writer, reader = DirtyWriter(segment), DirtyReader(segment)
    reader.take()
    writer.append([5, 6, 5])
    writer.append([6, 7])
    writer.append([])
    assert reader.take() == [5, 6, 7]
    assert reader.take() == []


def test_reader_that_is_overrun_scans_once_and_goes_on(segment: Segment) -> None:
    writer, reader = DirtyWriter(segment), DirtyReader(segment)
    reader.take()
    writer.append(range(RING - STEP))
    assert reader.take() == list(range(RING - STEP))
    writer.append(range(RING - STEP + 1))
    assert reader.take() is None
    writer.append([9])
    assert reader.take() == [9]


def test_reader_that_is_overrun_while_it_copies_scans(segment: Segment) -> None:
    writer, reader = DirtyWriter(segment), DirtyReader(segment)
    reader.take()
    writer.append(range(40))

    class Overrun:
        """The writer appends between the reader's copy and its second look at the head."""

        def __init__(self, words: memoryview) -> None:
            self.words = words

        def __getitem__(self, key: int | slice) -> int | memoryview:
            value = self.words[key]
            if isinstance(key, slice):
                writer.append(range(30))
            return value

        def __setitem__(self, key: int, value: int) -> None:
            self.words[key] = value

    reader._words = Overrun(segment.words)  # type: ignore[assignment]
    assert reader.take() is None


def test_no_entry_of_a_reader_in_time_is_overwritten_before_the_head_moves(segment: Segment) -> None:
    """The writer dies in a step: its entries are there, its head is not."""
    writer, reader = DirtyWriter(segment), DirtyReader(segment)
    reader.take()
    writer.append(range(RING - STEP))
    head = segment.words[layout.DIRTY_HEAD]
    writer.append(range(1000, 1000 + STEP))
    segment.words[layout.DIRTY_HEAD] = head
    assert reader.take() == list(range(RING - STEP))


def test_random_appends_and_takes_equal_a_set(segment: Segment) -> None:
    seed = random.randrange(2**32)
    print(f"seed={seed}")
    rng = random.Random(seed)
    writer, reader = DirtyWriter(segment), DirtyReader(segment)
    reader.take()
    pending: list[int] = []
    for _ in range(5000):
        slots = [rng.randrange(1000) for _ in range(rng.randrange(40))]
        writer.append(slots)
        pending += slots
        if rng.random() < 0.5:
            taken = reader.take()
            if len(pending) > RING - STEP:
                assert taken is None
            else:
                assert taken == list(dict.fromkeys(pending))
            pending.clear()
