"""Every operating error of Millrace: one root, flat named leaves that carry values.

Text is made where an error is shown. Programmer errors are not here: they crash the process,
and the supervisor and the recovery own the rest.
"""

from __future__ import annotations

from pathlib import Path


class MillraceError(Exception):
    """Root of all errors that Millrace handles by name."""


class ConfigError(MillraceError):
    """A setting is not usable (exit code 4)."""


class StartError(MillraceError):
    """The server can not start here and now: port taken, data directory in use, no memory (exit code 3)."""


class DataError(MillraceError):
    """A file of the data directory can not be trusted; the server refuses to start and touches nothing."""

    def __init__(self, path: Path | str, detail: str, offset: int | None = None) -> None:
        super().__init__(path, detail, offset)
        self.path = Path(path)
        self.detail = detail
        self.offset = offset

    def __str__(self) -> str:
        at = "" if self.offset is None else f" at offset {self.offset}"
        return f"{self.path}{at}: {self.detail}"


class MemoryFull(MillraceError):
    """No shared memory is left for a new record (507)."""


class SlotBusy(MillraceError):
    """A slot stayed locked for all bounded retries: its writer was interrupted inside a slot write."""

    def __init__(self, slot: int) -> None:
        super().__init__(slot)
        self.slot = slot


class JournalRefused(MillraceError):
    """A group was not written and will never appear: the log end is as it was before (503 or 507)."""

    def __init__(self, detail: str, is_full: bool) -> None:
        super().__init__(detail, is_full)
        self.detail = detail
        self.is_full = is_full


class PeerGone(MillraceError):
    """The other end of a message socket was closed."""


class QueueFull(MillraceError):
    """The command queue holds its maximum (503)."""
