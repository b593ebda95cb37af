"""The writer's turns: batches in, reports out, over real channels and a real database."""

from __future__ import annotations

import os
import select
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from persist import diff
from persist.writer import RETRY_MAX_S, Writer
from server.commands import Kind
from server.errors import DataError
from server.messages import BatchDone, PersisterMessage, Row, WriterReady, decode_for_persister
from server.shm import counters, layout
from server.shm.counters import counters_block
from tests.backend import Backend, make_backend, order_body, rows_of


@pytest.fixture
def backend() -> Iterator[Backend]:
    with make_backend() as backend:
        yield backend


def start(backend: Backend) -> Writer:
    writer = Writer(backend.config, backend.shared, Kind.ORDER)
    writer.turn()
    return writer


def orders(*ids: int, quantity: int = 1) -> list[Row]:
    return [Row(id, order_body(id, quantity)) for id in ids]


def send(backend: Backend, number: int, after: int, checkpoint: int, rows: list[Row]) -> int:
    """Send a batch as the persister does; return how many messages it took."""
    parts = diff.encode_parts(number, after, checkpoint, rows)
    assert all(backend.shared.writer_pairs[Kind.ORDER][0].try_send(part) for part in parts)
    return len(parts)


def answers(backend: Backend) -> list[PersisterMessage]:
    found = []
    while (data := backend.shared.writer_pairs[Kind.ORDER][0].try_receive()) is not None:
        found.append(decode_for_persister(data))
    return found


def quantities(backend: Backend) -> dict[int, int]:
    return dict(rows_of(backend.path(Kind.ORDER), "SELECT id, quantity FROM orders"))


def counter(backend: Backend, index: int) -> int:
    return int(counters_block(backend.shared.segment, counters.WRITER + Kind.ORDER)[index])


def test_start_reports_the_checkpoint_and_then_readiness(backend: Backend) -> None:
    start(backend).close()
    assert answers(backend) == [WriterReady(0)]
    assert os.read(backend.ready_read_fd, 8) == bytes([counters.WRITER + Kind.ORDER])


def test_batch_is_committed_and_reported(backend: Backend) -> None:
    writer = start(backend)
    send(backend, 1, 0, 30, orders(1, 2))
    writer.turn()
    assert answers(backend) == [WriterReady(0), BatchDone(1, 30, 2, 0)]
    assert quantities(backend) == {1: 1, 2: 1}
    assert counter(backend, counters.WRITER_BATCHES) == 1 and counter(backend, counters.WRITER_ROWS) == 2
    writer.close()


def test_batch_waits_for_its_last_part(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "PART_BYTES_MAX", 300)
    writer = start(backend)
    parts = send(backend, 1, 0, 9, orders(*range(1, 10)))
    assert parts > 2
    for _ in range(parts - 1):
        writer.turn()
        assert quantities(backend) == {}
    writer.turn()
    assert len(quantities(backend)) == 9
    writer.close()


def test_new_batch_drops_the_rest_of_an_old_one(backend: Backend) -> None:
    writer = start(backend)
    channel = backend.shared.writer_pairs[Kind.ORDER][0]
    big = [Row(id, order_body(id)) for id in range(1, 3000)]
    channel.try_send(diff.encode_parts(1, 0, 10, big)[0])  # its persister died here
    send(backend, 2, 0, 20, orders(5000))
    writer.turn()
    writer.turn()
    assert quantities(backend) == {5000: 1} and answers(backend)[-1] == BatchDone(2, 20, 1, 0)
    writer.close()


def test_batch_whose_beginning_a_dead_writer_took_is_ignored(backend: Backend) -> None:
    channel = backend.shared.writer_pairs[Kind.ORDER][0]
    for part in diff.encode_parts(1, 0, 10, [Row(id, order_body(id)) for id in range(1, 3000)])[1:]:
        assert channel.try_send(part)
    writer = start(backend)
    writer.turn()
    assert writer._parts == []
    send(backend, 2, 0, 20, orders(5000))
    while answers(backend)[-1:] != [BatchDone(2, 20, 1, 0)]:
        writer.turn()
    assert quantities(backend) == {5000: 1}
    writer.close()


def test_same_batch_twice_gives_the_same_rows(backend: Backend) -> None:
    writer = start(backend)
    for _ in range(2):
        send(backend, 1, 0, 30, [*orders(1, 2, quantity=7), Row(3, None)])
        writer.turn()
    assert quantities(backend) == {1: 7, 2: 7}
    writer.close()


def test_poison_row_is_counted_and_reported(backend: Backend) -> None:
    writer = start(backend)
    send(backend, 1, 0, 1000, [Row(5, b"{}") if row.id == 5 else row for row in orders(*range(1, 1001))])
    writer.turn()
    assert answers(backend)[-1] == BatchDone(1, 1000, 1000, 1)
    assert len(quantities(backend)) == 999 and counter(backend, counters.DEAD_LETTERS) == 1
    writer.close()


