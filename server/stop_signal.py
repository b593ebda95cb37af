"""The signal that asks a process of the back end to finish: SIGUSR1, as a descriptor for its selector.

SIGTERM, SIGINT and SIGHUP often go to the whole process group; the processes between memory and SQLite ignore them,
because only the supervisor knows when the last change has been taken in. It sends SIGUSR1.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignal:
    """Readable once the signal came; `is_set` says so from then on. Main thread of a process only, once."""

    def __init__(self) -> None:
        self.is_set = False
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in IGNORED_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGUSR1, self._handle)
        # the supervisor forks with its signals blocked, so that none is lost before this point
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*IGNORED_SIGNALS, signal.SIGUSR1))

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the form that signal asks for
        self.is_set = True

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._read_fd

    def drain(self) -> None:
        """Empty the pipe, so that a selector waits again; `is_set` stays."""
        try:
            os.read(self._read_fd, 512)
        except BlockingIOError:
            pass
