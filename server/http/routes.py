"""The public port: from a request to the table (reads) or to the manager (writes), and back to an answer.

Reads wait until every earlier request of their connection is answered, so a client sees its own writes. A busy slot
means that the manager was interrupted inside a slot write; its successor repairs it, so a read tries again for a while.
Checks come first: a request that is wrong in itself gets its 400 before anything is looked up.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from msgspec import UNSET

from server.commands import DATABASE_NAMES, INT_MAX, ORDER, PRODUCT, USER, Command, DeleteUser, Kind, Reply, Token
from server.config import Config, Durability, parse_durability
from server.errors import ConfigError, QueueFull, SlotBusy
from server.http import bodies
from server.http.bodies import BodyInvalid, UserBody
from server.http.exchange import AGAIN, LATER, Counts, Exchange, Later, Request, Write
from server.http.passwords import HashingFull, PasswordPool, classic_secret, derive_secret, make_secret
from server.http.replies import Replies

SLOT_RETRY_S = 0.001
SLOT_RETRIES_MAX = 2000  # 2 s: a killed manager is replaced, and its slot repaired, well within

KINDS = {"user": USER, "product": PRODUCT, "order": ORDER}
COLLECTIONS = {b"/%b" % name.encode(): kind for name, kind in KINDS.items()}  # the way of nearly all writes
READ_METHODS = (b"GET", b"HEAD")

_KEY = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")
_ID = re.compile(r"0|[1-9][0-9]{0,18}")
_TARGET = re.compile(rb"(?:https?://[^/?#]*(?=[/?]|$)|(?=/|\*$))(?P<path>[^?#]*)(?:\?[^#]*)?", re.IGNORECASE)
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Table(Protocol):
    """What is read (server/shm/table.py)."""

    @property
    def getters(self) -> list[Callable[[int], bytes | None]]: ...
    def get_private(self, kind: int, id: int) -> tuple[bytes, bytes] | None: ...
    def purchases(self, user_id: int) -> bytes | None: ...


class Queue(Protocol):
    """Where commands go (server/command_queue.py)."""

    def submit(
        self,
        command: Command,
        level: Durability,
        on_reply: Callable[[Reply | None], None],
        token: Token | None = None,
    ) -> None: ...


class Terms(NamedTuple):
    """How a write is to be done, by its request's fields."""

    level: Durability
    token: Token | None


class KeyInvalid(ValueError):
    """An Idempotency-Key that can not be one."""


class TargetInvalid(ValueError):
    """A request target that names no path."""


def path_segments(target: bytes) -> list[str]:
    """Return the decoded segments of a target's path (origin or absolute form). Raises `TargetInvalid`."""
    match = _TARGET.fullmatch(target)
    if match is None or _BROKEN_ESCAPE.search(target):
        raise TargetInvalid
    segments = (match["path"] or b"/").split(b"/")
    try:
        return [(unquote_to_bytes(segment) if b"%" in segment else segment).decode() for segment in segments]
    except UnicodeDecodeError:
        raise TargetInvalid from None


def parse_id(text: str) -> int | None:
    """Return the id that a path segment spells as a JSON integer, or None."""
    if _ID.fullmatch(text) and (id := int(text)) <= INT_MAX:
        return id
    return None


def fast_getters(table: Table) -> Mapping[bytes, Callable[[int], bytes | None]]:
    """Return the reads of the fast path by what stands before the id in their request line."""
    return {b"GET /%b" % name.encode(): table.getters[kind] for name, kind in KINDS.items()}


