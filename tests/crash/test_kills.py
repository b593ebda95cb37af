"""Random kills under load: nothing acknowledged is lost, nothing is applied twice, and it serves again.

The long ones: python -m pytest tests/crash -m slow -k kills      (some 15 minutes on two cores)
The same by hand, for any number of rounds: python -m tools crash --rounds N [--role ROLE]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.crash import main as crash
from tools.crash import rounds
from tools.crash.checker import Fault, Violation
from tools.crash.rounds import ROLES

SERVE_AGAIN_S = 5.0  # of the median, and generous: other work runs on the machine of a test


def run_crash(report: Path, *arguments: str) -> dict[str, Any]:
    """Run the tool; return its report."""
    code = crash.main([*arguments, "--json", str(report)])
    figures: dict[str, Any] = json.loads(report.read_text())
    assert code == 0, figures["first_violations"]
    return figures


def test_nothing_acknowledged_is_lost_in_random_kills(tmp_path: Path) -> None:
    figures = run_crash(tmp_path / "report.json", "--rounds", "12")
    assert all(figures["kills"][role] >= 2 for role in ROLES)
    assert figures["writes"]["applied"] > 200
    assert figures["reads"] > 200
    assert all(times["p50"] < SERVE_AGAIN_S for times in figures["serve_again_s"].values())


@pytest.mark.slow
@pytest.mark.parametrize("role", [role for role in ROLES if role != "group"])
def test_nothing_acknowledged_is_lost_in_a_hundred_random_kills(tmp_path: Path, role: str) -> None:
    assert run_crash(tmp_path / "report.json", "--rounds", "100", "--role", role)["kills"][role] >= 100


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_in_a_hundred_kills_of_the_whole_group(tmp_path: Path) -> None:
    assert run_crash(tmp_path / "report.json", "--rounds", "100", "--role", "group")["kills"]["group"] >= 100


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_when_all_roles_die_in_turn(tmp_path: Path) -> None:
    assert sum(run_crash(tmp_path / "report.json", "--rounds", "150", "--seed", "3")["kills"].values()) >= 150


def test_tool_exits_with_1_on_a_violation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def lose_one(_data_dir: Path, kills: list[str], _workers: int, _seed: int, report: rounds.Report) -> None:
        report.kills.update(kills)
        report.violations.append(Violation(Fault.LOST, "user 1 is gone"))

    monkeypatch.setattr(crash, "run_session", lose_one)
    assert crash.main(["--rounds", "1"]) == 1
    assert "user 1 is gone" in capsys.readouterr().err
