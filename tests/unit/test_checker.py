"""The checker: it says nothing about good histories, and goes red for each kind of violation."""

from __future__ import annotations

import random

import pytest

from tools.crash.checker import Fault, check
from tools.crash.history import (
    NEVER,
    Failure,
    Fate,
    Final,
    History,
    Key,
    OrderRead,
    OrderRequest,
    Read,
    StockRead,
    Terms,
    Write,
)

ANN: Key = ("user", 1)
LAMP, BUYER = 7, 70


def applied(value: str | None, invoked: float, replied: float, seq: int, key: Key = ANN) -> Write:
    return Write(key, value, Fate.APPLIED, invoked, replied, seq)


def unknown(value: str | None, invoked: float, key: Key = ANN) -> Write:
    return Write(key, value, Fate.UNKNOWN, invoked, NEVER, 0)


def refused(value: str | None, invoked: float, replied: float) -> Write:
    return Write(ANN, value, Fate.REFUSED, invoked, replied, 0)


def read(value: str | None, invoked: float, replied: float, key: Key = ANN) -> Read:
    return Read(key, value, invoked, replied)


def faults(history: History, final: Final | None = None) -> list[Fault]:
    return [violation.fault for violation in check(history, final)]


def records(*events: Write | Read) -> list[Fault]:
    writes = [event for event in events if isinstance(event, Write)]
    reads = [event for event in events if isinstance(event, Read)]
    return faults(History(writes=writes, reads=reads))


# ---- good histories --------------------------------------------------------------------------------------------


def test_nothing_is_wrong_with_nothing() -> None:
    assert faults(History(), Final({}, {}, {})) == []


def test_a_read_during_a_write_may_show_the_old_or_the_new_value() -> None:
    writes = [applied("a", 0, 1, 1), applied("b", 2, 9, 2)]
    assert records(*writes, read("a", 3, 4), read("b", 5, 6), read("b", 7, 8)) == []
    assert records(*writes, read("a", 3, 8), read("b", 5, 6)) == [], "the two reads overlap"


def test_a_write_without_an_answer_may_be_there_or_not_or_come_late() -> None:
    writes = [applied("a", 0, 1, 1), unknown("b", 2), applied("c", 20, 21, 2)]
    assert records(*writes, read("c", 30, 31)) == []
    assert records(*writes, read("b", 3, 4), read("c", 30, 31)) == []
    assert records(*writes, read("c", 30, 31), read("b", 40, 41)) == [], "applied long after it was sent"


def test_a_record_may_be_missing_before_its_creation_and_after_its_deletion() -> None:
    writes = [applied("a", 5, 8, 1), applied(None, 20, 25, 2), applied("b", 40, 45, 3)]
    reads = [read(None, 1, 2), read(None, 6, 7), read("a", 21, 22), read(None, 23, 24), read(None, 30, 31)]
    assert records(*writes, *reads, read("b", 50, 51)) == []


def test_a_deletion_without_an_answer_may_have_happened() -> None:
    assert records(applied("a", 0, 1, 1), unknown(None, 2), read("a", 3, 4), read(None, 5, 6)) == []


def test_refused_writes_leave_no_trace() -> None:
    assert records(applied("a", 0, 1, 1), refused("b", 2, 3), refused(None, 4, 5), read("a", 6, 7)) == []


def test_sequential_histories_of_a_register_are_never_wrong() -> None:
    chance = random.Random(4)
    for _ in range(200):
        history, value, seq = History(), None, 0
        for step in range(30):
            action = chance.choice(["write", "delete", "read", "refused", "unknown"])
            at = 10.0 * step
            if action == "read":
                history.reads.append(read(value, at, at + 1))
            elif action == "refused":
                history.writes.append(refused(f"{step}", at, at + 1))
            elif action == "unknown":
                history.writes.append(unknown(f"{step}", at))
                if chance.random() < 0.5:
                    value, seq = f"{step}", seq + 1
            else:
                value, seq = (f"{step}" if action == "write" else None), seq + 1
                history.writes.append(applied(value, at, at + 1, seq))
        assert check(history, None) == []


# ---- records: each kind of violation ---------------------------------------------------------------------------


