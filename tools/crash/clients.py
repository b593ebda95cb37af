"""The load: client threads that write, order and read, and log all of it for the checker.

    shared users, hot products     every client updates, orders and reads them
    own users                      one client creates, updates, deletes and creates them again; all read them

Every written text holds a token that is used once, in every field of the record, so that a mixed record matches none.
The terms of an order (product, user, quantity) are used once as well: each client buys for users of its own, and takes
the next user when one has bought everything there is.

A client has one connection and one request under way, and waits while it is told that the server is being started
again. A part of the writes carries an Idempotency-Key; such a one is sent again while there is no answer, so that it is
applied once, however often it had to be sent. The others are sent once.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from tools.connection import Answer, Connection, get, post
from tools.crash.history import (
    NEVER,
    Failure,
    Fate,
    Final,
    History,
    Key,
    OrderRead,
    OrderRequest,
    Read,
    StockRead,
    Terms,
    Write,
)
from tools.crash.values import JsonObject, order_of, product_value, user_value, value_of

ANSWER_TIMEOUT_S = 30.0  # beyond the server's own limit for a write: then it hangs
REFUSED_PAUSE_S = 0.005  # after a 503 or a lost connection; the real Retry-After would leave nothing to be killed
SHARED_USERS = 8
INITIAL_STOCK = {1: 1_000_000, 2: 1_000_000, 3: 1_000_000, 4: 400}  # the last one is sold out soon
QUANTITIES = range(1, 11)
PADDING_BYTES_MAX = 300  # records of many sizes, so that the memory of old ones is used again for others
OWN_IDS = 1_000_000  # of each client
ORDERS_MISSING_MAX = 300  # ids in a row without an order: that was the last one

KEY_SHARE = 0.3  # of the writes
TRIES_MAX = 200  # of one write that is sent again, some milliseconds apart: longer than any process is away

REFUSED = {"user": {401, 404, 409, 503, 507}, "product": {404, 409, 503, 507}, "order": {400, 404, 503, 507}}



class Target(Protocol):
    """The server; its port may change when it is started again."""

    @property
    def port(self) -> int: ...


class Load:
    """All clients and their history."""

    def __init__(self, target: Target, clients: int, seed: int, levels: tuple[str, ...] = ("journal",)) -> None:
        self.target = target
        self.history = History()
        self.own_users: list[int] = []  # every id that is or was in use, for all to read
        self._is_open = threading.Event()
        self._is_over = threading.Event()
        self._clients = [_Client(self, number, random.Random(f"{seed}/{number}"), levels) for number in range(clients)]
        self._threads: list[threading.Thread] = []

    def prepare(self) -> None:
        """Create what all clients share. Raises `OSError` when the server does not take it."""
        self._clients[0].prepare()

    def start(self) -> None:
        self.resume()
        for client in self._clients:
            self._threads.append(threading.Thread(target=client.run, daemon=True))
            self._threads[-1].start()

    def pause(self) -> None:
        """Send nothing more; what is under way ends with its answer or its connection."""
        self._is_open.clear()

    def resume(self) -> None:
        self._is_open.set()

    def stop(self) -> None:
        """Return when every client has the answer to its last request."""
        self._is_over.set()
        self._is_open.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()

    def is_over(self) -> bool:
        """Wait while the load is paused; return whether it has ended."""
        self._is_open.wait()
        return self._is_over.is_set()

    def breathe(self) -> None:
        self._is_over.wait(REFUSED_PAUSE_S)


class _Sent(NamedTuple):
    """A write and what came of it."""

    fate: Fate
    invoked: float
    replied: float
    seq: int
    answer: Answer | None


class _Client:
    """One thread. Its choices come from its own random numbers, its tokens from its own counter."""

    def __init__(self, load: Load, number: int, chance: random.Random, levels: tuple[str, ...]) -> None:
        self._load = load
        self._history = load.history
        self._number = number
        self._chance = chance
        self._levels = levels
        self._connection: Connection | None = None
        self._port = 0
        self._tokens = 0
        self._next_id = (number + 1) * OWN_IDS
        self._own: dict[int, JsonObject | None] = {}  # id -> what is there for sure (None: deleted)
        self._terms: list[Terms] = []  # of orders not yet sent
        self._orders: list[int] = []  # ids of acknowledged ones

    def prepare(self) -> None:
        for id in range(1, SHARED_USERS + 1):
            self._insist(partial(self._write_user, id=id))
        for id, stock in INITIAL_STOCK.items():
            self._history.initial_stock[id] = stock
            self._insist(partial(self._write_product, id=id, quantity=stock))

    def _insist(self, write: Callable[[str], object]) -> None:
        """Write a record that has to be there, whoever dies meanwhile: an unanswered creation makes it an update."""
        for _ in range(TRIES_MAX):
            if write("create") or write("update"):
                return
            self._load.breathe()
        raise OSError("the server did not take the first records")

    def run(self) -> None:
        actions: list[Callable[[], None]] = [
            self._create, self._update_own, self._update_shared, self._delete, self._update_product, self._order,
            self._read_user, self._read_own, self._read_product, self._read_order,
        ]  # fmt: skip
        weights = [8, 8, 12, 4, 6, 25, 12, 12, 10, 3]
        while not self._load.is_over():
            [action] = self._chance.choices(actions, weights)
            action()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    # ---- what it does --------------------------------------------------------------------------

    def _create(self) -> None:
        deleted = [id for id, body in self._own.items() if body is None]
        if deleted and self._chance.random() < 0.3:
            id = self._chance.choice(deleted)
        else:
            id = self._next_id
            self._next_id += 1
        if body := self._write_user("create", id):
            self._own[id] = body
            self._load.own_users.append(id)

    def _update_own(self) -> None:
        present = [id for id, body in self._own.items() if body is not None]
        if present:
            id = self._chance.choice(present)
            self._own[id] = self._write_user("update", id) or self._own[id]

    def _update_shared(self) -> None:
        self._write_user("update", self._chance.randint(1, SHARED_USERS))

    def _delete(self) -> None:
        present = [(id, body) for id, body in self._own.items() if body is not None]
        if not present:
            return
        id, body = self._chance.choice(present)
        sent = self._send("user", {"command": "delete"} | body)
        self._history.writes.append(Write(("user", id), None, *sent[:4]))
        if sent.fate is Fate.APPLIED:
            self._own[id] = None
        elif sent.fate is Fate.UNKNOWN:
            del self._own[id]

    def _update_product(self) -> None:
        self._write_product("update", self._chance.choice(list(INITIAL_STOCK)))

    def _order(self) -> None:
        if not self._terms and not self._find_buyer():
            return
        terms = self._terms.pop()
        sent = self._send("order", {"command": "place order"} | terms._asdict())
        order_id = 0
        if sent.answer is not None and sent.fate is Fate.APPLIED:
            order_id, found = order_of(sent.answer.body)
            self._orders.append(order_id)
            if found != terms:
                self._fail(f"order of {terms}", sent.answer)
        self._history.orders.append(OrderRequest(terms, *sent[:4], order_id))

    def _find_buyer(self) -> bool:
        """Create a user for the next orders; he is never deleted."""
        id = self._next_id
        self._next_id += 1
        if self._write_user("create", id) is None:
            return False
        self._load.own_users.append(id)
        self._terms = [Terms(product_id, id, quantity) for product_id in INITIAL_STOCK for quantity in QUANTITIES]
        self._chance.shuffle(self._terms)
        return True

    def _read_user(self) -> None:
        self._read("user", self._chance.randint(1, SHARED_USERS))

    def _read_own(self) -> None:
        """Read a user of any client, mostly a recent one."""
        users = self._load.own_users
        if users:
            self._read("user", users[-1 - min(int(self._chance.expovariate(0.05)), len(users) - 1)])

    def _read_product(self) -> None:
        self._read("product", self._chance.choice(list(INITIAL_STOCK)))

    def _read_order(self) -> None:
        if self._orders:
            self.read_order(self._chance.choice(self._orders))

    # ---- requests ------------------------------------------------------------------------------

    def _write_user(self, command: str, id: int) -> JsonObject | None:
        """Write a whole new user; return it when that was acknowledged."""
        token = self._token()
        body = {"id": id, "username": token, "email": f"{token}@example.com"}
        return body if self._write("user", {"command": command} | body, user_value(body)) else None

    def _write_product(self, command: str, id: int, **more: int) -> bool:
        token = self._token()
        body = {"id": id, "name": token, "description": f"a {token}", "price": self._tokens} | more
        return self._write("product", {"command": command} | body, product_value(body))

    def _write(self, kind: str, body: JsonObject, value: str) -> bool:
        key = (kind, body["id"])
        sent = self._send(kind, body)
        self._history.writes.append(Write(key, value, *sent[:4]))
        if sent.answer is not None and sent.fate is Fate.APPLIED:
            self._note(key, sent.answer, sent.invoked, sent.replied)
        return sent.fate is Fate.APPLIED

    def _send(self, kind: str, body: JsonObject) -> _Sent:
        fields = f"Durability: {self._chance.choice(self._levels)}\r\n"
        if has_key := self._chance.random() < KEY_SHARE:
            self._tokens += 1
            fields += f"Idempotency-Key: {self._number}-{self._tokens}\r\n"
        request = post("localhost", f"/{kind}", json.dumps(body).encode(), fields)
        invoked = time.monotonic()
        sent = self._send_once(kind, request, invoked)
        if sent.fate is Fate.UNKNOWN and has_key:
            for _ in range(TRIES_MAX):
                again = self._send_once(kind, request, invoked)
                if again.fate is Fate.APPLIED:  # any other answer says nothing about the tries before
                    return again
                if self._load.is_over():
                    break
        return sent

    def _send_once(self, kind: str, request: bytes, invoked: float) -> _Sent:
        answer = self._exchange(request)
        replied = time.monotonic()
        if answer is None or answer.status == 504:
            return _Sent(Fate.UNKNOWN, invoked, NEVER, 0, answer)
        if answer.status == 200 and answer.seq is not None:
            return _Sent(Fate.APPLIED, invoked, replied, int(answer.seq), answer)
        if answer.status in REFUSED[kind]:
            if answer.status >= 500:
                self._load.breathe()
            return _Sent(Fate.REFUSED, invoked, replied, 0, answer)
        self._fail(request.decode(), answer)
        return _Sent(Fate.UNKNOWN, invoked, NEVER, 0, answer)

    def _read(self, kind: str, id: int) -> None:
        invoked = time.monotonic()
        answer = self._exchange(get("localhost", f"/{kind}/{id}"))
        replied = time.monotonic()
        if answer is None:
            return
        if answer.status == 200:
            self._note((kind, id), answer, invoked, replied)
        elif answer.status == 404:
            self._history.reads.append(Read((kind, id), None, invoked, replied))
        else:
            self._fail(f"GET /{kind}/{id}", answer)

    def _note(self, key: Key, answer: Answer, invoked: float, replied: float) -> None:
        """Log a record that was seen."""
        kind, id = key
        value, stock = value_of(kind, id, answer.body)
        self._history.reads.append(Read(key, value, invoked, replied))
        if stock is not None:
            self._history.stock_reads.append(StockRead(id, stock, invoked, replied))

    def read_order(self, order_id: int) -> Terms | None:
        invoked = time.monotonic()
        answer = self._exchange(get("localhost", f"/order/{order_id}"))
        if answer is None:
            return None
        if answer.status not in (200, 404):
            self._fail(f"GET /order/{order_id}", answer)
            return None
        terms = order_of(answer.body)[1] if answer.status == 200 else None
        self._history.order_reads.append(OrderRead(order_id, terms, invoked, time.monotonic()))
        return terms

    def _exchange(self, request: bytes) -> Answer | None:
        """Return the answer, or None when there is none: whether the request was applied is not known then."""
        if self._connection is None or self._port != self._load.target.port:
            self.close()
            self._port = self._load.target.port
            self._connection = Connection("127.0.0.1", self._port, ANSWER_TIMEOUT_S)
        try:
            return self._connection.exchange(request)
        except TimeoutError:
            self._history.failures.append(Failure(request.decode()[:200], f"none within {ANSWER_TIMEOUT_S} s"))
        except OSError:
            self._load.breathe()
        return None

    def _fail(self, request: str, answer: Answer) -> None:
        self._history.failures.append(Failure(request, f"{answer.status} {answer.body.decode(errors='replace')[:200]}"))

    def _token(self) -> str:
        self._tokens += 1
        padding = "x" * self._chance.randint(0, PADDING_BYTES_MAX)
        return f"{self._number}-{self._tokens}-{padding}"


# ---- the end ---------------------------------------------------------------------------------------------------


def read_final(load: Load) -> Final:
    """Read everything once more, and log it as reads too. Nothing may be under way. Raises `OSError`."""
    reader = _Client(load, -1, random.Random(0), ("journal",))
    history = load.history
    for key in {write.key for write in history.writes}:
        reader._read(*key)
    highest = max((order.order_id for order in history.orders), default=0)
    orders: dict[int, Terms] = {}
    order_id = 1
    while order_id <= max([highest, *list(orders)[-1:]]) + ORDERS_MISSING_MAX:
        if terms := reader.read_order(order_id):
            orders[order_id] = terms
        order_id += 1
    stock = {read.product_id: read.quantity for read in history.stock_reads}  # the last one of each counts
    purchases = {}
    for user_id in {order.terms.user_id for order in history.orders}:
        answer = reader._exchange(get("localhost", f"/user/purchased/{user_id}"))
        if answer is None or answer.status != 200:
            raise OSError(f"purchases of user {user_id}: {answer}")
        purchases[user_id] = {int(id): units for id, units in json.loads(answer.body).items()}
    reader.close()
    return Final(orders, stock, purchases)
