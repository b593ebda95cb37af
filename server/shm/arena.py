"""The arena: space for record bytes, in pages that are cut into blocks of one size each (manager only).

Nothing of the allocator is in shared memory. The slots say which blocks are in use, and a new manager rebuilds all
the rest from them (`adopt`), so that no crash can lose or double a block.

    page (64 KiB)     one size class at a time; goes back to the free pages when its last block is freed
    block             holds one record; sizes are 16, 24, .. 256, then eight steps per doubling, up to one page

So at most an eighth of a block is lost to rounding, and a free block serves any record of its class. What is left is
pages kept from other classes by a few blocks: when memory runs out, `TableWriter` moves those records together
(`sparse_pages`), which bounds the loss to one partly filled page per class.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from server.shm import layout
from server.shm.segment import Region

_PAGE_SHIFT = layout.ARENA_PAGE_BYTES.bit_length() - 1
_SMALL_MAX = 1024


def _class_sizes() -> list[int]:
    sizes = list(range(16, 256, 8))
    base = 256
    while base < layout.ARENA_PAGE_BYTES:
        sizes.extend(range(base, 2 * base, base // 8))
        base *= 2
    sizes.append(layout.ARENA_PAGE_BYTES)
    return sizes


_SIZES = _class_sizes()
_SMALL_CLASS = [bisect_left(_SIZES, size) for size in range(_SMALL_MAX + 1)]


def block_class(size: int) -> int:
    """Return the class of the smallest block that holds `size` bytes (1 .. ARENA_PAGE_BYTES)."""
    return _SMALL_CLASS[size] if size <= _SMALL_MAX else bisect_left(_SIZES, size)


class _Page:
    __slots__ = ("bump", "end", "free", "is_listed", "live", "size", "start")

    def __init__(self, number: int) -> None:
        self.start = number << _PAGE_SHIFT
        self.free: list[int] = []
        self.live = 0
        self.is_listed = False  # in the list of its class's pages with room
        self.size = 0  # block size; 0 = a free page
        self.bump = self.end = self.start

    def cut(self, size: int) -> None:
        """Make this free page one of blocks of `size` bytes. Offset 0 is never a block."""
        self.size = size
        self.free = []
        self.bump = self.start or size
        self.end = self.start + layout.ARENA_PAGE_BYTES // size * size


class Arena:
    """Allocate and free blocks; offsets are bytes from the start of the arena, divisible by 8."""

    def __init__(self, region: Region, pages: int) -> None:
        self._region = region
        self._pages = [_Page(number) for number in range(pages)]
        self._free_pages = list(range(pages - 1, -1, -1))
        self._roomy: list[list[_Page]] = [[] for _ in _SIZES]
        self.freed_bytes = 0  # since the manager started; tells whether moving records together can help again

    @property
    def pages(self) -> int:
        return len(self._pages)

    def adopt(self, blocks: Iterable[tuple[int, int]]) -> None:
        """Rebuild from the (offset, size) of every block in use; the arena must be new."""
        used: dict[int, set[int]] = {}
        for offset, size in blocks:
            number = offset >> _PAGE_SHIFT
            page = self._pages[number]
            if not page.size:
                page.cut(_SIZES[block_class(size)])
                used[number] = set()
            used[number].add(offset)
        for number, offsets in used.items():
            page = self._pages[number]
            page.live = len(offsets)
            page.free = [offset for offset in range(page.bump, page.end, page.size) if offset not in offsets]
            page.bump = page.end
            self._list(page)
        self._free_pages = [number for number in reversed(range(self.pages)) if not self._pages[number].size]

    def allocate(self, size: int) -> int:
        """Return the offset of a block of at least `size` bytes. Raises `MemoryFull`."""
        index = _SMALL_CLASS[size] if size <= _SMALL_MAX else bisect_left(_SIZES, size)
        roomy = self._roomy[index]
        while roomy:
            page = roomy[-1]
            if page.free:
                page.live += 1
                return page.free.pop()
            if page.bump < page.end:
                offset = page.bump
                page.bump = offset + page.size
                page.live += 1
                return offset
            page.is_listed = False
            roomy.pop()
        page = self._take_page()
        page.cut(_SIZES[index])
        self._list(page)
        return self.allocate(size)

    def free(self, offset: int) -> None:
        """Give a block back; its bytes may be overwritten from now on."""
        page = self._pages[offset >> _PAGE_SHIFT]
        page.free.append(offset)
        page.live -= 1
        self.freed_bytes += page.size
        if not page.live:
            self._release_page(page)
        elif not page.is_listed:
            self._list(page)

    def sparse_pages(self) -> set[int]:
        """Return the numbers of pages whose records would fit into the fuller pages of their class."""
        sparse: set[int] = set()
        for roomy in self._roomy:
            pages = sorted(roomy, key=lambda page: page.live)
            room = sum(len(page.free) + (page.end - page.bump) // page.size for page in pages)
            for page in pages:
                room -= len(page.free) + (page.end - page.bump) // page.size
                if page.live > room:
                    break
                room -= page.live
                sparse.add(page.start >> _PAGE_SHIFT)
        return sparse

    def withhold(self, numbers: set[int]) -> None:
        """Stop allocating in these pages, so that they can be emptied; `restore` takes them back."""
        for index, roomy in enumerate(self._roomy):
            self._roomy[index] = [page for page in roomy if page.start >> _PAGE_SHIFT not in numbers]

    def restore(self, numbers: set[int]) -> None:
        """Free the withheld pages that are empty by now, and list the others again."""
        for number in numbers:
            page = self._pages[number]
            if not page.size:
                continue
            page.is_listed = False
            if page.live:
                self._list(page)
            else:
                page.size = 0
                self._free_pages.append(number)

    def _list(self, page: _Page) -> None:
        if page.free or page.bump < page.end:
            page.is_listed = True
            self._roomy[block_class(page.size)].append(page)

    def _take_page(self) -> _Page:
        if not self._free_pages:
            self._region.ensure((self.pages + 1) << _PAGE_SHIFT)
            self._pages.append(_Page(self.pages))
            return self._pages[-1]
        return self._pages[self._free_pages.pop()]

    def _release_page(self, page: _Page) -> None:
        if page.is_listed:
            roomy = self._roomy[block_class(page.size)]
            if len(roomy) == 1 and roomy[0] is page:
                return  # the last page with room of its class stays, so that one record does not cut a page each time
            if page in roomy:
                roomy.remove(page)
            page.is_listed = False
        page.size = 0
        self._free_pages.append(page.start >> _PAGE_SHIFT)
