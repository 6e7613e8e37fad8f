"""No panel is empty: every query of every dashboard, asked of a real Prometheus that scrapes a real agent of real trainings.

Trainings are looked at while all is well, while one of them has gone non-finite, and when those with a fault are over and their
series gone. tests/grafana.py puts the variables' values into queries as Grafana does, and asks as Grafana does.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import resmon
from resmon.agent import runtime
from tests.agent.conftest import House
from tests.assets.dashboards.test_boards import BOARDS, FILES
from tests.grafana import Event, Grafana, Json, Series, Value, names, panels
from tests.otlp import Receiver, Refusal
from tests.ports import free_port
from tests.programs import program
from tests.prometheus import RULES, configuration, quick_rules, serving
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent.parent
CONTENT: dict[str, Json] = {name: json.loads(FILES[name].read_text()) for name in BOARDS}
HOSTILE = "a\"b\\c'd{}=,é🤖.*|%s $x & run\r\u2028"

# What has nothing to show while all is well, and says so.
QUIET = {
    "What fires, and since when": "No alert of resmon fires.",
    "Findings that are open": "No finding is open.",
    "Runs that failed": "No run has failed in the time that is shown.",
    "What was found in $run, and for how long": "Nothing was found in this run.",
    "Blocks that were NaN or infinite": "No block was non-finite.",
}

Answers = list[list[Series]]


@dataclass
class Look:
    """What somebody saw who had chosen a run on a dashboard."""

    dashboard: Json
    values: dict[str, Value]
    answers: dict[str, Answers]
    marks: dict[str, list[Event]]

    def panel(self, title: str) -> Json:
        (found,) = (panel for panel in panels(self.dashboard) if panel["title"] == title)
        return found

    def numbers(self, title: str, query: int = 0) -> dict[str, float]:
        """The newest value of each series by its legend, or by the labels of a row."""
        answer = self.answers[title][query]
        legends = names(self.panel(title), self.answers[title])[query]
        return {
            name or "/".join(series.labels[label] for label in sorted(series.labels)): series.last
            for name, series in zip(legends, answer, strict=True)
        }

    def rows(self, title: str, query: int = 0) -> list[dict[str, str]]:
        return [dict(series.labels) for series in self.answers[title][query]]

    def empty(self) -> set[str]:
        """The panels of which a query gives no finite number, each with the query's letter."""
        return {
            f"{title}: {panel['targets'][i]['refId']}"
            for title, answers in self.answers.items()
            for panel in [self.panel(title)]
            for i, answer in enumerate(answers)
            if not any(math.isfinite(value) for series in answer for _, value in series.values)
        }


def look(grafana: Grafana, name: str, **chosen: Value) -> Look:
    dashboard = CONTENT[name]
    values = grafana.variables(dashboard, **chosen)
    answers = {panel["title"]: grafana.panel(dashboard, panel, values) for panel in panels(dashboard)}
    marks = {each["name"]: grafana.marks(dashboard, each, values) for each in dashboard["annotations"]["list"]}
    return Look(dashboard, values, answers, marks)


