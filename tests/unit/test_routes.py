"""The public port: paths, methods, reads, writes, passwords; statuses in their order."""

from __future__ import annotations

from typing import Any

import pytest

from server.commands import INT_MAX, DeleteUser, Kind, Outcome, PlaceOrder, UpdateUser
from server.config import Durability
from server.http.passwords import HashingFull, classic_secret, derive_secret, make_secret
from server.http.routes import TargetInvalid, parse_id, path_segments
from tests.http_fakes import FakeServer, create_user, get, post

ORDER = {"command": "place order", "product_id": 2, "user_id": 1, "quantity": 20}
PRODUCT = {"command": "create", "id": 1, "name": "a", "description": "b", "price": 1, "quantity": 1}
DELETE = {"command": "delete", "id": 1, "username": "ann", "email": "ann@example.com"}


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


# ---- targets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "segments"),
    [
        (b"/", ["", ""]),
        (b"/user", ["", "user"]),
        (b"/user/5?x=/y", ["", "user", "5"]),
        (b"/user//5", ["", "user", "", "5"]),
        (b"/us%65r/%35", ["", "user", "5"]),
        (b"/user%2F5", ["", "user/5"]),
        (b"/%C3%A9", ["", "é"]),
        (b"http://shop/user/5?x", ["", "user", "5"]),
        (b"HTTP://shop:80", ["", ""]),
        (b"https://shop?x", ["", ""]),
        (b"*", ["*"]),
    ],
)
def test_path_of_a_target(target: bytes, segments: list[str]) -> None:
    assert path_segments(target) == segments


@pytest.mark.parametrize(
    "target", [b"", b"user", b"?x", b"ftp://shop/user", b"http:/user", b"/a#b", b"/%", b"/%4", b"/%gg", b"/%ff", b"**"]
)
def test_target_without_a_path_is_refused(target: bytes) -> None:
    with pytest.raises(TargetInvalid):
        path_segments(target)


@pytest.mark.parametrize("id", [0, 1, 10, INT_MAX])
def test_id_is_a_json_integer(id: int) -> None:
    assert parse_id(str(id)) == id


@pytest.mark.parametrize(
    "text",
    ["", "-1", "+5", "007", "00", "1.0", "1e3", "x", " 5", "5 ", "5\n", "\u0661", "²", str(INT_MAX + 1), "9" * 5000],
)
def test_what_is_no_id(text: str) -> None:
    assert parse_id(text) is None


# ---- paths and methods ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/users", "/user/1/2", "/user/purchased/1/2", "/User", "/admin", "/stats", "//user"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_unknown_path_is_404(server: FakeServer, path: str, method: str) -> None:
    assert server.connect().request(get(path, method=method)).status == 404


