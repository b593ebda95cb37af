"""`python -m tools bench`: measure Millrace against its references, in turn, and say which targets it reaches.

It starts and stops every server itself, on free ports of the loopback interface, with files in a directory of its own
that is removed at the end. Whatever ends it (an error, Ctrl-C, SIGTERM), it stops what it started.

    options -> rows.select -> for each experiment: servers and clients (Session) -> Findings -> rows -> outputs

Writes `results.json`, `results.html` and PNGs to --out. Figures are only worth something on an otherwise idle machine.
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
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from server.errors import MillraceError
from tools.bench import machine
from tools.bench.findings import ALL, Findings, Row, Verdict, as_json, judge, row_as_json
from tools.bench.page import render_page
from tools.bench.plots import Plot, draw_all, write_images
from tools.bench.rows import EXPERIMENTS, TARGETS, Experiment, select
from tools.bench.session import Options, Session
from tools.bench.table import as_text

EXIT_OK, EXIT_FAILED = 0, 1
ROUNDS, ROUNDS_QUICK = 5, 2
LOAD_QUIET_MAX = 0.7  # what a shell, an editor and the end of something else leave behind


def main(arguments: list[str]) -> int:
    """Run the benchmark; 1 when a row failed (a wrong answer, a server that ended), 0 otherwise, missed or not."""
    options = _parse(arguments)
    targets, experiments = options.selected
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))  # also where a shell had it ignored
    options.out.mkdir(parents=True, exist_ok=True)
    rounds = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
    started = time.monotonic()
    run = {
        "command": shlex.join(["python", "-m", "tools", "bench", *arguments]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": str(rounds),
    }
    cores = machine.choose_cores()
    os.sched_setaffinity(0, cores.client)  # what this process does meanwhile is the client's, too
    missing = machine.missing_programs()
    with tempfile.TemporaryDirectory(prefix="millrace-bench-", dir=options.work_dir) as directory:
        facts = machine.describe_machine(Path(directory)) | {"cores": cores.describe()}
        session = Session(Options(options.quick, options.huge, rounds), cores, Path(directory), missing)
        if os.getloadavg()[0] > LOAD_QUIET_MAX:
            facts["warning"] = f"the machine was not idle (load {os.getloadavg()[0]:.1f}): the figures mean little"
        for name, value in facts.items():
            session.say(f"{name}: {value}")
        found = _measure(session, experiments)
    run["took"] = f"{time.monotonic() - started:.0f} s"
    rows = [judge(target, found[target.experiment]) for target in targets]
    plots = _draw(session, missing, found, rows)
    _write(options.out, facts, run, found, rows, plots)
    print(as_text(facts | run, found, rows))
    print(f"\n{options.out / 'results.html'}  {options.out / 'results.json'}")
    return EXIT_FAILED if any(row.verdict is Verdict.FAILED for row in rows) else EXIT_OK


def _measure(session: Session, experiments: Sequence[Experiment]) -> dict[str, Findings]:
    """Run the experiments; one that fails as a whole leaves the others alone."""
    found = {}
    for experiment in experiments:
        session.say(f"== {experiment.name}: {experiment.what}")
        findings = found[experiment.name] = Findings()
        try:
            experiment.measure(session, findings)
        except (MillraceError, OSError) as error:
            findings.failures[ALL] = str(error)
            session.say(f"{experiment.name} FAILED: {error}")
    return found


def _draw(
    session: Session, missing: Mapping[str, str], found: Mapping[str, Findings], rows: Sequence[Row]
) -> list[Plot]:
    if "matplotlib" in missing:
        session.say(f"matplotlib is missing, plots are left out: {missing['matplotlib']}")
        return []
    return draw_all(found, rows)


def _write(
    directory: Path,
    facts: Mapping[str, str],
    run: Mapping[str, str],
    found: Mapping[str, Findings],
    rows: Sequence[Row],
    plots: Sequence[Plot],
) -> None:
    results = {
        "run": run,
        "machine": facts,
        "rows": [row_as_json(row) for row in rows],
        "experiments": {name: as_json(findings) for name, findings in found.items()},
    }
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (directory / "results.html").write_text(render_page(facts, run, found, rows, plots))
    write_images(plots, directory)


def _parse(arguments: list[str]) -> argparse.Namespace:
    names = ", ".join([target.name for target in TARGETS])
    parser = argparse.ArgumentParser(
        prog="python -m tools bench",
        description=(__doc__ or "").splitlines()[0],
        epilog=f"rows: {names}; experiments: {', '.join(one.name for one in EXPERIMENTS)}",
    )
    parser.add_argument("--quick", action="store_true", help="some two minutes: short rounds, smaller tables")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="these rows or experiments")
    parser.add_argument("--rounds", type=int, help=f"of each side (default {ROUNDS}, {ROUNDS_QUICK} with --quick)")
    parser.add_argument("--out", type=Path, default=Path("results"), help="directory (default: %(default)s)")
    parser.add_argument("--huge", action="store_true", help="also a table of ten million users (24 GiB machine)")
    parser.add_argument(
        "--work-dir", type=Path, default=None, help=f"where the servers keep their files (default {_temporary()})"
    )
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        options.selected = select(options.only)
    except KeyError as error:
        parser.error(f"no row and no experiment: {error.args[0]}")
    try:
        tempfile.TemporaryDirectory(dir=options.work_dir).cleanup()
    except OSError as error:
        parser.error(f"--work-dir {options.work_dir or _temporary()}: {error.strerror}")
    return options


def _temporary() -> str:
    return os.environ.get("TMPDIR", tempfile.gettempdir())
