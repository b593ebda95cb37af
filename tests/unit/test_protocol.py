"""The connection: hostile input, order, limits, deadlines, back-pressure, failure."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from server.commands import Kind, Outcome
from server.http import chunked as chunked_module
from server.http import endpoint, protocol, request_head
from server.http.replies import CONTINUE
from tests.http_fakes import NOW, FakeClient, FakeServer, chunked, create_user, get, parse_answers, post

BODY_MAX = request_head.BODY_BYTES_MAX
SECTION_MAX = request_head.SECTION_BYTES_MAX
TARGET_MAX = request_head.TARGET_BYTES_MAX
GOOD = get("/user/1")
H = b"Host: shop\r\n"
CREATE = create_user(7)


@pytest.fixture
def server() -> FakeServer:
    server = FakeServer()
    server.add(Kind.USER, 1, b'{"id":1,"username":"ann","email":"ann@example.com"}')
    server.add(Kind.USER, 2, b'{"id":2,"username":"bob","email":"bob@example.com"}')
    server.queue.is_quick = True
    return server


def line(request_line: str, *lines: str) -> bytes:
    return "\r\n".join([request_line, *(lines or ("Host: shop",)), "", ""]).encode("latin-1")


def fields(*lines: str) -> bytes:
    return line("GET /user/1 HTTP/1.1", *lines)


# what is sent, the statuses of the answers, and whether the connection ends; every line followed by a good request
REQUESTS: dict[str, tuple[bytes, list[int], bool]] = {
    "good": (GOOD, [200], False),
    "empty lines before": (b"\r\n\r\n" + GOOD, [200], False),
    "head": (get("/user/1", method="HEAD"), [200], False),
    "query": (get("/user/1?a=b/c"), [200], False),
    "absolute form": (get("http://shop/user/1"), [200], False),
    "absolute form without path": (get("http://shop"), [404], False),
    "escapes": (get("/us%65r/%31"), [200], False),
    "broken escape": (get("/user/%zz"), [400], False),
    "escape that is no UTF-8": (get("/user/%ff"), [400], False),
    "fragment": (get("/user/1#top"), [400], False),
    "asterisk": (get("*", method="OPTIONS"), [404], False),
    "no path": (get("user/1"), [400], False),
    # request line
    "no version": (line("GET /user/1"), [400], True),
    "lower case version": (line("GET /user/1 http/1.1"), [400], True),
    "HTTP/2.0": (line("GET /user/1 HTTP/2.0"), [505], True),
    "HTTP/1.2": (line("GET /user/1 HTTP/1.2"), [505], True),
    "HTTP/0.9": (line("GET /user/1 HTTP/0.9"), [505], True),
    "RTSP": (line("GET /user/1 RTSP/1.0"), [505], True),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [505], True),
    "long version": (line("GET /user/1 HTTP/1.10"), [400], True),
    "two spaces": (line("GET  /user/1 HTTP/1.1"), [400], True),
    "space in target": (line("GET /user/ 1 HTTP/1.1"), [400], True),
    "tab": (line("GET\t/user/1 HTTP/1.1"), [400], True),
    "leading space": (line(" GET /user/1 HTTP/1.1"), [400], True),
    "no method": (line("/user/1 HTTP/1.1"), [400], True),
    "unknown method": (line("BREW /user/1 HTTP/1.1"), [501], True),
    "lower case method": (line("get /user/1 HTTP/1.1"), [501], True),
    "method that is no token": (line("G(T /user/1 HTTP/1.1"), [400], True),
    "known method": (get("/user/1", method="DELETE"), [405], False),
    "connect": (line("CONNECT shop:80 HTTP/1.1"), [405], True),
    "latin-1 in target": (line("GET /user/\xe9 HTTP/1.1"), [400], True),
    "NUL in target": (line("GET /user/\0 HTTP/1.1"), [400], True),
    "bare LF": (b"GET /user/1 HTTP/1.1\nHost: shop\n\n", [400], True),
    "bare CR": (b"GET /user/1 HTTP/1.1\rHost: shop\r\n\r\n", [400], True),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [400], True),
    # header section
    "no host": (line("GET /user/1 HTTP/1.1", "A: b"), [400], True),
    "no fields": (b"GET /user/1 HTTP/1.1\r\n\r\n", [400], True),
    "two hosts": (fields("Host: shop", "Host: shop"), [400], True),
    "empty host": (fields("Host:"), [200], False),
    "host with port": (fields("Host: shop:8000"), [200], False),
    "host IPv6": (fields("Host: [::1]:8000"), [200], False),
    "host with path": (fields("Host: shop/user"), [400], True),
    "host with user": (fields("Host: ann@shop"), [400], True),
    "host with space": (fields("Host: a b"), [400], True),
    "host list": (fields("Host: a,b"), [200], False),  # a comma is allowed in a registered name (RFC 3986)
    "bare LF in section": (b"GET /user/1 HTTP/1.1\r\nHost: shop\nA: b\r\n\r\n", [400], True),
    "bare LF at the end": (b"GET /user/1 HTTP/1.1\r\nHost: shop\n\n", [400], True),
    "folded": (fields("Host: shop", "A: b", " c"), [400], True),
    "fold first": (fields(" A: b", "Host: shop"), [400], True),
    "space before colon": (fields("Host : shop"), [400], True),
    "no colon": (fields("Host: shop", "broken"), [400], True),
    "no name": (fields("Host: shop", ": b"), [400], True),
    "NUL in value": (fields("Host: shop", "A: \0"), [400], True),
    "control in value": (fields("Host: shop", "A: \x01"), [400], True),
    "latin-1 in value": (fields("Host: shop", "A: \xe9"), [200], False),
    "latin-1 in name": (fields("Host: shop", "\xe9: a"), [400], True),
    "upgrade": (fields("Host: shop", "Connection: upgrade", "Upgrade: websocket"), [200], False),
    "h2c": (fields("Host: shop", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"), [200], False),
    "durability": (post("/user", CREATE, "Durability: memory"), [200], False),
    "bad durability": (post("/user", CREATE, "Durability: Memory"), [400], False),
    "two durabilities": (post("/user", CREATE, "Durability: memory", "Durability: memory"), [400], False),
    # length of the body
    "body": (post("/user", CREATE), [200], False),
    "CRLF after a body": (post("/user", CREATE) + b"\r\n", [200], False),
    "GET with body": (get("/user/1", "Content-Length: 3") + b"abc", [200], False),
    "no length": (line("POST /user HTTP/1.1"), [400], False),  # no body: not valid JSON
    "length with sign": (fields("Host: shop", "Content-Length: +5"), [400], True),
    "negative length": (fields("Host: shop", "Content-Length: -5"), [400], True),
    "hexadecimal length": (fields("Host: shop", "Content-Length: 0x5"), [400], True),
    "empty length": (fields("Host: shop", "Content-Length:"), [400], True),
    "length list": (fields("Host: shop", "Content-Length: 5, 5"), [400], True),
    "two lengths": (fields("Host: shop", "Content-Length: 5", "Content-Length: 5"), [400], True),
    "length beyond 64 bits": (fields("Host: shop", "Content-Length: 99999999999999999999"), [400], True),
    "length of 64 bits": (fields("Host: shop", "Content-Length: 18446744073709551615"), [413], True),
    "too long": (fields("Host: shop", f"Content-Length: {BODY_MAX + 1}"), [413], True),
    # codings
    "length and coding": (chunked("/user", b"", "Content-Length: 5"), [400], True),
    "coding and length": (fields("Host: shop", "Content-Length: 5", "Transfer-Encoding: chunked"), [400], True),
    "gzip": (fields("Host: shop", "Transfer-Encoding: gzip"), [501], True),
    "gzip, chunked": (fields("Host: shop", "Transfer-Encoding: gzip, chunked"), [501], True),
    "chunked, gzip": (fields("Host: shop", "Transfer-Encoding: chunked, gzip"), [400], True),
    "identity": (fields("Host: shop", "Transfer-Encoding: identity"), [501], True),
    "xchunked": (fields("Host: shop", "Transfer-Encoding: xchunked"), [501], True),
    "chunked twice": (fields("Host: shop", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), [400], True),
    "vertical tab before chunked": (fields("Host: shop", "Transfer-Encoding: \vchunked"), [400], True),
    "coding in HTTP/1.0": (get("/user/1", "Transfer-Encoding: chunked", version="1.0") + b"0\r\n\r\n", [400], True),
    "chunked": (chunked("/user", b"3\r\n{\"a\r\n3\r\n\":1\r\n1\r\n}\r\n0\r\n\r\n"), [400], False),
    "chunk in capitals": (chunked("/user", b"A\r\n0123456789\r\n0\r\n\r\n"), [400], False),
    "chunk extension": (chunked("/user", b"1;a=\"b\"\r\nx\r\n0;c\r\n\r\n"), [400], False),
    "trailers": (chunked("/user", b"1\r\nx\r\n0\r\nContent-Length: 7\r\nA: b\r\n\r\n"), [400], False),
    "chunked upgrade": (chunked("/user", b"1\r\nx\r\n0\r\n\r\n", "Upgrade: x", "Connection: upgrade"), [400], False),
    "chunked GET": (get("/user/1", "Transfer-Encoding: chunked") + b"0\r\n\r\n", [200], False),
    "chunk size no number": (chunked("/user", b"g\r\n"), [400], True),
    "chunk size empty": (chunked("/user", b"\r\n"), [400], True),
    "chunk size with sign": (chunked("/user", b"+1\r\nx\r\n"), [400], True),
    "chunk size 0x": (chunked("/user", b"0x1\r\nx\r\n"), [400], True),
    "chunk size with space": (chunked("/user", b"1 \r\nx\r\n"), [400], True),
    "chunk size with underscore": (chunked("/user", b"1_0\r\nx\r\n"), [400], True),
    "chunk size huge": (chunked("/user", b"ffffffffffffffff\r\n"), [413], True),
    "chunk size beyond": (chunked("/user", b"f" * 17 + b"\r\n"), [400], True),
    "chunk too long": (chunked("/user", b"1\r\nxy\r\n"), [400], True),
    "chunk too long, then good": (get("/user/1", "Transfer-Encoding: chunked") + b"1\r\nxy\r\n0\r\n\r\n", [400], True),
    "chunk with bare LF": (chunked("/user", b"1\nx\n0\n\n"), [400], True),
    "bad trailer": (chunked("/user", b"0\r\nbroken\r\n\r\n"), [400], True),
    # life of the connection
    "close": (get("/user/1", "Connection: close"), [200], True),
    "close among others": (get("/user/1", "Connection: TE, Close"), [200], True),
    "HTTP/1.0": (get("/user/1", version="1.0"), [200], True),
    "HTTP/1.0 without host": (b"GET /user/1 HTTP/1.0\r\n\r\n", [200], True),
    "HTTP/1.0 two hosts": (line("GET /user/1 HTTP/1.0", "Host: a", "Host: a"), [400], True),
    "HTTP/1.0 keep-alive": (get("/user/1", "Connection: keep-alive", version="1.0"), [200], False),
    "expect": (post("/user", CREATE, "Expect: 100-continue"), [200], False),
    "other expectation": (post("/user", CREATE, "Expect: coffee"), [417], True),
    "expect in HTTP/1.0": (post("/user", CREATE, "Expect: coffee", version="1.0"), [200], True),
}  # fmt: skip


def heads_of(data: bytes) -> tuple[int, ...]:
    return (0,) if data.startswith(b"HEAD") else ()


@pytest.mark.parametrize("name", REQUESTS)
def test_request_gets_its_status_and_the_connection_goes_on_or_ends(server: FakeServer, name: str) -> None:
    data, statuses, is_ended = REQUESTS[name]
    client = server.connect()
    client.send(data + GOOD)
    answers = client.take(heads_of(data))
    assert [answer.status for answer in answers] == statuses + ([] if is_ended else [200])
    assert client.is_ended == is_ended
    if is_ended:
        assert answers[-1].fields["connection"] == "close"


@pytest.mark.parametrize("name", REQUESTS)
def test_dripped_request_is_answered_like_a_whole_one(name: str) -> None:
    data, _, is_ended = REQUESTS[name]
    whole, dripped = fresh_server().connect(), fresh_server().connect()
    whole.send(data + GOOD)
    dripped.drip(data + GOOD)
    if is_ended and "detail" in whole.output.decode("latin-1"):  # the first reason found may be another
        assert statuses_of(dripped, data) == statuses_of(whole, data)
    else:
        assert dripped.output.replace(CONTINUE, b"") == whole.output
    assert dripped.is_ended == whole.is_ended


def statuses_of(client: FakeClient, data: bytes) -> list[int]:
    return [answer.status for answer in parse_answers(client.output, heads_of(data))]


def fresh_server() -> FakeServer:
    server = FakeServer()
    server.add(Kind.USER, 1, b'{"id":1}')
    server.add(Kind.USER, 2, b'{"id":2}')
    server.queue.is_quick = True
    return server


PIPELINES = {
    "plain": GOOD + get("/user/2") + GOOD,
    "mixed": post("/user", create_user(9)) + get("/user/9") + get("/user/007") + post("/user", b"{") + GOOD,
    "chunked": chunked("/user", b"2;x\r\n{}\r\n0\r\nA: b\r\n\r\n") + GOOD + get("/nothing", method="POST"),
    "expect": GOOD + post("/user", create_user(9), "Expect: 100-continue") + get("/user/9"),
    "close": GOOD + get("/user/2", "Connection: close") + GOOD,
    "malformed": GOOD + post("/user", create_user(9)) + b"\0" + GOOD,
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline_split_anywhere_is_answered_like_a_whole_one(name: str) -> None:
    data = PIPELINES[name]
    whole = fresh_server().connect()
    whole.send(data)
    assert whole.output
    for position in range(1, len(data)):
        client = fresh_server().connect()
        client.send(data[:position])
        client.send(data[position:])
        assert client.output.replace(CONTINUE, b"") == whole.output, f"split at {position}"
        assert client.is_ended == whole.is_ended, f"split at {position}"


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline_dripped_is_answered_like_a_whole_one(name: str) -> None:
    whole, dripped = fresh_server().connect(), fresh_server().connect()
    whole.send(PIPELINES[name])
    dripped.drip(PIPELINES[name])
    assert dripped.output.replace(CONTINUE, b"") == whole.output


# ---- fast path --------------------------------------------------------------------------------------------------


def test_second_plain_read_takes_the_fast_path_and_answers_the_same(server: FakeServer) -> None:
    client = server.connect()
    first, second = client.request(GOOD), client.request(GOOD)
    assert first == second
    assert server.counts.fast_reads == 1 and server.counts.exchanges == 1


@pytest.mark.parametrize(
    "target",
    ["/user/0", "/user/01", "/user/+1", "/user/1_0", "/user/", "/user/3", "/users/1", "/user/purchased/1", "/"],
)
def test_fast_path_answers_as_the_careful_path(server: FakeServer, target: str) -> None:
    careful, fast = server.connect(), server.connect()
    expected = careful.request(get(target, "Unknown: section"))
    fast.send(GOOD)
    fast.take()
    assert fast.request(get(target)) == expected


@pytest.mark.parametrize(
    "tail", [b"GET /user/1", b"GET /user/1 HTTP/1.1\r\n", b"\r\n", b"GET /user/1 HTTP/1.0\r\n\r\n"]
)
def test_fast_path_leaves_what_is_not_plain(server: FakeServer, tail: bytes) -> None:
    client = server.connect()
    client.request(GOOD)
    client.send(GOOD + GOOD + tail)
    assert [answer.status for answer in client.take()] == [200] * (3 if tail.endswith(b"1.0\r\n\r\n") else 2)


def test_pipelined_plain_reads_are_written_at_once(server: FakeServer) -> None:
    client = server.connect()
    client.request(GOOD)
    writes = client.transport.writes
    client.send(GOOD * 16)
    assert len(client.take()) == 16
    assert client.transport.writes == writes + 1


def test_long_pipeline_is_answered_over_turns(server: FakeServer) -> None:
    server.add(Kind.USER, 1, b"x" * 50_000)
    client = server.connect()
    client.send(GOOD * 40)
    while server.loop.calls:
        server.loop.run_calls()
    assert len(client.take()) == 40
    assert client.transport.writes > 1


def test_known_sections_are_bounded(server: FakeServer) -> None:
    client = server.connect()
    for number in range(request_head.KNOWN_SECTIONS_MAX * 2 + 5):
        assert client.request(get("/user/1", f"Id: {number}")).status == 200
    assert len(server.endpoint.heads.known) <= request_head.KNOWN_SECTIONS_MAX


def test_long_section_is_not_kept(server: FakeServer) -> None:
    server.connect().request(get("/user/1", "A: " + "x" * request_head.KNOWN_SECTION_BYTES_MAX))
    assert not server.endpoint.heads.known


def test_section_with_a_key_is_not_kept(server: FakeServer) -> None:
    assert server.connect().request(get("/user/1", "Idempotency-Key: 5")).status == 200
    assert not server.endpoint.heads.known


# ---- fast path of writes ----------------------------------------------------------------------------------------


@pytest.fixture
def warm(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """A client whose POST has been accepted before; the careful path of heads is closed now."""
    client = server.connect()
    assert client.request(post("/user", create_user(5))).status == 200
    server.queue.is_quick = False
    monkeypatch.setattr(server.endpoint.heads, "read", lambda *_: pytest.fail("the careful path"))
    return client


def test_plain_write_that_was_accepted_before_takes_the_fast_path(server: FakeServer, warm: FakeClient) -> None:
    for id in (6, 7, 8):
        warm.send(post("/user", create_user(id)))
        assert warm.output == b""
        server.queue.answer()
        [answer] = warm.take()
        assert answer.json["id"] == id and answer.fields["write-seq"] == str(id - 4)
    warm.send(post("/product", create_user(6)))  # another path, the same section
    assert [answer.status for answer in warm.take()] == [400]
    for outcome, status in ((Outcome.EXISTS, 409), (Outcome.MEMORY_FULL, 507), (None, 504)):
        warm.send(post("/user", create_user(9)))
        server.queue.answer(outcome)
        assert [answer.status for answer in warm.take()] == [status]
    server.queue.is_full = True
    assert warm.request(post("/user", create_user(9))).status == 503
    assert (server.counts.client_errors, server.counts.server_errors, server.counts.exchanges) == (2, 3, 9)


@pytest.mark.parametrize("rest", [GOOD, post("/user", create_user(7)), b"GET /user/1 HT", b"\r\n", post("/user", b"")])
def test_what_follows_a_fast_write_waits_for_it(server: FakeServer, rest: bytes) -> None:
    both = server.connect()
    both.request(post("/user", create_user(5)))
    server.queue.is_quick = False
    both.send(post("/user", create_user(6)))
    both.send(rest)
    assert both.output == b"" and both.transport.writes == 1
    server.queue.answer()
    if server.queue.submitted:
        server.queue.answer()
    if rest == b"GET /user/1 HT":
        both.send(b"TP/1.1\r\nHost: shop\r\n\r\n")
    statuses = [answer.status for answer in both.take()]
    assert statuses == ([200] if rest == b"\r\n" else [200, 400] if rest == post("/user", b"") else [200, 200])


@pytest.mark.parametrize("split_at", [1, 30, 60, -30, -1])
def test_write_in_two_pieces_is_one_write(server: FakeServer, split_at: int) -> None:
    client = server.connect()
    for id in (5, 6):
        request = post("/user", create_user(id))
        client.send(request[:split_at])
        client.send(request[split_at:])
        assert [answer.json["id"] for answer in client.take()] == [id]


def test_chunked_write_whose_head_comes_alone_waits_for_its_body(server: FakeServer) -> None:
    client = server.connect()
    for id in (5, 6):
        body = json.dumps(create_user(id)).encode()
        head, _, chunks = chunked("/user", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)).partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert client.output == b""
        assert client.request(chunks).json["id"] == id


@pytest.mark.parametrize(
    ("request_bytes", "status", "is_ended"),
    [
        (post("/user", create_user(6), "Connection: close"), 200, True),
        (post("/user", create_user(6), version="1.0"), 200, True),
        (post("/user", create_user(6), "Idempotency-Key: a"), 200, False),
        (post("/user", create_user(6), "Durability: memory"), 200, False),
        (post("/user", create_user(6), "Durability: never"), 400, False),
        (chunked("/user", b"3\r\n{\"a\r\n3\r\n\":1\r\n1\r\n}\r\n0\r\n\r\n"), 400, False),
    ],
)
def test_write_is_answered_alike_on_both_paths(
    server: FakeServer, request_bytes: bytes, status: int, is_ended: bool
) -> None:
    for client in (server.connect(), server.connect()):
        assert client.request(request_bytes).status == status and client.is_ended is is_ended
        server.table.bodies.pop((Kind.USER, 6), None)


def test_client_that_ends_its_side_reads_the_answer_of_a_fast_write(server: FakeServer, warm: FakeClient) -> None:
    warm.send(post("/user", create_user(6)))
    assert warm.connection.eof_received()
    server.queue.answer()
    assert [answer.status for answer in warm.take()] == [200] and warm.is_ended


def test_answer_of_a_fast_write_to_a_client_that_left_goes_nowhere(server: FakeServer, warm: FakeClient) -> None:
    warm.send(post("/user", create_user(6)))
    warm.connection.connection_lost(None)
    server.queue.answer()
    assert warm.output == b"" and not server.endpoint.connections


def test_fast_write_has_no_deadline_and_its_connection_has_one_again(server: FakeServer, warm: FakeClient) -> None:
    warm.send(post("/user", create_user(6)))
    server.tick(1000)
    assert not warm.is_ended
    server.queue.answer()
    assert len(warm.take()) == 1
    server.tick(int(server.config.idle_timeout_s) + 3)
    assert warm.is_ended


def test_client_that_does_not_read_the_answer_of_a_fast_write_stops_the_reading(
    server: FakeServer, warm: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = warm.connection._write
    warm.send(post("/user", create_user(6)))
    monkeypatch.setattr(warm.connection, "_write", lambda data: (write(data), warm.connection.pause_writing()))
    server.queue.answer()
    assert len(warm.take()) == 1 and not warm.transport.is_reading
    monkeypatch.undo()
    warm.connection.resume_writing()
    assert warm.request(GOOD).status == 200


def test_client_that_stops_reading_before_the_answer_of_a_fast_write_is_not_read(
    server: FakeServer, warm: FakeClient
) -> None:
    warm.send(post("/user", create_user(6)))
    warm.connection.pause_writing()
    server.queue.answer()
    assert len(warm.take()) == 1 and not warm.transport.is_reading
    warm.connection.resume_writing()
    assert warm.transport.is_reading


def test_stop_lets_a_fast_write_end(server: FakeServer, warm: FakeClient) -> None:
    warm.send(post("/user", create_user(6)))
    server.endpoint.stop(lambda: None)
    assert not warm.is_ended
    server.queue.answer()
    [answer] = warm.take()
    assert answer.status == 200 and answer.fields["connection"] == "close"
    assert warm.is_ended


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_answers_that_come_after_a_stop_are_the_last(server: FakeServer, version: str) -> None:
    server.queue.is_quick = False
    client = server.connect()
    keep_alive = ["Connection: keep-alive"] if version == "1.0" else []
    for id in (6, 7):
        client.send(post("/user", create_user(id), *keep_alive, version=version))
    server.endpoint.stop(lambda: None)
    for _ in (6, 7):
        server.queue.answer()
    first, second = client.take()
    assert first.fields.get("connection") == ("keep-alive" if keep_alive else None)
    assert second.fields["connection"] == "close" and client.is_ended


def test_stop_waits_for_a_body_that_is_under_way(server: FakeServer) -> None:
    client = server.connect()
    head, _, body = post("/user", create_user(8), "Expect: 100-continue").partition(b"\r\n\r\n")
    server.endpoint.is_stopping = True
    client.send(head + b"\r\n\r\n")
    assert client.output == CONTINUE and not client.is_ended
    assert client.request(body).json["id"] == 8
    assert client.is_ended


# ---- order ------------------------------------------------------------------------------------------------------


def test_read_behind_a_write_waits_and_sees_it(server: FakeServer) -> None:
    server.queue.is_quick = False
    client = server.connect()
    client.send(GOOD + post("/user", create_user(9)) + get("/user/9") + get("/user/2"))
    assert [answer.json["id"] for answer in client.take()] == [1]
    server.queue.answer()
    assert [answer.json["id"] for answer in client.take()] == [9, 9, 2]


def test_pipelined_writes_are_in_flight_together_and_answered_in_order(server: FakeServer) -> None:
    server.queue.is_quick = False
    client = server.connect()
    client.send(b"".join(post("/user", create_user(id)) for id in (7, 8, 9)))
    assert [command.id for command in server.queue.commands] == [7, 8, 9]  # type: ignore[union-attr]
    server.queue.answer(index=2)
    server.queue.answer(index=1)
    assert client.output == b""
    server.queue.answer()
    assert [answer.json["id"] for answer in client.take()] == [7, 8, 9]


def test_error_behind_a_write_waits_for_its_turn(server: FakeServer) -> None:
    server.queue.is_quick = False
    client = server.connect()
    client.send(post("/user", create_user(7)) + post("/user", b"no JSON") + get("/nothing"))
    assert client.output == b""
    server.queue.answer()
    assert [answer.status for answer in client.take()] == [200, 400, 404]


def test_malformed_request_ends_the_connection_after_the_answers_before_it(server: FakeServer) -> None:
    server.queue.is_quick = False
    client = server.connect()
    client.send(post("/user", create_user(7)) + post("/user", create_user(8)) + b"\0\r\n\r\n" + GOOD)
    assert client.output == b"" and not client.is_ended
    server.queue.answer()
    server.queue.answer(Outcome.EXISTS)
    assert [answer.status for answer in client.take()] == [200, 409, 400]
    assert client.is_ended


def test_continue_waits_for_the_answers_before_it(server: FakeServer) -> None:
    server.queue.is_quick = False
    client = server.connect()
    head, _, body = post("/user", create_user(8), "Expect: 100-continue").partition(b"\r\n\r\n")
    client.send(post("/user", create_user(7)) + head + b"\r\n\r\n")
    assert client.output == b""
    server.queue.answer()
    assert client.output.endswith(CONTINUE)
    client.send(body[:5])
    client.send(body[5:])
    server.queue.answer()
    assert client.output.count(CONTINUE) == 1
    assert [answer.status for answer in client.take()] == [200, 200]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_every_request_that_expects_it_gets_its_continue(server: FakeServer, is_chunked: bool) -> None:
    client = server.connect()
    fields = ["Expect: 100-continue", "Transfer-Encoding: chunked" if is_chunked else "Content-Length: 5"]
    for count in (1, 2):
        client.send(get("/user/1", *fields))
        assert client.output.count(CONTINUE) == count
        client.send(b"0\r\n\r\n")
    assert [answer.status for answer in client.take()] == [200, 200]


def test_refused_body_gets_no_continue(server: FakeServer) -> None:
    client = server.connect()
    client.send(get("/user", f"Content-Length: {BODY_MAX + 1}", "Expect: 100-continue", method="POST"))
    assert CONTINUE not in client.output
    assert [answer.status for answer in client.take()] == [413]


def test_answers_of_the_manager_after_the_client_left_are_dropped(server: FakeServer) -> None:
    server.queue.is_quick = False
    client = server.connect()
    client.send(post("/user", create_user(7)) + GOOD)
    client.connection.connection_lost(None)
    server.queue.answer()
    assert client.output == b"" and not server.endpoint.connections


def test_pipeline_depth_is_bounded_and_reading_pauses(server: FakeServer) -> None:
    server.queue.is_quick = False
    client = server.connect()
    one = post("/user", create_user(7))
    count = protocol.READ_AHEAD_BYTES_MAX // len(one) + protocol.PIPELINE_MAX + 2
    client.send(one * count)
    assert len(server.queue.submitted) == protocol.PIPELINE_MAX
    assert not client.transport.is_reading
    answered = 0
    while server.queue.submitted:
        server.queue.answer()
        assert len(server.queue.submitted) <= protocol.PIPELINE_MAX
        answered += 1
    assert answered == count == len(client.take())
    assert client.transport.is_reading


def test_answer_to_head_has_no_body_and_the_length_of_get(server: FakeServer) -> None:
    client = server.connect()
    got, head = client.request(GOOD), client.request(get("/user/1", method="HEAD"), is_head=True)
    assert head == got._replace(body=b"")
    assert client.request(get("/user/5", method="HEAD"), is_head=True).status == 404


def test_keep_alive_of_http_1_0_is_said(server: FakeServer) -> None:
    client = server.connect()
    answer = client.request(get("/user/1", "Connection: Keep-Alive", version="1.0"))
    assert answer.fields["connection"] == "keep-alive" and not client.is_ended
    assert client.request(get("/user/1", version="1.0")).fields["connection"] == "close"
    assert client.is_ended


def test_date_is_that_of_the_clock(server: FakeServer) -> None:
    assert NOW == 784_111_777.0
    assert server.connect().request(GOOD).fields["date"] == "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize("versions", [("1.1", "1.0"), ("1.0", "1.1")])
def test_known_section_means_what_its_version_says(server: FakeServer, versions: tuple[str, str]) -> None:
    for version in versions:
        client = server.connect()
        client.request(get("/user/1", version=version))
        assert client.is_ended == (version == "1.0")


# ---- limits -----------------------------------------------------------------------------------------------------


def padded_section(size: int) -> bytes:
    start = b"Host: shop\r\nA: "
    return start + b"x" * (size - len(start) - 4) + b"\r\n\r\n"


FULL_CHUNK = b"%x\r\n%b\r\n" % (BODY_MAX, b" " * BODY_MAX)
LINE_MAX = chunked_module.LINE_BYTES_MAX
AT_LIMIT = {
    "target": lambda more: b"GET /" + b"x" * (TARGET_MAX - 1 + more) + b" HTTP/1.1\r\n" + H + b"\r\n",
    "section": lambda more: b"GET /none HTTP/1.1\r\n" + padded_section(SECTION_MAX + more),
    "fields": lambda more: get("/none", *["A: b"] * (request_head.FIELDS_MAX - 1 + more)),
    "body": lambda more: post("/user", b" " * (BODY_MAX + more)),
    "chunks": lambda more: chunked("/user", FULL_CHUNK + b"1\r\n \r\n" * more + b"0\r\n\r\n"),
    "one chunk": lambda more: chunked("/user", b"%x\r\n%b\r\n0\r\n\r\n" % (BODY_MAX + more, b" " * (BODY_MAX + more))),
    "chunk line": lambda more: chunked("/user", b"0;" + b"x" * (LINE_MAX - 2 + more) + b"\r\n\r\n"),
    "trailers": lambda more: chunked("/user", b"0\r\n" + b"A: b\r\n" * (request_head.FIELDS_MAX + more) + b"\r\n"),
    "trailer section": lambda more: chunked("/user", b"0\r\nA:" + b"x" * (SECTION_MAX - 4 + more) + b"\r\n\r\n"),
}  # fmt: skip
REFUSED = {"target": 414, "section": 431, "fields": 431, "trailers": 431, "trailer section": 431}


@pytest.mark.parametrize("piece_bytes", [1 << 30, 1000, 1])
@pytest.mark.parametrize("name", AT_LIMIT)
def test_limit_is_exact_however_the_request_arrives(server: FakeServer, name: str, piece_bytes: int) -> None:
    for more, status in ((0, 400 if "/user" in AT_LIMIT[name](0)[:20].decode() else 404), (1, REFUSED.get(name, 413))):
        client = server.connect()
        data = AT_LIMIT[name](more)
        for piece in pieces(data, piece_bytes):
            client.send(piece)
        assert [answer.status for answer in client.take()] == [status], f"limit + {more}"
        assert client.is_ended == bool(more)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def test_endless_request_line_is_refused(server: FakeServer) -> None:
    client = server.connect()
    for _ in range(20):
        client.send(b"x" * 1000)
    assert [answer.status for answer in client.take()] == [414]


def test_body_in_chunks_of_one_byte_is_taken(server: FakeServer) -> None:
    client = server.connect()
    client.send(chunked("/user", b"1\r\n \r\n" * BODY_MAX + b"0\r\n\r\n"))
    assert [answer.status for answer in client.take()] == [400]
    assert not client.is_ended


def test_chunk_overhead_is_bounded(server: FakeServer) -> None:
    client = server.connect()
    client.send(chunked("/user", b"1;" + b"x" * 900 + b"\r\n"))
    for _ in range(1000):
        if not client.is_ended:
            client.send(b"x\r\n1;" + b"x" * 900 + b"\r\n")
    assert [answer.status for answer in client.take()] == [413]


def test_one_connection_too_many_gets_503(server: FakeServer) -> None:
    server.endpoint.connections_max = 1
    first, second = server.connect(), server.connect()
    assert first.request(GOOD).status == 200
    [answer] = second.take()
    assert answer.status == 503 and "retry-after" in answer.fields and second.is_ended
    first.connection.connection_lost(None)
    second.connection.connection_lost(None)
    assert server.connect().request(GOOD).status == 200


# ---- deadlines --------------------------------------------------------------------------------------------------


def seconds(value: float) -> int:
    """Ticks in which a deadline of so many seconds is surely over; one less and it is surely not."""
    return int(value) + 1


def test_idle_connection_is_closed_at_its_deadline(server: FakeServer) -> None:
    client = server.connect()
    client.request(GOOD)
    client.request(GOOD)
    server.tick(seconds(server.config.idle_timeout_s) - 1)
    assert not client.is_ended
    server.tick()
    assert client.transport.is_closed and client.output == b""


@pytest.mark.parametrize("depth", [1, 3])
def test_request_on_the_fast_path_moves_the_idle_deadline(server: FakeServer, depth: int) -> None:
    client = server.connect()
    client.request(GOOD)
    for _ in range(10):
        server.tick(20)
        client.send(GOOD * depth)
        assert len(client.take()) == depth
    assert server.counts.fast_reads == 10 * depth


def test_dripping_does_not_move_the_header_deadline(server: FakeServer) -> None:
    client = server.connect()
    client.send(b"GET /user/1 HTTP/1.1\r\n")
    for _ in range(seconds(server.config.header_timeout_s) - 1):
        client.send(b"A: b\r\n")
        server.tick()
    assert client.output == b""
    server.tick()
    assert [answer.status for answer in client.take()] == [408]
    assert client.is_ended


def test_empty_lines_do_not_move_the_idle_deadline(server: FakeServer) -> None:
    client = server.connect()
    for _ in range(seconds(server.config.idle_timeout_s)):
        client.send(b"\r\n")
        server.tick()
    assert client.transport.is_closed


@pytest.mark.parametrize("start", [get("/user", "Content-Length: 500", method="POST"), chunked("/user", b"ff\r\n")])
def test_dripping_does_not_move_the_body_deadline(server: FakeServer, start: bytes) -> None:
    client = server.connect()
    client.send(start)
    for _ in range(seconds(server.config.body_timeout_s) - 1):
        client.send(b"x")
        server.tick()
    assert client.output == b""
    server.tick()
    assert [answer.status for answer in client.take()] == [408]


def test_next_partial_request_has_a_deadline_of_its_own(server: FakeServer) -> None:
    client = server.connect()
    ticks = seconds(server.config.header_timeout_s) - 1
    client.send(b"GET /user/1 HTTP/1.1\r\n")
    server.tick(ticks)
    client.send(H + b"\r\n" + b"GET /user/1 HTTP/1.1\r\n")
    server.tick(ticks)
    client.send(H + b"\r\n")
    assert [answer.status for answer in client.take()] == [200, 200]


def test_waiting_for_the_manager_has_no_deadline_of_the_connection(server: FakeServer) -> None:
    server.queue.is_quick = False
    client = server.connect()
    client.send(post("/user", create_user(7)))
    server.tick(1000)
    server.queue.answer(None)
    assert [answer.status for answer in client.take()] == [504]


def test_client_that_does_not_read_is_cut_off(server: FakeServer) -> None:
    client = server.connect()
    client.request(GOOD)
    client.connection.pause_writing()
    server.tick(seconds(server.config.idle_timeout_s))
    assert client.transport.is_aborted


def test_idle_client_that_leaves_its_last_answer_unread_is_cut_off(server: FakeServer) -> None:
    client = server.connect()
    client.request(GOOD)
    client.transport.buffer_size = 100
    server.tick(seconds(server.config.idle_timeout_s))
    assert client.transport.is_aborted


# ---- back-pressure and ends -------------------------------------------------------------------------------------


def test_nothing_is_served_while_the_client_does_not_read(server: FakeServer) -> None:
    client = server.connect()
    client.request(GOOD)
    client.connection.pause_writing()
    assert not client.transport.is_reading
    client.connection.data_received(GOOD * 3)  # was on its way
    assert client.output == b""
    client.connection.resume_writing()
    assert len(client.take()) == 3
    assert client.transport.is_reading


def test_end_lingers_until_the_client_has_sent_all(server: FakeServer) -> None:
    client = server.connect()
    client.send(post("/user", b"x" * (BODY_MAX + 1)))
    assert client.transport.has_eof and not client.transport.is_closed
    client.send(b"x" * 100_000)
    assert [answer.status for answer in client.take()] == [413]
    assert not client.connection.eof_received()  # the transport closes


def test_lingering_is_bounded(server: FakeServer) -> None:
    client = server.connect()
    client.send(b"\0\r\n\r\n")
    for _ in range(seconds(endpoint.LINGER_S)):
        client.send(b"more")
        server.tick()
    assert client.transport.is_aborted


def test_client_that_closed_its_side_gets_its_answers(server: FakeServer) -> None:
    server.queue.is_quick = False
    client = server.connect()
    client.send(post("/user", create_user(7)) + GOOD)
    assert client.connection.eof_received()
    server.queue.answer()
    assert [answer.status for answer in client.take()] == [200, 200]
    assert client.transport.is_closed


def test_end_of_an_idle_client_closes(server: FakeServer) -> None:
    client = server.connect()
    client.request(GOOD)
    assert not client.connection.eof_received()


def test_stop_answers_what_is_in_flight_and_closes(server: FakeServer) -> None:
    server.queue.is_quick = False
    left: list[bool] = []
    busy, idle, active = server.connect(), server.connect(), server.connect()
    busy.send(post("/user", create_user(7)) + GOOD)
    idle.request(GOOD)
    server.tick(3)
    active.request(GOOD)
    server.endpoint.stop(lambda: left.append(True))
    assert idle.is_ended and not active.is_ended
    assert active.request(GOOD).fields["connection"] == "close"
    server.queue.answer()
    first, second = busy.take()
    assert "connection" not in first.fields and second.fields["connection"] == "close"
    for client in (busy, idle, active):
        assert client.is_ended and not left
        client.connection.connection_lost(None)
    assert left == [True]


def test_stop_closes_the_idle_after_a_grace(server: FakeServer) -> None:
    client = server.connect()
    client.request(GOOD)
    server.endpoint.stop(lambda: None)
    assert not client.is_ended
    server.endpoint.close_idle(endpoint.NEVER)
    assert client.transport.is_closed


# ---- failure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm_up", [0, 1])
def test_failing_handler_answers_500_and_the_connection_lives(
    server: FakeServer, caplog: pytest.LogCaptureFixture, warm_up: int
) -> None:
    client = server.connect()
    client.send(GOOD * warm_up)
    client.take()
    server.table.error = ZeroDivisionError("secret detail")
    with caplog.at_level(logging.ERROR):
        answer = client.request(GOOD)
    assert answer.status == 500 and b"secret" not in answer.body and b"Traceback" not in answer.body
    assert "secret detail" in caplog.text and "Traceback" in caplog.text
    assert server.counts.errors == server.counts.server_errors == 1
    server.table.error = None
    assert client.request(GOOD).status == 200


def test_failing_answer_of_a_write_is_a_500_in_its_turn(server: FakeServer) -> None:
    server.queue.is_quick = False
    client = server.connect()
    client.send(post("/user", create_user(7)) + post("/user", create_user(8)))
    server.queue.submitted.pop(0).on_reply("nonsense")  # type: ignore[arg-type]
    server.queue.answer()
    assert [answer.status for answer in client.take()] == [500, 200]


def test_failing_reader_of_requests_answers_500(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(server.endpoint.heads, "read", fail)
    client = server.connect()
    client.send(GOOD)
    assert [answer.status for answer in client.take()] == [500]
    assert client.is_ended


# ---- busy slots -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm_up", [0, 1])
def test_busy_slot_is_read_again_later_and_holds_the_pipeline(server: FakeServer, warm_up: int) -> None:
    client = server.connect()
    client.send(GOOD * warm_up)
    client.take()
    server.table.busy = 3
    client.send(GOOD + post("/user", create_user(9)) + get("/user/9"))
    assert client.output == b"" and server.queue.seq == 0
    for _ in range(3):
        server.loop.run_calls()
    assert [answer.json["id"] for answer in client.take()] == [1, 9, 9]


def test_slot_that_stays_busy_is_503(server: FakeServer) -> None:
    server.table.busy = 1 << 30
    client = server.connect()
    client.send(GOOD)
    while server.loop.calls:
        server.loop.run_calls()
    [answer] = client.take()
    assert answer.status == 503 and answer.fields["retry-after"] == "1"
    assert server.counts.slot_retries > 1000
