"""Stand-ins for what a connection talks to: transport, loop, table, command queue. No sockets, processes or time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from server.commands import Command, CreateUser, Kind, Outcome, Reply, Token, User
from server.config import Config, Durability
from server.errors import QueueFull, SlotBusy
from server.http.endpoint import Endpoint
from server.http.exchange import Counts
from server.http.protocol import Connection
from server.http.replies import CONTINUE, Clock, Replies
from server.http.routes import Shop, fast_getters

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the date of the RFCs


class FakeTransport:
    """Keeps what is written; the test plays the client."""

    def __init__(self) -> None:
        self.output = b""
        self.writes = 0
        self.is_reading = True
        self.is_closed = self.is_aborted = self.has_eof = False
        self.buffer_size = 0

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def write(self, data: bytes) -> None:
        assert not self.is_closed and not self.has_eof, "write after the end"
        self.output += data
        self.writes += 1

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        assert not self.has_eof
        self.has_eof = True

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        return self.buffer_size

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True


class FakeLoop:
    """Runs what is called later when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[..., object], tuple[Any, ...]]] = []

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> None:
        self.calls.append((0, callback, arguments))

    def call_later(self, delay: float, callback: Callable[..., object], *arguments: Any) -> None:
        self.calls.append((delay, callback, arguments))

    def run_soon(self) -> None:
        """Run what waits for the next turn of the loop."""
        soon = [call for call in self.calls if not call[0]]
        self.calls = [call for call in self.calls if call[0]]
        for _, callback, arguments in soon:
            callback(*arguments)

    def run_calls(self) -> None:
        """Run what waits now, not what it makes wait."""
        calls, self.calls = self.calls, []
        for _, callback, arguments in calls:
            callback(*arguments)


class FakeTable:
    """Records in a dict; `busy` reads meet a locked slot first; `error` is raised by every read."""

    def __init__(self) -> None:
        self.bodies: dict[tuple[int, int], bytes] = {}
        self.privates: dict[int, bytes] = {}
        self.bought: dict[int, bytes] = {}
        self.busy = 0
        self.error: Exception | None = None
        self.getters = [self._getter(kind) for kind in (Kind.USER, Kind.PRODUCT, Kind.ORDER)]

    def _getter(self, kind: Kind) -> Callable[[int], bytes | None]:
        def get(id: int) -> bytes | None:
            self._check()
            body = self.bodies.get((kind, id))
            return None if body is None else b"%d\r\n\r\n%b" % (len(body), body)

        return get

    def get_private(self, kind: int, id: int) -> tuple[bytes, bytes] | None:
        self._check()
        body = self.bodies.get((kind, id))
        return None if body is None else (body, self.privates.get(id, b""))

    def purchases(self, user_id: int) -> bytes | None:
        self._check()
        return self.bought.get(user_id)

    def _check(self) -> None:
        if self.busy:
            self.busy -= 1
            raise SlotBusy(1)
        if self.error is not None:
            raise self.error


class Submitted(NamedTuple):
    command: Command
    level: Durability
    on_reply: Callable[[Reply | None], None]
    token: Token | None


class FakeQueue:
    """Keeps commands until the test answers; `is_quick` answers within `submit`. Applied users go to the table."""

    def __init__(self, table: FakeTable, loop: FakeLoop) -> None:
        self.table = table
        self.loop = loop
        self.submitted: list[Submitted] = []
        self.is_full = self.is_quick = False
        self.seq = 0

    def submit(
        self,
        command: Command,
        level: Durability,
        on_reply: Callable[[Reply | None], None],
        token: Token | None = None,
    ) -> None:
        if self.is_full:
            raise QueueFull
        self.submitted.append(Submitted(command, level, on_reply, token))
        if self.is_quick:
            self.answer()

    @property
    def commands(self) -> list[Command]:
        return [submitted.command for submitted in self.submitted]

    def answer(self, outcome: Outcome | None = Outcome.DONE, index: int = 0) -> None:
        """Answer a command, and turn the loop; the first one when nothing is said, None for the time-out."""
        command, _, on_reply, _ = self.submitted.pop(index)
        on_reply(None if outcome is None else self._reply(command, outcome))
        if not self.is_quick:
            self.loop.run_soon()

    def _reply(self, command: Command, outcome: Outcome) -> Reply:
        if outcome is not Outcome.DONE:
            return Reply(0, outcome)
        self.seq += 1
        body = b"{}"
        if isinstance(command, CreateUser):
            body = msgspec.json.encode(User(command.id, command.username, command.email))
            self.table.bodies[Kind.USER, command.id] = body
        return Reply(0, Outcome.DONE, self.seq, body)


