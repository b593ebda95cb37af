"""A writer that dies at any store: readers never see the half, successor and redo bring exactly the new state."""

from __future__ import annotations

import copy
import mmap
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from server.commands import Kind, Order, encode_json
from server.errors import MemoryFull, SlotBusy
from server.journal.format import Change
from server.redo import redo_change
from server.shm import chains, layout
from server.shm.segment import Segment
from server.shm.table import TableReader
from server.shm.table_writer import TableWriter, reset_table
from tests.table_model import Model, check_table, open_segment


class Died(Exception):
    """The writer's process ended here."""


class Stores:
    """Counts the stores that are left; the one after the last does not happen."""

    def __init__(self) -> None:
        self.left = 1 << 60

    def spend(self) -> None:
        if not self.left:
            raise Died
        self.left -= 1


class DyingWords:
    """`Segment.words` of a writer that may die at a store."""

    def __init__(self, words: memoryview, stores: Stores) -> None:
        self._words = words
        self._stores = stores

    def __getitem__(self, key: Any) -> Any:
        return self._words[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._stores.spend()
        self._words[key] = value


class DyingBytes:
    """`Segment.mm` of a writer that may die in the middle of a copy."""

    def __init__(self, mm: mmap.mmap, stores: Stores) -> None:
        self._mm = mm
        self._stores = stores

    def __getitem__(self, key: Any) -> Any:
        return self._mm[key]

    def __setitem__(self, key: slice, value: bytes) -> None:
        half = key.start + len(value) // 2
        self._mm[key.start : half] = value[: len(value) // 2]
        self._stores.spend()
        self._mm[half : key.stop] = value[len(value) // 2 :]


def dying(segment: Segment, stores: Stores) -> Segment:
    double = copy.copy(segment)
    double.words = DyingWords(segment.words, stores)  # type: ignore[assignment]
    double.mm = DyingBytes(segment.mm, stores)  # type: ignore[assignment]
    return double


@pytest.fixture
def segment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Segment]:
    monkeypatch.setattr(layout, "BUCKETS_MIN", 4)
    monkeypatch.setattr(chains, "BUCKETS_MIN", 4)
    with open_segment() as segment:
        yield segment


class Scene(NamedTuple):
    """`prepare` makes the state before; `act` is what dies, and what the redo does again."""

    name: str
    prepare: Callable[[TableWriter, Model], None]
    act: Callable[[TableWriter], None]
    act_on_model: Callable[[Model], None]


def users(count: int) -> Callable[[TableWriter, Model], None]:
    def prepare(writer: TableWriter, model: Model) -> None:
        for id in range(1, count + 1):
            writer.put(Kind.USER, id, id, b"u" * id, b"p" * (id % 3))
            model.put(Kind.USER, id, id, b"u" * id, b"p" * (id % 3))

    return prepare


def then(prepare: Callable[[TableWriter, Model], None], *more: Callable[[Any], None]) -> Callable[..., None]:
    """Add changes that the table and the model take by the same names."""

    def both(writer: TableWriter, model: Model) -> None:
        prepare(writer, model)
        for step in more:
            step(writer)
            step(model)

    return both


def put(kind: int, id: int, seq: int, body: bytes) -> Callable[[Any], None]:
    return lambda target: target.put(kind, id, seq, body)


def delete(kind: int, id: int, seq: int) -> Callable[[Any], None]:
    return lambda target: target.delete(kind, id, seq)


def purchase(user: int, product: int, quantity: int, seq: int) -> Callable[[Any], None]:
    def act(target: Any) -> None:
        if isinstance(target, Model):
            target.add_purchase(user, product, quantity)
        else:
            target.add_purchase(user, product, quantity, seq)

    return act


def reclaim(checkpoint: int) -> Callable[[Any], None]:
    return lambda target: target.reclaim(checkpoint)


def scene(name: str, prepare: Callable[..., None], act: Callable[[Any], None]) -> Scene:
    return Scene(name, prepare, act, act)


RECLAIM_ALL = scene(
    "reclaim all", then(users(9), *(delete(Kind.USER, id, 40 + id) for id in range(1, 10))), reclaim(49)
)
SCENES = [
    scene("first record", users(0), put(Kind.USER, 1, 50, b"new")),
    *(scene(f"record {count + 1}", users(count), put(Kind.USER, 99, 99, b"new")) for count in range(3, 36, 4)),
    scene("replace, same size", users(9), put(Kind.USER, 5, 50, b"n" * 5)),
    scene("replace, other size", users(9), put(Kind.USER, 5, 50, b"n" * 500)),
    scene("delete", users(9), delete(Kind.USER, 5, 50)),
    scene("delete what is not there", users(9), delete(Kind.USER, 55, 50)),
    scene("delete again", then(users(9), delete(Kind.USER, 5, 49)), delete(Kind.USER, 5, 50)),
    scene("create again", then(users(9), delete(Kind.USER, 5, 49)), put(Kind.USER, 5, 50, b"new")),
    scene("reclaim one", then(users(9), delete(Kind.USER, 5, 49)), reclaim(49)),
    RECLAIM_ALL,
    scene(
        "slot reused by another kind",
        then(users(9), delete(Kind.USER, 5, 49), reclaim(49)),
        put(Kind.PRODUCT, 5, 50, b"new"),
    ),
    scene("first purchase", users(9), purchase(5, 1, 2, 50)),
    scene("second purchase", then(users(9), purchase(5, 1, 2, 49)), purchase(5, 2, 2, 50)),
    scene("purchase again", then(users(9), purchase(5, 1, 2, 49)), purchase(5, 1, 3, 50)),
    scene("purchase of an unknown user", users(9), purchase(55, 1, 2, 50)),
    scene(
        "purchase that splits",
        then(users(9), *(purchase(5, product, 2, 30 + product) for product in range(12))),
        purchase(5, 99, 2, 50),
    ),
]


def states_of(model: Model) -> dict[int, tuple[bytes, bytes] | None]:
    return {id: (record[1], record[2]) for (kind, id), record in model.records.items() if kind == Kind.USER}


def check_readers_between(segment: Segment, before: Model, after: Model) -> None:
    """Each read gives the old value or the new one, or says that it can not tell now."""
    reader = TableReader(segment)
    olds, news = states_of(before), states_of(after)
    for id in {*olds, *news, 12345}:
        try:
            found = reader.get_private(Kind.USER, id)
            record = reader.get_user(id)
        except SlotBusy:
            continue
        assert found in (olds.get(id), news.get(id))
        assert record is None if found is None else record and record.endswith(found[0])
    for slot in reader.slots():
        try:
            read = reader.read_slot(slot)
        except SlotBusy:
            continue
        if read and read.body is None and read.kind != Kind.PURCHASE:
            assert (read.kind, read.id) in {**before.deleted, **after.deleted}, "a deletion that never was"


def die_at(segment: Segment, scene: Scene, stores_left: int) -> tuple[bool, Model, Model]:
    """Play a scene with a writer that dies at a store; return whether it came to the end, and the models."""
    reset_table(segment)
    before = Model()
    scene.prepare(TableWriter(segment), before)
    after = copy.deepcopy(before)
    scene.act_on_model(after)
    stores = Stores()
    writer = TableWriter(dying(segment, stores))
    stores.left = stores_left
    try:
        scene.act(writer)
    except Died:
        return False, before, after
    check_table(writer, after)
    return True, before, after


@pytest.mark.parametrize("scene", SCENES, ids=[scene.name for scene in SCENES])
def test_writer_that_dies_at_any_store_is_succeeded_exactly(segment: Segment, scene: Scene) -> None:
    died_at = 0
    is_done = False
    while not is_done:
        is_done, before, after = die_at(segment, scene, died_at)
        if not is_done:
            check_readers_between(segment, before, after)
        successor = TableWriter(segment)
        check_readers_between(segment, before, after)
        scene.act(successor)
        successor.unlock_all()
        check_table(successor, after)
        check_table(TableWriter(segment), after)
        died_at += 1
    assert died_at > 3


# not all: each pair of stores is a run
TWICE = [scene for number, scene in enumerate(SCENES) if number % 8 == 0 or "purchase" in scene.name]


@pytest.mark.parametrize("scene", TWICE, ids=[scene.name for scene in TWICE])
def test_successor_that_dies_at_any_store_is_succeeded_exactly(segment: Segment, scene: Scene) -> None:
    first = 0
    while not die_at(segment, scene, first)[0]:
        second = 0
        is_done = False
        while not is_done:
            _, before, after = die_at(segment, scene, first)
            stores = Stores()
            stores.left = second
            try:
                successor = TableWriter(dying(segment, stores))
                scene.act(successor)
                successor.unlock_all()
                is_done = True
            except Died:
                check_readers_between(segment, before, after)
            last = TableWriter(segment)
            scene.act(last)
            last.unlock_all()
            check_table(last, after)
            second += 4
        first += 3


def test_compaction_that_dies_at_any_store_loses_nothing(segment: Segment) -> None:
    died_at = 0
    is_done = False
    while not is_done:
        reset_table(segment)
        writer, model = TableWriter(segment), Model()
        for id in range(1, 40):
            writer.put(Kind.USER, id, id, b"%d" % id * 6000, b"p")
        for id in range(1, 40):
            if id % 3:
                writer.delete(Kind.USER, id, id)
                model.delete(Kind.USER, id, id)
            else:
                model.put(Kind.USER, id, id, b"%d" % id * 6000, b"p")
        stores = Stores()
        writer = TableWriter(dying(segment, stores))
        stores.left = died_at
        try:
            assert writer._compact()
            check_table(writer, model)
            is_done = True
        except Died:
            check_readers_between(segment, model, model)
        writer = TableWriter(segment)
        writer.unlock_all()
        check_table(writer, model)
        died_at += 1
    assert died_at > 12


def batch() -> tuple[list[Change], list[tuple[int, int, int, int]], list[Change]]:
    records = [
        Change(Kind.USER, 3, 50, b"changed", b""),
        Change(Kind.USER, 4, 51, None, b""),
        Change(Kind.PRODUCT, 8, 54, b"stock", b""),
        Change(Kind.USER, 77, 52, b"created", b"secret"),
        Change(Kind.USER, 78, 53, None, b""),
    ]
    bought = [(3, 8, 9, 55), (77, 8, 4, 56)]
    orders = [
        Change(Kind.ORDER, 1, 54, encode_json(Order(1, 8, 3, 2)), b""),
        Change(Kind.ORDER, 2, 55, encode_json(Order(2, 8, 3, 7)), b""),
        Change(Kind.ORDER, 3, 56, encode_json(Order(3, 8, 77, 4)), b""),
    ]
    return records, bought, orders


def test_batch_that_dies_at_any_store_is_redone_from_the_journal(segment: Segment) -> None:
    """The redo of the manager: change by change, orders one by one though their units were published as a sum."""
    records, bought, orders = batch()

    def act(writer: TableWriter) -> None:
        writer.publish(writer.prepare(records, bought, orders))

    def act_on_model(model: Model) -> None:
        for kind, id, seq, body, private in (*records, *orders):
            model.delete(kind, id, seq) if body is None else model.put(kind, id, seq, body, private)
        for user, product, units, _ in bought:
            model.add_purchase(user, product, units)

    scene = Scene("batch", then(users(7), put(Kind.PRODUCT, 8, 20, b"p"), purchase(3, 8, 1, 21)), act, act_on_model)
    died_at = 0
    is_done = False
    while not is_done:
        is_done, _, after = die_at(segment, scene, died_at)
        for deaths in (4, 13, 1 << 60):
            stores = Stores()
            try:
                successor = TableWriter(dying(segment, stores))
                stores.left = deaths
                for change in sorted((*records, *orders), key=lambda change: change.seq):
                    redo_change(successor, change)
                successor.unlock_all()
            except Died:
                continue
        check_table(successor, after)
        died_at += 1
    assert died_at > 60


def test_batch_that_fitted_into_memory_fits_again_in_the_redo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The successor finds room for all that was journaled, however few pages there are for all the classes."""
    monkeypatch.setattr(layout, "BUCKETS_MIN", 4)
    monkeypatch.setattr(chains, "BUCKETS_MIN", 4)
    chance = random.Random(20261127)
    died = full = 0
    while died < 150:
        with open_segment() as segment:
            words = segment.words
            words[layout.MEMORY_BYTES] = words[layout.RESERVED_BYTES] + chance.randint(1, 3) * layout.GROW_BYTES
            stores = Stores()
            writer, seq, size_max = TableWriter(dying(segment, stores)), 0, chance.choice((100, 900))
            for _ in range(30):
                records = [
                    Change(Kind(kind), chance.randrange(12), 0, bytes(chance.randint(1, size_max)), b"")
                    for kind in chance.choices((Kind.USER, Kind.PRODUCT), k=chance.choice((1, 3, 10, 40)))
                ]
                changes = {(change.kind, change.id): change for change in records}.values()
                changes = [change._replace(seq=seq + number) for number, change in enumerate(changes, 1)]
                try:
                    prepared = writer.prepare(changes, (), ())
                except MemoryFull:
                    full += 1
                    continue
                seq += len(changes)
                stores.left = chance.choice((1 << 60, chance.randrange(7 * len(changes))))
                try:
                    writer.publish(prepared)
                    writer.spread()
                except Died:
                    died += 1
                    stores.left = 1 << 60
                    writer = TableWriter(dying(segment, stores))
                    with writer.redoing():
                        for change in changes:
                            redo_change(writer, change)
                    writer.unlock_all()
                    reader = TableReader(segment)
                    for change in changes:
                        found = reader.get_private(change.kind, change.id)
                        assert found == (change.body, change.private)
                stores.left = 1 << 60
                if chance.random() < 0.5:
                    for change in changes[::2]:
                        seq += 1
                        writer.delete(change.kind, change.id, seq)
                    writer.reclaim(seq)
            del writer
    assert full > 20, "memory was not short"


def test_redo_of_an_order_that_was_replayed_from_the_dead_letters_counts_no_purchase_again(segment: Segment) -> None:
    writer = TableWriter(segment)
    writer.put(Kind.USER, 3, 1, b"{}")
    writer.put(Kind.PRODUCT, 8, 2, b"{}")
    body = encode_json(Order(1, 8, 3, 5))
    redo_change(writer, Change(Kind.ORDER, 1, 3, body, b""))
    redo_change(writer, Change(Kind.ORDER, 1, 9, body, b""))
    assert writer.purchases(3) == b'{"8":5}'
    assert writer.seq_of(Kind.ORDER, 1) == 9
