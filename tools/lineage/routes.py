"""What every service of every shape has in common: the paths of the shop, and how a request gets its answer.

The HTTP under it is the server's own (`server/http/protocol.py`): parser, limits, keep-alive, pipelining and the fast
paths of plain requests are the same for all shapes, so that a comparison is one of architectures. A subclass says what
a read and a write do. It answers at once with bytes, or with a coroutine when it has to ask another service first;
what comes later on the same connection waits meanwhile, so a client always sees its own writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from server.commands import Kind, Outcome, Reply
from server.http.bodies import BodyInvalid
from server.http.exchange import Exchange, Later, Request, Write
from server.http.replies import Replies
from server.http.routes import (
    COLLECTIONS,
    KINDS,
    READ_METHODS,
    TargetInvalid,
    healthz,
    not_allowed,
    parse_id,
    path_segments,
)
from tools.lineage.http_client import Upstream, UpstreamLost

Work = bytes | Coroutine[Any, Any, bytes]


@dataclass(frozen=True)
class Context:
    """What a service is made with, in its own process."""

    loop: asyncio.AbstractEventLoop
    replies: Replies
    data_dir: Path
    period_s: float  # how often what is only in memory is sent on; no meaning for a service that writes at once
    ports: Mapping[str, int]  # of all services of the shape, by name

    def upstream(self, name: str) -> Upstream:
        """Return the way to another service of the shape."""
        return Upstream(self.loop, self.ports[name])


class Service:
    """One service of a shape. Paths that it does not serve answer 404."""

    def __init__(self, context: Context) -> None:
        self.replies = context.replies
        self._loop = context.loop
        self._tasks: set[asyncio.Task[bytes]] = set()

    # ---- what a subclass says

    def read(self, kind: Kind, id: int) -> Work:  # noqa: ARG002 - for subclasses
        """Answer `GET /user/5`."""
        return self.nothing()

    def purchases(self, user_id: int) -> Work:  # noqa: ARG002
        """Answer `GET /user/purchased/5`."""
        return self.nothing()

    def write(self, kind: Kind, body: bytes) -> Work:  # noqa: ARG002
        """Answer `POST /user`. May raise `BodyInvalid`."""
        return self.nothing()

    def between_services(self, segments: list[str], request: Request) -> Work:  # noqa: ARG002
        """Answer what only other services ask."""
        return self.nothing()

    def getters(self) -> Mapping[bytes, Callable[[int], bytes | None]]:
        """Return the reads of the fast path by what stands before the id in their request line."""
        return {}

    def writers(self) -> Mapping[bytes, Write]:
        """Return the writes of the fast path by what stands before the version in their request line."""
        return {b"POST %b" % target: partial(self._write_alone, kind) for target, kind in COLLECTIONS.items()}

    async def start(self) -> None:
        """Do what has to be done before the first request."""

    async def stop(self) -> bool:
        """Flush after the last answer; return whether everything is in SQLite."""
        return True

    # ---- from a request to its answer

    def handle(self, request: Request, exchange: Exchange) -> bytes | Later:
        """Find what a request asks for."""
        if not exchange.is_first:
            return Later.AGAIN
        return self._do(self._route(request), exchange)

    def _write_alone(
        self, kind: Kind, body: bytes, _durability: str | None, _key: str | None, exchange: Exchange
    ) -> bytes | Later:
        return self._do(self._write(kind, body), exchange)

    def _do(self, work: Work, exchange: Exchange) -> bytes | Later:
        if isinstance(work, bytes):
            return work
        exchange.is_alone = True
        task = self._loop.create_task(work)
        self._tasks.add(task)

        def finish(_: object) -> None:
            self._tasks.discard(task)
            exchange.attempt(self._result, task)

        task.add_done_callback(finish)
        return Later.ANSWER

    def _result(self, task: asyncio.Task[bytes]) -> bytes:
        try:
            return task.result()
        except UpstreamLost as lost:
            return self.replies.unavailable(str(lost))

    def _route(self, request: Request) -> Work:
        try:
            segments = path_segments(request.target)
        except TargetInvalid:
            return self.replies.error(400, "malformed request target")
        match segments:
            case ["", "user" | "product" | "order" as name]:
                return self._post(KINDS[name], request)
            case ["", "user", "purchased", id]:
                return self._read(request, id, False, self.purchases)
            case ["", "user" | "product" | "order" as name, id]:
                kind = KINDS[name]
                return self._read(request, id, kind is Kind.ORDER, lambda id: self.read(kind, id))
            case ["", "healthz"]:
                return healthz(request, self.replies)
        return self.between_services(segments, request)

    def _read(self, request: Request, text: str, is_order: bool, read: Callable[[int], Work]) -> Work:
        if request.method not in READ_METHODS:
            return not_allowed(self.replies, b"GET, HEAD", is_order)
        id = parse_id(text)
        if id is None:
            return self.replies.error(400, "the id in the path must be an integer", is_order=is_order)
        return read(id)

    def _post(self, kind: Kind, request: Request) -> Work:
        if request.method != b"POST":
            return not_allowed(self.replies, b"POST", kind is Kind.ORDER)
        return self._write(kind, request.body)

    def _write(self, kind: Kind, body: bytes) -> Work:
        try:
            return self.write(kind, body)
        except BodyInvalid as error:
            return self.replies.error(400, str(error), is_order=kind is Kind.ORDER)

    # ---- answers

    def nothing(self) -> bytes:
        return self.replies.error(404, "there is nothing at this path")

    def missing(self, kind: Kind) -> bytes:
        return self.replies.error(404, "there is no such record", is_order=kind is Kind.ORDER)

    def outcome(self, kind: Kind, outcome: bytes | Outcome) -> bytes:
        """Answer a write with its body, or with why it is refused."""
        if isinstance(outcome, bytes):
            return self.replies.ok(outcome)
        return self.replies.outcome(kind, Reply(0, outcome))
