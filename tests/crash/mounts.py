"""File systems of a test's own, as root: an ext4 in a file whose power can be cut, and a tmpfs that can be filled.

Nothing is left behind: each is unmounted and its file removed, also when the test failed. Where mounting is not to be
had the test is skipped with the reason.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ServerProcess

EXT4_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_NO_LOG_FLUSH = 2  # the journal of ext4 itself is not flushed either: as if the power went
IMAGE_BYTES = 96 << 20  # several segments of 1 MiB, three databases with their WAL, and ext4's own


@contextmanager
def tmpfs(directory: Path, size_bytes: int) -> Iterator[Path]:
    """A small file system in memory."""
    directory.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(directory))
    try:
        yield directory
    finally:
        _unmount(directory)


class Disk:
    """An ext4 in a file."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "disk"
        self._image = directory / "disk.img"
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(IMAGE_BYTES)
        _run("mkfs.ext4", "-q", "-F", str(self._image))

    def mount(self) -> None:
        """Mount it; ext4 replays its journal as after any power cut."""
        _mount("-o", "loop", str(self._image), str(self.path))

    def cut_power(self) -> None:
        """Nothing that was not synced reaches the file from now on; every write fails."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, SHUTDOWN_NO_LOG_FLUSH.to_bytes(4, "little"))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        _unmount(self.path)

    def remove(self) -> None:
        """Unmount if need be, and delete the file."""
        if self.path.is_mount():
            self.unmount()
        self._image.unlink()


@contextmanager
def mounted_disk(directory: Path) -> Iterator[Disk]:
    """A fresh disk that is mounted."""
    disk = Disk(directory)
    try:
        disk.mount()
        yield disk
    finally:
        disk.remove()


def server_on(mount: Path, *arguments: str) -> ServerProcess:
    """Return a server with its data on a file system of its own, and its log beside that."""
    server = ServerProcess(mount / "data", *arguments)
    server.log_path, server.output_path = mount.parent / "stderr", mount.parent / "stdout"
    return server


def fill(directory: Path) -> Path:
    """Write a file that leaves no room; return it."""
    filler = directory / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (1 << 20, 4096, 1):
            try:
                while os.write(descriptor, bytes(size)) == size:
                    pass
            except OSError:
                pass
    finally:
        os.close(descriptor)
    return filler


def _mount(*arguments: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    _run("mount", *arguments)


def _unmount(directory: Path) -> None:
    """Detach it at once; the loop device goes when its last user does."""
    subprocess.run(["umount", "--lazy", str(directory)], check=True, capture_output=True)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"{command[0]} is not installed")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{' '.join(command)}: {error.stderr.strip()}")
