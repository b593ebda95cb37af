"""Settings: flag over environment over file, every flag, and errors that name the setting."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

import run
from server.config import (
    MEMORY_BYTES_MAX,
    MEMORY_BYTES_MIN,
    WORKERS_MAX,
    Config,
    Durability,
    parse_boolean,
    parse_durability,
    parse_size,
)
from server.errors import ConfigError, DataError, StartError

# flag: (text, field, value), no value being the default
GIVEN: dict[str, tuple[str, str, Any]] = {
    "workers": ("3", "workers", 3),
    "host": ("::1", "host", "::1"),
    "port": ("8123", "port", 8123),
    "admin-port": ("0", "admin_port", 0),
    "data-dir": ("some/where", "data_dir", Path("some/where")),
    "memory": ("64 MiB", "memory_bytes", 64 << 20),
    "durability": ("database", "durability", Durability.DATABASE),
    "persist-period-ms": ("10", "persist_period_ms", 10),
    "classic": ("true", "classic", True),
    "log-level": ("debug", "log_level", "debug"),
    "log-format": ("json", "log_format", "json"),
    "stop-timeout-s": ("0", "stop_timeout_s", 0.0),
    "write-timeout-s": ("2.5", "write_timeout_s", 2.5),
    "journal-segment": ("1MiB", "journal_segment_bytes", 1 << 20),
    "journal-max": ("1GiB", "journal_max_bytes", 1 << 30),
}
FIXED = {"header_timeout_s", "body_timeout_s", "idle_timeout_s", "failpoints"}  # no flag

BAD = [
    ("workers", "0"), ("workers", str(WORKERS_MAX + 1)), ("workers", "two"), ("workers", ""), ("workers", "1.5"),
    ("port", "-1"), ("port", "65536"), ("port", "http"),
    ("admin-port", "70000"), ("admin-port", "8000"),
    ("memory", "1MiB"), ("memory", "2TiB"), ("memory", "lots"), ("memory", "-1GiB"), ("memory", "9" * 5000),
    ("durability", "disk"), ("durability", "JOURNAL"), ("durability", "databa\u017fe"), ("durability", ""),
    ("persist-period-ms", "9"), ("persist-period-ms", "600001"),
    ("classic", "maybe"), ("classic", ""),
    ("log-level", "loud"), ("log-level", "INFO"), ("log-format", "xml"),
    ("stop-timeout-s", "-1"), ("stop-timeout-s", "nan"), ("stop-timeout-s", "inf"), ("stop-timeout-s", "soon"),
    ("write-timeout-s", "0"), ("write-timeout-s", "1e9"),
    ("journal-segment", "0"), ("journal-segment", "1KiB"), ("journal-segment", "128GiB"),
    ("journal-max", "100MiB"), ("journal-max", "big"),
]  # fmt: skip


def variable(flag: str) -> str:
    return "MILLRACE_" + flag.upper().replace("-", "_")


def toml_file(tmp_path: Path, content: str) -> dict[str, str]:
    """Write a configuration file; return the arguments that name it."""
    path = tmp_path / "millrace.toml"
    path.write_text(content)
    return {"config": str(path)}


# ---- the three sources -----------------------------------------------------------------------------------------


def test_the_tables_here_know_every_flag_and_every_field() -> None:
    assert set(GIVEN) == set(run.FLAGS)
    assert {field for field, _, _ in run.FLAGS.values()} == {f.name for f in dataclasses.fields(Config)} - FIXED


def test_failpoints_come_from_the_environment_only() -> None:
    plan = "manager.start=die@1"
    assert run.build_config({}, {"MILLRACE_FAILPOINTS": plan}).failpoints == plan


def test_defaults_are_those_of_the_config() -> None:
    assert run.build_config({}, {}) == Config(workers=min(os.cpu_count() or 1, WORKERS_MAX))


def test_a_machine_with_very_many_processors_gets_a_usable_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 256)
    assert run.build_config({}, {}).workers == WORKERS_MAX
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert run.build_config({}, {}).workers == 1


@pytest.mark.parametrize("flag", GIVEN)
def test_every_setting_comes_from_flag_environment_and_file(tmp_path: Path, flag: str) -> None:
    text, field, value = GIVEN[flag]
    for spelling in (flag, flag.replace("-", "_")):
        file = toml_file(tmp_path, f'{spelling} = "{text}"\n')
        assert getattr(run.build_config(file, {}), field) == value
    assert getattr(run.build_config({flag: text}, {}), field) == value
    config = run.build_config({}, {variable(flag): text})
    assert getattr(config, field) == value
    assert type(getattr(config, field)) is type(value)


def test_flag_wins_over_environment_wins_over_file(tmp_path: Path) -> None:
    file = toml_file(tmp_path, "workers = 2\nport = 2\nadmin-port = 2\n")
    environment = {"MILLRACE_WORKERS": "3", "MILLRACE_PORT": "3"}
    config = run.build_config({**file, "workers": "4"}, environment)
    assert (config.workers, config.port, config.admin_port) == (4, 3, 2)


def test_file_values_may_be_numbers_and_booleans(tmp_path: Path) -> None:
    file = toml_file(tmp_path, "workers = 2\nwrite-timeout-s = 1.5\nclassic = true\nmemory = 33554432\n")
    config = run.build_config(file, {})
    assert (config.workers, config.write_timeout_s, config.classic, config.memory_bytes) == (2, 1.5, True, 32 << 20)


def test_classic_of_the_file_can_be_switched_off_by_the_environment(tmp_path: Path) -> None:
    file = toml_file(tmp_path, "classic = true\n")
    assert not run.build_config(file, {"MILLRACE_CLASSIC": "0"}).classic


def test_the_file_may_be_named_by_the_environment_and_the_flag_wins(tmp_path: Path) -> None:
    named = toml_file(tmp_path, "workers = 2\n")["config"]
    assert run.build_config({}, {"MILLRACE_CONFIG": named}).workers == 2
    assert run.build_config({"config": named}, {"MILLRACE_CONFIG": "/nowhere"}).workers == 2


def test_foreign_variables_are_ignored() -> None:
    assert run.build_config({"workers": "1"}, {"PORT": "5", "MILLRACE": "5"}) == Config(workers=1)


# ---- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flag", "text"), BAD)
@pytest.mark.parametrize("is_flag", [True, False])
def test_a_bad_value_is_an_error_that_names_the_setting(flag: str, text: str, is_flag: bool) -> None:
    arguments, environment = ({flag: text}, {}) if is_flag else ({}, {variable(flag): text})
    with pytest.raises(ConfigError, match=flag):
        run.build_config(arguments, environment)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("wrokers = 2", "unknown setting wrokers"),
        ('config = "x"', "unknown setting config"),
        ("[server]\nport = 1", "unknown setting server"),
        ("host = ['a', 'b']", "host"),
        ("port = 8000.5", "port"),
        ("workers = true", "workers"),
        ("data-dir = 1979-05-27", "data-dir"),
        ("workers = ", "millrace.toml"),
        ("workers = 1\nworkers = 2", "millrace.toml"),
    ],
)
def test_a_bad_file_is_an_error_that_names_the_place(tmp_path: Path, content: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        run.build_config(toml_file(tmp_path, content), {})


def test_a_file_that_can_not_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing.toml", tmp_path, tmp_path / "binary.toml"):
        with pytest.raises(ConfigError, match=path.name):
            run.build_config({"config": str(path)}, {})


def test_the_journal_holds_at_least_three_segments() -> None:
    with pytest.raises(ConfigError, match="journal-max"):
        Config(workers=1, journal_segment_bytes=64 << 20, journal_max_bytes=191 << 20)
    Config(workers=1, journal_segment_bytes=64 << 20, journal_max_bytes=192 << 20)


def test_both_ports_may_be_left_to_the_kernel() -> None:
    assert Config(workers=1, port=0, admin_port=0).port == 0


def test_a_config_never_changes() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config(workers=1).workers = 2  # type: ignore[misc]


# ---- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("4096", 4096), ("4096B", 4096), ("1KiB", 1024), ("512 MiB", 512 << 20), (" 1GiB ", 1 << 30),
        ("1gib", 1 << 30), ("1TiB", MEMORY_BYTES_MAX), ("16MiB", MEMORY_BYTES_MIN), ("007KiB", 7168),
    ],
)  # fmt: skip
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "1.5GiB", "1GB", "1G", "-1", "+1", "1 0", "0x10", "1_000", "\u0661", "1e3"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize("level", list(Durability))
def test_durability_is_read_in_lower_case_only(level: Durability) -> None:
    assert parse_durability(level.name.lower()) is level
    for text in (level.name, level.name.title(), level.name.lower() + " "):
        with pytest.raises(ConfigError):
            parse_durability(text)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("Yes", True), ("FALSE", False), ("0", False)]
)
def test_booleans_are_read(text: str, value: bool) -> None:
    assert parse_boolean(text) is value


# ---- the command line ------------------------------------------------------------------------------------------


def set_arguments(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", *arguments])
    for name in [name for name in os.environ if name.startswith("MILLRACE_")]:
        monkeypatch.delenv(name)


def test_the_command_line_takes_every_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [part for flag, (text, _, _) in GIVEN.items() if flag != "classic" for part in (f"--{flag}", text)]
    set_arguments(monkeypatch, "--classic", *arguments)
    config = run.build_config(run.parse_arguments(), {})
    assert {field: getattr(config, field) for _, field, _ in GIVEN.values()} == {
        field: value for _, field, value in GIVEN.values()
    }


def test_flags_that_were_not_given_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    set_arguments(monkeypatch, "--port", "5")
    assert run.parse_arguments() == {"port": "5"}


@pytest.mark.parametrize("arguments", [["--wrokers", "2"], ["--port"], ["serve"], ["--classic=no"]])
def test_wrong_usage_leaves_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    set_arguments(monkeypatch, *arguments)
    with pytest.raises(SystemExit, match="2"):
        run.main()
    assert "usage" in capsys.readouterr().err


def test_help_names_every_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    set_arguments(monkeypatch, "--help")
    with pytest.raises(SystemExit, match="0"):
        run.main()
    shown = capsys.readouterr().out
    assert all(f"--{flag} " in shown for flag in ("config", *run.FLAGS))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("holds the classic contract"), 4),
        (StartError("can not listen"), 3),
        (DataError("users.db", "damaged", 7), 3),
    ],
)
def test_errors_of_the_start_become_exit_codes_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    def fail(_config: Config) -> int:
        raise error

    set_arguments(monkeypatch)
    monkeypatch.setattr(run, "run", fail)
    monkeypatch.setattr(run, "configure_logs", lambda _level, _form: None)
    assert run.main() == code
    assert capsys.readouterr().err == f"millrace: {error}\n"


def test_a_bad_setting_leaves_with_4_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_arguments(monkeypatch, "--workers", "0")
    monkeypatch.setattr(run, "run", lambda _config: pytest.fail("started"))
    assert run.main() == 4
    assert "workers" in capsys.readouterr().err


def test_classic_says_so_at_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    set_arguments(monkeypatch, "--classic")
    monkeypatch.setattr(run, "run", lambda _config: 0)
    monkeypatch.setattr(run, "configure_logs", lambda _level, _form: None)
    assert run.main() == 0
    assert "SHA-256" in capsys.readouterr().out
