"""Experiments with reads: the ceiling of a closed loop, and k6."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from tools.bench.clients import LATENCY_FIGURES, PIPELINE_DEPTH, loaded
from tools.bench.findings import ALL, Figures, Findings
from tools.bench.records import FIRST_ID, USERS, fill_data_directory, user_body
from tools.bench.servers import Bare, FastApi, Millrace, Nginx, Server
from tools.bench.session import Measure, Session, check_constant, check_reads, whole_answer

WARM_UP_S = 1.0
VIRTUAL_USERS = 200
K6_SECONDS = 10.0
K6_SECONDS_QUICK = 2.0
FASTAPI_SECONDS_MAX = 2.0  # its share in the time of a run; it is an order of magnitude away from its target


def closed_loop(session: Session, findings: Findings) -> None:
    """Millrace, pipelined and not, against the floor of Python, a static C server and FastAPI; one core each."""
    if not session.has(findings, ALL, "wrk"):
        return
    findings.conditions |= {"durability": "reads only", "cores": "server 1, client 1", "workers": "1"}
    core = session.cores.one
    with ExitStack() as stack:
        directory = stack.enter_context(session.directory())
        fill_data_directory(directory / "data", USERS)
        millrace = stack.enter_context(Millrace(directory / "data", core))
        response = whole_answer(millrace.port)
        servers: dict[str, Server] = {"millrace": millrace, "pipelined": millrace}
        servers["bare"] = stack.enter_context(Bare(directory, core, response))
        if session.has(findings, "nginx", "nginx"):
            servers["nginx"] = stack.enter_context(Nginx(directory, core, user_body(FIRST_ID)))
        if session.has(findings, "fastapi", "fastapi", "uvicorn"):
            servers["fastapi"] = stack.enter_context(FastApi(directory, core, USERS))
        sides: dict[str, Measure] = {}
        for side, server in servers.items():
            _read(session, side, server, WARM_UP_S)
            sides[side] = partial(_read, session, side, server, session.seconds)
        session.run_rounds(findings, sides)
        for server in servers.values():
            session.note_processes(findings, server)


def _read(session: Session, side: str, server: Server, seconds: float) -> Figures:
    if side in ("bare", "nginx"):
        check_constant(server)
    else:
        check_reads(server, USERS)
    script, arguments = "reads.lua", [FIRST_ID, USERS]
    if side == "pipelined":
        script, arguments = "pipeline.lua", [*arguments, PIPELINE_DEPTH]
    if side == "fastapi":
        seconds = min(seconds, FASTAPI_SECONDS_MAX)
    size = len(whole_answer(server.port))
    figures = loaded(server, lambda: session.clients.wrk(server.port, script, arguments, seconds, size))
    if side == "pipelined":
        # wrk "corrects" latencies by the mean time between the answers of a connection, which come 16 at a time here
        return {name: value for name, value in figures.items() if name not in LATENCY_FIGURES}
    return figures


def virtual_users(session: Session, findings: Findings) -> None:
    """The k6 script that the system was always shown with, against Millrace and nginx."""
    if not session.has(findings, ALL, "k6"):
        return
    seconds = K6_SECONDS_QUICK if session.options.is_quick else K6_SECONDS
    if session.options.is_quick:
        findings.reduced = f"quick run: {K6_SECONDS_QUICK:g} s instead of {K6_SECONDS:g} s"
    findings.conditions |= {"durability": "reads only", "cores": "server 1, client 1", "workers": "1"}
    core = session.cores.one
    settings = {"FIRST_ID": FIRST_ID, "COUNT": USERS, "VUS": VIRTUAL_USERS, "DURATION": f"{seconds:g}s"}
    with ExitStack() as stack:
        directory = stack.enter_context(session.directory())
        fill_data_directory(directory / "data", USERS)
        servers: dict[str, Server] = {"millrace": stack.enter_context(Millrace(directory / "data", core))}
        if session.has(findings, "nginx", "nginx"):
            servers["nginx"] = stack.enter_context(Nginx(directory, core, user_body(FIRST_ID)))

        def measure(server: Server) -> Figures:
            return loaded(server, lambda: session.clients.k6(server.port, "reads.js", seconds, settings))

        sides = {side: partial(measure, server) for side, server in servers.items()}
        session.run_rounds(findings, sides, session.fewer_rounds)
