"""The data directory: its lock, its identity, and `run.json`, which says what runs there now.

    lock            flock of the supervisor; inherited, so it is free only when every process of the last run is gone
    instance.json   {"version", "instance", "contract", "run"}: made once; `run` counts the starts
    run.json        ports, pids and segment of the running server, replaced atomically at every change
    journal/        server/journal
    *.db            persist/schema.py

Every database and every journal segment carries the instance, so files of two directories are never mixed up.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from server.errors import ConfigError, DataError, StartError
from server.shm.segment import remove_stale

VERSION = 1

Contract = Literal["default", "classic"]


class Instance(Struct, frozen=True):
    """The identity of a data directory."""

    version: int
    instance: str  # 32 hex digits
    contract: Contract
    run: int

    @property
    def id(self) -> bytes:
        """The 16 bytes that databases and journal carry."""
        return bytes.fromhex(self.instance)


class Run(Struct, frozen=True):
    """`run.json`."""

    host: str
    port: int
    admin_port: int
    started: str
    segment: str
    pids: dict[str, int]


class DataDirectory:
    """A data directory that this process has locked."""

    def __init__(self, path: Path) -> None:
        """Lock it, making it if need be. Raises `StartError` when another server uses it or it can not be made."""
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"data directory {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StartError(f"data directory {path} is in use by another server") from None

    def next_run(self, contract: Contract) -> Instance:
        """Count this start and return the identity. Raises `DataError`, and `ConfigError` for the other contract."""
        path = self.path / "instance.json"
        try:
            before = msgspec.json.decode(path.read_bytes(), type=Instance)
        except FileNotFoundError:
            self._refuse_strangers()
            before = Instance(VERSION, secrets.token_hex(16), contract, 0)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(path, f"unreadable: {error}") from None
        if before.version != VERSION:
            raise DataError(path, f"version {before.version}, this server knows {VERSION}")
        if before.contract != contract:
            raise ConfigError(
                f"data directory {self.path} holds the {before.contract} contract, the server was asked for {contract}: "
                "passwords are stored differently"
            )
        instance = msgspec.structs.replace(before, run=before.run + 1)
        replace_file(path, msgspec.json.encode(instance), is_durable=True)
        return instance

    def _refuse_strangers(self) -> None:
        """Data without an identity is not ours to overwrite."""
        for name in ("users.db", "products.db", "orders.db", "journal"):
            if (self.path / name).exists():
                raise DataError(self.path / name, "found without instance.json: whose data is this?")

    def remove_stale_segment(self) -> str | None:
        """Remove the segment of a run that was killed; return its name if there was one."""
        run = read_run(self.path)
        return run.segment if run is not None and remove_stale(run.segment) else None

    def write_run(self, run: Run) -> None:
        """Replace `run.json`."""
        replace_file(self.path / "run.json", msgspec.json.format(msgspec.json.encode(run)), is_durable=False)

    def close(self) -> None:
        """Remove `run.json` and release the lock."""
        (self.path / "run.json").unlink(missing_ok=True)
        os.close(self._lock)


def read_run(path: Path) -> Run | None:
    """Return what runs in a data directory, or ran there last if it was killed; None when nothing."""
    try:
        return msgspec.json.decode((path / "run.json").read_bytes(), type=Run)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def replace_file(path: Path, content: bytes, is_durable: bool) -> None:
    """Put a file in place of another, whole or not at all; readable by its owner only."""
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, content)
        if is_durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    if is_durable:
        directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
