"""The records that the servers are filled with: the same users and products everywhere, made from their number.

All ids have eight digits, so all records of a kind have the same length and every answer the same size: what a client
received can be checked to the byte. Filling goes through SQLite, before the server starts; a million records over HTTP
would take longer than what is measured on them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from persist import schema
from server.commands import Kind
from server.config import Config
from server.data_directory import Contract, DataDirectory
from server.journal.format import DIRECTORY_NAME
from server.journal.writer import Journal

FIRST_ID = 10_000_000
USERS = 10_000
PRODUCTS = 1_000
STOCK = 10**12  # no benchmark ever sells out
CONTRACT: Contract = "default"


def user_body(id: int) -> bytes:
    """Return what GET /user/{id} answers (62 bytes)."""
    return b'{"id":%d,"username":"u%d","email":"%d@a.io"}' % (id, id, id)


def order_body(product_id: int, user_id: int) -> bytes:
    """Return the body of POST /order for one unit."""
    return b'{"command":"place order","product_id":%d,"user_id":%d,"quantity":1}' % (product_id, user_id)


def user_rows(users: int) -> Iterator[tuple[Any, ...]]:
    return ((id, f"u{id}", f"{id}@a.io", None) for id in range(FIRST_ID, FIRST_ID + users))


def product_rows(products: int) -> Iterator[tuple[Any, ...]]:
    ids = range(FIRST_ID, FIRST_ID + products)
    return ((id, f"p{id}", "a product", 9.5, STOCK) for id in ids)


def fill_data_directory(path: Path, users: int, products: int = PRODUCTS) -> None:
    """Make the data directory of a Millrace server with these records, as if it had been stopped with them."""
    directory = DataDirectory(path)
    try:
        instance = directory.next_run(CONTRACT)
    finally:
        directory.close()
    config = Config(workers=1)
    limits = (config.journal_segment_bytes, config.journal_max_bytes)
    Journal.open(path / DIRECTORY_NAME, instance.id, instance.run, *limits).close()
    rows = {Kind.USER: user_rows(users), Kind.PRODUCT: product_rows(products), Kind.ORDER: iter(())}
    for kind, records in rows.items():
        database = schema.open_for_writing(schema.database_path(path, kind), kind, instance.instance, CONTRACT)
        with closing(database), database.atomic():
            columns = schema.COLUMNS[kind]
            marks = ", ".join("?" * len(columns))
            table = f"{kind.name.lower()}s"
            database.conn.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", records)
            schema.set_checkpoint(database, users + products)  # one change made each record


def fill_plain_database(connection: sqlite3.Connection, users: int, products: int = PRODUCTS) -> None:
    """Fill the database of the reference `fastapi`."""
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO users (id, username, email) VALUES (?, ?, ?)", (row[:3] for row in user_rows(users))
    )
    connection.executemany(
        "INSERT INTO products (id, name, description, price, quantity) VALUES (?, ?, ?, ?, ?)", product_rows(products)
    )
    connection.execute("COMMIT")
