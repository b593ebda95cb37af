"""What a child process is handed: everything that outlives it, made by the supervisor before the fork."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from server.commands import Kind
from server.failpoints import Failpoint, not_armed
from server.message_socket import MessageSocket
from server.shm.segment import Segment


@dataclass(frozen=True, slots=True)
class Shared:
    """The handles. Each pair has exactly two owners, named in the order of the tuple."""

    instance: bytes  # 16 bytes: identity of the data directory, in every database and journal segment
    segment: Segment
    listeners: list[socket.socket]  # per worker slot, spare ones too; SO_REUSEPORT, queued connections survive
    admin_listener: socket.socket  # one for all workers
    command_pairs: list[tuple[MessageSocket, MessageSocket]]  # worker, manager
    persist_pair: tuple[MessageSocket, MessageSocket]  # persister, manager
    writer_pairs: dict[Kind, tuple[MessageSocket, MessageSocket]]  # persister, writer
    supervisor_pidfd: int  # readable when the supervisor is dead: leave
    ready_fd: int  # write end of a pipe to the supervisor
    failpoint: Failpoint = not_armed

    def tell_ready(self, counters_block: int) -> None:
        """Tell the supervisor that this process serves."""
        os.write(self.ready_fd, bytes([counters_block]))