def test_lost_an_older_value_after_a_newer_one_was_acknowledged() -> None:
    assert records(applied("a", 0, 1, 1), applied("b", 2, 3, 2), read("a", 4, 5)) == [Fault.LOST]


def test_lost_an_acknowledged_record_is_not_found() -> None:
    assert records(applied("a", 0, 1, 1), read(None, 2, 3)) == [Fault.LOST]


def test_lost_a_record_created_again_is_not_found_after_the_older_deletion() -> None:
    writes = [applied("a", 0, 1, 1), applied(None, 2, 3, 2), applied("b", 4, 5, 3)]
    assert records(*writes, read(None, 6, 7)) == [Fault.LOST]


def test_lost_a_deleted_record_is_back() -> None:
    assert records(applied("a", 0, 1, 1), applied(None, 2, 3, 2), read("a", 4, 5)) == [Fault.LOST]


def test_backwards_a_read_shows_an_older_value_than_the_read_before() -> None:
    writes = [applied("a", 0, 1, 1), applied("b", 2, 20, 2)]
    assert records(*writes, read("b", 3, 4), read("a", 5, 6)) == [Fault.BACKWARDS]


def test_backwards_an_unanswered_write_was_seen_and_is_gone() -> None:
    assert records(applied("a", 0, 1, 1), unknown("b", 2), read("b", 3, 4), read("a", 5, 6)) == [Fault.BACKWARDS]


def test_backwards_an_unanswered_write_comes_again() -> None:
    writes = [applied("a", 0, 1, 1), unknown("b", 2), applied("c", 3, 30, 2)]
    assert records(*writes, read("b", 4, 5), read("c", 6, 7), read("b", 8, 9)) == [Fault.BACKWARDS]


def test_backwards_a_deletion_without_an_answer_was_seen_and_is_undone() -> None:
    assert records(applied("a", 0, 1, 1), unknown(None, 2), read(None, 3, 4), read("a", 5, 6)) == [Fault.BACKWARDS]


def test_backwards_two_unanswered_writes_change_places() -> None:
    writes = [unknown("a", 0), unknown("b", 0)]
    reads = [read("a", 1, 2), read("b", 3, 4), read("a", 5, 6)]
    assert records(*writes, *reads) == [Fault.BACKWARDS]


def test_torn_a_value_that_nobody_wrote() -> None:
    assert records(applied("a", 0, 1, 1), read("a b", 2, 3)) == [Fault.INVENTED]


def test_torn_a_value_of_another_record() -> None:
    other: Key = ("user", 2)
    assert records(applied("a", 0, 1, 1), applied("b", 2, 3, 2, other), read("b", 4, 5)) == [Fault.INVENTED]


def test_torn_a_value_before_it_was_written() -> None:
    assert Fault.INVENTED in records(read("a", 0, 1), applied("a", 2, 3, 1))


def test_not_applied_but_there() -> None:
    assert records(applied("a", 0, 1, 1), refused("b", 2, 3), read("b", 4, 5)) == [Fault.RESURRECTED]


# ---- sequences -------------------------------------------------------------------------------------------------


def test_duplicated_seq() -> None:
    other: Key = ("user", 2)
    assert records(applied("a", 0, 1, 1), applied("b", 0, 1, 1, other)) == [Fault.DUPLICATED]


def test_answer_without_a_seq() -> None:
    assert records(applied("a", 0, 1, 0)) == [Fault.DUPLICATED]


def test_disordered_seq_against_real_time_of_another_record() -> None:
    other: Key = ("user", 2)
    assert records(applied("a", 0, 1, 2), applied("b", 2, 3, 1, other)) == [Fault.DISORDERED]


def test_overlapping_writes_may_have_any_order() -> None:
    other: Key = ("user", 2)
    assert records(applied("a", 0, 3, 2), applied("b", 2, 4, 1, other)) == []


# ---- orders and stock ------------------------------------------------------------------------------------------


def order(quantity: int, fate: Fate, invoked: float, seq: int = 0, order_id: int = 0) -> OrderRequest:
    replied = NEVER if fate is Fate.UNKNOWN else invoked + 1
    return OrderRequest(Terms(LAMP, BUYER, quantity), fate, invoked, replied, seq, order_id)


