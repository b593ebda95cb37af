"""The data directory: one server at a time, one identity, and files that are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.data_directory import VERSION, DataDirectory, Instance, Run, read_run, replace_file
from server.errors import ConfigError, DataError, StartError

RUN = Run("127.0.0.1", 8000, 8001, "2026-01-01T00:00:00+00:00", "millrace-test-none", {"supervisor": 1})
INSTANCE = {"version": VERSION, "instance": "0123456789abcdef" * 2, "contract": "default", "run": 3}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "data"


@pytest.fixture
def directory(path: Path) -> Iterator[DataDirectory]:
    directory = DataDirectory(path)
    yield directory
    directory.close()


@pytest.fixture
def segment() -> Iterator[Path]:
    path = Path("/dev/shm", f"millrace-test-{os.getpid()}")
    path.write_bytes(b"left over")
    yield path
    path.unlink(missing_ok=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_instance(path: Path, **changed: Any) -> None:
    (path / "instance.json").write_text(json.dumps({**INSTANCE, **changed}))


# ---- lock ------------------------------------------------------------------------------------------------------


def test_a_second_server_is_refused_and_the_first_keeps_its_files(directory: DataDirectory, path: Path) -> None:
    directory.write_run(RUN)
    with pytest.raises(StartError, match="in use by another server"):
        DataDirectory(path)
    assert read_run(path) == RUN


def test_a_closed_directory_can_be_opened_again(path: Path) -> None:
    for _ in range(3):
        DataDirectory(path).close()


def test_the_lock_stays_while_a_child_of_the_last_run_holds_it(path: Path) -> None:
    directory = DataDirectory(path)
    inherited = os.dup(directory._lock)
    directory.close()
    with pytest.raises(StartError, match="in use"):
        DataDirectory(path)
    os.close(inherited)
    DataDirectory(path).close()


@pytest.mark.usefixtures("directory")
def test_a_refused_open_leaves_no_descriptor(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(StartError):
            DataDirectory(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_place_that_can_not_be_a_directory_is_a_start_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StartError, match="data directory"):
            DataDirectory(path)


def test_directory_and_files_are_for_their_owner_only(path: Path) -> None:
    before = os.umask(0)
    try:
        directory = DataDirectory(path)
        directory.next_run("default")
        directory.write_run(RUN)
    finally:
        os.umask(before)
    assert mode(path) == 0o700
    assert {file.name: mode(file) for file in path.iterdir()} == {
        "lock": 0o600, "instance.json": 0o600, "run.json": 0o600
    }  # fmt: skip
    directory.close()


# ---- identity --------------------------------------------------------------------------------------------------


def test_the_first_start_makes_an_identity_and_later_starts_count(path: Path) -> None:
    instances = []
    for _ in range(3):
        directory = DataDirectory(path)
        instances.append(directory.next_run("default"))
        directory.close()
    assert [instance.run for instance in instances] == [1, 2, 3]
    assert len({instance.instance for instance in instances}) == 1
    assert len(instances[0].id) == 16
    assert json.loads((path / "instance.json").read_text())["run"] == 3


def test_two_directories_have_two_identities(tmp_path: Path) -> None:
    ids = set()
    for name in ("one", "two"):
        directory = DataDirectory(tmp_path / name)
        ids.add(directory.next_run("default").id)
        directory.close()
    assert len(ids) == 2


@pytest.mark.parametrize(("held", "asked"), [("default", "classic"), ("classic", "default")])
def test_the_other_contract_is_refused_and_the_start_is_not_counted(
    directory: DataDirectory, path: Path, held: Any, asked: Any
) -> None:
    write_instance(path, contract=held)
    with pytest.raises(ConfigError, match=f"holds the {held} contract"):
        directory.next_run(asked)
    assert directory.next_run(held).run == INSTANCE["run"] + 1  # type: ignore[operator]


@pytest.mark.parametrize("changed", [{"version": 2}, {"version": 2, "contract": "new", "run": "x"}, {"version": 0}])
def test_another_version_is_refused_by_its_version(
    directory: DataDirectory, path: Path, changed: dict[str, Any]
) -> None:
    write_instance(path, **changed)
    before = (path / "instance.json").read_bytes()
    with pytest.raises(DataError, match=f"version {changed['version']}, this server knows {VERSION}"):
        directory.next_run("default")
    assert (path / "instance.json").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b'{"version":"1"}',
        json.dumps({**INSTANCE, "instance": "short"}).encode(),
        json.dumps({**INSTANCE, "instance": "g" * 32}).encode(),
        json.dumps({**INSTANCE, "contract": "other"}).encode(),
        json.dumps({**INSTANCE, "run": -1}).encode(),
        json.dumps({**INSTANCE, "run": 1 << 60}).encode(),
        json.dumps({**INSTANCE, "contract": "\u00e9"}, ensure_ascii=False).encode("latin-1"),
    ],
)
def test_a_damaged_identity_is_refused_and_left_as_it_is(
    directory: DataDirectory, path: Path, content: bytes
) -> None:
    (path / "instance.json").write_bytes(content)
    with pytest.raises(DataError, match=r"instance\.json: unreadable"):
        directory.next_run("default")
    assert (path / "instance.json").read_bytes() == content


@pytest.mark.parametrize("name", ["users.db", "products.db", "orders.db", "journal"])
def test_data_without_an_identity_is_refused(directory: DataDirectory, path: Path, name: str) -> None:
    (path / name).mkdir()
    with pytest.raises(DataError, match=f"{name}: found without"):
        directory.next_run("default")
    assert not (path / "instance.json").exists()


def test_an_identity_that_can_not_be_written_is_a_start_error(
    directory: DataDirectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_writes(monkeypatch)
    with pytest.raises(StartError, match="No space"):
        directory.next_run("default")
    assert not (path / "instance.json").exists()


def test_the_id_is_the_sixteen_bytes_of_the_instance() -> None:
    assert Instance(1, "0123456789abcdef" * 2, "default", 1).id == bytes.fromhex("0123456789abcdef" * 2)


# ---- run.json and the segment ----------------------------------------------------------------------------------


def test_what_was_written_is_read_and_gone_after_the_close(path: Path) -> None:
    directory = DataDirectory(path)
    assert read_run(path) is None
    directory.write_run(RUN)
    directory.write_run(Run("::1", 1, 2, "now", "millrace-test-none", {"supervisor": 1, "manager": 2}))
    assert read_run(path) == Run("::1", 1, 2, "now", "millrace-test-none", {"supervisor": 1, "manager": 2})
    directory.close()
    assert read_run(path) is None
    assert [file.name for file in path.iterdir()] == ["lock"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"host":"\xff"}'])
def test_a_damaged_run_json_reads_as_nothing(directory: DataDirectory, path: Path, content: bytes) -> None:
    (path / "run.json").write_bytes(content)
    assert read_run(path) is None
    assert directory.remove_stale_segment() is None


def leave_run(path: Path, segment: str) -> None:
    """Do what a killed server does: leave its run.json behind."""
    path.mkdir(parents=True, exist_ok=True)
    content = {"host": "h", "port": 1, "admin_port": 2, "started": "", "segment": segment, "pids": {}}
    (path / "run.json").write_text(json.dumps(content))


def test_the_segment_of_a_killed_run_is_removed_once(path: Path, segment: Path) -> None:
    leave_run(path, segment.name)
    directory = DataDirectory(path)
    assert directory.remove_stale_segment() == segment.name
    assert not segment.exists()
    assert directory.remove_stale_segment() is None
    directory.close()


def test_a_start_that_failed_before_leaves_the_name_of_the_stale_segment_to_the_next(
    path: Path, segment: Path
) -> None:
    leave_run(path, segment.name)
    write_instance(path, contract="classic")
    failed = DataDirectory(path)
    with pytest.raises(ConfigError):
        failed.next_run("default")
    failed.close()
    directory = DataDirectory(path)
    assert directory.remove_stale_segment() == segment.name
    directory.close()


@pytest.mark.parametrize("name", ["", "other", "millrace-/../x", "/etc/passwd", "../../tmp/x"])
def test_only_a_segment_of_ours_is_ever_removed(path: Path, name: str) -> None:
    leave_run(path, name)
    directory = DataDirectory(path)
    assert directory.remove_stale_segment() is None
    directory.close()


def fail_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)


def test_a_full_disk_does_not_stop_a_running_server(
    directory: DataDirectory, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory.write_run(RUN)
    fail_writes(monkeypatch)
    directory.write_run(Run("other", 1, 2, "", "millrace-test-none", {}))
    assert read_run(path) == RUN
    assert "run.json not written" in caplog.text


# ---- replace_file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_durable", [True, False])
def test_a_reader_of_the_old_file_still_sees_all_of_it(tmp_path: Path, is_durable: bool) -> None:
    path = tmp_path / "x.json"
    replace_file(path, b"old" * 100, is_durable)
    with path.open("rb") as reader:
        replace_file(path, b"new", is_durable)
        assert reader.read() == b"old" * 100
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("written", [OSError(errno.ENOSPC, "No space"), 2])
def test_a_failed_or_short_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: OSError | int
) -> None:
    def write(_fd: int, _content: bytes) -> int:
        if isinstance(written, OSError):
            raise written
        return written

    path = tmp_path / "x.json"
    replace_file(path, b"old", is_durable=False)
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new one", is_durable=True)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    replace_file(path, b"new", is_durable=True)
    assert path.read_bytes() == b"new"


def test_what_a_crash_left_of_a_replacement_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "x.tmp").write_bytes(b"half of something that was much longer")
    replace_file(tmp_path / "x.json", b"new", is_durable=True)
    assert (tmp_path / "x.json").read_bytes() == b"new"


def test_a_durable_replacement_syncs_the_file_and_then_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr(os, "fsync", note)
    replace_file(tmp_path / "x.json", b"new", is_durable=True)
    assert synced == [str(tmp_path / "x.tmp"), str(tmp_path)]
    replace_file(tmp_path / "x.json", b"newer", is_durable=False)
    assert len(synced) == 2
