"""Version 1: a cache in front of the original. Fast between two flushes, and not there during one.

             ┌───────┐  each period, every command    ┌───────────────┐    ┌─────────────────┐
             │ cache │  since the last one, request   │               │───>│  user service   │──> users.db
    client ─>│ hash  │─── by request; the cache ─────>│ order service │    └─────────────────┘
      all    │  map  │    WAITS for each answer       │               │    ┌─────────────────┐
             └───────┘                                │               │───>│ product service │──> products.db
                                                      └───────┬───────┘    └─────────────────┘
                                                              └──────────────────────────────────> orders.db

Reads and writes are answered from a hash map. After each period the cache sends its data, the commands that it has
acknowledged since, to the order service, which handles them as it always did: one request and its commits at a time.
The cache has one thread, and that thread waits for the answers, so all clients wait too, as long as the original would
have taken. What was acknowledged since the last flush is lost in a crash.
"""

from __future__ import annotations

from server.commands import Kind, encode_json
from tools.connection import Connection, post
from tools.lineage.cache import Cache
from tools.lineage.http_client import UpstreamLost
from tools.lineage.original import ROLES as ORIGINAL_ROLES
from tools.lineage.records import Checked
from tools.lineage.replay import Waiting, check_replayed
from tools.lineage.roles import Role
from tools.lineage.routes import Context, Service, Work

ORDER_SERVICE_TIMEOUT_S = 30.0  # for one command; its commits take milliseconds
SOURCES = {Kind.USER: "user", Kind.PRODUCT: "product", Kind.ORDER: "order"}


class WaitingCache(Cache):
    """The cache that talks to the order service itself."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, SOURCES)
        self._waiting = Waiting()
        self._order_service = Connection("127.0.0.1", context.ports["order"], ORDER_SERVICE_TIMEOUT_S)

    def write(self, kind: Kind, body: bytes) -> Work:
        if self._waiting.is_full:
            return self.replies.unavailable("too much waits for the flush", kind is Kind.ORDER)
        return super().write(kind, body)

    def note(self, kind: Kind, checked: Checked, body: bytes) -> None:  # noqa: ARG002
        self._waiting.note(kind, checked)

    async def flush(self) -> None:
        """Send all commands. There is no `await` in here: nothing else happens in this process meanwhile."""
        while self._waiting:
            command = self._waiting[0]
            try:
                answer = self._order_service.exchange(post("order", command.path, encode_json(command.fields)))
            except OSError as error:
                raise UpstreamLost(f"order service: {error}") from None
            check_replayed(command, answer)
            self._waiting.popleft()

    async def stop(self) -> bool:
        self._waiting.say_stop_waits()
        return await super().stop()

    @property
    def is_flushed(self) -> bool:
        return not self._waiting


def cache(context: Context) -> Service:
    return WaitingCache(context)


ROLES = (*ORIGINAL_ROLES, Role("cache", cache))
