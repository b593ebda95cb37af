"""The admin port: figures from shared words, readiness, metrics, flush."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.commands import Flush, Kind, Outcome, ReplayDeadLetter
from server.config import Durability
from server.errors import DataError
from server.http.admin import REFUSING_MS, Admin, statistics
from server.http.dead_letters import REPLAY_MAX, Replayer
from server.http.endpoint import Endpoint
from server.http.metrics import exposition
from server.http.replies import Replies
from server.shm import counters, layout
from tests.http_fakes import NOW, FakeClient, FakeLoop, FakeServer, get

WORDS = (layout.COUNTERS_OFFSET + layout.COUNTERS_BYTES) // layout.WORD_BYTES


REPLAY = get("/dead-letters/replay", method="POST")


class ThreadlessLoop(FakeLoop):
    """Runs at once what belongs into a thread."""

    def run_in_executor(self, _: object, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        class Done:
            def result(self) -> Any:
                return function(*arguments)

            def add_done_callback(self, callback: Callable[[Any], object]) -> None:
                callback(self)

        return Done()  # type: ignore[return-value]


class FakeLetters:
    """Dead letters in a list; those in `stored` are gone when they are counted."""

    def __init__(self) -> None:
        self.dead: list[ReplayDeadLetter] = []
        self.stored: list[ReplayDeadLetter] = []
        self.error: DataError | None = None

    def oldest(self, count_max: int) -> list[ReplayDeadLetter]:
        if self.error is not None:
            raise self.error
        return self.dead[:count_max]

    def count(self, tried: Sequence[ReplayDeadLetter]) -> tuple[int, int]:
        if self.error is not None:
            raise self.error
        return sum(letter in self.stored for letter in tried), sum(letter not in self.stored for letter in self.dead)


class AdminServer(FakeServer):
    def __init__(self) -> None:
        super().__init__()
        self.loop = ThreadlessLoop()
        self.letters = FakeLetters()
        self.words = memoryview(bytearray(WORDS * 8)).cast("Q")
        self.segment: Any = SimpleNamespace(words=self.words)
        self.words[layout.TABLE_STATE] = layout.TABLE_SERVING
        self.words[layout.READY_EPOCH] = self.words[layout.MANAGER_EPOCH] = 3
        self.block(counters.WORKER)[counters.STARTS] = 1
        replies = Replies(self.clock, is_classic=False)
        replayer = Replayer(self.loop, replies, self.queue, self.letters)
        admin = Admin(self.segment, 2, replies, self.queue, replayer)
        self.endpoint = Endpoint(self.loop, self.config, self.clock, replies, self.counts, admin, {}, {}, 10)

    def block(self, number: int) -> memoryview:
        return counters.counters_block(self.segment, number)


@pytest.fixture
def server() -> AdminServer:
    return AdminServer()


@pytest.fixture
def client(server: AdminServer) -> FakeClient:
    return server.connect()


def test_ready_only_while_the_table_serves_and_the_manager_takes_commands(
    server: AdminServer, client: FakeClient
) -> None:
    assert client.request(get("/readyz")).json == {"status": "ready"}
    server.words[layout.REFUSED_AT_MS] = int(time.monotonic() * 1000)
    answer = client.request(get("/readyz"))
    assert answer.status == 503 and "journal" in answer.json["detail"] and "retry-after" in answer.fields
    server.words[layout.REFUSED_AT_MS] -= 2 * REFUSING_MS
    assert client.request(get("/readyz")).status == 200  # without another write nobody knows
    server.words[layout.MANAGER_EPOCH] = 4
    answer = client.request(get("/readyz"))
    assert answer.status == 503 and "manager" in answer.json["detail"] and "retry-after" in answer.fields
    server.words[layout.TABLE_STATE] = layout.TABLE_LOADING
    assert "loaded" in client.request(get("/readyz")).json["detail"]
    assert client.request(get("/healthz")).status == 200


def test_stats_are_the_shared_words(server: AdminServer, client: FakeClient) -> None:
    server.words[layout.RECORDS + Kind.ORDER] = 5
    server.words[layout.CHECKPOINT + Kind.PRODUCT] = 11
    server.words[layout.UNFLUSHED_SINCE_MS] = int(time.monotonic() * 1000) - 120
    server.words[layout.PUBLISHED_SEQ] = 12
    server.words[layout.PERSISTED_SEQ] = 11
    server.words[layout.DIRTY_RECORDS] = 3
    server.words[layout.DIRTY_HEAD], server.words[layout.DIRTY_TAIL] = 9, 7
    server.block(counters.SUPERVISOR)[counters.STARTED_MS] = int((NOW - 60) * 1000)
    server.block(counters.WORKER)[counters.REQUESTS] = 99
    server.block(counters.WRITER + Kind.ORDER)[counters.DEAD_LETTERS] = 1
    figures = client.request(get("/stats")).json
    assert figures["ready"] is True
    assert figures["records"] == {"users": 0, "products": 0, "orders": 5, "purchases": 0}
    assert figures["checkpoints"]["products"] == 11 and 120 <= figures["flush_lag_ms"] < 60_000
    assert figures["dirty_records"] == 5  # what the persister has not stored, and two changes it has not seen
    server.words[layout.PERSISTED_SEQ] = 12
    assert client.request(get("/stats")).json["flush_lag_ms"] == 0
    assert figures["processes"]["worker-0"]["requests"] == 99
    assert figures["processes"]["writer-orders"]["dead_letters"] == 1
    assert statistics(server.segment, 2, NOW)["uptime_s"] == 60.0


def test_worker_slots_that_never_ran_are_not_shown(client: FakeClient) -> None:
    assert [role for role in client.request(get("/stats")).json["processes"] if "worker" in role] == ["worker-0"]


def test_metrics_are_openmetrics(server: AdminServer, client: FakeClient) -> None:
    server.block(counters.WORKER)[counters.CONNECTIONS_TOTAL] = 12
    answer = client.request(get("/metrics"))
    assert answer.fields["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    text = answer.body.decode()
    assert text.endswith("# EOF\n") and 'millrace_connections_total{process="worker-0"} 12\n' in text
    families: list[str] = []
    for row in text.removesuffix("# EOF\n").splitlines():
        if row.startswith("# TYPE"):
            families.append(row.split()[2])
        assert re.fullmatch(
            r"# TYPE [a-z_]+ (gauge|counter)|# HELP [a-z_]+ .+|[a-z_]+(\{[a-z]+=\"[a-z0-9-]+\"\})? [0-9.e+-]+", row
        ), row
        if not row.startswith("#"):
            assert row.partition(" ")[0].partition("{")[0].removesuffix("_total") == families[-1]
    # `connections` is a gauge and `connections_total` a counter: one name can not be both
    assert len(families) == len(set(families))


def test_exposition_needs_nothing_but_the_figures(server: AdminServer) -> None:
    assert exposition(statistics(server.segment, 2, NOW)).endswith(b"# EOF\n")


def test_dashboard_has_no_foreign_parts(client: FakeClient) -> None:
    answer = client.request(get("/"))
    assert answer.status == 200 and answer.fields["content-type"].startswith("text/html")
    assert b"/stats" in answer.body and not re.search(rb"https?://|//[a-z]+\.", answer.body)
    assert "default-src 'self'" in answer.fields["content-security-policy"]


@pytest.mark.parametrize("path", ["/user/1", "/x", "/stats/x", "*", "/stat", "/dead-letters"])
def test_other_paths_are_404(client: FakeClient, path: str) -> None:
    assert client.request(get(path)).status == 404


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [
        ("/stats", "POST", "GET, HEAD"),
        ("/", "DELETE", "GET, HEAD"),
        ("/flush", "GET", "POST"),
        ("/dead-letters/replay", "GET", "POST"),
    ],
)
def test_other_methods_are_405(client: FakeClient, path: str, method: str, allow: str) -> None:
    answer = client.request(get(path, method=method))
    assert (answer.status, answer.fields["allow"]) == (405, allow)


def test_flush_waits_for_the_databases_when_asked(server: AdminServer, client: FakeClient) -> None:
    client.send(get("/flush?wait=1", method="POST"))
    assert client.output == b""
    assert server.queue.submitted[0][:2] == (Flush(), Durability.DATABASE)
    server.queue.answer()
    assert [answer.json for answer in client.take()] == [{"seq": 1}]


def test_flush_without_wait_answers_at_once(server: AdminServer, client: FakeClient) -> None:
    assert client.request(get("/flush", method="POST")).status == 202
    server.queue.answer()
    assert client.output == b""


@pytest.mark.parametrize(("outcome", "status"), [(None, 504), (Outcome.JOURNAL_FAILED, 503)])
def test_flush_that_fails_says_so(
    server: AdminServer, client: FakeClient, outcome: Outcome | None, status: int
) -> None:
    client.send(get("/flush?wait=1", method="POST"))
    server.queue.answer(outcome)
    assert [answer.status for answer in client.take()] == [status]


def test_flush_without_a_manager_is_503(server: AdminServer, client: FakeClient) -> None:
    server.queue.is_full = True
    assert client.request(get("/flush?wait=1", method="POST")).status == 503


# ---- dead letters


def test_dead_letters_of_each_database_raise_the_alarm(server: AdminServer, client: FakeClient) -> None:
    figures = client.request(get("/stats")).json
    assert figures["alarm"] == "" and figures["dead_letters"] == {"users": 0, "products": 0, "orders": 0}
    server.block(counters.WRITER + Kind.USER)[counters.DEAD_LETTERS] = 2
    server.block(counters.WRITER + Kind.ORDER)[counters.DEAD_LETTERS] = 1
    figures = client.request(get("/stats")).json
    assert figures["alarm"] == "dead letters: users 2, orders 1"
    assert figures["dead_letters"] == {"users": 2, "products": 0, "orders": 1}
    assert b'millrace_dead_letters{database="users"} 2\n' in client.request(get("/metrics")).body


def test_replay_tries_each_letter_and_counts_when_all_are_answered(server: AdminServer, client: FakeClient) -> None:
    server.letters.dead = [ReplayDeadLetter(Kind.USER, 7), ReplayDeadLetter(Kind.ORDER, 7)]
    server.letters.stored = server.letters.dead[:1]
    client.send(REPLAY)
    assert server.queue.commands == server.letters.dead
    assert {submitted.level for submitted in server.queue.submitted} == {Durability.DATABASE}
    server.queue.answer()
    assert client.output == b""
    server.queue.answer(Outcome.MISSING)  # deleted meanwhile
    assert [(answer.status, answer.json) for answer in client.take()] == [(200, {"replayed": 1, "still_dead": 1})]


def test_replay_without_dead_letters_does_nothing(server: AdminServer, client: FakeClient) -> None:
    assert client.request(REPLAY).json == {"replayed": 0, "still_dead": 0}
    assert server.queue.submitted == []


def test_replay_is_bounded(server: AdminServer, client: FakeClient) -> None:
    server.letters.dead = [ReplayDeadLetter(Kind.USER, id) for id in range(REPLAY_MAX + 1)]
    client.send(REPLAY)
    assert len(server.queue.submitted) == REPLAY_MAX


@pytest.mark.parametrize(("outcome", "status"), [(None, 504), (Outcome.JOURNAL_FULL, 503), (Outcome.MEMORY_FULL, 503)])
def test_replay_that_was_not_tried_says_so(
    server: AdminServer, client: FakeClient, outcome: Outcome | None, status: int
) -> None:
    server.letters.dead = [ReplayDeadLetter(Kind.USER, 7), ReplayDeadLetter(Kind.USER, 8)]
    client.send(REPLAY)
    server.queue.answer(outcome)
    server.queue.answer()
    assert [answer.status for answer in client.take()] == [status]


def test_replay_without_a_manager_is_503(server: AdminServer, client: FakeClient) -> None:
    server.letters.dead = [ReplayDeadLetter(Kind.USER, 7)]
    server.queue.is_full = True
    assert client.request(REPLAY).status == 503


def test_replay_of_an_unreadable_database_names_it(server: AdminServer, client: FakeClient) -> None:
    server.letters.error = DataError(Path("/x/users.db"), "database is locked")
    answer = client.request(REPLAY)
    assert answer.status == 503 and answer.json["detail"] == "users.db can not be read now: database is locked"
