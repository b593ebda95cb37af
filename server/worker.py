"""A worker: one HTTP process. Serves reads from shared memory, sends writes to the manager.

    listener of its slot ──> Connection ──> Shop ──> table (reads) / CommandQueue (writes)
    admin listener (shared) > Connection ──> Admin ─> header words and counters

The loop, threads and everything else are made here, after the fork. A ticker runs once a second: the Date field, the
deadlines of connections and commands, the counters. SIGTERM: stop accepting, let what is in flight finish with
`Connection: close`, close the idle, leave. When the supervisor dies the worker leaves at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import time
from functools import partial

import uvloop

from persist.dead_letters import DeadLetters
from server.command_queue import CommandQueue
from server.config import Config
from server.http.admin import Admin
from server.http.dead_letters import Replayer
from server.http.endpoint import NEVER, Endpoint
from server.http.exchange import Counts
from server.http.passwords import PasswordPool
from server.http.protocol import Connection
from server.http.replies import Clock, Replies
from server.http.routes import Shop, fast_getters
from server.shared import Shared
from server.shm import counters, layout
from server.shm.counters import counters_block
from server.shm.table import TableReader

log = logging.getLogger(__name__)

TICK_S = 1.0
STOP_GRACE_S = 0.25  # after SIGTERM: a client's next request may be on its way, and gets its answer
DRAIN_MARGIN_S = 3.0  # beyond the write time-out: lingering ends and the last answers leave
ADMIN_CONNECTIONS_MAX = 64  # people and scrapers
DESCRIPTORS_RESERVED = 200  # listeners, pairs, databases, admin connections
CONNECTIONS_MAX = 20_000  # per worker; some 5 KB each in this process, and its sweep stays around a millisecond


class Worker:
    """The objects of one worker, and its life."""

    def __init__(self, config: Config, shared: Shared, slot: int, loop: asyncio.AbstractEventLoop) -> None:
        self._shared = shared
        self._slot = slot
        self._loop = loop
        self._drain_s = config.write_timeout_s + DRAIN_MARGIN_S
        self._end: asyncio.Future[int] = loop.create_future()  # the exit code
        self._servers: list[asyncio.AbstractServer] = []
        self._adopted: dict[int, asyncio.AbstractServer] = {}  # by slot: listeners of slots without a worker
        self._served = (0, 0)  # WORKERS and LISTENERS when they were last looked at
        self._adopting: asyncio.Task[None] | None = None  # a task is only weakly held by its loop
        self._counters = counters_block(shared.segment, counters.WORKER + slot)
        self._clock = Clock(time.time())
        self._counts = Counts()
        self._queue = CommandQueue(config, shared, slot, loop)
        self._passwords = PasswordPool(loop)
        replies = Replies(self._clock, config.classic)
        table = TableReader(shared.segment)
        shop = Shop(config, loop, replies, self._counts, table, self._queue, self._passwords)
        self._replayer = Replayer(loop, replies, self._queue, DeadLetters(config.data_dir))
        admin = Admin(shared.segment, len(shared.command_pairs), replies, self._queue, self._replayer)
        common = (loop, config, self._clock, replies, self._counts)
        self._public = Endpoint(*common, shop, fast_getters(table), shop.writers(), connections_max())
        self._admin = Endpoint(*common, admin, {}, {}, ADMIN_CONNECTIONS_MAX)

    async def serve(self) -> int:
        """Listen, say so, and return the exit code when it is time to leave."""
        self._loop.add_reader(self._shared.supervisor_pidfd, self._leave, 1)
        self._loop.add_signal_handler(signal.SIGTERM, self._stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))  # blocked by the supervisor over the fork
        self._servers.append(await self._listen(self._public, self._shared.listeners[self._slot]))
        self._servers.append(await self._listen(self._admin, self._shared.admin_listener))
        self._tick()
        gc.collect()
        gc.freeze()  # what is there now stays: the collector need not look at it again
        self._shared.tell_ready(counters.WORKER + self._slot)
        return await self._end

    def close(self) -> None:
        """Give back what would outlive the loop."""
        self._publish()
        self._passwords.close()
        self._replayer.close()
        self._queue.close()

    async def _listen(self, endpoint: Endpoint, listener: socket.socket) -> asyncio.AbstractServer:
        return await self._loop.create_server(partial(Connection, endpoint), sock=listener.dup())

    async def _adopt(self, workers: int, listeners: int) -> None:
        """Serve the listeners that fall to this worker since another one was removed, until one is there again."""
        orphans = {slot for slot in range(workers, listeners) if slot % workers == self._slot}
        for slot in self._adopted.keys() - orphans:
            self._adopted.pop(slot).close()
        for slot in orphans - self._adopted.keys():
            self._adopted[slot] = await self._listen(self._public, self._shared.listeners[slot])

    def _tick(self) -> None:
        self._loop.call_later(TICK_S, self._tick)
        self._clock.refresh(time.time())
        self._public.sweep()
        self._admin.sweep()
        self._queue.expire()
        self._publish()
        words = self._shared.segment.words
        served = words[layout.WORKERS], words[layout.LISTENERS]
        if served != self._served and not self._public.is_stopping:
            self._served = served
            self._adopting = self._loop.create_task(self._adopt(*served))

    def _publish(self) -> None:
        """Add to the counters in shared memory what happened since the last time."""
        counts, words = self._counts, self._counters
        words[counters.REQUESTS] += counts.fast_reads + counts.exchanges
        words[counters.READS] += counts.fast_reads + counts.reads
        words[counters.CLIENT_ERRORS] += counts.client_errors
        words[counters.SERVER_ERRORS] += counts.server_errors
        words[counters.ERRORS] += counts.errors
        words[counters.SLOT_RETRIES] += counts.slot_retries
        words[counters.CONNECTIONS_TOTAL] += counts.connections
        words[counters.CONNECTIONS] = len(self._public.connections)
        counts.clear()

    def _stop(self) -> None:
        """Finish: no new connections, and every connection ends with its next answer or when it is idle."""
        if self._public.is_stopping:
            return
        for server in (*self._servers, *self._adopted.values()):
            server.close()
        for endpoint in (self._public, self._admin):
            endpoint.stop(self._leave_when_empty)
            self._loop.call_later(STOP_GRACE_S, endpoint.close_idle, NEVER)
        self._loop.call_later(self._drain_s, self._leave, 0)
        self._leave_when_empty()

    def _leave_when_empty(self) -> None:
        if not self._public.connections and not self._admin.connections:
            self._leave(0)

    def _leave(self, exit_code: int) -> None:
        self._loop.remove_reader(self._shared.supervisor_pidfd)
        if not self._end.done():
            self._end.set_result(exit_code)


def connections_max() -> int:
    """Return how many client connections this process may hold."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(CONNECTIONS_MAX, descriptors - DESCRIPTORS_RESERVED))


def main(config: Config, shared: Shared, worker_slot: int) -> int:
    """Run worker number `worker_slot` until it is told to stop (0) or the supervisor is dead (1)."""
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = Worker(config, shared, worker_slot, loop)
    try:
        return loop.run_until_complete(worker.serve())
    finally:
        worker.close()
        loop.close()
