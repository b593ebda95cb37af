"""The command queue over real socket pairs: batching, bounds, and exactly once over the death of managers."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest

from server import command_queue
from server.command_queue import (
    BATCH_BYTES_MAX,
    BATCH_COMMANDS_MAX,
    QUEUE_BYTES_MAX,
    QUEUE_DEPTH_MAX,
    CommandQueue,
    Intake,
    OnReply,
    Request,
)
from server.commands import Command, CreateUser, DeleteUser, Flush, Outcome, PlaceOrder, Reply
from server.config import Config, Durability
from server.errors import QueueFull
from server.failpoints import not_armed
from server.message_socket import MESSAGE_BYTES_MAX, message_pair
from server.shm import counters, layout
from server.shm.counters import counters_block

SEED = 20260103
JOURNAL = Durability.JOURNAL
WRITE_TIMEOUT_S = 10.0


class Arrival(NamedTuple):
    """What `Intake.take` returns, by name."""

    worker: int
    request: Request


class Manager:
    """The manager's end with a selector of its own; `die` takes with it all that it held."""

    def __init__(self, shared: Any, epoch: int) -> None:
        self.words = shared.segment.words
        self.words[layout.MANAGER_EPOCH] = epoch
        self.epoch = epoch
        self.selector = selectors.DefaultSelector()
        self.intake = Intake(shared, epoch, self.selector)
        self.words[layout.READY_EPOCH] = epoch

    def turn(self) -> list[Arrival]:
        """Do what one turn of the manager's loop does; return the batch."""
        ready = []
        for key, events in self.selector.select(0):
            if events & selectors.EVENT_WRITE:
                self.intake.send_unsent(key.data)
            if events & selectors.EVENT_READ:
                ready.append(key.data)
        return [Arrival(*arrival) for arrival in self.intake.take(ready)]

    def serve(self) -> list[Arrival]:
        """Answer all that arrives until nothing does."""
        served = []
        while batch := self.turn():
            served += batch
            self.answer(batch)
        return served

    def answer(self, batch: list[Arrival]) -> None:
        replies: dict[int, list[Reply]] = {}
        for worker, request in batch:
            replies.setdefault(worker, []).append(Reply(request.number, Outcome.DONE, request.number))
        for worker, of_worker in replies.items():
            self.intake.reply(worker, of_worker)

    def die(self) -> None:
        self.selector.close()
        self.words[layout.MANAGER_EPOCH] += 1


