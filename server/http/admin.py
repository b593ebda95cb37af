"""The admin port: health, readiness, figures, the dashboard; a flush and a replay of dead letters on demand.

All figures come from the shared segment: header words, and the counters that each process keeps in its own block. So
any worker answers for the whole server, and a dead process leaves its last figures behind.
"""

from __future__ import annotations

import time
from importlib.resources import files
from typing import Any

from server.commands import DATABASE_NAMES, PERSISTED_KINDS, Flush, Kind, Outcome, Reply, encode_json
from server.config import Durability
from server.errors import QueueFull
from server.http.dead_letters import Replayer
from server.http.exchange import Exchange, Later, Request
from server.http.metrics import CONTENT_TYPE, exposition
from server.http.replies import JSON, Replies
from server.http.routes import READ_METHODS, Queue, TargetInvalid, healthz, not_allowed, path_segments
from server.shm import counters, layout
from server.shm.counters import counters_block
from server.shm.segment import Segment

HTML = b"text/html; charset=utf-8"
# the page is one file without foreign parts; nothing else may run in it
PAGE_FIELDS = b"Content-Security-Policy: default-src 'self' 'unsafe-inline'; frame-ancestors 'none'\r\n"

_COMMON = {"pid": counters.PID, "starts": counters.STARTS, "errors": counters.ERRORS}
_WORKER = {
    "requests": counters.REQUESTS,
    "reads": counters.READS,
    "writes": counters.WRITES,
    "client_errors": counters.CLIENT_ERRORS,
    "server_errors": counters.SERVER_ERRORS,
    "connections": counters.CONNECTIONS,
    "connections_total": counters.CONNECTIONS_TOTAL,
    "messages": counters.MESSAGES,
    "resent": counters.RESENT,
    "slot_retries": counters.SLOT_RETRIES,
    "timeouts": counters.TIMEOUTS,
}
_MANAGER = {
    "batches": counters.BATCHES,
    "commands": counters.COMMANDS,
    "rejected": counters.REJECTED,
    "syncs": counters.SYNCS,
    "journal_refused": counters.JOURNAL_REFUSED,
    "groups": counters.GROUPS,
}
_PERSISTER = {"periods": counters.PERIODS, "rows_sent": counters.ROWS_SENT, "scans": counters.SCANS}
_WRITER = {
    "batches": counters.WRITER_BATCHES,
    "rows": counters.WRITER_ROWS,
    "dead_letters": counters.DEAD_LETTERS,
    "outages": counters.OUTAGES,
}


REFUSING_MS = 2000  # after the last refused write; without writes nobody knows whether there is space again


def readiness(segment: Segment) -> str:
    """Return why the server does not serve reads and writes, or an empty text when it does."""
    words = segment.words
    if words[layout.TABLE_STATE] != layout.TABLE_SERVING:
        return "the table is being loaded"
    if words[layout.READY_EPOCH] != words[layout.MANAGER_EPOCH]:
        return "the manager is being replaced: reads are served, writes are refused"
    refused_at_ms = words[layout.REFUSED_AT_MS]
    if refused_at_ms and time.monotonic() * 1000 - refused_at_ms < REFUSING_MS:
        return "the journal takes no writes, for want of space or at its limit: reads are served"
    return ""


def alarm(dead_letters: dict[str, int]) -> str:
    """Return what a person has to look at, or an empty text."""
    found = ", ".join(f"{name} {count}" for name, count in dead_letters.items() if count)
    return f"dead letters: {found}" if found else ""


def statistics(segment: Segment, worker_slots: int, now: float) -> dict[str, Any]:
    """Return the figures of the whole server."""
    words = segment.words
    dead_letters = {
        DATABASE_NAMES[kind]: counters_block(segment, counters.WRITER + kind)[counters.DEAD_LETTERS]
        for kind in PERSISTED_KINDS
    }
    started_ms = counters_block(segment, counters.SUPERVISOR)[counters.STARTED_MS]
    return {
        "ready": not readiness(segment),
        "alarm": alarm(dead_letters),
        "uptime_s": round(max(0.0, now - started_ms / 1000), 1) if started_ms else 0.0,
        "classic": bool(words[layout.CONTRACT]),
        "records": {DATABASE_NAMES[kind]: words[layout.RECORDS + kind] for kind in PERSISTED_KINDS}
        | {"purchases": words[layout.RECORDS + Kind.PURCHASE]},
        "memory": {"reserved_bytes": words[layout.RESERVED_BYTES], "limit_bytes": words[layout.MEMORY_BYTES]},
        "seq": {
            "published": words[layout.PUBLISHED_SEQ],
            "synced": words[layout.SYNCED_SEQ],
            "persisted": words[layout.PERSISTED_SEQ],
        },
        "checkpoints": {DATABASE_NAMES[kind]: words[layout.CHECKPOINT + kind] for kind in PERSISTED_KINDS},
        "dirty_records": dirty_records(words),
        "flush_lag_ms": flush_lag_ms(words),
        "dead_letters": dead_letters,
        "journal_bytes": words[layout.JOURNAL_BYTES],
        "manager_epoch": words[layout.MANAGER_EPOCH],
        "processes": _processes(segment, worker_slots),
    }


