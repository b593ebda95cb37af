"""Failpoints: the plan as text, counting over processes, and that every point of the table stands in the code."""

from __future__ import annotations

import ast
import errno
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest

from server import failpoints
from server.errors import ConfigError
from server.failpoints import ALWAYS, NAMES, Failpoints, Step, make_failpoint, not_armed, parse_plan

ROOT = Path(__file__).resolve().parents[2]


def test_plan_with_every_action_and_every_form_of_passage() -> None:
    steps = ["journal.after_write=die@3", "writer.in_transaction=errno:ENOSPC@2-4", " manager.start=sleep:5", ""]
    assert parse_plan(";".join([*steps, "manager.start=stop@9"])) == {
        "journal.after_write": [Step(3, 3, "die", 0)],
        "writer.in_transaction": [Step(2, 4, "errno", errno.ENOSPC)],
        "manager.start": [Step(1, ALWAYS, "sleep", 5), Step(9, 9, "stop", 0)],
    }


@pytest.mark.parametrize(
    "text",
    ["journal.after_write", "no.such_point=die", "manager.start=explode", "manager.start=die:1",
     "manager.start=errno:ENOTHING", "manager.start=sleep", "manager.start=sleep:soon", "manager.start=die@"],
)  # fmt: skip
def test_plan_that_can_not_be_read_is_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_plan(text)


def test_nothing_is_armed_without_a_plan() -> None:
    assert make_failpoint("") is not_armed


def test_action_happens_at_its_passages_only() -> None:
    failpoint = Failpoints("journal.before_write=errno:ENOSPC@2-3")
    results = []
    for _ in range(5):
        try:
            failpoint("journal.before_write")
            results.append(0)
        except OSError as error:
            results.append(error.errno)
    assert results == [0, errno.ENOSPC, errno.ENOSPC, 0, 0]
    assert failpoint.passages("journal.before_write") == 5


def test_points_count_for_themselves_and_other_points_do_nothing() -> None:
    failpoint = Failpoints("journal.before_write=errno:EIO@2;journal.before_sync=errno:EIO@2")
    for name in ("journal.before_write", "journal.before_sync", "manager.start"):
        failpoint(name)
    assert [failpoint.passages(name) for name in ("journal.before_write", "journal.before_sync")] == [1, 1]


def test_sleep_waits() -> None:
    failpoint = Failpoints("manager.start=sleep:30")
    before = time.monotonic()
    failpoint("manager.start")
    assert time.monotonic() - before >= 0.03


def test_passages_go_on_where_a_process_died() -> None:
    failpoint = Failpoints("manager.start=die@2-3")
    context = multiprocessing.get_context("fork")

    def pass_once() -> int | None:
        process = context.Process(target=failpoint, args=("manager.start",))
        process.start()
        process.join()
        code = process.exitcode
        process.close()
        return code

    assert [pass_once() for _ in range(4)] == [0, -signal.SIGKILL, -signal.SIGKILL, 0]
    assert failpoint.passages("manager.start") == 4


def test_no_passage_is_lost_between_processes() -> None:
    failpoint = Failpoints("writer.before_begin=errno:EIO@1000000")
    context = multiprocessing.get_context("fork")

    def pass_often() -> None:
        for _ in range(500):
            failpoint("writer.before_begin")

    processes = [context.Process(target=pass_often) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        process.close()
    assert failpoint.passages("writer.before_begin") == 1500


def test_stop_stops_the_process() -> None:
    failpoint = Failpoints("manager.start=stop@1")
    process = multiprocessing.get_context("fork").Process(target=failpoint, args=("manager.start",))
    process.start()
    assert process.pid is not None
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    process.close()


# ---- the table and the code ------------------------------------------------------------------------------------


def points_in_the_code() -> list[str]:
    """Return the names that are passed, wherever a failpoint is called."""
    found = []
    for package in ("server", "persist"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                    name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                    if name in ("failpoint", "_failpoint") and node.args and isinstance(node.args[0], ast.Constant):
                        found.append(str(node.args[0].value))
    return found


def test_every_point_is_passed_in_the_code_and_no_other() -> None:
    assert set(points_in_the_code()) == NAMES


def test_the_docstring_lists_every_point() -> None:
    listed = re.findall(r"^    ([a-z]+\.[a-z_]+) +(?:manager|workers?|persister|writers?|supervisor) ",
                        failpoints.__doc__ or "", re.MULTILINE)  # fmt: skip
    assert sorted(listed) == sorted(NAMES)
