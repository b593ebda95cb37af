"""What a request costs within the processes, counted and never timed: calls, memory, writes, syncs of the disk."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from server.commands import Kind, Product, User, encode_json
from server.http.protocol import Connection
from server.manager import Manager
from server.message_socket import message_pair
from server.shm import counters, layout
from server.shm.counters import counters_block
from server.shm.table import IS_STRONGLY_ORDERED
from server.worker import Worker
from tests.backend import Backend, make_backend
from tests.http_fakes import FakeTransport, get, post

REQUESTS = 1000
WRITES = 400
WARM = 300  # requests until counters have left the small integers and everything that is kept is there
SLACK_BLOCKS = 16  # of Python's allocator, that come by themselves: integers of counters, a dict that is resized
SLACK_BYTES = 256  # the same, and the heads of the few objects that live at one time
# of one GET: data_received, bytes.partition, dict.get for the writes and for the header section; find_record,
# bytes.rpartition, dict.get, bytes.isdigit; the read of the record; transport.write
CALLS_PER_GET_MAX = 10
TURNS_MAX = 10
ORDERS = 8
GET = get("/user/1")
UPDATE = post("/user", {"command": "update", "id": 1, "email": "new@example.com"})
ORDER = post("/order", {"command": "place order", "product_id": 1, "user_id": 1, "quantity": 1})
NOT_OURS = b'{ "id" : 1 }'  # no encoder of this server writes it like this


class Sink(FakeTransport):
    """Keeps the last write only, so that the test itself does not grow."""

    def write(self, data: bytes) -> None:
        self.output = data
        self.writes += 1


class OneProcess:
    """The whole way of a request in one process: a connection of a real worker, a real manager, journal and table."""

    def __init__(self, backend: Backend) -> None:
        self.shared = replace(backend.shared, command_pairs=[message_pair()])
        backend.words[layout.MANAGER_EPOCH] = 1
        backend.words[layout.NEXT_ORDER_ID] = 1
        counters_block(self.shared.segment, counters.WORKER)[counters.PID] = os.getpid()
        self.manager = Manager(backend.config, self.shared, 1)
        self.manager.recover()
        self.loop = asyncio.new_event_loop()
        self.worker = Worker(backend.config, self.shared, 0, self.loop)
        endpoint = self.worker._public
        self.counts = endpoint.counts
        self.transport = Sink()
        self.connection = Connection(endpoint)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def get(self, data: bytes = GET) -> bytes:
        """Send reads; return what was written last."""
        self.connection.data_received(data)
        return self.transport.output

    def writes(self, data: bytes, commands: int, rounds: int) -> Iterator[None]:
        """Send writes, let the manager take them when the caller resumes, and wait for the answers; so many times."""
        for _ in range(rounds):
            answered = self.counts.exchanges + commands
            self.connection.data_received(data)
            self._turn_until(self._has_manager_work)
            yield
            self._turn_until(partial(self._is_answered, answered))

    def _has_manager_work(self) -> bool:
        return bool(select.select([self.shared.command_pairs[0][1]], [], [], 0)[0])

    def _is_answered(self, exchanges: int) -> bool:
        return self.counts.exchanges == exchanges

    def serve(self, *steps: Iterator[None]) -> None:
        """Run the manager's loop through the steps of the worker (once: a manager has one life)."""
        stop = Steps(iter((None,)), *steps)  # the first turn takes the queue's greeting
        try:
            self.manager.run(stop)  # type: ignore[arg-type]
        finally:
            stop.close()

    def _turn_until(self, condition: Callable[[], bool]) -> None:
        """Let the worker's loop turn, at least once."""
        for _ in range(TURNS_MAX):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
            if condition():
                return
        raise AssertionError("the worker's loop stands still")

    def close(self) -> None:
        self.manager.close()
        self.worker.close()
        self.loop.close()
        for end in self.shared.command_pairs[0]:
            end.close()


class Steps:
    """Stands in for the stop signal: the manager asks it before every turn of its loop, so it plays the worker then."""

    def __init__(self, *steps: Iterator[None]) -> None:
        self._steps = (None for step in steps for _ in step)
        self._read_fd, self._write_fd = os.pipe()

    @property
    def is_set(self) -> bool:
        return next(self._steps, self) is self

    def fileno(self) -> int:
        return self._read_fd

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)


@pytest.fixture
def server() -> Iterator[OneProcess]:
    with make_backend(journal_segment_bytes=4 << 20) as backend:
        backend.put(Kind.USER, 1, encode_json(User(1, "ann", "ann@example.com")))
        backend.put(Kind.USER, 2, NOT_OURS)
        backend.put(Kind.PRODUCT, 1, encode_json(Product(1, "lamp", "a lamp", 1.5, 10**6)))
        server = OneProcess(backend)
        yield server
        server.close()
        del server, backend  # their views of the segment


