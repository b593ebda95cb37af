"""The back end without processes: a real segment, table, dirty ring and channels, for tests of `persist/`."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from server.commands import PERSISTED_KINDS, Kind, Order, encode_json
from server.config import Config
from server.message_socket import MessageSocket, message_pair
from server.messages import BatchPart, Row, decode_for_writer
from server.shared import Shared
from server.shm import layout
from server.shm.dirty import DirtyWriter
from server.shm.segment import Segment, remove_stale
from server.shm.table_writer import TableWriter

INSTANCE = bytes(range(16))
MEMORY_BYTES = 32 << 20


class Backend:
    """What the supervisor would have made, and a stand-in for the manager."""

    def __init__(self, data_dir: Path, shared: Shared, ready_read_fd: int, **settings: Any) -> None:
        self.config = Config(workers=1, data_dir=data_dir, **settings)
        self.shared = shared
        self.words = shared.segment.words
        self.words[layout.TABLE_STATE] = layout.TABLE_SERVING
        self.table = TableWriter(shared.segment)
        self.dirty = DirtyWriter(shared.segment)
        self.ready_read_fd = ready_read_fd

    def path(self, kind: Kind) -> Path:
        names = {Kind.USER: "users.db", Kind.PRODUCT: "products.db", Kind.ORDER: "orders.db"}
        return self.config.data_dir / names[kind]

    def put(self, kind: Kind, id: int, body: bytes, private: bytes = b"", is_synced: bool = True) -> int:
        """Do what a manager does for one change; return its seq."""
        seq = self.words[layout.PUBLISHED_SEQ] + 1
        self.table.put(kind, id, seq, body, private)
        return self.publish(seq, is_synced)

    def delete(self, kind: Kind, id: int) -> int:
        seq = self.words[layout.PUBLISHED_SEQ] + 1
        self.table.delete(kind, id, seq)
        return self.publish(seq, True)

    def publish(self, seq: int, is_synced: bool) -> int:
        self.dirty.append(self.table.touched)
        self.table.touched.clear()
        self.words[layout.PUBLISHED_SEQ] = seq
        if is_synced:
            self.words[layout.SYNCED_SEQ] = seq
        return seq

    def put_order(self, id: int, quantity: int = 1, is_synced: bool = True) -> int:
        return self.put(Kind.ORDER, id, order_body(id, quantity), is_synced=is_synced)


def order_body(id: int, quantity: int = 1) -> bytes:
    return encode_json(Order(id, 10, 20, quantity))


def rows_of(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Return what a fresh read-only connection sees."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def receive_batch(channel: MessageSocket) -> list[BatchPart]:
    """Return the parts that wait in a channel."""
    parts = []
    while (data := channel.try_receive()) is not None:
        parts.append(decode_for_writer(data))
    return parts


def rows_in(parts: list[BatchPart]) -> list[Row]:
    return [row for part in parts for row in part.rows]


@contextmanager
def make_backend(**settings: Any) -> Iterator[Backend]:
    """Yield a back end in a directory of its own; nothing of it is left."""
    is_classic = bool(settings.get("classic", False))
    segment = Segment.create(MEMORY_BYTES, is_classic)
    persist_pair, writer_pairs = message_pair(), {kind: message_pair() for kind in PERSISTED_KINDS}
    pidfd = os.pidfd_open(os.getpid())
    ready_read_fd, ready_fd = os.pipe()
    with tempfile.TemporaryDirectory() as directory:
        shared = Shared(
            INSTANCE, segment, [], None, [], persist_pair, writer_pairs, pidfd, ready_fd  # type: ignore[arg-type]
        )
        try:
            yield Backend(Path(directory), shared, ready_read_fd, **settings)
        finally:
            for pair in (persist_pair, *writer_pairs.values()):
                for end in pair:
                    end.close()
            for descriptor in (pidfd, ready_read_fd, ready_fd):
                os.close(descriptor)
    release(segment)


def release(segment: Segment) -> None:
    """Close a segment; unlink it at least when a failed test still holds views of it."""
    try:
        segment.close()
    except BufferError:
        remove_stale(segment.name)
