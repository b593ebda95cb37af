"""The head of a request: request line and header section, from bytes to what they mean for this server.

httptools checks the grammar of the header section. What it lets through is checked here (measured on 0.9): missing or
double Host, other protocols and versions, transfer codings besides `chunked`, Transfer-Encoding in HTTP/1.0, and all
limits. A head is looked at only when it is complete, so dripping it byte by byte costs nothing extra.

The meaning of a header section is a function of its bytes and the HTTP version alone. A client sends the same section
again and again, so `HeadReader` keeps what it has accepted, and a known section costs one dictionary lookup.

Raises `RequestRefused` when the connection can not go on: the request is answered with its status, then the connection
ends, because nobody knows for sure where the next request begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import httptools

from server.errors import MillraceError

TARGET_BYTES_MAX = 8 << 10  # RFC 9112 section 3 asks for at least 8,000
LINE_BYTES_MAX = TARGET_BYTES_MAX + 64  # the longest method and the version beside it
SECTION_BYTES_MAX = 16 << 10  # header section with its empty line; twice what browsers send with many cookies
FIELDS_MAX = 100  # as Apache
BODY_BYTES_MAX = 64 << 10  # one command: two texts of 4,096 bytes, six JSON bytes each, and room
KNOWN_SECTIONS_MAX = 512  # a worker's clients use a handful; with unique sections it is cleared now and then
KNOWN_SECTION_BYTES_MAX = 1 << 10  # with the number above: half a megabyte

_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH")  # RFC 9110, 5789
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) ([A-Z]+/\d\.\d)")
_PRINTABLE = re.compile(rb"[ -~]*\r?")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::\d*)?")


class RequestRefused(MillraceError):
    """A request after which the connection can not be used: answer `status`, then end it."""

    def __init__(self, status: int, detail: str, fields: bytes = b"") -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.fields = fields


@dataclass(frozen=True, slots=True)
class Fields:
    """What a header section says. `connection` is the Connection field that the answer needs."""

    connection: bytes = b""
    body_bytes: int = 0
    is_chunked: bool = False
    expects_continue: bool = False
    durability: str | None = None
    key: str | None = None  # Idempotency-Key


PLAIN = Fields()  # keep-alive, no body, nothing asked for: the only section that the hot path takes


class Head(NamedTuple):
    """A complete head; `end` is the offset of the first byte after it."""

    method: bytes
    target: bytes
    fields: Fields
    end: int


class HeadReader:
    """Reads heads, and remembers the header sections it has accepted (one per worker and port)."""

    def __init__(self) -> None:
        self.known: dict[bytes, Fields] = {}  # HTTP/1.1 only
        self._known_1_0: dict[bytes, Fields] = {}

    def read(self, data: bytes, start: int) -> Head | None:
        """Return the head that begins at `start`, or None while it is incomplete. Raises `RequestRefused`."""
        line_end = data.find(b"\r\n", start)
        if line_end < 0 or line_end - start > LINE_BYTES_MAX:
            _check_partial_line(data[start : start + LINE_BYTES_MAX + 2])
            return None
        method, target, is_1_0 = _read_line(data[start:line_end])
        end = data.find(b"\r\n\r\n", line_end)
        size = (len(data) if end < 0 else end + 4) - line_end - 2
        if size > SECTION_BYTES_MAX:
            raise RequestRefused(431, f"the header section is longer than {SECTION_BYTES_MAX} bytes")
        if end < 0:
            if data.find(b"\n\n", line_end) >= 0:
                raise RequestRefused(400, "lines must end with CR LF")
            return None
        return Head(method, target, self._read_section(data[line_end + 2 : end + 4], is_1_0), end + 4)

    def _read_section(self, section: bytes, is_1_0: bool) -> Fields:
        known = self._known_1_0 if is_1_0 else self.known
        fields = known.get(section)
        if fields is None:
            fields = read_fields(section, is_1_0)
            if fields == PLAIN:
                fields = PLAIN
            if len(section) <= KNOWN_SECTION_BYTES_MAX and fields.key is None:  # a key comes once
                if len(known) >= KNOWN_SECTIONS_MAX:
                    known.clear()
                known[section] = fields
        return fields


def _check_partial_line(line: bytes) -> None:
    if len(line) > LINE_BYTES_MAX + 1:  # 1: a CR whose LF is not there yet
        raise RequestRefused(414, f"the request line is longer than {LINE_BYTES_MAX} bytes")
    if not _PRINTABLE.fullmatch(line):
        raise RequestRefused(400, "malformed request line")


def _read_line(line: bytes) -> tuple[bytes, bytes, bool]:
    """Return method, target, and whether it is HTTP/1.0."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise RequestRefused(400, "malformed request line")
    method, target, version = match.groups()
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise RequestRefused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    if method not in _METHODS:
        raise RequestRefused(501, "unknown method")
    if len(target) > TARGET_BYTES_MAX:
        raise RequestRefused(414, f"the target is longer than {TARGET_BYTES_MAX} bytes")
    if method == b"CONNECT":
        raise RequestRefused(405, "this is not a proxy", b"Allow: GET, HEAD, POST\r\n")
    return method, target, version == b"HTTP/1.0"


