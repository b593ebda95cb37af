"""Send the original work - users, products, then orders - from client threads and read every record back.

Ten Python threads, each with one keep-alive connection and one request in flight, are the experiment that every shape
of this system was measured with, so the client stays that simple. All requests are made before the clock starts, from
one seed: the same seed sends the same bytes. Stock is generated so that no order can exceed it, so every answer has to
be 200, and what every record must look like afterwards is known: exit 0 says that it does.

The load ends at the first phase that was not answered 200 throughout (it would only repeat the first error), and it
never sends a request twice. It needs a server that has none of its ids; it leaves its records there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tools.connection import Answer, Connection, get, post

JsonObject = dict[str, Any]

EXCHANGE_TIMEOUT_S = 30.0  # longer than a server may take to answer 504; then something is broken
FAILURES_MAX = 3  # exchanges without an answer in a row before a thread gives up: a dead server is noticed at once
SPARE_STOCK_MAX = 100  # units that may be left of a product after all its orders
ORDER_QUANTITY_MAX = 5
PRICE_CENTS_MAX = 50_000
MISMATCHES_SHOWN = 20  # the first ones tell what is wrong; the count tells how much
PROGRESS_PERIOD_S = 0.1
BAR_CHARACTERS = 30

NO_ANSWER = 0  # counted like a status: connection lost or timed out, or not sent because the thread gave up

ShowProgress = Callable[[str, int, int, bool], None]  # name of the phase, done, total, is it over


@dataclass(frozen=True)
class Work:
    """What is sent: the bodies of all commands, without `command`."""

    users: list[JsonObject]
    products: list[JsonObject]
    orders: list[JsonObject]


@dataclass(frozen=True)
class Expectation:
    """What a GET must answer."""

    path: str
    body: JsonObject


@dataclass
class Phase:
    """Requests sent together, and what came back: `answers[n]` belongs to request n."""

    name: str
    seconds: float
    answers: list[Answer]
    mismatches: list[str] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)

    @property
    def rate(self) -> float:
        return len(self.answers) / self.seconds if self.seconds else 0.0

    @property
    def is_all_200(self) -> bool:
        return all(answer.status == 200 for answer in self.answers)


class Client:
    """The client threads' connections to one server."""

    def __init__(self, url: str, threads: int, show_progress: ShowProgress = lambda *_: None) -> None:
        parts = urlsplit(url)
        self.host = parts.netloc
        self._connections = [
            Connection(parts.hostname or "", parts.port or 80, EXCHANGE_TIMEOUT_S) for _ in range(threads)
        ]
        self._show_progress = show_progress

    def send(self, name: str, requests: Sequence[bytes]) -> Phase:
        """Send all requests, thread k every k-th, and return when each has its answer or was given up."""
        answers = [Answer(NO_ANSWER, b"not sent")] * len(requests)
        done = [0] * len(self._connections)
        stride = len(self._connections)

        def send_share(share: int) -> None:
            failures = 0
            for index in range(share, len(requests), stride):
                try:
                    answers[index] = self._connections[share].exchange(requests[index])
                    failures = 0
                except OSError as error:
                    answers[index] = Answer(NO_ANSWER, str(error).encode())
                    failures += 1
                done[share] += 1
                if failures == FAILURES_MAX:
                    return

        threads = [threading.Thread(target=send_share, args=(share,), daemon=True) for share in range(stride)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(PROGRESS_PERIOD_S)
                self._show_progress(name, sum(done), len(requests), False)
        seconds = time.perf_counter() - start
        self._show_progress(name, sum(done), len(requests), True)
        return Phase(name, seconds, answers)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


def main(arguments: list[str]) -> int:
    """Run the load; 0 when every answer was 200 and every record read back as expected, 1 otherwise, 2 usage."""
    options = _parse(arguments)
    counts = options.users, options.products, options.orders
    work = make_work(*counts, options.seed, options.passwords, options.stock)
    client = Client(options.url, options.threads, *([_draw_bar] if sys.stderr.isatty() else []))
    try:
        phases, problem = run(client, work)
    finally:
        client.close()
    for phase in phases:
        print(_describe(phase))
    sent = [phase for phase in phases if phase.name != "read-back"]
    seconds = sum(phase.seconds for phase in sent)
    print(f"{'total':<10}{sum(len(phase.answers) for phase in sent):>9,} requests {seconds:>9.2f} s")
    if problem:
        print(problem, file=sys.stderr)
    if options.json:
        report = {
            "url": options.url, "threads": options.threads, "seed": options.seed, "ok": problem is None,
            "seconds": round(seconds, 6), "phases": [_as_json(phase) for phase in phases],
        }  # fmt: skip
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if problem is None else 1


def make_work(
    users: int, products: int, orders: int, seed: int, has_passwords: bool, spare_stock: int | None = None
) -> Work:
    """Make the records from the seed; ids count from 1 and each product has stock for all its orders.

    `spare_stock` is left of each product after them; None: a few units, by chance.
    """
    chance = random.Random(seed)
    user_records = [
        {"id": id, "username": f"user-{id}", "email": f"user-{id}@example.com"}
        | ({"password": f"secret-{chance.randrange(1 << 32):08x}"} if has_passwords else {})
        for id in range(1, users + 1)
    ]
    order_records = [
        {
            "product_id": chance.randint(1, products),
            "user_id": chance.randint(1, users),
            "quantity": chance.randint(1, ORDER_QUANTITY_MAX),
        }
        for _ in range(orders)
    ]
    ordered = units_by_product(order_records)
    product_records = [
        {
            "id": id,
            "name": f"product-{id}",
            "description": f"the product number {id}",
            "price": chance.randrange(PRICE_CENTS_MAX) / 100,
            "quantity": ordered[id] + (chance.randint(0, SPARE_STOCK_MAX) if spare_stock is None else spare_stock),
        }
        for id in range(1, products + 1)
    ]
    return Work(user_records, product_records, order_records)


def run(client: Client, work: Work) -> tuple[list[Phase], str | None]:
    """Send the work and read it back; return the phases and, unless all is well, what is wrong."""
    phases: list[Phase] = []
    for name, path, command, records in (
        ("users", "/user", "create", work.users),
        ("products", "/product", "create", work.products),
        ("orders", "/order", "place order", work.orders),
    ):
        phase = client.send(name, [post(client.host, path, _encode({"command": command} | body)) for body in records])
        phases.append(phase)
        if not phase.is_all_200:
            return phases, _explain(phase, work)
    phase = read_back(client, expected_records(work, phases[0].answers, phases[2].answers))
    phases.append(phase)
    if phase.mismatches:
        shown = phase.mismatches[:MISMATCHES_SHOWN]
        return phases, "\n".join([*shown, f"read-back: {len(phase.mismatches)} records are not as they were written"])
    return phases, None


def expected_records(work: Work, user_answers: list[Answer], order_answers: list[Answer]) -> list[Expectation]:
    """Return what every record must be when all commands were answered 200."""
    placed = placed_orders(work, order_answers)
    bought: dict[int, Counter[str]] = defaultdict(Counter)
    for order in placed:
        bought[order["user_id"]][str(order["product_id"])] += order["quantity"]
    sold = units_by_product(placed)
    is_classic = any(b'"password"' in answer.body for answer in user_answers[:1])
    return [
        *(Expectation(f"/user/{user['id']}", _expected_user(user, is_classic)) for user in work.users),
        *(
            Expectation(f"/product/{product['id']}", product | {"quantity": product["quantity"] - sold[product["id"]]})
            for product in work.products
        ),
        *(Expectation(f"/order/{order['id']}", order) for order in placed),
        *(Expectation(f"/user/purchased/{user['id']}", dict(bought[user["id"]])) for user in work.users),
    ]


def placed_orders(work: Work, answers: list[Answer]) -> list[JsonObject]:
    """Return the orders that were answered 200, each with the id that the server gave it."""
    placed = []
    for order, answer in zip(work.orders, answers, strict=True):
        if answer.status == 200:
            id = (_decode(answer.body) or {}).get("id")
            placed.append({"id": id, **order, "status": "Success"})
    return placed


def units_by_product(orders: list[JsonObject]) -> Counter[int]:
    """Return how many units of each product these orders take."""
    units: Counter[int] = Counter()
    for order in orders:
        units[order["product_id"]] += order["quantity"]
    return units


def read_back(client: Client, expectations: list[Expectation]) -> Phase:
    """GET every record and note each that differs."""
    phase = client.send("read-back", [get(client.host, expectation.path) for expectation in expectations])
    for expectation, answer in zip(expectations, phase.answers, strict=True):
        if answer.status != 200 or _decode(answer.body) != expectation.body:
            found = answer.body.decode(errors="replace")
            phase.mismatches.append(f"{expectation.path}: {answer.status} {found}, expected {expectation.body}")
    phase.mismatches += _repeated(expectations)
    return phase


def _repeated(expectations: list[Expectation]) -> list[str]:
    """Name the order ids that were given twice: one GET can not show both orders."""
    counts = Counter(expectation.path for expectation in expectations)
    return [f"{path}: {count} orders were answered with this id" for path, count in counts.items() if count > 1]


def _expected_user(user: JsonObject, is_classic: bool) -> JsonObject:
    """Return what GET shows: never a password, except the hash that the original services showed."""
    public = {key: user[key] for key in ("id", "username", "email")}
    if is_classic:
        public["password"] = hashlib.sha256(user.get("password", "").encode()).hexdigest().upper()
    return public


def _explain(phase: Phase, work: Work) -> str:
    """Say why a phase failed, and what to do where that is known."""
    refused = [answer for answer in phase.answers if answer.status != 200]
    first = refused[0]
    head = f"{phase.name}: {len(refused)} of {len(phase.answers)} requests were not answered 200"
    if first.status == 409:
        count = sum(answer.status == 409 for answer in refused)
        return f"{head}: {count} ids exist already; the load needs a server with an empty data directory"
    if first.status == 400 and phase.name == "users" and first.body == b"{}" and "password" not in work.users[0]:
        return f"{head}: the server wants a password for every user (--classic); add --passwords"
    shown = "no answer" if first.status == NO_ANSWER else str(first.status)
    return f"{head}; the first: {shown} {first.body.decode(errors='replace')}"


def _encode(body: JsonObject) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def _decode(body: bytes) -> JsonObject | None:
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _describe(phase: Phase) -> str:
    statuses = ", ".join(f"{status or 'no answer'}: {n:,}" for status, n in sorted(phase.statuses.items()))
    figures = f"{len(phase.answers):>9,} requests {phase.seconds:>9.2f} s {phase.rate:>10,.0f}/s   {statuses}"
    mismatches = f", {len(phase.mismatches)} mismatches" if phase.name == "read-back" else ""
    return f"{phase.name:<10}{figures}{mismatches}"


def _as_json(phase: Phase) -> JsonObject:
    return {
        "name": phase.name,
        "seconds": round(phase.seconds, 6),
        "requests": len(phase.answers),
        "statuses": {str(status): count for status, count in sorted(phase.statuses.items())},
        "rate": round(phase.rate, 1),
        "mismatches": len(phase.mismatches),
        "first_mismatches": phase.mismatches[:MISMATCHES_SHOWN],
    }


def _draw_bar(name: str, done: int, total: int, is_over: bool) -> None:
    filled = BAR_CHARACTERS * done // max(total, 1)
    bar = "#" * filled + "." * (BAR_CHARACTERS - filled)
    print(f"\r{name:<10}[{bar}] {done:,}/{total:,}", end="\n" if is_over else "", file=sys.stderr, flush=True)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="server to load (default: %(default)s)")
    parser.add_argument("--users", type=_count, default=1000, help="default: %(default)s")
    parser.add_argument("--products", type=_count, default=1000, help="default: %(default)s")
    parser.add_argument("--orders", type=_count, default=5500, help="default: %(default)s")
    parser.add_argument("--threads", type=_count, default=10, help="client threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed sends the same work (default: %(default)s)")
    parser.add_argument("--passwords", action="store_true", help="give every user a password (--classic needs it)")
    parser.add_argument("--stock", type=_count, help="units left of each product for more orders (default: a few)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    if urlsplit(options.url).scheme != "http" or not urlsplit(options.url).hostname:
        parser.error(f"--url must be http://HOST:PORT, not {options.url!r}")
    if options.threads < 1:
        parser.error("--threads must be at least 1")
    if options.orders and not (options.users and options.products):
        parser.error("--orders needs --users and --products")
    return options


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value