@contextmanager
def without_collector() -> Iterator[None]:
    """Nothing that a request leaves behind is cleared away later: it goes with its last reference, or it shows."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def growth(step: Callable[[], object], times: int) -> int:
    """Return by how many blocks the memory of this process grows."""
    before = sys.getallocatedblocks()
    for _ in range(times):
        step()
    return sys.getallocatedblocks() - before


def peak_bytes(step: Callable[[], object], times: int) -> int:
    """Return how much memory was taken at most, beyond what was taken before."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(times):
        step()
    return tracemalloc.get_traced_memory()[1] - before


# ---- reads -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not IS_STRONGLY_ORDERED, reason="each read also verifies a checksum here")
def test_get_takes_the_fast_path_and_few_calls(server: OneProcess) -> None:
    for _ in range(3):  # then its header section is known, the size of the table, and the place of the record
        server.get()
    calls: list[str] = []

    def count(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            calls.append(frame.f_code.co_name if event == "call" else argument.__name__)

    sys.setprofile(count)
    try:
        server.connection.data_received(GET)
    finally:
        sys.setprofile(None)
    assert len(calls[:-1]) <= CALLS_PER_GET_MAX, " ".join(calls)  # the last one ends the profile
    assert server.counts.exchanges == 1 and server.counts.fast_reads == 3


def test_gets_are_answered_in_one_write(server: OneProcess) -> None:
    for data in (GET, GET, GET * 16, get("/user/purchased/1") + GET, get("/user/1?careful=path") * 16):
        before = server.transport.writes
        server.get(data)
        assert server.transport.writes == before + 1, data


@pytest.mark.parametrize("target", ["/user/2", "/user/2?careful=path"])
def test_record_is_answered_as_it_is_stored(server: OneProcess, target: str) -> None:
    for _ in range(2):
        assert server.get(get(target)).endswith(b"Content-Length: %d\r\n\r\n%b" % (len(NOT_OURS), NOT_OURS))


def test_get_leaves_no_memory_behind(server: OneProcess) -> None:
    with without_collector():
        growth(server.get, WARM)
        assert growth(server.get, REQUESTS) <= SLACK_BLOCKS


def test_get_takes_memory_for_its_bytes_twice_and_no_more(server: OneProcess) -> None:
    answer_bytes = len(server.get())
    with without_collector():
        growth(server.get, WARM)
        tracemalloc.start()
        try:
            first = peak_bytes(server.get, 1)
            most = peak_bytes(server.get, REQUESTS)
        finally:
            tracemalloc.stop()
    assert 0 < first <= 2 * (len(GET) + answer_bytes) + SLACK_BYTES
    assert most <= first + SLACK_BYTES


# ---- writes ------------------------------------------------------------------------------------------------------


def test_write_leaves_no_memory_behind_after_its_answer(server: OneProcess) -> None:
    assert growth_of_writes(server, gc.collect) <= SLACK_BLOCKS


def test_write_leaves_nothing_for_the_garbage_collector(server: OneProcess) -> None:
    assert growth_of_writes(server, lambda: None) <= SLACK_BLOCKS


def growth_of_writes(server: OneProcess, settle: Callable[[], object]) -> int:
    """Return by how many blocks memory has grown when WRITES updates and as many orders are answered."""
    blocks: list[int] = []

    def note() -> Iterator[None]:
        settle()
        blocks.append(sys.getallocatedblocks())
        yield from ()

    warm, measured = (server.writes(UPDATE + ORDER, 2, times) for times in (WARM, WRITES))
    with without_collector():
        server.serve(warm, note(), measured, note())
    assert server.counts.exchanges == 2 * (WARM + WRITES)
    assert server.counts.client_errors == server.counts.server_errors == 0
    return blocks[1] - blocks[0]


def test_orders_of_one_segment_are_one_sync_of_the_disk(server: OneProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters of the server say what it believes; here the calls themselves are counted."""
    calls: list[str] = []
    for name in ("pwrite", "fdatasync", "fsync"):
        monkeypatch.setattr(os, name, counted(getattr(os, name), calls))
    server.serve(server.writes(ORDER * ORDERS, ORDERS, 5))
    assert server.counts.exchanges == 5 * ORDERS and server.counts.client_errors == server.counts.server_errors == 0
    assert calls == ["pwrite", "fdatasync"] * 5


def counted(function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        calls.append(function.__name__)
        return function(*arguments)

    return call
