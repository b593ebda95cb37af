"""The arena: space for record bytes, in pages that are cut into blocks of one size each (manager only).

Nothing of the allocator is in shared memory but the number of pages. The slots say which blocks are in use, and a new
manager rebuilds all the rest from them (`adopt`), so that no crash can lose or double a block.

    page (64 KiB)     one size class at a time; goes back to the free pages when its last block is freed
    block             holds one record; sizes are 16, 24, .. 256, then eight steps per doubling, up to one page

So at most an eighth of a block is lost to rounding, and a free block serves any record of its class. What is left is
pages kept from other classes by a few blocks: when memory runs out, `TableWriter` moves those records together
(`sparse_pages`).

When the budget is used up and another region has to grow, free pages give their memory back (`give_back`). A page
without memory is a hole, and reserved again before it is used.

A class that is in use always keeps one free block (`allocate`), and SPARE_PAGES pages are kept from new records: a
record that only changes needs a fresh block while the old one still serves readers, perhaps of another size, and must
find it when memory is full.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable

from server.errors import MemoryFull
from server.shm import layout
from server.shm.layout import ARENA_PAGE_BYTES
from server.shm.segment import Region, Segment

_PAGE_SHIFT = ARENA_PAGE_BYTES.bit_length() - 1
_PAGE_MASK = ARENA_PAGE_BYTES - 1
_STEP_PAGES = layout.GROW_BYTES // ARENA_PAGE_BYTES
_SMALL_MAX = 1024
SPARE_PAGES = 4  # for changes into another class; each such change gives a block back, and in the end pages

# places of a page outside of the list of its class's pages with room
_NOT_LISTED = -1
_WITHHELD = -2


def _class_sizes() -> list[int]:
    sizes = list(range(16, 256, 8))
    base = 256
    while base < ARENA_PAGE_BYTES:
        sizes.extend(range(base, 2 * base, base // 8))
        base *= 2
    sizes.append(ARENA_PAGE_BYTES)
    return sizes


_SIZES = _class_sizes()
_SMALL_CLASS = [bisect_left(_SIZES, size) for size in range(_SMALL_MAX + 1)]


def block_class(size: int) -> int:
    """Return the class of the smallest block that holds `size` bytes (1 .. ARENA_PAGE_BYTES)."""
    return _SMALL_CLASS[size] if size <= _SMALL_MAX else bisect_left(_SIZES, size)


class _Page:
    __slots__ = ("blocks", "free", "index", "number", "place", "start")

    def __init__(self, number: int) -> None:
        self.number = number
        self.start = number << _PAGE_SHIFT
        self.index = -1  # its class; -1 = a free page
        self.blocks = 0
        self.free = array("H")  # offsets of free blocks from the start of the page
        self.place = _NOT_LISTED

    @property
    def live(self) -> int:
        return self.blocks - len(self.free)


class Arena:
    """Allocate and free blocks; offsets are bytes from the start of the arena, divisible by 8."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._words = segment.words
        pages = self._words[layout.ARENA_PAGES]
        self._start = segment.regions.arena
        self.region = Region(segment, self._start, segment.regions.arena_bytes, pages * ARENA_PAGE_BYTES)
        self._pages = [_Page(number) for number in range(pages)]
        self._free_pages: list[int] = []  # the longest free first
        self._holes: list[int] = []
        self._cuts = [array("H", reversed(range(0, ARENA_PAGE_BYTES - size + 1, size))) for size in _SIZES]
        self._roomy: list[list[_Page]] = [[] for _ in _SIZES]  # pages with free blocks, by class
        self._pages_in = [0] * len(_SIZES)
        self.spare_pages = SPARE_PAGES  # none in a redo
        self.freed_bytes = 0  # since the manager started; tells whether moving records together can help again

    @property
    def pages(self) -> int:
        return len(self._pages)

    def adopt(self, blocks: Iterable[tuple[int, int]]) -> None:
        """Rebuild from the (offset, size) of every block in use; the arena must be new."""
        used: dict[int, bytearray] = {}
        for offset, size in blocks:
            number = offset >> _PAGE_SHIFT
            page = self._pages[number]
            if page.index < 0:
                self._cut(page, block_class(size))
                used[number] = bytearray(page.blocks)
            used[number][(offset & _PAGE_MASK) // _SIZES[page.index]] = 1
        for number, taken in used.items():
            page = self._pages[number]
            size = _SIZES[page.index]
            page.free = array("H", (offset for offset in page.free if not taken[offset // size]))
            if page.free:
                self._list(page)
        for number in [page.number for page in self._pages if page.index < 0]:
            (self._free_pages if self._try_refill(number) else self._holes).append(number)
        for index, roomy in enumerate(self._roomy):
            if self._pages_in[index] and not roomy and self._free_pages:
                self._add_page(index, is_change=True)

    def allocate(self, size: int, replaced: int | None = None) -> int:
        """Return the offset of a block of at least `size` bytes. Raises `MemoryFull`.

        The last free block of a class is for a record that is about to give back another one of the same class:
        `replaced` is the offset of the block that it has now, None that of a new record.
        """
        index = _SMALL_CLASS[size] if size <= _SMALL_MAX else bisect_left(_SIZES, size)
        roomy = self._roomy[index]
        if not roomy:
            self._add_page(index, replaced is not None)
        page = roomy[-1]
        offset = page.start + page.free.pop()
        if not page.free:
            self._unlist(page)
            if not roomy and (replaced is None or self._pages[replaced >> _PAGE_SHIFT].index != index):
                try:
                    self._add_page(index, replaced is not None)
                except MemoryFull:
                    self._put_back(offset)
                    raise
        return offset

    def free(self, offset: int) -> None:
        """Give a block back; its bytes may be overwritten from now on."""
        self.freed_bytes += _SIZES[self._pages[offset >> _PAGE_SHIFT].index]
        self._put_back(offset)

    def give_back(self) -> bool:
        """Give a step of memory that is in free pages back to the system, for another region; False: there is none.

        A reader that was stopped in the middle of a read may still touch it: not when /dev/shm itself is full.
        """
        if len(self._free_pages) < _STEP_PAGES + SPARE_PAGES or not self._segment.has_headroom():
            return False
        for number in self._free_pages[:_STEP_PAGES]:
            self._segment.give_back(self._start + (number << _PAGE_SHIFT), ARENA_PAGE_BYTES)
            self._holes.append(number)
        del self._free_pages[:_STEP_PAGES]
        return True

    def sparse_pages(self) -> set[int]:
        """Return the numbers of pages whose records would fit into the fuller pages of their class."""
        sparse: set[int] = set()
        for roomy in self._roomy:
            room = sum(len(page.free) for page in roomy)
            for page in sorted(roomy, key=lambda page: page.live):
                room -= len(page.free) + page.live
                if room <= 0:  # one block stays free
                    break
                sparse.add(page.number)
        return sparse

    def withhold(self, numbers: set[int]) -> None:
        """Stop allocating in these pages, so that they can be emptied; `restore` takes them back."""
        for number in numbers:
            self._unlist(self._pages[number])
            self._pages[number].place = _WITHHELD

    def restore(self, numbers: set[int]) -> None:
        """Allocate again in those of the withheld pages that were not emptied."""
        for number in numbers:
            if self._pages[number].place == _WITHHELD:
                self._list(self._pages[number])

    def _put_back(self, offset: int) -> None:
        page = self._pages[offset >> _PAGE_SHIFT]
        page.free.append(offset & _PAGE_MASK)
        if len(page.free) == page.blocks:
            self._vacate(page)
        elif page.place == _NOT_LISTED:
            self._list(page)

    def _cut(self, page: _Page, index: int) -> None:
        page.index = index
        page.free = self._cuts[index][:]
        page.blocks = len(page.free)
        self._pages_in[index] += 1

    def _add_page(self, index: int, is_change: bool) -> None:
        page = self._pages[self._take_page(is_change)]
        self._cut(page, index)
        self._list(page)

    def _take_page(self, is_change: bool) -> int:
        """Return a page without blocks; only for a change of a record one of the spare pages. Raises `MemoryFull`."""
        if self._free_pages and (is_change or len(self._free_pages) > self.spare_pages):
            return self._free_pages.pop()
        page = self._find_page()
        try:
            while len(self._free_pages) < self.spare_pages:
                self._free_pages.append(self._find_page())
        except MemoryFull:
            if not is_change:
                self._free_pages.append(page)
                raise
        return page

    def _find_page(self) -> int:
        if self._holes:
            if not self._try_refill(self._holes[-1]):
                raise MemoryFull("--memory is used up")
            return self._holes.pop()
        number = self.pages
        self.region.ensure((number + 1) << _PAGE_SHIFT)
        self._pages.append(_Page(number))
        self._words[layout.ARENA_PAGES] = number + 1
        return number

    def _try_refill(self, number: int) -> bool:
        """Reserve the memory of a page, which it may have or not; False when that is more than there is."""
        start = self._start + (number << _PAGE_SHIFT)
        try:
            self._segment.reserve(start, ARENA_PAGE_BYTES)
        except MemoryFull:
            return False
        if self._words[layout.RESERVED_BYTES] > self._words[layout.MEMORY_BYTES]:
            self._segment.give_back(start, ARENA_PAGE_BYTES)
            return False
        return True

    def _vacate(self, page: _Page) -> None:
        """Free a page that became empty, unless it has the only free blocks of a class that is in use."""
        roomy = self._roomy[page.index]
        is_only_room = not roomy or roomy == [page]
        if is_only_room and self._pages_in[page.index] > 1:
            if page.place == _NOT_LISTED:
                self._list(page)
            return
        self._release(page)
        if roomy and self._pages_in[roomy[0].index] == 1 and not roomy[0].live:
            self._release(roomy[0])

    def _release(self, page: _Page) -> None:
        if page.place >= 0:
            self._unlist(page)
        self._pages_in[page.index] -= 1
        page.index = -1
        page.blocks = 0
        page.place = _NOT_LISTED
        self._free_pages.append(page.number)

    def _list(self, page: _Page) -> None:
        roomy = self._roomy[page.index]
        page.place = len(roomy)
        roomy.append(page)

    def _unlist(self, page: _Page) -> None:
        roomy = self._roomy[page.index]
        last = roomy.pop()
        if last is not page:
            roomy[page.place] = last
            last.place = page.place
        page.place = _NOT_LISTED
