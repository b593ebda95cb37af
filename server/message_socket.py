"""A pair of SOCK_SEQPACKET sockets: every message arrives whole or not at all (unix(7)).

Both ends of every pair are made by the supervisor and stay open in it, so a channel outlives the processes that use
it: what a dead process sent is read by its successor's peer, what was sent to it waits for its successor. Therefore a
reader never meets the end of the stream, and whoever comes new must tell its peers (an epoch, a ready message).
"""

from __future__ import annotations

import socket

from server.errors import PeerGone

# Far above the largest command (a body of 64 KiB), far below the default send buffer of 208 KiB that bounds a message.
MESSAGE_BYTES_MAX = 128 << 10


class MessageSocket:
    """One end; non-blocking, so that its owner's loop decides what to wait for."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._buffer = bytearray(MESSAGE_BYTES_MAX)
        self._view = memoryview(self._buffer)

    def fileno(self) -> int:
        """Return the descriptor, for selectors and loops."""
        return self._socket.fileno()

    def try_send(self, message: bytes) -> bool:
        """Send one message; False when the peer's queue is full. Raises `PeerGone`."""
        if not 0 < len(message) <= MESSAGE_BYTES_MAX:  # the peer would take it for the end, or lose its tail
            raise ValueError(f"a message of {len(message)} bytes")
        try:
            self._socket.send(message)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            raise PeerGone from None
        return True

    def try_receive(self) -> bytes | None:
        """Return the next message, or None when there is none. Raises `PeerGone`."""
        try:
            size = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            raise PeerGone from None
        if not size:
            raise PeerGone
        return bytes(self._view[:size])

    def close(self) -> None:
        """Close this process's descriptor."""
        self._view.release()
        self._socket.close()


def message_pair() -> tuple[MessageSocket, MessageSocket]:
    """Return two connected ends."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return MessageSocket(first), MessageSocket(second)
