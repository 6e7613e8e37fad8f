"""What the page shows of a run is what its flight holds: every number against one computed from the records themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resmon import load
from resmon.page import course as courses
from resmon.page import history, sight
from resmon.page.course import Course
from resmon.page.sight import Sight
from resmon.plots.measures import BY_NAME, MEASURES, Measure
from resmon.records import BLOCK_VALUES, MAGNITUDE_COLUMNS, Floats, RunEnd, ScalarRecord, StepRecord
from tests import synthetic
from tests.flight.flights import begin, write


def exact(measure: Measure, records: Sequence[StepRecord]) -> Floats:
    """A quantity of all blocks at every step, [steps, blocks], from the records."""
    values = {name: np.array([record.blocks[i] for record in records]) for i, name in enumerate(BLOCK_VALUES)}
    if measure.name == "branch_skip_ratio":
        return np.sqrt(values["branch_square"] / values["skip_square"])
    if measure.root == "root mean square":
        return np.sqrt(values[measure.value] / np.array([record.counts[0] for record in records]))
    return np.sqrt(values[measure.value]) if measure.root == "root" else values[measure.value]


def looked_at(folder: Path) -> tuple[Sight, Course]:
    found = Sight(folder.parent)
    found.refresh()
    assert found.course is not None
    return found, found.course


def again(found: Sight, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "PERIOD", 0.0)
    found.refresh()


def mean_of(measure: Measure, part: Floats, axis: int) -> Floats:
    """As it is meant: of what is a root, the root of the mean square."""
    return part.mean(axis) if measure.root == "value" else np.sqrt((part**2).mean(axis))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_column_is_what_its_steps_are(measure: Measure, tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    records = write(writer, synthetic.Training(synthetic.sites(3)), 1100)
    _, course = looked_at(folder)
    assert course.width == 4, "so many columns there are"
    cells, numbers = course.cells(measure), exact(measure, records).reshape(-1, 4, 3)
    assert cells.first.tolist() == list(range(0, 1100, 4))
    np.testing.assert_allclose(cells.low.T, numbers.min(1), rtol=1e-6)
    np.testing.assert_allclose(cells.high.T, numbers.max(1), rtol=1e-6)
    np.testing.assert_allclose(cells.mean.T, mean_of(measure, numbers, 1), rtol=1e-5)
    assert not cells.nonfinite.any()


def test_where_rows_are_thinned_bins_stand_for_them_and_bound_them(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path, budget=1 << 20)
    records = write(writer, synthetic.Training(synthetic.sites(3)), 2600)
    _, course = looked_at(folder)
    assert len(load(folder).steps()) < 2600, "rows were thinned"
    measure = BY_NAME["gradient_norm"]
    cells, width = course.cells(measure), course.width
    numbers = exact(measure, records)[: 2600 // width * width].reshape(-1, width, 3)
    low, mean, high = (each.T[: len(numbers)] for each in (cells.low, cells.mean, cells.high))
    assert np.isfinite(mean).all(), "no column is empty"
    assert (low <= numbers.min(1) * (1 + 1e-6)).all() and (high >= numbers.max(1) * (1 - 1e-6)).all()
    assert float(np.nanmean(mean)) == pytest.approx(float(mean_of(measure, numbers, 1).mean()), rel=0.02)


def test_columns_wider_than_bins_are_read_from_bins_and_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courses, "MOST", 64)
    folder, writer = begin(tmp_path)
    records = write(writer, synthetic.Training(synthetic.sites(2)), 64 * 100)
    full: list[tuple[int, int]] = []
    kept = history.RankHistory.full
    monkeypatch.setattr(
        history.RankHistory, "full", lambda self, first, last: full.append((first, last)) or kept(self, first, last)
    )
    _, course = looked_at(folder)
    assert course.width == 128
    assert sum(last - first + 1 for first, last in full) < 256, "but for what no bin holds, no full row was read"
    for name in ("branch_skip_ratio", "skip_rms", "output_gradient_norm", "output_peak"):
        cells, numbers = course.cells(BY_NAME[name]), exact(BY_NAME[name], records).reshape(-1, 128, 2)
        np.testing.assert_allclose(cells.low.T, numbers.min(1), rtol=1e-6)
        np.testing.assert_allclose(cells.high.T, numbers.max(1), rtol=1e-6)
        np.testing.assert_allclose(cells.mean.T, mean_of(BY_NAME[name], numbers, 1), rtol=1e-5)
    loss = course.score("loss")
    assert loss is not None
    assert loss.high[0] == pytest.approx(1.0)
    assert loss.low[-1] == pytest.approx(1 / 6400)


def test_what_comes_later_is_taken_in_and_the_columns_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(2))
    records = write(writer, training, 300)
    found, course = looked_at(folder)
    assert course.width == 1
    for _ in range(4):
        records += write(writer, training, 300)
        again(found, monkeypatch)
        assert course.newest == len(records) - 1
    assert course.width == 4
    numbers = exact(BY_NAME["skip_rms"], records).reshape(-1, 4, 2)
    np.testing.assert_allclose(course.cells(BY_NAME["skip_rms"]).high.T, numbers.max(1), rtol=1e-6)
    loss = course.score("loss")
    assert loss is not None
    np.testing.assert_allclose(loss.mean, (1 / (1 + np.arange(1500))).reshape(-1, 4).mean(1), rtol=1e-6)


def test_whoever_comes_back_late_finds_no_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that came and were thinned while nobody looked are in bins."""
    folder, writer = begin(tmp_path, budget=1 << 20)
    training = synthetic.Training(synthetic.sites(3))
    write(writer, training, 1500)
    found, course = looked_at(folder)
    records = write(writer, training, 2600)
    again(found, monkeypatch)
    assert course.newest == records[-1].step
    assert np.isfinite(course.cells(BY_NAME["gradient_norm"]).mean).all()
    loss = course.score("loss")
    assert loss is not None
    assert np.diff(loss.step).max() <= 2 * max(course.width, 64)


