"""report.json and report.csv.

report.json has the run, the summary, and every sample as it was read: counters since the start of each process.
report.csv has one row per sample and process; the figures of the server stand in each row of their sample.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tools.report.figures import Interval, Reading, RoleSummary, Sample, ServerReading, Summary

COLUMNS = (
    "t_s", "interval_s", "process", "cpu_percent", *Reading._fields, "requests_per_s", *ServerReading._fields,
)  # fmt: skip


def as_json(run: Mapping[str, str], samples: Sequence[Sample], summary: Summary) -> str:
    """Return the text of report.json."""
    content = {
        "run": dict(run),
        "summary": {
            **asdict(summary),
            "roles": {role: _role_as_dict(one) for role, one in summary.roles.items()},
            "replacements": [one._asdict() for one in summary.replacements],
        },
        "samples": [
            {
                "t_s": round(sample.t_s, 4),
                "server": sample.server._asdict(),
                "processes": {role: reading._asdict() for role, reading in sample.processes.items()},
            }
            for sample in samples
        ],
    }
    return json.dumps(content, indent=1) + "\n"


def _role_as_dict(one: RoleSummary) -> dict[str, Any]:
    return {**asdict(one), "spent": one.spent._asdict()}


def as_csv(intervals: Sequence[Interval]) -> str:
    """Return the text of report.csv; the first sample has no interval and no row."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for interval in intervals:
        sample = interval.sample
        for role, reading in sample.processes.items():
            writer.writerow(
                [f"{sample.t_s:.3f}", f"{interval.seconds:.3f}", role, f"{interval.cpu_percent(role):.2f}", *reading,
                 f"{interval.requests_per_s:.1f}", *sample.server]
            )  # fmt: skip
    return buffer.getvalue()
