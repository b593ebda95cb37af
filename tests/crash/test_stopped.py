"""A worker or the persister stands still for a while, or the disk is slow: the others go on, and nothing is lost.

`test_faults.py` has the same for the manager.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from server.command_queue import QUEUE_DEPTH_MAX
from server.worker import DESCRIPTORS_RESERVED
from tests.crash.support import (
    PERIOD_MS,
    assert_nothing_lost,
    deaths,
    loaded,
    ports_of,
    stopped,
    wait_for_reads,
    wait_for_writes,
    wait_until_stopped,
)
from tests.support import Answer, Client, RawClient, ServerProcess, request_bytes
from tools.crash.history import Fate

CONNECTIONS = 40  # so many that every worker has some of them
STOPPED_S = 1.5
NOTICED_S = 0.75  # an answer that took longer was held up by what stands still; a busy machine takes some tenths
TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 1.0
ANSWERED_S = WRITE_TIMEOUT_S + 2.5  # the ticker of a worker adds a second, a busy machine the rest
SYNC_S = 1.0  # of a slow disk
BEYOND = 20  # so many writes more than the queue holds
READ_USER = request_bytes("GET", "/user/1")
USER = {"command": "create", "id": 1, "username": "before", "email": "before"}
CHANGE = {"command": "update", "id": 1, "username": "after", "email": "after"}
PRODUCT = {"command": "create", "id": 1, "name": "lamp", "description": "a lamp", "price": 1, "quantity": 100}
ORDER = {"command": "place order", "user_id": 1, "product_id": 1, "quantity": 1}


def user(id: int) -> bytes:
    """Return a request that creates a user."""
    return request_bytes("POST", "/user", {"command": "create", "id": id, "username": f"u{id}", "email": "e"})


def timed(request: Callable[[], Answer]) -> tuple[Answer, float]:
    """Return an answer and how long it took, in s."""
    begin = time.monotonic()
    return request(), time.monotonic() - begin


def answered(clients: list[RawClient]) -> list[RawClient]:
    """Return the connections on which something has arrived."""
    of_descriptor = {client.socket.fileno(): client for client in clients}
    poll = select.poll()
    for descriptor in of_descriptor:
        poll.register(descriptor, select.POLLIN)
    return [of_descriptor[descriptor] for descriptor, _ in poll.poll(0)]


# ---- a worker --------------------------------------------------------------------------------------------------


def connect(server: ServerProcess, stack: contextlib.ExitStack) -> tuple[list[RawClient], list[RawClient]]:
    """Return connections of the first worker, and those of the second."""
    clients = [stack.enter_context(server.raw()) for _ in range(CONNECTIONS)]
    assert {client.pipeline([READ_USER])[0].status for client in clients} == {200}
    ports = ports_of(server.pids["worker-0"])
    of_first = [client for client in clients if client.socket.getsockname()[1] in ports]
    return of_first, [client for client in clients if client not in of_first]


def test_stopped_worker_answers_later_and_the_others_do_not_notice(tmp_path: Path) -> None:
    """What it had sent to the manager is applied meanwhile; what it had not read yet waits in its connections."""
    with ServerProcess(tmp_path / "data", *PERIOD_MS, workers=2) as server:
        with loaded(server) as load, contextlib.ExitStack() as stack:
            wait_for_writes(server, load, 20)
            pids = server.pids
            of_stopped, of_other = connect(server, stack)
            with contextlib.ExitStack() as stop:
                with stopped(pids["manager"]):  # so that the answers come when the worker can not take them
                    wanted = writes_of_first(server) + len(of_stopped)
                    for id, client in enumerate(of_stopped):
                        client.send(user(100 + id))
                    server.wait_until(lambda: writes_of_first(server) >= wanted, TIMEOUT_S, "the manager has them")
                    stop.enter_context(stopped(pids["worker-0"]))
                begin = time.monotonic()
                for client in of_stopped:
                    client.send(READ_USER)
                queued = [stack.enter_context(server.raw()) for _ in range(CONNECTIONS)]
                for client in queued:
                    client.send(READ_USER)
                slowest = 0.0
                while time.monotonic() < begin + STOPPED_S:
                    for client in of_other:
                        answers, seconds = timed_pipeline(client)
                        assert [answer.status for answer in answers] == [200, 200]
                        slowest = max(slowest, seconds)
                assert slowest < NOTICED_S
                users = [request_bytes("GET", f"/user/{100 + id}") for id in range(len(of_stopped))]
                assert 200 in {answer.status for answer in of_other[0].pipeline(users)}, "nothing was applied"
                assert answered(of_stopped) == []
                assert 0 < len(answered(queued)) < len(queued), "the listeners share the connections"
            assert {client.receive().status for client in of_stopped + queued} == {200}
            assert {client.receive().status for client in of_stopped} == {200}
            wait_for_writes(server, load, 20)
        assert load.history.count(Fate.UNKNOWN) == 0, "a write was not answered"
        assert {write.fate for write in load.history.writes if write.value is not None} == {Fate.APPLIED}
        assert server.pids == pids
        assert_nothing_lost(server, load)


def writes_of_first(server: ServerProcess) -> int:
    """Return how many writes the first worker has sent to the manager."""
    return int(statistics(server)["processes"]["worker-0"]["writes"])


def timed_pipeline(client: RawClient) -> tuple[list[Answer], float]:
    """Read and write on one connection; return the answers and how long they took together, in s."""
    change = {"command": "update", "id": 1}
    begin = time.monotonic()
    answers = client.pipeline([READ_USER, request_bytes("POST", "/user", change)])
    return answers, time.monotonic() - begin


def test_worker_that_stood_still_over_the_death_of_the_manager_has_its_order_placed_once(tmp_path: Path) -> None:
    """The order was applied and not answered. The successor keeps the answer until the worker asks, however late."""
    plan = "manager.after_publish=stop@3"
    with ServerProcess(tmp_path / "data", *PERIOD_MS, workers=2, MILLRACE_FAILPOINTS=plan) as server:
        with server.client() as client, contextlib.ExitStack() as stack:
            assert client.post("/user", USER).status == client.post("/product", PRODUCT).status == 200
            of_stopped, of_other = connect(server, stack)
            of_stopped[0].send(request_bytes("POST", "/order", ORDER))
            manager = server.pids["manager"]
            wait_until_stopped(manager)
            with stopped(server.pids["worker-0"]):
                os.kill(manager, signal.SIGKILL)
                server.wait_until(lambda: server.pids.get("manager", manager) != manager, TIMEOUT_S, "a new manager")
                order = request_bytes("POST", "/order", ORDER)
                for other in of_other[:5]:  # the journal goes on, and the databases follow
                    server.wait_until(partial(is_taken, other, order), TIMEOUT_S, "orders are taken")
                seq = int(of_other[0].pipeline([request_bytes("POST", "/user", CHANGE)])[0].fields["write-seq"])
                server.wait_until(lambda: statistics(server)["seq"]["persisted"] >= seq, TIMEOUT_S, "all is stored")
            answer = of_stopped[0].receive()
            assert answer.status == 200 and int(answer.fields["write-seq"]) == 3
            assert of_other[0].pipeline([request_bytes("GET", "/user/purchased/1")])[0].json == {"1": 6}
            assert of_other[0].pipeline([request_bytes("GET", "/product/1")])[0].json["quantity"] == 94
        server.flush()
        assert len(server.rows("orders")) == 6
        assert deaths(server) == ["manager"]


def is_taken(client: RawClient, request: bytes) -> bool:
    return client.pipeline([request])[0].status == 200


def statistics(server: ServerProcess) -> dict[str, Any]:
    with server.admin() as admin:
        figures: dict[str, Any] = admin.get("/stats").json
        return figures


# ---- the persister ---------------------------------------------------------------------------------------------

JOURNAL_MAX_BYTES = 6 << 20
JOURNAL_LIMITS = ("--journal-segment", "1MiB", "--journal-max", "6MiB")
LARGE_TEXT = "x" * 4000
LARGE_BYTES = 2 * len(LARGE_TEXT)
LARGE_FIRST_ID = 1000
LARGE_COUNT_MAX = 2 * JOURNAL_MAX_BYTES // LARGE_BYTES  # more than the journal has room for
REFUSED_COUNT = 10


def journal_bytes(server: ServerProcess) -> int:
    return sum(path.stat().st_size for path in (server.data_dir / "journal").iterdir())


def test_persister_that_stands_still_fills_the_journal_and_catches_up(tmp_path: Path) -> None:
    """Writes are acknowledged until the journal is full, then refused; the databases have what was acknowledged."""
    with ServerProcess(tmp_path / "data", *PERIOD_MS, *JOURNAL_LIMITS) as server:
        with loaded(server) as load, server.client() as client:
            wait_for_writes(server, load, 20)
            server.flush()
            small = journal_bytes(server)
            with stopped(server.pids["persister"]):
                before = statistics(server)
                applied, refused = fill_journal(client)
                assert len(applied) > (JOURNAL_MAX_BYTES - small) // LARGE_BYTES // 2, "refused too early"
                assert small < journal_bytes(server) <= JOURNAL_MAX_BYTES
                assert statistics(server)["checkpoints"] == before["checkpoints"]
                wait_for_reads(server, load, 50)
                assert [client.get(f"/product/{id}").status for id in refused] == [404] * len(refused)
            again = {"command": "update", "id": applied[-1]}
            server.wait_until(lambda: client.post("/product", again).status == 200, TIMEOUT_S, "writes are taken again")
            wait_for_writes(server, load, 20)
        assert load.history.count(Fate.UNKNOWN) == 0, "a write was not answered"
        assert deaths(server) == []
        assert_nothing_lost(server, load)
        assert [row[0] for row in server.rows("products") if row[0] >= LARGE_FIRST_ID] == applied
        assert journal_bytes(server) < JOURNAL_MAX_BYTES, "no segment was given up"


def fill_journal(client: Client) -> tuple[list[int], list[int]]:
    """Create products until there is no room; return the ids of those acknowledged, and of those refused.

    A group can be refused and a later one, which is smaller, still have room in the last segment.
    """
    applied: list[int] = []
    refused: list[int] = []
    while len(refused) < REFUSED_COUNT:
        id = LARGE_FIRST_ID + len(applied) + len(refused)
        assert id < LARGE_FIRST_ID + LARGE_COUNT_MAX, "the journal has no limit"
        product = PRODUCT | {"id": id, "name": LARGE_TEXT, "description": LARGE_TEXT}
        answer, seconds = timed(partial(client.post, "/product", product))
        assert seconds < NOTICED_S
        assert answer.status in (200, 503), answer
        if answer.status == 503:
            assert int(answer.fields["retry-after"]) >= 0
        (applied if answer.status == 200 else refused).append(id)
    return applied, refused


def test_write_that_asks_for_the_database_ends_in_time_while_the_persister_stands_still(tmp_path: Path) -> None:
    """504 is not a refusal: the write is there, for all to read, and goes to the database later."""
    with ServerProcess(tmp_path / "data", *PERIOD_MS, "--write-timeout-s", str(WRITE_TIMEOUT_S)) as server:
        with server.client() as client:
            assert client.post("/user", USER, Durability="database").status == 200
            with stopped(server.pids["persister"]):
                answer, seconds = timed(lambda: client.post("/user", CHANGE, Durability="database"))
                assert answer.status == 504 and WRITE_TIMEOUT_S <= seconds < ANSWERED_S
                assert client.get("/user/1").json["username"] == "after"
                assert [row[1] for row in server.rows("users")] == ["before"]
            assert client.post("/user", {"command": "update", "id": 1}, Durability="database").status == 200
        assert [row[1] for row in server.rows("users")] == ["after"]


# ---- the disk --------------------------------------------------------------------------------------------------


def test_write_in_a_slow_sync_is_slow_and_reads_are_not_and_do_not_see_it(tmp_path: Path) -> None:
    plan = f"journal.before_sync=sleep:{SYNC_S * 1000:.0f}@2"
    with ServerProcess(tmp_path / "data", MILLRACE_FAILPOINTS=plan) as server, server.raw() as writer:
        assert server.request("POST", "/user", USER).status == 200
        with server.client() as reader:
            begin = time.monotonic()
            writer.send(request_bytes("POST", "/user", CHANGE))
            slowest, count = 0.0, 0
            while not answered([writer]):
                answer, seconds = timed(lambda: reader.get("/user/1"))
                slowest, count = max(slowest, seconds), count + 1
                if time.monotonic() < begin + SYNC_S:
                    assert answer.json["username"] == "before", "a power cut now would take back what was read"
            assert time.monotonic() >= begin + SYNC_S
            assert writer.receive().status == 200
            assert slowest < SYNC_S / 2 and count > 50
            assert reader.get("/user/1").json["username"] == "after"


def test_write_that_its_sync_keeps_too_long_ends_in_time_and_is_applied_once(tmp_path: Path) -> None:
    """The client does not know, so it asks again with the same key: it is told what became of the first one."""
    plan = "journal.before_sync=sleep:3500@3"
    arguments = (*PERIOD_MS, "--write-timeout-s", str(WRITE_TIMEOUT_S))
    with ServerProcess(tmp_path / "data", *arguments, MILLRACE_FAILPOINTS=plan) as server, server.client() as client:
        assert client.post("/user", USER).status == client.post("/product", PRODUCT).status == 200
        answer, seconds = timed(lambda: client.post("/order", ORDER, Idempotency_Key="order-1"))
        assert answer.status == 504 and WRITE_TIMEOUT_S <= seconds < ANSWERED_S
        assert client.get("/product/1").json["quantity"] == 100

        def ask_again() -> Answer | None:
            again = client.post("/order", ORDER, Idempotency_Key="order-1")
            assert again.status in (200, 503, 504), again
            return again if again.status == 200 else None

        again = server.wait_until(ask_again, TIMEOUT_S, "the answer")
        assert again is not None
        assert int(again.fields["write-seq"]) == 3
        assert client.get("/product/1").json["quantity"] == 99
        server.flush()
        assert len(server.rows("orders")) == 1


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_refused_while_every_sync_is_slow(tmp_path: Path) -> None:
    """Whoever waits for the same sync shares the next one: twice the time is the most that a write takes."""
    plan = "journal.before_sync=sleep:200@20-30"
    with ServerProcess(tmp_path / "data", *PERIOD_MS, MILLRACE_FAILPOINTS=plan) as server:
        with loaded(server) as load:
            wait_for_reads(server, load, 100)
            wait_for_writes(server, load, 50)
        times = [write.replied - write.invoked for write in load.history.writes]
        assert 0.2 <= max(times) < 0.4 + NOTICED_S
        assert load.history.count(Fate.UNKNOWN) == 0
        assert {write.fate for write in load.history.writes if write.value is not None} == {Fate.APPLIED}
        assert deaths(server) == []
        assert_nothing_lost(server, load)


@pytest.mark.slow
def test_writes_beyond_the_queue_are_refused_at_once_while_a_sync_is_slow(tmp_path: Path) -> None:
    """What the queue holds is applied when the disk is done; what it refused never is."""
    allow_connections(QUEUE_DEPTH_MAX + BEYOND)
    plan = "journal.before_sync=sleep:3000@2"
    with ServerProcess(tmp_path / "data", workers=1, MILLRACE_FAILPOINTS=plan) as server, server.client() as client:
        assert client.post("/user", USER).status == 200
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(server.raw()) for _ in range(QUEUE_DEPTH_MAX + BEYOND)]
            for id, writer in enumerate(writers):
                writer.send(user(id + 2))
            server.wait_until(lambda: len(answered(writers)) >= BEYOND, TIMEOUT_S, "what is too much is refused")
            refused = answered(writers)
            assert len(refused) == BEYOND
            answer, seconds = timed(lambda: client.get("/user/1"))
            assert answer.status == 200 and seconds < NOTICED_S
            fates = {id + 2: writer.receive() for id, writer in enumerate(writers)}
        for id, answer in fates.items():
            assert answer.status == (503 if writers[id - 2] in refused else 200)
            assert answer.status == 200 or int(answer.fields["retry-after"]) >= 0
        server.flush()
        assert [row[0] for row in server.rows("users")] == [1, *(id for id in fates if fates[id].status == 200)]


def allow_connections(count: int) -> None:
    """Let this process, and the server it starts, have so many connections; skip where that is not allowed."""
    needed = count + DESCRIPTORS_RESERVED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < needed:
        pytest.skip(f"{hard} descriptors are too few")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
