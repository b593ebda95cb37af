"""The command queue: from every worker to the manager and back, over one `MessageSocket` pair per worker slot.

    worker                                   manager
    submit ─> one message per loop turn ───> Intake.take: all that has arrived, from all workers = one batch
    on_reply <──────── one message per batch ── Intake.reply

Exactly once, over the death of either side:

- A command carries a number that no other command of this run has (incarnation of the worker << 32, then counted up).
- Every message carries the epoch of the manager it was meant for. A new manager greets each worker with its epoch; the
  worker answers by sending all that is unanswered again, under the new epoch. The manager drops messages of an older
  epoch: whatever is in them comes again. Answers of the dead manager stand before the greeting in the socket, so
  what is unanswered then was answered by nobody.
- What the dead manager had applied without answering is in its last journal groups, by number (`server/manager.py`).
  They are needed until every worker has sent again, which it marks by a message without commands, and every answer
  has left the manager: `Intake.is_settled`. A new worker begins with such a message, it has nothing to send again.

Bounds: a worker keeps at most QUEUE_DEPTH_MAX commands and QUEUE_BYTES_MAX bytes without an answer, then `submit`
refuses at once. A batch ends with the message that reaches BATCH_COMMANDS_MAX or BATCH_BYTES_MAX. What the manager
does not read stays in the socket; then one outbox of messages waits in the worker, later commands are not encoded into
messages and expire unsent.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Iterable
from itertools import repeat

import msgspec
from msgspec import Struct

from server.commands import Command, Reply, Token
from server.config import Config, Durability
from server.errors import QueueFull
from server.message_socket import MESSAGE_BYTES_MAX, MessageSocket
from server.shared import Shared
from server.shm import layout
from server.shm.counters import MESSAGES, PID, RESENT, STARTS, TIMEOUTS, WORKER, WRITES, counters_block

QUEUE_DEPTH_MAX = 4096  # per worker: some 0.1 s of the manager's work, far beyond what one loop turn can bring
QUEUE_BYTES_MAX = 16 << 20  # the same with bodies of 64 KiB
BATCH_COMMANDS_MAX = 4096  # bounds the time to the answer
BATCH_BYTES_MAX = 4 << 20
INCARNATION_SHIFT = 32

OnReply = Callable[[Reply | None], None]


class Request(Struct, frozen=True, array_like=True):
    """A command on its way: its number, and the level at which its answer may be sent."""

    number: int
    level: int
    command: Command
    token: Token | None = None


class Commands(Struct, frozen=True, array_like=True):
    """Worker to manager. Without requests: what was unanswered at the greeting has been sent again."""

    epoch: int
    requests: list[Request]


class Replies(Struct, frozen=True, array_like=True):
    """Manager to worker. A greeting is an empty one."""

    epoch: int
    replies: list[Reply]


_encode = msgspec.msgpack.Encoder().encode
_decode_commands = msgspec.msgpack.Decoder(Commands).decode
_decode_replies = msgspec.msgpack.Decoder(Replies).decode


# ---- the worker's end ------------------------------------------------------------------------------------------


# A command without an answer: encoded request, who takes the answer, deadline. A plain tuple: one is made per write.
_Pending = tuple[msgspec.Raw, OnReply, float]


class CommandQueue:
    """The worker's end: collects the commands of one loop turn, sends them as one message, hands out the answers."""

    def __init__(self, config: Config, shared: Shared, worker_slot: int, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._socket: MessageSocket = shared.command_pairs[worker_slot][0]
        self._words = shared.segment.words
        self._counters = counters_block(shared.segment, WORKER + worker_slot)
        self._failpoint = shared.failpoint
        self._timeout_s = config.write_timeout_s
        self._next_number = (self._counters[STARTS] << INCARNATION_SHIFT) + 1
        self._epoch = self._words[layout.MANAGER_EPOCH]
        self._pending: dict[int, _Pending] = {}  # by number, so the oldest is first
        self._pending_bytes = 0
        self._outbox: dict[int, msgspec.Raw] = {}  # submitted and in no message yet, by number
        self._unsent = deque([_encode((self._epoch, ()))])  # nothing to send again
        self._is_waiting = False  # for room in the manager's queue
        loop.add_reader(self._socket.fileno(), self._receive)
        self._flush()

    def is_up(self) -> bool:
        """Whether a manager takes commands now."""
        return bool(self._words[layout.READY_EPOCH] == self._words[layout.MANAGER_EPOCH])

    def submit(
        self, command: Command, level: Durability, on_reply: OnReply, token: Token | None = None
    ) -> None:
        """Send a command with this loop turn's message; `on_reply` gets the answer, or None after the time-out.

        Raises `QueueFull` at once when the queue is full or no manager is there; then nothing was sent.
        """
        pending = self._pending
        if not self.is_up() or len(pending) >= QUEUE_DEPTH_MAX or self._pending_bytes > QUEUE_BYTES_MAX:
            raise QueueFull
        number = self._next_number
        self._next_number = number + 1
        encoded = msgspec.Raw(_encode(Request(number, level, command, token)))
        pending[number] = (encoded, on_reply, self._loop.time() + self._timeout_s)
        self._pending_bytes += len(encoded)
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox[number] = encoded

    def expire(self) -> None:
        """Answer None to commands that have waited too long (called by the worker's ticker)."""
        now = self._loop.time()
        while self._pending:
            number, (_, _, deadline) = next(iter(self._pending.items()))
            if deadline > now:
                break
            self._counters[TIMEOUTS] += 1
            self._outbox.pop(number, None)
            self._answer(number, None)

    def close(self) -> None:
        """Leave the loop."""
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())

    def _answer(self, number: int, reply: Reply | None) -> None:
        """Hand out an answer, unless the command has expired or was answered before."""
        pending = self._pending.pop(number, None)
        if pending is not None:
            encoded, on_reply, _ = pending
            self._pending_bytes -= len(encoded)
            on_reply(reply)

    def _flush(self) -> None:
        """Send what was submitted; wait for room without blocking when the manager's queue is full."""
        unsent = self._unsent
        if not unsent:
            self._counters[WRITES] += len(self._outbox)
            unsent.extend(_messages(self._epoch, self._outbox.values()))
            self._outbox.clear()
        while unsent and self._socket.try_send(unsent[0]):
            unsent.popleft()
            self._counters[MESSAGES] += 1
        has_more = bool(unsent or self._outbox)
        if has_more and not self._is_waiting:
            self._loop.add_writer(self._socket.fileno(), self._flush)
        elif self._is_waiting and not has_more:
            self._loop.remove_writer(self._socket.fileno())
        self._is_waiting = has_more

    def _receive(self) -> None:
        while (message := self._socket.try_receive()) is not None:
            answer = _decode_replies(message)
            if answer.epoch < self._epoch:
                continue  # from a manager that was replaced: its successor answers
            if answer.epoch > self._epoch:
                self._send_again(answer.epoch)
            if answer.replies:
                self._failpoint("worker.before_replies")
            for reply in answer.replies:
                self._answer(reply.number, reply)

    def _send_again(self, epoch: int) -> None:
        """Send all that is unanswered to the new manager; it drops what the old one left in the socket."""
        self._epoch = epoch
        self._counters[WRITES] += len(self._outbox)
        self._outbox.clear()
        self._unsent.clear()
        self._counters[RESENT] += len(self._pending)
        self._unsent.extend(_messages(epoch, (encoded for encoded, _, _ in self._pending.values())))
        self._unsent.append(_encode((epoch, ())))
        self._flush()


