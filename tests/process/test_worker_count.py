"""SIGTTIN and SIGTTOU: one worker more or less, and no connection is refused, reset or forgotten."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ServerProcess, running_server

CONNECTIONS = 40  # spread over the listening sockets by the kernel: each of three gets some


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    yield from running_server(tmp_path / "data", workers=1)


def workers(server: ServerProcess) -> set[str]:
    return {name for name in server.pids if name.startswith("worker")}


def check_connections(server: ServerProcess) -> None:
    clients = [server.client() for _ in range(CONNECTIONS)]
    try:
        assert [client.get("/healthz").status for client in clients] == [200] * CONNECTIONS
    finally:
        for client in clients:
            client.close()


def test_workers_come_and_go_and_every_connection_is_answered(server: ServerProcess) -> None:
    for count in (2, 3):
        server.signal(signal.SIGTTIN)
        server.wait_until(lambda count=count: len(workers(server)) == count, 10, f"{count} workers")
        check_connections(server)
    for count in (2, 1):
        server.signal(signal.SIGTTOU)
        server.wait_until(lambda count=count: len(workers(server)) == count, 10, f"{count} workers")
        check_connections(server)
    server.signal(signal.SIGTTIN)
    server.wait_until(lambda: len(workers(server)) == 2, 10, "a slot that was left is used again")
    check_connections(server)
    assert server.stop() == 0


def test_the_last_worker_stays(server: ServerProcess) -> None:
    server.signal(signal.SIGTTOU)
    server.wait_until(lambda: "the last worker stays" in server.log(), 10, "a line in the log")
    check_connections(server)
