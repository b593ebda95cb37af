"""Response bytes: success, RFC 9457 problems, the errors of the original services, and the outcome of a write.

Every answer is complete bytes, made for a keep-alive HTTP/1.1 client; `without_body` and `with_connection` adapt one
for HEAD, for HTTP/1.0 and for a connection that ends. The hot path of a GET uses only `Clock.ok`: a stored record
already starts with its own Content-Length value, so an answer is one concatenation.

A 401 carries no WWW-Authenticate: here it says that the fields of a delete do not match, and no scheme would help.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

import msgspec

from server.commands import DONE, ORDER, PRODUCT, USER, Kind, Outcome, Reply

JSON = b"application/json"
PROBLEM = b"application/problem+json"
RETRY_AFTER = b"Retry-After: 1\r\n"  # a manager is replaced, and a full queue drained, within about a second
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

INVALID_REQUEST = "Invalid Request"
OUT_OF_STOCK = "Exceeded quantity limit"

_encode = msgspec.json.Encoder().encode
_NOUNS = {USER: "user", PRODUCT: "product", ORDER: "order"}
_HEADS = {int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}

# what is said of a command that was not applied; {} is the kind
_REFUSALS = {
    Outcome.EXISTS: (409, "a {} with this id exists"),
    Outcome.MISSING: (404, "there is no {} with this id"),
    Outcome.MISMATCH: (401, "the given fields do not match the stored {}"),
    Outcome.OUT_OF_STOCK: (400, "the quantity is more than the stock"),
    Outcome.MEMORY_FULL: (507, "not applied: no shared memory is left for a new record"),
    Outcome.JOURNAL_FULL: (503, "not applied: no space is left for the journal, or it has reached its limit"),
    Outcome.JOURNAL_FAILED: (503, "not applied: the journal can not be written"),
    Outcome.KEY_REUSED: (409, "the Idempotency-Key was used for another request"),
}


class Clock:
    """The second that a worker's answers share: the Date field, and the tick that deadlines are counted in."""

    __slots__ = ("date", "ok", "tick")

    def __init__(self, now: float) -> None:
        self.tick = 0
        self.refresh(now)

    def refresh(self, now: float) -> None:
        """Begin the next second (`now` is unix time)."""
        self.tick += 1
        self.date = b"Date: %b\r\n" % formatdate(now, usegmt=True).encode()
        self.ok = b"HTTP/1.1 200 OK\r\n%bContent-Type: application/json\r\nContent-Length: " % self.date


class Replies:
    """Makes the answers of one worker, in the contract that the server runs with."""

    def __init__(self, clock: Clock, is_classic: bool) -> None:
        self._clock = clock
        self._is_classic = is_classic

    def ok(self, body: bytes) -> bytes:
        """Answer 200 with a JSON body."""
        return b"%b%d\r\n\r\n%b" % (self._clock.ok, len(body), body)

    def record(self, record: bytes) -> bytes:
        """Answer 200 with a record as it is stored."""
        return self._clock.ok + record

    def answer(self, status: int, content_type: bytes, body: bytes, fields: bytes = b"") -> bytes:
        """Answer with any status; `fields` are whole lines, each with its CRLF."""
        head = _HEADS[status] + self._clock.date
        return b"%b%bContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (head, fields, content_type, len(body), body)

    def error(
        self, status: int, detail: str, *, fields: bytes = b"", is_order: bool = False, order_status: str = ""
    ) -> bytes:
        """Answer with a problem, or in the classic contract with what the original services said."""
        title = HTTPStatus(status).phrase
        if is_order and not order_status:
            order_status = INVALID_REQUEST if status < 500 else title
        if self._is_classic:
            return self.answer(status, JSON, _encode({"status": order_status}) if is_order else b"{}", fields)
        problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        if is_order:
            problem["order_status"] = order_status
        return self.answer(status, PROBLEM, _encode(problem), fields)

    def unavailable(self, detail: str, is_order: bool = False) -> bytes:
        """Answer 503: not applied, try again soon."""
        return self.error(503, detail, fields=RETRY_AFTER, is_order=is_order)

    def unexpected(self) -> bytes:
        """Answer 500; the caller logs the reason."""
        return self.error(500, "unexpected error; the log of the server tells more")

    def outcome(self, kind: Kind, reply: Reply | None) -> bytes:
        """Answer a write with what the manager said of it; None is no word within the time-out."""
        is_order = kind is ORDER
        if reply is None:
            return self.error(504, "no answer in time: the write may or may not be applied", is_order=is_order)
        if reply.outcome is DONE:
            return (
                b"HTTP/1.1 200 OK\r\n%bWrite-Seq: %d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (
                    self._clock.date,
                    reply.seq,
                    len(reply.body),
                    reply.body,
                )
            )
        status, detail = _REFUSALS[reply.outcome]
        if is_order and reply.outcome is Outcome.MISSING:
            detail = "there is no such user or product"
        return self.error(
            status,
            detail.format(_NOUNS[kind]),
            fields=RETRY_AFTER if status == 503 else b"",
            is_order=is_order,
            order_status=OUT_OF_STOCK if reply.outcome is Outcome.OUT_OF_STOCK else "",
        )


def without_body(answer: bytes) -> bytes:
    """Return the answer to the same request with HEAD."""
    return answer[: answer.index(b"\r\n\r\n") + 4]


def with_connection(answer: bytes, option: bytes) -> bytes:
    """Return the answer with a Connection field (`close`, or `keep-alive` for HTTP/1.0)."""
    return answer.replace(b"\r\n", b"\r\nConnection: %b\r\n" % option, 1)
