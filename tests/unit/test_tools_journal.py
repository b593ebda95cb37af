"""`python -m tools journal`: every class of damage is named where it is, nothing secret is shown, and what is salvaged
opens, in a server too.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.batch import encode_entry
from server.commands import KeyEntry, Kind
from server.journal import format
from server.journal.format import Change, Group, SegmentHeader
from server.journal.reader import Scan, State, read_groups
from server.journal.writer import Journal
from tests.support import ServerProcess
from tools.journal import main as tool
from tools.journal.survey import Fault, Found, Survey

INSTANCE = bytes(range(16))
SEGMENT_BYTES = 4096
GROUPS = 30
EPOCH = 3
SECRET = "scrypt$secret"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A journal of 30 groups, each of one change and synced, in three segments."""
    directory = tmp_path / "journal"
    write(directory, GROUPS)
    assert len(segments(directory)) == 3
    return directory


def write(directory: Path, count: int, is_synced: bool = True) -> None:
    journal = Journal.open(directory, INSTANCE, EPOCH, SEGMENT_BYTES, 1 << 20)
    for _ in range(count):
        seq = journal.last_seq + 1
        body = b'{"id":%d,"name":"%b"}' % (seq, b"x" * 200)
        answers = msgspec.msgpack.encode([(0, seq, seq, None)])
        journal.append(seq, 1, [Change(Kind.USER, seq, seq, body, SECRET.encode())], answers, is_synced)
    journal.close()


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob(format.SEGMENT_PATTERN))


def frames(directory: Path, number: int) -> list[format.Frame]:
    """The frames of a segment."""
    return [frame for segment, _, frame in Scan(directory, None).walk() if segment.number == number]


def flip(path: Path, offset: int) -> None:
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 1]))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def survey(directory: Path) -> tuple[Survey, list[Found]]:
    survey = Survey(directory, INSTANCE)
    return survey, list(survey)


def scan_state(directory: Path) -> State:
    scan = Scan(directory, INSTANCE)
    list(scan)
    return scan.end.state


def check(directory: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    code = tool.main(["check", str(directory), *more])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def numbers(found: list[Found], is_sound: bool) -> list[int]:
    return [one.group.number for one in found if one.is_sound is is_sound]


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}


# ---- classes of damage -----------------------------------------------------------------------------------------