def orders(*requests: OrderRequest, there: dict[int, int], stock: int | None = None) -> list[Fault]:
    """Check requests against orders id -> quantity; what is not told is as it has to be."""
    sold = sum(there.values())
    final = Final(
        {id: Terms(LAMP, BUYER, quantity) for id, quantity in there.items()},
        {LAMP: 100 - sold if stock is None else stock},
        {BUYER: {LAMP: sold} if sold else {}},
    )
    return faults(History(initial_stock={LAMP: 100}, orders=list(requests)), final)


DONE = order(3, Fate.APPLIED, 0, seq=1, order_id=1)


def test_orders_that_are_as_they_were_answered() -> None:
    assert orders(DONE, order(4, Fate.UNKNOWN, 2), order(5, Fate.REFUSED, 4), there={1: 3}) == []
    assert orders(DONE, order(4, Fate.UNKNOWN, 2), order(5, Fate.REFUSED, 4), there={1: 3, 2: 4}) == []


def test_lost_order() -> None:
    assert orders(DONE, there={}) == [Fault.LOST]


def test_duplicated_order() -> None:
    assert orders(DONE, there={1: 3, 2: 3}) == [Fault.DUPLICATED]
    assert orders(order(4, Fate.UNKNOWN, 2), there={1: 4, 2: 4}) == [Fault.DUPLICATED]


def test_duplicated_order_id() -> None:
    assert Fault.DUPLICATED in orders(DONE, order(4, Fate.APPLIED, 2, seq=2, order_id=1), there={1: 4})


def test_disordered_order_ids() -> None:
    assert orders(DONE._replace(order_id=2), order(4, Fate.APPLIED, 2, 2, 1), there={2: 3, 1: 4}) == [Fault.DISORDERED]


def test_order_with_other_terms() -> None:
    found = orders(DONE, there={1: 9})
    assert found == [Fault.LOST, Fault.INVENTED]


def test_order_under_another_id_than_answered() -> None:
    assert orders(DONE, there={2: 3}) == [Fault.INVENTED]


def test_refused_order_that_is_there() -> None:
    assert orders(order(5, Fate.REFUSED, 0), there={1: 5}) == [Fault.RESURRECTED]


@pytest.mark.parametrize("stock", [96, 98, -1])
def test_stock_that_is_not_what_the_orders_left(stock: int) -> None:
    assert orders(DONE, there={1: 3}, stock=stock) == [Fault.STOCK]


def test_stock_below_zero() -> None:
    assert orders(order(101, Fate.APPLIED, 0, 1, 1), there={1: 101}) == [Fault.STOCK]


def test_purchases_that_are_not_the_sum_of_the_orders() -> None:
    final = Final({1: DONE.terms}, {LAMP: 97}, {BUYER: {LAMP: 6}})
    assert faults(History(initial_stock={LAMP: 100}, orders=[DONE]), final) == [Fault.STOCK]


@pytest.mark.parametrize(
    ("quantity", "at", "is_good"),
    [(100, 0, True), (97, 0, True), (97, 2, True), (100, 2, False), (94, 2, False), (93, 2.5, True), (-1, 2, False)],
)
def test_stock_read_counts_what_was_answered_and_at_most_what_was_sent(
    quantity: int, at: float, is_good: bool
) -> None:
    requests = [DONE, order(4, Fate.UNKNOWN, 3), order(5, Fate.REFUSED, 0)]
    reads = [StockRead(LAMP, quantity, at, at + 0.5)]
    found = faults(History(initial_stock={LAMP: 100}, orders=requests, stock_reads=reads))
    assert found == ([] if is_good else [Fault.STOCK])


def test_order_reads() -> None:
    def of(terms: Terms | None, at: float) -> list[Fault]:
        return faults(History(orders=[DONE], order_reads=[OrderRead(1, terms, at, at + 1)]))

    assert of(DONE.terms, 2) == of(None, 0.5) == []
    assert of(None, 2) == [Fault.LOST]
    assert of(Terms(LAMP, BUYER, 9), 2) == [Fault.INVENTED]


def test_answers_that_are_none_of_the_three() -> None:
    assert faults(History(failures=[Failure("GET /user/1", "500")])) == [Fault.FAILED]