def _messages(epoch: int, requests: Iterable[msgspec.Raw]) -> Iterable[bytes]:
    """Yield messages of at most MESSAGE_BYTES_MAX that carry the requests in order."""
    part: list[msgspec.Raw] = []
    size = 0
    for request in requests:
        if part and size + len(request) > MESSAGE_BYTES_MAX - 64:  # 64: more than the array heads and the epoch
            yield _encode((epoch, part))
            part, size = [], 0
        part.append(request)
        size += len(request)
    if part:
        yield _encode((epoch, part))


# ---- the manager's end -----------------------------------------------------------------------------------------


Arrival = tuple[int, Request]  # the worker that gets the answer, and one command


class Intake:
    """The manager's end: takes what has arrived from all workers, sends the answers."""

    def __init__(self, shared: Shared, epoch: int, selector: selectors.BaseSelector) -> None:
        self._sockets = [manager_end for _, manager_end in shared.command_pairs]
        self._epoch = epoch
        self._selector = selector
        self._unsent: list[deque[bytes]] = [deque() for _ in self._sockets]
        self._blocked: set[int] = set()  # workers with unsent answers
        self._unsettled = set(range(len(self._sockets)))  # workers that may still have to send again
        self._blocks = [counters_block(shared.segment, WORKER + worker) for worker in self._unsettled]
        for worker, end in enumerate(self._sockets):
            selector.register(end, selectors.EVENT_READ, worker)
            self._send(worker, _encode(Replies(epoch, [])))

    def take(self, ready: Iterable[int]) -> list[Arrival]:
        """Return what these workers have sent, in the order sent, up to the bounds of a batch."""
        batch: list[Arrival] = []
        size = 0
        for worker in ready:
            end = self._sockets[worker]
            while len(batch) < BATCH_COMMANDS_MAX and size < BATCH_BYTES_MAX:
                message = end.try_receive()
                if message is None:
                    break
                size += len(message)
                commands = _decode_commands(message)
                if commands.epoch == self._epoch:
                    batch += zip(repeat(worker), commands.requests)
                    if not commands.requests:
                        self._unsettled.discard(worker)
        return batch

    def is_settled(self) -> bool:
        """Whether no answer to a command taken so far can be asked for again: all are sent, and all workers sent again.

        The manager may forget what earlier groups say of answers only then.
        """
        if self._unsettled:  # a slot without a process: the next one in it has nothing to send again
            self._unsettled = {worker for worker in self._unsettled if self._blocks[worker][PID]}
        return not self._unsettled and not self._blocked

    def reply(self, worker: int, replies: list[Reply]) -> None:
        """Send answers to one worker; keep them if it does not read (its queue depth bounds what is kept)."""
        message = _encode(Replies(self._epoch, replies))
        if len(message) > MESSAGE_BYTES_MAX and len(replies) > 1:
            middle = len(replies) // 2
            self.reply(worker, replies[:middle])
            self.reply(worker, replies[middle:])
        else:
            self._send(worker, message)

    def send_unsent(self, worker: int) -> None:
        """Go on with a worker that reads again."""
        unsent = self._unsent[worker]
        while unsent and self._sockets[worker].try_send(unsent[0]):
            unsent.popleft()
        if not unsent:
            self._blocked.discard(worker)
            self._selector.modify(self._sockets[worker], selectors.EVENT_READ, worker)

    def _send(self, worker: int, message: bytes) -> None:
        unsent = self._unsent[worker]
        if not unsent and self._sockets[worker].try_send(message):
            return
        if not unsent:
            events = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(self._sockets[worker], events, worker)
            self._blocked.add(worker)
        unsent.append(message)
