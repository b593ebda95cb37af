"""The shared segment: reserved before it is touched, small when empty, read-only for tools, gone after close."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.commands import Kind
from server.errors import DataError, MemoryFull, StartError
from server.shm import counters, layout
from server.shm.segment import SHM_DIRECTORY, Region, Segment, remove_stale
from server.shm.table import TableReader
from server.shm.table_writer import TableWriter
from tests.table_model import Model, check_table, open_segment


@pytest.fixture
def segment() -> Iterator[Segment]:
    with open_segment() as segment:
        yield segment


def path_of(segment: Segment) -> Path:
    return Path(SHM_DIRECTORY, segment.name)


def resident_bytes(segment: Segment) -> int:
    return path_of(segment).stat().st_blocks * 512


def names() -> set[str]:
    return {path.name for path in Path(SHM_DIRECTORY).glob("millrace-*")}


class FullDevice:
    """Stands in for `os.posix_fallocate`: the file system has `room` bytes left."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.reserve = os.posix_fallocate

    def __call__(self, descriptor: int, offset: int, size: int) -> None:
        if size > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= size
        self.reserve(descriptor, offset, size)


def test_empty_segment_takes_little_memory() -> None:
    with open_segment(1 << 30) as segment:
        TableWriter(segment)
        reader = TableReader(segment)
        assert reader.get_user(1) is None and reader.changed_slots([0, 0, 0]) == []
        assert resident_bytes(segment) <= 16 << 20


def test_reserved_bytes_are_what_the_file_takes(segment: Segment) -> None:
    assert segment.words[layout.RESERVED_BYTES] == resident_bytes(segment)
    writer = TableWriter(segment)
    for id in range(6000):
        writer.put(Kind.USER, id, id, b"x" * 300)
    assert segment.words[layout.RESERVED_BYTES] == resident_bytes(segment)
    TableWriter(segment)
    assert segment.words[layout.RESERVED_BYTES] == resident_bytes(segment)


def test_nothing_is_touched_that_was_not_reserved(segment: Segment) -> None:
    """After a reset too: each page of the file was asked for by `posix_fallocate`."""
    writer = TableWriter(segment)
    for id in range(1000):
        writer.put(Kind.USER, id, id, b"x" * 300)
    segment.initialise_table()
    assert resident_bytes(segment) == segment.words[layout.RESERVED_BYTES]
    writer = TableWriter(segment)
    for id in range(20_000):
        writer.put(Kind.USER, id, id, b"x" * 30)
    assert resident_bytes(segment) == segment.words[layout.RESERVED_BYTES]


def test_segment_is_gone_after_close_even_if_views_are_held() -> None:
    segment = Segment.create(16 << 20, False)
    block = counters.counters_block(segment, counters.MANAGER)
    segment.close()
    assert segment.name not in names()
    block[counters.BATCHES] = 1


@pytest.mark.parametrize("room", [0, 9 << 20])
def test_full_shm_at_the_start_is_an_error_that_leaves_nothing(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "of-a-full-test")
    monkeypatch.setattr(os, "posix_fallocate", FullDevice(room))
    with pytest.raises(StartError):
        Segment.create(16 << 20, False)
    assert "millrace-of-a-full-test" not in names()


def test_full_shm_while_growing_refuses_records_and_recovers(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, model = TableWriter(segment), Model()
    device = FullDevice(1 << 20)
    monkeypatch.setattr(os, "posix_fallocate", device)
    id = 0
    with pytest.raises(MemoryFull):
        for id in range(1, 100_000):
            writer.put(Kind.USER, id, id, b"x" * 200)
            model.put(Kind.USER, id, id, b"x" * 200)
    assert segment.words[layout.RESERVED_BYTES] == resident_bytes(segment)
    check_table(writer, model)
    for other in range(1, id, 10):
        writer.put(Kind.USER, other, id + other, b"y" * 200)
        model.put(Kind.USER, other, id + other, b"y" * 200)
    check_table(writer, model)
    device.room = 1 << 30
    writer.put(Kind.USER, id, id, b"x" * 200)
    model.put(Kind.USER, id, id, b"x" * 200)
    check_table(writer, model)


def test_other_errors_of_the_reservation_are_not_hidden(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match="I/O error"):
        segment.reserve(0, 4096)


def test_region_stops_at_the_budget(segment: Segment) -> None:
    region = Region(segment, segment.regions.arena, segment.regions.arena_bytes, 0)
    with pytest.raises(MemoryFull):
        region.ensure(segment.regions.arena_bytes)
    left = segment.words[layout.MEMORY_BYTES] - segment.words[layout.RESERVED_BYTES]
    assert 0 <= left < layout.GROW_BYTES
    region.ensure(region.reserved_bytes)


def test_attached_segment_is_read_only_and_reads_the_table(segment: Segment) -> None:
    writer = TableWriter(segment)
    writer.put(Kind.USER, 7, 1, b'{"id":7}', b"secret")
    attached = Segment.attach(segment.name)
    try:
        assert TableReader(attached).get_private(Kind.USER, 7) == (b'{"id":7}', b"secret")
        with pytest.raises(TypeError):
            attached.words[0] = 1
    finally:
        attached.close()
    assert path_of(segment).exists()


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 4096, b"x" * 12288])
def test_attach_refuses_what_is_no_segment(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.shm.segment.SHM_DIRECTORY", str(tmp_path))
    (tmp_path / "millrace-x").write_bytes(content)
    with pytest.raises(DataError):
        Segment.attach("millrace-x")


def test_attach_refuses_a_segment_that_is_not_ready_or_of_another_size(segment: Segment) -> None:
    for word in (layout.MAGIC, layout.VERSION, layout.SEGMENT_BYTES):
        value, segment.words[word] = segment.words[word], 0
        with pytest.raises(DataError):
            Segment.attach(segment.name)
        segment.words[word] = value
    Segment.attach(segment.name).close()


def test_stale_segment_is_removed_by_name_and_nothing_else() -> None:
    path = Path(SHM_DIRECTORY, "millrace-stale-of-a-test")
    path.touch()
    assert remove_stale(path.name) and not path.exists()
    assert not remove_stale(path.name)
    assert not remove_stale("../etc/passwd") and not remove_stale("millrace-/../x") and not remove_stale("other")
