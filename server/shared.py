"""What a child process is handed: everything that outlives it, made by the supervisor before the fork."""

from __future__ import annotations

import gc
import os
import socket
from dataclasses import dataclass

from server.commands import PERSISTED_KINDS, Kind
from server.config import Config
from server.failpoints import Failpoint, make_failpoint, not_armed
from server.listeners import open_listeners
from server.message_socket import MessageSocket, message_pair
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

    @classmethod
    def make(cls, config: Config, instance: bytes, slots: int, ready_fd: int) -> Shared:
        """Make all handles (supervisor), for `slots` workers of which `config.workers` start. Raises `StartError`."""
        listeners = open_listeners(config.host, config.port, config.workers, slots - config.workers)
        [admin_listener] = open_listeners(config.host, config.admin_port, 1)
        return cls(
            instance=instance,
            segment=Segment.create(config.memory_bytes, config.classic),
            listeners=listeners,
            admin_listener=admin_listener,
            command_pairs=[message_pair() for _ in range(slots)],
            persist_pair=message_pair(),
            writer_pairs={kind: message_pair() for kind in PERSISTED_KINDS},
            supervisor_pidfd=os.pidfd_open(os.getpid()),
            ready_fd=ready_fd,
            failpoint=make_failpoint(config.failpoints),
        )

    def close(self) -> None:
        """Close everything and remove the segment (supervisor, after its last child)."""
        for listener in (*self.listeners, self.admin_listener):
            listener.close()
        for pair in (*self.command_pairs, self.persist_pair, *self.writer_pairs.values()):
            for end in pair:
                end.close()
        os.close(self.supervisor_pidfd)
        os.close(self.ready_fd)
        gc.collect()  # views of the segment in dropped objects would keep it mapped
        self.segment.close()
