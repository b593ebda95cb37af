"""Experiments about size: tables of 10 k to 10 M users, growth while serving, and a user with 100,000 orders."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

from tools.bench.clients import loaded
from tools.bench.findings import ALL, Figures, Findings
from tools.bench.latency import figures_of, stream
from tools.bench.processes import MeasurementFailed, cpu_s
from tools.bench.reads import WARM_UP_S
from tools.bench.records import FIRST_ID, PRODUCTS, USERS, fill_data_directory, user_body
from tools.bench.servers import EXCHANGE_TIMEOUT_S, HOST, Millrace, Redis
from tools.bench.session import Session, check_reads
from tools.bench.writes import LEVEL, place_orders
from tools.connection import post

SIZES = {"small": 10_000, "middle": 100_000, "large": 1_000_000}
SIZES_QUICK = {"small": 10_000, "large": 100_000}
SIZE_HUGE = 10_000_000
HUGE_MEMORY = "8GiB"  # ten million users do not fit into the default

DIRTY_RECORDS = 100
PERIODS = 10  # periods per round of the persister's row
RESTARTS = 3
REDIS_PIPELINE = 10_000

GROWTH_USERS, GROWTH_USERS_QUICK = 600_000, 10_000
GROWTH_PER_S = 10_000
PROBES_PER_S = 500

HOT_ORDERS, HOT_ORDERS_QUICK = 100_000, 20_000
HOT_SECONDS = 1.0


def sizes(session: Session, findings: Findings) -> None:
    """All tables are up at once and measured in turn."""
    if not session.has(findings, ALL, "wrk"):
        return
    tables = dict(SIZES_QUICK if session.options.is_quick else SIZES)
    if session.options.is_huge:
        tables["huge"] = SIZE_HUGE
    if session.options.is_quick:
        findings.reduced = f"quick run: large is {tables['large']:,} users instead of {SIZES['large']:,}"
    findings.conditions |= {"durability": LEVEL, "cores": "server 1, client 1", "workers": "1"} | {
        side: f"{users:,} users" for side, users in tables.items()
    }
    with ExitStack() as stack:
        empty_bytes = _memory_of_empty(session)
        servers: dict[str, Millrace] = {}
        for side, users in tables.items():
            directory = stack.enter_context(session.directory())
            session.say(f"filling SQLite with {users:,} users")
            fill_data_directory(directory / "data", users)
            server = stack.enter_context(_start(session, directory / "data", users))
            servers[side] = server
            server.settle()
            per_record = (server.memory_bytes() - empty_bytes) / users
            findings.add(side, {"start_s": server.start_s, "bytes_per_record": per_record, "users": float(users)})
            check_reads(server, users)
            session.say(f"{side}: ready after {server.start_s:.2f} s, {per_record:.0f} bytes per user")
            session.clients.wrk(server.port, "reads.lua", [FIRST_ID, users], WARM_UP_S)
        sides = {side: partial(_measure, session, server, tables[side]) for side, server in servers.items()}
        session.run_rounds(findings, sides, session.fewer_rounds)
    if session.has(findings, "redis", "redis-server"):
        session.run_rounds(findings, {"redis": partial(_redis_memory, session, tables["large"])}, rounds=1)
    _restarts(session, findings, tables["large"])


def _start(session: Session, data_dir: Path, users: int) -> Millrace:
    more = ["--memory", HUGE_MEMORY] if users >= SIZE_HUGE else []
    return Millrace(data_dir, session.cores.one, *more)


def _memory_of_empty(session: Session) -> int:
    with session.directory() as directory:
        fill_data_directory(directory / "data", users=0)
        with Millrace(directory / "data", session.cores.one) as server:
            server.settle()
            return server.memory_bytes()


def _measure(session: Session, server: Millrace, users: int) -> Figures:
    arguments = [FIRST_ID, users]
    figures = loaded(server, lambda: session.clients.wrk(server.port, "reads.lua", arguments, session.seconds))
    orders = place_orders(session, server, [*arguments, FIRST_ID, PRODUCTS], session.seconds)
    return figures | {"order_cpu_us": orders["cpu_us"], "persister_us": _persister_us(server, users)}


def _persister_us(server: Millrace, users: int) -> float:
    """Return the persister's CPU time of a period with DIRTY_RECORDS dirty records, the mean of some periods."""
    pid = server.pids["persister"]
    connection = server.connect()
    server.settle()
    spent_s = 0.0
    for _ in range(PERIODS):
        before = cpu_s(pid)
        for id in random.sample(range(FIRST_ID, FIRST_ID + users), DIRTY_RECORDS):
            body = b'{"command":"update","id":%d,"username":"u%d"}' % (id, id)
            if connection.exchange(post(HOST, "/user", body)).status != 200:
                raise MeasurementFailed(f"update of user {id} was refused")
        server.settle()
        spent_s += cpu_s(pid) - before
    connection.close()
    return spent_s / PERIODS * 1e6


