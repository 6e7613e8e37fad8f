"""Detectors of the user's own: imported from a folder, edited between two runs, broken in every way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmon.agent import runtime
from resmon.agent.roster import Roster
from resmon.detectors import own
from resmon.detectors.own import OwnError, load, load_all
from resmon.flight import findings
from resmon.monitor.watch import _own_detectors
from resmon.settings import Settings
from tests.agent.test_bookmark import Run
from tests.agent.test_roster import poll
from tests.detectors.course import course

GOOD = """
from resmon.detectors import Account, Detector, Episodes, Options
class LoudOptions(Options):
    ratio: float = {ratio}
class Loud(Detector):
    name = "loud"
    options = LoudOptions
    def __init__(self, tuned=None):
        super().__init__(tuned)
        self._episodes = Episodes("loud", "straying-block")
    def window(self, window):
        ratio = window.median("branch_skip_ratio")
        bad = ratio > self.tuned.everywhere.ratio
        return self._episodes.take(window, bad, lambda lead, _: Account("ticket", "loud", "below", "above", 0.9))
"""
BAD = """
from resmon.detectors import Detector
class Unnamed(Detector): pass
class Shouting(Detector): name = "LOUD!"
class Taken(Detector): name = "nonfinite"
class Optionless(Detector):
    name = "optionless"
    options = dict
class Failing(Detector):
    name = "failing"
    def __init__(self, tuned=None): raise RuntimeError("no")
class Fine(Detector): name = "fine"
class Same(Detector): name = "fine"
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "project"
    made.mkdir()
    path = list(sys.path)
    yield made
    assert sys.path == path
    for name in own._imported_here:
        sys.modules.pop(name, None)


def test_what_was_edited_is_imported_anew_and_so_is_anothers_of_that_name(folder: Path, tmp_path: Path) -> None:
    (folder / "loudness.py").write_text(GOOD.format(ratio=3.0))
    first = load("loudness:Loud", [str(folder)])
    (folder / "loudness.py").write_text(GOOD.format(ratio=40.0))
    second = load("loudness:Loud", [str(folder)])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "loudness.py").write_text(GOOD.format(ratio=5.0))
    third = load("loudness:Loud", [str(tmp_path / "other")])
    assert [kind.options().ratio for kind in (first, second, third)] == [3.0, 40.0, 5.0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("bad:Unnamed", "its `name` must be a word"),
        ("bad:Shouting", "its `name` must be a word"),
        ("bad:Taken", "resmon has a detector that is called 'nonfinite'"),
        ("bad:Optionless", "must be a subclass of resmon.detectors.Options"),
        ("bad:Failing", "cannot be made: RuntimeError('no')"),
        ("bad:number", "is no subclass of resmon.detectors.Detector"),
        ("bad:Nothing", "has no attribute 'Nothing'"),
        ("nowhere:Loud", "cannot be imported: ModuleNotFoundError"),
        ("raises:Loud", "cannot be imported: ZeroDivisionError"),
        ("leaves:Loud", "cannot be imported: SystemExit"),
        ("broken:Loud", "cannot be imported: SyntaxError"),
        ("os:getcwd", "is no subclass"),
    ],
)
def test_what_is_no_detector_is_refused_with_a_reason(name: str, why: str, folder: Path) -> None:
    (folder / "bad.py").write_text(BAD)
    (folder / "raises.py").write_text("1 / 0")
    (folder / "leaves.py").write_text("raise SystemExit(3)")
    (folder / "broken.py").write_text("class")
    with pytest.raises(OwnError) as refused:
        load(name, [str(folder)])
    assert why in str(refused.value)


def test_those_that_can_run_do(folder: Path) -> None:
    (folder / "bad.py").write_text(BAD)
    kinds, wrong = load_all(["bad:Fine", "bad:Taken", "bad:Same", "bad:Fine"], [str(folder)])
    assert [kind.name for kind in kinds] == ["fine"]
    assert len(wrong) == 2


def test_a_module_of_resmon_or_of_the_system_is_never_thrown_out(folder: Path) -> None:
    before = sys.modules["resmon.detectors"]
    with pytest.raises(OwnError):
        load("resmon.detectors:Options", [str(folder)])
    with pytest.raises(OwnError):
        load("resmon.detectors:Options", [str(folder)])
    assert sys.modules["resmon.detectors"] is before


def test_the_agent_runs_it_with_its_options_and_goes_on_after_a_restart(
    folder: Path, tmp_path: Path, runtime_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "loudness.py").write_text(GOOD.format(ratio=99.0))
    story = course(400, branch_rms=[[0.3] * 6] * 200 + [[9.0] * 6] * 200)
    run = Run(tmp_path / "runs", story, register=False, detectors={"loud": {"ratio": 3.0}, "loudd": {}})
    runtime.register(run.folder, None, {"names": ["loudness:Loud", "loudness:Quiet"], "folders": [str(folder)]})
    first = Roster(runtime_folder, "0", linger=1000.0)
    run.goes_on(300)
    poll(first)
    first.leave()
    second = Roster(runtime_folder, "0", linger=1000.0)
    run.goes_on(1000)
    run.ends()
    poll(second)
    (attempt,) = (followed.attempt for followed in second._followed.values())
    assert attempt.ranks[0].resumed is not None
    loud = [event for event in findings.read(run.folder.parent)[0] if event.kind == "loud"]
    assert [event.state for event in loud] == ["opened", "closed"]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sum("is watched without a detector of yours" in each for each in said) == 2  # each agent once
    assert sum("loudd: there is no such detector; the nearest is loud" in each for each in said) == 2


def test_a_flight_names_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the training process registers; its RunInfo has no such field."""
    monkeypatch.chdir(tmp_path)
    assert _own_detectors(Settings.of()) is None
    registered = _own_detectors(Settings.of(own_detectors="mine:Loud"))
    assert registered is not None and registered["names"] == ["mine:Loud"]
    assert registered["folders"][0] == str(tmp_path)
