"""Saves what can be saved of a damaged journal, into a new directory. The source is only read.

Every sound group goes into the new journal, which a server opens like any other. The whole groups behind the damage go
as JSON lines into a file beside it: they can not be replayed, because what stood between is unknown (an after-image
may build on a lost one), but a person can see in them what was written.

What always holds: nothing is written before the place is known to be free, and not into the journal that is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from server.errors import JournalRefused, MillraceError
from server.journal.writer import Journal
from tools.journal.lines import line
from tools.journal.survey import Survey

# The new journal has room for everything once more, and for the segment being written and two spares beside.
SEGMENTS_EXTRA = 4


class SalvageRefused(MillraceError):
    """Nothing was saved."""


class Salvaged(NamedTuple):
    directory: Path
    groups: int
    last_seq: int
    later_groups: int
    later_path: Path  # there only if there are later groups
    later_seqs: tuple[int, int] | None  # the first and the last of them


def salvage(source: Path, instance: bytes | None, target: Path) -> Salvaged:
    """Write the new journal. Raises `SalvageRefused`, `MillraceError` of the journal, `OSError`."""
    later_path = target.with_name(target.name + ".after-damage.jsonl")
    if target.resolve().is_relative_to(source.resolve()):
        raise SalvageRefused(f"{target} is inside the journal that is read")
    if later_path.exists() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise SalvageRefused(f"{target} or {later_path.name} is there already")
    before = Survey(source, instance)
    for _ in before:  # the epoch of the last group is that of the new journal
        pass
    if before.instance is None or not before.is_readable:
        raise SalvageRefused(f"{source} holds no segment that can be read")
    sizes = [part.size for part in before.parts]
    segment_bytes = max(sizes)
    max_bytes = sum(sizes) + SEGMENTS_EXTRA * segment_bytes
    journal = Journal.open(target, before.instance, before.epoch, segment_bytes, max_bytes)
    try:
        return _copy(Survey(source, before.instance), journal, target, later_path)
    except JournalRefused as refused:
        raise SalvageRefused(f"{target}: {refused.detail}") from None
    finally:
        journal.close()


def _copy(survey: Survey, journal: Journal, target: Path, later_path: Path) -> Salvaged:
    later_fd = -1
    later_seqs: tuple[int, int] | None = None
    try:
        for found in survey:
            group = found.group
            if found.is_sound:
                journal.append(group.first_seq, group.count, group.changes, group.answers, sync=False)
                continue
            if later_fd < 0:
                later_fd = os.open(later_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            last_seq = group.first_seq + group.count - 1
            later_seqs = (later_seqs[0] if later_seqs else group.first_seq, last_seq)
            with open(later_fd, "wb", closefd=False) as file:
                file.write(line(found).encode() + b"\n")
        journal.sync()
        if later_fd >= 0:
            os.fsync(later_fd)
    finally:
        if later_fd >= 0:
            os.close(later_fd)
    counts = survey.sound_groups, survey.last_seq, survey.later_groups
    return Salvaged(target, *counts, later_path, later_seqs)


def describe(salvaged: Salvaged) -> str:
    """Say what is in the new journal, and what is not."""
    upto = f", up to seq {salvaged.last_seq}" if salvaged.groups else ""
    lines = [f"salvaged: {salvaged.groups} groups{upto} -> {salvaged.directory}"]
    if salvaged.later_seqs is not None:
        first, last = salvaged.later_seqs
        lines += [
            f"NOT salvaged: {salvaged.later_groups} whole groups behind the damage, seqs {first} to {last}"
            f" -> {salvaged.later_path}",
            f"gap: seqs {salvaged.last_seq + 1} to {first - 1} can not be read"
            if first > salvaged.last_seq + 1
            else "gap: no seq is missing between, but the groups are out of place",
            "The groups behind the gap can not be replayed safely. What the databases hold of them is not lost.",
            "A server that finds in one database what another has lost with the gap refuses to start on it.",
        ]
    return "\n".join(lines)
