"""The dirty diff: slots become rows, rows become messages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from persist import diff
from server.commands import Kind
from server.message_socket import MESSAGE_BYTES_MAX
from server.messages import Row, decode_for_writer
from server.shm import layout
from server.shm.dirty import DirtyReader
from server.shm.table import TableReader
from tests.backend import Backend, make_backend, order_body


@pytest.fixture
def backend() -> Iterator[Backend]:
    with make_backend() as backend:
        yield backend


def changed(backend: Backend) -> list[int]:
    return TableReader(backend.shared.segment).changed_slots([-1, -1, -1])


def take(backend: Backend, kind: Kind, slots: set[int]) -> diff.Taken:
    return diff.take_rows(TableReader(backend.shared.segment), kind, slots)


def test_slots_are_grouped_by_kind_without_purchases(backend: Backend) -> None:
    reader = DirtyReader(backend.shared.segment)
    reader.take()
    backend.put(Kind.USER, 1, b"u")
    backend.put(Kind.PRODUCT, 1, b"p")
    backend.table.add_purchase(1, 1, 5, 3)
    purchase = backend.table.touched[-1:]
    backend.put_order(1)
    groups = diff.group_by_kind(backend.words, [*(reader.take() or []), *purchase])
    assert [len(groups[kind]) for kind in (Kind.USER, Kind.PRODUCT, Kind.ORDER)] == [1, 1, 1]


def test_row_is_what_the_slot_holds_when_it_is_read(backend: Backend) -> None:
    reader = DirtyReader(backend.shared.segment)
    reader.take()
    for version in range(100):
        backend.put(Kind.USER, 7, b"%d" % version, b"secret")
    slots = reader.take()
    assert slots is not None and len(slots) == 1
    assert take(backend, Kind.USER, set(slots)) == ([Row(7, b"99", b"secret")], 100)


def test_deleted_record_is_a_row_without_body(backend: Backend) -> None:
    backend.put(Kind.USER, 7, b"u")
    backend.delete(Kind.USER, 7)
    assert take(backend, Kind.USER, set(changed(backend))) == ([Row(7, None)], 2)


def test_free_slots_and_other_kinds_are_dropped(backend: Backend) -> None:
    backend.put(Kind.USER, 7, b"u")
    backend.put_order(1)
    slots = set(changed(backend))
    backend.delete(Kind.USER, 7)
    backend.table.reclaim(9)
    assert take(backend, Kind.USER, slots) == ([], 0)
    assert slots == set()


def test_locked_slot_stays_for_later(backend: Backend) -> None:
    backend.put_order(1)
    (locked,) = changed(backend)
    backend.words[locked + layout.LOCK] |= layout.LOCKED
    backend.put_order(2)
    slots = set(changed(backend))
    assert take(backend, Kind.ORDER, slots).rows == [Row(2, order_body(2))]
    assert slots == {locked}


def test_batch_is_bounded_and_its_rows_are_in_order_of_ids(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diff, "BATCH_ROWS_MAX", 10)
    for id in range(25, 0, -1):
        backend.put_order(id)
    slots = set(changed(backend))
    batches = [[row.id for row in take(backend, Kind.ORDER, slots).rows] for _ in range(3)]
    assert [len(batch) for batch in batches] == [10, 10, 5] and slots == set()
    assert all(batch == sorted(batch) for batch in batches)
    assert sorted(id for batch in batches for id in batch) == list(range(1, 26))


def test_batch_of_large_rows_is_bounded_by_its_bytes(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "BATCH_BYTES_MAX", 100_000)
    for id in range(1, 11):
        backend.put(Kind.PRODUCT, id, b"x" * 40_000)
    assert len(take(backend, Kind.PRODUCT, set(changed(backend))).rows) == 3


def test_every_part_fits_into_a_message() -> None:
    rows = [Row(2**63 - 1 - number, b"x" * (number % 50_000), b"y" * 4095) for number in range(0, 200_000, 777)]
    parts = diff.encode_parts(2**62, 2**62, 2**62, rows)
    assert max(map(len, parts)) <= MESSAGE_BYTES_MAX
    decoded = [decode_for_writer(part) for part in parts]
    assert [row for part in decoded for row in part.rows] == rows
    assert [(part.part, part.parts) for part in decoded] == [(number, len(parts)) for number in range(len(parts))]


def test_batch_without_rows_is_one_message() -> None:
    (part,) = diff.encode_parts(1, 2, 3, [])
    assert decode_for_writer(part).rows == [] and decode_for_writer(part).checkpoint == 3