class Shop:
    """The service of the public port."""

    def __init__(
        self,
        config: Config,
        loop: asyncio.AbstractEventLoop,
        replies: Replies,
        counts: Counts,
        table: Table,
        queue: Queue,
        passwords: PasswordPool,
    ) -> None:
        self._is_classic = config.classic
        self._usual_terms = Terms(config.durability, None)
        self._loop = loop
        self._replies = replies
        self._counts = counts
        self._table = table
        self._queue = queue
        self._passwords = passwords

    def writers(self) -> Mapping[bytes, Write]:
        """Return the writes of the fast path by what stands before the version in their request line."""
        return {b"POST %b" % target: partial(self._write, kind) for target, kind in COLLECTIONS.items()}

    def handle(self, request: Request, exchange: Exchange) -> bytes | Later:
        """Find what a request asks for."""
        kind = COLLECTIONS.get(request.target)
        if kind is not None:
            return self._post(kind, request, exchange)
        try:
            segments = path_segments(request.target)
        except TargetInvalid:
            return self._replies.error(400, "malformed request target")
        match segments:
            case ["", "user" | "product" | "order" as name]:
                return self._post(KINDS[name], request, exchange)
            case ["", "user", "purchased", id]:
                return self._read(request, exchange, id, False, self._purchases)
            case ["", "user" | "product" | "order" as name, id]:
                return self._read(request, exchange, id, name == "order", partial(self._record, name))
            case ["", "healthz"]:
                return healthz(request, self._replies)
        return self._replies.error(404, "there is nothing at this path")

    # ---- reads

    def _read(
        self, request: Request, exchange: Exchange, text: str, is_order: bool, fetch: Callable[[int], bytes]
    ) -> bytes | Later:
        if request.method not in READ_METHODS:
            return not_allowed(self._replies, b"GET, HEAD", is_order)
        id = parse_id(text)
        if id is None:
            return self._replies.error(400, "the id in the path must be an integer from 0 to 2^63-1", is_order=is_order)
        if not exchange.is_first:
            return AGAIN
        return self._look(exchange, is_order, partial(fetch, id))

    def _record(self, name: str, id: int) -> bytes:
        record = self._table.getters[KINDS[name]](id)
        if record is None:
            return self._replies.error(404, f"there is no {name} with this id", is_order=name == "order")
        self._counts.reads += 1
        return self._replies.record(record)

    def _purchases(self, user_id: int) -> bytes:
        body = self._table.purchases(user_id)
        if body is None:
            return self._replies.error(404, "there is no user with this id")
        self._counts.reads += 1
        return self._replies.ok(body)

    def _look(
        self, exchange: Exchange, is_order: bool, look: Callable[[], bytes | Later], tries: int = 0
    ) -> bytes | Later:
        """Run `look`, which reads the table; while the slot is busy, again and again, a millisecond apart."""
        try:
            return look()
        except SlotBusy:
            self._counts.slot_retries += 1
        if tries >= SLOT_RETRIES_MAX:
            return self._replies.unavailable("the record is locked: the manager is being replaced", is_order)
        exchange.is_alone = True
        self._loop.call_later(SLOT_RETRY_S, exchange.attempt, self._look, exchange, is_order, look, tries + 1)
        return LATER

    # ---- writes

    def _post(self, kind: Kind, request: Request, exchange: Exchange) -> bytes | Later:
        if request.method != b"POST":
            return not_allowed(self._replies, b"POST", kind is ORDER)
        return self._write(kind, request.body, request.durability, request.key, exchange)

    def _write(
        self, kind: Kind, body: bytes, durability: str | None, key: str | None, exchange: Exchange
    ) -> bytes | Later:
        terms = self._usual_terms
        try:
            if durability is not None:
                terms = Terms(parse_durability(durability), None)
            if key is not None:
                terms = Terms(terms.level, make_token(kind, key, body))
            if kind is USER:
                return self._write_user(bodies.decode_user(body, self._is_classic), terms, exchange)
            decode = bodies.decode_order if kind is ORDER else bodies.decode_product
            return self._submit(kind, decode(body), terms, exchange)
        except (BodyInvalid, ConfigError, KeyInvalid) as error:
            return self._replies.error(400, str(error), is_order=kind is ORDER)

    def _submit(self, kind: Kind, command: Command, terms: Terms, exchange: Exchange) -> bytes | Later:
        """Send a command; its outcome is the answer."""

        def on_reply(reply: Reply | None) -> None:
            exchange.attempt(self._replies.outcome, kind, reply)

        try:
            self._queue.submit(command, terms.level, on_reply, terms.token)
        except QueueFull:
            return self._replies.unavailable(
                "not applied: too many writes wait, or the manager is being replaced", kind is ORDER
            )
        return LATER

    # ---- users: the password is hashed first, and nothing of the connection may pass meanwhile

    def _write_user(self, body: UserBody, terms: Terms, exchange: Exchange) -> bytes | Later:
        password = body.password
        if password is UNSET:
            return self._submit(USER, body.command(None), terms, exchange)
        if self._is_classic:
            return self._submit(USER, body.command(classic_secret(password)), terms, exchange)
        if not exchange.is_first:
            return AGAIN
        if isinstance(body.command(None), DeleteUser):
            return self._look(exchange, False, partial(self._delete_user, body, password, terms, exchange))
        return self._hash(partial(make_secret, password), body, terms, exchange)

    def _delete_user(self, body: UserBody, password: str, terms: Terms, exchange: Exchange) -> bytes | Later:
        """Derive the secret as the stored one was made; the manager compares them."""
        stored = self._table.get_private(USER, body.id)
        if stored is None or not stored[1]:  # no such user, or one without a password: the manager says
            return self._submit(USER, body.command(None), terms, exchange)
        return self._hash(partial(derive_secret, password, stored[1].decode()), body, terms, exchange)

    def _hash(self, hashing: Callable[[], str], body: UserBody, terms: Terms, exchange: Exchange) -> bytes | Later:
        def submit(future: asyncio.Future[str]) -> bytes | Later:
            return self._submit(USER, body.command(future.result()), terms, exchange)

        exchange.is_alone = True
        try:
            self._passwords.submit(hashing, partial(exchange.attempt, submit))
        except HashingFull:
            return self._replies.unavailable("not applied: too many passwords wait to be hashed")
        return LATER


def make_token(kind: Kind, key: str, body: bytes) -> Token:
    """Hash an Idempotency-Key, and the request that it stands for. Raises `KeyInvalid`."""
    if not _KEY.fullmatch(key):
        raise KeyInvalid("Idempotency-Key must be 1 to 255 printable ASCII characters")
    digest = hashlib.blake2b(body, digest_size=16, person=DATABASE_NAMES[kind].encode()).digest()
    return Token(hashlib.blake2b(key.encode(), digest_size=16).digest(), digest)


def not_allowed(replies: Replies, methods: bytes, is_order: bool = False) -> bytes:
    """Answer 405 with the methods that are."""
    return replies.error(405, "this path has other methods", fields=b"Allow: %b\r\n" % methods, is_order=is_order)


def healthz(request: Request, replies: Replies) -> bytes:
    """Answer that the process answers."""
    if request.method not in READ_METHODS:
        return not_allowed(replies, b"GET, HEAD")
    return replies.ok(b'{"status":"ok"}')
