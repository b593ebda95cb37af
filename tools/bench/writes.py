"""Experiments with writes: the ceiling of durable orders, and the original work of 10 Python threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from tools.bench.clients import CONNECTIONS, Load, loaded
from tools.bench.findings import ALL, Figures, Findings
from tools.bench.processes import MeasurementFailed
from tools.bench.reads import FASTAPI_SECONDS_MAX, WARM_UP_S
from tools.bench.records import FIRST_ID, PRODUCTS, USERS, fill_data_directory, user_body
from tools.bench.servers import Bare, FastApi, Millrace, Redis, Server
from tools.bench.session import Session, whole_answer

ORDER_ARGUMENTS = [FIRST_ID, USERS, FIRST_ID, PRODUCTS]
REDIS_PROBE_REQUESTS = 5_000
LEVEL = "journal (answered after fdatasync)"
REFERENCE_LEVELS = "Redis: appendfsync always; FastAPI: SQLite synchronous=FULL"


def orders(session: Session, findings: Findings) -> None:
    """Durable orders against Redis SET and FastAPI, and a mix of 90 % reads; the server has two cores."""
    if not session.has(findings, ALL, "wrk"):
        return
    cores = session.cores.two
    shared = "client on one of them" if set(cores) & set(session.cores.client) else "client on a third"
    findings.conditions |= {"durability": LEVEL, "cores": f"server 2, {shared}", "workers": str(len(set(cores)))}
    findings.conditions["references"] = REFERENCE_LEVELS
    with ExitStack() as stack:
        directory = stack.enter_context(session.directory())
        fill_data_directory(directory / "data", USERS)
        millrace = stack.enter_context(Millrace(directory / "data", cores))
        value = user_body(FIRST_ID)
        sides: dict[str, Callable[[float], Figures]] = {
            "millrace": partial(place_orders, session, millrace, ORDER_ARGUMENTS),
            "mix 90/10": lambda seconds: loaded(
                millrace, lambda: session.clients.wrk(millrace.port, "mix.lua", ORDER_ARGUMENTS, seconds)
            ),
        }
        if session.has(findings, "redis", "redis-server", "redis-benchmark"):
            redis = stack.enter_context(Redis(directory, cores, is_durable=True))
            sides["redis"] = partial(_set_keys, session, redis, value)
        if session.has(findings, "fastapi", "fastapi", "uvicorn"):
            fastapi = stack.enter_context(FastApi(directory, cores, USERS))
            sides["fastapi"] = lambda seconds: loaded(
                fastapi, partial(_wrk_orders, session, fastapi, min(seconds, FASTAPI_SECONDS_MAX))
            )
        for measure in sides.values():
            measure(WARM_UP_S)
        session.run_rounds(findings, {side: partial(measure, session.seconds) for side, measure in sides.items()})
        session.note_processes(findings, millrace)


def place_orders(session: Session, server: Millrace, arguments: list[int], seconds: float) -> Figures:
    """Place orders at full speed; raises unless the server holds exactly those that were answered."""
    before = server.stats()["records"]["orders"]
    load: list[Load] = []

    def run() -> Load:
        load.append(session.clients.wrk(server.port, "orders.lua", arguments, seconds))
        return load[0]

    figures = loaded(server, run)
    placed = server.stats()["records"]["orders"] - before
    if not load[0].requests <= placed <= load[0].requests + CONNECTIONS:  # the last ones are not waited for by wrk
        raise MeasurementFailed(f"{load[0].requests} orders were answered 200, {placed} are there")
    return figures


def _wrk_orders(session: Session, server: Server, seconds: float) -> Load:
    return session.clients.wrk(server.port, "orders.lua", ORDER_ARGUMENTS, seconds)


def _set_keys(session: Session, redis: Redis, value: bytes, seconds: float) -> Figures:
    """SET for about the given time: redis-benchmark counts requests, so a short run tells how many that are."""
    probe = session.clients.redis_set(redis.port, value, USERS, REDIS_PROBE_REQUESTS)
    requests = max(REDIS_PROBE_REQUESTS, int(probe.requests / probe.seconds * seconds))
    return loaded(redis, lambda: session.clients.redis_set(redis.port, value, USERS, requests))


def threads(session: Session, findings: Findings) -> None:
    """The experiment that every shape of this system was measured with. Each round needs an empty server."""
    findings.conditions |= {"durability": LEVEL, "cores": "server 1, client 1", "workers": "1"}
    core = session.cores.one
    with session.directory() as directory:
        fill_data_directory(directory / "data", users=1)
        with Millrace(directory / "data", core) as millrace:
            response = whole_answer(millrace.port)

        def timed(server: Server, is_echo: bool) -> Figures:
            figures = loaded(server, lambda: session.clients.original_work(server.port, is_echo))
            return figures | {"total_s": figures["seconds"]}

        with Bare(directory, core, response) as bare:

            def against_millrace() -> Figures:
                with session.directory() as empty, Millrace(empty / "data", core) as millrace:
                    return timed(millrace, is_echo=False)

            def against_bare() -> Figures:
                return timed(bare, is_echo=True)

            session.run_rounds(findings, {"millrace": against_millrace, "bare": against_bare})
