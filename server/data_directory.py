"""The data directory: its lock, its identity, and `run.json`, which says what runs there now.

    lock            flock of the supervisor; inherited, so it is free only when every process of the last run is gone
    instance.json   {"version", "instance", "contract", "run"}: made once; `run` counts the starts
    run.json        ports, pids and segment of the running server, replaced atomically at every change
    journal/        server/journal
    *.db            persist/schema.py

Every database and every journal segment carries the instance, so files of two directories are never mixed up.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from server.errors import ConfigError, DataError, StartError
from server.shm.segment import remove_stale

log = logging.getLogger(__name__)

VERSION = 1

Contract = Literal["default", "classic"]
INSTANCE_NAME = "instance.json"


class _Version(Struct):
    """What an `instance.json` of any version has."""

    version: int


class Instance(Struct, frozen=True):
    """The identity of a data directory."""

    version: int
    instance: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    contract: Contract
    run: Annotated[int, Meta(ge=0, lt=1 << 40)]  # the epochs of the run begin with it

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
        self._has_run = False
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"data directory {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            reason = "in use by another server" if isinstance(error, BlockingIOError) else error.strerror
            raise StartError(f"data directory {path}: {reason}") from None

    def next_run(self, contract: Contract) -> Instance:
        """Count this start and return the identity.

        Raises `DataError`, `ConfigError` for the other contract, and `StartError` when it can not be written.
        """
        path = self.path / INSTANCE_NAME
        before = self._read_instance(path) or Instance(VERSION, secrets.token_hex(16), contract, 0)
        if before.contract != contract:
            raise ConfigError(
                f"data directory {self.path} holds the {before.contract} contract, the server was asked for "
                f"{contract}: passwords are stored differently"
            )
        instance = msgspec.structs.replace(before, run=before.run + 1)
        try:
            replace_file(path, msgspec.json.encode(instance), is_durable=True)
        except OSError as error:
            raise StartError(f"{path}: {error.strerror}") from None
        return instance

    def _read_instance(self, path: Path) -> Instance | None:
        try:
            content = path.read_bytes()
            version = msgspec.json.decode(content, type=_Version).version
            if version != VERSION:
                raise DataError(path, f"version {version}, this server knows {VERSION}")
            return msgspec.json.decode(content, type=Instance)
        except FileNotFoundError:
            self._refuse_strangers()
            return None
        except OSError as error:
            raise DataError(path, f"unreadable: {error.strerror}") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(path, f"unreadable: {error}") from None

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
        """Replace `run.json`. It is for people and tools: on a full disk the old one stays, and the server goes on."""
        self._has_run = True
        try:
            replace_file(self.path / "run.json", msgspec.json.format(msgspec.json.encode(run)), is_durable=False)
        except OSError as error:
            log.warning("run.json not written error=%r", error.strerror)

    def close(self) -> None:
        """Remove `run.json` and release the lock. That of a killed run stays until its segment was removed."""
        if self._has_run:
            (self.path / "run.json").unlink(missing_ok=True)
        os.close(self._lock)


def read_run(path: Path) -> Run | None:
    """Return what runs in a data directory, or ran there last if it was killed; None when nothing."""
    try:
        return msgspec.json.decode((path / "run.json").read_bytes(), type=Run)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def replace_file(path: Path, content: bytes, is_durable: bool) -> None:
    """Put a file in place of another, whole or not at all; readable by its owner only. Raises `OSError`."""
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        written = os.write(descriptor, content)
        if written < len(content):  # what a nearly full disk does, before it says so
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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
