"""Listening sockets: one per worker slot with SO_REUSEPORT, and one for the admin port.

They belong to the supervisor and stay open over a worker's restart: a SO_REUSEPORT listener that closes loses the
connections queued on it (measured: 108 of 200), one that stays open loses none.
"""

from __future__ import annotations

import socket
from typing import Any

from server.errors import StartError

BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn


def open_listeners(host: str, port: int, count: int, spare: int = 0) -> list[socket.socket]:
    """Return `count` listening sockets on one port (0: the kernel chooses), and `spare` ones that are only bound.

    A spare one gets no connection before somebody calls `listen` on it. Raises `StartError`.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise StartError(f"host {host}: {error.strerror}") from None
    except ValueError as error:  # a name that can not be one
        raise StartError(f"host {host}: {error}") from None
    listeners: list[socket.socket] = []
    try:
        # fails if somebody, even with SO_REUSEPORT, listens here; held so that nobody else gets a port that it chose
        with _bind(family, address, is_shared=False) as probe:
            for number in range(count + spare):
                listener = _bind(family, probe.getsockname(), is_shared=True)
                listeners.append(listener)
                listener.setblocking(False)
                if number < count:
                    listener.listen(BACKLOG)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise StartError(f"can not listen on {host}:{port}: {error.strerror}") from None
    return listeners


def _bind(family: int, address: Any, is_shared: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(is_shared))
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
