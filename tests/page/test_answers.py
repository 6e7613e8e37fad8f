"""What the page is told: which runs there are, one run and its figures, and that nothing in it is believed."""

from __future__ import annotations

import html
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from resmon.flight import journal, layout
from resmon.flight.layout import safe_name
from resmon.page import sight
from resmon.page.address import identity
from resmon.page.answers import Answers, Wish
from resmon.page.listing import Listing
from resmon.page.sight import Sights
from resmon.plots.measures import MEASURES
from resmon.records import RUN_ENDED, Finding, RunEnd
from tests.flight.flights import begin
from tests.page.runs import HOSTILE, fill, finding_values, record
from tests.synthetic import Training, sites


class House:
    """The answers over one folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.listing = Listing(lambda: [directory], list)
        self.answers = Answers(self.listing, Sights())

    def id(self, run: str) -> str:
        return identity(self.directory / safe_name(run))

    def run(self, run: str, **wish: Any) -> dict[str, Any]:
        answer = self.answers.run(self.id(run), Wish(**wish))
        assert answer is not None
        return dict(json.loads(answer.body))

    def runs(self, **options: Any) -> dict[str, Any]:
        return dict(json.loads(self.answers.runs(**options).body))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken for fresh because it was looked at a moment ago."""
    monkeypatch.setattr(sight, "PERIOD", 0.0)
    monkeypatch.setattr(sight, "EVENTS", 0.0)
    monkeypatch.setattr("resmon.page.listing.FRESH", 0.0)
    monkeypatch.setattr("resmon.page.listing.COST", 0.0)
    monkeypatch.setattr("resmon.page.listing.LIVE", 0.0)


def keys(told: dict[str, Any]) -> list[str]:
    return [figure["key"] for figure in told["figures"]]


def unpacked(values: dict[str, str]) -> np.ndarray[Any, Any]:
    import base64

    shape = [int(each) for each in values["shape"].split(",")]
    return np.frombuffer(base64.b64decode(values["bdata"]), "<f4").reshape(shape)


def test_runs_are_told_with_state_outcome_and_age(tmp_path: Path) -> None:
    record(tmp_path, "well")
    record(tmp_path, "broken", broken_at=60)
    record(tmp_path, "open", end=False)  # this process holds its lock
    told = House(tmp_path).runs()
    assert told["total"] == 3
    runs = {run["name"]: run for run in told["runs"]}
    assert {name: run["outcome"] for name, run in runs.items()} == {"well": "finished", "broken": "nonfinite", "open": "stalled"}
    assert (runs["well"]["steps"], runs["well"]["blocks"], runs["well"]["lives"]) == (120, 6, False)
    assert runs["broken"]["incident"].startswith("Step 60: sqrt in module h.4")
    assert [run["name"] for run in House(tmp_path).runs(match="BROK")["runs"]] == ["broken"]


def test_a_run_is_told_with_its_figures(tmp_path: Path) -> None:
    record(tmp_path, "broken", broken_at=60)
    house = House(tmp_path)
    told = house.run("broken", block=4)
    assert keys(told) == ["events", "loss", "heat", "depth", "block", "magnitudes", "training", "scores"]
    assert told["range"] == [0, 119] and told["blocks"] == [f"h.{i}" for i in range(6)]
    assert told["run"]["incidents"][0]["runbook"] == "nonfinite"
    assert told["run"]["findings"][0]["block"] == "h.4" and told["run"]["findings"][0]["lasts"]
    assert "Vermilion is NaN or infinite" in told["figures"][2]["caption"]
    assert [each["name"] for each in told["quantities"]] == [measure.name for measure in MEASURES]


def test_no_stream_leads_from_one_model_to_the_next(tmp_path: Path) -> None:
    record(tmp_path, "gan", models=("g", "d"))
    depth = next(figure for figure in House(tmp_path).run("gan")["figures"] if figure["key"] == "depth")
    (line,) = (trace for trace in depth["plot"]["data"] if trace["type"] == "scatter" and "stream" in trace["name"])
    assert [x for x, y in zip(line["x"], line["y"], strict=True) if y is None] == [5.5]
    assert [x for x, y in zip(line["x"], line["y"], strict=True) if y is not None] == list(range(12))


def test_what_is_said_of_a_block_leads_to_it_where_models_share_its_name(tmp_path: Path) -> None:
    record(tmp_path, "gan", broken_at=60, models=("g", "d"))
    told = House(tmp_path).run("gan")
    assert told["blocks"].index("d:h.4") > told["blocks"].index("g:h.4")
    assert told["run"]["findings"][0]["block"] == "d:h.4" == told["run"]["incidents"][0]["block"]


