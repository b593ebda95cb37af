"""What a request costs, counted and never timed: system calls, messages, groups, syncs, bytes, rows to SQLite.

The kernel counts read(2) and write(2) with their relatives (readv, pwrite, ...) and their bytes in /proc/PID/io. The
loop of a worker uses them for the sockets of clients and the journal for its file; messages between processes are
send(2) and recv(2), which are not among them. The ticker of a worker only touches memory (measured: an idle worker
reads and writes nothing), so the counts here are exact.

Where it matters what waits at one moment, the process that would take it is stopped meanwhile (`held`).
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from server.commands import Kind
from server.http.replies import Clock
from server.journal.format import CHANGE_HEAD_BYTES, END_MARK, FRAME_HEADER_BYTES, Frame, decode_group
from server.journal.reader import Scan
from server.shm.segment import Segment
from server.shm.table import TableReader
from tests.support import RawClient, ServerProcess, request_bytes, running_server, wait_until

TIMEOUT_S = 10.0
PIPELINED = 16
ORDERS = 32  # in one segment: below the most that one connection may have without an answer, and one buffer of the loop
ROUNDS = 10  # so that what is spread over rounds shows
USERS = 300
# of one order in the answers of a journal group: heads of array, worker and body (1 each), number and seq (9 each)
ANSWER_BYTES_MAX = 21
ANSWERS_HEAD_BYTES_MAX = 3
GET = request_bytes("GET", "/user/7")
ORDER = request_bytes("POST", "/order", {"command": "place order", "product_id": 1, "user_id": 1, "quantity": 1})

needs_io = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="a kernel without CONFIG_TASK_IO_ACCOUNTING")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One worker, users 1 to USERS and product 1; rows go to SQLite only when a test says so."""
    path = tmp_path_factory.mktemp("costs") / "data"
    for server in running_server(path, "--persist-period-ms", "600000", "--journal-segment", "4MiB", workers=1):
        product = {"command": "create", "id": 1, "name": "lamp", "description": "x", "price": 1.5, "quantity": 10**6}
        creates = [request_bytes("POST", "/product", product)]
        for id in range(1, USERS + 1):
            user = {"command": "create", "id": id, "username": f"u{id}", "email": "e"}
            creates.append(request_bytes("POST", "/user", user))
        expect_200(server, creates)
        yield server


def expect_200(server: ServerProcess, requests: list[bytes]) -> list[bytes]:
    """Send the requests at once on a connection of their own; return the bodies of their answers."""
    with server.raw() as client:
        answers = client.pipeline(requests)
    assert {answer.status for answer in answers} == {200}
    return [answer.body for answer in answers]


@contextmanager
def connected(server: ServerProcess, connections: int) -> Iterator[list[RawClient]]:
    """Connections that the worker has accepted and served: nothing of their beginning is counted later.

    The worker has then also read the ends of all connections that were closed before.
    """
    with ExitStack() as stack:
        clients = [stack.enter_context(server.raw()) for _ in range(connections)]
        for client in clients:
            assert client.pipeline([GET])[0].status == 200
        yield clients


def stored(server: ServerProcess, kind: Kind, id: int) -> bytes:
    """Return a record as shared memory holds it: what stands in an answer behind `Content-Length: `."""
    segment = Segment.attach(server.run_json()["segment"])
    try:
        record = TableReader(segment).get(kind, id)
    finally:
        segment.close()
    assert record is not None
    return record


