"""What the protocol and the services hand each other: a request, and the exchange that takes its answer.

A service answers at once by returning bytes. It may also return `Later.ANSWER` and bring the answer by a step that it
runs through `Exchange.attempt`, or `Later.AGAIN`: what it needs depends on requests of the same connection that
are not answered yet. Steps run on the loop of the worker, and a step that fails answers 500.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple, Protocol

from server.http.replies import Replies, with_connection, without_body

log = logging.getLogger(__name__)


class Later(Enum):
    """The answer is not there yet."""

    ANSWER = auto()  # a later step brings it
    AGAIN = auto()  # hand in the request again when all before it are answered


LATER, AGAIN = Later  # for hot paths, as the names in server/commands.py


class Request(NamedTuple):
    """A complete request."""

    method: bytes
    target: bytes
    body: bytes
    durability: str | None  # as the client wrote it
    key: str | None = None  # Idempotency-Key, as the client wrote it


class Counts:
    """What happened since the worker last added it to its counters in shared memory."""

    __slots__ = (
        "client_errors",
        "connections",
        "errors",
        "exchanges",
        "fast_reads",
        "reads",
        "server_errors",
        "slot_retries",
    )

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.fast_reads = 0  # answered without an exchange
        self.exchanges = 0
        self.reads = 0  # answered from shared memory by way of an exchange
        self.client_errors = 0
        self.server_errors = 0
        self.errors = 0
        self.connections = 0  # accepted
        self.slot_retries = 0


class Exchange:
    """One request that waits for its answer, or has it but waits for its turn."""

    __slots__ = (
        "_connection_option",
        "_counts",
        "_is_head",
        "_on_answer",
        "_replies",
        "answer",
        "is_alone",
        "is_first",
    )

    def __init__(
        self,
        replies: Replies,
        counts: Counts,
        on_answer: Callable[[], None],
        is_first: bool,
        is_head: bool,
        connection_option: bytes,
    ) -> None:
        self.answer: bytes | None = None
        self.is_first = is_first  # every earlier request of the connection is answered
        self.is_alone = False  # nothing of the connection may pass it: it has not reached the manager yet
        self._replies = replies
        self._counts = counts
        self._on_answer = on_answer
        self._is_head = is_head
        self._connection_option = connection_option

    @property
    def is_last(self) -> bool:
        """Whether the connection ends with this answer."""
        return self._connection_option == b"close"

    def make_last(self) -> None:
        """End the connection with this answer, which is there."""
        assert self.answer is not None
        if self._connection_option == b"keep-alive":
            self.answer = self.answer.replace(b"\r\nConnection: keep-alive\r\n", b"\r\nConnection: close\r\n", 1)
        elif not self.is_last:
            self.answer = with_connection(self.answer, b"close")
        self._connection_option = b"close"

    def attempt(self, step: Callable[..., bytes | Later], *arguments: object) -> bytes | Later:
        """Run a step of this request; bytes are its answer. No step takes the worker along: this is the boundary."""
        try:
            answer = step(*arguments)
        except Exception:
            log.exception("request failed in %s", getattr(step, "__qualname__", step))
            self._counts.errors += 1
            answer = self._replies.unexpected()
        if isinstance(answer, bytes):
            self.resolve(answer)
        return answer

    def resolve(self, answer: bytes) -> None:
        """Set the answer; it is sent when those of all earlier requests were."""
        self._counts.exchanges += 1
        status_class = answer[9]
        if status_class == ord("4"):
            self._counts.client_errors += 1
        elif status_class == ord("5"):
            self._counts.server_errors += 1
        if self._is_head:
            answer = without_body(answer)
        if self._connection_option:
            answer = with_connection(answer, self._connection_option)
        self.answer = answer
        self._on_answer()


# Answers a POST on the fast path: body, Durability and Idempotency-Key as the client wrote them, its exchange.
Write = Callable[[bytes, str | None, str | None, Exchange], bytes | Later]


class Service(Protocol):
    """What a port serves."""

    def handle(self, request: Request, exchange: Exchange) -> bytes | Later:
        """Answer a request, now or later."""
        ...
