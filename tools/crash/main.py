"""`python -m tools crash`: start a server, put it under load, kill its processes, and check every answer it gave.

Exit code 0: no violation. Every acknowledged write is there, none twice, none torn, the stock is exact, and each death
broke no more than its own connections. The kills and the load come from the seed; the moments do not.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.crash.checker import Fault
from tools.crash.history import Fate
from tools.crash.rounds import ROLES, Report, plan_session, run_session

SESSION_KILLS_MAX = 20
VIOLATIONS_SHOWN = 20


def main(arguments: list[str]) -> int:
    """Run the rounds and print the table; 0 without a violation, 1 with one, 2 usage."""
    options = _parse(arguments)
    roles = list(ROLES) if options.role == "all" else [options.role]
    chance = random.Random(options.seed)
    report = Report()
    begin = time.monotonic()
    session = 0
    while (missing := options.rounds - sum(report.kills.values())) > 0 and not report.violations:
        session += 1
        kills = plan_session(roles, options.workers, chance, min(missing, SESSION_KILLS_MAX))
        with tempfile.TemporaryDirectory(prefix="millrace-crash-", ignore_cleanup_errors=True) as directory:
            run_session(Path(directory) / "data", kills, options.workers, options.seed * 1000 + session, report)
        _progress(report, options.rounds)
    seconds = time.monotonic() - begin
    print(_table(report, seconds))
    for violation in report.violations[:VIOLATIONS_SHOWN]:
        print(f"{violation.fault.value}: {violation.text}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(_as_json(report, options, seconds), indent=2) + "\n")
    return 1 if report.violations else 0


def _table(report: Report, seconds: float) -> str:
    lines = [f"{'role':<12}{'kills':>7}{'serves again p50':>20}{'max':>12}"]
    lines += [
        f"{role:<12}{report.kills[role]:>7}{statistics.median(times):>18.3f} s{max(times):>10.3f} s"
        for role in ROLES
        if (times := report.serve_again_s.get(role))
    ]
    lines.append(f"{'all':<12}{sum(report.kills.values()):>7}{seconds:>30.1f} s in all")
    lines.append("")
    lines += [f"writes {fate.value:<22}{report.fates[fate]:>9,}" for fate in Fate]
    lines.append(f"{'reads':<29}{report.reads:>9,}")
    lines += [f"{fault.value:<29}{report.count(fault):>9,}" for fault in Fault]
    return "\n".join(lines)


def _as_json(report: Report, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    return {
        "rounds": options.rounds,
        "role": options.role,
        "seed": options.seed,
        "workers": options.workers,
        "seconds": round(seconds, 1),
        "kills": dict(report.kills),
        "serve_again_s": {
            role: {"p50": round(statistics.median(times), 4), "max": round(max(times), 4)}
            for role, times in report.serve_again_s.items()
        },
        "writes": {fate.value: report.fates[fate] for fate in Fate},
        "reads": report.reads,
        "violations": {fault.value: report.count(fault) for fault in Fault},
        "first_violations": [violation.text for violation in report.violations[:VIOLATIONS_SHOWN]],
    }


def _progress(report: Report, rounds: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{sum(report.kills.values())}/{rounds} kills", end="", file=sys.stderr, flush=True)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools crash", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="kills (default: %(default)s)")
    parser.add_argument("--role", choices=[*ROLES, "all"], default="all", help="who dies (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the kills and the load (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="HTTP processes (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.workers < 1:
        parser.error("--rounds and --workers must be at least 1")
    return options
