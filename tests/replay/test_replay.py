"""Replays of flights that an agent has followed, and of some that none has."""

from __future__ import annotations

import json
import time
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resmon.agent.attempt import Attempt, Rank
from resmon.detectors import Bank
from resmon.errors import ConfigurationError, FlightError
from resmon.flight import findings, layout
from resmon.flight.reader import Follower
from resmon.records import Finding, RunEnd
from resmon.replay import detection as replaying
from resmon.replay.comparison import against, compare
from resmon.replay.detection import merge, replay, settings_of
from resmon.terminal import tail
from tests import synthetic
from tests.detectors.course import Item, course
from tests.flight.flights import BUDGET, begin, record, write
from tests.test_cli import here, resmon


def troubled(seed: int = 0, steps: int = 700) -> list[Item]:
    """A branch dies and comes back, then a block is non-finite, and the loss diverges."""
    branch, broken = np.full((steps, 6), 0.3), np.zeros((steps, 6))
    branch[100:330, 3] = 0.0
    broken[400:430, 2:] = 5
    at = np.arange(steps)
    return course(
        steps, seed=seed, branch_rms=branch, nonfinite_forward=broken, scalars={"loss": np.where(at < 450, 0.99**at, 40.0)}
    )


class Watched:
    """A run of several ranks and the agent's attempt that follows it."""

    def __init__(self, folder: Path, stories: list[list[Item]], budget: int = BUDGET, **info: Any) -> None:
        made = [begin(folder, rank=rank, budget=budget, world_size=len(stories), **info) for rank in range(len(stories))]
        self.folders, self.writers = zip(*made, strict=True)
        self.attempt = self.folders[0].parent
        self.faults: list[str] = []
        self._stories = [iter(story) for story in stories]
        self._agent = Attempt(self.attempt, lambda _, message: self.faults.append(message))
        for each in self.folders:
            self._agent.add(Rank(Follower(each)))

    def goes_on(self, random: np.random.Generator) -> bool:
        """A few steps of each rank, of which the agent sees what there is; False at the end."""
        there = False
        for writer, story in zip(self.writers, self._stories, strict=True):
            items = list(islice(story, int(random.integers(1, 90))))
            record(writer, items)
            there |= bool(items)
            if random.random() < 0.7:
                self._agent.poll(time.monotonic() + 60)
        return there

    def ends(self, step: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        while self.goes_on(random):
            pass
        for rank, writer in enumerate(self.writers):
            writer.end(RunEnd("finished", 5000.0 + rank, step))
        self._agent.poll(time.monotonic() + 60)
        self._agent.close()
        assert self.faults == []


def told(events: list[Finding] | tuple[Finding, ...]) -> list[tuple[str, str, int]]:
    return [(event.id, event.state, event.step) for event in events]


def test_a_replay_says_what_the_agent_said_to_the_last_number(tmp_path: Path) -> None:
    run = Watched(tmp_path, [troubled()])
    run.ends(699)
    replayed = replay(run.attempt, [{}])
    written = findings.read(run.attempt)[0]
    assert {event.kind for event in written} == {"dead_branch", "nonfinite", "loss_divergence"}
    assert list(replayed.events[0]) == written
    assert against(run.attempt, replayed.events[0]).is_same
    assert (replayed.run, replayed.ranks, replayed.steps, replayed.recorded, replayed.under_way) == (
        "digits",
        (0,),
        700,
        700,
        False,
    )
    assert replayed.notes == ()


def test_of_several_ranks_what_is_said_is_merged_as_the_agent_merges_it(tmp_path: Path) -> None:
    run = Watched(tmp_path, [troubled(), troubled(seed=1), course(700, seed=2, scalars={"loss": 1.0})])
    run.ends(699)
    first, again = replay(run.attempt, [{}]), replay(run.attempt, [{}])
    assert first.events == again.events
    assert sorted(told(first.events[0])) == sorted(told(findings.read(run.attempt)[0]))
    assert against(run.attempt, first.events[0]).is_same
    assert first.ranks == (0, 1, 2)


def test_how_much_is_read_at_once_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, writer = begin(tmp_path)
    record(writer, troubled())
    writer.end(RunEnd("finished", 5.0, 699))
    whole = replay(folder.parent, [{}]).events
    monkeypatch.setattr(replaying, "AT_ONCE", 1)
    assert replay(folder.parent, [{}]).events == whole
    assert whole[0]


def test_agent_and_replay_take_the_settings_that_the_run_recorded(tmp_path: Path) -> None:
    run = Watched(tmp_path, [troubled()], detectors={"dead_branch": {"enabled": False}, "loss_divergence": {"sites": 3}, "x": {}})
    random = np.random.default_rng(0)
    while run.goes_on(random):
        pass
    run.writers[0].end(RunEnd("finished", 5.0, 699))
    run._agent.poll(time.monotonic() + 60)
    assert len(run.faults) == 1 and "x: there is no such detector" in run.faults[0] and "loss_divergence.sites" in run.faults[0]
    replayed = replay(run.attempt, [{}])
    assert {event.kind for event in replayed.events[0]} == {"nonfinite", "loss_divergence"}
    assert against(run.attempt, replayed.events[0]).is_same
    assert len(replayed.notes) == 2


def test_what_other_settings_would_have_said(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path, detectors={"dead_branch": {"windows": 4}})
    record(writer, troubled())
    writer.end(RunEnd("finished", 5.0, 699))

    def changes(*settings: str) -> dict[tuple[str, str], str]:
        both = replay(folder.parent, [{}, settings_of(settings)])
        compared = compare(both.findings(0), both.findings(1))
        return {(each.finding.kind, each.how): each.what for each in compared if each.how != "same"}

    assert changes() == {}
    assert changes("nonfinite.enabled=false") == {("nonfinite", "gone"): ""}
    assert changes("dead_branch[h.3].enabled=no") == {("dead_branch", "gone"): ""}
    assert changes("dead_branch.windows=4", "dead_branch[h.9].windows=1") == {}
    (found,) = changes("dead_branch.windows=8").items()
    assert found[0] == ("dead_branch", "changed") and found[1].startswith("opens at step 223, not 159")
    assert changes("dead_branch.page=5") == {("dead_branch", "changed"): "a page, not a ticket"}
    both = replay(folder.parent, [{"dead_branch": {"enabled": False}}, {}])
    assert [each.how for each in compare(both.findings(0), both.findings(1))] == ["new", "same", "same"]


def test_settings_are_put_on_top_option_by_option() -> None:
    own = {"a": {"x": 1, "sites": {"h.*": {"x": 2}}}, "b": 3}
    assert merge(own, {"a": {"y": 1, "sites": {"h.*": {"y": 3}, "g": {"x": 4}}}, "b": {"z": 0}}) == {
        "a": {"x": 1, "y": 1, "sites": {"h.*": {"x": 2, "y": 3}, "g": {"x": 4}}},
        "b": {"z": 0},
    }
    made = settings_of(["dead_branch.ratio=1e-6", "dead_branch[h.[0-3].*].ratio= 1", "dead_branch[a=b.c].enabled=no"])
    assert made == {"dead_branch": {"ratio": "1e-6", "sites": {"h.[0-3].*": {"ratio": "1"}, "a=b.c": {"enabled": "no"}}}}


def test_all_that_is_wrong_with_them_is_told_at_once() -> None:
    texts = ["dead_branch.ratio=-1", "dead_branch.ratoi=1", "dead_branch[h.*].windows=x", "dead=1", "deadbranch.ratio=1", "=", ""]
    with pytest.raises(ConfigurationError) as refused:
        settings_of(texts)
    lines = str(refused.value).splitlines()
    assert len(lines) == len(texts) + 2
    assert "--set dead_branch.ratoi=1: there is no such option; the nearest is ratio" in lines[2]
    assert "--set deadbranch.ratio=1: there is no such detector; the nearest is dead_branch" in lines[5]


def test_of_a_thinned_flight_it_says_what_is_there(tmp_path: Path) -> None:
    run = Watched(tmp_path, [troubled(steps=2200)], budget=1 << 20)
    run.ends(2199)
    replayed = replay(run.attempt, [{}])
    assert 1000 < replayed.steps < replayed.recorded == 2200
    assert {event.kind for event in replayed.events[0]} >= {"dead_branch", "nonfinite"}


def test_a_run_that_is_under_way_has_findings_that_are_open(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    record(writer, [item for item in troubled() if getattr(item, "step", 0) < 420])
    replayed = replay(folder.parent, [{}])
    assert replayed.under_way
    assert [(finding.kind, finding.state) for finding in replayed.findings()] == [
        ("dead_branch", "closed"),
        ("nonfinite", "opened"),
    ]
    layout.release(writer._lock)  # killed
    after = replay(folder.parent, [{}])
    assert not after.under_way and {finding.state for finding in after.findings()} == {"closed"}


def test_what_differs_from_the_agents_file_is_named(tmp_path: Path) -> None:
    run = Watched(tmp_path, [troubled()])
    run.ends(699)
    path = run.attempt / layout.FINDINGS
    lines = path.read_text().splitlines()
    first, second = json.loads(lines[0]), json.loads(lines[1])
    path.write_text(
        "\n".join([json.dumps(first | {"summary": "x"}), *lines[2:], json.dumps(first | {"id": "mine", "kind": "mine"})])
    )
    events = replay(run.attempt, [{}]).events[0]
    found = against(run.attempt, events)
    assert not found.is_same
    assert [each.id for each in found.missing] == ["mine"]
    assert [(each.id, each.state) for each in found.more] == [(second["id"], second["state"])]
    assert [each.id for each in found.differing] == [first["id"]]


def test_where_nothing_can_be_read_that_is_said(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    record(writer, troubled()[:5])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlightError, match="holds no rank's flight"):
        replay(tmp_path / "empty", [{}])
    (folder / layout.INFO).write_text("{}")
    with pytest.raises(FlightError, match="names no flight format"):
        replay(folder.parent, [{}])


def test_a_detector_that_fails_is_named_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, writer = begin(tmp_path)
    record(writer, troubled())
    monkeypatch.setattr("resmon.detectors.divergence.Divergence.scalars", lambda *_: 1 / 0)
    replayed = replay(folder.parent, [{}, {}])
    assert replayed.notes == ("the detector loss_divergence failed and is off from there: ZeroDivisionError('division by zero')",)
    assert {event.kind for event in replayed.events[0]} == {"dead_branch", "nonfinite"}


def test_memory_does_not_grow_with_the_flight(tmp_path: Path) -> None:
    """Once over a part of it for what is made once."""

    def peak(steps: int) -> int:
        folder, writer = begin(tmp_path / str(steps), budget=1 << 30)
        training = synthetic.Training(synthetic.sites(50))
        write(writer, training, steps)
        writer.end(RunEnd("finished", 5.0, steps - 1))
        tracemalloc.start()
        replay(folder.parent, [{}])
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    short, long = peak(1000), peak(4000)
    assert long < short + (2 << 20)
    assert short < 60 << 20


def test_tail_leaves_long_flights_to_the_agent_and_to_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(Bank, "step", lambda _, record, __: told.append(record.step) or [])
    monkeypatch.setattr(tail, "DETECTED", 100)
    run = Watched(tmp_path, [[]])
    record(run.writers[0], troubled())
    assert not tail.Tail(run.attempt).poll().findings
    assert told == list(range(599, 700))
    monkeypatch.undo()
    run.ends(699)
    monkeypatch.setattr(Bank, "step", lambda *_: 1 / 0)
    shown = tail.Tail(run.attempt).poll()
    assert {finding.kind for finding in shown.findings.values()} == {"dead_branch", "nonfinite", "loss_divergence"}


# -- the command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of trouble that an agent has followed, in the current folder's runs/."""
    watched = Watched(tmp_path / "runs", [troubled()])
    watched.ends(699)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return watched.attempt


def test_the_command_shows_the_findings_and_that_they_are_the_agents(run: Path, tmp_path: Path) -> None:
    result = resmon("replay", "digits", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "The branch of h.3 has added nothing since step 96" in " ".join(result.stdout.split())
    assert "3 findings (2 pages and 1 ticket) in 700 steps." in result.stdout
    assert f"This is what the agent wrote, to the last number: {len(findings.read(run)[0])} events." in result.stdout


def test_json_has_every_event(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert here(monkeypatch, "replay", str(run), "--json", "--set", "dead_branch.windows=2") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agent"]["same"] and found["agent"]["missing"] == []
    assert [event["id"] for event in found["events"]] == [event.id for event in findings.read(run)[0]]
    assert sorted(each["how"] for each in found["set"]["changes"]) == ["changed", "same", "same"]
    assert (found["steps"], found["recorded"], found["under_way"]) == (700, 700, False)


@pytest.mark.usefixtures("run")
def test_the_command_shows_what_a_setting_changes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert here(monkeypatch, "replay", "digits", "--set", "dead_branch.enabled=false") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "gone ticket" in shown
    assert "With these settings: 2 findings (2 pages) – 1 gone, 2 same." in shown
    assert here(monkeypatch, "replay", "digits", "--set", "dead_branch.page=999") == 0
    assert "– 3 same." in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nothing"], 2, "there is no run 'nothing'"),
        (["digits", "--set", "dead_branch.ratoi=1"], 2, "the nearest is ratio"),
        (["digits", "--detector", "nowhere:Loud"], 2, "nowhere:Loud cannot be imported: ModuleNotFoundError"),
        (["digits", "--detector", "resmon.detectors:Options"], 2, "is no subclass of resmon.detectors.Detector"),
        ([], 2, "Missing argument"),
    ],
)
@pytest.mark.usefixtures("run")
def test_what_cannot_be_done_is_told(
    arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert here(monkeypatch, "replay", *arguments) == status
    assert said in " ".join(capsys.readouterr().err.split())
