"""Deaths at chosen points of the durable path: after each of them everything acknowledged is there, once.

The normal suite dies at the first passages of every point, several points to a server. The long sweep kills at the
1st, 2nd, ... passage of one point in a run of the same few writes, until the run survives because it is over first:

    python -m pytest tests/crash/test_failpoints.py -m slow      (some 30 minutes on two cores)
"""

from __future__ import annotations

import os
import signal
from itertools import product
from pathlib import Path

import pytest

from server.failpoints import NAMES
from tests.crash.support import PERIOD_MS, assert_nothing_lost, deaths, loaded, wait_for_writes
from tests.support import ServerProcess

# Each plan is one run of a server. Not more than four deaths of the manager in one: it comes back later each time.
# Its points are passed once per batch, so these numbers are early ones, some ten batches apart.
PLANS = [
    "load.reset=die@1;manager.before_append=die@30;journal.before_write=die@45;journal.after_write=die@60"
    ";persister.before_diff=die@3;writer.before_begin=die@2;worker.before_replies=die@40",
    "journal.before_sync=die@30;journal.after_sync=die@45;manager.in_publish=die@60"
    ";persister.in_diff=die@3;writer.in_transaction=die@4;worker.before_replies=die@50",
    "manager.before_dirty=die@30;manager.after_publish=die@45;manager.half_answered=die@80"
    ";persister.after_diff=die@3;writer.after_commit=die@4;persister.batch_sent=die@4",
    "load.start=die@1;manager.before_retire=die@3;journal.after_sync=die@50;takeover.redone=die@1"
    ";persister.before_report=die@3;writer.in_transaction=die@1-3",
    "load.journal_open=die@1;manager.in_publish=die@40;takeover.journal_open=die@1;takeover.unlocked=die@1",
    "load.loaded=die@1;manager.after_publish=die@35;takeover.group_redone=die@1;manager.before_ready=die@2",
]
NOT_BY_DEATH = {"manager.start", "supervisor.before_restart"}  # have tests of their own
SWEEP_WRITES = 12
SWEEP_PASSAGES_MAX = 60  # more than so few writes can have
DEATH_S = 20.0


def expected_deaths(plan: str) -> int:
    """Return how many deaths a plan asks for."""
    count = 0
    for step in plan.split(";"):
        first, _, last = step.partition("@")[2].partition("-")
        count += int(last or first) - int(first) + 1
    return count


def test_the_plans_name_every_point() -> None:
    named = {step.partition("=")[0] for plan in PLANS for step in plan.split(";")}
    assert named == NAMES - NOT_BY_DEATH


def die_by(plan: str, data_dir: Path, workers: int = 2) -> None:
    """Run a server under load until everybody has died as the plan says; check everything."""
    with ServerProcess(data_dir, *PERIOD_MS, workers=workers, MILLRACE_FAILPOINTS=plan) as server:
        with loaded(server, ("journal", "journal", "memory")) as load:
            count = expected_deaths(plan)
            server.wait_until(lambda: len(deaths(server)) >= count, DEATH_S, f"{count} deaths by {plan}")
            wait_for_writes(server, load, 20)
        assert_nothing_lost(server, load)


@pytest.mark.parametrize("plan", PLANS, ids=range(len(PLANS)))
def test_nothing_acknowledged_is_lost_by_deaths_at_failpoints(tmp_path: Path, plan: str) -> None:
    die_by(plan, tmp_path / "data")


SUCCESSORS = [
    "manager.half_answered=die@30;manager.before_append=die@32;journal.after_write=die@33",
    "manager.before_append=die@30;manager.after_publish=die@40;manager.before_append=die@50-51",
    "manager.after_publish=die@35-37",
]


@pytest.mark.parametrize(
    "plan", [SUCCESSORS[0], *(pytest.param(plan, marks=pytest.mark.slow) for plan in SUCCESSORS[1:])]
)
def test_nothing_is_applied_twice_when_the_successor_dies_before_all_workers_sent_again(
    tmp_path: Path, plan: str
) -> None:
    die_by(plan, tmp_path / "data", workers=3)


ERRORS = (
    "journal.before_write=errno:ENOSPC@25-29;journal.before_sync=errno:EIO@40;journal.after_write=errno:ENOSPC@60-62"
    ";writer.in_transaction=errno:ENOSPC@2-9;writer.before_begin=errno:EIO@12;writer.after_commit=errno:EIO@3"
    ";journal.after_sync=sleep:200@50;manager.in_publish=sleep:100@70;persister.in_diff=sleep:100@5"
)


def test_errors_of_the_disk_are_answered_truthfully_and_nobody_dies(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", *PERIOD_MS, MILLRACE_FAILPOINTS=ERRORS) as server:
        with loaded(server, ("journal", "journal", "memory")) as load:
            wait_for_writes(server, load, 200)
        assert deaths(server) == []
        assert_nothing_lost(server, load)


def test_supervisor_that_dies_before_it_restarts_a_child_takes_all_others_along(tmp_path: Path) -> None:
    plan = "supervisor.before_restart=die@2"
    with ServerProcess(tmp_path / "data", *PERIOD_MS, MILLRACE_FAILPOINTS=plan) as server:
        with loaded(server) as load:
            for role in ("writer-users", "persister"):
                wait_for_writes(server, load, 30)
                os.kill(server.pids[role], signal.SIGKILL)
            server.wait_until(lambda: not server.group_members(), 10, "all have left")
            load.pause()
            server.wait()
            server.start()
            load.resume()
            wait_for_writes(server, load, 20)
        assert_nothing_lost(server, load)


# ---- the long sweep --------------------------------------------------------------------------------------------


PASSED_UNDER_LOAD = sorted(
    name for name in NAMES - NOT_BY_DEATH - {"manager.before_ready"} if not name.startswith(("load", "takeover"))
)


def run_until(data_dir: Path, plan: str) -> bool:
    """Run a few writes against a plan of deaths, check everything; return whether anybody died."""
    with ServerProcess(data_dir, *PERIOD_MS, MILLRACE_FAILPOINTS=plan) as server:
        with loaded(server) as load:
            wait_for_writes(server, load, SWEEP_WRITES)
        assert_nothing_lost(server, load)
        return bool(deaths(server))


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSED_UNDER_LOAD)
def test_sweep_dies_at_every_passage_until_the_run_survives(tmp_path: Path, name: str) -> None:
    for passage in range(1, SWEEP_PASSAGES_MAX):
        if not run_until(tmp_path / f"{passage}", f"{name}=die@{passage}"):
            assert passage > 1, f"{name} was never passed"
            return


FIRST = ("journal.after_write", "journal.after_sync", "manager.in_publish", "manager.after_publish")
SECOND = ["manager.before_ready", "manager.before_append", *sorted(n for n in NAMES if n.startswith("takeover"))]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), list(product(FIRST, SECOND)))
def test_sweep_dies_again_in_the_take_over(tmp_path: Path, first: str, second: str) -> None:
    again = {"manager.before_append": "die@36-37", "manager.before_ready": "die@2-3"}.get(second, "die@1-2")
    die_by(f"{first}=die@35;{second}={again}", tmp_path / "data")
