"""Compare every record in memory with the SQLite files, field by field, and print what differs.

Of a running server "memory" is its shared segment, mapped read-only by the name in `run.json`, so that its workers
have no work with it; each round begins with a flush, so that SQLite has no excuse. Of a stopped server it is what the
next start would load: the databases and the journal behind them, put together in plain dictionaries. The lock of the
data directory tells which of the two it is, and keeps a server from starting while a stopped one is looked at.

A user's purchases are compared with the sums over the orders in SQLite.

Writes may go on meanwhile. What differs is looked at again after another flush, in ROUNDS_MAX rounds, and only what
differs in the same way in all of them, while memory does not change, is a difference. A record that changes all the
time can not be caught between two changes: it is counted as not compared, and said so.

Leaves out: the order of events (that is the journal's), and damage inside a database file (SQLite's integrity_check).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from persist import recovery, schema
from server.commands import (
    DATABASE_NAMES,
    PERSISTED_KINDS,
    ClassicUser,
    Kind,
    Order,
    Product,
    User,
    canonical_price,
)
from server.data_directory import Instance, Run, read_run
from server.errors import DataError, MillraceError, SlotBusy
from server.journal.reader import read_groups
from server.shm import layout
from server.shm.layout import UNITS_MAX
from server.shm.segment import Segment
from server.shm.table import TableReader
from tools.connection import Connection, post

EXIT_SAME, EXIT_DIFFERENT, EXIT_NOT_COMPARED = 0, 1, 2
ROUNDS_MAX = 8  # a record that comes and goes all the time looks the same in all of them about once in 10 million
FLUSH_TIMEOUT_S = 60.0  # longer than a locked or full database normally stays so
HOLDS_PASSWORD = "(a password, not shown)"

Key = tuple[Kind, int]  # Kind.PURCHASE: all purchases of the user with this id
Value = tuple[Any, ...] | str  # the columns of schema.COLUMNS; (product id, units) pairs; or a remark in words


class NotFlushed(MillraceError):
    """The running server did not bring its changes to SQLite."""


class Side(Protocol):
    """One of the two sides that are compared."""

    def read(self, keys: Iterable[Key] | None) -> dict[Key, Value]:
        """Return the records of these keys that exist, or all there are."""
        ...


class Difference(NamedTuple):
    key: Key
    memory: Value | None
    database: Value | None


class Findings(NamedTuple):
    compared: int
    differences: list[Difference]
    unsettled: int  # records that changed in every round


def main(arguments: list[str]) -> int:
    """Print the differences; 0 when there are none, 1 when there are, 2 when nothing could be compared."""
    parser = argparse.ArgumentParser(prog="python -m tools verify", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="default: %(default)s")
    data_dir = parser.parse_args(arguments).data_dir
    try:
        with _lock(data_dir) as is_running:
            findings = _verify_running(data_dir) if is_running else _verify_stopped(data_dir)
    except (MillraceError, OSError, sqlite3.Error) as error:
        print(f"verify: {error}", file=sys.stderr)
        return EXIT_NOT_COMPARED
    for difference in findings.differences:
        print(describe(difference))
    if findings.unsettled:
        print(f"{findings.unsettled} records changed all the time and were not compared", file=sys.stderr)
    state = "running" if is_running else "stopped"
    print(f"{state} server: {findings.compared} records compared, {len(findings.differences)} differences")
    return EXIT_DIFFERENT if findings.differences else EXIT_SAME


def compare(memory: Side, database: Side, flush: Callable[[], None], rounds_max: int = ROUNDS_MAX) -> Findings:
    """Compare both sides, then again what differed; certain is what differs in the same way in every round."""
    suspects: set[Key] | None = None
    certain: dict[Key, Difference] = {}
    compared = 0
    for number in range(rounds_max):
        before = memory.read(suspects)
        flush()
        rows = database.read(suspects)
        keys = before.keys() | rows.keys()
        suspects = {key for key in keys if before.get(key) != rows.get(key)}
        after = memory.read(suspects)
        found = {key: Difference(key, before.get(key), rows.get(key)) for key in suspects}
        still = {key: difference for key, difference in found.items() if difference.memory == after.get(key)}
        if number == 0:
            compared, certain = len(keys), still
        certain = {key: difference for key, difference in still.items() if certain.get(key) == difference}
        if not suspects:
            break
    return Findings(compared, [certain[key] for key in sorted(certain)], len(suspects or ()) - len(certain))


def describe(difference: Difference) -> str:
    """Return one line: kind, id, and the fields that differ on both sides (all of them where one side is missing)."""
    kind, id = difference.key
    memory, database = _by_name(kind, difference.memory), _by_name(kind, difference.database)
    if isinstance(memory, dict) and isinstance(database, dict):
        names = [name for name in memory | database if memory.get(name) != database.get(name)]
        memory, database = ({name: side.get(name) for name in names} for side in (memory, database))
    return f"{kind.name.lower()} {id}: memory {_shown(memory)} database {_shown(database)}"


def _by_name(kind: Kind, value: Value | None) -> dict[Any, Any] | str:
    if value is None or isinstance(value, str):
        return value or "has none"
    if kind is Kind.PURCHASE:
        return dict(value)
    return dict(zip(("entry",) if kind is Kind.KEY else schema.COLUMNS[kind], value, strict=True))


def _shown(side: dict[Any, Any] | str) -> str:
    if isinstance(side, str):
        return side
    if side.get("password"):
        side = side | {"password": HOLDS_PASSWORD}
    return json.dumps(side, ensure_ascii=False)


# ---- the running server ------------------------------------------------------------------------------------------


def _verify_running(data_dir: Path) -> Findings:
    run = read_run(data_dir)
    if run is None:
        raise DataError(data_dir / "run.json", "the server that holds this directory is still starting")
    segment = Segment.attach(run.segment)
    try:
        database = DatabaseSide(data_dir, bool(segment.words[layout.CONTRACT]))
        return compare(SharedSide(segment), database, lambda: _flush(run))
    finally:
        segment.close()


def _flush(run: Run) -> None:
    """Ask the server to bring everything acknowledged so far to SQLite, and wait for it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(run.host, run.host)
    connection = Connection(host, run.admin_port, FLUSH_TIMEOUT_S)
    try:
        answer = connection.exchange(post("localhost", "/flush?wait=1", b""))
    finally:
        connection.close()
    if answer.status != 200:
        raise NotFlushed(f"flush: the server answered {answer.status} {answer.body.decode(errors='replace')}")


