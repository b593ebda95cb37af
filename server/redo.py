"""What a journal group says to a successor of the manager: which answers belong to it, and how to publish it again.

Redo goes by the seq of each slot, so a change that is in the table already stays as it is, and doing it twice is the
same as doing it once. Purchases are not in the journal: an order that is not in the table yet brings its purchase.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from server.commands import Kind, Order
from server.journal.format import Change
from server.shm.table_writer import TableWriter

_decode_order = msgspec.json.Decoder(Order).decode


class Answer(Struct, frozen=True, array_like=True):
    """The answer to one applied command, in its journal group; `body` None: the body of the change of that seq."""

    worker: int
    number: int
    seq: int
    body: bytes | None


encode_answers = msgspec.msgpack.Encoder().encode
decode_answers = msgspec.msgpack.Decoder(list[Answer]).decode


def redo_change(table: TableWriter, change: Change) -> None:
    """Bring one after-image into the table, unless it holds this or a later one. Its slot becomes dirty either way."""
    seq = table.seq_of(change.kind, change.id)
    if seq < change.seq:
        if change.body is None:
            table.delete(change.kind, change.id, change.seq)
        else:
            if change.kind == Kind.ORDER and seq < 0:
                # the order comes after its purchase, so: no order, perhaps no purchase; else it is a dead letter again
                order = _decode_order(change.body)
                table.add_purchase(order.user_id, order.product_id, order.quantity, change.seq)
            table.put(change.kind, change.id, change.seq, change.body, change.private)
    table.touch(change.kind, change.id)
