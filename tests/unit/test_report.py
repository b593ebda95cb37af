"""The resource report without a server: what the samples add up to, and what is written of it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tools.report.charts import Chart, Mark, Series, draw, nice_step, thin
from tools.report.figures import (
    FlushLag,
    Follower,
    Reading,
    Sample,
    ServerReading,
    Spent,
    intervals_of,
    spent_between,
    summarise,
    total,
)
from tools.report.files import COLUMNS, as_csv, as_json
from tools.report.main import main
from tools.report.page import charts_of, render_page
from tools.report.target import ServerNotFound, Target, segment_by_pid
from tools.report.terminal import LiveView, aligned, amount, live_lines, pid_text, plain_line, summary_lines

ROLES = ("supervisor", "manager", "persister", "writer-users", "writer-products", "writer-orders", "worker-0")
RUN = {"started": "today", "machine": "a <machine>", "samples": "9", "command": "python -m tools report"}
MIB = 1 << 20


def reading(pid: int, cpu_s: float = 0.0, **changes: Any) -> Reading:
    whole = Reading(
        pid=pid, cpu_s=cpu_s, user_s=cpu_s, system_s=0.0, uss_bytes=2 * MIB, pss_bytes=3 * MIB, rss_bytes=9 * MIB,
        threads=1, fds=10, voluntary_switches=100, involuntary_switches=10, read_bytes=0, written_bytes=0,
    )  # fmt: skip
    return whole._replace(**changes)


def sample(t_s: float, processes: dict[str, Reading], requests: int = 0, **changes: Any) -> Sample:
    server = ServerReading(
        requests=requests, reads=requests, writes=0, client_errors=0, server_errors=0, connections=1, records=5,
        flush_lag_ms=0, not_in_sqlite=0, reserved_bytes=10 * MIB, limit_bytes=64 * MIB, shm_file_bytes=10 * MIB,
        journal_bytes=0,
    )  # fmt: skip
    return Sample(t_s, server._replace(**changes), processes)


def some_samples() -> list[Sample]:
    """Four seconds, 100 requests and 0.1 s CPU of each process per second; worker-0 is replaced after two."""
    found = []
    for number in range(5):
        processes = {role: reading(100 + n, 0.1 * number) for n, role in enumerate(ROLES)}
        if number > 2:
            processes["worker-0"] = reading(999, 0.1 * (number - 2))
        found.append(sample(float(number), processes, requests=100 * number, flush_lag_ms=200 * number))
    return found


def test_a_process_is_charged_for_what_it_spent_between_two_samples() -> None:
    before = reading(7, 1.0, written_bytes=1000)
    now = reading(7, 1.5, voluntary_switches=130, written_bytes=5000)
    spent = spent_between(before, now)
    assert (spent.cpu_s, spent.voluntary_switches, spent.written_bytes) == (0.5, 30, 4000)


def test_a_successor_began_at_zero() -> None:
    assert spent_between(reading(7, 10.0), reading(8, 0.25)).cpu_s == 0.25
    assert spent_between(None, reading(8, 0.25)).cpu_s == 0.25


def test_a_replacement_is_seen_even_when_a_sample_missed_both_processes() -> None:
    samples = [sample(0, {"worker-0": reading(7)}), sample(1, {}), sample(2, {"worker-0": reading(8)})]
    intervals = intervals_of(samples)
    assert [one.replacements for one in intervals[:1]] == [[]]
    [replaced] = intervals[1].replacements
    assert (replaced.t_s, replaced.role, replaced.old_pid, replaced.new_pid) == (2, "worker-0", 7, 8)
    assert intervals[0].cpu_percent("worker-0") == 0


def test_one_busy_core_is_a_hundred_percent() -> None:
    [interval] = intervals_of([sample(1, {"manager": reading(7, 3.0)}), sample(1.5, {"manager": reading(7, 3.5)})])
    assert interval.cpu_percent("manager") == pytest.approx(100)
    assert interval.cpu_percent_all == pytest.approx(100)


def test_request_rates_are_means_of_two_seconds_because_workers_count_once_a_second() -> None:
    follower = Follower()
    counted = [0, 0, 100, 100, 200, 200, 300]  # one turn of the worker's clock every other sample
    intervals = [follower.follow(sample(n / 2, {}, requests)) for n, requests in enumerate(counted)]
    assert intervals[0] is None
    assert [one.requests_per_s for one in intervals[4:] if one] == [100, 100, 100]


def test_request_rates_are_moved_back_to_when_the_requests_came() -> None:
    counted = [0, 0, 0, 0, 0, 100, 200, 300, 300]
    rates = [one.requests_per_s for one in intervals_of([sample(n, {}, count) for n, count in enumerate(counted)])]
    assert rates[0] == 0 and max(rates) == 100
    assert rates.index(100) == 3  # the end of the fourth second, whose requests were counted at its end and later


def test_flush_lag_is_the_age_of_the_oldest_change_that_is_not_persisted() -> None:
    lag = FlushLag()
    lag.look(10.0, published=5, persisted=5)
    assert lag.take_highest_ms() == 0
    lag.look(10.1, published=6, persisted=5)
    lag.look(10.6, published=9, persisted=5)
    assert lag.take_highest_ms() == 500
    lag.look(10.7, published=9, persisted=6)
    lag.look(10.8, published=9, persisted=6)
    assert lag.take_highest_ms() == 600  # seq 6 was as old when it went
    lag.look(10.9, published=9, persisted=9)
    lag.take_highest_ms()
    lag.look(11.0, published=9, persisted=9)
    assert lag.take_highest_ms() == 0


def test_summary_adds_up_all_processes_and_all_pids_of_a_role() -> None:
    summary = summarise(some_samples())
    assert summary.seconds == 4 and summary.requests == 400 and summary.requests_per_s == 100
    assert summary.cpu_s == pytest.approx(0.1 * len(ROLES) * 4)
    assert summary.cpu_us_per_request == pytest.approx(1e6 * summary.cpu_s / 400)
    assert summary.roles["worker-0"].pids == [106, 999]
    assert summary.roles["worker-0"].spent.cpu_s == pytest.approx(0.4)
    assert summary.roles["manager"].cpu_percent == pytest.approx(10)
    assert summary.pss_bytes == 3 * MIB * len(ROLES)
    assert (summary.flush_lag_ms_median, summary.flush_lag_ms_max) == (500, 800)


def test_summary_of_one_sample_is_empty() -> None:
    assert summarise(some_samples()[:1]).roles == {}
    assert summarise([]).seconds == 0


def test_nothing_spent_is_the_sum_of_nothing() -> None:
    assert total([]) == Spent()


def test_csv_has_one_row_per_sample_and_process() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(intervals_of(some_samples())))))
    assert len(rows) == 4 * len(ROLES) and tuple(rows[0]) == COLUMNS
    assert {row["process"] for row in rows} == set(ROLES)
    worker = [row for row in rows if row["process"] == "worker-0"]
    assert [row["pid"] for row in worker] == ["106", "106", "999", "999"]
    assert {row["cpu_percent"] for row in worker} == {"10.00"}
    assert worker[-1]["requests"] == "400" and worker[-1]["pss_bytes"] == str(3 * MIB)


def test_json_has_run_summary_and_every_sample() -> None:
    samples = some_samples()
    content = json.loads(as_json(RUN, samples, summarise(samples)))
    assert content["run"] == RUN and len(content["samples"]) == 5
    assert content["samples"][0]["processes"]["manager"]["pid"] == 101
    assert content["summary"]["replacements"] == [{"t_s": 3.0, "role": "worker-0", "old_pid": 106, "new_pid": 999}]
    assert content["summary"]["roles"]["worker-0"]["spent"]["cpu_s"] == pytest.approx(0.4)


def test_page_shows_every_role_and_replacement_and_loads_nothing() -> None:
    samples = some_samples()
    page = render_page(RUN, intervals_of(samples), summarise(samples))
    for role in ROLES:
        assert f"<td>{role}</td>" in page and f"</i>{role}</span>" in page
    assert "worker-0 replaced: 106 -&gt; 999" in page and "999 (+1)" in page
    assert "a &lt;machine&gt;" in page
    assert not re.search(r"\bsrc=|<link|<script|https?://", page)
    for title in ("CPU", "Memory", "Shared memory", "Waits", "Preemptions", "Flush lag", "Requests"):
        assert f"<b>{title}</b>" in page


def test_a_role_without_a_process_is_drawn_as_nothing() -> None:
    samples = some_samples()
    del samples[2].processes["worker-0"]
    cpu = charts_of(intervals_of(samples))[0]
    assert next(series for series in cpu.series if series.name == "worker-0").values[1] == 0


def test_stacked_series_end_at_their_sum() -> None:
    series = [Series("a", "red", [1.0, 1.0]), Series("b", "blue", [3.0, 2.0])]
    figure = draw(Chart("title", "", "unit", [1.0, 2.0], series, is_stacked=True), [Mark(1.0, "a & b")])
    assert ">4</text>" in figure and ">5</text>" not in figure
    assert "<title>a &amp; b</title>" in figure


def test_a_chart_of_nothing_can_be_drawn() -> None:
    assert "<svg" in draw(Chart("title", "", "unit", [], [], is_stacked=True))
    assert "<svg" in draw(Chart("title", "", "unit", [1.0], [Series("a", "red", [0.0])]))


@pytest.mark.parametrize(
    ("least", "step"), [(0.0, 1), (0.03, 0.05), (0.9, 1), (1.0, 1), (1.2, 2), (2.3, 2.5), (70, 100)]
)
def test_steps_of_an_axis_are_round(least: float, step: float) -> None:
    assert nice_step(least) == pytest.approx(step)


def test_long_series_are_thinned_to_means_or_peaks() -> None:
    assert thin([1, 2, 3], 3, keeps_peaks=False) == [1, 2, 3]
    assert thin([1, 3, 5, 9, 4], 3, keeps_peaks=False) == [2, 7, 4]
    assert thin([1, 3, 5, 9, 4], 3, keeps_peaks=True) == [3, 9, 4]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_table_is_drawn_over_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "50")
    output = Terminal()
    view = LiveView(output, 4.0)
    for interval in intervals_of(some_samples()):
        view.show(interval)
    tables = re.split(r"\x1b\[(\d+)F\x1b\[J", output.getvalue())
    assert len(tables) == 7
    assert {int(up) for up in tables[1::2]} == {table.count("\n") for table in tables[::2]}
    assert max(len(line) for line in output.getvalue().splitlines()) < 70
    assert all(role in tables[0] for role in ROLES)


def test_without_a_terminal_every_sample_is_one_plain_line() -> None:
    output = io.StringIO()
    view = LiveView(output, 4.0)
    intervals = intervals_of(some_samples())
    for interval in intervals:
        view.show(interval)
    view.clear()
    assert output.getvalue().splitlines() == [plain_line(interval) for interval in intervals]
    assert output.getvalue().count("worker-0=106->999") == 1


def test_tables_have_a_row_per_role_and_one_for_all() -> None:
    samples = some_samples()
    lines = summary_lines(summarise(samples))
    assert [line.split()[0] for line in lines[-len(ROLES) - 1 :]] == [*ROLES, "all"]
    assert any(line.startswith("replaced") and "106 -> 999" in line for line in lines)
    live = live_lines(intervals_of(samples)[0], 4.0)
    assert [line.split()[0] for line in live[-len(ROLES) - 1 :]] == [*ROLES, "all"]


def test_small_texts() -> None:
    assert [amount(0), amount(1023), amount(1536), amount(3 * MIB), amount(1 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "3.0 MiB", "1024.0 GiB",
    ]  # fmt: skip
    assert (pid_text([5]), pid_text([5, 6, 7])) == ("5", "7 (+2)")
    assert aligned(("a", "b"), [["long", "1"], ["x", "22"]]) == ["a      b", "long   1", "x     22"]


def test_a_directory_without_a_server_is_an_error_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main(["--data-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"report: no server runs in {tmp_path}\n"


def test_a_process_that_is_no_server_is_an_error_in_words() -> None:
    with pytest.raises(ServerNotFound, match="is not a Millrace server"):
        segment_by_pid(os.getpid())
    with pytest.raises(ServerNotFound, match="old"):
        Target("millrace-of-yesterday")


@pytest.mark.parametrize(
    "arguments", [["--interval", "9", "--seconds", "3"], ["--interval", "0"], ["--seconds", "1e9"]]
)
def test_impossible_times_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
