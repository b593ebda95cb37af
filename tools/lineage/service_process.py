"""One process of a shape: a loop, the HTTP layer of the server, one service, and an orderly end.

Made after the fork like a worker of the server, and with the same parts under it. SIGTERM: stop accepting, answer what
is in flight, let the service flush, leave with 0, or 5 when something could not be flushed. When the launcher dies the
process leaves at once: nobody would ever stop it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import uvloop
from setproctitle import setproctitle

from server.config import Config
from server.http.endpoint import NEVER, Endpoint
from server.http.exchange import Counts
from server.http.protocol import Connection
from server.http.replies import Clock, Replies
from tools.lineage.roles import Role
from tools.lineage.routes import Context

log = logging.getLogger(__name__)

TICK_S = 1.0
STOP_GRACE_S = 0.25  # after SIGTERM: a client's next request may be on its way
DRAIN_S = 5.0  # then the connections that are still open are dropped
CONNECTIONS_MAX = 20_000  # as a worker of the server
IDLE_TIMEOUT_S = 86_400.0  # the services keep their connections to each other

EXIT_NOT_FLUSHED = 5


class ServiceProcess:
    """The objects of one process."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        role: Role,
        listener: socket.socket,
        ports: Mapping[str, int],
        data_dir: Path,
        period_s: float,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._clock = Clock(time.time())
        replies = Replies(self._clock, is_classic=True)
        self._service = role.make(Context(loop, replies, data_dir, period_s, ports))
        config = Config(workers=1, classic=True, idle_timeout_s=IDLE_TIMEOUT_S)
        self._counts = Counts()
        service = self._service
        common = (loop, config, self._clock, replies, self._counts, service)
        self._endpoint = Endpoint(*common, service.getters(), service.writers(), CONNECTIONS_MAX)
        self._is_stopping = asyncio.Event()

    async def run(self, ready_fd: int, launcher_pidfd: int) -> int:
        """Serve until SIGTERM, flush, and return the exit code."""
        self._loop.add_reader(launcher_pidfd, os._exit, 1)
        self._loop.add_signal_handler(signal.SIGTERM, self._is_stopping.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))  # blocked by the launcher over the fork
        await self._service.start()
        server = await self._loop.create_server(partial(Connection, self._endpoint), sock=self._listener)
        self._tick()
        os.write(ready_fd, b"1")
        await self._is_stopping.wait()
        server.close()
        await self._drain()
        return 0 if await self._service.stop() else EXIT_NOT_FLUSHED

    def _tick(self) -> None:
        self._loop.call_later(TICK_S, self._tick)
        self._clock.refresh(time.time())
        self._endpoint.sweep()
        self._counts.clear()

    async def _drain(self) -> None:
        """Give the answers that are in flight, and end all connections."""
        is_empty = asyncio.Event()
        self._endpoint.stop(is_empty.set)
        self._loop.call_later(STOP_GRACE_S, self._endpoint.close_idle, NEVER)
        if self._endpoint.connections:
            try:
                await asyncio.wait_for(is_empty.wait(), DRAIN_S)
            except TimeoutError:
                log.warning("dropped connections=%d", len(self._endpoint.connections))


def main(
    shape: str,
    role: Role,
    listener: socket.socket,
    ports: Mapping[str, int],
    data_dir: Path,
    period_s: float,
    ready_fd: int,
    launcher_pidfd: int,
) -> int:
    """Run one process of a shape; called in the child after the fork."""
    setproctitle(f"millrace lineage {shape}: {role.name}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the launcher stops in order
    logging.basicConfig(level=logging.WARNING, format=f"%(asctime)s {shape} {role.name}: %(message)s")
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        process = ServiceProcess(loop, role, listener, ports, data_dir, period_s)
        return loop.run_until_complete(process.run(ready_fd, launcher_pidfd))
    finally:
        loop.close()