def state(pid: int) -> str:
    """Return the state of a process as in ps: R runs, S waits, T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


@contextmanager
def held(server: ServerProcess, role: str) -> Iterator[None]:
    """Stop a process: what it is sent gathers, as while it is busy."""
    pid = server.pids[role]
    os.kill(pid, signal.SIGSTOP)
    try:
        server.wait_until(lambda: state(pid) == "T", TIMEOUT_S, f"{role} is stopped")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Io:
    """Reads and writes of a process since this object was made."""

    def __init__(self, server: ServerProcess, role: str) -> None:
        self._pid = server.pids[role]
        self._before = self._read()

    def _read(self) -> Counter[str]:
        # the kernel counts a call when it is over, and the other side sees its bytes before: not until it waits again
        wait_until(lambda: state(self._pid) == "S", TIMEOUT_S, f"process {self._pid} waits")
        lines = Path(f"/proc/{self._pid}/io").read_text().splitlines()
        return Counter({name: int(value) for name, _, value in (line.partition(":") for line in lines)})

    def __getitem__(self, name: str) -> int:
        return self._read()[name] - self._before[name]


class Counts:
    """What the processes counted themselves since this object was made: `counts["manager", "syncs"]`."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._before = self._read()

    def _read(self) -> dict[str, dict[str, int]]:
        with self._server.admin() as admin:
            processes: dict[str, dict[str, int]] = admin.get("/stats").json["processes"]
        return processes

    def __getitem__(self, key: tuple[str, str]) -> int:
        process, name = key
        return self._read()[process][name] - self._before[process][name]

    def is_at(self, process: str, name: str, value: int) -> bool:
        return self[process, name] == value

    def of_writes(self) -> dict[str, int]:
        """Return what lies between the requests of clients and the disk."""
        now, found = self._read(), {}
        for process, names in (
            ("worker-0", ("writes", "messages")),
            ("manager", ("commands", "batches", "groups", "syncs")),
        ):
            found.update({name: now[process][name] - self._before[process][name] for name in names})
        return found


def flow(commands: int, messages: int, groups: int) -> dict[str, int]:
    """Return what `Counts.of_writes` has to be: one batch, one journal group and one sync belong together."""
    return {"writes": commands, "messages": messages, "commands": commands} | dict.fromkeys(
        ("batches", "groups", "syncs"), groups
    )


# ---- reads -------------------------------------------------------------------------------------------------------


@needs_io
def test_get_is_one_read_and_one_write(server: ServerProcess) -> None:
    answer_bytes = len(Clock(0).ok + stored(server, Kind.USER, 7))
    with connected(server, 1) as [client]:
        io = Io(server, "worker-0")
        for _ in range(500):
            client.pipeline([GET])
        assert (io["syscr"], io["syscw"]) == (500, 500)
        assert (io["rchar"], io["wchar"]) == (500 * len(GET), 500 * answer_bytes)


@needs_io
def test_pipelined_gets_of_one_segment_are_one_read_and_one_write(server: ServerProcess) -> None:
    with connected(server, 1) as [client]:
        io = Io(server, "worker-0")
        for _ in range(ROUNDS):
            client.pipeline([GET] * PIPELINED)
        assert (io["syscr"], io["syscw"]) == (ROUNDS, ROUNDS)


@needs_io
def test_gets_send_no_message_and_write_no_journal(server: ServerProcess) -> None:
    counts, io = Counts(server), Io(server, "manager")
    expect_200(server, [request_bytes("GET", path) for path in ("/user/1", "/product/1", "/user/purchased/1")])
    assert counts.of_writes() == flow(commands=0, messages=0, groups=0)
    assert (io["syscr"], io["syscw"]) == (0, 0)


@pytest.mark.parametrize("kind", [Kind.USER, Kind.PRODUCT, Kind.ORDER], ids=lambda kind: kind.name.lower())
def test_get_answers_the_stored_record_byte_for_byte(server: ServerProcess, kind: Kind) -> None:
    [order] = expect_200(server, [ORDER])
    id = json.loads(order)["id"] if kind is Kind.ORDER else 1
    record, clock, answer = stored(server, kind, id), Clock(0), b""
    with server.raw() as client:
        client.send(request_bytes("GET", f"/{kind.name.lower()}/{id}"))
        while len(answer) < len(clock.ok + record):
            data = client.socket.recv(1 << 16)
            assert data, answer
            answer += data
    date, head_end = answer.index(b"Date: "), answer.index(b"Content-Type: ")
    assert answer == clock.ok.replace(clock.date, answer[date:head_end]) + record
    assert kind is not Kind.ORDER or answer.endswith(order)


# ---- writes ------------------------------------------------------------------------------------------------------


@needs_io
def test_orders_of_one_segment_are_one_message_one_group_and_one_sync(server: ServerProcess) -> None:
    counts = Counts(server)
    with connected(server, 1) as [client]:
        worker, manager = Io(server, "worker-0"), Io(server, "manager")
        for _ in range(ROUNDS):
            assert {answer.status for answer in client.pipeline([ORDER] * ORDERS)} == {200}
        assert worker["syscr"] == ROUNDS
        assert worker["syscw"] <= ROUNDS * ORDERS
        assert (manager["syscr"], manager["syscw"]) == (0, ROUNDS)  # one pwrite for a group
    assert counts.of_writes() == flow(commands=ROUNDS * ORDERS, messages=ROUNDS, groups=ROUNDS)