def test_a_closer_look_has_every_step(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    records = write(writer, synthetic.Training(synthetic.sites(2)), 2000)
    found, course = looked_at(folder)
    assert course.width > 1
    with found.lock:
        near = found.window(700, 799)
    assert near is not None
    assert (near.width, near.used) == (1, 100)
    cells = near.cells(BY_NAME["skip_rms"])
    np.testing.assert_allclose(cells.mean.T, exact(BY_NAME["skip_rms"], records[700:800]), rtol=1e-6)


def test_what_is_not_finite_is_flagged_and_not_averaged(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(3))
    writer.sites(training.sites)
    for step in range(20):
        writer.step(training.step(forward=[1] if step == 7 else [], backward=[2] if step == 9 else []))
    writer.step(training.step(backward=[0], skipped=True))
    _, course = looked_at(folder)
    forward, backward = (course.cells(BY_NAME[name]) for name in ("branch_rms", "output_gradient_norm"))
    assert np.argwhere(forward.nonfinite).tolist() == [[1, 7]]
    assert np.argwhere(backward.nonfinite).tolist() == [[2, 9]], "but a step that a scaler skipped is none"
    assert np.isnan(forward.mean[1, 7]) and np.isfinite(np.delete(forward.mean[1], 7)).all()


def test_absence_is_not_zero(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(2))
    writer.sites(training.sites)
    for _ in range(10):
        writer.step(training.step(absent=[("gradient_square", 0)], values={("branch_square", 1): 0.0}))
    _, course = looked_at(folder)
    assert np.isnan(course.cells(BY_NAME["gradient_norm"]).mean[0]).all()
    assert (course.cells(BY_NAME["branch_skip_ratio"]).mean[1] == 0).all()


def test_ranks_are_one_as_load_has_them(tmp_path: Path) -> None:
    trainings = [synthetic.Training(synthetic.sites(2), seed=rank) for rank in range(2)]
    for rank, training in enumerate(trainings):
        folder, writer = begin(tmp_path, rank=rank, world_size=2)
        write(writer, training, 200)
    _, course = looked_at(folder)
    frame = load(folder.parent).blocks()
    for measure in MEASURES:
        wanted = frame[measure.name].to_numpy(float).reshape(200, 2)
        np.testing.assert_allclose(course.cells(measure).mean.T, wanted, rtol=1e-5, err_msg=measure.name)
    norm = course.run("gradient_norm")
    assert norm is not None
    np.testing.assert_allclose(norm.mean, load(folder.parent).steps()["gradient_norm"].to_numpy(float), rtol=1e-6)


def test_ranks_of_which_one_does_not_know_a_block_are_one_as_load_has_them(tmp_path: Path) -> None:
    for rank in range(2):
        folder, writer = begin(tmp_path, rank=rank, world_size=2)
        training = synthetic.Training(synthetic.sites(2 - rank), seed=rank)
        writer.sites(training.sites)
        for _ in range(50):
            writer.step(replace(training.step(), run=synthetic.run_values(replicas=2.0)))
    _, course = looked_at(folder)
    blocks = load(folder.parent).blocks()
    wanted = blocks["gradient_norm"].to_numpy(float).reshape(50, 2)
    mine = load(folder.parent).blocks(per_rank=True).query("block == 'h.1'")["gradient_norm_share"].to_numpy(float)
    np.testing.assert_allclose(wanted[:, 1], mine * 2**0.5, rtol=1e-6)
    np.testing.assert_allclose(course.cells(BY_NAME["gradient_norm"]).mean.T, wanted, rtol=1e-5)


def test_where_a_rank_is_missing_there_is_no_gradient(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path, world_size=2)
    write(writer, synthetic.Training(synthetic.sites(2)), 50)
    _, course = looked_at(folder)
    assert np.isnan(course.cells(BY_NAME["gradient_norm"]).mean).all()
    assert np.isfinite(course.cells(BY_NAME["skip_rms"]).mean).all()


def test_magnitudes_are_the_shares_of_each_stretch(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    records = write(writer, synthetic.Training(synthetic.sites(2)), 40)
    writer.end(RunEnd("finished", records[-1].time, 39))
    _, course = looked_at(folder)
    first, last, shares = course.magnitudes(1)
    assert (first[1], last[1]) == (4, 7)
    counts = np.array([record.magnitude_buckets[1] for record in records])
    own = counts[7] - counts[3]
    np.testing.assert_allclose(shares[:, 1], own / own.sum(), rtol=1e-12)
    np.testing.assert_allclose(shares[:, 0], counts[3] / counts[3].sum(), rtol=1e-12)
    assert shares.shape[0] == MAGNITUDE_COLUMNS


def test_more_names_than_anybody_reads_are_cut(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(1))
    writer.sites(training.sites)
    record = training.step()
    writer.step(record)
    writer.scalars(ScalarRecord(0, record.time, {f"score{i}": 1.0 for i in range(500)}))
    _, course = looked_at(folder)
    assert len(course.scores()) == history.NAMES


def test_a_closer_look_goes_on_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without being read anew at every step."""
    folder, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(2))
    records = write(writer, training, 1000)
    found, course = looked_at(folder)
    assert course.width > 1
    with found.lock:
        near = found.window(900, 1199)
    assert near is not None and near.newest == 999
    monkeypatch.setattr(history.History, "between", None)  # whoever reads anew fails
    records += write(writer, training, 300)
    again(found, monkeypatch)
    with found.lock:
        assert found.window(900, 1199) is near
    assert near.newest == 1199
    numbers = exact(BY_NAME["gradient_norm"], records[900:1200])
    np.testing.assert_allclose(near.cells(BY_NAME["gradient_norm"]).mean.T, numbers, rtol=1e-5)
    loss = near.score("loss")
    assert loss is not None and len(loss.step) == 300
