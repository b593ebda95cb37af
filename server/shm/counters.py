"""Counters: one block of words per process, written by that process alone, read by everybody.

A block is a plain memoryview of words (`block[REQUESTS] += 1`). It stays behind when its process dies, and its
successor goes on counting in it.
"""

from __future__ import annotations

from server.shm import layout
from server.shm.segment import Segment

# block numbers
SUPERVISOR = 0
MANAGER = 1
PERSISTER = 2
WRITER = 3  # + kind
WORKER = 6  # + worker slot

# every process
PID = 0
STARTED_MS = 1  # unix time in ms of this incarnation
STARTS = 2  # how often the role was started; written by the supervisor before the fork
ERRORS = 3  # unexpected errors: each one is in the log

# worker
REQUESTS = 8
READS = 9  # answered from shared memory
WRITES = 10  # commands sent to the manager
CLIENT_ERRORS = 11  # answers 4xx
SERVER_ERRORS = 12  # answers 5xx
CONNECTIONS = 13  # open now
CONNECTIONS_TOTAL = 14
MESSAGES = 15  # messages to the manager: WRITES / MESSAGES is the batching of the worker
RESENT = 16  # commands sent again to a new manager
SLOT_RETRIES = 17  # reads that met a locked slot
TIMEOUTS = 18  # writes answered 504

# manager
BATCHES = 8
COMMANDS = 9
REJECTED = 10
SYNCS = 11
JOURNAL_REFUSED = 12
GROUPS = 13

# persister
PERIODS = 8
ROWS_SENT = 9
SCANS = 10

# writer
WRITER_BATCHES = 8
WRITER_ROWS = 9
DEAD_LETTERS = 10
OUTAGES = 11  # batches that had to wait: locked, full, input/output error


def counters_block(segment: Segment, number: int) -> memoryview:
    """Return the words of block `number`."""
    start = layout.COUNTERS_OFFSET // layout.WORD_BYTES + number * layout.COUNTER_WORDS
    return segment.words[start : start + layout.COUNTER_WORDS]
