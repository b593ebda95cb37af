"""Failpoints: named points of the durable path at which a test makes a process die, stop, fail or wait.

They are armed only through the environment variable MILLRACE_FAILPOINTS, which `run.py` reads into the configuration:

    journal.after_write=die@3;writer.in_transaction=errno:ENOSPC@2;manager.load=die@1-5;journal.before_sync=sleep:200

    action       what happens                                 @N, @N-M
    die          SIGKILL to the process itself                 only at the N-th (to the M-th) passage of this point in
    stop         SIGSTOP to the process itself                 this run of the server, whichever process passes it, so
    errno:NAME   OSError with that number                      that the replacement of a dead process does not begin to
    sleep:MS     the process waits so long                     count again; without it at every passage

    point                         passed by     when
    manager.start                 manager       before it looks at anything
    load.start                    manager       first load: nothing is done yet
    load.journal_open             manager       first load: the torn tail is cut
    load.reset                    manager       first load: the table is empty
    load.loaded                   manager       first load: all records are in the table, nothing is served yet
    takeover.journal_open         manager       after a death: the torn tail is cut
    takeover.group_redone         manager       after each group that was published again
    takeover.redone               manager       after all of them, before slots left locked are released
    takeover.unlocked             manager       after that
    manager.before_ready          manager       after the greeting to the workers, before it counts as ready
    manager.before_append         manager       a batch is applied on the overlay and has its room in memory
    journal.before_write          manager       before the frame is written; an errno is a failed write
    journal.after_write           manager       the frame is in the page cache; an errno is a failed write
    journal.before_sync           manager       before the sync of a frame; an errno is a failed sync
    journal.after_sync            manager       the frame is durable, nothing of it is published
    manager.in_publish            manager       half of the slots of a batch are published
    manager.before_dirty          manager       all slots are published, the persister does not know
    manager.after_publish         manager       published and marked dirty, nobody has an answer
    manager.half_answered         manager       one worker has its answers, the others do not
    manager.before_retire         manager       checkpoints have moved, journal segments and tombstones are still there
    worker.before_replies         workers       the manager's answers are here, no client has one
    persister.before_diff         persister     a period begins
    persister.in_diff             persister     the dirty slots are taken and known nowhere else
    persister.after_diff          persister     every feed knows its slots, no batch is made
    persister.batch_sent          persister     a batch went to its writer, those of the others may not have
    persister.before_report       persister     a batch is committed, the checkpoint in shared memory is the old one
    writer.before_begin           writers       a complete batch is there, no transaction yet
    writer.in_transaction         writers       rows and checkpoint are written, not committed
    writer.after_commit           writers       committed, the persister does not know
    supervisor.before_restart     supervisor    a child is dead, its replacement is not forked yet

What always holds: without the variable a point costs one call that does nothing, and it is passed once per batch,
message or period, never per command or per slot. An armed point counts in a file without a name that all processes
of a run inherit, under a record lock, which the kernel releases when its holder dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from server.errors import ConfigError

Failpoint = Callable[[str], None]  # called with the name of the point that is passed

NAMES = frozenset(
    (
        "manager.start", "load.start", "load.journal_open", "load.reset", "load.loaded", "takeover.journal_open",
        "takeover.group_redone", "takeover.redone", "takeover.unlocked", "manager.before_ready",
        "manager.before_append", "journal.before_write", "journal.after_write", "journal.before_sync",
        "journal.after_sync", "manager.in_publish", "manager.before_dirty", "manager.after_publish",
        "manager.half_answered", "manager.before_retire", "worker.before_replies", "persister.before_diff",
        "persister.in_diff", "persister.after_diff", "persister.batch_sent", "persister.before_report",
        "writer.before_begin", "writer.in_transaction", "writer.after_commit", "supervisor.before_restart",
    )
)  # fmt: skip
ALWAYS = 1 << 62  # more passages than any run has
COUNT_BYTES = 8

_STEP = re.compile(r"(?P<name>[a-z_.]+)=(?P<action>[a-z]+)(:(?P<argument>\w+))?(@(?P<first>\d+)(-(?P<last>\d+))?)?")


class Step(NamedTuple):
    """What to do at some of the passages of a point."""

    first: int
    last: int
    action: str
    argument: int  # errno, or ms


class Failpoints:
    """An armed plan. Made by the supervisor before the fork; a call is a passage."""

    def __init__(self, text: str) -> None:
        """Raise `ConfigError` for a plan that can not be read."""
        self._plan = parse_plan(text)
        self._offsets = {name: number * COUNT_BYTES for number, name in enumerate(sorted(self._plan))}
        self._fd = os.memfd_create("failpoints", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, len(self._plan) * COUNT_BYTES)

    def __call__(self, name: str) -> None:
        """Count the passage of a point and do what the plan says for it."""
        steps = self._plan.get(name)
        if steps:
            passage = self._count(self._offsets[name])
            for step in steps:
                if step.first <= passage <= step.last:
                    _act(step)

    def passages(self, name: str) -> int:
        """Return how often a point of the plan was passed, by any process."""
        return int.from_bytes(os.pread(self._fd, COUNT_BYTES, self._offsets[name]), "little")

    def _count(self, offset: int) -> int:
        fcntl.lockf(self._fd, fcntl.LOCK_EX, COUNT_BYTES, offset)  # several workers and writers pass the same point
        try:
            passage = int.from_bytes(os.pread(self._fd, COUNT_BYTES, offset), "little") + 1
            os.pwrite(self._fd, passage.to_bytes(COUNT_BYTES, "little"), offset)
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, COUNT_BYTES, offset)
        return passage


def make_failpoint(text: str) -> Failpoint:
    """Return what every process calls at its points; nothing happens there when the text is empty."""
    return Failpoints(text) if text else not_armed


def not_armed(_name: str) -> None:
    """Pass a point in a server that runs for real."""


def parse_plan(text: str) -> dict[str, list[Step]]:
    """Return the steps of each point that is named. Raises `ConfigError`."""
    plan: dict[str, list[Step]] = {}
    for entry in filter(None, text.split(";")):
        match = _STEP.fullmatch(entry.strip())
        if match is None:
            raise ConfigError(f"failpoints: not point=action[:argument][@N[-M]]: {entry!r}")
        if match["name"] not in NAMES:
            raise ConfigError(f"failpoints: no such point: {match['name']!r}")
        first = int(match["first"] or 1)
        last = int(match["last"] or match["first"] or ALWAYS)
        step = Step(first, last, match["action"], _argument(match["action"], match["argument"]))
        plan.setdefault(match["name"], []).append(step)
    return plan


def _argument(action: str, text: str | None) -> int:
    if action in ("die", "stop") and text is None:
        return 0
    if action == "errno" and hasattr(errno, text or ""):
        return int(getattr(errno, text or ""))
    if action == "sleep" and text is not None and text.isdecimal():
        return int(text)
    raise ConfigError(f"failpoints: not die, stop, errno:NAME or sleep:MS: {action!r} {text or ''!r}")


def _act(step: Step) -> None:
    match step.action:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "errno":
            raise OSError(step.argument, os.strerror(step.argument))
        case "sleep":
            time.sleep(step.argument / 1000)