@pytest.mark.parametrize(
    ("quantity", "narrow"), [("branch_skip_ratio", True), ("gradient_norm", False), ("dead_unit_ratio", False)]
)
def test_figures_are_what_plotly_takes(quantity: str, narrow: bool, tmp_path: Path) -> None:
    """plotly's own package knows what plotly.js understands; the page makes figures without it."""
    record(tmp_path, "one", 40, broken_at=30)
    record(tmp_path, "two", 40)
    house = House(tmp_path)
    for wish in ({"block": 1}, {"block": 1, "beside": house.id("two")}):
        for figure in house.run("one", quantity=quantity, narrow=narrow, **wish)["figures"]:
            go.Figure(figure["plot"])  # raises ValueError for what it does not know
            assert figure["title"]


def test_one_step_in_a_hundred_is_not_lost_in_its_column(tmp_path: Path) -> None:
    _, writer = begin(tmp_path, "spike")
    training = Training(sites(4))
    writer.sites(training.sites)
    for step in range(3000):
        made = training.step()
        made.blocks[3] = 4.0 * (1 + 0.01 * np.sin(step))
        made.blocks[3, 2] *= 1e6 if step == 1717 else 1
        writer.step(made)
    told = House(tmp_path).run("spike", quantity="gradient_norm")
    (heat,) = (figure for figure in told["figures"] if figure["key"] == "heat")
    trace = heat["plot"]["data"][0]
    levels = unpacked(trace["z"])
    row, column = np.unravel_index(np.nanargmax(levels), levels.shape)
    assert row == 2 and abs(trace["x"][column] - 1717) <= 8
    assert levels[row, column] == pytest.approx(np.log10(2e3), abs=0.01)
    assert np.nanmax(np.delete(levels, column, axis=1)) < 0.5


def test_two_runs_have_the_same_axes_and_colours(tmp_path: Path) -> None:
    record(tmp_path, "one", 120)
    record(tmp_path, "two", 80, blocks=5)
    house = House(tmp_path)
    told = house.run("one", beside=house.id("two"), block=1)
    assert keys(told) == ["loss", "heat", "heat-2", "depth", "block", "magnitudes", "magnitudes-2", "training", "scores"]
    mine, theirs = (figure["plot"]["layout"] for figure in told["figures"][1:3])
    assert mine["xaxis"]["range"] == theirs["xaxis"]["range"]
    assert mine["coloraxis"]["cmin"] == theirs["coloraxis"]["cmin"] and mine["coloraxis"]["cmax"] == theirs["coloraxis"]["cmax"]
    assert told["differing"] == "one alone has h.5."
    assert house.run("one", beside="no such run~0")["other"] is None


def test_each_of_two_runs_is_told_the_colours_that_it_alone_has(tmp_path: Path) -> None:
    record(tmp_path, "one", 120)
    record(tmp_path, "two", 120, broken_at=100)
    house = House(tmp_path)
    one, two = (each["caption"] for each in house.run("one", beside=house.id("two"))["figures"] if each["key"].startswith("heat"))
    assert "Vermilion" not in one and one.startswith("The branch/skip ratio tells")
    assert two == "Vermilion is NaN or infinite."


def test_an_answer_that_is_as_before_is_made_once(tmp_path: Path, at_once: None) -> None:
    _, writer = begin(tmp_path, "live")
    training = Training(sites(3))
    writer.sites(training.sites)
    writer.step(training.step(time=time.time()))
    house = House(tmp_path)
    before = house.answers.run(house.id("live"), Wish())
    again = house.answers.run(house.id("live"), Wish())
    assert before is not None and again is not None and again.body is before.body
    writer.step(training.step(time=time.time()))
    after = house.answers.run(house.id("live"), Wish())
    assert after is not None and after.tag != before.tag
    assert json.loads(after.body)["range"] == [0, 1]


def test_names_never_become_paths(tmp_path: Path) -> None:
    record(tmp_path / "runs", "one")
    record(tmp_path / "secret", "other")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "secret" / "other")
    shutil.copytree(tmp_path / "runs" / "one" / "attempt-0001", tmp_path / "runs" / "two" / "attempt-0001")
    shutil.rmtree(tmp_path / "runs" / "two" / "attempt-0001" / "rank-00000")
    (tmp_path / "runs" / "two" / "attempt-0001" / "rank-00000").symlink_to(
        tmp_path / "secret" / "other" / "attempt-0001" / "rank-00000"
    )
    house = House(tmp_path / "runs")
    assert [run["name"] for run in house.runs()["runs"]] == ["one"], "a link that leads out is none of them"
    for id_ in ("../secret/other", str(tmp_path / "secret" / "other"), "one", "", "..", "one~00000000", "one\0"):
        assert house.answers.run(id_, Wish()) is None
        assert json.loads(house.answers.run(house.id("one"), Wish(beside=id_)).body)["other"] is None  # type: ignore[union-attr]