class Worker:
    """A worker's queue with a loop of its own, whose clock stands still."""

    def __init__(self, shared: Any, slot: int) -> None:
        self.now = 100.0
        self.loop = asyncio.new_event_loop()
        self.loop.time = lambda: self.now  # type: ignore[method-assign]
        self.block = counters_block(shared.segment, counters.WORKER + slot)
        self.block[counters.STARTS] += 1
        self.block[counters.PID] = 4000 + slot
        self.queue = CommandQueue(Config(workers=1, write_timeout_s=WRITE_TIMEOUT_S), shared, slot, self.loop)
        self.answers: list[Reply | None] = []

    def turn(self) -> None:
        """Run the loop once: what is ready on the socket, then what was called soon before."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def submit(self, command: Command | None = None, on_reply: OnReply | None = None) -> None:
        self.queue.submit(command or PlaceOrder(1, 2, 3), JOURNAL, on_reply or self.answers.append)

    def numbers(self) -> list[int | None]:
        return [None if reply is None else reply.number & 0xFFFF_FFFF for reply in self.answers]

    def close(self) -> None:
        self.queue.close()
        self.loop.close()
        self.block[counters.PID] = 0


class Setup:
    """What the supervisor makes, and the processes on both ends."""

    def __init__(self, workers: int = 1) -> None:
        size = layout.COUNTERS_OFFSET + layout.COUNTERS_BYTES
        segment = SimpleNamespace(words=memoryview(bytearray(size)).cast("Q"))
        pairs = [message_pair() for _ in range(workers)]
        self.shared: Any = SimpleNamespace(segment=segment, command_pairs=pairs, failpoint=not_armed)
        segment.words[layout.MANAGER_EPOCH] = 1
        self.managers: list[Manager] = []
        self.workers = [Worker(self.shared, slot) for slot in range(workers)]

    def manager(self) -> Manager:
        epoch = self.managers[-1].epoch + 1 if self.managers else 1
        self.managers.append(Manager(self.shared, epoch))
        return self.managers[-1]

    def replace_worker(self, slot: int) -> Worker:
        self.workers[slot].close()
        self.workers[slot] = Worker(self.shared, slot)
        return self.workers[slot]

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        for manager in self.managers:
            manager.selector.close()
        for pair in self.shared.command_pairs:
            for end in pair:
                end.close()


@pytest.fixture
def setup() -> Iterator[Setup]:
    setup = Setup()
    yield setup
    setup.close()


@pytest.fixture
def two() -> Iterator[Setup]:
    setup = Setup(workers=2)
    yield setup
    setup.close()


def turn_until(condition: Callable[[], bool], *turns: Callable[[], object]) -> None:
    """Take turns until the condition holds."""
    for _ in range(1000):
        if condition():
            return
        for turn in turns:
            turn()
    raise AssertionError("the queue stands still")


def big_command(size: int = 50_000) -> Command:
    return CreateUser(1, "x" * size, "e", None)


def drain_messages(setup: Setup) -> list[bytes]:
    messages = []
    while (message := setup.shared.command_pairs[0][1].try_receive()) is not None:
        messages.append(message)
    return messages


# ---- the way there and back ------------------------------------------------------------------------------------


def test_every_command_arrives_as_it_was_and_gets_its_own_answer(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    commands: list[Command] = [
        CreateUser(1, "\u00e9", "", None),
        PlaceOrder(2**63 - 1, 0, 1),
        DeleteUser(5, "a", "b", "s"),
        Flush(),
    ]
    for number, command in enumerate(commands):
        worker.queue.submit(command, Durability(number % 3), worker.answers.append)
    worker.turn()
    batch = manager.turn()
    assert [arrival.request.command for arrival in batch] == commands
    assert [arrival.request.level for arrival in batch] == [0, 1, 2, 0]
    numbers = [arrival.request.number for arrival in batch]
    replies = [Reply(number, Outcome(number % 5), number, b"{%d}" % number) for number in numbers]
    manager.intake.reply(0, list(reversed(replies)))
    worker.turn()
    assert worker.answers == list(reversed(replies))


def test_all_commands_of_one_loop_turn_go_out_as_one_message(setup: Setup) -> None:
    setup.manager()
    [worker] = setup.workers
    drain_messages(setup)
    for turn in range(3):
        for _ in range(50):
            worker.submit()
        assert drain_messages(setup) == [], "nothing is sent before the turn ends"
        worker.turn()
        assert len(drain_messages(setup)) == 1, turn
    assert worker.block[counters.WRITES] == 150


def test_one_batch_takes_what_has_arrived_from_all_workers(two: Setup) -> None:
    manager = two.manager()
    for worker in two.workers:
        for _ in range(3):
            worker.submit()
        worker.turn()
        worker.submit()
        worker.turn()
    batch = manager.turn()
    assert sorted(arrival.worker for arrival in batch) == [0] * 4 + [1] * 4
    for slot in (0, 1):
        numbers = [arrival.request.number for arrival in batch if arrival.worker == slot]
        assert numbers == sorted(numbers)


def test_an_answer_goes_to_its_worker_alone(two: Setup) -> None:
    manager, [first, second] = two.manager(), two.workers
    first.submit()
    second.submit()
    first.turn()
    second.turn()
    manager.answer([arrival for arrival in manager.turn() if arrival.worker == 1])
    first.turn()
    second.turn()
    assert (first.numbers(), second.numbers()) == ([], [1])


def test_big_commands_are_split_into_messages_below_the_maximum(setup: Setup) -> None:
    setup.manager()
    [worker] = setup.workers
    drain_messages(setup)
    sizes = [1, 70_000, 65_000, 100, 64_000, 67_000, 3, MESSAGE_BYTES_MAX - 100]
    seen: list[int] = []
    for size in sizes:
        worker.submit(big_command(size))
    for _ in range(20):
        worker.turn()
        for message in drain_messages(setup):
            assert len(message) <= MESSAGE_BYTES_MAX
            commands = msgspec.msgpack.decode(message, type=command_queue.Commands)
            seen += [len(request.command.username) for request in commands.requests]  # type: ignore[union-attr, arg-type]
    assert seen == sizes


def test_answers_are_split_into_messages_below_the_maximum(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    for _ in range(12):
        worker.submit()
    worker.turn()
    replies = [Reply(arrival.request.number, Outcome.DONE, 1, bytes(50_000)) for arrival in manager.turn()]
    manager.intake.reply(0, replies)
    turn_until(lambda: len(worker.answers) == 12, worker.turn, manager.turn)
    assert worker.answers == replies


def test_an_answer_may_submit_the_next_command(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers

    def again(reply: Reply | None) -> None:
        worker.answers.append(reply)
        if len(worker.answers) < 5:
            worker.submit(on_reply=again)

    worker.submit(on_reply=again)
    for _ in range(10):
        worker.turn()
        manager.serve()
    worker.turn()
    assert worker.numbers() == [1, 2, 3, 4, 5]


def test_an_answer_of_a_manager_that_was_replaced_is_ignored(setup: Setup) -> None:
    old, [worker] = setup.manager(), setup.workers
    worker.submit()
    worker.turn()
    batch = old.turn()
    successor = setup.manager()
    worker.turn()
    old.answer(batch)
    worker.turn()
    assert worker.answers == []
    successor.serve()
    worker.turn()
    assert worker.numbers() == [1]


def test_an_answer_to_nobody_is_ignored(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    worker.submit()
    worker.turn()
    [arrival] = manager.turn()
    for number in (0, arrival.request.number, arrival.request.number, 2**62):
        manager.intake.reply(0, [Reply(number, Outcome.DONE)])
    worker.turn()
    assert worker.numbers() == [1]


# ---- bounds ----------------------------------------------------------------------------------------------------


def test_the_depth_is_bounded_and_an_answer_makes_room(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    for _ in range(QUEUE_DEPTH_MAX):
        worker.submit()
    with pytest.raises(QueueFull):
        worker.submit()
    worker.turn()
    turn_until(lambda: len(worker.answers) == QUEUE_DEPTH_MAX, manager.serve, worker.turn)
    worker.submit()
    assert worker.numbers() == list(range(1, QUEUE_DEPTH_MAX + 1)), "what was refused took no number"


def test_the_bytes_are_bounded_and_given_back(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    sent = 0
    with pytest.raises(QueueFull):
        for _ in range(2000):
            worker.submit(big_command(60_000))
            sent += 1
    assert QUEUE_BYTES_MAX < sent * 60_100 < QUEUE_BYTES_MAX + 200_000
    turn_until(lambda: len(worker.answers) == sent, worker.turn, manager.serve)
    worker.submit(big_command(60_000))


def test_nothing_is_taken_without_a_manager(setup: Setup) -> None:
    [worker] = setup.workers
    assert not worker.queue.is_up()
    with pytest.raises(QueueFull):
        worker.submit()
    manager = setup.manager()
    assert worker.queue.is_up()
    manager.die()
    assert not worker.queue.is_up()
    with pytest.raises(QueueFull):
        worker.submit()
    assert setup.manager().serve() == []


def test_a_batch_is_bounded_in_commands_and_the_rest_comes_with_the_next(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    for _ in range(3):
        for _ in range(QUEUE_DEPTH_MAX // 3):
            worker.submit()
        worker.turn()
    total = len(worker.queue._pending)
    sizes = []
    while batch := manager.turn():
        sizes.append(len(batch))
        worker.turn()
    assert sum(sizes) == total
    assert all(size < BATCH_COMMANDS_MAX + QUEUE_DEPTH_MAX for size in sizes)


def test_a_batch_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    monkeypatch.setattr(command_queue, "BATCH_BYTES_MAX", 60_000)
    manager, [worker] = setup.manager(), setup.workers
    manager.turn()
    for _ in range(3):
        worker.submit(big_command(50_000))
        worker.turn()
    assert [len(manager.turn()) for _ in range(3)] == [2, 1, 0]
    assert BATCH_BYTES_MAX >= 16 * MESSAGE_BYTES_MAX


# ---- a peer that does not read ---------------------------------------------------------------------------------


def test_a_manager_that_does_not_read_blocks_nobody_and_loses_nothing(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    for id in range(100):
        worker.submit(CreateUser(id, "x" * 10_000, "e", None))
        worker.turn()
    assert worker.queue._unsent, "the socket must be full for this test"
    served = []
    for _ in range(100):
        served += manager.serve()
        worker.turn()
    assert [arrival.request.command.id for arrival in served] == list(range(100))  # type: ignore[union-attr]
    assert worker.numbers() == list(range(1, 101))
    key = worker.loop._selector.get_key(worker.queue._socket.fileno())  # type: ignore[attr-defined]
    assert key.events == selectors.EVENT_READ, "a loop with nothing to send waits for reading only"


def test_a_loop_does_not_spin_while_the_manager_does_not_read(setup: Setup) -> None:
    setup.manager()
    [worker] = setup.workers
    for _ in range(100):
        worker.submit(big_command(10_000))
        worker.turn()
    before = worker.block[counters.MESSAGES]
    selector = worker.loop._selector  # type: ignore[attr-defined]
    assert [key for key, _ in selector.select(0) if key.fileobj == worker.queue._socket.fileno()] == []
    assert worker.block[counters.MESSAGES] == before


def test_what_waits_in_the_worker_stays_bounded_while_a_stopped_manager_lets_it_expire(setup: Setup) -> None:
    setup.manager()
    [worker] = setup.workers
    for _ in range(4):
        with pytest.raises(QueueFull):
            for _ in range(2000):
                worker.submit(big_command(20_000))
        worker.turn()
        worker.now += WRITE_TIMEOUT_S
        worker.queue.expire()
    held = sum(map(len, worker.queue._unsent)) + sum(map(len, worker.queue._outbox.values()))
    assert held < 2 * QUEUE_BYTES_MAX
    assert None in worker.answers and worker.queue._pending_bytes == 0


def test_a_command_that_expired_before_it_was_sent_is_never_sent(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    for _ in range(30):
        worker.submit(big_command(20_000))
    worker.turn()
    worker.turn()
    worker.submit(PlaceOrder(99, 1, 1))
    worker.turn()
    worker.now += WRITE_TIMEOUT_S
    worker.queue.expire()
    served = []
    for _ in range(30):
        served += manager.serve()
        worker.turn()
    assert len(served) == 30
    assert not [arrival for arrival in served if isinstance(arrival.request.command, PlaceOrder)]


def test_a_worker_that_does_not_read_does_not_block_the_manager_or_the_others(two: Setup) -> None:
    manager, [deaf, other] = two.manager(), two.workers
    for _ in range(40):
        deaf.submit()
    deaf.turn()
    batch = manager.turn()
    for arrival in batch:
        manager.intake.reply(0, [Reply(arrival.request.number, Outcome.DONE, 1, bytes(20_000))])
    assert manager.intake._unsent[0], "the socket must be full for this test"
    other.submit()
    other.turn()
    assert [arrival.worker for arrival in manager.serve()] == [1]
    other.turn()
    assert other.numbers() == [1]
    for _ in range(40):
        deaf.turn()
        manager.turn()
    assert deaf.numbers() == list(range(1, 41))
    assert not manager.intake._unsent[0]
    assert manager.selector.select(0) == [], "a manager with nothing to send waits for reading only"


# ---- time-out --------------------------------------------------------------------------------------------------


def test_an_unanswered_command_gets_none_at_its_deadline_and_the_late_answer_nothing(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    worker.submit()
    worker.now += 1
    worker.submit()
    worker.turn()
    batch = manager.turn()
    worker.now += WRITE_TIMEOUT_S - 1.5
    worker.queue.expire()
    assert worker.answers == []
    worker.now += 0.5
    worker.queue.expire()
    assert worker.answers == [None]
    manager.answer(batch)
    worker.turn()
    assert worker.numbers() == [None, 2]
    worker.now += 1000
    worker.queue.expire()
    assert worker.numbers() == [None, 2]
    assert worker.block[counters.TIMEOUTS] == 1


def test_an_expired_command_is_not_sent_to_the_next_manager(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    worker.submit()
    worker.turn()
    manager.die()
    worker.now += WRITE_TIMEOUT_S
    worker.queue.expire()
    successor = setup.manager()
    worker.turn()
    assert successor.serve() == []
    assert worker.answers == [None]


# ---- the death of a manager ------------------------------------------------------------------------------------


def test_everything_unanswered_is_sent_again_once_under_the_new_epoch(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    for _ in range(5):
        worker.submit()
    worker.turn()
    first = manager.turn()
    manager.answer(first[:2])
    for _ in range(3):  # these stay in the socket, unread by the dead
        worker.submit()
    worker.turn()
    worker.submit()  # and this one in the outbox
    manager.die()
    successor = setup.manager()
    worker.turn()
    assert worker.numbers() == [1, 2], "the answers of the dead manager count"
    again = successor.serve()
    assert [arrival.request.number & 0xFFFF_FFFF for arrival in again] == [3, 4, 5, 6, 7, 8, 9]
    worker.turn()
    worker.turn()
    assert worker.numbers() == list(range(1, 10))
    assert successor.serve() == []
    assert worker.block[counters.RESENT] == 7


def test_commands_sent_before_the_greeting_was_read_are_dropped_and_come_again(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    worker.turn()
    manager.die()
    successor = setup.manager()
    worker.submit()
    worker.queue._flush()  # under the old epoch: the greeting waits unread
    assert successor.turn() == []
    worker.turn()
    assert len(successor.serve()) == 1
    worker.turn()
    assert worker.numbers() == [1]


def test_a_manager_that_dies_before_the_worker_looks_is_no_harm(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    worker.submit()
    worker.turn()
    for _ in range(5):
        manager.die()
        manager = setup.manager()
    worker.turn()
    assert len(manager.serve()) == 1
    worker.turn()
    assert worker.numbers() == [1]


def test_a_full_socket_of_a_dead_manager_does_not_stop_the_sending_again(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    for _ in range(60):
        worker.submit(big_command(10_000))
        worker.turn()
    manager.die()
    successor = setup.manager()
    served = []
    for _ in range(60):
        worker.turn()
        served += successor.serve()
    assert [arrival.request.number & 0xFFFF_FFFF for arrival in served] == list(range(1, 61))
    assert worker.numbers() == list(range(1, 61))


def test_a_new_worker_uses_numbers_of_its_own_and_ignores_answers_to_the_dead_one(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    worker.submit()
    worker.turn()
    manager.serve()
    successor = setup.replace_worker(0)
    successor.submit()
    successor.turn()
    [arrival] = manager.serve()
    assert arrival.request.number >> 32 == 2
    successor.turn()
    assert [reply and reply.number for reply in successor.answers] == [arrival.request.number]


def test_a_worker_that_starts_while_no_manager_runs_is_served_by_the_next(setup: Setup) -> None:
    manager = setup.manager()
    manager.die()
    worker = setup.replace_worker(0)
    successor = setup.manager()
    worker.submit()
    worker.turn()
    worker.turn()
    assert len(successor.serve()) == 1
    worker.turn()
    assert worker.numbers() == [1]


# ---- what a manager must remember ------------------------------------------------------------------------------


def test_settled_once_every_worker_that_lives_has_sent_again(two: Setup) -> None:
    manager = two.manager()
    first, second = two.workers
    assert not manager.intake.is_settled()
    manager.serve()
    assert manager.intake.is_settled(), "new workers say at once that they have nothing to send again"
    for _ in range(3):
        second.submit(big_command(10_000))
    second.turn()
    manager.die()
    successor = two.manager()
    successor.serve()
    assert not successor.intake.is_settled()
    first.turn()
    successor.serve()
    assert not successor.intake.is_settled()
    second.turn()
    assert len(successor.serve()) == 3
    assert successor.intake.is_settled()


def test_settled_only_after_the_last_message_that_is_sent_again(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_queue, "BATCH_BYTES_MAX", 1)
    manager, [worker] = setup.manager(), setup.workers
    for _ in range(3):
        worker.submit(big_command(50_000))
    worker.turn()
    manager.die()
    successor = setup.manager()
    worker.turn()
    taken = 0
    for _ in range(20):
        assert successor.intake.is_settled() <= (taken == 3)
        taken += len(successor.turn())
        worker.turn()
    assert successor.intake.is_settled()


def test_a_slot_without_a_process_is_not_waited_for(two: Setup) -> None:
    two.workers[1].block[counters.PID] = 0
    two.manager().die()
    manager = two.manager()
    two.workers[0].turn()
    manager.serve()
    assert manager.intake.is_settled()


def test_a_worker_replaced_during_the_greeting_settles_by_its_first_message(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    manager.serve()
    manager.die()
    successor = setup.manager()
    worker.loop.remove_reader(worker.queue._socket.fileno())
    setup.shared.command_pairs[0][0].try_receive()  # the old worker reads the greetings and dies
    setup.shared.command_pairs[0][0].try_receive()
    setup.replace_worker(0)
    successor.serve()
    assert successor.intake.is_settled()


def test_not_settled_while_an_answer_waits_for_room(setup: Setup) -> None:
    manager, [worker] = setup.manager(), setup.workers
    for _ in range(40):
        worker.submit()
    worker.turn()
    for arrival in manager.turn():
        manager.intake.reply(0, [Reply(arrival.request.number, Outcome.DONE, 1, bytes(20_000))])
    assert not manager.intake.is_settled()
    turn_until(lambda: len(worker.answers) == 40, worker.turn, manager.turn)
    assert manager.intake.is_settled()


# ---- model -----------------------------------------------------------------------------------------------------


class Shop:
    """A manager's work as it should be: groups in a journal that outlives it, a successor that knows their answers."""

    def __init__(self, setup: Setup, chance: random.Random) -> None:
        self.setup = setup
        self.chance = chance
        self.applied: list[int] = []  # the unique ids of the commands, in order
        self.journal: list[dict[tuple[int, int], Reply]] = []  # groups of answers
        self.position = 0  # a successor looks at groups from here
        self.deaths = 0
        self.start()

    def start(self) -> None:
        self.manager = self.setup.manager()
        self.known = {key: reply for group in self.journal[self.position :] for key, reply in group.items()}

    def turn(self) -> None:
        """Commit one batch; now and then die at a random step of it."""
        death = self.chance.choice(["taken", "journaled", "answered in part"]) if self.chance.random() < 0.05 else ""
        batch = self.manager.turn()
        if death == "taken":
            return self.die()
        group: dict[tuple[int, int], Reply] = {}
        answers = [(arrival.worker, self.apply(arrival, group)) for arrival in batch]
        self.journal.append(group)
        if death == "journaled":
            return self.die()
        if death:
            answers = answers[: self.chance.randrange(len(answers) + 1)]
        for worker, reply in answers:
            self.manager.intake.reply(worker, [reply])
        if death:
            return self.die()
        if self.manager.intake.is_settled():
            self.position = len(self.journal)
        return None

    def apply(self, arrival: Arrival, group: dict[tuple[int, int], Reply]) -> Reply:
        key = arrival.worker, arrival.request.number
        if key in self.known:
            return self.known[key]
        command = arrival.request.command
        assert isinstance(command, CreateUser)
        self.applied.append(command.id)
        group[key] = Reply(arrival.request.number, Outcome.DONE, len(self.applied), b"%d" % command.id + bytes(20_000))
        return group[key]

    def die(self) -> None:
        self.deaths += 1
        self.manager.die()
        self.start()


