"""Rounds of kills: a server under load, a random process dies at a random moment, the server has to serve again.

Rounds are put together to sessions. A session has a data directory of its own; at its end the load stops, everything
is read once more, memory is compared with SQLite, the server is stopped, and the history goes to the checker.

What "serves again" means: a worker: new connections are answered, none is refused or broken; the manager: a write is
acknowledged; persister and writers: everything acknowledged is in SQLite; supervisor and group: the next start is
ready.
"""

from __future__ import annotations

import contextlib
import io
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tools import verify
from tools.connection import Connection, get, post
from tools.crash.checker import Fault, Violation, check
from tools.crash.clients import Load, read_final
from tools.crash.history import Fate, History
from tools.crash.server import Server, ServerFailed

ROLES = ("worker", "manager", "persister", "writer", "supervisor", "group")
CLIENTS = 6
# the smallest segments, so that the journal goes on in new ones and gives up old ones while processes die
SERVER = (
    "--persist-period-ms", "100", "--memory", "256MiB", "--journal-segment", "1MiB", "--journal-max", "64MiB",
    "--log-level", "warning",
)  # fmt: skip
LEVELS = (*["journal"] * 20, *["memory"] * 10, "database")  # the last one waits for a period
WAIT_S = (0.02, 0.3)  # from serving again to the next kill
AGAIN_SHARE = 0.2  # of the kills are followed by another one before the server serves again
AGAIN_WAIT_S = 0.06
KILLS_PER_PROCESS_MAX = 3  # in a session: one that dies again and again is restarted more and more slowly, by design
RESTARTS_PER_SESSION = 20
SERVE_AGAIN_LIMIT_S = 20.0  # then it does not serve any more
CHILDREN_GONE_S = 2.0  # children of a dead supervisor
PROBE_CONNECTIONS = 8  # spread over the listeners of all workers
PROBE_PAUSE_S = 0.002
PROBE_USER_ID = 999


@dataclass
class Report:
    """What all sessions came to."""

    kills: Counter[str] = field(default_factory=Counter)
    serve_again_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    fates: Counter[Fate] = field(default_factory=Counter)
    reads: int = 0
    violations: list[Violation] = field(default_factory=list)

    def add(self, history: History, violations: list[Violation]) -> None:
        for fate in Fate:
            self.fates[fate] += history.count(fate)
        self.reads += len(history.reads) + len(history.order_reads)
        self.violations += violations

    def count(self, fault: Fault) -> int:
        return sum(violation.fault is fault for violation in self.violations)


def run_session(data_dir: Path, kills: list[str], workers: int, seed: int, report: Report) -> None:
    """Run one session of these kills. What goes wrong is a violation in the report."""
    server = Server(data_dir, workers, *SERVER)
    load = Load(server, CLIENTS, seed, LEVELS)
    violations: list[Violation] = []
    try:
        server.start()
        load.prepare()
        load.start()
        killer = _Killer(server, load, random.Random(seed), report)
        for role in kills:
            killer.round(role)
        violations += killer.violations
        load.stop()
        violations += finish(server, load)
    except (ServerFailed, OSError) as error:
        load.stop()
        violations.append(Violation(Fault.FAILED, str(error)))
        violations += check(load.history, None)
    finally:
        server.close()
    report.add(load.history, violations)


def plan_session(roles: list[str], workers: int, chance: random.Random, kills_max: int) -> list[str]:
    """Return kills of these roles, as many as one session takes: each role once, in random order, and again."""
    processes = {"worker": workers, "manager": 1, "persister": 1, "writer": 3}
    room = {role: KILLS_PER_PROCESS_MAX * processes.get(role, RESTARTS_PER_SESSION) for role in roles}
    kills: list[str] = []
    while len(kills) < kills_max and all(room.values()):
        kills += chance.sample(roles, len(roles))
        room = {role: left - 1 for role, left in room.items()}
    return kills[:kills_max]


