"""`Idempotency-Key`: a write that is sent again is applied once, whatever died in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import Answer, Client, ServerProcess, running_server

ORDER: dict[str, Any] = {"command": "place order", "product_id": 1, "user_id": 1, "quantity": 1}
STOCK = 100


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    for server in running_server(tmp_path / "data", "--persist-period-ms", "100"):
        with server.client() as client:
            assert client.post("/user", {"command": "create", "id": 1, "username": "u", "email": "e"}).status == 200
            product = {"command": "create", "id": 1, "name": "n", "description": "d", "price": 1, "quantity": STOCK}
            assert client.post("/product", product).status == 200
        yield server


def send(client: Client, body: dict[str, Any], key: str, path: str = "/order") -> Answer:
    return client.post(path, body, **{"Idempotency-Key": key})


def units_sold(server: ServerProcess) -> int:
    with server.client() as client:
        return STOCK - int(client.get("/product/1").json["quantity"])


def essence(answer: Answer) -> tuple[int, str | None, bytes]:
    return answer.status, answer.fields.get("write-seq"), answer.body


def test_same_key_and_body_give_the_same_answer_once(server: ServerProcess) -> None:
    with server.client() as client:
        first, other = send(client, ORDER, "a"), send(client, ORDER, "b")
        again = [send(client, ORDER, "a") for _ in range(5)]
    assert first.status == other.status == 200
    assert {essence(answer) for answer in again} == {essence(first)}
    assert essence(other) != essence(first)
    assert units_sold(server) == 2


def test_same_key_for_another_request_is_409(server: ServerProcess) -> None:
    with server.client() as client:
        assert send(client, ORDER, "a").status == 200
        assert send(client, ORDER | {"quantity": 2}, "a").status == 409
        user = {"command": "update", "id": 1, "username": "v"}
        assert send(client, user, "a", "/user").status == 409
        assert client.get("/user/1").json["username"] == "u"
    assert units_sold(server) == 1


def test_key_of_a_refused_write_is_free(server: ServerProcess) -> None:
    with server.client() as client:
        assert send(client, ORDER | {"user_id": 2}, "a").status == 404
        assert send(client, ORDER, "a").status == 200


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\xe9"])
def test_bad_key_is_400(server: ServerProcess, key: str) -> None:
    with server.client() as client:
        assert send(client, ORDER, key).status == 400
    assert units_sold(server) == 0


def test_key_holds_over_the_death_of_the_manager(server: ServerProcess) -> None:
    with server.client() as client:
        first = send(client, ORDER, "a")
        dead = server.pids["manager"]
        os.kill(dead, signal.SIGKILL)
        again = server.wait_until(lambda: retried(server, "a"), 10, "a write after the death of the manager")
    assert essence(again) == essence(first)
    assert units_sold(server) == 1


def retried(server: ServerProcess, key: str) -> Answer | None:
    with server.client() as client:
        answer = send(client, ORDER, key)
    return None if answer.status == 503 else answer


@pytest.mark.parametrize("is_flushed", [True, False], ids=["from the database", "from the journal"])
def test_key_holds_over_the_death_of_all(server: ServerProcess, is_flushed: bool) -> None:
    with server.client() as client:
        first = send(client, ORDER, "a")
    if is_flushed:
        server.flush()
    server.kill_all()
    server.start()
    with server.client() as client:
        assert essence(send(client, ORDER, "a")) == essence(first)
        assert send(client, ORDER | {"quantity": 2}, "a").status == 409
    assert units_sold(server) == 1


def test_key_holds_over_a_stop(server: ServerProcess) -> None:
    with server.client() as client:
        first = send(client, ORDER, "a")
    assert server.stop() == 0
    server.start()
    with server.client() as client:
        assert essence(send(client, ORDER, "a")) == essence(first)
    assert units_sold(server) == 1