def test_sound_journal_is_clean(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, groups = survey(directory)
    assert numbers(groups, True) == list(range(1, GROUPS + 1)) and found.findings == []
    code, text = check(directory, capsys)
    assert code == 0 and text.count("clean:") == 3 and "state: clean" in text
    assert f"{GROUPS} sound groups up to seq {GROUPS}" in text and INSTANCE.hex() in text


def test_data_directory_stands_for_its_journal(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(directory.parent, capsys) == check(directory, capsys)


def test_torn_tail_is_not_damage(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = frames(directory, 3)[-1]
    flip(segments(directory)[-1], last.end - 1)
    code, text = check(directory, capsys)
    assert code == 0 and f"torn tail in {segments(directory)[-1]} at offset {last.offset}" in text
    assert "state: torn" in text


def test_unsynced_group_that_is_lost_before_a_whole_one_is_a_torn_tail(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    write(directory, 5, is_synced=False)
    flip(segments(directory)[0], frames(directory, 1)[2].offset + 60)
    found, groups = survey(directory)
    assert found.state is scan_state(directory) is State.TORN
    assert (numbers(groups, True), numbers(groups, False)) == ([1, 2], [4, 5])


def damage_frame(directory: Path) -> tuple[Fault, int, int]:
    frame = frames(directory, 2)[3]
    flip(segments(directory)[1], frame.offset + 60)
    return Fault.FRAME, 1, frame.offset


def zero_group(directory: Path) -> tuple[Fault, int, int]:
    frame = frames(directory, 2)[3]
    overwrite(segments(directory)[1], frame.offset, bytes(frame.end - frame.offset))
    return Fault.GROUP_GAP, 1, frame.offset


def zero_end_of_segment(directory: Path) -> tuple[Fault, int, int]:
    frame = frames(directory, 1)[-1]
    overwrite(segments(directory)[0], frame.offset, bytes(frame.end - frame.offset))
    return Fault.GROUP_GAP, 0, frame.offset


def damage_header(directory: Path) -> tuple[Fault, int, int]:
    flip(segments(directory)[1], 40)
    return Fault.HEADER, 1, 0


def zero_header(directory: Path) -> tuple[Fault, int, int]:
    overwrite(segments(directory)[1], 0, bytes(64))
    return Fault.HEADER, 1, 0


def newer_segment(directory: Path) -> tuple[Fault, int, int]:
    overwrite(segments(directory)[1], 8, b"\x02")
    return Fault.NEWER, 1, 0


def foreign_segment(directory: Path) -> tuple[Fault, int, int]:
    header = SegmentHeader(bytes(16), 2, EPOCH, frames(directory, 2)[0].number, frames(directory, 2)[0].first_seq)
    overwrite(segments(directory)[1], 0, format.encode_header(header)[0])
    return Fault.FOREIGN, 1, 0


def missing_segment(directory: Path) -> tuple[Fault, int, int]:
    segments(directory)[1].unlink()
    return Fault.SEGMENT_GAP, 1, 0


DAMAGES = [
    damage_frame,
    zero_group,
    zero_end_of_segment,
    damage_header,
    zero_header,
    newer_segment,
    foreign_segment,
    missing_segment,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_its_class_file_and_offset(
    directory: Path, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = survey(directory)[1]
    fault, index, offset = damage(directory)
    path = segments(directory)[index]
    found, groups = survey(directory)
    assert found.damage is not None
    assert (found.damage.fault, found.damage.path, found.damage.offset) == (fault, path, offset)
    assert found.state is scan_state(directory) is State.DAMAGED
    sound, later = numbers(groups, True), numbers(groups, False)
    assert sound == list(range(1, len(sound) + 1)) and set(sound) < {one.group.number for one in whole}
    assert later and later == sorted(later) and later[-1] == GROUPS and later[0] > sound[-1]
    code, text = check(directory, capsys)
    assert code == 1 and f"first fault: {fault.value} in {path} at offset {offset}: " in text
    assert f"{len(later)} whole groups stand behind that" in text


def test_groups_below_a_damaged_header_are_found_by_the_seed_in_it(directory: Path) -> None:
    in_second = [frame.number for frame in frames(directory, 2)]
    damage_header(directory)
    groups = survey(directory)[1]
    assert numbers(groups, True) == list(range(1, in_second[0]))
    assert numbers(groups, False) == list(range(in_second[0], GROUPS + 1))


def test_refused_group_that_reached_the_disk_is_void(directory: Path) -> None:
    """A segment ends in front of the first group of the next one, whatever else its file may hold."""
    last = frames(directory, 1)[-1]
    path = segments(directory)[0]
    _, seed = format.decode_header(path.read_bytes())
    refused = format.encode_group(EPOCH, last.number + 1, last.last_seq + 1, 1, [], b"", last.number)
    overwrite(path, last.end, format.seal(refused, seed))
    found, groups = survey(directory)
    assert found.findings == [] and len(groups) == GROUPS


def test_nothing_to_read_is_unusable(tmp_path: Path, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path / "nowhere", capsys)[0] == 2
    (tmp_path / "empty").mkdir()
    assert check(tmp_path / "empty", capsys)[0] == 2
    for path in segments(directory):
        overwrite(path, 8, b"\x02")
    code, text = check(directory, capsys)
    assert code == 2 and "newer segment 3" in text


def test_journal_of_another_instance_than_its_directory_is_foreign(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instance = {"version": 1, "instance": "ff" * 16, "contract": "default", "run": 1}
    (directory.parent / "instance.json").write_text(json.dumps(instance))
    code, text = check(directory, capsys)
    assert code == 2 and "foreign segment in" in text


@pytest.mark.parametrize("seed", range(60))
def test_survey_and_server_agree_about_random_damage(directory: Path, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(rng.choice([1, 1, 1, 2])):
        path = rng.choice(segments(directory))
        size = path.stat().st_size
        match rng.randrange(4):
            case 0:
                flip(path, rng.randrange(size))
            case 1:
                overwrite(path, (start := rng.randrange(size)), bytes(min(rng.randrange(1, 700), size - start)))
            case 2:
                overwrite(path, (start := rng.randrange(size)), rng.randbytes(min(200, size - start)))
            case 3:
                with path.open("r+b") as file:
                    file.truncate(rng.randrange(size))
    found, groups = survey(directory)
    scan = Scan(directory, INSTANCE)
    sound = list(scan)
    assert found.state is scan.end.state, (scan.end, found.findings)
    if not any(finding.offset == 0 for finding in found.findings):  # a server reads all headers first
        assert [one.group for one in groups if one.is_sound] == sound
        first = found.damage or (found.findings[0] if found.findings else None)
        if first is not None:
            assert (first.path, first.offset) == (scan.end.path, scan.end.offset)


def test_reading_changes_nothing(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage_frame(directory)
    before = snapshot(directory)
    check(directory, capsys)
    tool.main(["dump", str(directory)])
    assert snapshot(directory) == before


# ---- dump ------------------------------------------------------------------------------------------------------


def test_dump_shows_groups_without_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal.open(tmp_path / "journal", INSTANCE, EPOCH, SEGMENT_BYTES, 1 << 20)
    key = encode_entry(KeyEntry(b"k" * 16, b"d" * 16, 4, b'{"password":"hidden"}', 99))
    changes = [
        Change(Kind.USER, 7, 1, b'{"id":7,"username":"ann"}', SECRET.encode()),
        Change(Kind.PRODUCT, 8, 2, None, b""),
        Change(Kind.USER, 9, 3, b'{"id":9,"password":"ABCDEF"}', b"ABCDEF"),
        Change(Kind.KEY, 10, 4, key, b""),
        Change(Kind.ORDER, 11, 5, b"\xffnot json", b""),
    ]
    journal.append(1, 5, changes, msgspec.msgpack.encode([(0, 1, 1, None), (0, 2, 2, None)]), True)
    journal.close()
    assert tool.main(["dump", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert SECRET not in output and "ABCDEF" not in output and "hidden" not in output
    [group] = [json.loads(line) for line in output.splitlines()]
    shown = group.pop("changes")
    assert group == {
        "group": 1, "epoch": EPOCH, "segment": 1, "offset": 64, "is_sound": True, "first_seq": 1, "count": 5,
        "answers": 2,
    }  # fmt: skip
    assert shown[0] == {
        "kind": "user", "id": 7, "seq": 1, "deleted": False, "body": {"id": 7, "username": "ann"},
        "private_bytes": len(SECRET),
    }  # fmt: skip
    assert [(change["kind"], change["deleted"], change["body"]) for change in shown[1:]] == [
        ("product", True, None),
        ("user", False, {"id": 9, "password": {"bytes": 6}}),
        ("key", False, {"seq": 4, "at_s": 99, "answer_bytes": 21}),
        ("order", False, {"unreadable_bytes": 9}),
    ]


def test_dump_of_a_damaged_journal_marks_what_stands_behind(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage_frame(directory)
    assert tool.main(["dump", str(directory)]) == 1
    captured = capsys.readouterr()
    shown = [json.loads(line) for line in captured.out.splitlines()]
    assert len(shown) == GROUPS - 1 and {one["is_sound"] for one in shown} == {True, False}
    assert "damaged frame" in captured.err


# ---- salvage ---------------------------------------------------------------------------------------------------


def without_place(group: Group) -> Group:
    return group._replace(position=0, number=0, epoch=0)


@pytest.mark.parametrize("damage", DAMAGES)
def test_salvage_keeps_every_group_before_the_damage_and_lists_the_others(
    directory: Path, tmp_path: Path, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(directory)
    groups = survey(directory)[1]
    before = snapshot(directory)
    target = tmp_path / "new"
    code, text = check(directory, capsys, "--salvage", str(target))
    assert code == 1 and snapshot(directory) == before
    journal = Journal.open(target, INSTANCE, EPOCH + 1, SEGMENT_BYTES, 1 << 20)
    sound = [one.group for one in groups if one.is_sound]
    assert journal.last_seq == journal.synced_seq == sound[-1].first_seq
    journal.close()
    assert list(map(without_place, read_groups(target, INSTANCE))) == list(map(without_place, sound))
    later = [json.loads(line) for line in (tmp_path / "new.after-damage.jsonl").read_text().splitlines()]
    assert [one["group"] for one in later] == numbers(groups, False)
    assert f"NOT salvaged: {len(later)} whole groups behind the damage" in text and "gap: " in text
    assert SECRET not in (tmp_path / "new.after-damage.jsonl").read_text()


def test_salvage_of_a_sound_journal_is_a_copy(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = check(directory, capsys, "--salvage", str(tmp_path / "new"))
    assert code == 0 and "NOT" not in text and not (tmp_path / "new.after-damage.jsonl").exists()
    groups, copies = read_groups(directory, INSTANCE), read_groups(tmp_path / "new", INSTANCE)
    assert list(map(without_place, copies)) == list(map(without_place, groups))


def test_salvage_overwrites_nothing(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "other.after-damage.jsonl").touch()
    for target in (tmp_path / "full", tmp_path / "other", directory, directory / "new"):
        assert check(directory, capsys, "--salvage", str(target))[0] == 2
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]
    assert not (directory / "new").exists() and not (tmp_path / "other").exists()


def test_server_starts_on_a_salvaged_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, users = tmp_path / "data", 20
    with ServerProcess(data, "--persist-period-ms", "60000") as server:
        for id in range(1, users + 1):
            body = {"command": "create", "id": id, "username": f"u{id}", "email": "e"}
            assert server.request("POST", "/user", body).status == 200
        code, text = check(data, capsys, "--salvage", str(tmp_path / "beside"))
        assert code == 2 and "a server has this data directory open" in text and not (tmp_path / "beside").exists()
        assert check(data, capsys)[0] == 0
        server.kill_all()
        frame = frames(data / "journal", 1)[14]
        flip(segments(data / "journal")[0], frame.offset + 60)
        assert check(data, capsys, "--salvage", str(data / "salvaged"))[0] == 1
        (data / "journal").rename(tmp_path / "damaged")
        (data / "salvaged").rename(data / "journal")
        server.start()
        statuses = [server.request("GET", f"/user/{id}").status for id in range(1, users + 1)]
        assert statuses == [200] * 14 + [404] * 6
        body = {"command": "create", "id": 15, "username": "again", "email": "e"}
        assert server.request("POST", "/user", body).status == 200
