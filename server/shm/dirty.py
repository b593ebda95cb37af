"""The dirty ring: which slots changed, in order, from the manager to the persister.

The manager appends the slot of every published change; the persister takes what came since it last looked, at a
cost that follows the number of changes. The ring forgets: when the persister is too far behind (or new), it is told
so and finds the dirty records by their seq in one scan of the table. So nothing depends on the ring for safety.

    DIRTY_HEAD   slots ever appended (manager)      entry n stands at n % DIRTY_RING_ENTRIES
"""

from __future__ import annotations

from collections.abc import Sequence

from server.shm import layout
from server.shm.segment import Segment

_BASE = layout.DIRTY_OFFSET // layout.WORD_BYTES
_MASK = layout.DIRTY_RING_ENTRIES - 1
# entries are written before the head moves over them: that many of the oldest may be overwritten already
_BEHIND_MAX = layout.DIRTY_RING_ENTRIES - layout.DIRTY_STEP_ENTRIES


class DirtyWriter:
    """The manager's end."""

    def __init__(self, segment: Segment) -> None:
        self._words = segment.words

    def append(self, slots: Sequence[int]) -> None:
        """Mark slots dirty, after they were published."""
        for first in range(0, len(slots), layout.DIRTY_STEP_ENTRIES):
            self._append_step(slots[first : first + layout.DIRTY_STEP_ENTRIES])

    def _append_step(self, slots: Sequence[int]) -> None:
        words = self._words
        head = words[layout.DIRTY_HEAD]
        for number, slot in enumerate(slots, head):
            words[_BASE + (number & _MASK)] = slot
        words[layout.DIRTY_HEAD] = head + len(slots)


class DirtyReader:
    """The persister's end. The first `take` tells it to scan: what came before is unknown to it."""

    def __init__(self, segment: Segment) -> None:
        self._words = segment.words
        self._tail = -1

    def take(self) -> list[int] | None:
        """Return the distinct slots changed since the last call, or None when the table has to be scanned."""
        words = self._words
        head = words[layout.DIRTY_HEAD]
        tail, self._tail = self._tail, head
        words[layout.DIRTY_TAIL] = head
        if tail < 0 or head - tail > _BEHIND_MAX:
            return None
        start, stop = tail & _MASK, head & _MASK
        if start <= stop:
            slots = words[_BASE + start : _BASE + stop].tolist()
        else:
            slots = words[_BASE + start : _BASE + _MASK + 1].tolist() + words[_BASE : _BASE + stop].tolist()
        if words[layout.DIRTY_HEAD] - tail > _BEHIND_MAX:
            return None
        return list(dict.fromkeys(slots))
