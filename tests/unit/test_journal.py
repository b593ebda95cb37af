"""The journal against torn writes, flipped bits, failing disks, and a list of what it was given."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.errors import DataError, JournalRefused, StartError
from server.journal import format, writer
from server.journal.format import Change, Group
from server.journal.reader import Scan, State, read_groups
from server.journal.writer import Journal

INSTANCE = bytes(range(16))
SEGMENT_BYTES = 4096


@pytest.fixture(autouse=True)
def no_real_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here loses power, so no test waits for the disk; the faults below replace these in turn."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def open_journal(directory: Path, epoch: int = 1, max_bytes: int = 1 << 20, start: int = 0) -> Journal:
    return Journal.open(directory, INSTANCE, epoch, SEGMENT_BYTES, max_bytes, start)


def kill(journal: Journal) -> None:
    """What a kill -9 does to the files: nothing. `close` does not sync, so it is the same."""
    journal.close()


def change(seq: int, size: int = 40) -> Change:
    return Change(seq % 3, seq * 7, seq, None if seq % 5 == 0 else b"x" * size, b"secret" if seq % 2 else b"")


def add(journal: Journal, count: int = 1, size: int = 40, sync: bool = True) -> Group:
    """Append a group after the last one; return what must be read back (but for its position)."""
    first = journal.last_seq + 1
    changes = [change(seq, size) for seq in range(first, first + count)]
    answers = b"answers %d" % first
    journal.append(first, count, changes, answers, sync)
    return Group(0, journal.epoch, 0, first, count, changes, answers)


def contents(directory: Path, start: int = 0) -> list[Group]:
    """All groups, without position and number; the numbers must be consecutive and the positions rise."""
    groups = list(read_groups(directory, INSTANCE, start))
    assert [group.number for group in groups] == [groups[0].number + i for i in range(len(groups))]
    assert [group.position for group in groups] == sorted(group.position for group in groups)
    return [group._replace(position=0, number=0) for group in groups]


def state(directory: Path) -> State:
    scan = Scan(directory, None)
    list(scan)
    return scan.end.state


def segment_path(directory: Path, number: int) -> Path:
    return directory / format.SEGMENT_NAME.format(number)


def frames(directory: Path, number: int = 1) -> list[tuple[int, int]]:
    """Where the frames of a segment start and end."""
    scan = Scan(directory, INSTANCE)
    return [(frame.offset, frame.end) for segment, _, frame in scan.walk() if segment.number == number]


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 1 << bit]))


class Disk:
    """Takes the place of some functions of `os` and lets them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failing: dict[str, int] = {}  # function -> errno; 0: a short write
        self.times = 0  # how many more calls fail
        self.synced: list[tuple[int, bool]] = []  # (inode, succeeded) of every fdatasync
        self.held: list[int] = []  # what failed to sync stays open, so that its inode number is not given out again
        for name in ("pwrite", "fdatasync", "fsync", "posix_fallocate", "rename"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def fail(self, code: int, *names: str, times: int = 1) -> None:
        self.failing = dict.fromkeys(names, code)
        self.times = times

    def heal(self) -> None:
        self.failing = {}

    def _wrap(self, name: str, real: Callable[..., int | None]) -> Callable[..., int | None]:
        def call(*arguments: object) -> int | None:
            is_failing = name in self.failing and self.times > 0
            if name == "fdatasync":
                self.synced.append((os.fstat(arguments[0]).st_ino, not is_failing))  # type: ignore[arg-type]
            if not is_failing:
                return real(*arguments)
            self.times -= 1
            if name == "fdatasync":
                self.held.append(os.dup(arguments[0]))  # type: ignore[arg-type]
            if name == "pwrite":  # a failing write leaves a part behind
                fd, data, offset = arguments
                written = real(fd, data[: len(data) // 2], offset)  # type: ignore[index]
                if self.failing[name] == 0:
                    return written
            raise OSError(self.failing[name], os.strerror(self.failing[name]))

        return call


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    for fd in disk.held:
        os.close(fd)


# ---- format -------------------------------------------------------------------------------------------------------


def test_worked_example_of_the_format_is_what_the_writer_writes(directory: Path) -> None:
    lines = re.findall(r"^ {6}[0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+)(?:   |$)", format.__doc__ or "", re.MULTILINE)
    expected = bytes.fromhex("".join(lines))
    journal = open_journal(directory, epoch=3)
    journal.append(1, 1, [Change(0, 7, 1, b'{"id":7}', b"pw")], b"ok", True)
    assert len(expected) == 0xA4
    assert segment_path(directory, 1).read_bytes()[: len(expected)] == expected


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [Change(0, 0, 1, b"", b"")],
        [Change(2, 2**63 - 1, 2**63 - 1, None, b"p" * 65_535)],
        [Change(kind, kind, 5 + kind, b"b" * kind, b"p" * (2 - kind)) for kind in range(3)],
    ],
)
def test_group_is_read_as_it_was_written(directory: Path, changes: list[Change]) -> None:
    journal = Journal.open(directory, INSTANCE, 9, 1 << 20, 1 << 30)
    position = journal.position
    journal.append(5, len(changes), changes, b"\0answers", True)
    assert list(read_groups(directory, INSTANCE)) == [Group(position, 9, 1, 5, len(changes), changes, b"\0answers")]


# ---- opening ------------------------------------------------------------------------------------------------------


def test_reopened_journal_continues(directory: Path) -> None:
    given = []
    for epoch in range(1, 6):
        journal = open_journal(directory, epoch)
        given += [add(journal, count, sync=count % 2 == 0) for count in (1, 2, 0, 30)]
        assert journal.last_seq == given[-1].first_seq + 29
        kill(journal)
    assert contents(directory) == given


def test_everything_found_at_open_is_durable_afterwards(directory: Path, disk: Disk) -> None:
    journal = open_journal(directory)
    add(journal, 3)
    add(journal, 4, sync=False)
    assert (journal.synced_seq, journal.last_seq) == (3, 7)
    kill(journal)
    disk.synced.clear()
    journal = open_journal(directory, 2)
    assert disk.synced == [(segment_path(directory, 1).stat().st_ino, True)]
    assert (journal.synced_seq, journal.last_seq) == (7, 7)


def test_sync_that_fails_at_open_moves_what_was_not_durable(directory: Path, disk: Disk) -> None:
    journal = open_journal(directory)
    given = [add(journal, 3), add(journal, 4, sync=False), add(journal, 2), add(journal, 2, sync=False)]
    kill(journal)
    disk.fail(errno.EIO, "fdatasync")
    journal = open_journal(directory, 2)
    assert journal.synced_seq == 11
    scan = Scan(directory, INSTANCE)
    assert len(list(scan)) == 4
    header = scan.segments[1].header  # the last frame knows of the first two syncs only
    assert (header.segment, header.epoch, header.first_group, header.first_seq) == (2, 2, 4, 10)
    assert contents(directory) == given


def test_start_position_gives_the_groups_from_there_on(directory: Path) -> None:
    journal = open_journal(directory)
    positions, given = [], []
    for _ in range(60):
        positions.append(journal.position)
        given.append(add(journal, 3))
    assert journal.position >> 40 > 3
    for index, position in enumerate(positions):
        assert contents(directory, position) == given[index:]
    assert contents(directory, journal.position) == []
    end, last_seq = journal.position, journal.last_seq
    kill(journal)
    segment_path(directory, 1).write_bytes(segment_path(directory, 1).read_bytes()[: format.HEADER_BYTES])
    journal = open_journal(directory, 2, start=end)  # does not read the first segment, which is damaged now
    assert (journal.position, journal.last_seq) == (end, last_seq)
    add(journal)
    kill(journal)
    with pytest.raises(DataError, match=r"00000001\.journal at offset 64"):
        open_journal(directory, 3)


def test_files_are_private_and_leftovers_are_removed(directory: Path) -> None:
    kill(open_journal(directory))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert segment_path(directory, 1).stat().st_mode & 0o777 == 0o600
    (directory / format.UNFINISHED_NAME).write_bytes(b"half a segment")
    (directory / format.SPARE_NAME.format(9)).write_bytes(b"of another size")
    journal = open_journal(directory, 2)
    assert [path.name for path in directory.iterdir()] == ["00000001.journal"]
    assert journal.bytes == SEGMENT_BYTES


def test_file_in_the_place_of_the_journal_is_refused(directory: Path) -> None:
    directory.write_bytes(b"")
    with pytest.raises(StartError, match="not a directory"):
        open_journal(directory)


def test_second_writer_is_kept_out(directory: Path) -> None:
    journal = open_journal(directory)
    with pytest.raises(StartError, match="in use"):
        open_journal(directory, 2)
    kill(journal)
    kill(open_journal(directory, 2))


def test_manager_whose_epoch_is_over_is_kept_out(directory: Path) -> None:
    journal = open_journal(directory, 5)
    add(journal)
    kill(journal)
    with pytest.raises(DataError, match="epoch 5"):
        open_journal(directory, 4)


def test_foreign_instance_is_refused(directory: Path) -> None:
    kill(open_journal(directory))
    with pytest.raises(DataError, match=r"00000001\.journal at offset 0: belongs to instance"):
        Journal.open(directory, bytes(16), 2, SEGMENT_BYTES, 1 << 20)
    with pytest.raises(DataError):
        list(read_groups(directory, bytes(16)))


def test_newer_version_is_refused(directory: Path) -> None:
    kill(open_journal(directory))
    flip(segment_path(directory, 1), 8, bit=1)
    with pytest.raises(DataError, match="journal format 3, this program knows 1"):
        open_journal(directory, 2)


# ---- torn tails and damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("full_segments", [0, 1])
def test_log_cut_at_any_byte_is_its_valid_prefix_and_continues(directory: Path, full_segments: int) -> None:
    journal = open_journal(directory)
    given = [add(journal, 30, 128) for _ in range(full_segments)]  # leaves no room for another
    given += [add(journal, count, sync=count == 2) for count in (2, 1, 3)]
    kill(journal)
    last = 1 + full_segments
    ends = [end for _, end in frames(directory, last)]
    assert len(ends) == 3
    for length in range(ends[-1] + 9):
        copy = directory.with_name("copy")
        shutil.copytree(directory, copy)
        os.truncate(segment_path(copy, last), length)
        expected = given[: full_segments + sum(end <= length for end in ends)]
        assert contents(copy) == expected
        journal = open_journal(copy, 2)
        expected = [*expected, add(journal)]
        kill(journal)
        assert contents(copy) == expected
        shutil.rmtree(copy)


def test_flipped_bit_anywhere_in_the_last_frame_cuts_that_frame(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal(directory)
    given = [add(journal, count) for count in (2, 3)]
    kill(journal)
    path = segment_path(directory, 1)
    intact = path.read_bytes()
    start, end = frames(directory)[-1]
    for offset in range(start, end):
        path.write_bytes(intact)
        flip(path, offset, bit=offset % 8)
        caplog.clear()
        journal = open_journal(directory, 2)
        assert f"offset={start}" in caplog.text
        kill(journal)
        assert contents(directory) == given[:-1]
        assert not any(path.read_bytes()[start:])


def test_flipped_bit_anywhere_before_a_later_synced_frame_is_damage(directory: Path) -> None:
    journal = open_journal(directory)
    given = [add(journal, count) for count in (2, 3, 1)]
    kill(journal)
    path = segment_path(directory, 1)
    intact = path.read_bytes()
    for index, (start, end) in enumerate(frames(directory)[:-1]):
        for offset in range(start, end):
            path.write_bytes(intact)
            flip(path, offset, bit=offset % 8)
            before = path.read_bytes()
            with pytest.raises(DataError) as caught:
                open_journal(directory, 2)
            assert (caught.value.path, caught.value.offset) == (path, start)
            assert path.read_bytes() == before
        scan = Scan(directory, None)
        assert [group._replace(position=0, number=0) for group in scan] == given[:index]
        assert (scan.end.state, scan.end.path, scan.end.offset) == (State.DAMAGED, path, start)


def test_flipped_bit_anywhere_in_a_header_is_damage(directory: Path) -> None:
    journal = open_journal(directory)
    for _ in range(2):
        add(journal, 30, 80)
    kill(journal)
    for number in (1, 2):
        path = segment_path(directory, number)
        intact = path.read_bytes()
        for offset in range(format.HEADER_BYTES):
            flip(path, offset, bit=offset % 8)
            with pytest.raises(DataError) as caught:
                open_journal(directory, 2)
            assert (caught.value.path, caught.value.offset) == (path, 0)
            path.write_bytes(intact)


def test_damage_at_the_end_of_an_earlier_segment_and_a_missing_segment_are_found(directory: Path) -> None:
    journal = open_journal(directory)
    for _ in range(3):
        add(journal, 30, 80)
    kill(journal)
    path = segment_path(directory, 2)
    start, end = frames(directory, 2)[-1]
    flip(path, end - 1)
    with pytest.raises(DataError) as caught:
        open_journal(directory, 2)
    assert (caught.value.path, caught.value.offset) == (path, start)
    path.unlink()
    with pytest.raises(DataError, match=r"00000003\.journal at offset 0: segment 2 before it is missing"):
        open_journal(directory, 2)


def test_groups_behind_an_unsynced_group_that_was_lost_never_come_back(directory: Path) -> None:
    journal = open_journal(directory)
    given = [add(journal)] + [add(journal, 2, sync=False) for _ in range(3)]
    kill(journal)
    path = segment_path(directory, 1)
    start, end = frames(directory)[2]
    with path.open("r+b") as file:  # a power cut: this part did not reach the disk, what follows it did
        file.seek(start)
        file.write(bytes(end - start))
    scan = Scan(directory, INSTANCE)
    assert [group._replace(position=0, number=0) for group in scan] == given[:2]
    assert (scan.end.state, scan.end.offset) == (State.TORN, start)
    stale = path.read_bytes()[end:]
    journal = open_journal(directory, 2)
    expected = [*given[:2], add(journal, 2)]  # as long as the lost one: the stale frame would follow it
    assert frames(directory)[-1] == (start, end)
    kill(journal)
    assert contents(directory) == expected
    with path.open("r+b") as file:  # and were it not zeroed, its epoch would keep it out
        file.seek(end)
        file.write(stale)
    assert contents(directory) == expected


def test_scan_tells_a_clean_end_from_a_torn_one(directory: Path) -> None:
    journal = open_journal(directory)
    add(journal, 2)
    scan = Scan(directory, None)
    assert len(list(scan)) == 1
    assert (scan.end.state, scan.end.number, scan.end.last_seq, scan.end.epoch) == (State.CLEAN, 2, 2, 1)
    flip(segment_path(directory, 1), scan.end.offset + 3)
    assert state(directory) is State.TORN


# ---- recycling and limits -----------------------------------------------------------------------------------------


def test_recycled_segments_never_show_what_they_held_before(directory: Path) -> None:
    journal = open_journal(directory)
    inodes: set[int] = set()
    for _ in range(100):
        newest = add(journal, 10)
        inodes.add(segment_path(directory, journal.position >> 40).stat().st_ino)
        journal.retire(journal.last_seq)
        kill(journal)
        assert contents(directory)[-1] == newest
        assert state(directory) is State.CLEAN
        journal = open_journal(directory)
        assert journal.bytes == sum(path.stat().st_size for path in directory.iterdir()) <= 3 * SEGMENT_BYTES
    assert journal.position >> 40 > 10
    assert len(inodes) <= 3


def test_only_segments_whose_groups_are_all_persisted_are_retired(directory: Path) -> None:
    journal = open_journal(directory)
    given = [add(journal, 30, 80) for _ in range(5)]
    for persisted in range(journal.last_seq + 1):
        journal.retire(persisted)
        kept = contents(directory)
        assert kept == given[-len(kept) :]
        gone = given[: -len(kept)]
        assert len(gone) == min(persisted // 30, 4)
    assert sorted(path.name for path in directory.iterdir()) == [
        "00000005.journal",
        "spare-00000001.journal",
        "spare-00000002.journal",
    ]


def test_writes_are_refused_at_the_limit_and_come_back_after_retire(directory: Path) -> None:
    journal = open_journal(directory, max_bytes=3 * SEGMENT_BYTES)
    given = [add(journal, 30, 80) for _ in range(3)]
    for _ in range(2):
        with pytest.raises(JournalRefused) as caught:
            add(journal, 30, 80)
        assert caught.value.is_full
        given.append(add(journal))  # what still fits goes on
    assert journal.bytes == 3 * SEGMENT_BYTES
    journal.retire(30)
    given.append(add(journal, 30, 80))
    assert contents(directory) == given[1:]
    assert journal.bytes == 3 * SEGMENT_BYTES


def test_group_larger_than_a_segment_is_refused(directory: Path) -> None:
    journal = open_journal(directory)
    body = b"x" * (journal.group_bytes_max - format.CHANGE_HEAD_BYTES)
    with pytest.raises(JournalRefused) as caught:
        journal.append(1, 1, [Change(0, 1, 1, body + b"x", b"")], b"", True)
    assert not caught.value.is_full
    for seq in (1, 2):
        journal.append(seq, 1, [Change(0, 1, seq, body, b"")], b"", True)
    assert [group.changes[0].body for group in contents(directory)] == [body, body]


def test_seq_that_goes_back_is_a_programming_error(directory: Path) -> None:
    journal = open_journal(directory)
    add(journal, 3)
    with pytest.raises(ValueError, match="seq 3 after 3"):
        journal.append(3, 1, [], b"", True)


# ---- failing disks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("is_erase_failing", [False, True])
def test_group_whose_write_failed_never_appears(directory: Path, disk: Disk, code: int, is_erase_failing: bool) -> None:
    journal = open_journal(directory)
    given = [add(journal, 2), add(journal, 2, sync=False)]
    disk.fail(code, "pwrite", times=1 + is_erase_failing)
    with pytest.raises(JournalRefused) as caught:
        add(journal, 5)
    assert caught.value.is_full == (code != errno.EIO)
    assert contents(directory) == given
    assert state(directory) is State.CLEAN
    given.append(add(journal, 3))
    kill(journal)
    assert contents(directory) == given


@pytest.mark.parametrize("level_before", ["synced", "memory", "none"])
def test_group_whose_sync_failed_never_appears_even_if_it_reached_the_disk(
    directory: Path, disk: Disk, level_before: str
) -> None:
    journal = open_journal(directory)
    given = [] if level_before == "none" else [add(journal, 2)]
    if level_before == "memory":
        given += [add(journal, 2, sync=False), add(journal, 1, sync=False)]
    old = segment_path(directory, 1)
    offset = journal.position & (1 << 40) - 1
    inode = old.stat().st_ino
    seen = []
    disk.fail(errno.EIO, "fdatasync")
    real, os.pwrite = os.pwrite, lambda fd, data, at: seen.append(data) or real(fd, data, at)  # type: ignore[func-returns-value]
    try:
        with pytest.raises(JournalRefused) as caught:
            add(journal, 5)
    finally:
        os.pwrite = real
    assert not caught.value.is_full
    if old.stat().st_ino == inode:
        with old.open("r+b") as file:
            file.seek(offset)
            file.write(seen[0])
    assert contents(directory) == given
    assert journal.synced_seq == journal.last_seq
    given.append(add(journal, 4))
    kill(journal)
    assert contents(directory) == given
    assert [succeeded for synced_inode, succeeded in disk.synced if synced_inode == inode][-1] is False


def test_disk_that_fails_every_sync_does_not_pile_up_segments(directory: Path, disk: Disk) -> None:
    journal = open_journal(directory)
    given = [add(journal)]
    disk.fail(errno.EIO, "fdatasync", times=100)
    for _ in range(100):
        with pytest.raises(JournalRefused):
            add(journal)
    assert journal.bytes == sum(path.stat().st_size for path in directory.iterdir()) == 2 * SEGMENT_BYTES
    given.append(add(journal))
    assert contents(directory) == given
    failed = [inode for inode, succeeded in disk.synced if not succeeded]
    assert len(failed) == len(set(failed)) == 100
    assert disk.synced[-1] == (segment_path(directory, 2).stat().st_ino, True)


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync", "rename"])
@pytest.mark.parametrize("is_killed", [False, True])
def test_memory_level_groups_survive_a_failed_sync_without_a_new_segment(
    directory: Path, disk: Disk, call: str, is_killed: bool
) -> None:
    journal = open_journal(directory)
    given = [add(journal, 2), add(journal, 2, sync=False), add(journal, 3, sync=False)]
    disk.fail(errno.ENOSPC, "fdatasync", call, times=1000)
    for attempt in range(3):
        with pytest.raises(JournalRefused) as caught:
            journal.sync() if attempt == 1 else add(journal, 7)
        assert caught.value.is_full
        assert (journal.synced_seq, journal.last_seq) == (2, 7)
        assert contents(directory) == given
    disk.heal()
    if is_killed:
        kill(journal)
        journal = open_journal(directory, 2)
    else:
        journal.sync()
    assert journal.synced_seq == 7
    given.append(add(journal, 2))
    kill(journal)
    assert contents(directory) == given
    assert journal.bytes == sum(path.stat().st_size for path in directory.iterdir())


def test_failed_sync_moves_memory_level_groups_and_succeeds(directory: Path, disk: Disk) -> None:
    journal = open_journal(directory)
    given = [add(journal, sync=False) for _ in range(5)]
    disk.fail(errno.EIO, "fdatasync")
    journal.sync()
    assert journal.synced_seq == 5
    assert contents(directory) == given


def test_journal_syncs_by_itself_before_too_much_is_unsynced(
    directory: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "UNSYNCED_BYTES_MAX", 1000)
    journal = open_journal(directory)
    for _ in range(20):
        add(journal, sync=False)
        assert sum(end - start for start, end in frames(directory)[journal.synced_seq :]) <= 1000
    assert 1 < len(disk.synced) < 7


def test_memory_level_groups_of_a_full_segment_stay_there(directory: Path) -> None:
    journal = open_journal(directory)
    given = [add(journal, 30, 128, sync=False) for _ in range(4)]
    assert contents(directory) == given
    assert [path.stat().st_size for path in directory.iterdir()] == [SEGMENT_BYTES] * 4
    assert journal.synced_seq == 90


def test_journal_opens_on_a_full_disk_and_writes_when_there_is_space(directory: Path, disk: Disk) -> None:
    disk.fail(errno.ENOSPC, "posix_fallocate", times=3)
    journal = open_journal(directory)
    for _ in range(2):
        with pytest.raises(JournalRefused) as caught:
            add(journal)
        assert caught.value.is_full
    given = [add(journal)]
    assert contents(directory) == given


# ---- model --------------------------------------------------------------------------------------------------------


def cut_power(directory: Path, synced_groups: int, rng: random.Random) -> None:
    """Lose random parts of what was not synced; all of it stands in the newest segment."""
    groups = list(read_groups(directory, INSTANCE))
    if len(groups) == synced_groups:
        return
    start = groups[synced_groups].position
    path = segment_path(directory, start >> 40)
    with path.open("r+b") as file:
        for _ in range(rng.randint(1, 3)):
            file.seek((start & (1 << 40) - 1) + rng.choice([0, rng.randrange(400)]))
            length = rng.randrange(200)
            file.write(bytes(max(0, min(length, path.stat().st_size - file.tell()))))


@pytest.mark.parametrize("seed", range(30))
def test_random_operations_crashes_and_faults_agree_with_a_list(directory: Path, disk: Disk, seed: int) -> None:
    rng = random.Random(seed)
    model: list[Group] = []
    epoch, synced, persisted = 1, 0, 0
    journal = open_journal(directory, max_bytes=6 * SEGMENT_BYTES)
    for _ in range(150):
        action = rng.choices(["append", "sync", "kill", "power", "retire", "fault"], [60, 8, 6, 4, 10, 12])[0]
        if action == "fault":
            names = rng.choice([["pwrite"], ["fdatasync"], ["fdatasync", "fsync"], ["posix_fallocate"], ["rename"]])
            disk.fail(rng.choice([0, errno.ENOSPC, errno.EIO]) if names == ["pwrite"] else 5, *names, times=3)
        try:
            if action == "append":
                model.append(add(journal, rng.randrange(12), rng.randrange(60), rng.random() < 0.5))
            elif action == "sync":
                journal.sync()
        except JournalRefused:
            pass
        if action == "retire":
            persisted = rng.randint(persisted, max(persisted, journal.synced_seq))
            journal.retire(persisted)
        synced = max([0, *(i + 1 for i, group in enumerate(model) if last_seq(group) <= journal.synced_seq)])
        if action in ("kill", "power"):
            disk.heal()
            kill(journal)
            if action == "power":
                kept = len(contents(directory))
                assert kept >= len(model) - synced
                cut_power(directory, kept - (len(model) - synced), rng)
                survived = len(contents(directory)) - (kept - (len(model) - synced))
                assert survived >= 0
                del model[synced + survived :]
            epoch += 1
            journal = open_journal(directory, epoch, 6 * SEGMENT_BYTES)
            assert journal.synced_seq == journal.last_seq
        kept_groups = contents(directory)
        assert kept_groups == model[len(model) - len(kept_groups) :]
        assert all(last_seq(group) <= persisted for group in model[: len(model) - len(kept_groups)])
        assert journal.bytes <= 6 * SEGMENT_BYTES
    kill(journal)


def last_seq(group: Group) -> int:
    return group.first_seq + group.count - 1
