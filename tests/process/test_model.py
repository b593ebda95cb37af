"""Random commands through the real server against a plain-Python model: every answer must be equal.

The model is written from the HTTP contract alone. Requests are sent alone or pipelined, over several connections in
turn, with stops and kills in between; then every record is read. The seed is printed; set MODEL_SEED to repeat a run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import Answer, RawClient, ServerProcess, request_bytes

STEPS = 400  # in each run between two starts
RUNS = 2
USER_IDS = range(1, 13)
PRODUCT_IDS = range(1, 9)
CONNECTIONS = 3
PIPELINE_MAX = 12
INT_MAX = 2**63 - 1
TEXTS = ["a", "ann", "Ünïcode ✓", 'quote " and \\', "x" * 4096]
NOT_TEXTS = ["", 7, None, True, ["a"], "x" * 4097]
NOT_INTEGERS = ["4", 4.5, None, True, -1, INT_MAX + 1, {}]
NOT_PRICES = ["4", None, True, -1, -0.5, []]

Json = dict[str, Any]
Expected = tuple[int, Any]  # status and the decoded body; None: any error body
Request = tuple[str, str, Json | None]


class Refused(Exception):
    """A command that the contract refuses, with its status and the text of an order error."""

    def __init__(self, status: int, text: str = "Invalid Request") -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text


class Model:
    """The contract on dictionaries."""

    def __init__(self, is_classic: bool) -> None:
        self.is_classic = is_classic
        self.users: dict[int, Json] = {}
        self.products: dict[int, Json] = {}
        self.orders: dict[int, Json] = {}

    def answer(self, method: str, path: str, body: Json | None) -> Expected:
        """Return the status and the body that the server must answer."""
        commands = {"/user": self._user, "/product": self._product, "/order": self._order}
        try:
            return 200, commands[path](body or {}) if method == "POST" else self._get(path)
        except Refused as refused:
            is_order = path.startswith("/order")
            if self.is_classic:
                return refused.status, {"status": refused.text} if is_order else {}
            return refused.status, refused.text if is_order else None

    # ---- users

    def _user(self, body: Json) -> Json:
        command = one_of(body, "create", "update", "delete")
        is_strict = command != "update"
        checks = {"username": is_text, "email": is_text}
        given = check(body, {"id": is_integer, **checks}, {"id", *checks} if is_strict else {"id"})
        given |= check(body, {"password": is_text}, {"password"} if is_strict and self.is_classic else set())
        stored = self.users.get(given["id"])
        if command == "create":
            if stored:
                raise Refused(409)
            self.users[given["id"]] = {"password": None} | given
            return self._show(given["id"])
        if stored is None:
            raise Refused(404)
        if command == "update":
            stored |= given
            return self._show(given["id"])
        is_open = stored["password"] is None or stored["password"] == given.get("password")
        if not is_open or any(given[field] != stored[field] for field in checks):
            raise Refused(401)
        del self.users[given["id"]]
        return {}

    def _show(self, id: int) -> Json:
        user = self.users[id]
        public = {"id": id, "username": user["username"], "email": user["email"]}
        if self.is_classic:
            public["password"] = hashlib.sha256(user["password"].encode()).hexdigest().upper()
        return public

    # ---- products

    def _product(self, body: Json) -> Json:
        command = one_of(body, "create", "update", "delete")
        checks = {"id": is_integer, "name": is_text, "description": is_text, "price": is_price, "quantity": is_integer}
        if command == "delete":
            del checks["description"]
        given = check(body, checks, {"id"} if command == "update" else set(checks))
        stored = self.products.get(given["id"])
        if command == "create":
            if stored:
                raise Refused(409)
            self.products[given["id"]] = {field: given[field] for field in checks}
            return dict(given)
        if stored is None:
            raise Refused(404)
        if command == "update":
            stored |= given
            return dict(stored)
        if any(given[field] != stored[field] for field in given):
            raise Refused(401)
        del self.products[given["id"]]
        return {}

    # ---- orders

    def _order(self, body: Json) -> Json:
        one_of(body, "place order")
        checks = {"product_id": is_integer, "user_id": is_integer, "quantity": lambda v: is_integer(v) and v > 0}
        given = check(body, checks, set(checks))
        product = self.products.get(given["product_id"])
        if product is None or given["user_id"] not in self.users:
            raise Refused(404)
        if given["quantity"] > product["quantity"]:
            raise Refused(400, "Exceeded quantity limit")
        product["quantity"] -= given["quantity"]
        id = len(self.orders) + 1
        self.orders[id] = {"id": id, **given, "status": "Success"}
        return dict(self.orders[id])

    def _get(self, path: str) -> Json:
        kind, _, text = path[1:].rpartition("/")
        id = int(text)
        if kind == "user/purchased" and id in self.users:
            bought: dict[str, int] = {}
            for order in self.orders.values():
                if order["user_id"] == id:
                    bought[str(order["product_id"])] = bought.get(str(order["product_id"]), 0) + order["quantity"]
            return bought
        if kind == "user" and id in self.users:
            return self._show(id)
        records = {"product": self.products, "order": self.orders}.get(kind, {})
        if id not in records:
            raise Refused(404)
        return dict(records[id])


def one_of(body: Json, *commands: str) -> str:
    command = body.get("command")
    if not isinstance(command, str) or command not in commands:
        raise Refused(400)
    return command


def check(body: Json, checks: dict[str, Callable[[Any], bool]], required: set[str]) -> Json:
    """Return the known fields of a body in the order of the contract; refuse a bad or missing one."""
    if not required <= body.keys() or not all(
        is_good(body[field]) for field, is_good in checks.items() if field in body
    ):
        raise Refused(400)
    return {field: body[field] for field in checks if field in body}


def is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.encode()) <= 4096


def is_integer(value: Any) -> bool:
    return type(value) is int and 0 <= value <= INT_MAX


def is_price(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0 and math.isfinite(value)


class Customer:
    """Makes random requests; about one in ten is wrong in one field."""

    def __init__(self, chance: random.Random, model: Model) -> None:
        self._chance = chance
        self._model = model
        # scrypt takes some 50 ms on purpose, so few users of the default contract have a password
        self._password_share = 0.9 if model.is_classic else 0.01

    def request(self) -> Request:
        make = self._chance.choice(
            [self._create_user, self._update_user, self._delete_user, self._create_product, self._update_product,
             self._delete_product, *[self._order] * 6, *[self._read] * 8]
        )  # fmt: skip
        method, path, body = make()
        if body is not None and self._chance.random() < 0.1:
            self._spoil(body)
        return method, path, body

    def _text(self) -> str:
        return self._chance.choice(TEXTS) if self._chance.random() < 0.2 else f"t{self._chance.randrange(5)}"

    def _price(self) -> int | float:
        return self._chance.choice([0, 7, 162.58, self._chance.randrange(1, 10**6) + 0.25, 10**15])

    def _password(self) -> Json:
        return {"password": f"p{self._chance.randrange(3)}"} if self._chance.random() < self._password_share else {}

    def _some(self, fields: Json) -> Json:
        return {field: value for field, value in fields.items() if self._chance.random() < 0.5}

    def _create_user(self) -> Request:
        body = {
            "command": "create",
            "id": self._chance.choice(USER_IDS),
            "username": self._text(),
            "email": self._text(),
        }
        return "POST", "/user", body | self._password()

    def _update_user(self) -> Request:
        fields = self._some({"username": self._text(), "email": self._text()})
        body = {"command": "update", "id": self._chance.choice(USER_IDS)}
        return "POST", "/user", body | fields | self._some(self._password())

    def _delete_user(self) -> Request:
        id = self._chance.choice(USER_IDS)
        stored = self._model.users.get(id, {"username": "a", "email": "a", "password": "a"})
        body = {"command": "delete", "id": id, "username": stored["username"], "email": stored["email"]}
        if stored["password"] is not None and self._chance.random() < 0.9:
            body["password"] = stored["password"]
        return "POST", "/user", body | ({"email": "differs"} if self._chance.random() < 0.3 else {})

    def _create_product(self) -> Request:
        body = {
            "command": "create", "id": self._chance.choice(PRODUCT_IDS), "name": self._text(),
            "description": self._text(), "price": self._price(), "quantity": self._chance.choice([0, 5, 50, INT_MAX]),
        }  # fmt: skip
        return "POST", "/product", body

    def _update_product(self) -> Request:
        fields = {"name": self._text(), "description": self._text(), "price": self._price(),
                  "quantity": self._chance.choice([0, 5, 50])}  # fmt: skip
        return "POST", "/product", {"command": "update", "id": self._chance.choice(PRODUCT_IDS)} | self._some(fields)

    def _delete_product(self) -> Request:
        id = self._chance.choice(PRODUCT_IDS)
        stored = dict(
            self._model.products.get(id, {"id": id, "name": "a", "description": "d", "price": 1, "quantity": 1})
        )
        stored.pop("description")
        changed = self._chance.choice([{}, {}, {"name": "differs"}, {"price": 0.125}, {"quantity": 4}])
        return "POST", "/product", {"command": "delete"} | stored | changed

    def _order(self) -> Request:
        body = {
            "command": "place order", "product_id": self._chance.choice(PRODUCT_IDS),
            "user_id": self._chance.choice(USER_IDS), "quantity": self._chance.choice([1, 1, 2, 5, 40]),
        }  # fmt: skip
        return "POST", "/order", body

    def _read(self) -> Request:
        kind = self._chance.choice(["user", "product", "order", "user/purchased"])
        id = self._chance.randint(1, max(len(self._model.orders), 1) + 1) if kind == "order" else self._chance.choice(
            USER_IDS if kind.startswith("user") else PRODUCT_IDS
        )  # fmt: skip
        return "GET", f"/{kind}/{id}", None

    def _spoil(self, body: Json) -> None:
        field = self._chance.choice(list(body))
        if self._chance.random() < 0.3:
            del body[field]
        elif field in ("id", "quantity", "product_id", "user_id"):
            body[field] = self._chance.choice(NOT_INTEGERS)
        else:
            body[field] = self._chance.choice(NOT_PRICES if field == "price" else NOT_TEXTS)


class Duel:
    """Sends each request to server and model and compares."""

    def __init__(self, server: ServerProcess, model: Model, chance: random.Random, pipeline_max: int) -> None:
        self._server = server
        self._model = model
        self._chance = chance
        self._pipeline_max = pipeline_max
        self._step = 0

    def run(self) -> None:
        """Go some steps, several requests at once where pipelined, over the connections in turn."""
        customer = Customer(self._chance, self._model)
        clients = [RawClient(self._server.port) for _ in range(CONNECTIONS)]
        try:
            for _ in range(STEPS // ((self._pipeline_max + 1) // 2)):
                pairs = []
                for _ in range(self._chance.randint(1, self._pipeline_max)):
                    request = customer.request()
                    pairs.append((request, self._model.answer(*request)))
                self._compare(self._chance.choice(clients), pairs)
        finally:
            for client in clients:
                client.close()

    def read_everything(self) -> None:
        """Compare every record there is, and some that are not."""
        paths = [f"/{kind}/{id}" for kind in ("user", "user/purchased") for id in USER_IDS]
        paths += [f"/product/{id}" for id in PRODUCT_IDS]
        paths += [f"/order/{id}" for id in range(1, len(self._model.orders) + 2)]
        with self._server.raw() as client:
            for start in range(0, len(paths), 50):
                requests = [("GET", path, None) for path in paths[start : start + 50]]
                self._compare(client, [(request, self._model.answer(*request)) for request in requests])

    def _compare(self, client: RawClient, pairs: list[tuple[Request, Expected]]) -> None:
        answers = client.pipeline([request_bytes(method, path, body or b"") for (method, path, body), _ in pairs])
        for (request, expected), answer in zip(pairs, answers, strict=True):
            self._step += 1
            assert self._is_equal(request[1], answer, *expected), (
                f"step {self._step}: {request}\nexpected: {expected}\n{answer}\nsent together: {pairs}"
            )

    def _is_equal(self, path: str, answer: Answer, status: int, body: Any) -> bool:
        if answer.status != status:
            return False
        if status != 200 and not self._model.is_classic:
            return bool(answer.json["status"] == status and (path != "/order" or answer.json["order_status"] == body))
        if path.startswith("/user/purchased"):  # the order of the products is free
            return bool(answer.json == body)
        return answer.body == json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("pipeline_max", [1, PIPELINE_MAX], ids=["one at a time", "pipelined"])
@pytest.mark.parametrize("contract", ["default", "classic"])
def test_every_answer_equals_the_models_over_stops_and_kills(tmp_path: Path, contract: str, pipeline_max: int) -> None:
    seed = int(os.environ.get("MODEL_SEED", random.SystemRandom().randrange(10**9)))
    print(f"MODEL_SEED={seed}")
    chance = random.Random(seed)
    arguments = ["--persist-period-ms", "100", *(["--classic"] if contract == "classic" else [])]
    with ServerProcess(tmp_path / "data", *arguments) as server:
        duel = Duel(server, Model(contract == "classic"), chance, pipeline_max)
        for run in range(RUNS):
            duel.run()
            duel.read_everything()
            if run % 2:
                server.kill_all()
            else:
                assert server.stop() == 0
            server.start()
            duel.read_everything()
