"""What the connections of one port of a worker share, and the sweep that enforces their deadlines.

Time is counted in ticks of the clock, one per second: a connection only stores the tick at which it has waited too
long, so a request costs no timer. The worker moves the clock and then calls `sweep`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import IntEnum
from math import ceil
from typing import Protocol

from server.config import Config
from server.http.exchange import Counts, Service, Write
from server.http.replies import Clock, Replies
from server.http.request_head import Fields, HeadReader

LINGER_S = 2.0  # how long a client may go on sending after the last answer before it is cut off
NEVER = 1 << 62

Get = Callable[[int], bytes | None]


class Phase(IntEnum):
    """What a connection waits for."""

    IDLE = 0  # the first byte of a request
    HEAD = 1
    BODY = 2
    ANSWER = 3  # of the manager or a thread; they have deadlines of their own
    ROOM = 4  # the client to read what was written
    END = 5  # the client to close its side


IDLE, HEAD, BODY, ANSWER, ROOM, END = Phase  # for hot paths, as the names in server/commands.py


class Member(Protocol):
    """A connection, as its endpoint sees it."""

    deadline: int

    def expire(self) -> None: ...
    def close_if_idle(self) -> None: ...


class Endpoint:
    """What the connections of one port share (one per worker and port)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: Config,
        clock: Clock,
        replies: Replies,
        counts: Counts,
        service: Service,
        getters: Mapping[bytes, Get],
        writers: Mapping[bytes, Write],
        connections_max: int,
    ) -> None:
        self.loop = loop
        self.clock = clock
        self.replies = replies
        self.counts = counts
        self.service = service
        self.find_record = _record_finder(getters)
        self.writers = writers  # by what stands before the version in their request line
        self.connections_max = connections_max
        self.connections: set[Member] = set()
        self.heads = HeadReader()
        self.known_sections: Mapping[bytes, Fields] = self.heads.known
        self.is_stopping = False
        self._on_empty: Callable[[], None] | None = None
        idle, head, body = config.idle_timeout_s, config.header_timeout_s, config.body_timeout_s
        timeouts_s = {Phase.IDLE: idle, Phase.HEAD: head, Phase.BODY: body, Phase.ROOM: idle, Phase.END: LINGER_S}
        # one tick more: a deadline is set within a tick, not at its beginning
        self._ticks = {phase: ceil(seconds) + 1 for phase, seconds in timeouts_s.items()}
        self.idle_deadline = self.deadline(Phase.IDLE)

    def deadline(self, phase: Phase) -> int:
        """Return the tick at which a phase that begins now has lasted too long."""
        ticks = self._ticks.get(phase)
        return NEVER if ticks is None else self.clock.tick + ticks

    def sweep(self) -> None:
        """Enforce the deadlines (once per tick, after the clock)."""
        self.idle_deadline = self.deadline(Phase.IDLE)
        tick = self.clock.tick
        for connection in [connection for connection in self.connections if connection.deadline <= tick]:
            connection.expire()

    def stop(self, on_empty: Callable[[], None]) -> None:
        """Let every further answer be the last of its connection, and close what has been idle for a while."""
        self.is_stopping = True
        self._on_empty = on_empty
        self.known_sections = {}  # nothing takes a fast path from now on
        self.close_idle(self.idle_deadline - 2)

    def forget(self, connection: Member) -> None:
        """Drop a connection that is closed."""
        self.connections.discard(connection)
        if self._on_empty is not None and not self.connections:
            self._on_empty()

    def close_idle(self, deadline_max: int) -> None:
        """Close connections without a request whose deadline is not after this one."""
        for connection in list(self.connections):
            if connection.deadline <= deadline_max:
                connection.close_if_idle()


def _record_finder(getters: Mapping[bytes, Get]) -> Callable[[bytes], bytes | None]:
    """Return the lookup of the fast path: `GET /user/5` to the record, or None for what the careful path must see.

    `getters` has the reads by what stands before the last slash. A closure, because this runs once per GET.
    """
    find_getter = getters.get

    def find_record(line: bytes) -> bytes | None:
        resource, _, digits = line.rpartition(b"/")
        get = find_getter(resource)
        # 48 is "0": neither 007 nor 0 here. Too large an id is found nowhere.
        if get is None or not digits.isdigit() or digits[0] == 48:
            return None
        return get(int(digits))

    return find_record
