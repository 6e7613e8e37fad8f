"""The benchmark of readers in small form: two trainings, an agent and fifty readers, and what comes of it."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from scipy.stats import wilcoxon

from benchmarks import report
from benchmarks.readers import __main__ as readers
from benchmarks.readers.blocks import ARRIVE, LEAVE, STRETCH, Steps, plan
from benchmarks.readers.crowd import _first
from benchmarks.readers.interval import CONFIDENCE, FEWEST, Interval


@pytest.mark.slow
def test_fifty_readers_beside_two_trainings_are_all_answered(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with an error where one is not."""
    before = readers.PAGE.read_text()
    readers.main(["--quick"])
    said = capsys.readouterr().out
    rows = dict(line.strip("| ").split(" | ")[:2] for line in said.splitlines() if line.startswith("| "))
    for way in readers.EACH.values():
        answers = rows[f"answers, beside two trainings, {way}"]
        assert answers.endswith("; 0 failed")
        assert int(answers.split(" of ")[0].replace(",", "")) >= readers.READERS // 2  # each was answered
    memory = next(value for name, value in rows.items() if name.startswith("the agent's memory"))
    assert 50 < float(memory.split()[0]) < readers.MEMORY
    assert readers.PAGE.read_text() == before  # a part is not published


def test_the_page_can_take_the_table_and_tells_how_it_is_measured() -> None:
    report.around(readers.PAGE, readers.MARKS)
    page = " ".join(readers.PAGE.read_text().split())
    assert f"is measured for {STRETCH:g} seconds" in page
    assert (ARRIVE, LEAVE, CONFIDENCE) == (1.0, 0.5, 0.95)  # "first second", "half a second", "95 %"
    assert f"{readers.READERS} readers" in page
    assert f"two runs of {readers.WIDE:,} blocks" in page


def test_a_run_is_found_wherever_it_is_named() -> None:
    assert _first({"runs": [{"n": 1, "about": {"id": "a"}}, {"id": "b"}]}, "id") == "a"
    assert _first([{"id": 3}, None], "id") is None


def test_blocks_follow_each_other_and_share_nothing() -> None:
    blocks = plan(100.0, 5, (1.0, 0.0))
    assert [[read.each for read in block.read] for block in blocks] == [[1.0, 0.0], [0.0, 1.0]] * 2 + [[1.0, 0.0]]
    at = 100.0
    for block in blocks:
        assert block.before.begin == pytest.approx(at)
        unread = [stretch.end - stretch.begin for stretch in (block.before, block.after)]
        assert unread == pytest.approx([STRETCH / 2] * 2)
        for read, since in zip(block.read, (block.before, *block.read), strict=False):
            assert read.begin - since.end == pytest.approx(ARRIVE)
            assert read.end - read.begin == pytest.approx(STRETCH)
        assert block.gone == pytest.approx(block.read[-1].end)
        assert block.after.begin - block.gone == pytest.approx(LEAVE)
        at = block.end


@pytest.mark.parametrize("slower", [1.0, 1.02, 1.5])
def test_the_ratio_is_that_of_both_trainings_steps(slower: float) -> None:
    """Whatever one takes from the other, and while both become slower on the whole."""
    (block,) = plan(50.0, 1, (1.0, 0.0))
    begun: tuple[list[float], list[float]] = ([0.0], [0.0])
    for steps, share in zip(begun, (0.7, 0.3), strict=True):
        while steps[-1] < block.end + 1:
            now = steps[-1]
            is_read = any(read.begin <= now < read.end for read in block.read)
            steps.append(now + 0.01 / (1 - share if is_read else share) * (slower if is_read else 1.0) * (1 + now / 1e4))
    found = Steps([np.array(steps) for steps in begun])
    for each in (1.0, 0.0):
        assert found.ratio(block, each) == pytest.approx(slower, rel=2e-3)
    assert found.still(block) == pytest.approx(1.0, rel=5e-3)


def test_an_interval_holds_the_middle_as_often_as_it_says() -> None:
    """Of noise with long tails, too."""
    chance = random.Random(1)
    held = 0
    for _ in range(2000):
        noise = (chance.gauss(0, 1) / chance.choice((1, 1, 1, 0.1)) for _ in range(24))
        found = Interval.of(1.01 + 0.02 * each for each in noise)
        held += found.low <= 1.01 <= found.high
    assert 0.94 < held / 2000 < 0.965


@pytest.mark.parametrize("count", [6, 7, 12, 24])
def test_an_interval_is_what_a_signed_rank_test_does_not_reject(count: int) -> None:
    chance = random.Random(count)
    values = [chance.gauss(1.0, 0.02) for _ in range(count)]
    found = Interval.of(values)
    for bound, inside in ((found.low, 1e-6), (found.high, -1e-6)):
        assert wilcoxon([each - bound - inside for each in values], method="exact").pvalue > 0.05
        assert wilcoxon([each - bound + inside for each in values], method="exact").pvalue <= 0.05
    assert found.low < found.middle < found.high
    assert abs(found.middle - median(values)) < 0.02


def test_few_values_have_no_interval_and_few_more_are_asked_for() -> None:
    few = Interval.of([1.0, 1.1, 1.2, 1.1, 1.0])
    assert str(few) == "1.100 (too few for an interval)"
    assert few.needed(1.02) == FEWEST
    assert "some 6 blocks" in readers._told(few, 21.0)


@pytest.mark.parametrize(
    ("middle", "verdict"),
    [
        (1.0, "1.02: met"),
        (1.05, "1.02: **missed**"),
        (1.015, "1.02: not told; with noise like this it takes some 96 blocks, 34 minutes"),
        (1.02, "1.02: not told; with noise like this it takes more blocks than can be measured"),
    ],
)
def test_a_goal_is_met_or_missed_with_the_whole_interval(middle: float, verdict: str) -> None:
    assert readers._told(Interval(middle, middle - 0.01, middle + 0.01, 24), 21.0) == verdict


def test_a_training_that_dies_at_its_start_ends_it_with_what_that_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers.sys, "executable", _without_torch(tmp_path))
    with pytest.raises(SystemExit, match=r"(?s)benchmarks\.readers\.trainer has ended with status 1, .*No module named 'torch'"):
        readers._beside(tmp_path / "beside", 1)


def _without_torch(folder: Path) -> str:
    """This Python, which cannot import torch."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(
        "import sys\nclass No:\n    def find_spec(self, name, path=None, target=None):\n        if name == 'torch':\n"
        "            raise ModuleNotFoundError(\"No module named 'torch'\", name=name)\nsys.meta_path.insert(0, No())\n"
    )
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}/site:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return str(script)