def flush_lag_ms(words: memoryview) -> int:
    """Return the age of the oldest change that is not in SQLite, too old by at most a period; 0 when there is none."""
    if words[layout.PUBLISHED_SEQ] <= words[layout.PERSISTED_SEQ]:
        return 0
    return max(0, int(time.monotonic() * 1000) - words[layout.UNFLUSHED_SINCE_MS])


def dirty_records(words: memoryview) -> int:
    """Return how many records wait for SQLite; one that changed again since the persister looked counts again."""
    return int(words[layout.DIRTY_RECORDS] + max(0, words[layout.DIRTY_HEAD] - words[layout.DIRTY_TAIL]))


def _processes(segment: Segment, worker_slots: int) -> dict[str, dict[str, int]]:
    processes = {
        "supervisor": _figures(segment, counters.SUPERVISOR, {}),
        "manager": _figures(segment, counters.MANAGER, _MANAGER),
        "persister": _figures(segment, counters.PERSISTER, _PERSISTER),
    }
    for kind in PERSISTED_KINDS:
        processes[f"writer-{DATABASE_NAMES[kind]}"] = _figures(segment, counters.WRITER + kind, _WRITER)
    for slot in range(worker_slots):
        figures = _figures(segment, counters.WORKER + slot, _WORKER)
        if figures["starts"]:
            processes[f"worker-{slot}"] = figures
    return processes


def _figures(segment: Segment, number: int, names: dict[str, int]) -> dict[str, int]:
    block = counters_block(segment, number)
    return {name: block[index] for name, index in (_COMMON | names).items()}


class Admin:
    """The service of the admin port."""

    def __init__(
        self, segment: Segment, worker_slots: int, replies: Replies, queue: Queue, replayer: Replayer
    ) -> None:
        self._segment = segment
        self._worker_slots = worker_slots
        self._replies = replies
        self._queue = queue
        self._replayer = replayer
        self._dashboard = files("server.http").joinpath("dashboard.html").read_bytes()
        self._pages = {
            "": self._page,
            "readyz": self._readyz,
            "stats": self._stats,
            "metrics": self._metrics,
        }

    def handle(self, request: Request, exchange: Exchange) -> bytes | Later:
        """Find what a request asks for."""
        try:
            segments = path_segments(request.target)
        except TargetInvalid:
            segments = []
        match segments:
            case ["", "healthz"]:
                return healthz(request, self._replies)
            case ["", "flush"]:
                return self._flush(request, exchange)
            case ["", "dead-letters", "replay"]:
                return self._replay(request, exchange)
            case ["", name] if name in self._pages:
                if request.method not in READ_METHODS:
                    return not_allowed(self._replies, b"GET, HEAD")
                return self._pages[name]()
        return self._replies.error(404, "there is nothing at this path")

    def _page(self) -> bytes:
        return self._replies.answer(200, HTML, self._dashboard, PAGE_FIELDS)

    def _readyz(self) -> bytes:
        reason = readiness(self._segment)
        return self._replies.unavailable(reason) if reason else self._replies.ok(b'{"status":"ready"}')

    def _stats(self) -> bytes:
        return self._replies.ok(encode_json(statistics(self._segment, self._worker_slots, time.time())))

    def _metrics(self) -> bytes:
        figures = statistics(self._segment, self._worker_slots, time.time())
        return self._replies.answer(200, CONTENT_TYPE, exposition(figures))

    def _replay(self, request: Request, exchange: Exchange) -> bytes | Later:
        if request.method != b"POST":
            return not_allowed(self._replies, b"POST")
        return self._replayer.start(exchange)

    def _flush(self, request: Request, exchange: Exchange) -> bytes | Later:
        """Have everything acknowledged so far written to SQLite; with `?wait=1` answer when it is."""
        if request.method != b"POST":
            return not_allowed(self._replies, b"POST")
        is_waited_for = b"wait=1" in request.target.partition(b"?")[2].split(b"&")

        def on_reply(reply: Reply | None) -> None:
            if is_waited_for:
                exchange.attempt(self._flushed, reply)

        try:
            self._queue.submit(Flush(), Durability.DATABASE, on_reply)
        except QueueFull:
            return self._replies.unavailable("the manager is being replaced")
        return Later.ANSWER if is_waited_for else self._replies.answer(202, JSON, b'{"status":"started"}')

    def _flushed(self, reply: Reply | None) -> bytes:
        if reply is None:
            return self._replies.error(504, "not all is in SQLite yet; what is not is in the journal")
        if reply.outcome is not Outcome.DONE:
            return self._replies.unavailable("the flush was refused; what is not in SQLite is in the journal")
        return self._replies.ok(b'{"seq":%d}' % reply.seq)