@needs_io
def test_answers_to_orders_of_one_segment_are_one_write(server: ServerProcess) -> None:
    with connected(server, 1) as [client]:
        worker = Io(server, "worker-0")
        for _ in range(ROUNDS):
            client.pipeline([ORDER] * ORDERS)
        assert worker["syscw"] == ROUNDS


@needs_io
def test_orders_of_many_connections_in_one_loop_turn_are_one_message(server: ServerProcess) -> None:
    counts = Counts(server)
    with connected(server, 16) as clients:
        worker = Io(server, "worker-0")
        with held(server, "worker-0"):
            for client in clients:
                client.send(ORDER)
        assert {client.receive().status for client in clients} == {200}
        assert (worker["syscr"], worker["syscw"]) == (16, 16)
    assert counts.of_writes() == flow(commands=16, messages=1, groups=1)


@needs_io
def test_messages_that_gather_while_the_manager_is_busy_are_one_group_and_one_sync(server: ServerProcess) -> None:
    counts = Counts(server)
    with connected(server, 4) as clients:
        manager = Io(server, "manager")
        with held(server, "manager"):
            for sent, client in enumerate(clients, 1):
                client.send(ORDER * 8)
                is_sent = partial(counts.is_at, "worker-0", "messages", sent)
                server.wait_until(is_sent, TIMEOUT_S, f"message {sent} is sent")
        assert {client.receive().status for client in clients for _ in range(8)} == {200}
        assert manager["syscw"] == 1
    assert counts.of_writes() == flow(commands=32, messages=4, groups=1)


# ---- bytes of the journal ----------------------------------------------------------------------------------------


@needs_io
def test_journal_takes_the_records_once_and_a_bounded_head_for_each(server: ServerProcess) -> None:
    """A group is its header, one head and body per order, the product once, and who is to be answered.

    Its second write is looked at as well, because one of two can be longer: it fills blocks ahead of the log.
    """
    before, written = len(frames(server)), []
    for _ in range(2):
        manager = Io(server, "manager")
        bodies = expect_200(server, [ORDER] * ORDERS)
        written.append(manager["wchar"])
    groups = frames(server)[before:]
    assert len(groups) == 2
    data, frame = groups[-1]
    product = server.request("GET", "/product/1").body
    records_bytes = sum(map(len, bodies)) + len(product)
    heads_bytes = FRAME_HEADER_BYTES + (ORDERS + 1) * CHANGE_HEAD_BYTES
    answers_bytes = ORDERS * ANSWER_BYTES_MAX + ANSWERS_HEAD_BYTES_MAX
    assert frame.end - frame.offset <= heads_bytes + records_bytes + answers_bytes
    assert min(written) <= frame.end - frame.offset + len(END_MARK)
    changes = decode_group(data, frame, 1).changes
    assert sorted(change.body or b"" for change in changes) == sorted([*bodies, product])


def frames(server: ServerProcess) -> list[tuple[bytes, Frame]]:
    """Return every group of the journal and the bytes it stands in."""
    return [(data, frame) for _, data, frame in Scan(server.data_dir / "journal", None).walk()]


# ---- rows to SQLite ----------------------------------------------------------------------------------------------


def test_persister_sends_each_changed_record_once_and_no_other(server: ServerProcess) -> None:
    server.flush()
    counts = Counts(server)
    changed = range(1, USERS + 1, 10)
    with held(server, "persister"):  # all of it within one period
        for round in range(5):
            updates = [{"command": "update", "id": id, "email": f"e{round}"} for id in changed]
            expect_200(server, [request_bytes("POST", "/user", update) for update in updates])
            expect_200(server, [ORDER] * ORDERS)
    server.flush()
    assert counts["manager", "groups"] >= 10
    rows = {name: counts[f"writer-{name}", "rows"] for name in ("users", "products", "orders")}
    assert rows == {"users": len(changed), "products": 1, "orders": 5 * ORDERS}
    assert counts["persister", "rows_sent"] == sum(rows.values())
    assert counts["persister", "scans"] == 0
    assert {row[2] for row in server.rows("users") if row[0] in changed} == {"e4"}
