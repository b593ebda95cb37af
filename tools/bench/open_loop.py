"""Open-loop load: requests leave at fixed times, whatever the server does, and latency counts from those times.

    python -m tools.bench.open_loop '{"port": 8000, "seconds": 5, "streams": {"get": {...}}}'

A closed loop (wrk) waits for an answer before it sends again, so a server that stalls for a second hides a second of
requests that would have been late ("coordinated omission"). Here request n of a stream is due at n / rate. It is sent
on a free connection at that time, or on the first one that becomes free later; its latency is the time from when it
was due until its answer is complete. So a stall is seen by every request that fell into it.

A stream is {"kind": "read" | "order" | "update" | "create", "rate": R, "connections": C, "first_id": I, "count": N};
an order has "first_product" and "products" too. Answers must be 200, and a read must answer the user it asked for.

Prints one JSON object: per stream the counts, percentiles of latency, and the latency over time in steps of
`WINDOW_S`; `behind_s` is how long after the last request was due the last answer came. `late_ms` is how late this
process itself was with requests that had a free connection: its own share in the latency. When that is not far below
the latencies, the client is too slow and they say nothing about the server.
"""

from __future__ import annotations

import ctypes
import json
import random
import select
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any

from tools.bench.findings import latency_figures
from tools.bench.records import FIRST_ID, PRODUCTS, order_body, user_body
from tools.connection import post

HOST = "127.0.0.1"
WINDOW_S = 0.1
RECEIVE_BYTES = 64 << 10
DRAIN_S = 10.0  # how long answers are awaited after the last request was due
SPIN_S = 0.000_02  # below this the loop polls instead of sleeping: a sleep is late by some microseconds
PR_SET_TIMERSLACK = 29  # <linux/prctl.h>; the default slack makes every sleep 50 us late
WARM_UP_S = 0.5  # not counted: connections, caches

MakeRequest = Callable[[int], tuple[bytes, bytes]]  # number of the request -> request, end of the right answer


def make_read(plan: dict[str, Any]) -> MakeRequest:
    first_id, count, draw = plan["first_id"], plan["count"], random.Random(1).random

    def make(_: int) -> tuple[bytes, bytes]:
        id = first_id + int(draw() * count)
        return b"GET /user/%d HTTP/1.1\r\nHost: bench\r\n\r\n" % id, user_body(id)

    return make


def make_order(plan: dict[str, Any]) -> MakeRequest:
    first_id, count, draw = plan["first_id"], plan["count"], random.Random(2).random
    first_product, products = plan.get("first_product", FIRST_ID), plan.get("products", PRODUCTS)

    def make(_: int) -> tuple[bytes, bytes]:
        body = order_body(first_product + int(draw() * products), first_id + int(draw() * count))
        return post("bench", "/order", body), b'"quantity":1,"status":"Success"}'

    return make


def make_update(plan: dict[str, Any]) -> MakeRequest:
    """An update that changes nothing visible, so that reads of the same user keep their one right answer."""
    first_id, count, draw = plan["first_id"], plan["count"], random.Random(3).random

    def make(_: int) -> tuple[bytes, bytes]:
        id = first_id + int(draw() * count)
        return post("bench", "/user", b'{"command":"update","id":%d,"username":"u%d"}' % (id, id)), user_body(id)

    return make


def make_create(plan: dict[str, Any]) -> MakeRequest:
    first_id = plan["first_id"]

    def make(number: int) -> tuple[bytes, bytes]:
        body = user_body(first_id + number)
        return post("bench", "/user", b'{"command":"create",' + body[1:]), body

    return make


MAKERS = {"read": make_read, "order": make_order, "update": make_update, "create": make_create}


