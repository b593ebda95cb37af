"""The one configuration object. `run.py` builds it; it is passed down and never changed.

Nothing below `run.py` reads the command line, the environment or a configuration file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from server.errors import ConfigError

WORKERS_MAX = 64  # one counter block and one listening socket each; more processes than any target machine has cores
MEMORY_BYTES_MIN = 16 << 20  # the regions of an empty table and some records
MEMORY_BYTES_MAX = 1 << 40  # a slot addresses the arena with 36 bits of 8-byte units (512 GiB); region sizes stay sane
JOURNAL_SEGMENT_BYTES_MIN = 1 << 20  # the group of any one command fits into a segment
JOURNAL_SEGMENT_BYTES_MAX = 1 << 36  # positions have 40 bits for the offset
PERSIST_PERIOD_MS_MIN = 10
PERSIST_PERIOD_MS_MAX = 600_000

_SIZE = re.compile(r"([0-9]{1,20})\s*(B|KiB|MiB|GiB|TiB)?", re.IGNORECASE)
_UNITS = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


class Durability(IntEnum):
    """When a write is acknowledged. A batch is as durable as its most demanding command, so the order matters."""

    MEMORY = 0  # in the journal file (page cache) and published: survives kill -9 of every process
    JOURNAL = 1  # the journal frame is fdatasync'ed: survives a power cut
    DATABASE = 2  # the SQLite transaction is committed: visible to whoever opens the .db file


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings. Units last in the name; sizes in bytes, times in ms or s."""

    workers: int
    host: str = "127.0.0.1"
    port: int = 8000  # 0: let the kernel choose; `run.json` and the ready line tell
    admin_port: int = 8001
    data_dir: Path = Path("data")
    memory_bytes: int = 1 << 30
    durability: Durability = Durability.JOURNAL
    persist_period_ms: int = 1000
    classic: bool = False
    log_level: str = "info"
    log_format: str = "text"
    stop_timeout_s: float = 30.0  # how long a stop waits for the last flush before it leaves the rest in the journal
    write_timeout_s: float = 10.0  # an unanswered write gets 504 after this long
    header_timeout_s: float = 10.0  # from the first byte of a request to the end of its header section
    body_timeout_s: float = 30.0  # from the end of the header section to the end of the body
    idle_timeout_s: float = 75.0  # keep-alive without a request
    journal_segment_bytes: int = 64 << 20
    journal_max_bytes: int = 4 << 30  # at this size writes are refused until the databases caught up
    failpoints: str = ""  # server/failpoints.py; for tests, from the environment only

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming the first setting that is out of its range."""
        _check_range("workers", self.workers, 1, WORKERS_MAX)
        _check_range("port", self.port, 0, 65_535)
        _check_range("admin-port", self.admin_port, 0, 65_535)
        _check_range("memory", self.memory_bytes, MEMORY_BYTES_MIN, MEMORY_BYTES_MAX)
        _check_range("persist-period-ms", self.persist_period_ms, PERSIST_PERIOD_MS_MIN, PERSIST_PERIOD_MS_MAX)
        _check_range("stop-timeout-s", self.stop_timeout_s, 0, 86_400)
        _check_range("write-timeout-s", self.write_timeout_s, 0.1, 3_600)
        _check_range(
            "journal-segment", self.journal_segment_bytes, JOURNAL_SEGMENT_BYTES_MIN, JOURNAL_SEGMENT_BYTES_MAX
        )
        _check_range("journal-max", self.journal_max_bytes, 3 * self.journal_segment_bytes, 1 << 44)
        if self.port and self.port == self.admin_port:
            raise ConfigError(f"port and admin-port are both {self.port}")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigError(f"log-level must be debug, info, warning or error, not {self.log_level!r}")
        if self.log_format not in ("text", "json"):
            raise ConfigError(f"log-format must be text or json, not {self.log_format!r}")


def parse_size(text: str) -> int:
    """Return the bytes of `1GiB`, `512 MiB`, `4096`; raise `ConfigError` for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"not a size: {text!r} (examples: 512MiB, 1GiB)")
    return int(match[1]) * _UNITS[(match[2] or "B").lower()]


def parse_durability(text: str) -> Durability:
    """Return the level named by `memory`, `journal` or `database`; raise `ConfigError` for anything else."""
    for level in Durability:
        if level.name.lower() == text:
            return level
    raise ConfigError(f"not a durability: {text!r} (memory, journal, database)")


def parse_path(text: str) -> Path:
    """Return a path; raise `ConfigError` for an empty one, which would mean the current directory."""
    if not text:
        raise ConfigError("an empty path")
    return Path(text)


def parse_boolean(text: str) -> bool:
    """Return the truth of `true`, `1`, `yes`, `false`, `0`, `no`; raise `ConfigError` for anything else."""
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise ConfigError(f"not true or false: {text!r}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} must be between {low} and {high}, not {value}")
