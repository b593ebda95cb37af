"""The reference `bare`: a uvloop protocol that answers every read with one constant response. The floor of Python.

    python -m tools.bench.bare_server FILE      FILE holds the whole response, head and body

Prints its port. It parses nothing: the one thing it shares with a real server is what the event loop and the kernel
cost. It is right only for clients that send a request in one piece and do not pipeline.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import uvloop


class Constant(asyncio.Protocol):
    """One connection."""

    __slots__ = ("_response", "_write")

    def __init__(self, response: bytes) -> None:
        self._response = response

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast(asyncio.Transport, transport).write

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - the form that asyncio asks for
        self._write(self._response)


async def serve(response: bytes) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Constant(response), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]).read_bytes()))