class _Collector:
    """Callbacks of httptools: lower-case names and values, in order."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))


def read_fields(section: bytes, is_1_0: bool) -> Fields:
    """Return the meaning of a header section that ends with its empty line. Raises `RequestRefused`."""
    collector = _Collector()
    is_malformed = False
    try:
        httptools.HttpRequestParser(collector).feed_data(b"POST / HTTP/1.%d\r\n%b" % (not is_1_0, section))
    except httptools.HttpParserUpgrade:
        pass  # a server may ignore Upgrade (RFC 9110 section 7.8)
    except httptools.HttpParserError:
        is_malformed = True
    values: dict[bytes, list[bytes]] = {}
    for name, value in collector.fields:
        values.setdefault(name, []).append(value)
    is_chunked = _read_codings(values, is_1_0)  # first, because httptools calls an unknown coding malformed
    if is_malformed:
        raise RequestRefused(400, "malformed header section")
    if len(collector.fields) > FIELDS_MAX:
        raise RequestRefused(431, f"more than {FIELDS_MAX} header fields")
    _check_host(values.get(b"host", []), is_1_0)
    return Fields(
        _read_connection(values, is_1_0),
        _read_length(values),
        is_chunked,
        _read_expect(values, is_1_0),
        _text(values, b"durability"),
        _text(values, b"idempotency-key"),
    )


def _text(values: dict[bytes, list[bytes]], name: bytes) -> str | None:
    """Return a field as the client wrote it; repeated, it is one list (RFC 9110 section 5.3)."""
    return b", ".join(values[name]).decode("latin-1") if name in values else None


def _read_codings(values: dict[bytes, list[bytes]], is_1_0: bool) -> bool:
    """Return whether the body is chunked."""
    codings = values.get(b"transfer-encoding")
    if codings is None:
        return False
    if is_1_0 or b"content-length" in values:
        raise RequestRefused(400, "Transfer-Encoding is not allowed here")  # RFC 9112 section 6.1: smuggling
    if b",".join(codings).lower() != b"chunked":
        raise RequestRefused(501, "the only transfer coding is chunked")
    return True


def _read_length(values: dict[bytes, list[bytes]]) -> int:
    """Return Content-Length; httptools has refused several of them, and all that are not digits."""
    length = int(values[b"content-length"][0]) if b"content-length" in values else 0
    if length > BODY_BYTES_MAX:
        raise RequestRefused(413, f"the body is longer than {BODY_BYTES_MAX} bytes")
    return length


def _check_host(hosts: list[bytes], is_1_0: bool) -> None:
    if len(hosts) > 1 or (not hosts and not is_1_0):
        raise RequestRefused(400, "exactly one Host field is needed")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise RequestRefused(400, "invalid Host")


def _read_connection(values: dict[bytes, list[bytes]], is_1_0: bool) -> bytes:
    options = {option.strip().lower() for option in b",".join(values.get(b"connection", ())).split(b",")}
    if b"close" in options:
        return b"close"
    if is_1_0:
        return b"keep-alive" if b"keep-alive" in options else b"close"
    return b""


def _read_expect(values: dict[bytes, list[bytes]], is_1_0: bool) -> bool:
    expectations = values.get(b"expect")
    if expectations is None or is_1_0:  # RFC 9110 section 10.1.1: a 1.0 client can not wait for a 100
        return False
    if b",".join(expectations).lower() != b"100-continue":
        raise RequestRefused(417, "the only expectation is 100-continue")
    return True
