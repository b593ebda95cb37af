"""How a service asks another one: HTTP/1.1 with keep-alive over loopback, on the loop of the asking service.

    answer = await upstream.exchange("POST", "/user", body)

A connection carries one exchange at a time and is used again afterwards; connections are opened as exchanges overlap,
up to a maximum, and further exchanges wait for their turn. Nothing is sent twice: when a connection is lost before the
answer, nobody knows whether the request was applied, and that is what `UpstreamLost` says.
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools

from server.errors import MillraceError
from tools.connection import Answer, get, post

CONNECTIONS_MAX = 32  # per pair of services; each has one thread, so more would only wait at the other end


class UpstreamLost(MillraceError):
    """A service could not be reached, or the connection ended before the answer."""


class Upstream:
    """One service, as another one sees it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int) -> None:
        self._loop = loop
        self._port = port
        self._host = f"127.0.0.1:{port}"
        self._idle: list[_Link] = []
        self._turns = asyncio.Semaphore(CONNECTIONS_MAX)

    async def exchange(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Send a request (GET or POST) and return its answer. Raises `UpstreamLost`."""
        request = get(self._host, path) if method == "GET" else post(self._host, path, body)
        async with self._turns:
            link = await self._link()
            answer = await link.exchange(request)
            self._idle.append(link)
            return answer

    async def _link(self) -> _Link:
        while self._idle:
            link = self._idle.pop()
            if not link.is_lost:
                return link
        try:
            _, link = await self._loop.create_connection(lambda: _Link(self._loop), "127.0.0.1", self._port)
        except OSError as error:
            raise UpstreamLost(f"{self._host}: {error}") from None
        return link

    def close(self) -> None:
        for link in self._idle:
            link.close()


class _Link(asyncio.Protocol):
    """One connection. The methods named `on_` are called by the parser."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.is_lost = False
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answer: asyncio.Future[Answer] | None = None

    async def exchange(self, request: bytes) -> Answer:
        if self._transport is None:
            raise UpstreamLost("not connected")
        self._answer = self._loop.create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(UpstreamLost(f"the connection ended before the answer: {exc}"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_body(self, part: bytes) -> None:
        self._body.append(part)

    def on_message_complete(self) -> None:
        answer = Answer(self._parser.get_status_code(), b"".join(self._body))
        self._body.clear()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)
