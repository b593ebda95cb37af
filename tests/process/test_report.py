"""`python -m tools report` on a real server: every process, followed over a crash, until somebody ends it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT, ServerProcess

TIMEOUT_S = 20.0
ROLES = {"supervisor", "manager", "persister", "writer-users", "writer-products", "writer-orders", "worker-0"}


def test_report_follows_a_replaced_worker_and_saves_what_it_saw(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ServerProcess(tmp_path / "data", workers=1) as server:
        before = server.pids
        command = [sys.executable, "-m", "tools", "report", "--pid", str(before["manager"]), "--interval", "0.1",
                   "--out", str(out)]  # fmt: skip
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as report:
            assert report.stdout is not None
            assert report.stdout.readline().startswith("t=")
            assert server.request("GET", "/user/1").status == 404
            os.kill(before["worker-0"], signal.SIGKILL)
            [line] = [next(line for line in report.stdout if "worker-0=" in line)]
            report.send_signal(signal.SIGINT)
            text, _ = report.communicate(timeout=TIMEOUT_S)
        after = server.pids["worker-0"]
        segment = Path("/dev/shm", server.run_json()["segment"])
        assert segment.exists()
    assert report.returncode == 0
    assert line.rstrip().endswith(f"worker-0={before['worker-0']}->{after}")
    assert all(role in text for role in ROLES)
    content = json.loads((out / "report.json").read_text())
    assert set(content["summary"]["roles"]) == ROLES
    assert content["summary"]["roles"]["worker-0"]["pids"] == [before["worker-0"], after]
    assert content["summary"]["roles"]["worker-0"]["spent"]["cpu_s"] > 0
    first = content["samples"][0]
    assert {role: reading["pid"] for role, reading in first["processes"].items()} == before
    for reading in first["processes"].values():
        assert 0 < reading["uss_bytes"] <= reading["pss_bytes"] <= reading["rss_bytes"]
        assert reading["threads"] >= 1 and reading["fds"] > 3
    assert first["server"]["shm_file_bytes"] >= first["server"]["reserved_bytes"] > 1 << 20
    rows = list(csv.DictReader((out / "report.csv").read_text().splitlines()))
    assert {row["process"] for row in rows} == ROLES
    assert "worker-0 replaced" in (out / "report.html").read_text()


def test_report_ends_with_the_server(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", workers=1) as server:
        command = [sys.executable, "-m", "tools", "report", "--data-dir", str(server.data_dir), "--interval", "0.1"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as report:
            assert report.stdout is not None
            assert report.stdout.readline().startswith("t=")
            assert server.stop() == 0
            text, _ = report.communicate(timeout=TIMEOUT_S)
    assert report.returncode == 0 and "manager" in text
