"""Passwords become secrets: the text that is stored, in the place of the password, as a user's private part.

Default contract: scrypt (RFC 7914) with a random salt, made in a small thread pool of the worker; hashlib gives up the
interpreter lock meanwhile, so the loop goes on serving. The manager gets only secrets and compares them in constant
time: for a delete the worker derives one with the salt that is stored. Form: `scrypt$14$8$1$<salt>$<hash>` in base64.

Classic contract: upper-case hexadecimal SHA-256, as the original services had it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from server.errors import MillraceError

COST_LOG2 = 14  # n = 2^14, r = 8, p = 1: 16 MiB and some 50 ms, the interactive setting of the scrypt paper
BLOCK_SIZE = 8
PARALLELISM = 1
SALT_BYTES = 16
HASH_BYTES = 32
MEMORY_BYTES_MAX = 64 << 20  # OpenSSL refuses above; twice what a stored secret may ask for
THREADS = 2  # 32 MiB per worker at most
WAITING_MAX = 64  # some 2 s of hashing: a client would not wait longer
NICENESS = 10  # hashing takes what serving leaves


class HashingFull(MillraceError):
    """Too many passwords wait to be hashed (503)."""


def make_secret(password: str) -> str:
    """Return the secret of a new password."""
    return _derive(password, secrets.token_bytes(SALT_BYTES), COST_LOG2, BLOCK_SIZE, PARALLELISM)


def derive_secret(password: str, stored: str) -> str:
    """Return the secret of a password with the salt and cost of a stored one: equal if the password is the same."""
    name, cost_log2, block_size, parallelism, salt, _ = stored.split("$")
    if name != "scrypt":
        raise ValueError(f"unknown kind of stored password: {name!r}")
    return _derive(password, b64decode(salt), int(cost_log2), int(block_size), int(parallelism))


def classic_secret(password: str) -> str:
    """Return what the original services stored and showed."""
    return hashlib.sha256(password.encode()).hexdigest().upper()


def _derive(password: str, salt: bytes, cost_log2: int, block_size: int, parallelism: int) -> str:
    key = hashlib.scrypt(
        password.encode(),
        salt=salt,
        n=1 << cost_log2,
        r=block_size,
        p=parallelism,
        maxmem=MEMORY_BYTES_MAX,
        dklen=HASH_BYTES,
    )
    return f"scrypt${cost_log2}${block_size}${parallelism}${b64encode(salt).decode()}${b64encode(key).decode()}"


class PasswordPool:
    """Hashes in threads; made in the worker after the fork."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting = 0
        self._pool = ThreadPoolExecutor(THREADS, "password", initializer=_be_nice)

    def submit(self, hashing: Callable[[], str], on_done: Callable[[asyncio.Future[str]], object]) -> None:
        """Run one of the functions above and hand its future to `on_done` on the loop. Raises `HashingFull`."""
        if self._waiting >= WAITING_MAX:
            raise HashingFull
        self._waiting += 1
        future = self._loop.run_in_executor(self._pool, hashing)
        future.add_done_callback(self._count_done)
        future.add_done_callback(on_done)

    def close(self) -> None:
        """Forget what waits; what runs ends within its 50 ms."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _count_done(self, _: asyncio.Future[str]) -> None:
        self._waiting -= 1


def _be_nice() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)  # on Linux: of this thread