def test_each_attempt_of_a_run_can_be_looked_at_and_two_of_them_beside(tmp_path: Path) -> None:
    for number, steps in ((1, 40), (2, 60), (3, 80)):
        _, writer = begin(tmp_path, "resumed", launch=f"launch {number}")
        fill(writer, steps, 3)
        writer.end(RunEnd("finished", 1000.0 + steps, steps - 1))
    house = House(tmp_path)
    newest = house.run("resumed")
    run = house.id("resumed")
    assert [each["id"] for each in newest["attempts"]] == [run, f"{run}@2", f"{run}@1"]
    assert [(each["number"], each["outcome"], each["steps"]) for each in newest["attempts"]][2] == (1, "finished", 40)
    assert newest["range"] == [0, 79] and newest["run"]["title"] == "resumed", "the newest, unless another is asked for"

    answer = house.answers.run(f"{run}@2", Wish(beside=f"{run}@1"))
    assert answer is not None
    told = json.loads(answer.body)
    assert (told["run"]["title"], told["other"]["title"]) == ("resumed, attempt 2", "resumed, attempt 1")
    assert told["range"] == [0, 59] and "heat-2" in keys(told)
    names = {trace.get("name") for figure in told["figures"] for trace in figure["plot"]["data"]}
    assert {"resumed, attempt 2", "resumed, attempt 1"} <= names

    itself = house.answers.run(run, Wish(beside=f"{run}@3"))
    assert itself is not None and json.loads(itself.body)["other"] is None
    for none in ("@4", "@0", "@-1", "@", "@x", "@2@2", "@../attempt-0002", f"@{'9' * 30}"):
        assert house.answers.run(f"{run}{none}", Wish()) is None
    (tmp_path.parent / "elsewhere").mkdir(exist_ok=True)
    shutil.move(tmp_path / "resumed" / "attempt-0001", tmp_path.parent / "elsewhere" / "attempt-0001")
    (tmp_path / "resumed" / "attempt-0001").symlink_to(tmp_path.parent / "elsewhere" / "attempt-0001")
    assert house.answers.run(f"{run}@1", Wish()) is None, "a link that leads out is none of them"


def test_what_was_never_over_is_told_though_the_run_has_finished(tmp_path: Path) -> None:
    """A branch that died leaves a run that finished: nobody may take that for a run that was well."""
    for run, why in (("ill", RUN_ENDED), ("healed", "the branch adds again")):
        folder = record(tmp_path, run)
        opened = Finding.opened(
            "dead_branch",
            "ticket",
            40,
            1040.0,
            "The branch of h.2 has added nothing since step 20",
            expected="a ratio",
            seen="0",
            confidence=0.9,
            runbook="dead-branch",
            evidence={},
            block="h.2",
        )
        for event in (opened, opened.closed(119, 1119.0, why)):
            journal.append(folder.parent / layout.FINDINGS, finding_values(event))
    house = House(tmp_path)
    runs = {run["name"]: run for run in house.runs()["runs"]}
    assert runs["ill"]["outcome"] == runs["healed"]["outcome"] == "finished"
    assert runs["ill"]["finding"].startswith("The branch of h.2 has added nothing since step 20")
    assert (runs["ill"]["severity"], runs["ill"]["findings"]) == ("ticket", 1)
    assert (runs["healed"]["finding"], runs["healed"]["severity"], runs["healed"]["findings"]) == ("", "", 0)
    found = {run: house.run(run)["run"]["findings"][0] for run in ("ill", "healed")}
    assert (found["ill"]["lasts"], found["healed"]["lasts"], found["ill"]["time"]) == (True, False, 1040.0)


def test_what_makes_no_sense_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    wish = Wish.of(
        {"quantity": "drop table", "from": "-1", "to": "9" * 99, "block": "1e3", "at": "२", "newest": "x", "narrow": "yes"}
    )
    assert wish == Wish()
    assert Wish.of({"from": "9", "to": "3"}) == Wish()
    record(tmp_path, "one")
    told = House(tmp_path).run("one", first=10**15 - 2, last=10**15 - 1, at=10**15 - 1, block=10**14)
    assert told["range"] == [0, 119] and told["block"] is None and told["at"] == 119


