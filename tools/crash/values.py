"""What a record says, as one text: each body that was written has its own, so that a mixed one matches none."""

from __future__ import annotations

import json
from typing import Any

from tools.crash.history import Terms

JsonObject = dict[str, Any]


def user_value(body: JsonObject) -> str:
    return f"{body['username']} {body['email']}"


def product_value(body: JsonObject) -> str:
    return f"{body['name']} {body['description']} {body['price']}"


def value_of(kind: str, id: int, body: bytes) -> tuple[str, int | None]:
    """Return the value that a body shows, and the stock of a product; a body of another form is a value of its own."""
    try:
        record = json.loads(body)
        if record["id"] == id:
            if kind == "user":
                return user_value(record), None
            return product_value(record), record["quantity"]
    except (ValueError, KeyError, TypeError):
        pass
    return repr(body), None


def order_of(body: bytes) -> tuple[int, Terms]:
    """Return the id and the terms of an order as it is answered."""
    record = json.loads(body)
    return record["id"], Terms(record["product_id"], record["user_id"], record["quantity"])
