"""A keep-alive client for the tools: one request, one answer, one socket; `http.client` reads the answers.

A failed exchange closes the socket, the next one connects again; nothing is ever sent twice. An answer costs the client
some 50 us of Python, about as much as any Python client pays: what ten threads of it see is what a user's would. Where
the server's own limit is asked for, wrk is the client.
"""

from __future__ import annotations

import socket
from http.client import HTTPException, HTTPResponse
from typing import NamedTuple

ANSWER_BYTES_MAX = 16 << 20  # far above any record; the live figures of the admin port stay below 1 MiB


class BrokenAnswer(OSError):
    """The peer closed too early or sent something that is not an HTTP/1.1 answer of known length."""


class Answer(NamedTuple):
    status: int
    body: bytes
    seq: str | None = None  # the field Write-Seq


class Connection:
    """One client connection, opened at the first exchange. Used by one thread at a time."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._address = (host, port)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def exchange(self, request: bytes) -> Answer:
        """Send one request, return its answer. Raises `OSError`: whether the request was applied is then unknown."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, self._timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._socket.sendall(request)
            return self._receive(self._socket)
        except OSError:
            self.close()
            raise

    def _receive(self, sock: socket.socket) -> Answer:
        with HTTPResponse(sock) as response:
            try:
                response.begin()
                if response.length is None or response.length > ANSWER_BYTES_MAX:
                    raise BrokenAnswer(f"an answer of {response.length} bytes")
                body = response.read()
            except (HTTPException, ValueError) as error:
                raise BrokenAnswer(f"not a whole answer: {error!r}") from error
        if response.will_close:
            self.close()
        return Answer(response.status, body, response.getheader("Write-Seq"))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def post(host: str, path: str, body: bytes, fields: str = "") -> bytes:
    """Return the bytes of a POST request with a JSON body; `fields` are whole lines, each with its CRLF."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{fields}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(host: str, path: str) -> bytes:
    """Return the bytes of a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
