"""One batch: commands applied in order on an overlay over the table, so that command k sees the effect of k-1.

Nothing is changed outside of this object. What comes out are the after-images: one `Change` per record however often
it changed, and the units bought per user and product. The manager journals and publishes them, or drops the batch.

Every successful command takes one seq; a record carries the seq of the last command that changed it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from server import rules
from server.commands import (
    DONE,
    KEY,
    ORDER,
    PRODUCT,
    USER,
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
    join_stock,
    split_stock,
)
from server.journal.format import Change
from server.rules import StoredUser
from server.shm.table import TableReader, body_of

EMPTY_BODY = b"{}"
KEY_AGE_MAX_S = 24 * 3600  # how long an Idempotency-Key is remembered: far longer than any client retries

_decode_user = msgspec.json.Decoder(User).decode
_decode_classic_user = msgspec.json.Decoder(ClassicUser).decode
encode_entry = msgspec.msgpack.Encoder().encode
decode_entry = msgspec.msgpack.Decoder(KeyEntry).decode
_decode_product = msgspec.json.Decoder(Product).decode


class Result(Struct, frozen=True, gc=False):
    """What a command came to; `seq` is 0 unless it is DONE."""

    outcome: Outcome
    seq: int = 0
    body: bytes = b""


KEY_REUSED = Result(Outcome.KEY_REUSED)

Bought = tuple[int, int, int, int]  # user id, product id, units that he bought in the batch, seq of the last order
_NOTHING = (0, 0)  # bought so far: units, seq


class _Stock:
    """The stock of a product that the batch looked at; the product itself is not decoded."""

    __slots__ = ("head", "seq", "units")

    def __init__(self, body: bytes) -> None:
        self.head, self.units = split_stock(body)
        self.seq = 0  # of the last order in this batch

    def body(self) -> bytes:
        return join_stock(self.head, self.units)


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
        self._stocks: dict[int, _Stock] = {}  # of products that were ordered; the image is made once, at the end
        self.orders: list[Change] = []
        self._bought: dict[tuple[int, int], tuple[int, int]] = {}  # user, product -> units, seq of the last order

    def execute(self, command: Command, token: Token | None = None) -> Result:
        """Apply one command on the overlay; one that was applied before under the same key is answered as it was."""
        if token is None:
            return _HANDLERS[type(command)](self, command)
        known = self._key(token.id)
        if known is not None and known.key == token.key and known.at_s + KEY_AGE_MAX_S > self._now_s:
            return Result(DONE, known.seq, known.body) if known.digest == token.digest else KEY_REUSED
        result = _HANDLERS[type(command)](self, command)
        if result.outcome == DONE:
            entry = self.keys[token.id] = KeyEntry(token.key, token.digest, result.seq, result.body, self._now_s)
            self._changes[KEY, token.id] = Change(KEY, token.id, result.seq, encode_entry(entry), b"")
        return result

    def forget_key(self, id: int) -> None:
        """Drop a key that is too old or one too many, together with what else is in the batch."""
        if (KEY, id) not in self._changes:
            self._changes[KEY, id] = Change(KEY, id, self.seq, None, b"")

    def _key(self, id: int) -> KeyEntry | None:
        if id not in self.keys:
            record = self._table.get_key(id)
            if record is None:
                return None
            self.keys[id] = decode_entry(body_of(record))
        return self.keys[id]

    def records(self) -> list[Change]:
        """Return the after-images of users, products and keys."""
        for id, stock in self._stocks.items():
            if stock.seq:
                self._changes[PRODUCT, id] = Change(PRODUCT, id, stock.seq, stock.body(), b"")
        return list(self._changes.values())

    def bought(self) -> list[Bought]:
        """Return what was bought, summed up per user and product."""
        return [(*of_whom, *units) for of_whom, units in self._bought.items()]

    # ---- what the overlay shows ----------------------------------------------------------------

    def _user(self, id: int) -> StoredUser | None:
        if id not in self._users:
            stored = self._table.get_private(USER, id)
            self._users[id] = None if stored is None else self._stored_user(*stored)
        return self._users[id]

    def _stored_user(self, body: bytes, private: bytes) -> StoredUser:
        if self._is_classic:
            classic = _decode_classic_user(body)
            return StoredUser(User(classic.id, classic.username, classic.email), classic.password)
        return StoredUser(_decode_user(body), private.decode() or None)

    def _product(self, id: int) -> Product | None:
        if id in self._stocks:
            return _decode_product(self._stocks[id].body())
        if id not in self._products:
            record = self._table.get_product(id)
            self._products[id] = None if record is None else _decode_product(body_of(record))
        return self._products[id]

    def _stock(self, id: int) -> _Stock | None:
        """Return the stock of a product that was not ordered in this batch before."""
        if id in self._products:
            product = self._products[id]
            body = None if product is None else encode_json(product)
        else:
            record = self._table.get_product(id)
            body = None if record is None else body_of(record)
        if body is None:
            return None
        stock = self._stocks[id] = _Stock(body)
        return stock

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
            return self._keep(USER, id, None)
        if self._is_classic:
            return self._keep(USER, id, encode_json(ClassicUser(*_fields(ruled.user), ruled.secret or "")))
        return self._keep(USER, id, encode_json(ruled.user), (ruled.secret or "").encode())

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
        self._stocks.pop(id, None)
        return self._keep(PRODUCT, id, None if ruled is None else encode_json(ruled))

    def _keep(self, kind: Kind, id: int, body: bytes | None, private: bytes = b"") -> Result:
        self.seq += 1
        self._changes[kind, id] = Change(kind, id, self.seq, body, private)
        return Result(DONE, self.seq, EMPTY_BODY if body is None else body)

    def _place_order(self, command: PlaceOrder) -> Result:
        user_id, product_id = command.user_id, command.product_id
        users = self._users
        has_user = (users[user_id] if user_id in users else self._table.get_user(user_id)) is not None
        stock = self._stocks.get(product_id) or self._stock(product_id)
        order = rules.place_order(has_user, None if stock is None else stock.units, command, self.next_order_id)
        if isinstance(order, Outcome):
            return Result(order)
        assert stock is not None
        self.next_order_id += 1
        seq = self.seq = self.seq + 1
        stock.units -= order.quantity
        stock.seq = seq
        body = encode_json(order)
        self.orders.append(Change(ORDER, order.id, seq, body, b""))
        of_whom = (user_id, product_id)
        self._bought[of_whom] = self._bought.get(of_whom, _NOTHING)[0] + order.quantity, seq
        return Result(DONE, seq, body)

    def _flush(self, _command: Flush) -> Result:
        return Result(DONE, self.seq)

    def _replay_dead_letter(self, command: ReplayDeadLetter) -> Result:
        kind, id = command.kind, command.id
        is_sold = kind is PRODUCT and id in self._stocks and self._stocks[id].seq > 0
        if (kind, id) not in self._changes and not is_sold:  # else it is written anyway
            stored = self._table.get_private(kind, id)
            if stored is None:
                return Result(Outcome.MISSING)
            self._keep(kind, id, *stored)
        return Result(DONE, self.seq, EMPTY_BODY)


_HANDLERS: dict[type, Callable[[Batch, Any], Result]] = {
    CreateUser: Batch._create_user,
    UpdateUser: Batch._update_user,
    DeleteUser: Batch._delete_user,
    CreateProduct: Batch._create_product,
    UpdateProduct: Batch._update_product,
    DeleteProduct: Batch._delete_product,
    PlaceOrder: Batch._place_order,
    Flush: Batch._flush,
    ReplayDeadLetter: Batch._replay_dead_letter,
}


def _fields(user: User) -> tuple[int, str, str]:
    return user.id, user.username, user.email
