"""`python -m tools compare`: the original experiment on the four earlier shapes and on the server, in turn.

    python -m tools compare --quick              a tenth of the work, one round: about two minutes
    python -m tools compare --out comparison     five rounds of three to four minutes

Prints the table and what the figures show, and writes results.json and comparison.html. Every figure is measured
in this run, on this machine, with server and clients on the same cores; nothing is pinned. Each round begins with
another subject, so that a machine that becomes slower or faster over a round favours none. tools/compare/experiment.py
says what is done with each in which order.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.bench.machine import describe_machine, missing_programs
from tools.bench.processes import MeasurementFailed
from tools.bench.table import render
from tools.compare import experiment
from tools.compare.experiment import QUICK, Plan
from tools.compare.page import render_page
from tools.compare.results import Results
from tools.compare.sentences import sentence, verdicts
from tools.compare.subjects import SUBJECTS

TOOLS = ("k6", "wrk")
PROGRAMS = (*TOOLS, "uvloop", "httptools", "msgspec", "sqlite-utils")  # of the clients and the subjects
ROUNDS, ROUNDS_QUICK = 5, 1
BARE = "bare"  # in the failures: without this floor a round has no ratios
Say = Callable[[str], None]


def main(arguments: list[str]) -> int:
    """Compare; 0 when every subject could be measured, 1 when one failed, 2 usage."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))  # also where a shell had it ignored
    plan, started, start = QUICK if options.quick else Plan(), time.strftime("%Y-%m-%d %H:%M"), time.monotonic()
    missing = {name: command for name, command in missing_programs().items() if name in TOOLS}
    results = Results(plan, missing)

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {text}", file=sys.stderr, flush=True)

    for name, command in missing.items():
        say(f"{name} is missing, its columns are left out: {command}")
    with tempfile.TemporaryDirectory(prefix="compare-", dir=options.work_dir) as directory:
        machine = describe_machine(Path(directory), PROGRAMS)
        for number in range(1, options.rounds + 1):
            run_round(results, options.only, Path(directory), number, say)
    command = shlex.join(["python", "-m", "tools", "compare", *arguments])
    run = {"started": started, "command": command, "rounds": str(options.rounds)}
    print(_as_text(results, machine))
    (options.out / "results.json").write_text(json.dumps(_as_json(results, machine, run), indent=2) + "\n")
    (options.out / "comparison.html").write_text(render_page(results, machine, run))
    print(f"\n{options.out / 'results.json'}\n{options.out / 'comparison.html'}")
    return 1 if results.failures else 0


def run_round(results: Results, only: list[str], directory: Path, number: int, say: Say) -> None:
    """Measure the floor, then every subject once; what has failed is not measured again."""
    if BARE in results.failures:
        return
    place = directory / str(number)
    place.mkdir()
    try:
        floor = experiment.measure_bare(results.plan, place, sorted(os.sched_getaffinity(0)), results.missing)
    except (MeasurementFailed, OSError) as error:
        results.failures[BARE] = str(error)
        say(f"{BARE} FAILED: {error}")
        return
    results.floors.append(floor)
    reads = "" if floor.k6_rate is None else f", {floor.k6_rate:,.0f} reads/s with k6"
    say(f"round {number}: bare {results.plan.posts:,} POSTs in {floor.post_s:.2f} s{reads}")
    for name in rotated(only, number):
        if name in results.failures:
            continue
        try:
            figures, points = experiment.measure(name, results.plan, place, floor, results.missing, say)
        except (MeasurementFailed, OSError) as error:
            results.failures[name] = str(error)
            say(f"{name} FAILED: {error}")
            continue
        results.rounds.setdefault(name, []).append(figures)
        results.probes[name] = points


def rotated(names: list[str], number: int) -> list[str]:
    """Return the order of a round: the first begins with the first name, each other one with the next."""
    start = (number - 1) % len(names)
    return names[start:] + names[:start]


def _as_text(results: Results, machine: dict[str, str]) -> str:
    subjects = [name for name in SUBJECTS if name in results.rounds]
    lines = [[name, *(results.text(name, column) for column in results.columns)] for name in subjects]
    notes = [f"{name} FAILED: {reason}" for name, reason in results.failures.items()]
    notes += [f"{name} is missing, its columns are left out: {command}" for name, command in results.missing.items()]
    return "\n".join(
        [
            *(f"{name}: {value}" for name, value in machine.items()),
            "",
            render(["", *(column.heading for column in results.columns)], lines),
            *notes,
            "",
            *(sentence(results, name) for name in subjects),
            *verdicts(results),
        ]
    )


def _as_json(results: Results, machine: dict[str, str], run: dict[str, str]) -> dict[str, Any]:
    return {
        "machine": machine,
        "run": run,
        "plan": asdict(results.plan),
        "columns": {column.name: column.what for column in results.columns},
        "missing": results.missing,
        "failures": results.failures,
        "bare": [floor._asdict() for floor in results.floors],
        "rounds": {name: [experiment.as_json(one) for one in rounds] for name, rounds in results.rounds.items()},
        "table": {
            name: {column.name: results.shown(name, column) for column in results.columns} for name in results.rounds
        },
        "medians": {
            name: {column.name: results.median(name, column.name) for column in results.columns}
            for name in results.rounds
        },
        "probe": {name: [list(point) for point in points] for name, points in results.probes.items()},
        "sentences": {name: sentence(results, name) for name in results.rounds},
        "verdicts": verdicts(results),
    }


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the work and short reads, one round")
    default = f"default: {ROUNDS}, quick: {ROUNDS_QUICK}"
    parser.add_argument("--rounds", type=int, help=f"how often everything is measured ({default})")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="leave out the others")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="directory (default: %(default)s)")
    parser.add_argument(
        "--work-dir", type=Path, help="where the databases are while it runs, on a real disk (default: temporary files)"
    )
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = ROUNDS_QUICK if options.quick else ROUNDS
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    options.only = list(dict.fromkeys(options.only))  # a name that is given twice is one subject
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=options.out).cleanup()
    except FileExistsError:
        parser.error(f"--out {options.out}: not a directory")
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror}")
    try:
        tempfile.TemporaryDirectory(dir=options.work_dir).cleanup()
    except OSError as error:
        parser.error(f"--work-dir {options.work_dir or tempfile.gettempdir()}: {error.strerror}")
    return options