def finish(server: Server, load: Load) -> list[Violation]:
    """Check the history and the last state of a running server, stop it, and look for what it left behind."""
    final = read_final(load)
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = verify.main(["--data-dir", str(server.data_dir)])
    violations = check(load.history, final)
    if code != verify.EXIT_SAME:
        stats = Connection("127.0.0.1", server.admin_port, SERVE_AGAIN_LIMIT_S).exchange(get("localhost", "/stats"))
        text = f"SQLite is not as memory is: {output.getvalue()[:1000]}\n{stats.body.decode()}\n{server.log()}"
        violations.append(Violation(Fault.LOST, text))
    if (code := server.stop()) != 0:
        violations.append(Violation(Fault.FAILED, f"the stop ended with exit code {code}\n{server.log()}"))
    with contextlib.suppress(ServerFailed):
        server.wait_for(lambda: not server.members(), "all processes are gone", CHILDREN_GONE_S)
    if members := server.members():
        violations.append(Violation(Fault.FAILED, f"children left behind: {members}"))
    if server.has_segment():
        violations.append(Violation(Fault.FAILED, "a segment is left in /dev/shm"))
    return violations


class _Killer:
    """Kills in one session and measures."""

    def __init__(self, server: Server, load: Load, chance: random.Random, report: Report) -> None:
        self._server = server
        self._load = load
        self._chance = chance
        self._report = report
        self.violations: list[Violation] = []

    def round(self, role: str) -> None:
        time.sleep(self._chance.uniform(*WAIT_S))
        begin = time.monotonic()
        if role in ("supervisor", "group"):
            self._restart(role)
        else:
            self._kill_child(role)
            if self._chance.random() < AGAIN_SHARE:
                time.sleep(self._chance.uniform(0, AGAIN_WAIT_S))
                self._kill_child(role)
                begin = time.monotonic()
            probes: dict[str, Callable[[], None]] = {"worker": self._probe_workers, "manager": self._probe_write}
            probes.get(role, self._probe_flush)()
        self._report.serve_again_s[role].append(time.monotonic() - begin)

    def _kill_child(self, role: str) -> None:
        """Kill one process of the role; if it is dead already, nothing happens."""
        pids = self._server.run().pids
        names = [name for name in pids if name.partition("-")[0] == role]
        if names:
            with contextlib.suppress(ProcessLookupError):
                self._server.kill(self._chance.choice(names))
                self._report.kills[role] += 1

    def _restart(self, role: str) -> None:
        if role == "group":
            self._server.kill_group()
        else:
            self._server.kill("supervisor")
        self._load.pause()
        self._report.kills[role] += 1
        seconds = self._server.wait_for(lambda: not self._server.members(), "all processes are gone")
        if seconds > CHILDREN_GONE_S:
            self.violations.append(Violation(Fault.FAILED, f"children outlived the supervisor by {seconds:.1f} s"))
        self._server.start()
        self._load.resume()

    # ---- does it serve again?

    def _probe_workers(self) -> None:
        """Every new connection waits for its worker and is answered."""
        failures: list[str] = []

        def probe() -> None:
            connection = Connection("127.0.0.1", self._server.port, SERVE_AGAIN_LIMIT_S)
            try:
                answer = connection.exchange(get("localhost", "/healthz"))
                if answer.status != 200:
                    failures.append(f"healthz: {answer.status}")
            except OSError as error:
                failures.append(f"a new connection after the death of a worker: {error!r}")
            finally:
                connection.close()

        threads = [threading.Thread(target=probe) for _ in range(PROBE_CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.violations += [Violation(Fault.FAILED, failure) for failure in failures]

    def _probe_write(self) -> None:
        body = b'{"command":"update","id":%d}' % PROBE_USER_ID  # 404: the manager has answered
        self._probe(self._server.port, post("localhost", "/user", body), {200, 404})

    def _probe_flush(self) -> None:
        self._probe(self._server.admin_port, post("localhost", "/flush?wait=1", b""), {200})

    def _probe(self, port: int, request: bytes, wanted: set[int]) -> None:
        """Ask again and again until the answer is a wanted one."""
        deadline = time.monotonic() + SERVE_AGAIN_LIMIT_S
        connection = Connection("127.0.0.1", port, SERVE_AGAIN_LIMIT_S)
        last = "no answer"
        while time.monotonic() < deadline:
            try:
                answer = connection.exchange(request)
                if answer.status in wanted:
                    connection.close()
                    return
                last = f"{answer.status} {answer.body!r}"
            except OSError as error:
                last = repr(error)
            time.sleep(PROBE_PAUSE_S)
        connection.close()
        raise ServerFailed(f"does not serve again within {SERVE_AGAIN_LIMIT_S} s: {last}\n{self._server.log()}")
