"""The load tool against a small in-process server: what it sends, what it counts, and when it says that all is well."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tools import load
from tools.connection import BrokenAnswer, Connection, get

Reply = tuple[int, bytes]


class Shop:
    """The rules of the contract, just enough for a load. `spoil` may change any reply."""

    def __init__(self, is_classic: bool = False) -> None:
        self.is_classic = is_classic
        self.users: dict[int, dict[str, Any]] = {}
        self.products: dict[int, dict[str, Any]] = {}
        self.orders: dict[int, dict[str, Any]] = {}
        self.spoil: Callable[[str, Reply], Reply] = lambda _path, reply: reply
        self.connections = 0
        self.lock = threading.Lock()

    def post(self, path: str, body: dict[str, Any]) -> Reply:
        del body["command"]
        if path == "/order":
            return self._place(body)
        if path == "/user" and self.is_classic and "password" not in body:
            return 400, b"{}"
        records = self.users if path == "/user" else self.products
        if body["id"] in records:
            return 409, b'{"title":"Conflict"}'
        password = body.pop("password", None)
        if self.is_classic and password is not None:
            body["password"] = hashlib.sha256(password.encode()).hexdigest().upper()
        records[body["id"]] = body
        return 200, encode(body)

    def _place(self, order: dict[str, Any]) -> Reply:
        product = self.products[order["product_id"]]
        if order["quantity"] > product["quantity"]:
            return 400, b'{"order_status":"Exceeded quantity limit"}'
        product["quantity"] -= order["quantity"]
        id = len(self.orders) + 1
        self.orders[id] = {"id": id, **order, "status": "Success"}
        return 200, encode(self.orders[id])

    def get(self, path: str) -> Reply:
        kind, id = re.fullmatch(r"/(user|product|order|user/purchased)/(\d+)", path).groups()
        if kind == "user/purchased":
            bought: dict[str, int] = {}
            for order in self.orders.values():
                if order["user_id"] == int(id):
                    bought[str(order["product_id"])] = bought.get(str(order["product_id"]), 0) + order["quantity"]
            return 200, encode(bought)
        record = {"user": self.users, "product": self.products, "order": self.orders}[kind].get(int(id))
        return (200, encode(record)) if record else (404, b"{}")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    shop: Shop

    def setup(self) -> None:
        super().setup()
        with self.shop.lock:
            self.shop.connections += 1

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.shop.lock:
            self._send(self.shop.post(self.path, body))

    def do_GET(self) -> None:
        with self.shop.lock:
            self._send(self.shop.get(self.path))

    def _send(self, reply: Reply) -> None:
        status, body = self.shop.spoil(f"{self.command} {self.path}", reply)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def serve(shop: Shop) -> Iterator[tuple[Shop, str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ShopHandler", (Handler,), {"shop": shop}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield shop, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def shop() -> Iterator[tuple[Shop, str]]:
    yield from serve(Shop())


@pytest.fixture
def classic_shop() -> Iterator[tuple[Shop, str]]:
    yield from serve(Shop(is_classic=True))


def run(url: str, *more: str) -> int:
    return load.main(["--url", url, "--users", "20", "--products", "10", "--orders", "90", "--threads", "4", *more])


def test_good_load_exits_0_and_leaves_exactly_its_records(shop: tuple[Shop, str], tmp_path: Path) -> None:
    shop, url = shop
    report = tmp_path / "report.json"
    assert run(url, "--json", str(report)) == 0
    assert (len(shop.users), len(shop.products), len(shop.orders)) == (20, 10, 90)
    figures = json.loads(report.read_text())
    assert figures["ok"] is True
    assert [(phase["name"], phase["requests"], phase["statuses"]) for phase in figures["phases"]] == [
        ("users", 20, {"200": 20}),
        ("products", 10, {"200": 10}),
        ("orders", 90, {"200": 90}),
        ("read-back", 20 + 10 + 90 + 20, {"200": 140}),
    ]
    assert all(phase["mismatches"] == 0 and phase["rate"] > 0 for phase in figures["phases"])


def test_each_thread_keeps_one_connection(shop: tuple[Shop, str]) -> None:
    shop, url = shop
    assert run(url) == 0
    assert shop.connections == 4


def test_same_seed_makes_the_same_work_and_another_seed_another() -> None:
    assert load.make_work(5, 5, 50, seed=7, has_passwords=True) == load.make_work(5, 5, 50, seed=7, has_passwords=True)
    assert load.make_work(5, 5, 50, seed=7, has_passwords=True) != load.make_work(5, 5, 50, seed=8, has_passwords=True)


@pytest.mark.parametrize("seed", range(20))
def test_orders_never_exceed_the_stock(seed: int) -> None:
    work = load.make_work(3, 4, 500, seed, has_passwords=False)
    ordered = load.units_by_product(work.orders)
    assert all(product["quantity"] >= ordered[product["id"]] for product in work.products)


def test_users_have_a_password_only_when_asked() -> None:
    assert all("password" not in user for user in load.make_work(5, 1, 0, 1, has_passwords=False).users)
    assert all(user["password"] for user in load.make_work(5, 1, 0, 1, has_passwords=True).users)


def test_passwords_in_the_default_contract_are_not_expected_back(shop: tuple[Shop, str]) -> None:
    assert run(shop[1], "--passwords") == 0


def test_classic_server_works_with_passwords(classic_shop: tuple[Shop, str]) -> None:
    assert run(classic_shop[1], "--passwords") == 0


def test_classic_server_without_passwords_is_explained(
    classic_shop: tuple[Shop, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(classic_shop[1]) == 1
    assert "--passwords" in capsys.readouterr().err


def test_second_load_names_the_conflict_and_exits_1(shop: tuple[Shop, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shop[1]) == 0
    assert run(shop[1]) == 1
    assert "20 ids exist already" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/user/3", "/product/3", "/order/3", "/user/purchased/3"])
def test_a_record_that_reads_back_wrong_exits_1_and_is_named(
    shop: tuple[Shop, str], path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shop[0].spoil = lambda line, reply: (200, b'{"id":3}') if line == f"GET {path}" else reply
    assert run(shop[1]) == 1
    assert f'{path}: 200 {{"id":3}}, expected' in capsys.readouterr().err


def test_a_missing_record_exits_1(shop: tuple[Shop, str]) -> None:
    shop[0].spoil = lambda line, reply: (404, b"{}") if line == "GET /order/7" else reply
    assert run(shop[1]) == 1


def test_an_order_id_given_twice_exits_1(shop: tuple[Shop, str], capsys: pytest.CaptureFixture[str]) -> None:
    shop[0].spoil = lambda line, reply: (
        (200, reply[1].replace(b'"id":8,', b'"id":7,', 1)) if line == "POST /order" else reply
    )
    assert run(shop[1]) == 1
    assert "/order/7: 2 orders were answered with this id" in capsys.readouterr().err


def test_one_refused_order_exits_1_and_is_counted(
    shop: tuple[Shop, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop[0].spoil = lambda _line, reply: (503, b"{}") if b'"id":9,"product_id"' in reply[1] else reply
    report = tmp_path / "report.json"
    assert run(shop[1], "--json", str(report)) == 1
    assert json.loads(report.read_text())["phases"][2]["statuses"] == {"200": 89, "503": 1}
    assert "orders: 1 of 90 requests were not answered 200" in capsys.readouterr().err


def test_dead_server_exits_1_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    for _shop, url in serve(Shop()):
        dead_url = url
    assert run(dead_url) == 1
    assert "no answer" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--url", "ftp://x"], ["--threads", "0"], ["--users", "0"], ["--users", "-1"]])
def test_unusable_options_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        load.main(arguments)
    assert exit.value.code == 2


def raw_server(answers: list[bytes]) -> Iterator[int]:
    """Accept one connection per entry of `answers`, read a request, send the entry in two pieces, close."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_raw() -> None:
            for answer in answers:
                with listener.accept()[0] as peer:
                    peer.recv(65536)
                    peer.sendall(answer[:20])
                    peer.sendall(answer[20:])

        thread = threading.Thread(target=serve_raw)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"x\r\n\r\n",
    ],
)
def test_broken_answer_is_an_error_and_the_next_exchange_connects_again(answer: bytes) -> None:
    for port in raw_server([answer, b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-LENGTH: 2\r\n\r\nok"]):
        connection = Connection("127.0.0.1", port, 5)
        with pytest.raises(BrokenAnswer):
            connection.exchange(get("host", "/"))
        assert connection.exchange(get("host", "/"))[:2] == (200, b"ok")
        connection.close()