def test_locked_database_is_tried_again_and_nothing_is_a_dead_letter(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persist.writer.RETRY_MAX_S", 0.0)
    writer = start(backend)
    with closing(sqlite3.connect(backend.path(Kind.ORDER))) as other:
        other.execute("BEGIN IMMEDIATE")
        send(backend, 1, 0, 30, orders(1, 2))
        writer.turn()
        assert answers(backend) == [WriterReady(0)] and counter(backend, counters.OUTAGES) == 1
    while not (found := answers(backend)):
        select.select([], [], [], writer._timeout(False))
        writer.turn()
    assert found == [BatchDone(1, 30, 2, 0)] and quantities(backend) == {1: 1, 2: 1}
    assert counter(backend, counters.DEAD_LETTERS) == 0
    writer.close()


def test_pauses_of_an_outage_grow_to_a_bound(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = start(backend)
    monkeypatch.setattr(writer._store, "apply", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("full")))
    send(backend, 1, 0, 30, orders(1))
    pauses = []
    for _ in range(10):
        writer._retry_at = 0.0
        writer.turn()
        pauses.append(round(writer._timeout(False), 2))
    assert pauses[0] < 0.1 and pauses == sorted(pauses) and pauses[-1] == RETRY_MAX_S
    monkeypatch.undo()
    writer._retry_at = 0.0
    writer.turn()
    assert answers(backend)[-1] == BatchDone(1, 30, 1, 0)
    writer.close()


def test_batch_held_during_an_outage_gives_way_to_that_of_a_new_persister(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = start(backend)
    monkeypatch.setattr(writer._store, "apply", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("full")))
    send(backend, 1, 0, 30, orders(1))
    writer.turn()
    send(backend, 2, 0, 40, orders(1, quantity=9))
    writer.turn()
    monkeypatch.undo()
    writer._retry_at = 0.0
    writer.turn()
    assert answers(backend)[1:] == [BatchDone(2, 40, 1, 0)] and quantities(backend) == {1: 9}
    writer.close()


def test_deleted_database_is_replaced_by_an_empty_one(backend: Backend) -> None:
    writer = start(backend)
    send(backend, 1, 0, 30, orders(1))
    writer.turn()
    backend.path(Kind.ORDER).unlink()
    send(backend, 2, 30, 40, orders(2))
    writer.turn()
    writer.turn()
    assert answers(backend)[2:] == [WriterReady(0)]  # and no BatchDone: the file that should hold order 1 is gone
    assert quantities(backend) == {} and counter(backend, counters.ERRORS) == 1
    writer.close()


def test_batch_made_for_the_lost_file_never_reaches_the_new_one(backend: Backend) -> None:
    writer = start(backend)
    send(backend, 1, 0, 30, orders(1))
    writer.turn()
    writer.close()
    backend.path(Kind.ORDER).unlink()
    send(backend, 2, 30, 40, orders(2))  # sent before the persister hears of the new file
    successor = start(backend)
    successor.turn()
    assert quantities(backend) == {} and rows_of(backend.path(Kind.ORDER), "SELECT checkpoint FROM millrace") == [(0,)]
    successor.close()


def test_damaged_database_is_set_aside_while_the_table_serves(backend: Backend) -> None:
    writer = start(backend)
    send(backend, 1, 0, 30, orders(*range(1, 2000)))
    while len(answers(backend)) == 0 or writer._has_batch() or writer._parts:
        writer.turn()
    writer.close()
    path = backend.path(Kind.ORDER)
    data = bytearray(path.read_bytes())
    data[:4096] = b"\xa5" * 4096
    path.write_bytes(data)
    start(backend).close()
    aside = [file for file in path.parent.iterdir() if file.suffix == ".broken"]
    assert [file.read_bytes() for file in aside] == [bytes(data)]
    assert quantities(backend) == {}


def test_page_found_damaged_in_a_batch_sets_the_database_aside(backend: Backend) -> None:
    writer = start(backend)
    send(backend, 1, 0, 30, orders(*range(1, 1000)))
    writer.turn()
    writer.close()
    path = backend.path(Kind.ORDER)
    data = bytearray(path.read_bytes())
    header = len(data) - len(data) % 4096
    for page in range(1, header // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(data)
    successor = start(backend)
    if successor._store is not None:
        send(backend, 2, 30, 31, orders(500))
        successor.turn()
    successor.turn()
    assert answers(backend)[-1] == WriterReady(0)
    assert any(file.suffix == ".broken" for file in path.parent.iterdir())
    successor.close()


def test_older_copy_put_in_place_while_the_server_runs_is_set_aside(backend: Backend) -> None:
    start(backend).close()
    backend.words[layout.CHECKPOINT + Kind.ORDER] = 30  # what the persister knows to be stored
    start(backend).close()
    assert any(file.suffix == ".broken" for file in backend.path(Kind.ORDER).parent.iterdir())


def test_unusable_database_is_refused_while_the_table_is_loaded(backend: Backend) -> None:
    backend.words[layout.TABLE_STATE] = layout.TABLE_LOADING
    backend.path(Kind.ORDER).write_bytes(b"my poems\n" * 1000)
    with pytest.raises(DataError, match="not a database"):
        start(backend)
    assert backend.path(Kind.ORDER).read_bytes() == b"my poems\n" * 1000