def _restarts(session: Session, findings: Findings, users: int) -> None:
    """Start on the same databases again and again; a stop in between leaves everything in SQLite."""
    with session.directory() as directory:
        fill_data_directory(directory / "data", users)

        def restart() -> Figures:
            with _start(session, directory / "data", users) as server:
                check_reads(server, users)
                return {"start_s": server.start_s, "users": float(users)}

        session.run_rounds(findings, {"restart": restart}, min(RESTARTS, session.fewer_rounds))


# ---- Redis ---------------------------------------------------------------------------------------------------------


def _redis_memory(session: Session, users: int) -> Figures:
    """Return what the same JSON takes as Redis strings: the growth of the process, as for Millrace."""
    with session.directory() as directory, Redis(directory, session.cores.one, is_durable=False) as redis:
        before = redis.memory().pss
        with socket.create_connection((HOST, redis.port), EXCHANGE_TIMEOUT_S) as sock:
            for ids in batched_ids(users):
                sock.sendall(b"".join(_redis_set(id) for id in ids))
                _expect(sock, b"+OK\r\n" * len(ids))
        return {"bytes_per_record": (redis.memory().pss - before) / users, "users": float(users)}


def batched_ids(users: int) -> Iterator[range]:
    """Yield the ids of all users in ranges of at most REDIS_PIPELINE."""
    for start in range(FIRST_ID, FIRST_ID + users, REDIS_PIPELINE):
        yield range(start, min(start + REDIS_PIPELINE, FIRST_ID + users))


def _redis_set(id: int) -> bytes:
    key, value = b"user:%d" % id, user_body(id)
    return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(value), value)


def _expect(sock: socket.socket, answers: bytes) -> None:
    received = b""
    while len(received) < len(answers):
        more = sock.recv(1 << 16)
        received += more
        if not more or not answers.startswith(received):
            raise MeasurementFailed(f"redis answered {received[-100:]!r}")


# ---- growth --------------------------------------------------------------------------------------------------------


def growth(session: Session, findings: Findings) -> None:
    """Create users at a fixed rate, and see how long reads and updates of others are held up at worst.

    The same rate of updates, which let nothing grow, says what of it the writing alone causes.
    """
    users = GROWTH_USERS_QUICK if session.options.is_quick else GROWTH_USERS
    findings.conditions |= {
        "durability": LEVEL, "cores": "server 2, client on one of them or a third",
        "rate": f"{GROWTH_PER_S:,} creates/s up to {users:,} more users; {PROBES_PER_S} reads/s and updates/s",
    }  # fmt: skip
    seconds = users / GROWTH_PER_S
    probes = {"read": stream("read", PROBES_PER_S, 8), "update": stream("update", PROBES_PER_S, 8)}
    with session.directory() as directory:
        fill_data_directory(directory / "data", USERS)
        with Millrace(directory / "data", session.cores.two) as server:

            def measure(side: str) -> Figures:
                writes = stream("update", GROWTH_PER_S)
                if side == "growing":
                    writes = stream("create", GROWTH_PER_S) | {"first_id": FIRST_ID + USERS}
                found = session.clients.open_loop(server.port, seconds, probes | {"write": writes})["streams"]
                for name in probes:
                    findings.curves[f"{name}s {side}"] = found[name]["over_time"]
                figures: Figures = {"records": float(server.stats()["records"]["users"])}
                for name in ("read", "update", "write"):
                    longest = figures_of(found[name])
                    figures[f"{name}_p99_ms"], figures[f"{name}_max_ms"] = longest["p99_ms"], longest["max_ms"]
                server.settle()
                return figures

            session.run_rounds(findings, {side: partial(measure, side) for side in ("steady", "growing")}, rounds=1)


# ---- one hot user --------------------------------------------------------------------------------------------------


def hot_user(session: Session, findings: Findings) -> None:
    """Orders of one user for one product: a user with a long history over many products, and a new one each round."""
    if not session.has(findings, ALL, "wrk"):
        return
    history = HOT_ORDERS_QUICK if session.options.is_quick else HOT_ORDERS
    if session.options.is_quick:
        findings.reduced = f"quick run: {HOT_ORDERS_QUICK:,} orders instead of {HOT_ORDERS:,}"
    findings.conditions |= {"durability": LEVEL, "cores": "server 2", "history": f"{history:,} orders at least"}
    with session.directory() as directory:
        fill_data_directory(directory / "data", USERS)
        with Millrace(directory / "data", session.cores.two) as server:
            while (placed := server.stats()["records"]["orders"]) < history:
                session.say(f"the hot user has {placed:,} of {history:,} orders")
                place_orders(session, server, [FIRST_ID, 1, FIRST_ID, PRODUCTS], HOT_SECONDS)
            fresh = count(1)

            def of_new_user() -> Figures:
                number = next(fresh)
                return place_orders(session, server, [FIRST_ID + number, 1, FIRST_ID + number, 1], HOT_SECONDS)

            def of_hot_user() -> Figures:
                return place_orders(session, server, [FIRST_ID, 1, FIRST_ID, 1], HOT_SECONDS)

            session.run_rounds(findings, {"hot user": of_hot_user, "new user": of_new_user}, session.fewer_rounds)
