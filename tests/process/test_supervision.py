"""Deaths, signals, exit codes: a child that is killed is replaced and nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import CHILDREN_GONE_S, ROOT, Client, ServerProcess, is_open, running_server

WORKERS = 2
ROLES = ["worker-0", "worker-1", "persister", "writer-users", "writer-products", "writer-orders", "manager"]
REPLACED_S = 10.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = tmp_path_factory.mktemp("supervision") / "data"
    yield from running_server(path, "--persist-period-ms", "100", workers=WORKERS)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ServerProcess]:
    yield from running_server(tmp_path / "data", workers=WORKERS)


def create_user(client: Client, id: int) -> bytes:
    answer = client.post("/user", {"command": "create", "id": id, "username": f"u{id}", "email": "e"})
    assert answer.status == 200, answer
    return answer.body


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_ready(server: ServerProcess) -> bool:
    with contextlib.suppress(OSError), server.admin() as admin:
        return admin.get("/readyz").status == 200
    return False


def wait_for_replacement(server: ServerProcess, role: str, dead: int) -> None:
    server.wait_until(lambda: server.pids.get(role, dead) != dead, REPLACED_S, f"{role} has a new pid in run.json")
    server.wait_until(lambda: is_alive(server.pids[role]), REPLACED_S, f"{role} lives")
    server.wait_until(lambda: is_ready(server), REPLACED_S, f"/readyz after the death of {role}")


def test_run_json_names_every_process(server: ServerProcess) -> None:
    run = server.run_json()
    assert set(run["pids"]) == {"supervisor", *ROLES}
    assert (run["port"], run["admin_port"]) == (server.port, server.admin_port)
    assert len(set(run["pids"].values())) == len(run["pids"])
    supervisor = run["pids"].pop("supervisor")
    assert all(psutil.Process(pid).ppid() == supervisor for pid in run["pids"].values())
    assert run["started"]


def test_process_titles(server: ServerProcess) -> None:
    titles = {role: " ".join(psutil.Process(pid).cmdline()).strip() for role, pid in server.pids.items()}
    assert titles == {role: f"millrace: {role.replace('-', ' ')}" for role in ("supervisor", *ROLES)}


def test_reads_go_first_where_the_cores_are_short(server: ServerProcess) -> None:
    nice = {role: psutil.Process(pid).nice() for role, pid in server.pids.items()}
    assert all(nice[role] == nice["supervisor"] for role in nice if role.startswith("worker"))
    assert nice["supervisor"] < nice["manager"] < nice["persister"] == nice["writer-orders"]


@pytest.mark.parametrize("role", ROLES)
def test_killed_child_is_replaced_and_the_server_goes_on(server: ServerProcess, role: str) -> None:
    id = 100 * (ROLES.index(role) + 1)
    with server.client() as client:
        before = create_user(client, id)
    dead = server.pids[role]
    others = {name: pid for name, pid in server.pids.items() if name != role}
    os.kill(dead, signal.SIGKILL)
    wait_for_replacement(server, role, dead)
    assert {name: pid for name, pid in server.pids.items() if name != role} == others
    with server.client() as client:
        assert client.get(f"/user/{id}").body == before
        create_user(client, id + 1)
    server.flush()
    assert [(id, f"u{id}", "e", None), (id + 1, f"u{id + 1}", "e", None)] == [
        row for row in server.rows("users") if row[0] in (id, id + 1)
    ]


def test_reads_go_on_while_there_is_no_manager(server: ServerProcess) -> None:
    with server.client() as client:
        before = create_user(client, 5000)
        dead = server.pids["manager"]
        os.kill(dead, signal.SIGSTOP)
        try:
            assert [client.get("/user/5000").body for _ in range(100)] == [before] * 100
        finally:
            os.kill(dead, signal.SIGKILL)
        assert [client.get("/user/5000").body for _ in range(100)] == [before] * 100
    wait_for_replacement(server, "manager", dead)


def test_flushes_beside_writes_end_no_process(server: ServerProcess) -> None:
    before = server.pids
    with server.client() as client:
        create_user(client, 6000)
    threads = [threading.Thread(target=update_and_flush, args=(server, number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.flush()
    assert server.pids == before, server.log()


def update_and_flush(server: ServerProcess, number: int) -> None:
    """Two of the clients write, two flush, so that both meet in one batch of the manager."""
    with server.client() as client, server.admin() as admin:
        for _ in range(150):
            if number % 2:
                assert admin.post("/flush?wait=1", b"").status == 200
            else:
                assert client.post("/user", {"command": "update", "id": 6000, "email": f"{number}"}).status == 200


def test_killing_the_same_worker_again_and_again_is_survived(server: ServerProcess) -> None:
    for _ in range(3):
        dead = server.pids["worker-0"]
        os.kill(dead, signal.SIGKILL)
        wait_for_replacement(server, "worker-0", dead)
    with server.client() as client:
        assert client.get("/healthz").status == 200


def test_sighup_replaces_all_workers_one_after_the_other_and_nobody_else(server: ServerProcess) -> None:
    before = server.pids
    server.signal(signal.SIGHUP)
    workers = {name for name in before if name.startswith("worker")}

    def are_replaced() -> bool:
        with server.client() as client:  # a new connection is answered at any moment of it
            assert client.get("/healthz").status == 200
        pids = server.pids
        return all(pids.get(name, before[name]) != before[name] for name in workers)

    server.wait_until(are_replaced, 2 * REPLACED_S, "all workers have new pids")
    server.wait_until(lambda: is_ready(server), REPLACED_S, "/readyz")
    assert {name: pid for name, pid in server.pids.items() if name not in workers} == {
        name: pid for name, pid in before.items() if name not in workers
    }


# ---- the end of the supervisor -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_with_everything_in_sqlite(tmp_path: Path, number: signal.Signals) -> None:
    with ServerProcess(tmp_path / "data", "--persist-period-ms", "600000") as server:
        with server.client() as client:
            for id in range(50):
                create_user(client, id)
        segment = server.run_json()["segment"]
        server.signal(number)
        assert server.wait() == 0
        assert len(server.rows("users")) == 50
        assert not Path("/dev/shm", segment).exists()
        assert not (server.data_dir / "run.json").exists()


def test_term_to_the_whole_group_loses_nothing(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--persist-period-ms", "600000") as server:
        with server.client() as client:
            for id in range(50):
                create_user(client, id)
        os.killpg(server.pids["supervisor"], signal.SIGTERM)
        assert server.wait() == 0
        assert len(server.rows("users")) == 50


def test_request_in_flight_is_answered_before_the_stop(own_server: ServerProcess) -> None:
    with own_server.raw() as raw:
        body = b'{"command":"create","id":1,"username":"u","email":"e"}'
        raw.send(b"POST /user HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body[:20]))
        own_server.wait_until(lambda: is_ready(own_server), 5, "the head of the request has arrived")
        own_server.signal(signal.SIGTERM)
        own_server.wait_until(lambda: "stopping" in own_server.log(), 5, "the stop has begun")
        raw.send(body[20:])
        assert raw.receive().status == 200
    assert own_server.wait() == 0
    assert own_server.rows("users") == [(1, "u", "e", None)]


def test_second_sigterm_leaves_at_once_and_the_journal_keeps_the_rest(own_server: ServerProcess) -> None:
    own_server.flush()
    lock = sqlite3.connect(own_server.data_dir / "users.db", isolation_level=None)
    with contextlib.closing(lock):
        lock.execute("BEGIN IMMEDIATE")  # no writer can commit now
        with own_server.client() as client:
            before = create_user(client, 1)
        own_server.signal(signal.SIGTERM)
        own_server.wait_until(lambda: "stopping" in own_server.log(), 5, "the stop has begun")
        own_server.wait_until(lambda: not is_alive_role(own_server, "worker"), 5, "the workers have gone")
        assert is_alive_role(own_server, "persister")

        def is_leaving() -> bool:  # a signal too soon after the first one counts as the same wish
            own_server.signal(signal.SIGTERM)
            return "second signal" in own_server.log()

        own_server.wait_until(is_leaving, 5, "the server leaves at the second signal")
        assert own_server.wait(5) == 5
        assert own_server.rows("users") == []
        lock.execute("ROLLBACK")
    own_server.start()
    assert own_server.request("GET", "/user/1").body == before
    assert own_server.stop() == 0
    assert own_server.rows("users") == [(1, "u1", "e", None)]


def is_alive_role(server: ServerProcess, role: str) -> bool:
    titles = []
    for pid in server.group_members():
        with contextlib.suppress(psutil.NoSuchProcess):
            titles.append(" ".join(psutil.Process(pid).cmdline()))
    return any(title.startswith(f"millrace: {role}") for title in titles)


def test_stop_that_can_not_flush_says_so_with_exit_code_5(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--stop-timeout-s", "0.5") as server:
        server.flush()
        with contextlib.closing(sqlite3.connect(server.data_dir / "products.db", isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            product = {"command": "create", "id": 1, "name": "n", "description": "d", "price": 1, "quantity": 1}
            assert server.request("POST", "/product", product).status == 200
            assert server.stop() == 5
            lock.execute("ROLLBACK")
        server.start()
        server.flush()
        assert server.rows("products") == [(1, "n", "d", 1, 1)]


def test_children_of_a_killed_supervisor_leave_and_the_next_start_has_everything(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--persist-period-ms", "600000") as server:
        with server.client() as client:
            bodies = {id: create_user(client, id) for id in range(30)}
        server.kill_supervisor()
        server.wait_until(lambda: not server.group_members(), CHILDREN_GONE_S, "the children have left")
        assert not is_open(server.port) and not is_open(server.admin_port)
        server.start()
        with server.client() as client:
            assert {id: client.get(f"/user/{id}").body for id in bodies} == bodies


# ---- exit codes of a start ---------------------------------------------------------------------------------------


def run_py(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """Run a start that fails; return exit code and stderr."""
    data_dir = [] if "--data-dir" in arguments else ["--data-dir", str(tmp_path / "other")]
    command = [sys.executable, "run.py", "--workers", "1", "--port", "0", "--admin-port", "0", "--memory", "64MiB"]
    result = subprocess.run(
        [*command, *data_dir, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, start_new_session=True
    )
    return result.returncode, result.stderr


def test_second_start_on_the_same_data_directory_exits_3(server: ServerProcess, tmp_path: Path) -> None:
    before = server.run_json()
    code, text = run_py(tmp_path, "--data-dir", str(server.data_dir))
    assert code == 3
    assert str(server.data_dir) in text
    assert server.run_json() == before
    assert is_ready(server)


def test_start_without_the_journal_of_its_databases_exits_3(own_server: ServerProcess) -> None:
    with own_server.client() as client:
        create_user(client, 1)
    own_server.flush()
    own_server.kill_all()
    journal = own_server.data_dir / "journal"
    journal.rename(own_server.data_dir / "elsewhere")
    for _ in range(2):
        code, text = run_py(own_server.data_dir, "--data-dir", str(own_server.data_dir))
        assert code == 3 and f"{journal}: the journal is missing" in text
    journal.rmdir()
    (own_server.data_dir / "elsewhere").rename(journal)
    own_server.start()
    assert own_server.request("GET", "/user/1").status == 200


def test_stop_before_the_journal_is_replayed_does_not_say_that_all_is_in_sqlite(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--persist-period-ms", "60000") as server:
        with server.client() as client:
            before = create_user(client, 1)
        server.kill_all()
        command = [sys.executable, "run.py", "--port", "0", "--admin-port", "0", "--data-dir", str(server.data_dir)]
        environment = os.environ | {"MILLRACE_FAILPOINTS": "load.start=sleep:30000"}
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as starting:
            assert starting.stderr is not None and starting.stdout is not None
            while "role=writer-users" not in starting.stderr.readline():
                pass
            starting.send_signal(signal.SIGTERM)
            output = starting.stdout.read()
        assert starting.returncode == 5 and "rows_left_in_journal=unknown" in output
        server.start()
        assert server.request("GET", "/user/1").body == before


@pytest.mark.parametrize("flag", ["--port", "--admin-port"])
@pytest.mark.parametrize("is_reuse", [False, True], ids=["taken", "taken with SO_REUSEPORT"])
def test_port_that_is_taken_exits_3(tmp_path: Path, flag: str, is_reuse: bool) -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(is_reuse))
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        code, text = run_py(tmp_path, flag, port)
    assert code == 3
    assert port in text
    assert "Traceback" not in text


def test_server_of_another_data_directory_on_the_same_port_exits_3(server: ServerProcess, tmp_path: Path) -> None:
    assert run_py(tmp_path, "--port", str(server.port))[0] == 3
    assert is_ready(server)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workers", "0"],
        ["--workers", "many"],
        ["--memory", "lots"],
        ["--port", "70000"],
        ["--config", "/nonexistent/millrace.toml"],
    ],
    ids=" ".join,
)
def test_bad_setting_exits_4_and_names_it(tmp_path: Path, arguments: list[str]) -> None:
    code, text = run_py(tmp_path, *arguments)
    assert code == 4
    assert arguments[0].strip("-") in text or arguments[1] in text
    assert "Traceback" not in text


def test_other_contract_on_the_same_data_exits_4(own_server: ServerProcess, tmp_path: Path) -> None:
    assert own_server.stop() == 0
    code, text = run_py(tmp_path, "--data-dir", str(own_server.data_dir), "--classic")
    assert (code, "classic" in text) == (4, True)


def test_unknown_flag_exits_2(tmp_path: Path) -> None:
    assert run_py(tmp_path, "--wrokers", "2")[0] == 2


def test_settings_come_from_flag_then_environment_then_file(tmp_path: Path) -> None:
    file = tmp_path / "millrace.toml"
    file.write_text('classic = true\nlog-format = "text"\nworkers = 4\n')
    environment = {"MILLRACE_LOG_FORMAT": "json", "MILLRACE_WORKERS": "3"}
    with ServerProcess(tmp_path / "data", "--config", str(file), workers=2, **environment) as server:
        assert [name for name in server.pids if name.startswith("worker-")] == ["worker-0", "worker-1"]
        assert all(line.startswith("{") for line in server.log_path.read_text().splitlines())
        user = {"command": "create", "id": 1, "username": "u", "email": "e", "password": "p"}
        assert "password" in server.request("POST", "/user", user).json
