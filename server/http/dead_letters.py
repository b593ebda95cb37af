"""`POST /dead-letters/replay`: the records that a database refused are tried again, after somebody saw to the reason.

    thread: oldest ids ──> one command each ──> manager: the record again, new seq ──> persister ──> writer
    thread: count <──────── all answered: the databases hold what they took, and know again what they did not

The manager writes a record as it is under a new seq, so nothing on the way is special: it is in the journal, survives
the death of any process, and its answer waits for the databases as for every write of level `database`. The store
takes a record out of the dead letters when it comes again, and puts it back when it is refused again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from server.commands import Outcome, ReplayDeadLetter, Reply
from server.config import Durability
from server.errors import DataError, QueueFull
from server.http.exchange import Exchange, Later
from server.http.replies import Replies
from server.http.routes import Queue

REPLAY_MAX = 1000  # letters of one request: a quarter of the command queue, so that clients' writes still fit

Step = Callable[["asyncio.Future[Any]"], bytes | Later]


class Letters(Protocol):
    """Where the dead letters are (persist/dead_letters.py). Called in a thread; raises `DataError`."""

    def oldest(self, count_max: int) -> list[ReplayDeadLetter]: ...
    def count(self, tried: Sequence[ReplayDeadLetter]) -> tuple[int, int]: ...


class Replayer:
    """Starts replays; made in the worker after the fork."""

    def __init__(self, loop: asyncio.AbstractEventLoop, replies: Replies, queue: Queue, letters: Letters) -> None:
        self._loop = loop
        self.replies = replies
        self.queue = queue
        self.letters = letters
        self._pool = ThreadPoolExecutor(1, "dead-letters")  # the queue before it is bounded by the admin connections

    def start(self, exchange: Exchange) -> Later:
        """Try the oldest dead letters again; the answer says how many were stored and how many are left."""
        _Replay(self, exchange).start()
        return Later.ANSWER

    def in_thread(self, exchange: Exchange, step: Step, function: Callable[..., Any], *arguments: object) -> None:
        """Call a function in the thread, then run `step` of the exchange with its future."""
        future = self._loop.run_in_executor(self._pool, function, *arguments)
        future.add_done_callback(lambda done: exchange.attempt(step, done))

    def close(self) -> None:
        """Forget what waits."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Replay:
    """One request on its way."""

    def __init__(self, replayer: Replayer, exchange: Exchange) -> None:
        self._replayer = replayer
        self._replies = replayer.replies
        self._exchange = exchange
        self._tried: list[ReplayDeadLetter] = []
        self._answers: list[Reply | None] = []

    def start(self) -> None:
        self._replayer.in_thread(self._exchange, self._submit, self._replayer.letters.oldest, REPLAY_MAX)

    def _submit(self, oldest: asyncio.Future[list[ReplayDeadLetter]]) -> bytes | Later:
        try:
            letters = oldest.result()
        except DataError as error:
            return self._unreadable(error)
        for letter in letters:
            try:
                self._replayer.queue.submit(letter, Durability.DATABASE, self._note)
            except QueueFull:  # the rest is for the next request
                break
            self._tried.append(letter)
        if letters and not self._tried:
            return self._replies.unavailable("the manager takes no commands now")
        if not letters:
            self._count()
        return Later.ANSWER

    def _note(self, reply: Reply | None) -> None:
        self._answers.append(reply)
        if len(self._answers) == len(self._tried):
            self._exchange.attempt(self._judge)

    def _judge(self) -> bytes | Later:
        """All commands are answered: say why not, or look what became of the letters."""
        if None in self._answers:
            return self._replies.error(504, "not all of them were tried in time; they will be")
        # MISSING: deleted meanwhile, the letter goes with it
        outcomes = {reply.outcome for reply in self._answers if reply is not None}
        if outcomes - {Outcome.DONE, Outcome.MISSING}:
            return self._replies.unavailable("not all of them could be tried: the memory or the journal is full")
        self._count()
        return Later.ANSWER

    def _count(self) -> None:
        self._replayer.in_thread(self._exchange, self._answer, self._replayer.letters.count, self._tried)

    def _answer(self, counts: asyncio.Future[tuple[int, int]]) -> bytes:
        try:
            return self._replies.ok(b'{"replayed":%d,"still_dead":%d}' % counts.result())
        except DataError as error:
            return self._unreadable(error)

    def _unreadable(self, error: DataError) -> bytes:
        return self._replies.unavailable(f"{error.path.name} can not be read now: {error.detail}")
