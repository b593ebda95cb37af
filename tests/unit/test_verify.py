"""How verify tells differences from writes under way, on two sides made of dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from server.commands import Kind
from tools.verify import ROUNDS_MAX, Difference, Key, Value, compare, describe

USER: Key = (Kind.USER, 1)
ANN: Value = (1, "ann", "a@x", "hash")


class Dict:
    """A side; `after_read` runs when it was read, as other processes do."""

    def __init__(self, values: dict[Key, Value], after_read: Callable[[int], None] = lambda _: None) -> None:
        self.values = values
        self.reads = 0
        self._after_read = after_read

    def read(self, keys: Iterable[Key] | None) -> dict[Key, Value]:
        found = {key: value for key, value in self.values.items() if keys is None or key in set(keys)}
        self.reads += 1
        self._after_read(self.reads)
        return found


def test_equal_sides_need_one_round() -> None:
    memory = Dict({USER: ANN})
    assert compare(memory, Dict({USER: ANN}), lambda: None) == (1, [], 0)
    assert memory.reads == 2


def test_missing_on_either_side_and_changed_fields_are_differences() -> None:
    other: Key = (Kind.ORDER, 7)
    bob: Value = (1, "bob", "a@x", "hash")
    order: Value = (7, 1, 1, 1, "Success")
    findings = compare(Dict({USER: ANN}), Dict({USER: bob, other: order}), lambda: None)
    assert findings.differences == [Difference(USER, ANN, bob), Difference(other, None, order)]
    findings = compare(Dict({other: order}), Dict({}), lambda: None)
    assert findings.differences == [Difference(other, order, None)]


def test_difference_that_a_flush_removes_is_none() -> None:
    database = Dict({})

    def flush() -> None:
        database.values = dict(memory.values)

    def write_once(reads: int) -> None:
        if reads == 1:
            memory.values[USER] = ANN

    memory = Dict({}, write_once)
    assert compare(memory, database, flush).differences == []


def test_record_that_changes_all_the_time_is_no_difference_but_counted() -> None:
    product: Key = (Kind.PRODUCT, 5)

    def sell(_reads: int) -> None:
        id, name, description, price, quantity = memory.values[product]
        memory.values[product] = (id, name, description, price, quantity - 1)

    memory = Dict({product: (5, "lamp", "a lamp", 1, 10_000), USER: ANN}, sell)
    database = Dict({USER: ANN})

    def flush() -> None:
        database.values = dict(memory.values)

    findings = compare(memory, database, flush)
    assert findings == (2, [], 1)
    assert memory.reads == 2 * ROUNDS_MAX


def test_record_that_comes_and_goes_is_no_difference() -> None:
    """Absent whenever memory is read, in SQLite at most of the looks: only a row that never goes is left over."""
    memory = Dict({})
    database = Dict({USER: ANN})

    def flush() -> None:
        database.values = {} if database.reads == ROUNDS_MAX - 1 else {USER: ANN}

    assert compare(memory, database, flush) == (1, [], 0)


def test_true_difference_is_found_beside_a_record_that_changes() -> None:
    order: Key = (Kind.ORDER, 5)

    def change(reads: int) -> None:
        memory.values[order] = (5, 1, 1, reads, "Success")

    memory = Dict({order: (5, 1, 1, 0, "Success"), USER: ANN}, change)
    findings = compare(memory, Dict({}), lambda: None)
    assert (findings.differences, findings.unsettled) == ([Difference(USER, ANN, None)], 1)


def test_line_names_kind_id_and_the_fields_that_differ() -> None:
    line = describe(Difference((Kind.PRODUCT, 3), (3, "lamp", "d", 1, 90), (3, "lamp", "d", 1, 80)))
    assert line == 'product 3: memory {"quantity": 90} database {"quantity": 80}'
    line = describe(Difference((Kind.PURCHASE, 3), ((5, 2), (6, 1)), ((6, 1), (7, 4))))
    assert line == 'purchase 3: memory {"5": 2, "7": null} database {"5": null, "7": 4}'
    assert describe(Difference((Kind.ORDER, 3), None, "is broken")) == "order 3: memory has none database is broken"


def test_line_shows_no_password() -> None:
    line = describe(Difference(USER, ANN, (1, "ann", "a@x", "other")))
    assert "hash" not in line and "other" not in line and "password" in line
