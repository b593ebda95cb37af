"""A child of the supervisor: a role, and the process that has it now.

Forked with the fork context, asked for explicitly (it is no longer the default on 3.14), from a process without
threads or loops. Signals stay blocked over the fork until the child has its own handlers, so none is lost or runs a
handler of the supervisor's.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

from setproctitle import setproctitle

from server.errors import MillraceError
from server.shm import counters
from server.shm.counters import counters_block
from server.shm.segment import Segment

log = logging.getLogger(__name__)

EXIT_OK, EXIT_CRASH, EXIT_START = 0, 1, 3

HEALTHY_S = 10.0  # a child that lived this long is restarted at once
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
NEVER = float("inf")

SUPERVISED_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
)
# Containers made and not freed since the last collection before there is another. What the loops make is freed by
# reference counts; Python's 700 had the manager search each third batch for cycles, a tenth of its time, and find none.
GC_ALLOCATIONS = 50_000
# Reads go first: where the cores are short, the manager takes larger batches, and the databases are written later.
NICENESS = {"manager": 5, "persister": 10, "writer": 10}
_CONTEXT = multiprocessing.get_context("fork")


@dataclass(slots=True)
class Child:
    """A role. `restart_at` is when its next process is due (monotonic s)."""

    name: str
    block: int  # of its counters
    stop_signal: signal.Signals
    main: Callable[[], int]
    process: BaseProcess | None = None
    started_at: float = 0.0
    restart_at: float = field(default=NEVER)
    is_ready: bool = False
    is_wanted: bool = False  # a death means a replacement
    is_told_to_leave: bool = False
    failures: int = 0  # deaths in a row before it was healthy

    @property
    def pid(self) -> int:
        """The pid of its process, 0 when there is none."""
        return 0 if self.process is None else self.process.pid or 0

    def start(self, segment: Segment) -> BaseProcess:
        """Fork a process for the role."""
        counters_block(segment, self.block)[counters.STARTS] += 1
        process = _CONTEXT.Process(target=_run, args=(self, segment))
        signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISED_SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SUPERVISED_SIGNALS)
        self.process = process
        self.started_at = time.monotonic()
        self.restart_at = NEVER
        self.is_ready, self.is_wanted, self.is_told_to_leave = False, True, False
        return process

    def tell_to_leave(self) -> None:
        """Ask the process to finish and leave; whether a new one follows is `is_wanted`."""
        self.is_told_to_leave = True
        if self.pid:
            os.kill(self.pid, self.stop_signal)

    def dismiss(self) -> None:
        """Let the process go, and none follow."""
        self.is_wanted = False
        self.restart_at = NEVER
        self.tell_to_leave()

    def take_exit_code(self, segment: Segment) -> int | None:
        """Return the exit code of the process that has ended (negative: the signal), and forget it."""
        process, self.process = self.process, None
        self.is_ready = False
        if process is None:
            return None
        process.join()
        code = process.exitcode
        process.close()
        counters_block(segment, self.block)[counters.PID] = 0
        return code

    def plan_restart(self) -> None:
        """Set when the next process is due: at once the first time, later and later if it keeps dying young."""
        now = time.monotonic()
        self.failures = 0 if now - self.started_at >= HEALTHY_S else self.failures + 1
        delay_s = 0.0 if self.failures <= 1 else min(BACKOFF_FIRST_S * 2 ** (self.failures - 2), BACKOFF_MAX_S)
        self.restart_at = now + delay_s

    def kill(self) -> None:
        """End the process now, if there is one, and wait for its end."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.join()
            process.close()


def _run(child: Child, segment: Segment) -> None:
    """In the child: take a name, run the role, leave with its code."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    role, _, which = child.name.partition("-")
    setproctitle(f"millrace: {role} {which}".rstrip())
    block = counters_block(segment, child.block)
    block[counters.PID] = os.getpid()
    block[counters.STARTED_MS] = int(time.time() * 1000)
    os.nice(NICENESS.get(role, 0))
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS)
    try:
        code = child.main()
    except MillraceError as error:
        block[counters.ERRORS] += 1
        log.error("%s can not go on: %s", child.name, error)
        code = EXIT_START
    except Exception:
        block[counters.ERRORS] += 1
        log.exception("%s crashed", child.name)
        code = EXIT_CRASH
    sys.exit(code)
