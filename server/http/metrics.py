"""The figures of `/stats` as OpenMetrics text (https://prometheus.io/docs/specs/om/open_metrics_spec/)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

CONTENT_TYPE = b"application/openmetrics-text; version=1.0.0; charset=utf-8"

Samples = Iterator[tuple[str, int | float]]  # labels in braces or nothing, value

# of a process: everything else only grows
_NOT_COUNTED = ("pid", "connections", "dead_letters")


def exposition(figures: dict[str, Any]) -> bytes:
    """Return what `server.http.admin.statistics` found, as an exposition."""
    seq, memory, processes = figures["seq"], figures["memory"], figures["processes"]
    lines: list[str] = []

    def gauge(name: str, help_text: str, samples: Samples) -> None:
        lines.extend(_family(name, "gauge", help_text, samples))

    gauge("millrace_ready", "1 when reads and writes are served", iter([("", int(figures["ready"]))]))
    gauge("millrace_uptime_seconds", "time since the start", iter([("", figures["uptime_s"])]))
    gauge("millrace_records", "live records in shared memory", _labelled("kind", figures["records"]))
    gauge("millrace_memory_reserved_bytes", "reserved shared memory", iter([("", memory["reserved_bytes"])]))
    gauge("millrace_memory_limit_bytes", "--memory", iter([("", memory["limit_bytes"])]))
    gauge("millrace_seq", "how far the order of changes has come", _labelled("state", seq))
    gauge("millrace_checkpoint_seq", "how far each database has come", _labelled("database", figures["checkpoints"]))
    gauge(
        "millrace_dirty_records", "changed records that wait for SQLite", iter([("", figures["dirty_records"])])
    )
    gauge(
        "millrace_flush_lag_seconds",
        "age of the oldest change not in SQLite",
        iter([("", figures["flush_lag_ms"] / 1000)]),
    )
    gauge("millrace_journal_bytes", "size of all journal segments", iter([("", figures["journal_bytes"])]))
    gauge(
        "millrace_dead_letters",
        "records that a database does not take",
        _labelled("database", figures["dead_letters"]),
    )
    gauge("millrace_open_connections", "open client connections", _of_processes(processes, "connections"))
    for name in dict.fromkeys(name for process in processes.values() for name in process if name not in _NOT_COUNTED):
        family = "millrace_" + name.removesuffix("_total")
        help_text = f"{name.replace('_', ' ')} of each process"
        lines.extend(_family(family, "counter", help_text, _of_processes(processes, name)))
    lines.append("# EOF\n")
    return "\n".join(lines).encode()


def _family(name: str, kind: str, help_text: str, samples: Samples) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    yield f"# HELP {name} {help_text}"
    suffix = "_total" if kind == "counter" else ""
    for labels, value in samples:
        yield f"{name}{suffix}{labels} {value}"


def _labelled(label: str, values: dict[str, int]) -> Samples:
    return ((f'{{{label}="{key}"}}', value) for key, value in values.items())


def _of_processes(processes: dict[str, dict[str, int]], name: str) -> Samples:
    return ((f'{{process="{process}"}}', found[name]) for process, found in processes.items() if name in found)
