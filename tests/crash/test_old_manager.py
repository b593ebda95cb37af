"""A manager that was only stopped, and a successor of it: one of the two is refused, and leaves everything as it was.

The supervisor starts a successor when a manager is dead, not when it is slow. So the test is the supervisor here, one
that takes a stopped manager for a dead one; and in the end the real server, whose supervisor is gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from persist import schema
from server import manager
from server.child import EXIT_START, Child
from server.command_queue import CommandQueue
from server.commands import PERSISTED_KINDS, Command, CreateProduct, CreateUser, Kind, Outcome, PlaceOrder, Reply
from server.config import Config, Durability
from server.journal.reader import read_groups
from server.shared import Shared
from server.shm import counters, layout
from server.shm.counters import counters_block
from server.shm.table import TableReader
from tests.crash.support import PERIOD_MS, assert_nothing_lost, loaded, stopped, wait_until_stopped
from tests.support import CHILDREN_GONE_S, ServerProcess, wait_until
from tools.crash.history import Fate

INSTANCE = bytes(range(16))
TIMEOUT_S = 10.0
STOCK = 100
ORDER = PlaceOrder(1, 1, 1)


class Worker:
    """The worker's end of the command queue, in the test itself."""

    def __init__(self, config: Config, shared: Shared) -> None:
        block = counters_block(shared.segment, counters.WORKER)
        block[counters.STARTS], block[counters.PID] = 1, os.getpid()
        self._loop = asyncio.new_event_loop()
        self._queue = CommandQueue(config, shared, 0, self._loop)

    def submit(self, command: Command) -> asyncio.Future[Reply | None]:
        """Send a command; its answer comes with `wait`."""
        answer: asyncio.Future[Reply | None] = self._loop.create_future()
        self._queue.submit(command, Durability.JOURNAL, answer.set_result)
        self.turn()
        return answer

    def turn(self) -> None:
        """Send what was submitted, take in what has arrived."""
        for _ in range(2):  # what was ready, then what that called soon
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()

    def wait(self, answer: asyncio.Future[Reply | None]) -> Reply:
        reply = self._loop.run_until_complete(asyncio.wait_for(answer, TIMEOUT_S))
        assert reply is not None and reply.outcome is Outcome.DONE, reply
        return reply

    def execute(self, command: Command) -> Reply:
        return self.wait(self.submit(command))

    def close(self) -> None:
        self._queue.close()
        self._loop.close()


