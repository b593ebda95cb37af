"""`python -m tools report`: what a running server uses - CPU, memory, context switches, disk - process by process.

    --data-dir or --pid -> Target -> a Sample every interval -> Interval -> live view
                                                            └-> Summary -> terminal, report.json, .csv, .html

It looks from outside and changes nothing: no request is sent, the server is not slowed down but for the CPU that the
report uses itself, which it says. Ctrl-C, SIGTERM or the end of the server ends it early; what was sampled is still
reported. A process that is replaced meanwhile is followed by its role. Leaves out threads one by one, and a replaced
worker that still finishes what is in flight.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from server.errors import MillraceError
from tools.report.figures import Follower, Interval, Sample, Summary, intervals_of, summarise
from tools.report.files import as_csv, as_json
from tools.report.page import render_page
from tools.report.target import Target, segment_by_directory, segment_by_pid
from tools.report.terminal import EXPLANATION, LiveView, summary_lines

EXIT_OK, EXIT_FAILED = 0, 1
INTERVAL_S_MIN = 0.05  # below that the report measures itself
LOOK_S = 0.05  # between two looks at the flush lag, which is known as exactly as this
SAMPLES_MAX = 50_000  # all are kept in memory and written: about 1 KiB each per process


def main(arguments: list[str]) -> int:
    """Sample, show, save; 1 when there is no such server, or it ended at once."""
    options = _parse(arguments)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell had Ctrl-C ignored
        signal.signal(number, signal.default_int_handler)
    view = LiveView(sys.stdout, options.seconds)
    try:
        name = segment_by_pid(options.pid) if options.pid else segment_by_directory(options.data_dir)
        own_cpu_s = -time.process_time()
        samples = take_samples(Target(name), options.seconds, options.interval, view.show)
        own_cpu_s += time.process_time()
    except MillraceError as error:
        print(f"report: {error}", file=sys.stderr)
        return EXIT_FAILED
    view.clear()
    intervals = intervals_of(samples)
    if not intervals:
        print("report: the server ended before there was anything to report", file=sys.stderr)
        return EXIT_FAILED
    summary = summarise(samples)
    run = {
        "command": shlex.join(["python", "-m", "tools", "report", *arguments]),
        "started": started,
        "samples": f"{len(samples)} samples, every {options.interval:g} s for {summary.seconds:.1f} s",
        "machine": f"{platform.node()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "this report": f"{own_cpu_s:.2f} s CPU, {100 * own_cpu_s / summary.seconds:.1f} % of one core",
    }
    print("\n".join(summary_lines(summary)))
    print(f"\n{EXPLANATION}\nthis report itself: {run['this report']}")
    if options.out is not None:
        _save(options.out, run, samples, intervals, summary)
        print(f"saved: {options.out}/report.json, report.csv, report.html")
    return EXIT_OK


def take_samples(target: Target, seconds: float, interval_s: float, show: Callable[[Interval], None]) -> list[Sample]:
    """Sample for some time; shorter when the server ends or somebody ends the report."""
    samples: list[Sample] = []
    follower = Follower()
    start = time.monotonic()
    try:
        while (sample := target.sample(time.monotonic() - start)) is not None:
            samples.append(sample)
            if (interval := follower.follow(sample)) is not None:
                show(interval)
            if sample.t_s >= seconds:
                break
            # the next moment of a fixed grid, so that the work of sampling does not stretch the intervals
            due_s = min((sample.t_s // interval_s + 1) * interval_s, seconds)
            while (rest_s := start + due_s - time.monotonic()) > 0:
                time.sleep(min(LOOK_S, rest_s))
                target.look()
    except KeyboardInterrupt:
        pass
    finally:
        target.close()
    return samples


def _save(out: Path, run: dict[str, str], samples: list[Sample], intervals: list[Interval], summary: Summary) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(as_json(run, samples, summary))
    (out / "report.csv").write_text(as_csv(intervals))
    (out / "report.html").write_text(render_page(run, intervals, summary))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools report", description=(__doc__ or "").splitlines()[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--data-dir", type=Path, default=Path("data"), help="of the server; default: %(default)s")
    where.add_argument("--pid", type=int, help="of the supervisor, or of any other process of the server")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to look; default: %(default)s")
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between samples; default: %(default)s")
    parser.add_argument("--out", type=Path, help="directory for report.json, report.csv and report.html")
    options = parser.parse_args(arguments)
    if not INTERVAL_S_MIN <= options.interval <= options.seconds:
        parser.error(f"--interval is from {INTERVAL_S_MIN} s to --seconds")
    if options.seconds / options.interval > SAMPLES_MAX:
        parser.error(f"more than {SAMPLES_MAX:,} samples: choose a longer --interval")
    return options