class Stream:
    """Requests of one kind at one rate, over connections of their own."""

    def __init__(self, port: int, seconds: float, plan: dict[str, Any]) -> None:
        self.interval_s = 1.0 / plan["rate"]
        self.total = int((seconds + WARM_UP_S) * plan["rate"])
        self.next = 0  # number of the next request to send
        self.due_s = 0.0  # when it should leave
        self.make = MAKERS[plan["kind"]](plan)
        self.idle = deque(Channel(port, self) for _ in range(plan["connections"]))
        self.channels = list(self.idle)
        self.due_times, self.latencies, self.lateness = array("d"), array("d"), array("d")
        self.wrong = self.unanswered = 0
        self.first_wrong = ""

    def send_due(self, now: float) -> None:
        """Send what is due while there are free connections."""
        idle = self.idle
        while self.due_s <= now and idle and self.next < self.total:
            request, expected = self.make(self.next)
            channel = idle.popleft()
            channel.due_s, channel.expected = self.due_s, expected
            had_to_wait = channel.free_s > self.due_s
            channel.send(request)
            if not had_to_wait:
                self.lateness.append(time.perf_counter() - self.due_s)
            self.next += 1
            self.due_s += self.interval_s

    @property
    def is_done(self) -> bool:
        return self.next >= self.total and len(self.idle) == len(self.channels)

    def report(self, start: float) -> dict[str, Any]:
        """Return what was found, the warm-up left out."""
        counted = [
            (due - start - WARM_UP_S, latency * 1000)
            for due, latency in zip(self.due_times, self.latencies, strict=True)
            if due - start >= WARM_UP_S
        ]
        windows: dict[int, list[float]] = {}
        for due_s, latency_ms in counted:
            windows.setdefault(int(due_s / WINDOW_S), []).append(latency_ms)
        return {
            "due": self.total,
            "sent": self.next,
            "answered": len(counted),
            "wrong": self.wrong,
            "unanswered": self.unanswered + len(self.channels) - len(self.idle),
            "first_wrong": self.first_wrong,
            **latency_figures([latency_ms for _, latency_ms in counted]),
            "late_ms": latency_figures([1000 * late for late in self.lateness]),
            "over_time": [
                {"t_s": round(number * WINDOW_S, 3), "requests": len(found), **latency_figures(found)}
                for number, found in sorted(windows.items())
            ],
        }


class Channel:
    """A connection with at most one request under way."""

    __slots__ = ("data", "due_s", "expected", "free_s", "receive", "send", "sock", "stream")

    def __init__(self, port: int, stream: Stream) -> None:
        self.sock = socket.create_connection((HOST, port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = stream
        self.send, self.receive = self.sock.sendall, self.sock.recv
        self.data = self.expected = b""
        self.due_s = self.free_s = 0.0

    def on_readable(self) -> None:
        """Take in the answer. An answer that ends as expected is whole; only another one is looked at closer."""
        data = self.receive(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the server closed a connection")
        if self.data:
            data = self.data + data
        is_expected = data.endswith(self.expected)
        if not is_expected and not _is_whole(data):
            self.data = data
            return
        stream, now = self.stream, time.perf_counter()
        if not is_expected or not data.startswith(b"HTTP/1.1 200 "):
            stream.wrong += 1
            stream.first_wrong = stream.first_wrong or data[:300].decode(errors="replace")
        stream.due_times.append(self.due_s)
        stream.latencies.append(now - self.due_s)
        self.data = b""
        self.free_s = now
        stream.idle.append(self)


def _is_whole(data: bytes) -> bool:
    head, found, body = data.partition(b"\r\n\r\n")
    if not found:
        return False
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return len(body) >= int(length or 0)


def run(port: int, seconds: float, plans: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Send all streams and return what was found."""
    streams = {name: Stream(port, seconds, plan) for name, plan in plans.items()}
    epoll = select.epoll()
    callbacks = {}
    for stream in streams.values():
        for channel in stream.channels:
            epoll.register(channel.sock.fileno(), select.EPOLLIN)
            callbacks[channel.sock.fileno()] = channel.on_readable
    start = time.perf_counter()
    for stream in streams.values():
        stream.due_s = start
    _loop(list(streams.values()), epoll, callbacks, start + seconds + WARM_UP_S + DRAIN_S)
    behind_s = time.perf_counter() - (start + seconds + WARM_UP_S)
    return {"behind_s": behind_s, "streams": {name: stream.report(start) for name, stream in streams.items()}}


def _loop(
    streams: list[Stream], epoll: select.epoll, callbacks: dict[int, Callable[[], None]], deadline: float
) -> None:
    clock, poll = time.perf_counter, epoll.poll
    while not all(stream.is_done for stream in streams):
        now = clock()
        if now > deadline:
            return
        next_due = deadline
        for stream in streams:
            stream.send_due(now)
            if stream.idle and stream.next < stream.total:
                next_due = min(next_due, stream.due_s)
        wait_s = next_due - clock() - SPIN_S
        if wait_s > 0:
            select.select([epoll], (), (), wait_s)  # epoll itself counts in whole milliseconds
        for descriptor, _ in poll(0):
            callbacks[descriptor]()


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    task = json.loads(sys.argv[1])
    print(json.dumps(run(task["port"], task["seconds"], task["streams"])))
