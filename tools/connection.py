"""A small HTTP/1.1 keep-alive client for the tools: one request, one answer, one socket.

It exists because `http.client` costs more CPU per request than the server does, and a load tool must not measure
itself. It reads what Millrace sends: a status line, fields with a Content-Length, a body of that length. It leaves out
chunked answers, redirects, TLS and proxies; an answer that it can not read is a `BrokenAnswer`, never a guess.
A failed exchange closes the socket, the next one connects again; nothing is ever sent twice.
"""

from __future__ import annotations

import re
import socket
from typing import NamedTuple

ANSWER_BYTES_MAX = 16 << 20  # far above any record; the live figures of the admin port stay below 1 MiB
RECEIVE_BYTES = 64 << 10

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+) *\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close *\r\n", re.IGNORECASE)


class BrokenAnswer(OSError):
    """The peer closed too early or sent something that is not an HTTP/1.1 answer with a Content-Length."""


class Answer(NamedTuple):
    status: int
    body: bytes
    head: bytes = b""  # status line and fields, each with its CRLF


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
        data = sock.recv(RECEIVE_BYTES)
        while (end := data.find(b"\r\n\r\n")) < 0:
            data = _receive_more(sock, data)
        head = data[: end + 2]
        status, length = _STATUS.match(head), _CONTENT_LENGTH.search(head)
        if status is None or length is None:
            raise BrokenAnswer(f"not an answer with a Content-Length: {head[:80]!r}")
        total = end + 4 + int(length[1])
        while len(data) < total:
            data = _receive_more(sock, data)
        if len(data) > total:
            raise BrokenAnswer("more than one answer to one request")
        if _CLOSE.search(head):
            self.close()
        return Answer(int(status[1]), data[end + 4 :], head)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _receive_more(sock: socket.socket, data: bytes) -> bytes:
    more = sock.recv(RECEIVE_BYTES)
    if not more or len(data) > ANSWER_BYTES_MAX:
        raise BrokenAnswer("the connection was closed inside an answer" if not more else "the answer is too long")
    return data + more


def post(host: str, path: str, body: bytes, fields: str = "") -> bytes:
    """Return the bytes of a POST request with a JSON body; `fields` are whole lines, each with its CRLF."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{fields}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(host: str, path: str) -> bytes:
    """Return the bytes of a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
