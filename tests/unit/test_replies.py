"""Response bytes in both contracts."""

from __future__ import annotations

import pytest

from server.commands import Kind, Outcome, Reply
from server.http.replies import PROBLEM, Clock, Replies, with_connection, without_body
from tests.http_fakes import NOW, Answer, parse_answers

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"

# outcome, kind -> status, classic text of an order
OUTCOMES = [
    (Outcome.EXISTS, Kind.USER, 409, None),
    (Outcome.EXISTS, Kind.PRODUCT, 409, None),
    (Outcome.MISSING, Kind.USER, 404, None),
    (Outcome.MISSING, Kind.PRODUCT, 404, None),
    (Outcome.MISSING, Kind.ORDER, 404, "Invalid Request"),
    (Outcome.MISMATCH, Kind.USER, 401, None),
    (Outcome.MISMATCH, Kind.PRODUCT, 401, None),
    (Outcome.OUT_OF_STOCK, Kind.ORDER, 400, "Exceeded quantity limit"),
    (Outcome.MEMORY_FULL, Kind.USER, 507, None),
    (Outcome.MEMORY_FULL, Kind.ORDER, 507, "Insufficient Storage"),
    (Outcome.JOURNAL_FULL, Kind.PRODUCT, 503, None),
    (Outcome.KEY_REUSED, Kind.USER, 409, None),
    (Outcome.JOURNAL_FAILED, Kind.USER, 503, None),
    (Outcome.JOURNAL_FAILED, Kind.ORDER, 503, "Service Unavailable"),
]


def one(output: bytes) -> Answer:
    [answer] = parse_answers(output)
    return answer


@pytest.fixture
def replies() -> Replies:
    return Replies(Clock(NOW), is_classic=False)


@pytest.fixture
def classic() -> Replies:
    return Replies(Clock(NOW), is_classic=True)


def test_record_is_the_tail_of_its_answer(replies: Replies) -> None:
    assert replies.record(b"2\r\n\r\n{}") == replies.ok(b"{}")
    answer = one(replies.ok(b"{}"))
    assert answer.status == 200 and answer.body == b"{}"
    assert answer.fields == {"date": DATE, "content-type": "application/json", "content-length": "2"}


def test_write_carries_its_seq(replies: Replies) -> None:
    answer = one(replies.outcome(Kind.USER, Reply(1, Outcome.DONE, 17, b'{"id":1}')))
    assert (answer.status, answer.fields["write-seq"], answer.body) == (200, "17", b'{"id":1}')


@pytest.mark.parametrize(("outcome", "kind", "status", "text"), OUTCOMES)
def test_refusal_is_a_problem(replies: Replies, outcome: Outcome, kind: Kind, status: int, text: str | None) -> None:
    answer = one(replies.outcome(kind, Reply(1, outcome)))
    assert answer.status == status and answer.fields["content-type"] == PROBLEM.decode()
    problem = answer.json
    assert problem.pop("status") == status and problem.pop("type") == "about:blank"
    assert problem.pop("title") and problem.pop("detail")
    assert problem == ({} if text is None else {"order_status": text})
    assert ("retry-after" in answer.fields) == (status == 503)
    assert "write-seq" not in answer.fields


@pytest.mark.parametrize(("outcome", "kind", "status", "text"), OUTCOMES)
def test_classic_refusal_is_what_it_was(
    classic: Replies, outcome: Outcome, kind: Kind, status: int, text: str | None
) -> None:
    answer = one(classic.outcome(kind, Reply(1, outcome)))
    assert answer.status == status and answer.fields["content-type"] == "application/json"
    assert answer.json == ({} if text is None else {"status": text})


@pytest.mark.parametrize("kind", [Kind.USER, Kind.PRODUCT, Kind.ORDER])
def test_every_outcome_has_an_answer(replies: Replies, kind: Kind) -> None:
    for outcome in Outcome:
        assert one(replies.outcome(kind, Reply(1, outcome, body=b"{}"))).status


def test_time_out_is_504(replies: Replies) -> None:
    assert one(replies.outcome(Kind.USER, None)).status == 504


def test_unavailable_says_when_to_come_back(replies: Replies) -> None:
    assert one(replies.unavailable("busy")).fields["retry-after"] == "1"


def test_without_body_keeps_the_length(replies: Replies) -> None:
    answer = without_body(replies.ok(b"{}"))
    assert answer.endswith(b"Content-Length: 2\r\n\r\n")


@pytest.mark.parametrize("option", ["close", "keep-alive"])
def test_connection_field_is_added_once(replies: Replies, option: str) -> None:
    plain = replies.ok(b"a\r\n\r\nb")
    answer = one(with_connection(plain, option.encode()))
    assert answer.fields.pop("connection") == option
    assert answer == one(plain)


def test_clock_makes_the_next_second() -> None:
    clock = Clock(NOW)
    tick = clock.tick
    clock.refresh(NOW + 1)
    assert clock.tick == tick + 1
    assert b"08:49:38" in clock.date and clock.date in clock.ok
