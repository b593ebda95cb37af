"""Passwords become secrets that tell nothing but whether a password is the same."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from base64 import b64decode
from collections.abc import Iterator

import pytest

from server.http import passwords
from server.http.passwords import HashingFull, PasswordPool, classic_secret, derive_secret, make_secret
from server.shm.layout import PRIVATE_BYTES_MAX


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("password", ["pw", "pässwörd 😀", "\0", "x" * 4096])
def test_derived_secret_is_equal_only_for_the_same_password(password: str) -> None:
    stored = make_secret(password)
    assert derive_secret(password, stored) == stored
    assert derive_secret(password + "x", stored) != stored


def test_secret_says_how_it_was_made_and_fits_its_place() -> None:
    password = "pässword"  # not ASCII, so no accident of base64 spells it
    secret = make_secret(password)
    name, cost, block, parallelism, salt, key = secret.split("$")
    assert (name, cost, block, parallelism) == ("scrypt", "14", "8", "1")
    assert len(b64decode(salt)) == 16
    assert b64decode(key) == hashlib.scrypt(password.encode(), salt=b64decode(salt), n=2**14, r=8, p=1, dklen=32)
    assert len(secret) <= PRIVATE_BYTES_MAX and password not in secret


def test_equal_passwords_have_different_secrets() -> None:
    assert make_secret("pw") != make_secret("pw")


def test_secret_of_another_cost_is_derived_with_that_cost() -> None:
    stored = make_secret("pw").replace("scrypt$14$8$1", "scrypt$4$8$1")
    assert derive_secret("pw", stored).startswith("scrypt$4$8$1$")


def test_unknown_kind_of_secret_is_an_error() -> None:
    with pytest.raises(ValueError, match="bcrypt"):
        derive_secret("pw", "bcrypt$14$8$1$x$y")


def test_classic_secret_is_upper_case_sha_256() -> None:
    assert classic_secret("é") == hashlib.sha256("é".encode()).hexdigest().upper()


def test_pool_hashes_in_its_threads_and_answers_on_the_loop(loop: asyncio.AbstractEventLoop) -> None:
    pool = PasswordPool(loop)
    names: list[str] = []

    def done(future: asyncio.Future[str]) -> None:
        names.extend((future.result(), threading.current_thread().name))
        loop.stop()

    pool.submit(lambda: threading.current_thread().name, done)
    loop.run_forever()
    pool.close()
    assert names[0].startswith("password") and names[1] == threading.current_thread().name


def test_pool_refuses_when_too_many_wait_and_takes_again(loop: asyncio.AbstractEventLoop) -> None:
    pool = PasswordPool(loop)
    gate = threading.Event()
    done = 0

    def hashing() -> str:
        gate.wait(10)
        return ""

    def on_done(_: asyncio.Future[str]) -> None:
        nonlocal done
        done += 1
        if done == passwords.WAITING_MAX:
            loop.stop()

    for _ in range(passwords.WAITING_MAX):
        pool.submit(hashing, on_done)
    with pytest.raises(HashingFull):
        pool.submit(hashing, on_done)
    gate.set()
    loop.run_forever()
    done = passwords.WAITING_MAX - 1
    pool.submit(hashing, on_done)
    loop.run_forever()
    pool.close()


def test_failed_hashing_is_in_the_future(loop: asyncio.AbstractEventLoop) -> None:
    pool = PasswordPool(loop)
    errors: list[BaseException | None] = []

    def done(future: asyncio.Future[str]) -> None:
        errors.append(future.exception())
        loop.stop()

    pool.submit(lambda: derive_secret("pw", "broken"), done)
    loop.run_forever()
    pool.close()
    assert isinstance(errors[0], ValueError)
