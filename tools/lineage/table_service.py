"""The services that have a database and nothing else: user and product service, and the push services of version 3.

                     ┌──────────────────┐
    POST /user ─────>│   user service   │── one commit per write ──> users.db
    GET /user/5 ────>│                  │── one SELECT per read ───>
    GET /rows/0 ────>│                  │   (a cache that starts asks for all rows, some hundred at a time)
                     └──────────────────┘
                     ┌──────────────────┐
    POST /push ─────>│ user push service│── one commit for all the rows in the request ──> users.db
    GET /rows/0 ────>└──────────────────┘

Those of the first shapes check everything themselves, whoever asks, although a cache has checked it before; a push
service takes rows as they come.
"""

from __future__ import annotations

from typing import Any

from server.commands import Kind
from server.http.exchange import Request
from server.http.replies import JSON
from server.http.routes import parse_id
from tools.lineage.batches import decode_entries, encode_entries
from tools.lineage.records import EMPTY_BODY, body_of, check, write_product, write_user
from tools.lineage.routes import Context, Service, Work
from tools.lineage.store import Store

ROWS_MAX = 500  # of one answer to GET /rows


class RowService(Service):
    """A database that can be read whole: what all services with a database have in common."""

    def __init__(self, context: Context, kind: Kind) -> None:
        super().__init__(context)
        self.kind = kind
        self.store: Store[Any] = Store(context.data_dir, kind)

    def between_services(self, segments: list[str], request: Request) -> Work:
        match segments:
            case ["", "rows", text] if (id := parse_id(text)) is not None:
                rows = self.store.rows_from(id, ROWS_MAX)
                return self.replies.answer(200, JSON, encode_entries(rows))
        return super().between_services(segments, request)

    async def stop(self) -> bool:
        self.store.close()
        return True


class TableService(RowService):
    """The user service or the product service."""

    def read(self, kind: Kind, id: int) -> Work:
        record = self.store.get(id) if kind is self.kind else None
        return self.missing(kind) if record is None else self.replies.ok(body_of(record))

    def write(self, kind: Kind, body: bytes) -> Work:
        if kind is not self.kind:
            return self.nothing()
        command = check(kind, body).command
        write = write_user if kind is Kind.USER else write_product
        return self.outcome(kind, write(self.store, command))


class PushService(RowService):
    """Takes many rows at once, and writes them in one commit."""

    def between_services(self, segments: list[str], request: Request) -> Work:
        if segments == ["", "push"] and request.method == b"POST":
            self.store.write(decode_entries(request.body))
            return self.replies.ok(EMPTY_BODY)
        return super().between_services(segments, request)


def user_service(context: Context) -> Service:
    return TableService(context, Kind.USER)


def product_service(context: Context) -> Service:
    return TableService(context, Kind.PRODUCT)


def user_push_service(context: Context) -> Service:
    return PushService(context, Kind.USER)


def product_push_service(context: Context) -> Service:
    return PushService(context, Kind.PRODUCT)


def order_push_service(context: Context) -> Service:
    return PushService(context, Kind.ORDER)
