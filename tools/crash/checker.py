"""The checker: events in, violations out. Pure: no clock, no file, no server.

One process gives the order of all writes and tells it (`Write-Seq`), so the check is linear in the events:

    sequences    no two writes share one; a write that began after another was answered has the higher one; so have
                 the ids of orders
    records      each value of a record was there from some moment to some other. `seen` is the earliest end of an
                 event that shows it was there (its own answer, or a read of it), `needed` the latest begin of one. If
                 one value was seen before another was needed, it is the older one of the two. That must agree with
                 the sequences, and with itself where a write was never answered and has none.
    not there    a read that finds nothing needs a moment before the creation or after a deletion
    orders       every acknowledged order is there once, no refused one, none that nobody asked for
    stock        what was there at first minus all orders; while reads go on, between the orders answered before the
                 read and those invoked before its end; never below zero

A write without an answer may be there or not, and may come at any time after it was invoked. A crash needs no rule of
its own: what is read after it has to fit to all that was answered before it.

Leaves out: contradictions that need two unanswered writes of one record; and a deletion and a later creation of the
same id are told apart only as far as the sequences do it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import NamedTuple

from tools.crash.history import NEVER, Fate, Final, History, Key, OrderRequest, Read, Terms, Write

VALUE_CHARACTERS_SHOWN = 40


class Fault(Enum):
    """What can be wrong. The names are those of the table that is printed."""

    LOST = "lost"  # an acknowledged write is not there, or an older value is seen after it was answered
    BACKWARDS = "backwards"  # one read saw a newer value than a later read
    INVENTED = "torn"  # a value that nobody wrote: torn, mixed, or of another record
    RESURRECTED = "not applied, but there"  # a write that was answered "not applied" is visible
    DUPLICATED = "duplicated"  # applied twice: an order, an order id, a seq
    DISORDERED = "disordered"  # sequences against the order of events
    STOCK = "stock"  # the stock is not what the orders left, or below zero
    FAILED = "failed"  # an answer that is none of the allowed ones


class Violation(NamedTuple):
    fault: Fault
    text: str


def check(history: History, final: Final | None) -> list[Violation]:
    """Return everything that is wrong; `final` None: only what the clients saw while they worked."""
    violations = [Violation(Fault.FAILED, f"{request}: {answer}") for request, answer in history.failures]
    violations += check_sequences(history)
    violations += check_records(history.writes, history.reads)
    violations += check_stock_reads(history)
    violations += check_order_reads(history)
    if final is not None:
        violations += check_orders(history.orders, final)
        violations += check_final_stock(history.initial_stock, final)
    return violations


# ---- sequences -------------------------------------------------------------------------------------------------


def check_sequences(history: History) -> Iterator[Violation]:
    """Check that sequences are unique and follow real time, and that the ids of orders follow the sequences."""
    events: list[Write | OrderRequest] = [*history.writes, *history.orders]
    applied = [event for event in events if event.fate is Fate.APPLIED]
    for seq, count in Counter(event.seq for event in applied).items():
        if count > 1 or seq < 1:
            yield Violation(Fault.DUPLICATED, f"{count} writes were answered with Write-Seq {seq}")
    answered = sorted(applied, key=attrgetter("replied"))
    ends = [event.replied for event in answered]
    highest = list(accumulate((event.seq for event in answered), max))
    for event in applied:
        before = bisect_left(ends, event.invoked)
        if before and highest[before - 1] > event.seq:
            yield Violation(
                Fault.DISORDERED, f"seq {event.seq} for a write that began after seq {highest[before - 1]} was answered"
            )
    orders = sorted((order for order in history.orders if order.fate is Fate.APPLIED), key=attrgetter("seq"))
    for first, second in pairwise(orders):
        if first.order_id >= second.order_id:
            yield Violation(
                Fault.DUPLICATED if first.order_id == second.order_id else Fault.DISORDERED,
                f"order {first.order_id} has seq {first.seq}, order {second.order_id} has seq {second.seq}",
            )


# ---- records ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Version:
    """One value of a record: when it surely was there already, and when it surely was there still."""

    write: Write
    seen: float
    needed: float

    @property
    def seq(self) -> int | None:
        return self.write.seq if self.write.fate is Fate.APPLIED else None

    def note(self, read: Read) -> None:
        self.seen = min(self.seen, read.replied)
        self.needed = max(self.needed, read.invoked)


def check_records(writes: Iterable[Write], reads: Iterable[Read]) -> Iterator[Violation]:
    """Check every record for itself."""
    writes_of: dict[Key, list[Write]] = defaultdict(list)
    reads_of: dict[Key, list[Read]] = defaultdict(list)
    for write in writes:
        writes_of[write.key].append(write)
    for read in reads:
        reads_of[read.key].append(read)
    for key in writes_of.keys() | reads_of.keys():
        yield from _check_record(writes_of[key], reads_of[key])


def _check_record(writes: list[Write], reads: list[Read]) -> Iterator[Violation]:
    versions = {id(write): _Version(write, write.replied, write.invoked) for write in writes}
    by_value = {write.value: versions[id(write)] for write in writes if write.value is not None}
    for read in reads:
        if read.value is None:
            continue
        version = by_value.get(read.value)
        shown = f"{_name(read.key)} was read as {_cut(read.value)}"
        if version is None:
            yield Violation(Fault.INVENTED, f"{shown}, which nobody wrote")
        elif read.replied < version.write.invoked:
            yield Violation(Fault.INVENTED, f"{shown} before that was written")
        elif version.write.fate is Fate.REFUSED:
            yield Violation(Fault.RESURRECTED, f"{shown}, which was refused")
        else:
            version.note(read)
    possible = [version for version in versions.values() if version.write.fate is not Fate.REFUSED]
    yield from _check_absence(possible, [read for read in reads if read.value is None])
    yield from _check_order(possible)


def _check_absence(versions: list[_Version], reads: list[Read]) -> Iterator[Violation]:
    """Check reads that found nothing: before any value was there, or after a deletion that nothing newer followed."""
    values = [version for version in versions if version.write.value is not None]
    deletions = [version for version in versions if version.write.value is None]
    first_seen = min((version.seen for version in values), default=NEVER)
    for read in reads:
        if first_seen >= read.invoked:
            continue
        present_seq = max((version.seq or 0 for version in values if version.seen < read.invoked), default=0)
        fitting = [
            deletion
            for deletion in deletions
            if deletion.write.invoked <= read.replied and (deletion.seq is None or deletion.seq > present_seq)
        ]
        if not fitting:
            yield Violation(Fault.LOST, f"{_name(read.key)} was not found, but it was there before and never deleted")
        elif len(fitting) == 1:
            fitting[0].note(read)


def _check_order(versions: list[_Version]) -> Iterator[Violation]:
    """Check that what was seen before something else was needed is older, by the sequences and by itself."""
    known = sorted((version for version in versions if version.seq is not None), key=_seq_of)
    latest_needed = None  # of all older ones the one that was needed last
    for newer in known:
        if latest_needed is not None and newer.seen < latest_needed.needed:
            yield _reversal(latest_needed, newer)
        if latest_needed is None or newer.needed > latest_needed.needed:
            latest_needed = newer
    unanswered = [version for version in versions if version.seq is None and version.seen < NEVER]
    for version in unanswered:
        older = [other for other in known if other.seen < version.needed]
        newer_ones = [other for other in known if version.seen < other.needed]
        if older and newer_ones and _seq_of(older[-1]) >= _seq_of(newer_ones[0]):
            yield Violation(
                Fault.BACKWARDS,
                f"{_name(version.write.key)}: {_cut(version.write.value)}, never answered, was read before"
                f" {_cut(newer_ones[0].write.value)} and after {_cut(older[-1].write.value)}, which is not older",
            )
    for index, one in enumerate(unanswered):
        for other in unanswered[index + 1 :]:
            if one.seen < other.needed and other.seen < one.needed:
                yield _reversal(one, other)


def _reversal(older: _Version, newer: _Version) -> Violation:
    is_lost = newer.seen == newer.write.replied
    how = "answered" if is_lost else "read"
    old, new = _cut(older.write.value), _cut(newer.write.value)
    text = f"{_name(older.write.key)}: {old} was there after {new}, newer, was {how}"
    return Violation(Fault.LOST if is_lost else Fault.BACKWARDS, text)


def _seq_of(version: _Version) -> int:
    return version.seq or 0


def _name(key: Key) -> str:
    return f"{key[0]} {key[1]}"


def _cut(value: str | None) -> str:
    """Return the beginning of a value; it starts with what is unique in it."""
    if value is None:
        return "(deleted)"
    return value if len(value) <= VALUE_CHARACTERS_SHOWN else value[:VALUE_CHARACTERS_SHOWN] + "..."


# ---- orders and stock ------------------------------------------------------------------------------------------


def check_orders(requests: list[OrderRequest], final: Final) -> Iterator[Violation]:
    """Check the orders that there are against the requests, and the purchases against the orders."""
    times = Counter(final.orders.values())
    fates: dict[Terms, Fate] = {}
    for request in requests:
        fates[request.terms] = request.fate
        if request.fate is Fate.APPLIED and final.orders.get(request.order_id) != request.terms:
            found = final.orders.get(request.order_id)
            fault = Fault.LOST if times[request.terms] == 0 else Fault.INVENTED
            yield Violation(fault, f"order {request.order_id} of {request.terms} was acknowledged, there is {found}")
    for terms, count in times.items():
        fate = fates.get(terms)
        if fate is None:
            yield Violation(Fault.INVENTED, f"an order of {terms}, which nobody sent")
        elif fate is Fate.REFUSED:
            yield Violation(Fault.RESURRECTED, f"an order of {terms}, which was refused")
        if count > 1:
            yield Violation(Fault.DUPLICATED, f"{count} orders of {terms}, which was sent once")
    units: dict[int, Counter[int]] = defaultdict(Counter)
    for product_id, user_id, quantity in final.orders.values():
        units[user_id][product_id] += quantity
    for user_id, purchases in final.purchases.items():
        if purchases != units[user_id]:
            yield Violation(Fault.STOCK, f"purchases of user {user_id}: {purchases}, by orders {dict(units[user_id])}")


def check_order_reads(history: History) -> Iterator[Violation]:
    """Check that an order is there from its answer on, and never another one under its id."""
    requests = {order.order_id: order for order in history.orders if order.fate is Fate.APPLIED}
    for order_id, terms, invoked, _ in history.order_reads:
        request = requests.get(order_id)
        if request is not None and terms is None and request.replied < invoked:
            yield Violation(Fault.LOST, f"order {order_id} was not found after it was acknowledged")
        elif request is not None and terms is not None and terms != request.terms:
            yield Violation(Fault.INVENTED, f"order {order_id} was read as {terms}, acknowledged as {request.terms}")


def check_final_stock(initial: dict[int, int], final: Final) -> Iterator[Violation]:
    """Check that the stock is what the orders left of it."""
    sold: Counter[int] = Counter()
    for terms in final.orders.values():
        sold[terms.product_id] += terms.quantity
    for product_id, quantity in initial.items():
        left = final.stock.get(product_id)
        if left != quantity - sold[product_id] or left < 0:
            yield Violation(Fault.STOCK, f"product {product_id}: {quantity} - {sold[product_id]} sold, but {left} left")


def check_stock_reads(history: History) -> Iterator[Violation]:
    """Check each stock that was read: sold are all orders answered before, and at most all invoked before its end."""
    by_product: dict[int, list[OrderRequest]] = defaultdict(list)
    for order in history.orders:
        by_product[order.terms.product_id].append(order)
    reads_of: dict[int, list[tuple[int, float, float]]] = defaultdict(list)
    for product_id, quantity, invoked, replied in history.stock_reads:
        reads_of[product_id].append((quantity, invoked, replied))
    for product_id, reads in reads_of.items():
        orders = [order for order in by_product[product_id] if order.fate is not Fate.REFUSED]
        answered = _Sums((order.replied, order.terms.quantity) for order in orders if order.fate is Fate.APPLIED)
        begun = _Sums((order.invoked, order.terms.quantity) for order in orders)
        for quantity, invoked, replied in reads:
            sold = history.initial_stock[product_id] - quantity
            least, most = answered.before(invoked), begun.up_to(replied)
            if quantity < 0 or not least <= sold <= most:
                text = f"product {product_id} was read with a stock of {quantity}: {sold} sold, not {least} to {most}"
                yield Violation(Fault.STOCK, text)


class _Sums:
    """Sums of quantities by time."""

    def __init__(self, items: Iterable[tuple[float, int]]) -> None:
        ordered = sorted(items)
        self._times = [time for time, _ in ordered]
        self._sums = [0, *accumulate(quantity for _, quantity in ordered)]

    def before(self, time: float) -> int:
        return self._sums[bisect_left(self._times, time)]

    def up_to(self, time: float) -> int:
        return self._sums[bisect_right(self._times, time)]
