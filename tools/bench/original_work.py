"""The client of the row `threads`: 7,500 POSTs by 10 Python threads, exactly as `python -m tools load` sends them.

    python -m tools.bench.original_work PORT [--echo]

Prints one JSON object. With --echo the server is one that answers everything alike: the answers only have to be 200.
Otherwise the orders must have been given 5,500 different ids.
"""

from __future__ import annotations

import json
import sys

from tools.connection import post
from tools.load import Client, Phase, make_work

USERS, PRODUCTS, ORDERS = 1000, 1000, 5500
THREADS = 10
SEED = 1


def main(port: int, is_echo: bool) -> None:
    """Send the work and print the time that all three phases took together."""
    work = make_work(USERS, PRODUCTS, ORDERS, SEED, has_passwords=False)
    client = Client(f"http://127.0.0.1:{port}", THREADS)
    phases = []
    for name, path, command, records in (
        ("users", "/user", "create", work.users),
        ("products", "/product", "create", work.products),
        ("orders", "/order", "place order", work.orders),
    ):
        bodies = [json.dumps({"command": command} | record, separators=(",", ":")).encode() for record in records]
        phases.append(client.send(name, [post(client.host, path, body) for body in bodies]))
    client.close()
    seconds = sum(phase.seconds for phase in phases)
    requests = sum(len(phase.answers) for phase in phases)
    print(json.dumps({"seconds": seconds, "requests": requests, "problem": _problem(phases, is_echo)}))


def _problem(phases: list[Phase], is_echo: bool) -> str:
    for phase in phases:
        if not phase.is_all_200:
            return f"{phase.name}: statuses {dict(phase.statuses)}"
    ids = {json.loads(answer.body)["id"] for answer in phases[-1].answers}
    return "" if is_echo or len(ids) == ORDERS else f"{ORDERS} orders got {len(ids)} ids"


if __name__ == "__main__":
    main(int(sys.argv[1]), "--echo" in sys.argv[2:])
