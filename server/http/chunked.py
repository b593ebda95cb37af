"""The decoder of a chunked body (RFC 9112 section 7.1), fed with what has arrived so far.

httptools could decode it too, but does not say where a body ends, and with pipelining the next request begins there.
Extensions are ignored, trailer fields are checked and dropped.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from server.http.request_head import BODY_BYTES_MAX, FIELDS_MAX, SECTION_BYTES_MAX, RequestRefused

LINE_BYTES_MAX = 1 << 10  # a chunk size with its extension
OVERHEAD_BYTES_MAX = 6 * BODY_BYTES_MAX  # a body sent in chunks of one byte has five bytes around each

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*")


class _Expects(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()
    NOTHING = auto()


class ChunkedBody:
    """One body on its way in; `body` is complete when `is_complete`."""

    def __init__(self) -> None:
        self.body = bytearray()
        self._expects = _Expects.SIZE
        self._chunk_left = 0
        self._overhead = 0
        self._trailer_bytes = 0
        self._trailers = 0

    @property
    def is_complete(self) -> bool:
        return self._expects is _Expects.NOTHING

    def feed(self, data: bytes, start: int) -> int:
        """Take what belongs to the body; return the offset of the first byte not taken. Raises `RequestRefused`."""
        while not self.is_complete:
            if self._expects is _Expects.DATA:
                taken = data[start : start + self._chunk_left]
                self.body += taken
                self._chunk_left -= len(taken)
                start += len(taken)
                if self._chunk_left:
                    break
                self._expects = _Expects.DATA_END
            else:
                end = data.find(b"\r\n", start)
                if end < 0:
                    self._check_partial(data[start : start + SECTION_BYTES_MAX + 2])
                    break
                self._take_line(data[start:end])
                start = end + 2
        return start

    def _take_line(self, line: bytes) -> None:
        if self._expects is _Expects.SIZE:
            self._count(len(line) + 2, len(line))
            self._take_size(line)
        elif self._expects is _Expects.DATA_END:
            self._count(2, 0)
            if line:
                raise RequestRefused(400, "a chunk is longer than its size")
            self._expects = _Expects.SIZE
        else:
            self._take_trailer(line)

    def _take_size(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise RequestRefused(400, "malformed chunk size")
        self._chunk_left = int(match[1], 16)
        if self._chunk_left > BODY_BYTES_MAX - len(self.body):
            raise RequestRefused(413, f"the body is longer than {BODY_BYTES_MAX} bytes")
        self._expects = _Expects.DATA if self._chunk_left else _Expects.TRAILER

    def _take_trailer(self, line: bytes) -> None:
        if not line:
            self._expects = _Expects.NOTHING
            return
        self._trailers += 1
        self._trailer_bytes += len(line) + 2
        if self._trailers > FIELDS_MAX or self._trailer_bytes > SECTION_BYTES_MAX:
            raise RequestRefused(431, "the trailer section is too long")
        if not _TRAILER.fullmatch(line):
            raise RequestRefused(400, "malformed trailer field")

    def _count(self, overhead: int, line_bytes: int) -> None:
        self._overhead += overhead
        if line_bytes > LINE_BYTES_MAX or self._overhead > OVERHEAD_BYTES_MAX:
            raise RequestRefused(413, "the chunks are too small or their extensions too long")

    def _check_partial(self, line: bytes) -> None:
        """Refuse a line without its end as soon as it can not become a good one."""
        if b"\n" in line:
            raise RequestRefused(400, "lines must end with CR LF")
        if self._expects is _Expects.DATA_END:
            if line not in (b"", b"\r"):
                raise RequestRefused(400, "a chunk is longer than its size")
        elif self._expects is _Expects.SIZE:
            self._count(0, len(line) - 1)  # 1: a CR whose LF is not there yet
        elif len(line) > SECTION_BYTES_MAX:
            raise RequestRefused(431, "the trailer section is too long")
