"""The reference `fastapi`: the users, products and orders of this system as most people would write them.

    DATABASE=FILE uvicorn tools.bench.fastapi_server:app

FastAPI with models, plain `def` endpoints (they run in its thread pool), one SQLite database with a connection per
thread, one transaction per write. It is given what a careful author would choose: WAL, uvloop, httptools, no access
log. synchronous=FULL: a write that was answered is on disk, as with Millrace.
"""

from __future__ import annotations

import os
import sqlite3
import threading

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

SCHEMA = """
CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY, username TEXT NOT NULL, email TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS products (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, description TEXT NOT NULL, price REAL NOT NULL,
    quantity INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS orders (
    id INTEGER PRIMARY KEY AUTOINCREMENT, product_id INTEGER NOT NULL, user_id INTEGER NOT NULL,
    quantity INTEGER NOT NULL, status TEXT NOT NULL
);
"""
BUSY_TIMEOUT_S = 30.0  # writers of all threads queue here

app = FastAPI()
_local = threading.local()


class User(BaseModel):
    id: int
    username: str
    email: str


class OrderCommand(BaseModel):
    command: str
    product_id: int
    user_id: int
    quantity: int = Field(ge=1)


class Order(BaseModel):
    id: int
    product_id: int
    user_id: int
    quantity: int
    status: str


def open_database(path: str) -> sqlite3.Connection:
    """Open the database and make sure of its tables."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.executescript(SCHEMA)
    return connection


def database() -> sqlite3.Connection:
    """Return the connection of this thread."""
    if not hasattr(_local, "connection"):
        _local.connection = open_database(os.environ["DATABASE"])
    connection: sqlite3.Connection = _local.connection
    return connection


@app.get("/user/{id}")
def get_user(id: int) -> User:
    row = database().execute("SELECT id, username, email FROM users WHERE id = ?", [id]).fetchone()
    if row is None:
        raise HTTPException(404)
    return User(id=row[0], username=row[1], email=row[2])


@app.post("/order")
def place_order(order: OrderCommand) -> Order:
    db = database()
    db.execute("BEGIN IMMEDIATE")
    try:
        if db.execute("SELECT 1 FROM users WHERE id = ?", [order.user_id]).fetchone() is None:
            raise HTTPException(404, "Invalid Request")
        row = db.execute("SELECT quantity FROM products WHERE id = ?", [order.product_id]).fetchone()
        if row is None:
            raise HTTPException(404, "Invalid Request")
        if row[0] < order.quantity:
            raise HTTPException(400, "Exceeded quantity limit")
        db.execute("UPDATE products SET quantity = quantity - ? WHERE id = ?", [order.quantity, order.product_id])
        cursor = db.execute(
            "INSERT INTO orders (product_id, user_id, quantity, status) VALUES (?, ?, ?, 'Success')",
            [order.product_id, order.user_id, order.quantity],
        )
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    return Order(
        id=cursor.lastrowid or 0,
        product_id=order.product_id,
        user_id=order.user_id,
        quantity=order.quantity,
        status="Success",
    )
