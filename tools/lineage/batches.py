"""Many entries in one request between services, as MessagePack: rows for a push service, commands for the transfer.

JSON would do as well, but a text in JSON can be six times as long as in memory, and a request of 64 KiB is the most
that the HTTP layer takes. Here the largest possible entry has some 12 KiB, so any entry fits into a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

BATCH_BYTES_MAX = 48 << 10  # with one more entry (three texts of 4,096 bytes) still below the 64 KiB of a request

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[Any, ...]]).decode


class Batch(NamedTuple):
    """The body of one request, and how many entries are in it."""

    entries: int
    body: bytes


def batches(entries: Iterable[tuple[Any, ...]]) -> Iterator[Batch]:
    """Yield all entries in their order, in as few requests as they fit into."""
    parts: list[msgspec.Raw] = []
    size = 0
    for entry in entries:
        part = _encode(entry)
        parts.append(msgspec.Raw(part))
        size += len(part)
        if size >= BATCH_BYTES_MAX:
            yield Batch(len(parts), _encode(parts))
            parts, size = [], 0
    if parts:
        yield Batch(len(parts), _encode(parts))


def encode_entries(entries: list[tuple[Any, ...]]) -> bytes:
    """Return entries as the body of an answer, which has no limit."""
    return _encode(entries)


def decode_entries(body: bytes) -> list[tuple[Any, ...]]:
    """Return the entries in a body."""
    return _decode(body)
