"""One batch: commands applied in order on an overlay over the table, so that command k sees the effect of k-1.

Nothing is changed outside of this object. What comes out are the after-images: one `Change` per record however often
it changed, and the units bought per user and product. The manager journals and publishes them, or drops the batch.

Every successful command takes one seq; a record carries the seq of the last command that changed it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from server import rules
from server.commands import (
    ClassicUser,
    Command,
    CreateProduct,
    CreateUser,
    DeleteProduct,
    DeleteUser,
    Flush,
    KeyEntry,
    Kind,
    Outcome,
    PlaceOrder,
    Product,
    ReplayDeadLetter,
    Token,
    UpdateProduct,
    UpdateUser,
    User,
    encode_json,
)
from server.journal.format import Change
from server.rules import StoredUser
from server.shm.table import TableReader

EMPTY_BODY = b"{}"
KEY_AGE_MAX_S = 24 * 3600  # how long an Idempotency-Key is remembered: far longer than any client retries

_decode_user = msgspec.json.Decoder(User).decode
_decode_classic_user = msgspec.json.Decoder(ClassicUser).decode
encode_entry = msgspec.msgpack.Encoder().encode
decode_entry = msgspec.msgpack.Decoder(KeyEntry).decode
_decode_product = msgspec.json.Decoder(Product).decode


class Result(NamedTuple):
    """What a command came to; `seq` is 0 unless it is DONE."""

    outcome: Outcome
    seq: int = 0
    body: bytes = b""


KEY_REUSED = Result(Outcome.KEY_REUSED)


class Bought(NamedTuple):
    """Units that one user bought of one product in this batch."""

    user_id: int
    product_id: int
    quantity: int
    seq: int


class Batch:
    """The overlay of one batch over the published table."""

    def __init__(
        self, table: TableReader, is_classic: bool, last_seq: int, next_order_id: int, now_s: int = 0
    ) -> None:
        self._table = table
        self._is_classic = is_classic
        self.seq = last_seq
        self.next_order_id = next_order_id
        self._now_s = now_s
        self.keys: dict[int, KeyEntry] = {}  # looked up or new
        self._users: dict[int, StoredUser | None] = {}
        self._products: dict[int, Product | None] = {}
        self._changes: dict[tuple[Kind, int], Change] = {}
        self._sold: dict[int, int] = {}  # product id -> seq of the last order; its image is made once, at the end
        self.orders: list[Change] = []
        self._bought: dict[tuple[int, int], Bought] = {}
        self._handlers: dict[type, Callable[[Any], Result]] = {
            CreateUser: self._create_user,
            UpdateUser: self._update_user,
            DeleteUser: self._delete_user,
            CreateProduct: self._create_product,
            UpdateProduct: self._update_product,
            DeleteProduct: self._delete_product,
            PlaceOrder: self._place_order,
            Flush: self._flush,
            ReplayDeadLetter: self._replay_dead_letter,
        }

    def execute(self, command: Command, token: Token | None = None) -> Result:
        """Apply one command on the overlay; one that was applied before under the same key is answered as it was."""
        if token is None:
            return self._handlers[type(command)](command)
        known = self._key(token.id)
        if known is not None and known.key == token.key and known.at_s + KEY_AGE_MAX_S > self._now_s:
            return Result(Outcome.DONE, known.seq, known.body) if known.digest == token.digest else KEY_REUSED
        result = self._handlers[type(command)](command)
        if result.outcome == Outcome.DONE:
            entry = self.keys[token.id] = KeyEntry(token.key, token.digest, result.seq, result.body, self._now_s)
            self._changes[Kind.KEY, token.id] = Change(Kind.KEY, token.id, result.seq, encode_entry(entry), b"")
        return result

    def forget_key(self, id: int) -> None:
        """Drop a key that is too old or one too many, together with what else is in the batch."""
        if (Kind.KEY, id) not in self._changes:
            self._changes[Kind.KEY, id] = Change(Kind.KEY, id, self.seq, None, b"")

    def _key(self, id: int) -> KeyEntry | None:
        if id not in self.keys:
            record = self._table.get_key(id)
            if record is None:
                return None
            self.keys[id] = decode_entry(record.partition(b"\r\n\r\n")[2])
        return self.keys[id]

    def records(self) -> list[Change]:
        """Return the after-images of users and products."""
        for id, seq in self._sold.items():
            self._changes[Kind.PRODUCT, id] = Change(Kind.PRODUCT, id, seq, encode_json(self._products[id]), b"")
        self._sold.clear()
        return list(self._changes.values())

    def bought(self) -> list[Bought]:
        """Return what was bought, summed up per user and product."""
        return list(self._bought.values())

    # ---- what the overlay shows ----------------------------------------------------------------

    def _user(self, id: int) -> StoredUser | None:
        if id not in self._users:
            stored = self._table.get_private(Kind.USER, id)
            self._users[id] = None if stored is None else self._stored_user(*stored)
        return self._users[id]

    def _stored_user(self, body: bytes, private: bytes) -> StoredUser:
        if self._is_classic:
            classic = _decode_classic_user(body)
            return StoredUser(User(classic.id, classic.username, classic.email), classic.password)
        return StoredUser(_decode_user(body), private.decode() or None)

    def _has_user(self, id: int) -> bool:
        if id in self._users:
            return self._users[id] is not None
        return self._table.get_user(id) is not None

    def _product(self, id: int) -> Product | None:
        if id not in self._products:
            record = self._table.get_product(id)
            self._products[id] = None if record is None else _decode_product(record.partition(b"\r\n\r\n")[2])
        return self._products[id]

    # ---- commands ------------------------------------------------------------------------------

    def _create_user(self, command: CreateUser) -> Result:
        return self._keep_user(command.id, rules.create_user(self._user(command.id), command))

    def _update_user(self, command: UpdateUser) -> Result:
        return self._keep_user(command.id, rules.update_user(self._user(command.id), command))

    def _delete_user(self, command: DeleteUser) -> Result:
        return self._keep_user(command.id, rules.delete_user(self._user(command.id), command))

    def _keep_user(self, id: int, ruled: StoredUser | Outcome | None) -> Result:
        if isinstance(ruled, Outcome):
            return Result(ruled)
        self._users[id] = ruled
        if ruled is None:
            return self._keep(Kind.USER, id, None)
        if self._is_classic:
            return self._keep(Kind.USER, id, encode_json(ClassicUser(*_fields(ruled.user), ruled.secret or "")))
        return self._keep(Kind.USER, id, encode_json(ruled.user), (ruled.secret or "").encode())

    def _create_product(self, command: CreateProduct) -> Result:
        return self._keep_product(command.id, rules.create_product(self._product(command.id), command))

    def _update_product(self, command: UpdateProduct) -> Result:
        return self._keep_product(command.id, rules.update_product(self._product(command.id), command))

    def _delete_product(self, command: DeleteProduct) -> Result:
        return self._keep_product(command.id, rules.delete_product(self._product(command.id), command))

    def _keep_product(self, id: int, ruled: Product | Outcome | None) -> Result:
        if isinstance(ruled, Outcome):
            return Result(ruled)
        self._products[id] = ruled
        self._sold.pop(id, None)
        return self._keep(Kind.PRODUCT, id, None if ruled is None else encode_json(ruled))

    def _keep(self, kind: Kind, id: int, body: bytes | None, private: bytes = b"") -> Result:
        self.seq += 1
        self._changes[kind, id] = Change(kind, id, self.seq, body, private)
        return Result(Outcome.DONE, self.seq, EMPTY_BODY if body is None else body)

    def _place_order(self, command: PlaceOrder) -> Result:
        user_id, product_id = command.user_id, command.product_id
        has_user = self._has_user(user_id)
        ruled = rules.place_order(has_user, self._product(product_id), command, self.next_order_id)
        if isinstance(ruled, Outcome):
            return Result(ruled)
        order, self._products[product_id] = ruled
        self.next_order_id += 1
        self.seq += 1
        self._sold[product_id] = self.seq
        body = encode_json(order)
        self.orders.append(Change(Kind.ORDER, order.id, self.seq, body, b""))
        before = self._bought.get((user_id, product_id))
        units = command.quantity + (before.quantity if before else 0)
        self._bought[user_id, product_id] = Bought(user_id, product_id, units, self.seq)
        return Result(Outcome.DONE, self.seq, body)

    def _flush(self, _command: Flush) -> Result:
        return Result(Outcome.DONE, self.seq)

    def _replay_dead_letter(self, command: ReplayDeadLetter) -> Result:
        kind, id = command.kind, command.id
        is_sold = kind is Kind.PRODUCT and id in self._sold
        if (kind, id) not in self._changes and not is_sold:  # else it is written anyway
            stored = self._table.get_private(kind, id)
            if stored is None:
                return Result(Outcome.MISSING)
            self._keep(kind, id, *stored)
        return Result(Outcome.DONE, self.seq, EMPTY_BODY)


def _fields(user: User) -> tuple[int, str, str]:
    return user.id, user.username, user.email
