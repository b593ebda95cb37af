"""HTTP/1.1 on one connection: bytes in, answers out, in order (RFC 9112).

    data_received ─> fast path: plain GETs of records ─────────────────────────────────> one write
                 ├─> fast path: one plain POST ──────────────────────────> Exchange ──> one write
                 └─> careful path: input ─> head (+ body) ─> Request ─> service ─> Exchange ─> one write
                                                          exchanges wait here in order for their answers

The fast paths take `GET /user/5 HTTP/1.1` and `POST /user HTTP/1.1` with a header section that the careful path has
accepted before, byte for byte. They look at nothing else, and whatever does not fit goes the careful path: a POST that
does not come whole and alone, or anything that comes while it is under way.

Order: the answers of a connection leave in the order of its requests. Writes that follow each other are with the
manager together, and it applies them in that order. A request that looks at memory itself (every read) waits until all
before it are answered, so it sees them; it and what follows stay in the input meanwhile.

What always holds: the input is bounded (reading pauses), the output is bounded (a turn ends, and serving pauses
while the client does not read), every state has a deadline, enforced by the sweep of the endpoint once a second.
A refused request ends the connection, but only after the answers before it; the end lingers, so that a client that
still sends gets to read the answer instead of a reset.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import cast

from server.http.chunked import ChunkedBody
from server.http.endpoint import ANSWER, BODY, END, HEAD, IDLE, NEVER, ROOM, Endpoint, Phase
from server.http.exchange import AGAIN, Exchange, Request, Write
from server.http.replies import CONTINUE
from server.http.request_head import PLAIN, Head, RequestRefused

log = logging.getLogger(__name__)

FAST_READS_MAX = 64  # per turn; with records of 50 KB each some 3 MB of output
TURN_BYTES_MAX = 256 << 10  # output of one turn on the careful path, then other connections have theirs
PIPELINE_MAX = 64  # unanswered requests of one connection: enough to fill a batch of the manager
READ_AHEAD_BYTES_MAX = 128 << 10  # unserved input at which reading pauses; above a whole request, so it can complete
WRITE_BUFFER_BYTES_MAX = 256 << 10  # unsent output at which serving pauses


class Connection(asyncio.Protocol):
    """Everything of one connection."""

    __slots__ = (
        "_chunked",
        "_endpoint",
        "_exchanges",
        "_head",
        "_input",
        "_is_continued",
        "_is_eof",
        "_is_fast",
        "_is_fresh",
        "_is_lone",
        "_is_read_paused",
        "_is_serving",
        "_is_write_paused",
        "_is_yielding",
        "_parked",
        "_phase",
        "_start",
        "_transport",
        "_wanted",
        "_write",
        "deadline",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None
        self._input = b""
        self._start = 0  # of what is not served yet, in the input
        self._wanted = 0  # bytes of input without which looking at it again is useless
        self._head: Head | None = None  # of a request whose chunked body arrives
        self._chunked: ChunkedBody | None = None
        self._parked: tuple[Head, bytes] | None = None  # a request that must be the first
        self._exchanges: deque[Exchange] = deque()
        self._phase: Phase = IDLE
        self._is_fast = True  # nothing is under way: the fast path may look at what comes
        self._is_lone = False  # the one exchange came the fast path, and nothing has happened since
        self._is_fresh = False  # a request was taken since the deadline was set
        self._is_continued = False  # the request whose body arrives got its 100
        self._is_serving = False
        self._is_yielding = False  # the rest of the input has its turn soon
        self._is_eof = False
        self._is_read_paused = False
        self._is_write_paused = False
        self.deadline = endpoint.idle_deadline

    # ---- events of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the endpoint, or say at once that there are too many."""
        endpoint = self._endpoint
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_BUFFER_BYTES_MAX)
        self._write = self._transport.write
        endpoint.connections.add(self)
        endpoint.counts.connections += 1
        if len(endpoint.connections) > endpoint.connections_max:
            self._refuse(endpoint.replies.unavailable("too many connections"))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the form that asyncio asks for
        """Leave; answers that are still to come have nowhere to go."""
        self._endpoint.forget(self)
        self._transport = None
        self._enter_end()

    def data_received(self, data: bytes) -> None:
        """Serve what came: one plain GET of a record here, the rest elsewhere."""
        if not self._is_fast:
            self._receive(data)
            return
        endpoint = self._endpoint
        line, _, section = data.partition(b" HTTP/1.1\r\n")
        if endpoint.known_sections.get(section) is PLAIN:
            try:
                record = endpoint.find_record(line)
            except Exception:
                record = None  # a busy slot, or a bug: the careful path meets it again and answers
            if record is not None:
                self._write(endpoint.clock.ok + record)
                endpoint.counts.fast_reads += 1
                self.deadline = endpoint.idle_deadline
                return
        write = endpoint.writers.get(line)
        if write is None:
            self._receive(self._serve_plain(data))
        elif not self._serve_write(write, section):
            self._receive(data)

    def eof_received(self) -> bool:
        """Let a client that has sent all it wants read its answers; return False to close."""
        self._is_eof = True
        self._is_lone = False
        return self._phase in (ANSWER, ROOM)

    def pause_writing(self) -> None:
        """Stop serving: the client does not read."""
        self._is_write_paused = True
        self._is_lone = False
        self._settle()

    def resume_writing(self) -> None:
        """Go on."""
        self._is_write_paused = False
        self._serve()

    # ---- events of the endpoint

    def expire(self) -> None:
        """End a phase that has lasted too long."""
        transport = self._transport
        if transport is None:
            return
        if self._phase in (HEAD, BODY):
            self._refuse(self._endpoint.replies.error(408, "the request did not arrive in time"))
        elif self._phase is IDLE and not transport.get_write_buffer_size():
            self._close(transport)
        else:
            transport.abort()

    def close_if_idle(self) -> None:
        """Close unless a request is under way."""
        if self._phase is IDLE:
            self._close(self._transport)

    def _serve_plain(self, data: bytes) -> bytes:
        """Serve the plain GETs of records that the data begins with; return the rest."""
        endpoint = self._endpoint
        known, ok = endpoint.known_sections, endpoint.clock.ok
        answers: list[bytes] = []
        start = 0
        plain = None  # the section last found to be so: a client sends the same one every time
        for head in data.split(b"\r\n\r\n", FAST_READS_MAX)[:-1]:
            line, _, section = head.partition(b" HTTP/1.1\r\n")
            if section != plain:
                if known.get(section + b"\r\n\r\n") is not PLAIN:
                    break
                plain = section
            try:
                record = endpoint.find_record(line)
            except Exception:
                break  # as above
            if record is None:
                break
            answers += (ok, record)
            start += len(head) + 4
        if answers:
            self._write(b"".join(answers))
            endpoint.counts.fast_reads += len(answers) // 2
            self.deadline = endpoint.idle_deadline
        return data[start:]

    def _serve_write(self, write: Write, rest: bytes) -> bool:
        """Hand on the plain POST whose request line is followed by `rest`; False: it is for the careful path."""
        section, separator, body = rest.partition(b"\r\n\r\n")
        fields = self._endpoint.known_sections.get(section + separator)
        if fields is None or fields.body_bytes != len(body) or fields.connection or fields.is_chunked:
            return False
        self._is_lone = True
        self._is_fast = False
        self._phase = ANSWER
        self.deadline = NEVER
        exchange = self._exchange(b"")
        exchange.attempt(write, body, fields.durability, None, exchange)
        return True

    def _answer(self) -> None:
        """Send the answer that has come, if its turn has; with those of a pipeline that come in the same loop turn."""
        if not self._is_lone or self._endpoint.is_stopping:
            if len(self._exchanges) == 1:
                self._serve()
            elif not self._is_serving and not self._is_yielding:
                self._is_yielding = True
                self._endpoint.loop.call_soon(self._serve)
            return
        answer = self._exchanges.pop().answer or b""
        self._is_lone = False
        self._is_fast = True
        self._phase = IDLE
        self.deadline = self._endpoint.idle_deadline
        self._write(answer)  # last: it may find the client slow, and change all that

    # ---- the careful path

    def _receive(self, data: bytes) -> None:
        self._is_lone = False
        if self._phase is END or not data:
            return  # the last answer is given: what still comes is dropped
        self._input = self._input[self._start :] + data
        self._start = 0
        if len(self._input) >= self._wanted:
            self._serve()

    def _serve(self) -> None:
        """Serve what can be served now, send the answers whose turn has come, and see what to wait for."""
        transport = self._transport
        if self._is_serving or self._phase is END or transport is None or transport.is_closing():
            return
        self._is_serving = True
        self._is_yielding = False
        exchanges = self._exchanges
        answers: list[bytes] = []
        size, is_last, is_moving = 0, False, True
        while is_moving and not is_last and size < TURN_BYTES_MAX:
            is_moving = self._serve_next()
            while exchanges and exchanges[0].answer is not None:
                exchange = exchanges.popleft()
                if self._endpoint.is_stopping and not exchanges and self._is_between_requests():
                    exchange.make_last()
                answer = exchange.answer or b""
                answers.append(answer)
                size += len(answer)
                is_last = exchange.is_last
                is_moving = True
        self._is_serving = False
        if size >= TURN_BYTES_MAX and not is_last:
            self._is_yielding = True
            self._endpoint.loop.call_soon(self._serve)
        if answers:
            self._write(b"".join(answers))
        if is_last:
            self._end()
        else:
            self._settle()

    def _serve_next(self) -> bool:
        """Hand the next request to the service; return False when it is not there, or must wait."""
        has_request = self._start < len(self._input) or self._parked is not None
        if not has_request or self._is_write_paused or not self._may_pass():
            return False
        replies = self._endpoint.replies
        try:
            taken = self._parked or self._take()
        except RequestRefused as refused:
            self._refuse(replies.error(refused.status, refused.detail, fields=refused.fields))
            return True
        except Exception:
            log.exception("request could not be read")
            self._endpoint.counts.errors += 1
            self._refuse(replies.unexpected())
            return True
        if taken is None:
            return False
        self._is_fresh = True
        (method, target, fields, _), body = taken
        exchange = self._exchange(b"close" if self._endpoint.is_stopping else fields.connection, method == b"HEAD")
        request = Request(method, target, body, fields.durability, fields.key)
        if exchange.attempt(self._endpoint.service.handle, request, exchange) is AGAIN:
            self._exchanges.pop()
            self._parked = taken
            return False
        self._parked = None
        return True

    def _is_between_requests(self) -> bool:
        """Return whether nothing of a further request is there."""
        is_under_way = self._wanted or self._chunked is not None or self._parked is not None
        return not is_under_way and self._start == len(self._input)

    def _may_pass(self) -> bool:
        """Return whether one more request may be served beside those that are not answered."""
        exchanges = self._exchanges
        if not exchanges:
            return True
        last = exchanges[-1]
        return not (last.is_alone or last.is_last or self._parked or len(exchanges) >= PIPELINE_MAX)

    def _take(self) -> tuple[Head, bytes] | None:
        """Take the next request from the input when it is complete. Raises `RequestRefused`."""
        if self._chunked is not None:
            return self._take_chunks(self._chunked)
        data = self._input
        while data.startswith(b"\r\n", self._start):  # RFC 9112 section 2.2: some clients send one after a body
            self._start += 2
        if self._start == len(data):
            return None
        head = self._endpoint.heads.read(data, self._start)
        if head is None:
            return None
        if head.fields.is_chunked:
            self._head, self._chunked = head, ChunkedBody()
            self._start = head.end
            taken = self._take_chunks(self._chunked)
            if taken is None:
                self._continue(head)
            return taken
        end = head.end + head.fields.body_bytes
        if len(data) < end:
            self._wanted = end - self._start
            self._continue(head)
            return None
        self._wanted = 0
        self._start = end
        self._is_continued = False
        return head, data[head.end : end]

    def _take_chunks(self, chunked: ChunkedBody) -> tuple[Head, bytes] | None:
        self._start = chunked.feed(self._input, self._start)
        if not chunked.is_complete or self._head is None:
            return None
        head, self._head, self._chunked = self._head, None, None
        self._is_continued = False
        return head, bytes(chunked.body)

    def _continue(self, head: Head) -> None:
        """Tell a client that waits for it to send the body, in its turn."""
        if head.fields.expects_continue and not self._is_continued:
            self._is_continued = True
            self._exchange(b"").answer = CONTINUE

    def _exchange(self, connection_option: bytes, is_head: bool = False) -> Exchange:
        endpoint, exchanges = self._endpoint, self._exchanges
        exchange = Exchange(endpoint.replies, endpoint.counts, self._answer, not exchanges, is_head, connection_option)
        exchanges.append(exchange)
        return exchange

    def _refuse(self, answer: bytes) -> None:
        """Give the last answer of this connection, after those that are to come."""
        self._exchange(b"close").resolve(answer)

    def _settle(self) -> None:
        """Name what the connection waits for now, and give that a deadline."""
        transport = self._transport
        if transport is None or self._phase is END or transport.is_closing():
            return
        unserved = len(self._input) - self._start
        if not unserved:
            self._input, self._start = b"", 0
        phase = self._next_phase(unserved)
        if self._is_eof and phase in (IDLE, HEAD, BODY):
            self._close(transport)
            return
        if phase is not self._phase or self._is_fresh:
            self.deadline = self._endpoint.deadline(phase)
        self._phase = phase
        self._is_fresh = False
        self._is_fast = phase is IDLE
        self._pause_reading(phase is ROOM or (phase is ANSWER and unserved >= READ_AHEAD_BYTES_MAX))

    def _next_phase(self, unserved: int) -> Phase:
        if self._is_write_paused:
            return ROOM
        if self._exchanges or self._is_yielding:
            return ANSWER
        if self._chunked is not None or self._wanted:
            return BODY
        return HEAD if unserved else IDLE

    def _pause_reading(self, is_wanted: bool) -> None:
        if is_wanted is not self._is_read_paused and self._transport is not None and not self._is_eof:
            self._is_read_paused = is_wanted
            if is_wanted:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _end(self) -> None:
        """End the connection after its last answer: say so, and read on until the client has seen it."""
        transport = self._transport
        if transport is None or self._is_eof or not transport.can_write_eof():
            self._close(transport)
            return
        self._enter_end()
        self._pause_reading(False)
        transport.write_eof()

    def _close(self, transport: asyncio.Transport | None) -> None:
        self._enter_end()
        if transport is not None:
            transport.close()

    def _enter_end(self) -> None:
        self._phase = END
        self._is_fast = self._is_lone = False
        self.deadline = self._endpoint.deadline(END)
        self._exchanges.clear()
        self._input, self._start, self._wanted = b"", 0, 0
        self._parked = self._head = self._chunked = None
