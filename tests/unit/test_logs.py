"""Log lines: one per record, text or JSON, on standard error."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator

import pytest

from server.logs import configure_logs

log = logging.getLogger("server.example")


@pytest.fixture(autouse=True)
def root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_is_one_line_with_time_in_utc_level_pid_and_logger(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "text")
    log.info("ready role=%s pid=%d", "manager", 5)
    line = capsys.readouterr().err
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(rf"{time} INFO {os.getpid()} server\.example ready role=manager pid=5\n", line)


def test_text_shows_utc_and_milliseconds_cut_not_rounded(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "text")
    record = logging.LogRecord("x", logging.INFO, "", 0, "hello", None, None)
    record.created, record.msecs = 0.0, 999.9
    logging.getLogger().handle(record)
    assert capsys.readouterr().err.startswith("1970-01-01T00:00:00.999Z INFO ")


def test_json_is_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    log.warning("two\nlines %s", "\u00e9\"")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    record = json.loads(line)
    assert record.pop("time") > 1_700_000_000
    assert record == {
        "level": "WARNING", "pid": os.getpid(), "logger": "server.example", "message": "two\nlines \u00e9\""
    }  # fmt: skip


def test_json_carries_the_traceback_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    try:
        raise ValueError("reason")
    except ValueError:
        log.exception("crashed")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "ValueError: reason" in json.loads(line)["traceback"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_path_that_is_no_utf_8_does_not_lose_the_line(capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure_logs("info", form)
    log.error("path=%r %s", os.fsdecode(b"/data/\xff"), "\udcff" if form == "json" else "")
    shown = capsys.readouterr().err
    assert "Logging error" not in shown
    assert "/data/" in shown


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_records_below_the_level_are_not_shown(
    capsys: pytest.CaptureFixture[str], level: str, shown: list[str]
) -> None:
    configure_logs(level, "json")
    for name in ("debug", "info", "warning", "error"):
        log.log(getattr(logging, name.upper()), name)
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == shown


def test_configuring_again_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "text")
    configure_logs("info", "text")
    log.info("once")
    assert capsys.readouterr().err.count("once") == 1
