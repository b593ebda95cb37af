"""Version 2: a transfer service waits in the place of the cache. Always there, but far ahead of its databases.

             ┌───────┐  each period,  ┌──────────┐  request by  ┌───────────────┐    ┌─────────────────┐
             │ cache │  all commands  │ transfer │  request     │               │───>│  user service   │──> users.db
    client ─>│ hash  │── since the ──>│ service  │─────────────>│ order service │    └─────────────────┘
      all    │  map  │   last one     │  WAITS   │              │               │    ┌─────────────────┐
             └───────┘                └──────────┘              │               │───>│ product service │──> products.db
                                                                └───────┬───────┘    └─────────────────┘
                                                                        └──────────────────────────────────> orders.db

The cache hands its commands over in some big requests and goes on at once. The transfer service sends them on one by
one, and waits for each answer. Nothing became cheaper: a command is checked by the cache and again by the service
that has the database, and travels four hops. The databases take commands as slowly as those of the original, the
cache acknowledges them as fast as memory, and what lies between them, in the cache and in the transfer service, is
lost in a crash.
"""

from __future__ import annotations

import asyncio
from itertools import islice

from server.commands import Kind, encode_json
from server.http.exchange import Request
from tools.lineage.batches import batches, decode_entries
from tools.lineage.cache import Cache
from tools.lineage.http_client import UpstreamLost
from tools.lineage.original import ROLES as ORIGINAL_ROLES
from tools.lineage.records import EMPTY_BODY, Checked
from tools.lineage.replay import Command, Waiting, check_replayed
from tools.lineage.roles import Role
from tools.lineage.routes import Context, Service, Work
from tools.lineage.v1 import SOURCES


class TransferService(Service):
    """Takes commands at once, and waits for the order service."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._order_service = context.upstream("order")
        self._waiting = Waiting()
        self._has_work = asyncio.Event()
        self._is_stopping = False
        self._replay: asyncio.Task[None] | None = None

    def between_services(self, segments: list[str], request: Request) -> Work:
        if segments != ["", "transfer"] or request.method != b"POST":
            return self.nothing()
        if self._waiting.is_full:
            return self.replies.unavailable("too much waits for the order service")
        self._waiting.extend(Command(*entry) for entry in decode_entries(request.body))
        self._has_work.set()
        return self.replies.ok(EMPTY_BODY)

    async def start(self) -> None:
        self._replay = self._loop.create_task(self._run())

    async def stop(self) -> bool:
        self._waiting.say_stop_waits()
        self._is_stopping = True
        self._has_work.set()
        if self._replay is not None:
            await self._replay
        return not self._waiting

    async def _run(self) -> None:
        while self._waiting or not self._is_stopping:
            await self._has_work.wait()
            while self._waiting:
                command = self._waiting[0]
                answer = await self._order_service.exchange("POST", command.path, encode_json(command.fields))
                check_replayed(command, answer)
                self._waiting.popleft()
            self._has_work.clear()


class TransferringCache(Cache):
    """The cache that only hands over."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, SOURCES)
        self._waiting = Waiting()
        self._transfer_service = context.upstream("transfer")

    def write(self, kind: Kind, body: bytes) -> Work:
        if self._waiting.is_full:
            return self.replies.unavailable("too much waits for the flush", kind is Kind.ORDER)
        return super().write(kind, body)

    def note(self, kind: Kind, checked: Checked, body: bytes) -> None:  # noqa: ARG002
        self._waiting.note(kind, checked)

    async def flush(self) -> None:
        for batch in batches(list(islice(self._waiting, len(self._waiting)))):
            answer = await self._transfer_service.exchange("POST", "/transfer", batch.body)
            if answer.status != 200:
                raise UpstreamLost(f"the transfer service answered {answer.status}")
            for _ in range(batch.entries):
                self._waiting.popleft()

    @property
    def is_flushed(self) -> bool:
        return not self._waiting


def transfer_service(context: Context) -> Service:
    return TransferService(context)


def cache(context: Context) -> Service:
    return TransferringCache(context)


ROLES = (*ORIGINAL_ROLES, Role("transfer", transfer_service), Role("cache", cache))