@pytest.mark.parametrize(
    ("path", "allow", "methods"),
    [
        ("/user", "POST", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"]),
        ("/product", "POST", ["GET"]),
        ("/order", "POST", ["GET"]),
        ("/user?x", "POST", ["GET"]),
        ("/user/1", "GET, HEAD", ["POST", "PUT", "DELETE", "OPTIONS"]),
        ("/user/abc", "GET, HEAD", ["POST"]),
        ("/product/1", "GET, HEAD", ["POST"]),
        ("/order/1", "GET, HEAD", ["POST"]),
        ("/user/purchased/1", "GET, HEAD", ["POST"]),
        ("/healthz", "GET, HEAD", ["POST"]),
    ],
)
def test_wrong_method_is_405_with_allow(server: FakeServer, path: str, allow: str, methods: list[str]) -> None:
    client = server.connect()
    for method in methods:
        answer = client.request(get(path, method=method), is_head=method == "HEAD")
        assert (answer.status, answer.fields["allow"]) == (405, allow)


def test_healthz_answers(server: FakeServer) -> None:
    assert server.connect().request(get("/healthz")).json == {"status": "ok"}


# ---- reads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [(Kind.USER, "user"), (Kind.PRODUCT, "product"), (Kind.ORDER, "order")])
def test_read_answers_the_record_of_its_kind(server: FakeServer, kind: Kind, name: str) -> None:
    server.add(kind, 5, b'{"id":5}')
    client = server.connect()
    for _ in range(2):  # careful path, fast path
        assert client.request(get(f"/{name}/5")).body == b'{"id":5}'
        assert client.request(get(f"/{name}/6")).status == 404
    for other in {"user", "product", "order"} - {name}:
        assert client.request(get(f"/{other}/5")).status == 404
    assert server.counts.fast_reads == 1 and server.counts.reads == 1 and server.counts.client_errors == 4


@pytest.mark.parametrize("id", [0, 1, INT_MAX, INT_MAX - 1, 10**18])
def test_every_id_can_be_read(server: FakeServer, id: int) -> None:
    server.add(Kind.USER, id, b"{}")
    client = server.connect()
    assert [client.request(get(f"/user/{id}")).status for _ in range(2)] == [200, 200]


@pytest.mark.parametrize(
    "path", ["/user/", "/user/007", "/user/purchased", "/user/purchased/", "/user/purchased/x", "/product/-1"]
)
def test_id_that_is_no_integer_is_400(server: FakeServer, path: str) -> None:
    assert server.connect().request(get(path)).status == 400


@pytest.mark.parametrize("id", [str(2**63), "9" * 19, "9" * 5000])
def test_too_large_an_id_is_400_on_both_paths(server: FakeServer, id: str) -> None:
    client = server.connect()
    assert [client.request(get(f"/user/{id}")).status for _ in range(2)] == [400, 400]


def test_purchases_are_those_of_the_user(server: FakeServer) -> None:
    server.table.bought[1] = b'{"2":3}'
    client = server.connect()
    assert client.request(get("/user/purchased/1")).json == {"2": 3}
    assert client.request(get("/user/purchased/2")).status == 404


def test_errors_of_orders_say_their_status(server: FakeServer) -> None:
    client = server.connect()
    for path, status in (("/order/x", 400), ("/order/1", 404)):
        answer = client.request(get(path))
        assert (answer.status, answer.json["order_status"]) == (status, "Invalid Request")
    assert "order_status" not in client.request(get("/user/1")).json


# ---- writes -----------------------------------------------------------------------------------------------------


def test_write_answers_with_body_and_seq(server: FakeServer) -> None:
    client = server.connect()
    client.send(post("/user", create_user(7)))
    server.queue.answer()
    [answer] = client.take()
    assert answer.json == {"id": 7, "username": "ann", "email": "ann@example.com"}
    assert answer.fields["write-seq"] == "1"


@pytest.mark.parametrize(
    ("path", "body", "outcome", "status"),
    [
        ("/user", create_user(7), Outcome.EXISTS, 409),
        ("/user", DELETE, Outcome.MISSING, 404),
        ("/user", DELETE, Outcome.MISMATCH, 401),
        ("/product", PRODUCT, Outcome.EXISTS, 409),
        ("/order", ORDER, Outcome.MISSING, 404),
        ("/order", ORDER, Outcome.OUT_OF_STOCK, 400),
        ("/user", create_user(7), Outcome.MEMORY_FULL, 507),
        ("/user", create_user(7), None, 504),
    ],
)
def test_outcome_is_the_status(
    server: FakeServer, path: str, body: dict[str, Any], outcome: Outcome | None, status: int
) -> None:
    client = server.connect()
    client.send(post(path, body))
    server.queue.answer(outcome)
    assert [answer.status for answer in client.take()] == [status]


@pytest.mark.parametrize("path", ["/user", "/product", "/order"])
@pytest.mark.parametrize("is_classic", [False, True])
def test_invalid_body_is_400_and_reaches_nobody(path: str, is_classic: bool) -> None:
    server = FakeServer(is_classic)
    server.queue.is_full = True  # a 400 comes before that
    answer = server.connect().request(post(path, {"command": "create", "id": "x"}))
    assert answer.status == 400 and not server.queue.submitted
    if is_classic:
        assert answer.json == ({"status": "Invalid Request"} if path == "/order" else {})
    else:
        assert answer.json["detail"]
        assert ("order_status" in answer.json) == (path == "/order")


def test_problem_names_the_field(server: FakeServer) -> None:
    assert "$.id" in server.connect().request(post("/user", create_user(-1))).json["detail"]


def test_full_queue_is_503_at_once(server: FakeServer) -> None:
    server.queue.is_full = True
    answer = server.connect().request(post("/order", ORDER))
    assert answer.status == 503 and "retry-after" in answer.fields


@pytest.mark.parametrize(
    ("lines", "level"),
    [
        ([], Durability.JOURNAL),
        (["Durability: memory"], Durability.MEMORY),
        (["durability:  journal "], Durability.JOURNAL),
        (["DURABILITY: database"], Durability.DATABASE),
    ],
)
def test_durability_is_that_of_the_request(server: FakeServer, lines: list[str], level: Durability) -> None:
    server.connect().send(post("/order", ORDER, *lines))
    assert server.queue.submitted[0].command == PlaceOrder(2, 1, 20)
    assert server.queue.submitted[0].level is level


def test_key_goes_with_the_command_and_knows_its_request(server: FakeServer) -> None:
    other = ORDER | {"quantity": 21}
    for key, body in (("a b", ORDER), ("a b", ORDER), ("a b", other), ("c", ORDER)):
        server.connect().send(post("/order", body, f"Idempotency-Key: {key}"))
    server.connect().send(post("/order", ORDER))
    first, same, changed, another, none = [submitted.token for submitted in server.queue.submitted]
    assert first and changed and another and none is None
    assert first == same and first.key == changed.key and first != changed and first.key != another.key


@pytest.mark.parametrize("value", ["", "é", "x" * 256])
def test_invalid_key_is_400(server: FakeServer, value: str) -> None:
    answer = server.connect().request(post("/order", ORDER, f"Idempotency-Key: {value}"))
    assert answer.status == 400 and not server.queue.submitted


@pytest.mark.parametrize("value", ["Memory", "", "disk", "memory, journal", "1"])
def test_invalid_durability_is_400(server: FakeServer, value: str) -> None:
    answer = server.connect().request(post("/order", ORDER, f"Durability: {value}"))
    assert answer.status == 400 and not server.queue.submitted


# ---- passwords --------------------------------------------------------------------------------------------------


def test_password_is_hashed_before_the_manager_sees_the_command(server: FakeServer) -> None:
    client = server.connect()
    client.send(post("/user", create_user(7, password="pw")))
    assert not server.queue.submitted
    server.passwords.run()
    [command] = server.queue.commands
    assert derive_secret("pw", command.secret) == command.secret  # type: ignore[union-attr,arg-type]
    server.queue.answer()
    assert b"password" not in client.take()[0].body


def test_update_with_a_password_is_hashed(server: FakeServer) -> None:
    server.connect().send(post("/user", {"command": "update", "id": 1, "password": "pw"}))
    server.passwords.run()
    [command] = server.queue.commands
    assert isinstance(command, UpdateUser) and command.secret is not None and command.secret.startswith("scrypt$")


def test_delete_sends_the_secret_derived_from_the_stored_salt(server: FakeServer) -> None:
    stored = make_secret("pw")
    server.add(Kind.USER, 1)
    server.table.privates[1] = stored.encode()
    client = server.connect()
    for password in ("pw", "wrong"):
        client.send(post("/user", DELETE | {"password": password}))
        server.passwords.run()
        [command] = server.queue.commands
        assert isinstance(command, DeleteUser) and (command.secret == stored) == (password == "pw")
        server.queue.answer(Outcome.MISMATCH)


@pytest.mark.parametrize("has_user", [True, False])
def test_delete_without_a_stored_password_goes_to_the_manager_at_once(server: FakeServer, has_user: bool) -> None:
    if has_user:
        server.add(Kind.USER, 1)
    server.connect().send(post("/user", DELETE | {"password": "pw"}))
    assert server.queue.commands == [DeleteUser(1, "ann", "ann@example.com", None)]


def test_missing_password_is_for_the_manager_to_refuse(server: FakeServer) -> None:
    server.add(Kind.USER, 1)
    server.table.privates[1] = b"scrypt$..."
    server.connect().send(post("/user", DELETE))
    assert server.queue.commands == [DeleteUser(1, "ann", "ann@example.com", None)]


def test_nothing_passes_a_request_whose_password_is_hashed(server: FakeServer) -> None:
    client = server.connect()
    client.send(post("/user", create_user(7, password="pw")) + post("/user", create_user(8)) + get("/user/7"))
    assert not server.queue.submitted
    server.passwords.run()
    server.queue.answer()
    server.queue.answer()
    assert [answer.json["id"] for answer in client.take()] == [7, 8, 7]


def test_delete_with_a_password_looks_at_the_table_after_the_writes_before_it(server: FakeServer) -> None:
    client = server.connect()
    client.send(post("/user", create_user(1)) + post("/user", DELETE | {"password": "pw"}))
    assert len(server.queue.submitted) == 1 and not server.passwords.waiting
    server.table.privates[1] = make_secret("pw").encode()
    server.queue.answer()
    assert len(server.passwords.waiting) == 1


def test_too_many_waiting_passwords_are_503(server: FakeServer) -> None:
    server.passwords.error = HashingFull()
    answer = server.connect().request(post("/user", create_user(7, password="pw")))
    assert answer.status == 503 and "retry-after" in answer.fields


def test_failed_hashing_is_500(server: FakeServer) -> None:
    server.add(Kind.USER, 1)
    server.table.privates[1] = b"unknown"
    client = server.connect()
    client.send(post("/user", DELETE | {"password": "pw"}))
    server.passwords.run()
    assert [answer.status for answer in client.take()] == [500]


def test_delete_meets_a_busy_slot_and_tries_again(server: FakeServer) -> None:
    server.table.busy = 1
    server.connect().send(post("/user", DELETE | {"password": "pw"}))
    assert not server.queue.submitted
    server.loop.run_calls()
    assert len(server.queue.submitted) == 1


@pytest.mark.parametrize("command", ["create", "update", "delete"])
def test_classic_secret_is_made_at_once(command: str) -> None:
    server = FakeServer(is_classic=True)
    server.connect().send(post("/user", create_user(7, command=command, password="pw")))
    [found] = server.queue.commands
    assert found.secret == classic_secret("pw")  # type: ignore[union-attr]
