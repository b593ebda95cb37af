"""`python -m tools journal check|dump DIR [--salvage NEWDIR]`: look at a journal without a server.

    check    each segment and its state, every fault with file and offset, and what a server would say
    dump     every group that is whole, as JSON lines; secrets are not shown

DIR is a data directory or its journal directory. Both only read, so they are safe beside a running server, and then
show what it had written at some moment: a group that is just being written looks like a torn tail, and because the
file grows while it is read, like damage at the end of the last segment, which a second check does not find again.
While no server runs, the lock of the data directory is held, so that none starts meanwhile. A salvage needs a journal
that rests.

Exit code: 0 clean or with a torn tail, 1 damaged, 2 nothing could be read.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from server.data_directory import Instance
from server.errors import DataError, MillraceError
from server.journal.reader import State
from tools.journal.lines import line
from tools.journal.salvage import SalvageRefused, describe, salvage
from tools.journal.survey import Part, Survey

EXIT_SOUND, EXIT_DAMAGED, EXIT_UNUSABLE = 0, 1, 2
JOURNAL_NAME = "journal"
READING_BESIDE = "a server has this data directory open: this only reads, and shows some moment of a growing log"


def main(arguments: list[str]) -> int:
    """Run `check` or `dump`, then the salvage if one is asked for."""
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tools journal", description=description)
    parser.add_argument("action", choices=("check", "dump"), help="check: what is damaged; dump: groups as JSON lines")
    parser.add_argument("directory", type=Path, metavar="DIR", help="a data directory or its journal directory")
    parser.add_argument(
        "--salvage", type=Path, metavar="NEWDIR", help="write a new journal with all groups before the damage"
    )
    options = parser.parse_args(arguments)
    try:
        return _run(options.action, options.directory, options.salvage)
    except BrokenPipeError:  # `| head` has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_SOUND
    except (MillraceError, OSError) as error:
        print(f"journal: {error}", file=sys.stderr)
        return EXIT_UNUSABLE


def _run(action: str, directory: Path, target: Path | None) -> int:
    directory = directory / JOURNAL_NAME if (directory / JOURNAL_NAME).is_dir() else directory
    if not directory.is_dir():
        raise DataError(directory, "there is no such directory")
    with _lock(directory.parent) as is_running:
        if is_running:
            print(f"note: {READING_BESIDE}", file=sys.stderr)
            if target is not None:
                raise SalvageRefused("a salvage needs a journal that no server writes: stop it first")
        instance = _instance(directory.parent)
        survey = Survey(directory, instance)
        for found in survey:
            if action == "dump":
                print(line(found))
        if not survey.parts and survey.state is State.CLEAN:
            raise DataError(directory, "there is no journal here: no segment in the directory")
        if action == "check":
            print(report(directory, survey))
        elif survey.findings:
            print(_findings(survey), file=sys.stderr)
        sys.stdout.flush()
        if target is not None:
            print(describe(salvage(directory, instance, target)), file=sys.stderr)
    if survey.state is not State.DAMAGED:
        return EXIT_SOUND
    return EXIT_DAMAGED if survey.is_readable else EXIT_UNUSABLE


def report(directory: Path, survey: Survey) -> str:
    """Return what `check` prints."""
    instance = "unknown" if survey.instance is None else survey.instance.hex()
    lines = [f"{directory}: {len(survey.parts)} segments, instance {instance}, epoch {survey.epoch}"]
    lines += [_describe_part(part) for part in survey.parts]
    lines.append(f"{survey.sound_groups} sound groups up to seq {survey.last_seq}, {survey.changes} changes in all")
    if survey.findings:
        lines.append(_findings(survey))
    if survey.later_groups:
        lines.append(f"{survey.later_groups} whole groups stand behind that: --salvage keeps them as JSON lines")
    lines.append(f"state: {survey.state.value}")
    return "\n".join(lines)


def _describe_part(part: Part) -> str:
    state = ", ".join(f"{finding.fault.value} at {finding.offset}" for finding in part.findings) or "clean"
    content = "no group"
    if part.group_numbers is not None and part.seqs is not None:
        content = f"groups {part.group_numbers[0]}-{part.group_numbers[1]} ({part.groups} whole)"
        content += f", seqs {part.seqs[0]}-{part.seqs[1]}"
    return f"  {part.path.name}  {state}: {content}, {part.end} of {part.size} bytes"


def _findings(survey: Survey) -> str:
    """Return the first bad place, and how many faults of each class there are."""
    first = survey.damage or survey.findings[0]
    counts = Counter(finding.fault.value for finding in survey.findings)
    return "\n".join(
        [
            f"first fault: {first.fault.value} in {first.path} at offset {first.offset}: {first.detail}",
            "faults: " + ", ".join(f"{name} {count}" for name, count in counts.items()),
        ]
    )


def _instance(data_dir: Path) -> bytes | None:
    """Return whose journal it has to be, if the directory around it says so."""
    try:
        return msgspec.json.decode((data_dir / "instance.json").read_bytes(), type=Instance).id
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        print(f"note: instance.json can not be read, any instance counts: {error}", file=sys.stderr)
        return None


@contextmanager
def _lock(data_dir: Path) -> Iterator[bool]:
    """Hold the lock of the data directory if no server has it; tell whether one does. A copy may have no lock."""
    try:
        descriptor = os.open(data_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield True
        else:
            yield False
    finally:
        os.close(descriptor)