class Backstage:
    """What the supervisor has: the handles, and managers, of which it starts one whenever it likes."""

    def __init__(self, data_dir: Path, failpoints: str) -> None:
        data_dir.mkdir()
        for kind in PERSISTED_KINDS:
            path = schema.database_path(data_dir, kind)
            schema.open_for_writing(path, kind, INSTANCE.hex(), schema.contract_name(False)).close()
        self._config = Config(workers=1, port=0, admin_port=0, data_dir=data_dir, memory_bytes=32 << 20,
                              journal_segment_bytes=1 << 20, failpoints=failpoints)  # fmt: skip
        self._ready_fd, ready_write = os.pipe()
        self.shared = Shared.make(self._config, INSTANCE, 1, ready_write)
        self.words = self.shared.segment.words
        self._managers: list[Child] = []
        self.worker: Worker

    def start(self) -> Child:
        """Start a manager of the next epoch, as if the one before were dead."""
        epoch = len(self._managers) + 1
        self.words[layout.MANAGER_EPOCH] = epoch
        main = partial(manager.main, self._config, self.shared, epoch)
        child = Child("manager", counters.MANAGER, signal.SIGUSR1, main)
        child.start(self.shared.segment)
        self._managers.append(child)
        return child

    def start_ready(self) -> Child:
        """Start a manager and wait until it serves."""
        child = self.start()
        assert select.select([self._ready_fd], [], [], TIMEOUT_S)[0], "the manager is not ready"
        os.read(self._ready_fd, 1)
        if not hasattr(self, "worker"):
            self.worker = Worker(self._config, self.shared)
        self.worker.turn()  # takes the greeting in
        return child

    def exit_code(self, child: Child) -> int | None:
        """Wait until a manager has left; return its code."""
        process = child.process
        assert process is not None
        wait_until(lambda: not process.is_alive(), TIMEOUT_S, "the manager leaves")
        return child.take_exit_code(self.shared.segment)

    def state(self) -> dict[str, str]:
        """Return digests of all that a manager can write: header, dirty ring, table, files of the journal."""
        segment, end = self.shared.segment, layout.COUNTERS_OFFSET + layout.COUNTERS_BYTES
        header = list(self.words[: layout.COUNTERS_OFFSET // layout.WORD_BYTES])
        del header[layout.MANAGER_EPOCH]  # that is the supervisor's
        table = os.pread(segment.descriptor, self.words[layout.SEGMENT_BYTES], end)
        return {"header": str(header), "table": digest(table)} | journal_files(self._config.data_dir)

    def orders(self) -> list[int]:
        """Return the ids of the orders that the journal has, in its order."""
        groups = read_groups(self._config.data_dir / "journal", INSTANCE)
        return [change.id for group in groups for change in group.changes if change.kind == Kind.ORDER]

    def record(self, kind: Kind, id: int) -> bytes:
        """Return the body of a record."""
        record = TableReader(self.shared.segment).get(kind, id)
        assert record is not None, f"{kind} {id} is not there"
        return record.partition(b"\r\n\r\n")[2]

    def close(self) -> None:
        for child in self._managers:
            child.kill()
        if hasattr(self, "worker"):
            self.worker.close()
            del self.worker
        self.words.release()
        os.close(self._ready_fd)
        self.shared.close()


def journal_files(data_dir: Path) -> dict[str, str]:
    return {path.name: digest(path.read_bytes()) for path in sorted((data_dir / "journal").iterdir())}


def digest(data: bytes) -> str:
    return hashlib.blake2b(data).hexdigest()


@contextmanager
def backstage(data_dir: Path, failpoints: str) -> Iterator[Backstage]:
    stage = Backstage(data_dir, failpoints)
    try:
        yield stage
    finally:
        stage.close()


def prepare(worker: Worker) -> None:
    """Write what orders need."""
    worker.execute(CreateUser(1, "ann", "a@x", None))
    worker.execute(CreateProduct(1, "lamp", "a lamp", 1.5, STOCK))


def assert_orders(stage: Backstage, answers: list[Reply]) -> None:
    """Check that every acknowledged order is there, once, and no other, and that the stock says the same."""
    ids = stage.orders()
    assert len(ids) == len(set(ids)) == len(answers)
    assert [stage.record(Kind.ORDER, id) for id in ids] == [answer.body for answer in answers]
    assert b'"quantity":%d}' % (STOCK - len(answers)) in stage.record(Kind.PRODUCT, 1)


# ---- the old one serves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point", ["manager.before_append", "journal.after_write", "manager.in_publish", "manager.after_publish"]
)
def test_successor_of_a_manager_that_only_stopped_is_refused_and_changes_nothing(tmp_path: Path, point: str) -> None:
    """The journal is the old one's while it lives: it finishes its batch, and who follows it then has all of it."""
    with backstage(tmp_path / "data", f"{point}=stop@4") as stage:
        old = stage.start_ready()
        prepare(stage.worker)
        answers = [stage.worker.execute(ORDER)]
        under_way = stage.worker.submit(ORDER)
        wait_until_stopped(old.pid)
        before = stage.state()
        for _ in range(2):  # the supervisor tries again
            assert stage.exit_code(stage.start()) == EXIT_START
            assert stage.state() == before
        os.kill(old.pid, signal.SIGCONT)
        answers.append(stage.worker.wait(under_way))
        old.kill()
        stage.start_ready()
        answers.append(stage.worker.execute(ORDER))
        assert_orders(stage, answers)


# ---- the old one had not begun ---------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["load.start", "manager.start"])
def test_manager_that_resumes_beside_its_successor_writes_nothing(tmp_path: Path, point: str) -> None:
    with backstage(tmp_path / "data", f"{point}=stop@1") as stage:
        old = stage.start()
        wait_until_stopped(old.pid)
        successor = stage.start_ready()
        prepare(stage.worker)
        answers = [stage.worker.execute(ORDER) for _ in range(3)]
        with stopped(successor.pid):  # so that what changes now is the old one's doing
            before = stage.state()
            os.kill(old.pid, signal.SIGCONT)
            assert stage.exit_code(old) == EXIT_START
            assert stage.state() == before
        answers.append(stage.worker.execute(ORDER))
        assert_orders(stage, answers)


@pytest.mark.parametrize("point", ["load.start", "manager.start"])
def test_manager_that_resumes_after_the_death_of_its_successor_writes_nothing(tmp_path: Path, point: str) -> None:
    """Nobody has the journal at that moment, but there is a group of a later epoch in it."""
    with backstage(tmp_path / "data", f"{point}=stop@1;manager.after_publish=die@4") as stage:
        old = stage.start()
        wait_until_stopped(old.pid)
        successor = stage.start_ready()
        prepare(stage.worker)
        answers = [stage.worker.execute(ORDER)]
        under_way = stage.worker.submit(ORDER)  # applied, and not answered
        assert stage.exit_code(successor) == -signal.SIGKILL
        before = stage.state()
        os.kill(old.pid, signal.SIGCONT)
        assert stage.exit_code(old) == EXIT_START
        assert stage.state() == before
        assert not under_way.done()
        stage.start_ready()
        answers.append(stage.worker.wait(under_way))
        answers.append(stage.worker.execute(ORDER))
        assert_orders(stage, answers)


# ---- the whole server ------------------------------------------------------------------------------------------


def test_server_does_not_start_while_a_stopped_manager_of_the_last_run_lives(tmp_path: Path) -> None:
    """Not even when somebody removes the lock of the data directory: the journal has its own."""
    arguments = (*PERIOD_MS, "--journal-segment", "1MiB")
    plan = "journal.after_write=stop@30"  # the server that starts in the end has fewer writes
    with ServerProcess(tmp_path / "data", *arguments, MILLRACE_FAILPOINTS=plan) as server:
        with loaded(server) as load:
            pids = server.pids
            old = pids.pop("manager")
            wait_until_stopped(old)
            with stopped(old):
                load.pause()
                server.kill_supervisor()
                server.wait_until(lambda: set(pids.values()).isdisjoint(server.group_members()), CHILDREN_GONE_S,
                                  "all others have left")  # fmt: skip
                before = journal_files(server.data_dir)
                assert "data: in use by another server" in refused_start(server)
                (server.data_dir / "lock").unlink()
                assert "journal is in use by another process" in refused_start(server)
                assert journal_files(server.data_dir) == before
            server.wait_until(lambda: not server.group_members(), CHILDREN_GONE_S, "it sees that nobody is left")
        server.start()
        assert load.history.count(Fate.UNKNOWN) > 0, "the stop hit no write"
        assert_nothing_lost(server, load)
        assert server.request("POST", "/user", {"command": "update", "id": 1}).status == 200


def refused_start(server: ServerProcess) -> str:
    """Start the server, which has to fail; return what it says."""
    before = len(server.log_path.read_text())
    server.spawn()
    assert server.wait() == EXIT_START
    return server.log_path.read_text()[before:]
