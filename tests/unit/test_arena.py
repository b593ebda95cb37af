"""The arena: blocks never overlap, empty pages come back, one block of each class in use stays free."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from server.errors import MemoryFull
from server.shm import arena as arena_module
from server.shm import layout
from server.shm.arena import SPARE_PAGES, Arena, block_class
from server.shm.segment import Segment
from tests.table_model import live_blocks, open_segment

PAGE = layout.ARENA_PAGE_BYTES


@pytest.fixture
def segment() -> Iterator[Segment]:
    with open_segment() as segment:
        yield segment


def fill(arena: Arena, size: int) -> list[int]:
    offsets = []
    while True:
        try:
            offsets.append(arena.allocate(size))
        except MemoryFull:
            return offsets


def test_class_holds_the_size_and_wastes_at_most_an_eighth() -> None:
    for size in range(1, PAGE + 1):
        block = arena_module._SIZES[block_class(size)]
        assert size <= block and (block == 16 or block - size < max(8, block / 8))


def test_random_blocks_never_overlap_and_survive_adoption(segment: Segment) -> None:
    seed = random.randrange(2**32)
    print(f"seed={seed}")
    rng = random.Random(seed)
    arena, used = Arena(segment), dict[int, int]()
    for step in range(6000):
        if used and rng.random() < (0.45 if step < 4000 else 0.9):
            offset = rng.choice(list(used))
            arena.free(offset)
            del used[offset]
        else:
            size = rng.choice((16, 24, 72, 73, 300, 5000, 40_000, PAGE))
            try:
                offset = arena.allocate(size)
            except MemoryFull:
                continue
            assert offset % 8 == 0 and offset not in used
            used[offset] = size
        if step % 500 == 0:
            assert live_blocks(arena) == set(used)
            assert all(start + size <= other for (start, size), (other, _) in pairwise(sorted(used.items())))
            arena = Arena(segment)
            arena.adopt(used.items())
            assert live_blocks(arena) == set(used)
    for offset in used:
        arena.free(offset)
    assert len(arena._free_pages) == arena.pages


def test_full_arena_still_changes_every_class_in_use(segment: Segment) -> None:
    arena = Arena(segment)
    kept = {size: arena.allocate(size) for size in (20, 100, 1000, 10_000, 60_000)}
    full = fill(arena, 200)
    for owner in (arena, adopted(segment, kept, full, 200)):
        for _ in range(3):
            for size, offset in kept.items():
                fresh = owner.allocate(size, offset)
                owner.free(offset)
                kept[size] = fresh
        with pytest.raises(MemoryFull):
            owner.allocate(200)


def adopted(segment: Segment, kept: dict[int, int], offsets: list[int], size: int) -> Arena:
    arena = Arena(segment)
    arena.adopt([*((offset, kept_size) for kept_size, offset in kept.items()), *((offset, size) for offset in offsets)])
    return arena


def test_adopted_class_without_room_gets_its_spare_page_back(segment: Segment) -> None:
    arena = Arena(segment)
    page = [arena.allocate(1024) for _ in range(PAGE // 1024)]  # exactly one page, and the spare behind it
    full = fill(arena, 200)
    assert arena.pages and len(arena._free_pages) == SPARE_PAGES
    arena = Arena(segment)
    arena.adopt([*((offset, 1024) for offset in page), *((offset, 200) for offset in full)])
    fill(arena, 64)
    assert arena.allocate(1024, page[0]) not in page


def test_full_arena_takes_changes_into_classes_that_have_no_page(segment: Segment) -> None:
    arena = Arena(segment)
    full = fill(arena, 8000)
    with pytest.raises(MemoryFull):
        arena.allocate(64)
    for size in (64, 200, 1000, 3000):
        old = full.pop()
        assert arena.allocate(size, old) not in full
        arena.free(old)


def test_spare_page_stays_when_its_last_block_is_freed(segment: Segment) -> None:
    arena = Arena(segment)
    page = [arena.allocate(1024) for _ in range(PAGE // 1024)]
    extra = arena.allocate(1024)
    arena.free(extra)
    fill(arena, 200)
    fresh = arena.allocate(1024, page[0])
    arena.free(page.pop())
    for offset in (*page, fresh):
        arena.free(offset)
    assert fill(arena, 60_000), "no page is left to a class without blocks"


def test_refused_block_is_not_lost(segment: Segment) -> None:
    arena = Arena(segment)
    offsets = fill(arena, 5000)
    for _ in range(100):
        with pytest.raises(MemoryFull):
            arena.allocate(5000)
    assert live_blocks(arena) == set(offsets)
    arena.free(offsets[0])
    assert arena.allocate(5000) == offsets[0]


def test_sparse_pages_fit_into_the_others(segment: Segment) -> None:
    rng = random.Random(1)
    arena = Arena(segment)
    offsets = [arena.allocate(1000) for _ in range(2000)]
    rng.shuffle(offsets)
    for offset in offsets[300:]:
        arena.free(offset)
    kept, pages = set(offsets[:300]), arena.pages - len(arena._free_pages)
    sparse = arena.sparse_pages()
    arena.withhold(sparse)
    for offset in [offset for offset in kept if offset // PAGE in sparse]:
        kept.add(arena.allocate(1000, offset))
        arena.free(offset)
        kept.remove(offset)
    arena.restore(sparse)
    assert live_blocks(arena) == kept and pages > 30
    assert arena.pages - len(arena._free_pages) <= -(-300 // 64) + 1
    assert arena.sparse_pages() == set()


def test_withheld_pages_that_keep_a_block_come_back(segment: Segment) -> None:
    arena = Arena(segment)
    offsets = [arena.allocate(1000) for _ in range(640)]
    for offset in offsets[::2]:
        arena.free(offset)
    sparse = arena.sparse_pages()
    arena.withhold(sparse)
    arena.restore(sparse)
    pages = arena.pages
    again = [arena.allocate(1000) for _ in range(320)]
    assert sparse and arena.pages == pages and live_blocks(arena) == {*offsets[1::2], *again}


def test_free_pages_give_memory_back_and_take_it_again(segment: Segment) -> None:
    arena, words = Arena(segment), segment.words
    offsets = fill(arena, 1000)
    before = words[layout.RESERVED_BYTES]
    assert not arena.give_back(), "no page is free"
    for offset in offsets[: 64 * 10]:
        arena.free(offset)
    assert arena.give_back() and words[layout.RESERVED_BYTES] == before - layout.GROW_BYTES
    arena = Arena(segment)
    arena.adopt((offset, 1000) for offset in offsets[64 * 10 :])
    assert words[layout.RESERVED_BYTES] <= before
    assert arena.give_back() and arena.give_back()
    again = fill(arena, 1000)
    assert words[layout.RESERVED_BYTES] == before and len(again) >= 64 * 9
    assert not set(again) & set(offsets[64 * 10 :])


def test_hole_is_not_filled_beyond_the_budget(segment: Segment) -> None:
    arena, words = Arena(segment), segment.words
    for offset in fill(arena, 1000)[: 64 * 10]:
        arena.free(offset)
    while arena.give_back():
        pass
    reserved = words[layout.MEMORY_BYTES] = words[layout.RESERVED_BYTES]
    arena._free_pages.clear()
    with pytest.raises(MemoryFull):
        arena.allocate(5000)
    assert words[layout.RESERVED_BYTES] == reserved


def test_full_device_gets_nothing_back(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late reader of such a page would be killed by a SIGBUS."""
    arena = Arena(segment)
    for offset in fill(arena, 1000):
        arena.free(offset)
    monkeypatch.setattr(segment, "has_headroom", lambda: False)
    assert not arena.give_back()