def test_hostile_texts_are_texts(tmp_path: Path) -> None:
    record(tmp_path, HOSTILE[0], names=HOSTILE, broken_at=60)
    house = House(tmp_path)
    told = house.run(HOSTILE[0], block=2)
    assert told["blocks"] == list(HOSTILE)
    drawn = json.dumps(told["figures"])
    plots = json.dumps([figure["plot"] for figure in told["figures"]])
    for piece in ("<script", "<img", "<b>h.3", "<a href"):
        assert piece not in plots and piece in json.dumps(told), "as text, and in no place that plotly reads tags in"
    assert "long" * 124 in drawn
    ticks = next(figure for figure in told["figures"] if figure["key"] == "heat")["plot"]["layout"]["yaxis"]["ticktext"]
    assert max(len(html.unescape(text)) for text in ticks) <= 28, "a long name is cut where it is an axis' label"


def test_a_run_that_vanishes_and_comes_back(tmp_path: Path, at_once: None) -> None:
    folder = record(tmp_path, "one")
    house = House(tmp_path)
    assert house.run("one")["figures"]
    shutil.rmtree(folder.parent.parent)
    assert house.answers.run(house.id("one"), Wish()) is None
    assert house.runs()["total"] == 0
    record(tmp_path, "one", steps=40)
    assert house.run("one")["range"] == [0, 39]


def test_a_flight_that_grows_damaged_is_shown_as_far_as_it_goes(tmp_path: Path, at_once: None) -> None:
    folder, writer = begin(tmp_path, "one")
    fill(writer, 100, 4)
    house = House(tmp_path)
    assert house.run("one")["run"]["skipped"] == 0
    (segment,) = folder.glob("steps-*.arrow")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(data)
    again = House(tmp_path).run("one")
    assert again["run"]["skipped"] == 1 and again["range"] == [0, 99]
    for junk in (b"", b"\0" * 100, os.urandom(5000)):
        segment.write_bytes(junk)
        (folder / "info.json").write_bytes(junk)
        (folder / "incidents.jsonl").write_bytes(junk)
        (folder.parent / "findings.jsonl").write_bytes(junk)
        told = House(tmp_path).run("one")
        assert told["run"]["outcome"] in ("unreadable", "killed", "stalled", "running")


def test_a_run_before_its_first_step_is_told_without_figures(tmp_path: Path, at_once: None) -> None:
    _, writer = begin(tmp_path, "young")
    house = House(tmp_path)
    assert house.run("young")["figures"] == []
    fill(writer, 1, 3)
    assert house.run("young")["range"] == [0, 0]


def test_thousands_of_runs_are_listed_and_few_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = record(tmp_path, "run", steps=2, blocks=1)
    for i in range(400):
        shutil.copytree(folder.parent.parent, tmp_path / f"run-{i:03d}", copy_function=os.link)
    read = []
    from resmon.page import listing

    kept = listing.summary
    monkeypatch.setattr(listing, "summary", lambda attempt: read.append(attempt) or kept(attempt))
    told = House(tmp_path).runs()
    assert told["total"] == 401 and len(told["runs"]) == len(read) == 50
    assert len(House(tmp_path).runs(match="run-12")["runs"]) == 10
    assert len(House(tmp_path).runs(limit=10**6)["runs"]) == 401


def test_many_ask_at_once(tmp_path: Path, at_once: None) -> None:
    """While a run grows: nobody waits for ever, nobody gets half of it."""
    _, writer = begin(tmp_path, "live")
    training = Training(sites(3))
    writer.sites(training.sites)
    writer.step(training.step())
    record(tmp_path, "other")
    house, wrong, done = House(tmp_path), [], threading.Event()

    def read(number: int) -> None:
        names = ("live", "other") if number % 2 else ("other", "live")
        while not done.is_set():
            try:
                told = house.run(names[0], beside=house.id(names[1]), block=number % 3, first=0, last=50 * number + 10)
                assert told["figures"]
            except Exception as error:  # noqa: BLE001, told below
                wrong.append(repr(error))
                return

    threads = [threading.Thread(target=read, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(600):
        writer.step(training.step())
    done.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not wrong


def test_what_nobody_asks_for_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        record(tmp_path, f"run{i}", 20)
    monkeypatch.setattr(sight, "ROOM", 1)
    sights = Sights()
    house = House(tmp_path)
    for entry in house.listing.entries():
        sights.of(entry.attempt)
    assert len(sights._sights) == 1