@dataclass
class Scene:
    """What was seen, when."""

    url: str
    runs: Path
    started: float
    looks: dict[tuple[str, str, str], Look] = field(default_factory=dict)  # by the moment, the dashboard and the run

    def grafana(self) -> Grafana:
        return Grafana(self.url, self.started, time.time())

    def look(self, moment: str, run: str, names: Sequence[str] = ("executive", "oncall", "debug"), **chosen: Value) -> None:
        for name in names:
            self.looks[moment, name, run] = look(self.grafana(), name, run=run, **chosen)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """An afternoon: two trainings that are well, one that finishes; then one goes non-finite, one out of memory, one is killed."""
    folder = tmp_path_factory.mktemp("scene")
    runtime_folder, runs = folder / "runtime", folder / "runs"
    runtime_folder.mkdir(mode=0o700)
    receiver = Receiver()
    ours = {key: value for key, value in os.environ.items() if not key.startswith("RESMON_") and key != "CI"}
    environment = ours | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RESMON_RUNTIME_DIR": str(runtime_folder),
        "RESMON_LISTEN": f"127.0.0.1:{free_port()}",
        "RESMON_OTLP": receiver.url,
        "RESMON_OTLP_INTERVAL": "1",
    }
    receiver.open()
    house = House(folder, runtime_folder)
    trainings = subprocess.Popen(
        [sys.executable, "-m", "tests.assets.dashboards.trainings", str(runs)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        process_group=0,
    )
    assert trainings.stdin is not None and trainings.stdout is not None

    def begin(kind: str, run: str, ranks: int = 1) -> None:
        assert trainings.stdin is not None
        trainings.stdin.write(json.dumps([kind, run, ranks]) + "\n")
        trainings.stdin.flush()

    rules = (RULES, quick_rules(folder))
    try:
        with serving(folder / "prometheus", configuration(*rules, targets=runtime_folder / runtime.TARGETS)) as server:
            found = Scene(server.url, runs, time.time())
            assert trainings.stdout.readline() == "ready\n"

            def there(query: str) -> bool:
                return bool(found.grafana()._instant(query, time.time()))

            begin("healthy", "steady")
            begin("healthy", "digits", ranks=2)
            begin("brief", "first")
            wait_for(lambda: there('resmon_run_outcome{run="first"}'), 60)
            wait_for(lambda: there('min(resmon_steps_total{run=~"digits|steady"}) > 200'), 60)
            # Statistics that are looked at in every sixteenth step only, and shares of what has happened so far.
            wait_for(lambda: there('resmon_block_dead_unit_ratio{run="digits"}'), 60)
            wait_for(lambda: there('slo:period_error_budget_remaining:ratio{slo="training-success"}'), 60)
            found.look("well", "digits")
            receiver.always = Refusal(400)
            wait_for(lambda: there('sum(resmon_agent_otlp_dropped_total{signal="metrics"}) > 0'), 60)
            begin("nonfinite", "ill")
            begin("out_of_memory", "hungry")
            begin("killed", "gone")
            begin("healthy", HOSTILE)
            wait_for(lambda: there('resmon_finding_active{run="ill"} == 1'), 60)
            wait_for(lambda: there('ALERTS{alertname="ResmonNonfinite",run="ill",alertstate="firing"}'), 60)
            time.sleep(2)  # two queries of a panel are of the same second
            wait_for(lambda: there('resmon_run_outcome{run=~"hungry|gone"}'), 60)
            found.look("faulty", "ill", block=["4"])
            wait_for(lambda: there('resmon_run_outcome{run="ill"}'), 60)
            # Where a scrape has failed there is nothing for a second: they are gone when the others are there.
            wait_for(lambda: there('resmon_run_info{run="steady"} unless on () resmon_run_info{run=~"ill|hungry|gone"}'), 90)
            for run in ("ill", "hungry", "gone", "first", HOSTILE):
                found.look("after", run, block=["4", "10"])
            yield found
    finally:
        trainings.stdin.close()
        os.killpg(trainings.pid, 9)
        trainings.wait()
        house.stop()
        receiver.close()


# ---- nothing is empty ------------------------------------------------------------------------------------------------------


def test_while_all_is_well_every_query_gives_numbers_or_its_panel_says_why_not(scene: Scene) -> None:
    for name in BOARDS:
        seen = scene.looks["well", name, "digits"]
        quiet = {title for title in QUIET if title in seen.answers}
        assert seen.empty() == {f"{title}: A" for title in quiet}
        for title in quiet:
            assert seen.panel(title)["fieldConfig"]["defaults"]["noValue"] == QUIET[title]
    assert {title for name in BOARDS for title in scene.looks["well", name, "digits"].answers} >= QUIET.keys()


def test_while_a_run_is_ill_no_query_is_empty(scene: Scene) -> None:
    for name in BOARDS:
        assert scene.looks["faulty", name, "ill"].empty() == set()


@pytest.mark.parametrize("run", ["ill", "hungry", "gone", "first", HOSTILE])
def test_when_runs_are_over_and_their_series_gone_they_can_still_be_looked_at(scene: Scene, run: str) -> None:
    """Of any name; and what is no more found and fires no more is not shown."""
    over = {"Findings that are open: A"}
    if run != "ill":
        over |= {"What was found in $run, and for how long: A", "Blocks that were NaN or infinite: A"}
    if run == "first":
        over |= BRIEF
    for name in BOARDS:
        assert scene.looks["after", name, run].empty() <= over


# What cannot be known of a run of three seconds, which two scrapes have not seen make a step.
BRIEF = {
    "Work that is not saved: A",  # it has saved nothing
    "How many of its units are dead?: A",
    *(f"How long do steps take?: {query}" for query in "ABC"),
    *(f"How many steps are clipped or skipped?: {query}" for query in "AB"),
    "What does a step spend its time on?: A",
    "What does resmon itself take of a step?: A",
}


# ---- and says what is so ---------------------------------------------------------------------------------------------------


def test_variables_name_the_newest_run_first_and_blocks_in_their_order(scene: Scene) -> None:
    seen = scene.grafana()
    for name in BOARDS:
        for variable in CONTENT[name]["templating"]["list"]:
            if variable["type"] == "query":
                assert seen.options(CONTENT[name], variable, seen.variables(CONTENT[name])), variable["name"]
    debug = CONTENT["debug"]
    chosen = seen.variables(debug, run="digits")
    options = {each["name"]: seen.options(debug, each, chosen) for each in debug["templating"]["list"] if each["type"] == "query"}
    assert options["model"] == ["Sequential"]
    assert sorted(options["run"]) == sorted(["steady", "digits", "first", "ill", "hungry", "gone", HOSTILE])
    assert set(options["run"][:4]) == {"ill", "hungry", "gone", HOSTILE}  # which began together, after the others
    assert options["block"] == [str(i) for i in range(1, 12)]
    assert set(options["run_b"]) == set(options["run"]) - {"digits"}
    assert chosen["run_b"] != "digits" and chosen["block"] == ["1"]


def test_blocks_stand_in_the_order_in_which_they_run(scene: Scene) -> None:
    seen = scene.looks["well", "debug", "digits"]
    for title in (
        "Since when does a block's ratio stand out?",
        "Where do gradients explode or vanish?",
        "Where does the stream grow?",
        "How far back does the loss reach?",
    ):
        assert list(seen.numbers(title)) == [f"· {i}" for i in range(1, 12)]
    places = {row["block"]: row["at"] for row in seen.rows("How much does each block change the stream?")}
    assert sorted(places, key=places.__getitem__) == [str(i) for i in range(1, 12)]


def test_legends_tell_series_apart_and_panels_can_be_read(scene: Scene) -> None:
    for seen in scene.looks.values():
        for panel in panels(seen.dashboard):
            if panel["type"] in ("table", "barchart"):
                continue
            called = [name for answer in names(panel, seen.answers[panel["title"]]) for name in answer]
            assert len(called) == len(set(called)), (panel["title"], called)
            assert not [name for name in called if not name.strip() or name == "value"], panel["title"]
            if panel["type"] == "timeseries":
                assert len(called) <= 14, panel["title"]


def test_numbers_are_those_of_the_flight(scene: Scene) -> None:
    """Of a run that is over, so that both have the same last step."""
    flight = resmon.load(scene.runs / "first")
    steps, blocks = flight.steps(), flight.blocks()
    last = steps.step.max()
    oncall, debug = scene.looks["after", "oncall", "first"], scene.looks["after", "debug", "first"]
    assert oncall.numbers("Steps made") == {"steps": len(steps)}
    assert oncall.numbers("$run is").keys() == {"finished"}
    newest = blocks[blocks.step == last].set_index("block")
    shown = oncall_ratios(debug)
    assert shown.keys() == set(newest.index)
    for block, ratio in shown.items():
        assert ratio == pytest.approx(float(newest.branch_skip_ratio[block]), rel=1e-6)
    difference = debug.numbers("In which blocks do $run and $run_b differ?", 3)
    assert difference == pytest.approx({block: float(newest.gradient_norm[block]) for block in newest.index}, rel=1e-6)


def oncall_ratios(seen: Look) -> dict[str, float]:
    title = "How much does each block change the stream?"
    return {series.labels["block"]: series.last for series in seen.answers[title][0]}


def test_the_executive_sees_how_runs_ended_and_what_they_cost(scene: Scene) -> None:
    well, after = scene.looks["well", "executive", "digits"], scene.looks["after", "executive", "ill"]
    assert well.numbers("Runs that came to their end") == {"finished": 1.0}
    assert well.numbers("How runs ended") == {"finished": 1.0}
    assert well.numbers("Share of them in runs that failed") == {"lost": 0.0}
    assert after.numbers("Runs that came to their end") == {"finished": 0.25}
    assert after.numbers("How runs ended") == {"finished": 1, "killed": 1, "nonfinite": 1, "out_of_memory": 1}
    assert after.numbers("Runs under way") == {"runs": 3}  # steady, digits and the one with the hostile name
    lost = after.numbers("Share of them in runs that failed")["lost"]
    assert 0.05 < lost < 0.5
    # A rank works on one device: seven runs, of which three went on to the end, one on two.
    hours = after.numbers("Device-hours")["device-hours"]
    assert hours == pytest.approx(sum(after.numbers("Where the device-hours went").values()), rel=1e-9)
    elapsed = (time.time() - scene.started) / 3600
    assert elapsed < hours < 5 * elapsed
    objectives = {row["slo"]: row["service"] for row in after.rows("How the objectives stand")}
    assert objectives == dict.fromkeys(
        ("training-success", "step-time", "finite-steps", "convergence", "telemetry-freshness"), "resmon"
    )
    left = {row["slo"]: series.last for row, series in zip(
        after.rows("How the objectives stand", 3), after.answers["How the objectives stand"][3], strict=True
    )}  # fmt: skip
    assert left["training-success"] < 0 < left["step-time"] == 1.0


def test_who_is_on_call_sees_what_fires_what_was_found_and_what_failed(scene: Scene) -> None:
    well, faulty = scene.looks["well", "oncall", "digits"], scene.looks["faulty", "oncall", "ill"]
    assert well.numbers("Firing alerts", 0) == {"pages": 0} and well.numbers("Firing alerts", 1) == {"tickets": 0}
    assert faulty.numbers("Firing alerts", 0)["pages"] >= 2
    (finding,) = (row for row in faulty.rows("Findings that are open") if row["finding"] == "nonfinite")
    assert (finding["run"], finding["block"], finding["runbook"]) == ("ill", "4", "nonfinite")
    fires = {row["alertname"]: row for row in faulty.rows("What fires, and since when")}
    assert fires["ResmonNonfinite"]["block"] == "4" and fires["ResmonNonfinite"]["runbook"] == "ResmonNonfinite"
    since = {series.labels["alertname"]: series.last for series in faulty.answers["What fires, and since when"][0]}
    assert 1000 * scene.started < since["ResmonNonfinite"] < 1000 * time.time()
    after = scene.looks["after", "oncall", "ill"]
    assert {(row["run"], row["outcome"]) for row in after.rows("Runs that failed")} == {
        ("ill", "nonfinite"), ("hungry", "out_of_memory"), ("gone", "killed"),
    }  # fmt: skip
    lost = [seen.answers["Agents, and how they are"][5][0].last for seen in (well, faulty)]
    assert lost[0] == 0 < lost[1], "one sees that an OTLP receiver takes nothing any more"
    broke = after.numbers("What broke, by kind")
    assert (broke["nonfinite"], broke["out_of_memory"], broke["killed"], broke["shape_mismatch"]) == (1, 1, 1, 0)
    assert after.numbers("$run is").keys() == {"nonfinite"}
    assert well.numbers("$run is").keys() == {"under way"}
    assert (
        max(value for series in after.answers["Are there steps with NaN or infinite values?"][0] for _, value in series.values) > 0
    )


def test_ranks_are_one_run_and_shown_apart_where_they_differ(scene: Scene) -> None:
    well = scene.looks["well", "oncall", "digits"]
    assert well.numbers("Are there steps with NaN or infinite values?").keys() == {"rank 0", "rank 1"}
    assert well.numbers("Do gradients spike or fade?").keys() == {"all gradients"}  # of both, as one process would have it
    debug = scene.looks["well", "debug", "digits"]
    assert len(debug.numbers("Where do gradients explode or vanish?")) == 11
    grafana = scene.grafana()
    rates = {
        run: grafana.panel(CONTENT["debug"], debug.panel("How many samples a second?"), debug.values | {"run": run})[0][0]
        for run in ("digits", "steady")
    }
    middle = {run: sorted(value for _, value in series.values)[len(series.values) // 2] for run, series in rates.items()}
    assert middle["digits"] > 1.3 * middle["steady"]  # two ranks go through more samples


def test_marks_stand_where_things_happened(scene: Scene) -> None:
    after = scene.looks["after", "oncall", "ill"]
    flight = resmon.load(scene.runs / "ill")
    (end,) = after.marks["Ends"]
    assert (end.title, end.tags) == ("nonfinite", ("nonfinite",))
    assert end.start / 1000 == pytest.approx(flight.steps().time.max().timestamp(), abs=5)
    (incident,) = after.marks["Incidents"]
    (finding,) = (mark for mark in after.marks["Findings"] if mark.title == "nonfinite")
    assert incident.title == "nonfinite" and (finding.text, finding.tags) == ("4", ("page",))
    went = float(flight.incidents().time.min())
    step = 15  # the finest that a mark has
    assert went - 1 <= incident.start / 1000 <= went + 2 * step
    assert finding.start <= finding.end and went - 1 <= finding.start / 1000 <= went + 2 * step
    assert after.marks["Checkpoints"]
    assert [mark.title for mark in scene.looks["after", "oncall", "gone"].marks["Incidents"]] == ["killed"]
    assert not any(scene.looks["well", "oncall", "digits"].marks[name] for name in ("Ends", "Incidents", "Findings"))
    failures = scene.looks["after", "executive", "ill"].marks["Failures"]
    assert {(mark.title, mark.text) for mark in failures} == {
        ("nonfinite", "ill ended"), ("out_of_memory", "hungry ended"), ("killed", "gone ended"),
    }  # fmt: skip


def test_activations_are_a_histogram_for_each_block_that_is_chosen(scene: Scene) -> None:
    """A panel that is repeated has one block each time."""
    grafana = scene.grafana()
    debug = CONTENT["debug"]
    (panel,) = (each for each in panels(debug) if each.get("repeat") == "block")
    for block in ("1", "11"):
        (answer,) = grafana.panel(debug, panel, grafana.variables(debug, run="digits") | {"block": [block]})
        edges = sorted(float(series.labels["le"].replace("+Inf", "inf")) for series in answer)
        assert len(edges) == 17 and edges[-1] == math.inf
        counts = {float(series.labels["le"].replace("+Inf", "inf")): series.last for series in answer}
        assert counts[math.inf] > 0 and sorted(counts.values()) == [counts[edge] for edge in edges]


def test_nothing_is_asked_that_the_variables_would_have_to_fill(scene: Scene) -> None:
    grafana = scene.grafana()
    for name in BOARDS:
        look(grafana, name)
    assert grafana.asked and not [query for query in grafana.asked if re.search(r"\$(\{|__|run|model|block|score)", query)]


# ---- deep, and many --------------------------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setenv("RESMON_RUNTIME_DIR", str(tmp_path / "runtime"))
    made = House(tmp_path, runtime.folder())
    yield made
    made.stop()


def test_a_deep_model_whose_blocks_share_series(house: House, tmp_path: Path) -> None:
    house.agent(free_port())
    house.trainer("deep", sites=1000, pace=0.2, last=100_000, how="outlier")
    with serving(tmp_path / "prometheus", configuration(targets=house.runtime / runtime.TARGETS)) as server:
        started = time.time()
        grafana = Grafana(server.url, started, time.time())
        wait_for(lambda: grafana._instant('resmon_steps_total{run="deep"} > 60', time.time()), 90)
        seen = look(Grafana(server.url, started, time.time()), "debug", run="deep", block=["h.999"])
        blocks = list(seen.numbers("Where does the stream grow?"))
        assert 50 < len(blocks) < 280 and any(".." in block for block in blocks) and "· h.999" in blocks
        firsts = [int(re.findall(r"\d+", block)[0]) for block in blocks]
        assert firsts == sorted(firsts)
        lacking = {panel.partition(":")[0] for panel in seen.empty()}
        assert lacking <= {"Blocks that were NaN or infinite"} | WITH_ANOTHER_RUN | NOT_RECORDED
        assert seen.numbers("How large are skip, branch and output?").keys() == {"h.999 skip"}


def test_activations_are_there_where_prometheus_takes_native_histograms(house: House, tmp_path: Path) -> None:
    house.agent(free_port())
    house.trainer("native", sites=4, pace=0.1, last=100_000, how="sleep")
    debug = CONTENT["debug"]
    (panel,) = (each for each in panels(debug) if each.get("repeat") == "block")
    scraping = configuration(targets=house.runtime / runtime.TARGETS)
    with serving(tmp_path / "prometheus", scraping, flags=["--enable-feature=native-histograms"]) as server:
        started = time.time() - 5

        def answer() -> list[Series]:
            grafana = Grafana(server.url, started, time.time())
            return grafana.panel(debug, panel, grafana.variables(debug, run="native", block=["h.2"]))[0]

        (native,) = wait_for(lambda: [series for series in answer() if len(series.values) > 3], 60)
        assert native.labels == {} and native.last > 0
        classic = Grafana(server.url, started, time.time())._instant("resmon_block_activation_magnitude_bucket", time.time())
        assert classic == []


WITH_ANOTHER_RUN = {
    "In which blocks do $run and $run_b differ?",
    "How much does each block change the stream?",
    "The loss of both runs, at equal steps",
    "How many samples a second?",
}
NOT_RECORDED = {
    "How many of its units are dead?",
    "Does the learning rate follow its schedule?",
    "Which parameter group has the gradient?",
}

RUNS, HOURS = 3000, 6


def test_variables_of_thousands_of_runs_come_in_a_moment(tmp_path: Path) -> None:
    """Three thousand runs of a week, each of some hours, with names of up to 500 characters."""
    end = int(time.time()) // 3600 * 3600
    week = 7 * 86400
    names = [f"sweep-{i}" + "x" * (490 if i % 100 == 0 else 0) for i in range(RUNS)]
    lines: dict[str, list[str]] = {"resmon_run_start_timestamp_seconds": [], "resmon_run_blocks": [], "resmon_run_outcome": []}
    for i, name in enumerate(names):
        started = end - week + 600 + i * (week - HOURS * 3600 - 1200) // RUNS
        of_it = f'run="{name}",job="resmon",instance="a:9699"'
        for minute in range(0, HOURS * 60, 5):
            at = started + 60 * minute
            lines["resmon_run_start_timestamp_seconds"].append(f"resmon_run_start_timestamp_seconds{{{of_it}}} {started} {at}")
            lines["resmon_run_blocks"].append(f'resmon_run_blocks{{{of_it},model="Net-{i % 7}"}} 12 {at}')
        lines["resmon_run_outcome"].append(
            f'resmon_run_outcome{{{of_it},model="Net-{i % 7}",outcome="{"failed" if i % 10 == 0 else "finished"}"}} 1 {at + 60}'
        )
    text = "".join(f"# TYPE {name} gauge\n" + "\n".join(samples) + "\n" for name, samples in lines.items()) + "# EOF\n"
    (tmp_path / "runs.txt").write_text(text)
    command = [program("promtool"), "tsdb", "create-blocks-from", "openmetrics", "--max-block-duration=24h"]
    subprocess.run([*command, tmp_path / "runs.txt", tmp_path / "prometheus" / "data"], check=True, capture_output=True)
    with serving(tmp_path / "prometheus", "global: {scrape_interval: 15s}") as server:
        grafana = Grafana(server.url, end - week, end, 15)
        executive, oncall = CONTENT["executive"], CONTENT["oncall"]
        began = time.monotonic()
        values = grafana.variables(oncall)
        taken = time.monotonic() - began
        (run,) = (each for each in oncall["templating"]["list"] if each["name"] == "run")
        assert grafana.options(oncall, run, values) == names[::-1]
        assert values["run"] == names[-1]
        assert set(grafana.options(oncall, run, values | {"model": "Net-3"})) == set(names[3::7])
        assert taken < 5, "who opens a dashboard waits for it"
        (share,) = (each for each in panels(executive) if each["title"] == "Runs that came to their end")
        ((finished,),) = grafana.panel(executive, share, grafana.variables(executive))
        assert finished.last == pytest.approx(0.9)


def test_a_name_that_grafana_cannot_ask_for_is_the_only_one(scene: Scene) -> None:
    """docs/dashboards.md names them: one with a backtick, and of the blocks' variable one with a line break."""
    grafana = scene.grafana()
    debug: Any = CONTENT["debug"]
    (block,) = (each for each in debug["templating"]["list"] if each["name"] == "block")
    assert grafana.options(debug, block, {"model": "$__all", "run": "two\nlines"}) == []
    assert grafana.options(debug, block, {"model": "$__all", "run": HOSTILE}) == [str(i) for i in range(1, 12)]