def test_every_command_is_applied_exactly_once_over_random_deaths() -> None:
    for seed in range(SEED, SEED + 12):
        chance = random.Random(seed)
        setup = Setup(workers=3)
        try:
            run_model(setup, chance, seed)
        finally:
            setup.close()


def run_model(setup: Setup, chance: random.Random, seed: int) -> None:
    shop = Shop(setup, chance)
    answered: dict[int, list[Reply | None]] = {}
    abandoned: set[int] = set()  # their worker died: applied once or never

    def step() -> None:
        if chance.random() < 0.6:
            chance.choice(setup.workers).turn()
        else:
            shop.turn()

    for _ in range(1200):
        if chance.random() < 0.4:
            id = len(answered)
            replies: list[Reply | None] = []
            try:
                command = CreateUser(id, "x" * chance.choice([1, 9000]), "", None)
                chance.choice(setup.workers).submit(command, replies.append)
                answered[id] = replies
            except QueueFull:
                pass
        if chance.random() < 0.005:
            slot = chance.randrange(3)
            abandoned |= {id for id, replies in answered.items() if not replies}  # of all workers: only less is checked
            setup.replace_worker(slot)
        step()
    chance.random = lambda: 0.5  # type: ignore[method-assign]
    for _ in range(3000):
        for worker in setup.workers:
            worker.turn()
        shop.turn()
        if not any(worker.queue._pending for worker in setup.workers):
            break
    assert len(shop.applied) == len(set(shop.applied)), f"applied twice, seed {seed}"
    for id, replies in answered.items():
        if id in abandoned and not replies:
            continue
        assert len(replies) == 1, f"answered {len(replies)} times, seed {seed}"
        assert replies[0] is not None and replies[0].body.startswith(b"%d\0" % id), f"seed {seed}"
        assert shop.applied[replies[0].seq - 1] == id
    assert shop.deaths > 5 and len(shop.applied) > 200, f"the model must meet deaths under load, seed {seed}"
