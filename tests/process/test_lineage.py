"""The four earlier shapes: each answers the contract of the server, and after its flush its databases hold the rows.

The rows and most tests are those of test_contract.py, run against the shapes by the fixture `world` of this module.
What a shape keeps is in memory-backed files here: these tests are about rows, not about disks.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.process import test_contract as contract
from tests.process.test_contract import (  # noqa: F401 - tests that say nothing else about the server than the contract
    ORDER,
    ORDER_ROWS,
    PRODUCT,
    PRODUCT_ROWS,
    USER,
    USER_DELETE,
    USER_ROWS,
    OrderRow,
    World,
    named,
    test_body_of_64_kib_is_taken_and_one_byte_more_is_413,
    test_body_that_is_not_utf_8_is_refused,
    test_classic_password_is_required_on_create,
    test_every_response_has_date_type_and_length,
    test_get_of_an_integer_out_of_range_finds_nothing,
    test_get_of_what_is_no_integer,
    test_get_of_what_is_not_there,
    test_head_answers_as_get_without_the_body,
    test_ids_at_the_ends_of_the_range,
    test_order_ids_increase,
    test_orders_stay_when_user_and_product_are_deleted,
    test_password_changes_by_update,
    test_password_is_never_shown_and_guards_the_delete,
    test_pipelined_answers_come_in_order_and_each_sees_the_ones_before,
    test_price_comes_back_as_the_same_number,
    test_purchases_above_the_largest_integer_still_add_up,
    test_purchases_add_up_per_product,
    test_purchases_of_a_user_are_there_again_when_the_id_comes_back,
    test_sold_out_product_takes_no_more_orders,
    test_unknown_path,
    test_wrong_method_on_a_command_path,
    test_wrong_method_on_a_record_path,
    with_value,
)
from tests.support import CHILDREN_GONE_S, ServerProcess, database_rows, request_bytes, wait_until
from tools.lineage.main import main as lineage
from tools.load import Client as LoadClient
from tools.load import make_work, run

SHAPES = ["original", "v1", "v2", "v3"]
CACHES = ["v1", "v2", "v3"]
NO_PERIOD_MS = 600_000  # longer than a test: what is flushed is flushed by the stop
SHORT_PERIOD_MS = 50


class ShapeProcess(ServerProcess):
    """One of the earlier shapes, started and stopped as the server is."""

    def __init__(self, data_dir: Path, shape: str, period_ms: int = NO_PERIOD_MS) -> None:
        super().__init__(data_dir)
        self._command = [
            sys.executable, "-m", "tools", "lineage", "run", shape, "--port", "0",
            "--data-dir", str(data_dir), "--period-ms", str(period_ms),
        ]  # fmt: skip

    def start(self, *more: str) -> Self:
        self.spawn(*more)
        line = self.wait_until(self._ready_line, 20.0, "ready line")
        self.port = int(line.split()[1].rpartition(":")[2])
        self._ports.add(self.port)
        return self

    def group_without_launcher(self) -> list[int]:
        assert self._process is not None
        return [pid for pid in self.group_members() if pid != self._process.pid]


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lineage-test-", dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture
def new_data_dir(directory: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=directory)) / "data"


@pytest.fixture(scope="module", params=SHAPES)
def world(request: pytest.FixtureRequest, directory: Path) -> Iterator[World]:
    with ShapeProcess(directory / request.param, request.param) as process, process.client() as client:
        yield World(process, client, True)


def test_rows_that_succeed(world: World) -> None:
    for path, rows in (("/user", USER_ROWS), ("/product", PRODUCT_ROWS)):
        for row in (row for row in rows if row.answer is not None):
            id = world.make()
            text = world.with_password(row.body) if path == "/user" else row.body
            answer = world.client.post(path, world.fill(text, id))
            expected = world.fill(row.classic_answer or row.answer, id).encode()
            assert answer[::2] == (200, expected), row.name
            shown = world.client.get(f"{path}/{id + ('create' in row.body)}")
            assert shown.status == 404 if '"delete"' in row.body else shown[::2] == (200, expected), row.name


def test_rows_that_are_refused_change_nothing(world: World) -> None:
    """One world for all of them: whatever one changed would show in what is read after it."""
    id = world.untouched
    paths = [f"/user/{id}", f"/user/{id + 1}", f"/product/{id}", f"/product/{id + 1}", f"/user/purchased/{id}"]
    before = [world.client.get(path)[::2] for path in paths]
    refused = 0
    for path, rows in (("/user", USER_ROWS), ("/product", PRODUCT_ROWS), ("/order", ORDER_ROWS)):
        for row in (row for row in rows if row.status != 200):
            text = world.with_password(row.body) if path == "/user" else row.body
            answer = world.client.post(path, world.fill(text, id))
            assert (answer.status, answer.json) == (row.status, {"status": row.text} if path == "/order" else {}), row
            assert [world.client.get(path)[::2] for path in paths[:4:2]] == before[:4:2], row
            refused += 1
    assert [world.client.get(path)[::2] for path in paths] == before
    assert refused > 300


@named([row for row in ORDER_ROWS if row.status == 200])
def test_order_that_succeeds(world: World, row: OrderRow) -> None:
    contract.test_order(world, row)


def test_reads_of_many_pipelining_clients_are_all_answered(world: World) -> None:
    """64 clients send 16 reads each before one of them reads an answer; the original forwards all of them."""
    ids = [world.untouched, world.make()]
    expected = [world.client.get(f"/user/{id}").body for id in ids]
    requests = [request_bytes("GET", f"/user/{id}") for id in ids * 8]
    with ExitStack() as stack:
        clients = [stack.enter_context(world.server.raw()) for _ in range(64)]
        for client in clients:
            client.send(b"".join(requests))
        for client in clients:
            assert [client.receive()[::2] for _ in requests] == [(200, body) for body in expected * 8]


def test_no_request_of_this_module_is_logged_as_an_error(world: World) -> None:
    assert world.server.log().partition("--- stdout")[0].strip() == "--- log of the server ---"


# ---- rows in the databases ---------------------------------------------------------------------------------------


def rows_of(data_dir: Path) -> dict[str, list[tuple[Any, ...]]]:
    return {name: database_rows(data_dir, name) for name in ("users", "products", "orders")}


def some_of_everything(process: ShapeProcess) -> dict[str, list[tuple[Any, ...]]]:
    """Create, update, delete and order; return the rows that the databases must hold then."""
    with process.client() as client:
        world = World(process, client, True)
        kept, deleted, other = world.untouched, world.make(), world.make()
        order = world.fill(ORDER, kept)
        for path, body in (
            ("/order", order),
            ("/order", with_value(order, "quantity", "3")),
            ("/order", with_value(order, "product_id", str(other))),
            ("/user", f'{{"command":"update","id":{kept},"username":"bob","password":"another"}}'),
            ("/product", f'{{"command":"update","id":{other},"price":7.0}}'),
            ("/user", world.fill(world.with_password(USER_DELETE), deleted)),
            ("/user", world.fill(world.with_password(USER_DELETE), other)),
            ("/user", world.fill(world.with_password(USER), other)),
            ("/product", f'{{"command":"delete","id":{deleted},"name":"lamp","price":162.58,"quantity":90}}'),
        ):
            world.expect_200(client.post(path, body))
        ann = client.get(f"/user/{other}").json["password"]
        bob = client.get(f"/user/{kept}").json["password"]
    lamp = ("lamp", "a lamp", 162.58)
    return {
        "users": [(kept, "bob", "ann@example.com", bob), (other, "ann", "ann@example.com", ann)],
        "products": [
            (kept, *lamp, 67), (kept + 2, *lamp, 90), (deleted + 2, *lamp, 90), (other, "lamp", "a lamp", 7, 70),
            (other + 2, *lamp, 90),
        ],
        "orders": [
            (1, kept, kept, 20, "Success"), (2, kept, kept, 3, "Success"), (3, other, kept, 20, "Success"),
        ],
    }  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_databases_hold_the_rows_after_the_flush_of_a_stop(shape: str, new_data_dir: Path) -> None:
    with ShapeProcess(new_data_dir, shape) as process:
        expected = some_of_everything(process)
        assert process.stop() == 0
    assert rows_of(new_data_dir) == expected


@pytest.mark.parametrize("shape", CACHES)
def test_databases_hold_the_rows_after_some_periods(shape: str, new_data_dir: Path) -> None:
    with ShapeProcess(new_data_dir, shape, SHORT_PERIOD_MS) as process:
        expected = some_of_everything(process)
        process.wait_until(lambda: rows_of(new_data_dir) == expected, 10.0, f"rows {expected}")


@pytest.mark.parametrize("shape", SHAPES)
def test_original_work_by_concurrent_clients_reads_back_also_after_a_restart(shape: str, new_data_dir: Path) -> None:
    work = make_work(60, 20, 300, seed=1, has_passwords=True)
    with ShapeProcess(new_data_dir, shape, SHORT_PERIOD_MS) as process:
        with_clients(process, lambda client: run(client, work))
        assert process.stop() == 0
        before = rows_of(new_data_dir)
        process.start()
        with process.client() as client:
            for id, product_id, user_id, quantity, status in before["orders"]:
                order = {"id": id, "product_id": product_id, "user_id": user_id, "quantity": quantity, "status": status}
                assert client.get(f"/order/{id}").json == order
            ordered = client.post("/order", '{"command":"place order","product_id":1,"user_id":1,"quantity":1}')
            assert ordered.status == 400 or ordered.json["id"] == max(row[0] for row in before["orders"]) + 1
    assert [len(before[name]) for name in ("users", "products", "orders")] == [60, 20, 300]


def with_clients(process: ShapeProcess, work: Callable[[LoadClient], tuple[Any, str | None]]) -> None:
    client = LoadClient(f"http://127.0.0.1:{process.port}", 10)
    try:
        assert work(client)[1] is None
    finally:
        client.close()


# ---- the defects ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_what_only_a_cache_acknowledged_is_lost_in_a_crash(shape: str, new_data_dir: Path) -> None:
    with ShapeProcess(new_data_dir, shape) as process:
        with process.client() as client:
            created = PRODUCT.replace("ID", "5")
            assert client.post("/product", created).status == 200
        process.kill_all()
        process.start()
        status = process.request("GET", "/product/5").status
    assert status == (404 if shape in CACHES else 200)


def test_cache_of_version_1_answers_nobody_while_it_flushes(new_data_dir: Path) -> None:
    """The users database is locked from outside, so the flush can not end: the cache waits, and so does the reader."""
    with ShapeProcess(new_data_dir, "v1", SHORT_PERIOD_MS) as process:
        lock = sqlite3.connect(new_data_dir / "users.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        with process.raw() as raw:
            with process.client() as client:
                assert client.post("/user", USER.replace("ID", "5")[:-1] + ',"password":"x"}').status == 200
            raw.socket.settimeout(0.2)

            def is_waiting() -> bool:
                raw.send(b"GET /user/5 HTTP/1.1\r\nHost: test\r\n\r\n")
                try:
                    return raw.receive().status != 200
                except TimeoutError:
                    return True

            wait_until(is_waiting, 5.0, "a read that waits", process.log)
        lock.execute("COMMIT")
        lock.close()
        process.wait_until(lambda: len(rows_of(new_data_dir)["users"]) == 1, 10.0, "the row")
        assert process.request("GET", "/user/5").status == 200


@pytest.mark.parametrize("shape", ["v1", "v2"])
def test_stop_says_how_many_commands_it_waits_for(shape: str, new_data_dir: Path) -> None:
    """The users database is locked from outside, so the flush of the stop has not ended when this is said."""
    with ShapeProcess(new_data_dir, shape) as process:
        lock = sqlite3.connect(new_data_dir / "users.db", isolation_level=None)
        with process.client() as client:
            for id in (1, 2, 3):
                body = USER.replace("ID", str(id))[:-1] + ',"password":"x"}'
                assert client.post("/user", body).status == 200
        assert "the stop waits" not in process.log()
        lock.execute("BEGIN EXCLUSIVE")
        process.signal(signal.SIGTERM)
        said = "the stop waits for the order service: commands=3\n"
        process.wait_until(lambda: said in process.log(), 10.0, said)
        assert process.log().count("the stop waits") == 1
        lock.execute("COMMIT")
        lock.close()
        assert process.wait() == 0
    assert len(rows_of(new_data_dir)["users"]) == 3


def test_stop_with_nothing_to_wait_for_says_nothing(new_data_dir: Path) -> None:
    with ShapeProcess(new_data_dir, "v2") as process:
        assert process.stop() == 0
        assert "the stop waits" not in process.log()


# ---- life ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_processes_leave_when_the_launcher_is_killed(shape: str, new_data_dir: Path) -> None:
    with ShapeProcess(new_data_dir, shape) as process:
        assert process.group_without_launcher()
        process.kill_supervisor()
        process.wait_until(lambda: not process.group_members(), CHILDREN_GONE_S, "no process left")


def test_shape_ends_when_one_of_its_processes_dies(new_data_dir: Path) -> None:
    with ShapeProcess(new_data_dir, "v3") as process:
        os.kill(process.group_without_launcher()[0], signal.SIGKILL)
        assert process.wait() == 1
        process.wait_until(lambda: not process.group_members(), CHILDREN_GONE_S, "no process left")


def test_port_that_is_taken_ends_the_start_with_3(new_data_dir: Path) -> None:
    with ShapeProcess(new_data_dir, "original") as process:
        second = ShapeProcess(new_data_dir.with_name("second"), "v3")
        second._command[second._command.index("--port") + 1] = str(process.port)
        second.spawn()
        assert second.wait() == 3
        assert json.dumps(process.port) in second.log()


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("port", "abc", "invalid port value: 'abc'"),
        ("port", "65536", "must be from 0 to 65535"),
        ("period-ms", "1s", "invalid period_ms value: '1s'"),
        ("period-ms", "0", "must be at least 1"),
    ],
)
def test_number_that_is_none_is_a_usage_error_that_names_it(
    option: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        lineage(["run", "v1", "--data-dir", "nowhere", f"--{option}", text])
    assert f"error: argument --{option}: {message}" in capsys.readouterr().err
