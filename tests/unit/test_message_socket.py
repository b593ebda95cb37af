"""A message is whole or absent."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from server.errors import PeerGone
from server.message_socket import MESSAGE_BYTES_MAX, MessageSocket, message_pair


@pytest.fixture
def pair() -> Iterator[tuple[MessageSocket, MessageSocket]]:
    first, second = message_pair()
    yield first, second
    first.close()
    second.close()


def fill(end: MessageSocket, message: bytes) -> int:
    """Send until the peer's queue is full; return how many messages went in."""
    count = 0
    while end.try_send(message):
        count += 1
    return count


def drain(end: MessageSocket) -> list[bytes]:
    messages = []
    while (message := end.try_receive()) is not None:
        messages.append(message)
    return messages


def test_messages_keep_their_bounds_and_their_order(pair: tuple[MessageSocket, MessageSocket]) -> None:
    first, second = pair
    sent = [b"a", b"\0", b"bc" * 1000, bytes(5)]
    assert all(first.try_send(message) for message in sent)
    assert drain(second) == sent


def test_both_directions_are_independent(pair: tuple[MessageSocket, MessageSocket]) -> None:
    first, second = pair
    first.try_send(b"to second")
    second.try_send(b"to first")
    assert (drain(first), drain(second)) == ([b"to first"], [b"to second"])


def test_the_largest_message_arrives_whole(pair: tuple[MessageSocket, MessageSocket]) -> None:
    message = os.urandom(MESSAGE_BYTES_MAX)
    assert pair[0].try_send(message)
    assert drain(pair[1]) == [message]


@pytest.mark.parametrize("size", [0, MESSAGE_BYTES_MAX + 1])
def test_a_message_that_could_not_arrive_whole_is_refused(
    pair: tuple[MessageSocket, MessageSocket], size: int
) -> None:
    with pytest.raises(ValueError, match=str(size)):
        pair[0].try_send(bytes(size))
    assert pair[1].try_receive() is None


def test_receive_returns_none_when_nothing_is_there(pair: tuple[MessageSocket, MessageSocket]) -> None:
    assert pair[0].try_receive() is None


def test_a_received_message_stays_as_it_is_when_the_next_one_comes(pair: tuple[MessageSocket, MessageSocket]) -> None:
    first, second = pair
    first.try_send(b"one")
    first.try_send(b"two")
    message = second.try_receive()
    second.try_receive()
    assert message == b"one"


def test_send_says_when_the_queue_is_full_and_goes_on_when_it_was_read(
    pair: tuple[MessageSocket, MessageSocket],
) -> None:
    first, second = pair
    count = fill(first, bytes(4096))
    assert count > 10
    assert not select.select([], [first], [], 0)[1]
    assert drain(second) == [bytes(4096)] * count
    assert select.select([], [first], [], 0)[1] == [first]
    assert first.try_send(b"again")


def test_the_end_of_the_peer_is_an_error_after_its_last_message() -> None:
    first, second = message_pair()
    first.try_send(b"last")
    first.close()
    assert second.try_receive() == b"last"
    with pytest.raises(PeerGone):
        second.try_receive()
    with pytest.raises(PeerGone):
        second.try_send(b"x")
    second.close()


def test_a_peer_that_left_messages_unread_is_gone_too() -> None:
    first, second = message_pair()
    second.try_send(b"never read")
    first.close()
    with pytest.raises(PeerGone):
        second.try_receive()
    second.close()


def test_what_was_sent_waits_for_a_successor_while_another_process_holds_the_end() -> None:
    first, second = message_pair()
    held = MessageSocket(socket.socket(fileno=os.dup(second.fileno())))
    first.try_send(b"for whoever comes")
    second.close()
    assert first.try_send(b"and more")
    assert drain(held) == [b"for whoever comes", b"and more"]
    first.close()
    held.close()