class FakePasswords:
    """Hashes when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], str], Callable[[asyncio.Future[str]], object]]] = []
        self.error: Exception | None = None

    def submit(self, hashing: Callable[[], str], on_done: Callable[[asyncio.Future[str]], object]) -> None:
        if self.error is not None:
            raise self.error
        self.waiting.append((hashing, on_done))

    def run(self) -> None:
        hashing, on_done = self.waiting.pop(0)

        class Done:
            def result(self) -> str:
                return hashing()

        on_done(Done())  # type: ignore[arg-type]


class Answer(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class FakeServer:
    """One port of a worker over fakes."""

    def __init__(self, is_classic: bool = False, connections_max: int = 10) -> None:
        self.config = Config(workers=1, classic=is_classic)
        self.loop: Any = FakeLoop()
        self.clock = Clock(NOW)
        self.counts = Counts()
        self.table = FakeTable()
        self.queue = FakeQueue(self.table, self.loop)
        self.passwords: Any = FakePasswords()
        replies = Replies(self.clock, is_classic)
        shop = Shop(self.config, self.loop, replies, self.counts, self.table, self.queue, self.passwords)
        common = (self.loop, self.config, self.clock, replies, self.counts)
        self.endpoint = Endpoint(*common, shop, fast_getters(self.table), shop.writers(), connections_max)

    def connect(self) -> FakeClient:
        return FakeClient(self.endpoint)

    def tick(self, times: int = 1) -> None:
        """Let seconds pass."""
        for _ in range(times):
            self.clock.refresh(NOW)
            self.endpoint.sweep()

    def add(self, kind: Kind, id: int, body: bytes = b'{"id":1}') -> None:
        self.table.bodies[kind, id] = body


class FakeClient:
    """The client's side of one connection."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.transport = FakeTransport()
        self.connection = Connection(endpoint)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    @property
    def output(self) -> bytes:
        return self.transport.output

    @property
    def is_ended(self) -> bool:
        """Whether the server said that it sends no more."""
        return self.transport.has_eof or self.transport.is_closed

    def send(self, data: bytes) -> None:
        assert self.transport.is_reading, "the server does not read"
        self.connection.data_received(data)

    def drip(self, data: bytes) -> None:
        for index in range(len(data)):
            if not self.transport.is_closed:
                self.send(data[index : index + 1])

    def take(self, head_at: tuple[int, ...] = ()) -> list[Answer]:
        """Return the complete answers so far; those at `head_at` have no body."""
        answers, self.transport.output = parse_answers(self.output, head_at), b""
        return answers

    def request(self, data: bytes, is_head: bool = False) -> Answer:
        """Send a request and return its one answer."""
        self.send(data)
        [answer] = self.take((0,) if is_head else ())
        return answer


def parse_answers(output: bytes, head_at: tuple[int, ...] = ()) -> list[Answer]:
    """Split output into answers, checking their framing; 100 Continue is dropped."""
    answers: list[Answer] = []
    while output:
        if output.startswith(CONTINUE):
            output = output[len(CONTINUE) :]
            continue
        head, separator, output = output.partition(b"\r\n\r\n")
        assert separator, f"incomplete answer: {head!r}"
        line, *lines = head.decode().split("\r\n")
        version, status, _ = line.split(" ", 2)
        assert version == "HTTP/1.1"
        fields = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        assert {"date", "content-type", "content-length"} <= set(fields)
        size = 0 if len(answers) in head_at else int(fields["content-length"])
        assert len(output) >= size, "incomplete body"
        answers.append(Answer(int(status), fields, output[:size]))
        output = output[size:]
    return answers


def get(path: str, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    """Return a request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: shop", *lines, "", ""]).encode()


def post(path: str, body: bytes | dict[str, Any], *lines: str, version: str = "1.1") -> bytes:
    """Return a request with a body."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    return get(path, f"Content-Length: {len(body)}", *lines, method="POST", version=version) + body


def chunked(path: str, coded: bytes, *lines: str) -> bytes:
    """Return a request whose body is chunked already."""
    return get(path, "Transfer-Encoding: chunked", *lines, method="POST") + coded


def create_user(id: int, **more: Any) -> dict[str, Any]:
    return {"command": "create", "id": id, "username": "ann", "email": "ann@example.com", **more}
