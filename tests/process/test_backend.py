"""Persister and writers as real processes; the test is supervisor and manager."""

from __future__ import annotations

import os
import select
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from persist import persister, schema, writer
from persist.store import Store
from server.commands import PERSISTED_KINDS, Kind, User, encode_json
from server.shared import Shared
from server.shm import counters, layout
from tests.backend import Backend, make_backend, order_body, rows_of
from tests.support import wait_until

TIMEOUT_S = 10.0
ORPHAN_EXIT_S = 2.0
BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Processes:
    """Children of the test; whatever is left is killed at the end."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.pids: dict[str, int] = {}

    def start(self, name: str, main: Callable[..., int], *args: Any) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)  # as the supervisor does
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
        else:
            code = 99
            try:
                code = main(self.backend.config, *args)
            finally:
                os._exit(code)
        self.pids[name] = pid
        return pid

    def start_writer(self, kind: Kind, shared: Shared | None = None) -> int:
        return self.start(kind.name, writer.main, shared or self.backend.shared, kind)

    def start_persister(self, shared: Shared | None = None) -> int:
        return self.start("persister", persister.main, shared or self.backend.shared)

    def start_all(self) -> None:
        for kind in PERSISTED_KINDS:
            self.start_writer(kind)
            assert os.read(self.backend.ready_read_fd, 1) == bytes([counters.WRITER + kind])
        self.start_persister()
        assert os.read(self.backend.ready_read_fd, 1) == bytes([counters.PERSISTER])

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pids[name], number)

    def wait_exit(self, name: str, timeout_s: float = TIMEOUT_S) -> int:
        """Return the exit code (negative: the signal) of a child."""
        pid = self.pids.pop(name)
        pidfd = os.pidfd_open(pid)
        try:
            if not select.select([pidfd], [], [], timeout_s)[0]:
                os.kill(pid, signal.SIGKILL)
        finally:
            os.close(pidfd)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def stop_all(self) -> list[int]:
        """Stop as the supervisor does: the persister to its last flush, then the writers."""
        codes = []
        for name in ("persister", *(kind.name for kind in PERSISTED_KINDS)):
            self.kill(name, signal.SIGUSR1)
            codes.append(self.wait_exit(name))
        return codes

    def wait_stored(self, seq: int) -> None:
        wait_until(lambda: self.backend.words[layout.PERSISTED_SEQ] >= seq, TIMEOUT_S, f"seq {seq} in all databases")


@pytest.fixture
def backend() -> Iterator[Backend]:
    with make_backend(persist_period_ms=10) as backend:
        yield backend


@pytest.fixture
def processes(backend: Backend) -> Iterator[Processes]:
    processes = Processes(backend)
    yield processes
    for name, pid in list(processes.pids.items()):
        os.kill(pid, signal.SIGKILL)
        processes.wait_exit(name)


def stored_orders(backend: Backend) -> dict[int, int]:
    return dict(rows_of(backend.path(Kind.ORDER), "SELECT id, quantity FROM orders"))


def test_everything_published_is_in_the_databases_after_a_stop(backend: Backend, processes: Processes) -> None:
    processes.start_all()
    backend.put(Kind.USER, 1, encode_json(User(1, "ann", "a@x")), b"secret")
    for id in range(1, 30_000):
        backend.put_order(id, id % 7 + 1)
    assert processes.stop_all() == [0, 0, 0, 0]
    assert sorted(path.name for path in backend.config.data_dir.iterdir()) == ["orders.db", "products.db", "users.db"]
    assert stored_orders(backend) == {id: id % 7 + 1 for id in range(1, 30_000)}
    assert rows_of(backend.path(Kind.USER), "SELECT * FROM users") == [(1, "ann", "a@x", "secret")]
    assert backend.words[layout.PERSISTED_SEQ] == backend.words[layout.PUBLISHED_SEQ]


def test_signals_to_the_whole_group_do_not_stop_the_back_end(backend: Backend, processes: Processes) -> None:
    processes.start_all()
    for name in processes.pids:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            processes.kill(name, number)
    processes.wait_stored(backend.put_order(1))
    assert processes.stop_all() == [0, 0, 0, 0]


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["before BEGIN", "in the transaction", "after COMMIT, before the report"])
def test_batch_of_a_killed_writer_is_sent_again_with_the_same_result(
    backend: Backend, processes: Processes, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    if moment == "before BEGIN":
        monkeypatch.setattr(Store, "apply", die)
    elif moment == "in the transaction":
        monkeypatch.setattr(schema, "set_checkpoint", die)
    else:
        apply = Store.apply
        monkeypatch.setattr(Store, "apply", lambda *args: (apply(*args), die()))
    processes.start_writer(Kind.ORDER)
    monkeypatch.undo()
    processes.start_writer(Kind.USER)
    processes.start_writer(Kind.PRODUCT)
    processes.start_persister()
    for id in range(1, 1001):
        seq = backend.put_order(id, 5)
    assert processes.wait_exit("ORDER") == -signal.SIGKILL
    processes.start_writer(Kind.ORDER)
    processes.wait_stored(seq)
    assert stored_orders(backend) == dict.fromkeys(range(1, 1001), 5)
    assert rows_of(backend.path(Kind.ORDER), "PRAGMA integrity_check") == [("ok",)]
    assert processes.stop_all() == [0, 0, 0, 0]


def test_nothing_is_skipped_when_the_persister_is_killed_again_and_again(
    backend: Backend, processes: Processes
) -> None:
    processes.start_all()
    id = 0
    for _ in range(10):
        for _ in range(500):
            id += 1
            backend.put_order(id)
        processes.kill("persister")
        processes.wait_exit("persister")
        processes.start_persister()
    assert processes.stop_all() == [0, 0, 0, 0]
    assert set(stored_orders(backend)) == set(range(1, id + 1))


def test_lock_from_outside_holds_up_one_database_and_is_caught_up(backend: Backend, processes: Processes) -> None:
    processes.start_all()
    processes.wait_stored(backend.put_order(1))
    with closing(sqlite3.connect(backend.path(Kind.ORDER))) as other:
        other.execute("BEGIN IMMEDIATE")
        seq = backend.put_order(2)
        words = backend.words
        for kind in (Kind.USER, Kind.PRODUCT):
            wait_until(lambda kind=kind: words[layout.CHECKPOINT + kind] == seq, TIMEOUT_S, f"{kind.name} goes on")
        assert words[layout.CHECKPOINT + Kind.ORDER] < seq
    processes.wait_stored(seq)
    assert stored_orders(backend) == {1: 1, 2: 1}
    assert rows_of(backend.path(Kind.ORDER), "SELECT * FROM dead_letters") == []


@pytest.mark.parametrize("fault", ["deleted", "overwritten"])
def test_database_lost_while_open_is_rebuilt_from_the_table(backend: Backend, processes: Processes, fault: str) -> None:
    processes.start_all()
    for id in range(1, 2001):
        seq = backend.put_order(id)
    processes.wait_stored(seq)
    path = backend.path(Kind.ORDER)
    if fault == "deleted":
        path.unlink()
    else:
        processes.kill("ORDER")
        processes.wait_exit("ORDER")
        path.with_name(path.name + "-wal").unlink()
        path.write_bytes(b"garbage" * 10_000)
        processes.start_writer(Kind.ORDER)
    processes.wait_stored(backend.put_order(2001))
    assert set(stored_orders(backend)) == set(range(1, 2002))
    assert processes.stop_all() == [0, 0, 0, 0]
    assert rows_of(path, "SELECT checkpoint FROM millrace") == [(2001,)]
    if fault == "overwritten":
        (aside,) = [file for file in path.parent.iterdir() if file.suffix == ".broken"]
        assert aside.read_bytes() == b"garbage" * 10_000


def test_writer_refuses_a_foreign_file_at_the_start(backend: Backend, processes: Processes) -> None:
    backend.words[layout.TABLE_STATE] = layout.TABLE_LOADING
    backend.path(Kind.ORDER).write_bytes(b"my poems\n" * 1000)
    processes.start_writer(Kind.ORDER)
    assert processes.wait_exit("ORDER") == writer.EXIT_REFUSED
    assert backend.path(Kind.ORDER).read_bytes() == b"my poems\n" * 1000


@pytest.mark.parametrize("name", ["persister", "ORDER"])
def test_child_leaves_when_its_supervisor_is_gone(backend: Backend, processes: Processes, name: str) -> None:
    reading, writing = os.pipe()
    supervisor = processes.start("supervisor", lambda _: len(os.read(reading, 1)))
    pidfd = os.pidfd_open(supervisor)
    shared = backend.shared
    orphan = Shared(**{field: getattr(shared, field) for field in Shared.__slots__} | {"supervisor_pidfd": pidfd})
    if name == "persister":
        processes.start_persister(orphan)
    else:
        processes.start_writer(Kind.ORDER, orphan)
    assert os.read(backend.ready_read_fd, 1)
    processes.kill("supervisor")
    assert processes.wait_exit(name, ORPHAN_EXIT_S) == 1
    for descriptor in (reading, writing, pidfd):
        os.close(descriptor)


def test_order_body_is_what_the_columns_say(backend: Backend, processes: Processes) -> None:
    processes.start_all()
    processes.wait_stored(backend.put_order(3, 4))
    assert rows_of(backend.path(Kind.ORDER), "SELECT * FROM orders") == [(3, 10, 20, 4, "Success")]
    assert order_body(3, 4) == b'{"id":3,"product_id":10,"user_id":20,"quantity":4,"status":"Success"}'