class SharedSide:
    """The table in shared memory: found by a scan of the slots, read as a worker reads them."""

    def __init__(self, segment: Segment) -> None:
        self._table = TableReader(segment)
        self._value_of = value_decoder(bool(segment.words[layout.CONTRACT]))
        self._broken: dict[Key, int] = {}  # slots whose bytes did not match their checksum in the scan

    def read(self, keys: Iterable[Key] | None) -> dict[Key, Value]:
        values = {key: self._read(key) for key in (self._scan() if keys is None else keys)}
        return {key: value for key, value in values.items() if value is not None}

    def _scan(self) -> Iterator[Key]:
        for slot in self._table.changed_slots((-1, -1, -1)):
            try:
                record = self._table.read_slot(slot)
                is_intact = self._table.is_intact(slot)
            except SlotBusy:
                continue  # its record differs then, and is looked at again
            if record is not None:
                key = Kind(record.kind), record.id
                if not is_intact:
                    self._broken[key] = slot
                yield key
                if record.kind == Kind.USER:
                    yield Kind.PURCHASE, record.id

    def _read(self, key: Key) -> Value | None:
        kind, id = key
        try:
            if kind is Kind.PURCHASE:
                body = self._table.purchases(id)
                return (_pairs(json.loads(body)) or None) if body else None
            if key in self._broken and not self._table.is_intact(self._broken[key]):
                return "does not match its checksum"
            found = self._table.get_private(kind, id)
            return self._value_of(kind, *found) if found else None
        except SlotBusy:
            return "is locked by a change that was not finished"


# ---- the stopped server ------------------------------------------------------------------------------------------


def _verify_stopped(data_dir: Path) -> Findings:
    path = data_dir / "instance.json"
    try:
        instance = msgspec.json.decode(path.read_bytes(), type=Instance)
    except (FileNotFoundError, msgspec.DecodeError) as error:
        raise DataError(path, f"not a data directory of Millrace: {error}") from None
    is_classic = instance.contract == "classic"
    memory = PlainTable(is_classic)
    groups = read_groups(data_dir / "journal", instance.id)
    recovery.load(data_dir, instance.instance, is_classic, memory, groups)
    return compare(memory, DatabaseSide(data_dir, is_classic), lambda: None, rounds_max=1)


class PlainTable:
    """What `recovery.load` fills, in dictionaries instead of shared memory."""

    def __init__(self, is_classic: bool) -> None:
        self._value_of = value_decoder(is_classic)
        self._values: dict[Key, Value] = {}
        self._seqs: dict[Key, int] = {}
        self._bought: dict[int, Counter[int]] = defaultdict(Counter)

    def put(self, kind: int, id: int, seq: int, body: bytes, private: bytes = b"") -> None:
        key = Kind(kind), id
        self._values[key] = self._value_of(key[0], body, private)
        self._seqs[key] = seq

    def delete(self, kind: int, id: int, seq: int) -> None:
        key = Kind(kind), id
        if self._values.pop(key, None) is not None:
            self._seqs[key] = seq

    def add_purchase(self, user_id: int, product_id: int, quantity: int, seq: int) -> None:  # noqa: ARG002
        self._bought[user_id][product_id] += quantity

    def seq_of(self, kind: int, id: int) -> int:
        return self._seqs.get((Kind(kind), id), -1)

    def presize(self, kind: int, records: int) -> None:
        """Dictionaries grow by themselves."""

    def read(self, keys: Iterable[Key] | None) -> dict[Key, Value]:
        bought: dict[Key, Value] = {
            (Kind.PURCHASE, user_id): _pairs(units)
            for user_id, units in self._bought.items()
            if (Kind.USER, user_id) in self._values
        }
        return _only(self._values | bought, keys)


