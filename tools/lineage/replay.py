"""Commands that wait to be handled again by the services behind: what the caches of versions 1 and 2 note.

The order service has handled each of them for a client before there was a cache, and handles it the same way now:
checked again, forwarded again, committed again, one after the other so that each finds what the ones before it left.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, NamedTuple

from server.commands import Kind
from tools.connection import Answer
from tools.lineage.records import PATHS, Checked

log = logging.getLogger(__name__)

# Some 300 bytes each: 300 MB, hours of what the services behind can take. Above, a write is refused.
WAITING_MAX = 1_000_000


class Command(NamedTuple):
    """A command as it is sent on: the path and the fields of its body."""

    path: str
    fields: dict[str, Any]


class Waiting(deque[Command]):
    """Commands in the order of their acknowledgement."""

    @property
    def is_full(self) -> bool:
        return len(self) >= WAITING_MAX

    def say_stop_waits(self) -> None:
        """Say why a stop takes its time: 7,500 commands are some twenty seconds of commits."""
        if self:
            log.warning("the stop waits for the order service: commands=%d", len(self))

    def note(self, kind: Kind, checked: Checked) -> None:
        self.append(Command(PATHS[kind], checked.fields))


def check_replayed(command: Command, answer: Answer) -> None:
    """Say when the services behind did not accept what the cache had acknowledged: from then on they differ."""
    if answer.status != 200:
        log.error("acknowledged, but refused behind the cache: %s %s: %s", *command, answer)
