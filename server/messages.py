"""Messages between manager, persister and writers: one MessagePack array each, over a `MessageSocket`.

Worker and manager speak through `server/command_queue.py`.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Sync(Struct, frozen=True, array_like=True, tag=1):
    """Persister to manager: make everything published so far durable in the journal, then answer `Synced`.

    Rows go to SQLite only after this, so that a database is never ahead of the journal after a power cut.
    """


class Checkpoints(Struct, frozen=True, array_like=True, tag=2):
    """Persister to manager: how far each database has come."""

    users: int
    products: int
    orders: int


class Synced(Struct, frozen=True, array_like=True, tag=3):
    """Manager to persister: the journal is durable up to this seq."""

    seq: int


class FlushNow(Struct, frozen=True, array_like=True, tag=4):
    """Manager to persister: a client waits for its write to be in SQLite, start a period at once."""


class Row(Struct, frozen=True, array_like=True):
    """One record as it is now: `body` is its JSON (None: delete the row), `private` the stored password or empty."""

    id: int
    body: bytes | None
    private: bytes = b""
    is_key: bool = False  # an Idempotency-Key, in the database of the orders


class BatchPart(Struct, frozen=True, array_like=True, tag=5):
    """Persister to writer: one part of a batch; the writer commits when it holds all `parts` of `batch`.

    A part of another batch number drops what was collected. `after` is the checkpoint that the batch builds on: a
    database that holds less does not take it. `checkpoint` is the seq the database reaches with it; a batch that is
    not the last of its diff carries the old one.
    """

    batch: int
    part: int
    parts: int
    after: int
    checkpoint: int
    rows: list[Row]


class WriterReady(Struct, frozen=True, array_like=True, tag=6):
    """Writer to persister, at every start: the checkpoint its database holds; batches not yet done are sent again."""

    checkpoint: int


class BatchDone(Struct, frozen=True, array_like=True, tag=7):
    """Writer to persister: the batch is committed with its checkpoint. `dead` rows went to the dead letters."""

    batch: int
    checkpoint: int
    rows: int
    dead: int


ManagerMessage = Sync | Checkpoints
PersisterMessage = Synced | FlushNow | WriterReady | BatchDone

encode = msgspec.msgpack.Encoder().encode
decode_for_manager = msgspec.msgpack.Decoder(ManagerMessage).decode
decode_for_persister = msgspec.msgpack.Decoder(PersisterMessage).decode
decode_for_writer = msgspec.msgpack.Decoder(BatchPart).decode