# ---- the databases -----------------------------------------------------------------------------------------------


class DatabaseSide:
    """The three files, opened read-only for each look."""

    def __init__(self, data_dir: Path, is_classic: bool) -> None:
        self._data_dir = data_dir
        self._is_classic = is_classic

    def read(self, keys: Iterable[Key] | None) -> dict[Key, Value]:
        wanted = None if keys is None else set(keys)
        values: dict[Key, Value] = {}
        for kind in PERSISTED_KINDS:
            with self._open(kind) as connection:
                values |= self._records(connection, kind, _ids_of(kind, wanted))
                if kind is Kind.ORDER:
                    query = f"SELECT id, entry FROM {schema.KEYS_TABLE}"
                    for id, entry in _select(connection, query, _ids_of(Kind.KEY, wanted)):
                        values[Kind.KEY, id] = (entry.hex(),)
        return values | self._purchases(wanted)

    @contextmanager
    def _open(self, kind: Kind) -> Iterator[sqlite3.Connection]:
        db = schema.open_read_only(schema.database_path(self._data_dir, kind))
        try:
            yield db.conn
        finally:
            db.close()

    def _records(self, connection: sqlite3.Connection, kind: Kind, ids: list[int] | None) -> dict[Key, Value]:
        query = f"SELECT {', '.join(schema.COLUMNS[kind])} FROM {DATABASE_NAMES[kind]}"
        dead_query = f"SELECT id, reason FROM {schema.DEAD_LETTERS_TABLE}"
        values: dict[Key, Value] = {}
        for row in _select(connection, query, ids):
            values[kind, row[0]] = _stored_product(row) if kind is Kind.PRODUCT else row
        for id, reason in _select(connection, dead_query, ids):
            values[kind, id] = f"has it among the dead letters: {reason}"
        return values

    def _purchases(self, wanted: set[Key] | None) -> dict[Key, Value]:
        """Return the sums over all orders of the users there are; one pass, whatever is wanted."""
        if wanted is not None and all(kind is not Kind.PURCHASE for kind, _ in wanted):
            return {}
        with self._open(Kind.USER) as connection:
            users = {id for (id,) in connection.execute("SELECT id FROM users")}
        bought: dict[int, Counter[int]] = defaultdict(Counter)
        with self._open(Kind.ORDER) as connection:  # not summed by SQL, which fails above 2^63 - 1
            for user_id, product_id, quantity in connection.execute("SELECT user_id, product_id, quantity FROM orders"):
                bought[user_id][product_id] += quantity
        return _only({(Kind.PURCHASE, id): _pairs(units) for id, units in bought.items() if id in users}, wanted)


def _ids_of(kind: Kind, wanted: set[Key] | None) -> list[int] | None:
    return None if wanted is None else [id for key_kind, id in wanted if key_kind is kind]


def _select(connection: sqlite3.Connection, query: str, ids: list[int] | None) -> Iterator[tuple[Any, ...]]:
    if ids is None:
        yield from connection.execute(query)
    else:
        for id in ids:
            yield from connection.execute(f"{query} WHERE id = ?", [id])


# ---- values that can be compared ---------------------------------------------------------------------------------


def value_decoder(is_classic: bool) -> Callable[[Kind, bytes, bytes], Value]:
    """Return the function that turns a record and its private part into the values of the database's columns."""
    types: dict[Kind, type[msgspec.Struct]] = {
        Kind.USER: ClassicUser if is_classic else User,
        Kind.PRODUCT: Product,
        Kind.ORDER: Order,
    }
    decoders = {kind: msgspec.json.Decoder(type) for kind, type in types.items()}

    def value_of(kind: Kind, body: bytes, private: bytes) -> Value:
        if kind is Kind.KEY:
            return (body.hex(),)
        try:
            row = msgspec.structs.astuple(decoders[kind].decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return f"holds a body that can not be read ({error})"
        if kind is Kind.PRODUCT:
            return _stored_product(row)
        return (*row, private.decode() or None) if kind is Kind.USER and not is_classic else row

    return value_of


def _stored_product(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Spell the price as both sides do: 4 and 4.0 are one number."""
    id, name, description, price, quantity = row
    return id, name, description, canonical_price(price) if isinstance(price, int | float) else price, quantity


def _pairs(units: Mapping[Any, int]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted((int(product_id), min(quantity, UNITS_MAX)) for product_id, quantity in units.items()))


def _only(values: dict[Key, Value], keys: Iterable[Key] | None) -> dict[Key, Value]:
    return values if keys is None else {key: values[key] for key in keys if key in values}


@contextmanager
def _lock(data_dir: Path) -> Iterator[bool]:
    """Hold the lock of the directory if no server has it; tell whether one does."""
    descriptor = os.open(data_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield True
        else:
            yield False
    finally:
        os.close(descriptor)
