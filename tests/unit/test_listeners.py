"""Listening sockets: several on one port, and nobody else's port is taken."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from server.errors import StartError
from server.listeners import open_listeners

HOST = "127.0.0.1"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(stack: ExitStack, port: int = 0, count: int = 1, host: str = HOST) -> list[socket.socket]:
    listeners = open_listeners(host, port, count)
    for listener in listeners:
        stack.enter_context(listener)
    return listeners


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def test_all_listen_on_the_port_that_the_kernel_chose(stack: ExitStack) -> None:
    listeners = opened(stack, count=4)
    assert {listener.getsockname() for listener in listeners} == {(HOST, port_of(listeners[0]))}
    assert port_of(listeners[0]) > 0
    assert not any(listener.getblocking() for listener in listeners)


def test_a_connection_waits_at_one_of_them(stack: ExitStack) -> None:
    listeners = opened(stack, count=3)
    stack.enter_context(socket.create_connection((HOST, port_of(listeners[0]))))
    accepted = 0
    for listener in listeners:
        try:
            stack.enter_context(listener.accept()[0])
            accepted += 1
        except BlockingIOError:
            pass
    assert accepted == 1


def test_a_port_of_another_program_is_refused(stack: ExitStack) -> None:
    other = stack.enter_context(socket.create_server((HOST, 0)))
    with pytest.raises(StartError, match=f"{HOST}:{port_of(other)}.*in use"):
        open_listeners(HOST, port_of(other), 2)


def test_a_port_of_another_server_with_reuseport_is_refused(stack: ExitStack) -> None:
    other = opened(stack, count=2)[0]
    with pytest.raises(StartError, match="in use"):
        open_listeners(HOST, port_of(other), 2)


def test_a_port_that_somebody_has_on_all_addresses_is_refused(stack: ExitStack) -> None:
    other = opened(stack, host="0.0.0.0")[0]
    with pytest.raises(StartError, match="in use"):
        open_listeners(HOST, port_of(other), 1)


def test_a_port_is_free_again_at_once_though_old_connections_linger(stack: ExitStack) -> None:
    listeners = open_listeners(HOST, 0, 1)
    port = port_of(listeners[0])
    client = stack.enter_context(socket.create_connection((HOST, port)))
    listeners[0].accept()[0].close()  # the server closes first, so its side is the one that stays in TIME_WAIT
    assert client.recv(1) == b""
    client.close()
    listeners[0].close()
    assert port_of(opened(stack, port)[0]) == port


@pytest.mark.parametrize("host", ["", "a..b", "x" * 70, "300.1.1.1 ", "\0", "host\u0301..x"])
def test_a_host_that_can_not_be_one_is_refused(host: str) -> None:
    with pytest.raises(StartError, match="host "):
        open_listeners(host, 0, 1)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StartError, match=r"192\.0\.2\.1:0"):
        open_listeners("192.0.2.1", 0, 1)


def test_two_servers_that_let_the_kernel_choose_get_different_ports(stack: ExitStack) -> None:
    ports = [port_of(opened(stack, count=2)[0]) for _ in range(20)]
    assert len(set(ports)) == 20
