"""Power cuts: an ext4 in a file, shut down under load without flushing anything, is mounted again as after a cut.

Everything acknowledged at the level `journal` is there, and so is everything that a reader saw.

The long one, 50 cuts: python -m pytest tests/crash/test_power_cut.py -m slow      (some 4 minutes; needs root)
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.crash.mounts import Disk, mounted_disk, server_on
from tests.crash.support import JOURNAL, assert_nothing_lost, loaded, wait_for_writes
from tests.support import STOP_TIMEOUT_S, ServerProcess

CUTS = 50
SERVER = ("--persist-period-ms", "50", "--journal-segment", "1MiB", "--journal-max", "16MiB")


def cut_under_load(server: ServerProcess, disk: Disk, cuts: int, chance: random.Random) -> None:
    """Cut the power again and again in one history, start after each, and check everything at the end."""
    with loaded(server, JOURNAL, seed=chance.randrange(1 << 30)) as load:
        for _ in range(cuts):
            wait_for_writes(server, load, chance.randint(30, 150))
            group = server.pids["supervisor"]  # run.json can not be read any more once the power is off
            disk.cut_power()
            os.killpg(group, signal.SIGKILL)
            load.pause()
            server.wait()
            server.wait_until(lambda: not server.group_members(), STOP_TIMEOUT_S, "killed processes are gone")
            disk.unmount()
            disk.mount()
            server.start()
            load.resume()
        wait_for_writes(server, load, 20)
    assert_nothing_lost(server, load)


def run_cuts(directory: Path, cuts: int, seed: int) -> None:
    with mounted_disk(directory) as disk, server_on(disk.path, *SERVER) as server:
        cut_under_load(server, disk, cuts, random.Random(seed))


def test_power_cut_loses_nothing_acknowledged(tmp_path: Path) -> None:
    run_cuts(tmp_path, 1, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_fifty_power_cuts_lose_nothing_acknowledged(tmp_path: Path, part: int) -> None:
    run_cuts(tmp_path, CUTS // 5, seed=part)
