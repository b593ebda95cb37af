"""The writes of the comparison, and what they must have left: every acknowledged one is remembered.

    work       1,000 users, 1,000 products, 5,500 orders from ten Python threads, as `python -m tools load` sends them
    trickle    updates of these users at a low, fixed rate while the reads go on: each period has something to do
    burst      new users from ten threads at full speed, until everything is killed

An update that was not acknowledged may have been applied or not; the user it names is left out of the count.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tools.bench.processes import MeasurementFailed
from tools.connection import Answer, Connection, post
from tools.load import Client, Expectation, Phase, Work, expected_records, read_back

THREADS = 10  # of the original experiment
EXCHANGE_TIMEOUT_S = 180.0  # version 1 does not answer while it flushes everything
FIRST_BURST_ID = 1_000_000
PASSWORD = "secret"

JsonObject = dict[str, Any]


@dataclass
class Acknowledged:
    """What was acknowledged so far."""

    work: Work
    user_answers: list[Answer] = field(default_factory=list)
    order_answers: list[Answer] = field(default_factory=list)
    emails: dict[int, str] = field(default_factory=dict)  # of the trickle: the last one acknowledged
    unknown: set[int] = field(default_factory=set)  # users with an update that was not answered
    created: list[JsonObject] = field(default_factory=list)  # by the burst

    @property
    def count(self) -> int:
        """How many writes the expectations below stand for."""
        work = len(self.work.users) + len(self.work.products) + len(self.work.orders)
        return work + len(self.emails) + len(self.created)

    def expectations(self) -> list[Expectation]:
        """Return what must be read back."""
        expected = []
        for one in expected_records(self.work, self.user_answers, self.order_answers):
            if one.path.startswith("/user/purchased/"):
                continue  # the same orders once more
            id = one.body["id"]
            if one.path.startswith("/user/") and id in self.unknown:
                continue
            is_updated = one.path.startswith("/user/") and id in self.emails
            expected.append(Expectation(one.path, one.body | {"email": self.emails[id]}) if is_updated else one)
        return expected + [Expectation(f"/user/{user['id']}", user) for user in self.created]


def send_work(url: str, work: Work) -> tuple[float, list[Phase]]:
    """Send the work; return the seconds that its three phases took, and the phases."""
    client = Client(url, THREADS)
    phases = []
    try:
        for name, path, command, records in (
            ("users", "/user", "create", work.users),
            ("products", "/product", "create", work.products),
            ("orders", "/order", "place order", work.orders),
        ):
            phases.append(client.send(name, [_command(client.host, path, command, body) for body in records]))
    finally:
        client.close()
    for phase in phases:
        if not phase.is_all_200:
            raise MeasurementFailed(f"{phase.name}: statuses {dict(phase.statuses)}")
    return sum(phase.seconds for phase in phases), phases


def count_lost(url: str, acknowledged: Acknowledged) -> tuple[int, str]:
    """Read everything back; return how many records are not as they were acknowledged, and the first one."""
    client = Client(url, THREADS)
    try:
        phase = read_back(client, acknowledged.expectations())
    finally:
        client.close()
    return len(phase.mismatches), phase.mismatches[0] if phase.mismatches else ""


class Trickle:
    """A thread that updates users at a fixed rate for the length of a `with` block."""

    def __init__(self, url: str, acknowledged: Acknowledged, rate: float) -> None:
        self._connection = _connection(url)
        self._host = urlsplit(url).netloc
        self._acknowledged = acknowledged
        self._interval_s = 1.0 / rate
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        due = time.monotonic()
        for number in count():
            due += self._interval_s  # after a stall it catches up: as many writes for everyone
            if self._is_over.wait(max(0.0, due - time.monotonic())):
                return
            id, email = 1 + number % len(self._acknowledged.work.users), f"trickle-{number}-{due:.6f}@example.com"
            try:
                body = {"id": id, "email": email}
                answer = self._connection.exchange(_command(self._host, "/user", "update", body))
            except OSError:
                self._acknowledged.unknown.add(id)
                continue
            if answer.status == 200:
                self._acknowledged.emails[id] = email

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()  # what is under way is awaited: its outcome counts
        self._connection.close()


class Burst:
    """Ten threads that create users until they find nobody who answers."""

    def __init__(self, url: str, acknowledged: Acknowledged) -> None:
        self._url = url
        self._created: list[list[JsonObject]] = [[] for _ in range(THREADS)]
        self._acknowledged = acknowledged
        self._threads = [threading.Thread(target=self._run, args=(share,), daemon=True) for share in range(THREADS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for the threads, after everything was killed, and note what was acknowledged."""
        for thread in self._threads:
            thread.join()
        self._acknowledged.created += [user for share in self._created for user in share]

    def _run(self, share: int) -> None:
        connection, host = _connection(self._url), urlsplit(self._url).netloc
        for id in count(FIRST_BURST_ID + share, THREADS):
            user = {"id": id, "username": f"user-{id}", "email": f"user-{id}@example.com", "password": PASSWORD}
            try:
                answer = connection.exchange(_command(host, "/user", "create", user))
            except OSError:
                connection.close()
                return
            if answer.status == 200:
                self._created[share].append(json.loads(answer.body))


def _connection(url: str) -> Connection:
    parts = urlsplit(url)
    return Connection(parts.hostname or "", parts.port or 80, EXCHANGE_TIMEOUT_S)


def _command(host: str, path: str, command: str, body: JsonObject) -> bytes:
    return post(host, path, json.dumps({"command": command} | body, separators=(",", ":")).encode())
